//! Timers: keyed state without a value, plus an ordered index derived from it.
//!
//! Firing order is total and depends only on which timers there are: time, key group, key hash, encoded key, namespace. The order of
//! registration does not count, because a restore would have to store it to keep it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::marker::PhantomData;

use super::cell::Marker;
use super::composite::{Composite, order_of_keys};
use super::memory::StateId;
use super::table::{EntryKey, Index, LoggedTable};
use super::{KeyedAccess, KeyedBackend, Namespace, StateError, TimeDomain};
use crate::batch::Timestamp;
use crate::key::{Key, KeyHash};

/// How the manifest calls the timers of a domain.
pub(super) fn kind(domain: TimeDomain) -> &'static str {
    match domain {
        TimeDomain::EventTime => "event-time-timers",
        TimeDomain::ProcessingTime => "processing-time-timers",
    }
}

type TimerKey<K, N> = Composite<K, N, Timestamp>;
type Table<K, N> = LoggedTable<TimerKey<K, N>, Marker, TimerIndex<K, N>>;

/// Timers in firing order.
pub(super) struct TimerIndex<K: Key, N> {
    due: BTreeSet<Due<K, N>>,
}

impl<K: Key, N> Default for TimerIndex<K, N> {
    fn default() -> Self {
        Self {
            due: BTreeSet::new(),
        }
    }
}

impl<K: Key, N: Namespace> Index<TimerKey<K, N>, ()> for TimerIndex<K, N> {
    type Part = ();

    #[inline]
    fn part((): &()) {}

    fn insert(&mut self, shard: usize, timer: &TimerKey<K, N>, (): &()) {
        self.due.insert(Due::of(shard, timer));
    }
    fn remove(&mut self, shard: usize, timer: &TimerKey<K, N>) {
        // Most timers that go are the first one, which fires: no search.
        if self.due.first().is_some_and(|first| first.is(timer)) {
            self.due.pop_first();
        } else {
            self.due.remove(&Due::of(shard, timer));
        }
    }
    fn first_time(&self) -> Option<Timestamp> {
        self.due.first().map(|due| due.time)
    }
}

struct Due<K, N> {
    time: Timestamp,
    /// Ordered as key groups are.
    shard: usize,
    hash: KeyHash,
    key: K,
    namespace: N,
}

impl<K: Key, N: Namespace> Due<K, N> {
    fn of(shard: usize, timer: &TimerKey<K, N>) -> Self {
        Self {
            time: timer.extra,
            shard,
            hash: timer.key_hash(),
            key: timer.key.clone(),
            namespace: timer.namespace.clone(),
        }
    }

    fn is(&self, timer: &TimerKey<K, N>) -> bool {
        timer.is_of(&self.key, &self.namespace, &self.time)
    }
}

impl<K: Key, N: Namespace> Ord for Due<K, N> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_hash =
            (self.time, self.shard, self.hash).cmp(&(other.time, other.shard, other.hash));
        by_hash
            .then_with(|| order_of_keys(&self.key, &other.key))
            .then_with(|| self.namespace.cmp(&other.namespace))
    }
}
impl<K: Key, N: Namespace> PartialOrd for Due<K, N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K: Key, N: Namespace> PartialEq for Due<K, N> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<K: Key, N: Namespace> Eq for Due<K, N> {}

/// Timers of one operator with one namespace type: keyed state like any other.
pub struct Timers<N = ()> {
    event: StateId,
    processing: StateId,
    _n: PhantomData<fn() -> N>,
}

impl<N> Clone for Timers<N> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<N> Copy for Timers<N> {}

/// What the timers of a name are stored as.
pub(super) fn state_name(name: &str, domain: TimeDomain) -> String {
    format!("{name}/{}", kind(domain))
}

impl<N: Namespace> Timers<N> {
    pub(super) fn register_state<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
    ) -> Result<Self, StateError> {
        let KeyedBackend::Memory(memory) = backend;
        let mut register = |domain| {
            memory.register::<TimerKey<K, N>, Marker, TimerIndex<K, N>>(
                &state_name(name, domain),
                kind(domain),
            )
        };
        Ok(Self {
            event: register(TimeDomain::EventTime)?,
            processing: register(TimeDomain::ProcessingTime)?,
            _n: PhantomData,
        })
    }

    fn id(&self, domain: TimeDomain) -> StateId {
        match domain {
            TimeDomain::EventTime => self.event,
            TimeDomain::ProcessingTime => self.processing,
        }
    }

    fn put<A: KeyedAccess>(
        &self,
        access: &mut A,
        domain: TimeDomain,
        time: Timestamp,
        namespace: &N,
        is_set: bool,
    ) -> Result<(), StateError> {
        let id = self.id(domain);
        let KeyedBackend::Memory(memory) = access.backend();
        let hash = memory.hash_in(id, namespace, &time)?;
        let at = memory.access::<Table<A::Key, N>>(id)?;
        let is = |entry: &TimerKey<A::Key, N>| entry.is_of(at.key, namespace, &time);
        let key = || Composite::of(at.key, namespace, &time);
        let result = if is_set {
            at.table.ensure(at.shard, at.intervals, hash, is, key, ())
        } else {
            at.table.put(at.shard, at.intervals, hash, is, key, None)
        };
        memory.check_limit();
        result.map_err(StateError::Backend)
    }

    /// Registers a timer for the current key. Registering it twice is registering it once.
    pub fn register<A: KeyedAccess>(
        &self,
        access: &mut A,
        domain: TimeDomain,
        time: Timestamp,
        namespace: &N,
    ) -> Result<(), StateError> {
        self.put(access, domain, time, namespace, true)
    }

    /// Deletes a timer of the current key, if it is there.
    pub fn delete<A: KeyedAccess>(
        &self,
        access: &mut A,
        domain: TimeDomain,
        time: Timestamp,
        namespace: &N,
    ) -> Result<(), StateError> {
        self.put(access, domain, time, namespace, false)
    }

    /// Removes the earliest timer with `time <= up_to` and makes its key the current one. Order: time, then key group, then what the
    /// module says; registration does not count.
    pub fn pop<A: KeyedAccess>(
        &self,
        access: &mut A,
        domain: TimeDomain,
        up_to: Timestamp,
    ) -> Result<Option<(Timestamp, N)>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let table = memory.table::<Table<A::Key, N>>(self.id(domain))?;
        let Some(first) = table.index.due.first().filter(|due| due.time <= up_to) else {
            return Ok(None);
        };
        let (time, namespace) = (first.time, first.namespace.clone());
        let (key, hash) = (first.key.clone(), first.hash);
        memory.set_current_key(&key, hash);
        self.delete(access, domain, time, &namespace)?;
        Ok(Some((time, namespace)))
    }
}
