//! JobManager's and TaskManager's ends together, over a network in memory whose faults the tests switch, under a paused clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_config::Secret;
use tokio::time::Instant;

use super::fakes::*;
use super::*;
use crate::client::{CLIENT_SILENCE_MAX, Client, probe};
use crate::fault::{ActorFault, NodeFault, PeerFault, TaskManagerInjection};
use crate::model::message::*;
use crate::model::*;
use crate::peer::*;
use crate::rpc::TcpTransport;
use crate::task_runner::*;

fn failure(attempt: ExecutionAttemptId) -> TaskFailure {
    TaskFailure {
        attempt: Some(attempt),
        vertex: Some("source".to_owned()),
        operator: Some("map".to_owned()),
        position: Some("split@17".to_owned()),
        kind: FailureKind::User {
            message: "bad record".to_owned(),
            is_unrecoverable: false,
        },
    }
}

fn ended(attempt: ExecutionAttemptId, outcome: TaskOutcome) -> ToJobManager {
    ToJobManager::TaskEnded { attempt, outcome }
}

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
async fn a_black_hole_is_a_loss_after_the_heartbeat_timeout_and_not_before() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    cluster.job_manager.quiet(INTERVAL * 10).await;
    let before = Instant::now();
    cluster.network.silence("jm", "tm");
    cluster.network.silence("tm", "jm");
    cluster.job_manager.quiet(TIMEOUT - INTERVAL).await;
    let (_, cause) = cluster.job_manager.lost().await;
    assert!(
        before.elapsed() <= TIMEOUT + INTERVAL,
        "{:?}",
        before.elapsed()
    );
    assert!(cause.contains("no heartbeat for 3000 ms"), "{cause}");
    assert_eq!(
        cluster.runner.controls(attempt(0, 1, 1)),
        [],
        "its tasks run on"
    );
    // After healing it comes back as what it is: a known process with a task of before.
    cluster.network.unsilence("jm", "tm");
    cluster.network.unsilence("tm", "jm");
    let (registration, _) = cluster.job_manager.registered().await;
    assert_eq!(registration.running, [attempt(0, 1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn one_silent_direction_is_noticed_as_well() {
    for (from, to) in [("jm", "tm"), ("tm", "jm")] {
        let (mut cluster, _peer) = Cluster::running(|_| {}).await;
        cluster.network.silence(from, to);
        let before = Instant::now();
        cluster.job_manager.lost().await;
        // The TaskManager may give up first and cut the link: then the window counts.
        assert!(
            before.elapsed() <= TIMEOUT + WINDOW + INTERVAL,
            "{:?}",
            before.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_is_lost_at_once() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    let before = Instant::now();
    cluster.network.kill("tm");
    let (instance, cause) = cluster.job_manager.lost().await;
    assert_eq!(instance, InstanceId(1));
    assert!(
        before.elapsed() < Duration::from_millis(50),
        "{:?}",
        before.elapsed()
    );
    assert!(cause.contains("does not listen any more"), "{cause}");
}

/// The kernel closes what a killed process has open one after the other: its connections may break before its listener is gone.
#[tokio::test(start_paused = true)]
async fn a_killed_process_that_still_takes_connections_is_lost_when_it_takes_no_more() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    let before = Instant::now();
    cluster.network.kill("tm");
    let dying = cluster.network.node("tm");
    let address = cluster.task_manager.probe_address();
    let mut listener = dying.listen(address).await.unwrap();
    tokio::spawn(async move {
        let until = Instant::now() + WINDOW / 4;
        while let Ok(taken) = tokio::time::timeout_at(until, listener.accept()).await {
            drop(taken);
        }
    });
    let (_, cause) = cluster.job_manager.lost().await;
    let waited = before.elapsed();
    assert!(waited >= WINDOW / 4 && waited < WINDOW / 2, "{waited:?}");
    assert!(cause.contains("does not listen any more"), "{cause}");
}

/// What was sent around the cut, in both directions, arrives once and in order.
#[tokio::test(start_paused = true)]
async fn a_cut_link_that_heals_within_the_window_loses_nothing() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let (first, second) = (attempt(0, 1, 1), attempt(1, 1, 1));
    cluster.network.silence("jm", "tm");
    cluster.network.silence("tm", "jm");
    (peer.send)(deploy(&[second]));
    cluster.runner.event(first, TaskEvent::Running);
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.network.cut("jm", "tm");
    (peer.send)(ToTaskManager::Stop {
        attempts: vec![second],
    });
    cluster.runner.end(first, TaskOutcome::Finished);
    tokio::time::sleep(WINDOW / 2).await;
    cluster.network.unsilence("jm", "tm");
    cluster.network.unsilence("tm", "jm");

    let (registration, _) = cluster.job_manager.registered().await;
    assert_eq!(
        registration.running,
        [first, second],
        "neither is missing: word of them is under way"
    );
    let expected = [
        ToJobManager::TaskRunning { attempt: first },
        ended(first, TaskOutcome::Finished),
        ended(second, TaskOutcome::Canceled),
    ];
    for message in expected {
        assert_eq!(cluster.job_manager.message().await, message);
    }
    cluster.job_manager.quiet(TIMEOUT * 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_that_stays_cut_is_a_loss_after_the_window() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    cluster.network.silence("jm", "tm");
    cluster.network.silence("tm", "jm");
    let before = Instant::now();
    cluster.network.cut("jm", "tm");
    let (_, cause) = cluster.job_manager.lost().await;
    let waited = before.elapsed();
    assert!(
        waited >= WINDOW && waited <= WINDOW + Duration::from_millis(10),
        "{waited:?}"
    );
    assert!(
        cause.contains("did not reconnect within 1000 ms"),
        "{cause}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_short_pause_is_only_latency_and_a_long_one_a_loss() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    cluster.network.freeze("tm");
    cluster
        .job_manager
        .quiet(TIMEOUT - INTERVAL - Duration::from_millis(100))
        .await;
    cluster.network.thaw("tm");
    cluster.job_manager.quiet(TIMEOUT * 3).await;
    cluster.network.freeze("tm");
    cluster.job_manager.lost().await;
    cluster.network.thaw("tm");
    let (registration, peer) = cluster.job_manager.registered().await;
    // The zombie is told what must end.
    (peer.send)(ToTaskManager::Registered {
        stop: registration.running,
        probe: None,
    });
    let expected = ended(attempt(0, 1, 1), TaskOutcome::Canceled);
    assert_eq!(cluster.job_manager.message().await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_successor_under_the_same_name_replaces_the_former_process() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    let other = options(
        &cluster.network,
        "tm2",
        2,
        &FakeRunner::new(),
        &cluster.leader,
        &cluster.is_closed,
    );
    let _successor = TaskManager::start(other).await.unwrap();
    let (instance, cause) = cluster.job_manager.lost().await;
    assert_eq!(instance, InstanceId(1));
    assert!(
        cause.contains("another process registered under its name"),
        "{cause}"
    );
    let (registration, _) = cluster.job_manager.registered().await;
    assert_eq!(registration.location.instance, InstanceId(2));
}

/// A TaskManager that knows epoch 2 answers the leader of epoch 1 with `Fenced`, and does nothing that it says.
#[tokio::test(start_paused = true)]
async fn a_former_leader_is_fenced() {
    let mut cluster = Cluster::start().await;
    let (_, old_peer) = cluster.job_manager.registered().await;
    let transport = Arc::new(cluster.network.node("jm2"));
    let mut newer = FakeJobManager::start(transport, "jm2:1", Some(2)).await;
    *cluster.leader.lock().unwrap() = newer.listener.address().to_owned();
    (old_peer.close)("moves".to_owned());
    newer.registered().await;
    *cluster.leader.lock().unwrap() = cluster.job_manager.listener.address().to_owned();
    cluster.network.kill("jm2");
    let (_, peer) = cluster.job_manager.registered().await;
    (peer.send)(deploy(&[attempt(0, 1, 9)]));
    match cluster.job_manager.next().await {
        PeerEvent::Lost {
            cause: FailureKind::Fenced { message },
            ..
        } => {
            assert_eq!(message, "fenced: epoch 1 meets epoch 2");
        }
        other => panic!("{}", describe(&other)),
    }
    assert!(!cluster.runner.is_started(attempt(0, 1, 9)));
}

/// A new leader learns how tasks ended while there was none, and gets no snapshot that its predecessor asked for.
#[tokio::test(start_paused = true)]
async fn a_new_leader_hears_of_ends_and_not_of_old_snapshots() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let (first, second) = (attempt(0, 1, 1), attempt(1, 1, 1));
    (peer.send)(deploy(&[second]));
    (peer.send)(ToTaskManager::TriggerCheckpoint(plan(
        1,
        5,
        &[first, second],
    )));
    cluster
        .until(|c| c.runner.log.lock().unwrap().len() == 3)
        .await;
    assert_eq!(
        *cluster.runner.log.lock().unwrap(),
        ["plan 5", "trigger", "trigger"]
    );
    cluster.network.kill("jm");
    cluster
        .runner
        .end(first, TaskOutcome::Failed(Box::new(failure(first))));

    let transport = Arc::new(cluster.network.node("jm"));
    let mut newer = FakeJobManager::start(transport, "jm:1", Some(2)).await;
    let (registration, peer) = newer.registered().await;
    assert_eq!(registration.running, [first, second]);
    (peer.send)(ToTaskManager::Registered {
        stop: vec![second],
        probe: None,
    });
    let outcome = TaskOutcome::Failed(Box::new(failure(first)));
    assert_eq!(newer.message().await, ended(first, outcome));
    assert_eq!(newer.message().await, ended(second, TaskOutcome::Canceled));
    let ack = CheckpointAck {
        job: JobId(7),
        checkpoint: CheckpointId(5),
        objects: Vec::new(),
        subtasks: Vec::new(),
    };
    cluster.runner.reply(Ok(ack));
    newer.quiet(INTERVAL * 5).await;
    // Nor is a task of the old leader's deployed behind its back.
    (peer.send)(deploy(&[attempt(0, 1, 3)]));
    assert!(matches!(
        newer.message().await,
        ToJobManager::TaskEnded { outcome: TaskOutcome::Failed(failure), .. }
            if matches!(failure.kind, FailureKind::Fenced { .. })
    ));
    cluster.job_manager.events.close();
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

#[tokio::test(start_paused = true)]
async fn tasks_run_on_through_the_grace_period_and_no_longer() {
    let (cluster, _peer) = Cluster::running(|_| {}).await;
    cluster.network.kill("jm");
    tokio::time::sleep(GRACE - INTERVAL).await;
    assert_eq!(cluster.runner.controls(attempt(0, 1, 1)), []);
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!(
        cluster.runner.controls(attempt(0, 1, 1)),
        [TaskControl::Cancel]
    );
    let end = cluster.task_manager.ended().await;
    assert!(
        matches!(end, TaskManagerEnd::RegistrationTimeout { .. }),
        "{end}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_secret_never_registers_and_ends_the_process_in_time() {
    let before = Instant::now();
    let mut cluster = Cluster::start_with(|options| {
        options.settings.cluster_secret = Secret("wrong".to_owned());
    })
    .await;
    let end = cluster.task_manager.ended().await;
    assert_eq!(end, TaskManagerEnd::RegistrationTimeout { seconds: 300 });
    assert!(end.to_string().contains("security.cluster-secret"));
    assert!(before.elapsed() < Duration::from_secs(302));
    assert!(cluster.job_manager.events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_directory_that_is_not_shared_is_found_at_registration() {
    for content in [None, Some("other"), Some("probe")] {
        let mut cluster = Cluster::start_with(|options| {
            options.stores = Arc::new(FakeStore(content.map(Into::into)));
        })
        .await;
        let (_, peer) = cluster.job_manager.registered().await;
        let probe = StoreProbe {
            directory: "file:///chk".to_owned(),
            key: "probe-1".to_owned(),
            content: b"probe".to_vec(),
        };
        (peer.send)(ToTaskManager::Registered {
            stop: Vec::new(),
            probe: Some(probe),
        });
        if content == Some("probe") {
            cluster.job_manager.quiet(INTERVAL * 5).await;
        } else {
            let end = cluster.task_manager.ended().await;
            assert!(
                matches!(end, TaskManagerEnd::StoreNotShared { .. }),
                "{end}"
            );
            let text = end.to_string();
            assert!(
                text.contains("file:///chk") && text.contains("mount"),
                "{text}"
            );
        }
    }
}

/// Goodbye, loss without a wait, tasks joined, everything closed: no socket, no listener, no task of the runtime is left.
#[tokio::test(start_paused = true)]
async fn a_shutdown_says_goodbye_and_leaves_nothing_behind() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    let before = Instant::now();
    let end = cluster.task_manager.shutdown("SIGTERM").await;
    let reason = "SIGTERM".to_owned();
    assert_eq!(end, TaskManagerEnd::Shutdown { reason });
    assert_eq!(
        cluster.runner.controls(attempt(0, 1, 1)),
        [TaskControl::Cancel]
    );
    assert!(*cluster.is_closed.lock().unwrap());
    match cluster.job_manager.message().await {
        ToJobManager::Goodbye { reason } => assert!(reason.contains("SIGTERM"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let (_, cause) = cluster.job_manager.lost().await;
    assert!(cause.contains("goodbye"), "{cause}");
    assert!(before.elapsed() < INTERVAL, "{:?}", before.elapsed());

    cluster.job_manager.listener.shutdown().await;
    let until = Instant::now() + Duration::from_secs(60);
    let alive = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    while alive() + cluster.network.links() + cluster.network.listeners() > 0 {
        assert!(
            Instant::now() < until,
            "{} tasks, {} links are left",
            alive(),
            cluster.network.links()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_shuts_down_leaves_nothing_behind_and_reports_no_loss() {
    let (mut cluster, _peer) = Cluster::running(|_| {}).await;
    let transport = cluster.network.node("cli");
    let secret = Secret(SECRET.to_owned());
    let _client = Client::connect(&transport, "jm:1", &secret, TIMEOUT)
        .await
        .unwrap();
    cluster.job_manager.listener.shutdown().await;
    while let Some(event) = cluster.job_manager.events.recv().await {
        let is_heartbeat = matches!(
            event,
            PeerEvent::Message {
                message: ToJobManager::Heartbeat { .. },
                ..
            }
        );
        assert!(is_heartbeat, "{}", describe(&event));
    }
}

#[tokio::test(start_paused = true)]
async fn clients_get_one_answer_per_request_or_a_typed_error() {
    let mut cluster = Cluster::start().await;
    cluster.job_manager.registered().await;
    let (transport, secret) = (cluster.network.node("cli"), Secret(SECRET.to_owned()));
    let mut client = Client::connect(&transport, "jm:1", &secret, TIMEOUT)
        .await
        .unwrap();
    let request = || ClientRequest::ListJobs;

    async fn asked(
        job_manager: &mut FakeJobManager,
    ) -> tokio::sync::oneshot::Sender<Result<ClientResponse, RpcError>> {
        match job_manager.next().await {
            PeerEvent::Request { request, reply } => {
                assert_eq!(request, ClientRequest::ListJobs);
                reply
            }
            other => panic!("{}", describe(&other)),
        }
    }

    // An answer that takes longer than any silence would be allowed to.
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        let reply = asked(&mut cluster.job_manager).await;
        tokio::time::sleep(CLIENT_SILENCE_MAX * 3).await;
        reply.send(Ok(ClientResponse::Jobs(Vec::new()))).unwrap();
    });
    assert_eq!(response, Ok(ClientResponse::Jobs(Vec::new())));

    // A refusal arrives as it was made.
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        let error = RpcError::JobNotFound(JobId(1));
        asked(&mut cluster.job_manager)
            .await
            .send(Err(error))
            .unwrap();
    });
    assert_eq!(response, Err(RpcError::JobNotFound(JobId(1))));

    // A deadline; the late answer is not taken for that of the next request.
    let late = client.request(request(), Some(INTERVAL)).await;
    assert!(
        matches!(late, Err(RpcError::Timeout { millis: 1000, .. })),
        "{late:?}"
    );
    let first = asked(&mut cluster.job_manager).await;
    let (response, ()) = tokio::join!(client.request(request(), None), async {
        tokio::time::sleep(INTERVAL).await;
        first.send(Ok(ClientResponse::Canceled)).unwrap();
        let reply = asked(&mut cluster.job_manager).await;
        reply.send(Ok(ClientResponse::Jobs(Vec::new()))).unwrap();
    });
    assert_eq!(response, Ok(ClientResponse::Jobs(Vec::new())));

    // A client that goes away: whoever works for it can see that.
    let waiting = client.request(request(), Some(INTERVAL)).await;
    assert!(waiting.is_err());
    let mut reply = asked(&mut cluster.job_manager).await;
    drop(client);
    reply.closed().await;

    // A JobManager that vanishes without a word.
    let mut client = Client::connect(&transport, "jm:1", &secret, TIMEOUT)
        .await
        .unwrap();
    cluster.network.silence("jm", "cli");
    let before = Instant::now();
    let silent = client.request(request(), None).await;
    assert!(
        matches!(silent, Err(RpcError::Timeout { .. })),
        "{silent:?}"
    );
    assert!(before.elapsed() <= CLIENT_SILENCE_MAX);
    assert!(matches!(
        client.request(request(), None).await,
        Err(RpcError::Closed { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn clients_learn_why_they_cannot_connect() {
    let cluster = Cluster::start().await;
    let transport = cluster.network.node("cli");
    let (right, wrong) = (Secret(SECRET.to_owned()), Secret("wrong".to_owned()));
    let error = Client::connect(&transport, "jm:1", &wrong, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Handshake { .. }), "{error}");
    let error = Client::connect(&transport, "nowhere:1", &right, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Closed { .. }), "{error}");
    cluster.network.freeze("jm");
    let error = Client::connect(&transport, "jm:1", &right, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Timeout { .. }), "{error}");

    let standby = Arc::new(cluster.network.node("standby"));
    let _standby = FakeJobManager::start(standby, "standby:1", None).await;
    let error = Client::connect(&transport, "standby:1", &right, TIMEOUT)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RpcError::Refused(_)), "{error}");
    let welcome = probe(&transport, "standby:1", &right, TIMEOUT)
        .await
        .unwrap();
    assert_eq!(welcome.epoch, None);
    let address = cluster.task_manager.probe_address();
    let welcome = probe(&transport, address, &right, TIMEOUT).await.unwrap();
    assert_eq!((welcome.instance, welcome.epoch), (InstanceId(1), None));
}

/// The same over real sockets: register, deploy, fail, ask as a client, shut down.
#[tokio::test]
async fn it_works_over_tcp() {
    let transport = Arc::new(TcpTransport);
    let mut job_manager = FakeJobManager::start(transport, "127.0.0.1:0", Some(1)).await;
    let address = job_manager.listener.address().to_owned();
    let (runner, is_closed) = (FakeRunner::new(), Arc::new(Mutex::new(false)));
    let leader = Arc::new(Mutex::new(address.clone()));
    let network = crate::rpc::MemoryNetwork::new();
    let mut options = options(&network, "127.0.0.1", 1, &runner, &leader, &is_closed);
    options.transport = Arc::new(TcpTransport);
    let task_manager = TaskManager::start(options).await.unwrap();
    let (_, peer) = job_manager.registered().await;
    let id = attempt(0, 1, 1);
    (peer.send)(deploy(&[id]));
    while !runner.is_started(id) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    runner.end(id, TaskOutcome::Finished);
    assert_eq!(
        job_manager.message().await,
        ended(id, TaskOutcome::Finished)
    );

    let secret = Secret(SECRET.to_owned());
    let mut client = Client::connect(&TcpTransport, &address, &secret, TIMEOUT)
        .await
        .unwrap();
    let (response, ()) = tokio::join!(
        client.request(ClientRequest::ListJobs, Some(TIMEOUT)),
        async {
            match job_manager.next().await {
                PeerEvent::Request { reply, .. } => {
                    reply.send(Ok(ClientResponse::Canceled)).unwrap()
                }
                other => panic!("{}", describe(&other)),
            }
        }
    );
    assert_eq!(response, Ok(ClientResponse::Canceled));
    let probed = probe(
        &TcpTransport,
        task_manager.probe_address(),
        &secret,
        TIMEOUT,
    )
    .await
    .unwrap();
    assert_eq!(probed.instance, InstanceId(1));

    let reason = "done".to_owned();
    assert_eq!(
        task_manager.shutdown("done").await,
        TaskManagerEnd::Shutdown { reason }
    );
    assert!(matches!(
        job_manager.message().await,
        ToJobManager::Goodbye { .. }
    ));
    job_manager.lost().await;
    let refused = probe(
        &TcpTransport,
        task_manager.probe_address(),
        &secret,
        TIMEOUT,
    )
    .await;
    assert!(
        matches!(refused, Err(RpcError::Closed { .. })),
        "{refused:?}"
    );
    drop(client);
    job_manager.listener.shutdown().await;
    let refused = probe(&TcpTransport, &address, &secret, TIMEOUT).await;
    assert!(
        matches!(refused, Err(RpcError::Closed { .. })),
        "{refused:?}"
    );
}

/// Each way to break a TaskManager from inside that ends it: its root, and its session, without which it cannot know what was told.
#[tokio::test(start_paused = true)]
async fn a_broken_root_or_session_ends_the_process() {
    for (injection, words) in [
        (
            TaskManagerInjection::TaskManager(ActorFault::Panic),
            "actor failed",
        ),
        (
            TaskManagerInjection::JobManagerSession(ActorFault::Panic),
            "injected panic of JobManagerSession",
        ),
    ] {
        let (cluster, peer) = Cluster::running(|_| {}).await;
        (peer.send)(ToTaskManager::InjectFault(injection));
        let TaskManagerEnd::Broken { message } = cluster.task_manager.ended().await else {
            panic!("it broke");
        };
        assert!(message.contains(words), "{message}");
    }
}

/// The second key: what a JobManager orders is not enough.
#[tokio::test(start_paused = true)]
async fn a_taskmanager_that_is_not_told_to_obeys_no_injection() {
    let (mut cluster, peer) =
        Cluster::running(|options| options.settings.is_chaos_enabled = false).await;
    let injection = TaskManagerInjection::TaskManager(ActorFault::Panic);
    (peer.send)(ToTaskManager::InjectFault(injection));
    cluster.job_manager.quiet(10 * INTERVAL).await;
}

/// It works on and is given up nevertheless, and comes back when it speaks again.
#[tokio::test(start_paused = true)]
async fn a_node_that_sends_no_heartbeats_is_lost_after_the_timeout() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let began = Instant::now();
    let silence = NodeFault::NoHeartbeats(4 * TIMEOUT);
    (peer.send)(ToTaskManager::InjectFault(TaskManagerInjection::Node(
        silence,
    )));
    let (_, cause) = cluster.job_manager.lost().await;
    assert!(cause.contains("no heartbeat"), "{cause}");
    // Its last heartbeat may have come just before.
    let took = began.elapsed();
    assert!(
        took + INTERVAL >= TIMEOUT && took <= TIMEOUT + 2 * INTERVAL,
        "{took:?}"
    );
    tokio::time::sleep(4 * TIMEOUT).await;
    let (registration, _peer) = cluster.job_manager.registered().await;
    assert_eq!(registration.running, [attempt(0, 1, 1)]);
}

/// The same from the other side: a JobManager that asks for no heartbeat hears none.
#[tokio::test(start_paused = true)]
async fn a_jobmanager_that_asks_for_no_heartbeats_loses_its_taskmanagers() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    (peer.fault)(PeerFault::NoHeartbeats(2 * TIMEOUT));
    let (_, cause) = cluster.job_manager.lost().await;
    assert!(
        cause.contains("heartbeat") || cause.contains("clos"),
        "{cause}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_broken_peer_costs_its_taskmanager_the_session() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    (peer.fault)(PeerFault::Actor(ActorFault::Panic));
    let (_, cause) = cluster.job_manager.lost().await;
    assert!(
        cause.contains("injected panic of TaskManagerPeer"),
        "{cause}"
    );
    let (registration, _peer) = cluster.job_manager.registered().await;
    assert_eq!(registration.running, [attempt(0, 1, 1)]);
}

/// A clock that jumps is seen in what people read, and by no timeout.
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_costs_nothing() {
    let clock = Clock::starting_at(Duration::from_secs(1000)).adjustable();
    let (mut cluster, peer) = Cluster::running(|options| options.clock = clock).await;
    for millis in [86_400_000, -172_800_000] {
        let jump = NodeFault::ClockOffset(millis);
        (peer.send)(ToTaskManager::InjectFault(TaskManagerInjection::Node(jump)));
        let before = clock.wall_ms();
        cluster
            .until(|_| clock.wall_ms().abs_diff(before) > 1000)
            .await;
        cluster.job_manager.quiet(2 * TIMEOUT).await;
    }
}
