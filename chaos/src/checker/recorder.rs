//! Reads a job's records while it runs, and checks each completed checkpoint before retention can delete it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use perennial_actors::checkpoint::{Store, StoreError, StoreFactory, decode_record, record_key};
use perennial_actors::model::{CheckpointId, JobId, Record, RecordOutcome};

use super::{check_manifest, check_sequence, is_retired};
use crate::oracle::{Positions, StateOracle};

/// Between two looks at the next number.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A store that fails for longer is no store.
const FAILURES_MAX: u32 = 100;

/// Follows one job in a thread of its own. Ask the cluster to retain all checkpoints, else deleted ones are gone.
pub struct Recorder {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Recording>>,
}

/// What a [`Recorder`] saw.
#[derive(Debug, Default)]
pub struct Recording {
    /// Every record, by number.
    pub records: BTreeMap<u64, Record>,
    /// Checkpoints that were checked against the fold, with their source positions.
    pub checked: BTreeMap<u64, Positions>,
    /// Completed ones whose objects the end of the job had deleted before they could be read; at most the last two.
    pub missed: Vec<u64>,
}

impl Recorder {
    /// Begins to follow the job under `<checkpoints>/<job>`.
    ///
    /// # Errors
    /// When the store cannot be opened or no thread started.
    pub fn follow(
        stores: Arc<dyn StoreFactory>,
        checkpoints: &str,
        job: JobId,
        oracle: impl StateOracle + 'static,
    ) -> anyhow::Result<Self> {
        let store = stores.open(&format!("{checkpoints}/{job}"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = is_over.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || runtime.block_on(run(store, Box::new(oracle), &flag)))?;
        Ok(Self { is_over, thread })
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
        check_sequence(&recording.records)?;
        Ok(recording)
    }
}

async fn run(
    store: Arc<dyn Store>,
    oracle: Box<dyn StateOracle>,
    is_over: &AtomicBool,
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
                    match check_manifest(&store, manifest, oracle.as_ref()).await {
                        Ok(positions) => {
                            recording.checked.insert(next, positions);
                        }
                        Err(error) if is_deleted(&error) => recording.missed.push(next),
                        Err(error) => return Err(error),
                    }
                } else if is_retired(&record) {
                    recording.missed.push(next);
                }
                recording.records.insert(next, record);
                contents.insert(next, bytes);
                next += 1;
            }
            Err(StoreError::NotFound { .. }) if is_last_look => break,
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
    for (number, before) in contents {
        match store.get(&record_key(CheckpointId(number)), None).await {
            Ok(now) => ensure!(
                now == before || is_retired(&decode_record(&now)?),
                "record {number} was created twice"
            ),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Only the end of a job deletes while all are retained.
    let last = recording.records.len() as u64;
    ensure!(
        recording.missed.iter().all(|n| n + 3 > last),
        "objects of checkpoints {:?} were missing while the job ran (last record: {last})",
        recording.missed
    );
    Ok(recording)
}

/// Whether an object was not there.
fn is_deleted(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(StoreError::NotFound { .. })))
}
