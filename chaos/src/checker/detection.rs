//! When the loss of a TaskManager was found out (L2). Pure.
//!
//! Invariant: a loss is told of the newest strike that can have led to it, as its cause is (S6). A strike of whose loss nobody tells is
//! not judged: the node may have had no task of the job, and a leader takes what it has not told yet with it.

use std::time::Duration;

use perennial_actors::model::{FailureKind, RecoveryRecord};

use super::attribution::{Struck, Tolerance, may_restart};

/// When the loss that a strike led to was found out, in ms since the epoch. `strikes`: all that may cost a TaskManager its session, the
/// strike itself may be among them.
#[must_use]
pub fn found_out(
    strike: &Struck,
    strikes: &[&Struck],
    recoveries: &[RecoveryRecord],
    tolerance: Tolerance,
) -> Option<u64> {
    let names_it = |kind: &FailureKind| match kind {
        FailureKind::TaskManagerLost { resource, .. } => strike.nodes.contains(&resource.0),
        _ => false,
    };
    let found = recoveries.iter().find(|r| {
        let mut causes = std::iter::once(&r.cause).chain(&r.other_causes);
        r.detected_ms >= strike.at_ms && causes.any(|c| names_it(&c.kind))
    })?;
    let is_later = |s: &&&Struck| {
        s.fault != strike.fault && (strike.at_ms..=found.detected_ms).contains(&s.at_ms)
    };
    let is_newer_cause = strikes.iter().filter(is_later).any(|s| {
        s.nodes.iter().any(|node| strike.nodes.contains(node))
            && may_restart(&s.what, tolerance, false)
    });
    (!is_newer_cause).then_some(found.detected_ms)
}

/// Whether some leader was there from a strike until its loss should have been found out. `outages`: from when to when there may have
/// been none.
#[must_use]
pub fn was_led(strike: &Struck, limit: Duration, outages: &[(u64, Option<u64>)]) -> bool {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let until = strike.at_ms.saturating_add(limit);
    let overlaps =
        |(from, to): &(u64, Option<u64>)| *from <= until && to.is_none_or(|to| to >= strike.at_ms);
    !outages.iter().any(overlaps)
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::{InstanceId, ResourceId};

    use super::*;
    use crate::checker::testing::{recovery, some_cause};
    use crate::plan::Fault;

    const TOLERANCE: Tolerance = Tolerance {
        silence: Duration::from_secs(2),
        reconnect: Duration::from_secs(1),
    };

    fn struck(fault: usize, node: &str, at_ms: u64, what: Fault) -> Struck {
        Struck {
            fault,
            what,
            nodes: vec![node.to_owned()],
            is_data_link: false,
            is_store_link: false,
            hits_job_manager: node.starts_with("job"),
            at_ms,
            healed_ms: None,
        }
    }

    fn kill(fault: usize, node: &str, at_ms: u64) -> Struck {
        let down = Duration::from_secs(1);
        struck(fault, node, at_ms, Fault::Kill { down })
    }

    fn lost(node: &str, detected_ms: u64) -> RecoveryRecord {
        let cause = FailureKind::TaskManagerLost {
            resource: ResourceId(node.to_owned()),
            instance: InstanceId(1),
            message: String::new(),
        };
        recovery(1, detected_ms, cause)
    }

    /// Process seed 780673: a TaskManager and the JobManager are killed at once, nobody tells of the first, and the TaskManager is killed
    /// once more later.
    #[test]
    fn a_loss_is_told_of_the_newest_strike_that_can_have_led_to_it() {
        let (mine, other) = ("taskmanager-1", "taskmanager-2");
        let second = Duration::from_secs(1);
        let blink = struck(1, mine, 5000, Fault::Pause { down: second });
        let long = struck(1, mine, 5000, Fault::Pause { down: 5 * second });
        for (later, found, expected) in [
            (None, vec![], None),
            (None, vec![recovery(1, 1500, some_cause())], None),
            (None, vec![lost(other, 1500)], None),
            (None, vec![lost(mine, 500)], None),
            (None, vec![lost(mine, 1500), lost(mine, 9000)], Some(1500)),
            (None, vec![lost(mine, 9000)], Some(9000)),
            (Some(kill(1, mine, 8990)), vec![lost(mine, 9000)], None),
            (
                Some(kill(1, mine, 9001)),
                vec![lost(mine, 9000)],
                Some(9000),
            ),
            (
                Some(kill(1, mine, 8990)),
                vec![lost(mine, 1500)],
                Some(1500),
            ),
            (
                Some(kill(1, other, 8990)),
                vec![lost(mine, 9000)],
                Some(9000),
            ),
            (Some(blink), vec![lost(mine, 9000)], Some(9000)),
            (Some(long), vec![lost(mine, 9000)], None),
        ] {
            let strike = kill(0, mine, 1000);
            let strikes: Vec<_> = std::iter::once(&strike).chain(&later).collect();
            let at = found_out(&strike, &strikes, &found, TOLERANCE);
            assert_eq!(at, expected, "{later:?} {found:?}");
        }
        // What else was told of the same incident names it as well.
        let mut echo = recovery(1, 1200, some_cause());
        echo.other_causes.push(lost(mine, 1200).cause);
        let strike = kill(0, mine, 1000);
        assert_eq!(found_out(&strike, &[], &[echo], TOLERANCE), Some(1200));
    }

    #[test]
    fn only_a_leader_that_lives_through_the_limit_can_be_late() {
        let strike = kill(0, "taskmanager-1", 1000);
        let limit = Duration::from_millis(2500);
        for (outages, expected) in [
            (vec![], true),
            (vec![(1023, Some(1823))], false),
            (vec![(900, Some(1001))], false),
            (vec![(0, None)], false),
            (vec![(0, Some(999))], true),
            (vec![(3501, Some(9000))], true),
            (vec![(0, Some(999)), (3000, None)], false),
        ] {
            assert_eq!(was_led(&strike, limit, &outages), expected, "{outages:?}");
        }
    }
}
