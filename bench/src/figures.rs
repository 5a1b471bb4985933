//! What is measured, and what of it is shown. Plain data and arithmetic.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::jobs::digest::Digest;
use crate::marks::Mark;

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Million events per second over the second half of the input, by the sources' own marks.
    WarmRate,
    /// Million events per second over the whole job, its start included.
    Rate,
    /// CPU seconds of all processes per million events.
    CpuPerMillion,
    /// Sum of the most memory that each process had resident, in MB.
    PeakMemory,
    /// Resident memory of the idle processes, in MB.
    IdleMemory,
    /// From the event that is measured to the first record of any subtask after it, in ms.
    FirstRecord,
    /// The same to the first record of the last subtask.
    EverySubtask,
    /// Half of the events take at most this, in µs.
    LatencyP50,
    /// 99 of 100 do.
    LatencyP99,
    /// 999 of 1000 do.
    LatencyP999,
    /// Median time of a checkpoint from trigger to completion, in ms.
    CheckpointTime,
    /// Median of what a checkpoint wrote, in MB.
    CheckpointSize,
    /// Longest time that a task stood still for a checkpoint, in ms.
    LongestPause,
    /// Checkpoints completed.
    Checkpoints,
    /// Share of the machine that others used meanwhile.
    ForeignCpu,
}

impl Metric {
    /// For tables.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WarmRate => "M events/s, warm half",
            Self::Rate => "M events/s",
            Self::CpuPerMillion => "CPU s per M events",
            Self::PeakMemory => "peak resident MB",
            Self::IdleMemory => "idle resident MB",
            Self::FirstRecord => "ms to first record",
            Self::EverySubtask => "ms to every subtask",
            Self::LatencyP50 => "latency p50 µs",
            Self::LatencyP99 => "latency p99 µs",
            Self::LatencyP999 => "latency p99.9 µs",
            Self::CheckpointTime => "checkpoint ms",
            Self::CheckpointSize => "checkpoint MB",
            Self::LongestPause => "longest pause ms",
            Self::Checkpoints => "checkpoints",
            Self::ForeignCpu => "CPU share of others",
        }
    }

    /// Whether more is better; of times, sizes and costs it is not.
    #[must_use]
    pub fn is_more_better(self) -> bool {
        matches!(self, Self::WarmRate | Self::Rate)
    }
}

/// One run of one peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured.
    pub metrics: BTreeMap<Metric, f64>,
    /// What came out, where the workload's output is bounded.
    pub output: Option<Digest>,
}

impl Measurement {
    /// Adds a figure; one that is not finite is none, and JSON has no word for it.
    pub fn set(&mut self, metric: Metric, value: f64) {
        if value.is_finite() {
            self.metrics.insert(metric, value);
        }
    }
}

/// Several values, by their middle and ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

impl Spread {
    /// `None` when there are no values.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) && middle > 0 {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            *values.get(middle)?
        };
        Some(Self {
            median,
            min: *values.first()?,
            max: *values.last()?,
            runs: values.len(),
        })
    }

    /// Each value turned into another.
    #[must_use]
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        let (one, other) = (change(self.min), change(self.max));
        Self {
            median: change(self.median),
            min: one.min(other),
            max: one.max(other),
            runs: self.runs,
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, max) = (short(self.min), short(self.max));
        write!(f, "{}", short(self.median))?;
        if min == max {
            Ok(())
        } else {
            write!(f, " ({min}-{max})")
        }
    }
}

/// Three digits that matter.
#[must_use]
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// Rate of the second half of the input, in million events per second: from when every reader had made half of its records to when the
/// first one had made all. `None` when there are too few marks to say.
#[must_use]
pub fn warm_rate(marks: &[Mark]) -> Option<f64> {
    let mut readers: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for mark in marks.iter().filter(|mark| mark.what == "progress") {
        let point = (mark.at_us as f64 / 1e6, mark.number("count")? as f64);
        readers
            .entry(mark.number("subtask")?)
            .or_default()
            .push(point);
    }
    readers.retain(|_subtask, points| points.iter().any(|(_at, count)| *count > 0.0));
    let half = readers.values().map(|points| {
        let all = points.last().map_or(0.0, |(_at, count)| *count);
        points.iter().find(|(_at, count)| *count >= all / 2.0)
    });
    let half = half.map(|point| point.map_or(0.0, |(at, _count)| *at));
    let half = half.fold(0.0, f64::max);
    let end = readers.values().filter_map(|points| points.last());
    let end = end.map(|(at, _count)| *at).fold(f64::INFINITY, f64::min);
    let made = |at: f64| -> f64 { readers.values().map(|points| count_at(points, at)).sum() };
    let rate = (made(end) - made(half)) / (end - half) / 1e6;
    (readers.values().all(|points| points.len() >= 4) && rate.is_finite() && rate > 0.0)
        .then_some(rate)
}

fn count_at(points: &[(f64, f64)], at: f64) -> f64 {
    for pair in points.windows(2) {
        let ((t0, n0), (t1, n1)) = (pair[0], pair[1]);
        if t0 <= at && at <= t1 {
            let share = if t1 > t0 { (at - t0) / (t1 - t0) } else { 1.0 };
            return n0 + (n1 - n0) * share;
        }
    }
    points.last().map_or(0.0, |(_at, count)| *count)
}

/// The sum of all subtasks' outputs, if each of so many has said what it saw.
#[must_use]
pub fn output(marks: &[Mark]) -> Option<Digest> {
    let mut digest = None;
    for mark in marks.iter().filter(|mark| mark.what == "digest") {
        digest.get_or_insert_with(Digest::default).merge(Digest {
            count: mark.number("count")?,
            sum: mark.number("sum")?,
        });
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(subtask: u64, at_us: u64, count: u64) -> Mark {
        let details = [("subtask", subtask), ("count", count)];
        Mark {
            at_us,
            what: "progress".into(),
            details: details.map(|(k, v)| (k.into(), v.to_string())).into(),
        }
    }

    /// A slow start of one reader does not count, nor the time when the other has ended.
    #[test]
    fn the_warm_rate_is_that_of_the_time_in_which_all_readers_are_in_their_second_half() {
        let mut marks = Vec::new();
        for (at, count) in [(0, 0), (1, 1), (3, 3), (4, 4), (5, 5), (6, 6)] {
            marks.push(progress(0, at * 1_000_000, count * 1_000_000));
        }
        for (at, count) in [(0, 0), (3, 1), (5, 3), (6, 4), (7, 5), (8, 6)] {
            marks.push(progress(1, at * 1_000_000, count * 1_000_000));
        }
        assert_eq!(warm_rate(&marks), Some(2.0));
        assert_eq!(warm_rate(&marks[..3]), None);
        assert_eq!(warm_rate(&[]), None);
    }

    /// Middle and ends, for odd and even numbers.
    #[test]
    fn a_spread_is_median_and_ends() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Spread::of([]), None);
        assert_eq!(spread.to_string(), "2.00 (1.00-3.00)");
        let left = spread.map(|value| 1.0 - value);
        assert_eq!((left.median, left.min, left.max), (-1.0, -2.0, 0.0));
    }
}
