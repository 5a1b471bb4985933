//! What happens to a job that has all its keys in its state: faults, checkpoints, savepoints. And the start of one.
//!
//! Times run from the strike to the first record that a subtask of the counting function sees afterwards, by the job's own marks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;

use super::throughput::{marks_directory, of_checkpoints};
use super::{Fault, Nodes, Workload, waiting};
use crate::figures::{Measurement, Metric};
use crate::machine;
use crate::marks::{self, Mark, now_us};
use crate::peer::{Peer, Submission};

const DEADLINE: Duration = Duration::from_mins(5);
/// Events per second while something is measured.
const RATE: u64 = 50_000;
const SUBTASKS: usize = 2;
/// Completed with all keys in the state, before a fault.
const CHECKPOINTS_BEFORE: usize = 2;
/// That are measured.
const CHECKPOINTS: usize = 4;

/// A job with state, and where it leaves its marks.
struct Running {
    job: String,
    marks: PathBuf,
    panic_file: PathBuf,
    prefilled_us: u64,
}

fn submission(
    workload: &Workload,
    interval: &str,
    rate: u64,
    scratch: &Path,
) -> anyhow::Result<(Submission, PathBuf, PathBuf)> {
    let marks = marks_directory(scratch)?;
    let panic_file = scratch.join("panic");
    let mut submission = Submission::new("keyed-count", "perennial.bench.KeyedCount")
        .setting("parallelism.default", SUBTASKS)
        .setting("execution.checkpointing.interval", interval)
        .setting("restart-strategy.type", "fixed-delay")
        .setting("restart-strategy.fixed-delay.attempts", 1000)
        .setting("restart-strategy.fixed-delay.delay", "0ms")
        .setting("web.checkpoints.history", 100)
        .argument("keys", workload.keys)
        .argument("prefill", workload.keys)
        .argument("rate", rate)
        .argument("panic-file", panic_file.display())
        .marks(&marks);
    submission.flink_settings = workload.flink_settings;
    Ok((submission, marks, panic_file))
}

/// Starts the job and waits until every key is in its state.
fn prefilled(
    peer: &mut dyn Peer,
    workload: &Workload,
    interval: &str,
    rate: u64,
    scratch: &Path,
) -> anyhow::Result<Running> {
    let (submission, marks, panic_file) = submission(workload, interval, rate, scratch)?;
    let job = peer.submit(&submission)?;
    let all = |marks: &[Mark]| {
        let all: Vec<_> = marks.iter().filter(|m| m.what == "prefilled").collect();
        (all.len() >= SUBTASKS).then(|| all[all.len() - 1].at_us)
    };
    let what = "every key is in the state";
    let prefilled_us = waiting::for_marks(peer, Some(&job), &marks, what, DEADLINE, all)?;
    Ok(Running {
        job,
        marks,
        panic_file,
        prefilled_us,
    })
}

/// The first record of any subtask and that of the last one, after a time.
fn first_records(marks: &[Mark], after_us: u64) -> Option<(u64, u64)> {
    let mut seen = BTreeSet::new();
    let mut any = None;
    for mark in marks {
        if mark.what == "first" && mark.at_us > after_us {
            any.get_or_insert(mark.at_us);
            seen.insert(mark.number("subtask")?);
            if seen.len() == SUBTASKS {
                return Some((any?, mark.at_us));
            }
        }
    }
    None
}

fn times(since_us: u64, (any, every): (u64, u64)) -> Measurement {
    let millis = |at: u64| (at - since_us) as f64 / 1e3;
    let mut measurement = Measurement::default();
    measurement.set(Metric::FirstRecord, millis(any));
    measurement.set(Metric::EverySubtask, millis(every));
    measurement
}

/// The process in which a subtask began last.
fn process_of(marks: &[Mark], subtask: u64) -> anyhow::Result<u32> {
    let mut marks = marks.iter().rev();
    let mark = marks.find(|m| m.what == "first" && m.number("subtask") == Some(subtask));
    let pid = mark.and_then(|mark| mark.number("pid"));
    Ok(u32::try_from(pid.context("the job has not begun")?)?)
}

pub(super) fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    fault: Fault,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let interval = if workload.keys > 1_000_000 {
        "10s"
    } else {
        "1s"
    };
    let running = prefilled(peer, workload, interval, RATE, scratch)?;
    let (job, after) = (&running.job, running.prefilled_us);
    waiting::for_checkpoints(peer, job, after, CHECKPOINTS_BEFORE, DEADLINE)?;
    let before = marks::read(&running.marks)?;
    let victim = process_of(&before, 0)?;
    let mut struck_us = now_us();
    match fault {
        Fault::KillTaskManager => machine::signal(victim, Signal::KILL)?,
        Fault::HangTaskManager => machine::signal(victim, Signal::STOP)?,
        Fault::KillJobManager => peer.restart_job_manager()?,
        Fault::Panic => {
            std::fs::write(&running.panic_file, "")?;
            let thrown = |marks: &[Mark]| Some(marks.iter().find(|m| m.what == "throw")?.at_us);
            let what = "a panic";
            let at = waiting::for_marks(peer, Some(job), &running.marks, what, DEADLINE, thrown)?;
            struck_us = at;
        }
    }
    let first = |marks: &[Mark]| first_records(marks, struck_us);
    let what = "the first record of every subtask after the fault";
    let first = waiting::for_marks(peer, Some(job), &running.marks, what, DEADLINE, first);
    if fault == Fault::HangTaskManager {
        // What hangs would never end by itself.
        machine::signal(victim, Signal::KILL)?;
    }
    let measurement = times(struck_us, first?);
    peer.cancel(job)?;
    Ok(measurement)
}

pub(super) fn start(
    peer: &mut dyn Peer,
    workload: &Workload,
    nodes: Nodes,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let (submission, marks, _panic_file) = submission(workload, "10s", RATE, scratch)?;
    let submission = Submission {
        arguments: submission
            .arguments
            .into_iter()
            .filter(|(name, _)| name != "prefill")
            .collect(),
        ..submission
    };
    peer.stop();
    peer.prepare(&workload.shape)?;
    let began_us = now_us();
    match nodes {
        Nodes::Fewest => peer.start_with(&workload.shape, &submission)?,
        Nodes::Processes => {
            peer.start(&workload.shape)?;
            peer.submit(&submission)?;
        }
    }
    let first = |marks: &[Mark]| first_records(marks, began_us);
    let what = "the first record of a new cluster";
    let first = waiting::for_marks(peer, None, &marks, what, DEADLINE, first)?;
    peer.stop();
    Ok(times(began_us, first))
}

pub(super) fn checkpoints(
    peer: &mut dyn Peer,
    workload: &Workload,
    interval: &str,
    rate: u64,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let running = prefilled(peer, workload, interval, rate, scratch)?;
    let (job, after) = (&running.job, running.prefilled_us);
    // The first one after the prefill has all keys to write, whoever writes only changes.
    let all = waiting::for_checkpoints(peer, job, after, CHECKPOINTS + 1, DEADLINE)?;
    let mut measurement = Measurement::default();
    of_checkpoints(&all[1..], &mut measurement);
    peer.cancel(job)?;
    Ok(measurement)
}

pub(super) fn restore(
    peer: &mut dyn Peer,
    workload: &Workload,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let running = prefilled(peer, workload, "10s", RATE, scratch)?;
    let savepoint = peer.savepoint(&running.job)?;
    peer.cancel(&running.job)?;
    let (submission, marks, _panic_file) = submission(workload, "10s", RATE, scratch)?;
    let submission = Submission {
        from_savepoint: Some(savepoint),
        ..submission
    };
    let began_us = now_us();
    let job = peer.submit(&submission)?;
    let first = |marks: &[Mark]| first_records(marks, began_us);
    let what = "the first record after the restore";
    let first = waiting::for_marks(peer, Some(&job), &marks, what, DEADLINE, first)?;
    peer.cancel(&job)?;
    Ok(times(began_us, first))
}
