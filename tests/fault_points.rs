//! Whatever moment a node ends or fails in, the output is exact: every fault point once, in the simulator.
//!
//! How: a whole simulated cluster runs a bounded job without any other fault; at one site a node ends itself as kill -9 does, or the
//! code there fails or panics. What is committed is compared with a plain loop. A savepoint is not asked for here, so its site is
//! the business of the process tests.

use perennial_actors::fault::{FaultPointSpec, FaultSite};
use perennial_chaos::plan::Invariant;
use perennial_chaos::report::Violation;
use perennial_chaos::simulator::{Inside, Options, Run, draw, execute};

/// Whose cluster and job are taken; its faults are not.
const SEED: u64 = 1;
/// Enough for a few checkpoints before and after the point.
const EVENTS: u64 = 900;

fn run(point: &str) -> Run {
    let mut plan = draw(SEED);
    plan.faults.clear();
    plan.workload.events = EVENTS;
    plan.cluster.job_managers = 1;
    // Every failure is followed by another try.
    plan.settings
        .retain(|key, _| !key.starts_with("restart-strategy"));
    for (key, value) in [
        ("restart-strategy.type", "exponential-delay"),
        (
            "restart-strategy.exponential-delay.initial-backoff",
            "100ms",
        ),
        ("execution.checkpointing.interval", "200ms"),
    ] {
        plan.settings.insert(key.to_owned(), value.to_owned());
    }
    let options = Options {
        inside: Inside {
            points: FaultPointSpec::list(point).expect("a point"),
            ..Inside::default()
        },
        ..Options::default()
    };
    execute(&plan, &options, &mut |_| {}).expect("a plan that can be run")
}

/// What does not hold, but for the cause of a recovery: these points are in no plan that could explain it.
fn violations(run: &Run) -> Vec<&Violation> {
    let all = run.report.violations.iter();
    all.filter(|v| v.invariant != Invariant::S6).collect()
}

/// The sites of a run, without those that no run without a failure or a savepoint comes by.
fn each_site(action: &str) {
    let mut failures = Vec::new();
    for site in FaultSite::ALL {
        if site == FaultSite::OnSavepoint {
            continue;
        }
        // A failure beforehand, so that sites of a recovery are come by as well.
        let first = match site {
            FaultSite::OnFailover
            | FaultSite::BeforeRestore
            | FaultSite::DuringRestore
            | FaultSite::OnRestoreChoice => "on-notify#3=panic;",
            _ => "",
        };
        let run = run(&format!("{first}{site}#1={action}"));
        if !run.report.sites.contains_key(site.name()) {
            failures.push(format!("{site} was not hit: {:?}", run.report.sites));
        }
        if !violations(&run).is_empty() {
            failures.push(format!("{site}={action}: {:#?}", violations(&run)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_node_that_ends_itself_at_any_site_does_not_show_in_the_output() {
    each_site("exit");
}

#[test]
fn code_that_fails_at_any_site_does_not_show_in_the_output() {
    each_site("error");
}

#[test]
fn code_that_panics_at_any_site_does_not_show_in_the_output() {
    each_site("panic");
}

/// A8: recovery fails again and again: in the deployment, in the restore, at the first record.
#[test]
fn failures_during_recovery_do_not_show_in_the_output() {
    let run = run(
        "on-notify#3=panic;before-deploy#2=error;after-deploy#3=error;on-deploy#6=error;before-restore#9=error;during-restore#2=panic;on-open#8=panic;on-first-record#5=error",
    );
    assert!(violations(&run).is_empty(), "{:#?}", violations(&run));
    assert!(run.restarts >= 4, "{}", run.restarts);
}
