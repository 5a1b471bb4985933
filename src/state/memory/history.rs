//! What the backend knows of its past: barriers, captures in slices, and the ends of checkpoints (rules 1 to 7 and 9).
//!
//! Invariant: what is being forgotten is needed by no running capture, undo target or base: see [`Intervals`](crate::state::intervals::Intervals).

use std::time::Duration;

use perennial_actors::model::{CheckpointId, KeyGroup, SegmentKind, StateMeta};

use super::MemoryBackend;
use crate::append::AppendBuffer;
use crate::key::Key;
use crate::state::capture::{Budget, Extent, ShardCursor};
use crate::state::{CaptureProgress, CaptureRequest, CapturedState, StateError, Undone};

/// Captures that run at one time; a further barrier declines the oldest.
pub const CAPTURES_MAX: usize = 8;

pub(super) struct Capture {
    pub(super) checkpoint: CheckpointId,
    extent: Extent,
    states: Vec<StateMeta>,
    /// Next group, next state in it.
    shard: usize,
    state: usize,
    cursor: ShardCursor,
    out: AppendBuffer,
    groups: Vec<(KeyGroup, Vec<u8>)>,
}

impl<K: Key> MemoryBackend<K> {
    /// Rule 9, after each change.
    #[inline]
    pub(in crate::state) fn check_limit(&mut self) {
        if self.intervals.log_bytes > self.limits.log_bytes_max {
            self.shed();
        }
    }

    #[cold]
    fn shed(&mut self) {
        self.give_up_undo();
        while self.intervals.log_bytes > self.limits.log_bytes_max {
            let Some(oldest) = self.captures.pop_front() else {
                break;
            };
            self.declined.push_back((
                oldest.checkpoint,
                format!(
                    "the pre-image log of {} bytes is full before the capture is done",
                    self.limits.log_bytes_max
                ),
            ));
            self.intervals.abort(oldest.checkpoint);
            self.give_up_undo();
        }
        self.bound_declined();
        self.refresh();
    }

    /// Drops the log that no running capture needs.
    fn give_up_undo(&mut self) {
        let from = self.captures.iter().map(|c| c.extent.barrier).min();
        let below = self.intervals.give_up_undo(from);
        for state in &mut self.states {
            for at in 0..self.range.len() {
                state.table.drop_log(at, below, &mut self.intervals);
            }
        }
        // They may be following the log of their base's intervals.
        for capture in &mut self.captures {
            capture.cursor.restart(&mut capture.out);
        }
    }

    fn bound_declined(&mut self) {
        while self.declined.len() > CAPTURES_MAX {
            self.declined.pop_front();
        }
    }

    /// Decides anew what is still needed; what is not is forgotten along with the next slices.
    pub(super) fn refresh(&mut self) {
        let captures = self
            .captures
            .iter()
            .map(|c| c.extent.base.unwrap_or(c.extent.barrier))
            .min();
        let floor = self.intervals.refresh(captures);
        // What begins later is needed, whatever the floor is now.
        self.forgetting = Some((floor.min(self.intervals.current + 1), 0, 0));
    }

    /// True when all is forgotten that could be.
    fn forget(&mut self, budget: &mut Budget) -> bool {
        let Some((below, mut at_state, mut at)) = self.forgetting.take() else {
            return true;
        };
        while let Some(state) = self.states.get_mut(at_state) {
            while at < self.range.len() {
                // What is dropped at a time varies: each piece is worth a look at the clock.
                let is_over = if state.table.forget(at, below, &mut self.intervals) {
                    budget.look()
                } else {
                    at += 1;
                    budget.spend()
                };
                if is_over {
                    self.forgetting = Some((below, at_state, at));
                    return false;
                }
            }
            at = 0;
            at_state += 1;
        }
        true
    }

    pub(in crate::state) fn barrier(&mut self, request: CaptureRequest) -> Result<(), StateError> {
        if !self.waiting.is_empty() {
            return Err(StateError::Backend(format!(
                "barrier {} came before the loaded state was finished",
                request.checkpoint
            )));
        }
        let before = self.intervals.current;
        if !self.intervals.begin(request.checkpoint, request.kind) {
            return Err(StateError::Backend(format!(
                "barrier {} does not come after {before}",
                request.checkpoint
            )));
        }
        let base = request
            .base
            .filter(|base| !request.kind.is_savepoint() && self.intervals.is_base(*base));
        if self.captures.len() == CAPTURES_MAX
            && let Some(oldest) = self.captures.pop_front()
        {
            let reason = format!("{CAPTURES_MAX} captures run already");
            self.declined.push_back((oldest.checkpoint, reason));
            self.intervals.abort(oldest.checkpoint);
            self.bound_declined();
        }
        self.captures.push_back(Capture {
            checkpoint: request.checkpoint,
            extent: Extent {
                barrier: request.checkpoint.0,
                base: base.map(|b| b.0),
            },
            states: self.states.iter().map(|s| s.meta.clone()).collect(),
            shard: 0,
            state: 0,
            cursor: ShardCursor::new(),
            out: AppendBuffer::default(),
            groups: Vec::new(),
        });
        Ok(())
    }

    pub(in crate::state) fn capture(
        &mut self,
        slice: Duration,
    ) -> Result<CaptureProgress, StateError> {
        if let Some((checkpoint, reason)) = self.declined.pop_front() {
            return Ok(CaptureProgress::Declined { checkpoint, reason });
        }
        if self.captures.is_empty() && self.forgetting.is_none() {
            return Ok(CaptureProgress::Idle);
        }
        let mut budget = Budget::new(slice);
        if !self.forget(&mut budget) {
            return Ok(CaptureProgress::Working);
        }
        let Some(capture) = self.captures.front_mut() else {
            return Ok(CaptureProgress::Idle);
        };
        while capture.shard < self.range.len() {
            while capture.state < capture.states.len() {
                let state = &self.states[capture.state];
                capture.cursor.state = state.meta.index;
                let done = state.table.capture_shard(
                    capture.shard,
                    capture.extent,
                    &self.intervals,
                    &mut capture.cursor,
                    &mut capture.out,
                    &mut budget,
                );
                match done {
                    Ok(false) => return Ok(CaptureProgress::Working),
                    Ok(true) => capture.state += 1,
                    Err(message) => {
                        let error = StateError::Encode {
                            name: state.meta.name.clone(),
                            type_name: state.table.value_type(),
                            message,
                        };
                        // It would fail again: the caller declines the checkpoint or fails.
                        let checkpoint = capture.checkpoint;
                        self.abort(checkpoint);
                        return Err(error);
                    }
                }
                if budget.spend() {
                    return Ok(CaptureProgress::Working);
                }
            }
            // Groups are about as large as each other: growing step by step would move the bytes, all within one slice.
            let expected = capture.out.len() + capture.out.len() / 8;
            let is_last = capture.shard + 1 == self.range.len();
            let next = AppendBuffer::with_room(if is_last { 0 } else { expected });
            let bytes = std::mem::replace(&mut capture.out, next).into_bytes();
            if capture.extent.base.is_none() || !bytes.is_empty() {
                let group = KeyGroup(self.range.start.0 + capture.shard as u16);
                capture.groups.push((group, bytes));
            }
            capture.state = 0;
            capture.shard += 1;
        }
        let Some(capture) = self.captures.pop_front() else {
            return Ok(CaptureProgress::Idle);
        };
        self.refresh();
        Ok(CaptureProgress::Done(CapturedState {
            checkpoint: capture.checkpoint,
            kind: match capture.extent.base {
                Some(_) => SegmentKind::Delta,
                None => SegmentKind::Full,
            },
            states: capture.states,
            groups: capture.groups,
        }))
    }

    pub(in crate::state) fn confirm(&mut self, checkpoint: CheckpointId) {
        if self.intervals.confirm(checkpoint) {
            self.refresh();
        }
    }

    pub(in crate::state) fn abort(&mut self, checkpoint: CheckpointId) {
        self.captures.retain(|c| c.checkpoint != checkpoint);
        self.declined.retain(|(c, _)| *c != checkpoint);
        self.intervals.abort(checkpoint);
        self.refresh();
    }

    pub(in crate::state) fn undo(&mut self, checkpoint: CheckpointId) -> Undone {
        if let Some(obstacle) = self.intervals.undo_obstacle(checkpoint) {
            return Undone::Unavailable(obstacle);
        }
        self.captures.clear();
        self.declined.clear();
        for state in &mut self.states {
            if !state.table.undo(checkpoint.0, &mut self.intervals) {
                return Undone::Unavailable(format!(
                    "the log of state `{}` does not fit its entries, this is a bug",
                    state.meta.name
                ));
            }
        }
        let is_base = self.intervals.is_usable_as_base(checkpoint);
        self.intervals.settle_on(checkpoint, is_base);
        self.refresh();
        Undone::Done
    }
}
