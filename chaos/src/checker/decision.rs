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

/// Whether a job that ended by `failure` did so because its strategy refused a restart. `told`: what its leaders told, oldest first.
///
/// A leader that finds only the last record of a job has no decision to show, and may have no history either, when that could not be
/// stored. Then the last decision of its predecessors counts, if it was about what the job failed by.
#[must_use]
pub fn is_refused(told: &[RecoveryRecord], failure: Option<&TaskFailure>) -> bool {
    let refuses = |r: &RecoveryRecord| matches!(parse(&r.decision), Some((_, Decision::Refused)));
    let is_takeover = |r: &RecoveryRecord| r.decision.starts_with("taken up again");
    let Some(last) = told.last() else {
        return false;
    };
    if !is_takeover(last) {
        return refuses(last);
    }
    let words = failure.map_or(String::new(), |f| f.kind.to_string());
    let is_about = |r: &RecoveryRecord| {
        std::iter::once(&r.cause)
            .chain(&r.other_causes)
            .any(|cause| words.contains(&cause.kind.to_string()))
    };
    let before = told.iter().rev().find(|r| !is_takeover(r));
    before.is_some_and(|r| refuses(r) && is_about(r))
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
            TaskFailure::of_job(FailureKind::Internal { message })
        };
        for (told, by, expected) in [
            (vec![], "status 403", false),
            (vec![&restart, &refused], "status 403", true),
            (vec![&refused, &takeover], "status 403", true),
            (vec![&refused, &takeover, &takeover], "status 403", true),
            (vec![&refused, &takeover], "status 500", false),
            (vec![&refused, &restart, &takeover], "status 403", false),
            (vec![&refused, &takeover, &restart], "status 403", false),
            (vec![&restart, &takeover], "status 403", false),
            (vec![&fatal, &takeover], "status 403", false),
            (vec![&takeover], "status 403", false),
        ] {
            let told: Vec<_> = told.into_iter().cloned().collect();
            let words: Vec<_> = told.iter().map(|r| &r.decision).collect();
            assert_eq!(
                is_refused(&told, Some(&failure(by))),
                expected,
                "{words:?} by {by}"
            );
        }
    }
}
