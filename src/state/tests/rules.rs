//! The rules that the model does not reach: limits, panics in user code, attempts, wrong types, slices.
//! Each test drives one backend by hand and looks at captures through the offline decoder.

use super::*;

fn entries(captured: &CapturedState) -> Vec<RawEntry> {
    let decoded = captured
        .groups
        .iter()
        .map(|g| decode_entries(&g.1).unwrap());
    decoded.flatten().collect()
}

#[test]
fn a_delta_holds_only_what_changed_since_its_base() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    for k in 0..200 {
        use_key(&mut b, k);
        count.set(&mut b, k).unwrap();
    }
    barrier(&mut b, 1, None);
    assert_eq!(entries(&finish(&mut b)).len(), 200);
    b.confirm(CheckpointId(1));
    use_key(&mut b, 7);
    count.set(&mut b, 70).unwrap();
    use_key(&mut b, 8);
    count.clear(&mut b).unwrap();
    barrier(&mut b, 2, Some(1));
    use_key(&mut b, 9);
    count.set(&mut b, 90).unwrap();
    let delta = finish(&mut b);
    assert_eq!(delta.kind, SegmentKind::Delta);
    let mut values: Vec<_> = entries(&delta).into_iter().map(|e| e.value).collect();
    values.sort();
    assert_eq!(values, [None, Some(vec![70])]);
}

#[test]
fn nothing_is_logged_or_kept_before_the_first_barrier() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    for k in 0..100 {
        use_key(&mut b, k);
        count.set(&mut b, k).unwrap();
        count.update(&mut b, |v| *v = None).unwrap();
    }
    assert_eq!(b.figures(), StateFigures::default());
}

#[test]
fn a_full_log_gives_up_undo_first_and_then_the_oldest_capture() {
    let limits = StateLimits {
        log_bytes_max: 4000,
    };
    let mut b = backend(limits);
    let count = b.value_state::<u64, ()>("count").unwrap();
    let change = |b: &mut KeyedBackend<u64>, keys: std::ops::Range<u64>| {
        for k in keys {
            use_key(b, k);
            count.update(b, |v| *v = Some(v.unwrap_or(0) + 1)).unwrap();
        }
    };
    change(&mut b, 0..300);
    barrier(&mut b, 1, None);
    finish(&mut b);
    b.confirm(CheckpointId(1));
    change(&mut b, 0..80);
    assert!(b.figures().wants_checkpoint, "the soft limit is half");
    // Above the limit: the way back to 1 is given up, and with no capture to serve there is no log any more.
    change(&mut b, 80..300);
    assert_eq!(b.figures().log_bytes, 0);
    let undone = b.undo(CheckpointId(1));
    assert_eq!(
        undone,
        Undone::Unavailable("the log back to checkpoint 1 was given up".to_owned())
    );
    // It is still a base: since and tombstones stay.
    barrier(&mut b, 2, Some(1));
    change(&mut b, 0..300);
    let progress = b.capture(Duration::ZERO).unwrap();
    let CaptureProgress::Declined { checkpoint, reason } = progress else {
        panic!("{progress:?}");
    };
    assert_eq!(checkpoint, CheckpointId(2));
    assert!(reason.contains("full"), "{reason}");
    barrier(&mut b, 3, Some(1));
    let delta = finish(&mut b);
    assert_eq!(
        (delta.kind, entries(&delta).len()),
        (SegmentKind::Delta, 300)
    );
    // And the next completed checkpoint can be undone to again.
    change(&mut b, 0..10);
    assert_eq!(b.undo(CheckpointId(3)), Undone::Done);
    use_key(&mut b, 5);
    assert_eq!(count.get(&mut b).unwrap(), Some(3));
}

#[test]
fn more_barriers_than_captures_may_run_decline_the_oldest() {
    let mut b = backend(LIMITS);
    for id in 1..=CAPTURES_MAX as u64 + 1 {
        barrier(&mut b, id, None);
    }
    let progress = b.capture(Duration::ZERO).unwrap();
    assert!(
        matches!(progress, CaptureProgress::Declined { checkpoint, .. } if checkpoint == CheckpointId(1)),
        "{progress:?}"
    );
}

#[test]
fn state_that_user_code_panicked_in_is_not_undone() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    use_key(&mut b, 1);
    count.set(&mut b, 1).unwrap();
    barrier(&mut b, 1, None);
    finish(&mut b);
    // A thread of its own: only the task thread may catch a panic.
    let shared = std::sync::Arc::new(std::sync::Mutex::new(b));
    let theirs = std::sync::Arc::clone(&shared);
    let thread = std::thread::spawn(move || {
        let mut b = theirs.lock().unwrap();
        count.update(&mut *b, |_| panic!("user code")).unwrap();
    });
    assert!(thread.join().is_err());
    let mut b = shared.lock().unwrap_or_else(|e| e.into_inner());
    let Undone::Unavailable(why) = b.undo(CheckpointId(1)) else {
        panic!("undone");
    };
    assert!(why.contains("panicked while changing state"), "{why}");
}

#[test]
fn a_new_attempt_finds_the_tables_under_their_names_and_old_handles_are_void() {
    let mut b = backend(LIMITS);
    let old = b.value_state::<u64, ()>("count").unwrap();
    use_key(&mut b, 1);
    old.set(&mut b, 5).unwrap();
    b.begin_attempt();
    assert!(old.get(&mut b).is_err(), "no key, and void");
    let new = b.value_state::<u64, ()>("count").unwrap();
    use_key(&mut b, 1);
    assert!(matches!(old.get(&mut b), Err(StateError::Backend(_))));
    assert_eq!(new.get(&mut b).unwrap(), Some(5));
}

#[test]
fn a_name_is_of_one_kind_and_type() {
    let mut b = backend(LIMITS);
    b.value_state::<u64, ()>("x").unwrap();
    b.value_state::<u64, ()>("x").unwrap();
    fn refused<T>(result: Result<T, StateError>) {
        assert!(matches!(result, Err(StateError::Incompatible { .. })));
    }
    refused(b.value_state::<i32, ()>("x"));
    refused(b.value_state::<u64, u8>("x"));
    refused(b.list_state::<u64, ()>("x"));
    refused(b.reducing_state::<u64, (), _>("x", |a, b| a + b));
}

#[test]
fn loading_refuses_other_types_other_groups_and_unclaimed_states() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    for k in 0..50 {
        use_key(&mut b, k);
        count.set(&mut b, k).unwrap();
    }
    barrier(&mut b, 4, None);
    let full = finish(&mut b);

    let mut other_key =
        KeyedBackend::<i16>::memory(KeyGroupRange::of(SubtaskIndex(0), 1, 8), 8, LIMITS);
    load(&mut other_key, &full).unwrap();
    let refused = other_key.value_state::<u64, ()>("count").err().unwrap();
    assert!(refused.to_string().contains("key type"), "{refused}");

    let mut other_value = backend(LIMITS);
    load(&mut other_value, &full).unwrap();
    let refused = other_value.value_state::<String, ()>("count").err();
    assert!(matches!(refused, Some(StateError::Decode { .. })));

    let mut other_group = backend(LIMITS);
    let mut moved = full.clone();
    moved.groups.rotate_left(1);
    for (i, group) in moved.groups.iter_mut().enumerate() {
        group.0 = KeyGroup(i as u16);
    }
    load(&mut other_group, &moved).unwrap();
    let refused = other_group.value_state::<u64, ()>("count").err();
    assert!(matches!(refused, Some(StateError::Decode { .. })));

    let mut unclaimed = backend(LIMITS);
    load(&mut unclaimed, &full).unwrap();
    let refused = unclaimed.finish_load(CheckpointId(4), false);
    assert!(matches!(refused, Err(StateError::Incompatible { .. })));
    unclaimed.finish_load(CheckpointId(4), true).unwrap();
    // What was dropped is still in the chain: only a full capture gets rid of it.
    barrier(&mut unclaimed, 5, Some(4));
    assert_eq!(finish(&mut unclaimed).kind, SegmentKind::Full);
}

#[test]
fn loaded_state_can_be_undone_to_and_built_upon_at_once() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    use_key(&mut b, 1);
    count.set(&mut b, 1).unwrap();
    barrier(&mut b, 4, None);
    let full = finish(&mut b);
    let mut b = backend(LIMITS);
    load(&mut b, &full).unwrap();
    let count = b.value_state::<u64, ()>("count").unwrap();
    b.finish_load(CheckpointId(4), false).unwrap();
    use_key(&mut b, 1);
    count.set(&mut b, 2).unwrap();
    assert_eq!(b.undo(CheckpointId(4)), Undone::Done);
    assert_eq!(count.get(&mut b).unwrap(), Some(1));
    count.set(&mut b, 3).unwrap();
    barrier(&mut b, 6, Some(4));
    let delta = finish(&mut b);
    assert_eq!(delta.kind, SegmentKind::Delta);
    assert_eq!(entries(&delta).len(), 1);
}

#[test]
fn tombstones_and_log_are_forgotten_after_the_next_completed_checkpoint() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    barrier(&mut b, 1, None);
    finish(&mut b);
    b.confirm(CheckpointId(1));
    for round in 0..1000_u64 {
        // The same keys come and go: this must not pile up within an interval either.
        use_key(&mut b, round % 10);
        count.set(&mut b, round).unwrap();
        count.clear(&mut b).unwrap();
    }
    assert!(b.figures().log_bytes > 0);
    let at_most = b.figures().log_bytes;
    assert!(at_most < 10 * 100, "one record per entry: {at_most}");
    barrier(&mut b, 2, Some(1));
    assert_eq!(entries(&finish(&mut b)).len(), 10);
    b.confirm(CheckpointId(2));
    while b.capture(Duration::ZERO).unwrap() != CaptureProgress::Idle {}
    assert_eq!(b.figures().log_bytes, 0);
    barrier(&mut b, 3, Some(2));
    assert_eq!(entries(&finish(&mut b)).len(), 0);
}

#[test]
fn a_key_of_another_subtask_and_no_key_at_all_are_errors() {
    let range = KeyGroupRange::of(SubtaskIndex(0), 8, 8);
    let mut b = KeyedBackend::<u64>::memory(range, 8, LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    assert!(count.get(&mut b).is_err());
    let foreign = (0..).find(|k| KeyHash::of(k).key_group(8) != KeyGroup(0));
    use_key(&mut b, foreign.unwrap());
    assert!(matches!(count.set(&mut b, 1), Err(StateError::Backend(_))));
}

#[test]
fn namespaces_merge() {
    #[derive(Clone)]
    struct Mean;
    impl AggregateFunction for Mean {
        type In = u64;
        type Acc = (u64, u64);
        type Out = u64;
        fn create(&self) -> (u64, u64) {
            (0, 0)
        }
        fn add(&self, input: u64, acc: &mut (u64, u64)) {
            *acc = (acc.0 + input, acc.1 + 1);
        }
        fn get_result(&self, acc: &(u64, u64)) -> u64 {
            acc.0 / acc.1
        }
        fn merge(&self, from: (u64, u64), into: &mut (u64, u64)) {
            *into = (into.0 + from.0, into.1 + from.1);
        }
    }
    let mut b = backend(LIMITS);
    let list = b.list_state::<u64, u8>("list").unwrap();
    let max = b.reducing_state::<u64, u8, _>("max", u64::max).unwrap();
    let mean = b.aggregating_state::<_, u8>("mean", Mean).unwrap();
    use_key(&mut b, 1);
    for (namespace, v) in [(1, 10), (2, 20), (3, 60)] {
        list.add_in(&mut b, &namespace, v).unwrap();
        max.add_in(&mut b, &namespace, v).unwrap();
        mean.add_in(&mut b, &namespace, v).unwrap();
    }
    list.merge_namespaces(&mut b, &1, &[1, 2, 3]).unwrap();
    max.merge_namespaces(&mut b, &1, &[2, 3]).unwrap();
    mean.merge_namespaces(&mut b, &9, &[1, 2, 3]).unwrap();
    assert_eq!(list.get_in(&mut b, &1).unwrap(), [10, 20, 60]);
    assert_eq!(max.get_in(&mut b, &1).unwrap(), Some(60));
    assert_eq!(mean.get_in(&mut b, &9).unwrap(), Some(30));
    assert_eq!(b.figures().entries, 3);
}

#[test]
fn a_list_that_grew_and_was_replaced_twice_is_captured_as_of_its_barrier() {
    let mut b = backend(LIMITS);
    let list = b.list_state::<u64, ()>("list").unwrap();
    use_key(&mut b, 1);
    list.extend(&mut b, [1, 2]).unwrap();
    barrier(&mut b, 1, None);
    list.add(&mut b, 3).unwrap();
    barrier(&mut b, 2, None);
    list.update(&mut b, vec![7, 8, 9]).unwrap();
    barrier(&mut b, 3, None);
    list.add(&mut b, 10).unwrap();
    list.update(&mut b, vec![0; 9]).unwrap();
    let lists: Vec<Vec<u64>> = (0..3)
        .map(|_| entries(&finish(&mut b)).remove(0).value.unwrap())
        .map(|bytes| rmp_serde::from_slice(&bytes).unwrap())
        .collect();
    assert_eq!(lists, [vec![1, 2], vec![1, 2, 3], vec![7, 8, 9]]);
    assert_eq!(b.undo(CheckpointId(2)), Undone::Done);
    assert_eq!(list.get(&mut b).unwrap(), [1, 2, 3]);
}

/// The table grows many times in the middle of a capture and after it, with changes before, between and after.
#[test]
fn entries_that_move_are_captured_as_of_the_barrier_and_undone() {
    let mut b = backend(LIMITS);
    let name = b.value_state::<String, ()>("name").unwrap();
    let set = |b: &mut KeyedBackend<u64>, keys: std::ops::Range<u64>, text: &str| {
        for k in keys {
            use_key(b, k);
            name.set(b, format!("{text}-{k}")).unwrap();
        }
    };
    set(&mut b, 0..90, "old");
    for k in 80..90 {
        use_key(&mut b, k);
        name.clear(&mut b).unwrap();
    }
    barrier(&mut b, 1, None);
    let mut captured = None;
    for round in 0..40 {
        set(&mut b, round * 50..(round + 1) * 50, "new");
        match b.capture(Duration::ZERO).unwrap() {
            CaptureProgress::Done(done) => captured = Some(done),
            CaptureProgress::Working | CaptureProgress::Idle => {}
            other @ CaptureProgress::Declined { .. } => panic!("{other:?}"),
        }
    }
    let captured = captured.unwrap_or_else(|| finish(&mut b));
    let mut values: Vec<String> = entries(&captured)
        .into_iter()
        .map(|e| rmp_serde::from_slice(&e.value.unwrap()).unwrap())
        .collect();
    values.sort();
    let mut expected: Vec<String> = (0..80).map(|k| format!("old-{k}")).collect();
    expected.sort();
    assert_eq!(values, expected);
    assert_eq!(b.figures().entries, 2000);
    assert_eq!(b.undo(CheckpointId(1)), Undone::Done);
    assert_eq!(b.figures().entries, 80);
    for k in 0..2000 {
        use_key(&mut b, k);
        let old = (k < 80).then(|| format!("old-{k}"));
        assert_eq!(name.get(&mut b).unwrap(), old);
    }
}

/// With no time at all for a slice, a log whose records have destructors goes in many slices, and all of it goes.
#[test]
fn a_long_log_is_forgotten_piece_by_piece() {
    let mut b = backend(StateLimits {
        log_bytes_max: 1 << 30,
    });
    let name = b.value_state::<String, ()>("name").unwrap();
    let set = |b: &mut KeyedBackend<u64>, text: &str| {
        for k in 0..20_000 {
            use_key(b, k);
            name.set(b, text.to_owned()).unwrap();
        }
    };
    set(&mut b, "a");
    barrier(&mut b, 1, None);
    finish(&mut b);
    b.confirm(CheckpointId(1));
    set(&mut b, "b");
    barrier(&mut b, 2, Some(1));
    finish(&mut b);
    let logged = b.figures().log_bytes;
    assert!(logged > 0);
    b.confirm(CheckpointId(2));
    let mut slices = 0;
    while b.capture(Duration::ZERO).unwrap() != CaptureProgress::Idle {
        slices += 1;
    }
    assert_eq!(b.figures().log_bytes, 0);
    assert!(slices > 30, "2 500 records of each of 8 groups: {slices}");
    assert_eq!(b.undo(CheckpointId(2)), Undone::Done);
}

#[test]
fn reading_ahead_changes_nothing_and_takes_any_hash() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    use_key(&mut b, 1);
    count.set(&mut b, 1).unwrap();
    barrier(&mut b, 1, None);
    let before = b.figures();
    let hashes: Vec<KeyHash> = (0..100_u64).map(|k| KeyHash::of(&k)).collect();
    b.read_ahead(hashes.iter().copied(), &mut Vec::new());
    b.read_ahead([KeyHash(u64::MAX)].into_iter(), &mut Vec::new());
    assert_eq!(b.figures(), before);
    assert_eq!(b.current_key(), Some(&1));
    assert_eq!(count.get(&mut b).unwrap(), Some(1));
}

/// Where nobody may go back to, nothing is logged.
#[test]
fn values_are_not_logged_after_the_only_checkpoint_is_aborted() {
    let mut b = backend(LIMITS);
    let count = b.value_state::<u64, ()>("count").unwrap();
    let fill = |b: &mut KeyedBackend<u64>, value| {
        for k in 0..100 {
            use_key(b, k);
            count.set(b, value).unwrap();
        }
    };
    fill(&mut b, 1);
    barrier(&mut b, 1, None);
    b.abort(CheckpointId(1));
    while !matches!(
        b.capture(Duration::from_secs(1)).unwrap(),
        CaptureProgress::Idle
    ) {}
    fill(&mut b, 2);
    assert_eq!(b.figures().log_bytes, 0);
}

/// States are registered already: a whole segment takes the place of everything, a delta that of what it names.
#[test]
fn what_is_loaded_over_what_is_there_leaves_nothing_of_it() {
    use perennial_actors::model::SegmentKind::{Delta, Full};

    let states = |b: &mut KeyedBackend<u64>| {
        let map = b.map_state::<u64, u64, ()>("map").unwrap();
        (map, b.timers::<()>("timers").unwrap())
    };
    let mut source = backend(LIMITS);
    let (map, timers) = states(&mut source);
    let time = TimeDomain::EventTime;
    let set = |b: &mut KeyedBackend<u64>, key: u64| {
        use_key(b, key);
        map.insert(b, &key, key).unwrap();
        timers.register(b, time, key as i64 * 10, &()).unwrap();
    };
    set(&mut source, 1);
    set(&mut source, 2);
    barrier(&mut source, 1, None);
    let both = finish(&mut source);
    source.confirm(CheckpointId(1));
    use_key(&mut source, 1);
    map.remove(&mut source, &1).unwrap();
    timers.delete(&mut source, time, 10, &()).unwrap();
    barrier(&mut source, 2, Some(1));
    let without_first = finish(&mut source);
    let mut second = backend(LIMITS);
    states(&mut second);
    set(&mut second, 2);
    barrier(&mut second, 1, None);
    let second = finish(&mut second);
    assert_eq!((second.kind, without_first.kind), (Full, Delta));
    for next in [&second, &without_first] {
        let mut b = backend(LIMITS);
        states(&mut b);
        load(&mut b, &both).unwrap();
        assert_eq!(b.next_timer(time), Some(10));
        load(&mut b, next).unwrap();
        assert_eq!(b.next_timer(time), Some(20));
        for (key, expected) in [(1, vec![]), (2, vec![2])] {
            use_key(&mut b, key);
            assert_eq!(map.is_empty(&mut b).unwrap(), expected.is_empty());
            assert_eq!(map.keys(&mut b).unwrap(), expected);
        }
    }
}
