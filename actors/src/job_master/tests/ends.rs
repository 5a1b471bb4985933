//! How jobs end: by themselves, by request, with a savepoint, and under another leader. And savepoints that end nothing.

use super::*;

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

/// Two regions, and a task of one fails once the final checkpoint is asked for. That it is complete is told only after the restart was
/// decided on: were the other region left running, it would be finished, and what is deployed beside it would wait for it for ever.
#[tokio::test(start_paused = true)]
async fn a_failure_while_the_final_checkpoint_is_taken_takes_all_regions_back() {
    for is_complete in [true, false] {
        let cluster = Cluster::start(&[1, 1], Arc::new(|_| Behaviour::RunToTheEnd)).await;
        cluster.coordinators.0.lock().unwrap().holds_finals = true;
        cluster
            .submit(&graph(&[2, 2], &[(0, 1, Exchange::Forward)]))
            .await;
        until("the final checkpoint", async || {
            let is_triggered = |m: &ToTaskManager| matches!(m, ToTaskManager::TriggerCheckpoint(_));
            let mut task_managers = cluster.task_managers.iter();
            task_managers
                .all(|tm| tm.has_received(is_triggered))
                .then_some(())
        })
        .await;
        {
            let mut script = cluster.coordinators.0.lock().unwrap();
            script.holds_finals = false;
            script.newest = u64::from(is_complete);
        }
        let tm = &cluster.task_managers[0];
        tm.fail(tm.running()[0], io("x"));
        until("the restart", async || {
            cluster.log().contains(&"suspend".to_owned()).then_some(())
        })
        .await;
        if is_complete {
            cluster.coordinators.emit(CoordinatorEvent::Completed {
                checkpoint: CheckpointId(1),
                kind: SnapshotKind::Final,
            });
        }
        let status = cluster.until_state(JOB, JobState::Finished).await;
        let restored = is_complete.then_some(CheckpointId(1));
        assert_eq!(status.recoveries[0].checkpoint, restored);
        assert!(status.subtasks.iter().all(|s| s.attempt == "1.2"));
    }
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
