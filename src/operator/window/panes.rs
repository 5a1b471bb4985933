//! Aligned windows as panes: spans that no window begins or ends within, so that a record is added once and a window is the sum of
//! its panes.
//!
//! Invariant: a key's panes are ascending and not empty, the newest apart, and `timer`, when they are due, is at most the earliest time
//! at which one of their windows ends or the last window of one of them is gone. It does not look at the clock or at state: see [`Layout`].

use std::mem;

use serde::{Deserialize, Serialize};

use super::assigner::floor;
use super::{AggregateFunction, Layout, TimeWindow};
use crate::batch::Timestamp;
use crate::state::{Scheduled, StateValue};

/// Panes of a key that may be alive at once for windows to be kept this way. They are one entry of state: beyond it, writing and
/// logging all of them for a change of one costs more than it saves.
pub(super) const PANES_OF_A_KEY_MAX: i64 = 1024;

/// How aligned windows are cut into panes.
#[derive(Debug, Clone)]
pub(crate) struct Panes {
    size: i64,
    slide: i64,
    offset: i64,
    /// Of the ends, modulo `slide`.
    end_offset: i64,
    pane: i64,
    lateness: i64,
    /// Of the last record.
    last: Pane,
}

/// Where a pane lies, and until when it is needed.
#[derive(Debug, Clone, Copy)]
struct Pane {
    start: Timestamp,
    end: Timestamp,
    /// The end of its first window.
    first_end: Timestamp,
    /// The time at which its last window is gone.
    gone: Timestamp,
}

/// The panes of a key. The newest, which most records go to, needs no memory of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PanesOfKey<Acc> {
    timer: Timestamp,
    start: Timestamp,
    accumulator: Acc,
    older: Vec<(Timestamp, Acc)>,
}

impl<Acc: StateValue> Scheduled for PanesOfKey<Acc> {
    #[inline]
    fn due(&self) -> Timestamp {
        self.timer
    }
}

impl Panes {
    /// `None` when a key could have more than [`PANES_OF_A_KEY_MAX`] at a time.
    pub(crate) fn new(size: i64, slide: i64, offset: i64, lateness: i64) -> Option<Self> {
        let pane = greatest_common_divisor(size, slide);
        if size.saturating_add(lateness) / pane >= PANES_OF_A_KEY_MAX {
            return None;
        }
        let nowhere = Pane {
            start: 0,
            end: 0,
            first_end: 0,
            gone: 0,
        };
        Some(Self {
            size,
            slide,
            offset,
            end_offset: (offset + size % slide) % slide,
            pane,
            lateness,
            last: nowhere,
        })
    }

    /// The first window's end that is not before `time`.
    fn end_from(&self, time: Timestamp) -> Timestamp {
        let before = floor(time, self.slide, self.end_offset);
        if before == time {
            time
        } else {
            before.saturating_add(self.slide)
        }
    }

    fn last_end(&self, start: Timestamp) -> Timestamp {
        floor(start, self.slide, self.offset).saturating_add(self.size)
    }

    fn gone(&self, start: Timestamp) -> Timestamp {
        let last = self.window_ending(self.last_end(start));
        last.gone_at(self.lateness)
    }

    /// The pane of a time; mostly that of the record before.
    #[inline]
    fn pane_of(&mut self, timestamp: Timestamp) -> Pane {
        if timestamp < self.last.start || timestamp >= self.last.end {
            let start = floor(timestamp, self.pane, self.offset % self.pane);
            let end = start.saturating_add(self.pane);
            self.last = Pane {
                start,
                end,
                first_end: self.end_from(end),
                gone: self.gone(start),
            };
        }
        self.last
    }

    /// When a pane next counts, after `time`: a window of it ends, or its last window is gone.
    fn next(&self, start: Timestamp, time: Timestamp) -> Timestamp {
        let after = start.saturating_add(self.pane).max(time.saturating_add(2));
        let end = self.end_from(after);
        // A window that would end after the last time there is never ends.
        if end <= self.last_end(start) && end - 1 > time {
            end - 1
        } else {
            self.gone(start)
        }
    }

    /// The result of a window; `None` when it is empty.
    fn sum<A: AggregateFunction>(
        aggregate: &A,
        kept: &PanesOfKey<A::Accumulator>,
        window: TimeWindow,
    ) -> Option<A::Out> {
        let newest = (kept.start, &kept.accumulator);
        let mut inside = kept
            .older
            .iter()
            .map(|(start, accumulator)| (*start, accumulator))
            .chain(std::iter::once(newest))
            .filter(|(start, _)| *start >= window.start && *start < window.end)
            .map(|(_, accumulator)| accumulator);
        let first = inside.next()?;
        let Some(second) = inside.next() else {
            return Some(aggregate.result(first));
        };
        let mut sum = first.clone();
        aggregate.merge(&mut sum, second);
        for accumulator in inside {
            aggregate.merge(&mut sum, accumulator);
        }
        Some(aggregate.result(&sum))
    }

    fn window_ending(&self, end: Timestamp) -> TimeWindow {
        TimeWindow {
            start: end.saturating_sub(self.size),
            end,
        }
    }
}

impl<A: AggregateFunction> Layout<A> for Panes {
    const STATE: &'static str = "window-panes";
    type Windows = PanesOfKey<A::Accumulator>;

    #[inline]
    fn add(
        &mut self,
        aggregate: &A,
        windows: &mut Option<Self::Windows>,
        (record, timestamp): (&mut Option<A::In>, Timestamp),
        watermark: Timestamp,
        mut emit: impl FnMut(TimeWindow, A::Out),
    ) {
        let pane = self.pane_of(timestamp);
        if pane.gone <= watermark {
            return;
        }
        let Some(value) = record.take() else {
            return;
        };
        match windows {
            Some(kept) => {
                let mut is_due_anew = self.lateness > 0;
                if kept.start == pane.start {
                    aggregate.add(&mut kept.accumulator, value);
                } else {
                    is_due_anew |= add_elsewhere(aggregate, kept, pane.start, value);
                }
                // With allowed lateness it may have been emitted already, by a subtask that was ahead of this one before a rescale.
                if is_due_anew {
                    kept.timer = kept.timer.min(self.next(pane.start, watermark));
                }
            }
            None => {
                let mut accumulator = aggregate.create_accumulator();
                aggregate.add(&mut accumulator, value);
                *windows = Some(PanesOfKey {
                    timer: self.next(pane.start, watermark),
                    start: pane.start,
                    accumulator,
                    older: Vec::new(),
                });
            }
        }
        // Only with allowed lateness can a window that has ended be there still.
        if self.lateness > 0
            && pane.first_end - 1 <= watermark
            && let Some(kept) = windows
        {
            let last_end = self.last_end(pane.start);
            let mut end = pane.first_end;
            while end - 1 <= watermark && end <= last_end {
                let window = self.window_ending(end);
                if window.gone_at(self.lateness) > watermark
                    && let Some(result) = Self::sum(aggregate, kept, window)
                {
                    emit(window, result);
                }
                let Some(next) = end.checked_add(self.slide) else {
                    break;
                };
                end = next;
            }
        }
    }

    fn fire(
        &self,
        aggregate: &A,
        windows: &mut Option<Self::Windows>,
        time: Timestamp,
        mut emit: impl FnMut(TimeWindow, A::Out),
    ) {
        let Some(kept) = windows else {
            return;
        };
        let end = time.saturating_add(1);
        if self.end_from(end) == end {
            let window = self.window_ending(end);
            if let Some(result) = Self::sum(aggregate, kept, window) {
                emit(window, result);
            }
        }
        let gone = kept
            .older
            .partition_point(|(start, _)| self.gone(*start) <= time);
        kept.older.drain(..gone);
        if self.gone(kept.start) <= time {
            *windows = None;
            return;
        }
        let older = kept.older.iter().map(|(start, _)| self.next(*start, time));
        kept.timer = older.fold(self.next(kept.start, time), Timestamp::min);
    }
}

/// Adds to a pane that is not the newest; whether it is new.
#[cold]
fn add_elsewhere<A: AggregateFunction>(
    aggregate: &A,
    kept: &mut PanesOfKey<A::Accumulator>,
    start: Timestamp,
    value: A::In,
) -> bool {
    if start > kept.start {
        let mut accumulator = aggregate.create_accumulator();
        aggregate.add(&mut accumulator, value);
        let before = mem::replace(&mut kept.start, start);
        let accumulator = mem::replace(&mut kept.accumulator, accumulator);
        kept.older.push((before, accumulator));
        return true;
    }
    match kept.older.binary_search_by_key(&start, |(start, _)| *start) {
        Ok(at) => {
            aggregate.add(&mut kept.older[at].1, value);
            false
        }
        Err(at) => {
            let mut accumulator = aggregate.create_accumulator();
            aggregate.add(&mut accumulator, value);
            kept.older.insert(at, (start, accumulator));
            true
        }
    }
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}
