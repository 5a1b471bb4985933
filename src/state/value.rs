//! One value per key and namespace.

use std::marker::PhantomData;

use super::cell::ValueCell;
use super::composite::Composite;
use super::memory::StateId;
use super::table::NoIndex;
use super::{KeyedAccess, KeyedBackend, Namespace, StateError, StateValue};
use crate::key::Key;

/// One value per key (and namespace).
pub struct ValueState<V, N = ()> {
    id: StateId,
    _v: PhantomData<fn() -> (V, N)>,
}

impl<V, N> Clone for ValueState<V, N> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V, N> Copy for ValueState<V, N> {}

impl<V: StateValue, N: Namespace> ValueState<V, N> {
    pub(super) fn register<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
        kind: &'static str,
    ) -> Result<Self, StateError> {
        let KeyedBackend::Memory(memory) = backend;
        let id = memory.register::<Composite<K, N, ()>, ValueCell<V>, NoIndex>(name, kind)?;
        Ok(Self {
            id,
            _v: PhantomData,
        })
    }

    /// Reads the value in a namespace.
    #[inline]
    pub fn get_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<Option<V>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let value = memory.get::<N, (), ValueCell<V>, NoIndex>(self.id, namespace, &())?;
        Ok(value.cloned())
    }

    /// Changes the value in place with one look-up. `None` in the option means absent, before and after.
    #[inline]
    pub fn update_in<A: KeyedAccess, R>(
        &self,
        access: &mut A,
        namespace: &N,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<R, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        memory.modify::<N, (), ValueCell<V>, NoIndex, R>(self.id, namespace, &(), change)
    }

    fn put<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        value: Option<V>,
    ) -> Result<(), StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        memory.put::<N, (), ValueCell<V>, NoIndex>(self.id, namespace, &(), value)
    }

    /// Sets the value in a namespace.
    pub fn set_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        value: V,
    ) -> Result<(), StateError> {
        self.put(access, namespace, Some(value))
    }

    /// Deletes the value in a namespace.
    pub fn clear_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<(), StateError> {
        self.put(access, namespace, None)
    }
}

impl<V: StateValue> ValueState<V> {
    /// Reads the value.
    pub fn get<A: KeyedAccess>(&self, access: &mut A) -> Result<Option<V>, StateError> {
        self.get_in(access, &())
    }

    /// Changes the value in place with one look-up. `None` in the option means absent, before and after.
    pub fn update<A: KeyedAccess, R>(
        &self,
        access: &mut A,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<R, StateError> {
        self.update_in(access, &(), change)
    }

    /// Sets the value.
    pub fn set<A: KeyedAccess>(&self, access: &mut A, value: V) -> Result<(), StateError> {
        self.set_in(access, &(), value)
    }

    /// Deletes the value.
    pub fn clear<A: KeyedAccess>(&self, access: &mut A) -> Result<(), StateError> {
        self.clear_in(access, &())
    }
}
