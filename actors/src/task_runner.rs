//! The border to the data plane: `actors/` defines these traits, `src/` implements them, tests plug in fakes.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::fault::ArmedFault;
use crate::model::message::{CheckpointAck, CheckpointPlan, PreparedOutput, TaskOutcome};
use crate::model::{
    BuildId, CheckpointBarrier, CheckpointId, ExecutionAttemptId, JobGraph, JobId, RestoredHow,
    TaskCounters, TaskDeployment,
};

/// What a running task tells its guardian. Sent from the task thread; the callback only hands it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// State and channels are there.
    Restored {
        /// How state came back.
        how: RestoredHow,
        /// Time it took, in µs.
        micros: u64,
    },
    /// The loop runs.
    Running,
    /// The first record was processed or emitted.
    FirstRecord,
    /// All input is processed; only the final checkpoint is missing.
    AwaitingFinal,
}

/// Receives events of one task.
pub type TaskEvents = Arc<dyn Fn(TaskEvent) + Send + Sync>;

/// Orders to a running task. Taken between batches; none is lost, none waits for a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskControl {
    /// Sources snapshot now; others remember that it is under way (a task whose inputs have all ended snapshots at once).
    Trigger(CheckpointBarrier),
    /// Confirm state, commit output.
    NotifyComplete(CheckpointId),
    /// Give the snapshot up.
    NotifyAborted(CheckpointId),
    /// Sources act as if their input had ended.
    Drain,
    /// End; keyed state is kept for a successor.
    Cancel,
    /// User code breaks at the next record.
    Fault(ArmedFault),
}

/// A task that was started.
pub trait RunningTask: Send + 'static {
    /// Never blocks.
    fn control(&self, control: TaskControl);
    /// Never blocks.
    fn counters(&self) -> TaskCounters;
}

/// A started task and its end.
pub struct StartedTask {
    /// To talk to it.
    pub task: Box<dyn RunningTask>,
    /// Resolves when the task's thread is joined, its channels are closed and its state is handed over: nothing of it is left.
    pub end: BoxFuture<'static, TaskOutcome>,
}

/// The outcome of a TaskManager's part of a checkpoint.
pub type CheckpointReply = Box<dyn FnOnce(Result<CheckpointAck, DeclinedCheckpoint>) + Send>;

/// Why a TaskManager cannot deliver its part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclinedCheckpoint {
    /// Who declined, or `None` for an upload.
    pub attempt: Option<ExecutionAttemptId>,
    /// Why.
    pub reason: String,
}

/// Runs tasks. One per TaskManager. No method blocks.
pub trait TaskRunner: Send + Sync + 'static {
    /// The fingerprint of the user code that is linked in.
    fn build(&self) -> BuildId;
    /// Starts a task. Every failure, also one of starting, comes through [`StartedTask::end`].
    fn start(
        &self,
        graph: Arc<JobGraph>,
        deployment: TaskDeployment,
        events: TaskEvents,
    ) -> StartedTask;
    /// Prepares to collect the snapshots of the plan's attempts; `reply` is called once, when all is durable or the part has failed.
    /// Called before the attempts are triggered.
    fn plan_checkpoint(&self, plan: CheckpointPlan, reply: CheckpointReply);
    /// Stops collecting; uploaded objects of the checkpoint are deleted. `reply` is dropped.
    fn abort_checkpoint(&self, job: JobId, checkpoint: CheckpointId);
    /// Settles output that was prepared and not committed, drops state kept for successors and everything else of a job. `done` is
    /// called once, when that is done or cannot be done. Called when no task of the job is left.
    fn release_job(&self, job: JobId, output: PreparedOutput, done: Box<dyn FnOnce() + Send>);
}

/// The data connections of a TaskManager.
pub trait DataPlane: Send + Sync + 'static {
    /// `host:port` that peers connect to.
    fn address(&self) -> String;
    /// Resolves when the listener and all connections are closed.
    fn close(&self) -> BoxFuture<'static, ()>;
}
