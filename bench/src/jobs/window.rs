//! `window`: events per user and window of event time.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::{Event, event};
use perennial::operator::{AggregateFunction, TumblingEventTimeWindows, WatermarkStrategy};

use super::digest::{Digest, DigestSink};
use super::input::{Input, options};

/// Under which the job is registered.
pub const NAME: &str = "window";

/// By how much events may be out of order; those of the generator are not.
const BOUND: Duration = Duration::from_millis(100);

const OWN: &[JobOption] = &[JobOption {
    name: "size",
    help: "of the windows, in seconds [default: 10]",
}];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "events per key and tumbling window of event time";
    registry.job(NAME, about, &options(OWN), build)
}

/// Counts records.
#[derive(Debug, Clone, Copy)]
pub struct Count;

impl AggregateFunction for Count {
    type In = Event;
    type Accumulator = u64;
    type Out = u64;

    fn create_accumulator(&self) -> u64 {
        0
    }

    fn add(&self, count: &mut u64, _event: Event) {
        *count += 1;
    }

    fn result(&self, count: &u64) -> u64 {
        *count
    }
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input = Input::of(arguments)?;
    let size = Duration::from_secs(arguments.or("size", 10)?);
    let _sink = env
        .from_source(
            input.source(|event| (event, Some(event.time))),
            WatermarkStrategy::bounded_out_of_orderness(BOUND),
            "generator",
        )
        .uid("generator")
        .parallelism(input.sources())
        .key_by(|event: &Event| event.user)
        .window(TumblingEventTimeWindows::of(size))
        .aggregate_with(Count, |user: &u64, window, count| {
            (*user, window.end, count)
        })
        .name("count")
        .uid("count")
        .sink_to(DigestSink::new(input.marks))
        .name("digest")
        .uid("digest");
    Ok(())
}

/// What the job emits, by a plain loop.
#[must_use]
pub fn expected(events: u64, keys: u64, size: Duration) -> Digest {
    let size = i64::try_from(size.as_millis()).unwrap_or(i64::MAX);
    let mut digest = Digest::default();
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    let mut end = size;
    for sequence in 0..events {
        let event = event(sequence, keys);
        if event.time >= end {
            close(&mut counts, end, &mut digest);
            end = (event.time / size + 1) * size;
        }
        *counts.entry(event.user).or_default() += 1;
    }
    close(&mut counts, end, &mut digest);
    digest
}

fn close(counts: &mut BTreeMap<u64, u64>, end: i64, digest: &mut Digest) {
    for (user, count) in std::mem::take(counts) {
        digest.add(&(user, end, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 events a millisecond: ten windows of a second in a million events, every user in each.
    #[test]
    fn every_window_of_every_user_is_expected_once() {
        let digest = expected(1_000_000, 10, Duration::from_secs(1));
        assert_eq!(digest.count, 100);
        assert_ne!(digest, expected(1_000_000, 10, Duration::from_secs(2)));
    }
}
