//! How a checkpoint comes to be complete, or not.

use super::*;

#[tokio::test(start_paused = true)]
async fn checkpoints_complete_in_numbers_one_after_another_each_over_the_last() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    assert!(leader.choose(vec![]).await.unwrap().snapshot.is_none());
    leader.run();
    let begin = tokio::time::Instant::now();
    let plans = leader.trigger().await;
    assert!(begin.elapsed() < Duration::from_millis(300), "one soon");
    assert_eq!(plans[0].1.barrier.base, None);
    leader.ack(&world.stores, &plans);
    assert_eq!(leader.completed().await, CheckpointId(2), "1 is the claim");
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.base, Some(CheckpointId(2)));
    assert_eq!(plans[0].1.directory, DIRECTORY);
    leader.ack(&world.stores, &plans);
    assert_eq!(leader.completed().await, CheckpointId(3));
    leader.trigger().await;
    // 2 is subsumed, but 3 reads its objects.
    assert!(!world.is_completed(2) && world.is_completed(3));
    let Some(RecordOutcome::Completed(manifest)) = world.outcome(3) else {
        panic!("completed");
    };
    assert_eq!(manifest.objects.len(), 4);
    for object in &manifest.objects {
        assert!(world.store.keys().contains(&object.key), "{}", object.key);
    }
    let status = leader.status().await;
    assert_eq!(status[0].state, CheckpointState::Completed);
    assert_eq!(status[0].acknowledged, (3, 3));
    assert_eq!((status[0].bytes, status[0].longest_pause_us), (128, 7));
}

#[tokio::test(start_paused = true)]
async fn a_lost_success_of_the_record_completes_the_checkpoint_once() {
    let world = World::new();
    world.store.faults(|op, key| {
        (op == "create" && key.starts_with("chk-2/")).then_some(Fault::LoseAnswer)
    });
    let mut leader = world.lead(1).await;
    leader.run();
    assert_eq!(leader.checkpoint(&world).await, CheckpointId(2));
    assert!(world.is_completed(2));
    let created = world.store.created();
    assert_eq!(
        created.iter().filter(|k| *k == "chk-2/_metadata").count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_timeout_whose_write_lands_later_is_decided_once_and_stays_decided() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 5;
    let mut tries = 0;
    world.store.faults(move |op, key| {
        let is_first = op == "create" && key.starts_with("chk-2/") && {
            tries += 1;
            tries == 1
        };
        is_first.then_some(Fault::LandLater(Duration::from_secs(5)))
    });
    let mut leader = world.lead(1).await;
    leader.run();
    let plans = leader.trigger().await;
    leader.ack(&world.stores, &plans);
    assert_eq!(leader.aborted().await.0, CheckpointId(2));
    assert_eq!(leader.checkpoint(&world).await, CheckpointId(3));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(matches!(
        world.outcome(2),
        Some(RecordOutcome::Aborted { .. })
    ));
    assert_eq!(leader.restored().await, Some(3));
}

/// Over the same base the next record would be too long as well, and so on for ever.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_too_long_says_so_and_the_next_checkpoint_is_whole() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 5;
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.base, Some(CheckpointId(2)));
    let half = Bytes::from(vec![0_u8; (RECORD_LEN_MAX / 2) as usize]);
    for (instance, plan) in &plans {
        let mut ack = ack_for(&world.stores, *instance, plan);
        for operator in ack.subtasks.iter_mut().flat_map(|s| &mut s.operators) {
            if let Some(segment) = &mut operator.keyed {
                segment.data = DataRef::Inline(half.clone());
            }
        }
        leader.handle.send(CoordinatorMessage::Ack {
            instance: *instance,
            ack: Box::new(ack),
        });
    }
    let (n, told) = leader.aborted().await;
    let Some(RecordOutcome::Aborted { reason }) = world.outcome(3) else {
        panic!("decided as aborted");
    };
    assert_eq!(n, CheckpointId(3));
    for text in [told, reason] {
        assert!(text.contains("above the limit"), "{text}");
    }
    let plans = leader.trigger().await;
    assert_eq!(plans[0].1.barrier.base, None);
    leader.ack(&world.stores, &plans);
    assert_eq!(leader.completed().await, CheckpointId(4));
}

/// However much is configured for each of them.
#[tokio::test(start_paused = true)]
async fn what_all_subtasks_send_inline_finds_room_in_one_record() {
    let mut world = World::new();
    world.checkpointing().inline_threshold = RECORD_LEN_MAX;
    let mut leader = world.lead(1).await;
    leader.run();
    let plans = leader.trigger().await;
    for (instance, plan) in &plans {
        let mut ack = ack_for(&world.stores, *instance, plan);
        for subtask in &mut ack.subtasks {
            let bytes = Bytes::from(vec![0_u8; plan.inline_threshold as usize]);
            subtask.operators[0].state.operator_state = Some(DataRef::Inline(bytes));
        }
        leader.handle.send(CoordinatorMessage::Ack {
            instance: *instance,
            ack: Box::new(ack),
        });
    }
    assert_eq!(leader.completed().await, CheckpointId(2));
}

#[tokio::test(start_paused = true)]
async fn sixteen_racing_creators_end_with_one_winner() {
    for seed in 0..20 {
        let world = World::new();
        let mut n = 0_u64;
        world.store.faults(move |op, _| {
            n += seed;
            match (op, n % 5) {
                ("create", 1) => Some(Fault::LoseAnswer),
                ("create", 2) => Some(Fault::Slow(Duration::from_millis(n % 7))),
                ("create", 3) => Some(Fault::LandLater(Duration::from_millis(n % 11))),
                ("get", 4) => Some(Fault::Fail),
                _ => None,
            }
        });
        let entropy = Entropy::seeded(seed);
        let writers = (0..16).map(|_| {
            let ledger = Ledger {
                store: Arc::clone(&world.store) as Arc<dyn Store>,
                guard: Arc::new(Epoch(AtomicU64::new(1))),
                epoch: LeaderEpoch(1),
                entropy: entropy.clone(),
            };
            tokio::spawn(async move {
                let outcome = RecordOutcome::Claimed;
                ledger
                    .write(CheckpointId(1), outcome, OnFailure::Repeat)
                    .await
                    .fate
            })
        });
        let fates: Vec<Fate> = futures::future::join_all(writers)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let winners = fates.iter().filter(|f| **f == Fate::Written).count();
        assert_eq!(winners, 1, "seed {seed}: {fates:?}");
        assert_eq!(world.store.created().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_completing_checkpoint_neither_expires_nor_is_passed_over_by_a_restart() {
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
    // Asked while the record is on its way; answered when it is there.
    assert_eq!(leader.restored().await, Some(2));
    assert_eq!(leader.completed().await, CheckpointId(2));
    assert!(
        !leader
            .seen
            .iter()
            .any(|e| matches!(e, CoordinatorEvent::Aborted { .. }))
    );
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_expires_is_recorded_and_its_late_acks_are_cleaned_up() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 1;
    let mut leader = world.lead(1).await;
    leader.run();
    let plans = leader.trigger().await;
    leader.ack(&world.stores, &plans[..1]);
    let (n, reason) = leader.aborted().await;
    assert!(n.0 == 2 && reason.contains("2 of 3"), "{reason}");
    let late = leader.trigger().await;
    assert_eq!(late[0].1.barrier.checkpoint, CheckpointId(3));
    assert_eq!(
        late[0].1.barrier.base, None,
        "nothing completed to be based on"
    );
    leader.ack(&world.stores, &plans[1..]);
    leader.ack(&world.stores, &late);
    assert_eq!(leader.completed().await, CheckpointId(3));
    leader.trigger().await;
    assert!(matches!(
        world.outcome(2),
        Some(RecordOutcome::Aborted { .. })
    ));
    assert_eq!(
        world.shared().len(),
        2,
        "only those of 3: {:?}",
        world.shared()
    );
    assert_eq!(leader.restored().await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn an_ack_of_an_old_attempt_does_not_complete_the_checkpoint() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.attempt = 2;
    leader.run();
    let plans = leader.trigger().await;
    let mut stale = plans.clone();
    for (_, plan) in &mut stale {
        for attempt in &mut plan.attempts {
            attempt.attempt = Attempt(1);
        }
    }
    leader.ack(&world.stores, &stale);
    assert!(leader.aborted().await.1.contains("0 of 3"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.shared(), Vec::<String>::new(), "its objects are gone");
}

#[tokio::test(start_paused = true)]
async fn declined_checkpoints_fail_the_job_beyond_the_tolerable_number() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 1;
    let mut leader = world.lead(1).await;
    leader.run();
    for n in [2, 3] {
        assert!(
            !leader
                .seen
                .iter()
                .any(|e| matches!(e, CoordinatorEvent::Failure(_)))
        );
        let plans = leader.trigger().await;
        leader.handle.send(CoordinatorMessage::Declined {
            checkpoint: plans[0].1.barrier.checkpoint,
            reason: "disk full".into(),
        });
        assert_eq!(leader.aborted().await.0, CheckpointId(n));
    }
    let CoordinatorEvent::Failure(failure) = leader.event().await else {
        panic!("{:?}", leader.seen);
    };
    assert!(failure.to_string().contains("disk full"));
}

#[tokio::test(start_paused = true)]
async fn the_history_is_bounded_and_survives_the_job_manager() {
    let mut world = World::new();
    world.graph.settings.checkpoint_history_size = 3;
    let mut leader = world.lead(1).await;
    leader.run();
    for _ in 0..5 {
        leader.checkpoint(&world).await;
    }
    assert_eq!(leader.status().await.len(), 3);
    leader.suspend();
    assert_eq!(leader.restored().await, Some(6));
    let next = world.lead(2).await;
    assert_eq!(next.restored().await, Some(6));
    assert_eq!(
        next.status().await.last().unwrap().checkpoint,
        CheckpointId(6)
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_delays_checkpoints_and_bounds_what_waits() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 1000;
    world.checkpointing().timeout = Duration::from_secs(5);
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    world.store.faults(|_, _| Some(Fault::Fail));
    let end = tokio::time::Instant::now() + Duration::from_secs(1000);
    let mut triggered = 0;
    while let Ok(Some(event)) = tokio::time::timeout_at(end, leader.events.recv()).await {
        if let CoordinatorEvent::Trigger(plans) = event {
            triggered += 1;
            leader.ack(&world.stores, &plans);
        }
    }
    assert!((1..=17).contains(&triggered), "{triggered}");
    world.store.heal();
    let n = leader.completed_or_ack(&world).await;
    assert!(world.is_completed(n.0));
}

/// A4, S6: what panicked at the store is told, not only that something did.
#[tokio::test(start_paused = true)]
async fn a_panic_at_the_store_ends_the_coordinator_with_its_words() {
    let world = World::new();
    world
        .store
        .faults(|op, key| match op == "create" && key.contains("chk-2") {
            true => panic!("the store's client broke"),
            false => None,
        });
    let (sender, mut exits) = mpsc::unbounded_channel();
    let mut leader = world.lead_under(1, Root(Some(sender))).await;
    leader.run();
    let plans = leader.trigger().await;
    leader.ack(&world.stores, &plans);
    let Some(Exit::Failed(FailureKind::Actor { actor, message })) = exits.recv().await else {
        panic!("it ends with a cause");
    };
    assert_eq!(actor, "CheckpointCoordinator");
    assert!(message.contains("the store's client broke"), "{message}");
}

impl Leader {
    /// Acknowledges whatever is triggered until one completes.
    async fn completed_or_ack(&mut self, world: &World) -> CheckpointId {
        loop {
            match self.event().await {
                CoordinatorEvent::Trigger(plans) => self.ack(&world.stores, &plans),
                CoordinatorEvent::Completed { checkpoint, .. } => return checkpoint,
                _ => {}
            }
        }
    }
}
