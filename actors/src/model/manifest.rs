//! What a checkpoint or savepoint consists of, as data.
//!
//! Invariant: a manifest names every byte that a restore needs, with length and checksum, and nothing else.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{CheckpointId, JobId, KeyGroup, LeaderEpoch, OperatorId, SubtaskIndex};

/// Why a snapshot is taken, and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SnapshotKind {
    /// Automatic, for recovery. Has a record; sinks commit on its completion.
    Checkpoint,
    /// The checkpoint after the end of all input: sinks commit, tasks end (in Flink: FLIP-147).
    Final,
    /// Asked for by a person; full, self-contained; never a base, never an undo target. Commits nothing, as in Flink.
    Savepoint,
    /// A savepoint after which sources emit nothing more; on completion sinks commit and tasks end.
    StopWithSavepoint,
}

impl SnapshotKind {
    /// Whether the result is a savepoint directory.
    #[must_use]
    pub fn is_savepoint(self) -> bool {
        matches!(self, Self::Savepoint | Self::StopWithSavepoint)
    }
}

/// The barrier that flows with the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointBarrier {
    /// Which snapshot it separates.
    pub checkpoint: CheckpointId,
    /// The completed checkpoint over which keyed state may be written as a delta; `None` asks for all of it.
    pub base: Option<CheckpointId>,
    /// Why.
    pub kind: SnapshotKind,
    /// Milliseconds since the epoch at the trigger, by the JobManager's clock; for durations shown to people only.
    pub timestamp_ms: u64,
}

/// An object beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Relative to the job's checkpoint directory, or to the savepoint's own directory.
    pub key: String,
    /// In bytes, as stored.
    pub length: u64,
    /// Of all bytes, as stored.
    pub crc32c: u32,
    /// `none` today; the field lets compression come without a new format.
    pub compression: String,
    /// `none` today.
    pub encryption: String,
    /// Of the content; 1 today.
    pub format: u32,
}

/// Where a run of state bytes lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataRef {
    /// In the manifest itself.
    Inline(Bytes),
    /// In an object.
    Object {
        /// Index into [`Manifest::objects`] (or [`CheckpointAck::objects`](super::message::CheckpointAck) while under way).
        object: u32,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

impl DataRef {
    /// In bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Object { length, .. } => *length,
        }
    }
}

/// Whether a segment holds all entries of its key groups or only what changed since the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SegmentKind {
    /// Everything: what came before it in the chain does not matter for these groups.
    Full,
    /// Changes and deletions since the base.
    Delta,
}

/// The part of a segment that belongs to one key group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSlice {
    /// Which.
    pub group: KeyGroup,
    /// First byte, relative to the segment's data.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Of these bytes; checked before they are decoded.
    pub crc32c: u32,
}

/// Keyed state of one operator as captured by one subtask at one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedSegment {
    /// When it was captured.
    pub checkpoint: CheckpointId,
    /// All or changes.
    pub kind: SegmentKind,
    /// The bytes of all slices, back to back.
    pub data: DataRef,
    /// Ascending by group; a `Full` segment lists every group of the subtask's range, even the empty ones.
    pub groups: Vec<GroupSlice>,
}

/// What a state is, so that a restore can refuse what does not fit before a task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMeta {
    /// Its number within the operator's keyed bytes.
    pub index: u16,
    /// Unique within the operator.
    pub name: String,
    /// `value`, `list`, `map`, `reducing`, `aggregating`, `event-time-timers`, `processing-time-timers`.
    pub kind: String,
    /// E.g. `rmp-named`.
    pub serializer: String,
    /// Of the serializer.
    pub version: u32,
    /// Rust's name of the value type, for messages; not compared.
    pub type_name: String,
    /// Rust's name of the key type: a changed one is refused.
    pub key_type: String,
}

/// What one subtask of an operator stores besides keyed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubtaskState {
    /// Which.
    pub subtask: SubtaskIndex,
    /// The operator's event-time watermark, in ms.
    pub watermark: Option<i64>,
    /// Whether end of input had been handled before the snapshot; a restored task then does not handle it again.
    pub is_finished: bool,
    /// Operator state (lists of opaque items) in the data plane's encoding; `None` when there is none.
    pub operator_state: Option<DataRef>,
    /// Of the bytes that `operator_state` names.
    pub operator_state_crc32c: u32,
    /// Source positions for people and for the checker: `split` to position.
    pub positions: Vec<(String, u64)>,
}

/// All state of one operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorState {
    /// Who it belongs to.
    pub id: OperatorId,
    /// For people and error messages.
    pub uid: String,
    /// At the time of the snapshot.
    pub parallelism: u32,
    /// Must be equal at restore.
    pub max_parallelism: u32,
    /// Its keyed states.
    pub states: Vec<StateMeta>,
    /// In chain order: of the segments that hold a key group, the last `Full` one and the deltas after it count.
    pub keyed: Vec<KeyedSegment>,
    /// One per subtask.
    pub subtasks: Vec<SubtaskState>,
    /// State of the operator's coordinator at the JobManager; room for later.
    pub coordinator: Option<Bytes>,
}

/// A complete snapshot of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Whose.
    pub job: JobId,
    /// For people.
    pub job_name: String,
    /// Its number. A savepoint has the number of the checkpoint sequence at its trigger, for people only.
    pub checkpoint: CheckpointId,
    /// Written by which leader.
    pub epoch: LeaderEpoch,
    /// Why.
    pub kind: SnapshotKind,
    /// When triggered, for people only.
    pub timestamp_ms: u64,
    /// From trigger to completion, in ms.
    pub duration_ms: u64,
    /// Every operator of the job.
    pub operators: Vec<OperatorState>,
    /// Every object that `operators` refer to.
    pub objects: Vec<ObjectInfo>,
}

/// What a record says about its number. The sequence of records has no gap: see `checkpoint/protocol.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordOutcome {
    /// The checkpoint exists.
    Completed(Box<Manifest>),
    /// The attempt failed; the number is spent.
    Aborted {
        /// Why, for people.
        reason: String,
    },
    /// A new leader has begun here.
    Claimed,
    /// The job has ended and must not run again.
    Terminal {
        /// `FINISHED`, `CANCELED` or `FAILED`.
        state: super::JobState,
        /// For `FAILED`: the cause.
        message: Option<String>,
    },
}

/// The content of `chk-<n>/_metadata` (and of a savepoint's `_metadata`, always `Completed`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub checkpoint: CheckpointId,
    /// The leader that created it.
    pub epoch: LeaderEpoch,
    /// Random; tells our own write from a rival's when a create's answer was lost.
    pub token: u128,
    /// What.
    pub outcome: RecordOutcome,
}
