//! Values that know when they are due: keyed state like any other, plus an index of due times derived from it.
//!
//! A timer of its own for each value would be a second entry to write, to log and to capture at each change. Here the index is told of
//! each change of a value's due time, by changes, undo and loading alike, and is never asked to find one: it drops a time only when it
//! comes to it. Invariant: each live value's due time is in the index. What else is there is void, and nothing fires for it: times that
//! values had since the last that came, each at most twice, so that repeated undo does not add to them.
//!
//! Values that are due fire by time, key group, hash of the key, encoded key.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::cell::ValueCell;
use super::composite::{Composite, order_of_keys, table_hash};
use super::encoding;
use super::memory::{StateId, TableOf};
use super::table::{Index, READ_AHEAD_MAX};
use super::{KeyedAccess, KeyedBackend, StateError, StateValue};
use crate::batch::Timestamp;
use crate::key::{Key, KeyHash};

/// A value that is due at a time. It is stored with the value.
pub(crate) trait Scheduled: StateValue {
    /// The time.
    fn due(&self) -> Timestamp;
}

type Table<K, V> = TableOf<K, (), (), ValueCell<V>, Schedule<K>>;

/// Entries from which on a bucket that is full loses what is in it twice before it grows.
const SETTLE_FROM: usize = 64;

/// Entries from which on a bucket is split instead of growing, so that to put it into an order is little for one step.
const SPLIT_FROM: usize = 2048;

/// Emptied buckets whose memory is kept for the next ones: of those of few entries, which come and go with each entry.
const SPARE_BUCKETS_MAX: usize = 256;

/// Due times, in buckets of a time, a key group and a range of hashes, by the first of them. Entries of a bucket are only put into an
/// order when their time comes.
pub(super) struct Schedule<K> {
    buckets: BTreeMap<Place, Bucket<K>>,
    spare: Vec<Vec<Due<K>>>,
}

/// Where a bucket begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    time: Timestamp,
    shard: usize,
    hash: KeyHash,
}

struct Bucket<K> {
    /// The next one last.
    due: Vec<Due<K>>,
    is_ordered: bool,
    /// So many of the last ones have been read ahead.
    ahead: usize,
}

struct Due<K> {
    hash: KeyHash,
    key: K,
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            spare: Vec::new(),
        }
    }
}

impl<K: Key> Due<K> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        match self.hash.cmp(&other.hash) {
            Ordering::Equal => order_of_keys(&self.key, &other.key),
            unequal => unequal,
        }
    }
}

impl<K: Key> Bucket<K> {
    fn new(due: Vec<Due<K>>) -> Self {
        Self {
            due,
            is_ordered: false,
            ahead: 0,
        }
    }

    fn settle(&mut self) {
        if !self.is_ordered {
            self.due.sort_unstable_by(|a, b| b.cmp(a));
            // What goes back and forth between two times, as by undo, is here once more each time.
            self.due.dedup_by(|a, b| a.hash == b.hash && a.key == b.key);
            self.is_ordered = true;
            self.ahead = 0;
        }
    }

    #[inline]
    fn push(&mut self, due: Due<K>) {
        self.due.push(due);
        self.is_ordered = false;
    }

    /// Makes room for one more in what is full. Returns what belongs into a bucket of its own from now on, with where that begins.
    #[cold]
    fn make_room(&mut self) -> Option<(KeyHash, Self)> {
        if self.due.len() < SETTLE_FROM {
            return None;
        }
        self.settle();
        if self.due.len() <= self.due.capacity() / 2 {
            return None;
        }
        if self.due.len() >= SPLIT_FROM {
            // Those of the higher hashes come first. One hash has one bucket.
            let middle = self.due[self.due.len() / 2].hash;
            let below = self.due.partition_point(|due| due.hash >= middle);
            if below < self.due.len() {
                let lower = self.due.split_off(below);
                let upper = std::mem::replace(&mut self.due, lower);
                // It may be longer: keys of one hash stay together.
                self.due.reserve(SPLIT_FROM.saturating_sub(self.due.len()));
                return Some((middle, Self::new(upper)));
            }
        }
        self.due.reserve(self.due.len());
        None
    }
}

impl<K: Key> Schedule<K> {
    fn push(&mut self, time: Timestamp, shard: usize, due: Due<K>) {
        let hash = due.hash;
        let place = Place { time, shard, hash };
        let last = self.buckets.range_mut(..=place).next_back();
        let Some((found, bucket)) = last.filter(|(at, _)| (at.time, at.shard) == (time, shard))
        else {
            let mut bucket = Bucket::new(self.spare.pop().unwrap_or_default());
            bucket.due.push(due);
            let hash = KeyHash(0);
            self.buckets.insert(Place { hash, ..place }, bucket);
            return;
        };
        if bucket.due.len() == bucket.due.capacity()
            && let Some((begin, mut upper)) = bucket.make_room()
        {
            let place = Place {
                hash: begin,
                ..*found
            };
            if hash >= begin {
                upper.push(due);
            } else {
                bucket.push(due);
            }
            self.buckets.insert(place, upper);
        } else {
            bucket.push(due);
        }
    }

    /// The first bucket, in order, if its time has come.
    fn first(&mut self, up_to: Timestamp) -> Option<(Place, &mut Bucket<K>)> {
        let entry = self.buckets.first_entry()?;
        let place = *entry.key();
        if place.time > up_to {
            return None;
        }
        let bucket = entry.into_mut();
        bucket.settle();
        Some((place, bucket))
    }

    /// Drops the first entry, which is that of this key.
    fn pop(&mut self, time: Timestamp, key: &K) {
        let entry = self.buckets.first_entry();
        let mut entry = entry.filter(|e| e.key().time == time).expect("it fires");
        let bucket = entry.get_mut();
        let popped = bucket.due.pop();
        assert!(
            bucket.is_ordered && popped.is_some_and(|due| due.key == *key),
            "what fires was changed between the two calls, this is a bug"
        );
        bucket.ahead = bucket.ahead.saturating_sub(1);
        if bucket.due.is_empty() {
            let due = entry.remove().due;
            if due.capacity() <= SETTLE_FROM && self.spare.len() < SPARE_BUCKETS_MAX {
                self.spare.push(due);
            }
        }
    }
}

impl<K: Key, V: Scheduled> Index<Composite<K, (), ()>, V> for Schedule<K> {
    type Part = Timestamp;
    /// Earlier builds keep timers beside such values, and would wait for them for ever.
    const VERSION: u32 = encoding::VERSION + 1;

    #[inline]
    fn part(value: &V) -> Timestamp {
        value.due()
    }

    fn insert(&mut self, shard: usize, entry: &Composite<K, (), ()>, value: &V) {
        let due = Due {
            hash: KeyHash::of(&entry.key),
            key: entry.key.clone(),
        };
        self.push(value.due(), shard, due);
    }

    /// It stays until its time comes: finding it would cost more.
    #[inline]
    fn remove(&mut self, _shard: usize, _entry: &Composite<K, (), ()>) {}
}

/// One value per key that says when it is due.
pub(crate) struct ScheduledState<V> {
    id: StateId,
    _v: PhantomData<fn() -> V>,
}

impl<V: Scheduled> ScheduledState<V> {
    /// Stored as a value state of that name.
    pub(super) fn register<K: Key>(
        backend: &mut KeyedBackend<K>,
        name: &str,
    ) -> Result<Self, StateError> {
        let KeyedBackend::Memory(memory) = backend;
        let id =
            memory.register::<Composite<K, (), ()>, ValueCell<V>, Schedule<K>>(name, "value")?;
        Ok(Self {
            id,
            _v: PhantomData,
        })
    }

    /// Changes the current key's value in place with one look-up. `None` in the option means absent, before and after.
    #[inline]
    pub(crate) fn update<A: KeyedAccess, R>(
        &self,
        access: &mut A,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<R, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        memory.modify::<(), (), ValueCell<V>, Schedule<A::Key>, R>(self.id, &(), &(), change)
    }

    /// The current key's value.
    #[cfg(test)]
    pub(super) fn get<A: KeyedAccess>(&self, access: &mut A) -> Result<Option<V>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let value = memory.get::<(), (), ValueCell<V>, Schedule<A::Key>>(self.id, &(), &())?;
        Ok(value.cloned())
    }

    /// The earliest time that has come, `<= up_to`, with its key made the current one, for [`fire`](Self::fire) right after it. No value
    /// changes by it. It may be void: `fire` knows.
    pub(crate) fn next_due<A: KeyedAccess>(
        &self,
        access: &mut A,
        up_to: Timestamp,
    ) -> Result<Option<Timestamp>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let table = memory.table_mut::<Table<A::Key, V>>(self.id)?;
        let Some((place, bucket)) = table.index.first(up_to) else {
            return Ok(None);
        };
        let next = bucket.due.last().expect("an empty bucket goes at once");
        let (key, hash) = (next.key.clone(), next.hash);
        // They come in the order of their hashes, which is none to the processor: it pays with few of them, too.
        if bucket.ahead == 0 {
            let mut hashes = [(0, 0); READ_AHEAD_MAX];
            let next = bucket.due.iter().rev().take(READ_AHEAD_MAX);
            bucket.ahead = next.len();
            for (to, due) in hashes.iter_mut().zip(next) {
                let hash = table_hash(due.hash, &(), &()).map_err(StateError::Backend)?;
                *to = (place.shard, hash);
            }
            let ahead = bucket.ahead;
            std::hint::black_box(table.touch(&hashes[..ahead]));
        }
        memory.set_current_key(&key, hash);
        Ok(Some(place.time))
    }

    /// Lets `change` act on what [`next_due`](Self::next_due) told, and drops that time. `None`: it was void, and nothing has changed.
    ///
    /// The time stays when `change` panics, or there is an error.
    ///
    /// # Panics
    /// When `change` leaves a value that is not due later, which would never fire, and when something else was changed since `next_due`.
    pub(crate) fn fire<A: KeyedAccess, R>(
        &self,
        access: &mut A,
        time: Timestamp,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<Option<R>, StateError> {
        let KeyedBackend::Memory(memory) = access.backend();
        let value = memory.get::<(), (), ValueCell<V>, Schedule<A::Key>>(self.id, &(), &())?;
        let mut result = None;
        if value.is_some_and(|value| value.due() == time) {
            let changed = self.update(access, |value| {
                let result = change(value);
                let is_later = value.as_ref().is_none_or(|value| value.due() > time);
                assert!(is_later, "what fired at {time} is not due later");
                result
            });
            result = Some(changed?);
        }
        let KeyedBackend::Memory(memory) = access.backend();
        let at = memory.access::<Table<A::Key, V>>(self.id)?;
        at.table.index.pop(time, at.key);
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Scheduled for i64 {
        fn due(&self) -> Timestamp {
            *self
        }
    }

    fn insert(schedule: &mut Schedule<u64>, key: u64, time: Timestamp) {
        schedule.insert(0, &Composite::of(&key, &(), &()), &time);
    }

    fn capacity(schedule: &Schedule<u64>) -> usize {
        let buckets = schedule.buckets.values();
        buckets.map(|bucket| bucket.due.capacity()).sum()
    }

    fn fire_all(schedule: &mut Schedule<u64>) -> Vec<(KeyHash, u64)> {
        let mut fired = Vec::new();
        while let Some((place, bucket)) = schedule.first(Timestamp::MAX) {
            let (hash, key) = bucket.due.last().map(|due| (due.hash, due.key)).unwrap();
            fired.push((hash, key));
            schedule.pop(place.time, &key);
        }
        fired
    }

    /// As undo brings the same ones back again and again, while their time does not come.
    #[test]
    fn what_is_due_at_a_time_already_takes_no_more_memory() {
        for keys in [1, 63, 64, 100, 5000] {
            let mut schedule = Schedule::default();
            for _ in 0..200 {
                for key in 0..keys {
                    insert(&mut schedule, key, 10);
                }
            }
            let limit = 4 * keys as usize + 2 * SETTLE_FROM;
            let capacity = capacity(&schedule);
            assert!(capacity <= limit, "{capacity} for {keys}");
        }
    }

    /// Keys whose encodings are alike, as only a faulty key type has them: one hash has one bucket, of any length.
    #[test]
    fn a_bucket_of_one_hash_stays_when_others_come() {
        let mut schedule = Schedule::<u64>::default();
        for key in 0..20_000 {
            let hash = KeyHash(if key < 5_000 { 1 } else { 2 });
            schedule.push(10, 0, Due { hash, key });
        }
        let keys: std::collections::BTreeSet<_> = fire_all(&mut schedule).into_iter().collect();
        assert_eq!(keys.len(), 20_000);
    }

    /// However many there are, what is put into an order in one step is bounded, and the order is that of all.
    #[test]
    fn many_at_one_time_are_in_many_buckets_and_in_order() {
        const KEYS: u64 = 100_000;
        let mut schedule = Schedule::default();
        for key in 0..KEYS {
            insert(&mut schedule, key, 10);
        }
        let longest = schedule.buckets.values().map(|b| b.due.len()).max();
        assert!(longest <= Some(SPLIT_FROM), "{longest:?}");
        // Some have gone when others come, before and behind them.
        let (place, bucket) = schedule.first(10).unwrap();
        let first = bucket.due.last().unwrap().key;
        schedule.pop(place.time, &first);
        insert(&mut schedule, first, 10);
        insert(&mut schedule, KEYS, 10);
        let fired = fire_all(&mut schedule);
        assert_eq!(fired.len() as u64, KEYS + 1);
        assert!(fired.is_sorted());
    }

    #[test]
    fn little_memory_is_kept_of_what_has_gone() {
        let mut schedule = Schedule::default();
        for time in 0..10_000 {
            insert(&mut schedule, 1, time);
        }
        for key in 0..10_000 {
            insert(&mut schedule, key, 10_000);
        }
        assert_eq!(fire_all(&mut schedule).len(), 20_000);
        assert_eq!(schedule.spare.len(), SPARE_BUCKETS_MAX);
        assert!(schedule.spare.iter().all(|s| s.capacity() <= SETTLE_FROM));
    }

    /// A value that is set is due as one that is changed in place.
    #[test]
    fn what_is_set_is_due() {
        let range = perennial_actors::model::KeyGroupRange::of(
            perennial_actors::model::SubtaskIndex(0),
            1,
            8,
        );
        let limits = crate::state::StateLimits { log_bytes_max: 0 };
        let mut b = KeyedBackend::<u64>::memory(range, 8, limits);
        let state = b.scheduled_state::<i64>("state").unwrap();
        b.set_current_key(&1, KeyHash::of(&1_u64));
        for due in [Some(10), Some(5), Some(5), None, Some(7)] {
            let KeyedBackend::Memory(memory) = &mut b;
            memory
                .put::<(), (), ValueCell<i64>, Schedule<u64>>(state.id, &(), &(), due)
                .unwrap();
        }
        let mut told = Vec::new();
        while let Some(time) = state.next_due(&mut b, 100).unwrap() {
            told.push((time, state.fire(&mut b, time, Option::take).unwrap()));
        }
        assert_eq!(told, [(5, None), (7, Some(Some(7))), (10, None)]);
    }

    /// All have one hash.
    #[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
    struct Unhashed(u64);

    impl serde::Serialize for Unhashed {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no encoding"))
        }
    }

    #[test]
    fn different_keys_of_one_hash_are_not_taken_for_one() {
        let mut schedule = Schedule::default();
        for key in 0..5000 {
            schedule.insert(0, &Composite::of(&Unhashed(key), &(), &()), &10_i64);
        }
        let (_, bucket) = schedule.first(10).unwrap();
        assert_eq!(bucket.due.len(), 5000);
    }
}
