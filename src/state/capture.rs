//! Writing what a table held at a barrier, in slices, while it changes (rules 3 and 4).
//!
//! One key group of one table at a time: first the entries that have not changed since the barrier (by scanning the table, or
//! along the log of the base's intervals when little changed), then the oldest pre-images of those that have. Invariant: each
//! entry is written once, with its value as of the barrier: an entry that changes after it was written leaves a pre-image in the
//! log, and the `written` bits tell that it is done. When the table has moved its entries, the bits are void and the group begins
//! again. Nothing here decides which captures run: see `memory`.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_actors::clock::Instant;

use super::cell::Cell;
use super::encoding::{DELETED, END, LIVE};
use super::intervals::Intervals;
use super::table::{EntryKey, Index, LoggedTable};
use crate::append::{AppendBuffer, Room};

/// Steps between looks at the clock. Tests take small ones, so that changes come between.
pub(super) const STEPS_PER_LOOK: u32 = if cfg!(test) { 3 } else { 64 };
/// The log leads when it names at most one in so many places. Small in tests, whose tables are small.
const SCAN_COST_RATIO: usize = if cfg!(test) { 2 } else { 16 };

/// Places, or log records, that are looked at together. At most 64; few in tests, as above.
const BLOCK: u32 = if cfg!(test) { 3 } else { 64 };

/// What is left of a slice.
pub(super) struct Budget {
    deadline: Instant,
    steps: u32,
}

impl Budget {
    pub(super) fn new(slice: Duration) -> Self {
        Self {
            deadline: Instant::now() + slice,
            steps: STEPS_PER_LOOK,
        }
    }

    /// Takes one step; true when the slice is over.
    #[inline]
    pub(super) fn spend(&mut self) -> bool {
        self.steps -= 1;
        self.steps == 0 && self.look()
    }

    /// Looks at the clock; true when the slice is over.
    pub(super) fn look(&mut self) -> bool {
        self.steps = STEPS_PER_LOOK;
        Instant::now() >= self.deadline
    }
}

/// Which values are meant.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// As of the start of this interval.
    pub(super) barrier: u64,
    /// Changed in this interval or later; with `None` all that are live.
    pub(super) base: Option<u64>,
}

impl Extent {
    /// Whether an entry with this `since` and content as of the barrier is written.
    #[inline]
    fn covers(self, since: u64, is_live: bool) -> bool {
        since < self.barrier
            && match self.base {
                Some(base) => since >= base,
                None => is_live,
            }
    }
}

/// Position within one group of one table.
pub(super) struct ShardCursor {
    /// The state's number.
    pub(super) state: u16,
    phase: Phase,
    /// The group's moves when it began.
    moves: u64,
    /// One bit per place.
    written: Vec<u64>,
    /// Where the group's bytes began, to start over.
    start: usize,
    is_section_open: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    Start,
    /// Next place.
    Places(u32),
    /// Next record of the base's intervals.
    Changes(u64, usize),
    /// Next record since the barrier.
    Log(u64, usize),
}

impl ShardCursor {
    pub(super) fn new() -> Self {
        Self {
            state: 0,
            phase: Phase::Start,
            moves: 0,
            written: Vec::new(),
            start: 0,
            is_section_open: false,
        }
    }

    /// The log before the barrier went away, or the entries have moved: begins this group of this table again.
    pub(super) fn restart(&mut self, out: &mut AppendBuffer) {
        match self.phase {
            Phase::Start => {}
            Phase::Places(_) | Phase::Changes(..) | Phase::Log(..) => {
                out.truncate(self.start);
                self.phase = Phase::Start;
            }
        }
    }

    /// The bits are as many as there were places when the group was begun; a table with other places has moved its entries, and then the
    /// group begins again.
    #[inline]
    fn mark(&mut self, place: u32) {
        self.written[place as usize / 64] |= 1 << (place % 64);
    }

    #[inline]
    fn is_written(&self, place: u32) -> bool {
        self.written
            .get(place as usize / 64)
            .is_some_and(|w| w >> (place % 64) & 1 == 1)
    }

    /// Appends an entry, and before the first one begins their section.
    #[inline]
    fn put<Q: EntryKey>(
        &mut self,
        out: &mut AppendBuffer,
        tag: u8,
        key: &Q,
        value: impl Fn(&mut Room<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        if !self.is_section_open {
            out.put_varint(u64::from(self.state));
            self.is_section_open = true;
        }
        out.append(|room| {
            room.push(tag);
            key.put(room)?;
            value(room)
        })
    }

    fn put_entry<Q: EntryKey, C: Cell>(
        &mut self,
        out: &mut AppendBuffer,
        key: &Q,
        cell: Option<&C::Content>,
    ) -> Result<(), String> {
        match cell {
            Some(cell) => self.put(out, LIVE, key, |room| {
                room.put_part(|room| C::encode(cell, room))
            }),
            None => self.put(out, DELETED, key, |_room| Ok(())),
        }
    }
}

impl<Q: EntryKey, C: Cell, I: Index<Q, C::Content>> LoggedTable<Q, C, I> {
    /// Goes on with one group; true when it is done.
    pub(super) fn capture_shard(
        &self,
        at: usize,
        extent: Extent,
        intervals: &Intervals,
        cursor: &mut ShardCursor,
        out: &mut AppendBuffer,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        if cursor.moves != self.shards[at].moves {
            cursor.restart(out);
        }
        loop {
            match cursor.phase {
                Phase::Start => {
                    cursor.moves = self.shards[at].moves;
                    cursor.start = out.len();
                    cursor.written.clear();
                    let words = self.shards[at].places().div_ceil(64);
                    cursor.written.resize(words, 0);
                    cursor.is_section_open = false;
                    cursor.phase = self.choose(at, extent, intervals);
                }
                Phase::Places(next) => {
                    if !self.capture_places(at, next, extent, cursor, out, budget)? {
                        return Ok(false);
                    }
                }
                Phase::Changes(interval, next) => {
                    let from = (interval, next);
                    if !self.capture_changes(at, from, extent, cursor, out, budget)? {
                        return Ok(false);
                    }
                }
                Phase::Log(interval, next) => {
                    let from = (interval, next);
                    if !self.capture_log(at, from, extent, cursor, out, budget)? {
                        return Ok(false);
                    }
                    if cursor.is_section_open {
                        out.put(&[END]);
                    }
                    cursor.phase = Phase::Start;
                    return Ok(true);
                }
            }
        }
    }

    fn choose(&self, at: usize, extent: Extent, intervals: &Intervals) -> Phase {
        let shard = &self.shards[at];
        if let Some(base) = extent.base
            && intervals.is_logged_since(base)
        {
            let records: usize = shard
                .log
                .segments()
                .filter(|s| (base..extent.barrier).contains(&s.interval))
                .map(|s| s.records.len())
                .sum();
            if records * SCAN_COST_RATIO <= shard.places() {
                return Phase::Changes(base, 0);
            }
        }
        Phase::Places(0)
    }

    fn capture_places(
        &self,
        at: usize,
        next: u32,
        extent: Extent,
        cursor: &mut ShardCursor,
        out: &mut AppendBuffer,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        let shard = &self.shards[at];
        let places = shard.places() as u32;
        for from in (next..places).step_by(BLOCK as usize) {
            let to = (from + BLOCK).min(places);
            // Two passes: whether a place is taken is as good as random, and a branch for each would often be guessed wrong.
            let mut taken = 0_u64;
            for place in from..to {
                taken |= u64::from(shard.at(place).is_some()) << (place - from);
            }
            for place in ones(taken).map(|i| from + i as u32) {
                if let Some(entry) = shard.at(place)
                    && extent.covers(entry.since, entry.cell.is_some())
                {
                    cursor.put_entry::<Q, C>(out, &entry.key, entry.cell.as_ref())?;
                    cursor.mark(place);
                }
            }
            if budget.look() {
                cursor.phase = Phase::Places(to);
                return Ok(false);
            }
        }
        cursor.phase = Phase::Log(extent.barrier, 0);
        Ok(true)
    }

    /// An entry that changed in several intervals has a record in each: the one of its last change counts.
    fn capture_changes(
        &self,
        at: usize,
        (interval, next): (u64, usize),
        extent: Extent,
        cursor: &mut ShardCursor,
        out: &mut AppendBuffer,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        let shard = &self.shards[at];
        for segment in shard.log.segments() {
            if segment.interval < interval || segment.interval >= extent.barrier {
                continue;
            }
            let first = if segment.interval == interval {
                next
            } else {
                0
            };
            for from in (first..segment.records.len()).step_by(BLOCK as usize) {
                let block = block_from(&segment.records, from);
                // Two passes: the entries lie anywhere, and so the cache misses of a block overlap.
                let mut last_changes = 0_u64;
                for (i, record) in block.iter().enumerate() {
                    let entry = shard.at(record.place);
                    let is_last = entry.is_some_and(|e| e.since == segment.interval);
                    last_changes |= u64::from(is_last) << i;
                }
                for record in ones(last_changes).map(|i| &block[i]) {
                    if let Some(entry) = shard.at(record.place) {
                        cursor.put_entry::<Q, C>(out, &entry.key, entry.cell.as_ref())?;
                        cursor.mark(record.place);
                    }
                }
                if budget.look() {
                    cursor.phase = Phase::Changes(segment.interval, from + block.len());
                    return Ok(false);
                }
            }
        }
        cursor.phase = Phase::Log(extent.barrier, 0);
        Ok(true)
    }

    /// Only the oldest pre-image since the barrier is from before it, so that each entry comes up once.
    fn capture_log(
        &self,
        at: usize,
        (interval, next): (u64, usize),
        extent: Extent,
        cursor: &mut ShardCursor,
        out: &mut AppendBuffer,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        let shard = &self.shards[at];
        let later = if C::OLD_NEEDS_LATER {
            self.first_contents(at, extent.barrier)
        } else {
            BTreeMap::new()
        };
        for segment in shard.log.segments().filter(|s| s.interval >= interval) {
            let first = if segment.interval == interval {
                next
            } else {
                0
            };
            for from in (first..segment.records.len()).step_by(BLOCK as usize) {
                let block = block_from(&segment.records, from);
                let mut needed = 0_u64;
                for (i, record) in block.iter().enumerate() {
                    let is_needed = extent.covers(record.old_since, record.old.is_some())
                        & !cursor.is_written(record.place);
                    needed |= u64::from(is_needed) << i;
                }
                // The keys lie anywhere: their cache misses overlap.
                let near = |seen, i: usize| seen ^ shard.at(block[i].place).map_or(0, |e| e.since);
                std::hint::black_box(ones(needed).fold(0, near));
                for record in ones(needed).map(|i| &block[i]) {
                    let Some(entry) = shard.at(record.place) else {
                        continue;
                    };
                    match &record.old {
                        Some(old) => {
                            let later = later.get(&record.place).copied();
                            let now = entry.cell.as_ref();
                            cursor.put(out, LIVE, &entry.key, |room| {
                                room.put_part(|room| C::encode_old(old, later, now, room))
                            })?;
                        }
                        None => cursor.put_entry::<Q, C>(out, &entry.key, None)?,
                    }
                }
                // What needs later pre-images is not interrupted: they would be looked up again after each slice.
                if !C::OLD_NEEDS_LATER && budget.look() {
                    cursor.phase = Phase::Log(segment.interval, from + block.len());
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// For each place the first pre-image in intervals after `barrier`'s that holds content. (A place has one record per interval.)
    fn first_contents(&self, at: usize, barrier: u64) -> BTreeMap<u32, &C::Old> {
        let mut contents = BTreeMap::new();
        for segment in self.shards[at].log.segments() {
            if segment.interval <= barrier {
                continue;
            }
            for record in &segment.records {
                if let Some(old) = &record.old
                    && C::has_content(old)
                {
                    contents.entry(record.place).or_insert(old);
                }
            }
        }
        contents
    }
}

/// The records that are looked at together, beginning with one.
fn block_from<T>(records: &[T], from: usize) -> &[T] {
    let rest = &records[from..];
    &rest[..rest.len().min(BLOCK as usize)]
}

/// Numbers of the bits that are set, the lowest first.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = bits.trailing_zeros() as usize;
        (bits != 0).then(|| {
            bits &= bits - 1;
            lowest
        })
    })
}
