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
    let command = match with_jobs(Cli::command(), registry) {
        Ok(command) => command,
        Err(error) => {
            output::error(&error);
            return error.exit_code();
        }
    };
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
    // What is not text was refused, unless it is a path.
    let arguments = std::env::args_os().skip(1);
    cli.define = defines(arguments.map(|argument| argument.to_string_lossy().into_owned()));
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
        // Also behind `-d`, in one word.
        let short = argument.strip_prefix('-').unwrap_or_default();
        match short.trim_start_matches('d').strip_prefix('D') {
            Some("") => defines.extend(arguments.next()),
            Some(define) => defines.push(define.trim_start_matches('=').to_owned()),
            None => {}
        }
    }
    defines
}

/// Each job is a subcommand of `run` with its own options, so that `--help` and suggestions know them.
///
/// # Errors
/// When a job's option has the name of another one: clap would panic or take one for the other.
fn with_jobs(command: clap::Command, registry: &JobRegistry) -> Result<clap::Command, CliError> {
    let everywhere = ["help".to_owned(), "version".to_owned()];
    let everywhere = [&names(&command)[..], &everywhere].concat();
    let mut jobs = Vec::new();
    for job in registry.jobs() {
        let mut sub =
            RunArgs::augment(clap::Command::new(job.name.clone())).about(job.about.clone());
        for option in &job.options {
            if [names(&sub), everywhere.clone()]
                .concat()
                .iter()
                .any(|name| name == option.name)
            {
                return Err(CliError::Usage(format!(
                    "job `{}` cannot have an option --{}: `run` or the job itself has one of that name; choose another in its JobOption",
                    job.name, option.name
                )));
            }
            sub = sub.arg(
                clap::Arg::new(option.name)
                    .long(option.name)
                    .value_name("VALUE")
                    .help(option.help)
                    .help_heading("Job options"),
            );
        }
        jobs.push(sub);
    }
    Ok(command.mut_subcommand("run", |run| run.subcommands(jobs)))
}

/// Under which clap and people know its options.
fn names(command: &clap::Command) -> Vec<String> {
    let options = command.get_arguments();
    let names = options.flat_map(|one| [Some(one.get_id().as_str()), one.get_long()]);
    names.flatten().map(str::to_owned).collect()
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
    use crate::api::JobOption;

    /// Before and after the subcommand, in all spellings.
    #[test]
    fn every_definition_counts_wherever_it_stands() {
        let arguments = [
            "-D", "a=1", "run", "-Db=2", "job", "-D=c=3", "-dDe=5", "--define", "--", "-D", "d=4",
        ];
        assert_eq!(
            defines(arguments.map(str::to_owned).into_iter()),
            ["a=1", "b=2", "c=3", "e=5"]
        );
    }

    /// Each job brings its own line and options.
    #[test]
    fn jobs_are_subcommands_of_run() {
        let command = with_jobs(Cli::command(), &crate::jobs::registry()).unwrap();
        command.clone().debug_assert();
        let run = command.find_subcommand("run").unwrap();
        let job = run.find_subcommand("keyed-count").unwrap();
        assert!(job.get_about().unwrap().to_string().contains("throughput"));
        assert!(job.get_arguments().any(|a| a.get_id() == "keys"));
    }

    /// Those of `run`, of every command, of clap, and the job's own.
    #[test]
    fn an_option_of_a_job_takes_no_name_that_is_taken() {
        for taken in [
            "local",
            "from-savepoint",
            "from_savepoint",
            "config",
            "help",
            "mine",
        ] {
            let options = ["mine", taken].map(|name| JobOption { name, help: "" });
            let registry = JobRegistry::new().job("job", "", &options, |_, _| Ok(()));
            let error = with_jobs(Cli::command(), &registry).unwrap_err();
            assert!(
                error.to_string().contains(&format!("--{taken}:")),
                "{error}"
            );
        }
    }
}
