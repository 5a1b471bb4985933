//! Which fault explains a recovery (invariant S6): right kind of cause, right node, right time. Pure.

use std::time::Duration;

use perennial_actors::model::{FailureKind, RecoveryRecord};
use perennial_config::HeartbeatSettings;

use crate::plan::{DataFault, Fault, LinkFault};

/// After its end a fault explains what is still found out about it: the slowest limits of a node (`s3.socket.timeout`,
/// `execution.checkpointing.timeout` as the carrier sets them) and a busy machine.
const ECHO_MAX_MS: u64 = 25_000;
/// Clocks of two processes of one machine, and a detection stamped before the strike's own stamp.
const EARLY_MS: u64 = 200;

/// Bytes per second of a link that may be taken for a broken one.
const NARROW_MAX: u64 = 4000;

/// A fault that was struck, with all that tells whether it explains something.
#[derive(Debug, Clone)]
pub struct Struck {
    /// Index in the plan.
    pub fault: usize,
    /// What.
    pub what: Fault,
    /// Nodes whose process or links it hit.
    pub nodes: Vec<String>,
    /// A link between TaskManagers is among what it hit.
    pub is_data_link: bool,
    /// A link to the store is among what it hit.
    pub is_store_link: bool,
    /// A JobManager process is among what it hit.
    pub hits_job_manager: bool,
    /// When, in ms since the epoch.
    pub at_ms: u64,
    /// When it was over; `None`: not yet.
    pub healed_ms: Option<u64>,
}

/// What detection is configured to tolerate.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// The shortest silence that may be taken for a loss.
    pub silence: Duration,
    /// The shortest break of a link that may cost a session.
    pub reconnect: Duration,
}

impl Tolerance {
    /// Of a cluster: when a silence begins, the last heartbeat may be as old as an interval.
    #[must_use]
    pub fn of(heartbeat: &HeartbeatSettings) -> Self {
        Self {
            silence: heartbeat.timeout.saturating_sub(heartbeat.interval),
            reconnect: heartbeat.reconnect_window.saturating_sub(REDIAL),
        }
    }
}

/// From the moment at which a link works again to that at which a session goes on: a TaskManager dials after pauses, and not at once on a
/// busy machine.
const REDIAL: Duration = Duration::from_millis(500);

/// The newest strike that explains the recovery.
#[must_use]
pub fn explain<'a>(
    recovery: &RecoveryRecord,
    strikes: &'a [Struck],
    tolerance: Tolerance,
) -> Option<&'a Struck> {
    let is_in_time = |s: &&Struck| {
        s.at_ms <= recovery.detected_ms + EARLY_MS
            && s.healed_ms
                .is_none_or(|healed| recovery.detected_ms <= healed + ECHO_MAX_MS)
    };
    let causes = || std::iter::once(&recovery.cause).chain(&recovery.other_causes);
    strikes
        .iter()
        .rev()
        .filter(is_in_time)
        .find(|s| causes().any(|c| explains(s, &c.kind, tolerance)))
}

/// As [`explain`], where the clock of whoever wrote the recovery down may have been moved by a strike.
#[must_use]
pub fn explain_by_any_clock<'a>(
    recovery: &RecoveryRecord,
    strikes: &'a [Struck],
    tolerance: Tolerance,
) -> Option<&'a Struck> {
    let jumps = strikes.iter().filter_map(|s| match s.what {
        Fault::ClockOffset { millis } => Some(millis),
        _ => None,
    });
    std::iter::once(0).chain(jumps).find_map(|jump| {
        let mut recovery = recovery.clone();
        recovery.detected_ms = recovery.detected_ms.saturating_add_signed(-jump);
        explain(&recovery, strikes, tolerance)
    })
}

fn explains(strike: &Struck, cause: &FailureKind, tolerance: Tolerance) -> bool {
    if !may_restart(&strike.what, tolerance, strike.is_data_link) {
        return false;
    }
    let names = |resource: &str| strike.nodes.iter().any(|n| n == resource);
    let is_store = matches!(strike.what, Fault::Store(_));
    let is_data = matches!(strike.what, Fault::Data(_));
    let is_code = matches!(
        strike.what,
        Fault::UserPanic { .. } | Fault::UserError { .. } | Fault::ActorPanic(_)
    );
    // At a fault point it may come out as any kind, but with its words.
    let says = |words: &str| cause.to_string().contains(words);
    match &strike.what {
        Fault::UserPanic { .. } | Fault::UserError { .. } if says("injected") => return true,
        Fault::ActorPanic(_) if says("injected panic") => return true,
        _ => {}
    }
    match cause {
        FailureKind::TaskManagerLost { resource, .. } => {
            names(&resource.0) || strike.hits_job_manager
        }
        FailureKind::PeerLost { resource, .. } => {
            names(&resource.0) || strike.is_data_link || strike.hits_job_manager
        }
        // A store may cost a leader its leadership.
        FailureKind::NoSlots { .. }
        | FailureKind::Actor { .. }
        | FailureKind::CancellationTimeout { .. } => !is_store || strike.hits_job_manager,
        FailureKind::Checkpoints { .. } | FailureKind::DamagedSnapshot { .. } => true,
        FailureKind::Io { .. } | FailureKind::State { .. } => {
            is_store || is_data || is_code || strike.is_store_link
        }
        FailureKind::Panic { .. } | FailureKind::User { .. } => {
            is_data
                || matches!(
                    strike.what,
                    Fault::UserPanic { .. } | Fault::UserError { .. }
                )
        }
        FailureKind::Fenced { .. } => strike.hits_job_manager,
        FailureKind::IncompatibleState { .. } => is_store,
        // Code that was made to fail, and whoever waited for its answer.
        FailureKind::Internal { .. } => is_code,
        // The last one ends a job, and begins no recovery.
        FailureKind::Limit { .. }
        | FailureKind::BuildMismatch { .. }
        | FailureKind::Recorded { .. } => false,
    }
}

/// Whether the catalogue lets the fault restart a job at all.
pub(super) fn may_restart(fault: &Fault, tolerance: Tolerance, is_data_link: bool) -> bool {
    match fault {
        Fault::Pause { down } => *down >= tolerance.silence,
        // Slow is not dead.
        Fault::Starve { .. } => false,
        Fault::Link(LinkFault::Reset { down }) => is_data_link || *down >= tolerance.reconnect,
        Fault::Link(LinkFault::BlackHole { down, .. }) => {
            is_data_link || *down >= tolerance.silence
        }
        // A session that resumes takes several messages both ways.
        Fault::Link(LinkFault::Latency { delay, jitter, .. }) => {
            (*delay + *jitter) * 4 >= tolerance.reconnect
        }
        // Too narrow for heartbeats beside all else.
        Fault::Link(LinkFault::Bandwidth {
            bytes_per_second, ..
        }) => *bytes_per_second <= NARROW_MAX,
        Fault::Link(LinkFault::Slice { .. } | LinkFault::Replay) => false,
        Fault::Link(LinkFault::Flap { .. }) => true,
        Fault::Link(LinkFault::HalfOpen { .. } | LinkFault::FlipBit) => true,
        Fault::Data(DataFault::SlowDisk { .. }) => false,
        Fault::ClientSavepoint => false,
        // Nothing but what people read goes by the time of day.
        Fault::ClockOffset { .. } => false,
        Fault::Kill { .. }
        | Fault::Terminate { .. }
        | Fault::RollingRestart
        | Fault::Store(_)
        | Fault::Data(_)
        | Fault::ActorPanic(_)
        | Fault::SlowHandler { .. }
        | Fault::NoHeartbeats { .. }
        | Fault::UserPanic { .. }
        | Fault::UserError { .. }
        | Fault::UserStuck
        | Fault::Rescale { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::recovery;
    use crate::plan::Direction;
    use perennial_actors::model::{InstanceId, ResourceId};

    const TOLERANCE: Tolerance = Tolerance {
        silence: Duration::from_secs(2),
        reconnect: Duration::from_secs(1),
    };

    fn lost(resource: &str, detected_ms: u64) -> RecoveryRecord {
        let cause = FailureKind::TaskManagerLost {
            resource: ResourceId(resource.to_owned()),
            instance: InstanceId(1),
            message: String::new(),
        };
        recovery(1, detected_ms, cause)
    }

    fn struck(what: Fault, healed_ms: Option<u64>) -> Struck {
        Struck {
            fault: 0,
            what,
            nodes: vec!["taskmanager-1".to_owned()],
            is_data_link: false,
            is_store_link: false,
            hits_job_manager: false,
            at_ms: 1000,
            healed_ms,
        }
    }

    #[test]
    fn only_the_right_kind_at_the_right_node_in_time_explains() {
        let kill = Fault::Kill {
            down: Duration::from_secs(1),
        };
        let short = Fault::Pause {
            down: Duration::from_secs(1),
        };
        let long = Fault::Pause {
            down: Duration::from_secs(5),
        };
        let mine = "taskmanager-1";
        for (recovery, what, healed, expected) in [
            (lost(mine, 1500), kill.clone(), Some(2000), true),
            (lost("taskmanager-2", 1500), kill.clone(), None, false),
            (lost(mine, 500), kill.clone(), None, false),
            (lost(mine, 90_000), kill, Some(2000), false),
            (lost(mine, 1500), short, None, false),
            (lost(mine, 1500), long, None, true),
        ] {
            let strikes = [struck(what, healed)];
            let explained = explain(&recovery, &strikes, TOLERANCE).is_some();
            assert_eq!(explained, expected, "{recovery:?} by {strikes:?}");
        }
    }

    /// A pause that a timeout of 3 s may take for a loss: the last heartbeat may be an interval old when it begins. A link that comes back
    /// just before its window ends may be too late.
    #[test]
    fn a_silence_is_measured_from_the_last_heartbeat_and_a_break_to_the_next_dial() {
        let tolerance = Tolerance::of(&HeartbeatSettings {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(3),
            reconnect_window: Duration::from_secs(1),
        });
        let ms = Duration::from_millis;
        let reset = |down| Fault::Link(LinkFault::Reset { down: ms(down) });
        let hole = |down| {
            Fault::Link(LinkFault::BlackHole {
                direction: Direction::Both,
                down: ms(down),
            })
        };
        for (what, expected) in [
            (Fault::Pause { down: ms(2000) }, true),
            (Fault::Pause { down: ms(1999) }, false),
            (hole(2000), true),
            (hole(1999), false),
            (reset(500), true),
            (reset(499), false),
        ] {
            let strikes = [struck(what, None)];
            let lost = lost("taskmanager-1", 5000);
            let explained = explain(&lost, &strikes, tolerance).is_some();
            assert_eq!(explained, expected, "{strikes:?}");
        }
    }

    /// Process seed 780571: the leader's clock was an hour ahead.
    #[test]
    fn a_recovery_is_explained_by_the_clock_that_it_was_written_by() {
        let hour = 3_600_000;
        let kill = struck(
            Fault::Kill {
                down: Duration::from_secs(1),
            },
            Some(2000),
        );
        let ahead = struck(Fault::ClockOffset { millis: hour }, None);
        let at = 1500 + hour.unsigned_abs();
        for (strikes, detected_ms, expected) in [
            (vec![kill.clone()], 1500, true),
            (vec![kill.clone()], at, false),
            (vec![kill.clone(), ahead.clone()], at, true),
            (vec![kill.clone(), ahead.clone()], 1500, true),
            (vec![kill, ahead], at + 90_000, false),
        ] {
            let lost = lost("taskmanager-1", detected_ms);
            let by = explain_by_any_clock(&lost, &strikes, TOLERANCE);
            let is_kill = by.is_some_and(|s| matches!(s.what, Fault::Kill { .. }));
            assert_eq!(is_kill, expected, "{detected_ms}: {strikes:?}");
        }
    }
}
