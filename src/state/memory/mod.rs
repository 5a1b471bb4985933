//! The backend in memory: tables by name, the intervals they share, and the captures that run over them.
//!
//! Invariant: a table, once registered, stays under its name with its types as long as the backend lives; attempts come and go.
//! It does no I/O and keeps no thread: the task loop calls it.

mod access;
mod any_table;
mod history;
mod registry;

use std::collections::VecDeque;

use perennial_actors::model::{CheckpointId, KeyGroupRange, StateMeta};

use self::any_table::AnyTable;
use self::history::Capture;
use super::hash::spread;
use super::intervals::Intervals;
use super::loading::Waiting;
use super::{StateFigures, StateLimits, TimeDomain};
use crate::batch::Timestamp;
use crate::key::{Key, KeyHash};

pub(super) use self::access::TableOf;
pub use self::history::CAPTURES_MAX;

struct State {
    meta: StateMeta,
    table: Box<dyn AnyTable>,
    /// In the present attempt.
    is_registered: bool,
}

/// Which table a handle means. Valid in one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateId {
    index: usize,
    attempt: u64,
}

/// Tables in memory with a pre-image log.
pub struct MemoryBackend<K: Key> {
    range: KeyGroupRange,
    max_parallelism: u32,
    limits: StateLimits,
    pub(in crate::state) intervals: Intervals,
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
    /// States of earlier versions that are dropped when they are loaded.
    retired: Vec<String>,
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
            retired: Vec::new(),
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
        scratch: &mut Vec<(usize, u64)>,
    ) {
        let Some(state) = self.states.iter().find(|s| s.table.wants_read_ahead()) else {
            return;
        };
        scratch.clear();
        scratch.extend(
            hashes
                .map(|hash| (self.shard_of(hash), spread(hash.0)))
                .filter(|(shard, _)| *shard != usize::MAX),
        );
        std::hint::black_box(state.table.read_ahead(scratch));
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

    pub(super) fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.current = None;
        self.current_shard = usize::MAX;
        self.event_timers.clear();
        self.processing_timers.clear();
        self.declined.clear();
        self.retired.clear();
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

    pub(super) fn figures(&self) -> StateFigures {
        StateFigures {
            entries: self.states.iter().map(|s| s.table.live()).sum(),
            log_bytes: self.intervals.log_bytes,
            wants_checkpoint: self.intervals.log_bytes > self.limits.log_bytes_max / 2,
        }
    }
}
