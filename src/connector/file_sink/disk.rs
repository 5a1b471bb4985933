//! The file system, as the sink needs it: absence is an answer, names are made durable.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::error::FileSinkError;

/// `None`: not there.
pub(super) fn length(path: &Path) -> Result<Option<u64>, FileSinkError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileSinkError::io("inspect", path)(error)),
    }
}

/// Deletes a file that others may delete at the same time.
pub(super) fn remove(path: &Path) -> Result<(), FileSinkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileSinkError::io("delete", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), FileSinkError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileSinkError::io("fsync", directory))
}

/// Creates a directory with its parents, and makes their names durable.
pub(super) fn create_directory(directory: &Path) -> Result<(), FileSinkError> {
    let mut parents = Vec::new();
    for ancestor in directory.ancestors() {
        if ancestor.as_os_str().is_empty() || length(ancestor)?.is_some() {
            break;
        }
        parents.push(match ancestor.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        });
    }
    fs::create_dir_all(directory).map_err(FileSinkError::io("create the directory", directory))?;
    parents.into_iter().try_for_each(sync_directory)
}
