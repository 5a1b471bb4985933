//! Keys of the records that are processed next, and their state brought near the processor: cache misses overlap instead of adding up.

use std::ops::ControlFlow;

use super::OperatorError;
use super::single::Pending;
use crate::batch::Timestamp;
use crate::key::{Key, KeyHash};
use crate::state::{KeyedBackend, READ_AHEAD_MAX};

/// See the module.
pub(super) struct ReadAhead<K> {
    keys: Vec<(K, KeyHash)>,
    is_reading: bool,
    hashes: Vec<(usize, u64)>,
}

impl<K: Key> ReadAhead<K> {
    pub(super) fn new() -> Self {
        Self {
            keys: Vec::new(),
            is_reading: false,
            hashes: Vec::new(),
        }
    }

    /// Selects the keys of the next records of `input` and reads their state.
    #[inline]
    pub(super) fn read<T>(
        &mut self,
        input: &Pending<T>,
        selector: impl Fn(&T) -> K,
        backend: &KeyedBackend<K>,
    ) {
        self.keys.clear();
        self.is_reading = true;
        let ahead = input.values.as_slice();
        self.keys
            .extend(ahead.iter().take(READ_AHEAD_MAX).map(|value| {
                let key = selector(value);
                let hash = KeyHash::of(&key);
                (key, hash)
            }));
        self.is_reading = false;
        backend.read_ahead(self.keys.iter().map(|(_, hash)| *hash), &mut self.hashes);
    }

    /// Takes the records whose keys were read, each with its key, until `f` has enough or fails.
    #[inline]
    pub(super) fn each<T>(
        &self,
        input: &mut Pending<T>,
        mut f: impl FnMut((&K, KeyHash), T, Option<Timestamp>) -> Result<ControlFlow<()>, OperatorError>,
    ) -> Result<(), OperatorError> {
        let mut keys = self.keys.iter();
        let Some(mut next) = keys.next() else {
            return Ok(());
        };
        input.each(|value, timestamp| {
            let (key, hash) = next;
            if f((key, *hash), value, timestamp)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let Some(other) = keys.next() else {
                return Ok(ControlFlow::Break(()));
            };
            next = other;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// For [`Operator::looks_ahead`](super::Operator::looks_ahead): those whose keys are there were passed, the selector fails at
    /// the next one.
    pub(super) fn looks_ahead(&self) -> Option<usize> {
        self.is_reading.then_some(self.keys.len())
    }
}
