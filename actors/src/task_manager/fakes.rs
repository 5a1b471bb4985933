//! A cluster of scripted parts: a JobManager that is only its listener, and tasks that do what the test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use perennial_config::*;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::*;
use crate::checkpoint::{Store, StoreError, StoreResult};
use crate::model::message::*;
use crate::model::*;
use crate::peer::*;
use crate::rpc::MemoryNetwork;
use crate::task_runner::*;

pub(super) const SECRET: &str = "between us";
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);
pub(super) const WINDOW: Duration = Duration::from_secs(1);
pub(super) const CANCELLATION: Duration = Duration::from_secs(30);
pub(super) const GRACE: Duration = Duration::from_secs(60);

pub(super) fn heartbeat() -> HeartbeatSettings {
    HeartbeatSettings {
        interval: INTERVAL,
        timeout: TIMEOUT,
        reconnect_window: WINDOW,
    }
}

pub(super) fn settings(host: &str) -> ClusterSettings {
    let second = Duration::from_secs(1);
    ClusterSettings {
        ha_directory: "memory://ha".to_owned(),
        lease_duration: second,
        renew_interval: second,
        rpc_address: "jm".to_owned(),
        rpc_port: 1,
        bind_host: "jm".to_owned(),
        task_manager_host: host.to_owned(),
        task_manager_bind_host: host.to_owned(),
        task_slots: 2,
        job_manager_grace: GRACE,
        cluster_secret: Secret(SECRET.to_owned()),
        heartbeat: heartbeat(),
        ask_timeout: second,
        is_chaos_enabled: true,
        ..Settings::default().cluster
    }
}

pub(super) fn build() -> BuildId {
    BuildId("build".to_owned())
}

pub(super) fn graph() -> JobGraph {
    let vertex = JobVertex {
        id: VertexId(0),
        name: "source".to_owned(),
        parallelism: 2,
        max_parallelism: 128,
        is_max_parallelism_set: false,
        operators: Vec::new(),
    };
    JobGraph {
        job: JobId(7),
        name: "job".to_owned(),
        registered: "job".to_owned(),
        arguments: BTreeMap::new(),
        build: build(),
        vertices: vec![vertex],
        edges: Vec::new(),
        settings: JobSettings {
            parallelism: 2,
            cancellation_timeout: CANCELLATION,
            ..JobSettings::default()
        },
        start_from: None,
    }
}

pub(super) fn attempt(subtask: u32, epoch: u64, attempt: u32) -> ExecutionAttemptId {
    ExecutionAttemptId {
        job: JobId(7),
        vertex: VertexId(0),
        subtask: SubtaskIndex(subtask),
        epoch: LeaderEpoch(epoch),
        attempt: Attempt(attempt),
    }
}

pub(super) fn deploy(attempts: &[ExecutionAttemptId]) -> ToTaskManager {
    ToTaskManager::Deploy {
        graph: Box::new(graph()),
        tasks: attempts
            .iter()
            .map(|attempt| TaskDeployment {
                attempt: *attempt,
                parallelism: 2,
                max_parallelism: 128,
                inputs: Vec::new(),
                outputs: Vec::new(),
                restore: None,
                checkpoint_directory: "memory://chk/7".to_owned(),
            })
            .collect(),
    }
}

pub(super) fn plan(epoch: u64, number: u64, attempts: &[ExecutionAttemptId]) -> CheckpointPlan {
    CheckpointPlan {
        job: JobId(7),
        epoch: LeaderEpoch(epoch),
        barrier: CheckpointBarrier {
            checkpoint: CheckpointId(number),
            base: None,
            kind: SnapshotKind::Checkpoint,
            timestamp_ms: 0,
        },
        attempts: attempts.to_vec(),
        directory: "memory://chk/7".to_owned(),
        inline_threshold: 0,
    }
}

#[derive(Default)]
struct Script {
    events: Option<TaskEvents>,
    end: Option<oneshot::Sender<TaskOutcome>>,
    controls: Vec<TaskControl>,
}

/// What tasks do at an order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manners {
    EndWhenCancelled,
    IgnoreCancel,
}

pub(super) struct FakeRunner {
    scripts: Mutex<BTreeMap<ExecutionAttemptId, Script>>,
    replies: Mutex<Vec<CheckpointReply>>,
    pub(super) log: Mutex<Vec<String>>,
    pub(super) manners: Mutex<Manners>,
}

struct FakeTask(Arc<FakeRunner>, ExecutionAttemptId);

pub(super) struct RunnerHandle(pub(super) Arc<FakeRunner>);

impl FakeRunner {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::default(),
            replies: Mutex::default(),
            log: Mutex::default(),
            manners: Mutex::new(Manners::EndWhenCancelled),
        })
    }

    pub(super) fn is_started(&self, attempt: ExecutionAttemptId) -> bool {
        self.scripts.lock().unwrap().contains_key(&attempt)
    }

    pub(super) fn controls(&self, attempt: ExecutionAttemptId) -> Vec<TaskControl> {
        self.scripts.lock().unwrap()[&attempt].controls.clone()
    }

    pub(super) fn event(&self, attempt: ExecutionAttemptId, event: TaskEvent) {
        let events = self.scripts.lock().unwrap()[&attempt]
            .events
            .clone()
            .unwrap();
        events(event);
    }

    pub(super) fn end(&self, attempt: ExecutionAttemptId, outcome: TaskOutcome) {
        let end = self
            .scripts
            .lock()
            .unwrap()
            .get_mut(&attempt)
            .unwrap()
            .end
            .take();
        end.unwrap().send(outcome).unwrap();
    }

    pub(super) fn reply(&self, result: Result<CheckpointAck, DeclinedCheckpoint>) {
        (self.replies.lock().unwrap().remove(0))(result);
    }
}

impl TaskRunner for RunnerHandle {
    fn build(&self) -> BuildId {
        build()
    }

    fn start(&self, _: Arc<JobGraph>, task: TaskDeployment, events: TaskEvents) -> StartedTask {
        let (sender, receiver) = oneshot::channel();
        let script = Script {
            events: Some(events),
            end: Some(sender),
            controls: Vec::new(),
        };
        let former = self.0.scripts.lock().unwrap().insert(task.attempt, script);
        assert!(former.is_none(), "{} was started twice", task.attempt);
        StartedTask {
            task: Box::new(FakeTask(Arc::clone(&self.0), task.attempt)),
            end: Box::pin(async move { receiver.await.unwrap() }),
        }
    }

    fn plan_checkpoint(&self, plan: CheckpointPlan, reply: CheckpointReply) {
        self.0
            .log
            .lock()
            .unwrap()
            .push(format!("plan {}", plan.barrier.checkpoint));
        self.0.replies.lock().unwrap().push(reply);
    }

    fn abort_checkpoint(&self, _: JobId, checkpoint: CheckpointId) {
        self.0
            .log
            .lock()
            .unwrap()
            .push(format!("abort {checkpoint}"));
    }

    fn release_job(&self, _: JobId, _: PreparedOutput, done: Box<dyn FnOnce() + Send>) {
        self.0.log.lock().unwrap().push("release".to_owned());
        done();
    }
}

impl RunningTask for FakeTask {
    fn control(&self, control: TaskControl) {
        let manners = *self.0.manners.lock().unwrap();
        if matches!(control, TaskControl::Trigger(_)) {
            self.0.log.lock().unwrap().push("trigger".to_owned());
        }
        let is_ending = control == TaskControl::Cancel && manners == Manners::EndWhenCancelled;
        let end = {
            let mut scripts = self.0.scripts.lock().unwrap();
            let script = scripts.get_mut(&self.1).unwrap();
            script.controls.push(control);
            if is_ending { script.end.take() } else { None }
        };
        if let Some(end) = end {
            end.send(TaskOutcome::Canceled).unwrap();
        }
    }

    fn counters(&self) -> TaskCounters {
        TaskCounters {
            records_in: 42,
            ..TaskCounters::default()
        }
    }
}

pub(super) struct FakeDataPlane(pub(super) Arc<Mutex<bool>>);

impl DataPlane for FakeDataPlane {
    fn address(&self) -> String {
        "tm:data".to_owned()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let is_closed = Arc::clone(&self.0);
        Box::pin(async move { *is_closed.lock().unwrap() = true })
    }
}

/// One object, or none.
#[derive(Clone, Default)]
pub(super) struct FakeStore(pub(super) Option<Bytes>);

impl StoreFactory for FakeStore {
    fn open(&self, _: &str) -> StoreResult<Arc<dyn Store>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Store for FakeStore {
    fn uri(&self) -> &'static str {
        "memory://chk"
    }
    fn create<'a>(
        &'a self,
        _: &'a str,
        _: Bytes,
    ) -> BoxFuture<'a, StoreResult<crate::checkpoint::Created>> {
        unreachable!("a TaskManager creates nothing")
    }
    fn put<'a>(&'a self, _: &'a str, _: Bytes) -> BoxFuture<'a, StoreResult<()>> {
        unreachable!("a TaskManager writes nothing here")
    }
    fn get<'a>(
        &'a self,
        key: &'a str,
        _: Option<std::ops::Range<u64>>,
    ) -> BoxFuture<'a, StoreResult<Bytes>> {
        let uri = key.to_owned();
        Box::pin(std::future::ready(
            self.0.clone().ok_or(StoreError::NotFound { uri }),
        ))
    }
    fn list<'a>(
        &'a self,
        _: &'a str,
    ) -> BoxFuture<'a, StoreResult<Vec<crate::checkpoint::ObjectMeta>>> {
        unreachable!("a TaskManager lists nothing")
    }
    fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        unreachable!("a TaskManager deletes nothing here")
    }
}

/// Where the leader is, as the test says.
pub(super) struct Leader(pub(super) Arc<Mutex<String>>);

impl LeaderDiscovery for Leader {
    fn address(&self) -> BoxFuture<'_, Result<String, String>> {
        let address = self.0.lock().unwrap().clone();
        Box::pin(std::future::ready(Ok(address)))
    }
}

/// A JobManager's listener and what it hears, without heartbeats.
pub(super) struct FakeJobManager {
    pub(super) listener: ListenerHandle,
    pub(super) events: mpsc::UnboundedReceiver<PeerEvent>,
}

impl FakeJobManager {
    pub(super) async fn start(
        transport: Arc<dyn Transport>,
        bind: &str,
        epoch: Option<u64>,
    ) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let instance = InstanceId(1000 + u128::from(epoch.unwrap_or(0)));
        let options = ListenerOptions {
            transport,
            bind: bind.to_owned(),
            secret: Secret(SECRET.to_owned()),
            welcome: Arc::new(move || Welcome {
                instance,
                name: ResourceId("jm".to_owned()),
                epoch: epoch.map(LeaderEpoch),
            }),
            heartbeat: heartbeat(),
            entropy: Entropy::seeded(1),
            events: Arc::new(move |event| {
                let is_heartbeat = matches!(
                    &event,
                    PeerEvent::Message { message: ToJobManager::Heartbeat { counters, .. }, .. }
                        if counters.is_empty()
                );
                if !is_heartbeat {
                    drop(sender.send(event));
                }
            }),
        };
        let listener = RpcListener::start(options).await.unwrap();
        Self { listener, events }
    }

    pub(super) async fn next(&mut self) -> PeerEvent {
        let event = tokio::time::timeout(Duration::from_secs(1000), self.events.recv());
        event.await.expect("an event comes").unwrap()
    }

    /// The next registration, past heartbeats.
    pub(super) async fn registered(&mut self) -> (Registration, PeerHandle) {
        loop {
            match self.next().await {
                PeerEvent::Message {
                    message: ToJobManager::Heartbeat { .. },
                    ..
                } => {}
                PeerEvent::Registered { registration, peer } => return (registration, peer),
                other => panic!("expected a registration, got {}", describe(&other)),
            }
        }
    }

    /// The next message that is not a heartbeat.
    pub(super) async fn message(&mut self) -> ToJobManager {
        loop {
            match self.next().await {
                PeerEvent::Message {
                    message: ToJobManager::Heartbeat { .. },
                    ..
                } => {}
                PeerEvent::Message { message, .. } => return message,
                other => panic!("expected a message, got {}", describe(&other)),
            }
        }
    }

    /// The next loss, past heartbeats.
    pub(super) async fn lost(&mut self) -> (InstanceId, String) {
        loop {
            match self.next().await {
                PeerEvent::Message {
                    message: ToJobManager::Heartbeat { .. },
                    ..
                } => {}
                PeerEvent::Lost { instance, cause } => return (instance, cause.to_string()),
                other => panic!("expected a loss, got {}", describe(&other)),
            }
        }
    }

    /// Nothing but heartbeats is heard for a while.
    pub(super) async fn quiet(&mut self, duration: Duration) {
        let until = Instant::now() + duration;
        while let Ok(event) = tokio::time::timeout_at(until, self.events.recv()).await {
            let event = event.unwrap();
            let is_heartbeat = matches!(
                &event,
                PeerEvent::Message {
                    message: ToJobManager::Heartbeat { .. },
                    ..
                }
            );
            assert!(is_heartbeat, "unexpected: {}", describe(&event));
        }
    }
}

pub(super) fn describe(event: &PeerEvent) -> String {
    match event {
        PeerEvent::Registered { registration, .. } => format!("{registration:?}"),
        PeerEvent::Message { message, .. } => format!("{message:?}"),
        PeerEvent::Lost { cause, .. } => format!("lost: {cause}"),
        PeerEvent::Request { request, .. } => format!("{request:?}"),
    }
}

/// A network, a JobManager of epoch 1 at `jm:1`, and a TaskManager on node `tm`.
pub(super) struct Cluster {
    pub(super) network: MemoryNetwork,
    pub(super) leader: Arc<Mutex<String>>,
    pub(super) job_manager: FakeJobManager,
    pub(super) runner: Arc<FakeRunner>,
    pub(super) is_closed: Arc<Mutex<bool>>,
    pub(super) task_manager: TaskManagerHandle,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut TaskManagerOptions)) -> Self {
        let network = MemoryNetwork::new();
        let transport = Arc::new(network.node("jm"));
        let job_manager = FakeJobManager::start(transport, "jm:1", Some(1)).await;
        let leader = Arc::new(Mutex::new(job_manager.listener.address().to_owned()));
        let (runner, is_closed) = (FakeRunner::new(), Arc::new(Mutex::new(false)));
        let mut options = options(&network, "tm", 1, &runner, &leader, &is_closed);
        change(&mut options);
        let task_manager = TaskManager::start(options).await.unwrap();
        Self {
            network,
            leader,
            job_manager,
            runner,
            is_closed,
            task_manager,
        }
    }

    /// Registered, with one task that runs.
    pub(super) async fn running(
        change: impl FnOnce(&mut TaskManagerOptions),
    ) -> (Self, PeerHandle) {
        let mut cluster = Self::start_with(change).await;
        let (_, peer) = cluster.job_manager.registered().await;
        (peer.send)(ToTaskManager::Registered {
            stop: Vec::new(),
            probe: None,
        });
        (peer.send)(deploy(&[attempt(0, 1, 1)]));
        cluster
            .until(|c| c.runner.is_started(attempt(0, 1, 1)))
            .await;
        (cluster, peer)
    }

    /// Waits for a condition that no message tells.
    pub(super) async fn until(&self, is_true: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(100);
        while !is_true(self) {
            assert!(Instant::now() < until, "the condition never came true");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(super) fn options(
    network: &MemoryNetwork,
    node: &str,
    instance: u128,
    runner: &Arc<FakeRunner>,
    leader: &Arc<Mutex<String>>,
    is_closed: &Arc<Mutex<bool>>,
) -> TaskManagerOptions {
    TaskManagerOptions {
        settings: settings(node),
        transport: Arc::new(network.node(node)),
        runner: Arc::new(RunnerHandle(Arc::clone(runner))),
        data_plane: Arc::new(FakeDataPlane(Arc::clone(is_closed))),
        stores: Arc::new(FakeStore::default()),
        clock: Clock::starting_at(Duration::ZERO),
        entropy: Entropy::seeded(2),
        resource: ResourceId("tm".to_owned()),
        instance: InstanceId(instance),
        leader: Arc::new(Leader(Arc::clone(leader))),
        faults: crate::fault::FaultPoints::default(),
        abandon_stuck_tasks: false,
    }
}
