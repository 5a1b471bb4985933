//! The command line: every role of a cluster and every order to one.
//!
//! Exit codes: 0 done; 1 the job or command failed; 2 wrong usage; 3 the cluster cannot be reached; 4 wrong configuration;
//! 5 another JobManager leads; 6 a task could not be stopped and the TaskManager ended itself.

mod args;
mod config;
mod connection;
mod error;
mod orders;
mod output;
mod run;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use perennial_actors::fault::FaultPoints;

use crate::api::JobRegistry;
use args::{Cli, Command, RunArgs};
pub(crate) use error::CliError;

/// Runs the command line with the jobs of this binary: the one call of a `main`.
///
/// ```no_run
/// use perennial::api::JobRegistry;
///
/// fn main() -> std::process::ExitCode {
///     perennial::cli::main(JobRegistry::new())
/// }
/// ```
#[must_use]
pub fn main(registry: JobRegistry) -> ExitCode {
    run_with(&registry, FaultPoints::default())
}

/// As [`main`], for nodes that fail where they are told to.
#[cfg(feature = "fault-points")]
#[must_use]
pub fn main_with_faults(registry: &JobRegistry, faults: FaultPoints) -> ExitCode {
    run_with(registry, faults)
}

fn run_with(registry: &JobRegistry, faults: FaultPoints) -> ExitCode {
    let command = with_jobs(Cli::command(), registry);
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version come this way too; there is nobody to tell when printing fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    cli.define = defines(std::env::args().skip(1));
    match execute(&cli, &matches, registry, faults) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            error.exit_code()
        }
    }
}

/// All `-D` arguments, wherever they stand: of those before and after a subcommand clap keeps only the latter.
fn defines(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut defines = Vec::new();
    let mut arguments = arguments.take_while(|argument| argument != "--");
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("-D") {
            Some("") => defines.extend(arguments.next()),
            Some(define) => defines.push(define.trim_start_matches('=').to_owned()),
            None => {}
        }
    }
    defines
}

/// Each job is a subcommand of `run` with its own options, so that `--help` and suggestions know them.
fn with_jobs(command: clap::Command, registry: &JobRegistry) -> clap::Command {
    command.mut_subcommand("run", |mut run| {
        for job in registry.jobs() {
            let mut sub =
                RunArgs::augment(clap::Command::new(job.name.clone())).about(job.about.clone());
            for option in &job.options {
                sub = sub.arg(
                    clap::Arg::new(option.name)
                        .long(option.name)
                        .value_name("VALUE")
                        .help(option.help)
                        .help_heading("Job options"),
                );
            }
            run = run.subcommand(sub);
        }
        run
    })
}

fn execute(
    cli: &Cli,
    matches: &clap::ArgMatches,
    registry: &JobRegistry,
    faults: FaultPoints,
) -> Result<ExitCode, CliError> {
    match &cli.command {
        Command::Jobmanager => serve::job_manager(cli, faults),
        Command::Taskmanager => serve::task_manager(cli, registry, faults),
        Command::Start(start) => serve::start(cli, start, registry),
        Command::Run => run::run(cli, matches, registry),
        Command::List(list) => orders::list(cli, list),
        Command::Status { job } => orders::status(cli, job),
        Command::Cancel { job } => orders::cancel(cli, job),
        Command::Stop(stop) => orders::stop(cli, stop),
        Command::Savepoint { job, directory } => orders::savepoint(cli, job, directory.as_deref()),
        Command::Checkpoints { job } => orders::checkpoints(cli, job),
        Command::Config(config) => config::execute(cli, config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before and after the subcommand, in all three spellings.
    #[test]
    fn every_definition_counts_wherever_it_stands() {
        let arguments = [
            "-D", "a=1", "run", "-Db=2", "job", "-D=c=3", "--", "-D", "d=4",
        ];
        assert_eq!(
            defines(arguments.map(str::to_owned).into_iter()),
            ["a=1", "b=2", "c=3"]
        );
    }

    /// Each job brings its own line and options.
    #[test]
    fn jobs_are_subcommands_of_run() {
        let command = with_jobs(Cli::command(), &crate::jobs::registry());
        command.clone().debug_assert();
        let run = command.find_subcommand("run").unwrap();
        let job = run.find_subcommand("keyed-count").unwrap();
        assert!(job.get_about().unwrap().to_string().contains("throughput"));
        assert!(job.get_arguments().any(|a| a.get_id() == "keys"));
    }
}
