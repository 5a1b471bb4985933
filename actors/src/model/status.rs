//! What a person sees of jobs: states, figures, histories. Serialised as JSON by the CLI, so names are part of the interface.

use serde::{Deserialize, Serialize};

use super::{CheckpointId, JobId, ResourceId, SnapshotKind, TaskFailure};

/// Flink's job states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Accepted; waiting for slots.
    Created,
    /// Tasks run.
    Running,
    /// Tasks are being cancelled after a failure that ends the job.
    Failing,
    /// Ended by a failure.
    Failed,
    /// Tasks are being cancelled at a person's wish.
    Cancelling,
    /// Ended at a person's wish.
    Canceled,
    /// Ended by itself, or by a stop with savepoint.
    Finished,
    /// A failure is being recovered from.
    Restarting,
    /// This leader lost its leadership; another goes on.
    Suspended,
}

impl JobState {
    /// Whether the job never runs again (Flink: globally terminal).
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Failed | Self::Canceled | Self::Finished)
    }

    /// What is told of a job that ends like this until its result is stored: before, the next JobManager may run it again.
    #[must_use]
    pub(crate) fn until_stored(self) -> Self {
        match self {
            Self::Failed => Self::Failing,
            Self::Canceled => Self::Cancelling,
            Self::Finished => Self::Running,
            Self::Created
            | Self::Running
            | Self::Failing
            | Self::Cancelling
            | Self::Restarting
            | Self::Suspended => self,
        }
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "CREATED",
            Self::Running => "RUNNING",
            Self::Failing => "FAILING",
            Self::Failed => "FAILED",
            Self::Cancelling => "CANCELLING",
            Self::Canceled => "CANCELED",
            Self::Finished => "FINISHED",
            Self::Restarting => "RESTARTING",
            Self::Suspended => "SUSPENDED",
        })
    }
}

/// Flink's task states, as far as the control plane tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskState {
    /// Not yet deployed.
    Created,
    /// Sent to a TaskManager.
    Deploying,
    /// Restoring state.
    Initializing,
    /// Processing records.
    Running,
    /// All input is processed; waits for the final checkpoint.
    AwaitingFinalCheckpoint,
    /// Asked to stop.
    Canceling,
    /// Ended by itself.
    Finished,
    /// Stopped.
    Canceled,
    /// Ended by a failure.
    Failed,
}

impl TaskState {
    /// Whether nothing of the attempt is left.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Canceled | Self::Failed)
    }
}

/// Counters of one task, read without stopping it. Counts are since the attempt's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounters {
    /// Records taken from inputs (a source: 0).
    pub records_in: u64,
    /// Records given to outputs and sinks.
    pub records_out: u64,
    /// Bytes received from other processes.
    pub bytes_in: u64,
    /// Bytes sent to other processes.
    pub bytes_out: u64,
    /// Time working, in ms.
    pub busy_ms: u64,
    /// Time without input, in ms.
    pub idle_ms: u64,
    /// Time waiting for downstream, in ms.
    pub back_pressured_ms: u64,
    /// Event-time watermark in ms.
    pub watermark: Option<i64>,
    /// Keyed entries.
    pub state_entries: u64,
    /// Estimated bytes of the pre-image log.
    pub log_bytes: u64,
    /// Longest time one step spent on snapshots since the start, in µs.
    pub longest_snapshot_pause_us: u64,
}

/// One line of `perennial list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Which.
    pub job: JobId,
    /// For people.
    pub name: String,
    /// Now.
    pub state: JobState,
    /// Subtasks that run, of all.
    pub tasks_running: u32,
    /// All subtasks.
    pub tasks_total: u32,
    /// Since submission, in ms; stops at the job's end.
    pub duration_ms: u64,
    /// New attempts so far; a failure that is merged into an attempt adds none.
    pub restarts: u32,
    /// The newest completed one.
    pub last_checkpoint: Option<CheckpointId>,
}

/// One subtask in `perennial status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubtaskStatus {
    /// Vertex position.
    pub vertex: u32,
    /// Vertex name.
    pub name: String,
    /// Subtask index.
    pub subtask: u32,
    /// `epoch.attempt`.
    pub attempt: String,
    /// Now.
    pub state: TaskState,
    /// Where.
    pub task_manager: Option<ResourceId>,
    /// As of the last heartbeat.
    pub counters: TaskCounters,
}

/// One checkpoint in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Which.
    pub checkpoint: CheckpointId,
    /// Why.
    pub kind: SnapshotKind,
    /// `IN_PROGRESS`, `COMPLETED` or `FAILED`.
    pub state: CheckpointState,
    /// Trigger time, in ms since the epoch.
    pub triggered_ms: u64,
    /// From trigger to completion, in ms; so far, when in progress.
    pub duration_ms: u64,
    /// Bytes newly written.
    pub bytes: u64,
    /// Bytes a restore reads.
    pub full_bytes: u64,
    /// Longest pause of a task, in µs.
    pub longest_pause_us: u64,
    /// Subtasks that have acknowledged, of all.
    pub acknowledged: (u32, u32),
    /// Why it failed.
    pub failure: Option<String>,
    /// Where it lies, once complete.
    pub path: Option<String>,
}

/// See [`CheckpointStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CheckpointState {
    /// Under way.
    InProgress,
    /// Has its record.
    Completed,
    /// Aborted.
    Failed,
}

/// How a subtask got its state back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RestoredHow {
    /// There was none.
    Empty,
    /// Rolled back in the memory that held it.
    InPlace,
    /// Read from the store.
    Loaded,
}

/// One recovery: what failed, what was decided, what it cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryRecord {
    /// 1 for the first.
    pub number: u32,
    /// The deployment wave that it started, as `epoch.attempt`; `None` when the job gave up.
    pub attempt: Option<String>,
    /// When the first failure was seen, in ms since the epoch.
    pub detected_ms: u64,
    /// The failure that explains the incident.
    pub cause: TaskFailure,
    /// The others of the same incident, at most [`OTHER_CAUSES_MAX`].
    pub other_causes: Vec<TaskFailure>,
    /// What the strategy said, in words: "exponential-delay: attempt 4, in 13.2 s, resets at 14:05".
    pub decision: String,
    /// The checkpoint restored, if any.
    pub checkpoint: Option<CheckpointId>,
    /// Damaged ones that were stepped over, with the reason.
    pub skipped: Vec<String>,
    /// Phases in ms, each from whatever came before it in time.
    pub phases: RecoveryPhases,
    /// Subtasks rolled back in place / loaded from the store.
    pub restored: (u32, u32),
}

/// Where a recovery's time went, in ms. `None`: not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RecoveryPhases {
    /// Until all survivors of the old attempt had stopped.
    pub stop_ms: Option<f64>,
    /// The strategy's delay.
    pub delay_ms: Option<f64>,
    /// Waiting for slots.
    pub slots_ms: Option<f64>,
    /// Until every task had its state; from the first record, when that came before.
    pub restore_ms: Option<f64>,
    /// Until the first record was processed; from the deployment, when other tasks were still loading.
    pub first_record_ms: Option<f64>,
    /// From detection to the first record.
    pub total_ms: Option<f64>,
}

/// Bound of [`RecoveryRecord::other_causes`].
pub const OTHER_CAUSES_MAX: usize = 16;

/// The answer to `perennial status JOB`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The line of the list.
    pub summary: JobSummary,
    /// Every subtask.
    pub subtasks: Vec<SubtaskStatus>,
    /// Newest last, bounded by `web.exception-history-size`.
    pub recoveries: Vec<RecoveryRecord>,
    /// Newest last, bounded by `web.checkpoints.history`.
    pub checkpoints: Vec<CheckpointStatus>,
    /// What is going on, in words, while the job is not simply running: "waiting for slots: 2 of 3".
    pub note: Option<String>,
    /// For a failed job.
    pub failure: Option<TaskFailure>,
    /// Events that a person should know: a damaged checkpoint skipped, an option that has no effect yet. Bounded.
    pub notices: Vec<String>,
}

/// One TaskManager in `perennial list --taskmanagers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskManagerStatus {
    /// Name.
    pub resource: ResourceId,
    /// Data address.
    pub address: String,
    /// Free slots, of all.
    pub slots: (u32, u32),
    /// Since the last heartbeat, in ms.
    pub last_heartbeat_ms: u64,
}
