//! A list per key and namespace. Appending logs only the old length (rule 8). An empty list is an absent one.

use std::marker::PhantomData;

use super::cell::ListCell;
use super::composite::Composite;
use super::memory::StateId;
use super::table::NoIndex;
use super::{KeyedAccess, KeyedBackend, Namespace, StateError, StateValue};
use crate::key::Key;

/// A list per key (and namespace).
pub struct ListState<E, N = ()> {
    id: StateId,
    _e: PhantomData<fn() -> (E, N)>,
}

impl<E, N> Clone for ListState<E, N> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E, N> Copy for ListState<E, N> {}

impl<E: StateValue, N: Namespace> ListState<E, N> {
    pub(super) fn register<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
    ) -> Result<Self, StateError> {
        let KeyedBackend::Memory(memory) = backend;
        let id = memory.register::<Composite<K, N, ()>, ListCell<E>, NoIndex>(name, "list")?;
        Ok(Self {
            id,
            _e: PhantomData,
        })
    }

    /// Reads the list in a namespace; empty when absent.
    pub fn get_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<Vec<E>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let list = memory.get::<N, (), ListCell<E>, NoIndex>(self.id, namespace, &())?;
        Ok(list.cloned().unwrap_or_default())
    }

    /// Appends an element in a namespace.
    pub fn add_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        element: E,
    ) -> Result<(), StateError> {
        self.extend_in(access, namespace, std::iter::once(element))
    }

    /// Appends elements in a namespace.
    pub fn extend_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        elements: impl IntoIterator<Item = E>,
    ) -> Result<(), StateError> {
        let mut elements = elements.into_iter().peekable();
        if elements.peek().is_none() {
            return Ok(());
        }
        let KeyedBackend::Memory(memory) = access.backend();
        memory.modify::<N, (), ListCell<E>, NoIndex, ()>(self.id, namespace, &(), |list| {
            list.get_or_insert_default().extend(elements);
        })
    }

    /// Replaces the list in a namespace.
    pub fn update_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        elements: Vec<E>,
    ) -> Result<(), StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let list = Some(elements).filter(|e| !e.is_empty());
        memory.put::<N, (), ListCell<E>, NoIndex>(self.id, namespace, &(), list)
    }

    /// Deletes the list in a namespace.
    pub fn clear_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<(), StateError> {
        self.update_in(access, namespace, Vec::new())
    }

    /// Moves the elements of `sources` behind those of `target`, in their order.
    pub fn merge_namespaces<A: KeyedAccess>(
        &self,
        access: &mut A,
        target: &N,
        sources: &[N],
    ) -> Result<(), StateError> {
        for source in sources.iter().filter(|s| *s != target) {
            let elements = self.get_in(access, source)?;
            self.clear_in(access, source)?;
            self.extend_in(access, target, elements)?;
        }
        Ok(())
    }
}

impl<E: StateValue> ListState<E> {
    /// Reads the list; empty when absent.
    pub fn get<A: KeyedAccess>(&self, access: &mut A) -> Result<Vec<E>, StateError> {
        self.get_in(access, &())
    }

    /// Appends an element.
    pub fn add<A: KeyedAccess>(&self, access: &mut A, element: E) -> Result<(), StateError> {
        self.add_in(access, &(), element)
    }

    /// Appends elements.
    pub fn extend<A: KeyedAccess>(
        &self,
        access: &mut A,
        elements: impl IntoIterator<Item = E>,
    ) -> Result<(), StateError> {
        self.extend_in(access, &(), elements)
    }

    /// Replaces the list.
    pub fn update<A: KeyedAccess>(
        &self,
        access: &mut A,
        elements: Vec<E>,
    ) -> Result<(), StateError> {
        self.update_in(access, &(), elements)
    }

    /// Deletes the list.
    pub fn clear<A: KeyedAccess>(&self, access: &mut A) -> Result<(), StateError> {
        self.clear_in(access, &())
    }
}
