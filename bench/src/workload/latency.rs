//! How long events are under way, at a rate that both peers can do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::throughput::{marks_directory, of_checkpoints};
use super::{Context, Workload};
use crate::figures::{Measurement, Metric, warm_rate};
use crate::marks;
use crate::peer::{Peer, Submission};

/// What is sent, in seconds; the first three are not counted.
const SECONDS: f64 = 8.0;
/// Of the rate that was asked for.
const LEAST_RATE: f64 = 0.95;
const DEADLINE: Duration = Duration::from_mins(2);

/// Runs the job for a share of the time of a measurement; returns its id and where its marks are.
pub(super) fn run(
    peer: &mut dyn Peer,
    workload: &Workload,
    buffer_timeout: Option<&str>,
    context: Context<'_>,
    share: f64,
    scratch: &Path,
) -> anyhow::Result<(String, PathBuf)> {
    let directory = marks_directory(scratch)?;
    let rate = context.half_load;
    let seconds = SECONDS * share;
    let mut submission = Submission::new("latency", "perennial.bench.Latency")
        .setting("parallelism.default", 2)
        .setting("execution.checkpointing.interval", "1s")
        .argument("keys", workload.keys)
        .argument("rate", rate)
        .argument("events", (rate as f64 * seconds) as u64)
        .marks(&directory);
    if let Some(timeout) = buffer_timeout {
        submission = submission.setting("execution.buffer-timeout.interval", timeout);
    }
    let job = peer.submit(&submission)?;
    // Nobody asks meanwhile: a question to Perennial is a process, which takes a core for longer than an event is under way.
    std::thread::sleep(Duration::from_secs_f64(seconds));
    peer.wait_until_finished(&job, DEADLINE)?;
    Ok((job, directory))
}

pub(super) fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    buffer_timeout: Option<&str>,
    context: Context<'_>,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let rate = context.half_load;
    let (job, directory) = run(peer, workload, buffer_timeout, context, 1.0, scratch)?;
    let marks = marks::read(&directory)?;
    // Events are stamped when they are made: a source that is held up makes them late, and hides how long they waited.
    let millions = rate as f64 / 1e6;
    let made = warm_rate(&marks).context("too few marks to say at which rate events came")?;
    ensure!(
        made >= LEAST_RATE * millions,
        "{made:.2} M events/s came where {millions:.2} were to come"
    );
    let mut measurement = Measurement::default();
    of_checkpoints(&peer.checkpoints(&job)?, &mut measurement);
    let subtasks: Vec<_> = marks.iter().filter(|m| m.what == "latency").collect();
    ensure!(
        subtasks.len() == 2,
        "{} subtasks have told latencies",
        subtasks.len()
    );
    for (metric, name) in [
        (Metric::LatencyP50, "p50_ns"),
        (Metric::LatencyP99, "p99_ns"),
        (Metric::LatencyP999, "p999_ns"),
    ] {
        // That of the slower subtask: percentiles of two cannot be added.
        let slower = subtasks.iter().filter_map(|mark| mark.number(name)).max();
        measurement.set(metric, slower.unwrap_or(0) as f64 / 1e3);
    }
    // Also so that later calls know whether it is that of their results.
    measurement.set(Metric::Rate, millions);
    Ok(measurement)
}
