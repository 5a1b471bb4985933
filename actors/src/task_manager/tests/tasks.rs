//! Tasks: what is told of them, how they end, what is asked of them.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_task_manager_registers_and_its_heartbeats_carry_counters() {
    let mut cluster = Cluster::start().await;
    let (registration, peer) = cluster.job_manager.registered().await;
    assert_eq!(registration.location.resource, ResourceId("tm".to_owned()));
    assert_eq!(registration.location.data_address, "tm:data");
    assert_eq!((registration.slots, registration.running.len()), (2, 0));
    (peer.send)(deploy(&[attempt(0, 1, 1)]));
    match cluster.job_manager.next().await {
        PeerEvent::Message {
            message: ToJobManager::Heartbeat { counters, .. },
            ..
        } => {
            assert_eq!(counters[0].0, attempt(0, 1, 1));
            assert_eq!(counters[0].1.records_in, 42);
        }
        other => panic!("{}", describe(&other)),
    }
}

/// The failure passes task -> guardian's handler error -> tree -> TaskManager -> wire, unchanged and behind the earlier events.
#[tokio::test(start_paused = true)]
async fn a_failure_carries_its_typed_cause_up_the_tree() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    let id = attempt(0, 1, 1);
    cluster.runner.event(id, TaskEvent::Running);
    assert_eq!(
        cluster.job_manager.message().await,
        ToJobManager::TaskRunning { attempt: id }
    );
    cluster
        .runner
        .end(id, TaskOutcome::Failed(Box::new(failure(id))));
    let expected = ended(id, TaskOutcome::Failed(Box::new(failure(id))));
    assert_eq!(cluster.job_manager.message().await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_task_is_reported_when_nothing_of_it_is_left_and_not_before() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let id = attempt(0, 1, 1);
    *cluster.runner.manners.lock().unwrap() = Manners::IgnoreCancel;
    (peer.send)(ToTaskManager::Stop {
        attempts: vec![id, attempt(1, 1, 1)],
    });
    let unknown = ended(attempt(1, 1, 1), TaskOutcome::Canceled);
    assert_eq!(
        cluster.job_manager.message().await,
        unknown,
        "an answer for each"
    );
    cluster.job_manager.quiet(CANCELLATION / 2).await;
    assert_eq!(cluster.runner.controls(id), [TaskControl::Cancel]);
    cluster.runner.end(id, TaskOutcome::Canceled);
    assert_eq!(
        cluster.job_manager.message().await,
        ended(id, TaskOutcome::Canceled)
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ignores_its_cancellation_ends_the_process() {
    let (cluster, peer) = Cluster::running(|_| {}).await;
    *cluster.runner.manners.lock().unwrap() = Manners::IgnoreCancel;
    let before = Instant::now();
    (peer.send)(ToTaskManager::Stop {
        attempts: vec![attempt(0, 1, 1)],
    });
    let end = cluster.task_manager.ended().await;
    let waited = before.elapsed();
    assert!(
        waited >= CANCELLATION && waited < CANCELLATION + INTERVAL,
        "{waited:?}"
    );
    let seconds = CANCELLATION.as_secs();
    assert_eq!(
        end,
        TaskManagerEnd::StuckTask {
            attempt: attempt(0, 1, 1),
            seconds
        }
    );
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_task_costs_its_slot_until_it_ends() {
    let (mut cluster, peer) = Cluster::running(|o| o.abandon_stuck_tasks = true).await;
    let id = attempt(0, 1, 1);
    *cluster.runner.manners.lock().unwrap() = Manners::IgnoreCancel;
    (peer.send)(ToTaskManager::Stop { attempts: vec![id] });
    // The smaller registration cuts the link; the report, like all others, survives that.
    let (registration, peer) = cluster.job_manager.registered().await;
    assert_eq!(registration.slots, 1);
    match cluster.job_manager.message().await {
        ToJobManager::TaskEnded {
            outcome: TaskOutcome::Failed(failure),
            ..
        } => {
            let seconds = CANCELLATION.as_secs();
            assert_eq!(failure.kind, FailureKind::CancellationTimeout { seconds });
        }
        other => panic!("{other:?}"),
    }
    (peer.send)(deploy(&[attempt(0, 1, 2), attempt(1, 1, 2)]));
    match cluster.job_manager.message().await {
        ToJobManager::TaskEnded {
            attempt: refused,
            outcome: TaskOutcome::Failed(failure),
        } => {
            assert_eq!(refused, attempt(1, 1, 2));
            assert!(
                matches!(failure.kind, FailureKind::NoSlots { .. }),
                "{failure}"
            );
        }
        other => panic!("{other:?}"),
    }
    cluster.runner.end(id, TaskOutcome::Canceled);
    loop {
        if let PeerEvent::Registered { registration, .. } = cluster.job_manager.next().await {
            assert_eq!(registration.slots, 2);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_guardian_costs_its_task_and_nothing_else() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let id = attempt(0, 1, 1);
    *cluster.runner.manners.lock().unwrap() = Manners::IgnoreCancel;
    let injection = TaskManagerInjection::Subtask(id, ActorFault::Panic);
    (peer.send)(ToTaskManager::InjectFault(injection));
    cluster
        .until(|c| c.runner.controls(id) == [TaskControl::Cancel])
        .await;
    cluster.job_manager.quiet(CANCELLATION / 2).await;
    cluster.runner.end(id, TaskOutcome::Canceled);
    match cluster.job_manager.message().await {
        ToJobManager::TaskEnded {
            outcome: TaskOutcome::Failed(failure),
            ..
        } => {
            assert!(
                matches!(failure.kind, FailureKind::Actor { .. }),
                "{failure}"
            );
            assert!(
                failure.to_string().contains("injected panic of Subtask"),
                "{failure}"
            );
        }
        other => panic!("{other:?}"),
    }
    *cluster.runner.manners.lock().unwrap() = Manners::EndWhenCancelled;
    (peer.send)(deploy(&[attempt(0, 1, 2)]));
    cluster
        .until(|c| c.runner.is_started(attempt(0, 1, 2)))
        .await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_planned_before_they_are_triggered_and_answered() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let id = attempt(0, 1, 1);
    (peer.send)(ToTaskManager::TriggerCheckpoint(plan(1, 1, &[id])));
    cluster
        .until(|c| c.runner.log.lock().unwrap().len() == 2)
        .await;
    let ack = CheckpointAck {
        job: JobId(7),
        checkpoint: CheckpointId(1),
        objects: Vec::new(),
        subtasks: Vec::new(),
    };
    cluster.runner.reply(Ok(ack.clone()));
    assert_eq!(
        cluster.job_manager.message().await,
        ToJobManager::CheckpointAck(Box::new(ack))
    );

    (peer.send)(ToTaskManager::TriggerCheckpoint(plan(
        1,
        2,
        &[id, attempt(1, 1, 1)],
    )));
    match cluster.job_manager.message().await {
        ToJobManager::CheckpointDeclined {
            checkpoint,
            attempt: Some(missing),
            ..
        } => {
            assert_eq!((checkpoint, missing), (CheckpointId(2), attempt(1, 1, 1)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        cluster.runner.log.lock().unwrap().len(),
        2,
        "nothing was begun"
    );
    (peer.send)(ToTaskManager::NotifyCheckpointComplete {
        job: JobId(7),
        checkpoint: CheckpointId(1),
    });
    (peer.send)(ToTaskManager::NotifyCheckpointAborted {
        job: JobId(7),
        checkpoint: CheckpointId(2),
    });
    (peer.send)(ToTaskManager::Drain { job: JobId(7) });
    let output = PreparedOutput::Keep;
    let job = JobId(7);
    (peer.send)(ToTaskManager::ReleaseJob { job, output });
    assert_eq!(
        cluster.job_manager.message().await,
        ended(id, TaskOutcome::Canceled)
    );
    let barrier = plan(1, 1, &[]).barrier;
    let expected = [
        TaskControl::Trigger(barrier),
        TaskControl::NotifyComplete(CheckpointId(1)),
        TaskControl::NotifyAborted(CheckpointId(2)),
        TaskControl::Drain,
        TaskControl::Cancel,
    ];
    assert_eq!(cluster.runner.controls(id), expected);
    assert_eq!(
        cluster.runner.log.lock().unwrap()[2..],
        ["abort 2", "release"]
    );
}

#[tokio::test(start_paused = true)]
async fn deployments_that_must_not_start_are_refused_with_a_cause() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let mut other_build = deploy(&[attempt(1, 1, 1)]);
    if let ToTaskManager::Deploy { graph, .. } = &mut other_build {
        graph.build = BuildId("other".to_owned());
    }
    // The same attempt again starts nothing and is no error (the fake panics when started twice).
    (peer.send)(deploy(&[attempt(0, 1, 1)]));
    type IsExpected = fn(&FailureKind) -> bool;
    let cases: [(ToTaskManager, IsExpected); 4] = [
        (deploy(&[attempt(0, 1, 0)]), |k| {
            matches!(k, FailureKind::Fenced { .. })
        }),
        (deploy(&[attempt(1, 2, 1)]), |k| {
            matches!(k, FailureKind::Fenced { .. })
        }),
        (other_build, |k| {
            matches!(k, FailureKind::BuildMismatch { .. })
        }),
        (deploy(&[attempt(1, 1, 1), attempt(2, 1, 1)]), |k| {
            matches!(k, FailureKind::NoSlots { .. })
        }),
    ];
    for (message, is_expected) in cases {
        (peer.send)(message);
        match cluster.job_manager.message().await {
            ToJobManager::TaskEnded {
                outcome: TaskOutcome::Failed(failure),
                ..
            } => {
                assert!(is_expected(&failure.kind), "{failure}");
            }
            other => panic!("{other:?}"),
        }
    }
}
