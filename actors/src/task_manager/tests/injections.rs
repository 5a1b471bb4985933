//! What breaks by injection.

use super::*;

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
