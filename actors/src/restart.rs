//! Whether and when a job restarts after a failure, by one of Flink's four strategies. Pure: the caller owns clock, timer and dice.
//!
//! Invariant: under `strict` the counting is Flink's, failure by failure; otherwise all failures of one incident cost one attempt, in
//! every strategy. What counts as one incident is the caller's knowledge ([`Incident`]); which tasks restart is decided in `failover`.

use std::collections::VecDeque;
use std::time::Duration;

use perennial_config::{RestartSettings, RestartStrategy};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Instant};

/// Quiet time, from the planned restart, after which the attempts of fixed-delay come back (not under `strict`): the default of
/// exponential-delay's `reset-backoff-threshold`, since fixed-delay has no key of its own for it.
pub const FIXED_DELAY_RESET: Duration = Duration::from_secs(3600);

/// Whether a failure begins an incident or belongs to one that is being handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incident {
    /// The job was not failing over, or what failed was deployed by the last restart.
    New,
    /// The job is failing over already.
    Ongoing,
}

/// What the strategy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Restart, this long after the failure at the earliest.
    Restart {
        /// The wait that is left.
        delay: Duration,
    },
    /// The job fails; Flink says "Recovery is suppressed".
    Refused,
}

/// The answer to one failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartDecision {
    /// Whether it counts as a restart: a failure that is merged into an attempt does not.
    pub is_new_attempt: bool,
    /// What to do.
    pub verdict: Verdict,
}

/// What a strategy has used up, to be handed to another process: times are lengths before the moment of writing, because no clock is
/// compared with another's. The time until it is read again does not count, neither for nor against the job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackoffMemory {
    attempts: u32,
    /// Since the last planned restart; zero when that was still to come.
    quiet: Option<Duration>,
    /// Oldest first: how long ago each was.
    failures: Vec<Duration>,
}

/// The strategy of one job, with its memory.
#[derive(Debug, Clone)]
pub struct RestartBackoff {
    strategy: RestartStrategy,
    is_strict: bool,
    /// Attempts since the last reset.
    attempts: u32,
    /// When the last planned restart is or was due.
    planned: Option<Instant>,
    /// Failure-rate only: the last `max + 1` failures.
    failures: VecDeque<Instant>,
    last: Option<RestartDecision>,
}

impl RestartBackoff {
    /// Without any failure yet.
    #[must_use]
    pub fn new(settings: &RestartSettings) -> Self {
        Self {
            strategy: settings.strategy.clone(),
            is_strict: settings.is_strict,
            attempts: 0,
            planned: None,
            failures: VecDeque::new(),
            last: None,
        }
    }

    /// What is to be known by whoever decides next about this job.
    #[must_use]
    pub fn memory(&self, now: Instant) -> BackoffMemory {
        let ago = |at: &Instant| now.saturating_duration_since(*at);
        BackoffMemory {
            attempts: self.attempts,
            quiet: self.planned.as_ref().map(ago),
            failures: self.failures.iter().map(ago).collect(),
        }
    }

    /// Goes on where another left off. The next failure begins an incident of its own.
    pub fn recall(&mut self, memory: &BackoffMemory, now: Instant) {
        let at = |ago: &Duration| now.checked_sub(*ago).unwrap_or(now);
        self.attempts = memory.attempts;
        self.planned = memory.quiet.as_ref().map(at);
        self.failures = memory.failures.iter().map(at).collect();
        self.last = None;
    }

    /// When all that is remembered stops to count; `None`: there is nothing, or it counts for ever.
    #[must_use]
    pub fn forgets_at(&self) -> Option<Instant> {
        match self.strategy {
            RestartStrategy::None => None,
            RestartStrategy::FixedDelay { .. } if self.is_strict => None,
            RestartStrategy::FixedDelay { .. } => self.planned?.checked_add(FIXED_DELAY_RESET),
            RestartStrategy::FailureRate { interval, .. } => {
                self.failures.back()?.checked_add(interval)
            }
            RestartStrategy::ExponentialDelay {
                reset_threshold, ..
            } => self.planned?.checked_add(reset_threshold),
        }
    }

    /// Decides about one failure. `dice` gives numbers in [0, 1).
    pub fn on_failure(
        &mut self,
        now: Instant,
        incident: Incident,
        dice: impl FnOnce() -> f64,
    ) -> RestartDecision {
        let decision = match (self.is_strict, incident, self.last) {
            (false, Incident::Ongoing, Some(last)) => self.merged(now, last.verdict),
            (true, _, _) | (_, Incident::New, _) | (_, _, None) => self.count(now, dice),
        };
        self.last = Some(decision);
        decision
    }

    /// A failure of an incident that has its verdict already: only the wait shrinks.
    fn merged(&self, now: Instant, verdict: Verdict) -> RestartDecision {
        RestartDecision {
            is_new_attempt: false,
            verdict: match verdict {
                Verdict::Refused => Verdict::Refused,
                Verdict::Restart { .. } => Verdict::Restart {
                    delay: self
                        .planned
                        .map_or(Duration::ZERO, |at| at.saturating_duration_since(now)),
                },
            },
        }
    }

    fn count(&mut self, now: Instant, dice: impl FnOnce() -> f64) -> RestartDecision {
        match self.strategy {
            RestartStrategy::None => RestartDecision {
                is_new_attempt: true,
                verdict: Verdict::Refused,
            },
            RestartStrategy::FixedDelay { attempts, delay } => {
                if !self.is_strict && self.is_quiet_for(now, FIXED_DELAY_RESET) {
                    self.attempts = 0;
                }
                self.attempts = self.attempts.saturating_add(1);
                self.plan(now, delay, self.attempts <= attempts)
            }
            RestartStrategy::FailureRate {
                max_failures_per_interval,
                interval,
                delay,
            } => {
                let kept = max_failures_per_interval as usize + 1;
                while self.failures.len() >= kept {
                    self.failures.pop_front();
                }
                self.failures.push_back(now);
                self.attempts = self.attempts.saturating_add(1);
                let is_too_often = self.failures.len() >= kept
                    && self
                        .failures
                        .front()
                        .is_some_and(|oldest| now.saturating_duration_since(*oldest) <= interval);
                self.plan(now, delay, !is_too_often)
            }
            RestartStrategy::ExponentialDelay {
                initial_backoff,
                max_backoff,
                multiplier,
                reset_threshold,
                jitter_factor,
                attempts_before_reset,
            } => {
                // Flink's own merging, strict or not: inside the wait nothing is counted.
                if let (Some(planned), Some(last)) = (self.planned, self.last)
                    && now <= planned
                {
                    return self.merged(now, last.verdict);
                }
                if self.is_quiet_for(now, reset_threshold) {
                    self.attempts = 0;
                }
                let delay = exponential_delay(
                    self.attempts,
                    (initial_backoff, max_backoff),
                    multiplier,
                    jitter_factor,
                    dice(),
                );
                self.attempts = self.attempts.saturating_add(1);
                let is_allowed = attempts_before_reset.is_none_or(|most| self.attempts <= most);
                self.plan(now, delay, is_allowed)
            }
        }
    }

    /// Measured from the planned restart, not from when the job ran again; so does Flink.
    fn is_quiet_for(&self, now: Instant, threshold: Duration) -> bool {
        self.planned
            .is_some_and(|planned| now >= planned && now - planned >= threshold)
    }

    fn plan(&mut self, now: Instant, delay: Duration, is_allowed: bool) -> RestartDecision {
        self.planned = now.checked_add(delay);
        RestartDecision {
            is_new_attempt: true,
            verdict: if is_allowed {
                Verdict::Restart { delay }
            } else {
                Verdict::Refused
            },
        }
    }

    /// The last decision in words: "exponential-delay: attempt 4, in 13.2 s, resets at 14:05". Times of day are UTC.
    #[must_use]
    pub fn describe(&self, now: Instant, clock: &Clock) -> String {
        let name = match self.strategy {
            RestartStrategy::None => "none",
            RestartStrategy::FixedDelay { .. } => "fixed-delay",
            RestartStrategy::FailureRate { .. } => "failure-rate",
            RestartStrategy::ExponentialDelay { .. } => "exponential-delay",
        };
        let Some(last) = self.last else {
            return format!("{name}: no failure yet");
        };
        let limit = match self.strategy {
            RestartStrategy::None => return format!("{name}: never restarts"),
            RestartStrategy::FixedDelay { attempts, .. } => Some(attempts),
            RestartStrategy::ExponentialDelay {
                attempts_before_reset,
                ..
            } => attempts_before_reset,
            RestartStrategy::FailureRate {
                max_failures_per_interval,
                interval,
                ..
            } => {
                if last.verdict == Verdict::Refused {
                    return format!(
                        "{name}: more than {max_failures_per_interval} failures in {:.1} s: no restart",
                        interval.as_secs_f64()
                    );
                }
                None
            }
        };
        let attempt = match limit {
            Some(limit) => format!("attempt {} of {limit}", self.attempts),
            None => format!("attempt {}", self.attempts),
        };
        match last.verdict {
            Verdict::Refused => format!(
                "{name}: {} attempts used up: no restart",
                limit.unwrap_or(self.attempts)
            ),
            Verdict::Restart { delay } => {
                let reset = match (&self.strategy, self.is_strict) {
                    (RestartStrategy::FixedDelay { .. }, false) => Some(FIXED_DELAY_RESET),
                    (
                        RestartStrategy::ExponentialDelay {
                            reset_threshold, ..
                        },
                        _,
                    ) => Some(*reset_threshold),
                    _ => None,
                };
                let left = self
                    .planned
                    .map_or(delay, |at| at.saturating_duration_since(now));
                let resets = reset
                    .zip(self.planned)
                    .and_then(|(after, planned)| planned.checked_add(after))
                    .map(|at| format!(", resets at {}", time_of_day(clock.wall_ms_at(at))))
                    .unwrap_or_default();
                format!("{name}: {attempt}, in {:.1} s{resets}", left.as_secs_f64())
            }
        }
    }
}

/// The delay before restart number `n` (from 0): clamped growth, then jitter, then clamped again, as in Flink.
fn exponential_delay(
    n: u32,
    (initial, max): (Duration, Duration),
    multiplier: f64,
    jitter_factor: f64,
    dice: f64,
) -> Duration {
    let (initial_ms, max_ms) = (initial.as_millis() as f64, max.as_millis() as f64);
    // Clamped before it is used: a power overflows to infinity after some thousand attempts.
    let base = (initial_ms * multiplier.powi(n.min(i32::MAX as u32) as i32))
        .min(max_ms)
        .floor();
    let width = (base * jitter_factor).floor();
    let jitter = (dice * (2.0 * width + 1.0)).floor() - width;
    let millis = (base + jitter).min(max_ms).max(initial_ms);
    Duration::from_millis(millis as u64)
}

/// `14:05` of a time since the epoch, UTC.
fn time_of_day(wall_ms: u64) -> String {
    let minutes = wall_ms / 60_000 % (24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn exponential(
        initial: Duration,
        max: Duration,
        multiplier: f64,
        jitter: f64,
    ) -> RestartStrategy {
        RestartStrategy::ExponentialDelay {
            initial_backoff: initial,
            max_backoff: max,
            multiplier,
            reset_threshold: 3600 * S,
            jitter_factor: jitter,
            attempts_before_reset: None,
        }
    }

    fn backoff(strategy: RestartStrategy, is_strict: bool) -> RestartBackoff {
        RestartBackoff::new(&RestartSettings {
            strategy,
            is_strict,
        })
    }

    fn delay(decision: RestartDecision) -> Option<Duration> {
        match decision.verdict {
            Verdict::Restart { delay } => Some(delay),
            Verdict::Refused => None,
        }
    }

    /// Fails again 1 ms after each planned restart and returns the delays in ms.
    fn delays(strategy: RestartStrategy, is_strict: bool, count: usize) -> Vec<Option<u64>> {
        let mut backoff = backoff(strategy, is_strict);
        let mut now = Clock::system().now();
        (0..count)
            .map(|_| {
                let delay = delay(backoff.on_failure(now, Incident::New, || 0.5));
                now += delay.unwrap_or_default() + Duration::from_millis(1);
                delay.map(|d| d.as_millis() as u64)
            })
            .collect()
    }

    /// Those of Flink's `ExponentialDelayRestartBackoffTimeStrategy`, jitter 0, strict or not.
    #[test]
    fn exponential_delays_are_those_of_flink() {
        for is_strict in [false, true] {
            assert_eq!(
                delays(exponential(10 * S, 120 * S, 2.0, 0.0), is_strict, 6),
                [10, 20, 40, 80, 120, 120].map(|s| Some(s * 1000))
            );
            assert_eq!(
                delays(exponential(S, 60 * S, 1.5, 0.0), is_strict, 4),
                [1000, 1500, 2250, 3375].map(Some)
            );
        }
    }

    #[test]
    fn exponential_delay_survives_any_number_of_attempts() {
        for n in [100, 10_000, u32::MAX] {
            let delay = exponential_delay(n, (S, 60 * S), 1.5, 0.1, 0.5);
            assert_eq!(delay, 60 * S, "attempt {n}");
        }
    }

    /// As Flink's exponential-delay: failures up to the planned restart are one attempt, and the wait counts down.
    #[test]
    fn forty_one_failures_inside_one_wait_are_one_attempt() {
        for is_strict in [false, true] {
            let mut backoff = backoff(exponential(10 * S, 120 * S, 2.0, 0.0), is_strict);
            let start = Clock::system().now();
            let mut attempts = 0;
            for i in 0..41 {
                let now = start + Duration::from_millis(i * 250);
                let decision = backoff.on_failure(now, Incident::New, || 0.0);
                attempts += u32::from(decision.is_new_attempt);
                assert_eq!(
                    delay(decision),
                    Some(Duration::from_millis(10_000 - i * 250))
                );
            }
            assert_eq!(attempts, 1);
            // The restart is due at exactly 10 s; just after it the next attempt begins.
            let decision = backoff.on_failure(
                start + 10 * S + Duration::from_millis(1),
                Incident::New,
                || 0.0,
            );
            assert!(decision.is_new_attempt);
            assert_eq!(delay(decision), Some(20 * S));
        }
    }

    /// As Flink's exponential-delay: the 11th separate failure is final when 10 attempts are allowed.
    #[test]
    fn attempts_before_reset_bound_separate_failures() {
        let RestartStrategy::ExponentialDelay { .. } = exponential(S, S, 2.0, 0.0) else {
            panic!("built above");
        };
        let strategy = RestartStrategy::ExponentialDelay {
            initial_backoff: S,
            max_backoff: S,
            multiplier: 2.0,
            reset_threshold: 3600 * S,
            jitter_factor: 0.0,
            attempts_before_reset: Some(10),
        };
        let delays = delays(strategy, false, 11);
        assert!(delays[..10].iter().all(Option::is_some));
        assert_eq!(delays[10], None);
    }

    /// As Flink's exponential-delay: the clamp cuts downward jitter of the first delay and upward jitter of the last.
    #[test]
    fn jitter_stays_between_the_first_and_the_largest_delay() {
        for dice in [0.0, 0.25, 0.5, 0.75, 0.999_999] {
            let first = exponential_delay(0, (10 * S, 120 * S), 2.0, 0.1, dice);
            assert!((10 * S..=11 * S).contains(&first), "{first:?}");
            let second = exponential_delay(1, (10 * S, 120 * S), 2.0, 0.1, dice);
            assert!((18 * S..=22 * S).contains(&second), "{second:?}");
            let last = exponential_delay(9, (10 * S, 120 * S), 2.0, 0.1, dice);
            assert!((108 * S..=120 * S).contains(&last), "{last:?}");
        }
        assert_eq!(
            exponential_delay(1, (10 * S, 120 * S), 2.0, 0.1, 0.0),
            18 * S
        );
    }

    /// As Flink's exponential-delay: stability is measured from the planned restart time.
    #[test]
    fn exponential_delay_resets_after_a_quiet_threshold_from_the_planned_restart() {
        let mut backoff = backoff(exponential(10 * S, 120 * S, 2.0, 0.0), true);
        let start = Clock::system().now();
        backoff.on_failure(start, Incident::New, || 0.0);
        let just_before = start + 10 * S + 3600 * S - Duration::from_millis(1);
        let mut early = backoff.clone();
        assert_eq!(
            delay(early.on_failure(just_before, Incident::New, || 0.0)),
            Some(20 * S)
        );
        assert_eq!(
            delay(backoff.on_failure(start + 10 * S + 3600 * S, Incident::New, || 0.0)),
            Some(10 * S)
        );
    }

    /// As Flink's fixed-delay: each failure counts, also inside one incident, and nothing comes back.
    #[test]
    fn strict_fixed_delay_counts_every_failure_for_life() {
        let mut backoff = backoff(
            RestartStrategy::FixedDelay {
                attempts: 3,
                delay: 10 * S,
            },
            true,
        );
        let mut now = Clock::system().now();
        for incident in [Incident::New, Incident::Ongoing, Incident::Ongoing] {
            assert_eq!(
                delay(backoff.on_failure(now, incident, || 0.0)),
                Some(10 * S)
            );
        }
        now += 1_000_000 * S;
        assert_eq!(delay(backoff.on_failure(now, Incident::New, || 0.0)), None);
    }

    #[test]
    fn fixed_delay_counts_one_incident_once_and_gives_attempts_back_after_quiet() {
        let mut backoff = backoff(
            RestartStrategy::FixedDelay {
                attempts: 1,
                delay: 10 * S,
            },
            false,
        );
        let start = Clock::system().now();
        assert!(
            backoff
                .on_failure(start, Incident::New, || 0.0)
                .is_new_attempt
        );
        let merged = backoff.on_failure(start + 4 * S, Incident::Ongoing, || 0.0);
        assert!(!merged.is_new_attempt);
        assert_eq!(delay(merged), Some(6 * S));
        let mut soon = backoff.clone();
        assert_eq!(
            delay(soon.on_failure(start + 60 * S, Incident::New, || 0.0)),
            None
        );
        let later = start + 10 * S + FIXED_DELAY_RESET;
        assert_eq!(
            delay(backoff.on_failure(later, Incident::New, || 0.0)),
            Some(10 * S)
        );
    }

    /// As Flink's failure-rate: a queue of max + 1 timestamps; the oldest must be older than the interval.
    #[test]
    fn failure_rate_refuses_more_than_the_maximum_within_the_interval() {
        let strategy = RestartStrategy::FailureRate {
            max_failures_per_interval: 2,
            interval: 60 * S,
            delay: S,
        };
        let start = Clock::system().now();
        let verdicts = |times: &[u64]| {
            let mut backoff = backoff(strategy.clone(), false);
            times
                .iter()
                .map(|t| {
                    delay(backoff.on_failure(start + *t as u32 * S, Incident::New, || 0.0))
                        .is_some()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(verdicts(&[0, 30, 59]), [true, true, false]);
        assert_eq!(verdicts(&[0, 30, 60]), [true, true, false]);
        assert_eq!(verdicts(&[0, 30, 61, 80]), [true, true, true, false]);
        assert_eq!(verdicts(&[0, 30, 61, 92]), [true; 4]);
    }

    #[test]
    fn none_never_restarts() {
        assert_eq!(delays(RestartStrategy::None, false, 1), [None]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_plan_is_told_in_words() {
        let clock = Clock::starting_at(Duration::from_secs(13 * 3600 + 5 * 60));
        let mut exponential = backoff(exponential(10 * S, 120 * S, 1.32, 0.0), false);
        let now = clock.now();
        assert_eq!(
            exponential.describe(now, &clock),
            "exponential-delay: no failure yet"
        );
        exponential.on_failure(now, Incident::New, || 0.0);
        let now = now + 11 * S;
        exponential.on_failure(now, Incident::New, || 0.0);
        assert_eq!(
            exponential.describe(now, &clock),
            "exponential-delay: attempt 2, in 13.2 s, resets at 14:05"
        );
        let mut fixed = backoff(
            RestartStrategy::FixedDelay {
                attempts: 0,
                delay: S,
            },
            true,
        );
        fixed.on_failure(now, Incident::New, || 0.0);
        assert_eq!(
            fixed.describe(now, &clock),
            "fixed-delay: 0 attempts used up: no restart"
        );
    }

    /// Each row: a strategy that allows two failures, and how long it takes until it has forgotten them.
    #[test]
    fn what_was_used_up_is_handed_on_and_time_between_two_processes_counts_for_nothing() {
        let fixed = RestartStrategy::FixedDelay {
            attempts: 2,
            delay: S,
        };
        let rate = RestartStrategy::FailureRate {
            max_failures_per_interval: 2,
            interval: 60 * S,
            delay: S,
        };
        let RestartStrategy::ExponentialDelay {
            initial_backoff, ..
        } = exponential(S, S, 2.0, 0.0)
        else {
            panic!("built above");
        };
        let growing = RestartStrategy::ExponentialDelay {
            initial_backoff,
            max_backoff: S,
            multiplier: 2.0,
            reset_threshold: 100 * S,
            jitter_factor: 0.0,
            attempts_before_reset: Some(2),
        };
        for (strategy, forgets_after) in [
            (fixed, FIXED_DELAY_RESET),
            (rate, 60 * S),
            (growing, 100 * S),
        ] {
            let start = Clock::system().now() + 1_000_000 * S;
            let mut first = backoff(strategy.clone(), false);
            assert_eq!(first.forgets_at(), None);
            for n in 0..2 {
                let failed = first.on_failure(start + 5 * n * S, Incident::New, || 0.0);
                assert!(delay(failed).is_some(), "{strategy:?}");
            }
            let forgets = first.forgets_at().unwrap();
            assert!(forgets >= start + forgets_after, "{strategy:?}");
            // Another process, much later: its clock has nothing to do with ours.
            for (written, is_final) in [(start + 6 * S, true), (forgets + S, false)] {
                let now = start + 777_777 * S;
                let mut next = backoff(strategy.clone(), false);
                next.recall(&first.memory(written), now);
                let failed = next.on_failure(now + S / 2, Incident::New, || 0.0);
                assert_eq!(delay(failed).is_none(), is_final, "{strategy:?}");
            }
        }
    }
}
