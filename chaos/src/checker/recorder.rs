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

use super::{check_manifest, check_sequence, is_retired};
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
    // A record that was created a second time would have other content: its token is random. Only retention replaces one, visibly.
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
                now == before || is_retired(&decode_record(&now)?),
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
