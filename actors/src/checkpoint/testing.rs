//! What the tests of this crate share: small manifests and acknowledgements, and a store in memory whose answers can be lost.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use perennial_config::{CheckpointSettings, ExternalizedRetention, JobSettings};

use super::{Created, ObjectMeta, Store, StoreError, StoreFactory, StoreResult};
use crate::model::message::{CheckpointAck, OperatorAck, SubtaskAck};
use crate::model::*;

pub(crate) const JOB: JobId = JobId(0xabcdef << 104);

pub(crate) fn attempt_of(vertex: u32, subtask: u32, attempt: u32) -> ExecutionAttemptId {
    ExecutionAttemptId {
        job: JOB,
        vertex: VertexId(vertex),
        subtask: SubtaskIndex(subtask),
        epoch: LeaderEpoch(1),
        attempt: Attempt(attempt),
    }
}

pub(crate) fn subtask_state(subtask: u32) -> SubtaskState {
    SubtaskState {
        subtask: SubtaskIndex(subtask),
        watermark: None,
        is_finished: false,
        operator_state: None,
        operator_state_crc32c: 0,
        positions: Vec::new(),
    }
}

/// Without operators: enough for counting.
pub(crate) fn ack_of(checkpoint: u64, attempts: &[ExecutionAttemptId]) -> CheckpointAck {
    CheckpointAck {
        job: JOB,
        checkpoint: CheckpointId(checkpoint),
        objects: Vec::new(),
        subtasks: attempts
            .iter()
            .map(|attempt| SubtaskAck {
                attempt: *attempt,
                operators: Vec::new(),
                longest_pause_us: 1,
                alignment_us: 1,
            })
            .collect(),
    }
}

/// One segment per entry: (first group, last group, text repeated for each).
pub(crate) fn segment(
    checkpoint: u64,
    kind: SegmentKind,
    groups: impl IntoIterator<Item = u16>,
    data: DataRef,
) -> KeyedSegment {
    let groups: Vec<u16> = groups.into_iter().collect();
    let each = data.length() / (groups.len() as u64).max(1);
    KeyedSegment {
        checkpoint: CheckpointId(checkpoint),
        kind,
        data,
        groups: groups
            .iter()
            .enumerate()
            .map(|(i, g)| GroupSlice {
                group: KeyGroup(*g),
                offset: i as u64 * each,
                length: each,
                crc32c: 0,
            })
            .collect(),
    }
}

pub(crate) fn manifest_of(checkpoint: u64, segments: &[(u16, u16, &str)]) -> Manifest {
    let keyed = segments
        .iter()
        .map(|(from, to, text)| {
            let bytes = text.repeat(usize::from(to - from) + 1);
            segment(
                checkpoint,
                SegmentKind::Full,
                *from..=*to,
                DataRef::Inline(Bytes::from(bytes)),
            )
        })
        .collect();
    Manifest {
        job: JOB,
        job_name: "job".into(),
        checkpoint: CheckpointId(checkpoint),
        epoch: LeaderEpoch(1),
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 1,
        duration_ms: 2,
        operators: vec![OperatorState {
            id: OperatorId::from_uid("count"),
            uid: "count".into(),
            parallelism: 1,
            max_parallelism: 8,
            states: Vec::new(),
            keyed,
            subtasks: vec![subtask_state(0)],
            coordinator: None,
        }],
        objects: Vec::new(),
    }
}

pub(crate) fn manifest_at(checkpoint: u64, positions: &[(&str, u64)]) -> Manifest {
    let mut manifest = manifest_of(checkpoint, &[]);
    manifest.operators[0].subtasks[0].positions = positions
        .iter()
        .map(|(s, p)| ((*s).to_owned(), *p))
        .collect();
    manifest
}

pub(crate) fn object(key: &str, length: u64) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        length,
        // Of the zeros that tests write.
        crc32c: crc32c::crc32c(&vec![0; length as usize]),
        compression: "none".into(),
        encryption: "none".into(),
        format: 1,
    }
}

pub(crate) fn manifest_with_objects(checkpoint: u64, keys: &[&str]) -> Manifest {
    let mut manifest = manifest_of(checkpoint, &[]);
    manifest.objects = keys.iter().map(|k| object(k, 1)).collect();
    manifest
}

/// A source (vertex 0) and a keyed operator (vertex 1) of a given parallelism.
pub(crate) fn graph(parallelism: u32, max_parallelism: u32, is_max_set: bool) -> JobGraph {
    let vertex = |id: u32, uid: &str, p: u32| JobVertex {
        id: VertexId(id),
        name: uid.to_owned(),
        parallelism: p,
        max_parallelism,
        is_max_parallelism_set: is_max_set,
        operators: vec![OperatorInfo {
            id: OperatorId::from_uid(uid),
            uid: uid.to_owned(),
            name: uid.to_owned(),
            is_transactional: false,
        }],
    };
    JobGraph {
        job: JOB,
        name: "job".into(),
        registered: "job".into(),
        arguments: BTreeMap::new(),
        build: BuildId("build".into()),
        vertices: vec![vertex(0, "source", 1), vertex(1, "count", parallelism)],
        edges: vec![JobEdge {
            id: EdgeId(0),
            source: VertexId(0),
            target: VertexId(1),
            exchange: Exchange::Hash,
        }],
        settings: settings(),
        start_from: None,
    }
}

pub(crate) fn settings() -> JobSettings {
    JobSettings {
        checkpointing: CheckpointSettings {
            interval: Some(Duration::from_secs(10)),
            timeout: Duration::from_secs(60),
            retention: ExternalizedRetention::RetainOnCancellation,
            directory: "memory://checkpoints".into(),
            savepoint_directory: Some("memory://savepoints".into()),
            ..JobSettings::default().checkpointing
        },
        ..JobSettings::default()
    }
}

pub(crate) fn operator_ack(uid: &str, subtask: u32, keyed: Option<KeyedSegment>) -> OperatorAck {
    OperatorAck {
        id: OperatorId::from_uid(uid),
        states: Vec::new(),
        keyed,
        state: subtask_state(subtask),
    }
}

/// What a fault does to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It certainly fails.
    Fail,
    /// It is applied, and the answer is lost.
    LoseAnswer,
    /// It is lost, and the answer is unknown.
    LoseRequest,
    /// The answer is unknown, and it is applied later.
    LandLater(Duration),
    /// It takes so long.
    Slow(Duration),
}

type Rule = Box<dyn FnMut(&str, &str) -> Option<Fault> + Send>;

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Bytes>,
    /// Every create that had its effect.
    created: Vec<String>,
}

/// A store in memory.
pub(crate) struct MemoryStore {
    uri: String,
    inner: Arc<Mutex<Inner>>,
    rule: Mutex<Option<Rule>>,
}

impl MemoryStore {
    pub(crate) fn new(uri: &str) -> Arc<Self> {
        Arc::new(Self {
            uri: uri.to_owned(),
            inner: Arc::default(),
            rule: Mutex::new(None),
        })
    }

    /// Asked before each operation with its name and key.
    pub(crate) fn faults(&self, rule: impl FnMut(&str, &str) -> Option<Fault> + Send + 'static) {
        *self.rule.lock().unwrap() = Some(Box::new(rule));
    }

    pub(crate) fn heal(&self) {
        *self.rule.lock().unwrap() = None;
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.inner.lock().unwrap().objects.keys().cloned().collect()
    }

    pub(crate) fn created(&self) -> Vec<String> {
        self.inner.lock().unwrap().created.clone()
    }

    pub(crate) fn insert(&self, key: &str, bytes: impl Into<Bytes>) {
        let mut inner = self.inner.lock().unwrap();
        inner.objects.insert(key.to_owned(), bytes.into());
    }

    pub(crate) fn remove(&self, key: &str) {
        self.inner.lock().unwrap().objects.remove(key);
    }

    pub(crate) fn read(&self, key: &str) -> Option<Bytes> {
        self.inner.lock().unwrap().objects.get(key).cloned()
    }

    pub(crate) fn record(&self, n: u64) -> Option<Record> {
        let bytes = self.read(&super::record_key(CheckpointId(n)))?;
        Some(super::decode_record(&bytes).unwrap())
    }

    async fn faulty<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        apply: impl FnOnce(&mut Inner) -> T + Send + 'static,
    ) -> StoreResult<T> {
        tokio::task::yield_now().await;
        let fault = match self.rule.lock().unwrap().as_mut() {
            Some(rule) => rule(operation, key),
            None => None,
        };
        let uri = format!("{}/{key}", self.uri);
        let unknown = Err(StoreError::Unknown {
            operation,
            uri: uri.clone(),
            message: "injected".into(),
        });
        match fault {
            None => Ok(apply(&mut self.inner.lock().unwrap())),
            Some(Fault::Fail) => Err(StoreError::Failed {
                operation,
                uri,
                message: "injected".into(),
            }),
            Some(Fault::LoseAnswer) => {
                apply(&mut self.inner.lock().unwrap());
                unknown
            }
            Some(Fault::LoseRequest) => unknown,
            Some(Fault::LandLater(delay)) => {
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    apply(&mut inner.lock().unwrap());
                });
                unknown
            }
            Some(Fault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(apply(&mut self.inner.lock().unwrap()))
            }
        }
    }
}

impl Store for MemoryStore {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>> {
        let name = key.to_owned();
        Box::pin(self.faulty("create", key, move |inner| {
            if inner.objects.contains_key(&name) {
                return Created::Exists;
            }
            inner.created.push(name.clone());
            inner.objects.insert(name, bytes);
            Created::New
        }))
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>> {
        let name = key.to_owned();
        Box::pin(self.faulty("put", key, move |inner| {
            inner.objects.insert(name, bytes);
        }))
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, StoreResult<Bytes>> {
        Box::pin(async move {
            let name = key.to_owned();
            let found = self
                .faulty("get", key, move |inner| {
                    let bytes = inner.objects.get(&name)?;
                    Some(match range {
                        Some(range) => bytes.slice(range.start as usize..range.end as usize),
                        None => bytes.clone(),
                    })
                })
                .await?;
            found.ok_or_else(|| StoreError::NotFound {
                uri: format!("{}/{key}", self.uri),
            })
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>> {
        let prefix_owned = prefix.to_owned();
        Box::pin(self.faulty("list", prefix, move |inner| {
            inner
                .objects
                .iter()
                .filter(|(k, _)| k.starts_with(&prefix_owned))
                .map(|(k, v)| ObjectMeta {
                    key: k.clone(),
                    size: v.len() as u64,
                })
                .collect()
        }))
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        let name = key.to_owned();
        Box::pin(self.faulty("delete", key, move |inner| {
            inner.objects.remove(&name);
        }))
    }
}

/// One store per URI.
#[derive(Default)]
pub(crate) struct MemoryStores(Mutex<BTreeMap<String, Arc<MemoryStore>>>);

impl MemoryStores {
    pub(crate) fn at(&self, uri: &str) -> Arc<MemoryStore> {
        let mut stores = self.0.lock().unwrap();
        Arc::clone(
            stores
                .entry(uri.to_owned())
                .or_insert_with(|| MemoryStore::new(uri)),
        )
    }
}

impl StoreFactory for MemoryStores {
    fn open(&self, uri: &str) -> StoreResult<Arc<dyn Store>> {
        if !uri.contains("://") {
            return Err(StoreError::Invalid {
                uri: uri.to_owned(),
                message: "has no scheme".to_owned(),
            });
        }
        Ok(self.at(uri))
    }
}
