//! What one step may do, and what it must not leave undone.

use std::sync::OnceLock;

use perennial_actors::TaskControl;
use perennial_actors::model::{CheckpointId, FailureKind};

use super::*;
use crate::batch::{Batch, MAX_WATERMARK, StreamElement};
use crate::connector::{
    BlackholeSink, CollectSink, GeneratorContext, GeneratorSource, SourceReader, SourceSplit,
    SourceStatus,
};
use crate::error::FunctionResult;
use crate::operator::{
    ByKey, FlatMapOperator, Forward, KeyedProcess, KeyedProcessFunction, MapOperator, NamedList,
    OUTPUT_OF_ONE_CALL_MAX, OutputTag, ProcessContext, Redistribution, SideOutput,
};
use crate::state::TimeDomain;

/// Memory of batches is not allocated for each: what a consumer has emptied goes back to the producer, through operators and channels.
#[tokio::test]
async fn emptied_batches_come_back_to_be_filled_again() {
    const WARM_UP: usize = 24;
    let channels = Channels::new().await;
    let (mut inputs, gate) = channels.inputs::<u64>(1);
    let input_channel = &mut inputs[0];
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let map = node(0, MapOperator::new(|n: u64| Ok(n + 1)), vec![writer]);
    let mut bench = Bench::new(input(gate, map), 1);
    for round in 0..100 {
        let mut batch = input_channel.recycled();
        if round < WARM_UP {
            batch.values.reserve(3000);
        }
        assert!(batch.is_empty() && batch.values.capacity() >= 3000);
        batch.values.extend(0..1000);
        input_channel.push(StreamElement::Batch(batch));
        assert!(input_channel.flush().unwrap());
        assert!(matches!(bench.run(), Step::Wait { .. }));
        let [StreamElement::Batch(mut batch)] = <[_; 1]>::try_from(take(&mut gates[0])).unwrap()
        else {
            panic!("a batch");
        };
        assert_eq!(batch.values, Vec::from_iter(1..=1000));
        assert!(round < WARM_UP || batch.values.capacity() >= 5000);
        batch.values.reserve(5000);
        gates[0].recycle(0, batch);
    }
}

/// The consumer of one channel takes nothing; the record for the other one must not wait for it.
#[tokio::test]
async fn records_for_other_channels_leave_while_one_is_blocked() {
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs(2, ByKey::new(|n: &u64| *n, 2, 128));
    let by_key = |n: u64| {
        let group = crate::key::KeyHash::of(&n).key_group(128);
        perennial_actors::model::owner_of(group, 2, 128).0
    };
    let slow: Vec<u64> = (0..).filter(|n| by_key(*n) == 0).take(20_000).collect();
    let rare = (0..).find(|n| by_key(*n) == 1).unwrap();
    let fed = Fed(Arc::new(Mutex::new([vec![rare], slow].concat())));
    let mut bench = Bench::new(source(OneReader(fed), vec![writer]), 1);
    let Step::Wait { until: None } = bench.run() else {
        panic!("it is to wait for the blocked channel");
    };
    assert_eq!(records(&mut gates[1]), [rare]);
}

/// Registers many timers for one time.
struct Timers {
    count: i64,
    fired: Arc<Mutex<u64>>,
}

impl KeyedProcessFunction<u64, u64> for Timers {
    type Out = u64;

    fn process(&mut self, _: u64, cx: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        for time in 0..self.count {
            cx.register_event_time_timer(time)?;
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        time: i64,
        _: TimeDomain,
        cx: &mut ProcessContext<'_, u64, u64>,
    ) -> FunctionResult {
        *self.fired.lock().unwrap() += 1;
        cx.emit(time as u64);
        Ok(())
    }
}

/// The watermark and the barrier behind it are in the channel when the first timer fires.
#[tokio::test]
async fn many_timers_fire_in_many_steps_and_no_barrier_passes_between() {
    const COUNT: u64 = 50_000;
    let channels = Channels::new().await;
    let (mut outputs, gate) = channels.inputs::<u64>(1);
    let fired = Arc::new(Mutex::new(0));
    let timers = Timers {
        count: COUNT as i64,
        fired: fired.clone(),
    };
    let collected = CollectSink::new();
    let process = KeyedProcess::new(timers, |n: &u64| *n);
    let chain = node(0, process, vec![sink(1, collected.clone())]);
    let mut bench = Bench::new(input(gate, chain), 2);
    let (values, timestamps) = (vec![1], vec![1]);
    outputs[0].push(StreamElement::Batch(Batch { values, timestamps }));
    outputs[0].push(StreamElement::Watermark(COUNT as i64));
    outputs[0].push(StreamElement::Barrier(barrier(1)));
    outputs[0].flush().unwrap();
    let mut most = 0;
    let mut is_ordered = false;
    loop {
        let before = *fired.lock().unwrap();
        let step = bench.step();
        let after = *fired.lock().unwrap();
        most = most.max(after - before);
        if after > COUNT / 2 && !is_ordered {
            is_ordered = true;
            bench.order(TaskControl::Trigger(barrier(1)));
        }
        if !bench.snapshots.taken().is_empty() {
            assert_eq!(after, COUNT, "the snapshot was taken between the timers");
        }
        match step {
            Step::Progress => {}
            Step::Wait { .. } => break,
            end => panic!("{end:?}"),
        }
    }
    assert!(most <= 1024, "{most} timers in one step");
    assert_eq!(bench.snapshots.taken(), [1]);
    let expected: Vec<u64> = (0..COUNT).collect();
    assert_eq!(*collected.handle().lock().unwrap(), expected);
}

#[tokio::test]
async fn a_task_can_be_cancelled_between_the_timers_of_one_watermark() {
    let channels = Channels::new().await;
    let (mut outputs, gate) = channels.inputs::<u64>(1);
    let fired = Arc::new(Mutex::new(0));
    let timers = Timers {
        count: 50_000,
        fired: fired.clone(),
    };
    let chain = node(
        0,
        KeyedProcess::new(timers, |n: &u64| *n),
        vec![sink(1, BlackholeSink::new())],
    );
    let mut bench = Bench::new(input(gate, chain), 2);
    let (values, timestamps) = (vec![1], vec![1]);
    outputs[0].push(StreamElement::Batch(Batch { values, timestamps }));
    outputs[0].push(StreamElement::Watermark(i64::MAX));
    outputs[0].flush().unwrap();
    while *fired.lock().unwrap() == 0 {
        assert!(matches!(bench.step(), Step::Progress));
    }
    bench.order(TaskControl::Cancel);
    assert!(matches!(bench.step(), Step::Canceled));
    assert!(*fired.lock().unwrap() < 50_000);
}

/// Tasks of a job that is cancelled end in any order: this one is at work when it is told so, and its consumer is gone before it looks.
#[tokio::test]
async fn a_task_told_to_end_does_not_fail_by_a_consumer_that_has_ended() {
    for is_told in [true, false] {
        let channels = Channels::new().await;
        let (writer, gates) = channels.outputs::<u64>(1, Forward);
        let control = Arc::new(OnceLock::<Arc<ControlQueue>>::new());
        let consumer = Arc::new(Mutex::new(gates));
        let during = (control.clone(), consumer);
        let map = MapOperator::new(move |n: u64| {
            if is_told {
                during.0.get().unwrap().push(TaskControl::Cancel);
            }
            during.1.lock().unwrap().clear();
            Ok(n)
        });
        let fed = Fed(Arc::new(Mutex::new((0..1024).collect())));
        let mut bench = Bench::new(source(OneReader(fed), vec![node(1, map, vec![writer])]), 2);
        assert!(control.set(bench.control.clone()).is_ok());
        match bench.step() {
            Step::Canceled => assert!(is_told),
            Step::Failed(failure) => assert!(!is_told && failure.kind.is_symptom(), "{failure}"),
            other => panic!("{other:?}"),
        }
    }
}

/// A function that makes very much of one record holds up nobody's orders.
#[test]
fn a_task_can_be_cancelled_while_an_endless_iterator_is_drawn() {
    let endless = FlatMapOperator::new(|n: u64| Ok(std::iter::repeat(n)));
    let chain = node(1, endless, vec![sink(2, BlackholeSink::new())]);
    let fed = Fed(Arc::new(Mutex::new(vec![1])));
    let mut bench = Bench::new(source(OneReader(fed), vec![chain]), 3);
    for _ in 0..10 {
        assert!(matches!(bench.step(), Step::Progress));
    }
    bench.order(TaskControl::Cancel);
    assert!(matches!(bench.step(), Step::Canceled));
}

/// Emits to a side output only.
struct Aside {
    tag: OutputTag<u64>,
    count: usize,
}

impl KeyedProcessFunction<u64, u64> for Aside {
    type Out = u64;
    fn process(&mut self, n: u64, cx: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        for _ in 0..self.count {
            cx.emit_to(&self.tag, n);
        }
        Ok(())
    }
}

fn aside(count: usize, to: CollectSink<u64>) -> Bench {
    let function = Aside {
        tag: OutputTag::new("aside"),
        count,
    };
    let side = SideOutput::new("aside".into(), Output::new(vec![sink(2, to)]));
    let operator = KeyedProcess::<_, u64, u64, _>::new(function, |n: &u64| *n);
    let sides = SideOutputs::new(vec![Box::new(side)]);
    let nowhere = Output::new(vec![sink(3, BlackholeSink::new())]);
    let chain = Box::new(Node::new(1, operator, nowhere, sides));
    let numbers = GeneratorSource::new(Some(1), |c: GeneratorContext| (c.index, None)).events(300);
    Bench::new(source(numbers, vec![chain]), 4)
}

#[test]
fn a_side_output_has_the_limit_of_one_call_too() {
    let failure = aside(OUTPUT_OF_ONE_CALL_MAX + 1, CollectSink::new()).fail();
    assert!(
        matches!(&failure.kind, FailureKind::Limit { limit, message }
        if limit == "OUTPUT_OF_ONE_CALL_MAX" && message.contains("aside")),
        "{failure}"
    );
    assert_eq!(failure.position.as_deref(), Some("lane-0@0"));
}

/// The limit is that of one call: what many calls emit is handed on in between.
#[test]
fn what_many_calls_emit_to_a_side_output_is_handed_on_in_between() {
    let collected = CollectSink::new();
    let mut bench = aside(OUTPUT_OF_ONE_CALL_MAX / 100, collected.clone());
    let end = bench.run();
    assert!(matches!(end, Step::Wait { .. }), "{end:?}");
    assert_eq!(
        collected.handle().lock().unwrap().len(),
        300 * (OUTPUT_OF_ONE_CALL_MAX / 100)
    );
}

/// Heeds no bound.
#[derive(Clone)]
struct Flood;

impl SourceReader<u64> for Flood {
    fn poll(&mut self, out: &mut Batch<u64>, _: usize, _: Instant) -> FunctionResult<SourceStatus> {
        out.values.resize(OUTPUT_OF_ONE_CALL_MAX + 1, 0);
        Ok(SourceStatus::Finished)
    }
    fn snapshot(&self) -> Vec<SourceSplit> {
        Vec::new()
    }
    fn position(&self, _: usize) -> Option<(String, u64)> {
        None
    }
}

#[test]
fn a_source_that_floods_is_told_so() {
    let failure = Bench::new(
        source(OneReader(Flood), vec![sink(1, BlackholeSink::new())]),
        2,
    )
    .fail();
    assert!(
        matches!(&failure.kind, FailureKind::Limit { limit, message }
        if limit == "OUTPUT_OF_ONE_CALL_MAX" && message.contains("heed `max`")),
        "{failure}"
    );
}

/// What the acknowledgement says of alignment is the time from the first barrier to the last.
#[tokio::test]
async fn alignment_is_measured_from_the_first_barrier_to_the_last() {
    let channels = Channels::new().await;
    let (mut outputs, gate) = channels.inputs::<u64>(2);
    let mut bench = Bench::new(input(gate, sink(0, BlackholeSink::new())), 1);
    // One that is given up half-way takes its time with it.
    for (checkpoint, pause) in [
        (1, None),
        (2, Some(Duration::from_millis(250))),
        (3, Some(Duration::ZERO)),
    ] {
        outputs[0].push(StreamElement::Barrier(barrier(checkpoint)));
        outputs[0].flush().unwrap();
        bench.run();
        match pause {
            Some(pause) => {
                bench.now += pause;
                outputs[1].push(StreamElement::Barrier(barrier(checkpoint)));
                outputs[1].flush().unwrap();
            }
            None => {
                bench.now += Duration::from_secs(1);
                bench.order(TaskControl::NotifyAborted(CheckpointId(checkpoint)));
            }
        }
        bench.run();
    }
    let delivered = bench.snapshots.0.lock().unwrap();
    let alignments: Vec<_> = delivered
        .iter()
        .map(|s| (s.barrier.checkpoint.0, s.alignment_us))
        .collect();
    assert_eq!(alignments, [(2, 250_000), (3, 0)]);
}

/// A job that was drained has input left, and event time at its end: its next attempt ends, too.
#[tokio::test]
async fn a_source_that_had_ended_ends_again_and_reads_no_more() {
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let fed = Fed(Arc::new(Mutex::new(vec![1])));
    let restored = RestoredOperator {
        is_restored: true,
        checkpoint: Some(CheckpointId(3)),
        is_finished: true,
        ..RestoredOperator::default()
    };
    let mut bench = Bench::restored(source(OneReader(fed), vec![writer]), vec![restored]);
    bench.run();
    let expected = [
        StreamElement::Watermark(MAX_WATERMARK),
        StreamElement::EndOfInput,
    ];
    assert_eq!(take(&mut gates[0]), expected);
}

/// What nobody registers is left for whoever restores the task to refuse.
#[tokio::test]
async fn lists_that_no_operator_registers_are_left_over() {
    let list = |name: &str| NamedList {
        name: name.into(),
        redistribution: Redistribution::Split,
        items: vec![vec![1]],
    };
    let restored = || RestoredOperator {
        is_restored: true,
        checkpoint: Some(CheckpointId(1)),
        lists: vec![list("mine")],
        ..RestoredOperator::default()
    };
    let fed = Fed(Arc::new(Mutex::new(Vec::new())));
    let map = MapOperator::new(|n: u64| Ok(n));
    let chain = node(1, map, vec![sink(2, BlackholeSink::new())]);
    let all = (0..3).map(|_| restored()).collect();
    let bench = Bench::restored(source(OneReader(fed), vec![chain]), all);
    for operator in &bench.restored {
        assert_eq!(operator.lists, [list("mine")]);
    }
}
