//! A source of records computed from their number.
//!
//! Invariant: record `index` of lane `lane` is a pure function of (seed, lane, index, number of lanes), and in which order a
//! reader emits the records of its lanes is a pure function of their positions. So any continuation from a snapshot is the
//! one that the lost reader would have made, at any parallelism.
//!
//! It does not read a clock except to pace: event times come from the function.

mod lane;

use std::time::Duration;

use perennial_actors::clock::Instant;

use super::{Source, SourceReader, SourceSplit, SourceStatus, SubtaskContext};
use crate::batch::{Batch, Record, Timestamp};
use crate::error::{FunctionError, FunctionResult};
use lane::Lane;

/// Bound of the number of lanes: the highest max parallelism there is.
pub const LANES_MAX: u32 = 32_768;

/// A paced lane that was held up (back-pressure, a slow machine) makes good at most this much of its schedule at once. What it
/// missed while it was down is never made good: a new reader's schedule begins when it polls.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Records of a paced lane that are due within this time leave together, so that a high rate does not wake the task for each.
pub const PACING_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// A reader with several lanes takes turns after this many records, so that event time advances together in all of them.
pub const LANE_TURN: u64 = 1024;

/// Scrambles a number: the finaliser of splitmix64, i.e. the `n`-th output of that generator seeded with 0. Good enough to
/// draw keys and values from a sequence number, and the same on every machine and in every version.
#[inline]
#[must_use]
pub const fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Which record is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorContext {
    /// The source's seed.
    pub seed: u64,
    /// From 0.
    pub lane: u32,
    /// Within the lane, from 0.
    pub index: u64,
    /// Number of lanes.
    pub lanes: u32,
}

impl GeneratorContext {
    /// The record's number among those of all lanes: lane k of L has k, L + k, 2 L + k, …
    #[inline]
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.index
            .wrapping_mul(self.lanes as u64)
            .wrapping_add(self.lane as u64)
    }

    /// Scrambled bits of seed and sequence number. For more, scramble these again.
    #[inline]
    #[must_use]
    pub const fn random(&self) -> u64 {
        mix(self.sequence() ^ mix(self.seed))
    }
}

/// A generator cannot run as described.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GeneratorError {
    /// See [`LANES_MAX`].
    #[error("generator with {lanes} lanes: choose 1 to {LANES_MAX}")]
    Lanes {
        /// As asked for.
        lanes: u32,
    },
    /// Not a rate.
    #[error("generator with {rate} events per second and lane: choose a positive, finite rate")]
    Rate {
        /// As asked for.
        rate: f64,
    },
    /// The restored position is not one of a generator.
    #[error(
        "restored split `{id}` is not a generator's: {reason}; give the source another uid if it replaced one of another kind"
    )]
    Split {
        /// Its id.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The number of lanes was changed between two runs.
    #[error(
        "generator was stored with {stored} lanes and now has {configured}: every record would change its lane; keep {stored} or give the source another uid"
    )]
    LanesChanged {
        /// In the snapshot.
        stored: u32,
        /// In the job.
        configured: u32,
    },
}

/// Makes records from their numbers: seeded, replayable, in lanes. See the module's invariant.
///
/// ```
/// use perennial::connector::generator::GeneratorSource;
/// let source = GeneratorSource::new(Some(4), |c| (c.random() % 1000, Some(c.sequence() as i64)))
///     .seed(7)
///     .events(1_000_000)
///     .rate_per_lane(50_000.0);
/// # let _ = source;
/// ```
#[derive(Debug, Clone)]
pub struct GeneratorSource<F> {
    lanes: Option<u32>,
    seed: u64,
    events: Option<u64>,
    rate_per_lane: Option<f64>,
    prefill: u64,
    f: F,
}

impl<F> GeneratorSource<F> {
    /// An endless source, flat out, with seed 0. `lanes: None` makes one lane per subtask of the job's first start; a
    /// rescaled job keeps that number.
    pub fn new<T>(lanes: Option<u32>, f: F) -> Self
    where
        F: Fn(GeneratorContext) -> (T, Option<Timestamp>) + Clone + Send + Sync + 'static,
    {
        Self {
            lanes,
            seed: 0,
            events: None,
            rate_per_lane: None,
            prefill: 0,
            f,
        }
    }

    /// Changes the seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Ends after this many records in all. The sequence numbers are exactly `0..total`; lanes differ by at most one record.
    #[must_use]
    pub fn events(mut self, total: u64) -> Self {
        self.events = Some(total);
        self
    }

    /// Paces each lane to this many records per second.
    #[must_use]
    pub fn rate_per_lane(mut self, events_per_second: f64) -> Self {
        self.rate_per_lane = Some(events_per_second);
        self
    }

    /// Emits the first `total` records (sequence numbers below it) flat out and paces only what follows; to build up state
    /// before a measurement.
    #[must_use]
    pub fn prefill(mut self, total: u64) -> Self {
        self.prefill = total;
        self
    }

    fn validate(&self) -> Result<(), GeneratorError> {
        match (self.lanes, self.rate_per_lane) {
            (Some(lanes), _) if lanes == 0 || lanes > LANES_MAX => {
                Err(GeneratorError::Lanes { lanes })
            }
            (_, Some(rate)) if !(rate.is_finite() && rate > 0.0) => {
                Err(GeneratorError::Rate { rate })
            }
            _ => Ok(()),
        }
    }

    fn lane_of(&self, split: SourceSplit) -> Result<Lane, GeneratorError> {
        let error = |reason| GeneratorError::Split {
            id: split.id.clone(),
            reason,
        };
        let lane = split
            .id
            .strip_prefix("lane-")
            .and_then(|number| number.parse::<u32>().ok())
            .ok_or_else(|| error("its id is not lane-<number>"))?;
        let lanes = <[u8; 4]>::try_from(split.extra.as_slice())
            .map(u32::from_le_bytes)
            .map_err(|_| error("it does not say how many lanes there are"))?;
        if lane >= lanes || lanes > LANES_MAX {
            return Err(error("its lane is not among those it knows of"));
        }
        if let Some(configured) = self.lanes.filter(|configured| *configured != lanes) {
            return Err(GeneratorError::LanesChanged {
                stored: lanes,
                configured,
            });
        }
        let share = |total: u64| {
            let (lane, lanes) = (u64::from(lane), u64::from(lanes));
            total / lanes + u64::from(lane < total % lanes)
        };
        Ok(Lane {
            lane,
            lanes,
            index: split.position,
            count: self.events.map_or(u64::MAX, share),
            prefill: share(self.prefill),
            watermark: split.watermark,
            pace: None,
        })
    }
}

impl<T, F> Source for GeneratorSource<F>
where
    T: Record,
    F: Fn(GeneratorContext) -> (T, Option<Timestamp>) + Clone + Send + Sync + 'static,
{
    type Item = T;

    fn splits(&self, parallelism: u32) -> FunctionResult<Vec<SourceSplit>> {
        self.validate().map_err(FunctionError::unrecoverable)?;
        let lanes = self.lanes.unwrap_or(parallelism);
        Ok((0..lanes)
            .map(|lane| SourceSplit {
                id: format!("lane-{lane}"),
                position: 0,
                watermark: None,
                extra: lanes.to_le_bytes().to_vec(),
            })
            .collect())
    }

    fn reader(
        &self,
        _context: &SubtaskContext,
        splits: Vec<SourceSplit>,
    ) -> FunctionResult<Box<dyn SourceReader<T>>> {
        self.validate().map_err(FunctionError::unrecoverable)?;
        let lanes = splits
            .into_iter()
            .map(|split| self.lane_of(split))
            .collect::<Result<_, _>>()
            .map_err(FunctionError::unrecoverable)?;
        Ok(Box::new(GeneratorReader {
            seed: self.seed,
            rate: self.rate_per_lane,
            f: self.f.clone(),
            lanes,
            runs: Vec::new(),
        }))
    }
}

struct GeneratorReader<F> {
    seed: u64,
    rate: Option<f64>,
    f: F,
    lanes: Vec<Lane>,
    /// What the last poll that emitted anything has emitted, in order.
    runs: Vec<Run>,
}

/// Records of one lane that follow each other.
struct Run {
    /// Records of the poll before it.
    begin: usize,
    lane: u32,
    first: u64,
}

impl<F> GeneratorReader<F> {
    /// The lane whose turn it is and how many records it may emit now.
    fn next_lane(&mut self, now: Instant) -> Option<(usize, u64)> {
        let rate = self.rate;
        let mut best: Option<((u64, u32), usize, u64)> = None;
        for (place, lane) in self.lanes.iter_mut().enumerate() {
            if lane.is_done() {
                continue;
            }
            let due = lane.due(rate, now);
            let rank = (lane.index / LANE_TURN, lane.lane);
            if due > 0 && best.is_none_or(|(other, ..)| rank < other) {
                best = Some((rank, place, due));
            }
        }
        best.map(|(_, place, due)| {
            let lane = &self.lanes[place];
            let turn = LANE_TURN - lane.index % LANE_TURN;
            (place, due.min(turn).min(lane.count - lane.index))
        })
    }
}

impl<T, F> SourceReader<T> for GeneratorReader<F>
where
    F: Fn(GeneratorContext) -> (T, Option<Timestamp>) + Send,
{
    /// Records come with [`SourceStatus::More`] only: the other answers are given when there was nothing to append.
    fn poll(
        &mut self,
        out: &mut Batch<T>,
        max: usize,
        now: Instant,
    ) -> FunctionResult<SourceStatus> {
        let before = out.len();
        let mut left = max as u64;
        while left > 0 {
            let Some((place, n)) = self.next_lane(now) else {
                break;
            };
            let n = n.min(left);
            let lane = &mut self.lanes[place];
            let begin = out.len() - before;
            if begin == 0 {
                self.runs.clear();
            }
            // Before the records are made: the function may panic.
            self.runs.push(Run {
                begin,
                lane: lane.lane,
                first: lane.index,
            });
            emit(
                out,
                &self.f,
                GeneratorContext {
                    seed: self.seed,
                    lane: lane.lane,
                    index: lane.index,
                    lanes: lane.lanes,
                },
                n,
            );
            lane.index += n;
            left -= n;
        }
        if left < max as u64 || max == 0 {
            return Ok(SourceStatus::More);
        }
        if self.lanes.iter().all(Lane::is_done) {
            return Ok(SourceStatus::Finished);
        }
        let rate = self.rate.unwrap_or(f64::INFINITY);
        let until = self
            .lanes
            .iter()
            .filter(|lane| !lane.is_done())
            .filter_map(|lane| lane.next_due(rate))
            .min()
            .map(|due| due.max(now + PACING_INTERVAL_MIN));
        Ok(SourceStatus::Waiting { until })
    }

    fn snapshot(&self) -> Vec<SourceSplit> {
        self.lanes
            .iter()
            .map(|lane| SourceSplit {
                id: lane::id(lane.lane),
                position: lane.index,
                watermark: lane.watermark,
                extra: lane.lanes.to_le_bytes().to_vec(),
            })
            .collect()
    }

    fn position(&self, index: usize) -> Option<(String, u64)> {
        let run = self.runs.iter().rfind(|run| run.begin <= index)?;
        let position = run.first + (index - run.begin) as u64;
        Some((lane::id(run.lane), position))
    }
}

/// Appends `n` ≥ 1 records of a lane from `first` on. The loops have no branch for what the batch decided with its first record.
#[inline]
fn emit<T>(
    out: &mut Batch<T>,
    f: &impl Fn(GeneratorContext) -> (T, Option<Timestamp>),
    first: GeneratorContext,
    n: u64,
) {
    // The loops own what they need: through a reference they would read it again after each record that they write.
    let at = move |index| f(GeneratorContext { index, ..first });
    let (value, timestamp) = at(first.index);
    out.push(value, timestamp);
    let rest = first.index + 1..first.index + n;
    let has_timestamps = out.has_timestamps();
    let Batch { values, timestamps } = out;
    if has_timestamps {
        timestamps.reserve(n as usize - 1);
        values.extend(rest.map(move |index| {
            let (value, timestamp) = at(index);
            timestamps.push(timestamp.unwrap_or(Timestamp::MIN));
            value
        }));
    } else {
        values.extend(rest.map(move |index| at(index).0));
    }
}

#[cfg(test)]
mod tests;
