//! Composing and assigning together: whatever the history of full and incremental checkpoints, restores and changes of parallelism, the
//! chain that a subtask is given for a key group is what was captured for that group since its last full segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::checkpoint_coordinator::RestoredSnapshot;
use crate::model::message::{CheckpointAck, SubtaskAck};
use crate::model::*;

const MAX: u32 = 8;

fn header(checkpoint: u64) -> Header {
    Header {
        checkpoint: CheckpointId(checkpoint),
        epoch: LeaderEpoch(1),
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 0,
        duration_ms: 0,
    }
}

/// The bytes that a group captures: 4 for the checkpoint and 4 for the group.
fn content(checkpoint: u64, group: u16) -> Vec<u8> {
    format!("{checkpoint:04}{group:04}").into_bytes()
}

/// Acks of one TaskManager per subtask of vertex 1; the source sits with the first. `fulls` says per subtask whether it answers in full,
/// `touched` which groups changed.
fn acks(n: u64, parallelism: u32, fulls: u8, touched: u8, is_inline: bool) -> Vec<CheckpointAck> {
    (0..parallelism)
        .map(|subtask| {
            let range = KeyGroupRange::of(SubtaskIndex(subtask), parallelism, MAX);
            let is_full = fulls & (1 << subtask) != 0;
            let groups: Vec<u16> = range
                .iter()
                .map(|g| g.0)
                .filter(|g| is_full || touched & (1 << g) != 0)
                .collect();
            let bytes: Vec<u8> = groups.iter().flat_map(|g| content(n, *g)).collect();
            let key = object_key(
                LeaderEpoch(1),
                CheckpointId(n),
                Attempt(1),
                InstanceId(u128::from(subtask) << 96),
            );
            // An object holds a header of 3 bytes before the segment, so that offsets matter.
            let (data, objects) = if is_inline {
                (DataRef::Inline(Bytes::from(bytes)), vec![])
            } else {
                let length = bytes.len() as u64;
                (
                    DataRef::Object {
                        object: 0,
                        offset: 3,
                        length,
                    },
                    vec![object(&key, length + 3)],
                )
            };
            let kind = if is_full {
                SegmentKind::Full
            } else {
                SegmentKind::Delta
            };
            let mut subtasks = vec![SubtaskAck {
                attempt: attempt_of(1, subtask, 1),
                operators: vec![operator_ack(
                    "count",
                    subtask,
                    Some(segment(n, kind, groups, data)),
                )],
                longest_pause_us: 0,
                alignment_us: 0,
            }];
            if subtask == 0 {
                subtasks.push(SubtaskAck {
                    attempt: attempt_of(0, 0, 1),
                    operators: vec![operator_ack("source", 0, None)],
                    longest_pause_us: 0,
                    alignment_us: 0,
                });
            }
            CheckpointAck {
                job: JOB,
                checkpoint: CheckpointId(n),
                objects,
                subtasks,
            }
        })
        .collect()
}

fn snapshot(manifest: &Manifest) -> RestoredSnapshot {
    RestoredSnapshot {
        manifest: Arc::new(manifest.clone()),
        directory: "memory://job".into(),
        is_own_checkpoint: true,
    }
}

/// Reads one group's slice: which checkpoint wrote the bytes that the reference names, as far as offsets can tell.
fn bytes_of(data: &DataRef, objects: &[ObjectInfo], slice: GroupSlice) -> (String, u64, u64) {
    match data {
        DataRef::Inline(bytes) => {
            let (from, to) = (
                slice.offset as usize,
                (slice.offset + slice.length) as usize,
            );
            (
                String::from_utf8(bytes[from..to].to_vec()).unwrap(),
                0,
                slice.length,
            )
        }
        DataRef::Object { object, offset, .. } => (
            objects[*object as usize].key.clone(),
            offset + slice.offset,
            slice.length,
        ),
    }
}

type Step = (u32, u8, u8, bool, u32);

proptest! {
    #[test]
    fn every_group_reads_its_last_full_segment_and_the_deltas_after_it(
        history in proptest::collection::vec((1_u32..=4, any::<u8>(), any::<u8>(), any::<bool>(), 1_u32..=8), 1..40),
    ) {
        let history: Vec<Step> = history;
        let mut base: Option<Manifest> = None;
        // Per group: the chain as (checkpoint, is_inline, subtask's object, offset in it).
        let mut model: BTreeMap<u16, Vec<(String, u64, u64)>> = BTreeMap::new();
        for (i, (parallelism, fulls, touched, is_inline, read_parallelism)) in history.into_iter().enumerate() {
            let n = i as u64 + 1;
            let over = base.as_ref().filter(|b| next_base(b).is_some());
            let fulls = if over.is_some() { fulls } else { 0xff };
            let acks = acks(n, parallelism, fulls, touched, is_inline);
            for ack in &acks {
                for operator in ack.subtasks.iter().flat_map(|s| &s.operators) {
                    if let Some(segment) = &operator.keyed {
                        for slice in &segment.groups {
                            let chain = model.entry(slice.group.0).or_default();
                            if segment.kind == SegmentKind::Full {
                                chain.clear();
                            }
                            chain.push(bytes_of(&segment.data, &ack.objects, *slice));
                        }
                    }
                }
            }
            let graph = graph(parallelism, MAX, true);
            let manifest = compose(header(n), &graph, &BTreeMap::new(), over, &acks).unwrap();
            let operator = manifest.operators.iter().find(|o| o.uid == "count").unwrap();
            for group in 0..MAX as u16 {
                let read: Vec<_> = segments_for_group(operator, KeyGroup(group))
                    .into_iter()
                    .map(|(segment, slice)| bytes_of(&segment.data, &manifest.objects, slice))
                    .collect();
                prop_assert_eq!(&read, &model[&group]);
                prop_assert!(read.len() <= CHAIN_LEN_MAX);
            }
            // Through the assignment, at another parallelism, each group exactly once.
            let snapshot = snapshot(&manifest);
            let graph = graph_with(read_parallelism);
            let plan = RestorePlan::new(&snapshot, &graph, &[1, read_parallelism]).unwrap();
            let mut seen: BTreeMap<u16, Vec<(String, u64, u64)>> = BTreeMap::new();
            for subtask in 0..read_parallelism {
                let restore = plan.task(VertexId(1), SubtaskIndex(subtask)).unwrap();
                prop_assert_eq!(restore.may_inherit, read_parallelism == parallelism);
                let range = KeyGroupRange::of(SubtaskIndex(subtask), read_parallelism, MAX);
                for segment in &restore.operators[0].keyed {
                    for slice in &segment.groups {
                        prop_assert!(range.contains(slice.group));
                        prop_assert!(slice.offset + slice.length <= segment.data.length());
                        seen.entry(slice.group.0).or_default().push(bytes_of(&segment.data, &restore.objects, *slice));
                    }
                }
                prop_assert_eq!(restore.operators[0].subtasks.len(), parallelism as usize);
            }
            prop_assert_eq!(&seen, &model);
            base = Some(manifest);
        }
    }
}

fn graph_with(parallelism: u32) -> JobGraph {
    graph(parallelism, MAX, true)
}

fn full(n: u64, parallelism: u32) -> Manifest {
    let graph = graph_with(parallelism);
    compose(
        header(n),
        &graph,
        &BTreeMap::new(),
        None,
        &acks(n, parallelism, 0xff, 0, true),
    )
    .unwrap()
}

#[test]
fn chains_are_bounded_and_changes_never_outweigh_the_full_segments() {
    let graph = graph_with(1);
    let mut base = full(1, 1);
    let mut longest = 0;
    for n in 2..60 {
        let over = next_base(&base).map(|_| &base);
        let fulls = if over.is_some() { 0 } else { 0xff };
        // One group changes each time: 8 bytes of delta over 64 full ones.
        let next = compose(
            header(n),
            &graph,
            &BTreeMap::new(),
            over,
            &acks(n, 1, fulls, 1, true),
        )
        .unwrap();
        let keyed = &next
            .operators
            .iter()
            .find(|o| o.uid == "count")
            .unwrap()
            .keyed;
        longest = longest.max(keyed.len());
        base = next;
    }
    assert_eq!(longest, 9, "8 deltas of an eighth make a whole");
}

/// The state is large and its changes lie in the records: without a bound, the thirteenth over the same full segment makes a record
/// that cannot be written, and so does each one after it.
#[test]
fn records_over_inline_changes_of_large_state_stay_far_below_their_limit() {
    const FULL: u64 = 1 << 30;
    const DELTA: usize = 5 << 20;
    let graph = graph_with(1);
    let mut base: Option<Manifest> = None;
    let mut fulls = Vec::new();
    for n in 1..=20 {
        let over = base.as_ref().filter(|b| next_base(b).is_some());
        let mut ack = acks(n, 1, 0, 1, true).remove(0);
        let (kind, groups, data) = if over.is_some() {
            let bytes = Bytes::from(vec![0_u8; DELTA]);
            (SegmentKind::Delta, 0..1, DataRef::Inline(bytes))
        } else {
            fulls.push(n);
            ack.objects = vec![ObjectInfo {
                length: FULL,
                ..object("shared/full", 0)
            }];
            let data = DataRef::Object {
                object: 0,
                offset: 0,
                length: FULL,
            };
            (SegmentKind::Full, 0..MAX as u16, data)
        };
        ack.subtasks[0].operators[0].keyed = Some(segment(n, kind, groups, data));
        let manifest = compose(header(n), &graph, &BTreeMap::new(), over, &[ack]).unwrap();
        let record = Record {
            checkpoint: CheckpointId(n),
            epoch: LeaderEpoch(1),
            token: 0,
            outcome: RecordOutcome::Completed(Box::new(manifest.clone())),
        };
        let length = encode_record(&record).map(|bytes| bytes.len() as u64);
        assert!(
            length.as_ref().is_ok_and(|l| *l < RECORD_LEN_MAX / 2),
            "{n}: {length:?}"
        );
        base = Some(manifest);
    }
    assert_eq!(fulls, [1, 6, 11, 16]);
}

/// It can be a base: what is whole would be written again and again otherwise, and be no smaller then.
#[test]
fn whole_state_in_a_record_does_not_end_its_base() {
    let mut manifest = manifest_of(15, &[]);
    let data = DataRef::Inline(Bytes::from(vec![0; 17 << 20]));
    manifest.operators[0].keyed = vec![segment(1, SegmentKind::Full, 0..8, data)];
    assert_eq!(next_base(&manifest), Some(CheckpointId(15)));
}

/// Changes in objects bring no bytes into the record, but an entry for each of their key groups.
#[test]
fn the_index_of_many_key_groups_ends_a_base_too() {
    let mut manifest = manifest_of(15, &[]);
    let data = |length| DataRef::Object {
        object: 0,
        offset: 0,
        length,
    };
    let full = segment(1, SegmentKind::Full, 0..32768, data(1 << 40));
    let deltas = (2..15).map(|n| segment(n, SegmentKind::Delta, 0..32768, data(1 << 20)));
    manifest.operators[0].keyed = std::iter::once(full).chain(deltas).collect();
    assert_eq!(next_base(&manifest), Some(CheckpointId(15)));
    let twin = manifest.operators[0].clone();
    manifest.operators.push(twin);
    assert_eq!(next_base(&manifest), None);
}

#[test]
fn acks_that_do_not_fit_are_refused_with_a_reason() {
    let graph = graph_with(2);
    let compose = |acks: &[CheckpointAck]| {
        compose(header(1), &graph, &BTreeMap::new(), None, acks)
            .unwrap_err()
            .message
    };
    let good = acks(1, 2, 0xff, 0, false);
    assert!(
        compose(&good[..1]).contains("covers key group"),
        "a subtask is missing"
    );
    let deltas = acks(1, 2, 0, 0xff, false);
    assert!(compose(&deltas).contains("although all was asked for"));
    let mut lost = good.clone();
    lost[1].objects.clear();
    assert!(compose(&lost).contains("not listed"));
    let mut short = good.clone();
    short[1].objects[0].length = 5;
    assert!(compose(&short).contains("lie outside object"));
    let mut foreign = good;
    foreign[0].subtasks[0].operators[0].id = OperatorId::from_uid("other");
    assert!(compose(&foreign).contains("other operators"));
}

/// As in Flink: the stored number of key groups replaces a derived one, and another that was set is refused.
#[test]
fn max_parallelism_follows_the_snapshot_unless_the_user_says_otherwise() {
    let manifest = full(1, 2);
    let snapshot = snapshot(&manifest);
    let derived = graph(3, 128, false);
    let plan = RestorePlan::new(&snapshot, &derived, &[1, 3]).unwrap();
    assert_eq!(
        plan.max_parallelism(VertexId(1)),
        Some(8),
        "the stored one wins"
    );
    assert_eq!(
        plan.max_parallelism(VertexId(0)),
        Some(128),
        "no keyed state, no rule"
    );
    let set = graph(3, 16, true);
    let error = RestorePlan::new(&snapshot, &set, &[1, 3]).unwrap_err();
    assert!(error.to_string().contains("max parallelism 8"), "{error}");
    let wide = graph(9, 128, false);
    let error = RestorePlan::new(&snapshot, &wide, &[1, 9]).unwrap_err();
    assert!(error.to_string().contains("allows 1 to 8"), "{error}");
    assert_eq!(error.recoverability(), Recoverability::Unrecoverable);
}

/// As in Flink: `--allow-non-restored-state` drops it, and empty state needs no operator.
#[test]
fn state_without_an_operator_is_refused_unless_allowed() {
    let manifest = full(1, 1);
    let snapshot = snapshot(&manifest);
    let mut graph = graph_with(1);
    graph.vertices[1].operators[0].id = OperatorId::from_uid("renamed");
    let error = RestorePlan::new(&snapshot, &graph, &[1, 1]).unwrap_err();
    assert!(error.to_string().contains("`count`"), "{error}");
    graph.start_from = Some(StartFrom {
        path: "memory://job".into(),
        allow_non_restored_state: true,
    });
    let plan = RestorePlan::new(&snapshot, &graph, &[1, 1]).unwrap();
    let restore = plan.task(VertexId(1), SubtaskIndex(0)).unwrap();
    assert!(restore.operators.is_empty() && restore.objects.is_empty());
    // Empty state needs nobody.
    let mut empty = manifest;
    empty.operators.retain(|o| o.uid == "source");
    let snapshot = self::snapshot(&empty);
    let mut graph = graph_with(1);
    graph.vertices[0].operators[0].id = OperatorId::from_uid("renamed");
    assert!(RestorePlan::new(&snapshot, &graph, &[1, 1]).is_ok());
}
