//! Reads checkpoints offline and holds them against the oracle (faults.md, invariants S2 and S3).
//!
//! Invariant: nothing of the job is needed, only the records, the objects they name and the state's byte format. What a cluster has
//! deleted by its own retention cannot be read: [`Recorder`] therefore reads along while the cluster runs.

mod attribution;
mod history;
mod recorder;
mod restarts;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use perennial::state::decode_entries;
use perennial_actors::checkpoint::{Store, segments_for_group};
use perennial_actors::model::{
    DataRef, KeyGroup, KeyedSegment, Manifest, ObjectInfo, OperatorId, OperatorState, Record,
    RecordOutcome,
};

use crate::oracle::{Counts, Positions, StateOracle};

pub use attribution::{Struck, Tolerance, explain};
pub use history::{check_fencing, check_one_truth};
pub use recorder::{Recorder, Recording};
pub use restarts::{check_count, check_restarts};
pub use snapshot::SnapshotReader;

/// Keyed state of a checkpoint must equal the fold up to its source positions.
///
/// # Errors
/// When it does not, saying for which checkpoint and key; when anything of it cannot be read; when a checksum does not fit.
pub async fn check_manifest(
    store: &Arc<dyn Store>,
    manifest: &Manifest,
    oracle: &dyn StateOracle,
) -> anyhow::Result<Positions> {
    check(store, manifest, oracle)
        .await
        .with_context(|| format!("checkpoint {}", manifest.checkpoint))
}

async fn check(
    store: &Arc<dyn Store>,
    manifest: &Manifest,
    oracle: &dyn StateOracle,
) -> anyhow::Result<Positions> {
    let positions = positions(manifest, oracle)?;
    let actual = counts(store, manifest, oracle).await?;
    let expected = oracle.expected(&positions);
    if actual == expected {
        return Ok(positions);
    }
    let mut differences = Vec::new();
    for key in actual.keys().chain(expected.keys()) {
        let pair = (actual.get(key), expected.get(key));
        let line = format!("{key}: stored {:?}, fold {:?}", pair.0, pair.1);
        if pair.0 != pair.1 && !differences.contains(&line) {
            differences.push(line);
        }
    }
    let shown = differences.len().min(10);
    bail!(
        "state differs from the fold up to {positions:?} for {} keys: {}",
        differences.len(),
        differences[..shown].join("; ")
    )
}

fn operator<'a>(manifest: &'a Manifest, uid: &str) -> anyhow::Result<&'a OperatorState> {
    let id = OperatorId::from_uid(uid);
    manifest
        .operators
        .iter()
        .find(|o| o.id == id)
        .ok_or_else(|| anyhow!("no state of operator `{uid}`"))
}

fn positions(manifest: &Manifest, oracle: &dyn StateOracle) -> anyhow::Result<Positions> {
    let mut positions = Positions::new();
    for subtask in &operator(manifest, oracle.source())?.subtasks {
        for (split, position) in &subtask.positions {
            let lane = split
                .strip_prefix("lane-")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| anyhow!("split `{split}` is no lane"))?;
            let before = positions.insert(lane, *position);
            ensure!(before.is_none(), "lane {lane} belongs to two subtasks");
        }
    }
    let lanes: Vec<u64> = positions.keys().copied().collect();
    ensure!(
        lanes.iter().copied().eq(0..oracle.lanes()),
        "positions for lanes {lanes:?}, expected all of 0..{}",
        oracle.lanes()
    );
    Ok(positions)
}

async fn counts(
    store: &Arc<dyn Store>,
    manifest: &Manifest,
    oracle: &dyn StateOracle,
) -> anyhow::Result<Counts> {
    let operator = operator(manifest, oracle.operator())?;
    let state = operator
        .states
        .iter()
        .find(|s| s.name == oracle.state())
        .ok_or_else(|| {
            anyhow!(
                "operator `{}` has no state `{}`",
                operator.uid,
                oracle.state()
            )
        })?;
    let mut objects = Objects {
        store,
        manifest,
        read: BTreeMap::new(),
    };
    let mut counts = Counts::new();
    for group in 0..operator.max_parallelism {
        let group = KeyGroup(u16::try_from(group)?);
        let mut entries = BTreeMap::new();
        for (segment, slice) in segments_for_group(operator, group) {
            let bytes = objects.segment(segment).await?;
            let (from, to) = (slice.offset, slice.offset + slice.length);
            let bytes = bytes
                .get(usize::try_from(from)?..usize::try_from(to)?)
                .ok_or_else(|| anyhow!("key group {group} lies outside its segment"))?;
            ensure!(
                crc32c::crc32c(bytes) == slice.crc32c,
                "key group {group} of the segment of {} has a wrong checksum",
                segment.checkpoint
            );
            for entry in decode_entries(bytes)? {
                if entry.state != state.index {
                    continue;
                }
                let key = (entry.key_bytes, entry.namespace_bytes, entry.map_key_bytes);
                match entry.value {
                    Some(value) => entries.insert(key, value),
                    None => entries.remove(&key),
                };
            }
        }
        for ((key, ..), value) in entries {
            let key = oracle.key(&key)?;
            let value = rmp_serde::from_slice::<u64>(&value)
                .with_context(|| format!("value of key {key} in key group {group}"))?;
            let before = counts.insert(key.clone(), value);
            ensure!(before.is_none(), "key {key} is stored twice");
        }
    }
    Ok(counts)
}

/// Reads each object once.
struct Objects<'a> {
    store: &'a Arc<dyn Store>,
    manifest: &'a Manifest,
    read: BTreeMap<u32, Bytes>,
}

impl Objects<'_> {
    async fn segment(&mut self, segment: &KeyedSegment) -> anyhow::Result<Bytes> {
        match &segment.data {
            DataRef::Inline(bytes) => Ok(bytes.clone()),
            DataRef::Object {
                object,
                offset,
                length,
            } => {
                let whole = self.object(*object).await?;
                let range = usize::try_from(*offset)?..usize::try_from(offset + length)?;
                ensure!(
                    range.end <= whole.len(),
                    "a segment lies outside object {object}"
                );
                Ok(whole.slice(range))
            }
        }
    }

    async fn object(&mut self, index: u32) -> anyhow::Result<Bytes> {
        if let Some(bytes) = self.read.get(&index) {
            return Ok(bytes.clone());
        }
        let info = self
            .manifest
            .objects
            .get(usize::try_from(index)?)
            .ok_or_else(|| anyhow!("the manifest names no object {index}"))?;
        let bytes = self.store.get(&info.key, None).await?;
        verify(info, &bytes)?;
        self.read.insert(index, bytes.clone());
        Ok(bytes)
    }
}

fn verify(info: &ObjectInfo, bytes: &Bytes) -> anyhow::Result<()> {
    ensure!(
        bytes.len() as u64 == info.length,
        "object {} has {} bytes, the manifest says {}",
        info.key,
        bytes.len(),
        info.length
    );
    ensure!(
        crc32c::crc32c(bytes) == info.crc32c,
        "object {} has a wrong checksum",
        info.key
    );
    Ok(())
}

/// Whether retention has put this record in place of a completed one. It carries the epoch of the leader that did so.
#[must_use]
pub fn is_retired(record: &Record) -> bool {
    matches!(&record.outcome, RecordOutcome::Aborted { reason } if reason == "retired")
}

/// What must hold over a sequence of records, whoever wrote them (invariant S3): dense numbers, each record says its own number, epochs
/// never fall, a new epoch begins with its claim, nothing follows the end.
///
/// # Errors
/// Naming the first record that breaks it.
pub fn check_sequence(records: &BTreeMap<u64, Record>) -> anyhow::Result<()> {
    let mut before: Option<(u64, &Record)> = None;
    let first = records.keys().next().copied().unwrap_or(1);
    for (number, expected) in records.keys().zip(first..) {
        ensure!(
            *number == expected,
            "record {expected} is missing: {number} comes instead"
        );
    }
    for (number, record) in records.iter().filter(|(_, r)| !is_retired(r)) {
        let context = || format!("record {number}");
        ensure!(
            record.checkpoint.0 == *number,
            "record {number} says it is {}",
            record.checkpoint
        );
        if let RecordOutcome::Completed(manifest) = &record.outcome {
            ensure!(
                manifest.checkpoint.0 == *number && manifest.epoch == record.epoch,
                "record {number} holds the manifest of {} of epoch {}",
                manifest.checkpoint,
                manifest.epoch
            );
        }
        if let Some((_, last)) = before {
            ensure!(
                record.epoch >= last.epoch,
                "{}: epoch {} after epoch {}",
                context(),
                record.epoch,
                last.epoch
            );
            ensure!(
                record.epoch == last.epoch || matches!(record.outcome, RecordOutcome::Claimed),
                "{}: epoch {} begins without a claim",
                context(),
                record.epoch
            );
            ensure!(
                !matches!(last.outcome, RecordOutcome::Terminal { .. }),
                "{}: it follows the end of the job",
                context()
            );
        }
        before = Some((*number, record));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_actors::model::{CheckpointId, LeaderEpoch};

    fn record(number: u64, epoch: u64, outcome: RecordOutcome) -> (u64, Record) {
        let record = Record {
            checkpoint: CheckpointId(number),
            epoch: LeaderEpoch(epoch),
            token: u128::from(number),
            outcome,
        };
        (number, record)
    }

    fn aborted() -> RecordOutcome {
        RecordOutcome::Aborted {
            reason: "test".to_owned(),
        }
    }

    /// Gaps, falling epochs, epochs without a claim and records of other numbers are seen.
    #[test]
    fn every_break_of_the_sequence_is_seen() {
        let good = [
            record(1, 1, RecordOutcome::Claimed),
            record(2, 1, aborted()),
            record(3, 2, RecordOutcome::Claimed),
            record(4, 2, aborted()),
        ];
        check_sequence(&good.clone().into()).unwrap();
        let mut gap = good.to_vec();
        gap.remove(1);
        let mut falling = good.to_vec();
        falling[3].1.epoch = LeaderEpoch(1);
        let mut unclaimed = good.to_vec();
        unclaimed[2].1.outcome = aborted();
        let mut misnamed = good.to_vec();
        misnamed[1].1.checkpoint = CheckpointId(9);
        for (bad, word) in [
            (gap, "is missing"),
            (falling, "after epoch"),
            (unclaimed, "without a claim"),
            (misnamed, "says it is 9"),
        ] {
            let error = check_sequence(&bad.into_iter().collect()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
