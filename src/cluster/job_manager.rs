//! A JobManager node: listens, waits until it leads, then runs the control plane until it is told to end or loses its leadership.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::client::probe_with;
use perennial_actors::clock::Clock;
use perennial_actors::entropy::Entropy;
use perennial_actors::fault::{FaultPlace, FaultPoints, FaultSite, Sabotage};
use perennial_actors::job_manager::{
    JobManager, JobManagerControl, JobManagerEnd, JobManagerOptions, assign_snapshot,
    store_coordinators,
};
use perennial_actors::leadership::{
    Candidate, Leadership, LeadershipError, ProbeFn, ProbeOutcome, lead,
};
use perennial_actors::model::message::{RpcError, Welcome};
use perennial_actors::model::{InstanceId, LeaderEpoch, ResourceId};
use perennial_actors::peer::{ListenerHandle, ListenerOptions, PeerEvents, RpcListener};
use perennial_actors::rpc::{TcpTransport, Transport};
use perennial_config::{Secret, Settings};
use tokio::sync::watch;

use super::{NodeError, Ports};
use crate::storage::{Stores, probe_conditional_create};

/// How long a probe of the incumbent leader may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a JobManager node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobManagerExit {
    /// As asked.
    Shutdown,
    /// Another leads now.
    Fenced(String),
    /// It broke.
    Failed(String),
}

/// A JobManager node. Dropping it leaves it running until its runtime ends.
pub struct JobManagerNode {
    address: String,
    listener: ListenerHandle,
    shutdown: watch::Sender<bool>,
    ended: tokio::task::JoinHandle<Result<JobManagerExit, NodeError>>,
    leads: watch::Receiver<Option<LeaderEpoch>>,
}

/// What the node knows once it leads.
#[derive(Default)]
struct Leading {
    epoch: OnceLock<LeaderEpoch>,
    events: OnceLock<PeerEvents>,
}

impl JobManagerNode {
    /// Listens and runs for leadership. Returns as soon as it listens.
    pub async fn start(settings: Settings, faults: FaultPoints) -> Result<Self, NodeError> {
        Self::start_with(
            settings,
            Arc::new(TcpTransport),
            Entropy::system(),
            Clock::system(),
            None,
            faults,
        )
        .await
    }

    /// As [`start`](Self::start), with its surroundings given.
    pub async fn start_with(
        settings: Settings,
        transport: Arc<dyn Transport>,
        entropy: Entropy,
        clock: Clock,
        stores: Option<Arc<dyn StoreFactory>>,
        faults: FaultPoints,
    ) -> Result<Self, NodeError> {
        let clock = if settings.cluster.is_chaos_enabled {
            clock.adjustable()
        } else {
            clock
        };
        let instance = InstanceId(entropy.u128());
        let stores: Arc<dyn StoreFactory> = match stores {
            Some(stores) => stores,
            None => Arc::new(Stores::new(settings.cluster.s3.clone(), entropy.clone())),
        };
        let leading = Arc::new(Leading::default());
        let cluster = &settings.cluster;
        let ports = Ports {
            found: cluster.rpc_port,
            bound: cluster.rpc_bind_port,
        };
        let bind = format!("{}:{}", cluster.bind_host, ports.to_bind());
        let listener = RpcListener::start(ListenerOptions {
            transport: transport.clone(),
            bind: bind.clone(),
            secret: cluster.cluster_secret.clone(),
            welcome: welcome(instance, leading.clone()),
            heartbeat: cluster.heartbeat.clone(),
            entropy: entropy.clone(),
            events: {
                let leading = leading.clone();
                Arc::new(move |event| {
                    // Nobody is welcomed before the events are set.
                    if let Some(events) = leading.events.get() {
                        events(event);
                    }
                })
            },
        })
        .await
        .map_err(|source| NodeError::Listen {
            address: bind,
            key: "jobmanager.bind-host, jobmanager.rpc.port, jobmanager.rpc.bind-port",
            source,
        })?;
        let address = ports.advertised(&cluster.rpc_address, listener.address());
        let (shutdown, shutdown_asked) = watch::channel(false);
        let (leads_sender, leads) = watch::channel(None);
        let run = Run {
            settings,
            transport,
            entropy,
            clock,
            stores,
            instance,
            address: address.clone(),
            leading,
            shutdown: shutdown_asked,
            leads: leads_sender,
            faults,
        };
        let ended = tokio::spawn(run.run());
        Ok(Self {
            address,
            listener,
            shutdown,
            ended,
            leads,
        })
    }

    /// `host:port` that TaskManagers and clients connect to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until it leads; `false` when it ended before. Cancel safe.
    pub async fn leads(&self) -> bool {
        self.leads.clone().wait_for(Option::is_some).await.is_ok()
    }

    /// The epoch in which it leads.
    #[must_use]
    pub fn epoch(&self) -> Option<LeaderEpoch> {
        *self.leads.borrow()
    }

    /// Waits for its end. Cancel safe.
    pub async fn ended(&mut self) {
        // The sender is dropped at the end; its value is read by `shutdown`.
        let _ = self.leads.wait_for(|_| false).await;
    }

    /// Ends it, if it has not ended yet, and closes its connections; jobs stay as they are.
    pub async fn shutdown(self) -> Result<JobManagerExit, NodeError> {
        self.shutdown.send_replace(true);
        let result = self
            .ended
            .await
            .unwrap_or_else(|error| Err(NodeError::Internal(error.to_string())));
        self.listener.shutdown().await;
        result
    }
}

fn welcome(instance: InstanceId, leading: Arc<Leading>) -> Arc<dyn Fn() -> Welcome + Send + Sync> {
    let name = ResourceId(format!("jobmanager-{}", &instance.to_string()[..8]));
    Arc::new(move || Welcome {
        instance,
        name: name.clone(),
        // Leading means being able to answer: the epoch alone is not enough.
        epoch: leading.events.get().and(leading.epoch.get()).copied(),
    })
}

struct Run {
    settings: Settings,
    transport: Arc<dyn Transport>,
    entropy: Entropy,
    clock: Clock,
    stores: Arc<dyn StoreFactory>,
    instance: InstanceId,
    address: String,
    leading: Arc<Leading>,
    shutdown: watch::Receiver<bool>,
    leads: watch::Sender<Option<LeaderEpoch>>,
    faults: FaultPoints,
}

impl Run {
    async fn run(self) -> Result<JobManagerExit, NodeError> {
        let mut shutdown = self.shutdown.clone();
        let asked = async move {
            // The sender's end is the node's end.
            let _ = shutdown.wait_for(|asked| *asked).await;
        };
        tokio::pin!(asked);
        let leadership = tokio::select! {
            biased;
            () = &mut asked => return Ok(JobManagerExit::Shutdown),
            leadership = self.lead() => leadership?,
        };
        let epoch = leadership.info().epoch;
        let options = JobManagerOptions {
            settings: self.settings.clone(),
            stores: self.stores.clone(),
            clock: self.clock,
            entropy: self.entropy.clone(),
            epoch,
            guard: leadership.epochs(),
            instance: self.instance,
            coordinator: store_coordinators(
                self.stores.clone(),
                leadership.epochs(),
                self.clock,
                self.entropy.clone(),
                self.faults.clone(),
            ),
            assign: Arc::new(assign_snapshot),
            faults: self.faults.clone(),
        };
        let manager = JobManager::start(options)
            .await
            .map_err(|e| NodeError::Internal(e.to_string()))?;
        let control = manager.control();
        // Set once each, here.
        let _ = self.leading.events.set(manager.peer_events());
        let _ = self.leading.epoch.set(epoch);
        self.leads.send_replace(Some(epoch));
        let end = manager.join();
        tokio::pin!(end);
        let end = tokio::select! {
            biased;
            end = &mut end => end,
            lost = leadership.lost(), if !self.faults.is_sabotaged(Sabotage::IgnoreEpoch) => end_with(&control, &mut end, |c| c.leadership_lost(lost.to_string())).await,
            () = &mut asked => end_with(&control, &mut end, JobManagerControl::shutdown).await,
        };
        Ok(match end {
            JobManagerEnd::Shutdown => {
                if let Err(error) = leadership.release().await {
                    tracing::warn!(%error, "leadership not released; the next JobManager waits for the lease");
                }
                JobManagerExit::Shutdown
            }
            JobManagerEnd::LeadershipLost(reason) | JobManagerEnd::Fenced(reason) => {
                JobManagerExit::Fenced(reason)
            }
            JobManagerEnd::Failed(kind) => JobManagerExit::Failed(kind.to_string()),
        })
    }

    async fn lead(&self) -> Result<Leadership, NodeError> {
        let cluster = &self.settings.cluster;
        let store = self.stores.open(&cluster.ha_directory)?;
        // A store that cannot decide races would make two leaders look like one.
        probe_conditional_create(store.as_ref(), &self.entropy).await?;
        let checkpoints = self
            .stores
            .open(&self.settings.job.checkpointing.directory)?;
        probe_conditional_create(checkpoints.as_ref(), &self.entropy).await?;
        let candidate = Candidate {
            store,
            address: self.address.clone(),
            instance: self.instance,
            high_availability: cluster.high_availability,
            lease_duration: cluster.lease_duration,
            renew_interval: cluster.renew_interval,
            probe: leader_probe(
                self.transport.clone(),
                cluster.cluster_secret.clone(),
                self.entropy.clone(),
            ),
            entropy: self.entropy.clone(),
        };
        let site = FaultSite::BeforeEpochClaim;
        if let Err(error) = self.faults.reach(site, FaultPlace::Node).await {
            return Err(NodeError::Internal(error.to_string()));
        }
        lead(candidate).await.map_err(|error| match error {
            LeadershipError::Occupied { .. } => NodeError::NotLeader(error.to_string()),
            LeadershipError::Store(error) => NodeError::Store(error),
        })
    }
}

async fn end_with(
    control: &JobManagerControl,
    end: &mut (impl Future<Output = JobManagerEnd> + Unpin),
    ask: impl FnOnce(&JobManagerControl),
) -> JobManagerEnd {
    ask(control);
    end.await
}

fn leader_probe(transport: Arc<dyn Transport>, secret: Secret, entropy: Entropy) -> ProbeFn {
    Arc::new(move |address| {
        let (transport, secret, entropy) = (transport.clone(), secret.clone(), entropy.clone());
        async move {
            match probe_with(
                transport.as_ref(),
                &address,
                &secret,
                PROBE_TIMEOUT,
                &entropy,
            )
            .await
            {
                Ok(welcome) => ProbeOutcome::Answered(welcome.instance),
                Err(RpcError::Closed { .. }) => ProbeOutcome::Refused,
                Err(_) => ProbeOutcome::Silent,
            }
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clusters lead side by side on one directory; a third JobManager with the id of one of them does not.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clusters_with_different_ids_share_a_storage_directory() {
        let directory = tempfile::tempdir().unwrap();
        let node = async |id: &str| {
            let checkpoints = format!("file://{}", directory.path().display());
            let settings = Settings::with(&[
                ("execution.checkpointing.dir", checkpoints.as_str()),
                ("high-availability.cluster-id", id),
                ("jobmanager.rpc.port", "0"),
            ]);
            JobManagerNode::start(settings.unwrap(), FaultPoints::default())
                .await
                .unwrap()
        };
        let (one, other) = (node("one").await, node("other").await);
        assert!(one.leads().await && other.leads().await);
        assert_eq!(
            (one.epoch(), other.epoch()),
            (Some(LeaderEpoch(1)), Some(LeaderEpoch(1)))
        );
        let rival = node("one").await;
        assert!(!rival.leads().await);
        let refused = rival.shutdown().await;
        assert!(
            matches!(&refused, Err(NodeError::NotLeader(why)) if why.contains("cluster-id")),
            "{refused:?}"
        );
        for node in [one, other] {
            assert_eq!(node.shutdown().await.unwrap(), JobManagerExit::Shutdown);
        }
    }
}
