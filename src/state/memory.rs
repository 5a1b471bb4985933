//! The backend in memory: tables by name, the intervals they share, and the captures that run over them.
//!
//! Invariant: a table, once registered, stays under its name with its types as long as the backend lives; attempts come and go.
//! It does no I/O and keeps no thread: the task loop calls it.

use std::any::Any;
use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use perennial_actors::model::{CheckpointId, KeyGroup, KeyGroupRange, SegmentKind, StateMeta};
use serde::Serialize;

use super::capture::{Budget, Extent, ShardCursor};
use super::cell::Cell;
use super::composite::table_hash;
use super::encoding::{self, take_entry};
use super::hash::spread;
use super::intervals::Intervals;
use super::loading::Waiting;
use super::table::{EntryKey, Index, LoggedTable};
use super::{
    CaptureProgress, CaptureRequest, CapturedState, StateError, StateFigures, StateLimits,
    TimeDomain, Undone,
};
use crate::batch::Timestamp;
use crate::key::{Key, KeyHash};

/// Captures that run at one time; a further barrier declines the oldest.
pub const CAPTURES_MAX: usize = 8;

/// A table without its types.
trait AnyTable: Send {
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn value_type(&self) -> &'static str;
    fn live(&self) -> u64;
    fn first_time(&self) -> Option<Timestamp>;
    fn capture_shard(
        &self,
        at: usize,
        extent: Extent,
        intervals: &Intervals,
        cursor: &mut ShardCursor,
        out: &mut Vec<u8>,
        budget: &mut Budget,
    ) -> Result<bool, String>;
    fn forget(&mut self, at: usize, below: u64, intervals: &mut Intervals) -> bool;
    fn drop_log(&mut self, at: usize, below: u64, intervals: &mut Intervals);
    fn undo(&mut self, to: u64, intervals: &mut Intervals) -> bool;
    fn load(
        &mut self,
        at: usize,
        group: KeyGroup,
        max_parallelism: u32,
        section: &[u8],
    ) -> Result<(), String>;
    fn clear(&mut self, at: usize);
    /// Whether the hash of a key alone leads to its entry, and there are so many entries that they do not stay in the caches.
    fn wants_read_ahead(&self) -> bool;
    /// Brings entries near the processor; the result only keeps the reads from being optimised away.
    fn read_ahead(&self, places: &[(usize, u64)]) -> u64;
}

/// Entries of a state from which on reading ahead pays: about what the processor's second cache holds.
const READ_AHEAD_FROM: u64 = 1 << 14;

impl<Q: EntryKey, C: Cell, I: Index<Q>> AnyTable for LoggedTable<Q, C, I> {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn wants_read_ahead(&self) -> bool {
        Q::IS_KEY_ALONE && self.live >= READ_AHEAD_FROM
    }
    fn read_ahead(&self, places: &[(usize, u64)]) -> u64 {
        places
            .iter()
            .fold(0, |seen, (shard, hash)| seen ^ self.touch(*shard, *hash))
    }
    fn value_type(&self) -> &'static str {
        C::type_name()
    }
    fn live(&self) -> u64 {
        self.live
    }
    fn first_time(&self) -> Option<Timestamp> {
        self.index.first_time()
    }
    fn capture_shard(
        &self,
        at: usize,
        extent: Extent,
        intervals: &Intervals,
        cursor: &mut ShardCursor,
        out: &mut Vec<u8>,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        self.capture_shard(at, extent, intervals, cursor, out, budget)
    }
    fn forget(&mut self, at: usize, below: u64, intervals: &mut Intervals) -> bool {
        self.forget(at, below, intervals)
    }
    fn drop_log(&mut self, at: usize, below: u64, intervals: &mut Intervals) {
        self.drop_log(at, below, intervals);
    }
    fn undo(&mut self, to: u64, intervals: &mut Intervals) -> bool {
        self.undo(to, intervals)
    }
    fn load(
        &mut self,
        at: usize,
        group: KeyGroup,
        max_parallelism: u32,
        mut section: &[u8],
    ) -> Result<(), String> {
        while !section.is_empty() {
            let entry = take_entry(&mut section).map_err(|e| e.to_string())?;
            let key = Q::take(&entry).map_err(|e| e.to_string())?;
            let actual = key.key_hash().key_group(max_parallelism);
            if actual != group {
                return Err(format!(
                    "holds a key of group {actual}: the key's encoding or the max parallelism ({max_parallelism}) has changed"
                ));
            }
            let cell = match entry.value {
                Some(value) => Some(C::decode(value).map_err(|e| e.to_string())?),
                None => None,
            };
            self.load(at, key, cell)?;
        }
        Ok(())
    }
    fn clear(&mut self, at: usize) {
        self.clear(at);
    }
}

struct State {
    meta: StateMeta,
    table: Box<dyn AnyTable>,
    /// In the present attempt.
    is_registered: bool,
}

struct Capture {
    checkpoint: CheckpointId,
    extent: Extent,
    states: Vec<StateMeta>,
    /// Next group, next state in it.
    shard: usize,
    state: usize,
    cursor: ShardCursor,
    out: Vec<u8>,
    groups: Vec<(KeyGroup, Vec<u8>)>,
}

/// Which table a handle means. Valid in one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateId {
    index: usize,
    attempt: u64,
}

/// What one access works with.
pub(super) struct Access<'a, K, T> {
    pub(super) table: &'a mut T,
    pub(super) intervals: &'a mut Intervals,
    pub(super) key: &'a K,
    pub(super) hash: KeyHash,
    pub(super) shard: usize,
}

/// Tables in memory with a pre-image log.
pub struct MemoryBackend<K: Key> {
    range: KeyGroupRange,
    max_parallelism: u32,
    limits: StateLimits,
    pub(super) intervals: Intervals,
    attempt: u64,
    current: Option<K>,
    current_hash: KeyHash,
    /// Of the current key; beyond all shards when the key is not ours.
    current_shard: usize,
    states: Vec<State>,
    event_timers: Vec<usize>,
    processing_timers: Vec<usize>,
    captures: VecDeque<Capture>,
    declined: VecDeque<(CheckpointId, String)>,
    /// What is below the number is being forgotten; next state and shard.
    forgetting: Option<(u64, usize, usize)>,
    waiting: Waiting,
}

impl<K: Key> MemoryBackend<K> {
    pub(super) fn new(range: KeyGroupRange, max_parallelism: u32, limits: StateLimits) -> Self {
        Self {
            range,
            max_parallelism,
            limits,
            intervals: Intervals::new(),
            attempt: 0,
            current: None,
            current_hash: KeyHash(0),
            current_shard: usize::MAX,
            states: Vec::new(),
            event_timers: Vec::new(),
            processing_timers: Vec::new(),
            captures: VecDeque::new(),
            declined: VecDeque::new(),
            forgetting: None,
            waiting: Waiting::default(),
        }
    }

    #[inline]
    pub(super) fn set_current_key(&mut self, key: &K, hash: KeyHash) {
        match &mut self.current {
            Some(current) => current.clone_from(key),
            None => self.current = Some(key.clone()),
        }
        self.current_hash = hash;
        self.current_shard = self.shard_of(hash);
    }

    /// Brings the entries of the next keys near the processor, so that their cache misses overlap. Changes nothing. Only the first
    /// state that is large and not scoped further is read ahead: what else the function touches is not known here.
    pub(super) fn read_ahead(
        &self,
        hashes: impl Iterator<Item = KeyHash>,
        places: &mut Vec<(usize, u64)>,
    ) {
        let Some(state) = self.states.iter().find(|s| s.table.wants_read_ahead()) else {
            return;
        };
        places.clear();
        places.extend(
            hashes
                .map(|hash| (self.shard_of(hash), spread(hash.0)))
                .filter(|(shard, _)| *shard != usize::MAX),
        );
        std::hint::black_box(state.table.read_ahead(places));
    }

    /// Beyond all shards when the key is not ours.
    #[inline]
    pub(super) fn shard_of(&self, hash: KeyHash) -> usize {
        let group = hash.key_group(self.max_parallelism);
        if self.range.contains(group) {
            usize::from(group.0 - self.range.start.0)
        } else {
            usize::MAX
        }
    }

    pub(super) fn current_key(&self) -> Option<&K> {
        self.current.as_ref()
    }

    pub(super) fn next_timer(&self, domain: TimeDomain) -> Option<Timestamp> {
        let timers = match domain {
            TimeDomain::EventTime => &self.event_timers,
            TimeDomain::ProcessingTime => &self.processing_timers,
        };
        let first = |&i: &usize| self.states[i].table.first_time();
        timers.iter().filter_map(first).min()
    }

    /// The table behind a handle, and the current key.
    #[inline]
    pub(super) fn access<T: 'static>(
        &mut self,
        id: StateId,
    ) -> Result<Access<'_, K, T>, StateError> {
        let Some(key) = &self.current else {
            return Err(no_key());
        };
        if self.current_shard == usize::MAX {
            return Err(foreign_key(key, self.range));
        }
        if id.attempt != self.attempt {
            return Err(void_handle());
        }
        let table = self
            .states
            .get_mut(id.index)
            .and_then(|s| s.table.as_any_mut().downcast_mut::<T>());
        match table {
            Some(table) => Ok(Access {
                table,
                intervals: &mut self.intervals,
                key,
                hash: self.current_hash,
                shard: self.current_shard,
            }),
            None => Err(void_handle()),
        }
    }

    /// Where an entry of the current key is in its table's index.
    #[inline]
    pub(super) fn hash_in<N: Serialize, M: Serialize>(
        &self,
        id: StateId,
        namespace: &N,
        extra: &M,
    ) -> Result<u64, StateError> {
        table_hash(self.current_hash, namespace, extra).map_err(|m| self.encode_error(id, m))
    }

    /// The table behind a handle, without a key.
    pub(super) fn table<T: 'static>(&self, id: StateId) -> Result<&T, StateError> {
        if id.attempt != self.attempt {
            return Err(void_handle());
        }
        self.states
            .get(id.index)
            .and_then(|s| s.table.as_any().downcast_ref::<T>())
            .ok_or_else(void_handle)
    }

    #[cold]
    fn encode_error(&self, id: StateId, message: String) -> StateError {
        let state = self.states.get(id.index);
        StateError::Encode {
            name: state.map_or_else(String::new, |s| s.meta.name.clone()),
            type_name: state.map_or("", |s| s.table.value_type()),
            message,
        }
    }

    /// Rule 9, after each change.
    #[inline]
    pub(super) fn check_limit(&mut self) {
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
    fn refresh(&mut self) {
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
                state.table.forget(at, below, &mut self.intervals);
                at += 1;
                if budget.spend() {
                    self.forgetting = Some((below, at_state, at));
                    return false;
                }
            }
            at = 0;
            at_state += 1;
        }
        true
    }

    pub(super) fn barrier(&mut self, request: CaptureRequest) -> Result<(), StateError> {
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
            out: Vec::new(),
            groups: Vec::new(),
        });
        Ok(())
    }

    pub(super) fn capture(&mut self, slice: Duration) -> Result<CaptureProgress, StateError> {
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
            let bytes = std::mem::take(&mut capture.out);
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

    pub(super) fn confirm(&mut self, checkpoint: CheckpointId) {
        if self.intervals.confirm(checkpoint) {
            self.refresh();
        }
    }

    pub(super) fn abort(&mut self, checkpoint: CheckpointId) {
        self.captures.retain(|c| c.checkpoint != checkpoint);
        self.declined.retain(|(c, _)| *c != checkpoint);
        self.intervals.abort(checkpoint);
        self.refresh();
    }

    pub(super) fn undo(&mut self, checkpoint: CheckpointId) -> Undone {
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

    pub(super) fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.current = None;
        self.current_shard = usize::MAX;
        self.event_timers.clear();
        self.processing_timers.clear();
        self.declined.clear();
        for state in &mut self.states {
            state.is_registered = false;
        }
        if !self.captures.is_empty() {
            // Whoever waited for them has gone.
            for capture in std::mem::take(&mut self.captures) {
                self.intervals.abort(capture.checkpoint);
            }
            self.refresh();
        }
    }

    pub(super) fn register<Q: EntryKey, C: Cell, I: Index<Q>>(
        &mut self,
        name: &str,
        kind: &'static str,
    ) -> Result<StateId, StateError> {
        let incompatible = |message| StateError::Incompatible {
            name: name.to_owned(),
            message,
        };
        let attempt = self.attempt;
        let existing = self.states.iter_mut().position(|s| s.meta.name == name);
        if let Some(index) = existing {
            let state = &mut self.states[index];
            let is_same = state.table.as_any().is::<LoggedTable<Q, C, I>>();
            if !is_same || state.meta.kind != kind {
                return Err(incompatible(format!(
                    "it is a {} state of {}, and is registered as a {kind} state of {} \
                     (or with another namespace or map key): use another name",
                    state.meta.kind,
                    state.meta.type_name,
                    C::type_name()
                )));
            }
            let is_first = !std::mem::replace(&mut state.is_registered, true);
            if is_first {
                self.note_timers(index, kind);
            }
            return Ok(StateId { index, attempt });
        }
        let mut table = LoggedTable::<Q, C, I>::new(self.range.len());
        let mut meta = StateMeta {
            index: 0,
            name: name.to_owned(),
            kind: kind.to_owned(),
            serializer: encoding::SERIALIZER.to_owned(),
            version: encoding::VERSION,
            type_name: C::type_name().to_owned(),
            key_type: std::any::type_name::<K>().to_owned(),
        };
        let stored_index = self.waiting.check(&meta)?;
        meta.index = self.choose_index(stored_index).map_err(incompatible)?;
        for (group, section) in self.waiting.take(name) {
            let at = usize::from(group.0 - self.range.start.0);
            AnyTable::load(&mut table, at, group, self.max_parallelism, &section).map_err(
                |message| StateError::Decode {
                    name: name.to_owned(),
                    group,
                    message,
                },
            )?;
        }
        let index = self.states.len();
        self.states.push(State {
            meta,
            table: Box::new(table),
            is_registered: true,
        });
        self.note_timers(index, kind);
        Ok(StateId { index, attempt })
    }

    fn note_timers(&mut self, index: usize, kind: &str) {
        if kind == super::timers::kind(TimeDomain::EventTime) {
            self.event_timers.push(index);
        } else if kind == super::timers::kind(TimeDomain::ProcessingTime) {
            self.processing_timers.push(index);
        }
    }

    /// A stored state keeps its number, so that later segments of a chain agree with earlier ones.
    fn choose_index(&self, stored: Option<u16>) -> Result<u16, String> {
        let is_used = |index: u16| self.states.iter().any(|s| s.meta.index == index);
        match stored {
            Some(index) if !is_used(index) => Ok(index),
            Some(_) | None => (0..=u16::MAX)
                .find(|index| !is_used(*index) && !self.waiting.has_index(*index))
                .ok_or_else(|| "an operator cannot have more than 65536 states".to_owned()),
        }
    }

    pub(super) fn load(
        &mut self,
        kind: SegmentKind,
        states: &[StateMeta],
        groups: Vec<(KeyGroup, Bytes)>,
    ) -> Result<(), StateError> {
        if self.intervals.current != 0 {
            return Err(StateError::Backend(
                "state can only be loaded into a backend that has not run".to_owned(),
            ));
        }
        for (group, bytes) in groups {
            if !self.range.contains(group) {
                return Err(StateError::Backend(format!(
                    "key group {group} was given to a backend that owns {} to {}",
                    self.range.start, self.range.end
                )));
            }
            let at = usize::from(group.0 - self.range.start.0);
            if kind == SegmentKind::Full {
                for state in &mut self.states {
                    state.table.clear(at);
                }
            }
            let sections = self.waiting.add(kind, states, group, &bytes)?;
            // Of states that are registered already.
            for (name, section) in sections {
                let known = self.states.iter_mut().find(|s| s.meta.name == name);
                let loaded = match known {
                    Some(state) => state.table.load(at, group, self.max_parallelism, &section),
                    None => {
                        self.waiting.keep(&name, group, section);
                        Ok(())
                    }
                };
                loaded.map_err(|message| StateError::Decode {
                    name,
                    group,
                    message,
                })?;
            }
        }
        for state in &self.states {
            self.waiting.check(&state.meta)?;
        }
        Ok(())
    }

    pub(super) fn finish_load(
        &mut self,
        checkpoint: CheckpointId,
        allow_non_restored_state: bool,
    ) -> Result<(), StateError> {
        if self.intervals.current != 0 {
            return Err(StateError::Backend(
                "loading ends before the first barrier, not after it".to_owned(),
            ));
        }
        let left = self.waiting.names_left();
        if let Some(name) = left.first()
            && !allow_non_restored_state
        {
            return Err(StateError::Incompatible {
                name: name.clone(),
                message: format!(
                    "checkpoint {checkpoint} holds it and no operator registers it ({} such states): \
                     register it, or allow non-restored state to drop it",
                    left.len()
                ),
            });
        }
        let is_whole = left.is_empty();
        self.waiting = Waiting::default();
        // The chain below still holds what was dropped: the next capture must be full.
        self.intervals.settle_on(checkpoint, is_whole);
        Ok(())
    }

    pub(super) fn figures(&self) -> StateFigures {
        StateFigures {
            entries: self.states.iter().map(|s| s.table.live()).sum(),
            log_bytes: self.intervals.log_bytes,
            wants_checkpoint: self.intervals.log_bytes > self.limits.log_bytes_max / 2,
        }
    }
}

#[cold]
fn no_key() -> StateError {
    StateError::Backend(
        "no current key: state can only be used while a record or timer is processed".to_owned(),
    )
}

#[cold]
fn foreign_key<K: Key>(key: &K, range: KeyGroupRange) -> StateError {
    StateError::Backend(format!(
        "key {key:?} is not in key groups {} to {} of this subtask: does its encoding depend on anything but its value?",
        range.start, range.end
    ))
}

#[cold]
fn void_handle() -> StateError {
    StateError::Backend(
        "the handle is of another backend or of an ended attempt: register the state again"
            .to_owned(),
    )
}
