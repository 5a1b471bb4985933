//! What must hold (invariants of [`crate::catalogue`]), as functions that asserts, tests and all carriers call: state against the oracle
//! (S2), records and writes of the store (S3, S4, R4), restarts against a model (S5), causes against faults (S6), output (S1).
//!
//! Invariant: nothing of the job is needed, only the records, the objects they name and the state's byte format. What a cluster has
//! deleted by its own retention cannot be read: [`Recorder`] therefore reads along while the cluster runs.

mod attribution;
mod decision;
mod detection;
mod findings;
mod history;
mod loaded;
mod recorder;
mod restarts;
mod snapshot;
mod store_history;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use perennial_actors::checkpoint::Store;
use perennial_actors::model::{LeaderEpoch, Manifest, Record, RecordOutcome};

use crate::oracle::{Counts, Positions, StateOracle};

pub use attribution::{Struck, Tolerance, explain, explain_by_any_clock};
pub use decision::{is_refused, is_takeover};
pub use detection::{found_out, was_led};
pub use findings::{Findings, OutputRule, check_output};
pub use history::{check_fencing, check_one_truth};
pub use loaded::{Entry, Loaded, lane_positions};
pub use recorder::{Recorder, Recording};
pub use restarts::{check_count, check_restarts};
pub use snapshot::SnapshotReader;
pub use store_history::{SnapshotOracle, StoreHistory, record_number};

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

fn positions(manifest: &Manifest, oracle: &dyn StateOracle) -> anyhow::Result<Positions> {
    lane_positions(manifest, oracle.source(), oracle.lanes())
}

async fn counts(
    store: &Arc<dyn Store>,
    manifest: &Manifest,
    oracle: &dyn StateOracle,
) -> anyhow::Result<Counts> {
    let loaded = Loaded::read(store, manifest).await?;
    let mut counts = Counts::new();
    for entry in loaded.entries(oracle.operator())? {
        if entry.state.name != oracle.state() {
            continue;
        }
        let key = oracle.key(&entry.key)?;
        let value = rmp_serde::from_slice::<u64>(&entry.value)
            .with_context(|| format!("value of key {key} in key group {}", entry.group))?;
        let before = counts.insert(key.clone(), value);
        ensure!(before.is_none(), "key {key} is stored twice");
    }
    Ok(counts)
}

/// Whether retention has put this record in place of a completed one. It carries the epoch of the leader that did so.
#[must_use]
pub fn is_retired(record: &Record) -> bool {
    matches!(&record.outcome, RecordOutcome::Aborted { reason } if reason == "retired")
}

/// Whether its creator has put this record over one of its own that it could not read and told nobody of.
#[must_use]
pub fn is_taken_back(record: &Record) -> bool {
    matches!(&record.outcome, RecordOutcome::Aborted { reason } if reason == "its record could not be read")
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
        check_record(*number, record)?;
        if let Some((_, last)) = before {
            let is_end = matches!(last.outcome, RecordOutcome::Terminal { .. });
            check_follows(last.epoch, is_end, record)?;
        }
        before = Some((*number, record));
    }
    Ok(())
}

/// What each record must say: its own number, and that of its manifest (S3).
fn check_record(number: u64, record: &Record) -> anyhow::Result<()> {
    ensure!(
        record.checkpoint.0 == number,
        "record {number} says it is {}",
        record.checkpoint
    );
    if let RecordOutcome::Completed(manifest) = &record.outcome {
        ensure!(
            manifest.checkpoint.0 == number && manifest.epoch == record.epoch,
            "record {number} of epoch {} holds the manifest of {} of epoch {}",
            record.epoch,
            manifest.checkpoint,
            manifest.epoch
        );
    }
    Ok(())
}

/// What may follow a record (S3): no lower epoch, a higher one with its claim only, and nothing after the end.
fn check_follows(last: LeaderEpoch, is_end: bool, record: &Record) -> anyhow::Result<()> {
    let number = record.checkpoint;
    ensure!(
        record.epoch >= last,
        "record {number}: epoch {} after epoch {last}",
        record.epoch
    );
    ensure!(
        record.epoch == last || matches!(record.outcome, RecordOutcome::Claimed),
        "record {number}: epoch {} begins without a claim",
        record.epoch
    );
    ensure!(!is_end, "record {number}: it follows the end of the job");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_actors::model::CheckpointId;

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
