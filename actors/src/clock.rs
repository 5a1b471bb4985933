//! The one source of time. Deadlines are [`Instant`]s of tokio, so that tests and the simulator run under a paused clock;
//! wall-clock time is shown to people and drives processing-time timers, and never decides about failures.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

pub use tokio::time::Instant;

/// A clock whose wall time does not jump by itself: it advances with the monotonic clock from where it began.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    origin_wall: Duration,
    /// By how much the wall time was set off, in ms, where it may be.
    offset: Option<&'static AtomicI64>,
}

impl Clock {
    /// Begins at the machine's wall-clock time.
    #[must_use]
    pub fn system() -> Self {
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self::starting_at(wall)
    }

    /// Begins at a given time since the epoch; for simulations, in which two runs must see the same times.
    #[must_use]
    pub fn starting_at(wall: Duration) -> Self {
        Self {
            origin: Instant::now(),
            origin_wall: wall,
            offset: None,
        }
    }

    /// The same clock, whose wall time can be set off by [`jump`](Self::jump): that of a node on which faults may be injected.
    ///
    /// A few bytes stay allocated for ever, once per such node; in return a clock is copied like a number.
    #[must_use]
    pub fn adjustable(self) -> Self {
        Self {
            offset: Some(Box::leak(Box::default())),
            ..self
        }
    }

    /// Sets the wall time of this clock and all its copies off by so many milliseconds more. Returns whether it can be.
    pub fn jump(&self, millis: i64) -> bool {
        match self.offset {
            Some(offset) => {
                offset.fetch_add(millis, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    /// Monotonic now.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Milliseconds since the epoch at a given instant.
    #[must_use]
    pub fn wall_ms_at(&self, now: Instant) -> u64 {
        let wall = (self.origin_wall + now.saturating_duration_since(self.origin)).as_millis();
        let offset = self.offset.map_or(0, |o| o.load(Ordering::Relaxed));
        (wall as u64).saturating_add_signed(offset)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.wall_ms_at(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A jump is seen by all copies of a clock, by no other, and not by the monotonic time.
    #[tokio::test(start_paused = true)]
    async fn only_the_wall_time_of_an_adjustable_clock_jumps() {
        let fixed = Clock::starting_at(Duration::from_secs(100));
        let (clock, other) = (fixed.adjustable(), fixed.adjustable());
        let (copy, before) = (clock, clock.now());
        assert!(!fixed.jump(-5) && clock.jump(3_600_000));
        assert_eq!(copy.wall_ms(), 100_000 + 3_600_000);
        assert_eq!((fixed.wall_ms(), other.wall_ms()), (100_000, 100_000));
        assert_eq!(clock.now(), before);
        assert!(clock.jump(-86_400_000));
        assert_eq!(copy.wall_ms(), 0, "not before the epoch");
    }
}
