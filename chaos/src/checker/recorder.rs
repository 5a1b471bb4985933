//! Reads a job's records while it runs, and checks each completed checkpoint before retention can delete it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use perennial_actors::checkpoint::{
    METADATA, Store, StoreError, StoreFactory, decode_record, record_key,
};
use perennial_actors::model::{CheckpointId, JobId, Manifest, Record, RecordOutcome};

use super::{check_manifest, check_sequence, is_retired, is_taken_back};
use crate::oracle::{Positions, StateOracle};

/// Between two looks at the next number.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A store that fails for longer is no store.
const FAILURES_MAX: u32 = 100;

/// What the harness has done to the store itself: what it damaged is not held against the job.
#[derive(Debug, Default)]
struct Damage {
    /// Keys in the job's directory.
    keys: BTreeSet<String>,
    /// Everything up to here.
    is_emptied: bool,
    /// Newest completed checkpoint that has been checked.
    newest: Option<(u64, Vec<String>)>,
}

/// Follows one job in a thread of its own. Ask the cluster to retain all checkpoints, else deleted ones are gone.
pub struct Recorder {
    is_over: Arc<AtomicBool>,
    damage: Arc<Mutex<Damage>>,
    thread: JoinHandle<anyhow::Result<Recording>>,
}

/// What a [`Recorder`] saw.
#[derive(Debug, Default)]
pub struct Recording {
    /// Every record, by number.
    pub records: BTreeMap<u64, Record>,
    /// Checkpoints that were checked against the fold, with their source positions.
    pub checked: BTreeMap<u64, Positions>,
    /// Completed ones that the end of the job had deleted before they could be read.
    pub missed: Vec<u64>,
    /// Completed ones that refer to what the harness has damaged.
    pub damaged: Vec<u64>,
}

impl Recorder {
    /// Begins to follow the job under `<checkpoints>/<job>`; without an oracle only its records are looked at.
    ///
    /// # Errors
    /// When the store cannot be opened or no thread started.
    pub fn follow(
        stores: Arc<dyn StoreFactory>,
        checkpoints: &str,
        job: JobId,
        oracle: Option<Arc<dyn StateOracle>>,
    ) -> anyhow::Result<Self> {
        let store = stores.open(&format!("{checkpoints}/{job}"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = is_over.clone();
        let damage = Arc::new(Mutex::new(Damage::default()));
        let known = damage.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || runtime.block_on(run(store, oracle, &flag, &known)))?;
        Ok(Self {
            is_over,
            damage,
            thread,
        })
    }

    /// The newest completed checkpoint that has been read and checked, with the objects that it refers to.
    #[must_use]
    pub fn newest(&self) -> Option<(u64, Vec<String>)> {
        lock(&self.damage).newest.clone()
    }

    /// Says before it happens that the harness is about to damage an object of the job.
    pub fn expect_damage(&self, key: &str) {
        lock(&self.damage).keys.insert(key.to_owned());
    }

    /// Says before it happens that the harness is about to delete everything.
    pub fn expect_emptiness(&self) {
        lock(&self.damage).is_emptied = true;
    }

    /// Stops following and returns what was seen, once everything there is has been read.
    ///
    /// # Errors
    /// When a checkpoint differed from the fold, a record changed, or the sequence of records is broken.
    pub fn finish(self) -> anyhow::Result<Recording> {
        self.is_over.store(true, Ordering::Release);
        let recording = self
            .thread
            .join()
            .map_err(|_| anyhow!("the recorder panicked"))??;
        // What the harness deleted is missing in the sequence.
        if !lock(&self.damage).is_emptied {
            check_sequence(&recording.records)?;
        }
        Ok(recording)
    }
}

async fn run(
    store: Arc<dyn Store>,
    oracle: Option<Arc<dyn StateOracle>>,
    is_over: &AtomicBool,
    damage: &Mutex<Damage>,
) -> anyhow::Result<Recording> {
    let mut recording = Recording::default();
    let mut contents: BTreeMap<u64, Bytes> = BTreeMap::new();
    let mut failures = 0;
    let mut next = 1;
    loop {
        // Read before the look: what comes after it would else be missed.
        let is_last_look = is_over.load(Ordering::Acquire);
        match store.get(&record_key(CheckpointId(next)), None).await {
            Ok(bytes) => {
                failures = 0;
                let record = decode_record(&bytes).with_context(|| format!("record {next}"))?;
                if let RecordOutcome::Completed(manifest) = &record.outcome {
                    let checked = match &oracle {
                        Some(oracle) => check_manifest(&store, manifest, oracle.as_ref())
                            .await
                            .map(Some),
                        None => Ok(None),
                    };
                    match checked {
                        Ok(positions) => {
                            recording.checked.extend(positions.map(|p| (next, p)));
                            let keys = manifest.objects.iter().map(|o| o.key.clone());
                            lock(damage).newest = Some((next, keys.collect()));
                        }
                        Err(_) if refers_to_damage(manifest, &lock(damage)) => {
                            recording.damaged.push(next);
                        }
                        // What a job stopped with lies in the savepoint's own directory.
                        Err(error) if is_deleted(&error) && manifest.kind.is_savepoint() => {}
                        // Whoever wrote it could not read it, has told nobody of it, and deletes what it refers to.
                        Err(error)
                            if is_deleted(&error) && is_withdrawn(&store, next, &record).await => {}
                        // Only the end of a job deletes while all are retained.
                        Err(error) if is_deleted(&error) && has_ended(&store, next).await => {
                            recording.missed.push(next);
                        }
                        Err(error) => return Err(error),
                    }
                } else if is_retired(&record) {
                    ensure!(
                        has_ended(&store, next).await,
                        "checkpoint {next} was retired while the job ran"
                    );
                    recording.missed.push(next);
                }
                recording.records.insert(next, record);
                contents.insert(next, bytes);
                next += 1;
            }
            Err(StoreError::NotFound { .. }) if is_last_look => break,
            // A number that was decided and deleted before we looked: the next one shows whether there is one.
            Err(StoreError::NotFound { .. })
                if lock(damage).is_emptied && has(&store, next + 1).await =>
            {
                next += 1;
            }
            Err(StoreError::NotFound { .. }) => {
                failures = 0;
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(error) => {
                failures += 1;
                if failures > FAILURES_MAX {
                    return Err(error.into());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
    // A record that was created a second time would have other content: its token is random. Only retention replaces one, visibly, or its
    // own epoch.
    let emptied = lock(damage).is_emptied;
    for (number, before) in contents {
        if emptied
            || lock(damage)
                .keys
                .contains(&record_key(CheckpointId(number)))
        {
            continue;
        }
        match store.get(&record_key(CheckpointId(number)), None).await {
            Ok(now) => ensure!(
                now == before || may_replace(&decode_record(&now)?, &decode_record(&before)?),
                "record {number} was created twice"
            ),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(recording)
}

fn refers_to_damage(manifest: &Manifest, damage: &Damage) -> bool {
    damage.is_emptied
        || manifest
            .objects
            .iter()
            .any(|o| damage.keys.contains(&o.key))
}

/// Whether a record may have come in the place of another one.
fn may_replace(now: &Record, before: &Record) -> bool {
    is_retired(now) || (is_taken_back(now) && now.epoch == before.epoch)
}

/// Whether a record has been taken back since it was read.
async fn is_withdrawn(store: &Arc<dyn Store>, number: u64, before: &Record) -> bool {
    let now = store.get(&record_key(CheckpointId(number)), None).await;
    now.is_ok_and(|now| {
        decode_record(&now).is_ok_and(|now| is_taken_back(&now) && may_replace(&now, before))
    })
}

async fn has(store: &Arc<dyn Store>, number: u64) -> bool {
    let record = store.get(&record_key(CheckpointId(number)), None).await;
    record.is_ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the job's last record is there; what lies between may be deleted by now.
async fn has_ended(store: &Arc<dyn Store>, after: u64) -> bool {
    let Ok(objects) = store.list("chk-").await else {
        return false;
    };
    let number = |key: &str| key.strip_prefix("chk-")?.split('/').next()?.parse().ok();
    for object in objects {
        if !object.key.ends_with(METADATA) || number(&object.key).is_none_or(|n: u64| n <= after) {
            continue;
        }
        let Ok(bytes) = store.get(&object.key, None).await else {
            continue;
        };
        let is_last = |r: Record| matches!(r.outcome, RecordOutcome::Terminal { .. });
        if decode_record(&bytes).is_ok_and(is_last) {
            return true;
        }
    }
    false
}

/// Whether an object was not there.
fn is_deleted(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(StoreError::NotFound { .. })))
}

#[cfg(test)]
mod tests {
    use perennial_actors::checkpoint::encode_record;
    use perennial_actors::model::{JobState, LeaderEpoch, SnapshotKind};

    use super::*;
    use crate::storage::{Storage, StorageKind};

    fn record(number: u64, epoch: u64, outcome: RecordOutcome) -> Record {
        Record {
            checkpoint: CheckpointId(number),
            epoch: LeaderEpoch(epoch),
            token: u128::from(number),
            outcome,
        }
    }

    fn completed(number: u64) -> RecordOutcome {
        RecordOutcome::Completed(Box::new(Manifest {
            job: JobId(1),
            job_name: String::new(),
            checkpoint: CheckpointId(number),
            epoch: LeaderEpoch(1),
            kind: SnapshotKind::Checkpoint,
            timestamp_ms: 0,
            duration_ms: 0,
            operators: Vec::new(),
            objects: Vec::new(),
        }))
    }

    fn aborted(reason: &str) -> RecordOutcome {
        RecordOutcome::Aborted {
            reason: reason.to_owned(),
        }
    }

    fn end() -> RecordOutcome {
        RecordOutcome::Terminal {
            state: JobState::Finished,
            message: None,
        }
    }

    /// What a recorder makes of records of which some change once they have been read; `harmed`: a record that the harness is to change.
    fn recorded(
        first: &[Record],
        then: &[Record],
        harmed: Option<u64>,
    ) -> anyhow::Result<Recording> {
        let directory = tempfile::tempdir()?;
        let stores = Storage::fresh(StorageKind::Disk, directory.path());
        let checkpoints = stores.uri("checkpoints");
        let store = stores.open().open(&format!("{checkpoints}/{}", JobId(1)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let put = |records: &[Record]| -> anyhow::Result<()> {
            for record in records {
                let bytes = Bytes::from(encode_record(record)?);
                runtime.block_on(store.put(&record_key(record.checkpoint), bytes))?;
            }
            Ok(())
        };
        put(first)?;
        let recorder = Recorder::follow(stores.open(), &checkpoints, JobId(1), None)?;
        if let Some(number) = harmed {
            recorder.expect_damage(&record_key(CheckpointId(number)));
        }
        let last = first.iter().rev().find_map(|r| match r.outcome {
            RecordOutcome::Completed(_) => Some(r.checkpoint.0),
            _ => None,
        });
        while !recorder.thread.is_finished() && recorder.newest().map(|(n, _)| n) < last {
            std::thread::sleep(Duration::from_millis(1));
        }
        put(then)?;
        recorder.finish()
    }

    /// A record that was read stays as it is, but for what retention or its own creator puts there.
    #[test]
    fn only_retention_its_own_epoch_and_the_harness_change_a_record() {
        let first = [
            record(1, 1, RecordOutcome::Claimed),
            record(2, 1, completed(2)),
        ];
        let taken_back = || aborted("its record could not be read");
        for (now, harmed, is_right) in [
            (None, None, true),
            (Some(record(2, 1, aborted("expired"))), None, false),
            (Some(record(2, 1, aborted("expired"))), Some(1), false),
            (Some(record(2, 1, aborted("expired"))), Some(2), true),
            (Some(record(2, 2, aborted("retired"))), None, true),
            (Some(record(2, 1, taken_back())), None, true),
            (Some(record(2, 2, taken_back())), None, false),
        ] {
            let result = recorded(&first, now.as_slice(), harmed);
            let words = result.as_ref().err().map(ToString::to_string);
            assert_eq!(result.is_ok(), is_right, "{now:?}: {words:?}");
            if let Some(words) = words {
                assert_eq!(words, "record 2 was created twice");
            }
        }
    }

    /// While all are retained only the end of a job retires one, and the sequence is that of S3.
    #[test]
    fn a_record_that_is_retired_while_the_job_runs_is_seen_and_so_is_a_broken_sequence() {
        let claim = || record(1, 1, RecordOutcome::Claimed);
        let retired = || record(2, 1, aborted("retired"));
        let at_the_end = recorded(&[claim(), retired(), record(3, 1, end())], &[], None);
        assert_eq!(at_the_end.unwrap().missed, [2]);
        for (records, word) in [
            (vec![claim(), retired()], "was retired while the job ran"),
            (
                vec![claim(), record(2, 1, end()), record(3, 1, completed(3))],
                "it follows the end",
            ),
        ] {
            let error = recorded(&records, &[], None).unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
    }
}
