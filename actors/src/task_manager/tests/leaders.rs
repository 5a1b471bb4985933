//! Which JobManager a TaskManager heeds, what both ask of each other first, how long one goes on without the other, and how they end.

use super::*;

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
