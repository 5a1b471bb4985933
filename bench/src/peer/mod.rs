//! A system that runs jobs on a cluster of processes: Perennial or Flink. The bare loop is no such system, it has no cluster.
//!
//! Invariant: whatever happens, no process of a peer is left when it is dropped.

pub mod bare;
pub mod flink;
pub mod perennial;

use std::path::Path;
use std::time::Duration;

/// What a cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// TaskManagers.
    pub task_managers: u32,
    /// Slots of each.
    pub slots: u32,
    /// Which failure detection.
    pub heartbeats: Heartbeats,
    /// Of its TaskManagers.
    pub memory: Memory,
}

/// How much memory TaskManagers may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Each peer's own default.
    Default,
    /// As much as helps on this machine.
    Ample,
}

/// How a cluster detects failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeats {
    /// Each peer's own defaults.
    Default,
    /// Flink's tuned for fast detection, as far as it goes without false alarms; Perennial's defaults.
    Tuned,
}

/// A job to run. Keys of settings are Flink's, which both peers know.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// Name of the job.
    pub job: String,
    /// Class of the job in Java.
    pub java: String,
    /// Its options, without dashes.
    pub arguments: Vec<(String, String)>,
    /// For this job.
    pub settings: Vec<(String, String)>,
    /// For this job, if it is Flink that runs it.
    pub flink_settings: &'static [(&'static str, &'static str)],
    /// Where to begin.
    pub from_savepoint: Option<String>,
}

impl Submission {
    /// A job of both peers.
    #[must_use]
    pub fn new(job: &str, java: &str) -> Self {
        Self {
            job: job.to_owned(),
            java: java.to_owned(),
            ..Self::default()
        }
    }

    /// Adds an option of the job.
    #[must_use]
    pub fn argument(mut self, name: &str, value: impl ToString) -> Self {
        self.arguments.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a setting.
    #[must_use]
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Marks go into this directory.
    #[must_use]
    pub fn marks(self, directory: &Path) -> Self {
        self.argument("marks", directory.display())
    }
}

/// A completed checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoint {
    /// In µs since the epoch.
    pub triggered_us: u64,
    /// Until completion.
    pub duration: Duration,
    /// Newly written.
    pub bytes: u64,
    /// Longest time that a task stood still, where the peer tells.
    pub pause: Option<Duration>,
}

/// A peer cannot do this at all; the reason is shown instead of a figure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotPossible(pub &'static str);

/// See the module. Ids of jobs are the peer's own.
pub trait Peer {
    /// Short, for tables.
    fn name(&self) -> &'static str;

    /// Has a cluster of this shape ready, with all its nodes and no job: a new one where the peer starts fast, else the one there is.
    ///
    /// # Errors
    /// When it does not come up.
    fn start(&mut self, shape: &Shape) -> anyhow::Result<()>;

    /// Whether the peer gets faster with use, so that it must run before it is measured.
    fn needs_warm_up(&self) -> bool;

    /// Does ahead what a start with this shape needs and is the same each time.
    ///
    /// # Errors
    /// When it fails.
    fn prepare(&mut self, shape: &Shape) -> anyhow::Result<()>;

    /// Starts a cluster in one process from nothing, with a job. The time begins with the call.
    ///
    /// # Errors
    /// When cluster or job do not start.
    fn start_with(&mut self, shape: &Shape, submission: &Submission) -> anyhow::Result<()>;

    /// Submits a job.
    ///
    /// # Errors
    /// When it is refused.
    fn submit(&mut self, submission: &Submission) -> anyhow::Result<String>;

    /// Waits for the end of a bounded job; returns how long it ran, by the JobManager's clock.
    ///
    /// # Errors
    /// When it ends otherwise or not in time.
    fn wait_until_finished(&mut self, job: &str, deadline: Duration) -> anyhow::Result<Duration>;

    /// Fails when the job has ended.
    ///
    /// # Errors
    /// With what it ended of.
    fn check_alive(&mut self, job: &str) -> anyhow::Result<()>;

    /// Ends a job.
    ///
    /// # Errors
    /// When it does not end.
    fn cancel(&mut self, job: &str) -> anyhow::Result<()>;

    /// Completed checkpoints, the oldest first, as far as they are remembered.
    ///
    /// # Errors
    /// When nobody answers.
    fn checkpoints(&mut self, job: &str) -> anyhow::Result<Vec<Checkpoint>>;

    /// Takes a savepoint; returns where it lies.
    ///
    /// # Errors
    /// When it fails.
    fn savepoint(&mut self, job: &str) -> anyhow::Result<String>;

    /// Kills the JobManager with SIGKILL and starts it again at once.
    ///
    /// # Errors
    /// [`NotPossible`] where jobs would be lost.
    fn restart_job_manager(&mut self) -> anyhow::Result<()>;

    /// All its processes that live.
    fn processes(&mut self) -> Vec<u32>;

    /// Ends all processes.
    fn stop(&mut self);
}
