//! What is checked when the job has ended, and the report of it all.

use std::time::Duration;

use perennial::connector::CommittedCollect;
use perennial_actors::clock::Instant;
use perennial_actors::model::{JobState, JobStatus, TaskFailure};

use super::cluster::Cluster;
use super::drive::Drive;
use super::observer::{History, Observer};
use super::stepper::Stepper;
use super::workload::{BREAK, Break, Output, expected};
use super::{JOBS, Run, TICK};
use crate::invariants::{
    Findings, OutputRule, RestartLaw, check_output, check_restarts, is_explained,
};
use crate::plan::{Fault, FaultPlan, Invariant, Row, StoreFault};
use crate::report::{Outcome, RecoveryTime, RunReport};

/// Virtual time in which the last task must be gone and the slots free.
const CLEARED_MAX: Duration = Duration::from_secs(40);

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
    let was_ailing = cluster.stores.is_ailing();
    cluster.heal().await;
    check_end(plan, &cluster, &observer, &drive, sink, &mut findings);
    let histories = observer.histories();
    check_histories(plan, &cluster, &histories, &drive, &mut findings);
    if drive.end.is_some() {
        clear(plan, &mut cluster, &observer, &mut findings).await;
    }
    let stepper = cluster.stepper.clone();
    let is_quiet = !was_ailing && drive.healed.is_some();
    let (mut history, completed) = {
        let history = cluster.history();
        (history.findings(), history.completed())
    };
    // While the store or the leader is ill, what cannot be deleted is left behind.
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
            recoveries: recoveries(&histories, &drive),
            strikes: drive.strikes,
            checked: findings.checked,
            sites: std::collections::BTreeMap::new(),
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
        JobState::Finished => OutputRule::Exact,
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
    cluster.history().is_harmed() || drive.strikes.iter().any(|s| cut(&plan.faults[s.fault].what))
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
    let is_refused = end
        .recoveries
        .last()
        .is_some_and(|r| r.decision.contains("no restart"));
    match end.summary.state {
        JobState::Finished if is_fatal => {
            Err("the job finished although its function failed for good".to_owned())
        }
        JobState::Finished => Ok(()),
        JobState::Canceled if observer.is_cancelled() => Ok(()),
        JobState::Failed if is_fatal || is_refused => Ok(()),
        // Nothing is left that could be trusted.
        JobState::Failed if is_harmed(plan, cluster, drive) => Ok(()),
        state => Err(format!(
            "the job is {state}: {:?}; {:#?}",
            end.failure,
            end.recoveries.last()
        )),
    }
}

/// S5 and S6: what the job's history says about restarts and causes.
fn check_histories(
    plan: &FaultPlan,
    cluster: &Cluster,
    histories: &[History],
    drive: &Drive,
    findings: &mut Findings,
) {
    let law = RestartLaw(&cluster.settings.job.restart);
    let struck = || drive.strikes.iter().map(|s| &plan.faults[s.fault]);
    for history in histories {
        findings.check(Invariant::S5, check_restarts(&law, &history.records));
        for record in &history.records {
            for cause in [&record.cause].into_iter().chain(&record.other_causes) {
                let result = if is_explained(&cause.kind, struck()) {
                    Ok(())
                } else {
                    Err(format!("no fault explains {cause:?}"))
                };
                findings.check(Invariant::S6, result);
            }
        }
    }
    // A JobMaster that is gone took its history with it.
    if let [history] = histories {
        let breaks = cluster.fuse.blown();
        let named = history
            .records
            .iter()
            .flat_map(|r| [&r.cause].into_iter().chain(&r.other_causes))
            .filter(|cause| is_break(cause))
            .count();
        let result = if breaks.is_empty() || named > 0 {
            Ok(())
        } else {
            Err(format!("{breaks:?} are not named in the history"))
        };
        findings.check(Invariant::S6, result);
    }
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

fn recoveries(histories: &[History], drive: &Drive) -> Vec<RecoveryTime> {
    let mut all = Vec::new();
    for history in histories {
        for (record, seen) in history.records.iter().zip(&history.seen) {
            let Some(restore) = record.phases.restore_ms else {
                continue;
            };
            let first = record.phases.first_record_ms.unwrap_or(0.0);
            let seen_ms = drive.accepted.map_or(0, |accepted| {
                seen.saturating_duration_since(accepted).as_millis()
            });
            let strike = drive
                .strikes
                .iter()
                .rev()
                .find(|s| u128::from(s.at_ms) <= seen_ms);
            let row: Option<Row> = strike.map(|s| s.row);
            let total = record.phases.total_ms.zip(strike).map(|(total, strike)| {
                // Detection is part of it; when it was seen is known to the observer's period.
                u64::try_from(seen_ms).unwrap_or(u64::MAX) - strike.at_ms + total as u64
            });
            all.push(RecoveryTime {
                row,
                total_ms: total,
                restore_ms: (restore + first) as u64,
                cause: record.cause.kind.to_string(),
            });
        }
    }
    all
}
