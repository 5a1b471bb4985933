//! Values into which others are folded: value states with a function. Only the folded value is stored.

use super::value::ValueState;
use super::{KeyedAccess, KeyedBackend, Namespace, StateError, StateValue};
use crate::key::Key;

/// How an accumulator is made of inputs and gives an output.
pub trait AggregateFunction {
    /// What is added.
    type In;
    /// What is kept.
    type Acc: StateValue;
    /// What is read.
    type Out;
    /// The accumulator of no input.
    fn create(&self) -> Self::Acc;
    /// Adds an input.
    fn add(&self, input: Self::In, accumulator: &mut Self::Acc);
    /// Reads an accumulator.
    fn get_result(&self, accumulator: &Self::Acc) -> Self::Out;
    /// Adds one accumulator to another.
    fn merge(&self, from: Self::Acc, into: &mut Self::Acc);
}

/// A value into which added ones are folded.
#[derive(Clone)]
pub struct ReducingState<V, F, N = ()> {
    value: ValueState<V, N>,
    reduce: F,
}

impl<V: StateValue, F: Fn(V, V) -> V, N: Namespace> ReducingState<V, F, N> {
    pub(super) fn register<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
        reduce: F,
    ) -> Result<Self, StateError> {
        let value = ValueState::register(backend, name, "reducing")?;
        Ok(Self { value, reduce })
    }

    /// Reads the value in a namespace.
    pub fn get_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<Option<V>, StateError> {
        self.value.get_in(access, namespace)
    }

    /// Folds a value in, in a namespace.
    pub fn add_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        value: V,
    ) -> Result<(), StateError> {
        self.value.update_in(access, namespace, |kept| {
            *kept = Some(match kept.take() {
                Some(old) => (self.reduce)(old, value),
                None => value,
            });
        })
    }

    /// Deletes the value in a namespace.
    pub fn clear_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<(), StateError> {
        self.value.clear_in(access, namespace)
    }

    /// Folds the values of `sources` into `target`, in their order, and deletes them.
    pub fn merge_namespaces<A: KeyedAccess>(
        &self,
        access: &mut A,
        target: &N,
        sources: &[N],
    ) -> Result<(), StateError> {
        for source in sources.iter().filter(|s| *s != target) {
            if let Some(value) = self.value.get_in(access, source)? {
                self.value.clear_in(access, source)?;
                self.add_in(access, target, value)?;
            }
        }
        Ok(())
    }
}

impl<V: StateValue, F: Fn(V, V) -> V> ReducingState<V, F> {
    /// Reads the value.
    pub fn get<A: KeyedAccess>(&self, access: &mut A) -> Result<Option<V>, StateError> {
        self.get_in(access, &())
    }

    /// Folds a value in.
    pub fn add<A: KeyedAccess>(&self, access: &mut A, value: V) -> Result<(), StateError> {
        self.add_in(access, &(), value)
    }

    /// Deletes the value.
    pub fn clear<A: KeyedAccess>(&self, access: &mut A) -> Result<(), StateError> {
        self.clear_in(access, &())
    }
}

/// An accumulator with its function.
pub struct AggregatingState<G: AggregateFunction, N = ()> {
    value: ValueState<G::Acc, N>,
    function: G,
}

impl<G: AggregateFunction + Clone, N> Clone for AggregatingState<G, N> {
    fn clone(&self) -> Self {
        Self {
            value: self.value,
            function: self.function.clone(),
        }
    }
}

impl<G: AggregateFunction, N: Namespace> AggregatingState<G, N> {
    pub(super) fn register<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
        function: G,
    ) -> Result<Self, StateError> {
        let value = ValueState::register(backend, name, "aggregating")?;
        Ok(Self { value, function })
    }

    /// Reads the result in a namespace.
    pub fn get_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<Option<G::Out>, StateError> {
        let kept = self.value.get_in(access, namespace)?;
        Ok(kept.map(|accumulator| self.function.get_result(&accumulator)))
    }

    /// Adds an input, in a namespace.
    pub fn add_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
        input: G::In,
    ) -> Result<(), StateError> {
        self.value.update_in(access, namespace, |kept| {
            let accumulator = kept.get_or_insert_with(|| self.function.create());
            self.function.add(input, accumulator);
        })
    }

    /// Deletes the accumulator in a namespace.
    pub fn clear_in<A: KeyedAccess>(
        &self,
        access: &mut A,
        namespace: &N,
    ) -> Result<(), StateError> {
        self.value.clear_in(access, namespace)
    }

    /// Merges the accumulators of `sources` into `target`, in their order, and deletes them.
    pub fn merge_namespaces<A: KeyedAccess>(
        &self,
        access: &mut A,
        target: &N,
        sources: &[N],
    ) -> Result<(), StateError> {
        for source in sources.iter().filter(|s| *s != target) {
            if let Some(from) = self.value.get_in(access, source)? {
                self.value.clear_in(access, source)?;
                self.value.update_in(access, target, |kept| match kept {
                    Some(into) => self.function.merge(from, into),
                    None => *kept = Some(from),
                })?;
            }
        }
        Ok(())
    }
}

impl<G: AggregateFunction> AggregatingState<G> {
    /// Reads the result.
    pub fn get<A: KeyedAccess>(&self, access: &mut A) -> Result<Option<G::Out>, StateError> {
        self.get_in(access, &())
    }

    /// Adds an input.
    pub fn add<A: KeyedAccess>(&self, access: &mut A, input: G::In) -> Result<(), StateError> {
        self.add_in(access, &(), input)
    }

    /// Deletes the accumulator.
    pub fn clear<A: KeyedAccess>(&self, access: &mut A) -> Result<(), StateError> {
        self.clear_in(access, &())
    }
}
