//! The promise: a finished capture is exactly the state at its barrier, an increment exactly what lies between two barriers, an
//! undo or a load exactly the way back, whatever happens in between. Proved against a model that copies everything at each barrier.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::scheduled::Appointment;
use super::*;

pub(super) const MAX_PARALLELISM: u32 = 4;

/// (state, key, namespace, map key or time)
pub(super) type Id = (String, String, u8, i64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Value(u64),
    Scheduled(Appointment),
    List(Vec<u32>),
    Map(String),
    Timer,
}

pub(super) type Contents = BTreeMap<Id, Content>;

#[derive(Debug, Clone)]
enum Op {
    ValueUpdate(u8, u8, u64),
    ValueSet(u8, u8, u64),
    ValueClear(u8, u8),
    ListAdd(u8, u8, u32),
    ListReplace(u8, u8, u8),
    ListClear(u8, u8),
    MapInsert(u8, i8, u8),
    MapRemove(u8, i8),
    MapClear(u8),
    TimerSet(bool, u8, u8, i8),
    TimerDelete(bool, u8, u8, i8),
    TimerPop(bool, i8),
    Schedule(u8, Option<i8>),
    /// What is due until then, and how much later it is due again.
    Fire(i8, Option<u8>),
    Barrier(SnapshotKind, Base),
    Slice(u8, u8),
    Finish,
    Confirm(u8, u8),
    Abort(u8),
    Undo(u8),
    Restore(u8),
}

#[derive(Debug, Clone, Copy)]
enum Base {
    None,
    Confirmed,
    OlderConfirmed,
    Finished(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (k, n) = (0..10_u8, 0..2_u8);
    let op = prop_oneof![
        6 => (k.clone(), n.clone(), any::<u64>()).prop_map(|(k, n, v)| Op::ValueUpdate(k, n, v)),
        3 => (k.clone(), n.clone(), any::<u64>()).prop_map(|(k, n, v)| Op::ValueSet(k, n, v)),
        3 => (k.clone(), n.clone()).prop_map(|(k, n)| Op::ValueClear(k, n)),
        6 => (k.clone(), n.clone(), any::<u32>()).prop_map(|(k, n, v)| Op::ListAdd(k, n, v)),
        3 => (k.clone(), n.clone(), 0..5_u8).prop_map(|(k, n, v)| Op::ListReplace(k, n, v)),
        2 => (k.clone(), n.clone()).prop_map(|(k, n)| Op::ListClear(k, n)),
        5 => (k.clone(), -2..3_i8, any::<u8>()).prop_map(|(k, m, v)| Op::MapInsert(k, m, v)),
        3 => (k.clone(), -2..3_i8).prop_map(|(k, m)| Op::MapRemove(k, m)),
        1 => k.clone().prop_map(Op::MapClear),
        5 => (any::<bool>(), k.clone(), n.clone(), -3..4_i8)
            .prop_map(|(d, k, n, t)| Op::TimerSet(d, k, n, t)),
        2 => (any::<bool>(), k.clone(), n, -3..4_i8)
            .prop_map(|(d, k, n, t)| Op::TimerDelete(d, k, n, t)),
        3 => (any::<bool>(), -3..4_i8).prop_map(|(d, t)| Op::TimerPop(d, t)),
        6 => (k, proptest::option::weighted(0.7, -3..4_i8)).prop_map(|(k, t)| Op::Schedule(k, t)),
        4 => (-3..4_i8, proptest::option::of(1..4_u8)).prop_map(|(t, by)| Op::Fire(t, by)),
        6 => (kind(), base()).prop_map(|(kind, base)| Op::Barrier(kind, base)),
        12 => (any::<u8>(), 1..6_u8).prop_map(|(b, n)| Op::Slice(b, n)),
        3 => Just(Op::Finish),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(c, mask)| Op::Confirm(c, mask)),
        1 => any::<u8>().prop_map(Op::Abort),
        2 => any::<u8>().prop_map(Op::Undo),
        1 => any::<u8>().prop_map(Op::Restore),
    ];
    proptest::collection::vec(op, 1..120)
}

fn kind() -> impl Strategy<Value = SnapshotKind> {
    prop_oneof![4 => Just(SnapshotKind::Checkpoint), 1 => Just(SnapshotKind::Savepoint)]
}

fn base() -> impl Strategy<Value = Base> {
    prop_oneof![
        1 => Just(Base::None),
        4 => Just(Base::Confirmed),
        1 => Just(Base::OlderConfirmed),
        1 => any::<u8>().prop_map(Base::Finished),
    ]
}

pub(super) struct Handles {
    value: ValueState<u64, u8>,
    list: ListState<u32, u8>,
    map: MapState<i64, String, u8>,
    timers: Timers<u8>,
    pub(super) scheduled: ScheduledState<Appointment>,
}

/// One subtask.
pub(super) struct Subtask {
    pub(super) backend: KeyedBackend<String>,
    pub(super) handles: Handles,
    pub(super) range: KeyGroupRange,
}

/// One key group of one object, with the states that it was written under.
type StoredSegment = (SegmentKind, Vec<StateMeta>, KeyGroup, Vec<u8>);

/// One snapshot as the model knows it.
struct Snapshot {
    kind: SnapshotKind,
    copy: Contents,
    base: Option<u64>,
    /// By subtask.
    captured: Vec<Option<CapturedState>>,
    /// What a restore loads, per group in order; once finished.
    chain: Option<Vec<StoredSegment>>,
    is_aborted: bool,
}

pub(super) struct World {
    limits: StateLimits,
    pub(super) subtasks: Vec<Subtask>,
    pub(super) now: Contents,
    snapshots: BTreeMap<u64, Snapshot>,
    confirmed: Vec<u64>,
    next_id: u64,
    /// Snapshots before it are of an earlier attempt.
    attempt_from: u64,
}

fn register(backend: &mut KeyedBackend<String>) -> Handles {
    Handles {
        value: backend.value_state("value").unwrap(),
        list: backend.list_state("list").unwrap(),
        map: backend.map_state("map").unwrap(),
        timers: backend.timers("timers").unwrap(),
        scheduled: backend.scheduled_state("scheduled").unwrap(),
    }
}

pub(super) fn key_of(k: u8) -> String {
    format!("key-{k}")
}

fn domain_of(is_event: bool) -> TimeDomain {
    if is_event {
        TimeDomain::EventTime
    } else {
        TimeDomain::ProcessingTime
    }
}

fn timer_state(is_event: bool) -> String {
    let kind = if is_event {
        "event-time-timers"
    } else {
        "processing-time-timers"
    };
    format!("timers/{kind}")
}

impl World {
    fn new(parallelism: u32, limits: StateLimits) -> Self {
        let mut world = Self {
            limits,
            subtasks: Vec::new(),
            now: Contents::new(),
            snapshots: BTreeMap::new(),
            confirmed: Vec::new(),
            next_id: 1,
            attempt_from: 0,
        };
        world.subtasks = world.empty_subtasks(parallelism);
        for subtask in &mut world.subtasks {
            subtask.handles = register(&mut subtask.backend);
        }
        world
    }

    fn empty_subtasks(&self, parallelism: u32) -> Vec<Subtask> {
        (0..parallelism)
            .map(|i| {
                let range = KeyGroupRange::of(SubtaskIndex(i), parallelism, MAX_PARALLELISM);
                let mut unused = KeyedBackend::memory(range, MAX_PARALLELISM, self.limits);
                Subtask {
                    handles: register(&mut unused),
                    backend: KeyedBackend::memory(range, MAX_PARALLELISM, self.limits),
                    range,
                }
            })
            .collect()
    }

    fn is_tight(&self) -> bool {
        self.limits.log_bytes_max < 1 << 20
    }

    /// The subtask that owns a key, with the key current.
    pub(super) fn on(&mut self, k: u8) -> &mut Subtask {
        let key = key_of(k);
        let hash = KeyHash::of(&key);
        let group = hash.key_group(MAX_PARALLELISM);
        let owner = self.subtasks.iter_mut().find(|s| s.range.contains(group));
        let subtask = owner.unwrap();
        subtask.backend.set_current_key(&key, hash);
        subtask
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::ValueUpdate(k, n, v) => {
                let s = self.on(k);
                s.handles
                    .value
                    .update_in(&mut s.backend, &n, |old| {
                        *old = Some(old.unwrap_or(0).wrapping_add(v));
                    })
                    .unwrap();
                let entry = self.now.entry(("value".into(), key_of(k), n, 0));
                let Content::Value(old) = entry.or_insert(Content::Value(0)) else {
                    unreachable!()
                };
                *old = old.wrapping_add(v);
            }
            Op::ValueSet(k, n, v) => {
                let s = self.on(k);
                s.handles.value.set_in(&mut s.backend, &n, v).unwrap();
                let id = ("value".into(), key_of(k), n, 0);
                self.now.insert(id, Content::Value(v));
            }
            Op::ValueClear(k, n) => {
                let s = self.on(k);
                s.handles.value.clear_in(&mut s.backend, &n).unwrap();
                self.now.remove(&("value".into(), key_of(k), n, 0));
            }
            Op::ListAdd(k, n, v) => {
                let s = self.on(k);
                s.handles.list.add_in(&mut s.backend, &n, v).unwrap();
                let entry = self.now.entry(("list".into(), key_of(k), n, 0));
                let Content::List(list) = entry.or_insert(Content::List(Vec::new())) else {
                    unreachable!()
                };
                list.push(v);
            }
            Op::ListReplace(k, n, length) => {
                let elements: Vec<u32> = (0..u32::from(length)).collect();
                let s = self.on(k);
                let list = s.handles.list;
                list.update_in(&mut s.backend, &n, elements.clone())
                    .unwrap();
                let id = ("list".into(), key_of(k), n, 0);
                if elements.is_empty() {
                    self.now.remove(&id);
                } else {
                    self.now.insert(id, Content::List(elements));
                }
            }
            Op::ListClear(k, n) => {
                let s = self.on(k);
                s.handles.list.clear_in(&mut s.backend, &n).unwrap();
                self.now.remove(&("list".into(), key_of(k), n, 0));
            }
            Op::MapInsert(k, m, v) => {
                let s = self.on(k);
                let (m, v) = (i64::from(m), format!("v{v}"));
                let map = s.handles.map;
                map.insert_in(&mut s.backend, &0, &m, v.clone()).unwrap();
                let id = ("map".into(), key_of(k), 0, m);
                self.now.insert(id, Content::Map(v));
            }
            Op::MapRemove(k, m) => {
                let s = self.on(k);
                let m = i64::from(m);
                s.handles.map.remove_in(&mut s.backend, &0, &m).unwrap();
                self.now.remove(&("map".into(), key_of(k), 0, m));
            }
            Op::MapClear(k) => {
                let s = self.on(k);
                s.handles.map.clear_in(&mut s.backend, &0).unwrap();
                self.now.retain(|id, _| id.0 != "map" || id.1 != key_of(k));
            }
            Op::TimerSet(d, k, n, t) => {
                let s = self.on(k);
                let t = i64::from(t);
                let timers = s.handles.timers;
                timers
                    .register(&mut s.backend, domain_of(d), t, &n)
                    .unwrap();
                let id = (timer_state(d), key_of(k), n, t);
                self.now.insert(id, Content::Timer);
            }
            Op::TimerDelete(d, k, n, t) => {
                let s = self.on(k);
                let t = i64::from(t);
                let timers = s.handles.timers;
                timers.delete(&mut s.backend, domain_of(d), t, &n).unwrap();
                self.now.remove(&(timer_state(d), key_of(k), n, t));
            }
            Op::TimerPop(d, up_to) => self.pop(d, i64::from(up_to)),
            Op::Schedule(k, due) => self.schedule(k, due.map(i64::from)),
            Op::Fire(up_to, again) => self.fire(i64::from(up_to), again.map(i64::from)),
            Op::Barrier(kind, base) => self.barrier(kind, base),
            Op::Slice(which, slices) => {
                let i = usize::from(which) % self.subtasks.len();
                for _ in 0..slices {
                    self.slice(i);
                }
            }
            Op::Finish => self.finish(),
            Op::Confirm(which, mask) => self.confirm(which, mask),
            Op::Abort(which) => {
                let ids: Vec<u64> = self.open_ids();
                if let Some(id) = pick(&ids, which) {
                    self.abort(id);
                }
            }
            Op::Undo(which) => self.undo(which),
            Op::Restore(p) => self.restore(1 + u32::from(p) % 3),
        }
    }

    fn pop(&mut self, is_event: bool, up_to: i64) {
        for i in 0..self.subtasks.len() {
            let range = self.subtasks[i].range;
            // The order that `timers` promises, computed from the model.
            let due = self
                .now
                .keys()
                .filter(|id| id.0 == timer_state(is_event))
                .map(|id| {
                    let hash = KeyHash::of(&id.1);
                    (id.3, hash.key_group(MAX_PARALLELISM), hash, id.clone())
                })
                .filter(|due| range.contains(due.1))
                .min();
            let s = &mut self.subtasks[i];
            let domain = domain_of(is_event);
            assert_eq!(s.backend.next_timer(domain), due.as_ref().map(|d| d.0));
            let timers = s.handles.timers;
            let popped = timers.pop(&mut s.backend, domain, up_to).unwrap();
            match due.filter(|d| d.0 <= up_to) {
                Some((time, _, _, id)) => {
                    assert_eq!(popped, Some((time, id.2)));
                    assert_eq!(s.backend.current_key(), Some(&id.1));
                    self.now.remove(&id);
                }
                None => assert_eq!(popped, None),
            }
        }
    }

    /// Snapshots of this attempt that are neither confirmed nor aborted.
    fn open_ids(&self) -> Vec<u64> {
        self.snapshots
            .iter()
            .filter(|(id, s)| {
                **id > self.attempt_from && !s.is_aborted && !self.confirmed.contains(id)
            })
            .map(|(id, _)| *id)
            .collect()
    }

    fn barrier(&mut self, kind: SnapshotKind, base: Base) {
        if self.open_ids().len() >= CAPTURES_MAX {
            return;
        }
        let finished: Vec<u64> = (self.snapshots.iter())
            .filter(|(_, s)| s.chain.is_some() && !s.kind.is_savepoint())
            .map(|(id, _)| *id)
            .collect();
        let confirmed = self.confirmed.last().copied();
        let base = match base {
            Base::None => None,
            Base::Confirmed => confirmed,
            Base::OlderConfirmed => self.confirmed.iter().rev().nth(1).copied(),
            Base::Finished(which) => pick(&finished, which),
        };
        let id = self.next_id;
        self.next_id += 1;
        for s in &mut self.subtasks {
            s.backend
                .barrier(CaptureRequest {
                    checkpoint: CheckpointId(id),
                    base: base.map(CheckpointId),
                    kind,
                })
                .unwrap();
        }
        self.snapshots.insert(
            id,
            Snapshot {
                kind,
                copy: self.now.clone(),
                base,
                captured: vec![None; self.subtasks.len()],
                chain: None,
                is_aborted: false,
            },
        );
    }

    /// One slice of one subtask; false when it is idle.
    fn slice(&mut self, i: usize) -> bool {
        let progress = self.subtasks[i].backend.capture(Duration::ZERO).unwrap();
        match progress {
            CaptureProgress::Working => true,
            CaptureProgress::Idle => false,
            CaptureProgress::Declined { checkpoint, .. } => {
                assert!(self.is_tight(), "declined without need");
                self.abort(checkpoint.0);
                true
            }
            CaptureProgress::Done(captured) => {
                self.captured(i, captured);
                true
            }
        }
    }

    fn captured(&mut self, i: usize, captured: CapturedState) {
        let id = captured.checkpoint.0;
        let snapshot = self.snapshots.get_mut(&id).unwrap();
        assert!(!snapshot.is_aborted, "an aborted capture went on");
        if let Some(base) = snapshot.base
            && snapshot.kind == SnapshotKind::Checkpoint
            && self.confirmed.last() == Some(&base)
            && base >= self.attempt_from
            && !self.limits_hit_possible()
        {
            assert_eq!(
                captured.kind,
                SegmentKind::Delta,
                "a good base was not used"
            );
        }
        let snapshot = &self.snapshots[&id];
        let range = self.subtasks[i].range;
        let in_range = |copy: &Contents| -> Contents {
            (copy.iter())
                .filter(|(id, _)| range.contains(KeyHash::of(&id.1).key_group(MAX_PARALLELISM)))
                .map(|(id, c)| (id.clone(), c.clone()))
                .collect()
        };
        let mut folded = match captured.kind {
            SegmentKind::Full => {
                let groups: Vec<KeyGroup> = captured.groups.iter().map(|g| g.0).collect();
                assert_eq!(groups, range.iter().collect::<Vec<_>>());
                Contents::new()
            }
            SegmentKind::Delta => {
                assert!(!snapshot.kind.is_savepoint());
                in_range(&self.snapshots[&snapshot.base.unwrap()].copy)
            }
        };
        for (group, bytes) in &captured.groups {
            fold(&mut folded, &captured.states, *group, bytes);
        }
        assert_eq!(folded, in_range(&snapshot.copy), "snapshot {id}");

        let snapshot = self.snapshots.get_mut(&id).unwrap();
        snapshot.captured[i] = Some(captured);
        if snapshot.captured.iter().all(Option::is_some) {
            let mut chain = Vec::new();
            let all = snapshot.captured.clone().into_iter().flatten();
            for (captured, subtask) in all.zip(&self.subtasks) {
                if captured.kind == SegmentKind::Delta {
                    let base = &self.snapshots[&self.snapshots[&id].base.unwrap()];
                    let below = base.chain.as_ref().unwrap();
                    let range = subtask.range;
                    chain.extend(below.iter().filter(|c| range.contains(c.2)).cloned());
                }
                for (group, bytes) in captured.groups {
                    chain.push((captured.kind, captured.states.clone(), group, bytes));
                }
            }
            self.snapshots.get_mut(&id).unwrap().chain = Some(chain);
        }
    }

    fn limits_hit_possible(&self) -> bool {
        self.is_tight()
    }

    fn finish(&mut self) {
        for i in 0..self.subtasks.len() {
            while self.slice(i) {}
        }
    }

    /// Only some subtasks may hear of it.
    fn confirm(&mut self, which: u8, mask: u8) {
        let ids: Vec<u64> = (self.open_ids().into_iter())
            .filter(|id| self.snapshots[id].chain.is_some())
            .collect();
        let Some(id) = pick(&ids, which) else {
            return;
        };
        for (i, s) in self.subtasks.iter_mut().enumerate() {
            if mask >> i & 1 == 1 || mask < 128 {
                s.backend.confirm(CheckpointId(id));
            }
        }
        let snapshot = self.snapshots.get_mut(&id).unwrap();
        if snapshot.kind.is_savepoint() {
            snapshot.is_aborted = true; // Out of the game.
            return;
        }
        self.confirmed.push(id);
        // Subsumed ones are aborted by the coordinator.
        for older in self.open_ids() {
            if older < id && !self.snapshots[&older].kind.is_savepoint() {
                self.abort(older);
            }
        }
    }

    fn abort(&mut self, id: u64) {
        for s in &mut self.subtasks {
            s.backend.abort(CheckpointId(id));
        }
        self.snapshots.get_mut(&id).unwrap().is_aborted = true;
    }

    fn undo(&mut self, which: u8) {
        let mut ids: Vec<u64> = self.snapshots.keys().copied().collect();
        ids.extend(self.confirmed.last().into_iter().cycle().take(6));
        let Some(id) = pick(&ids, which) else {
            return;
        };
        let confirmed = self.confirmed.last().copied();
        let snapshot = &self.snapshots[&id];
        let is_valid = confirmed == Some(id)
            || (self.open_ids().contains(&id)
                && snapshot.chain.is_some()
                && !snapshot.kind.is_savepoint()
                && confirmed < Some(id));
        if !is_valid {
            // Those below the newest, savepoints and aborted ones are refused, and nothing happens.
            if snapshot.kind.is_savepoint() || snapshot.is_aborted {
                let backend = &mut self.subtasks[0].backend;
                let undone = backend.undo(CheckpointId(id));
                assert!(matches!(undone, Undone::Unavailable(_)), "undo to {id}");
                self.compare();
            }
            return;
        }
        let mut is_unavailable = false;
        for s in &mut self.subtasks {
            match s.backend.undo(CheckpointId(id)) {
                Undone::Done => {}
                Undone::Unavailable(why) => {
                    assert!(self.limits.log_bytes_max < 1 << 20, "{why}");
                    is_unavailable = true;
                }
            }
            s.backend.begin_attempt();
            s.handles = register(&mut s.backend);
        }
        if confirmed != Some(id) {
            self.confirmed.push(id);
        }
        if is_unavailable {
            self.restore(self.subtasks.len() as u32);
            return;
        }
        self.now = self.snapshots[&id].copy.clone();
        self.drop_open();
        self.attempt_from = self.attempt_from.max(id);
        self.compare();
    }

    fn drop_open(&mut self) {
        for id in self.open_ids() {
            self.snapshots.get_mut(&id).unwrap().is_aborted = true;
        }
    }

    fn restore(&mut self, parallelism: u32) {
        let Some(id) = self.confirmed.last().copied() else {
            return;
        };
        self.drop_open();
        self.subtasks = self.empty_subtasks(parallelism);
        let chain = self.snapshots[&id].chain.clone().unwrap();
        for s in &mut self.subtasks {
            for (kind, states, group, bytes) in &chain {
                if s.range.contains(*group) {
                    let groups = vec![(*group, Bytes::from(bytes.clone()))];
                    s.backend
                        .load(CheckpointId(id), *kind, states, groups)
                        .unwrap();
                }
            }
            s.handles = register(&mut s.backend);
            s.backend.finish_load(CheckpointId(id), false).unwrap();
        }
        self.now = self.snapshots[&id].copy.clone();
        self.attempt_from = self.attempt_from.max(id);
        self.compare();
    }

    /// Through the handles.
    fn compare(&mut self) {
        let mut seen = Contents::new();
        for k in 0..10 {
            let s = self.on(k);
            for n in 0..2 {
                if let Some(v) = s.handles.value.get_in(&mut s.backend, &n).unwrap() {
                    let id = ("value".into(), key_of(k), n, 0);
                    seen.insert(id, Content::Value(v));
                }
                let list = s.handles.list.get_in(&mut s.backend, &n).unwrap();
                if !list.is_empty() {
                    seen.insert(("list".into(), key_of(k), n, 0), Content::List(list));
                }
            }
            if let Some(appointment) = s.scheduled() {
                let id = ("scheduled".into(), key_of(k), 0, 0);
                seen.insert(id, Content::Scheduled(appointment));
            }
            let entries = s.handles.map.entries_in(&mut s.backend, &0).unwrap();
            assert!(entries.is_sorted());
            for (m, v) in entries {
                seen.insert(("map".into(), key_of(k), 0, m), Content::Map(v));
            }
        }
        let mut expected = self.now.clone();
        expected.retain(|id, _| !id.0.starts_with("timers/"));
        assert_eq!(seen, expected);
        let entries: u64 = (self.subtasks.iter())
            .map(|s| s.backend.figures().entries)
            .sum();
        assert_eq!(entries, self.now.len() as u64);
    }
}

fn pick(ids: &[u64], which: u8) -> Option<u64> {
    ids.get(usize::from(which) % ids.len().max(1)).copied()
}

/// Applies one segment's bytes of a group, without the backend's help.
fn fold(copy: &mut Contents, states: &[StateMeta], group: KeyGroup, bytes: &[u8]) {
    let entries = decode_entries(bytes).unwrap();
    let mut ids = Vec::new();
    for entry in entries {
        let meta = states.iter().find(|m| m.index == entry.state).unwrap();
        let key: String = postcard::from_bytes(&entry.key_bytes).unwrap();
        assert_eq!(KeyHash::of(&key).key_group(MAX_PARALLELISM), group);
        let namespace: u8 = match entry.namespace_bytes.as_slice() {
            [] => 0,
            bytes => postcard::from_bytes(bytes).unwrap(),
        };
        let extra: i64 = match entry.map_key_bytes.as_slice() {
            [] => 0,
            bytes => postcard::from_bytes(bytes).unwrap(),
        };
        let id = (meta.name.clone(), key, namespace, extra);
        ids.push(id.clone());
        match entry.value {
            None => {
                copy.remove(&id);
            }
            Some(value) => {
                let content = match meta.kind.as_str() {
                    "value" if meta.name == "scheduled" => {
                        Content::Scheduled(rmp_serde::from_slice(&value).unwrap())
                    }
                    "value" => Content::Value(rmp_serde::from_slice(&value).unwrap()),
                    "list" => Content::List(rmp_serde::from_slice(&value).unwrap()),
                    "map" => Content::Map(rmp_serde::from_slice(&value).unwrap()),
                    _ => Content::Timer,
                };
                copy.insert(id, content);
            }
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "an entry was written twice");
}

fn run(ops: Vec<Op>, parallelism: u32, limits: StateLimits) {
    let mut world = World::new(parallelism, limits);
    for op in ops {
        world.apply(op);
        for s in &world.subtasks {
            let bytes = s.backend.figures().log_bytes;
            assert!(bytes <= limits.log_bytes_max, "log of {bytes} bytes");
        }
    }
    world.compare();
    // Whatever was left open ends well, and a last full copy is right, timers included.
    world.barrier(SnapshotKind::Savepoint, Base::None);
    world.finish();
    for op in [
        Op::TimerPop(true, 9),
        Op::TimerPop(false, 9),
        Op::Fire(9, None),
    ] {
        for _ in 0..30 {
            world.apply(op.clone());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn captures_increments_undo_and_restore_agree_with_a_copy_of_everything(
        ops in ops(),
        parallelism in 1..3_u32,
    ) {
        run(ops, parallelism, StateLimits { log_bytes_max: 1 << 30 });
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(700))]

    #[test]
    fn they_also_agree_when_the_log_is_full_all_the_time(ops in ops(), limit in 0..1500_u64) {
        run(ops, 1, StateLimits { log_bytes_max: limit });
    }
}
