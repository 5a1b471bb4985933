//! The one retry helper: bounded attempts, clamped exponential delays with full jitter, an overall deadline, and a trace of
//! every attempt in the error.
//!
//! Invariant: an error marked [`Attempt::Final`] is never retried, and no attempt begins after the deadline.
//!
//! The crate `backoff` computes the growing interval and nothing else, behind `interval_after`: it is unmaintained
//! (RUSTSEC-2025-0012) and draws from thread-local dice, so its randomisation is 0 and the jitter comes from our own [`Entropy`],
//! which keeps a simulation reproducible.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::SystemClock;
use backoff::backoff::Backoff;
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;

/// Attempts whose messages an error shows: the first ones and the last.
const TRACED_ATTEMPTS_MAX: usize = 8;
/// Characters of one attempt's message.
const TRACED_MESSAGE_MAX: usize = 300;

/// The limits of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// With the first one; 0 counts as 1.
    pub attempts_max: u32,
    /// Upper bound of the first delay.
    pub initial_delay: Duration,
    /// Upper bound of every delay.
    pub delay_max: Duration,
    /// Of the whole operation: no attempt begins later. An attempt bounds itself.
    pub deadline: Duration,
}

/// Why an attempt failed.
#[derive(Debug)]
pub enum Attempt<E> {
    /// Another attempt may help.
    Transient(E),
    /// No attempt can help.
    Final(E),
}

/// The last error and what led to it.
#[derive(Debug)]
pub struct GaveUp<E> {
    /// Of the last attempt.
    pub last: E,
    /// How many were made.
    pub attempts: u32,
    /// One entry per attempt, bounded.
    trace: Vec<String>,
    /// Entries left out of the middle.
    is_shortened: bool,
}

impl<E: Display> Display for GaveUp<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts <= 1 {
            return write!(f, "{}", self.last);
        }
        write!(f, "gave up after {} attempts", self.attempts)?;
        for (index, entry) in self.trace.iter().enumerate() {
            if self.is_shortened && index + 1 == self.trace.len() {
                f.write_str("; …")?;
            }
            let separator = if index == 0 { ": " } else { "; " };
            write!(f, "{separator}{entry}")?;
        }
        Ok(())
    }
}

/// Runs `operation` until it succeeds, fails for good, or a limit is reached. `operation` gets the number of the attempt, from 1.
///
/// # Errors
/// The last error with the trace of all.
pub async fn retry<T, E: Display, F: Future<Output = Result<T, Attempt<E>>>>(
    policy: RetryPolicy,
    entropy: &Entropy,
    mut operation: impl FnMut(u32) -> F,
) -> Result<T, GaveUp<E>> {
    let begin = Instant::now();
    let mut trace = Vec::new();
    let mut is_shortened = false;
    let mut intervals = intervals(policy);
    let mut attempt = 1;
    loop {
        let error = match operation(attempt).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let elapsed = begin.elapsed();
        let (is_final, last) = match error {
            Attempt::Final(last) => (true, last),
            Attempt::Transient(last) => (false, last),
        };
        if trace.len() >= TRACED_ATTEMPTS_MAX {
            trace.pop();
            is_shortened = true;
        }
        trace.push(trace_entry(attempt, elapsed, &last));
        let delay = interval_after(&mut intervals, policy).mul_f64(fraction(entropy));
        let is_exhausted = attempt >= policy.attempts_max || elapsed + delay >= policy.deadline;
        if is_final || is_exhausted {
            return Err(GaveUp {
                last,
                attempts: attempt,
                trace,
                is_shortened,
            });
        }
        tokio::time::sleep(delay).await;
        attempt += 1;
    }
}

fn trace_entry(attempt: u32, elapsed: Duration, error: &impl Display) -> String {
    let mut entry = String::new();
    // Writing to a String cannot fail.
    let _ = write!(entry, "{error}");
    if entry.chars().count() > TRACED_MESSAGE_MAX {
        entry = entry.chars().take(TRACED_MESSAGE_MAX).collect();
        entry.push('…');
    }
    format!("#{attempt} at {:.1} s {entry}", elapsed.as_secs_f64())
}

/// Between 0 and 1.
fn fraction(entropy: &Entropy) -> f64 {
    entropy.u64() as f64 / u64::MAX as f64
}

fn intervals(policy: RetryPolicy) -> backoff::exponential::ExponentialBackoff<SystemClock> {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(policy.initial_delay)
        .with_max_interval(policy.delay_max)
        .with_multiplier(2.0)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build()
}

/// The next clamped interval. The crate's arithmetic may add a nanosecond by chance: microseconds keep it exact.
fn interval_after(intervals: &mut impl Backoff, policy: RetryPolicy) -> Duration {
    let interval = intervals.next_backoff().unwrap_or(policy.delay_max);
    let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(micros).min(policy.delay_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    const POLICY: RetryPolicy = RetryPolicy {
        attempts_max: 5,
        initial_delay: Duration::from_millis(100),
        delay_max: Duration::from_millis(300),
        deadline: Duration::from_secs(60),
    };

    async fn attempt_times(policy: RetryPolicy, seed: u64) -> (Vec<Duration>, String) {
        let begin = Instant::now();
        let times = RefCell::new(Vec::new());
        let outcome: Result<(), _> = retry(policy, &Entropy::seeded(seed), |attempt| {
            times.borrow_mut().push(begin.elapsed());
            async move { Err(Attempt::Transient(format!("no {attempt}"))) }
        })
        .await;
        (times.into_inner(), outcome.unwrap_err().to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_and_each_is_in_the_error() {
        let (times, message) = attempt_times(POLICY, 1).await;
        assert_eq!(times.len(), 5);
        assert!(message.starts_with("gave up after 5 attempts: #1 at 0.0 s no 1; #2 at"));
        for attempt in 1..=5 {
            assert!(message.contains(&format!("no {attempt}")), "{message}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn delays_stay_under_the_clamped_exponent_and_come_from_the_seed() {
        let limits = [100, 200, 300, 300].map(Duration::from_millis);
        let mut differing = 0;
        for seed in 0..50 {
            let (times, _) = attempt_times(POLICY, seed).await;
            for (pair, limit) in times.windows(2).zip(limits) {
                // The timer of tokio has a resolution of a millisecond.
                assert!(pair[1] - pair[0] <= limit + Duration::from_millis(2));
            }
            assert_eq!(times, attempt_times(POLICY, seed).await.0);
            differing += usize::from(times != attempt_times(POLICY, seed + 1000).await.0);
        }
        assert!(differing > 45);
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_begins_after_the_deadline() {
        let policy = RetryPolicy {
            attempts_max: u32::MAX,
            deadline: Duration::from_secs(2),
            ..POLICY
        };
        let (times, message) = attempt_times(policy, 7).await;
        assert!(times.last().unwrap() < &Duration::from_secs(2));
        assert!(times.len() > TRACED_ATTEMPTS_MAX, "{}", times.len());
        assert_eq!(message.matches('#').count(), TRACED_ATTEMPTS_MAX);
        assert!(message.contains("; …; #"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_error_is_not_retried() {
        let calls = Cell::new(0);
        let outcome: Result<(), _> = retry(POLICY, &Entropy::seeded(1), |_| {
            calls.set(calls.get() + 1);
            async { Err(Attempt::Final("403")) }
        })
        .await;
        assert_eq!(
            (calls.get(), outcome.unwrap_err().to_string()),
            (1, "403".to_owned())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_success_is_returned() {
        let outcome = retry(POLICY, &Entropy::seeded(1), |attempt| async move {
            if attempt < 3 {
                Err(Attempt::Transient("busy"))
            } else {
                Ok(attempt)
            }
        })
        .await;
        assert_eq!(outcome.unwrap(), 3);
    }
}
