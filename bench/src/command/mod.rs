//! The `perennial-bench` command.

pub mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use perennial_chaos::process::end_nodes_with_us;

use crate::figures::short;
use crate::plan::{PeerName, Plan};
use crate::report;
use crate::report::results::Results;
use crate::runner::run;
use crate::workload::{Profile, Workload};
use progress::Progress;

/// Name of the program that plays Perennial's roles, beside this one.
const NODE: &str = "perennial-bench-node";

/// Measures Perennial beside Apache Flink and beside a plain loop, in one run on this machine.
///
/// Both systems run the same jobs over the same generated input, in turns; outputs are compared with those of a plain fold.
/// Flink is downloaded (with pip, 330 MB, once) and its jobs are compiled (with a JDK 17).
#[derive(Debug, Parser)]
#[command(
    name = "perennial-bench",
    version,
    after_help = "Exit codes: 0 all was measured that the time was enough for (whether or not the bars are met), 1 an output was wrong or a run failed, 2 wrong usage.\n\n\
                  Measure a release: make bench builds the node alone, as a release is built, and this program."
)]
struct Cli {
    /// How much is measured
    #[arg(value_enum, default_value_t = Profile::Quick)]
    profile: Profile,
    /// Workloads to measure, by name or its beginning, e.g. keyed-count,shuffle [default: all of the profile]
    #[arg(long, value_name = "WORKLOADS", value_delimiter = ',')]
    only: Vec<String>,
    /// Runs of each peer and workload [default: by workload, see --list]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Multiplies the number of events of bounded jobs; below 1 only to try things out, what is measured then says nothing
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Who is measured
    #[arg(
        long,
        value_name = "PEERS",
        value_enum,
        value_delimiter = ',',
        default_value = "perennial,flink,bare"
    )]
    peers: Vec<PeerName>,
    /// Goes on with the results that --out has: what is complete is skipped, what lacks a run is measured anew with all that takes turns with it
    #[arg(long)]
    resume: bool,
    /// Begins no workload in the last 20 s of so many minutes, set-up apart: those that come too late are named and left for --resume
    /// [default: 5 for quick, no limit for full]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: Option<u64>,
    /// Directory of results.json and report.html
    #[arg(long, value_name = "DIR", default_value = ".perennial/bench")]
    out: PathBuf,
    /// Directory in which Flink is kept
    #[arg(long, value_name = "DIR", default_value = ".perennial/flink")]
    cache: PathBuf,
    /// Program that plays Perennial's roles [default: perennial-bench-node beside this program]
    #[arg(long, value_name = "PATH")]
    node: Option<PathBuf>,
    /// Lists the workloads of the profile, with their runs and events, and ends
    #[arg(long)]
    list: bool,
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            progress::line(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every run succeeded with the right output.
fn execute(cli: Cli) -> anyhow::Result<bool> {
    if !(cli.scale.is_finite() && cli.scale > 0.0) {
        bail!("--scale {}: choose a positive number", cli.scale);
    }
    let plan = Plan {
        profile: cli.profile,
        only: cli.only,
        runs: cli.runs.map(|runs| runs as usize),
        scale: cli.scale,
        begin_within: begin_within(cli.minutes, cli.profile),
        binary: cli.node.map_or_else(node, Ok)?,
        inputs: cli.out.join("input"),
        cache: cli.cache,
        peers: cli.peers,
    };
    let workloads = plan.workloads();
    if workloads.is_empty() {
        bail!(
            "no workload of this profile begins with {}; see --list",
            plan.only.join(" or ")
        );
    }
    if cli.list {
        for line in list(&plan, &workloads) {
            progress::line(&line);
        }
        return Ok(true);
    }
    std::fs::create_dir_all(&cli.out)?;
    end_nodes_with_us().context("cannot listen for signals")?;
    let mut results = Results::new(plan.profile, plan.scale);
    if cli.resume {
        results = report::resume(&cli.out, results)?;
    }
    let progress = Progress::new();
    let keep = |results: &_| report::write(results, &cli.out);
    let results = run(&plan, results, &progress, keep)?;
    progress.finish();
    progress::line(&report::text(&results));
    for file in [report::JSON, report::PAGE] {
        progress::line(&format!("{}", cli.out.join(file).display()));
    }
    Ok(!results.has_failed())
}

/// Minutes that the quick profile takes at most.
const QUICK_MINUTES: u64 = 5;

/// What those at the end of the quick profile take at most, on a busy machine.
const LAST_GROUP: Duration = Duration::from_secs(20);

fn begin_within(minutes: Option<u64>, profile: Profile) -> Option<Duration> {
    let minutes = minutes.or(match profile {
        Profile::Quick => Some(QUICK_MINUTES),
        Profile::Full => None,
    });
    minutes.map(|minutes| Duration::from_mins(minutes) - LAST_GROUP)
}

/// Each workload with the runs of ours and of Flink in a pass, and its events where the job ends with them.
fn list(plan: &Plan, workloads: &[Workload]) -> Vec<String> {
    let line = |[name, ours, theirs, events, about]: [&str; 5]| {
        format!("{name:<28} {ours:>4} {theirs:>5} {events:>8}  {about}")
    };
    let mut lines = vec![line(["workload", "runs", "Flink", "M events", "about"])];
    for workload in workloads {
        let wanted = plan.wanted(workload);
        let runs = |of: PeerName| {
            let runs = wanted.iter().find(|(peer, _runs)| *peer == of);
            runs.map_or_else(|| "-".to_owned(), |(_peer, runs)| runs.to_string())
        };
        let events = match workload.events {
            0 => "-".to_owned(),
            events => short(events as f64 / 1e6),
        };
        let (ours, theirs) = (runs(PeerName::Perennial), runs(PeerName::Flink));
        lines.push(line([
            &workload.name,
            &ours,
            &theirs,
            &events,
            &workload.about,
        ]));
    }
    lines
}

fn node() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(NODE);
    if !path.is_file() {
        bail!(
            "there is no program {}: build it with `cargo build -p perennial-bench --no-default-features --bin {NODE}`",
            path.display()
        );
    }
    path.canonicalize().context("cannot find the node")
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn quick_ends_in_five_minutes_and_full_when_it_is_done() {
        let seconds = |minutes, profile| begin_within(minutes, profile).map(|d| d.as_secs());
        for (minutes, profile, expected) in [
            (None, Profile::Quick, Some(280)),
            (None, Profile::Full, None),
            (Some(1), Profile::Quick, Some(40)),
            (Some(60), Profile::Full, Some(3580)),
        ] {
            assert_eq!(seconds(minutes, profile), expected);
        }
    }

    /// What is measured by default and with what was asked for; no Flink where it takes no part, no events where a job has no end.
    #[test]
    fn the_list_tells_runs_and_events() {
        let only = ["window-sliding", "keyed-count-1e6-long-cp1s", "idle"];
        let mut plan = Plan {
            profile: Profile::Full,
            only: only.map(str::to_owned).to_vec(),
            runs: None,
            scale: 1.0,
            begin_within: None,
            peers: PeerName::value_variants().to_vec(),
            binary: PathBuf::new(),
            inputs: PathBuf::new(),
            cache: PathBuf::new(),
        };
        let listed = |plan: &Plan| -> Vec<String> {
            let lines = list(plan, &plan.workloads()).into_iter();
            let words = lines.map(|line| {
                let words: Vec<_> = line.split_whitespace().take(4).collect();
                words.join(" ")
            });
            words.skip(1).collect()
        };
        let expected = [
            "keyed-count-1e6-long-cp1s 9 - 150",
            "window-sliding 5 5 15.0",
            "idle 5 2 -",
        ];
        assert_eq!(listed(&plan), expected);
        (plan.runs, plan.scale) = (Some(7), 0.1);
        plan.peers = vec![PeerName::Perennial];
        let expected = [
            "keyed-count-1e6-long-cp1s 7 - 15.0",
            "window-sliding 7 - 1.50",
            "idle 7 - -",
        ];
        assert_eq!(listed(&plan), expected);
    }
}
