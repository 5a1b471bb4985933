//! The merciless job, and what it must give: state, event-time timers, windows, a transactional sink. The simulator runs it with a sink
//! in memory, the nodes of `perennial-chaos-node` with committed files.
//!
//! Invariant: the answer does not depend on the order in which records of different lanes meet, so a plain loop can tell it.
//! `expected` shares with the job the event function and nothing of the engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use perennial::batch::Timestamp;
use perennial::connector::{CommittedCollect, FileSink, GeneratorContext, GeneratorSource, Sink};
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{
    AggregateFunction, KeyedProcessFunction, OpenContext, ProcessContext, TimeWindow,
    TumblingEventTimeWindows, WatermarkStrategy,
};
use perennial::state::{TimeDomain, ValueState};
use serde::{Deserialize, Serialize};

use crate::plan::WorkloadPlan;

/// Under which the job is registered in the simulator.
pub(crate) const NAME: &str = "simulated";
/// Under which it is registered in processes.
pub const PROCESS_NAME: &str = "merciless";
/// Lanes of the source; one source subtask each, so that event time never falls within a subtask.
pub(crate) const LANES: u32 = 3;
/// Event time between two records of a lane.
const STEP_MS: i64 = 10;
/// Event time of a timer's bucket.
pub(crate) const BUCKET_MS: i64 = 250;
/// Event time of a window.
pub(crate) const WINDOW_MS: i64 = 1000;

/// One input record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) key: u64,
    sequence: u64,
    pub(crate) value: u64,
    pub(crate) time: Timestamp,
}

/// What a bucket of a key held when its timer fired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    key: u64,
    count: u64,
    sum: u64,
    /// Records of the key up to the end of the bucket.
    total: u64,
}

/// One committed record: what a window of a key held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Output {
    /// Whose.
    pub key: u64,
    /// Where the window begins.
    pub start: Timestamp,
    /// Records.
    pub count: u64,
    /// Of their values, modulo 2^64.
    pub sum: u64,
    /// Of the totals of its buckets: shows the order in which timers fired.
    pub totals: u64,
}

/// Makes the user function break.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fuse(Arc<Mutex<FuseState>>);

#[derive(Debug, Default)]
struct FuseState {
    lit: Option<Lit>,
    blown: Vec<Break>,
}

#[derive(Debug)]
struct Lit {
    what: Break,
    /// Breaks that are left; `u32::MAX`: no end.
    left: u32,
}

/// How the user function breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// A panic at a record.
    Panic,
    /// An error at a record.
    Error {
        /// Marked so.
        is_unrecoverable: bool,
    },
}

/// What every break says, so that its cause can be told.
pub(crate) const BREAK: &str = "the user function breaks on purpose";

impl Fuse {
    /// From now on, so many calls break.
    pub(crate) fn light(&self, what: Break, times: u32) {
        lock(&self.0).lit = Some(Lit { what, left: times });
    }

    /// Whether calls will break, and stop to break one day.
    pub(crate) fn is_burning(&self) -> bool {
        lock(&self.0)
            .lit
            .as_ref()
            .is_some_and(|lit| lit.left != u32::MAX)
    }

    /// Breaks so far.
    pub(crate) fn blown(&self) -> Vec<Break> {
        lock(&self.0).blown.clone()
    }

    /// Called by the user function at each record: breaks when it is this call's turn.
    fn check(&self) -> FunctionResult {
        let mut state = lock(&self.0);
        let Some(lit) = &mut state.lit else {
            return Ok(());
        };
        let what = lit.what;
        if lit.left != u32::MAX {
            lit.left -= 1;
        }
        if lit.left == 0 {
            state.lit = None;
        }
        state.blown.push(what);
        drop(state);
        match what {
            Break::Panic => panic!("{BREAK}"),
            Break::Error {
                is_unrecoverable: true,
            } => Err(FunctionError::unrecoverable(BREAK)),
            Break::Error {
                is_unrecoverable: false,
            } => Err(FunctionError::new(BREAK)),
        }
    }
}

fn scramble(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x2545_f491_4f6c_dd1d);
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The record of a lane at a position.
pub(crate) fn event(workload: &WorkloadPlan, lane: u32, index: u64) -> Event {
    let sequence = index * u64::from(LANES) + u64::from(lane);
    let random = scramble(workload.seed ^ scramble(sequence));
    Event {
        // Half of the records go to a fifth of the keys.
        key: if random & 1 == 0 {
            (random >> 8) % workload.keys
        } else {
            (random >> 8) % workload.keys.div_ceil(5)
        },
        sequence,
        value: scramble(random),
        time: index as i64 * STEP_MS,
    }
}

/// Gathers events in buckets of event time; a bucket's timer emits it.
#[derive(Clone)]
struct Buckets {
    fuse: Fuse,
    /// Sabotage: open buckets of all keys where no checkpoint sees them.
    forgetful: Option<Arc<Mutex<BTreeMap<u64, Open>>>>,
    state: Option<ValueState<State>>,
}

/// What is stored of a key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Records of buckets that have been emitted.
    pub(crate) total: u64,
    /// The others.
    pub(crate) open: Open,
}

/// Count and sum by the last time of the bucket.
pub(crate) type Open = BTreeMap<Timestamp, (u64, u64)>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buckets {
    fn state(&self) -> FunctionResult<&ValueState<State>> {
        self.state
            .as_ref()
            .ok_or_else(|| FunctionError::new("open was not called"))
    }
}

impl KeyedProcessFunction<u64, Event> for Buckets {
    type Out = Bucket;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.state = Some(cx.value_state("buckets")?);
        Ok(())
    }

    fn process(
        &mut self,
        event: Event,
        cx: &mut ProcessContext<'_, u64, Bucket>,
    ) -> FunctionResult {
        self.fuse.check()?;
        let end = event.time - event.time.rem_euclid(BUCKET_MS) + BUCKET_MS - 1;
        let add = |open: &mut Open| {
            let bucket = open.entry(end).or_default();
            bucket.0 += 1;
            bucket.1 = bucket.1.wrapping_add(event.value);
        };
        match &self.forgetful {
            Some(all) => add(lock(all).entry(event.key).or_default()),
            None => self
                .state()?
                .update_in(cx, &(), |slot| add(&mut slot.get_or_insert_default().open))?,
        }
        cx.register_event_time_timer(end)?;
        Ok(())
    }

    fn on_timer(
        &mut self,
        time: Timestamp,
        _domain: TimeDomain,
        cx: &mut ProcessContext<'_, u64, Bucket>,
    ) -> FunctionResult {
        let key = *cx.key();
        let forgotten = self
            .forgetful
            .as_ref()
            .and_then(|all| lock(all).get_mut(&key)?.remove(&time));
        let (count, sum, total) = self.state()?.update_in(cx, &(), |slot| {
            let state = slot.get_or_insert_default();
            let open = state.open.remove(&time);
            let (count, sum) = forgotten.or(open).unwrap_or_default();
            state.total += count;
            (count, sum, state.total)
        })?;
        cx.emit(Bucket {
            key,
            count,
            sum,
            total,
        });
        Ok(())
    }
}

#[derive(Clone)]
struct Add;

impl AggregateFunction for Add {
    type In = Bucket;
    type Accumulator = (u64, u64, u64);
    type Out = (u64, u64, u64);

    fn create_accumulator(&self) -> (u64, u64, u64) {
        (0, 0, 0)
    }

    fn add(&self, accumulator: &mut (u64, u64, u64), bucket: Bucket) {
        accumulator.0 += bucket.count;
        accumulator.1 = accumulator.1.wrapping_add(bucket.sum);
        accumulator.2 += bucket.total;
    }

    fn result(&self, accumulator: &(u64, u64, u64)) -> (u64, u64, u64) {
        *accumulator
    }

    fn merge(&self, accumulator: &mut (u64, u64, u64), other: &(u64, u64, u64)) {
        accumulator.0 += other.0;
        accumulator.1 = accumulator.1.wrapping_add(other.1);
        accumulator.2 += other.2;
    }
}

/// The options of a job with such a parallelism.
#[must_use]
pub(crate) fn arguments(buckets: u32, windows: u32) -> Arguments {
    let option = |option: JobOption, value: u32| (option.name.to_owned(), value.to_string());
    let all = [
        option(PROCESS_PARALLELISM, buckets),
        option(WINDOW_PARALLELISM, windows),
    ];
    Arguments::new(all.into())
}

/// The registry that all nodes of a run carry. `is_forgetful` breaks the job on purpose: a part of its answer is not in its state.
#[must_use]
pub(crate) fn registry(
    workload: &WorkloadPlan,
    sink: &CommittedCollect<Output>,
    fuse: &Fuse,
    is_forgetful: bool,
) -> JobRegistry {
    let (workload, sink, fuse) = (workload.clone(), sink.clone(), fuse.clone());
    let forgetful = is_forgetful.then(Arc::default);
    JobRegistry::new().job(
        NAME,
        "the workload of the simulator",
        &[PROCESS_PARALLELISM, WINDOW_PARALLELISM],
        move |env, arguments| {
            build(
                env,
                arguments,
                &workload,
                sink.clone(),
                Buckets {
                    fuse: fuse.clone(),
                    forgetful: forgetful.clone(),
                    state: None,
                },
            )
        },
    )
}

const PROCESS_PARALLELISM: JobOption = JobOption {
    name: "process-parallelism",
    help: "subtasks of the function with state and timers [default: 2]",
};
const WINDOW_PARALLELISM: JobOption = JobOption {
    name: "window-parallelism",
    help: "subtasks of the window [default: 2]",
};
const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "seed",
        help: "of the events [default: 1]",
    },
    JobOption {
        name: "events",
        help: "of all lanes [default: 3000]",
    },
    JobOption {
        name: "rate",
        help: "events per second and lane [default: 200]",
    },
    JobOption {
        name: "keys",
        help: "different keys [default: 40]",
    },
    PROCESS_PARALLELISM,
    WINDOW_PARALLELISM,
    JobOption {
        name: "output",
        help: "directory of committed output files",
    },
];

/// Adds the job for real processes: its output is committed as files of JSON lines.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    registry.job(
        PROCESS_NAME,
        "buckets, timers, windows and committed files: the job that faults are tried on",
        OPTIONS,
        |env, arguments| {
            let workload = WorkloadPlan {
                job: PROCESS_NAME.to_owned(),
                seed: arguments.or("seed", 1)?,
                events: arguments.or("events", 3000)?,
                rate: arguments.or("rate", 200)?,
                keys: arguments.or("keys", 40)?,
                parallelism: Vec::new(),
            };
            if workload.keys == 0 {
                return Err(FunctionError::unrecoverable("need --keys >= 1"));
            }
            let output: String = arguments.required("output")?;
            let buckets = Buckets {
                fuse: Fuse::default(),
                forgetful: None,
                state: None,
            };
            build(env, arguments, &workload, FileSink::json(output), buckets)
        },
    )
}

/// What the files of a run in processes must hold, sorted.
///
/// # Panics
/// Never: its records are plain data.
#[must_use]
pub fn expected_lines(workload: &WorkloadPlan) -> Vec<String> {
    let line = |output: &Output| serde_json::to_string(output).expect("plain data is JSON");
    let mut lines: Vec<_> = expected(workload).iter().map(line).collect();
    lines.sort();
    lines
}

fn build(
    env: &StreamEnvironment,
    arguments: &Arguments,
    workload: &WorkloadPlan,
    sink: impl Sink<Output>,
    buckets: Buckets,
) -> FunctionResult {
    let (buckets_parallelism, windows_parallelism): (u32, u32) = (
        arguments.or(PROCESS_PARALLELISM.name, 2)?,
        arguments.or(WINDOW_PARALLELISM.name, 2)?,
    );
    let for_source = workload.clone();
    let source = GeneratorSource::new(Some(LANES), move |cx: GeneratorContext| {
        let event = event(&for_source, cx.lane, cx.index);
        let time = event.time;
        (event, Some(time))
    })
    .events(workload.events)
    .rate_per_lane(workload.rate as f64);
    let _sink = env
        .from_source(source, WatermarkStrategy::monotonous(), "events")
        .uid("events")
        .parallelism(LANES)
        .key_by(|event: &Event| event.key)
        .process(buckets)
        .name("buckets")
        .uid("buckets")
        .parallelism(buckets_parallelism)
        .key_by(|bucket: &Bucket| bucket.key)
        .window(TumblingEventTimeWindows::of(Duration::from_millis(
            WINDOW_MS as u64,
        )))
        .aggregate_with(
            Add,
            |key: &u64, window: TimeWindow, (count, sum, totals)| Output {
                key: *key,
                start: window.start,
                count,
                sum,
                totals,
            },
        )
        .name("windows")
        .uid("windows")
        .parallelism(windows_parallelism)
        .sink_to(sink)
        .name("committed")
        .uid("committed")
        .parallelism(windows_parallelism);
    Ok(())
}

/// What must be committed, by a plain loop, sorted.
#[must_use]
pub(crate) fn expected(workload: &WorkloadPlan) -> Vec<Output> {
    let mut buckets: BTreeMap<(u64, Timestamp), (u64, u64)> = BTreeMap::new();
    for sequence in 0..workload.events {
        let event = event(
            workload,
            (sequence % u64::from(LANES)) as u32,
            sequence / u64::from(LANES),
        );
        let bucket = buckets
            .entry((event.key, event.time / BUCKET_MS))
            .or_default();
        bucket.0 += 1;
        bucket.1 = bucket.1.wrapping_add(event.value);
    }
    let mut windows: BTreeMap<(u64, Timestamp), Output> = BTreeMap::new();
    let mut totals: BTreeMap<u64, u64> = BTreeMap::new();
    // Buckets of a key come in order of time.
    for ((key, bucket), (count, sum)) in buckets {
        let total = totals.entry(key).or_default();
        *total += count;
        let start = bucket * BUCKET_MS / WINDOW_MS * WINDOW_MS;
        let window = windows.entry((key, start)).or_insert(Output {
            key,
            start,
            count: 0,
            sum: 0,
            totals: 0,
        });
        window.count += count;
        window.sum = window.sum.wrapping_add(sum);
        window.totals += *total;
    }
    windows.into_values().collect()
}
