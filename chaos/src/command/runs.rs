//! `run`, `replay`, `campaign` and `shrink`: plans and what runs them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use perennial_actors::clock::Instant;

use super::args::{CampaignArgs, Cli, Cover, DrawArgs, NodeArgs, ReplayArgs, RunArgs, ShrinkArgs};
use super::campaign::{Event, Quota};
use super::carriers::{Carrier, Carriers, run_safely};
use super::progress::Display;
use super::render::{render, write};
use super::{BROKEN, CommandError, INCONCLUSIVE, campaign, command_line, output, plan_file};
use crate::catalogue::carried_by;
use crate::job::Jobs;
use crate::plan::{FaultPlan, StoreShape};
use crate::profile::{Draw, DrawError, Profile};
use crate::report::{Outcome, RunReport};
use crate::results::Results;
use crate::seed::fresh;
use crate::shrink;

/// Runs of a campaign that was told nothing.
const RUNS: u64 = 20;
/// Plans of a campaign that are looked at for what they need.
const LOOK_AHEAD: u64 = 200;

pub(super) fn run(cli: &Cli, args: &RunArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let plan = draw(&args.draw, &args.nodes, jobs, args.profile, args.seed)?;
    if args.plan {
        output::json(&plan)?;
        return Ok(0);
    }
    let mut repeat = vec!["run".to_owned()];
    let mut option = |name: &str, value: String| repeat.extend([format!("--{name}"), value]);
    option("profile", args.profile.to_string());
    option("seed", args.seed.to_string());
    drawn(&args.draw, &mut option);
    on(&args.nodes, &mut option);
    let repeat = command_line(Some(&plan), &repeat);
    one(cli, &plan, &args.nodes, jobs, &repeat)
}

pub(super) fn replay(cli: &Cli, args: &ReplayArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let plan = read(&args.plan)?;
    let mut repeat = vec!["replay".to_owned(), args.plan.display().to_string()];
    on(&args.nodes, &mut |name, value| {
        repeat.extend([format!("--{name}"), value]);
    });
    let repeat = command_line(Some(&plan), &repeat);
    one(cli, &plan, &args.nodes, jobs, &repeat)
}

/// Options that a drawing was asked for, to be written down again.
fn drawn(draw: &DrawArgs, option: &mut dyn FnMut(&str, String)) {
    if !draw.only.is_empty() {
        let rows: Vec<&str> = draw.only.iter().map(|row| row.as_str()).collect();
        option("only", rows.join(","));
    }
    if let Some(store) = draw.store {
        option("store", store.name().to_owned());
    }
}

/// See [`drawn`].
fn on(nodes: &NodeArgs, option: &mut dyn FnMut(&str, String)) {
    if let Some(job) = &nodes.job {
        option("job", job.clone());
    }
    if let Some(binary) = &nodes.binary {
        option("binary", binary.display().to_string());
    }
}

/// Runs one plan, live.
fn one(
    cli: &Cli,
    plan: &FaultPlan,
    nodes: &NodeArgs,
    jobs: &Jobs,
    repeat: &str,
) -> Result<u8, CommandError> {
    let say = |text: &str| {
        if cli.json {
            output::note(text);
        } else {
            output::line(text);
        }
    };
    say(&format!("repeat: {repeat}"));
    say(output::plan(plan).trim_end());
    check_store(plan)?;
    let carriers = Carriers::new(jobs, nodes, &cli.dir)?;
    let report = run_safely(&carriers, plan, &mut |progress| {
        if let Some(text) = output::progress(plan, &progress) {
            say(&text);
        }
    });
    if cli.json {
        output::json(&report)?;
    } else {
        output::line(&output::run(&report));
    }
    if report.outcome != Outcome::Pass {
        let file = plan_file(&cli.dir, plan);
        keep(&file, plan)?;
        let file = file.display().to_string();
        for verb in ["replay", "shrink"] {
            say(&format!(
                "{verb}: {}",
                command_line(Some(plan), &[verb.to_owned(), file.clone()])
            ));
        }
    }
    Ok(code(&report))
}

fn code(report: &RunReport) -> u8 {
    match report.outcome {
        Outcome::Pass => 0,
        Outcome::Fail => BROKEN,
        Outcome::Inconclusive(_) => INCONCLUSIVE,
    }
}

pub(super) fn campaign(cli: &Cli, args: &CampaignArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let quota = Quota {
        runs: args.runs.or(args.minutes.is_none().then_some(RUNS)),
        time: args
            .minutes
            .map(|minutes| Duration::try_from_secs_f64(minutes * 60.0))
            .transpose()
            .map_err(|e| CommandError::Usage(format!("--minutes: {e}")))?,
        parallel: args.parallel,
    };
    let mut results = Results::open(&cli.dir)?;
    if !args.resume && !results.reports.is_empty() {
        return Err(CommandError::Usage(format!(
            "{} holds the results of {} runs: add to them with --resume, or choose another --dir",
            cli.dir.display(),
            results.reports.len()
        )));
    }
    let first = args.seed.unwrap_or_else(|| match results.reports.len() {
        0 => fresh(),
        _ => results.next_seed(),
    });
    let profile_of = |seed| args.profile.unwrap_or_else(|| Profile::of_campaign(seed));
    // Says what is wrong, if anything is, in words.
    draw(&args.draw, &args.nodes, jobs, profile_of(first), first)?;
    let plans = |seed: u64| draw_plan(&args.draw, &args.nodes, jobs, profile_of(seed), seed);
    let say = |text: &str| {
        if cli.json {
            output::note(text);
        } else {
            output::line(text);
        }
    };
    let repeat = repeat_campaign(cli, args, first);
    let ahead: Vec<FaultPlan> = (0..quota.runs.unwrap_or(LOOK_AHEAD).min(LOOK_AHEAD))
        .map(|n| plans(first.wrapping_add(n)))
        .collect::<Result<_, _>>()
        .map_err(|e| CommandError::Usage(e.to_string()))?;
    let needs_server = ahead.iter().find(|p| p.cluster.store == StoreShape::S3);
    say(&format!("repeat: {}", command_line(needs_server, &repeat)));
    if let Some(plan) = needs_server {
        check_store(plan)?;
    }
    let carriers = Carriers::new(jobs, &args.nodes, &cli.dir)?;
    let began = Instant::now();
    let mut display = Display::new(quota.runs, cli.json);
    let directory = cli.dir.clone();
    campaign::run(
        &carriers,
        &plans,
        first,
        quota,
        &|| began.elapsed(),
        &mut |event| {
            match event {
                Event::Began(plan) => display.began(&plan),
                Event::Progress(seed, progress) => display.progress(seed, &progress),
                Event::Ended(report) => {
                    if report.outcome != Outcome::Pass {
                        keep(&plan_file(&directory, &report.plan), &report.plan)?;
                    }
                    display.ended(&report, quota.runs, began.elapsed(), quota.time);
                    results.append(*report)?;
                }
            }
            Ok(())
        },
    )?;
    display.finish();
    let mut due = args.draw.only.clone();
    if args.cover == Cover::All {
        due.extend(carried_by(crate::plan::Carrier::Process));
    }
    render(cli, &results.reports, &due)
}

fn repeat_campaign(cli: &Cli, args: &CampaignArgs, first: u64) -> Vec<String> {
    let mut repeat = vec!["campaign".to_owned()];
    let mut option = |name: &str, value: String| repeat.extend([format!("--{name}"), value]);
    option("seed", first.to_string());
    for (name, value) in [
        ("runs", args.runs.map(|n| n.to_string())),
        ("minutes", args.minutes.map(|n| n.to_string())),
        ("profile", args.profile.map(|p| p.to_string())),
    ] {
        if let Some(value) = value {
            option(name, value);
        }
    }
    drawn(&args.draw, &mut option);
    on(&args.nodes, &mut option);
    option("parallel", args.parallel.to_string());
    option("cover", args.cover.name().to_owned());
    // Its results are there already.
    option("dir", format!("{}-again", cli.dir.display()));
    repeat
}

pub(super) fn shrink(cli: &Cli, args: &ShrinkArgs, jobs: &Jobs) -> Result<u8, CommandError> {
    let plan = read(&args.plan)?;
    let say = |text: &str| {
        if cli.json {
            output::note(text);
        } else {
            output::line(text);
        }
    };
    let repeat = vec!["shrink".to_owned(), args.plan.display().to_string()];
    say(&format!("repeat: {}", command_line(Some(&plan), &repeat)));
    check_store(&plan)?;
    let carriers = Carriers::new(jobs, &args.nodes, &cli.dir)?;
    let broken = |plan: &FaultPlan| broken_by(&carriers, plan, args.repeat, &say);
    let Some(first) = broken(&plan) else {
        say(&format!(
            "it breaks nothing in {} runs: there is nothing to shrink (more with --repeat)",
            args.repeat
        ));
        return Ok(INCONCLUSIVE);
    };
    say(&format!("{first} is broken; looking for the reason"));
    let mut left = args.tries;
    let shrunk = shrink::shrink(&plan, args.tries, &mut |smaller| {
        left = left.saturating_sub(1);
        let is_same = broken(smaller) == Some(first);
        let verdict = if is_same { "still broken" } else { "holds" };
        say(&format!(
            "  {verdict}: {} faults, {} records; {left} tries left",
            smaller.faults.len(),
            smaller.workload.events
        ));
        is_same
    });
    let file = args
        .output
        .clone()
        .unwrap_or_else(|| args.plan.with_extension("small.json"));
    keep(&file, &shrunk.plan)?;
    let bound = if shrunk.is_minimal {
        "nothing more can be left out"
    } else {
        "the tries are used up; more with --tries"
    };
    say(&format!(
        "\n{first} is broken by ({} of {} faults, {} of {} records, {} tries, {bound}):",
        shrunk.plan.faults.len(),
        plan.faults.len(),
        shrunk.plan.workload.events,
        plan.workload.events,
        shrunk.tries
    ));
    say(output::plan(&shrunk.plan).trim_end());
    let replay = ["replay".to_owned(), file.display().to_string()];
    say(&format!(
        "replay: {}",
        command_line(Some(&shrunk.plan), &replay)
    ));
    if cli.json {
        output::json(&shrunk.plan)?;
    }
    Ok(0)
}

/// The first invariant that a plan breaks within some runs.
fn broken_by(
    carrier: &dyn Carrier,
    plan: &FaultPlan,
    repeat: u32,
    say: &dyn Fn(&str),
) -> Option<crate::plan::Invariant> {
    (0..repeat).find_map(|_| {
        let report = run_safely(carrier, plan, &mut |_| {});
        if let Outcome::Inconclusive(reason) = &report.outcome {
            say(&format!("  inconclusive: {reason}"));
        }
        report.violations.first().map(|v| v.invariant)
    })
}

fn draw(
    args: &DrawArgs,
    nodes: &NodeArgs,
    jobs: &Jobs,
    profile: Profile,
    seed: u64,
) -> Result<FaultPlan, CommandError> {
    draw_plan(args, nodes, jobs, profile, seed).map_err(|error| {
        let known: Vec<&str> = jobs.all().iter().map(|job| job.name()).collect();
        match (&nodes.job, &error) {
            (Some(name), DrawError::NoJob) => CommandError::Usage(format!(
                "this command knows no job `{name}`, only {}; for one of yours see chaos/examples/own_job.rs",
                known.join(", ")
            )),
            _ => CommandError::Usage(error.to_string()),
        }
    })
}

fn draw_plan(
    args: &DrawArgs,
    nodes: &NodeArgs,
    jobs: &Jobs,
    profile: Profile,
    seed: u64,
) -> Result<FaultPlan, DrawError> {
    let named = nodes.job.as_deref();
    let mut jobs = jobs.all();
    jobs.retain(|job| named.is_none_or(|name| job.name() == name));
    Draw {
        profile,
        only: &args.only,
        jobs: &jobs,
        store: args.store.map(super::args::Store::shape),
    }
    .plan(seed)
}

fn read(path: &Path) -> Result<FaultPlan, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CommandError::Usage(format!("cannot read the plan {}: {e}", path.display()))
    })?;
    serde_json::from_str(&text)
        .map_err(|e| CommandError::Usage(format!("{} is no plan: {e}", path.display())))
}

pub(super) fn keep(path: &Path, plan: &FaultPlan) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(plan).context("the plan as JSON")?;
    Ok(write(path, &text)?)
}

/// Says how to get a server, before nodes and input are made in vain.
#[expect(
    clippy::disallowed_methods,
    reason = "where the harness's own server is belongs to no configuration"
)]
fn check_store(plan: &FaultPlan) -> Result<(), CommandError> {
    let is_named = std::env::var("PERENNIAL_TEST_S3_ENDPOINT").is_ok();
    if plan.cluster.store != StoreShape::S3 || is_named {
        return Ok(());
    }
    Err(CommandError::Usage(
        "checkpoints of such runs lie in a real S3 server, and none is named: run the line above, which starts one, or leave it out with --store disk"
            .to_owned(),
    ))
}
