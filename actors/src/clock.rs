//! The one source of time. Deadlines are [`Instant`]s of tokio, so that tests and the simulator run under a paused clock;
//! wall-clock time is shown to people and drives processing-time timers, and never decides about failures.

use std::time::Duration;

pub use tokio::time::Instant;

/// A clock whose wall time cannot jump: it advances with the monotonic clock from where it began.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    origin_wall: Duration,
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
        (self.origin_wall + now.saturating_duration_since(self.origin)).as_millis() as u64
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.wall_ms_at(self.now())
    }
}
