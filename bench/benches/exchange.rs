//! A batch from one task to another, in the process and over TCP, beside a plain channel and a plain socket; and a barrier through
//! many channels.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::Thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use perennial::batch::{Batch, StreamElement};
use perennial::exchange::{
    Exchange, ExchangeOptions, FixedCodec, InputGate, OutputChannel, TaskWaker,
};
use perennial_actors::DataPlane;
use perennial_actors::model::{
    Attempt, ChannelPeer, CheckpointBarrier, CheckpointId, EdgeChannels, EdgeId,
    ExecutionAttemptId, InstanceId, JobId, LeaderEpoch, ResourceId, SnapshotKind, SubtaskIndex,
    TaskManagerLocation, VertexId,
};
use perennial_actors::rpc::TcpTransport;
use perennial_config::{Settings, Sources};
use tokio::runtime::Runtime;

/// Records of a batch.
const RECORDS: u64 = 1024;
/// Batches of an iteration.
const BATCHES: u64 = 1_000;

type Value = (u64, u64);

/// The task of this thread.
struct Waker(Thread);

impl TaskWaker for Waker {
    fn wake(&self) {
        self.0.unpark();
    }
}

fn exchange(runtime: &Runtime, instance: u128) -> Arc<Exchange> {
    let settings = Settings::load(&Sources::default()).unwrap().settings;
    runtime
        .block_on(Exchange::bind(ExchangeOptions {
            transport: Arc::new(TcpTransport),
            bind_address: "127.0.0.1:0",
            advertised: None,
            resource: ResourceId(format!("tm-{instance}")),
            instance: InstanceId(instance),
            secret: "a secret",
            network_memory: 256 << 20,
            heartbeat: &settings.cluster.heartbeat,
            handle: runtime.handle().clone(),
        }))
        .unwrap()
}

fn attempt(vertex: u32, subtask: u32, number: u32) -> ExecutionAttemptId {
    ExecutionAttemptId {
        job: JobId(1),
        vertex: VertexId(vertex),
        subtask: SubtaskIndex(subtask),
        epoch: LeaderEpoch(1),
        attempt: Attempt(number),
    }
}

fn edge(peers: impl Iterator<Item = (ExecutionAttemptId, TaskManagerLocation)>) -> EdgeChannels {
    EdgeChannels {
        edge: EdgeId(0),
        peers: peers
            .map(|(attempt, location)| ChannelPeer { attempt, location })
            .collect(),
    }
}

fn location(exchange: &Exchange, instance: u128) -> TaskManagerLocation {
    TaskManagerLocation {
        resource: exchange.resource().clone(),
        instance: InstanceId(instance),
        data_address: exchange.address(),
    }
}

/// The consuming end of `channels` channels, and who produces: a function of the subtask.
fn gate(
    (from, to): (&Exchange, &Exchange),
    (producer, consumer): (u128, u128),
    channels: u32,
    number: u32,
) -> (
    InputGate<Value>,
    impl Fn(&Exchange, u32) -> OutputChannel<Value> + Send + use<>,
) {
    let waker = Arc::new(Waker(std::thread::current()));
    let (here, there) = (location(to, consumer), location(from, producer));
    let peers = (0..channels).map(|i| (attempt(0, i, number), there.clone()));
    let me = attempt(1, 0, number);
    let mut gate = to.open_input(me, &[edge(peers)], Arc::new(FixedCodec::new()), waker);
    gate.start();
    let open = move |from: &Exchange, i: u32| {
        let waker = Arc::new(Waker(std::thread::current()));
        let peer = std::iter::once((me, here.clone()));
        from.open_output(
            attempt(0, i, number),
            &edge(peer),
            Arc::new(FixedCodec::new()),
            waker,
        )
        .pop()
        .unwrap()
    };
    (gate, open)
}

fn send_all(output: &mut OutputChannel<Value>) {
    for n in 0..BATCHES {
        let mut batch = output.recycled();
        batch.values.extend((0..RECORDS).map(|i| (n, i)));
        output.push(StreamElement::Batch(batch));
        while !output.flush().unwrap() {
            std::thread::park();
        }
    }
}

fn take_all(gate: &mut InputGate<Value>) {
    let mut records = 0;
    while records < RECORDS * BATCHES {
        match gate.poll().unwrap() {
            Some((channel, StreamElement::Batch(batch))) => {
                records += batch.len() as u64;
                gate.recycle(channel, batch);
            }
            Some(_) => {}
            None => std::thread::park(),
        }
    }
}

fn throughput(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (a, b) = (exchange(&runtime, 1), exchange(&runtime, 2));
    let mut group = c.benchmark_group("exchange of batches");
    group.throughput(Throughput::Elements(RECORDS * BATCHES));
    group.sample_size(20);
    let mut number = 0;
    let mut round = |from: &Arc<Exchange>, to: &Arc<Exchange>, ids: (u128, u128)| {
        number += 1;
        let (mut gate, open) = gate((from, to), ids, 1, number);
        let from = Arc::clone(from);
        let sender = std::thread::spawn(move || {
            let mut output = open(&from, 0);
            send_all(&mut output);
            output
        });
        take_all(&mut gate);
        sender.join().unwrap();
    };
    group.bench_function("within the process", |bench| {
        bench.iter(|| round(&a, &a, (1, 1)))
    });
    group.bench_function("over TCP", |bench| bench.iter(|| round(&a, &b, (1, 2))));
    group.bench_function("bare channel of vectors", |bench| {
        bench.iter(|| {
            let (sender, receiver) = sync_channel::<Vec<Value>>(16);
            let thread = std::thread::spawn(move || {
                for n in 0..BATCHES {
                    sender.send((0..RECORDS).map(|i| (n, i)).collect()).unwrap();
                }
            });
            assert_eq!(
                receiver.iter().map(|v| v.len() as u64).sum::<u64>(),
                RECORDS * BATCHES
            );
            thread.join().unwrap();
        });
    });
    group.bench_function("bare TCP of as many bytes", |bench| {
        bench.iter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let thread = std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let bytes = vec![7; 16 * RECORDS as usize];
                for _ in 0..BATCHES {
                    stream.write_all(&bytes).unwrap();
                }
            });
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = vec![0; 64 * 1024];
            let mut total = 0;
            while total < 16 * (RECORDS * BATCHES) as usize {
                total += stream.read(&mut bytes).unwrap();
            }
            thread.join().unwrap();
        });
    });
    group.finish();
}

/// A barrier comes in on each of many channels in turn; each is blocked until all have it, as an aligned checkpoint does.
fn alignment(c: &mut Criterion) {
    const CHANNELS: u32 = 16;
    const BARRIERS: u64 = 100;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let a = exchange(&runtime, 1);
    let mut group = c.benchmark_group("align a barrier over 16 channels");
    group.throughput(Throughput::Elements(BARRIERS));
    let mut number = 0;
    group.bench_function("input gate", |bench| {
        bench.iter(|| {
            number += 1;
            let (mut gate, open) = gate((&a, &a), (1, 1), CHANNELS, number);
            let mut outputs: Vec<_> = (0..CHANNELS).map(|i| open(&a, i)).collect();
            for barrier in 0..BARRIERS {
                for output in &mut outputs {
                    output.push(StreamElement::Barrier(CheckpointBarrier {
                        checkpoint: CheckpointId(barrier),
                        base: None,
                        kind: SnapshotKind::Checkpoint,
                        timestamp_ms: 0,
                    }));
                    output.push(StreamElement::Batch(Batch {
                        values: vec![(barrier, 0)],
                        timestamps: Vec::new(),
                    }));
                    output.flush().unwrap();
                }
                let (mut seen, mut taken) = (0, 0);
                while taken < CHANNELS {
                    match gate.poll().unwrap() {
                        Some((channel, StreamElement::Barrier(_))) => {
                            gate.block(channel);
                            seen += 1;
                            if seen == CHANNELS {
                                gate.unblock_all();
                            }
                        }
                        Some(_) => taken += 1,
                        None => std::thread::park(),
                    }
                }
            }
            outputs
        });
    });
    group.bench_function("bare counter over 16 queues", |bench| {
        bench.iter(|| {
            let mut queues: Vec<std::collections::VecDeque<Option<Vec<Value>>>> =
                vec![std::collections::VecDeque::new(); CHANNELS as usize];
            for barrier in 0..BARRIERS {
                for queue in &mut queues {
                    queue.push_back(None);
                    queue.push_back(Some(vec![(barrier, 0)]));
                }
                let barriers = queues.iter_mut().filter_map(|q| q.pop_front()).count();
                assert_eq!(barriers, CHANNELS as usize);
                for queue in &mut queues {
                    std::hint::black_box(queue.pop_front());
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, throughput, alignment);
criterion_main!(benches);
