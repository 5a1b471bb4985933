//! One leader after another, and beside another.

use super::*;

#[tokio::test(start_paused = true)]
async fn of_two_leaders_the_old_one_is_fenced_and_no_record_is_created_twice() {
    let world = World::new();
    let mut old = world.lead(1).await;
    old.run();
    old.checkpoint(&world).await;
    let plans = old.trigger().await; // 3 is pending.
    let mut new = world.lead(2).await;
    assert_eq!(new.restored().await, Some(2));
    assert_eq!(world.outcome(3), Some(RecordOutcome::Claimed));
    old.ack(&world.stores, &plans);
    assert_eq!(old.fenced().await, LeaderEpoch(2));
    assert!(
        !old.seen.iter().any(
            |e| matches!(e, CoordinatorEvent::Completed { checkpoint, .. } if checkpoint.0 == 3)
        )
    );
    assert!(matches!(
        old.choose(vec![]).await,
        Err(FailureKind::Fenced { .. })
    ));
    new.run();
    assert_eq!(new.checkpoint(&world).await, CheckpointId(4));
    let created = world.store.created();
    let unique: BTreeSet<_> = created.iter().collect();
    assert_eq!(created.len(), unique.len(), "{created:?}");
}

/// The number is free and the create succeeds; only the epoch tells.
#[tokio::test(start_paused = true)]
async fn a_record_created_under_a_higher_epoch_is_told_to_nobody() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    let plans = leader.trigger().await;
    world.epoch.0.store(2, Ordering::SeqCst);
    leader.ack(&world.stores, &plans);
    assert_eq!(leader.fenced().await, LeaderEpoch(2));
    assert!(
        !leader
            .seen
            .iter()
            .any(|e| matches!(e, CoordinatorEvent::Completed { .. }))
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_checkpoint_is_quarantined_reported_and_skipped_also_by_the_next_leader() {
    let mut world = World::new();
    world.checkpointing().num_retained = 2;
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    leader.checkpoint(&world).await;
    leader.suspend();
    let damaged = vec![(CheckpointId(3), "object gone".to_owned())];
    let choice = leader.choose(damaged).await.unwrap();
    assert_eq!(
        choice.snapshot.unwrap().manifest.checkpoint,
        CheckpointId(2)
    );
    assert_eq!(choice.skipped, ["checkpoint 3 is damaged: object gone"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for is_hint_there in [true, false] {
        if !is_hint_there {
            world.store.remove("latest");
        }
        let next = world.lead(2).await;
        assert_eq!(next.restored().await, Some(2));
    }
    // The next delta is over what was restored.
    leader = world.lead(3).await;
    assert_eq!(leader.restored().await, Some(2));
    leader.run();
    assert_eq!(
        leader.trigger().await[0].1.barrier.base,
        Some(CheckpointId(2))
    );
    // A record that rots or vanishes counts as damaged as well.
    for rot in [Some(Bytes::from_static(b"rotten")), None] {
        match rot {
            Some(bytes) => world.store.insert("chk-2/_metadata", bytes),
            None => world.store.remove("chk-2/_metadata"),
        }
        let next = world.lead(4).await;
        let error = next.choose(vec![]).await.unwrap_err().to_string();
        assert!(error.contains("no valid checkpoint"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transactional_job_does_not_go_below_a_completed_checkpoint() {
    let mut world = World::new();
    world.checkpointing().num_retained = 2;
    world.graph.vertices[1].operators[0].is_transactional = true;
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    leader.checkpoint(&world).await;
    let damaged = vec![(CheckpointId(3), "object gone".to_owned())];
    let error = leader.choose(damaged).await.unwrap_err();
    assert_eq!(error.recoverability(), Recoverability::Unrecoverable);
    let text = error.to_string();
    assert!(text.contains("split p0 positions 200..300"), "{text}");
}

/// Six leaders one after another, each over the last one's zombie, on a store that loses a fifth of everything. Whatever happens: what one
/// leader told is below the next one's claim and is what the next one restores, or something newer; every object it needs is there; no
/// record is created twice.
#[tokio::test(start_paused = true)]
async fn no_seed_loses_or_repeats_a_completed_checkpoint() {
    let (mut completed, mut fenced) = (0, 0);
    for seed in 0..20_u64 {
        let mut world = World::new();
        let settings = world.checkpointing();
        settings.tolerable_failed = 1_000_000;
        settings.interval = Some(Duration::from_secs(1));
        settings.timeout = Duration::from_secs(5);
        settings.max_concurrent = 2;
        settings.num_retained = 2;
        let dice = Entropy::seeded(seed);
        let faults = Entropy::seeded(seed + 1000);
        world.store.faults(move |op, _| {
            let roll = faults.u64();
            let later = Duration::from_millis(roll >> 8 & 0xfff);
            match (op, roll % 25) {
                (_, 0) => Some(Fault::Fail),
                (_, 1) => Some(Fault::Slow(later)),
                ("create" | "put", 2) => Some(Fault::LoseAnswer),
                ("create" | "put", 3) => Some(Fault::LoseRequest),
                // Only creates may land late without harm: that is what they are for.
                ("create", 4) => Some(Fault::LandLater(later)),
                _ => None,
            }
        });
        let mut leaders: Vec<(Leader, Option<u64>, u64)> = Vec::new();
        for epoch in 1..=6 {
            let mut leader = world.lead(epoch).await;
            let choice = leader.choose(vec![]).await.unwrap();
            let restored = choice.snapshot.as_ref().map(|s| s.manifest.checkpoint.0);
            if let Some(snapshot) = &choice.snapshot {
                for object in &snapshot.manifest.objects {
                    assert!(
                        world.store.keys().contains(&object.key),
                        "seed {seed}: {}",
                        object.key
                    );
                }
            }
            leader.attempt = epoch as u32;
            leader.run();
            let mut first = None;
            for _ in 0..10 + dice.u64() % 60 {
                match leader.event().await {
                    CoordinatorEvent::Trigger(plans) => {
                        let n = plans[0].1.barrier.checkpoint;
                        first.get_or_insert(n.0);
                        match dice.u64() % 8 {
                            0 => {}
                            1 => leader.ack(&world.stores, &plans[1..]),
                            2 => leader.handle.send(CoordinatorMessage::Declined {
                                checkpoint: n,
                                reason: "dice".into(),
                            }),
                            _ => leader.ack(&world.stores, &plans),
                        }
                    }
                    CoordinatorEvent::Fenced { .. } => panic!("seed {seed}: nobody else leads"),
                    _ => {}
                }
            }
            if dice.u64().is_multiple_of(2) {
                leader.suspend();
                let again = leader.restored().await;
                let told = leader.told().last().copied();
                assert!(again >= told, "seed {seed}: {again:?} {told:?}");
            }
            leaders.push((leader, restored, first.unwrap()));
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        for pair in 1..leaders.len() {
            let (before, after) = leaders.split_at_mut(pair);
            let (old, (_, restored, first)) = (&mut before[pair - 1].0, &after[0]);
            while let Ok(event) = old.events.try_recv() {
                old.seen.push(event);
            }
            completed += old.told().len();
            fenced += usize::from(matches!(
                old.seen.last(),
                Some(CoordinatorEvent::Fenced { .. })
            ));
            let told = old.told().last().copied();
            assert!(
                *restored >= told,
                "seed {seed}: told {told:?}, restored {restored:?}"
            );
            assert!(
                told < Some(*first),
                "seed {seed}: told {told:?} above {first}"
            );
        }
        let created = world.store.created();
        let records: Vec<_> = created
            .iter()
            .filter(|k| k.ends_with("_metadata"))
            .collect();
        let unique: BTreeSet<_> = records.iter().collect();
        assert_eq!(records.len(), unique.len(), "seed {seed}");
    }
    // Else nothing was tried.
    assert!(
        completed > 200 && fenced > 50,
        "{completed} completed, {fenced} fenced"
    );
}

impl Leader {
    /// The numbers it said were complete.
    fn told(&self) -> Vec<u64> {
        let told: Vec<u64> = self
            .seen
            .iter()
            .filter_map(|e| match e {
                CoordinatorEvent::Completed { checkpoint, .. } => Some(checkpoint.0),
                _ => None,
            })
            .collect();
        assert!(told.is_sorted());
        told
    }
}

/// What the first leader told is shown by the second one; what was under way is called failed, what lies in the store complete.
#[tokio::test(start_paused = true)]
async fn the_checkpoints_of_a_former_leader_stay_in_the_history() {
    let mut world = World::new();
    let mut first = world.lead(1).await;
    first.run();
    let completed = first.checkpoint(&world).await;
    first.trigger().await;
    first.suspend();
    let (aborted, reason) = first.aborted().await;
    first.run();
    let plans = first.trigger().await;
    world.history = first.status().await;
    // The last one completes after the telling.
    first.ack(&world.stores, &plans);
    let untold = first.completed().await;
    first.run();
    first.trigger().await;
    first.handle.stop();

    let second = world.lead(2).await;
    second.restored().await;
    let status = second.status().await;
    let seen: Vec<_> = status.iter().map(|s| (s.checkpoint, s.state)).collect();
    assert_eq!(
        seen,
        [
            (completed, CheckpointState::Completed),
            (aborted, CheckpointState::Failed),
            (untold, CheckpointState::Completed),
        ]
    );
    assert_eq!(status[0], world.history[0], "with all that only it knew");
    assert!(status[1].failure.as_deref().unwrap().contains(&reason));

    // The store has lost sight of one that was under way: it did not complete.
    world.history = vec![CheckpointStatus {
        state: CheckpointState::InProgress,
        checkpoint: CheckpointId(1),
        ..status[0].clone()
    }];
    let third = world.lead(3).await;
    third.restored().await;
    let status = third.status().await;
    assert_eq!(status[0].state, CheckpointState::Failed);
    assert!(status[0].failure.as_deref().unwrap().contains("JobManager"));
}

/// Epochs of the records, by number.
#[cfg(feature = "fault-points")]
fn epochs(world: &World) -> Vec<u64> {
    (1..)
        .map_while(|n| world.store.record(n))
        .map(|record| record.epoch.0)
        .collect()
}

/// Two leaders on one store, each with its own idea of who takes part, until the first has had its say after the second's claim. What
/// makes it fall silent is the epoch alone: with the switch, its records stand behind its successor's, and epochs fall (S3).
#[cfg(feature = "fault-points")]
#[tokio::test(start_paused = true)]
async fn a_leader_that_ignores_the_epoch_is_seen_in_the_order_of_epochs() {
    use crate::fault::{Platform, Sabotage};
    struct Nowhere;
    impl Platform for Nowhere {
        fn exit(&self) {}
        fn stop(&self) {}
        fn sleep(&self, _: Duration) {}
    }
    let mut world = World::new();
    for sabotage in [&[][..], &[Sabotage::IgnoreEpoch]] {
        world = World {
            faults: FaultPoints::armed("jm", Vec::new(), sabotage, Arc::new(Nowhere)),
            ..World::new()
        };
        let mut first = world.lead(1).await;
        first.run();
        first.checkpoint(&world).await;
        let plans = first.trigger().await;
        let second = world.lead(2).await;
        assert!(second.restored().await.is_some());
        first.ack(&world.stores, &plans);
        if sabotage.is_empty() {
            assert_eq!(first.fenced().await, LeaderEpoch(2));
            assert!(epochs(&world).is_sorted());
            continue;
        }
        first.aborted().await;
        let plans = first.trigger().await;
        first.ack(&world.stores, &plans);
        first.aborted().await;
    }
    let epochs = epochs(&world);
    assert!(!epochs.is_sorted(), "{epochs:?}");
}
