//! What the command line takes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use perennial_config::value::parse_directory;

/// What every command takes stands apart from its own options in `--help`.
const COMMON: &str = "Common options";

/// Perennial: a stream-processing runtime that comes back from every failure.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "perennial",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 cluster not reachable or no answer, 4 wrong configuration or another cluster's secret, 5 another JobManager leads, 6 a task could not be stopped."
)]
pub(crate) struct Cli {
    /// Configuration file (YAML, flat or nested keys), over the profile and under the environment and -D
    #[arg(long, short = 'c', global = true, help_heading = COMMON, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Built-in settings to begin with: development, staging or production
    #[arg(long, global = true, help_heading = COMMON, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Sets one configuration key, e.g. -D execution.checkpointing.interval=10s
    #[arg(short = 'D', global = true, help_heading = COMMON, value_name = "KEY=VALUE")]
    pub(crate) define: Vec<String>,
    /// JobManager to talk to, as host:port [default: from the configuration]
    #[arg(long, short = 'm', global = true, help_heading = COMMON, value_name = "HOST:PORT")]
    pub(crate) jobmanager: Option<String>,
    /// Prints JSON for scripts
    #[arg(long, global = true, help_heading = COMMON)]
    pub(crate) json: bool,
    /// Form of the log on standard error
    #[arg(long, global = true, help_heading = COMMON, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
    /// What is logged, e.g. info or perennial=debug [default: info on nodes, warn elsewhere]
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Runs a JobManager node
    Jobmanager,
    /// Runs a TaskManager node
    Taskmanager,
    /// Runs a whole local cluster
    Start(StartArgs),
    /// Submits a job and shows its progress
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        subcommand_help_heading = "Jobs",
        subcommand_value_name = "JOB"
    )]
    Run,
    /// Lists the jobs of the cluster
    List(ListArgs),
    /// Shows a job: tasks, recoveries, checkpoints
    Status {
        /// Id of the job, its first digits, or its name
        job: String,
    },
    /// Ends a job now
    Cancel {
        /// Id of the job, its first digits, or its name
        job: String,
    },
    /// Ends a job with a savepoint
    Stop(StopArgs),
    /// Takes a savepoint
    Savepoint {
        /// Id of the job, its first digits, or its name
        job: String,
        /// Directory (URI) to put it under [default: execution.checkpointing.savepoint-dir of this command, else of the job]
        #[arg(value_parser = parse_directory)]
        directory: Option<String>,
    },
    /// Shows the checkpoints of a job
    Checkpoints {
        /// Id of the job, its first digits, or its name
        job: String,
    },
    /// Checks or shows the configuration
    Config(ConfigArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StartArgs {
    /// Number of TaskManagers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) taskmanagers: u32,
    /// One process per node instead of one for all
    #[arg(long)]
    pub(crate) processes: bool,
}

/// How a job is run, beside its own options.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Starts a cluster in this process for the job, with as many slots as it needs
    #[arg(long)]
    pub(crate) local: bool,
    /// Number of TaskManagers of --local
    #[arg(long, value_name = "N", default_value_t = 3, requires = "local", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) taskmanagers: u32,
    /// Default parallelism of operators
    #[arg(long, short = 'p', value_name = "N")]
    pub(crate) parallelism: Option<u32>,
    /// Savepoint or retained checkpoint to start from
    #[arg(long, short = 's', value_name = "URI", value_parser = parse_directory)]
    pub(crate) from_savepoint: Option<String>,
    /// Drops state that no operator takes, instead of refusing
    #[arg(long, requires = "from_savepoint")]
    pub(crate) allow_non_restored_state: bool,
    /// Returns once the job is accepted, and leaves it to the cluster; not with --local, whose cluster ends with the command
    #[arg(long, short = 'd', conflicts_with = "local")]
    pub(crate) detached: bool,
}

impl RunArgs {
    pub(crate) fn augment(command: clap::Command) -> clap::Command {
        <Self as Args>::augment_args(command)
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    /// Lists the TaskManagers instead
    #[arg(long)]
    pub(crate) taskmanagers: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StopArgs {
    /// Id of the job, its first digits, or its name
    pub(crate) job: String,
    /// Takes a savepoint (always done), under this directory (URI) [default: execution.checkpointing.savepoint-dir of this command, else
    /// of the job]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "", value_parser = parse_optional_directory)]
    pub(crate) savepoint: Option<String>,
    /// Lets all windows and timers fire first; the savepoint is then not meant for continuing
    #[arg(long)]
    pub(crate) drain: bool,
}

/// `--savepoint` without a directory reads as an empty one.
fn parse_optional_directory(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    parse_directory(text)
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks a configuration file without starting anything
    Check {
        /// The file
        file: PathBuf,
    },
    /// Shows every key that is in force, with its origin
    Show,
}
