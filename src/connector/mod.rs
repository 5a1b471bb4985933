//! Sources and sinks: the traits, and those that come with Perennial.

pub mod blackhole;
pub mod collect;
pub mod encoder;
pub mod file_sink;
pub mod file_source;
pub mod generator;
pub mod print;
#[cfg(test)]
mod test_support;

pub use blackhole::BlackholeSink;
pub use collect::{CollectSink, CommittedCollect};
pub use encoder::{DebugLines, DisplayLines, JsonLines};
pub use file_sink::{FileSink, FileSinkError, read_committed};
pub use file_source::{FileSourceError, JsonSource, LinesSource};
pub use generator::{GeneratorContext, GeneratorSource, mix};
pub use print::PrintSink;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointId, ExecutionAttemptId, OperatorId};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Timestamp};
use crate::error::FunctionResult;

/// A part of a source's input, with how far it has been read. Redistributed on rescale; stored in every checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSplit {
    /// Unique within the source, e.g. a path or `lane-3`.
    pub id: String,
    /// The next record to read: a sequence number or byte offset, as the source defines.
    pub position: u64,
    /// The split's watermark.
    pub watermark: Option<Timestamp>,
    /// Anything else that the source needs to continue.
    pub extra: Vec<u8>,
}

/// Where a source or sink runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubtaskContext {
    /// Its attempt.
    pub attempt: ExecutionAttemptId,
    /// The operator.
    pub operator: OperatorId,
    /// The operator's uid.
    pub uid: String,
    /// The job's name.
    pub job_name: String,
    /// Number of subtasks.
    pub parallelism: u32,
}

/// A replayable input. Its description travels in the job function's code; readers are made where subtasks run.
pub trait Source: Send + Sync + 'static {
    /// The record type.
    type Item: crate::batch::Record;
    /// All splits at their beginnings, asked for when the job starts without state. Every subtask asks and takes those whose
    /// place in the list is its own index modulo the parallelism: the answer must be the same everywhere.
    fn splits(&self, parallelism: u32) -> FunctionResult<Vec<SourceSplit>>;
    /// A reader of the given splits, each from its position.
    fn reader(
        &self,
        context: &SubtaskContext,
        splits: Vec<SourceSplit>,
    ) -> FunctionResult<Box<dyn SourceReader<Self::Item>>>;
}

/// What a reader did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceStatus {
    /// Ask again at once.
    More,
    /// Nothing now; ask again at this time, or when something wakes the task.
    Waiting {
        /// When.
        until: Option<Instant>,
    },
    /// All splits are at their end.
    Finished,
}

/// Reads splits. Lives on the task thread.
pub trait SourceReader<T>: Send {
    /// Appends at most about `max` records to `out`. Never waits. `now` is the monotonic clock.
    fn poll(
        &mut self,
        out: &mut Batch<T>,
        max: usize,
        now: Instant,
    ) -> FunctionResult<SourceStatus>;
    /// The splits as of the last record that was appended.
    fn snapshot(&self) -> Vec<SourceSplit>;
    /// For error messages: split and position of record `index` of those that the last [`poll`](Self::poll) which appended any has
    /// appended. With their number as `index` after a poll that failed: of the one that it was about to append.
    fn position(&self, index: usize) -> Option<(String, u64)>;
}

/// Output to the outside. Like a source, it is a description.
pub trait Sink<T>: Send + Sync + 'static {
    /// Whether output becomes visible only by commits (two-phase commit).
    fn is_transactional(&self) -> bool {
        false
    }
    /// A writer for one subtask.
    fn writer(&self, context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>>;
}

/// Output prepared at a checkpoint, opaque to the runtime. Stored in the checkpoint; committed once it is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committable {
    /// The checkpoint at whose barrier it was prepared.
    pub checkpoint: CheckpointId,
    /// The sink's own.
    pub bytes: Vec<u8>,
}

/// Writes on the task thread.
///
/// Life of a transactional writer: (`recover`) `write`* `prepare_commit` … `commit` …, and after a failure a new writer: `recover` first.
pub trait SinkWriter<T>: Send {
    /// Takes all records of the batch. An error may say at which one it failed: [`FunctionError::at_record`](crate::error::FunctionError::at_record).
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult;
    /// Gives everything written so far to the outside (a sink without commits), e.g. before a snapshot or while idle.
    fn flush(&mut self) -> FunctionResult {
        Ok(())
    }
    /// At a barrier: makes everything since the last one durable but invisible.
    fn prepare_commit(&mut self, _checkpoint: CheckpointId) -> FunctionResult<Option<Vec<u8>>> {
        Ok(None)
    }
    /// At the barrier of a plain savepoint: as [`prepare_commit`](Self::prepare_commit), but what is prepared must outlast recoveries
    /// too, and the end of the job: somebody may start from the savepoint at any time.
    fn prepare_savepoint(&mut self, checkpoint: CheckpointId) -> FunctionResult<Option<Vec<u8>>> {
        self.prepare_commit(checkpoint)
    }
    /// Makes it visible. Called again after a failure, also for what was committed before: idempotent.
    fn commit(&mut self, _committable: &Committable) -> FunctionResult {
        Ok(())
    }
    /// First call after a restore, with **all** that the checkpoint says this operator's subtasks prepared: [`commit`](Self::commit)
    /// is called for this subtask's share only, but what others will commit must not be removed either. Everything else that
    /// former attempts of this operator prepared or began is removed, except for savepoints. With an empty list and no checkpoint on a fresh start.
    fn recover(&mut self, _committed: &[Committable]) -> FunctionResult {
        Ok(())
    }
    /// End of the writer's life, after a failure too.
    fn close(&mut self) -> FunctionResult {
        Ok(())
    }
}
