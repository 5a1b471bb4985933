//! Plays the control plane for one job in one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use perennial::api::{Arguments, Submission};
use perennial::exchange::{Exchange, ExchangeOptions};
use perennial::storage::Stores;
use perennial::task::{LocalTaskRunner, RunnerOptions, ThreadDriver};
use perennial_actors::checkpoint::{Header, RestorePlan, compose};
use perennial_actors::checkpoint_coordinator::RestoredSnapshot;
use perennial_actors::clock::Clock;
use perennial_actors::entropy::Entropy;
use perennial_actors::model::message::{CheckpointAck, CheckpointPlan, TaskOutcome};
use perennial_actors::model::*;
use perennial_actors::rpc::TcpTransport;
use perennial_actors::{
    DataPlane, DeclinedCheckpoint, StartedTask, TaskControl, TaskEvent, TaskRunner,
};
use perennial_config::{Settings, Sources};
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_secs(60);
/// How long a task may take to end.
const END_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Finished,
    Canceled,
    Failed(String),
}

pub(crate) struct Script {
    runtime: Runtime,
    runner: LocalTaskRunner,
    graph: Arc<JobGraph>,
    location: TaskManagerLocation,
    tasks: Vec<(ExecutionAttemptId, Option<StartedTask>)>,
    events: mpsc::Receiver<(ExecutionAttemptId, TaskEvent)>,
    sender: mpsc::Sender<(ExecutionAttemptId, TaskEvent)>,
    wave: u32,
    awaiting_final: usize,
    next: u64,
    manifests: BTreeMap<CheckpointId, Arc<Manifest>>,
    directory: tempfile::TempDir,
}

impl Script {
    pub(crate) fn new(
        job: &str,
        arguments: BTreeMap<String, String>,
        keys: &[(&str, &str)],
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let registry = perennial::jobs::registry();
        let loaded = Settings::load(&Sources::default()).unwrap();
        let submission = Submission {
            job: JobId(0xabcd << 100 | 5),
            build: BuildId("test".into()),
            start_from: None,
        };
        let graph = registry
            .graph(
                job,
                &Arguments::new(arguments),
                |set| {
                    let mut all = set.to_vec();
                    all.extend(keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
                    Ok(loaded.job(&all).unwrap().0)
                },
                submission,
            )
            .unwrap();
        let instance = InstanceId(1);
        let resource = ResourceId("tm".into());
        let exchange = runtime
            .block_on(Exchange::bind(ExchangeOptions {
                transport: Arc::new(TcpTransport),
                bind_address: "127.0.0.1:0",
                advertised: None,
                resource: resource.clone(),
                instance,
                secret: "",
                network_memory: 64 << 20,
                heartbeat: &loaded.settings.cluster.heartbeat,
                handle: runtime.handle().clone(),
            }))
            .unwrap();
        let clock = Clock::system();
        let runner = LocalTaskRunner::new(RunnerOptions {
            registry,
            build: BuildId("test".into()),
            instance,
            exchange: exchange.clone(),
            stores: Arc::new(Stores::new(loaded.settings.cluster.s3, Entropy::seeded(1))),
            driver: Arc::new(ThreadDriver::new(clock)),
            handle: runtime.handle().clone(),
            clock,
            log_bytes_max: 256 << 20,
            faults: perennial_actors::fault::FaultPoints::default(),
        });
        let location = TaskManagerLocation {
            resource,
            instance,
            data_address: exchange.address(),
        };
        let (sender, events) = mpsc::channel();
        Self {
            runtime,
            runner,
            graph: Arc::new(graph),
            location,
            tasks: Vec::new(),
            events,
            sender,
            wave: 0,
            awaiting_final: 0,
            next: 1,
            manifests: BTreeMap::new(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn uri(&self) -> String {
        format!("file://{}", self.directory.path().display())
    }

    fn attempt(&self, vertex: VertexId, subtask: u32) -> ExecutionAttemptId {
        ExecutionAttemptId {
            job: self.graph.job,
            vertex,
            subtask: SubtaskIndex(subtask),
            epoch: LeaderEpoch(1),
            attempt: Attempt(self.wave),
        }
    }

    fn peers(&self, edge: &JobEdge, other: VertexId, subtask: u32) -> EdgeChannels {
        let all = 0..self.graph.vertices[other.0 as usize].parallelism;
        let peers = all
            .filter(|i| edge.exchange != Exchange_::Forward || *i == subtask)
            .map(|i| ChannelPeer {
                attempt: self.attempt(other, i),
                location: self.location.clone(),
            })
            .collect();
        EdgeChannels {
            edge: edge.id,
            peers,
        }
    }

    /// Starts all tasks, from a checkpoint if one is named (`true`: in place where possible); returns how each got its state.
    pub(crate) fn deploy(&mut self, from: Option<(CheckpointId, bool)>) -> Vec<RestoredHow> {
        self.wave += 1;
        self.awaiting_final = 0;
        let graph = self.graph.clone();
        let snapshot = from.map(|(checkpoint, _)| RestoredSnapshot {
            manifest: self.manifests[&checkpoint].clone(),
            directory: self.uri(),
            is_own_checkpoint: true,
        });
        let parallelism: Vec<u32> = graph.vertices.iter().map(|v| v.parallelism).collect();
        for vertex in &graph.vertices {
            for subtask in 0..vertex.parallelism {
                let attempt = self.attempt(vertex.id, subtask);
                let restore = snapshot.as_ref().map(|snapshot| {
                    let plan = RestorePlan::new(snapshot, &graph, &parallelism).unwrap();
                    let mut restore = plan.task(vertex.id, SubtaskIndex(subtask)).unwrap();
                    restore.may_inherit = from.unwrap().1;
                    restore
                });
                let deployment = TaskDeployment {
                    attempt,
                    parallelism: vertex.parallelism,
                    max_parallelism: vertex.max_parallelism,
                    inputs: graph
                        .inputs(vertex.id)
                        .map(|e| self.peers(e, e.source, subtask))
                        .collect(),
                    outputs: graph
                        .outputs(vertex.id)
                        .map(|e| self.peers(e, e.target, subtask))
                        .collect(),
                    restore,
                    checkpoint_directory: self.uri(),
                };
                let sender = Mutex::new(self.sender.clone());
                let events =
                    Arc::new(move |event| drop(sender.lock().unwrap().send((attempt, event))));
                let started = self.runner.start(graph.clone(), deployment, events);
                self.tasks.push((attempt, Some(started)));
            }
        }
        let mut how = Vec::new();
        while how.len() < self.tasks.len() {
            match self.event() {
                TaskEvent::Restored { how: one, .. } => how.push(one),
                TaskEvent::AwaitingFinal => self.awaiting_final += 1,
                TaskEvent::Running | TaskEvent::FirstRecord => {}
            }
        }
        how
    }

    fn event(&mut self) -> TaskEvent {
        match self.events.recv_timeout(DEADLINE) {
            Ok((attempt, event)) if attempt.attempt == Attempt(self.wave) => event,
            Ok(_) => self.event(),
            Err(_) => panic!("no event in time; ends so far: {:?}", self.ends()),
        }
    }

    /// How each task ended; `None` is one that still runs.
    fn ends(&mut self) -> Vec<(ExecutionAttemptId, Option<TaskOutcome>)> {
        let tasks = std::mem::take(&mut self.tasks);
        self.runtime.block_on(async {
            let mut ends = Vec::new();
            for (attempt, started) in tasks {
                let end = started.unwrap().end;
                let end = tokio::time::timeout(END_MAX, end).await.ok();
                ends.push((attempt, end));
            }
            ends
        })
    }

    fn control(&self, control: &TaskControl) {
        for (_, task) in &self.tasks {
            task.as_ref().unwrap().task.control(control.clone());
        }
    }

    fn snapshot(&mut self, base: Option<CheckpointId>, kind: SnapshotKind) -> CheckpointId {
        let checkpoint = CheckpointId(self.next);
        self.next += 1;
        let barrier = CheckpointBarrier {
            checkpoint,
            base,
            kind,
            timestamp_ms: 0,
        };
        let (reply, wait) = mpsc::channel::<Result<CheckpointAck, DeclinedCheckpoint>>();
        let reply = Mutex::new(reply);
        self.runner.plan_checkpoint(
            CheckpointPlan {
                job: self.graph.job,
                epoch: LeaderEpoch(1),
                barrier,
                attempts: self.tasks.iter().map(|(a, _)| *a).collect(),
                directory: self.uri(),
                inline_threshold: 100,
            },
            Box::new(move |result| drop(reply.lock().unwrap().send(result))),
        );
        self.control(&TaskControl::Trigger(barrier));
        let ack = match wait.recv_timeout(DEADLINE) {
            Ok(ack) => ack.unwrap(),
            Err(_) => panic!("no ack of {checkpoint}; ends: {:?}", self.ends()),
        };
        let header = Header {
            checkpoint,
            epoch: LeaderEpoch(1),
            kind,
            timestamp_ms: 0,
            duration_ms: 0,
        };
        let base = base.map(|b| self.manifests[&b].clone());
        let manifest = compose(
            header,
            &self.graph,
            &BTreeMap::new(),
            base.as_deref(),
            &[ack],
        )
        .unwrap();
        self.manifests.insert(checkpoint, Arc::new(manifest));
        self.control(&TaskControl::NotifyComplete(checkpoint));
        checkpoint
    }

    pub(crate) fn checkpoint(&mut self, base: Option<CheckpointId>) -> CheckpointId {
        self.snapshot(base, SnapshotKind::Checkpoint)
    }

    /// A task may miss its neighbour before it is told itself, which says nothing new to the control plane either.
    pub(crate) fn stop(&mut self) {
        self.control(&TaskControl::Cancel);
        let mut canceled = 0;
        for (attempt, end) in self.ends() {
            match end {
                Some(TaskOutcome::Canceled) => canceled += 1,
                Some(TaskOutcome::Failed(failure)) if failure.kind.is_symptom() => {}
                other => panic!("{attempt} ends with {other:?}"),
            }
        }
        assert!(canceled > 0, "the tasks had lost each other before");
    }

    /// Lets the job run to its end, with the final checkpoint.
    pub(crate) fn finish(&mut self) -> Ended {
        while self.awaiting_final < self.tasks.len() {
            if self.event() == TaskEvent::AwaitingFinal {
                self.awaiting_final += 1;
            }
        }
        self.snapshot(None, SnapshotKind::Final);
        for (attempt, end) in self.ends() {
            match end {
                Some(TaskOutcome::Finished) => {}
                Some(TaskOutcome::Canceled) => return Ended::Canceled,
                None => panic!("{attempt} still runs after its final checkpoint"),
                Some(TaskOutcome::Failed(failure)) => return Ended::Failed(failure.to_string()),
            }
        }
        Ended::Finished
    }
}

use perennial_actors::model::Exchange as Exchange_;
