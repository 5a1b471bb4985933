//! `run` and `replay`: one plan, live.

use super::args::{Cli, NodeArgs, ReplayArgs, RunArgs};
use super::carriers::{Carriers, run_safely};
use super::{BROKEN, CommandError, INCONCLUSIVE, command_line, output, plans};
use crate::job::Jobs;
use crate::plan::FaultPlan;
use crate::report::Outcome;

pub(super) fn run(cli: &Cli, args: &RunArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let plan = plans::draw(&args.draw, &args.nodes, jobs, args.profile, args.seed)?;
    if args.plan {
        output::json(&plan)?;
        return Ok(0);
    }
    let mut repeat = vec!["run".to_owned()];
    let mut option = |name: &str, value: String| repeat.extend([format!("--{name}"), value]);
    option("profile", args.profile.to_string());
    option("seed", args.seed.to_string());
    plans::drawn(&args.draw, &mut option);
    plans::on(&args.nodes, &mut option);
    let repeat = command_line(Some(&plan), &repeat);
    one(cli, &plan, &args.nodes, jobs, &repeat)
}

pub(super) fn replay(cli: &Cli, args: &ReplayArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let plan = plans::read(&args.plan)?;
    let mut repeat = vec!["replay".to_owned(), args.plan.display().to_string()];
    plans::on(&args.nodes, &mut |name, value| {
        repeat.extend([format!("--{name}"), value]);
    });
    let repeat = command_line(Some(&plan), &repeat);
    one(cli, &plan, &args.nodes, jobs, &repeat)
}

fn one(
    cli: &Cli,
    plan: &FaultPlan,
    nodes: &NodeArgs,
    jobs: &Jobs,
    repeat: &str,
) -> Result<u8, CommandError> {
    cli.say(&format!("repeat: {repeat}"));
    cli.say(output::plan(plan).trim_end());
    plans::check_store(plan)?;
    let carriers = Carriers::new(jobs, nodes, &cli.dir, plan.carrier)?;
    let report = run_safely(&carriers, plan, &mut |progress| {
        if let Some(text) = output::progress(plan, &progress) {
            cli.say(&text);
        }
    });
    if cli.json {
        output::json(&report)?;
    } else {
        output::line(&output::run(&report));
    }
    if report.outcome != Outcome::Pass {
        let file = plans::file(&cli.dir, plan);
        plans::keep(&file, plan)?;
        for verb in ["replay", "shrink"] {
            let mut arguments = vec![verb.to_owned(), file.display().to_string()];
            plans::on(nodes, &mut |name, value| {
                arguments.extend([format!("--{name}"), value]);
            });
            cli.say(&format!("{verb}: {}", command_line(Some(plan), &arguments)));
        }
    }
    Ok(match report.outcome {
        Outcome::Pass => 0,
        Outcome::Fail => BROKEN,
        Outcome::Inconclusive(_) => INCONCLUSIVE,
    })
}
