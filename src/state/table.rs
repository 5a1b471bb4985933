//! One state's entries: a slab of entries per key group, an index over it, and the pre-image log (design.md section 5).
//!
//! Entries live in slots that do not move, and the log names slots: it needs no copy of a key, an undo needs no look-up, and a
//! capture scans slots in order, whatever the index does. Invariant: a slot that a retained log record names is never given to
//! another entry. (It is freed when its tombstone is older than every retained segment.) It does not know which interval it is or
//! what is needed of the past: see [`Intervals`].

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::cell::Cell;
use super::encoding::{DecodeError, EntryRef};
use super::intervals::Intervals;
use crate::batch::Timestamp;
use crate::key::KeyHash;

/// `since` of an entry that was never there: above every interval, so that no capture takes it for older than its barrier.
pub(super) const NEVER: u64 = u64::MAX;

/// Deletions listed beyond twice the number of slots before the list is compacted.
const TOMBSTONES_SLACK: usize = 64;

/// What identifies an entry within its state.
pub(super) trait EntryKey: Send + Sized + 'static {
    /// Whether there is nothing besides the key, so that the key's hash alone leads to the entry.
    const IS_KEY_ALONE: bool;
    /// Writes the three parts.
    fn put(&self, out: &mut Vec<u8>) -> Result<(), String>;
    /// Reads the three parts.
    fn take(entry: &EntryRef<'_>) -> Result<Self, DecodeError>;
    /// Of the key alone.
    fn key_hash(&self) -> KeyHash;
    /// Of all three parts, for the index.
    fn table_hash(&self) -> Result<u64, String>;
    /// Equality.
    fn is(&self, other: &Self) -> bool;
}

/// Something derived from which entries are live, kept in step through changes, undo and loading.
pub(super) trait Index<Q>: Default + Send + 'static {
    /// An entry became live.
    fn insert(&mut self, shard: usize, key: &Q);
    /// An entry is live no more.
    fn remove(&mut self, shard: usize, key: &Q);
    /// For timers: the earliest time.
    fn first_time(&self) -> Option<Timestamp> {
        None
    }
}

/// Nothing is derived.
#[derive(Default)]
pub(super) struct NoIndex;

impl<Q> Index<Q> for NoIndex {
    #[inline]
    fn insert(&mut self, _shard: usize, _key: &Q) {}
    #[inline]
    fn remove(&mut self, _shard: usize, _key: &Q) {}
}

pub(super) struct Entry<Q, C: Cell> {
    pub(super) hash: u64,
    /// The interval of the last change.
    pub(super) since: u64,
    pub(super) key: Q,
    /// `None`: a tombstone.
    pub(super) cell: Option<C::Content>,
    mark: C::Mark,
}

pub(super) struct PreImage<C: Cell> {
    pub(super) slot: u32,
    pub(super) old_since: u64,
    /// `None`: was absent.
    pub(super) old: Option<C::Old>,
}

/// The log of one interval.
pub(super) struct Segment<C: Cell> {
    pub(super) interval: u64,
    pub(super) records: Vec<PreImage<C>>,
    bytes: u64,
}

/// One key group.
pub(super) struct Shard<Q, C: Cell> {
    pub(super) slots: Vec<Option<Entry<Q, C>>>,
    index: HashTable<u32>,
    free: Vec<u32>,
    /// Ascending by interval.
    pub(super) segments: VecDeque<Segment<C>>,
    /// (interval, slot) of deletions, ascending by interval. One whose slot has changed since says nothing.
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
            slots: Vec::new(),
            index: HashTable::new(),
            free: Vec::new(),
            segments: VecDeque::new(),
            tombstones: VecDeque::new(),
        }
    }

    #[inline]
    fn find(&self, hash: u64, is: impl Fn(&Q) -> bool) -> Option<u32> {
        self.index
            .find(hash, |&slot| {
                self.slots[slot as usize]
                    .as_ref()
                    .is_some_and(|e| e.hash == hash && is(&e.key))
            })
            .copied()
    }

    /// Rule 2: appends a pre-image. The caller has seen that it is the entry's first change in this interval.
    fn log(
        &mut self,
        intervals: &mut Intervals,
        slot: u32,
        old_since: u64,
        old: Option<C::Old>,
    ) -> usize {
        let bytes = (size_of::<PreImage<C>>() + old.as_ref().map_or(0, C::old_heap_bytes)) as u64;
        intervals.log_bytes += bytes;
        if self.segments.back().map(|s| s.interval) != Some(intervals.current) {
            self.segments.push_back(Segment {
                interval: intervals.current,
                records: Vec::new(),
                bytes: 0,
            });
        }
        let Some(segment) = self.segments.back_mut() else {
            return 0;
        };
        segment.bytes += bytes;
        segment.records.push(PreImage {
            slot,
            old_since,
            old,
        });
        segment.records.len() - 1
    }

    /// The content goes after it was changed in place in this interval: its pre-image may depend on it.
    fn complete(&mut self, intervals: &mut Intervals, slot: u32, mark: C::Mark, cell: C::Content) {
        let Some(position) = C::marked(mark) else {
            return;
        };
        let Some(segment) = self
            .segments
            .back_mut()
            .filter(|s| s.interval == intervals.current)
        else {
            return;
        };
        let Some(record) = segment.records.get_mut(position).filter(|r| r.slot == slot) else {
            return;
        };
        if let Some(old) = &mut record.old {
            let before = C::old_heap_bytes(old);
            C::complete_old(cell, old);
            let more = (C::old_heap_bytes(old).saturating_sub(before)) as u64;
            segment.bytes += more;
            intervals.log_bytes += more;
        }
    }

    fn take_slot(&mut self) -> Result<u32, String> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = u32::try_from(self.slots.len())
            .map_err(|_| "a key group cannot hold more than 2^32 entries of a state".to_owned())?;
        self.slots.push(None);
        Ok(slot)
    }

    fn fill(&mut self, slot: u32, entry: Entry<Q, C>) {
        let hash = entry.hash;
        self.slots[slot as usize] = Some(entry);
        let slots = &self.slots;
        self.index.insert_unique(hash, slot, |&slot| {
            slots[slot as usize].as_ref().map_or(0, |e| e.hash)
        });
    }

    /// Bounds the list when the same entries come and go within one interval. What undo may bring back needs no place in it: undo
    /// frees a tombstone from before its target by itself, and leaves no later one.
    fn compact_tombstones(&mut self) {
        let mut is_seen = vec![false; self.slots.len()];
        let slots = &self.slots;
        self.tombstones.retain(|(since, slot)| {
            let is_dead = slots[*slot as usize]
                .as_ref()
                .is_some_and(|e| e.cell.is_none() && e.since == *since);
            is_dead && !std::mem::replace(&mut is_seen[*slot as usize], true)
        });
    }

    fn free(&mut self, slot: u32) {
        if let Some(entry) = self.slots[slot as usize].take() {
            if let Ok(found) = self.index.find_entry(entry.hash, |&s| s == slot) {
                found.remove();
            }
            self.free.push(slot);
        }
    }
}

impl<Q: EntryKey, C: Cell, I: Index<Q>> LoggedTable<Q, C, I> {
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
        let shard = &self.shards[shard];
        let slot = shard.find(hash, is)?;
        shard.slots[slot as usize].as_ref()?.cell.as_ref()
    }

    /// Brings the entry that an index hash leads to near the processor.
    #[inline]
    pub(super) fn touch(&self, shard: usize, hash: u64) -> u64 {
        let shard = &self.shards[shard];
        let slot = shard.find(hash, |_| true);
        slot.and_then(|slot| shard.slots[slot as usize].as_ref())
            .map_or(0, |entry| entry.since)
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
        let shard = &mut self.shards[at];
        let found = shard.find(hash, is);
        if let Some(slot) = found
            && let Some(entry) = shard.slots[slot as usize].as_mut()
            && entry.cell.is_some()
        {
            if entry.since != intervals.current {
                let (old_since, old) = (entry.since, entry.cell.as_ref().map(C::old_of));
                entry.since = intervals.current;
                if intervals.is_logging {
                    let position = shard.log(intervals, slot, old_since, old);
                    if let Some(entry) = shard.slots[slot as usize].as_mut() {
                        entry.mark = C::mark(position);
                    }
                }
            }
            let Some(entry) = shard.slots[slot as usize].as_mut() else {
                return Err("a slot was lost, this is a bug".to_owned());
            };
            // Order matters: the pre-image is in the log before user code sees the entry, and a panic leaves the flag set.
            intervals.is_mutating = true;
            let result = change(&mut entry.cell);
            intervals.is_mutating = false;
            if entry.cell.is_none() {
                self.bury(at, intervals, slot);
            }
            return Ok(result);
        }
        // Absent: the change works on a local, so that nothing is to be logged when it stays absent.
        let mut cell = None;
        intervals.is_mutating = true;
        let result = change(&mut cell);
        intervals.is_mutating = false;
        if let Some(cell) = cell {
            self.insert(at, intervals, found, hash, key, cell)?;
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
        let shard = &mut self.shards[at];
        let found = shard.find(hash, is);
        let live = found.and_then(|slot| {
            let entry = shard.slots[slot as usize].as_mut()?;
            let old = entry.cell.take()?;
            Some((slot, entry, old))
        });
        let Some((slot, entry, old)) = live else {
            return match cell {
                Some(cell) => self.insert(at, intervals, found, hash, key, cell),
                None => Ok(()),
            };
        };
        entry.cell = cell;
        let (old_since, mark, is_deleted) = (entry.since, entry.mark, entry.cell.is_none());
        if old_since == intervals.current {
            shard.complete(intervals, slot, mark, old);
        } else {
            entry.since = intervals.current;
            if intervals.is_logging {
                // Moved, not a length: the new content does not contain it.
                let position = shard.log(intervals, slot, old_since, Some(C::into_old(old)));
                if let Some(entry) = shard.slots[slot as usize].as_mut() {
                    entry.mark = C::mark(position);
                }
            }
        }
        if is_deleted {
            self.bury(at, intervals, slot);
        }
        Ok(())
    }

    /// Makes an absent entry live: in its tombstone's slot when there is one.
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
        let slot = match tombstone {
            Some(slot) => slot,
            None => {
                let slot = shard.take_slot()?;
                shard.fill(
                    slot,
                    Entry {
                        hash,
                        since: NEVER,
                        key: key(),
                        cell: None,
                        mark: C::Mark::default(),
                    },
                );
                slot
            }
        };
        let Some(since) = shard.slots[slot as usize].as_ref().map(|e| e.since) else {
            return Err("a slot was lost, this is a bug".to_owned());
        };
        let mut mark = None;
        if since != intervals.current && intervals.is_logging {
            mark = Some(C::mark(shard.log(intervals, slot, since, None)));
        }
        if let Some(entry) = shard.slots[slot as usize].as_mut() {
            entry.since = intervals.current;
            entry.cell = Some(cell);
            if let Some(mark) = mark {
                entry.mark = mark;
            }
            self.index.insert(at, &entry.key);
            self.live += 1;
        }
        Ok(())
    }

    /// An entry has lost its content in the current interval.
    #[cold]
    fn bury(&mut self, at: usize, intervals: &Intervals, slot: u32) {
        let shard = &mut self.shards[at];
        if let Some(entry) = &shard.slots[slot as usize] {
            self.index.remove(at, &entry.key);
            self.live -= 1;
        }
        if intervals.keeps_tombstones {
            shard.tombstones.push_back((intervals.current, slot));
            if shard.tombstones.len() > 2 * shard.slots.len() + TOMBSTONES_SLACK {
                shard.compact_tombstones();
            }
        } else {
            shard.free(slot);
        }
    }

    /// Rule 5: forgets what only intervals before `below` needed. True when there was anything.
    pub(super) fn forget(&mut self, at: usize, below: u64, intervals: &mut Intervals) -> bool {
        let mut is_any = self.drop_log(at, below, intervals);
        let shard = &mut self.shards[at];
        while let Some((since, slot)) = shard.tombstones.front().copied() {
            if since >= below {
                break;
            }
            is_any = true;
            shard.tombstones.pop_front();
            let is_dead = shard.slots[slot as usize]
                .as_ref()
                .is_some_and(|e| e.cell.is_none() && e.since == since);
            if is_dead {
                shard.free(slot);
            }
        }
        is_any
    }

    /// Drops the log of intervals before `below`.
    pub(super) fn drop_log(&mut self, at: usize, below: u64, intervals: &mut Intervals) -> bool {
        let shard = &mut self.shards[at];
        let mut is_any = false;
        while let Some(segment) = shard.segments.pop_front() {
            if segment.interval >= below {
                shard.segments.push_front(segment);
                break;
            }
            is_any = true;
            intervals.log_bytes = intervals.log_bytes.saturating_sub(segment.bytes);
        }
        is_any
    }

    /// Rule 7. False when the log does not fit the entries, which is a bug.
    pub(super) fn undo(&mut self, to: u64, intervals: &mut Intervals) -> bool {
        for at in 0..self.shards.len() {
            let shard = &mut self.shards[at];
            while let Some(segment) = shard.segments.pop_back() {
                intervals.log_bytes = intervals.log_bytes.saturating_sub(segment.bytes);
                if segment.interval < to {
                    continue; // Not needed any more: `to` is complete.
                }
                for record in segment.records.into_iter().rev() {
                    let Some(Some(entry)) = shard.slots.get_mut(record.slot as usize) else {
                        return false;
                    };
                    let current = entry.cell.take();
                    let was_live = current.is_some();
                    entry.cell = match record.old {
                        None => None,
                        Some(old) => match C::restore(old, current) {
                            None => return false,
                            restored => restored,
                        },
                    };
                    entry.since = record.old_since;
                    match (was_live, entry.cell.is_some()) {
                        (true, false) => {
                            self.index.remove(at, &entry.key);
                            self.live -= 1;
                        }
                        (false, true) => {
                            self.index.insert(at, &entry.key);
                            self.live += 1;
                        }
                        (true, true) | (false, false) => {}
                    }
                    // A record from before `to` is its entry's last one here: nothing names the slot any more.
                    if entry.cell.is_none() && (entry.since < to || entry.since == NEVER) {
                        shard.free(record.slot);
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
        let found = shard.find(hash, |other| key.is(other));
        match (found, cell) {
            (None, None) => {}
            (Some(slot), None) => {
                self.index.remove(at, &key);
                self.live -= 1;
                shard.free(slot);
            }
            (Some(slot), Some(cell)) => {
                if let Some(entry) = shard.slots[slot as usize].as_mut() {
                    entry.cell = Some(cell);
                }
            }
            (None, Some(cell)) => {
                let slot = shard.take_slot()?;
                self.index.insert(at, &key);
                self.live += 1;
                let entry = Entry {
                    hash,
                    since: 0,
                    key,
                    cell: Some(cell),
                    mark: C::Mark::default(),
                };
                shard.fill(slot, entry);
            }
        }
        Ok(())
    }

    /// Removes all entries of a group, at loading.
    pub(super) fn clear(&mut self, at: usize) {
        let shard = std::mem::replace(&mut self.shards[at], Shard::new());
        for entry in shard.slots.into_iter().flatten() {
            if entry.cell.is_some() {
                self.index.remove(at, &entry.key);
                self.live -= 1;
            }
        }
    }
}
