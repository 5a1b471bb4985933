//! The nodes of a simulated cluster: real ones, on the simulated network, store, clock and task scheduler. A node that ends or is
//! killed is started again after a while, as by a process supervisor.
//!
//! A paused node is seen from outside as one that got SIGSTOP: its tasks are not stepped, nothing of it passes the network or the store.
//! Its actors are not stopped: timers that run out in its sleep have their effect, as they would at once when it wakes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use perennial::api::JobRegistry;
use perennial::cluster::{JobManagerNode, StuckTasks, TaskManagerNode, TaskManagerSurroundings};
use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::entropy::Entropy;
use perennial_actors::rpc::{MemoryNetwork, MemoryTransport, Weather};
use perennial_config::{HighAvailability, Settings};
use tokio::runtime::Handle;

use super::inside::Handles;
use super::stepper::Stepper;
use super::stores::{NodeStores, SimulatedStores};
use super::trace::Trace;
use crate::checker::StoreHistory;
use crate::plan::FaultPlan;
use crate::workload::Fuse;

/// How long a supervisor waits before it starts a node that ended by itself.
const RESPAWN: Duration = Duration::from_millis(500);
/// How long an orderly end may take.
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);
/// A node that does not end within this time after SIGTERM is killed.
const TERMINATION_MAX: Duration = Duration::from_secs(10);

/// Everything that a cluster is put together from.
pub(super) struct Cluster {
    pub(super) trace: Trace,
    pub(super) network: MemoryNetwork,
    pub(super) stores: SimulatedStores,
    pub(super) stepper: Stepper,
    pub(super) settings: Settings,
    /// Of all nodes; where faults may be injected, each sets its own copy off.
    pub(super) clock: Clock,
    pub(super) registry: JobRegistry,
    pub(super) fuse: Fuse,
    pub(super) dice: Entropy,
    /// `host:port` of the JobManager that leads, or led last.
    pub(super) leader: Arc<Mutex<String>>,
    pub(super) job_managers: Vec<Machine<JobManagerNode>>,
    pub(super) task_managers: Vec<Machine<TaskManagerNode>>,
    pub(super) later: Vec<(Instant, Later)>,
    pub(super) history: Arc<Mutex<StoreHistory>>,
    pub(super) handles: Handles,
}

/// A place where one node runs at a time.
pub(super) struct Machine<N> {
    name: String,
    running: Option<Running<N>>,
    starts_at: Instant,
    incarnation: u64,
}

struct Running<N> {
    node: Option<N>,
    stores: NodeStores,
    /// Set when it ends in good order: whether it has ended, since when, and how long until the next.
    ending: Option<(Arc<AtomicBool>, Instant, Duration)>,
    is_paused: bool,
}

/// What happens later: ends of faults, and faults that come in turns.
pub(super) enum Later {
    Unsilence(String, String),
    Calm(String, String),
    Wake(Node),
    FreshListings,
    Terminate(usize),
    Cut(String, String),
    /// A fault that a node ends by itself.
    Over,
}

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    JobManager(usize),
    TaskManager(usize),
}

impl<N> Machine<N> {
    fn new(name: String) -> Self {
        Self {
            name,
            running: None,
            starts_at: Instant::now(),
            incarnation: 0,
        }
    }

    fn id(&self) -> String {
        format!("{}.{}", self.name, self.incarnation)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_up(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.ending.is_none())
    }

    /// Takes a node that was started, or tries again after [`RESPAWN`].
    fn take_started(
        &mut self,
        node: Result<N, impl std::fmt::Display>,
        stores: NodeStores,
        trace: &Trace,
    ) {
        let name = &self.name;
        match node {
            Ok(node) => {
                trace.line(format_args!("{name} starts, {}", self.incarnation));
                self.running = Some(Running::new(node, stores));
            }
            Err(error) => {
                trace.line(format_args!("{name} does not start: {error}"));
                self.starts_at = Instant::now() + RESPAWN;
            }
        }
    }

    /// How long it stays down, once its orderly end is over or has taken too long.
    fn down_after_end(&self, now: Instant) -> Option<Duration> {
        let (is_over, since, down) = self.running.as_ref()?.ending.as_ref()?;
        (is_over.load(Ordering::Relaxed) || now - *since > TERMINATION_MAX).then_some(*down)
    }
}

impl Machine<JobManagerNode> {
    fn epoch(&self) -> Option<u64> {
        Some(self.running.as_ref()?.node.as_ref()?.epoch()?.0)
    }
}

/// Of the n-th machine.
pub(super) fn task_manager_name(machine: u32) -> String {
    format!("taskmanager-{machine}")
}

impl Cluster {
    /// The machines of a plan, all down.
    pub(super) fn machines(
        plan: &FaultPlan,
        settings: &Settings,
    ) -> (Vec<Machine<JobManagerNode>>, Vec<Machine<TaskManagerNode>>) {
        let job_manager = |i| match settings.cluster.high_availability {
            HighAvailability::None => "jobmanager".to_owned(),
            HighAvailability::Store => format!("jobmanager-{i}"),
        };
        (
            (0..plan.cluster.job_managers)
                .map(|i| Machine::new(job_manager(i)))
                .collect(),
            (0..plan.cluster.task_managers)
                .map(|i| Machine::new(task_manager_name(i)))
                .collect(),
        )
    }

    /// Starts what is down and due, notices what has ended, makes happen what comes later.
    pub(super) async fn tend(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.later)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| *at <= now);
        self.later = later;
        for (_, later) in due {
            match later {
                Later::Unsilence(from, to) => self.network.unsilence(&from, &to),
                Later::Calm(from, to) => self.network.set_weather(&from, &to, Weather::default()),
                Later::Wake(node) => self.wake(node),
                Later::FreshListings => self.stores.freeze_listings(false),
                Later::Terminate(machine) => {
                    self.terminate(Node::TaskManager(machine), RESPAWN);
                }
                Later::Cut(a, b) => self.network.cut(&a, &b),
                Later::Over => {}
            }
        }
        for name in self.handles.take_ended() {
            self.trace.line(format_args!("{name} has ended itself"));
            if let Some(node) = self.node_named(&name) {
                self.kill(node, RESPAWN, "is gone");
            }
        }
        for machine in 0..self.job_managers.len() {
            self.tend_job_manager(machine, now).await;
        }
        for machine in 0..self.task_managers.len() {
            self.tend_task_manager(machine, now).await;
        }
        let leader = self.leading().and_then(|machine| {
            let running = self.job_managers[machine].running.as_ref()?;
            Some(running.node.as_ref()?.address().to_owned())
        });
        if let Some(address) = leader {
            *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = address;
        }
    }

    async fn tend_job_manager(&mut self, machine: usize, now: Instant) {
        let place = &mut self.job_managers[machine];
        if let Some(down) = place.down_after_end(now) {
            return self.kill(Node::JobManager(machine), down, "is gone");
        }
        match &mut place.running {
            Some(running) => {
                if let Some(node) = &mut running.node
                    && node.ended().now_or_never().is_some()
                {
                    self.kill(Node::JobManager(machine), RESPAWN, "has ended");
                }
            }
            None if place.starts_at <= now => self.start_job_manager(machine).await,
            None => {}
        }
    }

    async fn tend_task_manager(&mut self, machine: usize, now: Instant) {
        let place = &self.task_managers[machine];
        if let Some(down) = place.down_after_end(now) {
            return self.kill(Node::TaskManager(machine), down, "is gone");
        }
        match &place.running {
            Some(running) => {
                if let Some(node) = &running.node
                    && let Some(end) = node.ended().now_or_never()
                {
                    let why = format!("has ended: {end}");
                    self.kill(Node::TaskManager(machine), RESPAWN, &why);
                }
            }
            None if place.starts_at <= now => self.start_task_manager(machine).await,
            None => {}
        }
    }

    async fn start_job_manager(&mut self, machine: usize) {
        let place = &mut self.job_managers[machine];
        place.incarnation += 1;
        let mut settings = self.settings.clone();
        settings.cluster.rpc_address.clone_from(&place.name);
        let stores = self.stores.of_node(&place.name);
        let transport = Arc::new(self.network.node(&place.name));
        let dice = Entropy::seeded(self.dice.u64());
        let factory: Arc<dyn StoreFactory> = Arc::new(stores.clone());
        // A JobManager has no tasks.
        let faults = self
            .handles
            .of_node(&place.name, "", &self.network, &stores, &self.stepper);
        let started = JobManagerNode::start_with(
            settings,
            transport,
            dice,
            self.clock,
            Some(factory),
            faults,
        )
        .await;
        self.job_managers[machine].take_started(started, stores, &self.trace);
    }

    async fn start_task_manager(&mut self, machine: usize) {
        let place = &mut self.task_managers[machine];
        place.incarnation += 1;
        let stores = self.stores.of_node(&place.name);
        let mut settings = self.settings.clone();
        settings.cluster.task_manager_host.clone_from(&place.name);
        settings.cluster.resource_id = Some(place.name.clone());
        let tasks = place.id();
        let faults =
            self.handles
                .of_node(&place.name, &tasks, &self.network, &stores, &self.stepper);
        let surroundings = TaskManagerSurroundings {
            transport: Arc::new(self.network.node(&place.name)),
            entropy: Entropy::seeded(self.dice.u64()),
            clock: self.clock,
            stores: Arc::new(stores.clone()),
            driver: Arc::new(self.stepper.driver(&tasks)),
            io: Handle::current(),
            faults,
        };
        let registry = self.registry.clone();
        let started =
            TaskManagerNode::start_with(&settings, registry, StuckTasks::EndProcess, surroundings)
                .await;
        self.task_managers[machine].take_started(started, stores, &self.trace);
    }

    /// Like SIGKILL; a node like it starts after a while. What is left in this process is cut off from everything and ends when it can.
    pub(super) fn kill(&mut self, node: Node, down: Duration, why: &str) {
        let starts_at = Instant::now() + down;
        let name = match node {
            Node::JobManager(machine) => {
                let place = &mut self.job_managers[machine];
                let Some(running) = place.running.take() else {
                    return;
                };
                place.starts_at = starts_at;
                running.stores.kill();
                self.network.kill(&place.name);
                if let Some(node) = running.node {
                    drop(tokio::spawn(node.shutdown()));
                }
                place.name.clone()
            }
            Node::TaskManager(machine) => {
                let place = &mut self.task_managers[machine];
                let Some(running) = place.running.take() else {
                    return;
                };
                place.starts_at = starts_at;
                running.stores.kill();
                self.network.kill(&place.name);
                self.stepper.kill(&place.id());
                if let Some(node) = running.node {
                    drop(tokio::spawn(async move { node.shutdown("killed").await }));
                }
                place.name.clone()
            }
        };
        self.trace.line(format_args!("{name} {why}"));
    }

    /// Like SIGTERM; a node like it starts a while after its end.
    pub(super) fn terminate(&mut self, node: Node, down: Duration) {
        let is_over = Arc::new(AtomicBool::new(false));
        let ending = Some((is_over.clone(), Instant::now(), down));
        match node {
            Node::JobManager(machine) => {
                let running = self.job_managers[machine].running.as_mut();
                if let Some(running) = running.filter(|r| r.ending.is_none())
                    && let Some(node) = running.node.take()
                {
                    running.ending = ending;
                    tokio::spawn(async move {
                        // How it ends is seen by what it leaves.
                        let _ = node.shutdown().await;
                        is_over.store(true, Ordering::Relaxed);
                    });
                }
            }
            Node::TaskManager(machine) => {
                let running = self.task_managers[machine].running.as_mut();
                if let Some(running) = running.filter(|r| r.ending.is_none())
                    && let Some(node) = running.node.take()
                {
                    running.ending = ending;
                    tokio::spawn(async move {
                        node.shutdown("SIGTERM").await;
                        is_over.store(true, Ordering::Relaxed);
                    });
                }
            }
        }
    }

    /// Like SIGSTOP, until later.
    pub(super) fn pause(&mut self, node: Node, until: Instant) {
        let (name, id) = self.names(node);
        let is_paused = match node {
            Node::JobManager(m) => self.job_managers[m].running.as_mut().map(Running::pause),
            Node::TaskManager(m) => self.task_managers[m].running.as_mut().map(Running::pause),
        };
        if is_paused.is_some() {
            self.network.freeze(&name);
            self.stepper.pause(&id);
            self.later.push((until, Later::Wake(node)));
        }
    }

    fn wake(&mut self, node: Node) {
        let (name, id) = self.names(node);
        let was_paused = match node {
            Node::JobManager(m) => self.job_managers[m].running.as_mut().map(Running::resume),
            Node::TaskManager(m) => self.task_managers[m].running.as_mut().map(Running::resume),
        };
        // Its successor was never paused.
        if was_paused == Some(true) {
            self.network.thaw(&name);
            self.stepper.resume(&id);
            self.trace.line(format_args!("{name} wakes"));
        }
    }

    fn node_named(&self, name: &str) -> Option<Node> {
        let job_manager = self.job_managers.iter().position(|m| m.name == name);
        let task_manager = || self.task_managers.iter().position(|m| m.name == name);
        job_manager
            .map(Node::JobManager)
            .or_else(|| task_manager().map(Node::TaskManager))
    }

    pub(super) fn names(&self, node: Node) -> (String, String) {
        match node {
            Node::JobManager(m) => (self.job_managers[m].name.clone(), self.job_managers[m].id()),
            Node::TaskManager(m) => (
                self.task_managers[m].name.clone(),
                self.task_managers[m].id(),
            ),
        }
    }

    /// What the store has seen.
    pub(super) fn history(&self) -> MutexGuard<'_, StoreHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checkpoints so far.
    pub(super) fn completed(&self) -> usize {
        self.history().completed()
    }

    /// The machine whose JobManager has the highest epoch.
    pub(super) fn leading(&self) -> Option<usize> {
        let epochs = self.job_managers.iter().map(Machine::epoch).enumerate();
        epochs
            .filter_map(|(machine, epoch)| Some((epoch?, machine)))
            .max()
            .map(|(_, machine)| machine)
    }

    /// Whether nothing is wrong, and nothing will be by itself.
    pub(super) fn is_healthy(&self) -> bool {
        self.later.is_empty()
            && self.job_managers.iter().all(Machine::is_up)
            && self.task_managers.iter().all(Machine::is_up)
    }

    /// Whether calls of the store meet faults, or its listings stand still.
    pub(super) fn is_store_ill(&self) -> bool {
        let is_frozen = |(_, later): &(Instant, Later)| matches!(later, Later::FreshListings);
        self.stores.is_ailing() || self.later.iter().any(is_frozen)
    }

    /// Ends all faults now.
    pub(super) async fn heal(&mut self) {
        self.later
            .retain(|(_, later)| !matches!(later, Later::Terminate(_) | Later::Cut(..)));
        for (at, _) in &mut self.later {
            *at = Instant::now();
        }
        self.stores.heal();
        self.tend().await;
    }

    /// The client's network and the leader's address.
    pub(super) fn client(&self) -> (MemoryTransport, Arc<Mutex<String>>) {
        (self.network.node("client"), self.leader.clone())
    }

    /// Ends all nodes in good order; says what did not end.
    pub(super) async fn shutdown(mut self) -> Vec<String> {
        let mut stuck = Vec::new();
        for place in &mut self.task_managers {
            let Some(node) = place.running.take().and_then(|r| r.node) else {
                continue;
            };
            let ending = node.shutdown("the simulation is over");
            match tokio::time::timeout(SHUTDOWN_MAX, ending).await {
                Ok(end) => self
                    .trace
                    .line(format_args!("{} has ended: {end}", place.name)),
                Err(_) => stuck.push(format!("{} does not end", place.name)),
            }
        }
        for place in &mut self.job_managers {
            let Some(node) = place.running.take().and_then(|r| r.node) else {
                continue;
            };
            match tokio::time::timeout(SHUTDOWN_MAX, node.shutdown()).await {
                Ok(Ok(end)) => self
                    .trace
                    .line(format_args!("{} has ended: {end:?}", place.name)),
                // It may have ended long ago, and found that another led.
                Ok(Err(error)) => self
                    .trace
                    .line(format_args!("{} ended badly: {error}", place.name)),
                Err(_) => stuck.push(format!("{} does not end", place.name)),
            }
        }
        stuck
    }
}

impl<N> Running<N> {
    fn new(node: N, stores: NodeStores) -> Self {
        Self {
            node: Some(node),
            stores,
            ending: None,
            is_paused: false,
        }
    }

    fn pause(&mut self) {
        self.is_paused = true;
        self.stores.pause();
    }

    /// Whether it was paused.
    fn resume(&mut self) -> bool {
        self.stores.resume();
        std::mem::replace(&mut self.is_paused, false)
    }
}
