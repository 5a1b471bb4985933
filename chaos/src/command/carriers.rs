//! What runs a plan, behind one trait, so that the logic of campaigns and shrinking is tested without processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::CommandError;
use super::args::NodeArgs;
use crate::job::{JobUnderTest, Jobs};
use crate::plan::{self, FaultPlan};
use crate::process;
use crate::report::{Outcome, Progress, RunReport};

/// Runs plans.
pub(super) trait Carrier: Sync {
    /// Runs one to its end. `Err`: it cannot be run at all.
    fn run(
        &self,
        plan: &FaultPlan,
        progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<RunReport>;
}

/// Runs a plan in a thread of its own and always has a report: what the harness does wrong, panics included, is inconclusive.
pub(super) fn run_safely(
    carrier: &dyn Carrier,
    plan: &FaultPlan,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> RunReport {
    let result = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(format!("run-{}", plan.seed))
            .spawn_scoped(scope, || carrier.run(plan, progress))
            .context("cannot start a thread")
            .map(|thread| thread.join())
    });
    match result {
        Ok(Ok(Ok(report))) => report,
        Ok(Ok(Err(error))) => inconclusive(plan, format!("the plan cannot be run: {error:#}")),
        Ok(Err(panic)) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("without a message");
            inconclusive(plan, format!("the harness panicked: {text}"))
        }
        Err(error) => inconclusive(plan, format!("{error:#}")),
    }
}

fn inconclusive(plan: &FaultPlan, reason: String) -> RunReport {
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
    binary: PathBuf,
    keep: PathBuf,
}

impl<'a> Carriers<'a> {
    /// With the program that plays the nodes of runs of processes.
    pub(super) fn new(
        jobs: &'a Jobs,
        nodes: &NodeArgs,
        directory: &Path,
    ) -> Result<Self, CommandError> {
        let binary = match &nodes.binary {
            Some(binary) if binary.is_file() => std::path::absolute(binary),
            Some(binary) => {
                return Err(CommandError::Usage(format!(
                    "there is no program {}",
                    binary.display()
                )));
            }
            None => Ok(beside(jobs.binary())?),
        };
        Ok(Self {
            jobs,
            job: nodes.job.clone(),
            binary: binary.context("where the program is")?,
            keep: directory.join("failed"),
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
            plan::Carrier::Simulator => anyhow::bail!("not merged yet"),
            plan::Carrier::Process => {
                let options = process::carrier::Options {
                    job: Some(self.job(plan)?),
                    keep: Some(self.keep.clone()),
                    ..process::carrier::Options::new(&self.binary)
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
