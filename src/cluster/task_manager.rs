//! A TaskManager node. Control and heartbeats, data connections and storage, and tasks each have threads of their own, so that a busy
//! worker is slow, not dead.

use std::sync::Arc;

use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::clock::Clock;
use perennial_actors::entropy::Entropy;
use perennial_actors::fault::FaultPoints;
use perennial_actors::job_manager_session::{FixedLeader, LeaderDiscovery};
use perennial_actors::model::{InstanceId, ResourceId};
use perennial_actors::rpc::{TcpTransport, Transport};
use perennial_actors::task_manager::{
    TaskManager, TaskManagerEnd, TaskManagerHandle, TaskManagerOptions,
};
use perennial_config::{HighAvailability, Settings};

use super::{NodeError, Ports, Runtime, StoredLeader, build_id, runtime};
use crate::api::JobRegistry;
use crate::exchange::{Exchange, ExchangeOptions};
use crate::storage::Stores;
use crate::task::{LocalTaskRunner, RunnerOptions, TaskDriver, ThreadDriver};
use tokio::runtime::Handle;

/// Threads for data connections and storage.
const IO_THREADS: usize = 2;

/// What to do with a task that cannot be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StuckTasks {
    /// End the TaskManager.
    EndProcess,
    /// Leave its thread and its slot behind: other nodes live in this process.
    Abandon,
}

/// A running TaskManager node.
pub struct TaskManagerNode {
    handle: TaskManagerHandle,
    resource: ResourceId,
    _io: Option<Arc<Runtime>>,
}

/// What a TaskManager stands on; the simulator brings its own.
pub struct TaskManagerSurroundings {
    /// For control and data connections.
    pub transport: Arc<dyn Transport>,
    /// Ids, nonces, jitter.
    pub entropy: Entropy,
    /// Time.
    pub clock: Clock,
    /// Snapshots.
    pub stores: Arc<dyn StoreFactory>,
    /// Steps the tasks.
    pub driver: Arc<dyn TaskDriver>,
    /// For data connections and storage.
    pub io: Handle,
    /// Where faults strike.
    pub faults: FaultPoints,
}

impl TaskManagerNode {
    /// Starts one that looks for its JobManager where the settings say.
    pub async fn start(
        settings: &Settings,
        registry: JobRegistry,
        stuck: StuckTasks,
        faults: FaultPoints,
    ) -> Result<Self, NodeError> {
        let io = runtime("perennial-io", IO_THREADS)?;
        let (entropy, clock) = (Entropy::system(), Clock::system());
        let surroundings = TaskManagerSurroundings {
            transport: Arc::new(TcpTransport),
            stores: Arc::new(Stores::new(settings.cluster.s3.clone(), entropy.clone())),
            driver: Arc::new(ThreadDriver::new(clock)),
            io: io.handle(),
            entropy,
            clock,
            faults,
        };
        let mut node = Self::start_with(settings, registry, stuck, surroundings).await?;
        node._io = Some(io);
        Ok(node)
    }

    /// As [`start`](Self::start), with its surroundings given.
    pub async fn start_with(
        settings: &Settings,
        registry: JobRegistry,
        stuck: StuckTasks,
        surroundings: TaskManagerSurroundings,
    ) -> Result<Self, NodeError> {
        let TaskManagerSurroundings {
            transport,
            entropy,
            clock,
            stores,
            driver,
            io,
            faults,
        } = surroundings;
        let cluster = &settings.cluster;
        let clock = if cluster.is_chaos_enabled {
            clock.adjustable()
        } else {
            clock
        };
        let instance = InstanceId(entropy.u128());
        let resource = ResourceId(
            cluster
                .resource_id
                .clone()
                .unwrap_or_else(|| format!("taskmanager-{}", &instance.to_string()[..8])),
        );
        let ports = Ports {
            found: cluster.data_port,
            bound: cluster.data_bind_port,
        };
        let bind = format!("{}:{}", cluster.task_manager_bind_host, ports.to_bind());
        let exchange = Exchange::bind(ExchangeOptions {
            transport: transport.clone(),
            bind_address: &bind,
            advertised: Some(&|bound| ports.advertised(&cluster.task_manager_host, bound)),
            resource: resource.clone(),
            instance,
            secret: &cluster.cluster_secret.0,
            network_memory: cluster.network_memory,
            heartbeat: &cluster.heartbeat,
            handle: io.clone(),
        })
        .await
        .map_err(|source| NodeError::Listen {
            address: bind,
            key: "taskmanager.bind-host, taskmanager.data.port, taskmanager.data.bind-port",
            source,
        })?;
        let runner = LocalTaskRunner::new(RunnerOptions {
            registry,
            build: build_id(),
            instance,
            exchange: exchange.clone(),
            stores: stores.clone(),
            driver,
            handle: io,
            clock,
            log_bytes_max: cluster.managed_memory / u64::from(cluster.task_slots.max(1)),
            faults: faults.clone(),
        });
        let leader: Arc<dyn LeaderDiscovery> = match cluster.high_availability {
            HighAvailability::None => Arc::new(FixedLeader(format!(
                "{}:{}",
                cluster.rpc_address, cluster.rpc_port
            ))),
            HighAvailability::Store => {
                Arc::new(StoredLeader::new(stores.clone(), &cluster.ha_directory))
            }
        };
        let handle = TaskManager::start(TaskManagerOptions {
            settings: cluster.clone(),
            transport,
            runner: Arc::new(runner),
            data_plane: exchange,
            stores,
            clock,
            entropy,
            resource: resource.clone(),
            instance,
            leader,
            abandon_stuck_tasks: stuck == StuckTasks::Abandon,
            faults,
        })
        .await
        .map_err(|e| NodeError::Internal(e.to_string()))?;
        Ok(Self {
            handle,
            resource,
            _io: None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn resource(&self) -> &ResourceId {
        &self.resource
    }

    /// Ends it in good order: says goodbye, joins all tasks, closes everything.
    pub async fn shutdown(&self, reason: &str) -> TaskManagerEnd {
        self.handle.shutdown(reason).await
    }

    /// Waits for its end. Cancel safe.
    pub async fn ended(&self) -> TaskManagerEnd {
        self.handle.ended().await
    }
}
