//! What a job says of itself while it runs: lines of `<microseconds since the epoch> <what> <details>` in a file per process.
//!
//! The jobs in Java write the same lines, so that both systems are timed by the same events, and not by what each says of itself.
//! Nothing is written per record.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A mark cannot be written, or read back.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} marks in {}: {source}; the directory must exist on all nodes", path.display())]
pub struct MarksError {
    operation: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// Microseconds since the epoch, now.
#[must_use]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Where marks go, if anywhere.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    directory: Option<PathBuf>,
}

impl Marks {
    /// Into a directory that exists; `None`: nowhere.
    #[must_use]
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    /// Whether somebody listens.
    #[must_use]
    pub fn are_wanted(&self) -> bool {
        self.directory.is_some()
    }

    /// Adds a mark. Details are `name=value`, separated by spaces; the process is added.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, what: &str, details: &str) -> Result<(), MarksError> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let pid = std::process::id();
        let path = directory.join(format!("marks-{pid}"));
        let line = format!("{} {what} {details} pid={pid}\n", now_us());
        let file = OpenOptions::new().create(true).append(true).open(&path);
        // One write, so that the threads of a process do not mix their lines.
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|source| MarksError {
                operation: "write",
                path,
                source,
            })
    }
}

/// A mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Since the epoch.
    pub at_us: u64,
    /// Kind.
    pub what: String,
    /// By name.
    pub details: BTreeMap<String, String>,
}

impl Mark {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        Some(Self {
            at_us: words.next()?.parse().ok()?,
            what: words.next()?.to_owned(),
            details: words
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    /// A number among the details.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.details.get(name)?.parse().ok()
    }
}

/// All marks of a directory in the order of time. A line that is being written is left out.
///
/// # Errors
/// When the directory cannot be read.
pub fn read(directory: &Path) -> Result<Vec<Mark>, MarksError> {
    let error = |source| MarksError {
        operation: "read",
        path: directory.to_owned(),
        source,
    };
    let mut marks = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(error)? {
        let text = std::fs::read_to_string(entry.map_err(error)?.path()).map_err(error)?;
        let whole = text
            .rsplit_once('\n')
            .map_or("", |(whole, _being_written)| whole);
        marks.extend(whole.lines().filter_map(Mark::parse));
    }
    marks.sort_by_key(|mark| mark.at_us);
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one process writes another reads, but for the line that it has not finished.
    #[test]
    fn marks_are_read_back_whole() {
        let directory = std::env::temp_dir().join(format!("marks-{}", now_us()));
        std::fs::create_dir(&directory).unwrap();
        let marks = Marks::new(Some(directory.clone()));
        marks.put("first", "subtask=1 attempt=2").unwrap();
        std::fs::write(directory.join("marks-1"), "5 early x=y pid=1\n7 ear").unwrap();
        let read = read(&directory).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(read.len(), 2, "{read:?}");
        assert_eq!((read[0].at_us, read[0].what.as_str()), (5, "early"));
        assert_eq!(read[1].number("subtask"), Some(1));
        assert_eq!(read[1].number("pid"), Some(std::process::id().into()));
        assert!(Marks::default().put("nowhere", "").is_ok());
    }
}
