//! Carries out what `protocol.rs` decides, against a store. Decides nothing itself but how long to wait.
//!
//! Every future here may be dropped at any time: that leaves the outcome of one operation unknown, which the protocol expects.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use perennial_config::ExternalizedRetention;
use serde::{Deserialize, Serialize};

use crate::clock::Instant;
use crate::entropy::Entropy;
use crate::model::{CheckpointId, JobState, LeaderEpoch, Manifest, Record, RecordOutcome};

use super::chain::verify_manifest;
use super::keys::{LATEST_KEY, quarantine_key, record_key, savepoint_note_key};
use super::protocol::{
    Action, EndProbe, Fate, Observation, OnFailure, Pace, Probe, RecordWriter, next_anchor,
};
use super::record::{NOTE_MAGIC, RecordError, decode, decode_record, encode, encode_record};
use super::store::{Created, Store, StoreError, StoreResult};

/// Tells which leader epoch is in force. Read after every record, before anybody is told of it.
pub trait EpochGuard: Send + Sync + 'static {
    /// The highest epoch that has been claimed.
    fn current_epoch(&self) -> BoxFuture<'_, StoreResult<LeaderEpoch>>;
}

/// The delay between tries at the store, at first and at most.
pub(crate) const BACK_OFF: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_secs(2));

/// A growing delay with jitter.
pub(crate) struct BackOff {
    entropy: Entropy,
    next: Duration,
}

impl BackOff {
    pub(crate) fn new(entropy: Entropy) -> Self {
        Self {
            entropy,
            next: BACK_OFF.0,
        }
    }

    pub(crate) async fn pause(&mut self) {
        let jitter = self.entropy.u64() % (self.next.as_micros() as u64).max(1);
        tokio::time::sleep(self.next + Duration::from_micros(jitter)).await;
        self.next = (self.next * 2).min(BACK_OFF.1);
    }
}

/// Where records are written, on whose behalf.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) guard: Arc<dyn EpochGuard>,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) entropy: Entropy,
}

/// How a number was decided.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) fate: Fate,
    /// Why the intended record cannot exist at all.
    pub(crate) refusal: Option<RecordError>,
}

impl Ledger {
    /// Decides a number, however long the store takes.
    pub(crate) async fn write(
        &self,
        checkpoint: CheckpointId,
        outcome: RecordOutcome,
        on_failure: OnFailure,
    ) -> Decision {
        let (token, settlement_token) = (self.entropy.u128(), self.entropy.u128());
        let record = |token, outcome| Record {
            checkpoint,
            epoch: self.epoch,
            token,
            outcome,
        };
        let aborted = |reason: &str| {
            let reason = reason.to_owned();
            let record = record(settlement_token, RecordOutcome::Aborted { reason });
            encode_record(&record).map(Bytes::from)
        };
        let intent = encode_record(&record(token, outcome)).map(Bytes::from);
        let settlement = match &intent {
            Ok(_) => aborted("its record could not be written in time"),
            Err(error) => aborted(&error.to_string()),
        };
        let key = record_key(checkpoint);
        let mut writer = RecordWriter::new(self.epoch, token, settlement_token, on_failure);
        let mut back_off = BackOff::new(self.entropy.clone());
        let mut action = Action::CreateIntent;
        loop {
            let observation = match action {
                Action::CreateIntent => self.create(&key, &intent).await,
                Action::CreateSettlement => self.create(&key, &settlement).await,
                Action::Read => match self.store.get(&key, None).await {
                    Ok(bytes) => match decode_record(&bytes) {
                        Ok(found) => Observation::Found {
                            epoch: found.epoch,
                            token: found.token,
                        },
                        Err(_) => Observation::Unreadable,
                    },
                    Err(StoreError::NotFound { .. }) => Observation::Missing,
                    Err(_) => Observation::ReadFailed,
                },
                Action::TakeBack => match aborted(TAKEN_BACK) {
                    Ok(bytes) => match self.store.put(&key, bytes).await {
                        Ok(()) => Observation::TakenBack,
                        Err(_) => Observation::TakeBackFailed,
                    },
                    Err(_) => Observation::TakeBackFailed,
                },
                Action::ReadEpoch => match self.guard.current_epoch().await {
                    Ok(epoch) => Observation::Epoch(epoch),
                    Err(_) => Observation::EpochFailed,
                },
                Action::Done(fate) => {
                    tracing::debug!(%checkpoint, epoch = %self.epoch, ?fate, "record decided");
                    let refusal = intent.err();
                    return Decision { fate, refusal };
                }
            };
            let (next, pace) = writer.on(observation);
            if pace == Pace::BackOff {
                tracing::warn!(%checkpoint, ?action, ?observation, ?next, "store does not answer well; trying again");
                back_off.pause().await;
            }
            action = next;
        }
    }

    async fn create(&self, key: &str, bytes: &Result<Bytes, RecordError>) -> Observation {
        // A record that cannot be encoded certainly has no effect; only a manifest can be too long.
        let Ok(bytes) = bytes else {
            return Observation::CreateFailed;
        };
        match self.store.create(key, bytes.clone()).await {
            Ok(Created::New) => Observation::CreatedNew,
            Ok(Created::Exists) => Observation::CreatedExists,
            Err(StoreError::Unknown { .. }) => Observation::CreateUnknown,
            Err(
                StoreError::Failed { .. }
                | StoreError::NotFound { .. }
                | StoreError::Unsupported { .. }
                | StoreError::Invalid { .. },
            ) => Observation::CreateFailed,
        }
    }
}

/// The content of `latest`: true when it was written, perhaps no longer. See `protocol.rs` for why that is enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hint {
    /// The first number that was free.
    pub(crate) next: CheckpointId,
    /// The completed ones that were retained.
    pub(crate) retained: Vec<CheckpointId>,
    /// Records below this one had been deleted, except anchors.
    pub(crate) deleted_below: CheckpointId,
}

impl Hint {
    pub(crate) async fn read(store: &dyn Store) -> StoreResult<Option<Self>> {
        match store.get(LATEST_KEY, None).await {
            // A damaged hint is as good as none.
            Ok(bytes) => Ok(decode(NOTE_MAGIC, &bytes).ok()),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) async fn write(&self, store: &dyn Store) {
        if let Ok(bytes) = encode(NOTE_MAGIC, self)
            && let Err(error) = store.put(LATEST_KEY, bytes.into()).await
        {
            tracing::debug!(%error, "hint not written; the next one will be");
        }
    }
}

/// What a number's object holds.
pub(crate) enum Slot {
    Missing,
    Damaged(String),
    Record(Box<Record>),
}

pub(crate) async fn read_slot(store: &dyn Store, checkpoint: CheckpointId) -> StoreResult<Slot> {
    match store.get(&record_key(checkpoint), None).await {
        Ok(bytes) => Ok(match decode_record(&bytes) {
            Ok(record) if record.checkpoint == checkpoint => Slot::Record(Box::new(record)),
            Ok(record) => Slot::Damaged(format!("it is the record of {}", record.checkpoint)),
            Err(error) => Slot::Damaged(error.to_string()),
        }),
        Err(StoreError::NotFound { .. }) => Ok(Slot::Missing),
        Err(error) => Err(error),
    }
}

/// A completed checkpoint as found in the store.
#[derive(Debug, Clone)]
pub(crate) struct FoundCheckpoint {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) manifest: Option<Arc<Manifest>>,
    /// URI of the savepoint's directory, when its objects lie there.
    pub(crate) external: Option<String>,
    pub(crate) damage: Option<String>,
}

/// What the sequence holds.
#[derive(Debug, Clone)]
pub(crate) struct Survey {
    /// The first free number.
    pub(crate) free: CheckpointId,
    /// Ascending.
    pub(crate) completed: Vec<FoundCheckpoint>,
    pub(crate) terminal: Option<(JobState, Option<String>)>,
    pub(crate) deleted_below: CheckpointId,
}

/// The text of a record that retention left in place of a checkpoint's; below it nothing is retained.
pub(crate) const RETIRED: &str = "retired";
/// The text of a record that its creator wrote over its own one, because it could not read that.
pub(crate) const TAKEN_BACK: &str = "its record could not be read";

/// Reads where the sequence ends and what it holds.
pub(crate) async fn survey(store: &dyn Store) -> StoreResult<Survey> {
    let hint = Hint::read(store).await?;
    let start = hint.as_ref().map_or(CheckpointId(1), |h| h.next);
    let mut probe = EndProbe::from(start);
    let mut completed: Vec<FoundCheckpoint> = Vec::new();
    let mut terminal = None;
    let free = loop {
        match probe.ask() {
            Probe::Free(free) => break free,
            Probe::Look(at) => {
                let slot = read_slot(store, at).await?;
                probe.answer(!matches!(slot, Slot::Missing));
                note(store, at, slot, &mut completed, &mut terminal).await?;
            }
        }
    };
    // The end of the job may be the very record before the hint.
    if free > CheckpointId(1) && terminal.is_none() {
        let last = CheckpointId(free.0 - 1);
        let slot = read_slot(store, last).await?;
        note(store, last, slot, &mut completed, &mut terminal).await?;
    }
    // One so old that the probe passed records over does not know what is retained now.
    match hint.as_ref().filter(|_| !probe.has_jumped()) {
        Some(hint) => {
            let newest_found = completed.iter().map(|c| c.checkpoint).max();
            for at in &hint.retained {
                let slot = read_slot(store, *at).await?;
                // With newer ones there, retention may have taken it; else nobody had the right to.
                if matches!(slot, Slot::Missing) && newest_found.is_none_or(|n| n <= *at) {
                    completed.push(FoundCheckpoint {
                        checkpoint: *at,
                        manifest: None,
                        external: None,
                        damage: Some("its record is missing".into()),
                    });
                } else {
                    note(store, *at, slot, &mut completed, &mut terminal).await?;
                }
            }
        }
        None => {
            let mut at = CheckpointId(free.0.saturating_sub(1));
            while at.0 > 0 && terminal.is_none() {
                let slot = read_slot(store, at).await?;
                let is_end = match &slot {
                    Slot::Missing => true,
                    Slot::Record(record) => {
                        matches!(&record.outcome, RecordOutcome::Aborted { reason } if reason == RETIRED)
                    }
                    Slot::Damaged(_) => false,
                };
                if is_end {
                    break;
                }
                note(store, at, slot, &mut completed, &mut terminal).await?;
                at = CheckpointId(at.0 - 1);
            }
        }
    }
    completed.sort_by_key(|c| c.checkpoint);
    completed.dedup_by_key(|c| c.checkpoint);
    Ok(Survey {
        free,
        completed,
        terminal,
        deleted_below: hint.map_or(CheckpointId(1), |h| h.deleted_below),
    })
}

async fn note(
    store: &dyn Store,
    at: CheckpointId,
    slot: Slot,
    completed: &mut Vec<FoundCheckpoint>,
    terminal: &mut Option<(JobState, Option<String>)>,
) -> StoreResult<()> {
    let record = match slot {
        Slot::Missing => return Ok(()),
        Slot::Damaged(damage) => {
            completed.push(FoundCheckpoint {
                checkpoint: at,
                manifest: None,
                external: None,
                damage: Some(damage),
            });
            return Ok(());
        }
        Slot::Record(record) => record,
    };
    match record.outcome {
        RecordOutcome::Aborted { .. } | RecordOutcome::Claimed => {}
        RecordOutcome::Terminal { state, message } => *terminal = Some((state, message)),
        RecordOutcome::Completed(manifest) => {
            let mut damage = verify_manifest(&manifest).err();
            match store.get(&quarantine_key(at), None).await {
                Ok(reason) => damage = Some(String::from_utf8_lossy(&reason).into_owned()),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            let external = match store.get(&savepoint_note_key(at, record.epoch), None).await {
                Ok(uri) => Some(String::from_utf8_lossy(&uri).into_owned()),
                Err(StoreError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            completed.push(FoundCheckpoint {
                checkpoint: at,
                manifest: Some(Arc::from(manifest)),
                external,
                damage,
            });
        }
    }
    Ok(())
}

/// How the job ended, if it has: a job with a `Terminal` record must not run again. For the JobManager that recovers jobs; the store is
/// rooted at the job's checkpoint directory.
pub async fn terminal_state(store: &dyn Store) -> StoreResult<Option<(JobState, Option<String>)>> {
    let hint = Hint::read(store).await?;
    let mut probe = EndProbe::from(hint.map_or(CheckpointId(1), |h| h.next));
    loop {
        match probe.ask() {
            Probe::Free(free) => {
                let last = CheckpointId(free.0.saturating_sub(1));
                return Ok(match read_slot(store, last).await? {
                    Slot::Record(record) => match record.outcome {
                        RecordOutcome::Terminal { state, message } => Some((state, message)),
                        RecordOutcome::Completed(_)
                        | RecordOutcome::Aborted { .. }
                        | RecordOutcome::Claimed => None,
                    },
                    Slot::Missing | Slot::Damaged(_) => None,
                });
            }
            Probe::Look(at) => {
                let slot = read_slot(store, at).await?;
                probe.answer(!matches!(slot, Slot::Missing));
            }
        }
    }
}

/// What came of a claim.
#[derive(Debug, Clone)]
pub(crate) enum Claim {
    /// The number that is ours, and what lies below it.
    Claimed(CheckpointId, Survey),
    /// The job has ended.
    Terminal(Survey),
    /// A higher epoch exists.
    Fenced(LeaderEpoch),
}

impl Ledger {
    /// Claims the first free number; only then may anything be restored.
    pub(crate) async fn claim(&self, notice: impl Fn(String)) -> Claim {
        let mut back_off = BackOff::new(self.entropy.clone());
        let mut has_complained = false;
        loop {
            match self.try_claim().await {
                Ok(Some(claim)) => return claim,
                Ok(None) => {} // Somebody was faster at that number: look again.
                Err(error) => {
                    tracing::warn!(%error, "cannot read the checkpoint directory; trying again");
                    if !has_complained {
                        notice(format!(
                            "cannot read the checkpoint directory, trying again: {error}"
                        ));
                        has_complained = true;
                    }
                    back_off.pause().await;
                }
            }
        }
    }

    async fn try_claim(&self) -> StoreResult<Option<Claim>> {
        let survey = survey(&*self.store).await?;
        if survey.terminal.is_some() {
            return Ok(Some(Claim::Terminal(survey)));
        }
        let number = survey.free;
        let decision = self
            .write(number, RecordOutcome::Claimed, OnFailure::Repeat)
            .await;
        match decision.fate {
            Fate::Written | Fate::Settled => {
                // While we looked, retention of a leader that still ran may have passed this number: then it was free for the second
                // time, and the end lies beyond.
                match read_slot(&*self.store, next_anchor(number)).await? {
                    Slot::Missing => Ok(Some(Claim::Claimed(number, survey))),
                    Slot::Record(_) | Slot::Damaged(_) => Ok(None),
                }
            }
            // The predecessor's last record: not a reason to stop, unless the epoch says so.
            Fate::Fenced { epoch } if epoch > self.epoch => Ok(Some(Claim::Fenced(epoch))),
            Fate::Fenced { .. } => {
                let current = self.guard.current_epoch().await?;
                Ok((current > self.epoch).then_some(Claim::Fenced(current)))
            }
        }
    }
}

/// Tries at a deletion or another operation whose failure leaves only garbage, while a job runs.
const CLEAN_TRIES: u32 = 3;
/// How long the same is tried at the end of a job. So much later at most does a job end whose store is ill.
const CLEAN_AT_END_MAX: Duration = Duration::from_secs(10);

/// When to give up what leaves only garbage.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// Soon: it comes round again with the next checkpoint or the next leader.
    Brief,
    /// At that time: nobody comes by again.
    Until(Instant),
}

impl Patience {
    /// For a job that ends now.
    pub(crate) fn at_end() -> Self {
        Self::Until(Instant::now() + CLEAN_AT_END_MAX)
    }

    fn has_run_out(self) -> bool {
        matches!(self, Self::Until(end) if Instant::now() >= end)
    }

    fn is_over(self, attempt: u32) -> bool {
        match self {
            Self::Brief => attempt >= CLEAN_TRIES,
            Self::Until(_) => self.has_run_out(),
        }
    }
}

/// Deletes objects, and returns those that it could not; at worst they are left to the sweeper of the next leader.
pub(crate) async fn delete_all(
    store: &dyn Store,
    keys: Vec<String>,
    entropy: &Entropy,
    patience: Patience,
) -> Vec<String> {
    let mut left = Vec::new();
    let mut keys = keys.into_iter();
    while let Some(key) = keys.next() {
        left.extend(delete(store, key, entropy, patience).await);
        // A store that is ill still would take as long over each of the others.
        if !left.is_empty() && patience.has_run_out() {
            left.extend(keys);
            break;
        }
    }
    left
}

/// `Some`: it is there still.
async fn delete(
    store: &dyn Store,
    key: String,
    entropy: &Entropy,
    patience: Patience,
) -> Option<String> {
    let mut back_off = BackOff::new(entropy.clone());
    let mut attempt = 1;
    loop {
        match store.delete(&key).await {
            Ok(()) => return None,
            Err(error) if patience.is_over(attempt) => {
                tracing::warn!(%error, %key, "object not deleted; the next sweep will find it");
                return Some(key);
            }
            Err(_) => back_off.pause().await,
        }
        attempt += 1;
    }
}

/// Replaces a completed record by a small one. `false`: the record may still stand, so its objects must.
pub(crate) async fn retire(ledger: &Ledger, checkpoint: CheckpointId, patience: Patience) -> bool {
    let record = Record {
        checkpoint,
        epoch: ledger.epoch,
        token: ledger.entropy.u128(),
        outcome: RecordOutcome::Aborted {
            reason: RETIRED.into(),
        },
    };
    let Ok(bytes) = encode_record(&record) else {
        return false;
    };
    let bytes = Bytes::from(bytes);
    let key = record_key(checkpoint);
    let mut back_off = BackOff::new(ledger.entropy.clone());
    for attempt in 1.. {
        match ledger.store.put(&key, bytes.clone()).await {
            Ok(()) => return true,
            Err(_) if patience.is_over(attempt) => break,
            Err(_) => back_off.pause().await,
        }
    }
    false
}

/// Tries at the metadata of a savepoint.
const SAVEPOINT_TRIES: u32 = 5;

/// Writes a savepoint's `_metadata`, the last of its objects. An unknown outcome is settled by reading: nobody else writes there.
pub(crate) async fn write_savepoint(
    store: &dyn Store,
    record: &Record,
    entropy: &Entropy,
) -> Result<(), String> {
    let bytes = Bytes::from(encode_record(record).map_err(|e| e.to_string())?);
    let mut back_off = BackOff::new(entropy.clone());
    let mut last = String::new();
    for _ in 0..SAVEPOINT_TRIES {
        match store.create(super::keys::METADATA, bytes.clone()).await {
            Ok(Created::New) => return Ok(()),
            Ok(Created::Exists) => last = format!("{} holds another savepoint", store.uri()),
            Err(error) => last = error.to_string(),
        }
        match store.get(super::keys::METADATA, None).await {
            Ok(found) if found == bytes => return Ok(()),
            Ok(_) => return Err(format!("{} holds another savepoint", store.uri())),
            Err(_) => back_off.pause().await,
        }
    }
    Err(last)
}

/// Read of an object's bytes at a time while it is verified.
const VERIFY_CHUNK: u64 = 8 << 20;

/// An object of a snapshot is not what its manifest says, or nobody can tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// It is missing, shorter, or other bytes.
    #[error("{0}")]
    Damaged(String),
    /// The store does not answer.
    #[error(transparent)]
    Store(StoreError),
}

/// Reads every object of a snapshot once and compares length and checksum, in constant memory.
pub(crate) async fn verify_objects(
    store: &dyn Store,
    manifest: &Manifest,
) -> Result<(), ObjectError> {
    for object in &manifest.objects {
        let damaged = |what: &str| {
            ObjectError::Damaged(format!("object {}/{}: {what}", store.uri(), object.key))
        };
        let listed = store.list(&object.key).await.map_err(ObjectError::Store)?;
        let size = listed.iter().find(|o| o.key == object.key).map(|o| o.size);
        // A listing may lag behind; the reads below decide. It is asked because a read past the end has no typed answer.
        if let Some(size) = size.filter(|size| *size != object.length) {
            return Err(damaged(&format!(
                "{size} bytes, the manifest says {}",
                object.length
            )));
        }
        let (mut checksum, mut at) = (0, 0);
        while at < object.length {
            let end = object.length.min(at + VERIFY_CHUNK);
            let bytes = match store.get(&object.key, Some(at..end)).await {
                Ok(bytes) => bytes,
                Err(StoreError::NotFound { .. }) => return Err(damaged("it is missing")),
                Err(error) => return Err(ObjectError::Store(error)),
            };
            checksum = crc32c::crc32c_append(checksum, &bytes);
            at = end;
        }
        if checksum != object.crc32c {
            return Err(damaged(&format!(
                "checksum {checksum:08x}, the manifest says {:08x}",
                object.crc32c
            )));
        }
    }
    Ok(())
}

/// Puts a small note, with a few tries.
pub(crate) async fn put_note(
    store: &dyn Store,
    key: &str,
    bytes: Bytes,
    entropy: &Entropy,
) -> StoreResult<()> {
    let mut back_off = BackOff::new(entropy.clone());
    for _ in 1..SAVEPOINT_TRIES {
        if store.put(key, bytes.clone()).await.is_ok() {
            return Ok(());
        }
        back_off.pause().await;
    }
    store.put(key, bytes).await
}

/// Deletes what a job that has ended does not keep: for a successor of the leader that wrote the `Terminal` record and may not have
/// come to it. Nothing happens when it has, and nothing to a job that runs or whose checkpoints outlive it.
pub(crate) async fn clear_ended(
    ledger: &Ledger,
    retention: ExternalizedRetention,
) -> StoreResult<()> {
    let survey = survey(&*ledger.store).await?;
    let Some((state, _)) = survey.terminal else {
        return Ok(());
    };
    if super::retention::survives(state, retention) {
        return Ok(());
    }
    let patience = Patience::at_end();
    let mut may_sweep = true;
    for found in survey.completed {
        may_sweep &= retire(ledger, found.checkpoint, patience).await;
    }
    // Order matters, as in all retention: while a record stands, its objects do.
    if may_sweep {
        sweep(ledger, CheckpointId(u64::MAX), BTreeSet::new(), patience).await;
    }
    sweep_unfinished(&*ledger.store).await;
    Ok(())
}

/// Discards what writers that died left of objects which never came to be, once nothing of the job writes any more.
pub(crate) async fn sweep_unfinished(store: &dyn Store) {
    match store.sweep_unfinished("").await {
        Ok(0) => {}
        Ok(swept) => tracing::info!(swept, "discarded what writers that died had begun"),
        // It costs space, nothing else.
        Err(error) => tracing::warn!(%error, "what writers that died had begun stays behind"),
    }
}

/// Deletes every object of a decided number that nobody refers to.
pub(crate) async fn sweep(
    ledger: &Ledger,
    last_decided: CheckpointId,
    needed: BTreeSet<String>,
    patience: Patience,
) {
    let mut back_off = BackOff::new(ledger.entropy.clone());
    for attempt in 1.. {
        match ledger.store.list(super::keys::SHARED_PREFIX).await {
            Ok(listed) => {
                let needed = needed.iter().map(String::as_str).collect();
                let garbage = super::retention::sweep(&listed, last_decided, &needed);
                if !garbage.is_empty() {
                    tracing::info!(
                        objects = garbage.len(),
                        "sweeping objects of undone checkpoints"
                    );
                }
                delete_all(&*ledger.store, garbage, &ledger.entropy, patience).await;
                return;
            }
            Err(error) if patience.is_over(attempt) => {
                tracing::warn!(%error, "not swept; the next leader will");
                return;
            }
            Err(_) => back_off.pause().await,
        }
    }
}
