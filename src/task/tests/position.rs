//! Where a failure says that it was: the record itself where that is known, else the records among which it is, never another one.

use perennial_actors::TaskControl;
use perennial_actors::model::CheckpointId;

use super::*;
use crate::batch::{Batch, StreamElement};
use crate::connector::{
    BlackholeSink, Committable, GeneratorContext, GeneratorSource, LinesSource, Sink, SinkWriter,
    SubtaskContext,
};
use crate::error::{FunctionError, FunctionResult};
use crate::operator::{
    AggregateFunction, ByKey, FilterOperator, FlatMapOperator, KeyedProcess, KeyedProcessFunction,
    MapOperator, Panes, ProcessContext, SeparateWindows, TimeWindow, TumblingEventTimeWindows,
    WatermarkOperator, WatermarkStrategy, WindowOperator,
};
use crate::state::TimeDomain;

type Numbers = GeneratorSource<fn(GeneratorContext) -> (u64, Option<i64>)>;
type Map = MapOperator<Box<dyn FnMut(u64) -> FunctionResult<u64> + Send>, u64, u64>;

fn numbers(events: u64) -> Numbers {
    let number: fn(GeneratorContext) -> _ = |c| (c.index, Some(c.index as i64));
    GeneratorSource::new(Some(1), number).events(events)
}

/// How a function fails.
#[derive(Debug, Clone, Copy)]
enum How {
    Error,
    Panic,
}

const HOWS: [How; 2] = [How::Error, How::Panic];

fn check(how: How, is_bad: bool) -> FunctionResult {
    match how {
        _ if !is_bad => Ok(()),
        How::Error => Err(FunctionError::new("bad record")),
        How::Panic => panic!("bad record"),
    }
}

fn fails_at(how: How, bad: u64) -> Map {
    MapOperator::new(Box::new(move |n| check(how, n == bad).map(|()| n)))
}

fn passes() -> Map {
    MapOperator::new(Box::new(Ok))
}

fn at(operator: &str, position: impl Into<String>) -> (String, String) {
    (operator.to_owned(), position.into())
}

#[test]
fn behind_operators_of_one_record_each_it_is_the_record_of_the_source() {
    for how in HOWS {
        for bad in [0, 1, 1023, 1024, 1500, 2999] {
            let end = node(3, fails_at(how, bad), vec![sink(4, BlackholeSink::new())]);
            let all = FilterOperator::new(|_: &u64| Ok(true));
            let chain = node(1, passes(), vec![node(2, all, vec![end])]);
            let mut bench = Bench::new(source(numbers(3000), vec![chain]), 5);
            assert_eq!(bench.place(), at("op3", format!("lane-0@{bad}")), "{how:?}");
        }
    }
}

/// The other branch of the chain has nothing to do with it.
#[test]
fn it_is_found_in_every_branch() {
    let good = node(1, passes(), vec![sink(2, BlackholeSink::new())]);
    let bad = fails_at(How::Panic, 1100);
    let bad = node(3, bad, vec![sink(4, BlackholeSink::new())]);
    let mut bench = Bench::new(source(numbers(3000), vec![good, bad]), 5);
    assert_eq!(bench.place(), at("op3", "lane-0@1100"));
}

/// The i-th of n records that are left of m has i before it and n - i - 1 after it: that bounds where it came from.
#[test]
fn behind_a_filter_that_dropped_some_it_is_a_range() {
    for how in HOWS {
        let some = FilterOperator::new(|n: &u64| Ok(*n != 1030 && *n != 1040));
        let end = node(2, fails_at(how, 1500), vec![sink(3, BlackholeSink::new())]);
        let mut bench = Bench::new(source(numbers(3000), vec![node(1, some, vec![end])]), 4);
        assert_eq!(bench.place(), at("op2", "lane-0@1498..=1500"), "{how:?}");
    }
}

#[test]
fn behind_a_flat_map_it_is_the_records_of_its_output() {
    for how in HOWS {
        let three = FlatMapOperator::new(|n: u64| Ok((0..3).map(move |i| n * 3 + i)));
        let end = node(2, fails_at(how, 1025), vec![sink(3, BlackholeSink::new())]);
        let mut bench = Bench::new(source(numbers(3000), vec![node(1, three, vec![end])]), 4);
        // The first 1024 outputs are of records 0 to 341; the next begin with what is left of 341.
        assert_eq!(bench.place(), at("op2", "lane-0@341..=682"), "{how:?}");
    }
}

#[test]
fn within_a_flat_map_it_is_the_record_even_while_its_output_is_drawn() {
    let draws = FlatMapOperator::new(|n: u64| {
        Ok((0..3000).inspect(move |i| assert!((n, *i) != (2, 1500), "bad output")))
    });
    let to_u64 = MapOperator::new(|n: i32| Ok(n));
    let chain = node(
        1,
        draws,
        vec![node(2, to_u64, vec![sink(3, BlackholeSink::new())])],
    );
    let mut bench = Bench::new(source(numbers(3000), vec![chain]), 4);
    assert_eq!(bench.place(), at("op1", "lane-0@2"));
}

#[test]
fn within_a_generator_it_is_the_record_that_it_could_not_make() {
    for bad in [0, 1, 1024, 1500] {
        let generator = GeneratorSource::new(Some(1), move |c: GeneratorContext| {
            assert!(c.index != bad, "bad record");
            (c.index, None)
        });
        let mut bench = Bench::new(source(generator, vec![sink(1, BlackholeSink::new())]), 2);
        assert_eq!(bench.place(), at("op0", format!("lane-0@{bad}")));
    }
}

#[test]
fn behind_files_it_is_path_and_byte() {
    for how in HOWS {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&first, "0\n1\n2\n").unwrap();
        std::fs::write(&second, "ten\r\n11\n12\n").unwrap();
        let lines = LinesSource::files([&first, &second]);
        let picky = MapOperator::new(move |l: String| check(how, l == "12").map(|()| l));
        let chain = node(1, picky, vec![sink(2, BlackholeSink::new())]);
        let mut bench = Bench::new(source(lines, vec![chain]), 3);
        let expected = format!("{}@8", second.display());
        assert_eq!(bench.place(), at("op1", expected), "{how:?}");
    }
}

#[test]
fn within_a_file_source_it_is_the_line_that_does_not_decode() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, b"0\n1\n\xff\n").unwrap();
    let lines = LinesSource::files([&path]);
    let mut bench = Bench::new(source(lines, vec![sink(1, BlackholeSink::new())]), 2);
    let expected = format!("{}@4", path.display());
    assert_eq!(bench.place(), at("op0", expected));
}

/// Fails at a record or in a timer.
struct Fails {
    how: How,
    record: u64,
    timer: Option<i64>,
}

impl KeyedProcessFunction<u64, u64> for Fails {
    type Out = u64;

    fn process(&mut self, n: u64, cx: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        if let Some(time) = self.timer {
            cx.register_event_time_timer(time)?;
        }
        check(self.how, n == self.record)
    }

    fn on_timer(
        &mut self,
        _: i64,
        _: TimeDomain,
        _: &mut ProcessContext<'_, u64, u64>,
    ) -> FunctionResult {
        check(self.how, true)
    }
}

fn keyed(function: Fails, bad_key: u64) -> Box<dyn Chained<u64>> {
    let selector = move |n: &u64| {
        assert!(*n != bad_key, "bad key");
        n % 10
    };
    let operator = KeyedProcess::<_, u64, u64, _>::new(function, selector);
    node(2, operator, vec![sink(3, BlackholeSink::new())])
}

#[test]
fn within_a_keyed_function_and_its_key_selector_it_is_the_record() {
    for (how, record, key) in [
        (How::Error, 1500, u64::MAX),
        (How::Panic, 1500, u64::MAX),
        (How::Error, u64::MAX, 1500),
        (How::Error, u64::MAX, 0),
    ] {
        let timer = None;
        let chain = keyed(Fails { how, record, timer }, key);
        let chain = node(1, passes(), vec![chain]);
        let mut bench = Bench::new(source(numbers(3000), vec![chain]), 4);
        let expected = format!("lane-0@{}", record.min(key));
        assert_eq!(bench.place(), at("op2", expected), "{how:?}");
    }
}

#[test]
fn within_what_assigns_event_times_it_is_the_record() {
    for bad in [0, 1, 1023, 1024, 1500] {
        let assigns = WatermarkStrategy::monotonous().with_timestamps(move |n: &u64, _| {
            assert!(*n != bad, "bad record");
            *n as i64
        });
        let end = vec![sink(2, BlackholeSink::new())];
        let chain = node(1, WatermarkOperator::new(assigns), end);
        let mut bench = Bench::new(source(numbers(3000), vec![chain]), 3);
        assert_eq!(bench.place(), at("op1", format!("lane-0@{bad}")));
    }
}

/// Adds up, and fails at one record.
#[derive(Clone, Copy)]
struct Sum {
    bad: u64,
}

impl AggregateFunction for Sum {
    type In = u64;
    type Accumulator = u64;
    type Out = u64;

    fn create_accumulator(&self) -> u64 {
        0
    }
    fn add(&self, sum: &mut u64, n: u64) {
        assert!(n != self.bad, "bad record");
        *sum += n;
    }
    fn result(&self, sum: &u64) -> u64 {
        *sum
    }
    fn merge(&self, sum: &mut u64, other: &u64) {
        *sum += other;
    }
}

#[test]
fn within_a_window_and_its_key_selector_it_is_the_record() {
    const SIZE_MS: i64 = 100_000;
    for (bad, key) in [
        (0, u64::MAX),
        (64, u64::MAX),
        (1500, u64::MAX),
        (u64::MAX, 63),
        (u64::MAX, 1500),
    ] {
        let selector = move |n: &u64| {
            assert!(*n != key, "bad key");
            n % 10
        };
        let result = |_: &u64, _: TimeWindow, sum: u64| sum;
        let panes = Panes::new(SIZE_MS, SIZE_MS, 0, 0).unwrap();
        let together =
            WindowOperator::<_, u64, _, _, _>::new(Sum { bad }, panes, selector, result, None);
        let assigner = TumblingEventTimeWindows::of(Duration::from_millis(SIZE_MS as u64));
        let separate = SeparateWindows::<_, u64, _, _, _>::new(
            Sum { bad },
            assigner,
            selector,
            result,
            None,
            0,
        );
        let end = || vec![sink(2, BlackholeSink::new())];
        for chain in [node(1, together, end()), node(1, separate, end())] {
            let mut bench = Bench::new(source(numbers(3000), vec![chain]), 3);
            let expected = format!("lane-0@{}", bad.min(key));
            assert_eq!(bench.place(), at("op1", expected));
        }
    }
}

/// The timer's work is no record's; where the input had come to helps all the same.
#[test]
fn within_a_timer_it_is_event_time_and_the_record_before() {
    let (how, record, timer) = (How::Panic, u64::MAX, Some(1100));
    let timed = keyed(Fails { how, record, timer }, u64::MAX);
    let watermarks = WatermarkOperator::new(WatermarkStrategy::monotonous());
    let chain = node(1, watermarks, vec![timed]);
    let mut bench = Bench::new(source(numbers(3000), vec![chain]), 4);
    let expected = "event time 2046, after lane-0@2047";
    assert_eq!(bench.place(), at("op2", expected));
}

#[tokio::test]
async fn behind_channels_it_is_the_number_of_the_record_in_its_channel() {
    let channels = Channels::new().await;
    let (mut outputs, gate) = channels.inputs::<u64>(2);
    let failing = fails_at(How::Panic, 1041);
    let chain = node(0, failing, vec![sink(1, BlackholeSink::new())]);
    let mut bench = Bench::new(input(gate, chain), 2);
    for from in [0, 1000, 1030] {
        let values = (from..from + 20).collect();
        let timestamps = Vec::new();
        outputs[1].push(StreamElement::Batch(Batch { values, timestamps }));
    }
    outputs[1].flush().unwrap();
    let expected = "record 52 from vertex 0 subtask 1 (12 of batch 3)";
    assert_eq!(bench.place(), at("op0", expected));
}

/// The partitioner belongs to no operator: the one before it is named.
#[tokio::test]
async fn within_a_key_selector_of_a_writer_it_is_the_record() {
    let channels = Channels::new().await;
    let selector = |n: &u64| {
        assert!(*n != 1500, "bad key");
        *n
    };
    let (writer, _gates) = channels.outputs(2, ByKey::new(selector, 2, 128));
    let chain = node(1, passes(), vec![writer]);
    let mut bench = Bench::new(source(numbers(1600), vec![chain]), 2);
    assert_eq!(bench.place(), at("op1", "lane-0@1500"));
}

/// Fails when told so.
#[derive(Clone, Copy)]
struct Broken {
    record: Option<(How, u64)>,
    is_prepare_bad: bool,
    is_commit_bad: bool,
}

impl Sink<u64> for Broken {
    fn writer(&self, _: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<u64>>> {
        Ok(Box::new(*self))
    }
}

impl SinkWriter<u64> for Broken {
    fn write(&mut self, batch: &mut Batch<u64>) -> FunctionResult {
        for (index, n) in batch.values.iter().enumerate() {
            if let Some((how, bad)) = self.record {
                check(how, *n == bad).map_err(|error| error.at_record(index))?;
            }
        }
        batch.clear();
        Ok(())
    }

    fn prepare_commit(&mut self, _: CheckpointId) -> FunctionResult<Option<Vec<u8>>> {
        check(How::Error, self.is_prepare_bad)?;
        Ok(Some(Vec::new()))
    }

    fn commit(&mut self, _: &Committable) -> FunctionResult {
        check(How::Panic, self.is_commit_bad)
    }
}

#[test]
fn within_a_sink_it_is_the_record_if_the_sink_says_so_else_the_batch() {
    for (how, expected) in [
        (How::Error, "lane-0@1500"),
        (How::Panic, "lane-0@1024..=2047"),
    ] {
        let broken = Broken {
            record: Some((how, 1500)),
            is_prepare_bad: false,
            is_commit_bad: false,
        };
        let mut bench = Bench::new(source(numbers(3000), vec![sink(1, broken)]), 2);
        assert_eq!(bench.place(), at("op1", expected), "{how:?}");
    }
}

#[test]
fn work_for_a_checkpoint_is_no_records_work() {
    for (is_prepare_bad, expected) in [
        (true, "the snapshot of checkpoint 1, after lane-0@19"),
        (false, "the commit of checkpoint 1, after lane-0@19"),
    ] {
        let broken = Broken {
            record: None,
            is_prepare_bad,
            is_commit_bad: !is_prepare_bad,
        };
        let mut bench = Bench::new(source(numbers(20), vec![sink(1, broken)]), 2);
        bench.run();
        bench.order(TaskControl::Trigger(barrier(1)));
        if !is_prepare_bad {
            bench.run();
            bench.order(TaskControl::NotifyComplete(CheckpointId(1)));
        }
        assert_eq!(bench.place(), at("op1", expected));
    }
}
