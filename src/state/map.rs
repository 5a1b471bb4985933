//! A map per key and namespace; each of its entries is one for the log (rule 8). Listings are in the order of the map keys.

use std::marker::PhantomData;

use super::cell::ValueCell;
use super::composite::{Composite, MapIndex, MapKey};
use super::memory::{StateId, TableOf};
use super::{KeyedAccess, KeyedBackend, Namespace, StateError, StateValue};
use crate::key::Key;

type Index<K, M, N> = MapIndex<K, N, M>;
type Table<K, M, V, N> = TableOf<K, N, M, ValueCell<V>, Index<K, M, N>>;

type Types<M, V, N> = PhantomData<fn() -> (M, V, N)>;

/// A map per key (and namespace).
pub struct MapState<M, V, N = ()> {
    id: StateId,
    _m: Types<M, V, N>,
}

impl<M, V, N> Clone for MapState<M, V, N> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M, V, N> Copy for MapState<M, V, N> {}

impl<M: MapKey, V: StateValue, N: Namespace> MapState<M, V, N> {
    pub(super) fn register<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
    ) -> Result<Self, StateError> {
        let KeyedBackend::Memory(memory) = backend;
        let id =
            memory.register::<Composite<K, N, M>, ValueCell<V>, Index<K, M, N>>(name, "map")?;
        Ok(Self {
            id,
            _m: PhantomData,
        })
    }

    /// Reads the value of a map key in a namespace.
    pub fn get_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        map_key: &M,
    ) -> Result<Option<V>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let value =
            memory.get::<N, M, ValueCell<V>, Index<A::Key, M, N>>(self.id, namespace, map_key)?;
        Ok(value.cloned())
    }

    /// Changes the value of a map key in a namespace in place with one look-up. `None` means absent, before and after.
    pub fn update_in<A: KeyedAccess, R>(
        &self,
        access: &mut A,
        namespace: &N,
        map_key: &M,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<R, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        memory.modify::<N, M, ValueCell<V>, Index<A::Key, M, N>, R>(
            self.id, namespace, map_key, change,
        )
    }

    fn put<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        map_key: &M,
        value: Option<V>,
    ) -> Result<(), StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        memory.put::<N, M, ValueCell<V>, Index<A::Key, M, N>>(self.id, namespace, map_key, value)
    }

    /// Sets the value of a map key in a namespace.
    pub fn insert_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        map_key: &M,
        value: V,
    ) -> Result<(), StateError> {
        self.put(access, namespace, map_key, Some(value))
    }

    /// Deletes a map key in a namespace, if it is there.
    pub fn remove_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        map_key: &M,
    ) -> Result<(), StateError> {
        self.put(access, namespace, map_key, None)
    }

    /// Whether a map key is there, in a namespace.
    pub fn contains_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        map_key: &M,
    ) -> Result<bool, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let value =
            memory.get::<N, M, ValueCell<V>, Index<A::Key, M, N>>(self.id, namespace, map_key)?;
        Ok(value.is_some())
    }

    /// The map keys in a namespace, in order.
    pub fn keys_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<Vec<M>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let at = memory.access::<Table<A::Key, M, V, N>>(self.id)?;
        let keys = at.table.index.keys(at.key, at.hash, namespace);
        Ok(keys.map_or_else(Vec::new, |keys| keys.iter().cloned().collect()))
    }

    /// Whether there is no map key in a namespace.
    pub fn is_empty_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<bool, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let at = memory.access::<Table<A::Key, M, V, N>>(self.id)?;
        Ok(at.table.index.keys(at.key, at.hash, namespace).is_none())
    }

    /// The entries in a namespace, in the order of their map keys.
    pub fn entries_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<Vec<(M, V)>, StateError> {
        let keys = self.keys_in(access, namespace)?;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(value) = self.get_in(access, namespace, &key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// Deletes all map keys in a namespace.
    pub fn clear_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<(), StateError> {
        for key in self.keys_in(access, namespace)? {
            self.remove_in(access, namespace, &key)?;
        }
        Ok(())
    }
}

impl<M: MapKey, V: StateValue> MapState<M, V> {
    /// Reads the value of a map key.
    pub fn get<A: KeyedAccess>(
        &self,
        access: &mut A,
        map_key: &M,
    ) -> Result<Option<V>, StateError> {
        self.get_in(access, &(), map_key)
    }

    /// Changes the value of a map key in place with one look-up. `None` means absent, before and after.
    pub fn update<A: KeyedAccess, R>(
        &self,
        access: &mut A,
        map_key: &M,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<R, StateError> {
        self.update_in(access, &(), map_key, change)
    }

    /// Sets the value of a map key.
    pub fn insert<A: KeyedAccess>(
        &self,
        access: &mut A,
        map_key: &M,
        value: V,
    ) -> Result<(), StateError> {
        self.insert_in(access, &(), map_key, value)
    }

    /// Deletes a map key, if it is there.
    pub fn remove<A: KeyedAccess>(&self, access: &mut A, map_key: &M) -> Result<(), StateError> {
        self.remove_in(access, &(), map_key)
    }

    /// Whether a map key is there.
    pub fn contains<A: KeyedAccess>(
        &self,
        access: &mut A,
        map_key: &M,
    ) -> Result<bool, StateError> {
        self.contains_in(access, &(), map_key)
    }

    /// The map keys, in order.
    pub fn keys<A: KeyedAccess>(&self, access: &mut A) -> Result<Vec<M>, StateError> {
        self.keys_in(access, &())
    }

    /// Whether there is no map key.
    pub fn is_empty<A: KeyedAccess>(&self, access: &mut A) -> Result<bool, StateError> {
        self.is_empty_in(access, &())
    }

    /// The entries in the order of their map keys.
    pub fn entries<A: KeyedAccess>(&self, access: &mut A) -> Result<Vec<(M, V)>, StateError> {
        self.entries_in(access, &())
    }

    /// Deletes all map keys.
    pub fn clear<A: KeyedAccess>(&self, access: &mut A) -> Result<(), StateError> {
        self.clear_in(access, &())
    }
}
