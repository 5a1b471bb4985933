//! What one step may do, and what it must not leave undone.

use std::sync::OnceLock;

use perennial_actors::TaskControl;
use perennial_actors::model::{CheckpointId, FailureKind, TaskRestore};

use super::*;
use crate::batch::{Batch, MAX_WATERMARK, StreamElement, StreamStatus, Timestamp};
use crate::connector::{
    BlackholeSink, CollectSink, GeneratorContext, GeneratorSource, Source, SourceReader,
    SourceSplit, SourceStatus, SubtaskContext,
};
use crate::error::FunctionResult;
use crate::operator::{
    ByKey, FlatMapOperator, Forward, KeyedProcess, KeyedProcessFunction, MapOperator, NamedList,
    OUTPUT_OF_ONE_CALL_MAX, OutputTag, ProcessContext, Redistribution, SideOutput,
    WatermarkOperator, WatermarkStrategy,
};
use crate::state::TimeDomain;

/// Has one reader, and nothing to remember.
struct OneReader<R>(R);

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
struct Fed(Arc<Mutex<Vec<u64>>>);

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

fn take<T: Record>(gate: &mut InputGate<T>) -> Vec<StreamElement<T>> {
    std::iter::from_fn(|| gate.poll().unwrap().map(|(_, element)| element)).collect()
}

fn records<T: Record>(gate: &mut InputGate<T>) -> Vec<T> {
    take(gate)
        .into_iter()
        .flat_map(|element| match element {
            StreamElement::Batch(batch) => batch.values,
            _ => Vec::new(),
        })
        .collect()
}

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

/// Nothing was asked of the source while the channel was blocked, so nothing says that it is idle.
#[tokio::test(start_paused = true)]
async fn a_stream_is_not_idle_because_its_task_is_held_up() {
    let idleness = Duration::from_secs(1);
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    // As many batches as the channel holds, and one that waits behind them.
    let fed = Fed(Arc::new(Mutex::new((0..9 * 1024).collect())));
    let strategy = WatermarkStrategy::monotonous().with_idleness(idleness);
    let chain = node(1, WatermarkOperator::new(strategy), vec![writer]);
    let mut bench = Bench::new(source(OneReader(fed.clone()), vec![chain]), 2);
    assert!(matches!(bench.run(), Step::Wait { until: None }));
    tokio::time::advance(idleness * 3).await;
    bench.now = Instant::now();
    let mut seen = Vec::new();
    for _ in 0..100 {
        bench.run();
        seen.extend(take(&mut gates[0]));
    }
    assert!(!seen.contains(&StreamElement::Status(StreamStatus::Idle)));
    // From here on it is asked.
    let Step::Wait { until: Some(until) } = bench.run() else {
        panic!("it is to be looked at again");
    };
    assert!(until > bench.now && until <= bench.now + idleness);
    tokio::time::advance(idleness).await;
    bench.now = Instant::now();
    bench.run();
    assert_eq!(
        take(&mut gates[0]),
        [StreamElement::Status(StreamStatus::Idle)]
    );
    fed.0.lock().unwrap().push(20_000);
    bench.run();
    let expected = [
        StreamElement::Status(StreamStatus::Active),
        timed(&[20_000], &[20_000]),
        StreamElement::Watermark(19_999),
    ];
    assert_eq!(take(&mut gates[0]), expected, "awake before the record");
}

fn timed(values: &[u64], timestamps: &[Timestamp]) -> StreamElement<u64> {
    StreamElement::Batch(Batch {
        values: values.to_vec(),
        timestamps: timestamps.to_vec(),
    })
}

/// By the strategy, which is told what the source said, and with a watermark right behind what moves event time on.
#[tokio::test]
async fn records_have_the_event_times_that_the_strategy_assigns() {
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let fed = Fed(Arc::new(Mutex::new(Vec::new())));
    let strategy = WatermarkStrategy::monotonous().with_timestamps(|n: &u64, given| match n {
        0 => Timestamp::MIN,
        _ => given.map_or(0, |time| 1000 + 2 * time),
    });
    let chain = node(1, WatermarkOperator::new(strategy), vec![writer]);
    let mut bench = Bench::new(source(OneReader(fed.clone()), vec![chain]), 2);
    for (values, times, watermark) in [
        (vec![0], vec![Timestamp::MIN], None),
        (vec![5, 3], vec![1010, 1006], Some(1009)),
        (vec![4, 0], vec![1008, Timestamp::MIN], None),
        (vec![7], vec![1014], Some(1013)),
    ] {
        fed.0.lock().unwrap().extend(&values);
        bench.run();
        let watermark = watermark.map(StreamElement::Watermark);
        let expected: Vec<_> = [timed(&values, &times)]
            .into_iter()
            .chain(watermark)
            .collect();
        assert_eq!(take(&mut gates[0]), expected);
    }
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

/// Consumers begin without event time: where nothing new comes, they would hold back everybody who listens to them.
#[tokio::test]
async fn a_restored_watermark_is_sent_again_before_anything_else() {
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let fed = Fed(Arc::new(Mutex::new(vec![50])));
    let chain = node(
        1,
        WatermarkOperator::new(WatermarkStrategy::monotonous()),
        vec![writer],
    );
    let restored = RestoredOperator {
        is_restored: true,
        checkpoint: Some(CheckpointId(1)),
        watermark: Some(99),
        ..RestoredOperator::default()
    };
    let none = RestoredOperator::default();
    let mut bench = Bench::restored(source(OneReader(fed), vec![chain]), vec![none, restored]);
    bench.run();
    let seen = take(&mut gates[0]);
    assert_eq!(
        seen.first(),
        Some(&StreamElement::Watermark(99)),
        "{seen:?}"
    );
    assert_eq!(seen.len(), 2, "{seen:?}");
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

/// One input is ten milliseconds ahead: the other is read up to that time first.
#[tokio::test]
async fn an_input_that_is_behind_in_event_time_goes_first() {
    let channels = Channels::new().await;
    let (mut inputs, gate) = channels.inputs::<u64>(2);
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let map = node(0, MapOperator::new(|n: u64| Ok(n)), vec![writer]);
    let mut bench = Bench::new(input(gate, map), 1);
    for (channel, times) in [(0, [10, 11, 12, 13]), (1, [0, 9, 10, 12])] {
        for time in times {
            inputs[channel].push(StreamElement::Batch(Batch {
                values: vec![time],
                timestamps: Vec::new(),
            }));
            inputs[channel].push(StreamElement::Watermark(time as i64));
        }
        assert!(inputs[channel].flush().unwrap());
    }
    bench.run();
    assert_eq!(records(&mut gates[0]), [10, 0, 9, 10, 11, 12, 12, 13]);
}

/// A job that was drained has input left, and event time at its end: its next attempt ends, too. Another job that begins from there reads on.
#[tokio::test]
async fn a_source_that_had_ended_ends_again_and_reads_no_more() {
    for (checkpoint, reads_on) in [
        (CheckpointId(3), false),
        (TaskRestore::OF_ANOTHER_JOB, true),
    ] {
        let channels = Channels::new().await;
        let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
        let fed = Fed(Arc::new(Mutex::new(vec![1])));
        let restored = RestoredOperator {
            is_restored: true,
            checkpoint: Some(checkpoint),
            is_finished: true,
            ..RestoredOperator::default()
        };
        let mut bench = Bench::restored(source(OneReader(fed), vec![writer]), vec![restored]);
        bench.run();
        let expected = match reads_on {
            true => vec![timed(&[1], &[1])],
            false => vec![
                StreamElement::Watermark(MAX_WATERMARK),
                StreamElement::EndOfInput,
            ],
        };
        assert_eq!(take(&mut gates[0]), expected);
    }
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

/// The stream before wakes up, and its records are filtered out: whoever finds idleness out here goes on to say so.
#[tokio::test]
async fn a_strategy_that_finds_idleness_out_takes_nobodys_word_for_it() {
    for is_own in [true, false] {
        let channels = Channels::new().await;
        let (mut inputs, gate) = channels.inputs::<u64>(1);
        let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
        let strategy = WatermarkStrategy::monotonous();
        let strategy = match is_own {
            true => strategy.with_idleness(Duration::from_secs(1)),
            false => strategy,
        };
        let chain = node(0, WatermarkOperator::new(strategy), vec![writer]);
        let mut bench = Bench::new(input(gate, chain), 1);
        for status in [StreamStatus::Idle, StreamStatus::Active] {
            inputs[0].push(StreamElement::Status(status));
            inputs[0].flush().unwrap();
            bench.run();
            assert_eq!(take(&mut gates[0]).is_empty(), is_own, "{status:?}");
        }
    }
}

/// One record with an event time, one without, one with: gathered, and in the order of polls.
#[derive(Clone)]
struct Mixed(u64);

impl SourceReader<u64> for Mixed {
    fn poll(&mut self, out: &mut Batch<u64>, _: usize, _: Instant) -> FunctionResult<SourceStatus> {
        if self.0 == 3 {
            return Ok(SourceStatus::Waiting { until: None });
        }
        let time = (self.0 != 1).then_some(self.0 as i64);
        out.push(self.0, time);
        self.0 += 1;
        Ok(SourceStatus::More)
    }
    fn snapshot(&self) -> Vec<SourceSplit> {
        Vec::new()
    }
    fn position(&self, _: usize) -> Option<(String, u64)> {
        None
    }
}

/// Whether a record has an event time does not depend on who is gathered with it.
#[tokio::test]
async fn records_with_and_without_event_time_keep_what_they_have() {
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let mut bench = Bench::new(source(OneReader(Mixed(0)), vec![writer]), 1);
    bench.run();
    let expected = [timed(&[0], &[0]), timed(&[1], &[]), timed(&[2], &[2])];
    assert_eq!(take(&mut gates[0]), expected);
}
