//! The `perennial-chaos` command: draws plans, runs them, adds them up, shrinks them, shows what came of them.
//!
//! Invariant: the first line of every run is the command that repeats it. Exit codes: 0 all is well; 1 an invariant is broken or the command
//! failed; 2 wrong usage; 3 the cluster cannot be reached; 4 wrong configuration, another cluster's secret among it; 7 inconclusive;
//! 8 a campaign has not come to everything that it was to come to. Those below 7 mean what they mean for `perennial`.

mod args;
mod campaign;
mod carriers;
mod inject;
mod output;
mod plans;
mod pool;
mod progress;
mod render;
mod runs;
mod shrinking;
mod simulate;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::job::Jobs;
use crate::plan::{FaultPlan, StoreShape};
use crate::process::end_nodes_with_us;
use args::{Cli, Command};

const BROKEN: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const CONFIGURATION: u8 = 4;
const INCONCLUSIVE: u8 = 7;
const UNCOVERED: u8 = 8;

/// Why the command cannot do what it is asked to.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// It was asked for something that is not possible.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// The settings do not load, or are those of another cluster.
    #[error("{0}")]
    Configuration(String),
    /// Everything else.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl CommandError {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Configuration(_) => CONFIGURATION,
            Self::Failed(_) => BROKEN,
        }
    }
}

/// Runs the command line with the jobs that faults can be aimed at: the one call of a `main`.
///
/// ```no_run
/// use perennial_chaos::job::Jobs;
///
/// fn main() -> std::process::ExitCode {
///     perennial_chaos::command::main(Jobs::stock())
/// }
/// ```
#[must_use]
pub fn main(jobs: Jobs) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; there is nobody to tell when printing fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    carriers::quieten_simulated_panics();
    match execute(&cli, &jobs) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::note(&format!("error: {error}"));
            ExitCode::from(error.code())
        }
    }
}

fn execute(cli: &Cli, jobs: &Jobs) -> Result<u8, CommandError> {
    end_nodes_with_us().context("cannot listen for signals")?;
    match &cli.command {
        Command::Run(args) => runs::run(cli, args, jobs),
        Command::Campaign(args) => campaign::campaign(cli, args, jobs),
        Command::Simulate(args) => simulate::simulate(cli, args),
        Command::Replay(args) => runs::replay(cli, args, jobs),
        Command::Shrink(args) => shrinking::shrink(cli, args, jobs),
        Command::List(args) => list(cli, args),
        Command::Inject(args) => inject::inject(cli, args),
        Command::Report => render::again(cli),
    }
}

fn list(cli: &Cli, args: &args::ListArgs) -> Result<u8, CommandError> {
    let all = crate::catalogue::ALL.iter();
    let entries: Vec<_> = all
        .filter(|entry| args.rows.is_empty() || args.rows.contains(&entry.row))
        .collect();
    if cli.json {
        output::json(&entries)?;
    } else if args.rows.is_empty() {
        output::line(&output::catalogue());
    } else {
        for entry in entries {
            output::line(&output::entry(entry));
        }
    }
    Ok(0)
}

/// This program, as it was called.
fn program() -> String {
    let name = std::env::args().next();
    name.unwrap_or_else(|| "perennial-chaos".to_owned())
}

/// A command line of this program that can be pasted; `prefix` is for plans that need a server.
fn command_line(plan: Option<&FaultPlan>, arguments: &[String]) -> String {
    let needs_server = plan.is_some_and(|plan| plan.cluster.store == StoreShape::S3);
    let mut line = if needs_server {
        "scripts/s3-server run ".to_owned()
    } else {
        String::new()
    };
    line.push_str(&program());
    for argument in arguments {
        line.push(' ');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:".contains(c);
        if argument.chars().all(is_plain) {
            line.push_str(argument);
        } else {
            line.push_str(&format!("'{}'", argument.replace('\'', r"'\''")));
        }
    }
    line
}
