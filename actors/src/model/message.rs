//! Everything that crosses a control connection. Each message from a leader carries its epoch in the envelope, each message
//! about a task its attempt; a stale one is answered with [`RpcError::Fenced`], never with silence.

use serde::{Deserialize, Serialize};

use super::{
    BuildId, CheckpointBarrier, CheckpointId, CheckpointStatus, ExecutionAttemptId, JobGraph,
    JobId, JobStatus, JobSummary, KeyedSegment, LeaderEpoch, ObjectInfo, OperatorId, ResourceId,
    RestoredHow, StateMeta, SubtaskState, TaskCounters, TaskDeployment, TaskFailure,
    TaskManagerLocation, TaskManagerStatus,
};
use crate::fault::{Injection, TaskManagerInjection};

/// Why a request has no answer of its own kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RpcError {
    /// The caller acts for a leader that is no longer one.
    #[error("fenced: epoch {ours} meets epoch {current}")]
    Fenced {
        /// The epoch that was used.
        ours: LeaderEpoch,
        /// The epoch in force.
        current: LeaderEpoch,
    },
    /// No answer in time; whether the request had an effect is unknown.
    #[error("no answer from {peer} within {millis} ms")]
    Timeout {
        /// Who was asked.
        peer: String,
        /// The deadline.
        millis: u64,
    },
    /// The connection broke, or could not be made.
    #[error("connection to {peer} {message}")]
    Closed {
        /// Who was asked.
        peer: String,
        /// `refused`, `reset`, `closed`, with the socket's error.
        message: String,
    },
    /// The other side understood and refused.
    #[error("{0}")]
    Refused(String),
    /// The other side speaks another version of the protocol, or another cluster's secret.
    #[error("handshake with {peer} failed: {message}")]
    Handshake {
        /// Who was asked.
        peer: String,
        /// Both versions, or the reason.
        message: String,
    },
    /// No such job.
    #[error("job {0} not found: `perennial list` shows the jobs of this cluster")]
    JobNotFound(JobId),
}

/// A TaskManager introduces itself. Sent first on every control connection of a TaskManager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Name, incarnation, data address.
    pub location: TaskManagerLocation,
    /// Slots in total.
    pub slots: u32,
    /// Whose user code it carries.
    pub build: BuildId,
    /// What still runs here: attempts of this and former leaders.
    pub running: Vec<ExecutionAttemptId>,
    /// Whether it obeys [`ToTaskManager::InjectFault`] (`chaos.enabled`).
    pub is_chaos_enabled: bool,
}

/// JobManager to TaskManager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToTaskManager {
    /// The registration stands. `stop` lists attempts that must end (a former leader's).
    Registered {
        /// Attempts to end.
        stop: Vec<ExecutionAttemptId>,
        /// Key of a probe object that the JobManager wrote in the checkpoint directory, to be read back: a directory that is
        /// not shared is found here and not at the first recovery.
        probe: Option<StoreProbe>,
    },
    /// Start these tasks.
    Deploy {
        /// Their job.
        graph: Box<JobGraph>,
        /// Which.
        tasks: Vec<TaskDeployment>,
    },
    /// End these tasks, keeping keyed state for their successors; answered by `TaskEnded` for each.
    Stop {
        /// Which.
        attempts: Vec<ExecutionAttemptId>,
    },
    /// Begin a checkpoint.
    TriggerCheckpoint(CheckpointPlan),
    /// The checkpoint has its record: confirm state, commit sinks.
    NotifyCheckpointComplete {
        /// Whose.
        job: JobId,
        /// Which.
        checkpoint: CheckpointId,
    },
    /// The checkpoint will never complete.
    NotifyCheckpointAborted {
        /// Whose.
        job: JobId,
        /// Which.
        checkpoint: CheckpointId,
    },
    /// Sources of the job end as if their input had ended (stop with drain).
    Drain {
        /// Whose.
        job: JobId,
    },
    /// The job is over: settle what sinks had prepared, drop kept state and directories, answer with [`ToJobManager::JobReleased`].
    ReleaseJob {
        /// Which.
        job: JobId,
        /// What becomes of output that is not committed.
        output: PreparedOutput,
    },
    /// Answered by a heartbeat; the number returns.
    HeartbeatRequest {
        /// Counts up.
        sequence: u64,
    },
    /// Break something, where `chaos.enabled` is true.
    InjectFault(TaskManagerInjection),
}

/// See [`ToTaskManager::Registered`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreProbe {
    /// URI of the directory.
    pub directory: String,
    /// Key within it.
    pub key: String,
    /// What must be read.
    pub content: Vec<u8>,
}

/// What a TaskManager must know to take its part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPlan {
    /// Whose.
    pub job: JobId,
    /// For object names.
    pub epoch: LeaderEpoch,
    /// What flows.
    pub barrier: CheckpointBarrier,
    /// The attempts on this TaskManager that take part: the ack waits for all of them.
    pub attempts: Vec<ExecutionAttemptId>,
    /// URI of the directory that object keys are relative to: `<dir>/<job-id>`, or the savepoint's.
    pub directory: String,
    /// State up to this size stays in the ack, in bytes per subtask: `execution.checkpointing.data-inline-threshold`, or less when there
    /// are many.
    pub inline_threshold: u64,
}

/// A TaskManager's part of a checkpoint: everything it names is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAck {
    /// Whose.
    pub job: JobId,
    /// Which.
    pub checkpoint: CheckpointId,
    /// Written by this TaskManager for this checkpoint.
    pub objects: Vec<ObjectInfo>,
    /// One per attempt of the plan.
    pub subtasks: Vec<SubtaskAck>,
}

/// One subtask's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubtaskAck {
    /// Who.
    pub attempt: ExecutionAttemptId,
    /// In chain order.
    pub operators: Vec<OperatorAck>,
    /// Longest time one step spent on this snapshot, in µs.
    pub longest_pause_us: u64,
    /// From the first barrier to the last, in µs.
    pub alignment_us: u64,
}

/// One operator's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorAck {
    /// Who.
    pub id: OperatorId,
    /// Its keyed states.
    pub states: Vec<StateMeta>,
    /// What was captured; `None` for an operator without keyed state.
    pub keyed: Option<KeyedSegment>,
    /// The rest.
    pub state: SubtaskState,
}

/// TaskManager to JobManager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToJobManager {
    /// The task has its state and its channels.
    TaskRestored {
        /// Who.
        attempt: ExecutionAttemptId,
        /// How.
        how: RestoredHow,
        /// Time it took, in µs.
        micros: u64,
    },
    /// The task processes records.
    TaskRunning {
        /// Who.
        attempt: ExecutionAttemptId,
    },
    /// The task has processed (or, a source, emitted) its first record.
    TaskFirstRecord {
        /// Who.
        attempt: ExecutionAttemptId,
    },
    /// All input is processed; the task waits for the final checkpoint.
    TaskAwaitingFinal {
        /// Who.
        attempt: ExecutionAttemptId,
    },
    /// The task is gone: thread joined, channels closed.
    TaskEnded {
        /// Who.
        attempt: ExecutionAttemptId,
        /// How.
        outcome: TaskOutcome,
    },
    /// This TaskManager's part is durable.
    CheckpointAck(Box<CheckpointAck>),
    /// This TaskManager cannot deliver its part.
    CheckpointDeclined {
        /// Whose.
        job: JobId,
        /// Which.
        checkpoint: CheckpointId,
        /// The attempt that declined, or `None` for an upload.
        attempt: Option<ExecutionAttemptId>,
        /// Why.
        reason: String,
    },
    /// Nothing of the job is left here.
    JobReleased {
        /// Which.
        job: JobId,
    },
    /// Alive; with the counters of all tasks here.
    Heartbeat {
        /// From the request.
        sequence: u64,
        /// Per attempt.
        counters: Vec<(ExecutionAttemptId, TaskCounters)>,
    },
    /// A graceful end: no heartbeat needs to be waited for.
    Goodbye {
        /// For the log.
        reason: String,
    },
}

/// What becomes, at the end of a job, of output that its tasks had prepared and not committed when they ended.
///
/// A checkpoint counts from its record on, whatever happens next: what was prepared for it is part of the answer, also when the tasks
/// were stopped, or failed, before they heard of it. Nobody else would commit it: a job that has ended does not restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreparedOutput {
    /// All checkpoints are decided: what belongs to the last completed one is committed, the rest is removed. Output of plain savepoints
    /// stays hidden: a restore from one commits it.
    Settle {
        /// `None`: none was ever complete.
        completed: Option<CheckpointId>,
    },
    /// Nobody knows what is complete: it is left as it is.
    Keep,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskOutcome {
    /// By itself, all output committed.
    Finished,
    /// Because it was stopped.
    Canceled,
    /// By a failure.
    Failed(Box<TaskFailure>),
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClientRequest {
    /// Run a job.
    Submit(Box<JobGraph>),
    /// All jobs.
    ListJobs,
    /// All TaskManagers.
    ListTaskManagers,
    /// One job.
    Status(JobId),
    /// Its checkpoints.
    Checkpoints(JobId),
    /// End it now; state stays as far as retention says.
    Cancel(JobId),
    /// Take a savepoint; answered when it is complete.
    Savepoint {
        /// Whose.
        job: JobId,
        /// Target directory; `None`: the configured one.
        directory: Option<String>,
    },
    /// End with a savepoint; answered when the job has ended.
    Stop {
        /// Whose.
        job: JobId,
        /// Target directory; `None`: the configured one.
        directory: Option<String>,
        /// Let all windows and timers fire first.
        drain: bool,
    },
    /// Break something, where `chaos.enabled` is true.
    InjectFault(Box<Injection>),
}

/// The answer to a [`ClientRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClientResponse {
    /// `Submit`.
    Submitted(JobId),
    /// `ListJobs`.
    Jobs(Vec<JobSummary>),
    /// `ListTaskManagers`.
    TaskManagers(Vec<TaskManagerStatus>),
    /// `Status`.
    Status(Box<JobStatus>),
    /// `Checkpoints`.
    Checkpoints(Vec<CheckpointStatus>),
    /// `Cancel`: the job has ended.
    Canceled,
    /// `Savepoint`: complete, here.
    Savepoint {
        /// URI of its directory.
        path: String,
    },
    /// `Stop`: the job has ended.
    Stopped {
        /// URI of the savepoint's directory.
        path: String,
    },
    /// `InjectFault`: the order is on its way.
    Injected {
        /// Who is struck, in words.
        victim: String,
    },
}

/// Who opens a control connection; the first message after authentication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Hello {
    /// Stays open for as long as both live.
    TaskManager(Registration),
    /// Any number of requests, one at a time.
    Client,
    /// Asks only who answers: the handshake's reply (instance and epoch) is all.
    Probe,
}

/// The reply to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The answering process.
    pub instance: super::InstanceId,
    /// Its name, for messages.
    pub name: ResourceId,
    /// The leader's epoch; `None` for a TaskManager or a JobManager that does not lead.
    pub epoch: Option<LeaderEpoch>,
}
