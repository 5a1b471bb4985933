//! `campaign`: seeds of the simulator first, then runs of processes, as many as there is time for; results add up over calls.

use std::time::Duration;

use perennial_actors::clock::Instant;

use super::args::{CampaignArgs, Cli};
use super::carriers::Carriers;
use super::pool::{self, Event, Quota};
use super::progress::Display;
use super::render::render;
use super::simulate::{self, How};
use super::{CommandError, command_line, plans};
use crate::coverage::Demand;
use crate::job::Jobs;
use crate::plan::{Carrier, FaultPlan, StoreShape};
use crate::profile::Profile;
use crate::report::Outcome;
use crate::results::Results;
use crate::seed::fresh;

/// Runs of a campaign that was told nothing.
const RUNS: u64 = 20;
/// Simulated ones.
const SIMULATED: u64 = 40;
/// Plans of a campaign that are looked at for what they need.
const LOOK_AHEAD: u64 = 200;

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
    let first = args
        .seed
        .or(results.next_seed(Carrier::Process))
        .unwrap_or_else(fresh);
    let profile_of = |seed| args.profile.unwrap_or_else(|| Profile::of_campaign(seed));
    // Says what is wrong, if anything is, in words.
    plans::draw(&args.draw, &args.nodes, jobs, profile_of(first), first)?;
    let draw = |seed| plans::try_draw(&args.draw, &args.nodes, jobs, profile_of(seed), seed);
    let ahead: Vec<FaultPlan> = (0..quota.runs.unwrap_or(LOOK_AHEAD).min(LOOK_AHEAD))
        .map(|n| draw(first.wrapping_add(n)))
        .collect::<Result<_, _>>()
        .map_err(|e| CommandError::Usage(e.to_string()))?;
    let needs_server = ahead.iter().find(|p| p.cluster.store == StoreShape::S3);
    let repeat = command_line(needs_server, &again(cli, args, first));
    cli.say(&format!("repeat: {repeat}"));
    if let Some(plan) = needs_server {
        plans::check_store(plan)?;
    }
    let carriers = Carriers::new(jobs, &args.nodes, &cli.dir, Carrier::Process)?;
    let began = Instant::now();
    simulated(cli, args, first, &mut results)?;
    let mut display = Display::new(quota.runs, cli.json);
    let elapsed = || began.elapsed();
    pool::run(&carriers, &draw, first, quota, &elapsed, &mut |event| {
        match event {
            Event::Began(plan) => display.began(&plan),
            Event::Progress(seed, progress) => display.progress(seed, &progress),
            Event::Ended(report) => {
                if report.outcome != Outcome::Pass {
                    plans::keep(&plans::file(&cli.dir, &report.plan), &report.plan)?;
                }
                display.ended(&report, quota.runs, elapsed(), quota.time);
                results.append(*report)?;
            }
        }
        Ok(())
    })?;
    display.finish();
    let demand = if args.require_coverage {
        Demand::Always
    } else {
        Demand::Enough
    };
    render(cli, &results.reports, &args.draw.only, demand)
}

/// Seeds of the simulator, which come by every fault point within a minute.
fn simulated(
    cli: &Cli,
    args: &CampaignArgs,
    first: u64,
    results: &mut Results,
) -> Result<(), CommandError> {
    let default = if args.draw.only.is_empty() {
        SIMULATED
    } else {
        0
    };
    let count = args.simulated.unwrap_or(default);
    let from = args
        .seed
        .or(results.next_seed(Carrier::Simulator))
        .unwrap_or(first);
    let how = How {
        jobs: args.parallel,
        twice: 0,
        sabotage: args.nodes.sabotage.sabotage.clone(),
    };
    let seeds = from..from.saturating_add(count);
    simulate::batch(cli, seeds, &how, &mut |simulated| {
        results.append(simulated.report)
    })
}

/// The options of a call that does the same again, into another directory: here its results are already.
fn again(cli: &Cli, args: &CampaignArgs, first: u64) -> Vec<String> {
    let mut repeat = vec!["campaign".to_owned()];
    let mut option = |name: &str, value: String| repeat.extend([format!("--{name}"), value]);
    option("seed", first.to_string());
    for (name, value) in [
        ("runs", args.runs.map(|n| n.to_string())),
        ("minutes", args.minutes.map(|n| n.to_string())),
        ("profile", args.profile.map(|p| p.to_string())),
        ("simulated", args.simulated.map(|n| n.to_string())),
    ] {
        if let Some(value) = value {
            option(name, value);
        }
    }
    plans::drawn(&args.draw, &mut option);
    plans::on(&args.nodes, &mut option);
    option("parallel", args.parallel.to_string());
    option("dir", format!("{}-again", cli.dir.display()));
    if args.require_coverage {
        repeat.push("--require-coverage".to_owned());
    }
    repeat
}
