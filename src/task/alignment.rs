//! When a task's inputs have all reached a barrier (semantics.md B1-B5). Pure: knows channels by number and holds nothing back itself.
//!
//! Invariant: a snapshot is due exactly when it is known (by a barrier or by an announcement) and every channel has either
//! delivered its barrier or ended.

use std::collections::VecDeque;

use perennial_actors::model::{CheckpointBarrier, CheckpointId};

/// Announcements that wait for their barriers; the oldest go, as those of a coordinator that gave them up.
const ANNOUNCED_MAX: usize = 64;

/// What to do after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// Nothing changes.
    Go,
    /// Leave this channel's elements in its queue until the alignment ends.
    Block,
    /// Every channel has arrived: take the snapshot, then end all blocks.
    Due(CheckpointBarrier),
    /// A newer barrier overtook an alignment that will not complete: end all blocks, then block this channel if told so.
    Restarted {
        /// Whether the channel that brought the newer barrier is to be blocked.
        is_blocking: bool,
    },
}

/// Whether waiting channels are blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// Exactly once.
    Aligned,
    /// At least once.
    Never,
}

/// The alignment of one task.
#[derive(Debug)]
pub(crate) struct Aligner {
    blocking: Blocking,
    arrived: Vec<bool>,
    ended: Vec<bool>,
    current: Option<CheckpointBarrier>,
    /// In order of their numbers.
    announced: VecDeque<CheckpointBarrier>,
    last_done: Option<CheckpointId>,
}

impl Aligner {
    pub(crate) fn new(channels: usize, blocking: Blocking) -> Self {
        Self {
            blocking,
            arrived: vec![false; channels],
            ended: vec![false; channels],
            current: None,
            announced: VecDeque::new(),
            last_done: None,
        }
    }

    /// A channel delivered a barrier.
    pub(crate) fn barrier(&mut self, channel: usize, barrier: CheckpointBarrier) -> Alignment {
        if self.is_done(barrier.checkpoint) {
            return Alignment::Go;
        }
        let mut is_restarted = false;
        match self.current {
            Some(current) if barrier.checkpoint < current.checkpoint => return Alignment::Go,
            Some(current) if barrier.checkpoint > current.checkpoint => {
                self.arrived.fill(false);
                self.current = Some(barrier);
                is_restarted = true;
            }
            Some(_) => {}
            None => self.current = Some(barrier),
        }
        self.arrived[channel] = true;
        if let Some(due) = self.due() {
            return Alignment::Due(due);
        }
        let is_blocking = self.blocking == Blocking::Aligned;
        if is_restarted {
            Alignment::Restarted { is_blocking }
        } else if is_blocking {
            Alignment::Block
        } else {
            Alignment::Go
        }
    }

    /// A channel ended.
    pub(crate) fn ended(&mut self, channel: usize) -> Alignment {
        self.ended[channel] = true;
        self.due().map_or(Alignment::Go, Alignment::Due)
    }

    /// The JobManager has begun a snapshot; barriers are on their way through channels that are still open.
    pub(crate) fn announce(&mut self, barrier: CheckpointBarrier) -> Alignment {
        if self.is_done(barrier.checkpoint)
            || self
                .announced
                .back()
                .is_some_and(|a| a.checkpoint >= barrier.checkpoint)
        {
            return Alignment::Go;
        }
        if self.announced.len() == ANNOUNCED_MAX {
            self.announced.pop_front();
        }
        self.announced.push_back(barrier);
        self.due().map_or(Alignment::Go, Alignment::Due)
    }

    /// The next snapshot that nothing but its announcement was needed for, once every channel has ended.
    pub(crate) fn announced_at_end(&mut self) -> Option<CheckpointBarrier> {
        if self.has_ended() { self.due() } else { None }
    }

    /// A snapshot was aborted: `true` when an alignment ended by it (end all blocks).
    pub(crate) fn abandon(&mut self, checkpoint: CheckpointId) -> bool {
        self.announced.retain(|a| a.checkpoint > checkpoint);
        if self.current.is_some_and(|c| c.checkpoint <= checkpoint) {
            self.done(checkpoint);
            return true;
        }
        if self.last_done.is_none_or(|done| done < checkpoint) && self.current.is_none() {
            // Barriers of it that are still on their way only pass.
            self.last_done = Some(checkpoint);
        }
        false
    }

    /// Whether every channel has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.iter().all(|e| *e)
    }

    fn is_done(&self, checkpoint: CheckpointId) -> bool {
        self.last_done.is_some_and(|done| checkpoint <= done)
    }

    fn due(&mut self) -> Option<CheckpointBarrier> {
        let known = match self.current {
            Some(current) => current,
            None if self.has_ended() => *self.announced.front()?,
            None => return None,
        };
        let is_due = self
            .arrived
            .iter()
            .zip(&self.ended)
            .all(|(arrived, ended)| *arrived || *ended);
        if !is_due {
            return None;
        }
        self.done(known.checkpoint);
        Some(known)
    }

    fn done(&mut self, checkpoint: CheckpointId) {
        self.last_done = self.last_done.max(Some(checkpoint));
        self.current = None;
        self.arrived.fill(false);
        self.announced.retain(|a| a.checkpoint > checkpoint);
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::SnapshotKind;

    use super::*;

    fn barrier(n: u64) -> CheckpointBarrier {
        CheckpointBarrier {
            checkpoint: CheckpointId(n),
            base: None,
            kind: SnapshotKind::Checkpoint,
            timestamp_ms: 0,
        }
    }

    /// semantics.md B2: the first blocks, the last completes.
    #[test]
    fn a_snapshot_is_due_when_the_last_channel_arrives() {
        let mut aligner = Aligner::new(3, Blocking::Aligned);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Block);
        assert_eq!(aligner.barrier(2, barrier(1)), Alignment::Block);
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Due(barrier(1)));
        assert_eq!(aligner.barrier(1, barrier(2)), Alignment::Block);
    }

    /// semantics.md B1.
    #[test]
    fn at_least_once_never_blocks() {
        let mut aligner = Aligner::new(2, Blocking::Never);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Go);
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Due(barrier(1)));
    }

    /// semantics.md B3: the older one's late barriers only pass.
    #[test]
    fn a_newer_barrier_ends_an_older_alignment() {
        let mut aligner = Aligner::new(2, Blocking::Aligned);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Block);
        assert_eq!(
            aligner.barrier(1, barrier(2)),
            Alignment::Restarted { is_blocking: true }
        );
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Go);
        assert_eq!(aligner.barrier(0, barrier(2)), Alignment::Due(barrier(2)));
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Go);
    }

    /// semantics.md B5, and the final checkpoint: ended channels count as arrived, an announcement stands in for a barrier.
    #[test]
    fn ended_channels_count_as_arrived() {
        let mut aligner = Aligner::new(2, Blocking::Aligned);
        assert_eq!(aligner.announce(barrier(1)), Alignment::Go);
        assert_eq!(aligner.ended(0), Alignment::Go);
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Due(barrier(1)));
        assert_eq!(aligner.announce(barrier(2)), Alignment::Go);
        assert_eq!(aligner.ended(1), Alignment::Due(barrier(2)));
        assert_eq!(aligner.announce(barrier(2)), Alignment::Go);
        assert_eq!(aligner.announce(barrier(3)), Alignment::Due(barrier(3)));
    }

    /// Several are under way when the last channel ends: each is due, in order.
    #[test]
    fn every_announced_snapshot_is_due_once_all_channels_have_ended() {
        let mut aligner = Aligner::new(1, Blocking::Aligned);
        assert_eq!(aligner.announce(barrier(1)), Alignment::Go);
        assert_eq!(aligner.announce(barrier(2)), Alignment::Go);
        assert_eq!(aligner.ended(0), Alignment::Due(barrier(1)));
        assert_eq!(aligner.announced_at_end(), Some(barrier(2)));
        assert_eq!(aligner.announced_at_end(), None);
    }

    /// An abort ends the alignment and lets stragglers pass.
    #[test]
    fn an_aborted_snapshot_is_forgotten() {
        let mut aligner = Aligner::new(2, Blocking::Aligned);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Block);
        assert!(aligner.abandon(CheckpointId(1)));
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Go);
        assert!(!aligner.abandon(CheckpointId(2)));
        assert_eq!(aligner.barrier(0, barrier(2)), Alignment::Go);
        assert_eq!(aligner.barrier(0, barrier(3)), Alignment::Block);
        assert_eq!(aligner.barrier(1, barrier(3)), Alignment::Due(barrier(3)));
    }
}
