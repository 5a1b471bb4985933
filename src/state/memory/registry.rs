//! How tables come into the backend: registered under a name, filled from stored segments.
//!
//! Invariant: a name stands for one kind of state with one key type; stored entries of another kind are refused, and name the state.

use std::any::Any;

use bytes::Bytes;
use perennial_actors::model::{CheckpointId, KeyGroup, SegmentKind, StateMeta};

use super::any_table::AnyTable;
use super::{MemoryBackend, State, StateId};
use crate::key::Key;
use crate::state::cell::Cell;
use crate::state::loading::Waiting;
use crate::state::table::{EntryKey, Index, LoggedTable};
use crate::state::{StateError, TimeDomain, encoding, timers};

impl<K: Key> MemoryBackend<K> {
    pub(in crate::state) fn register<Q: EntryKey, C: Cell, I: Index<Q, C::Content>>(
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
            let table: &dyn Any = state.table.as_ref();
            let is_same = table.is::<LoggedTable<Q, C, I>>();
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
            version: I::VERSION,
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

    /// Drops what is loaded of a state, instead of missing who registers it.
    pub(in crate::state) fn retire(&mut self, name: String) {
        self.retired.push(name);
    }

    fn note_timers(&mut self, index: usize, kind: &str) {
        if kind == timers::kind(TimeDomain::EventTime) {
            self.event_timers.push(index);
        } else if kind == timers::kind(TimeDomain::ProcessingTime) {
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

    pub(in crate::state) fn load(
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

    pub(in crate::state) fn finish_load(
        &mut self,
        checkpoint: CheckpointId,
        allow_non_restored_state: bool,
    ) -> Result<(), StateError> {
        if self.intervals.current != 0 {
            return Err(StateError::Backend(
                "loading ends before the first barrier, not after it".to_owned(),
            ));
        }
        let loaded = self.waiting.names_left();
        let is_whole = loaded.is_empty();
        let is_retired = |name: &String| self.retired.contains(name);
        let left: Vec<String> = loaded.into_iter().filter(|n| !is_retired(n)).collect();
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
        self.waiting = Waiting::default();
        // The chain below still holds what was dropped: the next capture must be full.
        self.intervals.settle_on(checkpoint, is_whole);
        Ok(())
    }
}
