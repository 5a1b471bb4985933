//! Windows against a naive fold: every record is kept in a list per key and window, as Flink describes it. Records come out of order and
//! late; state is restored in the middle, also at another parallelism.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use perennial_actors::clock::Clock;
use perennial_actors::fault::FaultPoints;
use perennial_actors::model::{
    Attempt, CheckpointId, ExecutionAttemptId, JobId, KeyGroupRange, LeaderEpoch, OperatorId,
    SnapshotKind, SubtaskIndex, VertexId,
};
use proptest::prelude::*;

use super::*;
use crate::batch::{BATCH_RECORDS_MAX, Batch, MAX_WATERMARK};
use crate::key::KeyHash;
use crate::operator::single::{Emitted, Operator, Pending, SignalResult};
use crate::operator::{
    AnySideOutput, KeyedStates, LoadedSegment, OperatorStateStore, Output, OutputTag, Place,
    RestoredOperator, SideOutput, SideOutputs, Signal, StartContext, TaskContext, TaskFaults,
    TaskInfo,
};
use crate::state::{CaptureProgress, CaptureRequest, CapturedState, KeyedBackend, TimeDomain};

const MAX_PARALLELISM: u32 = 8;

/// A key and a number that tells records apart.
type Item = (u64, u32);
/// What a window of a key held, sorted.
type Fired = (u64, TimeWindow, Vec<u32>);

#[derive(Clone)]
struct Members;

impl AggregateFunction for Members {
    type In = Item;
    type Accumulator = Vec<u32>;
    type Out = Vec<u32>;

    fn create_accumulator(&self) -> Vec<u32> {
        Vec::new()
    }
    fn add(&self, members: &mut Vec<u32>, (_, id): Item) {
        members.push(id);
    }
    fn result(&self, members: &Vec<u32>) -> Vec<u32> {
        let mut sorted = members.clone();
        sorted.sort_unstable();
        sorted
    }
    fn merge(&self, members: &mut Vec<u32>, other: &Vec<u32>) {
        members.extend(other);
    }
}

type AnyOperator = Box<dyn Operator<In = Item, Out = Fired>>;

/// How the windows under test are made.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Sliding { size: i64, slide: i64, offset: i64 },
    Session { gap: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Together,
    Separately,
}

fn ms(millis: i64) -> Duration {
    Duration::from_millis(millis.unsigned_abs())
}

impl Kind {
    fn operator(self, kept: Kept, lateness: i64) -> AnyOperator {
        let late = Some(OutputTag::new("late"));
        let key = |item: &Item| item.0;
        let fired = |key: &u64, window, members| (*key, window, members);
        match self {
            Self::Sliding {
                size,
                slide,
                offset,
            } if kept == Kept::Together => {
                let panes = Panes::new(size, slide, offset, lateness).expect("few panes");
                Box::new(WindowOperator::<_, u64, _, _, _>::new(
                    Members, panes, key, fired, late,
                ))
            }
            Self::Sliding {
                size,
                slide,
                offset,
            } => {
                let assigner =
                    SlidingEventTimeWindows::of(ms(size), ms(slide)).with_offset(ms(offset));
                Box::new(SeparateWindows::<_, u64, _, _, _>::new(
                    Members, assigner, key, fired, late, lateness,
                ))
            }
            Self::Session { gap } => {
                let sessions = Sessions::new(gap, lateness);
                Box::new(WindowOperator::<_, u64, _, _, _>::new(
                    Members, sessions, key, fired, late,
                ))
            }
        }
    }

    fn windows(self, timestamp: Timestamp) -> Vec<TimeWindow> {
        let mut windows = Vec::new();
        let each = &mut |window| windows.push(window);
        match self {
            Self::Sliding {
                size,
                slide,
                offset,
            } => SlidingEventTimeWindows::of(ms(size), ms(slide))
                .with_offset(ms(offset))
                .assign(timestamp, each),
            Self::Session { gap } => {
                EventTimeSessionWindows::with_gap(ms(gap)).assign(timestamp, each);
            }
        }
        windows
    }
}

/// The fold.
struct Oracle {
    kind: Kind,
    lateness: i64,
    watermark: Timestamp,
    /// Members by key and window.
    windows: BTreeMap<(u64, TimeWindow), Vec<u32>>,
}

impl Oracle {
    fn is_gone(&self, window: TimeWindow) -> bool {
        window.max_timestamp().saturating_add(self.lateness) <= self.watermark
    }

    /// What is emitted at once; `None`: it is late.
    fn record(&mut self, (key, id): Item, timestamp: Timestamp) -> Option<Vec<Fired>> {
        let mut fired = Vec::new();
        let mut is_late = true;
        for mut window in self.kind.windows(timestamp) {
            let mut members = vec![id];
            if matches!(self.kind, Kind::Session { .. }) {
                let touched: Vec<_> = self
                    .windows
                    .keys()
                    .filter(|(k, w)| *k == key && w.start <= window.end && window.start <= w.end)
                    .copied()
                    .collect();
                for session in touched {
                    members.extend(self.windows.remove(&session).unwrap_or_default());
                    window.start = window.start.min(session.1.start);
                    window.end = window.end.max(session.1.end);
                }
            }
            if self.is_gone(window) {
                continue;
            }
            is_late = false;
            let all = self.windows.entry((key, window)).or_default();
            all.extend(members);
            all.sort_unstable();
            if window.max_timestamp() <= self.watermark {
                fired.push((key, window, all.clone()));
            }
        }
        (!is_late).then_some(fired)
    }

    fn watermark(&mut self, watermark: Timestamp) -> Vec<Fired> {
        let ends = self.watermark + 1..=watermark;
        let fired = self.windows.iter();
        let fired = fired.filter(|((_, window), _)| ends.contains(&window.max_timestamp()));
        let fired = fired.map(|((key, window), all)| (*key, *window, all.clone()));
        let fired = fired.collect();
        self.watermark = watermark;
        let lateness = self.lateness;
        self.windows
            .retain(|(_, window), _| window.max_timestamp().saturating_add(lateness) > watermark);
        fired
    }
}

/// An operator's subtask, driven by hand.
struct Subtask {
    operator: AnyOperator,
    keyed: KeyedStates,
    range: KeyGroupRange,
}

fn emitted() -> Emitted<Fired> {
    let side: Box<dyn AnySideOutput> = Box::new(SideOutput::<Item>::new(
        "late".into(),
        Output::new(Vec::new()),
    ));
    Emitted {
        batch: Batch::default(),
        sides: SideOutputs::new(vec![side]),
        signals: VecDeque::new(),
        lists: OperatorStateStore::default(),
    }
}

fn info(subtask: u32, parallelism: u32) -> TaskInfo {
    TaskInfo {
        attempt: ExecutionAttemptId {
            job: JobId(1),
            vertex: VertexId(0),
            subtask: SubtaskIndex(subtask),
            epoch: LeaderEpoch(1),
            attempt: Attempt(1),
        },
        job_name: "windows".into(),
        parallelism,
        max_parallelism: MAX_PARALLELISM,
        key_groups: KeyGroupRange::of(SubtaskIndex(subtask), parallelism, MAX_PARALLELISM),
        operators: vec![(OperatorId::from_uid("window"), "window".into())],
        names: vec!["window".into()],
        buffer_timeout: Duration::ZERO,
        log_bytes_max: 1 << 20,
    }
}

/// Where a new attempt begins.
#[derive(Default)]
struct Snapshot {
    watermark: Option<Timestamp>,
    states: Vec<CapturedState>,
}

impl Subtask {
    fn open(mut operator: AnyOperator, task: &TaskInfo, from: &Snapshot) -> Self {
        let mut keyed: KeyedStates = vec![None];
        let segments = from.states.iter().map(|captured| LoadedSegment {
            checkpoint: captured.checkpoint,
            kind: captured.kind,
            states: captured.states.clone(),
            groups: captured
                .groups
                .iter()
                .filter(|(group, _)| task.key_groups.contains(*group))
                .map(|(group, bytes)| (*group, bytes.clone().into()))
                .collect(),
        });
        let mut restored = [RestoredOperator {
            is_restored: !from.states.is_empty(),
            watermark: from.watermark,
            segments: segments.collect(),
            ..RestoredOperator::default()
        }];
        let mut place = Place::default();
        let clock = Clock::starting_at(Duration::from_secs(1));
        let mut cx = StartContext {
            keyed: &mut keyed,
            place: &mut place,
            restored: &mut restored,
            task,
            now: clock.now(),
        };
        let mut lists = OperatorStateStore::default();
        operator.open(0, &mut lists, &mut cx).unwrap();
        let state = keyed[0].as_mut().unwrap();
        state.finish_load(CheckpointId(1), false).unwrap();
        Self {
            operator,
            keyed,
            range: task.key_groups,
        }
    }

    fn with<R>(
        &mut self,
        work: impl FnOnce(&mut AnyOperator, &mut Emitted<Fired>, &mut TaskContext<'_>) -> R,
    ) -> (R, Emitted<Fired>) {
        let clock = Clock::starting_at(Duration::from_secs(1));
        let mut out = emitted();
        let faults = TaskFaults::new(FaultPoints::default(), info(0, 1).attempt);
        let mut cx = TaskContext {
            keyed: &mut self.keyed,
            place: &mut Place::default(),
            now: clock.now(),
            held_up: Duration::ZERO,
            calls_left: 64,
            clock: &clock,
            records_out: &mut 0,
            faults: &faults,
        };
        let result = work(&mut self.operator, &mut out, &mut cx);
        (result, out)
    }

    /// What is emitted; whether the record was late.
    fn record(&mut self, item: Item, timestamp: Timestamp) -> (Vec<Fired>, bool) {
        let mut input = Pending::empty();
        input.fill(&mut Batch {
            values: vec![item],
            timestamps: vec![timestamp],
        });
        let (result, out) = self.with(|operator, out, cx| operator.process(&mut input, out, cx));
        result.unwrap();
        (out.batch.values, out.sides.sides[0].len() == 1)
    }

    fn watermark(&mut self, watermark: Timestamp) -> Vec<Fired> {
        let signal = Signal::Watermark(watermark);
        let mut fired = Vec::new();
        loop {
            let (result, out) = self.with(|operator, out, cx| operator.signal(signal, out, cx));
            for (fired, time) in out.batch.values.iter().zip(&out.batch.timestamps) {
                assert_eq!(fired.1.max_timestamp(), *time, "the time of a result");
            }
            fired.extend(out.batch.values);
            match result.unwrap() {
                SignalResult::More => {}
                SignalResult::Forward(forwarded) => {
                    assert_eq!(forwarded, signal);
                    return fired;
                }
                SignalResult::Swallow => panic!("a watermark goes on"),
            }
        }
    }

    fn capture(&mut self) -> CapturedState {
        let state = self.keyed[0].as_mut().unwrap();
        let request = CaptureRequest {
            checkpoint: CheckpointId(2),
            base: None,
            kind: SnapshotKind::Checkpoint,
        };
        state.barrier(request).unwrap();
        loop {
            match state.capture(Duration::from_secs(1)).unwrap() {
                CaptureProgress::Done(captured) => return captured,
                CaptureProgress::Working => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn entries(&self) -> u64 {
        self.keyed[0].as_ref().unwrap().figures().entries
    }
}

#[derive(Debug, Clone)]
enum Act {
    /// At the watermark plus this.
    Record {
        key: u64,
        at: i64,
    },
    Watermark {
        by: i64,
    },
    Restore {
        parallelism: u32,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => (0..4_u64, -60..60_i64).prop_map(|(key, at)| Act::Record { key, at }),
        4 => (1..30_i64).prop_map(|by| Act::Watermark { by }),
        1 => (1..4_u32).prop_map(|parallelism| Act::Restore { parallelism }),
    ];
    prop::collection::vec(act, 1..120)
}

fn lateness() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), 1..40_i64]
}

fn aligned() -> impl Strategy<Value = Kind> {
    (1..40_i64, 1..40_i64, 0..40_i64).prop_map(|(a, b, offset)| Kind::Sliding {
        size: a.max(b),
        slide: a.min(b),
        offset: offset % a.min(b),
    })
}

/// Runs the acts on both, and compares after each.
fn run(kind: Kind, kept: Kept, lateness: i64, acts: &[Act]) {
    let open = |parallelism: u32, from: &Snapshot| -> Vec<Subtask> {
        let subtasks = 0..parallelism;
        let open = |subtask| {
            let operator = kind.operator(kept, lateness);
            Subtask::open(operator, &info(subtask, parallelism), from)
        };
        subtasks.map(open).collect()
    };
    let mut subtasks = open(1, &Snapshot::default());
    let mut oracle = Oracle {
        kind,
        lateness,
        watermark: 0,
        windows: BTreeMap::new(),
    };
    for subtask in &mut subtasks {
        assert!(subtask.watermark(0).is_empty());
    }
    let end = Act::Watermark { by: MAX_WATERMARK };
    for (number, act) in acts.iter().chain([&end]).enumerate() {
        let context = format!("act {number}, {act:?}, watermark {}", oracle.watermark);
        match act {
            Act::Record { key, at } => {
                let item = (*key, number as u32);
                let timestamp = oracle.watermark + at;
                let group = KeyHash::of(key).key_group(MAX_PARALLELISM);
                let mut owners = subtasks.iter_mut().filter(|s| s.range.contains(group));
                let (mut fired, is_late) = owners.next().unwrap().record(item, timestamp);
                let expected = oracle.record(item, timestamp);
                assert_eq!(is_late, expected.is_none(), "late? {context}");
                let mut expected = expected.unwrap_or_default();
                fired.sort();
                expected.sort();
                assert_eq!(fired, expected, "{context}");
            }
            Act::Watermark { by } => {
                let watermark = oracle.watermark.saturating_add(*by);
                let mut fired: Vec<_> = subtasks
                    .iter_mut()
                    .flat_map(|subtask| subtask.watermark(watermark))
                    .collect();
                fired.sort();
                let mut expected = oracle.watermark(watermark);
                expected.sort();
                assert_eq!(fired, expected, "{context}");
            }
            Act::Restore { parallelism } => {
                let snapshot = Snapshot {
                    watermark: Some(oracle.watermark),
                    states: subtasks.iter_mut().map(Subtask::capture).collect(),
                };
                subtasks = open(*parallelism, &snapshot);
            }
        }
        // State is there for exactly the keys with a window that is not gone.
        let entries: u64 = subtasks.iter().map(Subtask::entries).sum();
        assert_eq!(entries == 0, oracle.windows.is_empty(), "state? {context}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn panes_give_what_a_fold_gives(kind in aligned(), lateness in lateness(), acts in acts()) {
        run(kind, Kept::Together, lateness, &acts);
    }

    #[test]
    fn separate_windows_give_what_a_fold_gives(
        kind in aligned(),
        lateness in lateness(),
        acts in acts(),
    ) {
        run(kind, Kept::Separately, lateness, &acts);
    }

    #[test]
    fn sessions_give_what_a_fold_gives(
        gap in 1..30_i64,
        lateness in lateness(),
        acts in acts(),
    ) {
        run(Kind::Session { gap }, Kept::Together, lateness, &acts);
    }
}

/// A call stops where a batch is full, also where it goes aside, and nothing is lost or out of order for it.
#[test]
fn late_records_go_aside_in_full_batches() {
    const RECORDS: usize = 2 * BATCH_RECORDS_MAX + 500;
    let aligned = Kind::Sliding {
        size: 10,
        slide: 10,
        offset: 0,
    };
    for (kind, kept) in [
        (aligned, Kept::Together),
        (aligned, Kept::Separately),
        (Kind::Session { gap: 10 }, Kept::Together),
    ] {
        let operator = kind.operator(kept, 0);
        let mut subtask = Subtask::open(operator, &info(0, 1), &Snapshot::default());
        subtask.watermark(1_000_000);
        let all: Vec<(Item, Timestamp)> = (0..RECORDS)
            .map(|n| ((n as u64 % 7, n as u32), n as Timestamp % 1000))
            .collect();
        let mut input = Pending::empty();
        input.fill(&mut Batch {
            values: all.iter().map(|(item, _)| *item).collect(),
            timestamps: all.iter().map(|(_, time)| *time).collect(),
        });
        let mut aside = Vec::new();
        while !input.is_empty() {
            let (result, mut out) =
                subtask.with(|operator, out, cx| operator.process(&mut input, out, cx));
            result.unwrap();
            assert!(out.batch.is_empty(), "{kind:?} {kept:?}");
            let late = out.sides.sides[0].as_any_mut();
            let late = &late.downcast_ref::<SideOutput<Item>>().unwrap().batch;
            assert!(!late.is_empty() && late.len() <= BATCH_RECORDS_MAX);
            let late = late
                .values
                .iter()
                .copied()
                .zip(late.timestamps.iter().copied());
            aside.extend(late);
        }
        assert_eq!(aside, all, "{kind:?} {kept:?}");
    }
}

/// One pane a record: the state of a key with records in one slide has one accumulator with one member a record.
#[test]
fn a_record_touches_one_pane_however_many_windows_it_is_in() {
    let mut panes = Panes::new(60_000, 5_000, 0, 0).unwrap();
    let mut windows = None;
    let mut fired = Vec::new();
    for id in 0..10 {
        let time = i64::from(id) * 100;
        let emit = |window, members| fired.push((window, members));
        let mut record = Some((1, id));
        panes.add(
            &Members,
            &mut windows,
            (&mut record, time),
            Timestamp::MIN,
            emit,
        );
        let due = windows.as_ref().map(Scheduled::due);
        assert_eq!(
            (due, record),
            (Some(4_999), None),
            "one time for all windows"
        );
    }
    let bytes = rmp_serde::to_vec_named(&windows).unwrap();
    let text = serde_json::to_value(&windows).unwrap();
    assert_eq!(text["older"].as_array().unwrap().len(), 0, "{text}");
    assert_eq!(text["accumulator"].as_array().unwrap().len(), 10, "{text}");
    assert!(bytes.len() < 100, "{} bytes", bytes.len());
    while let Some(time) = windows.as_ref().map(Scheduled::due) {
        panes.fire(&Members, &mut windows, time, |window, members| {
            fired.push((window, members));
        });
    }
    assert_eq!(fired.len(), 12, "each of its windows fires once");
    assert!(fired.iter().all(|(_, members)| members.len() == 10));
    assert!(windows.is_none(), "nothing outlives the last window");
}

/// The ends of time, where sums would overflow.
#[test]
fn windows_at_the_ends_of_time_end() {
    for kind in [
        Kind::Sliding {
            size: 10,
            slide: 4,
            offset: 3,
        },
        Kind::Session { gap: 10 },
    ] {
        for time in [
            Timestamp::MIN + 1,
            Timestamp::MIN + 12,
            Timestamp::MAX - 12,
            Timestamp::MAX - 1,
        ] {
            let operator = kind.operator(Kept::Together, 5);
            let mut subtask = Subtask::open(operator, &info(0, 1), &Snapshot::default());
            assert_eq!(subtask.record((1, 7), time), (Vec::new(), false));
            let fired = subtask.watermark(MAX_WATERMARK);
            // At the very end there is an aligned window only for what is not beyond it.
            let is_beyond = time == Timestamp::MAX - 1 && matches!(kind, Kind::Sliding { .. });
            assert!(is_beyond || !fired.is_empty(), "{kind:?} at {time}");
            assert!(fired.iter().all(|(_, _, members)| *members == [7]));
            assert_eq!(subtask.entries(), 0, "{kind:?} at {time}");
        }
    }
}

/// Beyond the bound a key's panes would be too much for one entry.
#[test]
fn windows_of_too_many_panes_are_kept_separately() {
    assert!(Panes::new(1000, 1, 0, 0).is_some());
    assert!(Panes::new(panes::PANES_OF_A_KEY_MAX, 1, 0, 0).is_none());
    assert!(Panes::new(10, 10, 0, i64::MAX).is_none());
}

/// After a rescale, event time is that of the subtask that was furthest behind: a window may be emitted that was already, and then it has all
/// of its records.
#[test]
fn a_window_that_was_emitted_by_a_subtask_ahead_is_emitted_again() {
    let aligned = Kind::Sliding {
        size: 10,
        slide: 10,
        offset: 0,
    };
    for (kind, kept) in [
        (aligned, Kept::Together),
        (aligned, Kept::Separately),
        (Kind::Session { gap: 10 }, Kept::Together),
    ] {
        let open = |from: &Snapshot| Subtask::open(kind.operator(kept, 100), &info(0, 1), from);
        let mut ahead = open(&Snapshot::default());
        assert_eq!(ahead.record((1, 7), 0), (Vec::new(), false));
        let window = TimeWindow { start: 0, end: 10 };
        assert_eq!(ahead.watermark(20), [(1, window, vec![7])], "{kind:?}");
        let snapshot = Snapshot {
            watermark: Some(5),
            states: vec![ahead.capture()],
        };
        let mut after = open(&snapshot);
        assert_eq!(after.record((1, 8), 0), (Vec::new(), false), "{kept:?}");
        assert_eq!(after.watermark(20), [(1, window, vec![7, 8])], "{kept:?}");
        assert_eq!(after.watermark(200), [], "{kept:?}");
        assert_eq!(after.entries(), 0, "{kept:?}");
    }
}

/// Timers that earlier builds stored beside the windows are not needed and not in the way.
#[test]
fn state_with_timers_of_earlier_builds_is_restored() {
    let aligned = Kind::Sliding {
        size: 10,
        slide: 10,
        offset: 0,
    };
    for (kind, name) in [
        (aligned, "window-panes-timers"),
        (Kind::Session { gap: 10 }, "window-sessions-timers"),
    ] {
        let open = |from: &Snapshot| {
            let operator = kind.operator(Kept::Together, 0);
            Subtask::open(operator, &info(0, 1), from)
        };
        let mut before = open(&Snapshot::default());
        assert_eq!(before.record((1, 7), 100), (Vec::new(), false));
        let state = before.keyed[0].as_mut().unwrap().as_any_mut();
        let backend = state.downcast_mut::<KeyedBackend<u64>>().unwrap();
        let timers = backend.timers::<()>(name).unwrap();
        backend.set_current_key(&1, KeyHash::of(&1_u64));
        timers
            .register(backend, TimeDomain::EventTime, 109, &())
            .unwrap();
        let snapshot = Snapshot {
            watermark: Some(0),
            states: vec![before.capture()],
        };
        let mut after = open(&snapshot);
        assert_eq!(after.entries(), 1, "{kind:?}");
        let window = TimeWindow {
            start: 100,
            end: 110,
        };
        assert_eq!(after.watermark(109), [(1, window, vec![7])], "{kind:?}");
    }
}
