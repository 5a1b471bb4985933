//! `latency`: `keyed-count` at a rate, with the time from the generator to the function that counts.
//!
//! An event carries the monotonic clock of the machine instead of its event time, so that both ends may be different processes.

use std::time::Duration;

use perennial::api::{Arguments, JobRegistry, StreamEnvironment};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::{CountFunction, Event};
use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext, WatermarkStrategy};
use rustix::time::{ClockId, clock_gettime};

use super::digest::DigestSink;
use super::input::{Input, options};
use crate::marks::Marks;

/// Under which the job is registered.
pub const NAME: &str = "latency";

/// What comes before that is warm-up, in nanoseconds since a function's first record.
const WARM_UP_NS: u64 = 3_000_000_000;

/// Buckets of a power of two.
const SUB_BUCKETS: usize = 64;

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "keyed-count at a rate, with the time that events are under way";
    registry.job(NAME, about, &options(&[]), build)
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input = Input::of(arguments)?;
    let stamp = |event: Event| {
        let time = monotonic_ns().cast_signed();
        (Event { time, ..event }, None)
    };
    let _sink = env
        .from_source(
            input.source(stamp),
            WatermarkStrategy::no_watermarks(),
            "generator",
        )
        .uid("generator")
        .parallelism(input.sources())
        .key_by(|event: &Event| event.user)
        .process(Timed {
            inner: CountFunction::default(),
            marks: input.marks.clone(),
            times: Histogram::default(),
            subtask: 0,
        })
        .name("count")
        .uid("count")
        .sink_to(DigestSink::new(input.marks))
        .name("digest")
        .uid("digest");
    Ok(())
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let since = Duration::new(
        now.tv_sec.cast_unsigned(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Clone)]
struct Timed {
    inner: CountFunction,
    marks: Marks,
    times: Histogram,
    subtask: u32,
}

impl KeyedProcessFunction<u64, Event> for Timed {
    type Out = u64;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.subtask = cx.subtask().attempt.subtask.0;
        self.inner.open(cx)
    }

    fn process(&mut self, event: Event, cx: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        let now = monotonic_ns();
        self.times
            .add(now, now.saturating_sub(event.time.cast_unsigned()));
        self.inner.process(event, cx)
    }
}

/// A function has no other end. The prototype of the attempts has seen nothing and says nothing.
impl Drop for Timed {
    fn drop(&mut self) {
        if self.times.count > 0 {
            let details = format!("subtask={} {}", self.subtask, self.times);
            // Then the mark is missing, and the benchmark says so.
            let _ = self.marks.put("latency", &details);
        }
    }
}

/// Times in nanoseconds, at most 3.2 % too low.
#[derive(Debug, Clone, Default)]
struct Histogram {
    /// By power of two and sub-bucket; empty until the first.
    buckets: Vec<u64>,
    count: u64,
    max: u64,
    begin: Option<u64>,
}

impl Histogram {
    fn add(&mut self, now: u64, time: u64) {
        let begin = *self.begin.get_or_insert(now);
        if now < begin + WARM_UP_NS {
            return;
        }
        self.buckets.resize(64 * SUB_BUCKETS, 0);
        let shift = (u64::BITS - (time | 1).leading_zeros()).saturating_sub(6);
        let bucket = shift as usize * SUB_BUCKETS + (time >> shift) as usize;
        self.buckets[bucket] += 1;
        self.count += 1;
        self.max = self.max.max(time);
    }

    fn percentile_ns(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return ((bucket % SUB_BUCKETS) as u64) << (bucket / SUB_BUCKETS);
            }
        }
        self.max
    }
}

impl std::fmt::Display for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "count={} p50_ns={} p99_ns={} p999_ns={} max_ns={}",
            self.count,
            self.percentile_ns(0.5),
            self.percentile_ns(0.99),
            self.percentile_ns(0.999),
            self.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Percentiles are right to the width of a bucket, and the warm-up does not count.
    #[test]
    fn percentiles_are_those_of_what_came_after_the_warm_up() {
        let mut times = Histogram::default();
        times.add(5, 1 << 40);
        for time in 1..=1000 {
            times.add(5 + WARM_UP_NS, time * 1000);
        }
        assert_eq!((times.count, times.max), (1000, 1_000_000));
        for (share, exact) in [(0.5, 500_000.0), (0.99, 990_000.0), (0.999, 999_000.0)] {
            let found = times.percentile_ns(share) as f64;
            assert!((found - exact).abs() < exact * 0.032, "{share}: {found}");
        }
    }
}
