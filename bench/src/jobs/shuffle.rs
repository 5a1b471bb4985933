//! `shuffle`: one source in one TaskManager, one counter in another; every record travels between two processes.
//!
//! Run it at parallelism 2 on two TaskManagers of one slot: the generator is in the last subtask of the source, the counter in the
//! first slot. (Flink's job has a slot sharing group for each.)

use perennial::api::{Arguments, JobRegistry, StreamEnvironment};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::event;
use perennial::operator::WatermarkStrategy;

use super::digest::{Digest, DigestSink};
use super::input::{Input, options};

/// Under which the job is registered.
pub const NAME: &str = "shuffle";

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "every record from one process to another; at parallelism 2, with --sources 1";
    registry.job(NAME, about, &options(&[]), build)
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input = Input::of(arguments)?;
    let source = input
        .source(|event| (event, None))
        .only_in_the_last_subtasks();
    let _sink = env
        .from_source(source, WatermarkStrategy::no_watermarks(), "generator")
        .uid("generator")
        .parallelism(input.sources() + 1)
        .rebalance()
        .sink_to(DigestSink::new(input.marks))
        .name("digest")
        .uid("digest")
        .parallelism(1);
    Ok(())
}

/// What the job emits, by a plain loop.
#[must_use]
pub fn expected(events: u64, keys: u64) -> Digest {
    let mut digest = Digest::default();
    for sequence in 0..events {
        digest.add(&event(sequence, keys));
    }
    digest
}
