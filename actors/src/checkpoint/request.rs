//! Which snapshot is begun next, and when (Flink's `CheckpointRequestDecider`). Pure: the caller owns the timer.
//!
//! Savepoints go before the final checkpoint, that one before periodic ones; the first two are forced, that is they wait for nothing
//! but for each other. The periodic timer keeps its own grid; a tick within the minimum pause moves to the pause's end and the grid
//! goes on from there. At most one periodic request exists at a time, so only what people ask for can queue.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::CheckpointFailureReason;

/// Savepoint requests that may wait.
pub const REQUESTS_MAX: usize = 1000;
/// How soon after all tasks run the first checkpoint is taken at the latest.
pub const FIRST_CHECKPOINT_DELAY: Duration = Duration::from_millis(200);

/// What to begin now.
#[derive(Debug, PartialEq, Eq)]
pub enum Begin<S> {
    /// A savepoint that somebody waits for.
    Savepoint(S),
    /// The final checkpoint.
    Final,
    /// A periodic one.
    Periodic,
}

/// What is going on, as far as the decision needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Snapshots that are not done.
    pub pending: u32,
    /// Completed checkpoints that wait to be deleted.
    pub undeleted: u32,
    /// Whether the sequence of records lags so far behind that nothing may be added.
    pub is_sequence_full: bool,
    /// Whether a snapshot is under way after which the tasks end.
    pub is_stopping: bool,
}

/// See the module.
#[derive(Debug)]
pub struct RequestQueue<S> {
    interval: Option<Duration>,
    min_pause: Duration,
    max_concurrent: u32,
    savepoints: VecDeque<S>,
    is_running: bool,
    /// When the next periodic one is due.
    next_periodic: Option<Instant>,
    /// When the final one is due, once every task waits for it.
    next_final: Option<Instant>,
    last_completion: Option<Instant>,
}

impl<S> RequestQueue<S> {
    /// With `interval`, `min-pause` and `max-concurrent-checkpoints`.
    #[must_use]
    pub fn new(interval: Option<Duration>, min_pause: Duration, max_concurrent: u32) -> Self {
        Self {
            // A zero interval would trigger without end.
            interval: interval.map(|i| i.max(Duration::from_millis(1))),
            min_pause,
            max_concurrent: max_concurrent.max(1),
            savepoints: VecDeque::new(),
            is_running: false,
            next_periodic: None,
            next_final: None,
            last_completion: None,
        }
    }

    /// All tasks run. The pause of the time before does not hold: the first checkpoint bounds what the next failure repeats.
    pub fn start(&mut self, now: Instant) {
        self.is_running = true;
        self.last_completion = None;
        self.next_final = None;
        self.next_periodic = self.interval.map(|i| now + i.min(FIRST_CHECKPOINT_DELAY));
    }

    /// Tasks stop: what was asked for is handed back to be refused.
    pub fn stop(&mut self) -> Vec<S> {
        self.is_running = false;
        self.next_periodic = None;
        self.next_final = None;
        self.savepoints.drain(..).collect()
    }

    /// Somebody asks for a savepoint; handed back with the reason when it is refused.
    pub fn savepoint(&mut self, request: S) -> Result<(), (S, CheckpointFailureReason)> {
        if !self.is_running {
            return Err((request, CheckpointFailureReason::NotAllTasksRunning));
        }
        if self.savepoints.len() >= REQUESTS_MAX {
            return Err((request, CheckpointFailureReason::TooManyRequests));
        }
        self.savepoints.push_back(request);
        Ok(())
    }

    /// Sources are about to end although there is input left: no periodic one begins until tasks run anew.
    pub fn hold(&mut self) {
        self.next_periodic = None;
    }

    /// Whether what was asked for has begun.
    #[must_use]
    pub fn has_no_savepoints(&self) -> bool {
        self.savepoints.is_empty()
    }

    /// Every task waits for the final checkpoint.
    pub fn final_checkpoint(&mut self, now: Instant) {
        if self.is_running {
            self.next_final = Some(now);
            self.next_periodic = None;
        }
    }

    /// A checkpoint (not a savepoint: those leave the pause alone) has completed.
    pub fn completed(&mut self, now: Instant) {
        self.last_completion = Some(now);
    }

    /// The final checkpoint failed: try again after a pause.
    pub fn final_failed(&mut self, now: Instant) {
        if self.is_running {
            self.next_final = Some(now + self.min_pause.max(FIRST_CHECKPOINT_DELAY));
        }
    }

    /// What to begin now, if anything. Call until `None`.
    pub fn next(&mut self, now: Instant, load: Load) -> Option<Begin<S>> {
        if !self.is_running || load.is_sequence_full || load.is_stopping {
            return None;
        }
        if let Some(savepoint) = self.savepoints.pop_front() {
            return Some(Begin::Savepoint(savepoint));
        }
        if self.next_final.is_some_and(|at| at <= now) {
            self.next_final = None;
            return Some(Begin::Final);
        }
        let due = self.next_periodic.filter(|at| *at <= now)?;
        if let Some(end) = self.pause_end().filter(|end| *end > now) {
            self.next_periodic = Some(end);
            return None;
        }
        // Else what is completed piles up where deletions are slower than checkpoints.
        if load.pending >= self.max_concurrent || load.undeleted > self.max_concurrent {
            return None; // Stays due; begins as soon as one ends or is deleted.
        }
        self.next_periodic = self.interval.map(|interval| {
            // The grid goes on from where it was due; ticks that were missed are not made up for.
            let missed = now.duration_since(due).as_nanos() / interval.as_nanos();
            let steps = u32::try_from(missed).unwrap_or(u32::MAX).saturating_add(1);
            due + interval.saturating_mul(steps)
        });
        Some(Begin::Periodic)
    }

    fn pause_end(&self) -> Option<Instant> {
        self.last_completion.map(|at| at + self.min_pause)
    }

    /// When to ask again, if nothing else happens before.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let periodic = self.next_periodic.map(|due| {
            let due = due.max(self.pause_end().unwrap_or(due));
            (due > now).then_some(due)
        });
        [periodic.flatten(), self.next_final.filter(|at| *at > now)]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load {
        pending: 0,
        undeleted: 0,
        is_sequence_full: false,
        is_stopping: false,
    };

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_one_comes_soon_and_then_the_grid_holds() {
        let t = Instant::now();
        let mut q = RequestQueue::<u8>::new(Some(seconds(10)), Duration::ZERO, 1);
        assert_eq!(q.next(t, IDLE), None, "not before tasks run");
        q.start(t);
        assert_eq!(q.next(t, IDLE), None);
        let first = t + FIRST_CHECKPOINT_DELAY;
        assert_eq!(q.wake_at(t), Some(first));
        assert_eq!(q.next(first, IDLE), Some(Begin::Periodic));
        // Late by 3 s: the next one is due where it would have been.
        assert_eq!(q.wake_at(first), Some(first + seconds(10)));
        assert_eq!(q.next(first + seconds(13), IDLE), Some(Begin::Periodic));
        assert_eq!(q.wake_at(first + seconds(13)), Some(first + seconds(20)));
        // Late by three ticks: one is taken, not three.
        assert_eq!(q.next(first + seconds(51), IDLE), Some(Begin::Periodic));
        assert_eq!(q.next(first + seconds(51), IDLE), None);
        assert_eq!(q.wake_at(first + seconds(51)), Some(first + seconds(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_minimum_pause_moves_periodic_ones_and_no_savepoint() {
        let t = Instant::now();
        let mut q = RequestQueue::new(Some(seconds(1)), seconds(5), 1);
        q.start(t);
        assert_eq!(q.next(t + seconds(1), IDLE), Some(Begin::Periodic));
        q.completed(t + seconds(2));
        assert_eq!(q.next(t + seconds(3), IDLE), None);
        assert_eq!(q.wake_at(t + seconds(3)), Some(t + seconds(7)));
        q.savepoint("s").unwrap();
        assert_eq!(q.next(t + seconds(3), IDLE), Some(Begin::Savepoint("s")));
        assert_eq!(q.next(t + seconds(7), IDLE), Some(Begin::Periodic));
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_max_concurrent_run_and_forced_ones_do_not_wait() {
        let t = Instant::now();
        let mut q = RequestQueue::new(Some(seconds(1)), Duration::ZERO, 2);
        q.start(t);
        let busy = Load { pending: 2, ..IDLE };
        assert_eq!(q.next(t + seconds(1), busy), None);
        q.savepoint(1).unwrap();
        assert_eq!(q.next(t + seconds(1), busy), Some(Begin::Savepoint(1)));
        let one = Load { pending: 1, ..IDLE };
        assert_eq!(q.next(t + seconds(1), one), Some(Begin::Periodic));
        q.final_checkpoint(t + seconds(1));
        q.savepoint(2).unwrap();
        assert_eq!(
            q.next(t + seconds(1), busy),
            Some(Begin::Savepoint(2)),
            "savepoints first"
        );
        assert_eq!(q.next(t + seconds(1), busy), Some(Begin::Final));
        assert_eq!(
            q.next(t + seconds(99), IDLE),
            None,
            "nothing after the final one"
        );
        q.final_failed(t + seconds(99));
        assert_eq!(
            q.next(t + seconds(100), IDLE),
            Some(Begin::Final),
            "unless it failed"
        );
    }

    /// As in Flink: else what waits for deletion would grow without a bound.
    #[tokio::test(start_paused = true)]
    async fn periodic_ones_wait_for_the_deletion_of_old_ones_and_forced_ones_do_not() {
        let t = Instant::now();
        let mut q = RequestQueue::new(Some(seconds(1)), Duration::ZERO, 2);
        q.start(t);
        let load = |undeleted| Load { undeleted, ..IDLE };
        assert_eq!(q.next(t + seconds(1), load(3)), None);
        q.savepoint(1).unwrap();
        assert_eq!(q.next(t + seconds(1), load(3)), Some(Begin::Savepoint(1)));
        assert_eq!(q.next(t + seconds(1), load(2)), Some(Begin::Periodic));
        q.final_checkpoint(t + seconds(1));
        assert_eq!(q.next(t + seconds(1), load(3)), Some(Begin::Final));
    }

    #[tokio::test(start_paused = true)]
    async fn no_periodic_one_begins_once_it_holds() {
        let t = Instant::now();
        let mut q = RequestQueue::new(Some(seconds(1)), Duration::ZERO, 2);
        q.start(t);
        q.savepoint(1).unwrap();
        q.hold();
        assert!(!q.has_no_savepoints());
        assert_eq!(q.next(t + seconds(9), IDLE), Some(Begin::Savepoint(1)));
        assert_eq!(q.next(t + seconds(9), IDLE), None);
        assert!(q.has_no_savepoints());
        q.final_checkpoint(t + seconds(9));
        assert_eq!(q.next(t + seconds(9), IDLE), Some(Begin::Final));
        q.start(t + seconds(9));
        assert_eq!(q.next(t + seconds(10), IDLE), Some(Begin::Periodic));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_while_the_sequence_is_full_or_the_job_stops() {
        let t = Instant::now();
        let mut q = RequestQueue::new(Some(seconds(1)), Duration::ZERO, 2);
        q.start(t);
        q.savepoint(1).unwrap();
        for load in [
            Load {
                is_sequence_full: true,
                ..IDLE
            },
            Load {
                is_stopping: true,
                ..IDLE
            },
        ] {
            assert_eq!(q.next(t + seconds(9), load), None);
        }
        assert_eq!(q.stop(), [1]);
        assert!(matches!(
            q.savepoint(2),
            Err((2, CheckpointFailureReason::NotAllTasksRunning))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded() {
        let mut q = RequestQueue::new(None, Duration::ZERO, 1);
        q.start(Instant::now());
        for i in 0..REQUESTS_MAX {
            q.savepoint(i).unwrap();
        }
        assert!(matches!(
            q.savepoint(0),
            Err((_, CheckpointFailureReason::TooManyRequests))
        ));
    }
}
