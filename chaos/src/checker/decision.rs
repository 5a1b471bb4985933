//! What a restart strategy decided, read back from the decision's words, as people read them.

use perennial_actors::model::{RecoveryRecord, TaskFailure};

/// A decision.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// `attempt K[ of N], in D s`.
    Restart {
        attempt: u64,
        limit: Option<u64>,
        delay_ms: f64,
    },
    /// No more restarts.
    Refused,
}

/// "fixed-delay: attempt 2 of 100, in 0.1 s, resets at 14:05": the strategy and what it said. `None`: no strategy spoke.
pub(super) fn parse(words: &str) -> Option<(&str, Decision)> {
    let (name, words) = words.split_once(": ")?;
    if words.contains("no restart") || words.contains("never restarts") {
        return Some((name, Decision::Refused));
    }
    let (attempt, rest) = words.strip_prefix("attempt ")?.split_once(", in ")?;
    let (attempt, limit) = match attempt.split_once(" of ") {
        Some((attempt, limit)) => (attempt, Some(limit.parse().ok()?)),
        None => (attempt, None),
    };
    let delay: f64 = rest.split_once(" s")?.0.parse().ok()?;
    let decision = Decision::Restart {
        attempt: attempt.parse().ok()?,
        limit,
        delay_ms: delay * 1000.0,
    };
    Some((name, decision))
}

/// Whether it is no failure that a strategy was asked about: another leader found the job.
#[must_use]
pub fn is_takeover(recovery: &RecoveryRecord) -> bool {
    recovery.decision.starts_with("taken up again")
}

/// Whether a job that ended by `failure` did so because its strategy refused a restart. `told`: what each of its leaders told, the first
/// one first; what a leader inherits may be less than its predecessor told.
///
/// A leader that finds only the last record of a job has no decision to show. Then the last one of its predecessor counts, if it was
/// about what the job failed by.
#[must_use]
pub fn is_refused(told: &[Vec<RecoveryRecord>], failure: Option<&TaskFailure>) -> bool {
    let refuses = |r: &RecoveryRecord| matches!(parse(&r.decision), Some((_, Decision::Refused)));
    let words = failure.map_or(String::new(), |f| f.kind.to_string());
    let is_about = |r: &RecoveryRecord| {
        std::iter::once(&r.cause)
            .chain(&r.other_causes)
            .any(|cause| words.contains(&cause.kind.to_string()))
    };
    let last_of_each = || told.iter().rev().map(|told| told.last());
    let decided = last_of_each().flatten().find(|r| !is_takeover(r));
    let is_own = matches!(last_of_each().next(), Some(Some(last)) if !is_takeover(last));
    decided.is_some_and(|r| refuses(r) && (is_own || is_about(r)))
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::FailureKind;

    use super::*;
    use crate::checker::testing::recovery;

    fn io(message: &str) -> FailureKind {
        FailureKind::Io {
            message: message.to_owned(),
        }
    }

    fn told(message: &str, decision: &str) -> RecoveryRecord {
        RecoveryRecord {
            decision: decision.to_owned(),
            ..recovery(1, 0, io(message))
        }
    }

    /// The next leader finds the job's last record, and no history: it could not be stored (seeds 18803, 18902).
    #[test]
    fn a_refusal_outlives_its_leader_for_the_cause_that_it_was_about_and_no_other() {
        let restart = told("status 403", "fixed-delay: attempt 2 of 2, in 0.1 s");
        let refused = told("status 403", "fixed-delay: 2 attempts used up: no restart");
        let fatal = told("status 403", "not recoverable: the job fails");
        let takeover = told(
            "epoch 2 takes the job over",
            "taken up again by this JobManager, at once",
        );
        let failure = |message: &str| {
            let message = format!("subtask 1 failed: {message}");
            TaskFailure::of_job(FailureKind::Recorded { message })
        };
        let told = |leader: &[&RecoveryRecord]| -> Vec<RecoveryRecord> {
            leader.iter().copied().cloned().collect()
        };
        let own = |leader: &[&RecoveryRecord]| vec![told(leader)];
        let then =
            |first: &[&RecoveryRecord], next: &[&RecoveryRecord]| vec![told(first), told(next)];
        for (told, by, expected) in [
            (vec![], "status 403", false),
            (own(&[]), "status 403", false),
            (own(&[&restart, &refused]), "status 403", true),
            (own(&[&restart, &refused]), "status 500", true),
            (own(&[&refused, &restart]), "status 403", false),
            (own(&[&takeover]), "status 403", false),
            (then(&[&refused], &[&takeover]), "status 403", true),
            (then(&[&refused], &[&takeover]), "status 500", false),
            (then(&[&restart], &[&takeover]), "status 403", false),
            (then(&[&fatal], &[&takeover]), "status 403", false),
            (
                then(&[&refused], &[&takeover, &restart]),
                "status 403",
                false,
            ),
            // What it inherits is older than the refusal (seed 30140), or all there is.
            (
                then(&[&restart, &refused], &[&restart, &takeover]),
                "status 403",
                true,
            ),
            (
                then(&[&refused, &restart], &[&refused, &takeover]),
                "status 403",
                false,
            ),
            // One after another that finds only the end.
            (
                then(&[&refused], &[&takeover, &takeover]),
                "status 403",
                true,
            ),
            (
                vec![told(&[&refused]), told(&[&takeover]), told(&[&takeover])],
                "status 403",
                true,
            ),
        ] {
            let words: Vec<_> = told.iter().flatten().map(|r| &r.decision).collect();
            assert_eq!(
                is_refused(&told, Some(&failure(by))),
                expected,
                "{words:?} by {by}"
            );
        }
    }
}
