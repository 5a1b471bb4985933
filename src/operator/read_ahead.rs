//! Keys of the records that are processed next, and their state brought near the processor: cache misses overlap instead of adding up.

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

    /// Takes the records whose keys were read last, of the same input, each with its key: as
    /// [`take_while_room`](Pending::take_while_room) does.
    #[inline]
    pub(super) fn take_while_room<T>(
        &self,
        input: &mut Pending<T>,
        mut f: impl FnMut((&K, KeyHash), T, Option<Timestamp>) -> Result<bool, OperatorError>,
    ) -> Result<(), OperatorError> {
        debug_assert!(self.keys.len() <= input.values.len(), "of this input");
        let mut keys = self.keys.iter();
        let Some(mut next) = keys.next() else {
            return Ok(());
        };
        input.take_while_room(|value, timestamp| {
            let (key, hash) = next;
            if !f((key, *hash), value, timestamp)? {
                return Ok(false);
            }
            let Some(other) = keys.next() else {
                return Ok(false);
            };
            next = other;
            Ok(true)
        })
    }

    /// For [`Operator::looks_ahead`](super::Operator::looks_ahead): those whose keys are there were passed, the selector fails at
    /// the next one.
    pub(super) fn looks_ahead(&self) -> Option<usize> {
        self.is_reading.then_some(self.keys.len())
    }
}
