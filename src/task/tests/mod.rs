//! Tests of whole chains, stepped by hand: no thread, no cluster, time as the test says.

mod ending;
mod event_time;
mod position;
mod step;
mod waker;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_actors::clock::{Clock, Instant};
use perennial_actors::fault::FaultPoints;
use perennial_actors::model::{
    Attempt, ChannelPeer, CheckpointBarrier, CheckpointId, EdgeChannels, EdgeId,
    ExecutionAttemptId, FailureKind, InstanceId, JobId, KeyGroupRange, LeaderEpoch, OperatorId,
    ResourceId, SnapshotKind, SubtaskIndex, TaskFailure, TaskManagerLocation, VertexId,
};
use perennial_actors::rpc::MemoryNetwork;
use perennial_actors::{DataPlane, TaskControl};
use perennial_config::{Settings, Sources};
use tokio::runtime::Handle;

use super::control::{ControlQueue, SharedCounters};
use super::driver::catch;
use super::snapshot::{SnapshotSink, SubtaskSnapshot};
use super::stream_task::{Step, StreamTask, TaskServices, TaskState};
use super::{Blocking, InputHead};
use crate::batch::{Batch, Record, StreamElement, Timestamp};
use crate::connector::{Source, SourceReader, SourceSplit, SourceStatus, SubtaskContext};
use crate::error::FunctionResult;
use crate::exchange::{Exchange, ExchangeOptions, InputGate, OutputChannel, SerdeCodec, TaskWaker};
use crate::operator::{
    Chained, Head, Node, Operator, Output, PartitionWriter, Partitioner, Place, RestoredOperator,
    SideOutputs, SinkNode, SourceHead, StartContext, TaskFaults, TaskInfo,
};

/// More steps than any test needs.
const STEPS_MAX: usize = 1_000_000;

/// What tasks delivered.
#[derive(Default)]
pub(super) struct Snapshots(Mutex<Vec<SubtaskSnapshot>>);

impl Snapshots {
    pub(super) fn taken(&self) -> Vec<u64> {
        let delivered = self.0.lock().unwrap();
        delivered.iter().map(|s| s.barrier.checkpoint.0).collect()
    }
}

impl SnapshotSink for Snapshots {
    fn deliver(&self, snapshot: SubtaskSnapshot) {
        self.0.lock().unwrap().push(snapshot);
    }
    fn decline(&self, _: ExecutionAttemptId, _: CheckpointId, _: String) {}
}

pub(super) fn attempt(vertex: u32, subtask: u32) -> ExecutionAttemptId {
    ExecutionAttemptId {
        job: JobId(7),
        vertex: VertexId(vertex),
        subtask: SubtaskIndex(subtask),
        epoch: LeaderEpoch(1),
        attempt: Attempt(1),
    }
}

pub(super) fn barrier(checkpoint: u64) -> CheckpointBarrier {
    CheckpointBarrier {
        checkpoint: CheckpointId(checkpoint),
        base: None,
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 0,
    }
}

/// A task under test.
pub(super) struct Bench {
    pub(super) task: StreamTask,
    pub(super) state: TaskState,
    pub(super) now: Instant,
    pub(super) control: Arc<ControlQueue>,
    pub(super) snapshots: Arc<Snapshots>,
    /// What its operators have left of it.
    pub(super) restored: Vec<RestoredOperator>,
}

impl Bench {
    /// An open task. Its operators are called `op0`, `op1`, …
    pub(super) fn new(head: Box<dyn Head>, operators: usize) -> Self {
        let restored = (0..operators).map(|_| RestoredOperator::default());
        Self::restored(head, restored.collect())
    }

    pub(super) fn restored(head: Box<dyn Head>, mut restored: Vec<RestoredOperator>) -> Self {
        let operators = restored.len();
        let info = Arc::new(TaskInfo {
            attempt: attempt(1, 0),
            job_name: "bench".into(),
            parallelism: 1,
            max_parallelism: 128,
            key_groups: KeyGroupRange::of(SubtaskIndex(0), 1, 128),
            operators: (0..operators)
                .map(|i| (OperatorId::from_uid(&format!("op{i}")), format!("op{i}")))
                .collect(),
            names: (0..operators).map(|i| format!("op{i}")).collect(),
            buffer_timeout: Duration::from_millis(100),
            log_bytes_max: 1 << 20,
        });
        let control = Arc::new(ControlQueue::default());
        let snapshots = Arc::new(Snapshots::default());
        let clock = Clock::starting_at(Duration::from_secs(1_700_000_000));
        let now = clock.now();
        let mut task = StreamTask::new(
            head,
            TaskServices {
                info: info.clone(),
                vertex_name: "bench".into(),
                control: control.clone(),
                counters: Arc::new(SharedCounters::default()),
                events: Arc::new(|_| {}),
                snapshots: snapshots.clone(),
                clock,
                faults: TaskFaults::new(FaultPoints::default(), info.attempt),
                is_source: true,
            },
        );
        let mut state = TaskState {
            keyed: (0..operators).map(|_| None).collect(),
            place: Place::default(),
        };
        let mut cx = StartContext {
            keyed: &mut state.keyed,
            place: &mut state.place,
            restored: &mut restored,
            task: &info,
            now,
        };
        task.open(&mut cx).unwrap();
        task.start();
        Self {
            task,
            state,
            now,
            control,
            snapshots,
            restored,
        }
    }

    pub(super) fn step(&mut self) -> Step {
        self.task.step(&mut self.state, self.now)
    }

    /// Steps until there is nothing to do, or the task ends.
    pub(super) fn run(&mut self) -> Step {
        for _ in 0..STEPS_MAX {
            match self.step() {
                Step::Progress => {}
                end => return end,
            }
        }
        panic!("the task does not come to rest");
    }

    /// Runs into a failure, by an error or a panic.
    pub(super) fn fail(&mut self) -> TaskFailure {
        match catch(|| self.run()) {
            Ok(Step::Failed(failure)) => *failure,
            Ok(other) => panic!("it did not fail: {other:?}"),
            Err(kind) => {
                assert!(matches!(kind, FailureKind::Panic { .. }), "{kind}");
                self.task.failure(&self.state, kind)
            }
        }
    }

    /// Runs into a failure: its operator and position.
    pub(super) fn place(&mut self) -> (String, String) {
        let failure = self.fail();
        (
            failure.operator.unwrap_or_default(),
            failure.position.unwrap_or_default(),
        )
    }

    pub(super) fn order(&self, order: TaskControl) {
        self.control.push(order);
    }
}

pub(super) fn node<O: Operator>(
    index: usize,
    operator: O,
    targets: Vec<Box<dyn Chained<O::Out>>>,
) -> Box<dyn Chained<O::In>> {
    Box::new(Node::new(
        index,
        operator,
        Output::new(targets),
        SideOutputs::default(),
    ))
}

pub(super) fn sink<T: Record>(
    index: usize,
    sink: impl crate::connector::Sink<T>,
) -> Box<dyn Chained<T>> {
    Box::new(SinkNode::new(index, Arc::new(sink)))
}

pub(super) fn source<S: crate::connector::Source>(
    source: S,
    targets: Vec<Box<dyn Chained<S::Item>>>,
) -> Box<dyn Head> {
    Box::new(SourceHead::new(0, Arc::new(source), Output::new(targets)))
}

/// Nobody sleeps here.
struct Deaf;

impl TaskWaker for Deaf {
    fn wake(&self) {}
}

/// Channels within one process: from vertex 0 to the task under test (vertex 1), and from that to vertex 2.
pub(super) struct Channels(Arc<Exchange>);

impl Channels {
    pub(super) async fn new() -> Self {
        let transport = Arc::new(MemoryNetwork::new().node("here"));
        let loaded = Settings::load(&Sources::default()).unwrap();
        let exchange = Exchange::bind(ExchangeOptions {
            transport,
            bind_address: "here:1",
            advertised: None,
            resource: ResourceId("here".into()),
            instance: InstanceId(1),
            secret: "secret",
            network_memory: 16 << 20,
            heartbeat: &loaded.settings.cluster.heartbeat,
            handle: Handle::current(),
        });
        Self(exchange.await.unwrap())
    }

    fn edge(&self, id: u32, vertex: u32, subtasks: std::ops::Range<u32>) -> EdgeChannels {
        let location = TaskManagerLocation {
            resource: ResourceId("here".into()),
            instance: InstanceId(1),
            data_address: self.0.address(),
        };
        EdgeChannels {
            edge: EdgeId(id),
            peers: subtasks
                .map(|subtask| ChannelPeer {
                    attempt: attempt(vertex, subtask),
                    location: location.clone(),
                })
                .collect(),
        }
    }

    /// The ends of others, and the gate of the task under test.
    pub(super) fn inputs<T: Record>(&self, count: u32) -> (Vec<OutputChannel<T>>, InputGate<T>) {
        let outputs = (0..count)
            .map(|subtask| {
                self.0
                    .open_output(
                        attempt(0, subtask),
                        &self.edge(0, 1, 0..1),
                        Arc::new(SerdeCodec::new()),
                        Arc::new(Deaf),
                    )
                    .pop()
                    .unwrap()
            })
            .collect();
        let gate = self.0.open_input(
            attempt(1, 0),
            &[self.edge(0, 0, 0..count)],
            Arc::new(SerdeCodec::new()),
            Arc::new(Deaf),
        );
        (outputs, gate)
    }

    /// A writer of the task under test, and the gates of others.
    pub(super) fn outputs<T: Record>(
        &self,
        count: u32,
        partitioner: impl Partitioner<T> + 'static,
    ) -> (Box<dyn Chained<T>>, Vec<InputGate<T>>) {
        let outputs = self.0.open_output(
            attempt(1, 0),
            &self.edge(1, 2, 0..count),
            Arc::new(SerdeCodec::new()),
            Arc::new(Deaf),
        );
        let gates = (0..count)
            .map(|subtask| {
                let mut gate = self.0.open_input(
                    attempt(2, subtask),
                    &[self.edge(1, 1, 0..1)],
                    Arc::new(SerdeCodec::new()),
                    Arc::new(Deaf),
                );
                gate.start();
                gate
            })
            .collect();
        let timeout = Duration::from_millis(100);
        let writer = PartitionWriter::new(Box::new(partitioner), outputs, timeout);
        (Box::new(writer), gates)
    }
}

pub(super) fn input<T: Record>(gate: InputGate<T>, chain: Box<dyn Chained<T>>) -> Box<dyn Head> {
    Box::new(InputHead::new(gate, chain, Blocking::Aligned))
}

/// Has one reader, and nothing to remember.
pub(super) struct OneReader<R>(pub(super) R);

impl<R: SourceReader<u64> + Clone + Sync + 'static> Source for OneReader<R> {
    type Item = u64;
    fn splits(&self, _: u32) -> FunctionResult<Vec<SourceSplit>> {
        Ok(Vec::new())
    }
    fn reader(
        &self,
        _: &SubtaskContext,
        _: Vec<SourceSplit>,
    ) -> FunctionResult<Box<dyn SourceReader<u64>>> {
        Ok(Box::new(self.0.clone()))
    }
}

/// Emits what it is given, then waits for more.
#[derive(Clone)]
pub(super) struct Fed(pub(super) Arc<Mutex<Vec<u64>>>);

impl SourceReader<u64> for Fed {
    fn poll(
        &mut self,
        out: &mut Batch<u64>,
        max: usize,
        _: Instant,
    ) -> FunctionResult<SourceStatus> {
        let mut fed = self.0.lock().unwrap();
        let count = fed.len().min(max);
        for n in fed.drain(..count) {
            out.push(n, Some(n as i64));
        }
        Ok(if out.is_empty() {
            SourceStatus::Waiting { until: None }
        } else {
            SourceStatus::More
        })
    }
    fn snapshot(&self) -> Vec<SourceSplit> {
        Vec::new()
    }
    fn position(&self, _: usize) -> Option<(String, u64)> {
        None
    }
}

pub(super) fn take<T: Record>(gate: &mut InputGate<T>) -> Vec<StreamElement<T>> {
    std::iter::from_fn(|| gate.poll().unwrap().map(|(_, element)| element)).collect()
}

pub(super) fn records<T: Record>(gate: &mut InputGate<T>) -> Vec<T> {
    take(gate)
        .into_iter()
        .flat_map(|element| match element {
            StreamElement::Batch(batch) => batch.values,
            _ => Vec::new(),
        })
        .collect()
}

pub(super) fn timed(values: &[u64], timestamps: &[Timestamp]) -> StreamElement<u64> {
    StreamElement::Batch(Batch {
        values: values.to_vec(),
        timestamps: timestamps.to_vec(),
    })
}
