//! Sinks into memory, for tests and for jobs run inside one process.
//!
//! Invariant: a handle outlives the attempts that write to it. [`CollectSink`] is **not** exactly-once: it shows what passed,
//! replays included. [`CommittedCollect`] shows what a transactional sink would have made visible: each record exactly once.
//!
//! Neither leaves the process, nor survives it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_actors::model::{CheckpointId, ExecutionAttemptId};
use serde::{Deserialize, Serialize};

use super::{Committable, Sink, SinkWriter, SubtaskContext};
use crate::batch::{Batch, Record};
use crate::error::{FunctionError, FunctionResult};

/// How many records a collecting sink holds unless told otherwise.
pub const COLLECT_RECORDS_MAX: usize = 10_000_000;

/// A collecting sink cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// See [`COLLECT_RECORDS_MAX`].
    #[error(
        "sink `{uid}` collects at most {max} records in memory; raise the limit or write to files"
    )]
    Full {
        /// The operator.
        uid: String,
        /// The bound.
        max: usize,
    },
    /// Records could not be stored in the checkpoint.
    #[error("sink `{uid}`: a record cannot be serialised")]
    Encode {
        /// The operator.
        uid: String,
        /// Why.
        source: rmp_serde::encode::Error,
    },
    /// What the checkpoint holds is not what such a sink prepared.
    #[error("sink `{uid}`: what checkpoint {checkpoint} holds for it cannot be decoded")]
    Decode {
        /// The operator.
        uid: String,
        /// Which.
        checkpoint: CheckpointId,
        /// Why.
        source: rmp_serde::decode::Error,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects every record as it comes. Clones share the records.
#[derive(Debug, Clone)]
pub struct CollectSink<T> {
    records: Arc<Mutex<Vec<T>>>,
    max: usize,
}

impl<T> CollectSink<T> {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::collecting_into(Arc::default())
    }

    /// Collects into a vector of the caller's.
    #[must_use]
    pub fn collecting_into(records: Arc<Mutex<Vec<T>>>) -> Self {
        Self {
            records,
            max: COLLECT_RECORDS_MAX,
        }
    }

    /// Holds at most this many records; one more fails the job.
    #[must_use]
    pub fn limit(mut self, max: usize) -> Self {
        self.max = max;
        self
    }

    /// The shared records.
    #[must_use]
    pub fn handle(&self) -> Arc<Mutex<Vec<T>>> {
        Arc::clone(&self.records)
    }
}

impl<T> Default for CollectSink<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Record> Sink<T> for CollectSink<T> {
    fn writer(&self, context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        Ok(Box::new(CollectWriter {
            uid: context.uid.clone(),
            sink: self.clone(),
        }))
    }
}

struct CollectWriter<T> {
    uid: String,
    sink: CollectSink<T>,
}

impl<T: Record> SinkWriter<T> for CollectWriter<T> {
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult {
        let mut records = lock(&self.sink.records);
        if records.len() + batch.len() > self.sink.max {
            return Err(FunctionError::unrecoverable(CollectError::Full {
                uid: self.uid.clone(),
                max: self.sink.max,
            }));
        }
        records.append(&mut batch.values);
        batch.clear();
        Ok(())
    }
}

/// Who prepared the records, and when: one commit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Transaction {
    uid: String,
    attempt: ExecutionAttemptId,
    checkpoint: CheckpointId,
}

#[derive(Serialize, Deserialize)]
struct Prepared<T> {
    transaction: Transaction,
    records: Vec<T>,
}

#[derive(Debug)]
struct Ledger<T> {
    records: Vec<T>,
    /// At most as many as there are records, since an empty transaction is never prepared.
    committed: BTreeSet<Transaction>,
}

/// Collects records, and shows them once the checkpoint that they belong to is complete. Clones share the records. What is
/// prepared travels in the checkpoint itself.
#[derive(Debug, Clone)]
pub struct CommittedCollect<T> {
    ledger: Arc<Mutex<Ledger<T>>>,
    max: usize,
}

impl<T> CommittedCollect<T> {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ledger: Arc::new(Mutex::new(Ledger {
                records: Vec::new(),
                committed: BTreeSet::new(),
            })),
            max: COLLECT_RECORDS_MAX,
        }
    }

    /// Shows at most this many records, and holds at most as many per subtask and checkpoint; one more fails the job.
    #[must_use]
    pub fn limit(mut self, max: usize) -> Self {
        self.max = max;
        self
    }

    /// Number of records committed so far.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.ledger).records.len()
    }

    /// Whether nothing is committed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone> CommittedCollect<T> {
    /// The records committed so far: in order within a subtask.
    #[must_use]
    pub fn committed(&self) -> Vec<T> {
        lock(&self.ledger).records.clone()
    }
}

impl<T> Default for CommittedCollect<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Record> Sink<T> for CommittedCollect<T> {
    fn is_transactional(&self) -> bool {
        true
    }

    fn writer(&self, context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        Ok(Box::new(CommittedWriter {
            uid: context.uid.clone(),
            attempt: context.attempt,
            sink: self.clone(),
            records: Vec::new(),
        }))
    }
}

struct CommittedWriter<T> {
    uid: String,
    attempt: ExecutionAttemptId,
    sink: CommittedCollect<T>,
    /// Since the last barrier.
    records: Vec<T>,
}

impl<T> CommittedWriter<T> {
    fn full(&self) -> FunctionError {
        FunctionError::unrecoverable(CollectError::Full {
            uid: self.uid.clone(),
            max: self.sink.max,
        })
    }
}

impl<T: Record> SinkWriter<T> for CommittedWriter<T> {
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult {
        if self.records.len() + batch.len() > self.sink.max {
            return Err(self.full());
        }
        self.records.append(&mut batch.values);
        batch.clear();
        Ok(())
    }

    fn prepare_commit(&mut self, checkpoint: CheckpointId) -> FunctionResult<Option<Vec<u8>>> {
        if self.records.is_empty() {
            return Ok(None);
        }
        let prepared = Prepared {
            transaction: Transaction {
                uid: self.uid.clone(),
                attempt: self.attempt,
                checkpoint,
            },
            records: std::mem::take(&mut self.records),
        };
        let bytes = rmp_serde::to_vec_named(&prepared).map_err(|source| CollectError::Encode {
            uid: self.uid.clone(),
            source,
        })?;
        Ok(Some(bytes))
    }

    fn commit(&mut self, committable: &Committable) -> FunctionResult {
        let prepared: Prepared<T> =
            rmp_serde::from_slice(&committable.bytes).map_err(|source| {
                FunctionError::unrecoverable(CollectError::Decode {
                    uid: self.uid.clone(),
                    checkpoint: committable.checkpoint,
                    source,
                })
            })?;
        let mut ledger = lock(&self.sink.ledger);
        if ledger.committed.contains(&prepared.transaction) {
            return Ok(());
        }
        if ledger.records.len() + prepared.records.len() > self.sink.max {
            return Err(self.full());
        }
        ledger.records.extend(prepared.records);
        ledger.committed.insert(prepared.transaction);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::context;
    use super::*;

    fn batch(records: &[u32]) -> Batch<u32> {
        let mut batch = Batch::default();
        for record in records {
            batch.push(*record, Some(0));
        }
        batch
    }

    fn committable(checkpoint: u64, bytes: Option<Vec<u8>>) -> Committable {
        Committable {
            checkpoint: CheckpointId(checkpoint),
            bytes: bytes.unwrap(),
        }
    }

    #[test]
    fn collected_records_are_seen_at_once_through_the_handle() {
        let sink = CollectSink::new();
        let records = sink.handle();
        let mut input = batch(&[1, 2]);
        let mut writer = sink.writer(&context(0, 1, 1, 1)).unwrap();
        writer.write(&mut input).unwrap();
        assert!(input.is_empty() && !input.has_timestamps());
        assert_eq!(*records.lock().unwrap(), [1, 2]);
    }

    #[test]
    fn collecting_is_bounded() {
        let sink = CollectSink::new().limit(3);
        let mut writer = sink.writer(&context(0, 1, 1, 1)).unwrap();
        writer.write(&mut batch(&[1, 2, 3])).unwrap();
        let error = writer.write(&mut batch(&[4])).unwrap_err();
        assert!(error.is_unrecoverable() && error.to_string().contains("at most 3 records"));

        let sink = CommittedCollect::new().limit(3);
        let mut writer = sink.writer(&context(0, 1, 1, 1)).unwrap();
        assert!(writer.write(&mut batch(&[1, 2, 3, 4])).is_err());
        writer.write(&mut batch(&[1, 2])).unwrap();
        let first = committable(1, writer.prepare_commit(CheckpointId(1)).unwrap());
        writer.write(&mut batch(&[3, 4])).unwrap();
        let second = committable(2, writer.prepare_commit(CheckpointId(2)).unwrap());
        writer.commit(&first).unwrap();
        assert!(writer.commit(&second).is_err());
        assert_eq!(sink.committed(), [1, 2]);
    }

    /// The attempt fails after a prepared and an unprepared part; its successor, at another parallelism, commits the former
    /// (twice) and replays the latter.
    #[test]
    fn committed_records_appear_exactly_once_over_a_failure() {
        let sink = CommittedCollect::new();
        let mut writer = sink.writer(&context(0, 2, 1, 1)).unwrap();
        assert_eq!(writer.prepare_commit(CheckpointId(1)).unwrap(), None);
        writer.write(&mut batch(&[1, 2])).unwrap();
        let prepared = committable(2, writer.prepare_commit(CheckpointId(2)).unwrap());
        writer.write(&mut batch(&[3])).unwrap();
        writer.close().unwrap();
        drop(writer);
        assert!(sink.is_empty());

        let mut writer = sink.writer(&context(0, 1, 1, 2)).unwrap();
        writer.recover(std::slice::from_ref(&prepared)).unwrap();
        writer.commit(&prepared).unwrap();
        writer.commit(&prepared).unwrap();
        assert_eq!(sink.committed(), [1, 2]);
        writer.write(&mut batch(&[3])).unwrap();
        let next = committable(3, writer.prepare_commit(CheckpointId(3)).unwrap());
        writer.commit(&next).unwrap();
        assert_eq!(sink.committed(), [1, 2, 3]);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let sink = CommittedCollect::<u32>::new();
        let mut writer = sink.writer(&context(0, 1, 1, 1)).unwrap();
        let error = writer
            .commit(&committable(1, Some(vec![1, 2, 3])))
            .unwrap_err();
        assert!(error.is_unrecoverable());
    }
}
