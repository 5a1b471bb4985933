//! One state's entries: a hash table per key group that holds the entries themselves, so that an access costs one cache miss, and
//! their pre-image log (the rules are those of [`KeyedState`](super::KeyedState)).
//!
//! The log and captures name entries by their place in the table: they need no copy of a key, and undo no look-up. Entries move
//! only when their table grows ([`Shard::grow`]): then the names in the log are changed along, and captures of the group begin
//! again. Invariant: a place that a retained log record names is never given to another entry. (It is freed when its tombstone is
//! older than every retained segment.) It does not know which interval it is or what is needed of the past: see [`Intervals`].

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::cell::Cell;
use super::encoding::{self, DecodeError, EntryRef};
use super::intervals::Intervals;
use super::log::Log;
use crate::append::Room;
use crate::batch::Timestamp;
use crate::key::KeyHash;

/// `since` of an entry that was never there: above every interval, so that no capture takes it for older than its barrier.
pub(super) const NEVER: u64 = u64::MAX;

/// Entries that are worth reading ahead together: more than the cache misses that a processor can have under way at once, and few
/// enough for its nearest cache to hold them, their tags and their records until they are processed.
pub(crate) const READ_AHEAD_MAX: usize = 64;

/// Deletions listed beyond twice the number of places before the list is compacted.
const TOMBSTONES_SLACK: usize = 64;

/// What identifies an entry within its state.
pub(super) trait EntryKey: Send + Sized + 'static {
    /// Whether there is nothing besides the key, so that the key's hash alone leads to the entry.
    const IS_KEY_ALONE: bool;
    /// Writes the three parts.
    fn put(&self, room: &mut Room<'_>) -> Result<(), String>;
    /// Reads the three parts.
    fn take(entry: &EntryRef<'_>) -> Result<Self, DecodeError>;
    /// Of the key alone.
    fn key_hash(&self) -> KeyHash;
    /// Of all three parts, for the table.
    fn table_hash(&self) -> Result<u64, String>;
    /// Equality.
    fn is(&self, other: &Self) -> bool;
}

/// Something derived from the live entries, kept in step through changes, undo and loading. When the part of an entry changes, it is told
/// the new one only, and must bear that the old one is still there.
pub(super) trait Index<Q, V>: Default + Send + 'static {
    /// What of an entry's content it depends on; `()` when it depends on the key alone.
    type Part: PartialEq;
    /// Of the state's format: older builds refuse what they would keep without deriving what must be derived.
    const VERSION: u32 = encoding::VERSION;
    /// That part.
    fn part(content: &V) -> Self::Part;
    /// An entry became live, or its part is another one.
    fn insert(&mut self, shard: usize, key: &Q, content: &V);
    /// An entry is live no more.
    fn remove(&mut self, shard: usize, key: &Q);
    /// An entry is live; `before` is its part until now, `None` if it was not.
    #[inline]
    fn update(&mut self, shard: usize, key: &Q, before: Option<Self::Part>, content: &V) {
        if before != Some(Self::part(content)) {
            self.insert(shard, key, content);
        }
    }
    /// For timers: the earliest time.
    fn first_time(&self) -> Option<Timestamp> {
        None
    }
}

/// Nothing is derived.
#[derive(Default)]
pub(super) struct NoIndex;

impl<Q, V> Index<Q, V> for NoIndex {
    type Part = ();
    #[inline]
    fn part(_content: &V) {}
    #[inline]
    fn insert(&mut self, _shard: usize, _key: &Q, _content: &V) {}
    #[inline]
    fn remove(&mut self, _shard: usize, _key: &Q) {}
}

/// Aligned, so that an entry of small parts lies in one cache line, and one of larger parts in as few as it can. The hash is not
/// kept for the same reason.
#[repr(align(32))]
pub(super) struct Entry<Q, C: Cell> {
    /// The interval of the last change.
    pub(super) since: u64,
    pub(super) key: Q,
    /// `None`: a tombstone.
    pub(super) cell: Option<C::Content>,
    mark: C::Mark,
}

/// One key group.
pub(super) struct Shard<Q, C: Cell> {
    entries: HashTable<Entry<Q, C>>,
    /// How often entries have moved.
    pub(super) moves: u64,
    pub(super) log: Log<C>,
    /// (interval, place) of deletions, ascending by interval. One whose entry has changed since says nothing.
    tombstones: VecDeque<(u64, u32)>,
}

/// One state.
pub(super) struct LoggedTable<Q, C: Cell, I> {
    pub(super) shards: Vec<Shard<Q, C>>,
    pub(super) index: I,
    pub(super) live: u64,
}

impl<Q: EntryKey, C: Cell> Shard<Q, C> {
    fn new() -> Self {
        Self {
            entries: HashTable::new(),
            moves: 0,
            log: Log::new(),
            tombstones: VecDeque::new(),
        }
    }

    /// All places, taken or not, are below.
    pub(super) fn places(&self) -> usize {
        self.entries.num_buckets()
    }

    /// The entry at a place.
    #[inline]
    pub(super) fn at(&self, place: u32) -> Option<&Entry<Q, C>> {
        self.entries.get_bucket(place as usize)
    }

    #[inline]
    fn find(&self, hash: u64, is: impl Fn(&Q) -> bool) -> Option<&Entry<Q, C>> {
        self.entries.find(hash, |e| is(&e.key))
    }

    /// Puts an entry that is not there; its place.
    fn add(&mut self, hash: u64, entry: Entry<Q, C>) -> Result<u32, String> {
        // Order matters: with room for one more, the table does not move its entries by itself.
        if self.entries.len() == self.entries.capacity() {
            self.grow()?;
        }
        Ok(put_new(&mut self.entries, hash, entry))
    }

    /// Makes room: moves all entries to a new table and tells the log. Nothing has happened when it fails.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) -> Result<(), String> {
        // Full, it comes to twice as many places; full of freed ones, to as many as there are now, or fewer.
        let mut grown = HashTable::<Entry<Q, C>>::with_capacity((self.entries.len() + 1) * 3 / 2);
        if u32::try_from(grown.num_buckets()).is_err() {
            return Err("a key group cannot hold 2^31 entries of a state".to_owned());
        }
        let mut moves = Vec::with_capacity(self.entries.len());
        for from in 0..self.entries.num_buckets() {
            if let Some(entry) = self.entries.get_bucket(from) {
                moves.push((from, entry.key.table_hash()?));
            }
        }
        let mut places = vec![u32::MAX; self.entries.num_buckets()];
        for (from, hash) in moves {
            if let Ok(entry) = self.entries.get_bucket_entry(from) {
                places[from] = put_new(&mut grown, hash, entry.remove().0);
            }
        }
        self.entries = grown;
        self.moves += 1;
        self.log.moved(&places);
        for (_, place) in &mut self.tombstones {
            *place = places[*place as usize];
        }
        // A deletion whose entry is gone.
        self.tombstones.retain(|(_, place)| *place != u32::MAX);
        Ok(())
    }

    /// Bounds the list when the same entries come and go within one interval. What undo may bring back needs no place in it: undo
    /// frees a tombstone from before its target by itself, and leaves no later one.
    fn compact_tombstones(&mut self) {
        let mut is_seen = vec![false; self.entries.num_buckets()];
        let entries = &self.entries;
        self.tombstones.retain(|(since, place)| {
            let is_dead = entries
                .get_bucket(*place as usize)
                .is_some_and(|e| e.cell.is_none() && e.since == *since);
            is_dead && !std::mem::replace(&mut is_seen[*place as usize], true)
        });
    }

    fn free(&mut self, place: u32) {
        if let Ok(entry) = self.entries.get_bucket_entry(place as usize) {
            entry.remove();
        }
    }
}

/// Puts an entry that is not there into a table that has room for it; its place.
fn put_new<T>(entries: &mut HashTable<T>, hash: u64, entry: T) -> u32 {
    let added = entries.insert_unique(hash, entry, |_| unreachable!("there is room"));
    added.bucket_index() as u32
}

impl<Q: EntryKey, C: Cell, I: Index<Q, C::Content>> LoggedTable<Q, C, I> {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Shard::new()).collect(),
            index: I::default(),
            live: 0,
        }
    }

    /// Reads an entry.
    #[inline]
    pub(super) fn get(
        &self,
        shard: usize,
        hash: u64,
        is: impl Fn(&Q) -> bool,
    ) -> Option<&C::Content> {
        self.shards[shard].find(hash, is)?.cell.as_ref()
    }

    /// Brings the entries that hashes lead to near the processor; the result only keeps the reads from being optimised away.
    ///
    /// In two passes, because the processor looks only some hundred instructions ahead: the first finds entries, which needs the
    /// tags alone (they mostly stay in the caches), so that the second is a few instructions an entry and as many of its cache
    /// misses as the processor can keep are under way at once.
    pub(super) fn touch(&self, hashes: &[(usize, u64)]) -> u64 {
        let mut seen = 0;
        for hashes in hashes.chunks(READ_AHEAD_MAX) {
            let mut found: [Option<&Entry<Q, C>>; READ_AHEAD_MAX] = [None; READ_AHEAD_MAX];
            for (found, (shard, hash)) in found.iter_mut().zip(hashes) {
                *found = self.shards[*shard].entries.find(*hash, |_| true);
            }
            for entry in found.into_iter().flatten() {
                // Both, because the entry may lie across two cache lines.
                seen ^= entry.since ^ u64::from(entry.cell.is_some());
            }
        }
        seen
    }

    /// Changes an entry in place with one look-up. Content that only grows (a list) must not shrink in `change`.
    #[inline]
    pub(super) fn modify<R>(
        &mut self,
        at: usize,
        intervals: &mut Intervals,
        hash: u64,
        is: impl Fn(&Q) -> bool,
        key: impl FnOnce() -> Q,
        change: impl FnOnce(&mut Option<C::Content>) -> R,
    ) -> Result<R, String> {
        let Shard { entries, log, .. } = &mut self.shards[at];
        let mut tombstone = None;
        if let Ok(mut found) = entries.find_entry(hash, |e| is(&e.key)) {
            let place = found.bucket_index() as u32;
            let entry = found.get_mut();
            if entry.cell.is_some() {
                if entry.since != intervals.current {
                    if intervals.is_logging {
                        let old = entry.cell.as_ref().map(C::old_of);
                        entry.mark = C::mark(log.append(intervals, place, entry.since, old));
                    }
                    entry.since = intervals.current;
                }
                let before = entry.cell.as_ref().map(I::part);
                // Order matters: the pre-image is in the log before user code sees the entry, and a panic leaves the flag set.
                intervals.is_mutating = true;
                let result = change(&mut entry.cell);
                intervals.is_mutating = false;
                match &entry.cell {
                    None => self.bury(at, intervals, place),
                    Some(content) => self.index.update(at, &entry.key, before, content),
                }
                return Ok(result);
            }
            tombstone = Some(place);
        }
        // Absent: the change works on a local, so that nothing is to be logged when it stays absent.
        let mut cell = None;
        intervals.is_mutating = true;
        let result = change(&mut cell);
        intervals.is_mutating = false;
        if let Some(cell) = cell {
            self.insert(at, intervals, tombstone, hash, key, cell)?;
        }
        Ok(result)
    }

    /// Sets or deletes an entry; the old content moves into the log when it is needed there.
    #[inline]
    pub(super) fn put(
        &mut self,
        at: usize,
        intervals: &mut Intervals,
        hash: u64,
        is: impl Fn(&Q) -> bool,
        key: impl FnOnce() -> Q,
        cell: Option<C::Content>,
    ) -> Result<(), String> {
        let Shard { entries, log, .. } = &mut self.shards[at];
        let mut tombstone = None;
        if let Ok(mut found) = entries.find_entry(hash, |e| is(&e.key)) {
            let place = found.bucket_index() as u32;
            let entry = found.get_mut();
            if let Some(old) = entry.cell.take() {
                let before = Some(I::part(&old));
                entry.cell = cell;
                if entry.since == intervals.current {
                    log.complete(intervals, place, entry.mark, old);
                } else {
                    if intervals.is_logging {
                        // Moved, not a length: the new content does not contain it.
                        let old = Some(C::into_old(old));
                        entry.mark = C::mark(log.append(intervals, place, entry.since, old));
                    }
                    entry.since = intervals.current;
                }
                match &entry.cell {
                    None => self.bury(at, intervals, place),
                    Some(content) => self.index.update(at, &entry.key, before, content),
                }
                return Ok(());
            }
            tombstone = Some(place);
        }
        match cell {
            Some(cell) => self.insert(at, intervals, tombstone, hash, key, cell),
            None => Ok(()),
        }
    }

    /// Makes an entry live with one look-up. One that is live stays as it is: no change, so nothing for the log.
    #[inline]
    pub(super) fn ensure(
        &mut self,
        at: usize,
        intervals: &mut Intervals,
        hash: u64,
        is: impl Fn(&Q) -> bool,
        key: impl FnOnce() -> Q,
        cell: C::Content,
    ) -> Result<(), String> {
        let entries = &mut self.shards[at].entries;
        let tombstone = match entries.find_entry(hash, |e| is(&e.key)) {
            Ok(found) if found.get().cell.is_some() => return Ok(()),
            Ok(found) => Some(found.bucket_index() as u32),
            Err(_) => None,
        };
        self.insert(at, intervals, tombstone, hash, key, cell)
    }

    /// Makes an absent entry live: where its tombstone is when there is one.
    #[cold]
    #[inline(never)]
    fn insert(
        &mut self,
        at: usize,
        intervals: &mut Intervals,
        tombstone: Option<u32>,
        hash: u64,
        key: impl FnOnce() -> Q,
        cell: C::Content,
    ) -> Result<(), String> {
        let shard = &mut self.shards[at];
        let place = match tombstone {
            Some(place) => place,
            None => {
                let entry = Entry {
                    since: NEVER,
                    key: key(),
                    cell: None,
                    mark: C::Mark::default(),
                };
                shard.add(hash, entry)?
            }
        };
        let Shard { entries, log, .. } = shard;
        let Some(entry) = entries.get_bucket_mut(place as usize) else {
            return Err("an entry was lost, this is a bug".to_owned());
        };
        if entry.since != intervals.current && intervals.is_logging {
            entry.mark = C::mark(log.append(intervals, place, entry.since, None));
        }
        entry.since = intervals.current;
        self.index.insert(at, &entry.key, &cell);
        entry.cell = Some(cell);
        self.live += 1;
        Ok(())
    }

    /// An entry has lost its content in the current interval.
    #[cold]
    fn bury(&mut self, at: usize, intervals: &Intervals, place: u32) {
        let shard = &mut self.shards[at];
        if let Some(entry) = shard.at(place) {
            self.index.remove(at, &entry.key);
            self.live -= 1;
        }
        if intervals.keeps_tombstones {
            shard.tombstones.push_back((intervals.current, place));
            if shard.tombstones.len() > 2 * shard.places() + TOMBSTONES_SLACK {
                shard.compact_tombstones();
            }
        } else {
            shard.free(place);
        }
    }

    /// Rule 5: forgets a piece of what only intervals before `below` needed; how much, `None` when there is no more.
    pub(super) fn forget(
        &mut self,
        at: usize,
        below: u64,
        intervals: &mut Intervals,
    ) -> Option<usize> {
        let shard = &mut self.shards[at];
        if let Some(dropped) = shard.log.forget(below, intervals) {
            return Some(dropped);
        }
        let mut forgotten = 0;
        while forgotten < FORGET_TOMBSTONES_MAX
            && let Some((since, place)) = shard.tombstones.pop_front_if(|(i, _)| *i < below)
        {
            forgotten += 1;
            let is_dead = shard
                .at(place)
                .is_some_and(|e| e.cell.is_none() && e.since == since);
            if is_dead {
                shard.free(place);
            }
        }
        (forgotten > 0).then_some(forgotten)
    }

    /// Drops the log of intervals before `below`.
    pub(super) fn drop_log(&mut self, at: usize, below: u64, intervals: &mut Intervals) {
        while self.shards[at].log.forget(below, intervals).is_some() {}
    }

    /// Rule 7. False when the log does not fit the entries, which is a bug.
    pub(super) fn undo(&mut self, to: u64, intervals: &mut Intervals) -> bool {
        for at in 0..self.shards.len() {
            let shard = &mut self.shards[at];
            while let Some(segment) = shard.log.pop(intervals) {
                if segment.interval < to {
                    continue; // Not needed any more: `to` is complete.
                }
                for record in segment.records.into_iter().rev() {
                    let Some(entry) = shard.entries.get_bucket_mut(record.place as usize) else {
                        return false;
                    };
                    let current = entry.cell.take();
                    let before = current.as_ref().map(I::part);
                    entry.cell = match record.old {
                        None => None,
                        Some(old) => match C::restore(old, current) {
                            None => return false,
                            restored => restored,
                        },
                    };
                    entry.since = record.old_since;
                    match (before, &entry.cell) {
                        (None, None) => {}
                        (Some(_), None) => {
                            self.index.remove(at, &entry.key);
                            self.live -= 1;
                        }
                        (before, Some(content)) => {
                            self.live += u64::from(before.is_none());
                            self.index.update(at, &entry.key, before, content);
                        }
                    }
                    // A record from before `to` is its entry's last one here: nothing names the place any more.
                    if entry.cell.is_none() && (entry.since < to || entry.since == NEVER) {
                        shard.free(record.place);
                    }
                }
            }
            while shard.tombstones.back().is_some_and(|(i, _)| *i >= to) {
                shard.tombstones.pop_back();
            }
        }
        true
    }

    /// Puts a stored entry, as unchanged since before any interval.
    pub(super) fn load(
        &mut self,
        at: usize,
        key: Q,
        cell: Option<C::Content>,
    ) -> Result<(), String> {
        let hash = key.table_hash()?;
        let shard = &mut self.shards[at];
        let found = shard.entries.find_entry(hash, |e| key.is(&e.key));
        match (found, cell) {
            (Err(_), None) => {}
            (Ok(found), None) => {
                found.remove();
                self.index.remove(at, &key);
                self.live -= 1;
            }
            (Ok(mut found), Some(cell)) => {
                let entry = found.get_mut();
                let before = entry.cell.as_ref().map(I::part);
                self.index.update(at, &key, before, &cell);
                entry.cell = Some(cell);
            }
            (Err(_), Some(cell)) => {
                self.index.insert(at, &key, &cell);
                self.live += 1;
                let entry = Entry {
                    since: 0,
                    key,
                    cell: Some(cell),
                    mark: C::Mark::default(),
                };
                shard.add(hash, entry)?;
            }
        }
        Ok(())
    }

    /// Removes all entries of a group, at loading.
    pub(super) fn clear(&mut self, at: usize) {
        let shard = std::mem::replace(&mut self.shards[at], Shard::new());
        for entry in &shard.entries {
            if entry.cell.is_some() {
                self.index.remove(at, &entry.key);
                self.live -= 1;
            }
        }
    }
}

/// Tombstones that are forgotten between two looks at the clock.
const FORGET_TOMBSTONES_MAX: usize = 512;

#[cfg(test)]
mod tests;
