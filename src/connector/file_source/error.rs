//! Why input from files fails, and whether a new attempt helps.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::FunctionError;

/// Input from files failed.
#[derive(Debug, thiserror::Error)]
pub enum FileSourceError {
    /// The operating system refused something.
    #[error("file source: cannot {action} {}; check that it is there and readable on every TaskManager", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory, pipe or device.
    #[error("file source: {} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Nothing to read, or paths that cannot tell splits apart.
    #[error("file source: {reason}: {}", path.display())]
    Paths {
        /// What is wrong.
        reason: &'static str,
        /// With which one.
        path: PathBuf,
    },
    /// The file does not fit the position in the checkpoint.
    #[error(
        "file source: {path} was read up to byte {position} and now {what}: it was changed since the checkpoint. Put the former content back"
    )]
    Changed {
        /// The file.
        path: String,
        /// In the checkpoint.
        position: u64,
        /// How that shows.
        what: String,
    },
    /// The checkpoint holds something else.
    #[error(
        "file source: the restored split `{id}` is not a file source's; give the source another uid if it replaced one of another kind"
    )]
    Split {
        /// Its id.
        id: String,
    },
    /// See [`LINE_LENGTH_MAX`](super::LINE_LENGTH_MAX).
    #[error(
        "file source: {path}: the line at byte {offset} is longer than {max} bytes; is it a file of lines? Otherwise raise `line_length_max`"
    )]
    LineTooLong {
        /// The file.
        path: String,
        /// Where the line begins.
        offset: u64,
        /// The bound.
        max: usize,
    },
    /// A line is not a record.
    #[error("file source: {path}: the line at byte {offset} is bad: {reason}: {excerpt:?}")]
    BadLine {
        /// The file.
        path: String,
        /// Where the line begins.
        offset: u64,
        /// What is wrong with it.
        reason: String,
        /// How it begins.
        excerpt: String,
    },
    /// More bad lines than allowed.
    #[error("file source: {path} has more than {limit} bad lines, the last one")]
    TooManyBadLines {
        /// The file.
        path: String,
        /// As allowed by [`FileSource::skip_bad_lines`](super::FileSource::skip_bad_lines).
        limit: u64,
        /// The one too many.
        source: Box<FileSourceError>,
    },
}

impl FileSourceError {
    /// Whether a new attempt may succeed. A bad line counts as a user's error: the restart strategy decides.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::LineTooLong { .. }
            | Self::BadLine { .. }
            | Self::TooManyBadLines { .. } => true,
            Self::NotAFile { .. }
            | Self::Paths { .. }
            | Self::Changed { .. }
            | Self::Split { .. } => false,
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

/// Carries [`FileSourceError::is_retryable`] over.
pub(super) fn fail(error: FileSourceError) -> FunctionError {
    if error.is_retryable() {
        FunctionError::new(error)
    } else {
        FunctionError::unrecoverable(error)
    }
}
