//! Rates, CPU and memory of a bounded job.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use perennial_actors::clock::Instant;

use super::{Throughput, Workload};
use crate::figures::{Measurement, Metric, Spread, output, warm_rate};
use crate::machine;
use crate::marks;
use crate::peer::{Checkpoint, Peer};

/// Of one job.
pub(super) const DEADLINE: Duration = Duration::from_mins(20);

pub(super) fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    throughput: &Throughput,
    events: u64,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let directory = marks_directory(scratch)?;
    let mut submission = throughput.submission.clone();
    if workload.keys > 0 {
        submission = submission.argument("keys", workload.keys);
    }
    let submission = submission
        .argument("events", events)
        .setting("web.checkpoints.history", 1000)
        .marks(&directory);
    let spent = Spent::begin(peer);
    let job = peer.submit(&submission)?;
    let took = peer.wait_until_finished(&job, DEADLINE)?;
    let mut measurement = Measurement::default();
    spent.end(peer, events, &mut measurement);
    let marks = marks::read(&directory)?;
    let millions = events as f64 / 1e6;
    measurement.set(Metric::Rate, millions / took.as_secs_f64());
    if let Some(rate) = warm_rate(&marks) {
        measurement.set(Metric::WarmRate, rate);
    }
    let output = output(&marks).context("the job has not said what it put out")?;
    let expected = (throughput.expected)(events, workload.keys);
    ensure!(output == expected, super::WrongOutput { output, expected });
    measurement.output = Some(output);
    of_checkpoints(&peer.checkpoints(&job)?, &mut measurement);
    Ok(measurement)
}

/// An empty directory for the marks of one job.
pub(super) fn marks_directory(scratch: &Path) -> anyhow::Result<std::path::PathBuf> {
    let directory = scratch.join("marks");
    if directory.is_dir() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// What checkpoints cost.
pub(super) fn of_checkpoints(checkpoints: &[Checkpoint], measurement: &mut Measurement) {
    let all = || checkpoints.iter();
    let millis = all().map(|one| one.duration.as_secs_f64() * 1e3);
    let Some(time) = Spread::of(millis) else {
        return;
    };
    measurement.set(Metric::Checkpoints, checkpoints.len() as f64);
    measurement.set(Metric::CheckpointTime, time.median);
    if let Some(size) = Spread::of(all().map(|one| one.bytes as f64 / 1e6)) {
        measurement.set(Metric::CheckpointSize, size.median);
    }
    let pauses = all().filter_map(|one| one.pause);
    if let Some(pause) = pauses.max() {
        measurement.set(Metric::LongestPause, pause.as_secs_f64() * 1e3);
    }
}

/// What peer, harness and machine had spent when a run began.
pub(super) struct Spent {
    began: Instant,
    peer: Vec<(u32, f64)>,
    own: f64,
    machine: f64,
}

impl Spent {
    pub(super) fn begin(peer: &mut dyn Peer) -> Self {
        let processes = peer.processes();
        processes.iter().copied().for_each(machine::forget_peak);
        let cpu = |pid| (pid, machine::cpu_seconds(pid));
        Self {
            began: Instant::now(),
            peer: processes.into_iter().map(cpu).collect(),
            own: machine::own_cpu_seconds(),
            machine: machine::busy_seconds(),
        }
    }

    pub(super) fn end(self, peer: &mut dyn Peer, events: u64, measurement: &mut Measurement) {
        let machine = machine::busy_seconds() - self.machine;
        let own = machine::own_cpu_seconds() - self.own;
        let each = self.peer.iter();
        let cpu: f64 = each
            .map(|(pid, before)| machine::cpu_seconds(*pid) - before)
            .sum();
        let peak = peer.processes().into_iter().map(machine::peak_resident_mb);
        let capacity = self.began.elapsed().as_secs_f64() * machine::processors() as f64;
        let foreign = (machine - own - cpu).max(0.0) / capacity;
        measurement.set(Metric::CpuPerMillion, cpu / (events as f64 / 1e6));
        measurement.set(Metric::PeakMemory, peak.sum());
        measurement.set(Metric::ForeignCpu, foreign);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::jobs::digest::Digest;
    use crate::marks::Marks;
    use crate::peer::{Shape, Submission};
    use crate::workload::{Profile, WrongOutput, table};

    /// A peer whose job puts out what it is told to.
    struct Fake(Digest);

    impl Peer for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn start(&mut self, _shape: &Shape) -> anyhow::Result<()> {
            Ok(())
        }

        fn needs_warm_up(&self) -> bool {
            false
        }

        fn prepare(&mut self, _shape: &Shape) -> anyhow::Result<()> {
            Ok(())
        }

        fn start_with(&mut self, _shape: &Shape, _job: &Submission) -> anyhow::Result<()> {
            Ok(())
        }

        fn submit(&mut self, submission: &Submission) -> anyhow::Result<String> {
            let arguments = &submission.arguments;
            let directory = arguments.iter().find(|(name, _)| name == "marks").unwrap();
            let marks = Marks::new(Some(directory.1.clone().into()));
            let Digest { count, sum } = self.0;
            marks.put("digest", &format!("subtask=0 count={count} sum={sum}"))?;
            Ok("job".to_owned())
        }

        fn wait_until_finished(&mut self, _: &str, _: Duration) -> anyhow::Result<Duration> {
            Ok(Duration::from_secs(2))
        }

        fn check_alive(&mut self, _job: &str) -> anyhow::Result<()> {
            Ok(())
        }

        fn cancel(&mut self, _job: &str) -> anyhow::Result<()> {
            Ok(())
        }

        fn checkpoints(&mut self, _job: &str) -> anyhow::Result<Vec<Checkpoint>> {
            Ok(Vec::new())
        }

        fn savepoint(&mut self, _job: &str) -> anyhow::Result<String> {
            Ok(String::new())
        }

        fn restart_job_manager(&mut self) -> anyhow::Result<()> {
            Ok(())
        }

        fn processes(&mut self) -> Vec<u32> {
            vec![std::process::id()]
        }

        fn stop(&mut self) {}
    }

    /// As many records as expected, one of them another: the run fails, however fast it was.
    #[test]
    fn a_wrong_output_fails_the_run() {
        let table = table(Profile::Quick);
        let mut workload = table.into_iter().next().unwrap();
        workload.events = 100_000;
        let scratch = tempfile::tempdir().unwrap();
        let measure = |output| {
            crate::workload::measure(
                &mut Fake(output),
                &workload,
                crate::workload::Context {
                    inputs: scratch.path(),
                    half_load: 0,
                },
                scratch.path(),
            )
        };
        let right = crate::jobs::keyed_count::expected(100_000, workload.keys);
        let measurement = measure(right).unwrap();
        assert_eq!(measurement.output, Some(right));
        assert_eq!(measurement.metrics[&Metric::Rate], 0.05);
        let wrong = Digest {
            sum: right.sum ^ 1,
            ..right
        };
        let error = measure(wrong).unwrap_err();
        assert!(error.downcast_ref::<WrongOutput>().is_some(), "{error}");
    }
}
