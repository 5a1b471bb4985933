//! Savepoints, and what the end of a job is told and waits for.

use super::*;

/// A job ends while a record is on its way: what is complete is known only once that is decided. A plain savepoint is no answer.
#[tokio::test(start_paused = true)]
async fn the_last_completed_checkpoint_is_told_after_the_record_that_is_on_its_way() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    let plans = leader.trigger().await;
    world.store.faults(|op, key| {
        (op == "create" && key.starts_with("chk-2/"))
            .then_some(Fault::Slow(Duration::from_secs(500)))
    });
    leader.ack(&world.stores, &plans);
    leader.suspend();
    let (reply, answer) = oneshot::channel();
    leader.handle.send(CoordinatorMessage::LastCompleted(reply));
    assert_eq!(answer.await.unwrap(), Some(CheckpointId(2)));
    assert!(world.is_completed(2));
    assert_eq!(leader.completed().await, CheckpointId(2));
}

/// One that is suspended half-way is not complete.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_the_end_of_the_job_cut_off_is_not_the_last_completed_one() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    let first = leader.checkpoint(&world).await;
    leader.trigger().await;
    leader.suspend();
    let (reply, answer) = oneshot::channel();
    leader.handle.send(CoordinatorMessage::LastCompleted(reply));
    assert_eq!(answer.await.unwrap(), Some(first));
}

/// Behind what was asked for before; then nothing begins but the final checkpoint, until tasks run anew.
#[tokio::test(start_paused = true)]
async fn no_checkpoint_begins_while_the_job_is_drained() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let savepoint = leader.savepoint(SnapshotKind::Savepoint, None);
    leader.handle.send(CoordinatorMessage::Hold);
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.kind, SnapshotKind::Savepoint);
    leader.ack(&world.stores, &plans);
    savepoint.await.unwrap().unwrap();
    while !matches!(leader.event().await, CoordinatorEvent::Held) {}
    tokio::time::sleep(Duration::from_secs(1000)).await;
    leader.handle.send(CoordinatorMessage::AllAwaitingFinal);
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.kind, SnapshotKind::Final);
    leader.suspend();
    leader.run();
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.kind, SnapshotKind::Checkpoint);
}

#[tokio::test(start_paused = true)]
async fn a_savepoint_is_whole_commits_nothing_and_starts_another_job() {
    let mut world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let answer = leader.savepoint(SnapshotKind::Savepoint, None);
    let plans = leader.trigger().await;
    let barrier = plans[0].1.barrier;
    assert_eq!((barrier.checkpoint.0, barrier.base), (3, None));
    leader.ack(&world.stores, &plans);
    let uri = answer.await.unwrap().unwrap();
    assert!(
        uri.starts_with("memory://savepoints/savepoint-abcdef-"),
        "{uri}"
    );
    assert!(
        matches!(world.outcome(3), Some(RecordOutcome::Aborted { reason }) if reason.contains(&uri))
    );
    // The next checkpoint is over 2, and nobody was told that 3 completed.
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.base, Some(CheckpointId(2)));
    assert!(
        !leader.seen.iter().any(
            |e| matches!(e, CoordinatorEvent::Completed { checkpoint, .. } if checkpoint.0 == 3)
        )
    );
    assert_eq!(
        leader.restored().await,
        Some(2),
        "failover never uses a savepoint"
    );
    // Another job begins with it, from either spelling.
    world.store = world.stores.at("memory://checkpoints/other");
    for path in [uri.clone(), format!("{uri}/_metadata")] {
        world.graph.start_from = Some(StartFrom {
            path,
            allow_non_restored_state: false,
        });
        let other = world.lead(1).await;
        let snapshot = other.choose(vec![]).await.unwrap().snapshot.unwrap();
        assert_eq!(snapshot.directory, uri);
        assert!(!snapshot.is_own_checkpoint);
        assert!(RestorePlan::new(&snapshot, &world.graph, &[1, 2]).is_ok());
    }
    // With a damaged object it is refused before any task starts.
    let manifest_of = |record: &[u8]| match decode_record(record).unwrap().outcome {
        RecordOutcome::Completed(manifest) => manifest,
        other => panic!("{other:?}"),
    };
    let savepoint = world.stores.at(&uri);
    let record = savepoint.get("_metadata", None).await.unwrap();
    let key = manifest_of(&record).objects[0].key.clone();
    let good = savepoint.get(&key, None).await.unwrap();
    for (bad, word) in [(vec![0; 63], "63 bytes"), (vec![1; 64], "checksum")] {
        savepoint.insert(&key, bad);
        let other = world.lead(1).await;
        let error = other.choose(vec![]).await.unwrap_err();
        assert_eq!(error.recoverability(), Recoverability::Unrecoverable);
        let text = error.to_string();
        assert!(text.contains(&key) && text.contains(word), "{text}");
    }
    savepoint.insert(&key, good);
    // A damaged record is an error as well, and not a fallback.
    world
        .stores
        .at(&uri)
        .insert("_metadata", Bytes::from_static(b"x"));
    let other = world.lead(1).await;
    let error = other.choose(vec![]).await.unwrap_err();
    assert_eq!(error.recoverability(), Recoverability::Unrecoverable);
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_with_savepoint_a_recovery_never_goes_below_what_was_committed() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let answer = leader.savepoint(SnapshotKind::StopWithSavepoint, Some("memory://mine/"));
    let plans = leader.trigger().await;
    leader.ack(&world.stores, &plans);
    assert_eq!(leader.completed().await, CheckpointId(3));
    let uri = answer.await.unwrap().unwrap();
    assert!(uri.starts_with("memory://mine/savepoint-abcdef-"), "{uri}");
    // The JobManager dies before the job has ended.
    let next = world.lead(2).await;
    let snapshot = next.choose(vec![]).await.unwrap().snapshot.unwrap();
    assert_eq!(
        (snapshot.manifest.checkpoint.0, snapshot.directory),
        (3, uri)
    );
    assert!(!snapshot.is_own_checkpoint);
}

#[tokio::test(start_paused = true)]
async fn a_failed_stop_with_savepoint_fails_the_job_over() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 100;
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let answer = leader.savepoint(SnapshotKind::StopWithSavepoint, None);
    leader.trigger().await;
    assert!(answer.await.unwrap().unwrap_err().contains("expired"));
    let (n, _) = leader.aborted().await;
    assert_eq!(n, CheckpointId(3));
    assert!(matches!(leader.event().await, CoordinatorEvent::Failure(_)));
}

#[tokio::test(start_paused = true)]
async fn the_final_checkpoint_is_retried_and_ends_the_triggering() {
    let mut world = World::new();
    world.checkpointing().interval = None;
    world.checkpointing().tolerable_failed = 5;
    let mut leader = world.lead(1).await;
    leader.run();
    let answer = leader.savepoint(SnapshotKind::Final, None);
    leader.handle.send(CoordinatorMessage::AllAwaitingFinal);
    let first = leader.trigger().await;
    assert_eq!(first[0].1.barrier.kind, SnapshotKind::Final);
    assert!(first[0].1.directory.starts_with("memory://savepoints/"));
    leader.handle.send(CoordinatorMessage::Declined {
        checkpoint: first[0].1.barrier.checkpoint,
        reason: "upload".into(),
    });
    assert!(answer.await.unwrap().is_err());
    let second = leader.trigger().await;
    assert_eq!(second[0].1.barrier.kind, SnapshotKind::Final);
    leader.ack(&world.stores, &second);
    leader.completed().await;
    let more = tokio::time::timeout(Duration::from_secs(1000), leader.events.recv()).await;
    assert!(more.is_err(), "{more:?}");
}
