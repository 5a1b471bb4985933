//! What must hold of a job's recoveries under its restart strategy (invariant S5). Reads what people read: the decision's words.

use perennial_actors::model::{JobStatus, RecoveryRecord};
use perennial_config::{RestartSettings, RestartStrategy};

/// Words show tenths of a second.
const ROUNDING_SECONDS: f64 = 0.06;

/// A decision, read back from its words.
#[derive(Debug, PartialEq)]
struct Decision {
    strategy: String,
    attempt: u32,
    limit: Option<u32>,
    delay_seconds: f64,
}

/// "fixed-delay: attempt 2 of 100, in 0.1 s, resets at 14:05".
fn parse(words: &str) -> Option<Decision> {
    let (strategy, rest) = words.split_once(": attempt ")?;
    let (attempt, rest) = rest.split_once(", in ")?;
    let (attempt, limit) = match attempt.split_once(" of ") {
        Some((attempt, limit)) => (attempt, Some(limit.parse().ok()?)),
        None => (attempt, None),
    };
    Some(Decision {
        strategy: strategy.to_owned(),
        attempt: attempt.parse().ok()?,
        limit,
        delay_seconds: rest.split(" s").next()?.parse().ok()?,
    })
}

/// Each incident costs one restart at most.
#[must_use]
pub fn check_count(status: &JobStatus) -> Vec<String> {
    // Without a recovery in the history there is nothing to compare with: none, or all forgotten.
    let incidents = status.recoveries.last().map_or(0, |last| last.number);
    let restarts = status.summary.restarts;
    if restarts > incidents {
        vec![format!("{restarts} restarts in {incidents} incidents")]
    } else {
        Vec::new()
    }
}

/// Recoveries of one job, oldest first: each is one attempt more than the one before under the same leader, within the limit, and waits for as
/// long as the strategy says. Runs are shorter than any reset. Returns what breaks it.
#[must_use]
pub fn check_restarts(settings: &RestartSettings, recoveries: &[RecoveryRecord]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut before: Option<(String, u32)> = None;
    for recovery in recoveries {
        let Some(decision) = parse(&recovery.decision) else {
            continue;
        };
        let what = format!("recovery {} ({})", recovery.number, recovery.decision);
        let (name, shortest, longest, limit) = match &settings.strategy {
            RestartStrategy::None => ("none", 0.0, 0.0, Some(0)),
            RestartStrategy::FixedDelay { attempts, delay } => {
                let delay = delay.as_secs_f64();
                ("fixed-delay", 0.0, delay, Some(*attempts))
            }
            RestartStrategy::FailureRate { delay, .. } => {
                ("failure-rate", 0.0, delay.as_secs_f64(), None)
            }
            RestartStrategy::ExponentialDelay {
                max_backoff,
                attempts_before_reset,
                ..
            } => {
                let longest = max_backoff.as_secs_f64();
                ("exponential-delay", 0.0, longest, *attempts_before_reset)
            }
        };
        if decision.strategy != name {
            broken.push(format!("{what}: configured is {name}"));
        }
        let range = shortest - ROUNDING_SECONDS..=longest + ROUNDING_SECONDS;
        if !range.contains(&decision.delay_seconds) {
            broken.push(format!("{what}: a delay outside {range:?} s"));
        }
        if limit.is_some_and(|limit| decision.attempt > limit) || decision.limit != limit {
            broken.push(format!("{what}: configured are {limit:?} attempts"));
        }
        // A successor knows what its predecessor told in time, which may be less than all.
        let epoch = recovery
            .attempt
            .as_ref()
            .and_then(|a| a.split('.').next())
            .map(str::to_owned);
        if let Some(epoch) = epoch {
            let (least, most) = match &before {
                Some((last, attempt)) if *last == epoch => (attempt + 1, attempt + 1),
                Some((_, attempt)) => (1, attempt + 1),
                None => (1, 1),
            };
            if !(least..=most).contains(&decision.attempt) {
                broken.push(format!("{what}: attempt {most} comes next"));
            }
            before = Some((epoch, decision.attempt));
            let waited = recovery.phases.stop_ms.zip(recovery.phases.delay_ms);
            if let Some((stop, delay)) = waited
                && (stop + delay) / 1000.0 + ROUNDING_SECONDS < decision.delay_seconds
            {
                broken.push(format!("{what}: it waited {delay} ms after {stop} ms only"));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_actors::model::{FailureKind, RecoveryPhases, TaskFailure};
    use std::time::Duration;

    fn recovery(number: u32, attempt: &str, decision: &str, delay_ms: f64) -> RecoveryRecord {
        RecoveryRecord {
            number,
            attempt: Some(attempt.to_owned()),
            detected_ms: 0,
            cause: TaskFailure::of_job(FailureKind::Io {
                message: String::new(),
            }),
            other_causes: Vec::new(),
            decision: decision.to_owned(),
            checkpoint: None,
            skipped: Vec::new(),
            phases: RecoveryPhases {
                stop_ms: Some(1.0),
                delay_ms: Some(delay_ms),
                ..RecoveryPhases::default()
            },
            restored: (0, 0),
        }
    }

    #[test]
    fn wrong_counts_limits_delays_and_strategies_are_seen() {
        let settings = RestartSettings {
            strategy: RestartStrategy::FixedDelay {
                attempts: 2,
                delay: Duration::from_secs(1),
            },
            is_strict: false,
        };
        let first = || recovery(1, "1.2", "fixed-delay: attempt 1 of 2, in 1.0 s", 1000.0);
        let good = [
            first(),
            recovery(2, "1.3", "fixed-delay: attempt 2 of 2, in 1.0 s", 1000.0),
            recovery(3, "2.1", "fixed-delay: attempt 1 of 2, in 1.0 s", 1000.0),
        ];
        assert_eq!(check_restarts(&settings, &good), Vec::<String>::new());
        for (bad, word) in [
            (
                recovery(2, "1.3", "fixed-delay: attempt 1 of 2, in 1.0 s", 1000.0),
                "attempt 2 comes next",
            ),
            (
                recovery(2, "1.3", "fixed-delay: attempt 2 of 2, in 3.0 s", 3000.0),
                "a delay outside",
            ),
            (
                recovery(2, "1.3", "fixed-delay: attempt 2 of 2, in 1.0 s", 10.0),
                "it waited",
            ),
            (
                recovery(2, "1.3", "fixed-delay: attempt 2 of 9, in 1.0 s", 1000.0),
                "configured are",
            ),
            (
                recovery(2, "1.3", "failure-rate: attempt 2 of 2, in 1.0 s", 1000.0),
                "configured is",
            ),
        ] {
            let broken = check_restarts(&settings, &[first(), bad]);
            assert!(broken.iter().any(|b| b.contains(word)), "{broken:?}");
        }
    }
}
