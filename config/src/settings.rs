//! The settings as the rest of the code sees them: typed, validated, complete. How they are read from files is the loader's business.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `execution.checkpointing.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckpointingMode {
    /// Barriers are aligned: state reflects every record once.
    ExactlyOnce,
    /// Channels are never blocked: a record may be reflected twice after a recovery.
    AtLeastOnce,
}

/// `execution.checkpointing.externalized-checkpoint-retention`. A job that finishes keeps none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalizedRetention {
    /// Deleted at every end of the job.
    NoExternalizedCheckpoints,
    /// Kept only when the job fails.
    DeleteOnCancellation,
    /// Kept when the job fails or is cancelled.
    RetainOnCancellation,
}

/// `execution.checkpointing.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSettings {
    /// `interval`; `None`: no periodic checkpoints (the final one of a bounded job is still taken).
    pub interval: Option<Duration>,
    /// `mode`.
    pub mode: CheckpointingMode,
    /// `timeout`.
    pub timeout: Duration,
    /// `min-pause`.
    pub min_pause: Duration,
    /// `max-concurrent-checkpoints`, at least 1.
    pub max_concurrent: u32,
    /// `tolerable-failed-checkpoints`.
    pub tolerable_failed: u32,
    /// `num-retained`, at least 1.
    pub num_retained: u32,
    /// `externalized-checkpoint-retention`.
    pub retention: ExternalizedRetention,
    /// `incremental`.
    pub is_incremental: bool,
    /// `data-inline-threshold`, in bytes per subtask.
    pub inline_threshold: u64,
    /// `dir`: URI under which `<job-id>/chk-<n>` lies.
    pub directory: String,
    /// `savepoint-dir`: URI; `None`: a savepoint command names one, or its own configuration does.
    pub savepoint_directory: Option<String>,
    /// `recovery.ladder.allow-repeat`: whether a job with transactional sinks may restore below a completed checkpoint.
    pub allow_repeat: bool,
}

/// `restart-strategy.*`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RestartStrategy {
    /// Never restarts.
    None,
    /// A number of attempts, a constant delay.
    FixedDelay {
        /// Restarts in all.
        attempts: u32,
        /// Before each.
        delay: Duration,
    },
    /// At most so many failures in an interval.
    FailureRate {
        /// In one interval.
        max_failures_per_interval: u32,
        /// The interval.
        interval: Duration,
        /// Before each restart.
        delay: Duration,
    },
    /// A growing delay that stability resets.
    ExponentialDelay {
        /// First delay.
        initial_backoff: Duration,
        /// Largest delay.
        max_backoff: Duration,
        /// Above 1.
        multiplier: f64,
        /// Quiet time, from the planned restart, after which the delay starts anew.
        reset_threshold: Duration,
        /// 0 to 1.
        jitter_factor: f64,
        /// Attempts without a reset; `None`: unlimited.
        attempts_before_reset: Option<u32>,
    },
}

/// The strategy and how failures are counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestartSettings {
    /// Which.
    pub strategy: RestartStrategy,
    /// `restart-strategy.strict`: count every task failure, as Flink does, instead of one per incident.
    pub is_strict: bool,
}

/// What belongs to one job and travels with its graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSettings {
    /// `parallelism.default`.
    pub parallelism: u32,
    /// `pipeline.max-parallelism`.
    pub max_parallelism: Option<u32>,
    /// See there.
    pub checkpointing: CheckpointSettings,
    /// See there.
    pub restart: RestartSettings,
    /// `execution.buffer-timeout.interval`: upper bound of the time a record waits in an output buffer. Zero: flush after each step.
    pub buffer_timeout: Duration,
    /// `task.cancellation.timeout`.
    pub cancellation_timeout: Duration,
    /// `slot.request.timeout`.
    pub slot_request_timeout: Duration,
    /// `web.checkpoints.history`.
    pub checkpoint_history_size: u32,
    /// `web.exception-history-size`.
    pub exception_history_size: u32,
}

/// `heartbeat.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatSettings {
    /// `heartbeat.interval`.
    pub interval: Duration,
    /// `heartbeat.timeout`.
    pub timeout: Duration,
    /// `heartbeat.reconnect-window`: how long a TaskManager whose socket broke may take to come back.
    pub reconnect_window: Duration,
}

/// `s3.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// `s3.endpoint`.
    pub endpoint: Option<String>,
    /// `s3.region`.
    pub region: Option<String>,
    /// `s3.path.style.access`.
    pub is_path_style: bool,
    /// `s3.access-key`; else `AWS_ACCESS_KEY_ID`.
    pub access_key: Option<String>,
    /// `s3.secret-key`; else `AWS_SECRET_ACCESS_KEY`. Never printed.
    pub secret_key: Option<Secret>,
    /// `s3.session-token`; else `AWS_SESSION_TOKEN`, where the access key comes from `AWS_ACCESS_KEY_ID`. Of temporary credentials.
    pub session_token: Option<Secret>,
    /// `s3.connection.timeout`.
    pub connect_timeout: Duration,
    /// `s3.socket.timeout`: the longest silence while reading.
    pub read_timeout: Duration,
    /// `s3.operation.timeout`: one operation with all its retries, without a streamed body.
    pub operation_timeout: Duration,
    /// `s3.retry.max-num-retries`.
    pub max_retries: u32,
    /// `s3.upload.min.part.size`: objects from this size go in parts, in bytes; at least 5 MiB.
    pub part_size: u64,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("******")
    }
}

/// `high-availability.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HighAvailability {
    /// A second JobManager on the same store exits with an error while the first lives.
    None,
    /// A second JobManager waits as a standby; leadership lies in the store (`file` or `s3`).
    Store,
}

/// What belongs to a node.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSettings {
    /// `high-availability.cluster-id`, `default` by default.
    pub cluster_id: String,
    /// `high-availability.type`.
    pub high_availability: HighAvailability,
    /// URI of leadership, graphs and results: `<high-availability.storageDir>/<high-availability.cluster-id>`, the former by default
    /// `<execution.checkpointing.dir>/ha`.
    pub ha_directory: String,
    /// `high-availability.lease-duration`: a leader whose renewal counter stands still for longer may be replaced.
    pub lease_duration: Duration,
    /// `high-availability.renew-interval`.
    pub renew_interval: Duration,
    /// `jobmanager.rpc.address`.
    pub rpc_address: String,
    /// `jobmanager.rpc.port`: where it is found; 0 takes a free one.
    pub rpc_port: u16,
    /// `jobmanager.rpc.bind-port`: where it listens, when that is another port (behind NAT, a proxy, a port mapping).
    pub rpc_bind_port: Option<u16>,
    /// `jobmanager.bind-host`.
    pub bind_host: String,
    /// `taskmanager.host`: the name peers reach this TaskManager by.
    pub task_manager_host: String,
    /// `taskmanager.bind-host`.
    pub task_manager_bind_host: String,
    /// `taskmanager.data.port`: where peers find it; 0 takes a free one.
    pub data_port: u16,
    /// `taskmanager.data.bind-port`: where it listens, when that is another port.
    pub data_bind_port: Option<u16>,
    /// `taskmanager.resource-id`; by default drawn at start.
    pub resource_id: Option<String>,
    /// `taskmanager.numberOfTaskSlots`.
    pub task_slots: u32,
    /// `taskmanager.registration.timeout`: a TaskManager that finds no JobManager for so long ends.
    pub registration_timeout: Duration,
    /// `taskmanager.jobmanager-grace`: how long tasks run on without a JobManager.
    pub job_manager_grace: Duration,
    /// `taskmanager.memory.managed.size`: in bytes; divided by the slots, the bound of the pre-image log of each keyed
    /// operator in a slot.
    pub managed_memory: u64,
    /// `taskmanager.memory.network.size`: bound of received, not yet processed data of a TaskManager, in bytes.
    pub network_memory: u64,
    /// `security.cluster-secret`: the shared secret of the control and data connections.
    pub cluster_secret: Secret,
    /// `heartbeat.*`.
    pub heartbeat: HeartbeatSettings,
    /// `rpc.ask.timeout`.
    pub ask_timeout: Duration,
    /// `s3.*`.
    pub s3: S3Settings,
    /// `chaos.enabled`: whether clients may inject faults.
    pub is_chaos_enabled: bool,
}

/// Everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Of this node.
    pub cluster: ClusterSettings,
    /// Defaults of jobs that are submitted here.
    pub job: JobSettings,
}
