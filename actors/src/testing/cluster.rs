//! A whole control plane under a paused clock: the real JobManager and JobMasters, scripted TaskManagers and coordinators, and a store in
//! memory.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use perennial_config::{ClusterSettings, Settings};

use super::coordinators::{Coordinators, assign};
use super::job_settings;
use super::task_manager::{Behave, FakeTaskManager};
use crate::checkpoint::testing::MemoryStores;
use crate::checkpoint::{EpochGuard, StoreFactory, StoreResult};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::fault::{FaultPoints, Injection};
use crate::job_manager::{
    JobManager, JobManagerEnd, JobManagerHandle, JobManagerOptions, assign_snapshot,
    store_coordinators,
};
use crate::job_master::{Assign, CoordinatorContext, CoordinatorSpawner, StartedCoordinator};
use crate::leadership::StoreEpochs;
use crate::model::message::{ClientRequest, ClientResponse, RpcError};
use crate::model::*;

/// Waits for a condition, at most 20 minutes of virtual time.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..120_000 {
        if let Some(value) = condition().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

pub(crate) type Stores = Arc<MemoryStores>;

/// Nobody else ever leads.
struct Leads(LeaderEpoch);

impl EpochGuard for Leads {
    fn current_epoch(&self) -> BoxFuture<'_, StoreResult<LeaderEpoch>> {
        Box::pin(async { Ok(self.0) })
    }
}

pub(crate) struct Cluster {
    pub(crate) handle: JobManagerHandle,
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) stores: Stores,
    pub(crate) task_managers: Vec<FakeTaskManager>,
}

/// What outlives a leader.
pub(crate) struct Left {
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) stores: Stores,
    pub(crate) task_managers: Vec<FakeTaskManager>,
}

impl Cluster {
    /// A first leader and `slots.len()` TaskManagers.
    pub(crate) async fn start(slots: &[u32], behave: Behave) -> Self {
        let mut cluster = Self::lead(1, Stores::default(), Arc::default()).await;
        for slots in slots {
            cluster.add(*slots, Arc::clone(&behave));
        }
        cluster
    }

    pub(crate) async fn lead(epoch: u64, stores: Stores, coordinators: Arc<Coordinators>) -> Self {
        Self::lead_by(settings(), epoch, stores, coordinators).await
    }

    pub(crate) async fn lead_by(
        settings: Settings,
        epoch: u64,
        stores: Stores,
        coordinators: Arc<Coordinators>,
    ) -> Self {
        let spawner = {
            let coordinators = Arc::clone(&coordinators);
            move |context: CoordinatorContext| -> BoxFuture<'static, _> {
                let coordinators = Arc::clone(&coordinators);
                let mut script = coordinators.0.lock().unwrap();
                script.events = Some(context.events);
                let error =
                    (!script.start_errors.is_empty()).then(|| script.start_errors.remove(0));
                drop(script);
                Box::pin(async move {
                    if let Some(error) = error {
                        return Err(error);
                    }
                    let job = context.graph.job;
                    Ok(StartedCoordinator::Ready(Arc::new(move |message| {
                        coordinators.receive(job, message);
                    })))
                })
            }
        };
        Self::lead_with(
            settings,
            epoch,
            stores,
            coordinators,
            Arc::new(spawner),
            Arc::new(assign),
        )
        .await
    }

    /// With the real coordinators.
    pub(crate) async fn lead_for_real(epoch: u64, stores: Stores) -> Self {
        let spawner = store_coordinators(
            Arc::clone(&stores) as Arc<dyn StoreFactory>,
            Arc::new(Leads(LeaderEpoch(epoch))),
            Clock::starting_at(Duration::from_secs(1_000_000)),
            Entropy::seeded(epoch),
            FaultPoints::default(),
        );
        let assign = Arc::new(assign_snapshot);
        Self::lead_with(settings(), epoch, stores, Arc::default(), spawner, assign).await
    }

    async fn lead_with(
        settings: Settings,
        epoch: u64,
        stores: Stores,
        coordinators: Arc<Coordinators>,
        coordinator: CoordinatorSpawner,
        assign: Assign,
    ) -> Self {
        let ha = stores.at(&settings.cluster.ha_directory);
        let handle = JobManager::start(JobManagerOptions {
            settings,
            stores: Arc::clone(&stores) as Arc<dyn StoreFactory>,
            clock: Clock::starting_at(Duration::from_secs(1_000_000)),
            entropy: Entropy::seeded(epoch),
            epoch: LeaderEpoch(epoch),
            guard: Arc::new(StoreEpochs::new(ha, LeaderEpoch(epoch))),
            instance: InstanceId(u128::from(epoch)),
            coordinator,
            assign,
            faults: FaultPoints::default(),
        })
        .await
        .unwrap();
        Self {
            handle,
            coordinators,
            stores,
            task_managers: Vec::new(),
        }
    }

    /// Ends the JobManager in good order.
    pub(crate) async fn end(self) -> Left {
        self.handle.control().shutdown();
        assert_eq!(self.handle.join().await, JobManagerEnd::Shutdown);
        Left {
            coordinators: self.coordinators,
            stores: self.stores,
            task_managers: self.task_managers,
        }
    }

    /// The same processes come to this leader, with a slot each.
    pub(crate) fn welcome(&mut self, task_managers: &[FakeTaskManager]) {
        for tm in task_managers {
            let tm = tm.moved_to(self.handle.peer_events());
            tm.register(1);
            self.task_managers.push(tm);
        }
    }

    pub(crate) fn add(&mut self, slots: u32, behave: Behave) -> FakeTaskManager {
        let instance = 100 + self.task_managers.len() as u128;
        let task_manager = FakeTaskManager::new(self.handle.peer_events(), instance, behave);
        task_manager.register(slots);
        self.task_managers.push(task_manager.clone());
        task_manager
    }

    pub(crate) async fn submit(&self, graph: &JobGraph) {
        let answer = self
            .handle
            .request(ClientRequest::Submit(Box::new(graph.clone())))
            .await;
        assert_eq!(answer, Ok(ClientResponse::Submitted(graph.job)));
    }

    pub(crate) async fn request(&self, request: ClientRequest) -> Result<ClientResponse, RpcError> {
        self.handle.request(request).await
    }

    pub(crate) async fn inject(&self, injection: Injection) -> Result<String, RpcError> {
        let request = ClientRequest::InjectFault(Box::new(injection));
        match self.request(request).await? {
            ClientResponse::Injected { victim } => Ok(victim),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn status(&self, job: JobId) -> JobStatus {
        match self.request(ClientRequest::Status(job)).await.unwrap() {
            ClientResponse::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn until_state(&self, job: JobId, state: JobState) -> JobStatus {
        until(&format!("{state}"), async || {
            let status = self.status(job).await;
            (status.summary.state == state).then_some(status)
        })
        .await
    }

    /// Waits until the job runs with at least this many recoveries behind it.
    pub(crate) async fn until_recovered(&self, job: JobId, recoveries: usize) -> JobStatus {
        until(&format!("{recoveries} recoveries"), async || {
            let status = self.status(job).await;
            let is_there = status.summary.state == JobState::Running
                && status.recoveries.len() >= recoveries
                && status
                    .recoveries
                    .last()
                    .is_none_or(|last| last.phases.first_record_ms.is_some());
            is_there.then_some(status)
        })
        .await
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.coordinators.0.lock().unwrap().log.clone()
    }

    /// Every task that runs, with its TaskManager.
    pub(crate) fn running(&self) -> Vec<(FakeTaskManager, ExecutionAttemptId)> {
        self.task_managers
            .iter()
            .flat_map(|tm| {
                tm.running()
                    .into_iter()
                    .map(|attempt| (tm.clone(), attempt))
            })
            .collect()
    }
}

pub(crate) fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        cluster: ClusterSettings {
            cluster_id: "test".to_owned(),
            ha_directory: "memory://ha".to_owned(),
            lease_duration: second,
            renew_interval: second,
            registration_timeout: second,
            job_manager_grace: second,
            ask_timeout: second,
            is_chaos_enabled: true,
            ..Settings::default().cluster
        },
        job: job_settings(),
    }
}
