//! S5: the recoveries that a job's history shows are those of its restart strategy, by a model of its own.
//!
//! Invariant: what one leader decided is followed exactly. A leader that took over knows what its predecessor told in time, which may be
//! less than all; its first decision may therefore go on from any count up to the last one. Counting of each failed task
//! (`restart-strategy.strict`) is not modelled.

use perennial_actors::model::{JobStatus, RecoveryRecord};
use perennial_config::{RestartSettings, RestartStrategy};

use super::decision::{Decision, parse};

/// Words show tenths of seconds, times milliseconds.
const SLACK_MS: f64 = 101.0;
/// Between the moment of a failure and that of the decision about it, on a busy machine.
const TIME_SLACK_MS: f64 = 250.0;

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

/// Recoveries of one job, oldest first: what breaks the law of its strategy.
#[must_use]
pub fn check_restarts(settings: &RestartSettings, recoveries: &[RecoveryRecord]) -> Vec<String> {
    let name = match &settings.strategy {
        RestartStrategy::None => "none",
        RestartStrategy::FixedDelay { .. } => "fixed-delay",
        RestartStrategy::FailureRate { .. } => "failure-rate",
        RestartStrategy::ExponentialDelay { .. } => "exponential-delay",
    };
    let forgotten = recoveries
        .first()
        .map_or(0, |r| u64::from(r.number).saturating_sub(1));
    let mut model = Model {
        used: (0, forgotten),
        planned: None,
        failures: Vec::new(),
    };
    let mut broken = Vec::new();
    let mut leader: Option<&str> = None;
    for (recovery, epoch) in recoveries.iter().zip(leaders(recoveries)) {
        // What is not recoverable is not asked; a takeover is no failure.
        let Some((strategy, decision)) = parse(&recovery.decision) else {
            // Whoever took the job over knows what it was told.
            model.change_leader(false);
            continue;
        };
        let what = format!("recovery {} ({})", recovery.number, recovery.decision);
        if strategy != name {
            broken.push(format!("{what}: configured is {name}"));
            continue;
        }
        if leader != epoch || epoch.is_none() {
            model.change_leader(leader.is_none() && recovery.number == 1);
        }
        leader = epoch;
        let seen = Seen {
            at: recovery.detected_ms as f64,
            // What joins an incident later sees a shorter wait.
            is_alone: recovery.other_causes.is_empty(),
            is_strict: settings.is_strict,
        };
        if let Err(error) = model.take(&settings.strategy, &seen, &decision) {
            broken.push(format!("{what}: {error}"));
        }
        if let Decision::Restart { delay_ms, .. } = decision
            && seen.is_alone
            && let Some((stop, delay)) = recovery.phases.stop_ms.zip(recovery.phases.delay_ms)
            && stop + delay + SLACK_MS < delay_ms
        {
            broken.push(format!("{what}: it waited {delay} ms after {stop} ms only"));
        }
    }
    broken
}

/// By whom each was decided: the epoch that it was deployed by. One that was never deployed names nobody; between two of one leader it is
/// that leader's, for an epoch does not come back.
fn leaders(recoveries: &[RecoveryRecord]) -> impl Iterator<Item = Option<&str>> {
    fn named(recovery: &RecoveryRecord) -> Option<&str> {
        recovery.attempt.as_deref()?.split('.').next()
    }
    recoveries.iter().enumerate().map(move |(index, recovery)| {
        let before = || recoveries[..index].iter().rev().find_map(named);
        let after = || recoveries[index..].iter().find_map(named);
        named(recovery).or_else(|| before().filter(|before| after() == Some(before)))
    })
}

/// What a strategy must have in mind.
struct Model {
    /// Attempts used up: at least, at most.
    used: (u64, u64),
    /// Earliest and latest time of the last planned restart.
    planned: Option<(f64, f64)>,
    failures: Vec<f64>,
}

/// A failure, as the history shows it.
struct Seen {
    at: f64,
    is_alone: bool,
    is_strict: bool,
}

impl Model {
    /// `is_first`: there was none before.
    fn change_leader(&mut self, is_first: bool) {
        if !is_first {
            self.used.0 = 0;
            self.planned = None;
        }
    }

    fn take(
        &mut self,
        strategy: &RestartStrategy,
        seen: &Seen,
        decision: &Decision,
    ) -> Result<(), String> {
        self.failures.push(seen.at);
        match strategy {
            RestartStrategy::None => match decision {
                Decision::Refused => Ok(()),
                Decision::Restart { .. } => Err("there must be no restart".to_owned()),
            },
            RestartStrategy::FixedDelay { attempts, delay } => {
                let most = u64::from(*attempts);
                let delay = delay.as_secs_f64() * 1000.0;
                let (earliest, latest) = (self.used.0 + 1, self.used.1 + 1);
                match decision {
                    Decision::Refused if latest <= most => {
                        Err(format!("only {} of {most} attempts are used", self.used.1))
                    }
                    Decision::Refused => Ok(()),
                    Decision::Restart {
                        attempt,
                        limit,
                        delay_ms,
                    } => {
                        self.used = (*attempt, *attempt);
                        let is_counted = seen.is_strict || (earliest..=latest).contains(attempt);
                        if !is_counted || *attempt > most || *limit != Some(most) {
                            return Err(format!("attempt {latest} of {most} comes next"));
                        }
                        check_delay(seen, *delay_ms, (delay, delay))
                    }
                }
            }
            RestartStrategy::FailureRate {
                max_failures_per_interval: most,
                interval,
                delay,
            } => {
                let interval = interval.as_secs_f64() * 1000.0;
                let oldest = self.failures.iter().rev().nth(*most as usize);
                let span = oldest.map(|oldest| seen.at - oldest);
                // A new leader may not know of the oldest ones.
                let is_known = self.used.0 > 0 || self.used.1 == 0;
                match decision {
                    Decision::Refused if span.is_none_or(|s| s > interval + TIME_SLACK_MS) => {
                        Err("failures are rarer than that".to_owned())
                    }
                    Decision::Refused => Ok(()),
                    Decision::Restart {
                        attempt, delay_ms, ..
                    } => {
                        self.used = (*attempt, *attempt);
                        if is_known && span.is_some_and(|s| s < interval - TIME_SLACK_MS) {
                            return Err("failures are too frequent for a restart".to_owned());
                        }
                        let delay = delay.as_secs_f64() * 1000.0;
                        check_delay(seen, *delay_ms, (delay, delay))
                    }
                }
            }
            RestartStrategy::ExponentialDelay {
                initial_backoff,
                max_backoff,
                multiplier,
                reset_threshold,
                jitter_factor,
                attempts_before_reset,
            } => {
                let most = attempts_before_reset.map(u64::from);
                let (attempt, delay_ms) = match decision {
                    Decision::Refused if most.is_none_or(|most| self.used.1 < most) => {
                        return Err(format!("it gives up after {} attempts", self.used.1));
                    }
                    Decision::Refused => return Ok(()),
                    Decision::Restart {
                        attempt, delay_ms, ..
                    } => (*attempt, *delay_ms),
                };
                let reset = reset_threshold.as_secs_f64() * 1000.0;
                let (is_merged, is_right) = self.next_exponential(seen.at, reset, attempt);
                let (low, high) = {
                    let initial = initial_backoff.as_secs_f64() * 1000.0;
                    let most = max_backoff.as_secs_f64() * 1000.0;
                    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
                    let base = (initial * multiplier.powi(exponent)).min(most);
                    let clamped = |delay: f64| delay.max(initial).min(most);
                    (
                        clamped(base * (1.0 - jitter_factor)),
                        clamped(base * (1.0 + jitter_factor)),
                    )
                };
                let used = self.used;
                // What a new leader was not told of may be what it waits for.
                let is_unknown = self.planned.is_none() && used != (0, 0);
                self.used = (attempt, attempt);
                if !is_merged {
                    // What joined it later was told what was left of the wait by then.
                    let latest = if seen.is_alone { delay_ms } else { high };
                    self.planned =
                        Some((seen.at + delay_ms - SLACK_MS, seen.at + latest + SLACK_MS));
                }
                if !is_right || most.is_some_and(|most| attempt > most) {
                    return Err(format!("{used:?} attempts were used up before"));
                }
                let low = if is_merged || is_unknown { 0.0 } else { low };
                check_delay(seen, delay_ms, (low, high))
            }
        }
    }

    /// Whether a failure now falls into the wait for the last restart, and whether this may be its attempt.
    fn next_exponential(&self, at: f64, reset: f64, attempt: u64) -> (bool, bool) {
        let Some((earliest, latest)) = self.planned else {
            return (false, attempt >= 1 && attempt <= self.used.1 + 1);
        };
        let can_merge = at <= latest + TIME_SLACK_MS;
        let can_count = at + TIME_SLACK_MS >= earliest && at <= latest + reset + TIME_SLACK_MS;
        let can_begin_anew = at + TIME_SLACK_MS >= earliest + reset;
        let is_merged = can_merge && attempt == self.used.1;
        let is_right = is_merged
            || (can_count && attempt == self.used.1 + 1)
            || (can_begin_anew && attempt == 1);
        (is_merged, is_right)
    }
}

fn check_delay(seen: &Seen, delay_ms: f64, (low, high): (f64, f64)) -> Result<(), String> {
    let low = if seen.is_alone { low } else { 0.0 };
    if delay_ms > high + SLACK_MS || delay_ms < low - SLACK_MS {
        return Err(format!("a delay outside {low} to {high} ms"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perennial_actors::model::RecoveryPhases;

    use super::*;
    use crate::checker::testing::{recovery as recovery_of, some_cause};

    fn record(number: u32, at: u64, decision: &str) -> RecoveryRecord {
        RecoveryRecord {
            attempt: Some(format!("1.{}", number + 1)),
            decision: decision.to_owned(),
            ..recovery_of(number, at, some_cause())
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
        check_restarts(&settings, &records).is_empty()
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
            (
                vec![(5000, "exponential-delay: attempt 3, in 4.0 s")],
                false,
            ),
            (
                vec![(5000, "exponential-delay: attempt 2, in 3.0 s")],
                false,
            ),
            (
                vec![(5000, "exponential-delay: attempt 1, in 1.0 s")],
                false,
            ),
            (vec![(500, "exponential-delay: attempt 1, in 0.5 s")], true),
            (
                vec![(70_000, "exponential-delay: attempt 1, in 1.0 s")],
                true,
            ),
            (
                vec![(70_000, "exponential-delay: attempt 2, in 2.0 s")],
                false,
            ),
            (
                vec![(5000, "exponential-delay: 1 attempts used up: no restart")],
                false,
            ),
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
        assert!(!holds(
            &fixed,
            &[first, (5000, "fixed-delay: attempt 2 of 1, in 1.0 s")]
        ));
        let rate = RestartStrategy::FailureRate {
            max_failures_per_interval: 1,
            interval: 10 * second,
            delay: second,
        };
        let first = (0, "failure-rate: attempt 1, in 1.0 s");
        let refused = "failure-rate: more than 1 failures in 10.0 s: no restart";
        assert!(holds(&rate, &[first, (5000, refused)]));
        assert!(!holds(&rate, &[first, (15_000, refused)]));
        assert!(!holds(
            &rate,
            &[first, (5000, "failure-rate: attempt 2, in 1.0 s")]
        ));
    }

    /// Half a second first, growing to two; whose word counts for how long.
    #[test]
    fn a_wait_ends_when_the_decision_says() {
        let settings = RestartSettings {
            strategy: RestartStrategy::ExponentialDelay {
                initial_backoff: Duration::from_millis(500),
                max_backoff: Duration::from_secs(2),
                multiplier: 1.5,
                reset_threshold: Duration::from_secs(3),
                jitter_factor: 0.1,
                attempts_before_reset: None,
            },
            is_strict: false,
        };
        let of = |(attempt, at, words): &(Option<&str>, u64, &str)| RecoveryRecord {
            attempt: attempt.map(str::to_owned),
            ..record(1, *at, &format!("exponential-delay: attempt {words} s"))
        };
        let numbered = |all: &[(Option<&str>, u64, &str)]| {
            let mut all: Vec<_> = all.iter().map(of).collect();
            for (record, number) in all.iter_mut().zip(1..) {
                record.number = number;
            }
            all
        };
        let check = |all: &[RecoveryRecord]| check_restarts(&settings, all).len();
        let first = (Some("1.2"), 0, "1, in 0.5");
        for (then, expected) in [
            // It came as the wait ended, and was never deployed: the same leader decided before and after.
            (
                vec![(None, 500, "1, in 0.0"), (Some("1.3"), 525, "2, in 0.7")],
                0,
            ),
            (
                vec![(None, 500, "1, in 0.0"), (Some("1.3"), 525, "3, in 1.1")],
                1,
            ),
            (
                vec![(None, 2000, "1, in 0.0"), (Some("1.3"), 2500, "2, in 0.7")],
                1,
            ),
            // Nobody can tell what another leader knew.
            (
                vec![(None, 2000, "1, in 0.5"), (Some("2.3"), 2600, "1, in 0.5")],
                0,
            ),
            (vec![(None, 2000, "1, in 0.5")], 0),
            // A new leader waits for what it inherited, and not for longer.
            (
                vec![
                    (Some("2.3"), 2000, "1, in 0.1"),
                    (Some("2.4"), 2150, "2, in 0.7"),
                ],
                0,
            ),
            (
                vec![
                    (Some("2.3"), 2000, "1, in 0.1"),
                    (Some("2.4"), 2500, "1, in 0.0"),
                ],
                1,
            ),
        ] {
            let all: Vec<_> = std::iter::once(first).chain(then).collect();
            assert_eq!(check(&numbered(&all)), expected, "{all:?}");
        }
        // The first says what was left when another failure joined it; the wait is as long as it was.
        let mut joined = numbered(&[
            (Some("1.2"), 0, "1, in 0.1"),
            (Some("1.3"), 500, "1, in 0.0"),
        ]);
        assert_eq!(
            check(&joined),
            2,
            "too short a delay, too late for its wait"
        );
        let echo = joined[0].cause.clone();
        joined[0].other_causes.push(echo);
        assert_eq!(check(&joined), 0);
    }

    fn recovery(number: u32, attempt: &str, decision: &str, delay_ms: f64) -> RecoveryRecord {
        RecoveryRecord {
            attempt: Some(attempt.to_owned()),
            decision: decision.to_owned(),
            phases: RecoveryPhases {
                stop_ms: Some(1.0),
                delay_ms: Some(delay_ms),
                ..RecoveryPhases::default()
            },
            ..recovery_of(number, 0, some_cause())
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
            // A new leader that knew, and one that did not.
            recovery(3, "2.3", "fixed-delay: attempt 2 of 2, in 1.0 s", 1000.0),
            recovery(4, "3.4", "fixed-delay: attempt 1 of 2, in 1.0 s", 1000.0),
        ];
        assert_eq!(check_restarts(&settings, &good), Vec::<String>::new());
        for (bad, word) in [
            (
                recovery(2, "1.3", "fixed-delay: attempt 1 of 2, in 1.0 s", 1000.0),
                "attempt 2 of 2 comes next",
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
                "attempt 2 of 2 comes next",
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
