//! What must hold in every run.

use std::collections::BTreeMap;

use bytes::Bytes;
use perennial::connector::CommittedCollect;
use perennial_actors::checkpoint::decode_record;
use perennial_actors::model::{JobGraph, JobStatus, LeaderEpoch, RecordOutcome, TaskManagerStatus};

use super::stores::SimulatedStores;
use super::workload::{Output, Workload, expected};

/// Differences shown.
const SHOWN_MAX: usize = 5;

/// Exactly once: what is committed is what a plain loop gives.
pub(super) fn output(workload: &Workload, sink: &CommittedCollect<Output>) -> Option<String> {
    let expected = expected(workload);
    let mut committed = sink.committed();
    committed.sort();
    if committed == expected {
        return None;
    }
    let mut counts: BTreeMap<&Output, i64> = BTreeMap::new();
    for record in &expected {
        *counts.entry(record).or_default() -= 1;
    }
    for record in &committed {
        *counts.entry(record).or_default() += 1;
    }
    counts.retain(|_, n| *n != 0);
    let shown: Vec<_> = counts
        .iter()
        .take(SHOWN_MAX)
        .map(|(r, n)| format!("{n:+} {r:?}"))
        .collect();
    Some(format!(
        "{} records are committed, {} expected; {} differ:\n{}",
        committed.len(),
        expected.len(),
        counts.len(),
        shown.join("\n")
    ))
}

/// R1: when the job has ended, every slot is free.
pub(super) fn slots(task_managers: &[TaskManagerStatus]) -> Option<String> {
    let busy: Vec<_> = task_managers
        .iter()
        .filter(|status| status.slots.0 != status.slots.1)
        .map(|status| format!("{} {:?}", status.resource, status.slots))
        .collect();
    (!busy.is_empty()).then(|| format!("R1: slots are kept after the job's end: {busy:?}"))
}

/// S5: each incident costs one restart at most. Recoveries are numbered from the JobMaster's start, as restarts are.
pub(super) fn restarts(status: &JobStatus) -> Option<String> {
    let incidents = status.recoveries.last().map_or(0, |last| last.number);
    (status.summary.restarts > incidents).then(|| {
        format!(
            "S5: {} restarts in {incidents} incidents",
            status.summary.restarts
        )
    })
}

/// The job's records as they come: each decodes, is decided once, and says the number it lies under;
/// epochs never fall. A completed one may be retired later: then it says that it was aborted.
pub(super) struct Records {
    directory: String,
    seen: BTreeMap<u64, Seen>,
    pub(super) violations: Vec<String>,
}

struct Seen {
    epoch: LeaderEpoch,
    is_completed: bool,
    bytes: Bytes,
}

impl Records {
    pub(super) fn of(graph: &JobGraph) -> Self {
        Self {
            directory: super::directory_of(graph),
            seen: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    pub(super) fn look(&mut self, stores: &SimulatedStores) {
        // Listings come in order of names: 10 before 9.
        let mut found = BTreeMap::new();
        for (key, bytes) in stores.look(&self.directory, "/_metadata") {
            match key
                .strip_prefix("chk-")
                .and_then(|k| k.split('/').next()?.parse::<u64>().ok())
            {
                Some(number) => drop(found.insert(number, bytes)),
                None => self.violations.push(format!("{key} is no record's name")),
            }
        }
        let is_new = |seen: &BTreeMap<u64, Seen>, number: &u64, bytes: &Bytes| {
            seen.get(number).is_none_or(|seen| seen.bytes != *bytes)
        };
        found.retain(|number, bytes| is_new(&self.seen, number, bytes));
        if found.is_empty() {
            return;
        }
        let objects = stores.look(&self.directory, "");
        for (number, bytes) in found {
            self.take(number, bytes, &objects);
        }
    }

    fn take(&mut self, number: u64, bytes: Bytes, objects: &[(String, Bytes)]) {
        let record = match decode_record(&bytes) {
            Ok(record) => record,
            Err(error) => {
                self.violations.push(format!("record {number}: {error}"));
                return;
            }
        };
        if record.checkpoint.0 != number {
            self.violations.push(format!(
                "record {number} says that it is {}",
                record.checkpoint
            ));
        }
        if let RecordOutcome::Completed(manifest) = &record.outcome
            && manifest.checkpoint != record.checkpoint
        {
            self.violations.push(format!(
                "record {number} holds manifest {}",
                manifest.checkpoint
            ));
        }
        if let RecordOutcome::Completed(manifest) = &record.outcome
            && !self.seen.contains_key(&number)
        {
            // S2: what is acknowledged is durable.
            for object in &manifest.objects {
                let found = objects.iter().find(|(key, _)| *key == object.key);
                if found.is_none_or(|(_, bytes)| crc32c::crc32c(bytes) != object.crc32c) {
                    self.violations.push(format!(
                        "S2: record {number} names {}, which is not there",
                        object.key
                    ));
                }
            }
        }
        let is_completed = matches!(record.outcome, RecordOutcome::Completed(_));
        let is_aborted = matches!(record.outcome, RecordOutcome::Aborted { .. });
        match self.seen.get(&number) {
            Some(seen) if seen.is_completed && is_aborted => {}
            Some(_) => self.violations.push(format!(
                "record {number} was decided twice, now: {:?}",
                record.outcome
            )),
            None => self.follows(number, record.epoch),
        }
        let seen = Seen {
            epoch: record.epoch,
            is_completed,
            bytes,
        };
        self.seen.insert(number, seen);
    }

    fn follows(&mut self, number: u64, epoch: LeaderEpoch) {
        let before = self.seen.range(..number).next_back();
        if number != before.map_or(0, |(n, _)| *n) + 1 {
            let before = before.map(|(n, _)| n);
            self.violations
                .push(format!("record {number} follows {before:?}"));
        } else if let Some((other, seen)) = before
            && seen.epoch > epoch
        {
            self.violations.push(format!(
                "S3: record {number} of epoch {epoch} follows {other} of epoch {}",
                seen.epoch
            ));
        }
    }
}
