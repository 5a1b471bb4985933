//! The actor that takes one job's checkpoints and savepoints, writes their records and chooses what to restore.
//! Child of the JobMaster. When which is taken follows Flink's `CheckpointCoordinator`.
//!
//! Invariant: nobody is told that a checkpoint is complete before its record is created and the epoch was read again after it.
//!
//! Every snapshot takes the next number of the record sequence, savepoints too, so that barriers of a job strictly increase. A plain
//! savepoint's number is spent at its trigger by an `Aborted` record that names the savepoint's directory: the sequence does not wait for
//! it, and it is neither base nor rung. A snapshot that commits and ends the job (stop with savepoint, with or without drain) has
//! a `Completed` record like a checkpoint, because sinks have committed by it and a later recovery must not go below it; a note beside
//! the record says in which savepoint directory its objects lie.

mod actor;
mod state;
#[cfg(test)]
mod tests;

pub use actor::{CheckpointCoordinator, CoordinatorConfig, CoordinatorHandle};

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::fault::ActorFault;
use crate::model::message::{CheckpointAck, CheckpointPlan};
use crate::model::{
    CheckpointId, CheckpointStatus, ExecutionAttemptId, FailureKind, InstanceId, JobState,
    LeaderEpoch, Manifest, SnapshotKind,
};

/// To the coordinator.
pub enum CoordinatorMessage {
    /// Every task of an attempt runs: periodic checkpoints may begin, the first one soon.
    /// The attempts by TaskManager are the participants of every checkpoint until `Suspend`.
    TasksRunning(Vec<(InstanceId, Vec<ExecutionAttemptId>)>),
    /// Tasks are being stopped or have failed: pending checkpoints are aborted, nothing is triggered.
    /// A checkpoint whose record may exist is settled first.
    Suspend {
        /// For the history.
        reason: String,
    },
    /// A TaskManager's part.
    Ack {
        /// From whom.
        instance: InstanceId,
        /// What.
        ack: Box<CheckpointAck>,
    },
    /// A TaskManager cannot deliver.
    Declined {
        /// Which.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
    /// The job is to be drained: begin no periodic checkpoint any more. Answered by [`CoordinatorEvent::Held`] behind the last trigger, so
    /// that no snapshot but the final one is of sources that have ended with input left: a job that went on from it would be at the end of
    /// event time.
    Hold,
    /// Every task waits for the final checkpoint: take it now.
    AllAwaitingFinal,
    /// A savepoint (kind `Savepoint` or `StopWithSavepoint`), or a `Final` one into a savepoint directory for stop with drain.
    Savepoint {
        /// Why.
        kind: SnapshotKind,
        /// URI under which the savepoint's directory is made; `None`: the configured one.
        directory: Option<String>,
        /// Its directory's URI once it is complete and usable.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Which snapshot to restore. Asked after `Suspend`, and once at the start. Verifies manifests (magic, checksum) and steps
    /// down the ladder past `damaged` ones (reported by tasks whose objects did not verify).
    ChooseRestore {
        /// Checkpoints that a task found damaged, with the reason; they are quarantined.
        damaged: Vec<(CheckpointId, String)>,
        /// The choice.
        reply: oneshot::Sender<Result<RestoreChoice, FailureKind>>,
    },
    /// No task is left: which checkpoint is the last that is complete? Answered when no record is being written any more.
    LastCompleted(oneshot::Sender<Option<CheckpointId>>),
    /// The job has ended: write the `Terminal` record, apply retention, then answer and end.
    Terminate {
        /// How.
        state: JobState,
        /// For `FAILED`.
        message: Option<String>,
        /// When all of it is durable.
        reply: oneshot::Sender<()>,
    },
    /// The history, newest last.
    Status(oneshot::Sender<Vec<CheckpointStatus>>),
    /// Injected.
    Fault(ActorFault),
}

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreChoice {
    /// The snapshot, or `None` to begin without state.
    pub snapshot: Option<RestoredSnapshot>,
    /// What was stepped over, in words.
    pub skipped: Vec<String>,
}

/// See [`RestoreChoice`].
#[derive(Debug, Clone)]
pub struct RestoredSnapshot {
    /// Its content.
    pub manifest: Arc<Manifest>,
    /// URI that its object keys are relative to.
    pub directory: String,
    /// Whether it is a checkpoint of this job's own sequence (and so may be undone to in place).
    pub is_own_checkpoint: bool,
}

/// From the coordinator; the JobMaster carries it out.
#[derive(Debug, Clone)]
pub enum CoordinatorEvent {
    /// Send each plan to its TaskManager.
    Trigger(Vec<(InstanceId, CheckpointPlan)>),
    /// Tell all TaskManagers of the job. For `Final` and `StopWithSavepoint`, tasks then end by themselves.
    Completed {
        /// Which.
        checkpoint: CheckpointId,
        /// Why it was taken.
        kind: SnapshotKind,
    },
    /// Tell all TaskManagers of the job.
    Aborted {
        /// Which.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
    /// The job fails over.
    Failure(FailureKind),
    /// See [`CoordinatorMessage::Hold`].
    Held,
    /// A higher epoch exists: the JobMaster stops without touching anything.
    Fenced {
        /// The epoch met.
        epoch: LeaderEpoch,
    },
    /// For `JobStatus::notices`.
    Notice(String),
}

/// Receives events; only hands them on.
pub type CoordinatorEvents = Arc<dyn Fn(CoordinatorEvent) + Send + Sync>;
