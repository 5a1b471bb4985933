//! What runs a plan, behind one trait, so that the logic of campaigns and shrinking is tested without processes.

use anyhow::Context;

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
