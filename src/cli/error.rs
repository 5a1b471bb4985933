//! What can go wrong on the command line, and the exit code for each.

use std::process::ExitCode;

use perennial_actors::model::message::RpcError;

use crate::api::JobError;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The settings do not load.
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
    /// The arguments do not fit each other, or name no job of the cluster.
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Job(_) | Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::NoJobManager(_) => 3,
            Self::Config(_) => 4,
            Self::NotLeader(_) => 5,
            Self::StuckTask(_) => 6,
            Self::Rpc(_) | Self::JobFailed(_) | Self::Node(_) => 1,
        })
    }
}
