//! TaskManagers that are lost, and slots that are missing.

use super::*;

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

/// One that was lost and has come back runs nothing of the job any more, and may still hold its state.
#[tokio::test(start_paused = true)]
async fn every_taskmanager_releases_a_job_that_ended() {
    let cluster = Cluster::start(&[1, 1, 1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let [early, late] = [0, 1].map(|i| cluster.task_managers[i].clone());
    for lost in [&early, &late] {
        lost.lose();
    }
    cluster.until_recovered(JOB, 1).await;
    let come_back = |tm: &FakeTaskManager| {
        tm.state.lock().unwrap().is_deaf = false;
        tm.register(1);
    };
    come_back(&early);
    let answer = cluster.request(ClientRequest::Cancel(JOB)).await;
    assert_eq!(answer, Ok(ClientResponse::Canceled));
    come_back(&late);
    for tm in [&early, &late] {
        until("the release", async || {
            let is_release =
                |m: &ToTaskManager| matches!(m, ToTaskManager::ReleaseJob { job: JOB, .. });
            tm.has_received(is_release).then_some(())
        })
        .await;
    }
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

/// The slots of the first request are lost again before the job could be deployed, while the timer of that request runs or after it. The
/// second one gets the whole `slot.request.timeout`, and no more.
#[tokio::test(start_paused = true)]
async fn a_second_request_for_slots_in_one_preparation_times_out_by_itself() {
    for lost_after in [30, 70] {
        let mut cluster = Cluster::start(&[1, 1], running()).await;
        cluster.coordinators.0.lock().unwrap().holds_choices = true;
        cluster.submit(&keyed()).await;
        let noted = async |cluster: &Cluster, wanted: &str| {
            until(wanted, async || {
                let note = cluster.status(JOB).await.note.unwrap_or_default();
                (note == wanted).then_some(())
            })
            .await;
        };
        noted(&cluster, "waiting for slots: 2 of 3").await;
        let third = cluster.add(1, running());
        noted(&cluster, "choosing the checkpoint to restore").await;
        tokio::time::sleep(Duration::from_secs(lost_after)).await;
        third.lose();
        let lost = Instant::now();
        let status = until("a failure", async || {
            let status = cluster.status(JOB).await;
            (!status.recoveries.is_empty()).then_some(status)
        })
        .await;
        let kind = &status.recoveries[0].cause.kind;
        assert!(matches!(kind, FailureKind::NoSlots { .. }), "{kind}");
        assert_eq!(lost.elapsed().as_secs(), 60, "lost after {lost_after} s");
    }
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

/// The TaskManager wrote down what it runs, and then the order to deploy reached it over the new connection: what is missing on that list
/// runs nevertheless, and must be stopped before its successors are deployed.
#[tokio::test(start_paused = true)]
async fn a_list_of_running_tasks_that_is_older_than_a_deployment_leaves_no_orphans() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let tm = &cluster.task_managers[1];
    let running = std::mem::take(&mut tm.state.lock().unwrap().running);
    assert_eq!(running.len(), 2);
    tm.register(1);
    tm.state.lock().unwrap().running = running;
    cluster.until_recovered(JOB, 1).await;
    let attempts: Vec<_> = tm.running().iter().map(|a| a.attempt).collect();
    assert_eq!(attempts, [Attempt(2); 2]);
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
