//! Sources of lines and of JSON records in files.
//!
//! Invariant: a split's position is the byte offset at which its next line begins, whatever the reads were cut into. So a
//! reader that continues from a snapshot yields exactly the lines that its predecessor had not.
//!
//! One split per file, read one after another. A file is read once, to the end it has when the reader gets there: it does
//! not wait for files to grow, and a file that is changed before its position cannot be noticed beyond what is checked here
//! (its length, and that a line begins at the position). The list of files must be the same on all subtasks when the job
//! starts without state: complete a directory before the job reads it.

mod decode;
mod error;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use perennial_actors::clock::Instant;

use super::{Source, SourceReader, SourceSplit, SourceStatus, SubtaskContext};
use crate::batch::{Batch, Timestamp};
use crate::error::FunctionResult;
pub use decode::{Decoded, JsonDecoder, LineDecoder, TextDecoder};
pub use error::FileSourceError;
use error::fail;

/// Longest line accepted unless set otherwise, in bytes, without its end.
pub const LINE_LENGTH_MAX: usize = 1024 * 1024;

/// A poll ends after about this many bytes, so that long lines do not make a huge batch.
pub const POLL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most files that one source reads.
pub const FILES_MAX: usize = 100_000;

/// Bytes read from a file at once.
const READ_BUFFER: usize = 256 * 1024;

/// How much of a bad line an error shows.
const EXCERPT_MAX: usize = 80;

/// Version of what a split stores.
const SPLIT_FORMAT: u8 = 1;

/// Lines of text: without their end (`\n` or `\r\n`), the last one with or without; invalid UTF-8 is an error.
pub type LinesSource = FileSource<TextDecoder>;

/// Records from lines of JSON; blank lines are skipped.
pub type JsonSource<T> = FileSource<JsonDecoder<T>>;

#[derive(Debug, Clone)]
enum Input {
    Files(Vec<PathBuf>),
    /// Its regular files that are not hidden, without those of directories in it.
    Directory(PathBuf),
}

/// Reads records from the lines of files. See [`LinesSource`] and [`JsonSource`].
///
/// ```
/// use perennial::connector::file_source::{JsonSource, LinesSource};
/// let lines = LinesSource::files(["a.txt", "b.txt"]).line_length_max(10_000);
/// let pairs = JsonSource::<(u64, String)>::directory("in").skip_bad_lines(10);
/// # let _ = (lines, pairs);
/// ```
#[derive(Debug, Clone)]
pub struct FileSource<D> {
    input: Input,
    decoder: D,
    line_length_max: usize,
    bad_lines_max: u64,
}

impl<D: LineDecoder + Default> FileSource<D> {
    /// Reads the given files, in the order of their names.
    pub fn files<P: Into<PathBuf>>(files: impl IntoIterator<Item = P>) -> Self {
        Self::of(Input::Files(files.into_iter().map(Into::into).collect()))
    }

    /// Reads the regular files of a directory, in the order of their names, except hidden ones (`.name`). Directories in it
    /// are not entered. They are listed when the job starts without state; files added later are not read.
    pub fn directory(directory: impl Into<PathBuf>) -> Self {
        Self::of(Input::Directory(directory.into()))
    }

    fn of(input: Input) -> Self {
        Self {
            input,
            decoder: D::default(),
            line_length_max: LINE_LENGTH_MAX,
            bad_lines_max: 0,
        }
    }
}

impl<D> FileSource<D> {
    /// Changes [`LINE_LENGTH_MAX`]: a longer line is an error.
    #[must_use]
    pub fn line_length_max(mut self, bytes: usize) -> Self {
        self.line_length_max = bytes;
        self
    }

    /// Skips up to this many bad lines of each file; one more is an error. They are counted in the checkpoint, so that a
    /// restart neither forgets nor repeats one.
    #[must_use]
    pub fn skip_bad_lines(mut self, limit_per_file: u64) -> Self {
        self.bad_lines_max = limit_per_file;
        self
    }

    /// Sorted, unique, existing, and text.
    fn list(&self) -> Result<Vec<String>, FileSourceError> {
        let paths = |reason, path: &Path| FileSourceError::Paths {
            reason,
            path: path.to_owned(),
        };
        let mut files = match &self.input {
            Input::Files(files) => files.clone(),
            Input::Directory(directory) => list_directory(directory)?,
        };
        files.sort_unstable();
        if files.len() > FILES_MAX {
            let reason = "more files than one source reads (100000), the last one is";
            return Err(paths(reason, &files[FILES_MAX]));
        }
        if let Some(twice) = files.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(paths("a file is given twice", &twice[0]));
        }
        let mut ids = Vec::with_capacity(files.len());
        for file in files {
            regular_file_length(&file)?;
            let id = file
                .to_str()
                .ok_or_else(|| paths("a path is not UTF-8", &file))?;
            ids.push(id.to_owned());
        }
        Ok(ids)
    }
}

fn list_directory(directory: &Path) -> Result<Vec<PathBuf>, FileSourceError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(FileSourceError::io("list", directory))? {
        let entry = entry.map_err(FileSourceError::io("list", directory))?;
        let path = entry.path();
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let metadata = fs::metadata(&path).map_err(FileSourceError::io("inspect", &path))?;
        if metadata.is_file() && !is_hidden && files.len() <= FILES_MAX {
            files.push(path);
        }
    }
    Ok(files)
}

/// Also refuses what would block when it is opened.
fn regular_file_length(path: &Path) -> Result<u64, FileSourceError> {
    let metadata = fs::metadata(path).map_err(FileSourceError::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(FileSourceError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(metadata.len())
}

impl<D: LineDecoder> Source for FileSource<D> {
    type Item = D::Item;

    fn splits(&self, _parallelism: u32) -> FunctionResult<Vec<SourceSplit>> {
        let begin = |id| FileSplit {
            path: id,
            offset: 0,
            watermark: None,
            is_done: false,
            bad_lines: 0,
        };
        let files = self.list().map_err(fail)?;
        Ok(files
            .into_iter()
            .map(|id| begin(id).to_source_split())
            .collect())
    }

    fn reader(
        &self,
        _context: &SubtaskContext,
        splits: Vec<SourceSplit>,
    ) -> FunctionResult<Box<dyn SourceReader<D::Item>>> {
        let splits = splits
            .into_iter()
            .map(FileSplit::from_source_split)
            .collect::<Result<Vec<_>, _>>()
            .map_err(fail)?;
        for split in splits.iter().filter(|split| !split.is_done) {
            split.open().map_err(fail)?;
        }
        Ok(Box::new(FileReader {
            decoder: self.decoder.clone(),
            line_length_max: self.line_length_max,
            bad_lines_max: self.bad_lines_max,
            splits,
            current: 0,
            open: None,
            line: Vec::new(),
            records: Vec::new(),
            has_appended: false,
        }))
    }
}

/// A file and how far it has been read.
#[derive(Debug)]
struct FileSplit {
    path: String,
    /// Where the next line begins.
    offset: u64,
    /// Kept for the runtime, which owns it.
    watermark: Option<Timestamp>,
    /// Its end was reached: the file is not needed any more.
    is_done: bool,
    /// Skipped so far.
    bad_lines: u64,
}

impl FileSplit {
    /// Format, whether done, number of bad lines.
    fn to_source_split(&self) -> SourceSplit {
        let mut extra = vec![SPLIT_FORMAT, u8::from(self.is_done)];
        extra.extend(self.bad_lines.to_le_bytes());
        SourceSplit {
            id: self.path.clone(),
            position: self.offset,
            watermark: self.watermark,
            extra,
        }
    }

    fn from_source_split(split: SourceSplit) -> Result<Self, FileSourceError> {
        match <[u8; 10]>::try_from(split.extra.as_slice()) {
            Ok([SPLIT_FORMAT, is_done @ (0 | 1), bad_lines @ ..]) => Ok(Self {
                path: split.id,
                offset: split.position,
                watermark: split.watermark,
                is_done: is_done == 1,
                bad_lines: u64::from_le_bytes(bad_lines),
            }),
            Ok(_) | Err(_) => Err(FileSourceError::Split { id: split.id }),
        }
    }

    /// Opens the file at the position, after a look whether a line can begin there.
    fn open(&self) -> Result<File, FileSourceError> {
        let path = Path::new(&self.path);
        let changed = |what| FileSourceError::Changed {
            path: self.path.clone(),
            position: self.offset,
            what,
        };
        let length = regular_file_length(path)?;
        if length < self.offset {
            return Err(changed(format!("has only {length}")));
        }
        let mut file = File::open(path).map_err(FileSourceError::io("open", path))?;
        if let Some(before) = self.offset.checked_sub(1) {
            let mut byte = [0];
            file.seek(SeekFrom::Start(before))
                .and_then(|_| file.read_exact(&mut byte))
                .map_err(FileSourceError::io("read", path))?;
            // At the end of the file, the last line may have had no end.
            if byte != *b"\n" && length > self.offset {
                return Err(changed("no line begins there".to_owned()));
            }
        }
        Ok(file)
    }
}

struct FileReader<D> {
    decoder: D,
    line_length_max: usize,
    bad_lines_max: u64,
    splits: Vec<FileSplit>,
    /// Place of the split being read; those before it are done.
    current: usize,
    /// Of the current split, at its offset.
    open: Option<BufReader<File>>,
    /// The line being read; its memory is reused and bounded by the longest line.
    line: Vec<u8>,
    /// Split and offset of each record of the last poll that appended any; its memory is reused.
    records: Vec<(usize, u64)>,
    /// Whether the poll under way has appended one; stays false after one that failed before.
    has_appended: bool,
}

/// What reading on gave.
enum Next<T> {
    Record(T),
    /// A line that is no record.
    Skipped,
    EndOfFile,
}

impl<D: LineDecoder> FileReader<D> {
    /// Reads a line of the current split and moves behind it. After an error the position is still before the line.
    fn next(&mut self) -> Result<(Next<D::Item>, usize), FileSourceError> {
        let split = &mut self.splits[self.current];
        // Taken out, and put back only after success: after an error the file is not where the split says.
        let mut reader = match self.open.take() {
            Some(reader) => reader,
            None => BufReader::with_capacity(READ_BUFFER, split.open()?),
        };
        self.line.clear();
        // Two more for the line's end.
        let limit = (self.line_length_max as u64).saturating_add(2);
        let read = (&mut reader)
            .take(limit)
            .read_until(b'\n', &mut self.line)
            .map_err(FileSourceError::io("read", Path::new(&split.path)))?;
        if read == 0 {
            split.is_done = true;
            return Ok((Next::EndOfFile, 0));
        }
        let line = match self.line.as_slice() {
            [line @ .., b'\r', b'\n'] | [line @ .., b'\n'] | line => line,
        };
        if line.len() > self.line_length_max {
            return Err(FileSourceError::LineTooLong {
                path: split.path.clone(),
                offset: split.offset,
                max: self.line_length_max,
            });
        }
        let next = match self.decoder.decode(line) {
            Ok(Decoded::Record(record)) => {
                if !self.has_appended {
                    self.has_appended = true;
                    self.records.clear();
                }
                self.records.push((self.current, split.offset));
                Next::Record(record)
            }
            Ok(Decoded::Nothing) => Next::Skipped,
            Err(reason) => {
                let excerpt = &line[..line.len().min(EXCERPT_MAX)];
                let bad_line = FileSourceError::BadLine {
                    path: split.path.clone(),
                    offset: split.offset,
                    reason,
                    excerpt: String::from_utf8_lossy(excerpt).into_owned(),
                };
                if self.bad_lines_max == 0 {
                    return Err(bad_line);
                }
                if split.bad_lines == self.bad_lines_max {
                    return Err(FileSourceError::TooManyBadLines {
                        path: split.path.clone(),
                        limit: self.bad_lines_max,
                        source: Box::new(bad_line),
                    });
                }
                split.bad_lines += 1;
                if split.bad_lines == 1 {
                    tracing::warn!(error = %bad_line, "first bad line of a file skipped");
                }
                Next::Skipped
            }
        };
        split.offset += read as u64;
        // After a last line without an end the file is opened anew, which finds out whether it has grown: the rest would be another line.
        self.open = self.line.ends_with(b"\n").then_some(reader);
        Ok((next, read))
    }

    /// Whether there is a split left to read; moves to it.
    fn seek_split(&mut self) -> bool {
        while let Some(split) = self.splits.get(self.current) {
            if !split.is_done {
                return true;
            }
            self.current += 1;
            self.open = None;
        }
        false
    }
}

impl<D: LineDecoder> SourceReader<D::Item> for FileReader<D> {
    fn poll(
        &mut self,
        out: &mut Batch<D::Item>,
        max: usize,
        _now: Instant,
    ) -> FunctionResult<SourceStatus> {
        let mut bytes = 0;
        self.has_appended = false;
        // Lines that are no records count too: a poll is bounded whatever the file holds.
        for _ in 0..max {
            if bytes >= POLL_BYTES_MAX {
                break;
            }
            if !self.seek_split() {
                break;
            }
            let (next, read) = self.next().map_err(fail)?;
            bytes += read;
            match next {
                Next::Record(record) => out.push(record, None),
                Next::Skipped | Next::EndOfFile => {}
            }
        }
        // What a poll before has appended is still what was read last.
        self.has_appended = true;
        // Records come with `More` only.
        if bytes == 0 && !self.seek_split() {
            return Ok(SourceStatus::Finished);
        }
        Ok(SourceStatus::More)
    }

    fn snapshot(&self) -> Vec<SourceSplit> {
        self.splits.iter().map(FileSplit::to_source_split).collect()
    }

    fn position(&self, index: usize) -> Option<(String, u64)> {
        let appended = match self.has_appended {
            true => &self.records[..],
            false => &[],
        };
        if let Some((split, offset)) = appended.get(index) {
            return Some((self.splits[*split].path.clone(), *offset));
        }
        let next = self.splits.get(self.current)?;
        (index == appended.len()).then(|| (next.path.clone(), next.offset))
    }
}

#[cfg(test)]
mod tests;
