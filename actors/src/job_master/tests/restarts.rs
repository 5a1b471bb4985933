//! What costs a restart, when it comes, and what it tells.

use super::*;

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

/// A lost TaskManager with two tasks spends two of Flink's attempts and one of ours.
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

/// A TaskManager whose tasks have all failed may still hold what they had captured.
#[tokio::test(start_paused = true)]
async fn an_aborted_checkpoint_is_told_also_where_no_task_lives_any_more() {
    let cluster = Cluster::start(&[1, 1], running()).await;
    cluster.submit(&graph(&[2], &[])).await;
    cluster.until_state(JOB, JobState::Running).await;
    let tm = &cluster.task_managers[0];
    tm.fail(tm.running()[0], io("x"));
    until("the restart", async || {
        cluster.log().contains(&"suspend".to_owned()).then_some(())
    })
    .await;
    let checkpoint = CheckpointId(2);
    cluster.coordinators.emit(CoordinatorEvent::Aborted {
        checkpoint,
        reason: "a task failed".to_owned(),
    });
    for tm in &cluster.task_managers {
        until("told", async || {
            tm.has_received(|m| {
                matches!(m, ToTaskManager::NotifyCheckpointAborted { checkpoint: c, .. } if *c == checkpoint)
            })
            .then_some(())
        })
        .await;
    }
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
