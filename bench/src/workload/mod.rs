//! The table of what is measured, and how each kind of it is.
//!
//! Invariant: one way of measuring for all peers; a peer is told what to do and never how it is timed.

mod files;
mod latency;
mod nexmark;
mod recovery;
mod table;
mod throughput;
mod waiting;

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::figures::{Measurement, Metric};
use crate::jobs::digest::Digest;
use crate::peer::bare::Loop;
use crate::peer::{Peer, Shape, Submission};
pub use table::table;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Small inputs, few runs, one collector of Flink: five minutes
    Quick,
    /// Everything, with both collectors of Flink: two hours or more
    Full,
}

/// What a cluster that starts consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// All in one process.
    Fewest,
    /// Processes, a JobManager and a TaskManager.
    Processes,
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a TaskManager, with a spare one there.
    KillTaskManager,
    /// SIGSTOP of a TaskManager, with a spare one there.
    HangTaskManager,
    /// A panic, or an exception, in the function of one subtask.
    Panic,
    /// kill -9 of the JobManager, which is started again at once.
    KillJobManager,
}

/// A bounded job, as fast as it goes.
pub struct Throughput {
    /// The job, without size and marks.
    pub submission: Submission,
    /// What comes out of so many events over so many keys.
    pub expected: Box<dyn Fn(u64, u64) -> Digest>,
    /// The same work in a plain loop.
    pub bare: Option<Loop>,
}

/// What is done and timed.
pub enum Kind {
    /// Rates, CPU and memory of a bounded job.
    Throughput(Throughput),
    /// The same of a query of Nexmark.
    Nexmark(nexmark::Asked),
    /// Rate, CPU and memory of a job from files to files.
    Files,
    /// From a fault to the first record after it.
    Recovery(Fault),
    /// From nothing to the first record.
    Start(Nodes),
    /// Memory of nodes that have nothing to do.
    Idle,
    /// Checkpoints of a job that changes some keys.
    Checkpoints {
        /// Between two.
        interval: &'static str,
        /// Events per second.
        rate: u64,
    },
    /// From the submission with a savepoint to the first record.
    Restore,
    /// Time that events are under way, at half the rate that the slower peer can do.
    Latency {
        /// Flink's key; `None`: each peer's default.
        buffer_timeout: Option<&'static str>,
    },
}

/// One line of the table.
pub struct Workload {
    /// For `--only`.
    pub name: String,
    /// For people.
    pub about: String,
    /// Of the cluster.
    pub shape: Shape,
    /// Keys of the job.
    pub keys: u64,
    /// Events of a bounded job.
    pub events: u64,
    /// How much of a run a peer that gets faster with use does before it is measured.
    pub warm_up: f64,
    /// Runs of Perennial and of the loop, unless said otherwise.
    pub runs: usize,
    /// Runs of Flink: fewer where one takes long and what is asked of us is a rare case.
    pub rival_runs: usize,
    /// Those with the same word here take turns, run by run: only then can figures of theirs be divided by each other, since the machine's
    /// speed wavers from minute to minute. They have the same shape, or Flink's processes would not live from one run to the next.
    pub turns: Option<&'static str>,
    /// What is compared.
    pub headline: Metric,
    /// Processors that the cluster may use, and threads of the loop; `None`: all.
    pub processors: Option<usize>,
    /// Settings of the job for Flink only.
    pub flink_settings: &'static [(&'static str, &'static str)],
    /// Whether Flink is measured too.
    pub has_rival: bool,
    /// See [`Kind`].
    pub kind: Kind,
}

impl Workload {
    /// The same work in a plain loop, where it has such a form.
    pub(crate) fn bare(&self) -> Option<Loop> {
        match &self.kind {
            Kind::Throughput(throughput) => throughput.bare,
            Kind::Nexmark(_)
            | Kind::Files
            | Kind::Recovery(_)
            | Kind::Start(_)
            | Kind::Idle
            | Kind::Checkpoints { .. }
            | Kind::Restore
            | Kind::Latency { .. } => None,
        }
    }

    /// With more or fewer events, of bounded jobs.
    pub(crate) fn scaled(mut self, scale: f64) -> Self {
        let scaled = |events: u64| (events as f64 * scale) as u64;
        self.events = scaled(self.events);
        if let Kind::Nexmark(asked) = &mut self.kind {
            asked.file_events = scaled(asked.file_events);
        }
        self
    }
}

/// What a measurement may need to know of those before it.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Where generated input is kept.
    pub inputs: &'a Path,
    /// At what latency is measured, in events per second.
    pub half_load: u64,
}

/// Measures one run. `scratch` is an empty directory.
///
/// # Errors
/// When anything goes otherwise than it should; [`NotPossible`](crate::peer::NotPossible) when the peer cannot do it at all.
pub fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    context: Context<'_>,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    match &workload.kind {
        Kind::Throughput(throughput) => {
            peer.start(&workload.shape)?;
            if let Some(processors) = workload.processors {
                for process in peer.processes() {
                    crate::machine::pin(process, processors)?;
                }
            }
            throughput::measure(peer, workload, throughput, workload.events, scratch)
        }
        Kind::Nexmark(asked) => {
            peer.start(&workload.shape)?;
            let of = (workload.events, context.inputs);
            nexmark::measure(peer, workload, asked, of, scratch)
        }
        Kind::Files => {
            peer.start(&workload.shape)?;
            files::measure(peer, workload, workload.events, context, scratch)
        }
        Kind::Recovery(fault) => {
            peer.start(&workload.shape)?;
            recovery::measure(peer, workload, *fault, scratch)
        }
        Kind::Start(nodes) => recovery::start(peer, workload, *nodes, scratch),
        Kind::Idle => {
            peer.stop();
            peer.start(&workload.shape)?;
            let resident = peer
                .processes()
                .into_iter()
                .map(crate::machine::resident_mb);
            let mut measurement = Measurement::default();
            measurement.set(Metric::IdleMemory, resident.sum());
            Ok(measurement)
        }
        Kind::Checkpoints { interval, rate } => {
            peer.start(&workload.shape)?;
            recovery::checkpoints(peer, workload, interval, *rate, scratch)
        }
        Kind::Restore => {
            peer.start(&workload.shape)?;
            recovery::restore(peer, workload, scratch)
        }
        Kind::Latency { buffer_timeout } => {
            peer.start(&workload.shape)?;
            latency::measure(peer, workload, *buffer_timeout, context, scratch)
        }
    }
}

/// Runs a peer that gets faster with use, without measuring it.
///
/// # Errors
/// As [`measure`].
pub fn warm_up(
    peer: &mut dyn Peer,
    workload: &Workload,
    context: Context<'_>,
    scratch: &Path,
) -> anyhow::Result<()> {
    if !peer.needs_warm_up() {
        return Ok(());
    }
    let events = (workload.events as f64 * workload.warm_up) as u64;
    match &workload.kind {
        Kind::Throughput(throughput) => {
            peer.start(&workload.shape)?;
            throughput::measure(peer, workload, throughput, events, scratch)?;
        }
        Kind::Nexmark(asked) => {
            peer.start(&workload.shape)?;
            let of = (events, context.inputs);
            nexmark::measure(peer, workload, asked, of, scratch)?;
        }
        Kind::Files => {
            peer.start(&workload.shape)?;
            files::measure(peer, workload, events, context, scratch)?;
        }
        Kind::Latency { buffer_timeout } => {
            peer.start(&workload.shape)?;
            latency::run(
                peer,
                workload,
                *buffer_timeout,
                context,
                workload.warm_up,
                scratch,
            )?;
        }
        Kind::Recovery(_)
        | Kind::Start(_)
        | Kind::Idle
        | Kind::Checkpoints { .. }
        | Kind::Restore => {}
    }
    Ok(())
}

/// Somebody was wrong.
#[derive(Debug, thiserror::Error)]
#[error("wrong output: {output}; expected: {expected}")]
pub struct WrongOutput {
    output: Digest,
    expected: Digest,
}
