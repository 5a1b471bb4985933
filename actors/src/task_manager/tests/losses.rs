//! When a TaskManager is lost, and when it is not.

use super::*;

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

/// Given up while its process lives, and the start of its next session dies on the way: it can only ask for the session before, whose
/// numbers would pass for the new one's, and what it is sent would be taken for known.
#[tokio::test(start_paused = true)]
async fn a_session_whose_start_was_never_received_is_not_resumed() {
    let (mut cluster, peer) = Cluster::running(|_| {}).await;
    let (old, new) = (attempt(0, 1, 1), attempt(1, 1, 2));
    let fair = crate::rpc::Weather::default();
    let slow = crate::rpc::Weather {
        delay: Duration::from_millis(50),
        ..fair
    };
    cluster.network.set_weather("jm", "tm", slow);
    (peer.close)("given up".to_owned());
    // The new session has begun here, and its first bytes are still under way.
    let (_, peer) = cluster.job_manager.registered().await;
    cluster.network.cut("jm", "tm");
    cluster.network.set_weather("jm", "tm", fair);
    (peer.send)(ToTaskManager::Registered {
        stop: Vec::new(),
        probe: None,
    });

    let (instance, cause) = cluster.job_manager.lost().await;
    assert_eq!(instance, InstanceId(1));
    assert!(cause.contains("could not be resumed"), "{cause}");
    let (registration, peer) = cluster.job_manager.registered().await;
    assert_eq!(registration.running, [old]);
    // As many messages as the session before had: each of them counts.
    (peer.send)(ToTaskManager::Registered {
        stop: vec![old],
        probe: None,
    });
    (peer.send)(deploy(&[new]));
    let stopped = ended(old, TaskOutcome::Canceled);
    assert_eq!(cluster.job_manager.message().await, stopped);
    cluster.until(|c| c.runner.is_started(new)).await;
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
