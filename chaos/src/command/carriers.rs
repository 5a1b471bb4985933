//! What runs a plan, behind one trait, so that the logic of campaigns and shrinking is tested without processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use perennial_actors::fault::Sabotage;

use super::CommandError;
use super::args::NodeArgs;
use crate::job::{JobUnderTest, Jobs};
use crate::plan::{self, FaultPlan};
use crate::process;
use crate::report::{Outcome, Progress, RunReport};
use crate::simulator;

/// Runs plans.
pub(super) trait Carrier: Sync {
    /// Runs one to its end. `Err`: it cannot be run at all.
    fn run(
        &self,
        plan: &FaultPlan,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<RunReport>;
}

/// How the names of threads begin in which panics are a part of the play.
pub(super) const SIMULATED: &str = "seed-";

/// Keeps panics of simulated nodes from the terminal: plans order them. What the harness itself does wrong there comes back as words.
pub(super) fn quieten_simulated_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        if !thread.name().is_some_and(|n| n.starts_with(SIMULATED)) {
            others(panic);
        }
    }));
}

/// Does something in a thread of its own; what goes wrong in it, panics included, comes back as words.
pub(super) fn safely<T: Send>(
    name: String,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> Result<T, String> {
    let result = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn_scoped(scope, work);
        thread
            .context("cannot start a thread")
            .map(|thread| thread.join())
    });
    match result {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(error))) => Err(format!("the plan cannot be run: {error:#}")),
        Ok(Err(panic)) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("without a message");
            Err(format!("the harness panicked: {text}"))
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Runs a plan and always has a report: what the harness does wrong is inconclusive.
pub(super) fn run_safely(
    carrier: &dyn Carrier,
    plan: &FaultPlan,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> RunReport {
    let run = || carrier.run(plan, progress);
    let name = match plan.carrier {
        plan::Carrier::Simulator => format!("{SIMULATED}{}", plan.seed),
        plan::Carrier::Process => format!("run-{}", plan.seed),
    };
    safely(name, run).unwrap_or_else(|why| inconclusive(plan, why))
}

pub(super) fn inconclusive(plan: &FaultPlan, reason: String) -> RunReport {
    RunReport {
        plan: plan.clone(),
        outcome: Outcome::Inconclusive(reason),
        violations: Vec::new(),
        strikes: Vec::new(),
        recoveries: Vec::new(),
        checked: Default::default(),
        sites: Default::default(),
        elapsed_ms: 0,
        kept: None,
    }
}

/// The carriers there are, by what a plan says.
pub(super) struct Carriers<'a> {
    jobs: &'a Jobs,
    /// Whatever the plan says.
    job: Option<String>,
    /// Of the nodes; `None`: no plan needs it.
    binary: Option<PathBuf>,
    sabotage: Vec<Sabotage>,
    keep: PathBuf,
}

impl<'a> Carriers<'a> {
    /// For plans of one kind; those of processes need the program that plays the nodes.
    pub(super) fn new(
        jobs: &'a Jobs,
        nodes: &NodeArgs,
        directory: &Path,
        kind: plan::Carrier,
    ) -> Result<Self, CommandError> {
        let binary = match (kind, &nodes.binary) {
            (plan::Carrier::Simulator, _) => None,
            (plan::Carrier::Process, Some(binary)) if binary.is_file() => {
                let binary = std::path::absolute(binary);
                Some(binary.context("where the program is")?)
            }
            (plan::Carrier::Process, Some(binary)) => {
                return Err(CommandError::Usage(format!(
                    "there is no program {}",
                    binary.display()
                )));
            }
            (plan::Carrier::Process, None) => Some(beside(jobs.binary())?),
        };
        Ok(Self {
            jobs,
            job: nodes.job.clone(),
            binary,
            sabotage: nodes.sabotage.sabotage.clone(),
            keep: std::path::absolute(directory.join("failed"))
                .context("where failing runs are kept")?,
        })
    }

    fn job(&self, plan: &FaultPlan) -> anyhow::Result<Arc<dyn JobUnderTest>> {
        let name = self.job.as_ref().unwrap_or(&plan.workload.job);
        self.jobs
            .named(name)
            .with_context(|| format!("this command knows no job `{name}`"))
    }
}

impl Carrier for Carriers<'_> {
    fn run(
        &self,
        plan: &FaultPlan,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<RunReport> {
        match plan.carrier {
            plan::Carrier::Simulator => {
                let options = simulator::Options {
                    inside: simulator::Inside {
                        sabotage: self.sabotage.clone(),
                        ..simulator::Inside::default()
                    },
                    ..simulator::Options::default()
                };
                simulator::run(plan, &options, progress)
            }
            plan::Carrier::Process => {
                let binary = self.binary.as_ref().context("no program plays the nodes")?;
                let options = process::carrier::Options {
                    job: Some(self.job(plan)?),
                    keep: Some(self.keep.clone()),
                    sabotage: self.sabotage.clone(),
                    ..process::carrier::Options::new(binary)
                };
                process::carrier::run(plan, &options, progress)
            }
        }
    }
}

/// A program beside this one, or, for this one an example, above it.
fn beside(name: &str) -> Result<PathBuf, CommandError> {
    let own = std::env::current_exe().context("cannot find this program")?;
    for directory in own.ancestors().skip(1).take(2) {
        let path = directory.join(name);
        if path.try_exists().unwrap_or(false) {
            return Ok(path);
        }
    }
    Err(CommandError::Usage(format!(
        "there is no program `{name}` beside {}: build it (for the stock jobs `cargo build -p perennial`), or name another with --binary PATH",
        own.display()
    )))
}
