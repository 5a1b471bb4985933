//! What the example jobs must give, by plain loops.
//!
//! Invariant: shares no code with the engine and none with the jobs. Events, counts and lines are written down here a second time, so
//! that a mistake in either place shows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};

/// Counts that a keyed state must hold, by key as text.
pub type Counts = BTreeMap<String, u64>;

/// How far each lane of a source has been read.
pub type Positions = BTreeMap<u64, u64>;

/// Keyed state of a job as a function of its source positions.
pub trait StateOracle: Send + Sync {
    /// `uid` of the source.
    fn source(&self) -> &str;
    /// `uid` of the operator with the state.
    fn operator(&self) -> &str;
    /// Name of the state.
    fn state(&self) -> &str;
    /// The lanes that there must be positions for.
    fn lanes(&self) -> u64;
    /// What the state must hold.
    fn expected(&self, positions: &Positions) -> Counts;
    /// Reads a stored key (postcard).
    ///
    /// # Errors
    /// When it is not one.
    fn key(&self, bytes: &[u8]) -> anyhow::Result<String>;
}

/// One round of `SplitMix64`, from its definition.
fn split_mix(seed: u64) -> u64 {
    let state = u128::from(seed) + 1;
    let mut z = ((state * 0x9E37_79B9_7F4A_7C15) & u128::from(u64::MAX)) as u64;
    z ^= z >> 30;
    z = z.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^= z >> 27;
    z = z.wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The share of a lane in a total that is dealt out one by one.
fn dealt(total: u64, lanes: u64, lane: u64) -> u64 {
    total / lanes + if lane < total % lanes { 1 } else { 0 }
}

/// The job `abnormal-detection`.
#[derive(Debug, Clone)]
pub struct AbnormalDetection {
    /// `--seed`.
    pub seed: u64,
    /// `--users`.
    pub users: u64,
    /// `--events`.
    pub events: u64,
    /// `--interval-ms`.
    pub interval_ms: u64,
    /// `--abnormal-share`.
    pub abnormal_share: f64,
}

impl AbnormalDetection {
    fn is_abnormal(&self, lane: u64, index: u64) -> bool {
        let random = split_mix(split_mix(self.seed ^ lane) ^ index);
        let uniform = (random >> 11) as f64 * 2_f64.powi(-53);
        uniform < self.abnormal_share
    }

    /// The lines of the committed output, sorted.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for lane in 0..self.users {
            let mut count = 0_u32;
            for index in 0..dealt(self.events, self.users, lane) {
                if self.is_abnormal(lane, index) {
                    count += 1;
                    if count > 2 {
                        let time = 1_700_000_000_000 + index * self.interval_ms.max(1);
                        lines.push(format!(
                            "ALARM user{} abnormalCount={count} time={time}",
                            lane + 1
                        ));
                    }
                }
            }
        }
        lines.sort_unstable();
        lines
    }
}

impl StateOracle for AbnormalDetection {
    fn source(&self) -> &str {
        "random-user-event-source"
    }

    fn operator(&self) -> &str {
        "abnormal-count"
    }

    fn state(&self) -> &str {
        "abnormalCount"
    }

    fn lanes(&self) -> u64 {
        self.users
    }

    fn expected(&self, positions: &Positions) -> Counts {
        let mut counts = Counts::new();
        for (lane, position) in positions {
            let abnormal = (0..*position)
                .filter(|i| self.is_abnormal(*lane, *i))
                .count();
            if abnormal > 0 {
                counts.insert(format!("user{}", lane + 1), abnormal as u64);
            }
        }
        counts
    }

    fn key(&self, bytes: &[u8]) -> anyhow::Result<String> {
        Ok(postcard::from_bytes(bytes)?)
    }
}

/// The job `keyed-count`.
#[derive(Debug, Clone)]
pub struct KeyedCount {
    /// `--keys`.
    pub keys: u64,
    /// `--events`.
    pub events: u64,
    /// `--lanes`.
    pub lanes: u64,
}

impl KeyedCount {
    fn event(&self, sequence: u64) -> (u64, bool) {
        let h = split_mix(sequence);
        let user = (h / 2) % self.keys;
        // The upper 24 bits as a fraction, below 3 in 10.
        let is_abnormal = (h >> 40) * 10 / (1 << 24) < 3;
        (user, is_abnormal)
    }

    /// The lines of the committed output, sorted: each user once for every third abnormal event.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let ends = (0..self.lanes).map(|lane| (lane, dealt(self.events, self.lanes, lane)));
        self.lines_up_to(&ends.collect())
    }

    /// Those of them that come from the events before some positions.
    #[must_use]
    pub fn lines_up_to(&self, positions: &Positions) -> Vec<String> {
        let mut lines: Vec<String> = self
            .expected(positions)
            .into_iter()
            .flat_map(|(user, count)| (0..(count >> 32) / 3).map(move |_| user.clone()))
            .collect();
        lines.sort_unstable();
        lines
    }
}

impl StateOracle for KeyedCount {
    fn source(&self) -> &str {
        "generator"
    }

    fn operator(&self) -> &str {
        "count"
    }

    fn state(&self) -> &str {
        "count"
    }

    fn lanes(&self) -> u64 {
        self.lanes
    }

    /// All events in the low half, abnormal ones in the high half.
    fn expected(&self, positions: &Positions) -> Counts {
        let mut counts = Counts::new();
        for (lane, position) in positions {
            for index in 0..*position {
                let (user, is_abnormal) = self.event(index * self.lanes + lane);
                let one = 1 + (u64::from(is_abnormal) << 32);
                *counts.entry(user.to_string()).or_default() += one;
            }
        }
        counts
    }

    fn key(&self, bytes: &[u8]) -> anyhow::Result<String> {
        Ok(postcard::from_bytes::<u64>(bytes)?.to_string())
    }
}

/// The lines of the job `word-count` over some texts, sorted.
#[must_use]
pub fn word_count(texts: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        let mut word = String::new();
        for c in text.chars().chain(['\n']) {
            if c.is_alphanumeric() {
                word.push(c);
            } else if !word.is_empty() {
                *counts
                    .entry(std::mem::take(&mut word).to_lowercase())
                    .or_default() += 1;
            }
        }
    }
    let mut lines: Vec<String> = counts.iter().map(|(w, n)| format!("{w} {n}")).collect();
    lines.sort_unstable();
    lines
}

/// All lines of the committed (visible) files of an output directory, sorted bytewise. A directory that is not there yet has none.
///
/// # Errors
/// When a file cannot be read, or ends within a line: a committed file is whole.
pub fn committed_lines(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(lines),
        Err(error) => return Err(error).context(directory.display().to_string()),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(
            text.is_empty() || text.ends_with('\n'),
            "{} ends within a line",
            path.display()
        );
        lines.extend(text.lines().map(str::to_owned));
    }
    lines.sort_unstable();
    Ok(lines)
}

/// Compares sorted lines and says how they differ.
///
/// # Errors
/// When they do.
pub fn compare(actual: &[String], expected: &[String]) -> anyhow::Result<()> {
    if actual == expected {
        return Ok(());
    }
    let tally = |lines: &[String]| {
        let mut tally: BTreeMap<String, i64> = BTreeMap::new();
        for line in lines {
            *tally.entry(line.clone()).or_default() += 1;
        }
        tally
    };
    let mut difference = tally(actual);
    for line in expected {
        *difference.entry(line.clone()).or_default() -= 1;
    }
    let sum = |sign: i64| -> i64 {
        difference
            .values()
            .map(|n| n * sign)
            .filter(|n| *n > 0)
            .sum()
    };
    let examples: Vec<String> = difference
        .iter()
        .filter(|(_, n)| **n != 0)
        .take(10)
        .map(|(line, n)| format!("{n:+} {line}"))
        .collect();
    bail!(
        "output differs from the sequential fold: {} lines, expected {}; {} too many (repeated), {} missing (lost), among them:\n{}",
        actual.len(),
        expected.len(),
        sum(1),
        sum(-1),
        examples.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lost, a repeated and a changed line are all seen.
    #[test]
    fn every_difference_is_seen() {
        let job = AbnormalDetection {
            seed: 7,
            users: 3,
            events: 300,
            interval_ms: 5,
            abnormal_share: 0.3,
        };
        let lines = job.lines();
        assert!(lines.len() > 50);
        compare(&lines, &lines).unwrap();
        let lost = &lines[1..];
        assert!(
            compare(lost, &lines)
                .unwrap_err()
                .to_string()
                .contains("1 missing")
        );
        assert!(
            compare(&lines, lost)
                .unwrap_err()
                .to_string()
                .contains("1 too many")
        );
    }

    /// The folds and the jobs' own helpers were written twice; they agree. (The helpers are not what tests compare with.)
    #[test]
    fn folds_agree_with_the_jobs_own_sums() {
        let job = AbnormalDetection {
            seed: 7,
            users: 3,
            events: 1000,
            interval_ms: 5,
            abnormal_share: 0.3,
        };
        let mut theirs: Vec<String> = perennial::jobs::abnormal_detection::expected_alarms(
            7,
            3,
            1000,
            std::time::Duration::from_millis(5),
            0.3,
        )
        .iter()
        .map(ToString::to_string)
        .collect();
        theirs.sort();
        assert_eq!(job.lines(), theirs);
        let job = KeyedCount {
            keys: 17,
            events: 1000,
            lanes: 3,
        };
        assert_eq!(
            job.lines().len() as u64,
            perennial::jobs::keyed_count::expected_total(1000, 17)
        );
        let all = Positions::from([(0, 334), (1, 333), (2, 333)]);
        assert_eq!(
            job.expected(&all)
                .values()
                .map(|n| n & 0xFFFF_FFFF)
                .sum::<u64>(),
            1000
        );
    }

    /// Files under way are not read; a torn one is an error.
    #[test]
    fn only_whole_visible_files_count() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("part-1.txt"), "b\na\n").unwrap();
        std::fs::write(directory.path().join(".x.inprogress"), "c\n").unwrap();
        assert_eq!(committed_lines(directory.path()).unwrap(), ["a", "b"]);
        std::fs::write(directory.path().join("part-2.txt"), "torn").unwrap();
        assert!(committed_lines(directory.path()).is_err());
    }

    /// Words as the job cuts them.
    #[test]
    fn words_are_counted() {
        let texts = ["To be, or not to be".to_owned(), "Be 2!".to_owned()];
        assert_eq!(word_count(&texts), ["2 1", "be 3", "not 1", "or 1", "to 2"]);
    }
}
