//! Event time through a task: assigned, merged, restored; and who is idle.

use perennial_actors::TaskControl;
use perennial_actors::model::CheckpointId;

use super::*;
use crate::batch::{Batch, StreamElement, StreamStatus, Timestamp};
use crate::connector::{
    GeneratorContext, GeneratorSource, SourceReader, SourceSplit, SourceStatus,
};
use crate::error::FunctionResult;
use crate::operator::{
    Forward, KeyedProcess, KeyedProcessFunction, MapOperator, ProcessContext, WatermarkOperator,
    WatermarkStrategy,
};
use crate::state::TimeDomain;

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

/// Channel 0 is blocked by a barrier that channel 1 has not brought yet: what waits there says that the stream goes on.
#[tokio::test(start_paused = true)]
async fn a_stream_is_not_idle_because_its_barriers_are_aligned() {
    let idleness = Duration::from_secs(1);
    let channels = Channels::new().await;
    let (mut inputs, gate) = channels.inputs::<u64>(2);
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let strategy = WatermarkStrategy::monotonous().with_idleness(idleness);
    let chain = node(0, WatermarkOperator::new(strategy), vec![writer]);
    let mut bench = Bench::new(input(gate, chain), 1);
    inputs[0].push(StreamElement::Barrier(barrier(1)));
    inputs[0].push(timed(&[5], &[5]));
    assert!(inputs[0].flush().unwrap());
    for _ in 0..3 {
        bench.run();
        tokio::time::advance(idleness).await;
        bench.now = Instant::now();
    }
    bench.run();
    assert_eq!(take(&mut gates[0]), []);
    inputs[1].push(StreamElement::Barrier(barrier(1)));
    assert!(inputs[1].flush().unwrap());
    bench.run();
    let expected = [
        StreamElement::Barrier(barrier(1)),
        timed(&[5], &[5]),
        StreamElement::Watermark(4),
    ];
    assert_eq!(take(&mut gates[0]), expected);
    // From here on nothing holds it up.
    for _ in 0..2 {
        tokio::time::advance(idleness).await;
        bench.now = Instant::now();
        bench.run();
    }
    assert_eq!(
        take(&mut gates[0]),
        [StreamElement::Status(StreamStatus::Idle)]
    );
}

/// The task waits for its last checkpoint: that nothing comes any more is no idleness.
#[tokio::test(start_paused = true)]
async fn a_stream_that_has_ended_is_not_idle() {
    let channels = Channels::new().await;
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let strategy = WatermarkStrategy::monotonous().with_idleness(Duration::from_secs(1));
    let chain = node(1, WatermarkOperator::new(strategy), vec![writer]);
    let numbers = GeneratorSource::new(Some(1), |c: GeneratorContext| (c.index, None)).events(3);
    let bench = Bench::new(source(numbers, vec![chain]), 2);
    expect_nothing_after_the_end(bench, &mut gates[0]).await;
}

/// Registers a timer of processing time, and emits when it fires.
#[derive(Clone)]
struct Later;

impl KeyedProcessFunction<u64, u64> for Later {
    type Out = u64;

    fn process(&mut self, _: u64, cx: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        let time = cx.processing_time() + 500;
        cx.register_processing_time_timer(time)?;
        Ok(())
    }

    fn on_timer(
        &mut self,
        _: Timestamp,
        _: TimeDomain,
        cx: &mut ProcessContext<'_, u64, u64>,
    ) -> FunctionResult {
        cx.emit(0);
        Ok(())
    }
}

/// As in Flink, where they are stopped: what they emit would come behind the end, and belong to no checkpoint.
#[tokio::test(start_paused = true)]
async fn no_timer_of_processing_time_fires_after_the_end() {
    let channels = Channels::new().await;
    let (mut inputs, gate) = channels.inputs::<u64>(1);
    let (writer, mut gates) = channels.outputs::<u64>(1, Forward);
    let chain = node(0, KeyedProcess::new(Later, |n: &u64| *n), vec![writer]);
    let bench = Bench::new(input(gate, chain), 1);
    inputs[0].push(timed(&[5], &[5]));
    inputs[0].push(StreamElement::EndOfInput);
    assert!(inputs[0].flush().unwrap());
    expect_nothing_after_the_end(bench, &mut gates[0]).await;
}

async fn expect_nothing_after_the_end(mut bench: Bench, gate: &mut InputGate<u64>) {
    bench.run();
    assert_eq!(take(gate).last(), Some(&StreamElement::EndOfInput));
    tokio::time::advance(Duration::from_secs(3)).await;
    bench.now = Instant::now();
    bench.order(TaskControl::Trigger(barrier(1)));
    bench.run();
    assert_eq!(take(gate), []);
    assert_eq!(bench.snapshots.taken(), [1]);
}
