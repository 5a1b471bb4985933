//! The root of the JobManager process's control plane: jobs, TaskManagers, slots, clients.
//!
//! Invariant: a job is run by at most one JobMaster, and only while its graph is stored and its result is not. No slot of a TaskManager
//! is given away while a task that nobody answers for still runs there. Leadership is acquired before and told lost from outside; a
//! JobManager that ends leaves jobs, records and tasks as they are.

mod clients;
mod collaborators;
mod injection;
mod manager;
mod roster;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use crate::checkpoint::{EpochGuard, StoreError, StoreFactory};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::fault::{ActorFault, FaultPoints};
use crate::job_master::{Assign, CoordinatorSpawner, JobMasterReport, Reply};
use crate::model::message::{ClientRequest, ClientResponse, RpcError, StoreProbe};
use crate::model::{ExecutionAttemptId, FailureKind, InstanceId, JobId, LeaderEpoch};
use crate::peer::{PeerEvent, PeerEvents};
pub use collaborators::{assign_snapshot, store_coordinators};
use manager::Manager;
use store::{JobRecord, JobStore, Submission};

/// Jobs that run or want to run.
pub const JOBS_MAX: usize = 1024;

/// Ended jobs that are remembered, also in the store.
pub const HISTORY_MAX: usize = 64;

/// Unexpected ends of one job's JobMaster within [`JOB_MASTER_RESTARTS_WINDOW`] after which the job is left alone until the next JobManager.
pub const JOB_MASTER_RESTARTS_MAX: usize = 3;

/// See [`JOB_MASTER_RESTARTS_MAX`].
pub const JOB_MASTER_RESTARTS_WINDOW: std::time::Duration = std::time::Duration::from_secs(3600);

/// At least this long between two writes of one job's history: a restart storm costs the store no more.
pub const HISTORY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// What a JobManager needs.
#[derive(Clone)]
pub struct JobManagerOptions {
    /// Of this node.
    pub settings: perennial_config::Settings,
    /// Opens the HA directory and the probe's directory.
    pub stores: Arc<dyn StoreFactory>,
    /// Time.
    pub clock: Clock,
    /// Dice.
    pub entropy: Entropy,
    /// Won before.
    pub epoch: LeaderEpoch,
    /// Tells whether it is still the highest.
    pub guard: Arc<dyn EpochGuard>,
    /// This process.
    pub instance: InstanceId,
    /// Starts each job's coordinator; [`store_coordinators`] in production.
    pub coordinator: CoordinatorSpawner,
    /// Spreads a snapshot over a graph; [`assign_snapshot`] in production.
    pub assign: Assign,
    /// Of this node.
    pub faults: FaultPoints,
}

/// Why a JobManager did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The jobs cannot be read, or the probe not be written.
    #[error("the JobManager cannot use its store: {0}")]
    Store(#[from] StoreError),
    /// Ours is the bug.
    #[error("the JobManager's actor did not start: {0}")]
    Actor(String),
}

/// How a JobManager ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobManagerEnd {
    /// As asked. Jobs are recovered by the next one.
    Shutdown,
    /// Leadership was lost, as told by the leader guard.
    LeadershipLost(String),
    /// A higher epoch was met.
    Fenced(String),
    /// The root actor broke.
    Failed(FailureKind),
}

/// To the JobManager.
pub(crate) enum JobManagerMessage {
    Peer(PeerEvent),
    Report(JobMasterReport),
    Submitted {
        record: Box<JobRecord>,
        result: Result<Submission, StoreError>,
        reply: Reply,
    },
    ResultStored(JobId),
    /// The pause after a write of a job's history is over.
    HistoryStored {
        job: JobId,
        result: Result<(), StoreError>,
    },
    /// Queued behind everything that the JobMaster had reported before it broke, for supervision events overtake messages.
    JobMasterBroke {
        job: JobId,
        cause: FailureKind,
    },
    /// TaskManagers of the former leader have had their time to come back.
    Settled,
    /// The time of former tasks on this TaskManager to end is over.
    /// With those that it was told to stop then.
    StopTimeout(InstanceId, BTreeSet<ExecutionAttemptId>),
    End(JobManagerEnd),
    /// Injected into this actor.
    Fault(ActorFault),
}

/// A running JobManager. Dropping the handle does not end it.
pub struct JobManagerHandle {
    actor: ActorRef<JobManagerMessage>,
    end: oneshot::Receiver<JobManagerEnd>,
    join: tokio::task::JoinHandle<()>,
}

/// Tells a JobManager to end; can be cloned and kept apart from the handle.
#[derive(Clone)]
pub struct JobManagerControl(ActorRef<JobManagerMessage>);

impl JobManagerControl {
    /// Ends it; jobs stay as they are.
    pub fn shutdown(&self) {
        self.end(JobManagerEnd::Shutdown);
    }

    /// Leadership is gone: nothing more is decided or written here.
    pub fn leadership_lost(&self, reason: String) {
        self.end(JobManagerEnd::LeadershipLost(reason));
    }

    fn end(&self, end: JobManagerEnd) {
        // One that has ended already needs no telling.
        drop(self.0.cast(JobManagerMessage::End(end)));
    }
}

impl JobManagerHandle {
    /// Where connections report to.
    #[must_use]
    pub fn peer_events(&self) -> PeerEvents {
        let actor = self.actor.clone();
        // After the end nobody listens: replies are dropped with the event, which tells the client.
        Arc::new(move |event| drop(actor.cast(JobManagerMessage::Peer(event))))
    }

    /// A client's request from inside this process (REST, `start`).
    pub async fn request(&self, request: ClientRequest) -> Result<ClientResponse, RpcError> {
        let (reply, answer) = oneshot::channel();
        (self.peer_events())(PeerEvent::Request { request, reply });
        answer.await.unwrap_or_else(|_| {
            Err(RpcError::Closed {
                peer: "JobManager".to_owned(),
                message: "closed: it ended before it answered".to_owned(),
            })
        })
    }

    /// To end it.
    #[must_use]
    pub fn control(&self) -> JobManagerControl {
        JobManagerControl(self.actor.clone())
    }

    /// Waits for the end. Cancellation safe only in that the JobManager goes on.
    pub async fn join(self) -> JobManagerEnd {
        // The sender is dropped without a word when the actor breaks; the join handle proves that its state is gone.
        let end = self.end.await;
        let _ = self.join.await;
        end.unwrap_or_else(|_| {
            JobManagerEnd::Failed(FailureKind::Actor {
                actor: "JobManager".to_owned(),
                message: "it broke; its log has the panic".to_owned(),
            })
        })
    }
}

/// See the module.
pub struct JobManager;

impl JobManager {
    /// Reads the stored jobs and starts them; returns when connections may be accepted.
    pub async fn start(options: JobManagerOptions) -> Result<JobManagerHandle, StartError> {
        let jobs = JobStore::new(
            options
                .stores
                .open(&options.settings.cluster.ha_directory)?,
            options.epoch,
        );
        let stored = jobs.recover().await?;
        let probe = write_probe(&options).await?;
        let (end_sender, end) = oneshot::channel();
        let manager = Manager::new(options, jobs, stored, probe, end_sender);
        let (actor, join) = Actor::spawn(None, Root, manager)
            .await
            .map_err(|error| StartError::Actor(error.to_string()))?;
        Ok(JobManagerHandle { actor, end, join })
    }
}

/// Where the probe object of a cluster lies in its checkpoint directory: one name per cluster, so that probes do not pile up.
#[must_use]
pub fn probe_key(cluster_id: &str) -> String {
    format!("probe-{cluster_id}")
}

/// A directory on disk is only good when every TaskManager sees the same; an object store is shared by nature.
async fn write_probe(options: &JobManagerOptions) -> Result<Option<StoreProbe>, StoreError> {
    let directory = &options.settings.job.checkpointing.directory;
    if !directory.starts_with("file:") {
        return Ok(None);
    }
    let probe = StoreProbe {
        directory: directory.clone(),
        key: probe_key(&options.settings.cluster.cluster_id),
        content: options.instance.to_string().into_bytes(),
    };
    options
        .stores
        .open(directory)?
        .put(&probe.key, probe.content.clone().into())
        .await?;
    Ok(Some(probe))
}

/// The actor.
struct Root;

impl Actor for Root {
    type Msg = JobManagerMessage;
    type State = Manager;
    type Arguments = Manager;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        manager: Manager,
    ) -> Result<Manager, ActorProcessingErr> {
        Ok(manager)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        manager: &mut Manager,
    ) -> Result<(), ActorProcessingErr> {
        manager.start(&myself).await;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: JobManagerMessage,
        manager: &mut Manager,
    ) -> Result<(), ActorProcessingErr> {
        manager.handle(&myself, message).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        manager: &mut Manager,
    ) -> Result<(), ActorProcessingErr> {
        manager.on_child(&myself, event);
        Ok(())
    }
}
