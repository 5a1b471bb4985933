//! Which JobManager leads, decided on the store alone.
//!
//! `epoch-<e>` is created once, by conditional create, and never changed or deleted: it names the leader of epoch e. `lease-<e>` is a
//! counter that this leader keeps raising; others watch it on their own monotonic clocks, so that no two clocks are ever compared.
//!
//! Invariant: at most one process owns an epoch, and epochs only grow. Detection may be wrong at any time (a living leader is
//! replaced): safety rests on epochs alone, because a leader re-reads them after each record and stops when a higher one exists.
//!
//! Objects are a few hundred bytes per leadership and stay, so that the newest epoch can be found without LIST.

mod election;
mod guard;
#[cfg(test)]
mod tests;

pub use election::{Election, ProbeOutcome, Sighting, Verdict};
pub use guard::{Leadership, LeadershipLost};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use perennial_config::HighAvailability;
use serde::{Deserialize, Serialize};

use crate::checkpoint::io::BackOff;
use crate::checkpoint::{
    Created, EpochGuard, NOTE_MAGIC, Store, StoreError, StoreResult, decode_note, encode_note,
};
use crate::clock::Instant;
use crate::entropy::Entropy;
use crate::model::{InstanceId, LeaderEpoch};

/// Where the search for the newest epoch starts; never more than a hint.
const HINT_KEY: &str = "latest-epoch";
/// Failed reads or creates in a row after which a candidate gives up with the store's error.
const STORE_TRIES: u32 = 10;

fn epoch_key(epoch: LeaderEpoch) -> String {
    format!("epoch-{epoch}")
}

fn lease_key(epoch: LeaderEpoch) -> String {
    format!("lease-{epoch}")
}

/// A leader, as its epoch's object names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderInfo {
    /// What it leads.
    pub epoch: LeaderEpoch,
    /// `host:port` of its control listener.
    pub address: String,
    /// Its process; also what tells our own create from a rival's.
    pub instance: InstanceId,
}

/// The renewal counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Grows with each renewal.
    pub counter: u64,
    /// The leader has ended in good order: nobody needs to wait.
    pub is_released: bool,
}

/// Asks who answers at an address. Must end by itself, within about a second.
pub type ProbeFn = Arc<dyn Fn(String) -> BoxFuture<'static, ProbeOutcome> + Send + Sync>;

/// A process that wants to lead.
#[derive(Clone)]
pub struct Candidate {
    /// Rooted at the leadership directory of the cluster.
    pub store: Arc<dyn Store>,
    /// Under which others will reach it.
    pub address: String,
    /// This process.
    pub instance: InstanceId,
    /// Whether to wait for a living leader's end.
    pub high_availability: HighAvailability,
    /// How long a counter may stand still.
    pub lease_duration: Duration,
    /// How often the counter is raised and watched.
    pub renew_interval: Duration,
    /// How to ask the incumbent.
    pub probe: ProbeFn,
    /// For jitter.
    pub entropy: Entropy,
}

/// This process does not lead.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeadershipError {
    /// Without high availability one JobManager is enough.
    #[error(
        "the JobManager at {address} leads this cluster (epoch {epoch}): stop it first, choose another high-availability.cluster-id, or set high-availability.type for a standby"
    )]
    Occupied {
        /// Of the leader.
        address: String,
        /// Of the leader.
        epoch: LeaderEpoch,
    },
    /// The store does not work.
    #[error("leadership cannot be decided: {0}")]
    Store(#[from] StoreError),
}

/// The newest epoch; `info` is `None` when its object is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Newest {
    epoch: LeaderEpoch,
    info: Option<LeaderInfo>,
}

async fn read_epoch(store: &dyn Store, epoch: LeaderEpoch) -> StoreResult<Option<Newest>> {
    match store.get(&epoch_key(epoch), None).await {
        Ok(bytes) => Ok(Some(Newest {
            epoch,
            info: decode_note(NOTE_MAGIC, &bytes)
                .ok()
                .filter(|info: &LeaderInfo| info.epoch == epoch),
        })),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Epochs are dense: the newest is the last before the first that is missing.
async fn newest_from(store: &dyn Store, start: LeaderEpoch) -> StoreResult<Option<Newest>> {
    let mut newest = None;
    let mut at = start;
    while let Some(found) = read_epoch(store, at).await? {
        newest = Some(found);
        at = LeaderEpoch(at.0 + 1);
    }
    Ok(newest)
}

async fn newest(store: &dyn Store) -> StoreResult<Option<Newest>> {
    let hint: Option<LeaderEpoch> = match store.get(HINT_KEY, None).await {
        Ok(bytes) => decode_note(NOTE_MAGIC, &bytes).ok(),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    if let Some(hint) = hint
        && let Some(found) = newest_from(store, hint).await?
    {
        return Ok(Some(found));
    }
    newest_from(store, LeaderEpoch(1)).await
}

/// Who leads, or led last. For TaskManagers and clients; whoever answers there confirms it in the handshake.
pub async fn discover(store: &dyn Store) -> StoreResult<Option<LeaderInfo>> {
    Ok(newest(store).await?.and_then(|n| n.info))
}

/// Reads the epoch in force from the store; see [`EpochGuard`].
pub struct StoreEpochs {
    store: Arc<dyn Store>,
    ours: LeaderEpoch,
}

impl StoreEpochs {
    /// Starts to look at `ours`, which exists.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, ours: LeaderEpoch) -> Self {
        Self { store, ours }
    }
}

impl EpochGuard for StoreEpochs {
    fn current_epoch(&self) -> BoxFuture<'_, StoreResult<LeaderEpoch>> {
        async {
            let next = LeaderEpoch(self.ours.0 + 1);
            let newer = newest_from(&*self.store, next).await?;
            Ok(newer.map_or(self.ours, |n| n.epoch))
        }
        .boxed()
    }
}

async fn read_lease(store: &dyn Store, epoch: LeaderEpoch) -> StoreResult<Option<Lease>> {
    match store.get(&lease_key(epoch), None).await {
        Ok(bytes) => Ok(decode_note(NOTE_MAGIC, &bytes).ok()),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn write_lease(store: &dyn Store, epoch: LeaderEpoch, lease: Lease) -> StoreResult<()> {
    let key = lease_key(epoch);
    match encode_note(NOTE_MAGIC, &lease) {
        Ok(bytes) => store.put(&key, Bytes::from(bytes)).await,
        Err(error) => Err(StoreError::Invalid {
            uri: format!("{}/{key}", store.uri()),
            message: error.to_string(),
        }),
    }
}

/// Waits until this process leads. Cancel safe: an epoch claimed and not used is replaced by the next candidate.
pub async fn lead(candidate: Candidate) -> Result<Leadership, LeadershipError> {
    let mut election = Election::new(
        candidate.instance,
        candidate.high_availability,
        candidate.lease_duration,
        candidate.renew_interval,
    );
    let mut failures = 0;
    let mut back_off = BackOff::new(candidate.entropy.clone());
    loop {
        match round(&candidate, &mut election).await {
            Ok(Round::Leads(info)) => return Ok(Leadership::begin(&candidate, info)),
            Ok(Round::Again) => failures = 0,
            Ok(Round::Wait) => {
                failures = 0;
                tokio::time::sleep(candidate.renew_interval).await;
            }
            Ok(Round::Occupied(info)) => {
                return Err(LeadershipError::Occupied {
                    address: info.address,
                    epoch: info.epoch,
                });
            }
            Err(error @ (StoreError::Unsupported { .. } | StoreError::Invalid { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "the leadership store does not answer");
                if failures >= STORE_TRIES {
                    return Err(error.into());
                }
                back_off.pause().await;
            }
        }
    }
}

enum Round {
    Leads(LeaderInfo),
    Again,
    Wait,
    Occupied(LeaderInfo),
}

async fn round(candidate: &Candidate, election: &mut Election) -> StoreResult<Round> {
    let store = &*candidate.store;
    let sighting = match newest(store).await? {
        None => None,
        Some(Newest { epoch, info }) => {
            let lease = read_lease(store, epoch).await?;
            let probe = match &info {
                Some(info) => (candidate.probe)(info.address.clone()).await,
                None => ProbeOutcome::Silent,
            };
            Some(Sighting {
                epoch,
                leader: info,
                lease,
                probe,
            })
        }
    };
    let verdict = election.observe(Instant::now(), sighting.as_ref());
    match verdict {
        Verdict::Wait => Ok(Round::Wait),
        Verdict::Refuse => Ok(match sighting.and_then(|s| s.leader) {
            Some(info) => Round::Occupied(info),
            None => Round::Wait,
        }),
        Verdict::Claim(epoch) => {
            let info = LeaderInfo {
                epoch,
                address: candidate.address.clone(),
                instance: candidate.instance,
            };
            if claim(store, &info).await? {
                tracing::info!(%epoch, address = %info.address, "leads");
                if let Ok(bytes) = encode_note(NOTE_MAGIC, &epoch)
                    && let Err(error) = store.put(HINT_KEY, bytes.into()).await
                {
                    tracing::debug!(%error, "hint not written; the search only takes longer");
                }
                Ok(Round::Leads(info))
            } else {
                Ok(Round::Again)
            }
        }
    }
}

/// Whether the epoch is ours. An unknown outcome is settled by reading, and by trying again with the same content.
async fn claim(store: &dyn Store, info: &LeaderInfo) -> StoreResult<bool> {
    let key = epoch_key(info.epoch);
    let bytes = encode_note(NOTE_MAGIC, info).map_err(|e| StoreError::Invalid {
        uri: format!("{}/{key}", store.uri()),
        message: e.to_string(),
    })?;
    match store.create(&key, Bytes::from(bytes)).await {
        Ok(Created::New) => Ok(true),
        Ok(Created::Exists) | Err(StoreError::Unknown { .. }) => {
            // Missing: our create may still land. The next round meets it as our own, or claims anew.
            let found = read_epoch(store, info.epoch).await?;
            Ok(found.and_then(|n| n.info).is_some_and(|i| i == *info))
        }
        Err(error) => Err(error),
    }
}
