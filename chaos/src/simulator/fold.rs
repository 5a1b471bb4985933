//! The state that a snapshot of the simulated job must hold: a fold over the input up to the source positions, cut by the watermarks
//! that the snapshot names (S2).
//!
//! Invariant: shares with the job the event function and the shape of what it stores, and nothing of the engine. Values, timers and
//! windows are compared, each key of them; what a transactional sink has prepared is seen when it is committed.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use perennial::batch::Timestamp;
use perennial_actors::model::OperatorState;
use serde::Deserialize;

use crate::checker::{Entry, Loaded, SnapshotOracle, lane_positions};
use crate::oracle::Positions;
use crate::plan::WorkloadPlan;
use crate::workload::{BUCKET_MS, LANES, Open, State, WINDOW_MS, event};

const EVENT_TIMERS: &str = "event-time-timers";

/// See the module.
pub(super) struct Fold(pub(super) WorkloadPlan);

/// Contents of windows, by key and start.
type Windows = BTreeMap<(u64, Timestamp), (u64, u64, u64)>;

impl Fold {
    /// Buckets of each key, with the records before some positions.
    fn buckets(&self, positions: &Positions) -> BTreeMap<u64, Open> {
        let mut buckets = BTreeMap::<u64, Open>::new();
        for (lane, position) in positions {
            for index in 0..*position {
                let event = event(&self.0, u32::try_from(*lane).unwrap_or(LANES), index);
                let end = event.time / BUCKET_MS * BUCKET_MS + BUCKET_MS - 1;
                let open = buckets.entry(event.key).or_default();
                let bucket = open.entry(end).or_default();
                bucket.0 += 1;
                bucket.1 = bucket.1.wrapping_add(event.value);
            }
        }
        buckets
    }
}

/// The watermark of the subtask that a key group belongs to.
fn watermark(operator: &OperatorState, entry: &Entry<'_>) -> Option<Timestamp> {
    let index = u32::from(entry.group.0) * operator.parallelism / operator.max_parallelism.max(1);
    let subtask = operator.subtasks.iter().find(|s| s.subtask.0 == index)?;
    subtask.watermark
}

fn compare<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    stored: &BTreeMap<K, V>,
    fold: &BTreeMap<K, V>,
) -> anyhow::Result<()> {
    if stored == fold {
        return Ok(());
    }
    let mut differences = Vec::new();
    for (key, value) in stored {
        if fold.get(key) != Some(value) {
            differences.push(format!(
                "{key:?}: stored {value:?}, fold {:?}",
                fold.get(key)
            ));
        }
    }
    for (key, value) in fold {
        if !stored.contains_key(key) {
            differences.push(format!("{key:?}: nothing stored, fold {value:?}"));
        }
    }
    bail!(
        "{what}: {} differ from the fold: {}",
        differences.len(),
        differences[..differences.len().min(5)].join("; ")
    )
}

impl SnapshotOracle for Fold {
    fn check(&self, snapshot: &Loaded<'_>) -> anyhow::Result<()> {
        let positions = lane_positions(snapshot.manifest(), "events", u64::from(LANES))?;
        let mut fold = self.buckets(&positions);
        let operator = snapshot.operator("buckets")?;
        let mut states = BTreeMap::new();
        let mut timers = BTreeMap::new();
        let mut expected_states = BTreeMap::new();
        let mut expected_timers = BTreeMap::new();
        let mut windows = Windows::new();
        for entry in snapshot.entries("buckets")? {
            let key: u64 = postcard::from_bytes(&entry.key)?;
            if entry.state.kind == EVENT_TIMERS {
                let time: Timestamp = postcard::from_bytes(&entry.map_key)?;
                timers.insert((key, time), ());
                continue;
            }
            let state: State = rmp_serde::from_slice(&entry.value)
                .with_context(|| format!("value of key {key}"))?;
            ensure!(
                states.insert(key, state).is_none(),
                "key {key} is stored twice"
            );
            let watermark = watermark(operator, &entry).unwrap_or(Timestamp::MIN);
            let mut expected = State::default();
            for (end, bucket) in fold.remove(&key).unwrap_or_default() {
                if end > watermark {
                    expected.open.insert(end, bucket);
                    expected_timers.insert((key, end), ());
                    continue;
                }
                expected.total += bucket.0;
                let start = end / WINDOW_MS * WINDOW_MS;
                let window = windows.entry((key, start)).or_default();
                window.0 += bucket.0;
                window.1 = window.1.wrapping_add(bucket.1);
                window.2 += expected.total;
            }
            expected_states.insert(key, expected);
        }
        ensure!(
            fold.is_empty(),
            "keys {:?} have records before {positions:?} and no state",
            fold.keys()
        );
        compare("values", &states, &expected_states)?;
        compare("timers", &timers, &expected_timers)?;
        check_windows(snapshot, windows)
    }
}

/// What the operator of tumbling windows keeps of a key: its newest window and those before it, and when the first of them ends.
#[derive(Debug, Deserialize)]
struct WindowsOfKey {
    timer: Timestamp,
    start: Timestamp,
    accumulator: (u64, u64, u64),
    older: Vec<(Timestamp, (u64, u64, u64))>,
}

fn check_windows(snapshot: &Loaded<'_>, mut fold: Windows) -> anyhow::Result<()> {
    let operator = snapshot.operator("windows")?;
    let watermarks = operator.subtasks.iter().map(|s| s.watermark);
    let latest = watermarks.flatten().max().unwrap_or(Timestamp::MIN);
    let (mut stored, mut expected) = (Windows::new(), Windows::new());
    let mut due = BTreeMap::new();
    for entry in snapshot.entries("windows")? {
        let key: u64 = postcard::from_bytes(&entry.key)?;
        let of_key: WindowsOfKey =
            rmp_serde::from_slice(&entry.value).with_context(|| format!("windows of key {key}"))?;
        due.insert(key, of_key.timer);
        let newest = (of_key.start, of_key.accumulator);
        for (start, content) in of_key.older.into_iter().chain([newest]) {
            stored.insert((key, start), content);
        }
        let watermark = watermark(operator, &entry).unwrap_or(Timestamp::MIN);
        let of_key = fold.extract_if((key, Timestamp::MIN)..=(key, Timestamp::MAX), |_, _| true);
        expected.extend(of_key.filter(|((_, start), _)| start + WINDOW_MS - 1 > watermark));
    }
    // What is not stored must have fired.
    for (place, content) in fold {
        if place.1 + WINDOW_MS - 1 > latest {
            expected.insert(place, content);
        }
    }
    compare("windows", &stored, &expected)?;
    let mut first = BTreeMap::new();
    for (key, start) in expected.keys() {
        first.entry(*key).or_insert(start + WINDOW_MS - 1);
    }
    compare("when windows are due", &due, &first)
}
