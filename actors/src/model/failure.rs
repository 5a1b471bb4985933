//! Why something failed: one typed cause, carried unchanged from the task thread to the person who reads `perennial status`.

use serde::{Deserialize, Serialize};

use super::{CheckpointId, ExecutionAttemptId, InstanceId, ResourceId};

/// What the restart decision needs to know of a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recoverability {
    /// Ask the restart strategy.
    Recoverable,
    /// The job fails at once: no restart strategy is asked.
    Unrecoverable,
    /// Ours is the stale one: end quietly, somebody newer is in charge.
    Fenced,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FailureKind {
    /// A user function, or the runtime inside a task thread, panicked.
    #[error("panic at {location}: {message}")]
    Panic {
        /// The payload's text.
        message: String,
        /// File, line and column. (The backtrace is in the log of the node.)
        location: String,
    },
    /// A user function returned an error.
    #[error("{message}")]
    User {
        /// The error and its sources.
        message: String,
        /// Marked by the function.
        is_unrecoverable: bool,
    },
    /// A named limit was passed, e.g. the output of one call.
    #[error("limit {limit} exceeded: {message}")]
    Limit {
        /// The limit's configuration key or name.
        limit: String,
        /// Figures and advice.
        message: String,
    },
    /// State could not be read, written or decoded.
    #[error("state: {message}")]
    State {
        /// What, where.
        message: String,
    },
    /// A snapshot's object is missing or damaged: the ladder (`checkpoint/ladder.rs`) steps down.
    #[error("checkpoint {checkpoint}: object {object}: {message}")]
    DamagedSnapshot {
        /// Which record.
        checkpoint: CheckpointId,
        /// Which object.
        object: String,
        /// What is wrong with it.
        message: String,
    },
    /// The snapshot does not fit the job; no retry can help.
    #[error("incompatible state: {message}")]
    IncompatibleState {
        /// Names the operator and state.
        message: String,
    },
    /// The data connection to another TaskManager broke: a symptom, the cause is at the peer or the link.
    #[error("lost the data connection to {resource}: {message}")]
    PeerLost {
        /// The peer.
        resource: ResourceId,
        /// Its incarnation.
        instance: InstanceId,
        /// The socket's error.
        message: String,
    },
    /// A TaskManager is gone, with all its slots.
    #[error("lost TaskManager {resource}: {message}")]
    TaskManagerLost {
        /// Which.
        resource: ResourceId,
        /// Its incarnation.
        instance: InstanceId,
        /// How that was found out.
        message: String,
    },
    /// An external system failed: storage, sink, source.
    #[error("{message}")]
    Io {
        /// What was tried, on what.
        message: String,
    },
    /// More checkpoints in a row failed than `tolerable-failed-checkpoints` allows.
    #[error("exceeded checkpoint tolerable failure threshold: {message}")]
    Checkpoints {
        /// The last failure.
        message: String,
    },
    /// Slots did not appear in time.
    #[error("no slots: {message}")]
    NoSlots {
        /// How many are needed and there.
        message: String,
    },
    /// The task did not end within the cancellation timeout.
    #[error("did not end within {seconds} s of being cancelled")]
    CancellationTimeout {
        /// The timeout.
        seconds: u64,
    },
    /// An actor ended that nobody asked to end.
    #[error("actor {actor} ended: {message}")]
    Actor {
        /// Its name.
        actor: String,
        /// Its last words.
        message: String,
    },
    /// A higher epoch or attempt exists.
    #[error("fenced: {message}")]
    Fenced {
        /// By whom.
        message: String,
    },
    /// Job code builds another graph here than at the client.
    #[error("build mismatch: {message}")]
    BuildMismatch {
        /// Both fingerprints.
        message: String,
    },
    /// Ours is the bug.
    #[error("internal error: {message}")]
    Internal {
        /// What was violated.
        message: String,
    },
    /// What a job's last record says it failed by, when nothing else of its leader is left: the words are all that is known.
    #[error("{message}")]
    Recorded {
        /// The failure with its place, as its leader told it.
        message: String,
    },
}

impl FailureKind {
    /// The class that the restart decision uses.
    #[must_use]
    pub fn recoverability(&self) -> Recoverability {
        match self {
            Self::User {
                is_unrecoverable: true,
                ..
            }
            | Self::IncompatibleState { .. }
            | Self::BuildMismatch { .. } => Recoverability::Unrecoverable,
            Self::Fenced { .. } => Recoverability::Fenced,
            Self::User {
                is_unrecoverable: false,
                ..
            }
            | Self::Panic { .. }
            | Self::Limit { .. }
            | Self::State { .. }
            | Self::DamagedSnapshot { .. }
            | Self::PeerLost { .. }
            | Self::TaskManagerLost { .. }
            | Self::Io { .. }
            | Self::Checkpoints { .. }
            | Self::NoSlots { .. }
            | Self::CancellationTimeout { .. }
            | Self::Actor { .. }
            | Self::Internal { .. }
            | Self::Recorded { .. } => Recoverability::Recoverable,
        }
    }

    /// Whether it is a mere echo of a failure elsewhere: another cause of the same incident explains more.
    #[must_use]
    pub fn is_symptom(&self) -> bool {
        matches!(self, Self::PeerLost { .. })
    }
}

/// A failure with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// Whose; `None` for failures of the whole job (a coordinator, slots).
    pub attempt: Option<ExecutionAttemptId>,
    /// The vertex's name, for people.
    pub vertex: Option<String>,
    /// The operator that was running, by name.
    pub operator: Option<String>,
    /// Where in the input. Of a source in the task: `split@position` of the record itself, or `split@first..=last` where one of several
    /// records may be meant. Else the record's number in its channel and batch. Work that is no record's (a timer, a snapshot, a commit) is
    /// named, `after` the last record before it.
    pub position: Option<String>,
    /// What.
    pub kind: FailureKind,
}

impl TaskFailure {
    /// A failure of the job as a whole.
    #[must_use]
    pub fn of_job(kind: FailureKind) -> Self {
        Self {
            attempt: None,
            vertex: None,
            operator: None,
            position: None,
            kind,
        }
    }

    /// A failure of one attempt, before it is known which operator ran.
    #[must_use]
    pub fn of_attempt(attempt: ExecutionAttemptId, kind: FailureKind) -> Self {
        Self {
            attempt: Some(attempt),
            vertex: None,
            operator: None,
            position: None,
            kind,
        }
    }
}

impl std::fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(vertex) = &self.vertex {
            write!(f, "`{vertex}` ")?;
        }
        if let Some(attempt) = &self.attempt {
            write!(
                f,
                "subtask {} attempt {}.{} ",
                attempt.subtask, attempt.epoch, attempt.attempt
            )?;
        }
        if let Some(operator) = &self.operator {
            write!(f, "in operator `{operator}` ")?;
        }
        match &self.position {
            // Between records: `after lane-0@7`.
            Some(position) if position.starts_with("after ") => write!(f, "{position} ")?,
            Some(position) => write!(f, "at {position} ")?,
            None => {}
        }
        if self.vertex.is_some() || self.attempt.is_some() {
            write!(f, "failed: ")?;
        }
        write!(f, "{}", self.kind)
    }
}

impl std::error::Error for TaskFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.kind)
    }
}
