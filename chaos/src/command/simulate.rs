//! `simulate`: seeds in the simulator, some at a time. A seed is a plan, its run is always the same.
//!
//! Invariant: each seed ends in one report. Two runs of one seed that differ are a failure, whatever both found.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use perennial_actors::clock::Instant;
use perennial_actors::fault::Sabotage;

use super::args::{Cli, SimulateArgs};
use super::carriers::{SIMULATED, inconclusive, safely};
use super::progress::Display;
use super::render::{render, write};
use super::{BROKEN, CommandError, INCONCLUSIVE, command_line, output, plans};
use crate::coverage::{Coverage, Demand};
use crate::report::{Outcome, RunReport};
use crate::results::Results;
use crate::simulator::{self, Inside, Options};
use crate::summary::Summary;

/// How seeds are run.
pub(super) struct How {
    /// At a time.
    pub(super) jobs: u64,
    /// One in so many is run a second time; 0: none.
    pub(super) twice: u64,
    pub(super) sabotage: Vec<Sabotage>,
}

/// What came of a seed.
pub(super) struct Simulated {
    pub(super) report: RunReport,
    /// Where a second run went another way.
    difference: Option<String>,
}

pub(super) fn simulate(cli: &Cli, args: &SimulateArgs) -> Result<u8, CommandError> {
    let how = How {
        jobs: args.jobs,
        twice: args.twice,
        sabotage: args.sabotage.sabotage.clone(),
    };
    let mut repeat = vec![
        "simulate".to_owned(),
        "--seeds".to_owned(),
        format!("{}..{}", args.seeds.start, args.seeds.end),
    ];
    if let Some(switches) = args.sabotage.text() {
        repeat.extend(["--sabotage".to_owned(), switches]);
    }
    cli.say(&format!("repeat: {}", command_line(None, &repeat)));
    let mut results = match args.keep {
        true => Some(Results::open(&cli.dir)?),
        false => None,
    };
    if args.trace {
        for seed in args.seeds.clone() {
            cli.say(output::plan(&simulator::draw(seed)).trim_end());
            cli.say(&trace(seed, &how));
        }
    }
    let mut reports = Vec::new();
    let mut differ = false;
    batch(cli, args.seeds.clone(), &how, &mut |simulated| {
        differ |= simulated.difference.is_some();
        match &mut results {
            Some(results) => results.append(simulated.report),
            None => {
                reports.push(simulated.report);
                Ok(())
            }
        }
    })?;
    let summary = Summary::of(results.as_ref().map_or(&reports, |r| &r.reports));
    let code = match &results {
        Some(results) => render(cli, &results.reports, &[], Demand::Never)?,
        None => {
            let coverage = Coverage::of(&summary, &[], Demand::Never);
            if cli.json {
                output::json(&summary)?;
            } else {
                output::line(&format!("\n{}", output::figures(&summary)));
                if !coverage.sites.is_empty() {
                    let sites = coverage.sites.join(", ");
                    output::line(&format!("fault points that no seed came by: {sites}"));
                }
            }
            match summary {
                Summary { failed: 1.., .. } => BROKEN,
                Summary {
                    inconclusive: 1.., ..
                } => INCONCLUSIVE,
                Summary { .. } => 0,
            }
        }
    };
    Ok(if differ { BROKEN } else { code })
}

/// Runs seeds, shows how far they are, keeps plan and trace of those that fail, and hands each on.
pub(super) fn batch(
    cli: &Cli,
    seeds: Range<u64>,
    how: &How,
    tell: &mut dyn FnMut(Simulated) -> anyhow::Result<()>,
) -> Result<(), CommandError> {
    let count = seeds.end.saturating_sub(seeds.start);
    if count == 0 {
        return Ok(());
    }
    let began = Instant::now();
    let mut display = Display::terse(Some(count), cli.json);
    each(seeds, how, &mut |simulated| {
        let report = &simulated.report;
        display.ended(report, Some(count), began.elapsed(), None);
        if let Some(difference) = &simulated.difference {
            cli.say(&format!(
                "seed {} is not the same twice: {difference}",
                report.plan.seed
            ));
        }
        if report.outcome != Outcome::Pass || simulated.difference.is_some() {
            troubled(cli, how, report)?;
        }
        tell(simulated)
    })?;
    display.finish();
    Ok(())
}

fn troubled(cli: &Cli, how: &How, report: &RunReport) -> anyhow::Result<()> {
    let file = plans::file(&cli.dir, &report.plan);
    plans::keep(&file, &report.plan)?;
    let log = file.with_extension("log");
    write(&log, &trace(report.plan.seed, how))?;
    cli.say(output::violations(&report.violations).trim_end());
    cli.say(&format!("  trace: {}", log.display()));
    cli.say(&format!("  shrink: {}", shrink_line(&file, how)));
    Ok(())
}

fn shrink_line(file: &Path, how: &How) -> String {
    let mut arguments = vec!["shrink".to_owned(), file.display().to_string()];
    if !how.sabotage.is_empty() {
        let names: Vec<&str> = how.sabotage.iter().map(|s| s.name()).collect();
        arguments.extend(["--sabotage".to_owned(), names.join(",")]);
    }
    command_line(None, &arguments)
}

/// Runs seeds on some threads and hands each on, in the order in which they end. An error of `tell` ends it.
fn each(
    seeds: Range<u64>,
    how: &How,
    tell: &mut dyn FnMut(Simulated) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let next = AtomicU64::new(seeds.start);
    let (done, inbox) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..how.jobs {
            let (done, next) = (done.clone(), &next);
            let end = seeds.end;
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || done.send(one(seed, how)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        // Dropped on the way out: whoever sends then ends.
        let inbox = inbox;
        inbox.iter().try_for_each(tell)
    })
}

fn options(how: &How, keeps_trace: bool) -> Options {
    Options {
        keeps_trace,
        inside: Inside {
            sabotage: how.sabotage.clone(),
            ..Inside::default()
        },
        ..Options::default()
    }
}

fn execute(seed: u64, how: &How, keeps_trace: bool) -> Result<simulator::Run, String> {
    let plan = simulator::draw(seed);
    safely(format!("{SIMULATED}{seed}"), || {
        simulator::execute(&plan, &options(how, keeps_trace), &mut |_| {})
    })
}

fn trace(seed: u64, how: &How) -> String {
    execute(seed, how, true).map_or_else(|why| why, |run| run.trace.join("\n"))
}

fn one(seed: u64, how: &How) -> Simulated {
    let first = match execute(seed, how, false) {
        Ok(first) => first,
        Err(why) => {
            return Simulated {
                report: inconclusive(&simulator::draw(seed), why),
                difference: None,
            };
        }
    };
    let is_repeated = how.twice > 0 && seed.is_multiple_of(how.twice);
    let difference =
        is_repeated
            .then(|| execute(seed, how, false))
            .and_then(|second| match second {
                Ok(second) if second.digest == first.digest => None,
                Ok(second) => Some(format!(
                    "its digests are {:016x} and {:016x}",
                    first.digest, second.digest
                )),
                Err(why) => Some(why),
            });
    Simulated {
        report: first.report,
        difference,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn how(sabotage: &[Sabotage]) -> How {
        How {
            jobs: 2,
            twice: 2,
            sabotage: sabotage.to_vec(),
        }
    }

    /// Every seed is told once and is repeatable, whichever thread runs it; what cannot be told ends it.
    #[test]
    fn each_seed_has_one_report() {
        let mut seen = Vec::new();
        each(3..7, &how(&[]), &mut |simulated| {
            assert_eq!(simulated.difference, None);
            assert_eq!(simulated.report.outcome, Outcome::Pass);
            seen.push(simulated.report.plan.seed);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.len(), 4);
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), (3..7).collect());
        let result = each(3..7, &how(&[]), &mut |_| anyhow::bail!("disk full"));
        assert_eq!(result.unwrap_err().to_string(), "disk full");
    }

    /// A broken engine is found within a few seeds.
    #[test]
    fn sabotage_is_a_failure() {
        let mut failed = 0;
        each(0..8, &how(&[Sabotage::DeliverTwice]), &mut |simulated| {
            failed += u32::from(simulated.report.outcome == Outcome::Fail);
            Ok(())
        })
        .unwrap();
        assert!(failed > 0);
    }
}
