//! What the command takes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use perennial_actors::fault::Sabotage;

use super::output;
use crate::plan::{Row, StoreShape};
use crate::profile::Profile;

/// Breaks Perennial on purpose and checks that nothing is lost or repeated.
#[derive(Debug, Parser)]
#[command(
    name = "perennial-chaos",
    version,
    about,
    after_help = "Exit codes: 0 all is well, 1 an invariant is broken or the command failed, 2 wrong usage, 3 the cluster cannot be reached, \
                  4 wrong configuration, 7 inconclusive (trouble of harness or machine, nothing proven), 8 a campaign has not come to everything that it was to come to."
)]
pub(super) struct Cli {
    /// Prints JSON for scripts
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Directory of results and of what failing runs leave
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = ".perennial/chaos"
    )]
    pub(super) dir: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs one plan, drawn from a profile and a seed, against real processes
    Run(RunArgs),
    /// Runs many, adds them up and renders a report
    Campaign(CampaignArgs),
    /// Runs seeds in the simulator: a whole cluster in one thread, in virtual time
    Simulate(SimulateArgs),
    /// Runs a plan from a file
    Replay(ReplayArgs),
    /// Makes a failing plan smaller while the same invariant breaks
    Shrink(ShrinkArgs),
    /// Lists the catalogue: what can be struck, what is expected, what shows it
    List(ListArgs),
    /// Strikes one fault into a running cluster that has chaos.enabled
    Inject(InjectArgs),
    /// Renders the report of a campaign again
    Report,
}

/// The nodes of a run, and the job on them.
#[derive(Debug, Clone, Args)]
pub(super) struct NodeArgs {
    /// Job to aim at [default: the plan's, or any that is known]
    #[arg(long, value_name = "NAME")]
    pub(super) job: Option<String>,
    /// Program that plays the roles of the nodes [default: `perennial` beside this program]
    #[arg(long, value_name = "PATH")]
    pub(super) binary: Option<PathBuf>,
    #[command(flatten)]
    pub(super) sabotage: SabotageArgs,
}

/// The engine, broken on purpose.
#[derive(Debug, Clone, Args)]
pub(super) struct SabotageArgs {
    /// Breaks the engine on purpose, to see that it is noticed; with processes it takes `perennial-chaos-node`
    #[arg(long, value_name = "SWITCHES", value_delimiter = ',', value_parser = sabotage)]
    pub(super) sabotage: Vec<Sabotage>,
}

impl SabotageArgs {
    /// As it was said, to be said again.
    pub(super) fn text(&self) -> Option<String> {
        let names: Vec<&str> = self.sabotage.iter().map(|s| s.name()).collect();
        (!names.is_empty()).then(|| names.join(","))
    }
}

fn sabotage(text: &str) -> Result<Sabotage, String> {
    Sabotage::named(text).ok_or_else(|| {
        let known: Vec<&str> = Sabotage::ALL.iter().map(|s| s.name()).collect();
        format!("there is no such switch, only {}", known.join(", "))
    })
}

/// What is drawn.
#[derive(Debug, Clone, Args)]
pub(super) struct DrawArgs {
    /// Rows of the catalogue to aim at, e.g. P1,N2
    #[arg(long, value_name = "ROWS", value_delimiter = ',')]
    pub(super) only: Vec<Row>,
    /// Where checkpoints lie, wherever the faults allow it [default: drawn]
    #[arg(long, value_enum)]
    pub(super) store: Option<Store>,
}

/// See [`StoreShape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Store {
    /// Files on this machine
    Disk,
    /// An S3 server
    S3,
}

impl Cli {
    /// A line for people; standard output belongs to the JSON where that is asked for.
    pub(super) fn say(&self, text: &str) {
        if self.json {
            output::note(text);
        } else {
            output::line(text);
        }
    }
}

impl Store {
    pub(super) fn shape(self) -> StoreShape {
        match self {
            Self::Disk => StoreShape::Disk,
            Self::S3 => StoreShape::S3,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::S3 => "s3",
        }
    }
}

fn profiles() -> String {
    let lines = Profile::ALL
        .iter()
        .map(|p| format!("  {:<13} {}", p.as_str(), p.about()));
    format!("Profiles:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[derive(Debug, Clone, Args)]
#[command(after_help = profiles())]
pub(super) struct RunArgs {
    /// Way of drawing
    #[arg(long, default_value_t = Profile::Mixed)]
    pub(super) profile: Profile,
    /// What is drawn from it
    #[arg(long)]
    pub(super) seed: u64,
    /// Prints the plan and ends
    #[arg(long)]
    pub(super) plan: bool,
    #[command(flatten)]
    pub(super) draw: DrawArgs,
    #[command(flatten)]
    pub(super) nodes: NodeArgs,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = profiles())]
pub(super) struct CampaignArgs {
    /// Runs of this call [default: 20, or as many as the time allows]
    #[arg(long)]
    pub(super) runs: Option<u64>,
    /// Begins no run after so many minutes
    #[arg(long)]
    pub(super) minutes: Option<f64>,
    /// Way of drawing [default: all, mostly mixed]
    #[arg(long)]
    pub(super) profile: Option<Profile>,
    /// First seed [default: the one after the last of the results]
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Goes on with the results that the directory has
    #[arg(long)]
    pub(super) resume: bool,
    /// Runs at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=2))]
    pub(super) parallel: u64,
    /// Seeds of the simulator that are run first: they come by every fault point [default: 40; with --only 0]
    #[arg(long, value_name = "N")]
    pub(super) simulated: Option<u64>,
    /// Fails unless every row and every fault point was come to, however few runs there were [default: from as many runs on as there are rows]
    #[arg(long)]
    pub(super) require_coverage: bool,
    #[command(flatten)]
    pub(super) draw: DrawArgs,
    #[command(flatten)]
    pub(super) nodes: NodeArgs,
}

#[derive(Debug, Clone, Args)]
pub(super) struct SimulateArgs {
    /// Seeds, as A..B (without B) or one
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    pub(super) seeds: std::ops::Range<u64>,
    /// Seeds at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(super) jobs: u64,
    /// Of so many seeds one is run twice: both runs must be the same; 0: none
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) twice: u64,
    /// Shows what happens, step by step
    #[arg(long)]
    pub(super) trace: bool,
    /// Adds the runs to the results of --dir
    #[arg(long)]
    pub(super) keep: bool,
    #[command(flatten)]
    pub(super) sabotage: SabotageArgs,
}

/// `3` or `0..20`.
fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|e| format!("`{text}` is no seed: {e}"))
    };
    let seeds = match text.split_once("..") {
        Some((from, to)) => number(from)?..number(to)?,
        None => number(text).map(|seed| seed..seed.saturating_add(1))?,
    };
    if seeds.is_empty() {
        return Err(format!("{text} holds no seed"));
    }
    Ok(seeds)
}

#[derive(Debug, Clone, Args)]
pub(super) struct ReplayArgs {
    /// Plan, as JSON
    pub(super) plan: PathBuf,
    #[command(flatten)]
    pub(super) nodes: NodeArgs,
}

#[derive(Debug, Clone, Args)]
pub(super) struct ShrinkArgs {
    /// Plan that fails, as JSON
    pub(super) plan: PathBuf,
    /// Where the smaller plan goes [default: beside the plan, as NAME.small.json]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Plans that are tried at most
    #[arg(long, default_value_t = 60)]
    pub(super) tries: u32,
    /// Runs of each: real time does not repeat exactly
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(super) repeat: u32,
    #[command(flatten)]
    pub(super) nodes: NodeArgs,
}

#[derive(Debug, Clone, Args)]
pub(super) struct ListArgs {
    /// Rows to show with all that is known of them [default: all, a line each]
    pub(super) rows: Vec<Row>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct InjectArgs {
    /// Configuration file of the cluster
    #[arg(long, short = 'c', value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// JobManager to talk to, as host:port [default: from the configuration]
    #[arg(long, short = 'm', value_name = "HOST:PORT")]
    pub(super) jobmanager: Option<String>,
    /// Sets a configuration key, e.g. security.cluster-secret
    #[arg(short = 'D', value_name = "KEY=VALUE")]
    pub(super) define: Vec<String>,
    #[command(subcommand)]
    pub(super) fault: InjectFault,
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum InjectFault {
    /// An actor panics
    Panic(ActorArgs),
    /// An actor's handler stalls
    Stall {
        #[command(flatten)]
        actor: ActorArgs,
        /// For how long, e.g. 5s
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        duration: std::time::Duration,
    },
    /// A node sends no heartbeats
    NoHeartbeats {
        /// TaskManager by name [default: the leading JobManager]
        #[arg(long, value_name = "NAME")]
        taskmanager: Option<String>,
        /// For how long, e.g. 5s
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        duration: std::time::Duration,
    },
    /// A node's wall clock jumps
    Clock {
        /// TaskManager by name [default: the leading JobManager]
        #[arg(long, value_name = "NAME")]
        taskmanager: Option<String>,
        /// By so many milliseconds; may be negative
        #[arg(allow_negative_numbers = true)]
        millis: i64,
    },
    /// User code panics at the next record
    UserPanic(UserArgs),
    /// User code returns an error at the next record
    UserError {
        #[command(flatten)]
        user: UserArgs,
        /// Marked so that no restart helps
        #[arg(long)]
        unrecoverable: bool,
    },
    /// User code does not return from the next record
    UserStuck(UserArgs),
}

#[derive(Debug, Clone, Args)]
pub(super) struct ActorArgs {
    /// Which
    #[arg(value_enum)]
    pub(super) actor: Actor,
    /// Job, by id, first digits or name; for actors of a job
    #[arg(long)]
    pub(super) job: Option<String>,
    /// TaskManager by name; for actors of one
    #[arg(long, value_name = "NAME")]
    pub(super) taskmanager: Option<String>,
    /// Operator, by uid or name [default: the first behind a source]; for subtasks
    #[arg(long)]
    pub(super) operator: Option<String>,
    /// Index of the subtask
    #[arg(long, default_value_t = 0)]
    pub(super) subtask: u32,
}

/// Kinds of actors, as the supervision tree names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Actor {
    /// Root of the leading JobManager
    JobManager,
    /// Of a job
    JobMaster,
    /// Of a job
    CheckpointCoordinator,
    /// Of a TaskManager, in the JobManager
    TaskManagerPeer,
    /// Root of a TaskManager
    TaskManager,
    /// The TaskManager's connection
    JobManagerSession,
    /// Guardian of a task
    Subtask,
}

#[derive(Debug, Clone, Args)]
pub(super) struct UserArgs {
    /// Job, by id, first digits or name
    #[arg(long)]
    pub(super) job: String,
    /// Operator, by uid or name [default: the first behind a source]
    #[arg(long)]
    pub(super) operator: Option<String>,
    /// Index of the subtask
    #[arg(long, default_value_t = 0)]
    pub(super) subtask: u32,
    /// Attempts that it breaks
    #[arg(long, default_value_t = 1)]
    pub(super) times: u32,
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    perennial_config::value::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// clap's own checks: no name twice, no impossible default.
    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// As the issue writes them.
    #[test]
    fn rows_and_seeds_are_read() {
        let cli = Cli::try_parse_from([
            "perennial-chaos",
            "campaign",
            "--runs",
            "5",
            "--minutes",
            "1.5",
            "--only",
            "P1,n2",
            "--resume",
        ])
        .unwrap();
        let Command::Campaign(campaign) = cli.command else {
            panic!("{cli:?}");
        };
        assert_eq!(campaign.draw.only, [Row::P1, Row::N2]);
        assert_eq!(seeds("3..7"), Ok(3..7));
        assert_eq!(seeds("3"), Ok(3..4));
        assert!(seeds("7..3").is_err() && seeds("x").is_err());
        let refused = Cli::try_parse_from(["perennial-chaos", "campaign", "--only", "X9"]);
        assert!(refused.unwrap_err().to_string().contains("X9"));
        let broken = [
            "perennial-chaos",
            "simulate",
            "--seeds",
            "1..3",
            "--sabotage",
        ];
        let parse = |name| Cli::try_parse_from(broken.iter().chain(&[name]));
        assert!(parse("lose-timer,leak-slot").is_ok());
        let refused = parse("lose-tiger").unwrap_err().to_string();
        assert!(refused.contains("lose-timer"), "{refused}");
    }
}
