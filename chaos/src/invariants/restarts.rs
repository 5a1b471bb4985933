//! S5: the recoveries that a job's history shows are those of its restart strategy, by a model of its own.

use perennial_actors::model::RecoveryRecord;
use perennial_config::{RestartSettings, RestartStrategy};

/// Words show tenths of seconds, times milliseconds.
const SLACK_MS: f64 = 101.0;

/// What the history says about one failure.
#[derive(Debug, PartialEq)]
enum Decision {
    /// `attempt K[ of N], in D s`.
    Restart { attempt: u64, delay_ms: f64 },
    /// No more restarts.
    Refused,
}

/// A strategy, as the model knows it.
pub struct RestartLaw<'a>(pub &'a RestartSettings);

fn parse(words: &str) -> Result<Decision, String> {
    if words.contains("no restart") || words.contains("never restarts") {
        return Ok(Decision::Refused);
    }
    let restart = || {
        let rest = words.split_once("attempt ")?.1;
        let (attempt, rest) = rest.split_once(", in ")?;
        let attempt = attempt.split(' ').next()?.parse().ok()?;
        let delay: f64 = rest.split_once(" s")?.0.parse().ok()?;
        Some(Decision::Restart {
            attempt,
            delay_ms: delay * 1000.0,
        })
    };
    restart().ok_or_else(|| format!("the decision `{words}` cannot be read"))
}

/// The restarts that one JobMaster decided about, in order and complete.
///
/// # Errors
/// Naming the first decision that the strategy does not give.
pub fn check_restarts(law: &RestartLaw<'_>, records: &[RecoveryRecord]) -> Result<(), String> {
    let name = match &law.0.strategy {
        RestartStrategy::None => "none",
        RestartStrategy::FixedDelay { .. } => "fixed-delay",
        RestartStrategy::FailureRate { .. } => "failure-rate",
        RestartStrategy::ExponentialDelay { .. } => "exponential-delay",
    };
    let mut attempts = 0;
    // Earliest and latest time of the last planned restart.
    let mut planned: Option<(f64, f64)> = None;
    let mut times: Vec<f64> = Vec::new();
    for record in records {
        // What is not recoverable is not asked; a takeover is no failure.
        let Some(words) = record.decision.strip_prefix(name) else {
            continue;
        };
        let decision = parse(words).map_err(|e| format!("recovery {}: {e}", record.number))?;
        let at = record.detected_ms as f64;
        times.push(at);
        let context = |what: String| {
            Err(format!(
                "recovery {} at {} ms: `{}`: {what}",
                record.number, record.detected_ms, record.decision
            ))
        };
        // What joins an incident later sees a shorter wait.
        let is_alone = record.other_causes.is_empty();
        match (&law.0.strategy, decision) {
            (RestartStrategy::None, Decision::Refused) => {}
            (RestartStrategy::None, Decision::Restart { .. }) => {
                return context("there must be no restart".to_owned());
            }
            (RestartStrategy::FixedDelay { attempts: most, .. }, Decision::Refused) => {
                if attempts < u64::from(*most) {
                    return context(format!("only {attempts} of {most} attempts are used"));
                }
            }
            (
                RestartStrategy::FixedDelay {
                    attempts: most,
                    delay,
                },
                Decision::Restart { attempt, delay_ms },
            ) => {
                attempts += 1;
                let delay = delay.as_secs_f64() * 1000.0;
                if attempt != attempts || attempt > u64::from(*most) {
                    return context(format!("it must be attempt {attempts} of {most}"));
                }
                if delay_ms > delay + SLACK_MS || (is_alone && delay_ms < delay - SLACK_MS) {
                    return context(format!("the delay must be {delay} ms"));
                }
            }
            (
                RestartStrategy::FailureRate {
                    max_failures_per_interval: most,
                    interval,
                    delay,
                },
                decision,
            ) => {
                let window = times.iter().rev().nth(*most as usize);
                let interval = interval.as_secs_f64() * 1000.0;
                let is_too_often = window.map(|oldest| at - oldest);
                match decision {
                    Decision::Refused if is_too_often.is_none_or(|t| t > interval + 1.0) => {
                        return context("failures are rarer than that".to_owned());
                    }
                    Decision::Refused => {}
                    Decision::Restart { .. } if is_too_often.is_some_and(|t| t < interval - 1.0) => {
                        return context("failures are too frequent for a restart".to_owned());
                    }
                    Decision::Restart { delay_ms, .. } => {
                        let delay = delay.as_secs_f64() * 1000.0;
                        if delay_ms > delay + SLACK_MS || (is_alone && delay_ms < delay - SLACK_MS)
                        {
                            return context(format!("the delay must be {delay} ms"));
                        }
                    }
                }
            }
            (
                RestartStrategy::ExponentialDelay {
                    attempts_before_reset,
                    ..
                },
                Decision::Refused,
            ) => {
                if attempts_before_reset.is_none_or(|most| attempts < u64::from(most)) {
                    return context(format!("it gives up after {attempts} attempts"));
                }
            }
            (
                RestartStrategy::ExponentialDelay {
                    initial_backoff,
                    max_backoff,
                    multiplier,
                    reset_threshold,
                    jitter_factor,
                    ..
                },
                Decision::Restart { attempt, delay_ms },
            ) => {
                let reset = reset_threshold.as_secs_f64() * 1000.0;
                let mut allowed = Vec::new();
                match planned {
                    None => allowed.push(1),
                    Some((earliest, latest)) => {
                        if at <= latest + 1.0 {
                            allowed.push(attempts); // Inside the wait nothing is counted.
                        }
                        if at + 1.0 >= earliest && at <= latest + reset + 1.0 {
                            allowed.push(attempts + 1);
                        }
                        if at + 1.0 >= earliest + reset {
                            allowed.push(1);
                        }
                    }
                }
                if !allowed.contains(&attempt) {
                    return context(format!("it must be attempt {allowed:?}"));
                }
                let is_merged = planned.is_some_and(|(_, latest)| at <= latest + 1.0);
                attempts = attempt;
                let (initial, most) = (
                    initial_backoff.as_secs_f64() * 1000.0,
                    max_backoff.as_secs_f64() * 1000.0,
                );
                let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
                let base = (initial * multiplier.powi(exponent)).min(most);
                let low = (base * (1.0 - jitter_factor)).max(initial).min(most);
                let high = (base * (1.0 + jitter_factor)).max(initial).min(most);
                if delay_ms > high + SLACK_MS
                    || (is_alone && !is_merged && delay_ms < low - SLACK_MS)
                {
                    return context(format!("the delay must be {low} to {high} ms"));
                }
                if !is_merged {
                    planned = Some((at + low, at + high));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perennial_actors::model::{FailureKind, RecoveryPhases, TaskFailure};

    use super::*;

    fn record(number: u32, at: u64, decision: &str) -> RecoveryRecord {
        RecoveryRecord {
            number,
            attempt: None,
            detected_ms: at,
            cause: TaskFailure::of_job(FailureKind::Internal {
                message: String::new(),
            }),
            other_causes: Vec::new(),
            decision: decision.to_owned(),
            checkpoint: None,
            skipped: Vec::new(),
            phases: RecoveryPhases::default(),
            restored: (0, 0),
        }
    }

    fn holds(strategy: &RestartStrategy, decisions: &[(u64, &str)]) -> bool {
        let records: Vec<_> = decisions
            .iter()
            .zip(1..)
            .map(|((at, words), number)| record(number, *at, words))
            .collect();
        let settings = RestartSettings {
            strategy: strategy.clone(),
            is_strict: false,
        };
        check_restarts(&RestartLaw(&settings), &records).is_ok()
    }

    /// One strategy after the other: what it says holds, and one wrong number is seen.
    #[test]
    fn wrong_counts_and_delays_are_seen() {
        let second = Duration::from_secs(1);
        let exponential = RestartStrategy::ExponentialDelay {
            initial_backoff: second,
            max_backoff: 8 * second,
            multiplier: 2.0,
            reset_threshold: 60 * second,
            jitter_factor: 0.0,
            attempts_before_reset: None,
        };
        let first = (0, "exponential-delay: attempt 1, in 1.0 s, resets at 14:05");
        for (decisions, is_right) in [
            (vec![(5000, "exponential-delay: attempt 2, in 2.0 s")], true),
            (vec![(5000, "exponential-delay: attempt 3, in 4.0 s")], false),
            (vec![(5000, "exponential-delay: attempt 2, in 3.0 s")], false),
            (vec![(5000, "exponential-delay: attempt 1, in 1.0 s")], false),
            (vec![(500, "exponential-delay: attempt 1, in 0.5 s")], true),
            (vec![(70_000, "exponential-delay: attempt 1, in 1.0 s")], true),
            (vec![(70_000, "exponential-delay: attempt 2, in 2.0 s")], false),
            (vec![(5000, "exponential-delay: 1 attempts used up: no restart")], false),
        ] {
            let all: Vec<_> = [first].into_iter().chain(decisions.clone()).collect();
            assert_eq!(holds(&exponential, &all), is_right, "{decisions:?}");
        }
        let fixed = RestartStrategy::FixedDelay {
            attempts: 1,
            delay: second,
        };
        let first = (0, "fixed-delay: attempt 1 of 1, in 1.0 s, resets at 14:05");
        let refused = (5000, "fixed-delay: 1 attempts used up: no restart");
        assert!(holds(&fixed, &[first, refused]));
        assert!(!holds(&fixed, &[refused]));
        assert!(!holds(&fixed, &[first, (5000, "fixed-delay: attempt 2 of 1, in 1.0 s")]));
        let rate = RestartStrategy::FailureRate {
            max_failures_per_interval: 1,
            interval: 10 * second,
            delay: second,
        };
        let first = (0, "failure-rate: attempt 1, in 1.0 s");
        let refused = "failure-rate: more than 1 failures in 10.0 s: no restart";
        assert!(holds(&rate, &[first, (5000, refused)]));
        assert!(!holds(&rate, &[first, (15_000, refused)]));
        assert!(!holds(&rate, &[first, (5000, "failure-rate: attempt 2, in 1.0 s")]));
    }
}
