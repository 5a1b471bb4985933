//! Which windows an event time lies in.

use std::time::Duration;

use super::TimeWindow;
use crate::batch::Timestamp;

/// Tells the windows of a record.
pub trait WindowAssigner: Send + Clone + 'static {
    /// Calls `each` with every window that an event time lies in.
    fn assign(&self, timestamp: Timestamp, each: &mut dyn FnMut(TimeWindow));

    /// What windows these are; must agree with [`assign`](Self::assign).
    fn kind(&self) -> WindowKind {
        WindowKind::Any
    }
}

/// What the windows of an assigner have in common, in ms. It decides how they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowKind {
    /// Nothing: each is kept for itself.
    Any,
    /// All are of one size and begin `slide` apart, at multiples of it plus `offset`.
    Aligned {
        /// From begin to end.
        size: i64,
        /// From begin to begin; at most `size`.
        slide: i64,
        /// From 0 to below `slide`.
        offset: i64,
    },
    /// Windows of a key that overlap or touch become one.
    Session {
        /// The length of a session with one record.
        gap: i64,
    },
}

/// A length in ms, at least 1.
fn millis(what: &str, duration: Duration) -> i64 {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    assert!(millis > 0, "a window's {what} must be at least 1 ms");
    millis
}

/// An offset in ms, as one from 0 to below `slide`.
fn offset_within(offset: Duration, slide: i64) -> i64 {
    i64::try_from(offset.as_millis()).unwrap_or(0) % slide
}

/// The last multiple of `step`, plus `offset`, that is not after `timestamp`. Time begins a little late for the very first one.
pub(super) fn floor(timestamp: Timestamp, step: i64, offset: i64) -> Timestamp {
    let mut since = timestamp.rem_euclid(step) - offset;
    if since < 0 {
        since += step;
    }
    timestamp.saturating_sub(since)
}

/// Windows of equal size that do not overlap.
#[derive(Debug, Clone, Copy)]
pub struct TumblingEventTimeWindows {
    size: i64,
    offset: i64,
}

impl TumblingEventTimeWindows {
    /// Windows of `size`, beginning at the epoch.
    ///
    /// # Panics
    /// When `size` is shorter than 1 ms: a job function's mistake, found when the job is built.
    #[must_use]
    pub fn of(size: Duration) -> Self {
        Self {
            size: millis("size", size),
            offset: 0,
        }
    }

    /// Moves the beginnings, e.g. for days of another time zone.
    #[must_use]
    pub fn with_offset(mut self, offset: Duration) -> Self {
        self.offset = offset_within(offset, self.size);
        self
    }
}

impl WindowAssigner for TumblingEventTimeWindows {
    fn assign(&self, timestamp: Timestamp, each: &mut dyn FnMut(TimeWindow)) {
        let start = floor(timestamp, self.size, self.offset);
        each(TimeWindow {
            start,
            end: start.saturating_add(self.size),
        });
    }

    fn kind(&self) -> WindowKind {
        WindowKind::Aligned {
            size: self.size,
            slide: self.size,
            offset: self.offset,
        }
    }
}

/// Windows of equal size that begin at equal distances and overlap.
///
/// ```
/// use std::time::Duration;
/// use perennial::operator::SlidingEventTimeWindows;
/// // The last minute, every 5 seconds.
/// let windows = SlidingEventTimeWindows::of(Duration::from_secs(60), Duration::from_secs(5));
/// # let _ = windows;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SlidingEventTimeWindows {
    size: i64,
    slide: i64,
    offset: i64,
}

impl SlidingEventTimeWindows {
    /// Windows of `size`, one every `slide`, beginning at the epoch. A record costs the same however many windows it lies in when
    /// `slide` divides `size`, or has a large divisor in common with it.
    ///
    /// # Panics
    /// When one of them is shorter than 1 ms, or `slide` longer than `size`, so that records would fall between the windows: a job
    /// function's mistakes, found when the job is built.
    #[must_use]
    pub fn of(size: Duration, slide: Duration) -> Self {
        let (size, slide) = (millis("size", size), millis("slide", slide));
        assert!(
            slide <= size,
            "windows of {size} ms every {slide} ms leave records out: filter them, or choose slide <= size"
        );
        Self {
            size,
            slide,
            offset: 0,
        }
    }

    /// Moves the beginnings.
    #[must_use]
    pub fn with_offset(mut self, offset: Duration) -> Self {
        self.offset = offset_within(offset, self.slide);
        self
    }
}

impl WindowAssigner for SlidingEventTimeWindows {
    fn assign(&self, timestamp: Timestamp, each: &mut dyn FnMut(TimeWindow)) {
        let mut start = floor(timestamp, self.slide, self.offset);
        loop {
            let end = start.saturating_add(self.size);
            if end <= timestamp {
                break;
            }
            each(TimeWindow { start, end });
            let Some(before) = start.checked_sub(self.slide) else {
                break;
            };
            start = before;
        }
    }

    fn kind(&self) -> WindowKind {
        WindowKind::Aligned {
            size: self.size,
            slide: self.slide,
            offset: self.offset,
        }
    }
}

/// Windows that last as long as records of the key keep coming, and end when none has come for a gap of event time.
#[derive(Debug, Clone, Copy)]
pub struct EventTimeSessionWindows {
    gap: i64,
}

impl EventTimeSessionWindows {
    /// Sessions that end `gap` after their last record. A record exactly `gap` after another still belongs to its session.
    ///
    /// # Panics
    /// When `gap` is shorter than 1 ms: a job function's mistake, found when the job is built.
    #[must_use]
    pub fn with_gap(gap: Duration) -> Self {
        Self {
            gap: millis("gap", gap),
        }
    }
}

impl WindowAssigner for EventTimeSessionWindows {
    fn assign(&self, timestamp: Timestamp, each: &mut dyn FnMut(TimeWindow)) {
        each(TimeWindow {
            start: timestamp,
            end: timestamp.saturating_add(self.gap),
        });
    }

    fn kind(&self) -> WindowKind {
        WindowKind::Session { gap: self.gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(assigner: &impl WindowAssigner, t: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let mut found = Vec::new();
        assigner.assign(t, &mut |w| found.push((w.start, w.end)));
        found
    }

    /// Table, with negative times and an offset.
    #[test]
    fn tumbling_windows_cover_every_time_once() {
        let ten = TumblingEventTimeWindows::of(Duration::from_millis(10));
        assert_eq!(windows(&ten, 0), [(0, 10)]);
        assert_eq!(windows(&ten, 9), [(0, 10)]);
        assert_eq!(windows(&ten, 10), [(10, 20)]);
        assert_eq!(windows(&ten, -1), [(-10, 0)]);
        let shifted = ten.with_offset(Duration::from_millis(3));
        assert_eq!(windows(&shifted, 2), [(-7, 3)]);
        assert_eq!(windows(&shifted, 3), [(3, 13)]);
        assert_eq!(windows(&shifted, -7), [(-7, 3)]);
        assert_eq!(windows(&shifted, -8), [(-17, -7)]);
        for assigner in [ten, shifted] {
            let first = windows(&assigner, Timestamp::MIN + 1)[0];
            assert!(first.0 <= Timestamp::MIN + 1 && Timestamp::MIN + 1 < first.1);
            let last = windows(&assigner, Timestamp::MAX - 1)[0];
            assert!(last.0 < Timestamp::MAX && Timestamp::MAX - 1 < last.1);
        }
    }

    /// Table: slide divides size, and does not.
    #[test]
    fn sliding_windows_cover_every_time_size_over_slide_times() {
        let of = |size, slide| {
            SlidingEventTimeWindows::of(Duration::from_millis(size), Duration::from_millis(slide))
        };
        assert_eq!(windows(&of(10, 5), 0), [(0, 10), (-5, 5)]);
        assert_eq!(windows(&of(10, 5), 14), [(10, 20), (5, 15)]);
        assert_eq!(windows(&of(10, 4), 1), [(0, 10), (-4, 6), (-8, 2)]);
        assert_eq!(windows(&of(10, 4), 2), [(0, 10), (-4, 6)]);
        assert_eq!(windows(&of(10, 10), 10), [(10, 20)]);
        let shifted = of(10, 5).with_offset(Duration::from_millis(7));
        assert_eq!(windows(&shifted, 1), [(-3, 7), (-8, 2)]);
        assert!(!windows(&of(10, 5), Timestamp::MIN + 1).is_empty());
        assert!(!windows(&of(10, 5), Timestamp::MAX - 1).is_empty());
    }

    #[test]
    #[should_panic(expected = "leave records out")]
    fn windows_with_gaps_between_them_are_refused() {
        let _ = SlidingEventTimeWindows::of(Duration::from_millis(5), Duration::from_millis(10));
    }
}
