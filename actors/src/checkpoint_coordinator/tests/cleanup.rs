//! What is deleted, when, and by whom.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_newer_checkpoint_subsumes_an_older_one() {
    let mut world = World::new();
    world.checkpointing().max_concurrent = 2;
    let mut leader = world.lead(1).await;
    leader.run();
    let older = leader.trigger().await;
    let newer = leader.trigger().await;
    leader.ack(&world.stores, &newer);
    assert_eq!(leader.aborted().await.0, CheckpointId(2));
    assert_eq!(leader.completed().await, CheckpointId(3));
    leader.ack(&world.stores, &older);
    leader.trigger().await;
    assert!(matches!(
        world.outcome(2),
        Some(RecordOutcome::Aborted { .. })
    ));
    assert_eq!(world.shared().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ended_leaves_what_retention_says_and_never_runs_again() {
    for (state, stays) in [
        (JobState::Finished, false),
        (JobState::Canceled, true),
        (JobState::Failed, true),
    ] {
        let world = World::new();
        let mut leader = world.lead(1).await;
        leader.run();
        leader.checkpoint(&world).await;
        leader.trigger().await; // Pending while the job ends.
        assert_eq!(terminal_state(&*world.store).await.unwrap(), None);
        leader.terminate(state).await;
        assert_eq!(
            terminal_state(&*world.store).await.unwrap(),
            Some((state, None))
        );
        assert_eq!(world.is_completed(2), stays, "{state}");
        assert_eq!(world.shared().len(), if stays { 2 } else { 0 }, "{state}");
        world.store.remove("latest");
        assert_eq!(
            terminal_state(&*world.store).await.unwrap(),
            Some((state, None)),
            "without the hint too"
        );
        let next = world.lead(2).await;
        let error = next.choose(vec![]).await.unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
        next.terminate(state).await;
    }
}

/// Long enough that records are deleted, then every kind of wrong hint.
#[tokio::test(start_paused = true)]
async fn old_records_are_deleted_and_the_end_is_found_from_any_hint() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    let mut hints = vec![None, Some(Bytes::from_static(b"rubbish"))];
    for n in 2..=150 {
        assert_eq!(leader.checkpoint(&world).await, CheckpointId(n));
        if n % 40 == 0 {
            hints.push(world.store.read("latest"));
        }
    }
    leader.trigger().await;
    let records = world
        .store
        .keys()
        .iter()
        .filter(|k| k.ends_with("/_metadata"))
        .count();
    assert!(records < 30, "{records} records are left");
    assert_eq!(world.shared().len() % 2, 0);
    assert!(
        world.shared().len() <= 2 * (CHAIN_LEN_MAX + 1),
        "{:?}",
        world.shared()
    );
    for (i, hint) in hints.into_iter().enumerate() {
        match hint {
            Some(bytes) => world.store.insert("latest", bytes),
            None => world.store.remove("latest"),
        }
        let next = world.lead(2 + i as u64).await;
        assert_eq!(next.restored().await, Some(150), "hint {i}");
        assert_eq!(world.outcome(151 + i as u64), Some(RecordOutcome::Claimed));
        next.handle.stop();
    }
}

/// The newest completed one lies between where the hint begins and the anchor to which the probe jumps, because retention has deleted what
/// the hint points at. Each row: that checkpoint, and the first number that was free when the hint was written.
#[tokio::test(start_paused = true)]
async fn a_hint_that_retention_has_overtaken_hides_no_completed_checkpoint() {
    use crate::checkpoint::io::{Hint, RETIRED, survey};

    for (newest, next) in [(127, 40), (127, 63), (191, 40), (191, 64)] {
        let store = MemoryStore::new(DIRECTORY);
        let record = |n: u64, outcome| {
            let checkpoint = CheckpointId(n);
            let record = Record {
                checkpoint,
                epoch: LeaderEpoch(1),
                token: u128::from(n),
                outcome,
            };
            store.insert(&record_key(checkpoint), encode_record(&record).unwrap());
        };
        let aborted = |reason: &str| RecordOutcome::Aborted {
            reason: reason.to_owned(),
        };
        let last_anchor = newest / ANCHOR_EVERY * ANCHOR_EVERY;
        for n in (1..newest).filter(|n| *n >= last_anchor || is_anchor(CheckpointId(*n))) {
            record(n, aborted(RETIRED));
        }
        let manifest = Box::new(manifest_of(newest, &[]));
        record(newest, RecordOutcome::Completed(manifest));
        record(newest + 1, aborted("expired"));
        let hint = Hint {
            next: CheckpointId(next),
            retained: vec![CheckpointId(next - 1)],
            deleted_below: CheckpointId(1),
        };
        hint.write(&*store).await;
        let survey = survey(&*store).await.unwrap();
        let found: Vec<_> = survey
            .completed
            .into_iter()
            .map(|c| (c.checkpoint.0, c.damage))
            .collect();
        assert_eq!(found, [(newest, None)], "hint {next}");
        assert_eq!(survey.free, CheckpointId(newest + 2));
    }
}

/// What is completed waits for what is being deleted, so that neither memory nor the store fills up where deletions are slow.
#[tokio::test(start_paused = true)]
async fn no_periodic_checkpoint_begins_while_too_many_old_ones_wait_to_be_deleted() {
    let hour = Duration::from_secs(3600);
    let mut world = World::new();
    world.checkpointing().is_incremental = false;
    world
        .store
        .faults(move |op, _| (op == "delete").then_some(Fault::Slow(hour)));
    let mut leader = world.lead(1).await;
    leader.run();
    let mut completed = Vec::new();
    let before = tokio::time::Instant::now() + hour;
    while let Ok(Some(event)) = tokio::time::timeout_at(before, leader.events.recv()).await {
        match event {
            CoordinatorEvent::Trigger(plans) => leader.ack(&world.stores, &plans),
            CoordinatorEvent::Completed { checkpoint, .. } => completed.push(checkpoint.0),
            _ => {}
        }
    }
    // 2 is being deleted since 3; 3 and 4 wait.
    assert_eq!(completed, [2, 3, 4, 5]);
    // It goes on once that is done.
    assert_eq!(leader.checkpoint(&world).await, CheckpointId(6));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_sweeps_what_an_undone_checkpoint_left() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let plans = leader.trigger().await;
    leader.ack(&world.stores, &plans[..1]); // Uploaded, and then everything dies.
    leader.handle.stop();
    let mut next = world.lead(2).await;
    assert_eq!(next.restored().await, Some(2));
    next.run();
    next.trigger().await;
    let shared = world.shared();
    assert!(
        shared.len() == 2 && shared.iter().all(|k| k.contains("-c2-")),
        "{shared:?}"
    );
}

/// Found by the simulator (seed 172): a record that could not be retired any more still names its objects.
#[tokio::test(start_paused = true)]
async fn a_new_leader_keeps_the_objects_of_a_record_that_was_being_retired() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    world.store.faults(|op, key| {
        (op == "put" && key.ends_with("chk-2/_metadata")).then_some(Fault::LoseRequest)
    });
    leader.checkpoint(&world).await;
    leader.checkpoint(&world).await; // The hint for the next leader was written after the one before.
    leader.handle.stop();
    let next = world.lead(2).await;
    assert_eq!(next.restored().await, Some(4));
    assert!(world.is_completed(2), "its record stands");
    let shared = world.shared();
    assert!(shared.iter().any(|k| k.contains("-c2-")), "{shared:?}");
}

/// Found by the simulator (seed 77): what a checkpoint left that never got a number survived the job.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_sweeps_objects_of_numbers_that_were_never_decided() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let stray = world.shared()[0].replace("-c2-", "-c9-");
    world.store.insert(&stray, Bytes::from_static(b"x"));
    leader.terminate(JobState::Finished).await;
    assert_eq!(world.shared(), Vec::<String>::new());
}

/// Found by the simulator (seeds 10300, 11799): nobody comes by again, so a store that is ill for a while is waited for, and no longer.
/// Each row: what fails, and for how long from the end of the job on.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_waits_ten_seconds_for_an_ill_store_to_clean_up() {
    for (broken, ill, is_cleared) in [
        ("put", 9, true),
        ("list", 9, true),
        ("delete", 9, true),
        ("put", 600, false),
        // Then they are deleted by their names.
        ("list", 600, true),
        ("delete", 600, false),
    ] {
        let world = World::new();
        let mut leader = world.lead(1).await;
        leader.run();
        leader.checkpoint(&world).await;
        let began = tokio::time::Instant::now();
        world.store.faults(move |op, _| {
            let is_ill = op == broken && began.elapsed() < Duration::from_secs(ill);
            is_ill.then_some(Fault::Fail)
        });
        leader.terminate(JobState::Finished).await;
        let took = began.elapsed();
        // The last try may come a longest pause after the limit.
        let limit = Duration::from_secs(10)..Duration::from_secs(15);
        assert!(
            took < limit.end && (is_cleared || took >= limit.start),
            "{broken} fails for {ill} s: {took:?}"
        );
        let shared = world.shared();
        assert_eq!(shared.is_empty(), is_cleared, "{broken}: {shared:?}");
        if !is_cleared {
            // A record that stands may be chosen, so what it needs stands as well; what was retired needs nothing.
            let is_retired = broken != "put";
            assert_eq!(world.is_completed(2), !is_retired, "{broken}");
        }
    }
}

/// While a job runs nothing insists: what cannot be deleted after three tries is left to the next leader's sweep.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_while_the_job_runs_is_tried_three_times() {
    let mut world = World::new();
    world.checkpointing().tolerable_failed = 1;
    let mut leader = world.lead(1).await;
    leader.run();
    let tried: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let tries = Arc::clone(&tried);
    world.store.faults(move |op, key| {
        if op != "delete" {
            return None;
        }
        *tries.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        Some(Fault::Fail)
    });
    let plans = leader.trigger().await;
    leader.ack(&world.stores, &plans[..1]);
    let left = world.shared();
    leader.handle.send(CoordinatorMessage::Declined {
        checkpoint: plans[0].1.barrier.checkpoint,
        reason: "disk full".into(),
    });
    leader.aborted().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let three_each: BTreeMap<_, _> = left.into_iter().map(|key| (key, 3)).collect();
    assert!(!three_each.is_empty());
    assert_eq!(*tried.lock().unwrap(), three_each);
}

/// Found by the simulator (seed 1311): a leader died between the record of the end and the clearing; its successor starts no coordinator.
#[tokio::test(start_paused = true)]
async fn what_an_ended_job_left_is_cleared_by_the_next_leader() {
    use crate::checkpoint::io::clear_ended;
    use perennial_config::ExternalizedRetention::{DeleteOnCancellation, RetainOnCancellation};

    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let left = world.shared();
    assert!(!left.is_empty());
    let ledger = successor(&world);
    clear_ended(&ledger, DeleteOnCancellation).await.unwrap();
    assert_eq!(world.shared(), left, "a job that runs");
    let end = RecordOutcome::Terminal {
        state: JobState::Canceled,
        message: None,
    };
    let decision = ledger.write(CheckpointId(3), end, OnFailure::Repeat).await;
    assert_eq!(decision.fate, Fate::Written);
    clear_ended(&ledger, RetainOnCancellation).await.unwrap();
    assert_eq!(world.shared(), left, "they outlive it");
    clear_ended(&ledger, DeleteOnCancellation).await.unwrap();
    assert_eq!(world.shared(), Vec::<String>::new());
}

/// The store is ill while the records are to be retired, as if the leader had died there: what they name must not go before them. The
/// records are found by the hint that the leader left.
#[tokio::test(start_paused = true)]
async fn records_that_stand_after_the_end_are_retired_by_the_next_leader_before_their_objects_go() {
    use crate::checkpoint::io::clear_ended;
    use perennial_config::ExternalizedRetention::RetainOnCancellation;

    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    let left = world.shared();
    assert!(!left.is_empty());
    world
        .store
        .faults(|op, key| (op == "put" && key.ends_with("/_metadata")).then_some(Fault::Fail));
    leader.terminate(JobState::Finished).await;
    assert!(world.is_completed(2));
    assert_eq!(world.shared(), left);

    let done: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&done);
    world.store.faults(move |op, key| {
        log.lock().unwrap().push(format!("{op} {key}"));
        None
    });
    clear_ended(&successor(&world), RetainOnCancellation)
        .await
        .unwrap();
    assert!(!world.is_completed(2));
    assert_eq!(world.shared(), Vec::<String>::new());
    let done = done.lock().unwrap();
    let retired = done.iter().position(|o| o == "put chk-2/_metadata");
    let deleted = done.iter().position(|o| o.starts_with("delete shared/"));
    assert!(retired.is_some() && retired < deleted, "{done:?}");
}

/// What could not be deleted meanwhile is deleted by its name at the end: a listing may not show it yet.
#[tokio::test(start_paused = true)]
async fn objects_are_deleted_at_the_end_without_a_listing() {
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    world
        .store
        .faults(|op, _| (op == "delete").then_some(Fault::Fail));
    for _ in 0..4 {
        leader.checkpoint(&world).await;
    }
    // Retention has given up by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    world
        .store
        .faults(|op, _| (op == "list").then_some(Fault::Fail));
    leader.terminate(JobState::Finished).await;
    assert_eq!(world.shared(), Vec::<String>::new());
}

/// Of a leader that starts no coordinator.
fn successor(world: &World) -> Ledger {
    Ledger {
        store: Arc::clone(&world.store) as Arc<dyn Store>,
        guard: Arc::new(Epoch(AtomicU64::new(2))),
        epoch: LeaderEpoch(2),
        entropy: Entropy::seeded(1),
    }
}

/// Nor does each of many objects have its own time.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_does_not_try_each_of_many_objects_at_an_ill_store() {
    const STRAYS: u64 = 300;
    let world = World::new();
    let mut leader = world.lead(1).await;
    leader.run();
    leader.checkpoint(&world).await;
    for stray in 0..STRAYS {
        let key = format!("shared/e1-c2-a1-{stray:08x}");
        world.store.insert(&key, Bytes::from_static(b"x"));
    }
    let tries = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&tries);
    world.store.faults(move |op, _| {
        (op == "delete").then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            Fault::Fail
        })
    });
    leader.terminate(JobState::Finished).await;
    let tried = tries.load(Ordering::SeqCst);
    assert!(tried < STRAYS / 3, "{tried} tries");
}

/// A record that could not be replaced names its objects, and nobody comes by again.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_retires_what_could_not_be_before_or_keeps_its_objects() {
    for is_ill_at_end in [false, true] {
        let mut world = World::new();
        world.checkpointing().is_incremental = false;
        let mut leader = world.lead(1).await;
        leader.run();
        leader.checkpoint(&world).await;
        world.store.faults(|op, key| {
            (op == "put" && key.ends_with("chk-2/_metadata")).then_some(Fault::Fail)
        });
        leader.checkpoint(&world).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(world.is_completed(2));
        if !is_ill_at_end {
            world.store.heal();
        }
        leader.terminate(JobState::Canceled).await;
        let has_objects = world.shared().iter().any(|k| k.contains("-c2-"));
        assert_eq!(has_objects, world.is_completed(2));
        assert_eq!(world.is_completed(2), is_ill_at_end);
        assert!(world.is_completed(3));
    }
}
