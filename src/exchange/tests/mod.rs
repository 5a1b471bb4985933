//! Tests of whole channels, in a process and between two exchanges.

mod local;
mod remote;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use perennial_actors::model::{
    Attempt, ChannelPeer, CheckpointBarrier, CheckpointId, EdgeChannels, EdgeId,
    ExecutionAttemptId, FailureKind, InstanceId, JobId, LeaderEpoch, ResourceId, SnapshotKind,
    SubtaskIndex, TaskManagerLocation, VertexId,
};
use perennial_actors::rpc::{TcpTransport, Transport};
use perennial_actors::{DataPlane, clock::Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::*;
use crate::batch::{Batch, StreamElement};

pub(super) const SECRET: &str = "a secret";
pub(super) const HEARTBEAT: HeartbeatSettings = HeartbeatSettings {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(3),
    reconnect_window: Duration::from_secs(2),
};
/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A waker that a test can wait for.
#[derive(Default)]
pub(super) struct Bell {
    notify: Notify,
    rung: AtomicUsize,
}

impl TaskWaker for Bell {
    fn wake(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.notify.notify_one();
    }
}

impl Bell {
    pub(super) fn count(&self) -> usize {
        self.rung.load(Ordering::SeqCst)
    }
}

pub(super) async fn start(instance: u128, memory: u64) -> Arc<Exchange> {
    start_on(Arc::new(TcpTransport), instance, SECRET, memory).await
}

pub(super) async fn start_on(
    transport: Arc<dyn Transport>,
    instance: u128,
    secret: &str,
    memory: u64,
) -> Arc<Exchange> {
    bind(transport, "127.0.0.1:0", instance, secret, memory).await
}

pub(super) async fn bind(
    transport: Arc<dyn Transport>,
    bind_address: &str,
    instance: u128,
    secret: &str,
    network_memory: u64,
) -> Arc<Exchange> {
    Exchange::bind(ExchangeOptions {
        transport,
        bind_address,
        advertised: None,
        resource: ResourceId(format!("tm-{instance}")),
        instance: InstanceId(instance),
        secret,
        network_memory,
        heartbeat: &HEARTBEAT,
        handle: Handle::current(),
    })
    .await
    .unwrap()
}

pub(super) fn attempt(vertex: u32, subtask: u32) -> ExecutionAttemptId {
    ExecutionAttemptId {
        job: JobId(1),
        vertex: VertexId(vertex),
        subtask: SubtaskIndex(subtask),
        epoch: LeaderEpoch(1),
        attempt: Attempt(0),
    }
}

pub(super) fn location(exchange: &Exchange) -> TaskManagerLocation {
    TaskManagerLocation {
        resource: exchange.resource.clone(),
        instance: exchange.inner.identity.instance,
        data_address: exchange.address(),
    }
}

pub(super) fn edge(attempt: ExecutionAttemptId, location: TaskManagerLocation) -> EdgeChannels {
    EdgeChannels {
        edge: EdgeId(0),
        peers: vec![ChannelPeer { attempt, location }],
    }
}

/// Both ends of one channel of numbers from subtask `i` of vertex 0 to subtask `i` of vertex 1.
pub(super) struct Pair {
    pub(super) output: OutputChannel<u64>,
    pub(super) gate: InputGate<u64>,
    pub(super) producer: Arc<Bell>,
    pub(super) consumer: Arc<Bell>,
}

pub(super) fn open_output(
    from: &Exchange,
    to: TaskManagerLocation,
    i: u32,
) -> (OutputChannel<u64>, Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    let output = from
        .open_output(
            attempt(0, i),
            &edge(attempt(1, i), to),
            Arc::new(SerdeCodec::new()),
            bell.clone(),
        )
        .pop()
        .unwrap();
    (output, bell)
}

pub(super) fn open_input(
    to: &Exchange,
    from: TaskManagerLocation,
    i: u32,
) -> (InputGate<u64>, Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    let gate = to.open_input(
        attempt(1, i),
        &[edge(attempt(0, i), from)],
        Arc::new(SerdeCodec::new()),
        bell.clone(),
    );
    (gate, bell)
}

pub(super) fn pair(from: &Exchange, to: &Exchange, i: u32) -> Pair {
    let (output, producer) = open_output(from, location(to), i);
    let (gate, consumer) = open_input(to, location(from), i);
    Pair {
        output,
        gate,
        producer,
        consumer,
    }
}

pub(super) fn batch(values: impl IntoIterator<Item = u64>) -> StreamElement<u64> {
    StreamElement::Batch(Batch {
        values: values.into_iter().collect(),
        timestamps: Vec::new(),
    })
}

pub(super) fn barrier(checkpoint: u64) -> StreamElement<u64> {
    StreamElement::Barrier(CheckpointBarrier {
        checkpoint: CheckpointId(checkpoint),
        base: None,
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 0,
    })
}

/// Waits for the bell between tries, until the condition gives a value. A lost wake-up ends in the panic.
pub(super) async fn until<T>(bell: &Bell, mut condition: impl FnMut() -> Option<T>) -> T {
    let work = async {
        loop {
            if let Some(value) = condition() {
                return value;
            }
            bell.notify.notified().await;
        }
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("the condition holds in time, and whoever made it true rang the bell")
}

/// For conditions that nobody announces.
pub(super) async fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition holds in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) async fn take(gate: &mut InputGate<u64>, bell: &Bell) -> StreamElement<u64> {
    until(bell, || gate.poll().unwrap().map(|(_, element)| element)).await
}

pub(super) async fn failure_of_input(gate: &mut InputGate<u64>, bell: &Bell) -> FailureKind {
    until(bell, || {
        loop {
            match gate.poll() {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(failure) => return Some(failure),
            }
        }
    })
    .await
}

pub(super) async fn failure_of_output(output: &mut OutputChannel<u64>, bell: &Bell) -> FailureKind {
    until(bell, || output.flush().err()).await
}

#[track_caller]
pub(super) fn assert_lost(failure: &FailureKind, instance: u128, text: &str) {
    match failure {
        FailureKind::PeerLost {
            instance: lost,
            message,
            ..
        } => {
            assert_eq!(lost.0, instance, "{failure}");
            assert!(message.contains(text), "`{text}` in {failure}");
        }
        other => panic!("{other}"),
    }
}
