//! The history of a job's checkpoint directory, change by change, and what must hold after each (S2, S3, S4, R4).
//!
//! Invariant: it sees every change that nodes make, in order, together with the whole store as it is then; a checkpoint is therefore
//! read at the very instant at which its record makes it real, long before retention can delete it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use bytes::Bytes;
use perennial_actors::checkpoint::decode_record;
use perennial_actors::model::{JobState, LeaderEpoch, Manifest, Record, RecordOutcome};

use super::{
    Findings, Loaded, check_fencing, check_follows, check_one_truth, check_record, is_retired,
    is_taken_back,
};
use crate::plan::Invariant;
use crate::proxy::store::{History, WriteKind};

/// What a snapshot must hold.
pub trait SnapshotOracle: Send + Sync {
    /// Compares all that is known with the fold up to the snapshot's source positions.
    ///
    /// # Errors
    /// Naming what differs.
    fn check(&self, snapshot: &Loaded<'_>) -> anyhow::Result<()>;
}

/// The number of a record's key within its job's directory; `None` for any other object.
#[must_use]
pub fn record_number(key: &str) -> Option<u64> {
    key.strip_prefix("chk-")?
        .strip_suffix("/_metadata")?
        .parse()
        .ok()
}

/// Of one job.
#[derive(Default)]
struct Job {
    records: BTreeMap<u64, Seen>,
    /// Objects that the harness harmed at rest, records included.
    harmed: BTreeSet<String>,
    end: Option<JobState>,
    /// Objects that landed after the end: writes that were under way, which nobody knows of any more.
    late: BTreeSet<String>,
}

struct Seen {
    epoch: LeaderEpoch,
    is_completed: bool,
    is_aborted: bool,
    is_retired: bool,
    objects: BTreeSet<String>,
}

/// See the module.
#[derive(Default)]
pub struct StoreHistory {
    jobs: BTreeMap<String, Job>,
    /// Of records, as the store proxy writes them down.
    writes: History,
    findings: Findings,
    /// Completed checkpoints that were not compared, because the harness had harmed an object of theirs.
    pub spared: u64,
}

impl StoreHistory {
    /// Takes a change. `key` is relative to the directory that holds the jobs' directories, as are those of `object`, which gives
    /// the bytes of any object as they are now.
    pub fn change(
        &mut self,
        kind: WriteKind,
        key: &str,
        after: Option<&Bytes>,
        object: &dyn Fn(&str) -> Option<Bytes>,
        oracle: &dyn SnapshotOracle,
    ) {
        let path = key;
        let Some((job, key)) = key.split_once('/') else {
            return;
        };
        if let Some(number) = record_number(key) {
            self.writes.done_at_once(kind, path, after);
            match after {
                Some(bytes) => self.record(job, number, bytes, object, oracle),
                None => self.record_deleted(job, number),
            }
        } else if after.is_none() {
            self.object_deleted(job, key);
        } else if let Some(job) = self.jobs.get_mut(job)
            && job.end.is_some()
        {
            job.late.insert(key.to_owned());
        }
    }

    /// Takes a change below the directory of savepoints: one that has become whole must equal the fold.
    pub fn change_savepoint(
        &mut self,
        key: &str,
        after: Option<&Bytes>,
        object: &dyn Fn(&str) -> Option<Bytes>,
        oracle: &dyn SnapshotOracle,
    ) {
        let Some((savepoint, "_metadata")) = key.split_once('/') else {
            return;
        };
        let Some(bytes) = after else { return };
        let result = decode_record(bytes)
            .map_err(anyhow::Error::from)
            .and_then(|record| match &record.outcome {
                RecordOutcome::Completed(manifest) => {
                    let read = |key: &str| object(&format!("{savepoint}/{key}"));
                    check_snapshot(manifest, &read, oracle)
                }
                other => anyhow::bail!("it holds {other:?}"),
            })
            .with_context(|| savepoint.to_owned());
        self.findings.check(Invariant::S2, result);
    }

    /// The harness has harmed an object: what refers to it is not compared any more.
    pub fn harm(&mut self, job: &str, key: &str) {
        // A record that is lost before anybody heard of it may be decided again.
        let path = format!("{job}/{key}");
        self.writes.writes.retain(|write| write.key != path);
        let job = self.jobs.entry(job.to_owned()).or_default();
        job.harmed.insert(key.to_owned());
        if let Some(number) = record_number(key) {
            // Whatever the record referred to may be swept by who cannot read it.
            if let Some(seen) = job.records.get_mut(&number) {
                seen.objects.clear();
            }
        }
    }

    /// Whether the harness harmed something of any job.
    #[must_use]
    pub fn is_harmed(&self) -> bool {
        self.jobs.values().any(|job| !job.harmed.is_empty())
    }

    /// Whether the record of a number was, at some time, that of a completed checkpoint.
    #[must_use]
    pub fn has_completed(&self, job: &str, number: u64) -> bool {
        let job = self.jobs.get(job);
        job.is_some_and(|j| j.records.get(&number).is_some_and(|s| s.is_completed))
    }

    /// Completed checkpoints of all jobs so far.
    #[must_use]
    pub fn completed(&self) -> usize {
        let records = self.jobs.values().flat_map(|j| j.records.values());
        records.filter(|s| s.is_completed).count()
    }

    /// R4: objects of jobs that have ended and keep nothing.
    pub fn check_leftovers<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        let mut left = Vec::new();
        for key in keys {
            if let Some((job, key)) = key.split_once('/')
                && key.starts_with("shared/")
                && let Some(job) = self.jobs.get(job)
                && job.end == Some(JobState::Finished)
                && job.harmed.is_empty()
                && !job.late.contains(key)
            {
                left.push(key.to_owned());
            }
        }
        let result = if left.is_empty() {
            Ok(())
        } else {
            Err(format!("objects of a finished job are left: {left:?}"))
        };
        self.findings.check(Invariant::R4, result);
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> Findings {
        let mut findings = self.findings.clone();
        for (invariant, broken) in [
            (Invariant::S3, check_one_truth(&self.writes)),
            (Invariant::S4, check_fencing(&self.writes)),
        ] {
            findings.check_all(invariant, broken);
        }
        findings
    }

    fn record(
        &mut self,
        id: &str,
        number: u64,
        bytes: &Bytes,
        object: &dyn Fn(&str) -> Option<Bytes>,
        oracle: &dyn SnapshotOracle,
    ) {
        let job = self.jobs.entry(id.to_owned()).or_default();
        let record = decode_record(bytes).with_context(|| format!("record {number}"));
        let checked = record.and_then(|record| {
            job.check_record(number, &record)?;
            Ok(record)
        });
        let record = match checked {
            Ok(record) => {
                self.findings.check(Invariant::S3, Ok::<_, String>(()));
                record
            }
            Err(error) => {
                let error = format!("job {id}: {error:#}");
                self.findings.check(Invariant::S3, Err(error));
                return;
            }
        };
        let follows_abort = job
            .records
            .get(&number.wrapping_sub(1))
            .is_some_and(|before| before.is_aborted);
        let objects = job.take(number, &record);
        if let RecordOutcome::Completed(manifest) = &record.outcome {
            if objects.iter().any(|key| job.harmed.contains(key)) {
                self.spared += 1;
                return;
            }
            // Its objects lie in the savepoint's directory, where it is looked at when it is whole.
            if manifest.kind.is_savepoint() {
                return;
            }
            let read = |key: &str| object(&format!("{id}/{key}"));
            let result = check_snapshot(manifest, &read, oracle)
                .with_context(|| format!("job {id}: checkpoint {number}"));
            if follows_abort {
                let after_abort = result
                    .as_ref()
                    .map_err(|e| format!("after an abort: {e:#}"));
                self.findings.check(Invariant::S7, after_abort.map(|_| ()));
            }
            self.findings.check(Invariant::S2, result);
        }
    }

    fn record_deleted(&mut self, id: &str, number: u64) {
        let job = self.jobs.entry(id.to_owned()).or_default();
        let is_newest = job.newest_completed() == Some(number) && job.end.is_none();
        if is_newest && !job.harmed.contains(&format!("chk-{number}/_metadata")) {
            self.findings.violate(
                Invariant::R4,
                format!("job {id}: the record of the newest checkpoint {number} is deleted"),
            );
        }
    }

    fn object_deleted(&mut self, id: &str, key: &str) {
        let job = self.jobs.entry(id.to_owned()).or_default();
        let by = job
            .records
            .iter()
            .find(|(_, seen)| !seen.is_retired && seen.objects.contains(key));
        let result = match by {
            Some((number, _)) if job.end.is_none() => Err(format!(
                "job {id}: {key} is deleted, and checkpoint {number} refers to it"
            )),
            _ => Ok(()),
        };
        self.findings.check(Invariant::R4, result);
    }
}

fn check_snapshot(
    manifest: &Manifest,
    object: &dyn Fn(&str) -> Option<Bytes>,
    oracle: &dyn SnapshotOracle,
) -> anyhow::Result<()> {
    oracle.check(&Loaded::of(manifest, object)?)
}

impl Job {
    fn newest_completed(&self) -> Option<u64> {
        let mut records = self.records.iter().rev();
        records
            .find(|(_, s)| s.is_completed && !s.is_retired)
            .map(|(n, _)| *n)
    }

    fn check_record(&self, number: u64, record: &Record) -> anyhow::Result<()> {
        check_record(number, record)?;
        if let Some(seen) = self.records.get(&number) {
            // Lost by the harness before anybody heard of it: then it never was.
            if self.harmed.contains(&format!("chk-{number}/_metadata")) {
                return Ok(());
            }
            // Who wrote it could not read it, and told nobody of it.
            if is_taken_back(record) && record.epoch == seen.epoch {
                return Ok(());
            }
            // Else retention alone may replace a record, and only by a smaller one of a checkpoint that is not the newest.
            ensure!(
                seen.is_completed && is_retired(record),
                "record {number} was decided twice, now: {:?}",
                record.outcome
            );
            ensure!(
                self.newest_completed() != Some(number) || self.end.is_some(),
                "checkpoint {number} is retired, and no newer one is there"
            );
            return Ok(());
        }
        let Some((last, seen)) = self.records.iter().next_back() else {
            ensure!(number == 1, "the first record is {number}");
            ensure!(
                record.outcome == RecordOutcome::Claimed,
                "the first record is no claim"
            );
            return Ok(());
        };
        ensure!(number == last + 1, "record {number} follows {last}");
        check_follows(seen.epoch, self.end.is_some(), record)
    }

    /// Takes a record as seen: the objects that it refers to.
    fn take(&mut self, number: u64, record: &Record) -> BTreeSet<String> {
        let mut objects = BTreeSet::new();
        let (mut is_completed, mut is_aborted) = (false, false);
        match &record.outcome {
            RecordOutcome::Completed(manifest) => {
                is_completed = true;
                if !manifest.kind.is_savepoint() {
                    objects = manifest.objects.iter().map(|o| o.key.clone()).collect();
                }
            }
            RecordOutcome::Terminal { state, .. } => self.end = Some(*state),
            RecordOutcome::Aborted { .. } => is_aborted = true,
            RecordOutcome::Claimed => {}
        }
        if let Some(seen) = self.records.get_mut(&number) {
            seen.is_retired = true;
            return objects;
        }
        let seen = Seen {
            epoch: record.epoch,
            is_completed,
            is_aborted,
            is_retired: false,
            objects: objects.clone(),
        };
        self.records.insert(number, seen);
        objects
    }
}
