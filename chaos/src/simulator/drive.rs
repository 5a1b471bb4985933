//! Lets the faults of a plan happen when their time has come, heals, and waits for the job's end: safety under fire, then liveness.

use std::time::Duration;

use perennial_actors::clock::Instant;
use perennial_actors::fault::FaultSite;
use perennial_actors::model::{CheckpointState, JobState, JobStatus, ResourceId};

use super::TICK;
use super::cluster::{Cluster, task_manager_name};
use super::observer::{Act, Observer};
use super::strike::is_by_message;
use crate::plan::{Fault, FaultPlan, Target, When};
use crate::report::{Progress, Strike};

/// A trigger that has not come after so long is given up.
const ARMED_MAX: Duration = Duration::from_secs(6);
/// After healing, all tasks must run within this time: detection, the longest restart delay, the cancellation timeout, the restore.
const RUNS_AGAIN_MAX: Duration = Duration::from_secs(45);
/// After healing, the job must end within this time, besides the length of its input.
const ENDS_MAX: Duration = Duration::from_secs(90);
/// After that a checkpoint must complete within two intervals, its own timeout and this: calls of an ill store that still wait for an answer.
const CHECKPOINT_SLACK: Duration = Duration::from_secs(15);
/// No run takes longer, healed or not.
const RUN_MAX: Duration = Duration::from_secs(900);

/// What came of the fire.
#[derive(Default)]
pub(super) struct Drive {
    /// The job's last status; `None`: it did not end in time.
    pub(super) end: Option<JobStatus>,
    pub(super) strikes: Vec<Strike>,
    /// Whom each of them hit: nodes, and ends of links.
    pub(super) nodes: Vec<Vec<String>>,
    /// Since when everything has been well.
    pub(super) healed: Option<Instant>,
    /// From healing to all tasks running.
    pub(super) ran_again: Option<Duration>,
    /// Tasks did not run again in time.
    pub(super) is_late: bool,
    /// Completed checkpoints when they ran again.
    completed: usize,
    /// The next checkpoint did not complete in time.
    pub(super) is_checkpoint_late: bool,
    pub(super) accepted: Option<Instant>,
    /// The last moment at which the store did not do what it was asked to, or did not show it.
    pub(super) store_was_ill: Option<Instant>,
}

/// What the triggers look at.
struct Triggers {
    /// When the fault that is next was armed.
    armed: Instant,
    /// Completed checkpoints then.
    completed: usize,
}

pub(super) async fn drive(
    cluster: &mut Cluster,
    plan: &FaultPlan,
    observer: &Observer,
    progress: &mut dyn FnMut(Progress),
) -> Drive {
    let began = Instant::now();
    let lanes = u64::from(crate::workload::LANES);
    let input = Duration::from_secs(plan.workload.events / lanes / plan.workload.rate.max(1) + 1);
    let checkpointing = &cluster.settings.job.checkpointing;
    let interval = checkpointing.interval.unwrap_or_default();
    let checkpoint_max =
        2 * (interval + checkpointing.min_pause) + checkpointing.timeout + CHECKPOINT_SLACK;
    let mut drive = Drive::default();
    let mut next = 0;
    let mut triggers = None;
    loop {
        cluster.tend().await;
        if let Some(end) = observer.end() {
            drive.end = Some(end);
            return drive;
        }
        let now = Instant::now();
        if drive.accepted.is_none() && observer.is_accepted() {
            drive.accepted = Some(now);
        }
        strike_points(cluster, plan, &mut drive, now, progress);
        while let (Some(accepted), Some(fault)) = (drive.accepted, plan.faults.get(next)) {
            let armed = triggers.get_or_insert_with(|| Triggers {
                armed: now,
                completed: cluster.completed(),
            });
            // Armed from the beginning.
            if let When::FaultPoint { .. } = fault.when {
                next += 1;
                continue;
            }
            let is_due = is_due(&fault.when, armed, accepted, cluster, observer);
            let is_given_up =
                now - armed.armed > ARMED_MAX && !matches!(fault.when, When::After(_));
            if !is_due && !is_given_up {
                break;
            }
            if is_due {
                drive.nodes.push(cluster.hit_by(fault.target));
                let victim = cluster.strike(fault);
                act(fault, next + 1 == plan.faults.len(), cluster, observer);
                cluster
                    .trace
                    .line(format_args!("fault {fault} hits {victim}"));
                let strike = Strike {
                    fault: next,
                    row: fault.row(),
                    at_ms: u64::try_from((now - accepted).as_millis()).unwrap_or(u64::MAX),
                    victim,
                };
                progress(Progress::Struck(strike.clone()));
                drive.strikes.push(strike);
            }
            (next, triggers) = (next + 1, None);
        }
        if cluster.is_store_ill() {
            drive.store_was_ill = Some(now);
        }
        let is_over = next == plan.faults.len()
            && cluster.is_healthy()
            && !cluster.fuse.is_burning()
            && !cluster.stores.is_ailing();
        if !is_over {
            drive.healed = None;
            drive.ran_again = None;
        } else if drive.healed.is_none() {
            drive.healed = Some(now);
        }
        if let Some(healed) = drive.healed {
            if drive.ran_again.is_none() && observer.ask(runs) == Some(true) {
                drive.ran_again = Some(now - healed);
                drive.completed = cluster.completed();
            }
            drive.is_late |= drive.ran_again.is_none() && now - healed > RUNS_AGAIN_MAX;
            if let Some(ran_again) = drive.ran_again {
                drive.is_checkpoint_late |= now - healed - ran_again > checkpoint_max
                    && cluster.completed() == drive.completed
                    && observer.ask(runs) == Some(true);
            }
            if now - healed > ENDS_MAX + input {
                return drive;
            }
        }
        if now - began > RUN_MAX {
            return drive;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Notices fault points that have struck.
fn strike_points(
    cluster: &Cluster,
    plan: &FaultPlan,
    drive: &mut Drive,
    now: Instant,
    progress: &mut dyn FnMut(Progress),
) {
    for (index, fault) in plan.faults.iter().enumerate() {
        let When::FaultPoint { site, hit } = &fault.when else {
            continue;
        };
        let is_known = drive.strikes.iter().any(|s| s.fault == index);
        let Some(site) = FaultSite::named(site).filter(|_| !is_known) else {
            continue;
        };
        let prefix = match fault.target {
            Target::TaskManager(n) => {
                task_manager_name(n.checked_rem(plan.cluster.task_managers).unwrap_or(0))
            }
            _ => "jobmanager".to_owned(),
        };
        let victims = cluster.handles.struck(&prefix, site, *hit);
        if victims.is_empty() {
            continue;
        }
        let since = drive.accepted.map_or(Duration::ZERO, |at| now - at);
        let strike = Strike {
            fault: index,
            row: fault.row(),
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            victim: victims.join(", "),
        };
        cluster
            .trace
            .line(format_args!("fault {fault} hits {}", strike.victim));
        progress(Progress::Struck(strike.clone()));
        drive.strikes.push(strike);
        drive.nodes.push(victims);
        drive.healed = None;
        drive.ran_again = None;
    }
}

fn runs(status: &JobStatus) -> bool {
    status.summary.state == JobState::Running
        && status.summary.tasks_running == status.summary.tasks_total
}

fn is_due(
    when: &When,
    triggers: &Triggers,
    accepted: Instant,
    cluster: &Cluster,
    observer: &Observer,
) -> bool {
    match when {
        When::After(after) => accepted.elapsed() >= *after,
        When::Checkpoints(count) => cluster.completed() >= triggers.completed + *count as usize,
        When::CheckpointPending => observer
            .ask(|status| {
                let mut checkpoints = status.checkpoints.iter();
                checkpoints.any(|c| c.state == CheckpointState::InProgress)
            })
            .unwrap_or(false),
        When::Recovering => observer
            .ask(|status| {
                !status.recoveries.is_empty() && !runs(status)
                    || status.summary.state == JobState::Restarting
            })
            .unwrap_or(false),
        When::Running => observer.ask(runs).unwrap_or(false),
        // Not waited for here.
        When::FaultPoint { .. } => false,
    }
}

/// What a client does, where the fault is one of clients.
fn act(fault: &crate::plan::PlannedFault, is_last: bool, cluster: &Cluster, observer: &Observer) {
    if is_by_message(&fault.what) {
        let all = cluster.task_managers.iter();
        let all: Vec<_> = all.map(|m| ResourceId(m.name().to_owned())).collect();
        observer.inject(&fault.what, fault.target, &all);
        return;
    }
    let act = match &fault.what {
        Fault::ClientSavepoint => match cluster.dice.u64() % 5 {
            0 | 1 => Act::Savepoint,
            2 => Act::AbandonedSavepoint,
            3 if is_last => Act::Cancel,
            _ => Act::TwoSavepoints,
        },
        Fault::Rescale { parallelism } => Act::Rescale(*parallelism),
        _ => return,
    };
    observer.act(act);
}
