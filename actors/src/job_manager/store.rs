//! The jobs of a cluster in its HA store: `jobs/<job-id>/graph` from the submission on, `jobs/<job-id>/result` from the end on, and
//! `jobs/<job-id>/history/<epoch>` as each leader last told it. Which there are, the [`Roster`] says; a listing only adds to it.
//!
//! Invariant: a graph is durable before its submission is answered, and goes only after its result is there, so that a job is neither
//! lost nor run twice. Both are created once and never changed. A leader replaces only its own history, so that a stale one harms nobody's;
//! a history that is missing or cannot be read costs nothing else. What all this means is the JobManager's business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::roster::Roster;
use crate::checkpoint::{Created, EpochGuard, Store, StoreError, StoreResult};
use crate::job_master::history::JobHistory;
use crate::model::{JobGraph, JobId, JobStatus, LeaderEpoch};

/// Tries of an operation whose outcome is unknown.
const TRIES_MAX: u32 = 3;

/// Bound of a stored history; beyond, its oldest entries go first.
pub(crate) const HISTORY_BYTES_MAX: usize = 256 << 10;

/// How long the start of a JobManager may take longer because of one job's history.
const HISTORY_READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The format of the objects.
const VERSION: u32 = 1;

/// A job as submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    version: u32,
    pub(super) submitted_ms: u64,
    pub(super) graph: JobGraph,
}

impl JobRecord {
    pub(super) fn new(graph: JobGraph, submitted_ms: u64) -> Self {
        Self {
            version: VERSION,
            submitted_ms,
            graph,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredHistory {
    version: u32,
    history: JobHistory,
}

/// What is known of a job beside its graph.
#[derive(Default)]
pub(super) struct Past {
    pub(super) history: Option<Box<JobHistory>>,
    /// Of former leaders' histories.
    pub(super) epochs: Vec<LeaderEpoch>,
}

#[derive(Serialize, Deserialize)]
struct JobResult {
    version: u32,
    status: JobStatus,
}

/// What a submission met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Submission {
    /// The job is stored.
    New,
    /// It was stored before: the client asks again, having missed the answer.
    Known,
    /// Another job has this id.
    Taken,
}

/// Why a job's result is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FinishError {
    /// To be tried again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// How the job ends is for this leader to say.
    #[error("epoch {0} leads now")]
    Fenced(LeaderEpoch),
}

/// What the store knows of a job.
pub(super) enum StoredJob {
    /// To be run.
    Open(Box<JobRecord>, Past),
    /// Ended.
    Ended(Box<JobStatus>),
    /// Its object does not decode; the others are not affected.
    Unreadable(String),
}

#[derive(Clone)]
pub(super) struct JobStore(Arc<dyn Store>, Arc<Mutex<Roster>>, LeaderEpoch);

impl JobStore {
    pub(super) fn new(store: Arc<dyn Store>, epoch: LeaderEpoch) -> Self {
        let roster = Roster::new(Arc::clone(&store), epoch);
        Self(store, Arc::new(Mutex::new(roster)), epoch)
    }

    pub(super) async fn submit(&self, record: &JobRecord) -> StoreResult<Submission> {
        // Order matters: who comes next looks for the graphs of those that are enrolled.
        self.1.lock().await.enroll(record.graph.job).await?;
        let key = graph_key(record.graph.job);
        match create(&*self.0, &key, encode(record)).await? {
            Created::New => Ok(Submission::New),
            Created::Exists => {
                let stored: Result<JobRecord, _> = decode(&self.0.get(&key, None).await?);
                Ok(match stored {
                    Ok(stored) if stored.graph == record.graph => Submission::Known,
                    Ok(_) | Err(_) => Submission::Taken,
                })
            }
        }
    }

    /// Writes the result; one that is there already stands. The epoch is read before, for a former leader must not end a job that its
    /// successor runs. One that is replaced between this and its write still does: that result counts for the leader after the next.
    pub(super) async fn finish(
        &self,
        guard: &dyn EpochGuard,
        status: &JobStatus,
    ) -> Result<(), FinishError> {
        let result = JobResult {
            version: VERSION,
            status: status.clone(),
        };
        self.leads(guard).await?;
        create(&*self.0, &result_key(status.summary.job), encode(&result)).await?;
        // Whoever began to lead meanwhile may have looked for it too early, and run the job: nobody is told that it has ended.
        self.leads(guard).await
    }

    async fn leads(&self, guard: &dyn EpochGuard) -> Result<(), FinishError> {
        let current = guard.current_epoch().await?;
        if current > self.2 {
            return Err(FinishError::Fenced(current));
        }
        Ok(())
    }

    /// Drops an ended job.
    pub(super) async fn forget(&self, job: JobId) -> StoreResult<()> {
        // Order matters: a graph without a result would run again.
        self.0.delete(&graph_key(job)).await?;
        for object in self.0.list(&format!("jobs/{job}/history/")).await? {
            self.0.delete(&object.key).await?;
        }
        self.0.delete(&result_key(job)).await
    }

    /// Replaces this leader's history of a job, and deletes those of former ones.
    pub(super) async fn remember(
        &self,
        job: JobId,
        epoch: LeaderEpoch,
        history: JobHistory,
        outdated: &[LeaderEpoch],
    ) -> StoreResult<()> {
        self.0
            .put(&history_key(job, epoch), encode_history(history))
            .await?;
        for epoch in outdated {
            self.0.delete(&history_key(job, *epoch)).await?;
        }
        Ok(())
    }

    /// The newest one that can be read.
    async fn past(&self, job: JobId, mut epochs: Vec<LeaderEpoch>) -> Past {
        epochs.sort_unstable();
        let read = async |epoch: LeaderEpoch| -> Result<JobHistory, String> {
            let key = history_key(job, epoch);
            let bytes = tokio::time::timeout(HISTORY_READ_TIMEOUT, self.0.get(&key, None))
                .await
                .map_err(|elapsed| elapsed.to_string())?
                .map_err(|error| error.to_string())?;
            decode::<StoredHistory>(&bytes).map(|stored| stored.history)
        };
        let mut history = None;
        if let Some(epoch) = epochs.last() {
            match read(*epoch).await {
                Ok(found) => history = Some(Box::new(found)),
                Err(why) => {
                    tracing::warn!(%job, %epoch, why, "job history cannot be read; it begins anew");
                }
            }
        }
        Past { history, epochs }
    }

    /// All jobs; from now on this leader enrolls new ones. A store that cannot be read is an error; a job that cannot be decoded is not.
    pub(super) async fn recover(&self) -> StoreResult<BTreeMap<JobId, StoredJob>> {
        let mut listed: BTreeMap<JobId, Vec<LeaderEpoch>> = BTreeMap::new();
        for object in self.0.list("jobs/").await? {
            let mut parts = object.key.split('/').skip(1);
            let (Some(Ok(job)), Some(kind)) = (parts.next().map(str::parse), parts.next()) else {
                continue;
            };
            let epochs = listed.entry(job).or_default();
            if kind == "history" {
                let epoch = parts.next().and_then(|epoch| epoch.parse().ok());
                epochs.extend(epoch.map(LeaderEpoch));
            }
        }
        let mut roster = self.1.lock().await;
        roster.read().await?;
        let mut unread: BTreeSet<JobId> = listed.keys().chain(roster.jobs()).copied().collect();
        let mut jobs = BTreeMap::new();
        loop {
            for job in std::mem::take(&mut unread) {
                let epochs = listed.remove(&job).unwrap_or_default();
                jobs.extend(self.load(job, epochs).await?.map(|stored| (job, stored)));
            }
            unread = roster.begin(jobs.keys().copied().collect()).await?;
            if unread.is_empty() {
                return Ok(jobs);
            }
        }
    }

    /// `None`: it was forgotten, or its submission never answered.
    async fn load(&self, job: JobId, epochs: Vec<LeaderEpoch>) -> StoreResult<Option<StoredJob>> {
        if let Some(bytes) = self.read(&result_key(job)).await? {
            return Ok(Some(match decode::<JobResult>(&bytes) {
                Ok(result) => StoredJob::Ended(Box::new(result.status)),
                Err(why) => StoredJob::Unreadable(why),
            }));
        }
        let Some(bytes) = self.read(&graph_key(job)).await? else {
            return Ok(None);
        };
        Ok(Some(match decode::<JobRecord>(&bytes) {
            Ok(record) if record.graph.job != job => {
                StoredJob::Unreadable(format!("it holds job {}", record.graph.job))
            }
            Ok(record) => match record.graph.validate() {
                Ok(()) => StoredJob::Open(Box::new(record), self.past(job, epochs).await),
                Err(error) => StoredJob::Unreadable(error.to_string()),
            },
            Err(why) => StoredJob::Unreadable(why),
        }))
    }

    async fn read(&self, key: &str) -> StoreResult<Option<Bytes>> {
        match self.0.get(key, None).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A conditional create whose unknown outcome is settled by asking again: what is created is the same each time.
pub(super) async fn create(store: &dyn Store, key: &str, bytes: Bytes) -> StoreResult<Created> {
    let mut tries = 0;
    loop {
        tries += 1;
        match store.create(key, bytes.clone()).await {
            Err(StoreError::Unknown { .. }) if tries < TRIES_MAX => {}
            other => return other,
        }
    }
}

fn graph_key(job: JobId) -> String {
    format!("jobs/{job}/graph")
}

fn history_key(job: JobId, epoch: LeaderEpoch) -> String {
    format!("jobs/{job}/history/{epoch}")
}

/// Within [`HISTORY_BYTES_MAX`]: causes carry messages of users, of any length.
fn encode_history(history: JobHistory) -> Bytes {
    let mut stored = StoredHistory {
        version: VERSION,
        history,
    };
    loop {
        let bytes = encode(&stored);
        let history = &mut stored.history;
        if bytes.len() <= HISTORY_BYTES_MAX {
            return bytes;
        }
        if !history.recoveries.is_empty() {
            history.recoveries.remove(0);
        } else if !history.checkpoints.is_empty() {
            history.checkpoints.remove(0);
        } else if !history.notices.is_empty() {
            history.notices.remove(0);
        } else {
            return bytes;
        }
    }
}

fn result_key(job: JobId) -> String {
    format!("jobs/{job}/result")
}

/// MessagePack with named fields and a checksum of them in front.
pub(super) fn encode<T: Serialize>(value: &T) -> Bytes {
    let body = rmp_serde::to_vec_named(value).expect("plain data always encodes");
    let mut bytes = crc32c::crc32c(&body).to_be_bytes().to_vec();
    bytes.extend(body);
    bytes.into()
}

pub(super) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    let (sum, body) = bytes
        .split_first_chunk::<4>()
        .ok_or_else(|| format!("{} bytes are too few", bytes.len()))?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return Err("the checksum does not match".to_owned());
    }
    rmp_serde::from_slice(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::checkpoint::ObjectMeta;
    use crate::checkpoint::testing::MemoryStore;
    use crate::model::{Exchange, FailureKind, RecoveryPhases, RecoveryRecord, TaskFailure};
    use crate::testing::graph;

    /// Its listings show nothing of late.
    struct Stale(Arc<MemoryStore>);

    impl Store for Stale {
        fn uri(&self) -> &str {
            self.0.uri()
        }
        fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>> {
            self.0.create(key, bytes)
        }
        fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>> {
            self.0.put(key, bytes)
        }
        fn get<'a>(
            &'a self,
            key: &'a str,
            range: Option<std::ops::Range<u64>>,
        ) -> BoxFuture<'a, StoreResult<Bytes>> {
            self.0.get(key, range)
        }
        fn list<'a>(&'a self, _: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>> {
            async { Ok(Vec::new()) }.boxed()
        }
        fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>> {
            self.0.delete(key)
        }
    }

    /// O7: a leader that takes over while listings are stale runs the jobs all the same.
    #[tokio::test(start_paused = true)]
    async fn jobs_are_found_although_the_listing_shows_none() {
        let memory = MemoryStore::new("memory://ha");
        let store: Arc<dyn Store> = Arc::new(Stale(memory));
        let first = JobStore::new(Arc::clone(&store), LeaderEpoch(1));
        assert!(first.recover().await.unwrap().is_empty());
        let graph = graph(&[1, 1], &[(0, 1, Exchange::Forward)]);
        let job = graph.job;
        let record = JobRecord::new(graph, 5);
        assert_eq!(first.submit(&record).await.unwrap(), Submission::New);
        let second = JobStore::new(Arc::clone(&store), LeaderEpoch(2));
        let jobs = second.recover().await.unwrap();
        assert!(matches!(jobs[&job], StoredJob::Open(..)));
        second.forget(job).await.unwrap();
        let third = JobStore::new(store, LeaderEpoch(3));
        assert!(third.recover().await.unwrap().is_empty());
    }

    #[test]
    fn a_history_of_any_length_is_stored_within_its_bound_and_the_newest_stays() {
        let mut history = JobHistory::default();
        for number in 1..=40 {
            history.recoveries.push(RecoveryRecord {
                number,
                attempt: None,
                detected_ms: 0,
                cause: TaskFailure::of_job(FailureKind::Panic {
                    message: "words\n".repeat(5_000),
                    location: String::new(),
                }),
                other_causes: Vec::new(),
                decision: String::new(),
                checkpoint: None,
                skipped: Vec::new(),
                phases: RecoveryPhases::default(),
                restored: (0, 0),
            });
        }
        let bytes = encode_history(history.clone());
        assert!(bytes.len() <= HISTORY_BYTES_MAX, "{}", bytes.len());
        let stored = decode::<StoredHistory>(&bytes).unwrap().history;
        assert!(stored.recoveries.len() > 5, "{}", stored.recoveries.len());
        assert_eq!(stored.recoveries.last(), history.recoveries.last());
        history.recoveries = vec![history.recoveries[0].clone()];
        history.notices = vec!["x".repeat(2 * HISTORY_BYTES_MAX)];
        assert!(encode_history(history).len() <= HISTORY_BYTES_MAX);
    }
}
