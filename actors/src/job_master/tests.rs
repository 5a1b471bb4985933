//! JobMasters under the real JobManager, with scripted TaskManagers and coordinators, under a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use perennial_config::RestartStrategy;

use crate::checkpoint_coordinator::CoordinatorEvent;
use crate::clock::Instant;
use crate::job_manager::JobManagerEnd;
use crate::model::message::{
    ClientRequest, ClientResponse, PreparedOutput, TaskOutcome, ToJobManager, ToTaskManager,
};
use crate::model::*;
use crate::testing::cluster::{Behave, Behaviour, Cluster, io, running, until};
use crate::testing::graph;

const JOB: JobId = JobId(7);

/// Source and keyed consumer, parallelism 3: 6 tasks in one region.
fn keyed() -> JobGraph {
    graph(&[3, 3], &[(0, 1, Exchange::Hash)])
}

/// The first `count` deployments of vertex 1 subtask 0 fail like this.
fn failing(count: u32, behaviour: Behaviour) -> Behave {
    let left = AtomicU32::new(count);
    Arc::new(move |task| {
        let is_it = task.attempt.vertex == VertexId(1) && task.attempt.subtask == SubtaskIndex(0);
        let fails = is_it
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok();
        if fails {
            behaviour.clone()
        } else {
            Behaviour::Run
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_job_that_always_fails_ends_failed_with_its_cause_after_the_configured_attempts() {
    let behave = failing(u32::MAX, Behaviour::FailRunning(io("sink refused")));
    let cluster = Cluster::start(&[1, 1, 1], behave).await;
    cluster.submit(&keyed()).await;
    let status = cluster.until_state(JOB, JobState::Failed).await;
    assert_eq!(status.summary.restarts, 3);
    assert_eq!(status.recoveries.len(), 4);
    let failure = status.failure.unwrap();
    assert_eq!(failure.kind, io("sink refused"));
    assert_eq!(failure.vertex.as_deref(), Some("v1"));
    assert_eq!(
        status.recoveries[3].decision,
        "fixed-delay: 3 attempts used up: no restart"
    );
    let (state, message) = cluster
        .coordinators
        .0
        .lock()
        .unwrap()
        .terminated
        .clone()
        .unwrap();
    assert_eq!(state, JobState::Failed);
    assert!(message.unwrap().contains("sink refused"));
    assert_eq!(cluster.running().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn exponential_delays_are_kept_and_shown() {
    let behave = failing(4, Behaviour::FailRestoring(io("disk")));
    let cluster = Cluster::start(&[3], behave).await;
    let mut graph = keyed();
    graph.settings.restart.strategy = RestartStrategy::ExponentialDelay {
        initial_backoff: Duration::from_secs(10),
        max_backoff: Duration::from_secs(60),
        multiplier: 2.0,
        reset_threshold: Duration::from_secs(3600),
        jitter_factor: 0.0,
        attempts_before_reset: None,
    };
    cluster.submit(&graph).await;
    let status = cluster.until_recovered(JOB, 4).await;
    for (record, seconds) in status.recoveries.iter().zip([10.0, 20.0, 40.0, 60.0]) {
        let phases = record.phases;
        let waited = phases.stop_ms.unwrap() + phases.delay_ms.unwrap();
        assert!((waited - seconds * 1000.0).abs() < 5.0, "{record:?}");
        assert!(
            record
                .decision
                .contains(&format!("in {seconds:.1} s, resets at"))
        );
    }
    let last = status.recoveries.last().unwrap();
    assert_eq!(last.attempt.as_deref(), Some("1.5"));
    assert!(last.phases.total_ms.unwrap() >= 60_000.0);
}

#[tokio::test(start_paused = true)]
async fn failures_of_one_incident_are_one_restart_with_all_causes() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let tasks = cluster.running();
    tasks[0].0.fail(tasks[0].1, io("first"));
    tasks[2].0.fail(tasks[2].1, io("second"));
    let status = cluster.until_recovered(JOB, 1).await;
    assert_eq!(status.recoveries.len(), 1);
    let record = &status.recoveries[0];
    assert_eq!(record.cause.kind, io("first"));
    assert_eq!(record.other_causes[0].kind, io("second"));
    assert_eq!(record.attempt.as_deref(), Some("1.2"));
    assert_eq!(status.summary.restarts, 1);
}

/// requirements.md 5.2: a lost TaskManager with two tasks spends two of Flink's attempts and one of ours.
#[tokio::test(start_paused = true)]
async fn strict_counts_every_task_of_a_lost_taskmanager() {
    for (is_strict, counted) in [(false, 1), (true, 2)] {
        let cluster = Cluster::start(&[1, 1, 1, 1], running()).await;
        let mut graph = keyed();
        graph.settings.restart.is_strict = is_strict;
        cluster.submit(&graph).await;
        cluster.until_state(JOB, JobState::Running).await;
        cluster.task_managers[0].lose();
        let status = cluster.until_recovered(JOB, 1).await;
        let words = &status.recoveries[0].decision;
        assert!(
            words.contains(&format!("attempt {counted} of 3")),
            "{words}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_echo_gives_way_to_the_cause_and_stopping_does_not_wait_for_it() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let [first, dead, third] = &cluster.task_managers[..] else {
        panic!("three");
    };
    dead.state.lock().unwrap().is_deaf = true;
    first.fail(
        first.running()[1],
        FailureKind::PeerLost {
            resource: dead.location.resource.clone(),
            instance: dead.location.instance,
            message: "reset".to_owned(),
        },
    );
    until("the survivors stop", async || {
        third.running().is_empty().then_some(())
    })
    .await;
    dead.lose();
    let mut cluster = cluster;
    cluster.add(1, running());
    let status = cluster.until_recovered(JOB, 1).await;
    let record = &status.recoveries[0];
    assert!(matches!(
        record.cause.kind,
        FailureKind::TaskManagerLost { .. }
    ));
    assert!(record.other_causes[0].kind.is_symptom());
    assert_eq!(status.summary.restarts, 1);
}

/// A2: the echo at a peer comes first and a restart is decided on; it is given up, and counts for nothing.
#[tokio::test(start_paused = true)]
async fn a_fatal_failure_behind_its_echo_costs_no_restart() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let [first, broken, third] = &cluster.task_managers[..] else {
        panic!("three");
    };
    broken.state.lock().unwrap().is_deaf = true;
    first.fail(
        first.running()[1],
        FailureKind::PeerLost {
            resource: broken.location.resource.clone(),
            instance: broken.location.instance,
            message: "closed".to_owned(),
        },
    );
    until("the survivors stop", async || {
        third.running().is_empty().then_some(())
    })
    .await;
    let fatal = FailureKind::User {
        message: "no such account".to_owned(),
        is_unrecoverable: true,
    };
    // It has not heard the order to stop when it reports.
    broken.state.lock().unwrap().is_deaf = false;
    broken.fail(broken.running()[1], fatal.clone());
    broken.lose();
    let status = cluster.until_state(JOB, JobState::Failed).await;
    assert_eq!(status.failure.unwrap().kind, fatal);
    assert_eq!(status.summary.restarts, 0);
    let [record] = &status.recoveries[..] else {
        panic!("one incident: {:?}", status.recoveries);
    };
    assert_eq!(record.cause.kind, fatal);
    assert!(record.other_causes[0].kind.is_symptom());
    assert_eq!(record.decision, "not recoverable: the job fails");
}

#[tokio::test(start_paused = true)]
async fn a_failure_during_recovery_is_the_next_incident_and_keeps_the_slots() {
    let cluster = Cluster::start(&[1, 1, 1], failing(2, Behaviour::FailRestoring(io("x")))).await;
    cluster.submit(&keyed()).await;
    let status = cluster.until_recovered(JOB, 2).await;
    assert_eq!(status.summary.restarts, 2);
    for tm in &cluster.task_managers {
        let subtasks: std::collections::BTreeSet<_> = (1..=3)
            .flat_map(|wave| tm.deployed(wave))
            .map(|d| d.attempt.subtask)
            .collect();
        assert_eq!(subtasks.len(), 1, "each slot stayed where it was");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_taskmanager_is_replaced_by_the_spare_and_the_others_inherit_their_state() {
    let cluster = Cluster::start(&[1, 1, 1, 1], running()).await;
    cluster.coordinators.0.lock().unwrap().newest = 5;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    assert!(
        cluster.task_managers[0].deployed(1).iter().all(|d| !d
            .restore
            .as_ref()
            .unwrap()
            .may_inherit)
    );
    cluster.task_managers[1].lose();
    let status = cluster.until_recovered(JOB, 1).await;
    let record = &status.recoveries[0];
    assert_eq!(record.checkpoint, Some(CheckpointId(5)));
    assert_eq!(record.restored, (4, 2), "2 of 3 slots stayed");
    let moved = cluster.task_managers[3].deployed(2);
    assert!(moved.iter().all(|d| d.attempt.subtask == SubtaskIndex(1)));
    assert_eq!(moved.len(), 2);
    // Both ends of each channel name the new attempts.
    let consumer = moved
        .iter()
        .find(|d| d.attempt.vertex == VertexId(1))
        .unwrap();
    let peers = &consumer.inputs[0].peers;
    assert_eq!(peers.len(), 3);
    assert!(peers.iter().all(|p| p.attempt.attempt == Attempt(2)));
    assert_eq!(peers[1].location, cluster.task_managers[3].location);
    assert_eq!(
        cluster.log(),
        [
            "choose []",
            "running 6",
            "suspend",
            "choose []",
            "running 6"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_spare_the_job_waits_for_a_slot_and_says_so() {
    let mut cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.task_managers[2].lose();
    until("the note", async || {
        let note = cluster.status(JOB).await.note.unwrap_or_default();
        (note == "waiting for slots: 2 of 3").then_some(())
    })
    .await;
    cluster.add(1, running());
    let status = cluster.until_recovered(JOB, 1).await;
    assert_eq!(status.summary.restarts, 1, "waiting costs no attempt");
}

#[tokio::test(start_paused = true)]
async fn slots_that_never_come_use_up_the_attempts() {
    let cluster = Cluster::start(&[1, 1], running()).await;
    cluster.submit(&keyed()).await;
    let status = cluster.until_state(JOB, JobState::Failed).await;
    let kind = status.failure.unwrap().kind;
    assert!(matches!(kind, FailureKind::NoSlots { .. }), "{kind}");
    assert!(kind.to_string().contains("2 of 3"));
}

#[tokio::test(start_paused = true)]
async fn an_unrecoverable_failure_ends_the_job_at_once() {
    let kind = FailureKind::IncompatibleState {
        message: "key type".to_owned(),
    };
    let cluster = Cluster::start(&[3], failing(1, Behaviour::FailRestoring(kind.clone()))).await;
    cluster.submit(&keyed()).await;
    let status = cluster.until_state(JOB, JobState::Failed).await;
    assert_eq!(status.failure.unwrap().kind, kind);
    assert_eq!(status.summary.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_steps_down_without_burning_an_attempt() {
    let behave: Behave = Arc::new(|task| match &task.restore {
        Some(restore) if restore.checkpoint.0 > 2 && task.attempt.attempt.0 > 1 => {
            Behaviour::FailRestoring(FailureKind::DamagedSnapshot {
                checkpoint: restore.checkpoint,
                object: "chk/1".to_owned(),
                message: "checksum".to_owned(),
            })
        }
        _ => Behaviour::Run,
    });
    let cluster = Cluster::start(&[3], behave).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.coordinators.0.lock().unwrap().newest = 4;
    let (tm, attempt) = cluster.running()[0].clone();
    tm.fail(attempt, io("sink"));
    let status = cluster.until_recovered(JOB, 1).await;
    assert_eq!(status.summary.restarts, 1);
    assert_eq!(status.recoveries.len(), 1);
    let record = &status.recoveries[0];
    assert_eq!(record.cause.kind, io("sink"));
    assert_eq!(record.checkpoint, Some(CheckpointId(2)));
    assert_eq!(record.attempt.as_deref(), Some("1.4"), "two steps down");
    assert!(cluster.log().contains(&"choose [4]".to_owned()));
    assert!(cluster.log().contains(&"choose [3]".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn only_the_failed_region_restarts() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster
        .submit(&graph(&[3, 3], &[(0, 1, Exchange::Forward)]))
        .await;
    cluster.until_state(JOB, JobState::Running).await;
    let tm = &cluster.task_managers[1];
    tm.fail(tm.running()[0], io("x"));
    let status = cluster.until_recovered(JOB, 1).await;
    let waves: Vec<_> = status.subtasks.iter().map(|s| s.attempt.as_str()).collect();
    assert_eq!(waves, ["1.1", "1.2", "1.1", "1.1", "1.2", "1.1"]);
    assert_eq!(
        cluster.log().last().unwrap(),
        "running 6",
        "all take part in checkpoints"
    );
}

/// The store is down at the start: the strategy decides, as for any failure.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_cannot_start_is_tried_again() {
    let cluster = Cluster::start(&[3], running()).await;
    {
        let mut script = cluster.coordinators.0.lock().unwrap();
        script.start_errors.push(io("store"));
        script.choice_errors.push(io("store"));
    }
    cluster.submit(&keyed()).await;
    let status = cluster.until_recovered(JOB, 2).await;
    assert_eq!(status.summary.restarts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_report_of_an_old_attempt_is_ignored() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let (tm, old) = cluster.running()[0].clone();
    tm.fail(old, io("x"));
    cluster.until_recovered(JOB, 1).await;
    tm.fail(old, io("late"));
    tm.report(ToJobManager::TaskAwaitingFinal { attempt: old });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let status = cluster.status(JOB).await;
    assert_eq!(status.summary.state, JobState::Running);
    assert_eq!(status.recoveries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_stop_costs_its_taskmanager() {
    let cluster = Cluster::start(&[1, 1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.task_managers[2].state.lock().unwrap().is_stuck = true;
    let (tm, attempt) = cluster.running()[0].clone();
    tm.fail(attempt, io("x"));
    let status = cluster.until_recovered(JOB, 1).await;
    let closed = cluster.task_managers[2]
        .state
        .lock()
        .unwrap()
        .closed
        .clone();
    assert!(closed.unwrap().contains("did not end within 30 s"));
    let record = &status.recoveries[0];
    assert_eq!(record.cause.kind, io("x"));
    assert!(
        record
            .other_causes
            .iter()
            .any(|c| matches!(c.kind, FailureKind::CancellationTimeout { .. }))
    );
    assert!(record.phases.stop_ms.unwrap() >= 30_000.0);
    assert_eq!(cluster.task_managers[3].running().len(), 2);
}

/// Every phase in which a cancel can come, and each ends the job with nothing left.
#[tokio::test(start_paused = true)]
async fn a_job_can_be_cancelled_in_every_state() {
    let hang: Behave = Arc::new(|_| Behaviour::Hang);
    let failing = failing(u32::MAX, Behaviour::FailRestoring(io("x")));
    let cases: [(&str, &[u32], Behave); 5] = [
        ("waiting for slots", &[1, 1], running()),
        ("starting: 0 of 6", &[3], hang),
        ("restarting in", &[3], failing),
        ("running", &[3], running()),
        ("stopping", &[3], running()),
    ];
    for (note, slots, behave) in cases {
        let cluster = Cluster::start(slots, behave).await;
        cluster.submit(&keyed()).await;
        match note {
            "running" => {
                cluster.until_state(JOB, JobState::Running).await;
            }
            "stopping" => {
                cluster.until_state(JOB, JobState::Running).await;
                let (tm, attempt) = cluster.running()[0].clone();
                tm.fail(attempt, io("x"));
            }
            note => {
                until(note, async || {
                    let now = cluster.status(JOB).await.note.unwrap_or_default();
                    now.starts_with(note).then_some(())
                })
                .await;
            }
        }
        let answer = cluster.request(ClientRequest::Cancel(JOB)).await;
        assert_eq!(answer, Ok(ClientResponse::Canceled), "{note}");
        let status = cluster.status(JOB).await;
        assert_eq!(status.summary.state, JobState::Canceled, "{note}");
        assert_eq!(cluster.running().len(), 0, "{note}");
        assert_eq!(
            cluster.log().last().unwrap(),
            "terminate CANCELED",
            "{note}"
        );
        let again = cluster.request(ClientRequest::Cancel(JOB)).await;
        assert_eq!(again, Ok(ClientResponse::Canceled));
    }
}

/// The record of a checkpoint was written when the tasks were told to stop: TaskManagers hear of it with the end of the job, and the job
/// has not ended before they have done what follows from it.
#[tokio::test(start_paused = true)]
async fn output_is_settled_after_the_last_task_and_before_the_last_record() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.coordinators.0.lock().unwrap().newest = 5;
    for tm in &cluster.task_managers[1..] {
        tm.state.lock().unwrap().keeps_jobs = true;
    }
    let began = Instant::now();
    let cancel = cluster.request(ClientRequest::Cancel(JOB));
    let look = async {
        until("the release", async || {
            let note = cluster.status(JOB).await.note.unwrap_or_default();
            note.starts_with("committing the output").then_some(())
        })
        .await;
        assert_eq!(cluster.running().len(), 0);
        assert!(!cluster.log().iter().any(|l| l.starts_with("terminate")));
        // One answers late, the other never.
        let job = JOB;
        cluster.task_managers[1].report(ToJobManager::JobReleased { job });
    };
    let (answer, ()) = tokio::join!(cancel, look);
    assert_eq!(answer, Ok(ClientResponse::Canceled));
    assert!(began.elapsed() >= Duration::from_secs(30));
    assert_eq!(cluster.log().last().unwrap(), "terminate CANCELED");
    let completed = Some(CheckpointId(5));
    let output = PreparedOutput::Settle { completed };
    for tm in &cluster.task_managers {
        let is_told = |m: &ToTaskManager| matches!(m, ToTaskManager::ReleaseJob { output: o, .. } if *o == output);
        assert!(tm.has_received(is_told));
    }
    let notices = cluster.status(JOB).await.notices;
    assert!(
        notices
            .iter()
            .any(|n| n.contains("not settled within 30 s")),
        "{notices:?}"
    );
}

/// One that dies has nothing left to settle.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_does_not_wait_for_a_lost_task_manager() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let tm = cluster.task_managers[2].clone();
    tm.state.lock().unwrap().keeps_jobs = true;
    let began = Instant::now();
    let cancel = cluster.request(ClientRequest::Cancel(JOB));
    let lose = async {
        until("the release", async || {
            tm.has_received(|m| matches!(m, ToTaskManager::ReleaseJob { .. }))
                .then_some(())
        })
        .await;
        tm.lose();
    };
    let (answer, ()) = tokio::join!(cancel, lose);
    assert_eq!(answer, Ok(ClientResponse::Canceled));
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_jobmaster_touches_nothing() {
    let cluster = Cluster::start(&[3], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let log = cluster.log();
    let received = cluster.task_managers[0]
        .state
        .lock()
        .unwrap()
        .received
        .len();
    cluster.coordinators.emit(CoordinatorEvent::Fenced {
        epoch: LeaderEpoch(2),
    });
    let Cluster {
        handle,
        coordinators,
        task_managers,
        ..
    } = cluster;
    let end = handle.join().await;
    assert!(matches!(end, JobManagerEnd::Fenced(_)), "{end:?}");
    assert_eq!(coordinators.0.lock().unwrap().log, log);
    assert_eq!(
        task_managers[0].state.lock().unwrap().received.len(),
        received
    );
    assert_eq!(task_managers[0].running().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_bounded_job_takes_its_final_checkpoint_and_finishes() {
    let cluster = Cluster::start(&[1, 1, 1], Arc::new(|_| Behaviour::RunToTheEnd)).await;
    cluster.submit(&keyed()).await;
    let status = cluster.until_state(JOB, JobState::Finished).await;
    assert_eq!(status.summary.last_checkpoint, Some(CheckpointId(1)));
    assert!(
        status
            .subtasks
            .iter()
            .all(|s| s.state == TaskState::Finished)
    );
    assert_eq!(
        cluster.log(),
        ["choose []", "running 6", "final", "terminate FINISHED"]
    );
    for tm in &cluster.task_managers {
        assert!(tm.has_received(|m| matches!(m, ToTaskManager::ReleaseJob { .. })));
    }
    let Ok(ClientResponse::TaskManagers(list)) =
        cluster.request(ClientRequest::ListTaskManagers).await
    else {
        panic!("a list");
    };
    assert!(list.iter().all(|tm| tm.slots == (1, 1)), "slots are free");
}

/// One sink commits, the other fails to: everything goes back to the final checkpoint and finishes from there.
#[tokio::test(start_paused = true)]
async fn a_failure_after_the_final_checkpoint_restores_it_and_finishes() {
    let cluster = Cluster::start(&[1, 1], Arc::new(|_| Behaviour::RunToTheEnd)).await;
    cluster.task_managers[1].state.lock().unwrap().is_stuck = true;
    cluster.submit(&graph(&[2], &[])).await;
    until("one finished", async || {
        cluster.task_managers[0].running().is_empty().then_some(())
    })
    .await;
    let tm = &cluster.task_managers[1];
    tm.state.lock().unwrap().is_stuck = false;
    tm.fail(tm.running()[0], io("commit"));
    let status = cluster.until_state(JOB, JobState::Finished).await;
    assert_eq!(status.recoveries[0].checkpoint, Some(CheckpointId(1)));
    assert!(status.subtasks.iter().all(|s| s.attempt == "1.2"));
}

#[tokio::test(start_paused = true)]
async fn a_savepoint_is_answered_when_complete_and_refused_when_tasks_do_not_run() {
    let mut cluster = Cluster::start(&[2], running()).await;
    let savepoint = || ClientRequest::Savepoint {
        job: JOB,
        directory: None,
    };
    cluster.submit(&keyed()).await;
    until("the note", async || {
        cluster
            .status(JOB)
            .await
            .note
            .filter(|n| n.starts_with("waiting"))
    })
    .await;
    let refused = cluster.request(savepoint()).await.unwrap_err().to_string();
    assert!(
        refused.contains("the job is CREATED (waiting for slots: 2 of 3)"),
        "{refused}"
    );
    cluster.add(1, running());
    cluster.until_state(JOB, JobState::Running).await;
    let path = "memory://savepoint".to_owned();
    assert_eq!(
        cluster.request(savepoint()).await,
        Ok(ClientResponse::Savepoint { path })
    );
    let tm = &cluster.task_managers[0];
    assert!(
        !tm.has_received(|m| matches!(m, ToTaskManager::NotifyCheckpointComplete { .. })),
        "C11"
    );
    assert_eq!(cluster.status(JOB).await.summary.state, JobState::Running);
}

#[tokio::test(start_paused = true)]
async fn stop_with_savepoint_ends_the_job_with_and_without_drain() {
    for drain in [false, true] {
        let cluster = Cluster::start(&[3], running()).await;
        cluster.submit(&keyed()).await;
        cluster.until_state(JOB, JobState::Running).await;
        let answer = cluster
            .request(ClientRequest::Stop {
                job: JOB,
                directory: None,
                drain,
            })
            .await;
        let path = "memory://savepoint".to_owned();
        assert_eq!(answer, Ok(ClientResponse::Stopped { path }));
        assert_eq!(cluster.status(JOB).await.summary.state, JobState::Finished);
        let kind = if drain {
            "savepoint Final"
        } else {
            "savepoint StopWithSavepoint"
        };
        assert!(cluster.log().contains(&kind.to_owned()));
        assert_eq!(cluster.log().last().unwrap(), "terminate FINISHED");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_while_stopping_restarts_the_job_and_tells_whether_there_is_a_savepoint() {
    for is_complete in [false, true] {
        let cluster = Cluster::start(&[3], running()).await;
        cluster.submit(&keyed()).await;
        cluster.until_state(JOB, JobState::Running).await;
        // Complete, but the tasks do not get to their end; or not complete.
        cluster.task_managers[0].state.lock().unwrap().is_stuck = is_complete;
        cluster.coordinators.0.lock().unwrap().holds_savepoints = !is_complete;
        let stop = cluster.request(ClientRequest::Stop {
            job: JOB,
            directory: None,
            drain: false,
        });
        let fail = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let tm = &cluster.task_managers[0];
            tm.state.lock().unwrap().is_stuck = false;
            tm.fail(tm.running()[0], io("x"));
        };
        let (answer, ()) = tokio::join!(stop, fail);
        let why = answer.unwrap_err().to_string();
        assert_eq!(why.contains("memory://savepoint"), is_complete, "{why}");
        cluster.until_recovered(JOB, 1).await;
    }
}

/// The order to deploy, and later an end, fall into a cut link.
#[tokio::test(start_paused = true)]
async fn what_a_cut_link_swallowed_is_found_when_the_taskmanager_is_back() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    let tm = cluster.task_managers[1].clone();
    tokio::time::sleep(Duration::from_millis(10)).await;
    tm.state.lock().unwrap().is_deaf = true;
    cluster.submit(&keyed()).await;
    until("deployed", async || {
        (!cluster.task_managers[0].running().is_empty()).then_some(())
    })
    .await;
    tm.state.lock().unwrap().is_deaf = false;
    tm.register(1);
    let status = cluster.until_recovered(JOB, 1).await;
    assert!(
        status.recoveries[0]
            .cause
            .to_string()
            .contains("gone when its TaskManager came back")
    );

    // A survivor is told to stop while its link is cut; its TaskManager comes back within the window.
    tm.state.lock().unwrap().is_deaf = true;
    let other = cluster.task_managers[0].clone();
    other.fail(other.running()[0], io("x"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(tm.running().len(), 2);
    tm.state.lock().unwrap().is_deaf = false;
    tm.register(1);
    let status = cluster.until_recovered(JOB, 2).await;
    assert_eq!(status.recoveries.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_without_being_asked_is_a_failure() {
    for outcome in [TaskOutcome::Canceled, TaskOutcome::Finished] {
        let cluster = Cluster::start(&[3], running()).await;
        cluster.submit(&keyed()).await;
        cluster.until_state(JOB, JobState::Running).await;
        let (tm, attempt) = cluster.running()[0].clone();
        tm.end(attempt, outcome);
        assert_eq!(cluster.until_recovered(JOB, 1).await.summary.restarts, 1);
    }
}

/// The slots are granted while the delay runs; then one of them goes.
#[tokio::test(start_paused = true)]
async fn a_slot_that_is_lost_after_it_was_granted_is_not_deployed_to() {
    let cluster = Cluster::start(&[1, 1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let (tm, attempt) = cluster.running()[0].clone();
    tm.fail(attempt, io("x"));
    until("the delay", async || {
        let note = cluster.status(JOB).await.note.unwrap_or_default();
        note.starts_with("restarting in").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.task_managers[1].lose();
    let status = cluster.until_recovered(JOB, 1).await;
    assert_eq!(status.recoveries.len(), 1);
    assert_eq!(status.summary.restarts, 1);
    assert_eq!(cluster.task_managers[3].running().len(), 2);
}
