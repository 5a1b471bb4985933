//! The pre-image log of one key group of one table (rule 2 of [`KeyedState`](super::KeyedState)).
//!
//! Records name entries by their place in the table. Invariant: a place that a retained record names is that of the entry that the
//! record was made for: whoever moves entries calls [`Log::moved`]. It does not know what is still needed: its owner tells it.

use std::collections::VecDeque;

use super::cell::Cell;
use super::intervals::Intervals;

pub(super) struct PreImage<C: Cell> {
    pub(super) place: u32,
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

/// Ascending by interval.
pub(super) struct Log<C: Cell> {
    segments: VecDeque<Segment<C>>,
    /// The memory of a dropped segment, for the next one: an interval has about as many changes as the one before.
    spare: Vec<PreImage<C>>,
}

impl<C: Cell> Log<C> {
    pub(super) fn new() -> Self {
        Self {
            segments: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = &Segment<C>> {
        self.segments.iter()
    }

    /// Appends a pre-image. The caller has seen that it is the entry's first change in this interval.
    #[inline]
    pub(super) fn append(
        &mut self,
        intervals: &mut Intervals,
        place: u32,
        old_since: u64,
        old: Option<C::Old>,
    ) -> usize {
        let bytes = (size_of::<PreImage<C>>() + old.as_ref().map_or(0, C::old_heap_bytes)) as u64;
        intervals.log_bytes += bytes;
        if self.segments.back().map(|s| s.interval) != Some(intervals.current) {
            self.begin(intervals.current);
        }
        let Some(segment) = self.segments.back_mut() else {
            return 0;
        };
        segment.bytes += bytes;
        segment.records.push(PreImage {
            place,
            old_since,
            old,
        });
        segment.records.len() - 1
    }

    #[cold]
    fn begin(&mut self, interval: u64) {
        self.segments.push_back(Segment {
            interval,
            records: std::mem::take(&mut self.spare),
            bytes: 0,
        });
    }

    /// The content goes after it was changed in place in this interval: its pre-image may depend on it.
    pub(super) fn complete(
        &mut self,
        intervals: &mut Intervals,
        place: u32,
        mark: C::Mark,
        content: C::Content,
    ) {
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
        let Some(record) = segment
            .records
            .get_mut(position)
            .filter(|r| r.place == place)
        else {
            return;
        };
        if let Some(old) = &mut record.old {
            let before = C::old_heap_bytes(old);
            C::complete_old(content, old);
            let more = (C::old_heap_bytes(old).saturating_sub(before)) as u64;
            segment.bytes += more;
            intervals.log_bytes += more;
        }
    }

    /// Drops a piece of what is of intervals before `below`: its size in records, `None` when nothing of it is left.
    pub(super) fn forget(&mut self, below: u64, intervals: &mut Intervals) -> Option<usize> {
        let first = self.segments.front_mut().filter(|s| s.interval < below)?;
        // A record without a destructor costs nothing to drop.
        let piece = if std::mem::needs_drop::<C::Old>() {
            FORGET_RECORDS_MAX
        } else {
            usize::MAX
        };
        let left = first.records.len().saturating_sub(piece);
        let dropped = first.records.len() - left;
        first.records.truncate(left);
        if left == 0
            && let Some(segment) = self.segments.pop_front()
        {
            intervals.log_bytes = intervals.log_bytes.saturating_sub(segment.bytes);
            if segment.records.capacity() > self.spare.capacity() {
                self.spare = segment.records;
            }
        }
        Some(dropped)
    }

    /// Takes the newest segment off, for undo.
    pub(super) fn pop(&mut self, intervals: &mut Intervals) -> Option<Segment<C>> {
        let segment = self.segments.pop_back()?;
        intervals.log_bytes = intervals.log_bytes.saturating_sub(segment.bytes);
        Some(segment)
    }

    /// Entries have moved: `places` has the new place of each old one. (A record that is about to be forgotten may name none.)
    pub(super) fn moved(&mut self, places: &[u32]) {
        for segment in &mut self.segments {
            for record in &mut segment.records {
                let place = places.get(record.place as usize);
                record.place = place.copied().unwrap_or(u32::MAX);
            }
        }
    }
}

/// Records that are dropped between two looks at the clock.
const FORGET_RECORDS_MAX: usize = 512;
