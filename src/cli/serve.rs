//! Commands that run nodes.

use std::io::IsTerminal;
use std::process::{Command as Process, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::args::{Cli, LogFormat, StartArgs};
use super::config::{Role, load};
use super::connection::block_on;
use super::{CliError, output};
use crate::api::JobRegistry;
use crate::cluster::{JobManagerExit, JobManagerNode, LocalCluster, StuckTasks, TaskManagerNode};
use perennial_actors::fault::FaultPoints;
use perennial_actors::task_manager::TaskManagerEnd;

/// How long child processes may take to end before they are killed.
const CHILDREN_GRACE: Duration = Duration::from_secs(10);

/// How often is looked whether a child process has ended.
const CHILDREN_POLL: Duration = Duration::from_millis(100);

/// As above, once it was told to end.
const CHILD_END_POLL: Duration = Duration::from_millis(20);

/// Logs to standard error. The first call of a process counts.
pub(super) fn init_log(cli: &Cli, default: &str) {
    let filter = cli.log.clone().unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|error| {
        output::note(&format!("--log {filter}: {error}; using {default}"));
        EnvFilter::new(default)
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // They would be printed where printing has just failed, and that panics.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    // A program that embeds this may have set its own.
    let _ = match cli.log_format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// SIGTERM and SIGINT, which from the first look on no longer end the process by themselves.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|e| CliError::Node(format!("cannot wait for signals: {e}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Resolves when the process is asked to end, also when that was before; each time once. Cancel safe.
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A node takes its addresses from the configuration, so that it cannot go to another cluster than its checkpoints do.
fn needs_no_address(cli: &Cli) -> Result<(), CliError> {
    match cli.jobmanager {
        None => Ok(()),
        Some(_) => Err(CliError::Usage(
            "--jobmanager is for commands that talk to a running cluster: a node takes `-D jobmanager.rpc.address=HOST -D jobmanager.rpc.port=PORT`, or these keys in its configuration file"
                .into(),
        )),
    }
}

pub(super) fn job_manager(cli: &Cli, faults: FaultPoints) -> Result<ExitCode, CliError> {
    needs_no_address(cli)?;
    let loaded = load(cli, Role::Node)?;
    init_log(cli, "info");
    block_on(async {
        let mut signals = Signals::listen()?;
        let mut node = JobManagerNode::start(loaded.settings, faults).await?;
        output::line(&format!("JobManager listens on {}", node.address()));
        tokio::select! {
            biased;
            () = node.ended() => {}
            () = signals.asked() => {}
        }
        exit_code(node.shutdown().await?)
    })
}

fn exit_code(exit: JobManagerExit) -> Result<ExitCode, CliError> {
    match exit {
        JobManagerExit::Shutdown => Ok(ExitCode::SUCCESS),
        JobManagerExit::Fenced(reason) => Err(CliError::NotLeader(format!(
            "this JobManager no longer leads: {reason}"
        ))),
        JobManagerExit::Failed(reason) => Err(CliError::Node(reason)),
    }
}

pub(super) fn task_manager(
    cli: &Cli,
    registry: &JobRegistry,
    faults: FaultPoints,
) -> Result<ExitCode, CliError> {
    needs_no_address(cli)?;
    let loaded = load(cli, Role::Node)?;
    init_log(cli, "info");
    block_on(async {
        let mut signals = Signals::listen()?;
        let node = TaskManagerNode::start(
            &loaded.settings,
            registry.clone(),
            StuckTasks::EndProcess,
            faults,
        )
        .await?;
        output::line(&format!("TaskManager {} is starting", node.resource()));
        let end = tokio::select! {
            biased;
            end = node.ended() => end,
            () = signals.asked() => node.shutdown("asked by a signal").await,
        };
        let message = end.to_string();
        match end {
            TaskManagerEnd::Shutdown { .. } => Ok(ExitCode::SUCCESS),
            TaskManagerEnd::StuckTask { .. } => Err(CliError::StuckTask(message)),
            TaskManagerEnd::StoreNotShared { .. } => Err(CliError::Config(message)),
            TaskManagerEnd::RegistrationTimeout { .. } => Err(CliError::NoJobManager(message)),
            TaskManagerEnd::Broken { .. } => Err(CliError::Node(message)),
        }
    })
}

pub(super) fn start(
    cli: &Cli,
    args: &StartArgs,
    registry: &JobRegistry,
) -> Result<ExitCode, CliError> {
    needs_no_address(cli)?;
    let loaded = load(cli, Role::Node)?;
    init_log(cli, "info");
    if args.processes {
        return start_processes(cli, args);
    }
    block_on(async {
        let mut signals = Signals::listen()?;
        let starting = LocalCluster::start_on(loaded.settings, args.taskmanagers, registry.clone());
        let mut cluster = tokio::select! {
            biased;
            cluster = starting => cluster?,
            // A standby may wait for long.
            () = signals.asked() => return Ok(ExitCode::SUCCESS),
        };
        let slots = cluster.settings().cluster.task_slots * args.taskmanagers;
        output::line(&format!(
            "cluster runs: JobManager {}, {} TaskManagers, {slots} slots\nrun a job: perennial --jobmanager {} run JOB\nCtrl-C ends it",
            cluster.address(),
            args.taskmanagers,
            cluster.address(),
        ));
        tokio::select! {
            biased;
            () = cluster.ended() => {}
            () = signals.asked() => {}
        }
        exit_code(cluster.shutdown().await?)
    })
}

/// The arguments of this process that nodes share.
fn node_arguments(cli: &Cli) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(config) = &cli.config {
        arguments.extend(["--config".to_owned(), config.display().to_string()]);
    }
    if let Some(profile) = &cli.profile {
        arguments.extend(["--profile".to_owned(), profile.clone()]);
    }
    for define in &cli.define {
        arguments.extend(["-D".to_owned(), define.clone()]);
    }
    if let Some(log) = &cli.log {
        arguments.extend(["--log".to_owned(), log.clone()]);
    }
    if cli.log_format == LogFormat::Json {
        arguments.extend(["--log-format".to_owned(), "json".to_owned()]);
    }
    arguments
}

fn start_processes(cli: &Cli, args: &StartArgs) -> Result<ExitCode, CliError> {
    let executable = std::env::current_exe()
        .map_err(|e| CliError::Node(format!("cannot find this executable: {e}")))?;
    let arguments = node_arguments(cli);
    let mut nodes = Nodes::default();
    let roles = std::iter::once("jobmanager").chain(std::iter::repeat_n(
        "taskmanager",
        args.taskmanagers as usize,
    ));
    for role in roles {
        let child = Process::new(&executable)
            .arg(role)
            .args(&arguments)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| CliError::Node(format!("cannot start the {role} process: {e}")))?;
        output::line(&format!("{role} is process {}", child.id()));
        nodes.running.push((role, child));
    }
    block_on(async {
        let mut signals = Signals::listen()?;
        tokio::select! {
            biased;
            () = signals.asked() => Ok(()),
            lost = nodes.lost() => Err(lost),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Node processes. None of them outlives it.
#[derive(Default)]
struct Nodes {
    running: Vec<(&'static str, std::process::Child)>,
}

impl Nodes {
    /// Resolves when there is no cluster any more: its JobManager or its last TaskManager has ended.
    async fn lost(&mut self) -> CliError {
        loop {
            let mut ended = Vec::new();
            self.running
                .retain_mut(|(role, child)| match child.try_wait() {
                    Ok(Some(status)) => {
                        ended.push((*role, child.id(), status));
                        false
                    }
                    Ok(None) | Err(_) => true,
                });
            for (role, id, status) in ended {
                let text = format!("{role} process {id} has ended ({status})");
                let is_last = !self.running.iter().any(|(other, _)| *other == role);
                if is_last {
                    return CliError::Node(format!("{text}: the cluster cannot go on without"));
                }
                output::note(&format!("{text}; the others go on"));
            }
            tokio::time::sleep(CHILDREN_POLL).await;
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for (_, child) in &self.running {
            // Gone already: then there is nothing to tell.
            let _ = kill_process(Pid::from_child(child), rustix::process::Signal::TERM);
        }
        let deadline = perennial_actors::clock::Instant::now() + CHILDREN_GRACE;
        for (role, child) in &mut self.running {
            while matches!(child.try_wait(), Ok(None)) {
                if perennial_actors::clock::Instant::now() > deadline {
                    output::note(&format!(
                        "{role} process {} does not end and is killed",
                        child.id()
                    ));
                    // It may have ended just now.
                    let _ = child.kill();
                }
                std::thread::sleep(CHILD_END_POLL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::test_kill_process;

    use super::*;

    fn process(seconds: &str) -> std::process::Child {
        Process::new("sleep").arg(seconds).spawn().unwrap()
    }

    /// A JobManager that ends takes the command with it, and the rest of the cluster with the command.
    #[tokio::test]
    async fn the_end_of_the_job_manager_is_the_end_of_the_cluster() {
        let mut nodes = Nodes::default();
        nodes.running.push(("jobmanager", process("0")));
        nodes.running.push(("taskmanager", process("600")));
        let CliError::Node(message) = nodes.lost().await else {
            panic!("another error");
        };
        assert!(message.starts_with("jobmanager process"), "{message}");
        let left = Pid::from_child(&nodes.running[0].1);
        drop(nodes);
        assert!(test_kill_process(left).is_err());
    }

    /// One of several TaskManagers is missed by the jobs, not by the command.
    #[tokio::test]
    async fn the_end_of_the_last_task_manager_is_the_end_of_the_cluster() {
        let mut nodes = Nodes::default();
        nodes.running.push(("jobmanager", process("600")));
        nodes.running.push(("taskmanager", process("0")));
        nodes.running.push(("taskmanager", process("0.5")));
        let CliError::Node(message) = nodes.lost().await else {
            panic!("another error");
        };
        assert!(message.starts_with("taskmanager process"), "{message}");
        assert_eq!(nodes.running.len(), 1);
    }
}
