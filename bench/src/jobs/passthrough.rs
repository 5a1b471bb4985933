//! `passthrough`: generator, map, sink in one chain; what a record costs when nothing happens to it.

use perennial::api::{Arguments, JobRegistry, StreamEnvironment};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::{Event, event};
use perennial::operator::WatermarkStrategy;

use super::digest::{Digest, DigestSink};
use super::input::{Input, options};

/// Under which the job is registered.
pub const NAME: &str = "passthrough";

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    registry.job(NAME, "generator, map, sink", &options(&[]), build)
}

/// What the job does with an event.
#[inline]
#[must_use]
pub fn map(event: Event) -> Event {
    Event {
        time: event.time + 1,
        ..event
    }
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input = Input::of(arguments)?;
    let _sink = env
        .from_source(
            input.source(|event| (event, None)),
            WatermarkStrategy::no_watermarks(),
            "generator",
        )
        .uid("generator")
        .parallelism(input.sources())
        .map(|event| Ok(map(event)))
        .uid("map")
        .parallelism(input.sources())
        .sink_to(DigestSink::new(input.marks.clone()))
        .name("digest")
        .uid("digest")
        .parallelism(input.sources());
    Ok(())
}

/// What the job emits, by a plain loop over every `step`-th event from `first` on.
#[must_use]
pub fn part(events: u64, keys: u64, first: u64, step: usize) -> Digest {
    let mut digest = Digest::default();
    for sequence in (first..events).step_by(step) {
        digest.add(&map(event(sequence, keys)));
    }
    digest
}

/// What the job emits, by a plain loop.
#[must_use]
pub fn expected(events: u64, keys: u64) -> Digest {
    part(events, keys, 0, 1)
}
