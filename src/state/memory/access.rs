//! Access to the entries of the current key, through handles.

use std::any::Any;

use perennial_actors::model::KeyGroupRange;
use serde::Serialize;

use super::{MemoryBackend, StateId};
use crate::key::{Key, KeyHash};
use crate::state::cell::Cell;
use crate::state::composite::{Composite, MapKey, table_hash};
use crate::state::intervals::Intervals;
use crate::state::table::{Index, LoggedTable};
use crate::state::{Namespace, StateError};

/// The table of a state with namespaces and, for maps and timers, one more part.
pub(in crate::state) type TableOf<K, N, M, C, I> = LoggedTable<Composite<K, N, M>, C, I>;

/// What one access works with.
pub(in crate::state) struct Access<'a, K, T> {
    pub(in crate::state) table: &'a mut T,
    pub(in crate::state) intervals: &'a mut Intervals,
    pub(in crate::state) key: &'a K,
    pub(in crate::state) hash: KeyHash,
    pub(in crate::state) shard: usize,
}

impl<K: Key> MemoryBackend<K> {
    /// Reads an entry of the current key.
    #[inline]
    pub(in crate::state) fn get<N, M, C, I>(
        &mut self,
        id: StateId,
        namespace: &N,
        extra: &M,
    ) -> Result<Option<&C::Content>, StateError>
    where
        N: Namespace,
        M: MapKey,
        C: Cell,
        I: Index<Composite<K, N, M>, C::Content>,
    {
        let hash = self.hash_in(id, namespace, extra)?;
        let at = self.access::<TableOf<K, N, M, C, I>>(id)?;
        Ok(at.table.get(at.shard, hash, |entry| {
            entry.is_of(at.key, namespace, extra)
        }))
    }

    /// Changes an entry of the current key in place with one look-up. `None` in the option means absent, before and after.
    #[inline]
    pub(in crate::state) fn modify<N, M, C, I, R>(
        &mut self,
        id: StateId,
        namespace: &N,
        extra: &M,
        change: impl FnOnce(&mut Option<C::Content>) -> R,
    ) -> Result<R, StateError>
    where
        N: Namespace,
        M: MapKey,
        C: Cell,
        I: Index<Composite<K, N, M>, C::Content>,
    {
        let hash = self.hash_in(id, namespace, extra)?;
        let at = self.access::<TableOf<K, N, M, C, I>>(id)?;
        let result = at.table.modify(
            at.shard,
            at.intervals,
            hash,
            |entry| entry.is_of(at.key, namespace, extra),
            || Composite::of(at.key, namespace, extra),
            change,
        );
        self.check_limit();
        result.map_err(StateError::Backend)
    }

    /// Sets or deletes an entry of the current key.
    #[inline]
    pub(in crate::state) fn put<N, M, C, I>(
        &mut self,
        id: StateId,
        namespace: &N,
        extra: &M,
        content: Option<C::Content>,
    ) -> Result<(), StateError>
    where
        N: Namespace,
        M: MapKey,
        C: Cell,
        I: Index<Composite<K, N, M>, C::Content>,
    {
        let hash = self.hash_in(id, namespace, extra)?;
        let at = self.access::<TableOf<K, N, M, C, I>>(id)?;
        let result = at.table.put(
            at.shard,
            at.intervals,
            hash,
            |entry| entry.is_of(at.key, namespace, extra),
            || Composite::of(at.key, namespace, extra),
            content,
        );
        self.check_limit();
        result.map_err(StateError::Backend)
    }

    /// The table behind a handle, and the current key.
    #[inline]
    pub(in crate::state) fn access<T: 'static>(
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
            .and_then(|s| (s.table.as_mut() as &mut dyn Any).downcast_mut::<T>());
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
    pub(in crate::state) fn hash_in<N: Serialize, M: Serialize>(
        &self,
        id: StateId,
        namespace: &N,
        extra: &M,
    ) -> Result<u64, StateError> {
        table_hash(self.current_hash, namespace, extra).map_err(|m| self.encode_error(id, m))
    }

    /// The table behind a handle, without a key.
    pub(in crate::state) fn table<T: 'static>(&self, id: StateId) -> Result<&T, StateError> {
        if id.attempt != self.attempt {
            return Err(void_handle());
        }
        self.states
            .get(id.index)
            .and_then(|s| (s.table.as_ref() as &dyn Any).downcast_ref::<T>())
            .ok_or_else(void_handle)
    }

    /// The same, to change it: its index only, for entries have a key.
    pub(in crate::state) fn table_mut<T: 'static>(
        &mut self,
        id: StateId,
    ) -> Result<&mut T, StateError> {
        if id.attempt != self.attempt {
            return Err(void_handle());
        }
        self.states
            .get_mut(id.index)
            .and_then(|s| (s.table.as_mut() as &mut dyn Any).downcast_mut::<T>())
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
