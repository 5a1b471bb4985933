//! Prepared output and its commit.
//!
//! Invariant: a committable says all that a commit needs, so that any subtask of any later attempt can do it, any number of
//! times, also while another does.

use std::fs;
use std::io;
use std::path::Path;

use perennial_actors::model::CheckpointId;
use serde::{Deserialize, Serialize};

use super::disk::{length, sync_directory};
use super::error::FileSinkError;
use crate::connector::Committable;

/// Version of what a committable holds.
pub(super) const COMMITTABLE_FORMAT: u32 = 1;

/// What a commit makes of output that is neither hidden nor visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenMissing {
    /// Fails the job: output may be lost.
    #[default]
    Fail,
    /// Takes it for committed: for directories from which visible files are moved away while the job runs.
    AssumeTaken,
}

/// What a checkpoint holds of a prepared file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PreparedFile {
    pub(super) format: u32,
    /// Stored, so that output prepared before a job's directory was changed is still committed where it is.
    pub(super) directory: String,
    pub(super) hidden: String,
    pub(super) part: String,
    pub(super) bytes: u64,
    pub(super) records: u64,
    pub(super) subtask: u32,
    pub(super) attempt: String,
    pub(super) since: Option<CheckpointId>,
}

impl PreparedFile {
    pub(super) fn decode(committable: &Committable) -> Result<Self, FileSinkError> {
        let error = |reason: String| FileSinkError::Committable {
            checkpoint: committable.checkpoint,
            reason,
        };
        let file: Self = rmp_serde::from_slice(&committable.bytes)
            .map_err(|cause| error(format!("not a file sink's: {cause}")))?;
        if file.format != COMMITTABLE_FORMAT {
            return Err(error(format!(
                "its format is {}, this build knows {COMMITTABLE_FORMAT}",
                file.format
            )));
        }
        // Names are joined to the directory and then renamed or spared: nothing may lead out of it.
        for name in [&file.hidden, &file.part] {
            if name.is_empty() || name == ".." || name.contains(['/', '\0']) {
                return Err(error(format!("{name:?} is not a file name")));
            }
        }
        Ok(file)
    }
}

/// Makes a prepared file visible. Idempotent, also while another process does the same.
pub(super) fn commit_file(
    file: &PreparedFile,
    checkpoint: CheckpointId,
    when_missing: WhenMissing,
) -> Result<(), FileSinkError> {
    let directory = Path::new(&file.directory);
    let (hidden, part) = (directory.join(&file.hidden), directory.join(&file.part));
    let is_visible = length(&part)?.is_some();
    match (length(&hidden)?, is_visible) {
        (Some(_), true) => {
            return Err(FileSinkError::Taken {
                part,
                hidden: file.hidden.clone(),
            });
        }
        (Some(actual), false) if actual != file.bytes => {
            return Err(FileSinkError::WrongLength {
                path: hidden,
                checkpoint,
                expected: file.bytes,
                actual,
            });
        }
        (Some(_), false) => match fs::rename(&hidden, &part) {
            Ok(()) => {}
            // Somebody else was faster, e.g. the attempt before ours, which was late.
            Err(error) if error.kind() == io::ErrorKind::NotFound && length(&part)?.is_some() => {}
            Err(error) => return Err(FileSinkError::io("rename", &hidden)(error)),
        },
        // Looked at again: it may have been renamed between the two looks above.
        (None, _) => match (length(&part)?, when_missing) {
            (_, WhenMissing::AssumeTaken) => {}
            (Some(actual), WhenMissing::Fail) if actual == file.bytes => {}
            (Some(actual), WhenMissing::Fail) => {
                return Err(FileSinkError::WrongLength {
                    path: part,
                    checkpoint,
                    expected: file.bytes,
                    actual,
                });
            }
            (None, WhenMissing::Fail) => {
                return Err(FileSinkError::Missing {
                    hidden,
                    part: file.part.clone(),
                    records: file.records,
                    subtask: file.subtask,
                    attempt: file.attempt.clone(),
                    since: file.since,
                    checkpoint,
                });
            }
        },
    }
    // Also when it was visible already: whoever renamed it may have died before this.
    sync_directory(directory)
}
