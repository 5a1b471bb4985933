//! Why output to files fails, and whether a new attempt helps.

use std::io;
use std::path::{Path, PathBuf};

use perennial_actors::model::CheckpointId;

use crate::error::FunctionError;

/// Output to files failed.
#[derive(Debug, thiserror::Error)]
pub enum FileSinkError {
    /// The operating system refused something.
    #[error(
        "file sink: cannot {action} {}; check rights, space and that all TaskManagers share the directory", path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory is none, or not ours to write in.
    #[error(
        "file sink: cannot {action} {}; name another directory, or let the TaskManagers' user write there", path.display()
    )]
    Unusable {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Paths are stored in checkpoints as text.
    #[error("file sink: the directory {} is not UTF-8; choose another", path.display())]
    NotUtf8 {
        /// The directory.
        path: PathBuf,
    },
    /// It would become a directory of that name below the working directory.
    #[error(
        "file sink: {} is a URI; give the plain path of a directory, in a file system that all TaskManagers share", path.display()
    )]
    Uri {
        /// As given.
        path: PathBuf,
    },
    /// It would be read back as two records.
    #[error(
        "file sink: record {record:?} contains a line break; use JSON lines, or replace it before the sink"
    )]
    LineBreak {
        /// How it begins.
        record: String,
    },
    /// An earlier call failed, so that the file's content is unknown.
    #[error("file sink: {path} cannot be used any more after an earlier failure; restart the task", path = path.display())]
    Broken {
        /// The hidden file.
        path: PathBuf,
    },
    /// The checkpoint holds something else.
    #[error("file sink: what checkpoint {checkpoint} holds for it cannot be used: {reason}")]
    Committable {
        /// Which.
        checkpoint: CheckpointId,
        /// What is wrong with it.
        reason: String,
    },
    /// Prepared output has another length than when it was prepared.
    #[error(
        "file sink: {} has {actual} bytes, checkpoint {checkpoint} says {expected}: output was damaged between checkpoint and commit", path.display()
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Which.
        checkpoint: CheckpointId,
        /// In the checkpoint.
        expected: u64,
        /// On disk.
        actual: u64,
    },
    /// Prepared output is neither hidden nor visible.
    #[error(
        "file sink: neither {} nor {part} is there: {records} records of subtask {subtask} (attempt {attempt}) between \
         checkpoint {} and {checkpoint} are lost, or were taken away after a commit. Put the file back, or allow it by \
         `when_missing(WhenMissing::AssumeTaken)`",
        hidden.display(), .since.map_or("start".to_owned(), |since| since.to_string())
    )]
    Missing {
        /// Where it was prepared.
        hidden: PathBuf,
        /// Its visible name.
        part: String,
        /// How much.
        records: u64,
        /// Who wrote it.
        subtask: u32,
        /// Who wrote it, as `epoch.attempt`.
        attempt: String,
        /// The barrier it begins after.
        since: Option<CheckpointId>,
        /// The barrier it ends at.
        checkpoint: CheckpointId,
    },
    /// Both the hidden and the visible file are there.
    #[error(
        "file sink: {} is there already and {hidden} was to become it: does another job write the same names? Nothing was overwritten", part.display()
    )]
    Taken {
        /// The visible file.
        part: PathBuf,
        /// The hidden one.
        hidden: String,
    },
}

impl FileSinkError {
    /// Whether a new attempt may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Broken { .. } | Self::LineBreak { .. } => true,
            Self::Unusable { .. }
            | Self::NotUtf8 { .. }
            | Self::Uri { .. }
            | Self::Committable { .. }
            | Self::WrongLength { .. }
            | Self::Missing { .. }
            | Self::Taken { .. } => false,
        }
    }

    /// Of the first use of the directory, where these answers are no accident: the path leads through a file, or the rights are missing.
    /// A full disk, a read-only remount and everything else may pass.
    pub(super) fn at_start(self) -> Self {
        match self {
            Self::Io {
                action,
                path,
                source,
            } if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::AlreadyExists
            ) =>
            {
                Self::Unusable {
                    action,
                    path,
                    source,
                }
            }
            other => other,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Carries [`FileSinkError::is_retryable`] over.
pub(super) fn fail(error: FileSinkError) -> FunctionError {
    if error.is_retryable() {
        FunctionError::new(error)
    } else {
        FunctionError::unrecoverable(error)
    }
}
