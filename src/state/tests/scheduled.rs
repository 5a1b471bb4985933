//! What is due: as a part of the model, and what the model does not reach.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::model::{Content, MAX_PARALLELISM, Subtask, World, key_of};
use super::*;

/// Due then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Appointment(i64);

impl Scheduled for Appointment {
    fn due(&self) -> i64 {
        self.0
    }
}

impl Subtask {
    /// Of the current key.
    pub(super) fn scheduled(&mut self) -> Option<Appointment> {
        self.handles.scheduled.get(&mut self.backend).unwrap()
    }
}

impl World {
    pub(super) fn schedule(&mut self, k: u8, due: Option<i64>) {
        let appointment = due.map(Appointment);
        let s = self.on(k);
        let scheduled = &s.handles.scheduled;
        scheduled
            .update(&mut s.backend, |now| *now = appointment)
            .unwrap();
        let id = ("scheduled".into(), key_of(k), 0, 0);
        match appointment {
            Some(appointment) => drop(self.now.insert(id, Content::Scheduled(appointment))),
            None => drop(self.now.remove(&id)),
        }
    }

    /// Each subtask's first one that is due.
    pub(super) fn fire(&mut self, up_to: i64, again: Option<i64>) {
        for s in &mut self.subtasks {
            // The order that is promised, computed from the model.
            let due = self.now.iter().filter_map(|(id, content)| match content {
                Content::Scheduled(Appointment(due)) => {
                    let hash = KeyHash::of(&id.1);
                    Some((*due, hash.key_group(MAX_PARALLELISM), hash, id.clone()))
                }
                _ => None,
            });
            let due = due.filter(|due| s.range.contains(due.1) && due.0 <= up_to);
            let expected = due.min();
            let fired = loop {
                let scheduled = &s.handles.scheduled;
                let Some(time) = scheduled.next_due(&mut s.backend, up_to).unwrap() else {
                    break None;
                };
                let act = |now: &mut Option<Appointment>| {
                    *now = again.map(|by| Appointment(time + by));
                };
                if scheduled.fire(&mut s.backend, time, act).unwrap().is_some() {
                    break Some((time, s.backend.current_key().unwrap().clone()));
                }
            };
            let (time, id) = match expected {
                Some((time, _, _, id)) => (time, id),
                None => {
                    assert_eq!(fired, None);
                    continue;
                }
            };
            assert_eq!(fired, Some((time, id.1.clone())));
            match again {
                Some(by) => {
                    let appointment = Content::Scheduled(Appointment(time + by));
                    self.now.insert(id, appointment);
                }
                None => drop(self.now.remove(&id)),
            }
        }
    }
}

fn checkpoint(backend: &mut KeyedBackend<u64>, number: u64, base: Option<u64>) -> CapturedState {
    barrier(backend, number, base);
    finish(backend)
}

/// Each of these keys has one at 10.
fn appointed(keys: RangeInclusive<u64>) -> (KeyedBackend<u64>, ScheduledState<Appointment>) {
    let mut b = backend(LIMITS);
    let state = b.scheduled_state("state").unwrap();
    for key in keys {
        use_key(&mut b, key);
        state
            .update(&mut b, |now| *now = Some(Appointment(10)))
            .unwrap();
    }
    (b, state)
}

/// More than are read ahead at a time and than one bucket takes.
#[test]
fn many_that_are_due_at_once_fire_once_each() {
    const KEYS: u64 = 50_000;
    let mut b = backend(LIMITS);
    let state = b.scheduled_state::<Appointment>("state").unwrap();
    for key in 0..KEYS {
        use_key(&mut b, key);
        let at = Some(Appointment((key % 3) as i64));
        state.update(&mut b, |now| *now = at).unwrap();
    }
    let mut fired = Vec::new();
    while let Some(time) = state.next_due(&mut b, 1).unwrap() {
        let again = match time {
            0 => Some(Appointment(1)),
            _ => None,
        };
        let done = state.fire(&mut b, time, |now| *now = again).unwrap();
        assert!(done.is_some());
        let hash = KeyHash::of(b.current_key().unwrap());
        fired.push((time, hash.key_group(8), hash));
    }
    let (at_0, at_1) = (KEYS.div_ceil(3), (KEYS + 1) / 3);
    assert_eq!(fired.len() as u64, at_0 + at_0 + at_1);
    fired.dedup();
    assert!(fired.is_sorted());
    assert_eq!(fired.len() as u64, at_0 + at_0 + at_1, "once each");
    assert_eq!(b.figures().entries, KEYS - at_0 - at_1);
}

/// A fault may strike between the two calls.
#[test]
fn what_was_told_and_not_acted_on_is_told_again() {
    let (mut b, state) = appointed(1..=1);
    checkpoint(&mut b, 1, None);
    b.confirm(CheckpointId(1));
    assert_eq!(state.next_due(&mut b, 9).unwrap(), None);
    assert_eq!(state.next_due(&mut b, 10).unwrap(), Some(10));
    assert_eq!(b.undo(CheckpointId(1)), Undone::Done);
    b.begin_attempt();
    let state = b.scheduled_state::<Appointment>("state").unwrap();
    assert_eq!(state.next_due(&mut b, 10).unwrap(), Some(10));
    let fired = state.fire(&mut b, 10, Option::take).unwrap();
    assert_eq!(fired, Some(Some(Appointment(10))));
    assert_eq!(state.next_due(&mut b, 1000).unwrap(), None);
}

/// What never comes again would be lost.
#[test]
#[should_panic(expected = "not due later")]
fn what_fired_must_be_due_later_or_gone() {
    let (mut b, state) = appointed(1..=1);
    assert_eq!(state.next_due(&mut b, 10).unwrap(), Some(10));
    let _fired = state.fire(&mut b, 10, |_| {});
}

/// What is dropped would be another one's time.
#[test]
#[should_panic(expected = "between the two calls")]
fn nothing_else_may_change_before_it_fires() {
    let (mut b, state) = appointed(1..=2);
    assert_eq!(state.next_due(&mut b, 10).unwrap(), Some(10));
    let other = 3 - *b.current_key().unwrap();
    use_key(&mut b, other);
    let _fired = state.fire(&mut b, 10, |now| *now = None);
}

/// They keep timers beside such values, and would wait for them for ever.
#[test]
fn earlier_builds_refuse_what_they_would_never_fire() {
    let (mut new, _state) = appointed(1..=1);
    let stored = checkpoint(&mut new, 1, None);
    let mut old = backend(LIMITS);
    load(&mut old, &stored).unwrap();
    let error = old.value_state::<Appointment, ()>("state").err().unwrap();
    assert!(error.to_string().contains("format version 2"), "{error}");
    // The other way round it is what it was.
    let mut old = backend(LIMITS);
    let value = old.value_state::<Appointment, ()>("state").unwrap();
    use_key(&mut old, 1);
    value.set(&mut old, Appointment(10)).unwrap();
    let stored = checkpoint(&mut old, 1, None);
    let mut new = backend(LIMITS);
    load(&mut new, &stored).unwrap();
    let state = new.scheduled_state::<Appointment>("state").unwrap();
    new.finish_load(CheckpointId(1), false).unwrap();
    assert_eq!(state.next_due(&mut new, 10).unwrap(), Some(10));
}

/// The chain still holds it: an increment on top would bring it back with each restore.
#[test]
fn retired_timers_are_dropped_on_loading_and_written_no_more() {
    let mut old = backend(LIMITS);
    use_key(&mut old, 1);
    let timers = old.timers::<()>("old").unwrap();
    let value = old.value_state::<u64, ()>("value").unwrap();
    timers
        .register(&mut old, TimeDomain::EventTime, 5, &())
        .unwrap();
    value.set(&mut old, 7).unwrap();
    let stored = checkpoint(&mut old, 1, None);
    for is_retired in [true, false] {
        let mut new = backend(LIMITS);
        load(&mut new, &stored).unwrap();
        let _value = new.value_state::<u64, ()>("value").unwrap();
        if is_retired {
            new.retire_timers("old");
            new.finish_load(CheckpointId(1), false).unwrap();
            let next = checkpoint(&mut new, 2, Some(1));
            assert_eq!(next.kind, SegmentKind::Full);
            let names = next.states.iter().map(|state| state.name.as_str());
            assert_eq!(Vec::from_iter(names), ["value"]);
        } else {
            let error = new.finish_load(CheckpointId(1), false).unwrap_err();
            assert!(
                error.to_string().contains("old/event-time-timers"),
                "{error}"
            );
        }
    }
}
