//! Runs a cluster of real processes and breaks it: kill -9, SIGSTOP, SIGTERM.
//!
//! Invariant: whatever happens to a test, no process and no file of its cluster is left, and a failing one shows what its nodes logged.
//! It waits for conditions, never for time, and looks only at what a user can see: the command line, exit codes, files.

mod binary;
mod inject;
mod logs;
mod node;
mod permit;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use perennial_actors::clock::Instant;
use perennial_actors::model::{
    CheckpointState, CheckpointStatus, JobState, JobStatus, JobSummary, TaskManagerStatus,
};
use tempfile::TempDir;

use crate::storage::{Storage, StorageKind};
pub use binary::{BINARY, binary, chaos_node};
pub use node::{Node, Signal};
use permit::Permit;

/// Between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long nodes may take to appear.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How often another port is tried.
const PORT_TRIES: u32 = 5;
/// How much log a failing test prints, in lines.
const LOG_LINES_MAX: usize = 400;

/// Of all nodes and clients of a cluster.
const SECRET: &str = "of-this-test";

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// The program that plays every role.
    pub binary: PathBuf,
    /// Where checkpoints lie.
    pub storage: StorageKind,
    /// TaskManagers at the start.
    pub task_managers: u32,
    /// Slots of each.
    pub slots: u32,
    /// `-D` settings of all nodes and commands.
    pub settings: Vec<(String, String)>,
    /// Fault points by the name of the node whose first process has them; needs [`chaos_node`].
    pub points: BTreeMap<String, String>,
}

impl ClusterPlan {
    /// Three TaskManagers with one slot each on disk.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            storage: StorageKind::Disk,
            task_managers: 3,
            slots: 1,
            settings: Vec::new(),
            points: BTreeMap::new(),
        }
    }

    /// Fault points of the first process of a node, as [`crate::node::POINTS`] has them.
    #[must_use]
    pub fn arm(mut self, node: &str, points: &str) -> Self {
        self.points.insert(node.to_owned(), points.to_owned());
        self
    }

    /// Another kind of store.
    #[must_use]
    pub fn storage(mut self, storage: StorageKind) -> Self {
        self.storage = storage;
        self
    }

    /// Another number of TaskManagers.
    #[must_use]
    pub fn task_managers(mut self, count: u32) -> Self {
        self.task_managers = count;
        self
    }

    /// Another number of slots of each TaskManager.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// A setting of all nodes and commands.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }
}

/// A cluster of processes. Dropping it ends them all.
#[derive(Debug)]
pub struct ProcessCluster {
    plan: ClusterPlan,
    storage: Storage,
    /// By name; `jobmanager-1`, `taskmanager-1` and so on.
    nodes: BTreeMap<String, Node>,
    address: String,
    /// Of each JobManager.
    addresses: BTreeMap<String, String>,
    directory: Option<TempDir>,
    began: Instant,
    events: std::cell::RefCell<Vec<String>>,
    _permit: Permit,
}

impl ProcessCluster {
    /// Starts the nodes and waits until all TaskManagers are registered.
    ///
    /// # Errors
    /// When they do not come up; the nodes' logs are printed then.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn start(plan: ClusterPlan) -> anyhow::Result<Self> {
        let permit = Permit::take();
        let directory = tempfile::Builder::new().prefix("perennial-").tempdir()?;
        let storage = Storage::fresh(plan.storage, directory.path());
        let task_managers = plan.task_managers;
        let mut cluster = Self {
            plan,
            storage,
            nodes: BTreeMap::new(),
            address: String::new(),
            addresses: BTreeMap::new(),
            directory: Some(directory),
            began: Instant::now(),
            events: std::cell::RefCell::default(),
            _permit: permit,
        };
        cluster.start_first_job_manager()?;
        for _ in 0..task_managers {
            cluster.start_task_manager()?;
        }
        cluster.wait_for_task_managers(task_managers);
        Ok(cluster)
    }

    /// A free port may be taken by another before the node binds it: then the next is tried.
    fn start_first_job_manager(&mut self) -> anyhow::Result<()> {
        for _ in 0..PORT_TRIES {
            let name = "jobmanager-1";
            let port = free_port()?;
            self.address = format!("127.0.0.1:{port}");
            self.addresses.insert(name.to_owned(), self.address.clone());
            let node = self.job_manager_node(name, port)?;
            self.nodes.insert(name.to_owned(), node);
            let deadline = Instant::now() + START_DEADLINE;
            while Instant::now() < deadline {
                if self.cli(&["list"])?.status.success() {
                    return Ok(());
                }
                if self.node_mut(name)?.exit_code()?.is_some() {
                    break;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        bail!("the JobManager does not come up")
    }

    fn job_manager_node(&self, name: &str, port: u16) -> anyhow::Result<Node> {
        let mut arguments = self.definitions();
        arguments.extend(["-D".to_owned(), format!("jobmanager.rpc.port={port}")]);
        arguments.push("jobmanager".to_owned());
        self.start_node(name, arguments)
    }

    fn start_node(&self, name: &str, arguments: Vec<String>) -> anyhow::Result<Node> {
        let points = self.plan.points.get(name).cloned();
        Node::start(
            name,
            &self.plan.binary,
            arguments,
            points,
            &self.log_directory(),
        )
    }

    /// Starts another JobManager on the same store, at an address of its own. Returns its name.
    ///
    /// # Errors
    /// When the process does not start.
    pub fn start_job_manager(&mut self) -> anyhow::Result<String> {
        let count = self.nodes.keys().filter(|n| n.starts_with("job")).count();
        let name = format!("jobmanager-{}", count + 1);
        let port = free_port()?;
        let node = self.job_manager_node(&name, port)?;
        self.addresses
            .insert(name.clone(), format!("127.0.0.1:{port}"));
        self.say(&format!("started {name}"));
        self.nodes.insert(name.clone(), node);
        Ok(name)
    }

    /// Starts another TaskManager. Returns its name, which is its resource id.
    ///
    /// # Errors
    /// When the process does not start.
    pub fn start_task_manager(&mut self) -> anyhow::Result<String> {
        let count = self.task_manager_names().len();
        let name = format!("taskmanager-{}", count + 1);
        let port = self.address.rsplit(':').next().unwrap_or_default();
        let mut arguments = self.definitions();
        for (key, value) in [
            ("jobmanager.rpc.port", port),
            ("taskmanager.resource-id", &name),
            (
                "taskmanager.numberOfTaskSlots",
                &self.plan.slots.to_string(),
            ),
        ] {
            arguments.extend(["-D".to_owned(), format!("{key}={value}")]);
        }
        arguments.push("taskmanager".to_owned());
        let node = self.start_node(&name, arguments)?;
        self.say(&format!("started {name}"));
        self.nodes.insert(name.clone(), node);
        Ok(name)
    }

    /// Waits until so many TaskManagers are registered.
    pub fn wait_for_task_managers(&mut self, count: u32) {
        let what = format!("{count} registered TaskManagers");
        self.wait_until(&what, START_DEADLINE, |cluster| {
            Ok((cluster.task_managers()?.len() == count as usize).then_some(()))
        });
    }

    fn definitions(&self) -> Vec<String> {
        let own = [
            ("jobmanager.rpc.address".to_owned(), "127.0.0.1".to_owned()),
            ("security.cluster-secret".to_owned(), SECRET.to_owned()),
        ];
        own.into_iter()
            .chain(self.storage.settings())
            .chain(self.plan.settings.iter().cloned())
            .flat_map(|(key, value)| ["-D".to_owned(), format!("{key}={value}")])
            .collect()
    }

    fn root(&self) -> &Path {
        self.directory.as_ref().expect("taken in drop only").path()
    }

    fn log_directory(&self) -> PathBuf {
        self.root().join("logs")
    }

    /// A path in the cluster's directory, which is removed with it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Where checkpoints lie.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Names of all TaskManagers ever started.
    #[must_use]
    pub fn task_manager_names(&self) -> Vec<String> {
        let is_worker = |name: &&String| name.starts_with("task");
        self.nodes.keys().filter(is_worker).cloned().collect()
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_mut(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        self.nodes
            .get_mut(name)
            .ok_or_else(|| anyhow!("no node {name}"))
    }

    /// Kills a node with SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.say(&format!("kill -9 {name}"));
        self.node_mut(name)?.kill()
    }

    /// Stops a node with SIGSTOP: silent, but alive.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        self.say(&format!("SIGSTOP {name}"));
        self.node_mut(name)?.signal(Signal::STOP)
    }

    /// Lets a stopped node go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cont(&mut self, name: &str) -> anyhow::Result<()> {
        self.say(&format!("SIGCONT {name}"));
        self.node_mut(name)?.signal(Signal::CONT)
    }

    /// Asks a node to end with SIGTERM and returns its exit code.
    ///
    /// # Errors
    /// When it does not run or does not end in time.
    pub fn terminate(&mut self, name: &str, deadline: Duration) -> anyhow::Result<i32> {
        self.say(&format!("SIGTERM {name}"));
        self.node_mut(name)?.signal(Signal::TERM)?;
        self.wait_for_exit(name, deadline)
    }

    /// Waits for a node to end by itself; returns its exit code.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait_for_exit(&mut self, name: &str, deadline: Duration) -> anyhow::Result<i32> {
        let until = Instant::now() + deadline;
        let node = self.node_mut(name)?;
        node.may_exit();
        while Instant::now() < until {
            if let Some(code) = node.exit_code()? {
                return Ok(code);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!("{name} has not ended within {deadline:?}")
    }

    /// Starts a dead node again, as it was.
    ///
    /// # Errors
    /// When it still runs or does not start.
    pub fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        self.say(&format!("restart {name}"));
        self.node_mut(name)?.restart()
    }

    /// The address that commands go to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Points commands at another JobManager.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn talk_to(&mut self, job_manager: &str) -> anyhow::Result<()> {
        let address = self
            .addresses
            .get(job_manager)
            .ok_or_else(|| anyhow!("no JobManager {job_manager}"))?;
        self.address = address.clone();
        Ok(())
    }

    /// What a node has logged so far.
    ///
    /// # Errors
    /// When there is no such node or its log cannot be read.
    pub fn log(&self, name: &str) -> anyhow::Result<String> {
        let node = self
            .nodes
            .get(name)
            .ok_or_else(|| anyhow!("no node {name}"))?;
        let bytes = std::fs::read(node.log())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A command of the command line against this cluster, not yet started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.plan.binary);
        command
            .args(self.definitions())
            .args(["--jobmanager", &self.address, "--json"])
            .args(arguments)
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the command line with `--json` against this cluster.
    ///
    /// # Errors
    /// When the program does not start. Its exit code is the caller's business.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(arguments).output()?)
    }

    /// As [`ProcessCluster::cli`], for commands that must succeed; returns what they print, decoded.
    ///
    /// # Errors
    /// When the command fails, with what it said.
    pub fn ask<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let output = self.cli(arguments)?;
        ensure!(
            output.status.success(),
            "`{}` ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "`{}` printed {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }

    /// As people see it: the output of a command without `--json`.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn ask_text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.plan.binary)
            .args(self.definitions())
            .args(["--jobmanager", &self.address])
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Submits a job (`run --detached`); returns its id.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, settings: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<String> {
        let definitions: Vec<String> = settings
            .iter()
            .flat_map(|(key, value)| ["-D".to_owned(), format!("{key}={value}")])
            .collect();
        let mut all: Vec<&str> = definitions.iter().map(String::as_str).collect();
        all.push("run");
        all.extend(arguments);
        all.push("--detached");
        let answer: serde_json::Value = self.ask(&all)?;
        let job = answer["job"]
            .as_str()
            .ok_or_else(|| anyhow!("no job id in {answer}"))?;
        self.say(&format!("submitted {} as {job}", arguments.join(" ")));
        Ok(job.to_owned())
    }

    /// `perennial status`.
    ///
    /// # Errors
    /// When the JobManager does not answer, or does not know the job.
    pub fn status(&self, job: &str) -> anyhow::Result<JobStatus> {
        self.ask(&["status", job])
    }

    /// `perennial list`.
    ///
    /// # Errors
    /// When the JobManager does not answer.
    pub fn jobs(&self) -> anyhow::Result<Vec<JobSummary>> {
        self.ask(&["list"])
    }

    /// `perennial list --taskmanagers`.
    ///
    /// # Errors
    /// When the JobManager does not answer.
    pub fn task_managers(&self) -> anyhow::Result<Vec<TaskManagerStatus>> {
        self.ask(&["list", "--taskmanagers"])
    }

    /// Waits until a condition gives a value. An error of the condition means: not yet. Nodes that end by themselves meanwhile fail the
    /// test, except those that may.
    ///
    /// # Panics
    /// When the deadline passes or a node ends; prints the jobs' status, and the logs when the cluster is dropped.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Self) -> anyhow::Result<Option<T>>,
    ) -> T {
        let began = Instant::now();
        let mut last_error;
        loop {
            match condition(self) {
                Ok(Some(value)) => {
                    let took = began.elapsed().as_millis();
                    self.say(&format!("{what} after {took} ms"));
                    return value;
                }
                Ok(None) => last_error = None,
                Err(error) => last_error = Some(error),
            }
            for node in self.nodes.values_mut() {
                if let Some(code) = node.unexpected_exit() {
                    panic!(
                        "{} ended with exit code {code} while waiting for {what}",
                        node.name()
                    );
                }
            }
            if began.elapsed() > deadline {
                let error = last_error.map_or_else(String::new, |e| format!(" ({e:#})"));
                panic!(
                    "not within {deadline:?}: {what}{error}\n{}",
                    self.describe()
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for a state of a job; a terminal state that is another one fails at once.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn wait_for_state(&mut self, job: &str, state: JobState, deadline: Duration) -> JobStatus {
        let what = format!("job {job} {state}");
        let status = self.wait_until(&what, deadline, |cluster| {
            let status = cluster.status(job)?;
            let now = status.summary.state;
            Ok((now == state || now.is_terminal()).then_some(status))
        });
        assert_eq!(
            status.summary.state,
            state,
            "{:?}\n{}",
            status.failure.as_ref().map(ToString::to_string),
            self.describe()
        );
        status
    }

    /// Waits until all subtasks of a job run.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn wait_until_running(&mut self, job: &str, deadline: Duration) -> JobStatus {
        let what = format!("all tasks of {job} running");
        self.wait_until(&what, deadline, |cluster| {
            let status = cluster.status(job)?;
            let summary = &status.summary;
            let is_running = summary.state == JobState::Running
                && summary.tasks_total > 0
                && summary.tasks_running == summary.tasks_total;
            Ok(is_running.then_some(status))
        })
    }

    /// Waits for a completed checkpoint with a number above `after`; returns its number.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn wait_for_checkpoint(&mut self, job: &str, after: u64, deadline: Duration) -> u64 {
        let what = format!("a completed checkpoint above {after}");
        self.wait_until(&what, deadline, |cluster| {
            Ok(newest_completed(&cluster.status(job)?)
                .map(|c| c.checkpoint.0)
                .filter(|number| *number > after))
        })
    }

    /// Adds to the story that a failing test tells.
    pub fn say(&self, what: &str) {
        let at = self.began.elapsed().as_millis();
        self.events.borrow_mut().push(format!("{at:>6} ms {what}"));
    }

    /// What people would look at: the story so far and the status of every job.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.events.borrow().join("\n");
        match self.jobs() {
            Ok(jobs) => {
                for job in jobs {
                    let id = job.job.to_string();
                    if let Ok(status) = self.ask_text(&["status", &id]) {
                        text.push('\n');
                        text.push_str(&status);
                    }
                }
            }
            Err(error) => text.push_str(&format!("\nno status: {error:#}")),
        }
        text
    }
}

/// The newest completed checkpoint in a status.
#[must_use]
pub fn newest_completed(status: &JobStatus) -> Option<&CheckpointStatus> {
    let is_completed =
        |c: &&CheckpointStatus| c.state == CheckpointState::Completed && !c.kind.is_savepoint();
    status.checkpoints.iter().rev().find(is_completed)
}

/// A port that nobody listens on right now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Drop for ProcessCluster {
    #[expect(
        clippy::print_stderr,
        reason = "a failing test shows its cluster's logs"
    )]
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            // It may be dead already; there is nothing left to do about it here.
            let _ = node.kill();
        }
        if !std::thread::panicking() {
            return;
        }
        eprintln!("what happened:\n{}", self.events.borrow().join("\n"));
        eprintln!("{}", logs::merged(&self.log_directory(), LOG_LINES_MAX));
        if let Some(directory) = self.directory.take() {
            let kept = directory.keep();
            eprintln!("logs, store and output are kept in {}", kept.display());
        }
    }
}
