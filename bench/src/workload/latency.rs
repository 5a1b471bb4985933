//! How long events are under way, at a rate that both peers can do.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use super::throughput::{marks_directory, of_checkpoints};
use super::{Context, Workload};
use crate::figures::{Measurement, Metric};
use crate::marks;
use crate::peer::{Peer, Submission};

/// What is sent, in seconds; the first three are not counted.
const SECONDS: u64 = 8;
const DEADLINE: Duration = Duration::from_mins(2);

pub(super) fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    buffer_timeout: Option<&str>,
    context: Context<'_>,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let directory = marks_directory(scratch)?;
    let rate = context.half_load;
    let mut submission = Submission::new("latency", "perennial.bench.Latency")
        .setting("parallelism.default", 2)
        .setting("execution.checkpointing.interval", "1s")
        .argument("keys", workload.keys)
        .argument("rate", rate)
        .argument("events", rate * SECONDS)
        .marks(&directory);
    if let Some(timeout) = buffer_timeout {
        submission = submission.setting("execution.buffer-timeout.interval", timeout);
    }
    let job = peer.submit(&submission)?;
    // Nobody asks meanwhile: a question to Perennial is a process, which takes a core for longer than an event is under way.
    std::thread::sleep(Duration::from_secs(SECONDS));
    peer.wait_until_finished(&job, DEADLINE)?;
    let marks = marks::read(&directory)?;
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
    measurement.set(Metric::Rate, rate as f64 / 1e6);
    Ok(measurement)
}
