//! `file-to-file`: JSON lines of events, those that are abnormal into files as JSON lines, exactly once.

use std::path::PathBuf;

use perennial::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use perennial::connector::{FileSink, JsonSource};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::{Event, event};
use perennial::operator::WatermarkStrategy;

use super::digest::Digest;

/// Under which the job is registered.
pub const NAME: &str = "file-to-file";

const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "input",
        help: "directory of files with an event a line, as JSON",
    },
    JobOption {
        name: "output",
        help: "directory of committed output files",
    },
];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "abnormal events from files to files, exactly once";
    registry.job(NAME, about, OPTIONS, build)
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input: PathBuf = arguments.required("input")?;
    let output: PathBuf = arguments.required("output")?;
    let _sink = env
        .from_source(
            JsonSource::<Event>::directory(input),
            WatermarkStrategy::no_watermarks(),
            "lines",
        )
        .uid("lines")
        .filter(|event: &Event| Ok(event.is_abnormal))
        .uid("filter")
        .sink_to(FileSink::json(output))
        .name("files")
        .uid("files");
    Ok(())
}

/// What the job puts out, by a plain loop.
#[must_use]
pub fn expected(events: u64, keys: u64) -> Digest {
    let mut digest = Digest::default();
    for event in (0..events).map(|sequence| event(sequence, keys)) {
        if event.is_abnormal {
            digest.add(&event);
        }
    }
    digest
}
