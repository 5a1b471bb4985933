//! Channels within a process.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::gate::PREFERRED_IN_A_ROW_MAX;
use super::super::local::{CONTROLS_MAX, RECORDS_MAX};
use super::super::output::PENDING_CONTROLS_MAX;
use super::*;

async fn started() -> (Arc<Exchange>, Pair) {
    let exchange = start(1, 1 << 20).await;
    let mut pair = pair(&exchange, &exchange, 0);
    pair.gate.start();
    (exchange, pair)
}

#[tokio::test]
async fn nothing_passes_before_the_consumer_starts() {
    let exchange = start(1, 1 << 20).await;
    let mut p = pair(&exchange, &exchange, 0);
    p.output.push(batch([1]));
    p.output.push(barrier(1));
    assert!(!p.output.flush().unwrap());
    assert_eq!(p.gate.poll().unwrap(), None);
    assert_eq!(p.output.pending_records(), 1);
    p.gate.start();
    assert_eq!(p.producer.count(), 1, "the start wakes who was refused");
    assert!(p.output.flush().unwrap());
    assert_eq!(p.consumer.count(), 1);
    assert_eq!(p.gate.poll().unwrap(), Some((0, batch([1]))));
    assert_eq!(p.gate.poll().unwrap(), Some((0, barrier(1))));
    assert_eq!(p.gate.poll().unwrap(), None);
}

/// Fills the window, takes half, and counts wake-ups: one for the first element, one when half is free.
#[tokio::test]
async fn a_full_channel_refuses_and_wakes_the_producer_once_when_half_is_free() {
    let (_exchange, mut p) = started().await;
    let total = 3 * RECORDS_MAX as u64;
    for start in (0..total).step_by(1024) {
        p.output.push(batch(start..start + 1024));
    }
    assert_eq!(p.output.pending_records(), 3 * RECORDS_MAX);
    assert!(!p.output.flush().unwrap());
    assert_eq!(p.gate.queued_records(), RECORDS_MAX as u64);
    assert_eq!(p.output.pending_records(), 2 * RECORDS_MAX);
    assert_eq!((p.producer.count(), p.consumer.count()), (0, 1));
    let mut next = 0;
    for taken in 1..=8_usize {
        assert_eq!(p.gate.poll().unwrap(), Some((0, batch(next..next + 1024))));
        next += 1024;
        assert_eq!(p.producer.count(), usize::from(taken >= 4), "after {taken}");
    }
    while next < total {
        p.output.flush().unwrap();
        while let Some((_, element)) = p.gate.poll().unwrap() {
            assert_eq!(element, batch(next..next + 1024));
            next += 1024;
        }
    }
    assert!(p.output.flush().unwrap());
    assert_eq!(p.output.pending_records(), 0);
}

#[tokio::test]
async fn a_barrier_enters_a_full_channel_in_its_place() {
    let (_exchange, mut p) = started().await;
    p.output.push(batch(0..RECORDS_MAX as u64));
    p.output.push(barrier(1));
    p.output.push(batch([7]));
    p.output.push(barrier(2));
    assert!(!p.output.flush().unwrap());
    assert_eq!(p.output.pending_records(), 1);
    assert_eq!(
        p.gate.poll().unwrap().unwrap().1,
        batch(0..RECORDS_MAX as u64)
    );
    assert_eq!(p.gate.poll().unwrap().unwrap().1, barrier(1));
    assert_eq!(p.gate.poll().unwrap(), None);
    assert!(p.output.flush().unwrap());
    assert_eq!(p.gate.poll().unwrap().unwrap().1, batch([7]));
    assert_eq!(p.gate.poll().unwrap().unwrap().1, barrier(2));
}

/// The last of three channels is preferred: it goes first, the others take turns in between and when it is empty or blocked.
#[tokio::test]
async fn a_preferred_channel_goes_first_and_none_starves() {
    const ROW: usize = PREFERRED_IN_A_ROW_MAX as usize;
    let exchange = start(1, 1 << 20).await;
    let here = location(&exchange);
    let mut edges = edge(attempt(0, 0), here.clone());
    let others = (1..3).map(|i| edge(attempt(0, i), here.clone()).peers.remove(0));
    edges.peers.extend(others);
    let waker = Arc::new(Bell::default());
    let codec = || Arc::new(SerdeCodec::new());
    let mut gate = exchange.open_input(attempt(1, 0), &[edges], codec(), waker.clone());
    gate.start();
    let mut outputs: Vec<_> = (0..3)
        .map(|i| {
            let to = edge(attempt(1, 0), here.clone());
            let mut outputs = exchange.open_output(attempt(0, i), &to, codec(), waker.clone());
            outputs.pop().unwrap()
        })
        .collect();
    let mut fill = |counts: [usize; 3]| {
        for (output, count) in outputs.iter_mut().zip(counts) {
            (0..count).for_each(|_| output.push(batch([1])));
            assert!(output.flush().unwrap());
        }
    };
    let order = |gate: &mut InputGate<u64>| -> Vec<usize> {
        std::iter::from_fn(|| gate.poll().unwrap().map(|(channel, _)| channel)).collect()
    };
    gate.prefer(Some(2));
    fill([3, 3, 3 * ROW + 2]);
    let row = [2; ROW].as_slice();
    let expected = [row, &[0], row, &[1], row, &[0], &[2, 2], &[1, 0, 1]].concat();
    assert_eq!(order(&mut gate), expected);
    fill([2, 2, 2]);
    gate.block(2);
    assert_eq!(order(&mut gate), [0, 1, 0, 1]);
    gate.unblock_all();
    gate.prefer(None);
    fill([2, 2, 0]);
    assert_eq!(order(&mut gate), [2, 0, 1, 2, 0, 1]);
}

#[tokio::test]
async fn a_batch_larger_than_the_window_goes_when_the_window_is_free() {
    let (_exchange, mut p) = started().await;
    let large = 0..2 * RECORDS_MAX as u64;
    p.output.push(batch([1]));
    p.output.push(batch(large.clone()));
    assert!(!p.output.flush().unwrap());
    assert_eq!(p.gate.poll().unwrap().unwrap().1, batch([1]));
    assert_eq!(p.producer.count(), 1);
    assert!(p.output.flush().unwrap());
    assert_eq!(p.gate.poll().unwrap().unwrap().1, batch(large));
}

#[tokio::test]
async fn waiting_watermarks_and_statuses_coalesce_without_passing_records() {
    use crate::batch::StreamStatus::{Active, Idle};
    let (_exchange, mut p) = started().await;
    for i in 0..1000 {
        p.output.push(StreamElement::Watermark(i));
        if i % 2 == 0 {
            assert!(p.output.flush().unwrap());
        }
    }
    p.output.push(batch([1]));
    p.output.push(StreamElement::Watermark(2000));
    p.output.push(StreamElement::Status(Idle));
    p.output.push(StreamElement::Status(Active));
    assert!(p.output.flush().unwrap());
    for expected in [
        StreamElement::Watermark(999),
        batch([1]),
        StreamElement::Watermark(2000),
        StreamElement::Status(Active),
    ] {
        assert_eq!(p.gate.poll().unwrap(), Some((0, expected)));
    }
    assert_eq!(p.gate.poll().unwrap(), None);
}

/// Barriers skip the records' window but not every bound: the channel takes some, the output holds some, then it is an error.
#[tokio::test]
async fn barriers_that_nobody_takes_are_bounded() {
    let (_exchange, mut p) = started().await;
    for i in 0..CONTROLS_MAX as u64 {
        p.output.push(barrier(i));
    }
    assert!(p.output.flush().unwrap());
    for i in 0..PENDING_CONTROLS_MAX as u64 {
        p.output.push(barrier(i));
    }
    assert!(!p.output.flush().unwrap());
    p.output.push(barrier(0));
    assert!(matches!(p.output.flush(), Err(FailureKind::Limit { .. })));
}

#[tokio::test]
async fn a_batch_moves_by_pointer_and_its_memory_comes_back() {
    let (_exchange, mut p) = started().await;
    let sent = Batch {
        values: vec![1_u64, 2],
        timestamps: Vec::new(),
    };
    let pointer = sent.values.as_ptr();
    p.output.push(StreamElement::Batch(sent));
    p.output.flush().unwrap();
    let Some((0, StreamElement::Batch(received))) = p.gate.poll().unwrap() else {
        panic!("a batch was sent");
    };
    assert_eq!(received.values.as_ptr(), pointer);
    p.gate.recycle(0, received);
    let again = p.output.recycled();
    assert!(again.is_empty());
    assert_eq!(again.values.as_ptr(), pointer);
    assert_eq!(p.output.recycled().values.capacity(), 0, "there was one");
}

#[tokio::test]
async fn an_overtaking_barrier_comes_before_what_waits() {
    let (_exchange, mut p) = started().await;
    p.output.push(batch([1]));
    p.output.flush().unwrap();
    assert!(p.output.overtake(barrier(1)));
    assert!(!p.output.overtake(barrier(2)), "there is one slot");
    assert_eq!(p.gate.poll().unwrap().unwrap().1, barrier(1));
    assert_eq!(p.gate.poll().unwrap().unwrap().1, batch([1]));
}

#[tokio::test]
async fn a_producer_that_ends_early_is_lost_and_one_that_said_so_is_not() {
    let (exchange, mut p) = started().await;
    p.output.push(batch([1]));
    p.output.flush().unwrap();
    p.gate.block(0);
    drop(p.output);
    assert_eq!(p.consumer.count(), 2);
    let failure = p.gate.poll().unwrap_err();
    assert_lost(&failure, 1, "task ended");
    assert_eq!(p.gate.poll().unwrap_err(), failure, "it stays");

    let mut q = pair(&exchange, &exchange, 1);
    q.gate.start();
    q.output.push(batch([1]));
    q.output.push(StreamElement::EndOfInput);
    assert!(q.output.flush().unwrap());
    drop(q.output);
    assert_eq!(q.gate.poll().unwrap().unwrap().1, batch([1]));
    assert_eq!(q.gate.poll().unwrap().unwrap().1, StreamElement::EndOfInput);
    assert_eq!(q.gate.poll().unwrap(), None);
}

#[tokio::test]
async fn a_consumer_that_ends_early_is_lost() {
    let (_exchange, mut p) = started().await;
    p.output.push(batch([1]));
    assert!(p.output.flush().unwrap());
    drop(p.gate);
    assert_eq!(p.producer.count(), 1);
    assert_lost(&p.output.flush().unwrap_err(), 1, "task ended");
}

#[tokio::test]
async fn entries_vanish_with_both_ends_in_any_order() {
    let exchange = start(1, 1 << 20).await;
    for order in 0..2 {
        let p = pair(&exchange, &exchange, order);
        assert_eq!(exchange.usage().local_channels, 1);
        if order == 0 {
            drop(p.gate);
            assert_eq!(exchange.usage().local_channels, 1);
            drop(p.output);
        } else {
            drop(p.output);
            drop(p.gate);
        }
        assert_eq!(exchange.usage(), ExchangeUsage::default());
    }
}

#[tokio::test]
async fn an_end_that_is_opened_twice_is_an_error_of_the_second_only() {
    let (exchange, mut p) = started().await;
    let (mut output, _) = open_output(&exchange, location(&exchange), 0);
    let (mut gate, _) = open_input(&exchange, location(&exchange), 0);
    assert!(matches!(output.flush(), Err(FailureKind::Internal { .. })));
    assert!(matches!(gate.poll(), Err(FailureKind::Internal { .. })));
    drop((output, gate));
    p.output.push(batch([1]));
    assert!(p.output.flush().unwrap());
    assert_eq!(p.gate.poll().unwrap().unwrap().1, batch([1]));
}

/// Two producers, one gate: a busy channel does not keep the other waiting, and a blocked one keeps its elements.
#[tokio::test]
async fn channels_are_served_in_turn_and_blocked_ones_wait() {
    let exchange = start(1, 1 << 20).await;
    let here = location(&exchange);
    let bell = Arc::new(Bell::default());
    let peers = EdgeChannels {
        edge: EdgeId(0),
        peers: (0..2)
            .map(|i| ChannelPeer {
                attempt: attempt(0, i),
                location: here.clone(),
            })
            .collect(),
    };
    let mut gate: InputGate<u64> =
        exchange.open_input(attempt(1, 0), &[peers], Arc::new(SerdeCodec::new()), bell);
    assert_eq!((gate.len(), gate.peer(1).attempt), (2, attempt(0, 1)));
    let mut outputs: Vec<OutputChannel<u64>> = (0..2)
        .map(|i| {
            exchange
                .open_output(
                    attempt(0, i),
                    &edge(attempt(1, 0), here.clone()),
                    Arc::new(SerdeCodec::new()),
                    Arc::new(Bell::default()),
                )
                .pop()
                .unwrap()
        })
        .collect();
    gate.start();
    for output in &mut outputs {
        for i in 0..3 {
            output.push(batch([i]));
        }
        output.flush().unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..2 {
        order.push(gate.poll().unwrap().unwrap().0);
    }
    gate.block(0);
    while let Some((channel, _)) = gate.poll().unwrap() {
        order.push(channel);
    }
    gate.unblock_all();
    while let Some((channel, _)) = gate.poll().unwrap() {
        order.push(channel);
    }
    assert_eq!(order, [0, 1, 1, 1, 0, 0]);
    assert_eq!(gate.position(0).1, Some(2));
}

/// Parks, but not for ever: a lost wake-up is to be a failure, not a hang.
fn park() {
    let begin = Instant::now();
    std::thread::park_timeout(PATIENCE);
    assert!(begin.elapsed() < PATIENCE, "a wake-up was lost");
}

struct Unpark(std::thread::Thread);
impl TaskWaker for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// Threads that park whenever they are refused: a lost wake-up would hang, a lost or repeated record breaks the count.
#[tokio::test]
async fn threads_that_park_when_refused_never_miss_a_wake_up() {
    for seed in 0..8_u64 {
        let exchange = start(1, 1 << 20).await;
        let here = location(&exchange);
        let (for_producer, for_consumer) = (Arc::clone(&exchange), exchange);
        let there = here.clone();
        let producer = std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed);
            let waker = Arc::new(Unpark(std::thread::current()));
            let mut output: OutputChannel<u64> = for_producer
                .open_output(
                    attempt(0, 0),
                    &edge(attempt(1, 0), there),
                    Arc::new(SerdeCodec::new()),
                    waker,
                )
                .pop()
                .unwrap();
            let mut next = 0;
            for round in 0..400 {
                let count = rng.random_range(1..3000);
                output.push(batch(next..next + count));
                next += count;
                if rng.random_bool(0.3) {
                    output.push(StreamElement::Watermark(round));
                }
                if rng.random_bool(0.1) {
                    output.push(barrier(round as u64));
                }
                while !output.flush().unwrap() {
                    park();
                }
            }
            output.push(StreamElement::EndOfInput);
            while !output.flush().unwrap() {
                park();
            }
            next
        });
        let consumer = std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed + 1000);
            let waker = Arc::new(Unpark(std::thread::current()));
            let mut gate: InputGate<u64> = for_consumer.open_input(
                attempt(1, 0),
                &[edge(attempt(0, 0), here)],
                Arc::new(SerdeCodec::new()),
                waker,
            );
            gate.start();
            let (mut next, mut watermark) = (0, -1);
            loop {
                match gate.poll().unwrap() {
                    None => park(),
                    Some((_, StreamElement::Batch(batch))) => {
                        for value in &batch.values {
                            assert_eq!(*value, next, "seed {seed}");
                            next += 1;
                        }
                        if rng.random_bool(0.05) {
                            std::thread::yield_now();
                        }
                        gate.recycle(0, batch);
                    }
                    Some((_, StreamElement::Watermark(w))) => {
                        assert!(w > watermark, "seed {seed}");
                        watermark = w;
                    }
                    Some((_, StreamElement::EndOfInput)) => return next,
                    Some(_) => {}
                }
            }
        });
        let sent = tokio::task::spawn_blocking(|| (producer.join(), consumer.join()))
            .await
            .unwrap();
        assert_eq!(sent.0.unwrap(), sent.1.unwrap(), "seed {seed}");
    }
}
