//! What is checked when the job has ended, and the report of it all.

use std::time::Duration;

use perennial::connector::CommittedCollect;
use perennial_actors::clock::Instant;
use perennial_actors::model::{FailureKind, JobState, JobStatus, RecoveryRecord, TaskFailure};

use super::cluster::Cluster;
use super::drive::Drive;
use super::observer::Observer;
use super::stepper::Stepper;
use super::{EPOCH, JOBS, Run, TICK};
use crate::checker::{
    Findings, OutputRule, Struck, Tolerance, check_count, check_output, check_restarts, explain,
    is_refused,
};
use crate::plan::{Fault, FaultPlan, Invariant, StoreFault, Target};
use crate::report::{Outcome, RecoveryTime, RunReport};
use crate::workload::{BREAK, Break, Output, expected};

/// Virtual time in which the last task must be gone and the slots free.
const CLEARED_MAX: Duration = Duration::from_secs(40);

/// So long before its end the store must have been well, for a job to have cleaned up behind it.
const SWEPT_MIN: Duration = Duration::from_millis(1500);

/// Checks everything that is checked at the end, and ends the cluster.
pub(super) async fn conclude(
    plan: &FaultPlan,
    mut cluster: Cluster,
    observer: Observer,
    sink: &CommittedCollect<Output>,
    drive: Drive,
    began: Instant,
) -> Run {
    let mut findings = Findings::default();
    let ended = Instant::now();
    cluster.heal().await;
    check_end(plan, &cluster, &observer, &drive, sink, &mut findings);
    let struck = struck(plan, &drive, began);
    let clock = WallClock::of(&struck);
    let histories: Vec<_> = observer
        .histories()
        .iter()
        .map(|history| recoveries_of(&history.records, &history.seen, clock, began))
        .collect();
    check_histories(&cluster, &histories, &struck, &mut findings);
    if let Some(end) = &drive.end {
        findings.check_all(Invariant::S5, check_count(end));
    }
    let recoveries = recovery_times(&histories, &struck, &cluster, plan);
    let sites = cluster.handles.hits();
    if drive.end.is_some() {
        clear(plan, &mut cluster, &observer, &mut findings).await;
    }
    let stepper = cluster.stepper.clone();
    // What could not be deleted, or was not listed, when the job ended is left behind.
    let was_ill = drive
        .store_was_ill
        .is_some_and(|ill| ended.saturating_duration_since(ill) < SWEPT_MIN);
    let is_quiet = !was_ill && drive.healed.is_some();
    let (mut history, completed) = {
        let history = cluster.history();
        (history.findings(), history.completed())
    };
    if drive.end.is_some() && is_quiet {
        let left = cluster.stores.look(JOBS);
        let mut history_lock = cluster.history();
        history_lock.check_leftovers(left.keys().map(String::as_str));
        history = history_lock.findings();
    }
    findings.append(history);
    observer.stop();
    let trace = cluster.trace.clone();
    let stuck = cluster.shutdown().await;
    if drive.end.is_some() {
        let result = if stuck.is_empty() {
            Ok(())
        } else {
            Err(stuck.join(", "))
        };
        findings.check(Invariant::L3, result);
    }
    drop(stepper);
    let outcome = if findings.violations.is_empty() {
        Outcome::Pass
    } else {
        Outcome::Fail
    };
    Run {
        report: RunReport {
            plan: plan.clone(),
            outcome,
            violations: findings.violations,
            recoveries,
            strikes: drive.strikes,
            checked: findings.checked,
            sites: sites.into_iter().map(|(s, n)| (s.to_string(), n)).collect(),
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            kept: None,
        },
        digest: trace.digest(),
        trace: trace.lines(),
        restarts: drive.end.map_or(0, |s| s.summary.restarts),
        checkpoints: completed,
    }
}

/// L1, L3, S1: that the job ended in time, as it may end, with the right output.
fn check_end(
    plan: &FaultPlan,
    cluster: &Cluster,
    observer: &Observer,
    drive: &Drive,
    sink: &CommittedCollect<Output>,
    findings: &mut Findings,
) {
    let late = "the tasks did not run again in time after everything was healed";
    let runs_again = if drive.is_late { Err(late) } else { Ok(()) };
    findings.check(Invariant::L1, runs_again);
    let late = "all tasks ran again, and the next checkpoint did not complete in time";
    let completes = if drive.is_checkpoint_late {
        Err(late)
    } else {
        Ok(())
    };
    findings.check(Invariant::L1, completes);
    let Some(end) = &drive.end else {
        let tasks = stuck_tasks(&cluster.stepper);
        findings.check(
            Invariant::L3,
            Err(format!(
                "the job did not finish in time; last seen: {:#?}\n{tasks}",
                observer.status()
            )),
        );
        return;
    };
    findings.check(
        Invariant::L3,
        check_state(end, cluster, observer, plan, drive),
    );
    let allows_repeat = plan.settings.contains_key("recovery.ladder.allow-repeat");
    let is_harmed = is_harmed(plan, cluster, drive);
    let rule = match end.summary.state {
        _ if is_harmed && allows_repeat => OutputRule::MayRepeat,
        JobState::Finished if !observer.is_lost() => OutputRule::Exact,
        _ => OutputRule::Part,
    };
    if rule == OutputRule::MayRepeat && end.summary.state != JobState::Finished {
        return;
    }
    let result = check_output(&sink.committed(), &expected(&plan.workload), rule);
    findings.check(Invariant::S1, result);
}

/// Whether a snapshot may have been found damaged.
fn is_harmed(plan: &FaultPlan, cluster: &Cluster, drive: &Drive) -> bool {
    let cut = |fault: &Fault| matches!(fault, Fault::Store(StoreFault::CutBody { .. }));
    cluster.history().is_harmed()
        || drive
            .strikes
            .iter()
            .any(|s| cut(&plan.faults[s.fault].what))
}

fn check_state(
    end: &JobStatus,
    cluster: &Cluster,
    observer: &Observer,
    plan: &FaultPlan,
    drive: &Drive,
) -> Result<(), String> {
    let is_fatal = cluster.fuse.blown().contains(&Break::Error {
        is_unrecoverable: true,
    });
    let told = observer.histories().into_iter();
    let told: Vec<_> = told
        .filter(|history| history.job == end.summary.job)
        .map(|history| history.records)
        .collect();
    match end.summary.state {
        // An end that was not recorded before its leader was lost is none: the next leader takes the job up again.
        JobState::Finished
            if is_fatal && observer.histories().len() == 1 && !has_lost(&end.recoveries) =>
        {
            Err("the job finished although its function failed for good".to_owned())
        }
        JobState::Finished => Ok(()),
        JobState::Canceled if observer.is_cancelled() => Ok(()),
        JobState::Failed if is_fatal || is_refused(&told, end.failure.as_ref()) => Ok(()),
        // Nothing is left that could be trusted.
        JobState::Failed if is_harmed(plan, cluster, drive) => Ok(()),
        state => Err(format!(
            "the job is {state}: {:?}; {:#?}",
            end.failure,
            end.recoveries.last()
        )),
    }
}

/// What the cluster's wall clock is worth. A jump that was planned and never struck takes nothing from it: what a client sees comes
/// late, and after a change of leaders all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WallClock {
    Right,
    Moved,
}

impl WallClock {
    fn of(struck: &[Struck]) -> Self {
        let is_jump = |s: &Struck| matches!(s.what, Fault::ClockOffset { .. });
        if struck.iter().any(is_jump) {
            Self::Moved
        } else {
            Self::Right
        }
    }
}

/// What a leader's history said about recoveries, oldest first. A wall clock that jumped does not tell when; then it counts when it was seen.
fn recoveries_of(
    records: &[RecoveryRecord],
    seen: &[Instant],
    clock: WallClock,
    began: Instant,
) -> Vec<RecoveryRecord> {
    let mut records = records.to_vec();
    if clock == WallClock::Moved {
        for (record, seen) in records.iter_mut().zip(seen) {
            record.detected_ms = wall_ms(*seen, began);
        }
    }
    records
}

fn wall_ms(at: Instant, began: Instant) -> u64 {
    let wall = EPOCH + at.saturating_duration_since(began);
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

/// The strikes, as attribution knows them.
fn struck(plan: &FaultPlan, drive: &Drive, began: Instant) -> Vec<Struck> {
    let accepted = wall_ms(drive.accepted.unwrap_or(began), began);
    let of_strike = |(strike, nodes): (&crate::report::Strike, &Vec<String>)| {
        let planned = &plan.faults[strike.fault];
        // A leader without its store loses its lease.
        let is_of_leader = matches!(
            planned.target,
            Target::Leader | Target::Standby | Target::AllNodes | Target::Store
        );
        Struck {
            fault: strike.fault,
            what: planned.what.clone(),
            nodes: nodes.clone(),
            is_data_link: matches!(planned.target, Target::DataLink(..) | Target::AllLinksOf(_)),
            is_store_link: matches!(planned.target, Target::AllLinksOf(_)),
            hits_job_manager: is_of_leader || matches!(planned.what, Fault::ActorPanic(_)),
            at_ms: accepted + strike.at_ms,
            healed_ms: None,
        }
    };
    drive
        .strikes
        .iter()
        .zip(&drive.nodes)
        .map(of_strike)
        .collect()
}

fn tolerance(cluster: &Cluster) -> Tolerance {
    Tolerance::of(&cluster.settings.cluster.heartbeat)
}

/// S5 and S6: what the job's history says about restarts and causes.
fn check_histories(
    cluster: &Cluster,
    histories: &[Vec<RecoveryRecord>],
    struck: &[Struck],
    findings: &mut Findings,
) {
    for history in histories {
        // Without a wall clock that can be trusted nobody can tell which waits a failure fell into.
        if WallClock::of(struck) == WallClock::Right {
            let broken = check_restarts(&cluster.settings.job.restart, history);
            findings.check_all(Invariant::S5, broken);
        }
        for record in history {
            let result = match explain(record, struck, tolerance(cluster)) {
                Some(_) => Ok(()),
                None => Err(format!("no fault explains {record:?}")),
            };
            findings.check(Invariant::S6, result);
        }
    }
    // A JobMaster that is gone may have taken the end of its history with it.
    if let [history] = histories {
        let breaks = cluster.fuse.blown();
        let named = history
            .iter()
            .flat_map(|r| [&r.cause].into_iter().chain(&r.other_causes))
            .filter(|cause| is_break(cause))
            .count();
        let result = if breaks.is_empty() || named > 0 || has_lost(history) {
            Ok(())
        } else {
            Err(format!("{breaks:?} are not named in the history"))
        };
        findings.check(Invariant::S6, result);
    }
}

/// Whether a TaskManager was lost: it takes what it had to say with it.
fn has_lost(history: &[RecoveryRecord]) -> bool {
    history
        .iter()
        .flat_map(|r| [&r.cause].into_iter().chain(&r.other_causes))
        .any(|cause| matches!(cause.kind, FailureKind::TaskManagerLost { .. }))
}

fn is_break(cause: &TaskFailure) -> bool {
    cause.kind.to_string().contains(BREAK) && cause.operator.as_deref() == Some("buckets")
}

/// R1: no task is left, and all slots of all TaskManagers are free.
async fn clear(
    plan: &FaultPlan,
    cluster: &mut Cluster,
    observer: &Observer,
    findings: &mut Findings,
) {
    let until = Instant::now() + CLEARED_MAX;
    let mut last = String::new();
    let result = loop {
        cluster.tend().await;
        let tasks = cluster.stepper.tasks();
        match observer.task_managers().await {
            Ok(all) => {
                let are_free = all.iter().all(|tm| tm.slots.0 == tm.slots.1);
                let are_all = all.len() == plan.cluster.task_managers as usize;
                if are_free && are_all && tasks.is_empty() {
                    break Ok(());
                }
                last = format!("{all:?}, tasks: {tasks:?}");
            }
            Err(error) => last = format!("{error}, {last}"),
        }
        if Instant::now() > until {
            break Err(format!("after the end of the job: {last}"));
        }
        tokio::time::sleep(TICK * 10).await;
    };
    findings.check(Invariant::R1, result);
}

fn stuck_tasks(stepper: &Stepper) -> String {
    stepper.tasks().join("\n")
}

/// Each recovery once: what a later leader inherited was told by its predecessor already.
fn recovery_times(
    histories: &[Vec<RecoveryRecord>],
    struck: &[Struck],
    cluster: &Cluster,
    plan: &FaultPlan,
) -> Vec<RecoveryTime> {
    let mut seen = std::collections::BTreeSet::new();
    let mut all = Vec::new();
    for record in histories.iter().flatten() {
        let Some(restore) = record.phases.restore_ms else {
            continue;
        };
        if !seen.insert((record.number, record.attempt.clone())) {
            continue;
        }
        let first = record.phases.first_record_ms.unwrap_or(0.0);
        let struck = explain(record, struck, tolerance(cluster));
        all.push(RecoveryTime {
            row: struck.map(|s| plan.faults[s.fault].row()),
            total_ms: struck
                .zip(record.phases.total_ms)
                .map(|(s, total)| record.detected_ms.saturating_sub(s.at_ms) + total as u64),
            restore_ms: (restore + first) as u64,
            cause: record.cause.kind.to_string(),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::testing::{recovery, some_cause};

    fn struck(what: Fault) -> Struck {
        Struck {
            fault: 0,
            what,
            nodes: Vec::new(),
            is_data_link: false,
            is_store_link: false,
            hits_job_manager: false,
            at_ms: 0,
            healed_ms: None,
        }
    }

    /// A client sees late, and all at once what a new leader has inherited (seeds 16698, 19466).
    #[tokio::test(start_paused = true)]
    async fn the_clock_of_the_cluster_tells_when_unless_it_was_moved() {
        let began = Instant::now();
        let records = [
            recovery(1, 1000, some_cause()),
            recovery(2, 1500, some_cause()),
        ];
        let seen = [began + Duration::from_secs(3); 2];
        let kill = struck(Fault::Kill {
            down: Duration::ZERO,
        });
        let jump = struck(Fault::ClockOffset { millis: 3_600_000 });
        let late = wall_ms(seen[0], began);
        for (struck, expected) in [
            (vec![], [1000, 1500]),
            (vec![kill.clone()], [1000, 1500]),
            (vec![kill, jump], [late, late]),
        ] {
            let told = recoveries_of(&records, &seen, WallClock::of(&struck), began);
            let times: Vec<_> = told.iter().map(|r| r.detected_ms).collect();
            assert_eq!(times, expected, "{struck:?}");
        }
    }
}
