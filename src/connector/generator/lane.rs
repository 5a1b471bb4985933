//! A lane's position and schedule. Pure: the caller owns the clock.

use std::time::Duration;

use perennial_actors::clock::Instant;

use super::CATCH_UP_MAX;
use crate::batch::Timestamp;

/// Longest wait that a paced reader asks for, however low the rate.
const WAIT_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) lane: u32,
    pub(super) lanes: u32,
    /// The next record.
    pub(super) index: u64,
    /// Number of records in all.
    pub(super) count: u64,
    /// How many of them are not paced.
    pub(super) prefill: u64,
    /// Kept for the runtime, which owns it.
    pub(super) watermark: Option<Timestamp>,
    /// Begins with the first paced record.
    pub(super) pace: Option<Pace>,
}

/// The schedule of a lane: record `base + ahead + n` is due `(n + 1) / rate` after `from`; those before it at once. Kept as
/// a line and not as a sum of steps, so that it does not depend on when polls happen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    from: Instant,
    base: u64,
    ahead: u64,
}

impl Lane {
    pub(super) fn is_done(&self) -> bool {
        self.index >= self.count
    }

    /// How many records are due.
    pub(super) fn due(&mut self, rate: Option<f64>, now: Instant) -> u64 {
        let Some(rate) = rate else { return u64::MAX };
        let index = self.index;
        if index < self.prefill {
            return self.prefill - index;
        }
        let pace = self.pace.get_or_insert(Pace {
            from: now,
            base: index,
            ahead: 1,
        });
        let elapsed = now.saturating_duration_since(pace.from).as_secs_f64();
        let scheduled = pace
            .base
            .saturating_add(pace.ahead)
            .saturating_add((elapsed * rate) as u64);
        let due = scheduled.saturating_sub(index);
        let burst = ((CATCH_UP_MAX.as_secs_f64() * rate) as u64).max(1);
        if due > burst {
            *pace = Pace {
                from: now,
                base: index,
                ahead: burst,
            };
            return burst;
        }
        due
    }

    /// When the next record is due; only after [`Lane::due`] said none is.
    pub(super) fn next_due(&self, rate: f64) -> Option<Instant> {
        let pace = self.pace?;
        let steps = self.index.saturating_sub(pace.base + pace.ahead) + 1;
        let wait = Duration::try_from_secs_f64(steps as f64 / rate).unwrap_or(WAIT_MAX);
        Some(pace.from + wait.min(WAIT_MAX) + Duration::from_nanos(1))
    }
}

pub(super) fn id(lane: u32) -> String {
    format!("lane-{lane}")
}
