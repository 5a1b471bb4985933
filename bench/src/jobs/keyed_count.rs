//! `keyed-count`: the shipped job's events and function, with an output that can be checked. One read and one write of state per event;
//! every third abnormal event of a user is emitted.

use std::path::PathBuf;

use perennial::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::{CountFunction, Event};
use perennial::operator::WatermarkStrategy;

use super::digest::{Digest, DigestSink};
use super::input::{Input, event_after, options};
use super::watching::Watching;

/// Under which the job is registered.
pub const NAME: &str = "keyed-count";

const OWN: &[JobOption] = &[JobOption {
    name: "panic-file",
    help: "marks the first record of each attempt, and panics once when this file appears",
}];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "events per key: every one reads and writes state";
    registry.job(NAME, about, &options(OWN), build)
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input = Input::of(arguments)?;
    let panic_file: Option<PathBuf> = arguments.optional("panic-file")?;
    let events = env
        .from_source(
            input.source(|event| (event, None)),
            WatermarkStrategy::no_watermarks(),
            "generator",
        )
        .uid("generator")
        .parallelism(input.sources())
        .key_by(|event: &Event| event.user);
    let marks = input.marks;
    let counts = match panic_file {
        Some(file) => events.process(Watching::new(CountFunction::default(), marks.clone(), file)),
        None => events.process(CountFunction::default()),
    };
    let _sink = counts
        .name("count")
        .uid("count")
        .sink_to(DigestSink::new(marks))
        .name("digest")
        .uid("digest");
    Ok(())
}

/// What the job emits over a bounded input, by a plain loop.
#[must_use]
pub fn expected(events: u64, keys: u64) -> Digest {
    expected_after(events, 0, keys, keys)
}

/// The same with a prefill, after which only some users have events.
#[must_use]
pub fn expected_after(events: u64, prefill: u64, keys: u64, touched: u64) -> Digest {
    let mut abnormal = vec![0_u32; usize::try_from(keys).unwrap_or(0)];
    let mut digest = Digest::default();
    for sequence in 0..events {
        let event = event_after(sequence, prefill, keys, touched);
        if event.is_abnormal {
            let count = &mut abnormal[event.user as usize];
            *count += 1;
            if count.is_multiple_of(3) {
                digest.add(&event.user);
            }
        }
    }
    digest
}

#[cfg(test)]
mod tests {
    use perennial::jobs::keyed_count::expected_total;

    use super::*;

    /// The numbers that Flink's job of the same kind gave, too.
    #[test]
    fn the_expected_output_is_that_of_the_shipped_job() {
        assert_eq!(expected(200_000, 1000).count, 19_634);
        assert_eq!(expected(100_000, 100).count, expected_total(100_000, 100));
    }
}
