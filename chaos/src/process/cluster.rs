//! The nodes of a cluster and what is done to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use perennial_actors::clock::Instant;
use tempfile::TempDir;

use super::node::{Inside, Logging, Node, Signal};
use super::permit::Permit;
use super::ports::free_port;
use super::proxies::Proxies;
use super::{ClusterPlan, POLL_INTERVAL, logs};
use crate::proxy::{LinkProxies, StoreProxy};
use crate::storage::Storage;

/// How long nodes may take to appear.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How often another port is tried.
const PORT_TRIES: u32 = 5;
/// How much log a failing test prints, in lines.
const LOG_LINES_MAX: usize = 400;
/// Of all nodes and clients.
pub(super) const CLUSTER_SECRET: &str = "of-this-test";

/// A cluster of processes. Dropping it ends them all.
#[derive(Debug)]
pub struct ProcessCluster {
    pub(super) plan: ClusterPlan,
    pub(super) storage: Storage,
    /// By name; `jobmanager-1`, `taskmanager-1` and so on.
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) address: String,
    /// Where each JobManager listens, past all proxies.
    pub(super) addresses: BTreeMap<String, String>,
    pub(super) proxies: Option<Proxies>,
    pub(super) directory: Option<TempDir>,
    began: Instant,
    pub(super) events: std::cell::RefCell<Vec<String>>,
    _permit: Permit,
}

impl ProcessCluster {
    /// Starts the nodes and waits until all TaskManagers are registered.
    ///
    /// # Errors
    /// When they do not come up; the nodes' logs are printed then.
    pub fn start(plan: ClusterPlan) -> anyhow::Result<Self> {
        let permit = Permit::take();
        let directory = tempfile::Builder::new().prefix("perennial-").tempdir()?;
        let storage = Storage::fresh(plan.storage, directory.path());
        let (task_managers, job_managers) = (plan.task_managers, plan.job_managers);
        let proxies = match plan.proxies {
            Some(seed) => Some(Proxies::start(&storage, seed)?),
            None => None,
        };
        let mut cluster = Self {
            plan,
            storage,
            nodes: BTreeMap::new(),
            address: String::new(),
            addresses: BTreeMap::new(),
            proxies,
            directory: Some(directory),
            began: Instant::now(),
            events: std::cell::RefCell::default(),
            _permit: permit,
        };
        cluster.start_first_job_manager()?;
        for _ in 1..job_managers {
            cluster.start_job_manager()?;
        }
        for _ in 0..task_managers {
            cluster.start_task_manager()?;
        }
        let what = format!("{task_managers} registered TaskManagers");
        let started = cluster.try_until(&what, START_DEADLINE, |cluster| {
            Ok((cluster.task_managers()?.len() == task_managers as usize).then_some(()))
        });
        if let Err(error) = started {
            let logs = logs::merged(&cluster.log_directory(), LOG_LINES_MAX);
            bail!("the cluster does not come up: {error}\n{logs}");
        }
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
        let own = match &self.proxies {
            None => vec![("jobmanager.rpc.port", port.to_string())],
            Some(proxies) => vec![
                (
                    "jobmanager.rpc.port",
                    proxies.stand_before(name, port)?.to_string(),
                ),
                ("jobmanager.rpc.bind-port", port.to_string()),
            ],
        };
        self.launch(name, "jobmanager", own)
    }

    fn launch(&self, name: &str, role: &str, own: Vec<(&str, String)>) -> anyhow::Result<Node> {
        let mut arguments = self.node_definitions();
        for (key, value) in own {
            arguments.extend(["-D".to_owned(), format!("{key}={value}")]);
        }
        arguments.push(role.to_owned());
        let logging = match self.proxies {
            Some(_) => Logging::Piped,
            None => Logging::File,
        };
        let node = Node::start(
            name,
            &self.plan.binary,
            arguments,
            Inside {
                points: self.plan.points.get(name).cloned(),
                sabotage: self.plan.sabotage.clone(),
            },
            &self.log_directory(),
            logging,
        )?;
        if let Some(proxies) = &self.proxies {
            proxies.roster.enter(node.pid(), name);
        }
        Ok(node)
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
        let mut own = vec![
            ("taskmanager.resource-id", name.clone()),
            ("taskmanager.numberOfTaskSlots", self.plan.slots.to_string()),
        ];
        match &self.proxies {
            None => {
                let port = self.address.rsplit(':').next().unwrap_or_default();
                own.push(("jobmanager.rpc.port", port.to_owned()));
            }
            Some(proxies) => {
                let port = free_port()?;
                let told = proxies.stand_before(&name, port)?;
                own.extend([
                    // With high availability it asks the store instead.
                    (
                        "jobmanager.rpc.port",
                        proxies.port_of("jobmanager-1")?.to_string(),
                    ),
                    ("taskmanager.host", "127.0.0.1".to_owned()),
                    ("taskmanager.bind-host", "127.0.0.1".to_owned()),
                    ("taskmanager.data.port", told.to_string()),
                    ("taskmanager.data.bind-port", port.to_string()),
                ]);
            }
        }
        let node = self.launch(&name, "taskmanager", own)?;
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

    pub(super) fn definitions(&self) -> Vec<String> {
        self.definitions_on(self.storage.settings())
    }

    /// Nodes reach the store through its proxy.
    fn node_definitions(&self) -> Vec<String> {
        let mut settings = self.storage.settings();
        if let Some(store) = self.proxies.as_ref().and_then(|p| p.store.as_ref()) {
            for (key, value) in &mut settings {
                if key == "s3.endpoint" {
                    *value = store.endpoint();
                }
            }
        }
        self.definitions_on(settings)
    }

    fn definitions_on(&self, storage: Vec<(String, String)>) -> Vec<String> {
        let own = [
            ("jobmanager.rpc.address", "127.0.0.1"),
            ("jobmanager.bind-host", "127.0.0.1"),
            ("security.cluster-secret", CLUSTER_SECRET),
        ];
        own.into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .chain(storage)
            .chain(self.plan.settings.iter().cloned())
            .flat_map(|(key, value)| ["-D".to_owned(), format!("{key}={value}")])
            .collect()
    }

    pub(super) fn root(&self) -> &Path {
        self.directory.as_ref().expect("taken in drop only").path()
    }

    pub(super) fn log_directory(&self) -> PathBuf {
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
        let node = self.node_mut(name)?;
        node.restart()?;
        let pid = node.pid();
        if let Some(proxies) = &self.proxies {
            proxies.roster.enter(pid, name);
        }
        Ok(())
    }

    /// The proxies on its links, if it was planned with them.
    #[must_use]
    pub fn links(&self) -> Option<&LinkProxies> {
        self.proxies.as_ref().map(|p| &p.links)
    }

    /// The proxy before its object store, if there is one.
    #[must_use]
    pub fn store_proxy(&self) -> Option<&StoreProxy> {
        self.proxies.as_ref()?.store.as_ref()
    }

    /// Names of all JobManagers ever started.
    #[must_use]
    pub fn job_manager_names(&self) -> Vec<String> {
        self.addresses.keys().cloned().collect()
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

    /// Adds to the story that a failing test tells.
    pub fn say(&self, what: &str) {
        let at = self.began.elapsed().as_millis();
        self.events.borrow_mut().push(format!("{at:>6} ms {what}"));
    }
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
