//! A whole control plane under a paused clock: the real JobManager and JobMasters, scripted TaskManagers, coordinators and a store in memory.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::job_settings;
use crate::checkpoint::testing::{MemoryStores, operator_ack};
use crate::checkpoint::{EpochGuard, StoreFactory, StoreResult};
use crate::checkpoint_coordinator::{
    CoordinatorEvent, CoordinatorEvents, CoordinatorMessage, RestoreChoice, RestoredSnapshot,
};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::failover::SubtaskId;
use crate::fault::{FaultPoints, Injection};
use crate::job_manager::{
    JobManager, JobManagerHandle, JobManagerOptions, assign_snapshot, store_coordinators,
};
use crate::job_master::{
    Assign, AssignedState, CoordinatorContext, CoordinatorSpawner, StartedCoordinator,
};
use crate::model::message::{
    CheckpointAck, CheckpointPlan, ClientRequest, ClientResponse, Registration, RpcError,
    SubtaskAck, TaskOutcome, ToJobManager, ToTaskManager,
};
use crate::model::*;
use crate::peer::{PeerEvent, PeerEvents, PeerHandle};

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

/// The coordinators of all jobs, as one script.
#[derive(Default)]
pub(crate) struct Coordinators(pub(crate) Mutex<Script>);

#[derive(Default)]
pub(crate) struct Script {
    /// What was asked, in short.
    pub(crate) log: Vec<String>,
    /// The newest completed checkpoint; the ladder is all below.
    pub(crate) newest: u64,
    /// Answers of the next choices.
    pub(crate) choice_errors: Vec<FailureKind>,
    /// Failures of the next starts.
    pub(crate) start_errors: Vec<FailureKind>,
    /// Keep savepoints pending.
    pub(crate) holds_savepoints: bool,
    pub(crate) pending: Vec<oneshot::Sender<Result<String, String>>>,
    /// Answered with the final checkpoint.
    drained: Vec<oneshot::Sender<Result<String, String>>>,
    pub(crate) events: Option<CoordinatorEvents>,
    participants: Vec<(InstanceId, Vec<ExecutionAttemptId>)>,
    damaged: BTreeSet<u64>,
    pub(crate) terminated: Option<(JobState, Option<String>)>,
}

impl Coordinators {
    pub(crate) fn emit(&self, event: CoordinatorEvent) {
        let events = self.0.lock().unwrap().events.clone().unwrap();
        events(event);
    }

    /// Triggers, completes and tells.
    fn complete(&self, job: JobId, kind: SnapshotKind) {
        let (events, plans, checkpoint) = {
            let mut script = self.0.lock().unwrap();
            script.newest += 1;
            let checkpoint = CheckpointId(script.newest);
            let plans: Vec<_> = script
                .participants
                .iter()
                .map(|(instance, attempts)| {
                    let plan = CheckpointPlan {
                        job,
                        epoch: LeaderEpoch(1),
                        barrier: CheckpointBarrier {
                            checkpoint,
                            base: None,
                            kind,
                            timestamp_ms: 0,
                        },
                        attempts: attempts.clone(),
                        directory: String::new(),
                        inline_threshold: 0,
                    };
                    (*instance, plan)
                })
                .collect();
            (script.events.clone().unwrap(), plans, checkpoint)
        };
        events(CoordinatorEvent::Trigger(plans));
        events(CoordinatorEvent::Completed { checkpoint, kind });
    }

    fn receive(&self, job: JobId, message: CoordinatorMessage) {
        let log = |text: String| self.0.lock().unwrap().log.push(text);
        match message {
            CoordinatorMessage::TasksRunning(participants) => {
                let mut count = 0;
                for (_, attempts) in &participants {
                    count += attempts.len();
                }
                log(format!("running {count}"));
                self.0.lock().unwrap().participants = participants;
            }
            CoordinatorMessage::Suspend { .. } => {
                log("suspend".to_owned());
                let pending = std::mem::take(&mut self.0.lock().unwrap().pending);
                for reply in pending {
                    let _ = reply.send(Err("suspended".to_owned()));
                }
            }
            CoordinatorMessage::Ack { .. } => log("ack".to_owned()),
            CoordinatorMessage::Declined { .. } => log("declined".to_owned()),
            CoordinatorMessage::AllAwaitingFinal => {
                log("final".to_owned());
                for reply in std::mem::take(&mut self.0.lock().unwrap().drained) {
                    let _ = reply.send(Ok("memory://savepoint".to_owned()));
                }
                self.complete(job, SnapshotKind::Final);
            }
            CoordinatorMessage::Savepoint { kind, reply, .. } => {
                log(format!("savepoint {kind:?}"));
                if self.0.lock().unwrap().holds_savepoints {
                    return self.0.lock().unwrap().pending.push(reply);
                }
                if kind == SnapshotKind::Final {
                    return self.0.lock().unwrap().drained.push(reply);
                }
                let _ = reply.send(Ok("memory://savepoint".to_owned()));
                self.complete(job, kind);
            }
            CoordinatorMessage::ChooseRestore { damaged, reply } => {
                let mut script = self.0.lock().unwrap();
                let ids: Vec<_> = damaged.iter().map(|(id, _)| id.0).collect();
                script.log.push(format!("choose {ids:?}"));
                script.damaged.extend(&ids);
                if !script.choice_errors.is_empty() {
                    let error = script.choice_errors.remove(0);
                    let _ = reply.send(Err(error));
                    return;
                }
                let chosen = (1..=script.newest)
                    .rev()
                    .find(|id| !script.damaged.contains(id));
                let skipped = ids.iter().map(|id| format!("chk-{id} damaged")).collect();
                let _ = reply.send(Ok(RestoreChoice {
                    snapshot: chosen.map(|id| RestoredSnapshot {
                        manifest: Arc::new(manifest(job, id)),
                        directory: "memory://checkpoints".to_owned(),
                        is_own_checkpoint: true,
                    }),
                    skipped,
                }));
            }
            CoordinatorMessage::LastCompleted(reply) => {
                let newest = self.0.lock().unwrap().newest;
                let _ = reply.send((newest > 0).then_some(CheckpointId(newest)));
            }
            CoordinatorMessage::Terminate {
                state,
                message,
                reply,
            } => {
                log(format!("terminate {state}"));
                self.0.lock().unwrap().terminated = Some((state, message));
                let _ = reply.send(());
            }
            CoordinatorMessage::Status(reply) => {
                let _ = reply.send(Vec::new());
            }
            CoordinatorMessage::Fault(_) => log("fault".to_owned()),
        }
    }
}

fn manifest(job: JobId, checkpoint: u64) -> Manifest {
    Manifest {
        job,
        job_name: String::new(),
        checkpoint: CheckpointId(checkpoint),
        epoch: LeaderEpoch(1),
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 0,
        duration_ms: 0,
        operators: Vec::new(),
        objects: Vec::new(),
    }
}

fn assign(graph: &JobGraph, snapshot: &RestoredSnapshot) -> Result<AssignedState, FailureKind> {
    let mut assigned = AssignedState::default();
    for vertex in &graph.vertices {
        assigned.max_parallelism.push(vertex.max_parallelism);
        for i in 0..vertex.parallelism {
            let id = SubtaskId {
                vertex: vertex.id,
                subtask: SubtaskIndex(i),
            };
            assigned.tasks.insert(
                id,
                TaskRestore {
                    checkpoint: snapshot.manifest.checkpoint,
                    may_inherit: false,
                    directory: snapshot.directory.clone(),
                    operators: Vec::new(),
                    objects: Vec::new(),
                    allow_non_restored_state: false,
                },
            );
        }
    }
    Ok(assigned)
}

/// What a task of a fake TaskManager does after its deployment.
pub(crate) type Behave = Arc<dyn Fn(&TaskDeployment) -> Behaviour + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Runs until stopped.
    Run,
    /// Runs, then all input is processed.
    RunToTheEnd,
    /// Restores and fails, with or without having run.
    FailRunning(FailureKind),
    FailRestoring(FailureKind),
    /// Says nothing.
    Hang,
}

/// A TaskManager that answers by script, 1 ms later.
#[derive(Clone)]
pub(crate) struct FakeTaskManager {
    pub(crate) location: TaskManagerLocation,
    events: PeerEvents,
    pub(crate) state: Arc<Mutex<FakeState>>,
}

pub(crate) struct FakeState {
    pub(crate) received: Vec<ToTaskManager>,
    pub(crate) deployments: Vec<TaskDeployment>,
    pub(crate) running: BTreeSet<ExecutionAttemptId>,
    finish_on: Option<CheckpointId>,
    graph: Option<JobGraph>,
    behave: Behave,
    /// Does not react to `Stop`.
    pub(crate) is_stuck: bool,
    /// It does not answer when a job is released.
    pub(crate) keeps_jobs: bool,
    /// Receives nothing, as on a cut link.
    pub(crate) is_deaf: bool,
    pub(crate) closed: Option<String>,
}

impl FakeTaskManager {
    pub(crate) fn new(events: PeerEvents, instance: u128, behave: Behave) -> Self {
        Self {
            location: TaskManagerLocation {
                resource: ResourceId(format!("tm-{instance}")),
                instance: InstanceId(instance),
                data_address: String::new(),
            },
            events,
            state: Arc::new(Mutex::new(FakeState {
                received: Vec::new(),
                deployments: Vec::new(),
                running: BTreeSet::new(),
                finish_on: None,
                graph: None,
                behave,
                is_stuck: false,
                keeps_jobs: false,
                is_deaf: false,
                closed: None,
            })),
        }
    }

    pub(crate) fn register(&self, slots: u32) {
        let running = self.state.lock().unwrap().running.iter().copied().collect();
        let (this, closing) = (self.clone(), self.clone());
        (self.events)(PeerEvent::Registered {
            registration: Registration {
                location: self.location.clone(),
                slots,
                build: BuildId("build".to_owned()),
                running,
                is_chaos_enabled: true,
            },
            peer: PeerHandle {
                send: Arc::new(move |message| this.receive(message)),
                close: Arc::new(move |why| closing.state.lock().unwrap().closed = Some(why)),
                fault: Arc::new(|_| {}),
            },
        });
    }

    /// The same process on another leader.
    pub(crate) fn moved_to(&self, events: PeerEvents) -> Self {
        Self {
            events,
            ..self.clone()
        }
    }

    pub(crate) fn lose(&self) {
        self.state.lock().unwrap().is_deaf = true;
        (self.events)(PeerEvent::Lost {
            instance: self.location.instance,
            cause: FailureKind::TaskManagerLost {
                resource: self.location.resource.clone(),
                instance: self.location.instance,
                message: "connection refused".to_owned(),
            },
        });
    }

    pub(crate) fn report(&self, message: ToJobManager) {
        if self.state.lock().unwrap().is_deaf {
            return;
        }
        (self.events)(PeerEvent::Message {
            instance: self.location.instance,
            message,
        });
    }

    pub(crate) fn end(&self, attempt: ExecutionAttemptId, outcome: TaskOutcome) {
        self.state.lock().unwrap().running.remove(&attempt);
        self.report(ToJobManager::TaskEnded { attempt, outcome });
    }

    pub(crate) fn fail(&self, attempt: ExecutionAttemptId, kind: FailureKind) {
        let failure = TaskFailure::of_attempt(attempt, kind);
        self.end(attempt, TaskOutcome::Failed(Box::new(failure)));
    }

    pub(crate) fn running(&self) -> Vec<ExecutionAttemptId> {
        self.state.lock().unwrap().running.iter().copied().collect()
    }

    /// Deployments of one wave.
    pub(crate) fn deployed(&self, wave: u32) -> Vec<TaskDeployment> {
        let mut deployments = self.state.lock().unwrap().deployments.clone();
        deployments.retain(|d| d.attempt.attempt == Attempt(wave));
        deployments
    }

    pub(crate) fn has_received(&self, wanted: impl Fn(&ToTaskManager) -> bool) -> bool {
        self.state.lock().unwrap().received.iter().any(wanted)
    }

    fn receive(&self, message: ToTaskManager) {
        let mut state = self.state.lock().unwrap();
        if state.is_deaf {
            return;
        }
        state.received.push(message.clone());
        match message {
            ToTaskManager::Deploy { graph, tasks } => {
                state.graph = Some(*graph);
                for task in tasks {
                    state.deployments.push(task.clone());
                    state.running.insert(task.attempt);
                    let behaviour = (state.behave)(&task);
                    let this = self.clone();
                    tokio::spawn(async move { this.play(task, behaviour).await });
                }
            }
            ToTaskManager::Stop { attempts } | ToTaskManager::Registered { stop: attempts, .. } => {
                if state.is_stuck {
                    return;
                }
                for attempt in attempts {
                    if state.running.contains(&attempt) {
                        let this = self.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            this.end(attempt, TaskOutcome::Canceled);
                        });
                    }
                }
            }
            ToTaskManager::TriggerCheckpoint(plan) => {
                match plan.barrier.kind {
                    SnapshotKind::Final | SnapshotKind::StopWithSavepoint => {
                        state.finish_on = Some(plan.barrier.checkpoint);
                    }
                    SnapshotKind::Checkpoint | SnapshotKind::Savepoint => {}
                }
                let (this, graph) = (self.clone(), state.graph.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let subtasks = plan
                        .attempts
                        .iter()
                        .map(|attempt| SubtaskAck {
                            attempt: *attempt,
                            operators: graph
                                .iter()
                                .flat_map(|g| &g.vertices[attempt.vertex.0 as usize].operators)
                                .map(|operator| {
                                    operator_ack(&operator.uid, attempt.subtask.0, None)
                                })
                                .collect(),
                            longest_pause_us: 0,
                            alignment_us: 0,
                        })
                        .collect();
                    this.report(ToJobManager::CheckpointAck(Box::new(CheckpointAck {
                        job: plan.job,
                        checkpoint: plan.barrier.checkpoint,
                        objects: Vec::new(),
                        subtasks,
                    })));
                });
            }
            ToTaskManager::NotifyCheckpointComplete { checkpoint, .. } => {
                if state.finish_on == Some(checkpoint) && !state.is_stuck {
                    for attempt in state.running.clone() {
                        let this = self.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            this.end(attempt, TaskOutcome::Finished);
                        });
                    }
                }
            }
            ToTaskManager::Drain { .. } => {
                for attempt in state.running.clone() {
                    let this = self.clone();
                    tokio::spawn(async move {
                        this.report(ToJobManager::TaskAwaitingFinal { attempt });
                    });
                }
            }
            ToTaskManager::ReleaseJob { job, .. } => {
                if !state.keeps_jobs {
                    let this = self.clone();
                    tokio::spawn(async move { this.report(ToJobManager::JobReleased { job }) });
                }
            }
            ToTaskManager::NotifyCheckpointAborted { .. }
            | ToTaskManager::HeartbeatRequest { .. }
            | ToTaskManager::InjectFault(_) => {}
        }
    }

    async fn play(&self, task: TaskDeployment, behaviour: Behaviour) {
        let attempt = task.attempt;
        tokio::time::sleep(Duration::from_millis(1)).await;
        if !self.state.lock().unwrap().running.contains(&attempt) {
            return;
        }
        let how = match &task.restore {
            None => RestoredHow::Empty,
            Some(restore) if restore.may_inherit => RestoredHow::InPlace,
            Some(_) => RestoredHow::Loaded,
        };
        let restored = ToJobManager::TaskRestored {
            attempt,
            how,
            micros: 1,
        };
        match behaviour {
            Behaviour::Hang => {}
            Behaviour::FailRestoring(kind) => self.fail(attempt, kind),
            Behaviour::FailRunning(kind) => {
                self.report(restored);
                self.report(ToJobManager::TaskRunning { attempt });
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.fail(attempt, kind);
            }
            Behaviour::Run | Behaviour::RunToTheEnd => {
                self.report(restored);
                self.report(ToJobManager::TaskRunning { attempt });
                self.report(ToJobManager::TaskFirstRecord { attempt });
                if matches!(behaviour, Behaviour::RunToTheEnd) {
                    self.report(ToJobManager::TaskAwaitingFinal { attempt });
                }
            }
        }
    }
}

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
        settings: perennial_config::Settings,
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
        settings: perennial_config::Settings,
        epoch: u64,
        stores: Stores,
        coordinators: Arc<Coordinators>,
        coordinator: CoordinatorSpawner,
        assign: Assign,
    ) -> Self {
        let handle = JobManager::start(JobManagerOptions {
            settings,
            stores: Arc::clone(&stores) as Arc<dyn StoreFactory>,
            clock: Clock::starting_at(Duration::from_secs(1_000_000)),
            entropy: Entropy::seeded(epoch),
            epoch: LeaderEpoch(epoch),
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

pub(crate) fn running() -> Behave {
    Arc::new(|_| Behaviour::Run)
}

pub(crate) fn io(message: &str) -> FailureKind {
    FailureKind::Io {
        message: message.to_owned(),
    }
}

pub(crate) fn settings() -> perennial_config::Settings {
    use perennial_config::{
        ClusterSettings, HeartbeatSettings, HighAvailability, S3Settings, Secret, Settings,
    };
    let second = Duration::from_secs(1);
    Settings {
        cluster: ClusterSettings {
            cluster_id: "test".to_owned(),
            high_availability: HighAvailability::None,
            ha_directory: "memory://ha".to_owned(),
            lease_duration: second,
            renew_interval: second,
            rpc_address: String::new(),
            rpc_port: 0,
            rpc_bind_port: None,
            bind_host: String::new(),
            task_manager_host: String::new(),
            task_manager_bind_host: String::new(),
            data_port: 0,
            data_bind_port: None,
            resource_id: None,
            task_slots: 1,
            registration_timeout: second,
            job_manager_grace: second,
            managed_memory: 0,
            network_memory: 0,
            cluster_secret: Secret(String::new()),
            heartbeat: HeartbeatSettings {
                interval: second,
                timeout: 3 * second,
                reconnect_window: second,
            },
            ask_timeout: second,
            s3: S3Settings {
                endpoint: None,
                region: None,
                is_path_style: true,
                access_key: None,
                secret_key: None,
                session_token: None,
                connect_timeout: second,
                read_timeout: second,
                operation_timeout: second,
                max_retries: 0,
                part_size: 0,
            },
            is_chaos_enabled: true,
        },
        job: job_settings(),
    }
}
