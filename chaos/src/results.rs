//! The file that a campaign's reports are kept in: one JSON line per run, appended, so that results add up over calls.
//!
//! Invariant: a report is in it whole or not at all. A process that is killed while it writes leaves a torn last line, which the next one
//! cuts off; a broken line anywhere else is an error, because somebody else wrote it. One campaign at a time writes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::plan::Carrier;
use crate::report::RunReport;

/// Its name in a campaign's directory.
pub const FILE: &str = "runs.jsonl";

/// Results that can be added to.
#[derive(Debug)]
pub struct Results {
    file: File,
    path: PathBuf,
    /// What there is.
    pub reports: Vec<RunReport>,
}

impl Results {
    /// Opens those of a directory, or begins with none; nobody else can then.
    ///
    /// # Errors
    /// When the file cannot be read or written, another campaign has it, or a line before the last is no report.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another campaign writes to {}: wait for its end, or choose another --dir",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let (reports, whole) = parse(&text).with_context(|| path.display().to_string())?;
        if whole < text.len() {
            file.set_len(whole as u64)?;
            file.seek(SeekFrom::End(0))?;
        }
        Ok(Self {
            file,
            path,
            reports,
        })
    }

    /// Reads those of a directory without the right to add.
    ///
    /// # Errors
    /// When there are none, or a line before the last is no report.
    pub fn read(directory: &Path) -> anyhow::Result<Vec<RunReport>> {
        let path = directory.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "there are no results in {}: run a `campaign` first, or name another --dir",
                directory.display()
            ),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(parse(&text).with_context(|| path.display().to_string())?.0)
    }

    /// Adds a report.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, report: RunReport) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&report)?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.reports.push(report);
        Ok(())
    }

    /// The first seed that no run of this kind has had; `None`: there was none.
    #[must_use]
    pub fn next_seed(&self, carrier: Carrier) -> Option<u64> {
        let of_kind = |report: &&RunReport| report.plan.carrier == carrier;
        let reports = self.reports.iter().filter(of_kind);
        let last = reports.map(|report| report.plan.seed).max();
        last.map(|seed| seed.saturating_add(1))
    }
}

/// Reports, and how many bytes they are: what follows is torn.
fn parse(text: &[u8]) -> anyhow::Result<(Vec<RunReport>, usize)> {
    let mut reports = Vec::new();
    let mut whole = 0;
    for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            break;
        }
        whole += line.len();
        if line.trim_ascii().is_empty() {
            continue;
        }
        let report = serde_json::from_slice(line)
            .with_context(|| format!("line {} is no report of a run", index + 1))?;
        reports.push(report);
    }
    Ok((reports, whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use crate::report::Outcome;
    use crate::summary::tests::report;

    /// Three calls, the second one killed in the middle of a line: what was whole is there, and adds up.
    #[test]
    fn results_add_up_over_calls_and_a_torn_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("new");
        let of = |seed| report(Profile::Mixed, seed, Outcome::Pass);
        let mut results = Results::open(&below).unwrap();
        assert_eq!(results.next_seed(Carrier::Process), None);
        results.append(of(4)).unwrap();
        assert!(Results::open(&below).is_err(), "two campaigns at a time");
        drop(results);

        let mut torn = serde_json::to_vec(&of(5)).unwrap();
        torn.truncate(torn.len() / 2);
        let mut file = OpenOptions::new()
            .append(true)
            .open(below.join(FILE))
            .unwrap();
        file.write_all(&torn).unwrap();
        assert_eq!(Results::read(&below).unwrap(), [of(4)]);

        let mut results = Results::open(&below).unwrap();
        assert_eq!(results.next_seed(Carrier::Process), Some(5));
        assert_eq!(results.next_seed(Carrier::Simulator), None);
        results.append(of(5)).unwrap();
        drop(results);
        assert_eq!(Results::read(&below).unwrap(), [of(4), of(5)]);
    }

    /// Somebody else's line is not skipped in silence.
    #[test]
    fn a_broken_line_in_the_middle_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "\n{\"half\":\n").unwrap();
        let error = format!("{:#}", Results::read(directory.path()).unwrap_err());
        assert!(error.contains("line 2") && error.contains(FILE), "{error}");
        let error = Results::read(&directory.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("campaign"), "{error}");
    }
}
