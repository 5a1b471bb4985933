//! A whole cluster in one process, over real sockets.

use std::time::Duration;

use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::client::Client;
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use perennial_actors::fault::FaultPoints;
use perennial_actors::job_manager::probe_key;
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::rpc::TcpTransport;
use perennial_config::{HighAvailability, Secret, Settings};

use super::task_manager::StuckTasks;
use super::{JobManagerExit, JobManagerNode, NodeError, Runtime, TaskManagerNode, runtime};
use crate::api::JobRegistry;
use crate::storage::Stores;

/// Threads for actors and heartbeats.
const CONTROL_THREADS: usize = 2;

/// How long TaskManagers may take to register.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A JobManager and some TaskManagers in this process.
pub struct LocalCluster {
    settings: Settings,
    job_manager: JobManagerNode,
    task_managers: Vec<TaskManagerNode>,
    /// Nobody else knows its id.
    is_private: bool,
    _control: std::sync::Arc<Runtime>,
}

impl LocalCluster {
    /// Starts them for one client in this process, on free ports, and waits until every TaskManager has registered.
    ///
    /// Such a cluster ends with its client, so it is one of its own: it neither waits for another on the same directory nor goes on with
    /// the jobs that a killed one left there.
    pub async fn start(
        settings: &Settings,
        task_managers: u32,
        registry: JobRegistry,
    ) -> Result<Self, NodeError> {
        let mut settings = settings.clone();
        settings.cluster.rpc_port = 0;
        settings.cluster.rpc_bind_port = None;
        let id = format!("local-{:032x}", Entropy::system().u128());
        // What nobody can come back to needs no file.
        settings.cluster.high_availability = HighAvailability::None;
        settings.cluster.ha_directory = format!("memory://{id}");
        settings.cluster.cluster_id = id;
        if settings.cluster.cluster_secret.0.is_empty() {
            // Nobody else needs to know it. `start_on` is for clients in other processes, which know only what is configured.
            settings.cluster.cluster_secret = Secret(format!("{:032x}", Entropy::system().u128()));
        }
        let mut cluster = Self::start_on(settings, task_managers, registry).await?;
        cluster.is_private = true;
        Ok(cluster)
    }

    /// Starts them as they are configured, for clients in other processes, which need the same secret.
    pub async fn start_on(
        mut settings: Settings,
        task_managers: u32,
        registry: JobRegistry,
    ) -> Result<Self, NodeError> {
        let control = runtime("perennial-ctl", CONTROL_THREADS)?;
        let for_node = settings.clone();
        let job_manager = in_runtime(&control, async move {
            JobManagerNode::start(for_node, FaultPoints::default()).await
        })
        .await?;
        let port = job_manager
            .address()
            .rsplit(':')
            .next()
            .and_then(|p| p.parse().ok());
        settings.cluster.rpc_port = port.unwrap_or(settings.cluster.rpc_port);
        if !job_manager.leads().await {
            return match job_manager.shutdown().await {
                Ok(exit) => Err(NodeError::Internal(format!(
                    "the JobManager ended: {exit:?}"
                ))),
                Err(error) => Err(error),
            };
        }
        let mut nodes = Vec::new();
        for _ in 0..task_managers {
            let (settings, registry) = (settings.clone(), registry.clone());
            let node = async move {
                let faults = FaultPoints::default();
                TaskManagerNode::start(&settings, registry, StuckTasks::Abandon, faults).await
            };
            nodes.push(in_runtime(&control, node).await?);
        }
        let cluster = Self {
            settings,
            job_manager,
            task_managers: nodes,
            is_private: false,
            _control: control,
        };
        cluster.wait_for_task_managers().await?;
        Ok(cluster)
    }

    /// The settings in force, with the real port.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// `host:port` of the JobManager.
    #[must_use]
    pub fn address(&self) -> &str {
        self.job_manager.address()
    }

    /// Waits for the end of its JobManager, without which it is none. Cancel safe.
    pub async fn ended(&mut self) {
        self.job_manager.ended().await;
    }

    /// Ends all nodes in good order, and tells how the JobManager did.
    pub async fn shutdown(self) -> Result<JobManagerExit, NodeError> {
        let ending = self
            .task_managers
            .iter()
            .map(|node| node.shutdown("the cluster ends"));
        for end in futures::future::join_all(ending).await {
            tracing::debug!(%end, "a TaskManager has ended");
        }
        let exit = self.job_manager.shutdown().await;
        if self.is_private {
            let directory = &self.settings.job.checkpointing.directory;
            let key = probe_key(&self.settings.cluster.cluster_id);
            let stores = Stores::new(self.settings.cluster.s3.clone(), Entropy::system());
            let deleted = async { stores.open(directory)?.delete(&key).await };
            if let Err(error) = deleted.await {
                tracing::warn!(%error, "the probe object of this cluster stays behind");
            }
        }
        exit
    }

    async fn wait_for_task_managers(&self) -> Result<(), NodeError> {
        let cluster = &self.settings.cluster;
        let deadline = Instant::now() + START_TIMEOUT;
        let mut client = Client::connect(
            &TcpTransport,
            self.address(),
            &cluster.cluster_secret,
            cluster.ask_timeout,
        )
        .await?;
        loop {
            let response = client
                .request(ClientRequest::ListTaskManagers, Some(cluster.ask_timeout))
                .await?;
            let ClientResponse::TaskManagers(registered) = response else {
                return Err(NodeError::Internal(
                    "ListTaskManagers was answered with something else".into(),
                ));
            };
            if registered.len() >= self.task_managers.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(NodeError::Rpc(RpcError::Refused(format!(
                    "{} of {} TaskManagers registered within {} s",
                    registered.len(),
                    self.task_managers.len(),
                    START_TIMEOUT.as_secs()
                ))));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Runs the start of a node where its actors shall live.
async fn in_runtime<T: Send + 'static>(
    runtime: &Runtime,
    start: impl Future<Output = Result<T, NodeError>> + Send + 'static,
) -> Result<T, NodeError> {
    runtime
        .handle()
        .spawn(start)
        .await
        .unwrap_or_else(|error| Err(NodeError::Internal(error.to_string())))
}
