//! What runs a plan, behind one trait, so that the logic of campaigns and shrinking is tested without processes.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::CommandError;
use super::args::NodeArgs;
use crate::job::Jobs;
use crate::plan::FaultPlan;
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
pub(super) struct Carriers {
    _binary: PathBuf,
}

impl Carriers {
    /// With what the nodes of some plans need.
    pub(super) fn new(
        jobs: &Jobs,
        nodes: &NodeArgs,
        _directory: &Path,
        _plans: &[FaultPlan],
    ) -> Result<Self, CommandError> {
        let binary = match &nodes.binary {
            Some(binary) => binary.clone(),
            None => beside(jobs.binary())?,
        };
        Ok(Self { _binary: binary })
    }
}

impl Carrier for Carriers {
    fn run(
        &self,
        _plan: &FaultPlan,
        _progress: &mut dyn FnMut(Progress),
    ) -> anyhow::Result<RunReport> {
        anyhow::bail!("not merged yet")
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
