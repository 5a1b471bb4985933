//! Stored bytes are not trusted: whatever they are, reading ends with a result or a typed error.

use proptest::prelude::*;

use super::*;

fn valid() -> CapturedState {
    let range = KeyGroupRange::of(SubtaskIndex(0), 1, 1);
    let limits = StateLimits { log_bytes_max: 0 };
    let mut b = KeyedBackend::<String>::memory(range, 1, limits);
    let value = b.value_state::<String, ()>("value").unwrap();
    let list = b.list_state::<u32, (i64, i64)>("list").unwrap();
    let timers = b.timers::<()>("timers").unwrap();
    for key in ["a", "key that is longer than the others"] {
        let key = key.to_owned();
        b.set_current_key(&key, KeyHash::of(&key));
        value.set(&mut b, key.repeat(10)).unwrap();
        list.extend_in(&mut b, &(-1, 1 << 40), 0..50).unwrap();
        timers
            .register(&mut b, TimeDomain::EventTime, -5, &())
            .unwrap();
    }
    b.barrier(CaptureRequest {
        checkpoint: CheckpointId(1),
        base: None,
        kind: SnapshotKind::Checkpoint,
    })
    .unwrap();
    loop {
        if let CaptureProgress::Done(captured) = b.capture(Duration::ZERO).unwrap() {
            return captured;
        }
    }
}

/// Everything that reads stored bytes, on these bytes.
fn read(states: &[StateMeta], bytes: &[u8]) {
    let _ = decode_entries(bytes); // Either is fine.
    let range = KeyGroupRange::of(SubtaskIndex(0), 1, 1);
    let limits = StateLimits { log_bytes_max: 0 };
    let mut b = KeyedBackend::<String>::memory(range, 1, limits);
    let groups = vec![(KeyGroup(0), Bytes::copy_from_slice(bytes))];
    if b.load(CheckpointId(1), SegmentKind::Full, states, groups)
        .is_ok()
    {
        // The same: an error names the state, and is not the subject here.
        let _ = b.value_state::<String, ()>("value");
        let _ = b.list_state::<u32, (i64, i64)>("list");
        let _ = b.timers::<()>("timers");
        let _ = b.finish_load(CheckpointId(1), false);
    }
}

#[test]
fn stored_bytes_are_read_without_types() {
    let captured = valid();
    let entries = decode_entries(&captured.groups[0].1).unwrap();
    assert_eq!(entries.len(), 6);
    let value: String = rmp_serde::from_slice(entries[1].value.as_ref().unwrap()).unwrap();
    let key: String = postcard::from_bytes(&entries[1].key_bytes).unwrap();
    assert_eq!(value, key.repeat(10), "longer than one length byte");
}

#[test]
fn bytes_cut_off_anywhere_are_an_error() {
    let captured = valid();
    let bytes = &captured.groups[0].1;
    let whole = decode_entries(bytes).unwrap();
    for end in 1..bytes.len() {
        // Only a cut between sections goes unnoticed here: checksums and lengths are the storage's.
        if let Ok(entries) = decode_entries(&bytes[..end]) {
            assert!(whole.starts_with(&entries) && bytes[end - 1] == 0);
        }
        read(&captured.states, &bytes[..end]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read(&valid().states, &bytes);
    }

    #[test]
    fn damage_never_panics(damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..5)) {
        let mut captured = valid();
        let bytes = &mut captured.groups[0].1;
        for (at, byte) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        read(&captured.states, &bytes.clone());
    }
}
