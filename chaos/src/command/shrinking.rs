//! `shrink`: a failing plan is made smaller while the same invariant breaks, until it can be told as a short story.

use super::args::{Cli, ShrinkArgs};
use super::carriers::{Carrier, Carriers, run_safely};
use super::render::write;
use super::{CommandError, INCONCLUSIVE, command_line, output, plans};
use crate::catalogue;
use crate::job::Jobs;
use crate::plan::{self, FaultPlan, Invariant};
use crate::report::{Outcome, Violation};
use crate::shrink::{Shrunk, shrink as smaller};

pub(super) fn shrink(cli: &Cli, args: &ShrinkArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let plan = plans::read(&args.plan)?;
    let line = |verb: &str, file: &std::path::Path| {
        let mut arguments = vec![verb.to_owned(), file.display().to_string()];
        plans::on(&args.nodes, &mut |name, value| {
            arguments.extend([format!("--{name}"), value]);
        });
        command_line(Some(&plan), &arguments)
    };
    cli.say(&format!("repeat: {}", line("shrink", &args.plan)));
    plans::check_store(&plan)?;
    let carriers = Carriers::new(jobs, &args.nodes, &cli.dir, plan.carrier)?;
    // Virtual time repeats exactly.
    let repeat = match plan.carrier {
        plan::Carrier::Simulator => 1,
        plan::Carrier::Process => args.repeat,
    };
    let Some((found, violation)) = search(&carriers, &plan, args.tries, repeat, &|text| {
        cli.say(text);
    }) else {
        cli.say(&format!(
            "it breaks nothing in {repeat} runs: there is nothing to shrink{}",
            if repeat > 1 {
                " (more with --repeat)"
            } else {
                ""
            }
        ));
        return Ok(INCONCLUSIVE);
    };
    let file = args
        .output
        .clone()
        .unwrap_or_else(|| args.plan.with_extension("small.json"));
    plans::keep(&file, &found.plan)?;
    let story = story(&plan, &found, &violation, &line("replay", &file));
    write(&file.with_extension("txt"), &story)?;
    cli.say(&format!("\n{story}"));
    if cli.json {
        output::json(&found.plan)?;
    }
    Ok(0)
}

/// The smallest plan that breaks what this one breaks first, and what was seen when it was run last; `None`: it breaks nothing.
fn search(
    carrier: &dyn Carrier,
    plan: &FaultPlan,
    tries: u32,
    repeat: u32,
    say: &dyn Fn(&str),
) -> Option<(Shrunk, Violation)> {
    let mut last = broken_by(carrier, plan, repeat, None, say)?;
    let first = last.invariant;
    say(&format!("{first} is broken; looking for the reason"));
    let mut left = tries;
    let found = smaller(plan, tries, &mut |plan| {
        left = left.saturating_sub(1);
        let violation = broken_by(carrier, plan, repeat, Some(first), say);
        let verdict = if violation.is_some() {
            "still broken"
        } else {
            "holds"
        };
        say(&format!(
            "  {verdict}: {} faults, {} settings, {} records; {left} tries left",
            plan.faults.len(),
            plan.settings.len(),
            plan.workload.events
        ));
        let is_broken = violation.is_some();
        last = violation.unwrap_or_else(|| last.clone());
        is_broken
    });
    Some((found, last))
}

/// A violation of an invariant, or of any, within some runs.
fn broken_by(
    carrier: &dyn Carrier,
    plan: &FaultPlan,
    repeat: u32,
    invariant: Option<Invariant>,
    say: &dyn Fn(&str),
) -> Option<Violation> {
    (0..repeat).find_map(|_| {
        let report = run_safely(carrier, plan, &mut |_| {});
        if let Outcome::Inconclusive(reason) = &report.outcome {
            say(&format!("  inconclusive: {reason}"));
        }
        let mut violations = report.violations.into_iter();
        violations.find(|v| invariant.is_none_or(|invariant| v.invariant == invariant))
    })
}

/// What broke, by what, and how to see it again.
fn story(plan: &FaultPlan, found: &Shrunk, violation: &Violation, replay: &str) -> String {
    let bound = if found.is_minimal {
        "nothing more can be left out"
    } else {
        "the tries are used up; more with --tries"
    };
    format!(
        "{} is broken: {}\n{}\n\nby ({} of {} faults, {} of {} records, {} tries, {bound}):\n{}\nreplay: {replay}",
        violation.invariant,
        catalogue::invariant(violation.invariant),
        violation.detail,
        found.plan.faults.len(),
        plan.faults.len(),
        found.plan.workload.events,
        plan.workload.events,
        found.tries,
        output::plan(&found.plan)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Row;
    use crate::profile::Profile;
    use crate::report::{Progress, RunReport};
    use crate::summary::tests::report;

    /// Breaks S3 when there is a kill (P1) and S1 always, in its second run of each plan only.
    struct Fake(std::sync::Mutex<u32>);

    impl Carrier for Fake {
        fn run(
            &self,
            plan: &FaultPlan,
            _progress: &mut dyn FnMut(Progress),
        ) -> anyhow::Result<RunReport> {
            let mut runs = self.0.lock().unwrap();
            *runs += 1;
            let mut report = report(Profile::Process, 1, Outcome::Pass);
            if plan.rows().contains(&Row::P1) && runs.is_multiple_of(2) {
                report.outcome = Outcome::Fail;
                let broken = |invariant| Violation {
                    invariant,
                    detail: format!("with {} faults", plan.faults.len()),
                };
                report.violations = vec![broken(Invariant::S3), broken(Invariant::S1)];
            }
            Ok(report)
        }
    }

    /// A failure that shows in every second run only is found by repeating, and told with the plan that it came to.
    #[test]
    fn what_does_not_fail_each_time_is_shrunk_by_repeating() {
        let plan = (0..)
            .map(|seed| report(Profile::Storm, seed, Outcome::Pass).plan)
            .find(|plan| plan.rows().contains(&Row::P1) && plan.faults.len() > 3);
        let plan = plan.unwrap();
        let fake = Fake(std::sync::Mutex::new(0));
        let (found, violation) = search(&fake, &plan, 60, 2, &|_| {}).unwrap();
        assert_eq!(
            (found.plan.faults.len(), violation.invariant),
            (1, Invariant::S3)
        );
        assert_eq!(violation.detail, "with 1 faults");
        let story = story(&plan, &found, &violation, "perennial-chaos replay x.json");
        for word in ["S3 is broken", "kill -9", "replay x.json", "1 of "] {
            assert!(story.contains(word), "{story}");
        }
    }

    /// Nothing is made up where nothing breaks.
    #[test]
    fn a_plan_that_breaks_nothing_is_not_shrunk() {
        let plan = report(Profile::Clock, 1, Outcome::Pass).plan;
        let fake = Fake(std::sync::Mutex::new(0));
        assert!(search(&fake, &plan, 60, 3, &|_| {}).is_none());
    }
}
