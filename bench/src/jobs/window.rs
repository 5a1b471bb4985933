//! `window`: events per user and window of event time.

use std::collections::VecDeque;
use std::time::Duration;

use perennial::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use perennial::error::{FunctionError, FunctionResult};
use perennial::jobs::keyed_count::{Event, event};
use perennial::operator::{AggregateFunction, SlidingEventTimeWindows, WatermarkStrategy};

use super::digest::{Digest, DigestSink};
use super::input::{Input, options};

/// Under which the job is registered.
pub const NAME: &str = "window";

/// By how much events may be out of order; those of the generator are not.
const BOUND: Duration = Duration::from_millis(100);

const OWN: &[JobOption] = &[
    JobOption {
        name: "size",
        help: "of the windows, in seconds [default: 10]",
    },
    JobOption {
        name: "slide",
        help: "between the beginnings of two windows, in seconds [default: the size]",
    },
];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "events per key and window of event time; tumbling, or sliding with --slide";
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

    fn merge(&self, count: &mut u64, other: &u64) {
        *count += other;
    }
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input = Input::of(arguments)?;
    let size = arguments.or("size", 10)?;
    let slide = arguments.or("slide", size)?;
    if slide == 0 || slide > size {
        return Err(FunctionError::unrecoverable("need 1 <= --slide <= --size"));
    }
    let windows =
        SlidingEventTimeWindows::of(Duration::from_secs(size), Duration::from_secs(slide));
    let _sink = env
        .from_source(
            input.source(|event| (event, Some(event.time))),
            WatermarkStrategy::bounded_out_of_orderness(BOUND),
            "generator",
        )
        .uid("generator")
        .parallelism(input.sources())
        .key_by(|event: &Event| event.user)
        .window(windows)
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

/// What the job emits, by a plain loop over all windows of each event.
#[must_use]
pub fn expected(events: u64, keys: u64, size: Duration, slide: Duration) -> Digest {
    let millis = |length: Duration| i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
    let (size, slide) = (millis(size), millis(slide));
    let mut digest = Digest::default();
    // Windows that the present event lies in, by end, with the count of each user. Events are in order.
    let mut open: VecDeque<(i64, Vec<u64>)> = VecDeque::new();
    for sequence in 0..events {
        let event = event(sequence, keys);
        while let Some((end, counts)) = open.pop_front_if(|(end, _)| *end <= event.time) {
            close(end, &counts, &mut digest);
        }
        let mut next = match open.back() {
            Some((end, _)) => end + slide,
            None => event.time - event.time % slide + slide,
        };
        while next - size <= event.time {
            open.push_back((next, vec![0; usize::try_from(keys).unwrap_or(0)]));
            next += slide;
        }
        for (_, counts) in &mut open {
            counts[event.user as usize] += 1;
        }
    }
    for (end, counts) in &open {
        close(*end, counts, &mut digest);
    }
    digest
}

fn close(end: i64, counts: &[u64], digest: &mut Digest) {
    for (user, count) in counts.iter().enumerate() {
        if *count > 0 {
            digest.add(&(user as u64, end, *count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 events a millisecond: ten windows of a second in a million events, every user in each.
    #[test]
    fn every_window_of_every_user_is_expected_once() {
        let expected = |size, slide| {
            let (size, slide) = (Duration::from_secs(size), Duration::from_secs(slide));
            expected(1_000_000, 10, size, slide)
        };
        assert_eq!(expected(1, 1).count, 100);
        assert_ne!(expected(1, 1), expected(2, 2));
        // Those that end after 1 to 14 seconds.
        assert_eq!(expected(5, 1).count, 140);
    }
}
