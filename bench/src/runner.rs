//! Goes through the table: peers take turns, so that what disturbs the machine disturbs all of them.
//!
//! A run that fails is told and kept, and the rest goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::command::progress::Progress;
use crate::figures::{Measurement, Metric};
use crate::peer::flink::{Collector, Flink, Installation};
use crate::peer::perennial::Perennial;
use crate::peer::{NotPossible, Peer, bare};
use crate::report::results::{Outcome, Results, Side};
use crate::workload::{Context, Kind, Profile, Workload, measure, table, warm_up};

/// The workload whose rate tells what half load is.
const LOAD_REFERENCE: &str = "keyed-count-1e3-cp1s";

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerName {
    /// This project, as real processes
    Perennial,
    /// Apache Flink, as real processes
    Flink,
    /// A plain loop on two threads
    Bare,
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sizes and number of runs.
    pub profile: Profile,
    /// Names of workloads, or how they begin; all when there are none.
    pub only: Vec<String>,
    /// Runs of each, instead of those of the table.
    pub runs: Option<usize>,
    /// Of the number of events.
    pub scale: f64,
    /// Who.
    pub peers: Vec<PeerName>,
    /// The program that plays Perennial's roles.
    pub binary: PathBuf,
    /// Where generated input is kept.
    pub inputs: PathBuf,
    /// Where Flink is kept.
    pub cache: PathBuf,
}

impl Plan {
    fn has(&self, peer: PeerName) -> bool {
        self.peers.contains(&peer)
    }

    /// The workloads that were asked for.
    #[must_use]
    pub fn workloads(&self) -> Vec<Workload> {
        let is_wanted = |workload: &Workload| {
            let mut only = self.only.iter();
            self.only.is_empty() || only.any(|name| workload.name.starts_with(name.as_str()))
        };
        let mut workloads: Vec<_> = table(self.profile).into_iter().filter(is_wanted).collect();
        for workload in &mut workloads {
            workload.events = (workload.events as f64 * self.scale) as u64;
        }
        workloads
    }

    fn collectors(&self) -> &'static [Collector] {
        match (self.has(PeerName::Flink), self.profile) {
            (false, _) => &[],
            (true, Profile::Quick) => &[Collector::Parallel],
            (true, Profile::Full) => &[Collector::Parallel, Collector::G1],
        }
    }
}

/// Measures everything. `keep` is called after each workload with all that is known by then.
pub fn run(
    plan: &Plan,
    progress: &Progress,
    mut keep: impl FnMut(&Results) -> anyhow::Result<()>,
) -> anyhow::Result<Results> {
    let mut results = Results::new(plan.profile);
    let mut collectors = plan.collectors();
    let mut installation = None;
    if !collectors.is_empty() {
        match Installation::prepare(&plan.cache, &|text| progress.say(text)) {
            Ok(found) => installation = Some(found),
            Err(error) => {
                let text = format!("without Flink: {error}");
                progress.say(&text);
                results.notes.push(text);
                collectors = &[];
            }
        }
    }
    let workloads = plan.workloads();
    let passes: Vec<Option<Collector>> = match collectors {
        [] => vec![None],
        some => some.iter().copied().map(Some).collect(),
    };
    for (number, pass) in passes.into_iter().enumerate() {
        let mut perennial = plan
            .has(PeerName::Perennial)
            .then(|| Perennial::new(plan.binary.clone()));
        let rival = pass.zip(installation.clone());
        let mut rival = rival.map(|(collector, at)| Flink::new(at, collector));
        for workload in &workloads {
            // Collectors differ in what they do under load.
            let is_about_load = matches!(
                workload.kind,
                Kind::Throughput(_) | Kind::Nexmark(_) | Kind::Latency { .. }
            );
            if number > 0 && !(is_about_load && workload.has_rival) {
                continue;
            }
            let mut turn = Turn {
                workload,
                context: Context {
                    inputs: &plan.inputs,
                    half_load: half_load(&results),
                },
                outcome: Outcome::new(workload, rival.as_ref().map(Peer::name)),
                progress,
            };
            turn.run(plan, perennial.as_mut(), rival.as_mut());
            results.outcomes.push(turn.outcome);
            keep(&results)?;
        }
    }
    Ok(results)
}

fn half_load(results: &Results) -> Option<u64> {
    let rate = |side| results.median(LOAD_REFERENCE, side, Metric::WarmRate);
    let rates = [rate(Side::Perennial), rate(Side::Rival)]
        .into_iter()
        .flatten();
    let slowest = rates.fold(f64::INFINITY, f64::min);
    // To the next hundred thousand, so that the figure can be said.
    slowest
        .is_finite()
        .then(|| ((slowest * 1e6 / 2.0 / 1e5).round() as u64).max(1) * 100_000)
}

/// All runs of one workload.
struct Turn<'a> {
    workload: &'a Workload,
    context: Context<'a>,
    outcome: Outcome,
    progress: &'a Progress,
}

impl Turn<'_> {
    fn run(
        &mut self,
        plan: &Plan,
        mut perennial: Option<&mut Perennial>,
        mut rival: Option<&mut Flink>,
    ) {
        let workload = self.workload;
        if !workload.has_rival {
            rival = None;
        }
        if let Some(peer) = rival.as_deref_mut() {
            let what = format!("{}: {} warms up", workload.name, peer.name());
            self.progress.now(&what);
            let warm = scratch().and_then(|at| warm_up(peer, workload, self.context, at.path()));
            if let Err(error) = warm {
                self.failed(peer.name(), &error);
                rival = None;
            }
        }
        for run in 1..=plan.runs.unwrap_or(workload.runs) {
            if let (true, Kind::Throughput(throughput)) = (plan.has(PeerName::Bare), &workload.kind)
                && let Some(work) = throughput.bare
            {
                self.progress
                    .now(&format!("{}: bare loop, run {run}", workload.name));
                let measurement = bare::run(work, workload.events, workload.keys);
                self.succeeded("bare", run, measurement);
            }
            if let Some(peer) = perennial.as_deref_mut() {
                self.one(peer, run);
                // It starts in no time, and must not be in the other's way.
                peer.stop();
            }
            if let Some(peer) = rival.as_deref_mut() {
                self.one(peer, run);
            }
        }
    }

    fn one(&mut self, peer: &mut dyn Peer, run: usize) {
        let name = peer.name();
        if self.outcome.is_hopeless(name) {
            return;
        }
        self.progress
            .now(&format!("{}: {name}, run {run}", self.workload.name));
        let measured =
            scratch().and_then(|at| measure(peer, self.workload, self.context, at.path()));
        match measured {
            Ok(measurement) => self.succeeded(name, run, measurement),
            Err(error) => {
                // What state it is in is not known.
                peer.stop();
                self.failed(name, &error);
            }
        }
    }

    fn succeeded(&mut self, peer: &str, run: usize, measurement: Measurement) {
        let headline = self.workload.headline;
        let value = measurement.metrics.get(&headline).copied();
        let rest: BTreeMap<_, _> = measurement
            .metrics
            .iter()
            .filter(|(m, _)| **m != headline)
            .collect();
        self.progress
            .finished(&self.workload.name, peer, run, (headline, value), &rest);
        self.outcome.add(peer, measurement);
    }

    fn failed(&mut self, peer: &str, error: &anyhow::Error) {
        let is_possible = error.downcast_ref::<NotPossible>().is_none();
        let text = format!("{error:#}");
        let what = if is_possible {
            "failed"
        } else {
            "not possible"
        };
        self.progress
            .say(&format!("{} {peer}: {what}: {text}", self.workload.name));
        self.outcome.fail(peer, text, is_possible);
    }
}

fn scratch() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("perennial-bench-")
        .tempdir()?)
}
