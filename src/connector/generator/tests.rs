use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::test_support::{context, drain, reader};
use super::*;

fn numbers(
    lanes: Option<u32>,
) -> GeneratorSource<impl Fn(GeneratorContext) -> (u64, Option<Timestamp>) + Clone + Send + Sync> {
    GeneratorSource::new(lanes, |c| (c.sequence(), Some(c.sequence() as i64 / 10)))
}

/// The values that the Flink jobs measured beside us draw, so that both process the same records.
#[test]
fn mix_is_splitmix64() {
    assert_eq!(
        [mix(0), mix(1), mix(2)],
        [
            0xE220_A839_7B1D_CDAF,
            0x6E78_9E6A_A1B9_65F4,
            0x06C4_5D18_8009_454F
        ]
    );
}

proptest! {
    /// A reader is polled in random portions, dropped, and replaced from its snapshot: output and event times are those of a
    /// reader that was never disturbed.
    #[test]
    fn a_new_reader_continues_exactly_where_the_snapshot_was_taken(
        lanes in 1_u32..6, total in 0_u64..6000, portions in prop::collection::vec(0_usize..2500, 0..12), seed: u64,
    ) {
        let source = GeneratorSource::new(Some(lanes), |c| (c.random(), (c.lanes > 2).then_some(c.sequence() as i64)))
            .seed(seed).events(total);
        let splits = source.splits(1).unwrap();
        let expected = drain(&mut *reader(&source, splits.clone()), 1 << 20);
        prop_assert_eq!(expected.len() as u64, total);

        let mut actual = Batch::default();
        let mut splits = splits;
        for portion in portions {
            let mut reader = reader(&source, splits);
            reader.poll(&mut actual, portion, Instant::now()).unwrap();
            splits = reader.snapshot();
        }
        let rest = drain(&mut *reader(&source, splits), 777);
        actual.values.extend(rest.values);
        actual.timestamps.extend(rest.timestamps);
        prop_assert_eq!(actual, expected);
    }

    /// Lanes move between readers, as a rescale does, at any positions: each sequence number comes exactly once.
    #[test]
    fn every_sequence_number_comes_exactly_once_after_rescaling(
        lanes in 1_u32..9, total in 0_u64..4000, before in 1_usize..5, after in 1_usize..5, portion in 0_usize..3000,
    ) {
        let source = numbers(None).events(total);
        let mut seen = Batch::default();
        let mut stored = Vec::new();
        let deal = |splits: Vec<SourceSplit>, subtasks: usize| {
            let mut dealt = vec![Vec::new(); subtasks];
            for (place, split) in splits.into_iter().enumerate() {
                dealt[place % subtasks].push(split);
            }
            dealt
        };
        for splits in deal(source.splits(lanes).unwrap(), before) {
            let mut reader = reader(&source, splits);
            reader.poll(&mut seen, portion, Instant::now()).unwrap();
            stored.extend(reader.snapshot());
        }
        for splits in deal(stored, after) {
            seen.values.extend(drain(&mut *reader(&source, splits), 100).values);
        }
        seen.values.sort_unstable();
        prop_assert_eq!(seen.values, (0..total).collect::<Vec<_>>());
    }
}

#[test]
fn lanes_differ_by_at_most_one_record() {
    let source = numbers(Some(3)).events(11);
    let counts = source.splits(8).unwrap().into_iter().map(|split| {
        let mut reader = reader(&source, vec![split]);
        drain(&mut *reader, 4).len()
    });
    assert_eq!(counts.collect::<Vec<_>>(), [4, 4, 3]);
}

#[test]
fn event_time_advances_together_in_all_lanes_of_a_reader() {
    let source = numbers(Some(4)).events(100_000);
    let mut reader = reader(&source, source.splits(1).unwrap());
    let mut out = Batch::default();
    for _ in 0..20 {
        reader.poll(&mut out, 3000, Instant::now()).unwrap();
        let positions = reader.snapshot().into_iter().map(|s| s.position);
        let positions = positions.collect::<BTreeSet<_>>();
        assert!(positions.last().unwrap() - positions.first().unwrap() <= LANE_TURN);
    }
}

#[test]
fn without_event_times_the_batch_has_none() {
    let source = GeneratorSource::new(Some(1), |c| (c.index, None)).events(5000);
    let out = drain(&mut *reader(&source, source.splits(1).unwrap()), 999);
    assert!(!out.has_timestamps());
    assert_eq!(out.len(), 5000);
}

/// Given instants, no sleeping. Returns how many records came.
fn poll_at(reader: &mut dyn SourceReader<u64>, now: Instant) -> usize {
    let mut out = Batch::default();
    while reader.poll(&mut out, 64, now).unwrap() == SourceStatus::More {}
    out.len()
}

#[test]
fn a_paced_lane_follows_its_schedule() {
    let source = numbers(Some(1)).rate_per_lane(100.0);
    let mut reader = reader(&source, source.splits(1).unwrap());
    let start = Instant::now();
    let mut total = 0;
    for ms in 0..=3000 {
        total += poll_at(&mut *reader, start + Duration::from_millis(ms));
        let scheduled = ms as usize / 10 + 1;
        assert!(
            total == scheduled || total + 1 == scheduled,
            "{total} records after {ms} ms"
        );
    }
}

#[test]
fn a_paced_lane_asks_to_be_polled_when_the_next_record_is_due() {
    let source = numbers(Some(1)).rate_per_lane(100.0);
    let mut reader = reader(&source, source.splits(1).unwrap());
    let mut now = Instant::now();
    for _ in 0..500 {
        assert_eq!(poll_at(&mut *reader, now), 1);
        let status = reader.poll(&mut Batch::default(), 1, now).unwrap();
        let SourceStatus::Waiting { until: Some(until) } = status else {
            panic!("{status:?}")
        };
        let wait = until - now;
        assert!(wait >= Duration::from_millis(9) && wait <= Duration::from_millis(11));
        now = until;
    }
}

#[test]
fn a_high_rate_does_not_wake_the_task_for_each_record() {
    let source = numbers(Some(1)).rate_per_lane(1e6);
    let mut reader = reader(&source, source.splits(1).unwrap());
    let start = Instant::now();
    let (mut now, mut total, mut wakes) = (start, 0, 0);
    while now < start + Duration::from_secs(1) {
        total += poll_at(&mut *reader, now);
        let status = reader.poll(&mut Batch::default(), 1, now).unwrap();
        let SourceStatus::Waiting { until: Some(until) } = status else {
            panic!("{status:?}")
        };
        now = until;
        wakes += 1;
    }
    assert!(
        (990_000..=1_000_001).contains(&total),
        "{total} records in one second"
    );
    assert!(wakes <= 1001, "{wakes} wakes");
}

#[test]
fn what_is_prefilled_is_not_paced() {
    let source = numbers(Some(2)).rate_per_lane(100.0).prefill(5001);
    let mut reader = reader(&source, source.splits(1).unwrap());
    let start = Instant::now();
    assert_eq!(poll_at(&mut *reader, start), 5001 + 2);
    assert_eq!(
        poll_at(&mut *reader, start + Duration::from_millis(101)),
        20
    );
}

#[test]
fn a_held_up_lane_catches_up_at_most_the_named_bound() {
    let source = numbers(Some(1)).rate_per_lane(100.0);
    let mut reader = reader(&source, source.splits(1).unwrap());
    let start = Instant::now();
    assert_eq!(poll_at(&mut *reader, start), 1);
    let later = start + Duration::from_secs(60);
    assert_eq!(poll_at(&mut *reader, later), 100);
    assert_eq!(poll_at(&mut *reader, later), 0);
    assert_eq!(
        poll_at(&mut *reader, later + Duration::from_millis(101)),
        10
    );
}

#[test]
fn a_restored_reader_does_not_make_good_its_downtime() {
    let source = numbers(Some(1)).rate_per_lane(100.0);
    let mut first = reader(&source, source.splits(1).unwrap());
    let start = Instant::now();
    poll_at(&mut *first, start);
    poll_at(&mut *first, start + Duration::from_millis(505));
    let stored = first.snapshot();
    assert_eq!(stored[0].position, 51);
    let mut second = reader(&source, stored);
    let back = start + Duration::from_secs(30);
    assert_eq!(poll_at(&mut *second, back), 1);
    assert_eq!(poll_at(&mut *second, back + Duration::from_millis(101)), 10);
}

#[test]
fn the_runtimes_watermark_survives_a_snapshot() {
    let source = numbers(Some(2));
    let mut splits = source.splits(1).unwrap();
    splits[1].watermark = Some(42);
    assert_eq!(reader(&source, splits.clone()).snapshot(), splits);
}

#[test]
fn position_names_each_record_appended() {
    let source = numbers(Some(1));
    let mut reader = reader(&source, source.splits(1).unwrap());
    assert_eq!(reader.position(0), None);
    reader
        .poll(&mut Batch::default(), 5, Instant::now())
        .unwrap();
    for index in 0..5 {
        let expected = ("lane-0".to_owned(), index as u64);
        assert_eq!(reader.position(index), Some(expected));
    }
    // Two lanes take turns, and the second poll begins within one.
    let source = numbers(Some(2));
    let mut reader = super::super::test_support::reader(&source, source.splits(1).unwrap());
    for max in [100, 3000] {
        let before = reader.snapshot()[0].position;
        let mut out = Batch::default();
        reader.poll(&mut out, max, Instant::now()).unwrap();
        assert_eq!(reader.position(0), Some(("lane-0".to_owned(), before)));
    }
    assert_eq!(reader.position(924), Some(("lane-1".to_owned(), 0)));
    assert_eq!(reader.position(925), Some(("lane-1".to_owned(), 1)));
}

#[test]
fn what_cannot_run_is_refused_and_not_retried() {
    let split = |id: &str, extra: Vec<u8>| SourceSplit {
        id: id.to_owned(),
        position: 0,
        watermark: None,
        extra,
    };
    let two = 2_u32.to_le_bytes().to_vec();
    for bad in [
        split("/data/x", two.clone()),
        split("lane-0", vec![]),
        split("lane-2", two.clone()),
        split("lane-x", two.clone()),
    ] {
        let error = numbers(None)
            .reader(&context(0, 1, 1, 1), vec![bad.clone()])
            .err()
            .unwrap();
        assert!(error.is_unrecoverable());
        assert!(error.to_string().contains(&bad.id), "{error}");
    }
    let error = numbers(Some(3))
        .reader(&context(0, 1, 1, 1), vec![split("lane-0", two)])
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("stored with 2 lanes and now has 3"),
        "{error}"
    );
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = numbers(Some(1)).rate_per_lane(rate).splits(1).unwrap_err();
        assert!(error.is_unrecoverable());
    }
    assert!(numbers(Some(0)).splits(1).is_err());
    assert!(numbers(Some(LANES_MAX + 1)).splits(1).is_err());
}
