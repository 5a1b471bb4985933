//! A transactional sink into files of one directory: two-phase commit by rename.
//!
//! Invariant: a visible file (`part-…`) holds exactly what one subtask wrote between two barriers, and exists only if the
//! checkpoint of the second is complete. Whatever happens in between, each such file appears exactly once, whole.
//!
//! | step | on disk | durable by |
//! |---|---|---|
//! | write | `.<uid>-<job>-s<subtask>-e<epoch>-a<attempt>-<n>.inprogress` grows | nothing yet |
//! | prepare | the same, closed; the committable names it and its future name | fsync of file, then of directory |
//! | commit | renamed to `part-<uid>-<job, 8 digits>-s<subtask>-c<checkpoint>.<ext>` | fsync of directory |
//! | recover | `.inprogress` files of former attempts are deleted, except prepared ones that the checkpoint names | not needed: repeated |
//!
//! What is prepared for a plain savepoint is named `….savepoint` instead: it is committed like the rest, and no recovery deletes it, since
//! a job may start from the savepoint at any time.
//!
//! The order of the fsyncs is what the promise rests on: content and name are durable before the checkpoint can complete, the
//! rename before the commit is reported. A failed fsync is never retried (the kernel may have dropped the pages): the
//! attempt fails and its successor writes a new file.
//!
//! It rolls files at checkpoints only; it does not delete visible files when a person steps a job back below a completed
//! checkpoint. A job that ends is settled by the TaskManagers that its last tasks ran on: output of a completed checkpoint
//! becomes visible, the rest goes; what a killed TaskManager left is settled by a restore only. The file system must rename atomically
//! and be shared by all TaskManagers: local disks, NFS; not an object store.

mod commit;
mod disk;
mod error;
mod names;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use perennial_actors::model::CheckpointId;

use super::encoder::{DisplayLines, Encoder, JsonLines};
use super::{Committable, Sink, SinkWriter, SubtaskContext};
use crate::batch::{Batch, Record};
use crate::error::FunctionResult;
pub use commit::WhenMissing;
use commit::{COMMITTABLE_FORMAT, PreparedFile, commit_file};
use disk::{create_directory, remove, sync_directory};
pub use error::FileSinkError;
use error::fail;
use names::{HiddenName, part_name, savepoint_name, uid_for_names};

/// Lines are collected up to about this many bytes before they are written.
pub const WRITE_BUFFER_MAX: usize = 256 * 1024;

/// Writes records into files of a directory, exactly once. See the module's table.
#[derive(Debug)]
pub struct FileSink<T, E> {
    directory: PathBuf,
    encoder: E,
    when_missing: WhenMissing,
    record: PhantomData<fn(T)>,
}

impl<T, E: Clone> Clone for FileSink<T, E> {
    fn clone(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            encoder: self.encoder.clone(),
            when_missing: self.when_missing,
            record: PhantomData,
        }
    }
}

impl<T: Record, E: Encoder<T>> FileSink<T, E> {
    /// Writes into a directory, which is created where needed. Several operators and jobs may share it. A path, no URI: a relative one is
    /// below the working directory of each TaskManager.
    pub fn new(directory: impl Into<PathBuf>, encoder: E) -> Self {
        Self {
            directory: directory.into(),
            encoder,
            when_missing: WhenMissing::default(),
            record: PhantomData,
        }
    }

    /// See [`WhenMissing`].
    #[must_use]
    pub fn when_missing(mut self, when_missing: WhenMissing) -> Self {
        self.when_missing = when_missing;
        self
    }
}

impl<T: Record + std::fmt::Display> FileSink<T, DisplayLines> {
    /// One line per record, as it displays itself.
    pub fn lines(directory: impl Into<PathBuf>) -> Self {
        Self::new(directory, DisplayLines)
    }
}

impl<T: Record> FileSink<T, JsonLines> {
    /// One line of JSON per record.
    pub fn json(directory: impl Into<PathBuf>) -> Self {
        Self::new(directory, JsonLines)
    }
}

impl<T: Record, E: Encoder<T>> Sink<T> for FileSink<T, E> {
    fn is_transactional(&self) -> bool {
        true
    }

    fn writer(&self, context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        let writer = FileWriter {
            uid: uid_for_names(&context.uid, context.operator),
            context: context.clone(),
            directory: self.directory.clone(),
            encoder: self.encoder.clone(),
            when_missing: self.when_missing,
            buffer: Vec::new(),
            open: None,
            files: 0,
            since: None,
        };
        writer
            .open_directory()
            .map_err(|error| fail(error.at_start()))?;
        Ok(Box::new(writer))
    }
}

#[derive(Debug)]
struct OpenFile {
    name: String,
    file: File,
    bytes: u64,
    records: u64,
    is_broken: bool,
}

/// How long a prepared file may be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Until its checkpoint is complete or given up, which every recovery knows.
    Decided,
    /// Until a savepoint is restored, which nobody knows.
    Restored,
}

struct FileWriter<E> {
    context: SubtaskContext,
    /// As it stands in names.
    uid: String,
    directory: PathBuf,
    encoder: E,
    when_missing: WhenMissing,
    /// Whole lines that are not written yet.
    buffer: Vec<u8>,
    open: Option<OpenFile>,
    /// Files begun by this attempt.
    files: u64,
    /// The last barrier known of, for messages.
    since: Option<CheckpointId>,
}

impl<E> FileWriter<E> {
    fn hidden_name(&self, number: u64) -> String {
        HiddenName::new(&self.uid, &self.context.attempt, number).to_string()
    }

    fn directory_text(&self) -> Result<&str, FileSinkError> {
        self.directory
            .to_str()
            .ok_or_else(|| FileSinkError::NotUtf8 {
                path: self.directory.clone(),
            })
    }

    /// Creates the directory durably and proves that files can be created in it, so that a wrong one fails the start and not
    /// the first checkpoint.
    fn open_directory(&self) -> Result<(), FileSinkError> {
        if self.directory_text()?.contains("://") {
            let path = self.directory.clone();
            return Err(FileSinkError::Uri { path });
        }
        create_directory(&self.directory)?;
        // Number 0 is never a file of records; a crash in between leaves a name that `recover` knows.
        let probe = self.directory.join(self.hidden_name(0));
        File::create(&probe).map_err(FileSinkError::io("create files in", &self.directory))?;
        remove(&probe)
    }

    fn begin(&mut self) -> Result<(), FileSinkError> {
        self.files += 1;
        let name = self.hidden_name(self.files);
        let path = self.directory.join(&name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(FileSinkError::io("create", &path))?;
        self.open = Some(OpenFile {
            name,
            file,
            bytes: 0,
            records: 0,
            is_broken: false,
        });
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<(), FileSinkError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let path = self.directory.join(&open.name);
        if open.is_broken {
            return Err(FileSinkError::Broken { path });
        }
        // Broken until proven otherwise: after a failed write nobody knows how much of it is in the file.
        open.is_broken = true;
        open.file
            .write_all(&self.buffer)
            .map_err(FileSinkError::io("write to", &path))?;
        open.is_broken = false;
        open.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn prepare(
        &mut self,
        checkpoint: CheckpointId,
        until: Until,
    ) -> Result<Option<PreparedFile>, FileSinkError> {
        self.write_buffer()?;
        let since = self.since.replace(checkpoint);
        let directory = self.directory_text()?.to_owned();
        let Some(open) = self.open.as_mut().filter(|open| open.records > 0) else {
            return Ok(None);
        };
        let path = self.directory.join(&open.name);
        open.is_broken = true;
        let actual = open
            .file
            .metadata()
            .map_err(FileSinkError::io("inspect", &path))?
            .len();
        if actual != open.bytes {
            return Err(FileSinkError::WrongLength {
                path,
                checkpoint,
                expected: open.bytes,
                actual,
            });
        }
        // Order matters: content, then name, then the committable that makes others rely on both.
        open.file
            .sync_all()
            .map_err(FileSinkError::io("fsync", &path))?;
        let hidden = match until {
            Until::Decided => open.name.clone(),
            Until::Restored => {
                let name = savepoint_name(&open.name);
                let lasting = self.directory.join(&name);
                fs::rename(&path, lasting).map_err(FileSinkError::io("rename", &path))?;
                name
            }
        };
        sync_directory(&self.directory)?;
        let attempt = &self.context.attempt;
        let prepared = PreparedFile {
            format: COMMITTABLE_FORMAT,
            directory,
            hidden,
            part: String::new(),
            bytes: open.bytes,
            records: open.records,
            subtask: attempt.subtask.0,
            attempt: format!("{}.{}", attempt.epoch, attempt.attempt),
            since,
        };
        self.open = None;
        Ok(Some(prepared))
    }

    fn committable(
        &mut self,
        checkpoint: CheckpointId,
        until: Until,
        extension: &str,
    ) -> FunctionResult<Option<Vec<u8>>> {
        let Some(mut prepared) = self.prepare(checkpoint, until).map_err(fail)? else {
            return Ok(None);
        };
        prepared.part = part_name(&self.uid, &self.context.attempt, checkpoint, extension);
        Ok(Some(rmp_serde::to_vec_named(&prepared)?))
    }

    fn sweep(&self, committed: &[Committable]) -> Result<(), FileSinkError> {
        let spared = committed
            .iter()
            .map(|committable| PreparedFile::decode(committable).map(|file| file.hidden))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let list = FileSinkError::io("list", &self.directory);
        let entries = fs::read_dir(&self.directory).map_err(list)?;
        for entry in entries {
            let entry = entry.map_err(FileSinkError::io("list", &self.directory))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let is_stale = HiddenName::parse(name).is_some_and(|hidden| {
                hidden.is_of_former(&self.uid, &self.context.attempt, self.context.parallelism)
            });
            if is_stale && !spared.contains(name) {
                tracing::debug!(job = %self.context.attempt.job, file = name, "leftover of a former attempt deleted");
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl<T: Record, E: Encoder<T>> SinkWriter<T> for FileWriter<E> {
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult {
        if batch.is_empty() {
            return Ok(());
        }
        if self.open.is_none() {
            self.begin().map_err(fail)?;
        }
        for (index, record) in batch.values.iter().enumerate() {
            let line = self.buffer.len();
            let result = self.encoder.encode(record, &mut self.buffer);
            let result = result.and_then(|()| check_line(&self.buffer[line..]).map_err(fail));
            if let Err(error) = result {
                self.buffer.truncate(line);
                self.open.iter_mut().for_each(|open| open.is_broken = true);
                return Err(error.at_record(index));
            }
            self.buffer.push(b'\n');
            self.open.iter_mut().for_each(|open| open.records += 1);
            if self.buffer.len() >= WRITE_BUFFER_MAX {
                self.write_buffer().map_err(fail)?;
            }
        }
        batch.clear();
        Ok(())
    }

    fn prepare_commit(&mut self, checkpoint: CheckpointId) -> FunctionResult<Option<Vec<u8>>> {
        self.committable(checkpoint, Until::Decided, self.encoder.extension())
    }

    fn prepare_savepoint(&mut self, checkpoint: CheckpointId) -> FunctionResult<Option<Vec<u8>>> {
        self.committable(checkpoint, Until::Restored, self.encoder.extension())
    }

    fn commit(&mut self, committable: &Committable) -> FunctionResult {
        let file = PreparedFile::decode(committable).map_err(fail)?;
        commit_file(&file, committable.checkpoint, self.when_missing).map_err(fail)
    }

    /// Deletes what former attempts of this job and operator left, except what `committed` names: that is committed by whoever
    /// got it. Leftovers are dealt out by the number of the subtask that made them, so each is swept once all subtasks have
    /// recovered. Every subtask must be given **all** committables of the operator in the restored checkpoint, since it may
    /// not be the one that commits what it finds. Subtasks may do this at the same time, before or after commits.
    fn recover(&mut self, committed: &[Committable]) -> FunctionResult {
        self.sweep(committed).map_err(fail)?;
        self.since = committed.iter().map(|c| c.checkpoint).max();
        Ok(())
    }

    fn close(&mut self) -> FunctionResult {
        self.buffer.clear();
        // Not prepared, so nobody will ever want it. What was prepared stays: its checkpoint may complete yet.
        if let Some(open) = self.open.take() {
            remove(&self.directory.join(open.name)).map_err(fail)?;
        }
        Ok(())
    }
}

/// A record must be one line.
fn check_line(line: &[u8]) -> Result<(), FileSinkError> {
    const EXCERPT: usize = 80;
    if line.contains(&b'\n') {
        let excerpt = &line[..line.len().min(EXCERPT)];
        return Err(FileSinkError::LineBreak {
            record: String::from_utf8_lossy(excerpt).into_owned(),
        });
    }
    Ok(())
}

/// The visible lines of a directory, sorted by file name: by operator, job, subtask and checkpoint. For tests and people; it
/// holds all of them in memory.
pub fn read_committed(directory: impl AsRef<Path>) -> Result<Vec<String>, FileSinkError> {
    let directory = directory.as_ref();
    let mut parts = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(FileSinkError::io("list", directory))? {
        let entry = entry.map_err(FileSinkError::io("list", directory))?;
        if entry.file_name().to_string_lossy().starts_with("part-") {
            parts.insert(entry.path());
        }
    }
    let mut lines = Vec::new();
    for part in parts {
        let text = fs::read_to_string(&part).map_err(FileSinkError::io("read", &part))?;
        lines.extend(text.lines().map(str::to_owned));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
