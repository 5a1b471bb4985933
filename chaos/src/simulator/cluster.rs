//! The nodes of a simulated cluster: real ones, on the simulated network, store, clock and task scheduler. A node that ends or is
//! killed is started again after a while, as by a process supervisor.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use perennial::api::JobRegistry;
use perennial::cluster::{JobManagerNode, StuckTasks, TaskManagerNode, TaskManagerSurroundings};
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::entropy::Entropy;
use perennial_actors::rpc::{MemoryNetwork, MemoryTransport};
use perennial_config::{HighAvailability, Settings};
use tokio::runtime::Handle;

use super::inside::Handles;
use super::plan::{Direction, FaultKind};
use super::stepper::Stepper;
use super::stores::{NodeStores, SimulatedStores, Weather};
use super::trace::Trace;
use super::workload::Fuse;

/// How long a supervisor waits before it starts a node that ended by itself.
const RESPAWN: Duration = Duration::from_millis(500);
/// How long an orderly end may take.
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// Everything that a cluster is put together from.
pub(super) struct Cluster {
    pub(super) trace: Trace,
    pub(super) network: MemoryNetwork,
    pub(super) stores: SimulatedStores,
    pub(super) stepper: Stepper,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) registry: JobRegistry,
    pub(super) fuse: Fuse,
    pub(super) dice: Entropy,
    /// `host:port` of the newest JobManager.
    pub(super) leader: Arc<Mutex<String>>,
    pub(super) job_manager: Machine<JobManagerNode>,
    pub(super) task_managers: Vec<Machine<TaskManagerNode>>,
    pub(super) later: Vec<(Instant, Undo)>,
    pub(super) handles: Handles,
}

/// A place where one node runs at a time.
pub(super) struct Machine<N> {
    running: Option<Running<N>>,
    starts_at: Instant,
    incarnation: u64,
}

struct Running<N> {
    node: N,
    name: String,
    stores: NodeStores,
}

/// The end of a fault.
pub(super) enum Undo {
    Unsilence(String, String),
    Calm,
}

impl<N> Machine<N> {
    pub(super) fn new() -> Self {
        Self {
            running: None,
            starts_at: Instant::now(),
            incarnation: 0,
        }
    }
}

fn task_manager_name(machine: usize) -> String {
    format!("taskmanager-{machine}")
}

impl Cluster {
    /// Starts what is down and due, notices what has ended, ends faults that are over.
    pub(super) async fn tend(&mut self) {
        let now = Instant::now();
        let later = std::mem::take(&mut self.later);
        for (at, undo) in later {
            if at > now {
                self.later.push((at, undo));
                continue;
            }
            match undo {
                Undo::Unsilence(from, to) => self.network.unsilence(&from, &to),
                Undo::Calm => self.stores.set_weather(Weather::Calm),
            }
        }
        let ended = self.handles.take_ended();
        for machine in 0..self.task_managers.len() {
            if ended.contains(&task_manager_name(machine)) {
                self.kill_task_manager(machine, RESPAWN);
            }
        }
        if self.leader_name().is_some_and(|name| ended.contains(&name)) {
            self.end_job_manager(RESPAWN, "killed");
        }
        if let Some(running) = &mut self.job_manager.running {
            if running.node.ended().now_or_never().is_some() {
                self.end_job_manager(RESPAWN, "ended");
            }
        } else if self.job_manager.starts_at <= now {
            self.start_job_manager().await;
        }
        for machine in 0..self.task_managers.len() {
            let place = &self.task_managers[machine];
            if let Some(running) = &place.running {
                if let Some(end) = running.node.ended().now_or_never() {
                    self.trace
                        .line(format_args!("{} has ended: {end}", running.name));
                    self.kill_task_manager(machine, RESPAWN);
                }
            } else if place.starts_at <= now {
                self.start_task_manager(machine).await;
            }
        }
    }

    async fn start_job_manager(&mut self) {
        let machine = &mut self.job_manager;
        machine.incarnation += 1;
        // With leadership in the store, the next one may be anywhere.
        let name = match self.settings.cluster.high_availability {
            HighAvailability::None => "jobmanager".to_owned(),
            HighAvailability::Store => format!("jobmanager-{}", machine.incarnation),
        };
        let mut settings = self.settings.clone();
        settings.cluster.rpc_address.clone_from(&name);
        let stores = self.stores.of_node();
        let transport = Arc::new(self.network.node(&name));
        let dice = Entropy::seeded(self.dice.u64());
        // A JobManager has no tasks.
        let faults = self
            .handles
            .of_node(&name, "", &self.network, &stores, &self.stepper);
        let started = JobManagerNode::start_with(
            settings,
            transport,
            dice,
            self.clock,
            Some(Arc::new(stores.clone())),
            faults,
        )
        .await;
        match started {
            Ok(node) => {
                self.trace.line(format_args!("{name} starts"));
                *self.leader.lock().unwrap_or_else(PoisonError::into_inner) =
                    node.address().to_owned();
                self.job_manager.running = Some(Running { node, name, stores });
            }
            Err(error) => {
                self.trace
                    .line(format_args!("{name} does not start: {error}"));
                self.job_manager.starts_at = Instant::now() + RESPAWN;
            }
        }
    }

    fn end_job_manager(&mut self, down: Duration, why: &str) {
        let Some(running) = self.job_manager.running.take() else {
            return;
        };
        self.trace.line(format_args!("{} {why}", running.name));
        self.network.kill(&running.name);
        running.stores.kill();
        // What is left in this process is cut off from everything; it ends when it can.
        tokio::spawn(running.node.shutdown());
        self.job_manager.starts_at = Instant::now() + down;
    }

    async fn start_task_manager(&mut self, machine: usize) {
        self.task_managers[machine].incarnation += 1;
        let incarnation = self.task_managers[machine].incarnation;
        let name = task_manager_name(machine);
        let stores = self.stores.of_node();
        let mut settings = self.settings.clone();
        settings.cluster.task_manager_host.clone_from(&name);
        settings.cluster.resource_id = Some(name.clone());
        let tasks = format!("{name}.{incarnation}");
        let faults = self
            .handles
            .of_node(&name, &tasks, &self.network, &stores, &self.stepper);
        let surroundings = TaskManagerSurroundings {
            transport: Arc::new(self.network.node(&name)),
            entropy: Entropy::seeded(self.dice.u64()),
            clock: self.clock,
            stores: Arc::new(stores.clone()),
            driver: Arc::new(self.stepper.driver(&tasks)),
            io: Handle::current(),
            faults,
        };
        let started = TaskManagerNode::start_with(
            &settings,
            self.registry.clone(),
            StuckTasks::EndProcess,
            surroundings,
        )
        .await;
        match started {
            Ok(node) => {
                self.trace
                    .line(format_args!("{name} starts, incarnation {incarnation}"));
                self.task_managers[machine].running = Some(Running { node, name, stores });
            }
            Err(error) => {
                self.trace
                    .line(format_args!("{name} does not start: {error}"));
                self.task_managers[machine].starts_at = Instant::now() + RESPAWN;
            }
        }
    }

    fn kill_task_manager(&mut self, machine: usize, down: Duration) {
        let place = &mut self.task_managers[machine];
        let Some(running) = place.running.take() else {
            return;
        };
        self.trace.line(format_args!("{} killed", running.name));
        self.network.kill(&running.name);
        running.stores.kill();
        self.stepper
            .kill(&format!("{}.{}", running.name, place.incarnation));
        place.starts_at = Instant::now() + down;
        tokio::spawn(async move { running.node.shutdown("killed").await });
    }

    /// Makes a fault happen.
    pub(super) fn strike(&mut self, fault: &FaultKind) {
        self.trace.line(format_args!("fault {fault:?}"));
        let now = Instant::now();
        match fault {
            FaultKind::KillTaskManager { node, down } => self.kill_task_manager(*node, *down),
            FaultKind::KillJobManager { down } => self.end_job_manager(*down, "killed"),
            FaultKind::CutControl { node, down } => {
                let Some(leader) = self.leader_name() else {
                    return;
                };
                let node = task_manager_name(*node);
                self.network.cut(&node, &leader);
                self.silence(&node, &leader, now + *down);
                self.silence(&leader, &node, now + *down);
            }
            FaultKind::SilenceControl {
                node,
                down,
                direction,
            } => {
                let Some(leader) = self.leader_name() else {
                    return;
                };
                let node = task_manager_name(*node);
                if *direction != Direction::Down {
                    self.silence(&node, &leader, now + *down);
                }
                if *direction != Direction::Up {
                    self.silence(&leader, &node, now + *down);
                }
            }
            FaultKind::CutData { nodes: (a, b) } => self
                .network
                .cut(&task_manager_name(*a), &task_manager_name(*b)),
            FaultKind::SilenceData {
                nodes: (a, b),
                down,
            } => {
                self.silence(&task_manager_name(*a), &task_manager_name(*b), now + *down);
            }
            FaultKind::Storm { percent, down } => {
                self.stores
                    .set_weather(Weather::Storm { percent: *percent });
                self.later.push((now + *down, Undo::Calm));
            }
            FaultKind::Function { sequence, panics } => self.fuse.light(*sequence, *panics),
        }
    }

    fn leader_name(&self) -> Option<String> {
        Some(self.job_manager.running.as_ref()?.name.clone())
    }

    fn silence(&mut self, from: &str, to: &str, until: Instant) {
        self.network.silence(from, to);
        self.later
            .push((until, Undo::Unsilence(from.to_owned(), to.to_owned())));
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        for (at, _) in &mut self.later {
            *at = Instant::now();
        }
    }

    /// The client's network and the leader's address.
    pub(super) fn client(&self) -> (MemoryTransport, Arc<Mutex<String>>) {
        (self.network.node("client"), self.leader.clone())
    }

    /// Ends all nodes in good order; says what did not end.
    pub(super) async fn shutdown(mut self) -> Vec<String> {
        let mut stuck = Vec::new();
        for place in &mut self.task_managers {
            let Some(running) = place.running.take() else {
                continue;
            };
            let ending = running.node.shutdown("the simulation is over");
            match tokio::time::timeout(SHUTDOWN_MAX, ending).await {
                Ok(end) => self
                    .trace
                    .line(format_args!("{} has ended: {end}", running.name)),
                Err(_) => stuck.push(format!("{} does not end", running.name)),
            }
        }
        if let Some(running) = self.job_manager.running.take() {
            match tokio::time::timeout(SHUTDOWN_MAX, running.node.shutdown()).await {
                Ok(Ok(end)) => self
                    .trace
                    .line(format_args!("{} has ended: {end:?}", running.name)),
                Ok(Err(error)) => stuck.push(format!("{} ended badly: {error}", running.name)),
                Err(_) => stuck.push(format!("{} does not end", running.name)),
            }
        }
        stuck
    }
}
