//! Channels between two exchanges over TCP, and peers that misbehave.

use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use perennial_actors::rpc::{BoxStream, Listener, MemoryNetwork};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::super::frame::{Credit, Frame, Kind, OpenBody, Window, read_frame};
use super::super::producer_link::write_frame;
use super::super::registry::{WINDOW_BYTES, WINDOW_BYTES_MIN, WINDOW_RECORDS};
use super::*;

const MEMORY: u64 = 64 << 20;

async fn two() -> (Arc<Exchange>, Arc<Exchange>) {
    (start(1, MEMORY).await, start(2, MEMORY).await)
}

/// Everything that a channel carries arrives in order, through many refills of the credit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elements_arrive_in_order_through_many_credits() {
    let (a, b) = two().await;
    let mut p = pair(&a, &b, 0);
    let (mut output, producer) = (p.output, p.producer);
    let rounds = 200_u64;
    let sender = tokio::spawn(async move {
        for i in 0..rounds {
            output.push(batch(i * 1000..(i + 1) * 1000));
            output.push(StreamElement::Watermark(i as i64));
            output.push(barrier(i));
            until(&producer, || output.flush().unwrap().then_some(())).await;
        }
        output.push(StreamElement::EndOfInput);
        until(&producer, || output.flush().unwrap().then_some(())).await;
        assert!(output.bytes_sent() > 100_000);
    });
    p.gate.start();
    for i in 0..rounds {
        assert_eq!(
            take(&mut p.gate, &p.consumer).await,
            batch(i * 1000..(i + 1) * 1000)
        );
        assert_eq!(
            take(&mut p.gate, &p.consumer).await,
            StreamElement::Watermark(i as i64)
        );
        assert_eq!(take(&mut p.gate, &p.consumer).await, barrier(i));
    }
    // The producer's end is dropped right after the end of input: nothing is lost by that.
    assert_eq!(
        take(&mut p.gate, &p.consumer).await,
        StreamElement::EndOfInput
    );
    sender.await.unwrap();
    assert!(p.gate.bytes_received() > 100_000);
    assert_eq!(p.gate.poll().unwrap(), None);
}

/// A consumer that takes nothing gets at most its window, and a barrier at the head still passes; the receiver itself checks
/// the bound for every frame and would break the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_bounds_what_waits_and_a_barrier_passes_a_full_channel() {
    let (a, b) = two().await;
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    let full = u64::from(WINDOW_RECORDS);
    for start in (0..full).step_by(1024) {
        p.output.push(batch(start..start + 1024));
    }
    p.output.push(barrier(1));
    p.output.push(batch([1]));
    until(&p.producer, || {
        let is_done = p.output.flush().unwrap();
        assert!(!is_done, "the last batch does not fit");
        (p.output.pending_records() == 1).then_some(())
    })
    .await;
    eventually(|| p.gate.queued_records() == full).await;
    assert!(p.gate.queued_bytes() <= WINDOW_BYTES);
    p.output.push(batch(0..1000));
    assert!(!p.output.flush().unwrap());
    assert_eq!(p.output.pending_records(), 1001);
    for start in (0..full).step_by(1024) {
        assert_eq!(
            take(&mut p.gate, &p.consumer).await,
            batch(start..start + 1024)
        );
    }
    assert_eq!(take(&mut p.gate, &p.consumer).await, barrier(1));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch(0..1000));
}

/// Windows of 16 KiB and batches of five times that: each goes alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_larger_than_the_window_goes_alone() {
    let (a, b) = (start(1, 0).await, start(2, 0).await);
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    assert_eq!(b.usage().reserved_bytes, WINDOW_BYTES_MIN);
    // A small one before: the producer must hear of the last few bytes too, or the window never counts as free.
    p.output.push(batch([1]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
    let values = |i: u64| (0..8000).map(move |v| u64::MAX - v - i);
    for i in 0..5 {
        p.output.push(batch(values(i)));
    }
    for i in 0..5 {
        until(&p.producer, || {
            p.output.flush().unwrap();
            (p.output.pending_records() <= 8000 * (4 - i as usize)).then_some(())
        })
        .await;
        let element = until(&p.consumer, || {
            let element = p.gate.poll().unwrap();
            assert_eq!(p.gate.queued_records(), 0, "one at a time");
            element
        })
        .await;
        assert_eq!(element.1, batch(values(i)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_does_not_stop_another_on_the_same_connection() {
    let (a, b) = two().await;
    let (mut slow, mut quick) = (pair(&a, &b, 0), pair(&a, &b, 1));
    assert_eq!(b.usage().links, 1, "both share a connection");
    slow.gate.start();
    quick.gate.start();
    for _ in 0..100 {
        slow.output.push(batch(0..1000));
    }
    let left = 100_000 - WINDOW_RECORDS as usize / 1000 * 1000;
    until(&slow.producer, || {
        slow.output.flush().unwrap();
        (slow.output.pending_records() <= left).then_some(())
    })
    .await;
    for i in 0..100 {
        quick.output.push(batch(i..i + 1000));
        until(&quick.producer, || {
            quick.output.flush().unwrap().then_some(())
        })
        .await;
        assert_eq!(
            take(&mut quick.gate, &quick.consumer).await,
            batch(i..i + 1000)
        );
    }
    assert!(!slow.output.flush().unwrap());
    assert_eq!(slow.output.pending_records(), left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_either_process_is_seen_by_the_other_at_once() {
    for producer_dies in [true, false] {
        let (a, b) = two().await;
        let mut p = pair(&a, &b, 0);
        p.gate.start();
        p.output.push(batch([1]));
        until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
        assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
        if producer_dies {
            a.close().await;
            let failure = failure_of_input(&mut p.gate, &p.consumer).await;
            assert_lost(&failure, 1, "vertex 0 subtask 0");
            assert_eq!(p.gate.poll().unwrap_err(), failure);
        } else {
            b.close().await;
            let failure = failure_of_output(&mut p.output, &p.producer).await;
            assert_lost(&failure, 2, "vertex 1 subtask 0");
        }
        assert_eq!(
            b.usage().links,
            usize::from(producer_dies) * b.usage().links
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_either_task_is_seen_by_the_other_and_spares_the_connection() {
    let (a, b) = two().await;
    let mut bystander = pair(&a, &b, 9);
    bystander.gate.start();

    let mut p = pair(&a, &b, 0);
    p.gate.start();
    p.output.push(batch([1]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    drop(p.output);
    let failure = failure_of_input(&mut p.gate, &p.consumer).await;
    assert_lost(&failure, 1, "producing task ended");

    let mut q = pair(&a, &b, 1);
    q.gate.start();
    q.output.push(batch([1]));
    until(&q.producer, || q.output.flush().unwrap().then_some(())).await;
    drop(q.gate);
    let failure = failure_of_output(&mut q.output, &q.producer).await;
    assert_lost(&failure, 2, "consuming task ended");

    bystander.output.push(batch([5]));
    until(&bystander.producer, || {
        bystander.output.flush().unwrap().then_some(())
    })
    .await;
    assert_eq!(
        take(&mut bystander.gate, &bystander.consumer).await,
        batch([5])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_may_come_before_its_producer() {
    let (a, b) = two().await;
    let (mut gate, consumer) = open_input(&b, location(&a), 0);
    gate.start();
    eventually(|| a.usage().waiting_consumers == 1).await;
    let (mut output, producer) = open_output(&a, location(&b), 0);
    assert_eq!(a.usage().waiting_consumers, 0);
    output.push(batch([3]));
    until(&producer, || output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut gate, &consumer).await, batch([3]));

    let (mut forgotten, _) = open_input(&b, location(&a), 1);
    forgotten.start();
    eventually(|| a.usage().waiting_consumers == 1).await;
    drop(forgotten);
    eventually(|| a.usage().waiting_consumers == 0).await;
}

/// A consumer may go once it has been told the end; its producer, which waits for the final checkpoint, is not disturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_ends_after_the_end_of_input_is_no_loss() {
    let (a, b) = two().await;
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    p.output.push(StreamElement::EndOfInput);
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(
        take(&mut p.gate, &p.consumer).await,
        StreamElement::EndOfInput
    );
    drop(p.gate);
    b.close().await;
    eventually(|| *a.inner.running.borrow() == 1).await;
    assert!(p.output.flush().unwrap());
}

/// After all ends are dropped: no entry, no memory, no connection; only the listeners run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_when_all_ends_are_dropped() {
    let (a, b) = two().await;
    for round in 0..3 {
        let mut pairs: Vec<Pair> = (0..4).map(|i| pair(&a, &b, round * 4 + i)).collect();
        for p in &mut pairs {
            p.gate.start();
            p.output.push(batch([1]));
            until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
        }
        assert_eq!((b.usage().links, b.usage().remote_inputs), (1, 4));
        assert_eq!(b.usage().reserved_bytes, 4 * WINDOW_BYTES);
        assert_eq!(a.usage().remote_outputs, 4);
        for p in pairs {
            if round % 2 == 0 {
                drop((p.gate, p.output));
            } else {
                drop((p.output, p.gate));
            }
        }
        for exchange in [&a, &b] {
            eventually(|| {
                exchange.usage() == ExchangeUsage::default()
                    && *exchange.inner.running.borrow() == 1
            })
            .await;
        }
    }
    let address = a.address();
    a.close().await;
    assert!(TcpStream::connect(&address).await.is_err(), "it listens on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_data_port_is_refused_and_harms_nobody() {
    let (a, b) = two().await;
    let long = vec![0xff_u8; 100_000];
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &long, b"PERNDATA\xff\xff"] {
        let mut stream = TcpStream::connect(a.address()).await.unwrap();
        // The other side may hang up before all is written.
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    p.output.push(batch([1]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_cannot_be_trusted_or_reached_is_lost_with_the_reason() {
    let a = start(1, MEMORY).await;
    let stranger = start_on(Arc::new(TcpTransport), 3, "another secret", MEMORY).await;
    let (mut gate, bell) = open_input(&a, location(&stranger), 0);
    let failure = failure_of_input(&mut gate, &bell).await;
    assert_lost(&failure, 3, "security.cluster-secret");

    let successor = start(4, MEMORY).await;
    let mut former = location(&successor);
    former.instance = InstanceId(5);
    let (mut gate, bell) = open_input(&a, former, 1);
    let failure = failure_of_input(&mut gate, &bell).await;
    assert_lost(&failure, 5, "another process answers");

    let mut gone = location(&successor);
    gone.instance = InstanceId(6);
    gone.data_address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (mut gate, bell) = open_input(&a, gone, 2);
    let failure = failure_of_input(&mut gate, &bell).await;
    assert_lost(&failure, 6, "refused");
    eventually(|| a.usage().links == 0).await;
}

/// Flips one bit of what is read once the switch is on.
struct Tampering(Arc<AtomicBool>);

struct Tampered(BoxStream, Arc<AtomicBool>);

impl AsyncRead for Tampered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.0).poll_read(cx, buf);
        if buf.filled().len() > before && self.1.swap(false, Ordering::SeqCst) {
            *buf.filled_mut().last_mut().unwrap() ^= 4;
        }
        outcome
    }
}

impl AsyncWrite for Tampered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Transport for Tampering {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpTransport.connect(address).await?;
            Ok(Box::new(Tampered(stream, Arc::clone(&self.0))) as BoxStream)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Listener>>> {
        TcpTransport.listen(address)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_on_the_way_breaks_the_connection_for_both() {
    let flip = Arc::new(AtomicBool::new(false));
    let a = start(1, MEMORY).await;
    let b = start_on(Arc::new(Tampering(Arc::clone(&flip))), 2, SECRET, MEMORY).await;
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    p.output.push(batch([1]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
    flip.store(true, Ordering::SeqCst);
    p.output.push(batch([2]));
    p.output.flush().unwrap();
    let failure = failure_of_input(&mut p.gate, &p.consumer).await;
    assert_lost(&failure, 1, "checksum mismatch");
    let failure = failure_of_output(&mut p.output, &p.producer).await;
    assert_lost(&failure, 2, "");
}

/// A consumer made by hand: shakes hands with the exchange and sends what it likes.
async fn dial(exchange: &Exchange, instance: u128) -> TcpStream {
    let mut stream = TcpStream::connect(exchange.address()).await.unwrap();
    let identity = Identity {
        instance: InstanceId(instance),
        secret: SECRET.as_bytes().to_vec(),
    };
    let expected = exchange.inner.identity.instance;
    identity.dial(&mut stream, 0, expected).await.unwrap();
    stream
}

fn channel(i: u32) -> ChannelId {
    ChannelId {
        edge: EdgeId(0),
        producer: attempt(0, i),
        consumer: attempt(1, i),
    }
}

fn open_frame(alias: u32, i: u32) -> Frame {
    let body = OpenBody {
        channel: channel(i),
        window: Window {
            records: 100,
            bytes: 1000,
            controls: 10,
        },
    };
    Frame::control(Kind::Open, alias, 0, &body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_consumer_of_a_channel_is_refused_and_the_first_goes_on() {
    let (a, b) = two().await;
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    p.output.push(batch([1]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;

    let mut replay = dial(&a, 7).await;
    write_frame(&mut replay, &open_frame(0, 0)).await.unwrap();
    let answer = read_frame(&mut replay).await.unwrap();
    assert_eq!((answer.kind, answer.alias), (Kind::Close, 0));
    drop(replay);

    p.output.push(batch([2]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([2]));
}

/// Each violation by an authenticated consumer ends its connection, and with it only its own channels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_breaks_the_protocol_loses_its_connection() {
    let a = start(1, MEMORY).await;
    let there = TaskManagerLocation {
        resource: ResourceId("by hand".into()),
        instance: InstanceId(7),
        data_address: "127.0.0.1:1".into(),
    };
    let credit = |alias, records| {
        let credit = Credit {
            records,
            ..Credit::default()
        };
        Frame::control(Kind::Credit, alias, 0, &credit)
    };
    let cases = [
        ("never opened", credit(5, 0)),
        ("never opened", open_frame(3, 9)),
        (
            "direction",
            Frame {
                kind: Kind::Data,
                ..credit(0, 0)
            },
        ),
        ("malformed", credit(0, 1_000_000)),
        (
            "malformed",
            Frame {
                body: vec![0xff; 3].into(),
                ..credit(0, 0)
            },
        ),
    ];
    for (i, (reason, violation)) in cases.into_iter().enumerate() {
        let i = i as u32;
        let (mut output, bell) = open_output(&a, there.clone(), i);
        let mut stream = dial(&a, 7).await;
        write_frame(&mut stream, &open_frame(0, i)).await.unwrap();
        output.push(batch([1]));
        until(&bell, || output.flush().unwrap().then_some(())).await;
        assert_eq!(read_frame(&mut stream).await.unwrap().kind, Kind::Data);
        write_frame(&mut stream, &violation).await.unwrap();
        let failure = failure_of_output(&mut output, &bell).await;
        assert_lost(&failure, 7, reason);
        assert!(read_frame(&mut stream).await.is_err(), "it is closed");
    }
}

/// A producer made by hand sends what no exchange would: each is noticed before the task sees anything of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_breaks_the_protocol_is_lost() {
    let data = |alias, sequence, records: u32| Frame {
        kind: Kind::Data,
        alias,
        sequence,
        body: [&records.to_le_bytes()[..], &[0, 0]].concat().into(),
    };
    let cases = [
        ("never opened", vec![data(1, 0, 0)]),
        ("sequence gap", vec![data(0, 1, 0)]),
        ("sequence gap", vec![data(0, 0, 0), data(0, 0, 0)]),
        (
            "more than its credit",
            vec![data(0, 0, WINDOW_RECORDS), data(0, 1, 1)],
        ),
        ("direction", vec![open_frame(0, 0)]),
        (
            "cannot decode",
            vec![Frame {
                body: vec![1, 0, 0, 0, 9].into(),
                ..data(0, 0, 1)
            }],
        ),
        ("its header says", vec![data(0, 0, 1)]),
        (
            "malformed",
            vec![Frame {
                kind: Kind::Barrier,
                ..data(0, 0, 1)
            }],
        ),
    ];
    let b = start(2, MEMORY).await;
    for (i, (reason, frames)) in cases.into_iter().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = Identity {
            instance: InstanceId(100 + i as u128),
            secret: SECRET.as_bytes().to_vec(),
        };
        let there = TaskManagerLocation {
            resource: ResourceId("by hand".into()),
            instance: identity.instance,
            data_address: listener.local_addr().unwrap().to_string(),
        };
        let (mut gate, bell) = open_input(&b, there, i as u32);
        gate.start();
        let (mut stream, _) = listener.accept().await.unwrap();
        identity.answer(&mut stream, 0).await.unwrap();
        assert_eq!(read_frame(&mut stream).await.unwrap().kind, Kind::Open);
        for frame in &frames {
            write_frame(&mut stream, frame).await.unwrap();
        }
        // Decoding is the task's; all else is the connection's, which ends before the task looks.
        if !["cannot decode", "its header says"].contains(&reason) {
            assert!(
                read_frame(&mut stream).await.is_err(),
                "{reason}: it is closed"
            );
        }
        let failure = until(&bell, || gate.poll().err()).await;
        assert_lost(&failure, 100 + i as u128, reason);
    }
}

/// An address that swallows everything.
struct Silent;

impl Transport for Silent {
    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<BoxStream>> {
        Box::pin(std::future::pending())
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn Listener>>> {
        TcpTransport.listen(address)
    }
}

/// Under a paused clock: the deadline is the only thing that can end this wait.
#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_is_lost_after_the_deadline() {
    let begin = Instant::now();
    let a = start_on(Arc::new(Silent), 1, SECRET, MEMORY).await;
    let mut there = location(&a);
    there.instance = InstanceId(2);
    let (mut gate, bell) = open_input(&a, there, 0);
    gate.start();
    let failure = failure_of_input(&mut gate, &bell).await;
    assert_lost(&failure, 2, "no answer");
    assert!(begin.elapsed() >= super::super::consumer_link::DIAL_TIMEOUT);
    a.close().await;
}

async fn two_on(network: &MemoryNetwork) -> (Arc<Exchange>, Arc<Exchange>) {
    let a = Arc::new(network.node("a"));
    let b = Arc::new(network.node("b"));
    (
        bind(a, "a:1", 1, SECRET, MEMORY).await,
        bind(b, "b:1", 2, SECRET, MEMORY).await,
    )
}

/// N4: nobody has anything to say, so that only the empty frames can tell. In all three places where a cut may fall on an idle channel.
#[tokio::test(start_paused = true)]
async fn a_connection_that_broke_without_a_word_is_lost_by_both_ends() {
    for cut in [
        |network: &MemoryNetwork| network.half_open("a", "b"),
        |network: &MemoryNetwork| network.half_open("b", "a"),
        |network: &MemoryNetwork| {
            network.silence("a", "b");
            network.silence("b", "a");
        },
    ] {
        let network = MemoryNetwork::new();
        let (a, b) = two_on(&network).await;
        let mut p = pair(&a, &b, 0);
        p.gate.start();
        p.output.push(batch([1]));
        until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
        assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
        cut(&network);
        let begin = Instant::now();
        let input = failure_of_input(&mut p.gate, &p.consumer).await;
        let output = failure_of_output(&mut p.output, &p.producer).await;
        assert_lost(&input, 1, "");
        assert_lost(&output, 2, "");
        let bound = HEARTBEAT.timeout + 3 * HEARTBEAT.interval;
        assert!(begin.elapsed() <= bound, "{:?}", begin.elapsed());
    }
}

/// A hung process is the JobManager's to tell, by its heartbeats: the connection holds for longer than their timeout.
#[tokio::test(start_paused = true)]
async fn a_silence_is_named_and_borne_for_longer_than_a_missing_heartbeat() {
    let network = MemoryNetwork::new();
    let (a, b) = two_on(&network).await;
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    p.output.push(batch([1]));
    until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
    assert_eq!(take(&mut p.gate, &p.consumer).await, batch([1]));
    network.silence("a", "b");
    let begin = Instant::now();
    let failure = failure_of_input(&mut p.gate, &p.consumer).await;
    assert_lost(&failure, 1, "no word from the peer for 5s");
    assert!(begin.elapsed() > HEARTBEAT.timeout + HEARTBEAT.interval);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays() {
    let network = MemoryNetwork::new();
    let (a, b) = two_on(&network).await;
    let mut p = pair(&a, &b, 0);
    p.gate.start();
    for i in 0..3 {
        p.output.push(batch([i]));
        until(&p.producer, || p.output.flush().unwrap().then_some(())).await;
        assert_eq!(take(&mut p.gate, &p.consumer).await, batch([i]));
        tokio::time::sleep(100 * HEARTBEAT.timeout).await;
    }
}
