//! The jobs of a cluster in its HA store: `jobs/<job-id>/graph` from the submission on, `jobs/<job-id>/result` from the end on.
//!
//! Invariant: a graph is durable before its submission is answered, and goes only after its result is there, so that a job is neither
//! lost nor run twice. Both are created once and never changed. What they mean is the JobManager's business.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Created, Store, StoreError, StoreResult};
use crate::model::{JobGraph, JobId, JobStatus};

/// Tries of an operation whose outcome is unknown.
const TRIES_MAX: u32 = 3;

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

/// What the store knows of a job.
pub(super) enum StoredJob {
    /// To be run.
    Open(Box<JobRecord>),
    /// Ended.
    Ended(Box<JobStatus>),
    /// Its object does not decode; the others are not affected.
    Unreadable(String),
}

#[derive(Clone)]
pub(super) struct JobStore(Arc<dyn Store>);

impl JobStore {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    pub(super) async fn submit(&self, record: &JobRecord) -> StoreResult<Submission> {
        let key = graph_key(record.graph.job);
        match self.create(&key, encode(record)).await? {
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

    /// Writes the result; one that is there already stands.
    pub(super) async fn finish(&self, status: &JobStatus) -> StoreResult<()> {
        let result = JobResult {
            version: VERSION,
            status: status.clone(),
        };
        self.create(&result_key(status.summary.job), encode(&result))
            .await
            .map(|_| ())
    }

    /// Drops an ended job.
    pub(super) async fn forget(&self, job: JobId) -> StoreResult<()> {
        // Order matters: a graph without a result would run again.
        self.0.delete(&graph_key(job)).await?;
        self.0.delete(&result_key(job)).await
    }

    /// All jobs. A store that cannot be read is an error; a job that cannot be decoded is not.
    pub(super) async fn recover(&self) -> StoreResult<BTreeMap<JobId, StoredJob>> {
        let mut keys: BTreeMap<JobId, (bool, bool)> = BTreeMap::new();
        for object in self.0.list("jobs/").await? {
            let mut parts = object.key.split('/').skip(1);
            let (Some(Ok(job)), Some(kind)) = (parts.next().map(str::parse), parts.next()) else {
                continue;
            };
            let entry = keys.entry(job).or_default();
            match kind {
                "graph" => entry.0 = true,
                "result" => entry.1 = true,
                _ => {}
            }
        }
        let mut jobs = BTreeMap::new();
        for (job, (has_graph, has_result)) in keys {
            let stored = if has_result {
                match decode::<JobResult>(&self.0.get(&result_key(job), None).await?) {
                    Ok(result) => StoredJob::Ended(Box::new(result.status)),
                    Err(why) => StoredJob::Unreadable(why),
                }
            } else if has_graph {
                match decode::<JobRecord>(&self.0.get(&graph_key(job), None).await?) {
                    Ok(record) if record.graph.job != job => {
                        StoredJob::Unreadable(format!("it holds job {}", record.graph.job))
                    }
                    Ok(record) => match record.graph.validate() {
                        Ok(()) => StoredJob::Open(Box::new(record)),
                        Err(error) => StoredJob::Unreadable(error.to_string()),
                    },
                    Err(why) => StoredJob::Unreadable(why),
                }
            } else {
                continue;
            };
            jobs.insert(job, stored);
        }
        Ok(jobs)
    }

    /// A conditional create whose unknown outcome is settled by asking again: what is created is the same each time.
    async fn create(&self, key: &str, bytes: Bytes) -> StoreResult<Created> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.0.create(key, bytes.clone()).await {
                Err(StoreError::Unknown { .. }) if tries < TRIES_MAX => {}
                other => return other,
            }
        }
    }
}

fn graph_key(job: JobId) -> String {
    format!("jobs/{job}/graph")
}

fn result_key(job: JobId) -> String {
    format!("jobs/{job}/result")
}

/// MessagePack with named fields and a checksum of them in front.
fn encode<T: Serialize>(value: &T) -> Bytes {
    let body = rmp_serde::to_vec_named(value).expect("plain data always encodes");
    let mut bytes = crc32c::crc32c(&body).to_be_bytes().to_vec();
    bytes.extend(body);
    bytes.into()
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    let (sum, body) = bytes
        .split_first_chunk::<4>()
        .ok_or_else(|| format!("{} bytes are too few", bytes.len()))?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return Err("the checksum does not match".to_owned());
    }
    rmp_serde::from_slice(body).map_err(|error| error.to_string())
}
