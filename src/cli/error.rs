//! What can go wrong on the command line, and the exit code for each.

use std::process::ExitCode;
use std::time::Duration;

use perennial_actors::checkpoint::StoreError;
use perennial_actors::model::message::RpcError;

use crate::api::JobError;
use crate::cluster::NodeError;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The settings do not load, or name no usable store.
    #[error("{0}")]
    Config(String),
    /// The job cannot be built.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Nobody answers.
    #[error(
        "cannot reach the JobManager at {address}: {source}\nStart one with `perennial start`, or name another with --jobmanager HOST:PORT."
    )]
    Unreachable {
        /// Asked.
        address: String,
        /// Why.
        source: RpcError,
    },
    /// It answers, but does not take this command in.
    #[error("the JobManager at {address} does not serve this command: {source}")]
    TurnedAway {
        /// Asked.
        address: String,
        /// Why.
        source: RpcError,
    },
    /// It is another cluster's, or of another version.
    #[error("{address} answers, but is not a JobManager for this client: {source}")]
    NotAdmitted {
        /// Asked.
        address: String,
        /// Why, and what to do.
        source: RpcError,
    },
    /// Nobody has told about a followed job for too long.
    #[error(
        "no answer about the job for {seconds} s: {source}\nIt may go on all the same: `perennial status JOB` shows it once a JobManager leads.",
        seconds = after.as_secs()
    )]
    LostSight {
        /// For how long it was asked.
        after: Duration,
        /// The last thing heard.
        source: Box<CliError>,
    },
    /// A TaskManager found none in time.
    #[error("{0}")]
    NoJobManager(String),
    /// It answered with a refusal.
    #[error(transparent)]
    Rpc(RpcError),
    /// The job ended badly.
    #[error("{0}")]
    JobFailed(String),
    /// A node could not start or go on.
    #[error("{0}")]
    Node(String),
    /// Another leads.
    #[error("{0}")]
    NotLeader(String),
    /// A task could not be stopped.
    #[error("{0}")]
    StuckTask(String),
    /// Asked twice, the second time while the first was being carried out.
    #[error("ended at once, without waiting for the job's tasks")]
    EndedAtOnce,
    /// The arguments do not fit each other, or name no job of the cluster.
    #[error("{0}")]
    Usage(String),
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::NotLeader(message) => Self::NotLeader(message),
            // What is configured is wrong: it will not work the next time either.
            NodeError::Store(error @ StoreError::Invalid { .. }) => Self::Config(error.to_string()),
            error => Self::Node(error.to_string()),
        }
    }
}

impl CliError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Job(_) | Self::Usage(_) => 2,
            Self::Unreachable { .. }
            | Self::TurnedAway { .. }
            | Self::LostSight { .. }
            | Self::NoJobManager(_) => 3,
            Self::Config(_) | Self::NotAdmitted { .. } => 4,
            Self::NotLeader(_) => 5,
            Self::StuckTask(_) => 6,
            Self::Rpc(_) | Self::JobFailed(_) | Self::Node(_) | Self::EndedAtOnce => 1,
        })
    }
}
