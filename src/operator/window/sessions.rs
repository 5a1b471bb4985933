//! Sessions: windows that grow with the records in them and merge when they meet.
//!
//! Invariant: a key's sessions are ascending, the newest apart, and neither overlap nor touch; `timer`, when they are due, is at most the
//! earliest time at which one of them ends or is gone. A session that grows leaves it where it is: when it comes, it is set anew, so
//! that a record changes no due time.

use std::mem;

use serde::{Deserialize, Serialize};

use super::{AggregateFunction, Layout, TimeWindow};
use crate::batch::Timestamp;
use crate::state::{Scheduled, StateValue};

/// Sessions by a gap.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    gap: i64,
    lateness: i64,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session<Acc> {
    start: Timestamp,
    end: Timestamp,
    /// It has been emitted as it is, and is kept for late records.
    is_emitted: bool,
    accumulator: Acc,
}

/// The sessions of a key: mostly one, which needs no memory of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionsOfKey<Acc> {
    timer: Timestamp,
    newest: Session<Acc>,
    older: Vec<Session<Acc>>,
}

impl<Acc: StateValue> Scheduled for SessionsOfKey<Acc> {
    #[inline]
    fn due(&self) -> Timestamp {
        self.timer
    }
}

impl<Acc> Session<Acc> {
    fn window(&self) -> TimeWindow {
        TimeWindow {
            start: self.start,
            end: self.end,
        }
    }

    fn touches(&self, window: TimeWindow) -> bool {
        self.start <= window.end && window.start <= self.end
    }

    /// When it next counts.
    fn due(&self, lateness: i64) -> Timestamp {
        if self.is_emitted {
            self.window().gone_at(lateness)
        } else {
            self.window().max_timestamp()
        }
    }

    /// Emits it if it has ended. A record that came to one that was emitted makes it another.
    fn settle<A: AggregateFunction<Accumulator = Acc>>(
        &mut self,
        aggregate: &A,
        watermark: Timestamp,
        emit: &mut impl FnMut(TimeWindow, A::Out),
    ) {
        self.is_emitted = self.window().max_timestamp() <= watermark;
        if self.is_emitted {
            emit(self.window(), aggregate.result(&self.accumulator));
        }
    }
}

impl Sessions {
    pub(crate) fn new(gap: i64, lateness: i64) -> Self {
        Self { gap, lateness }
    }

    fn is_gone(&self, session: TimeWindow, time: Timestamp) -> bool {
        session.gone_at(self.lateness) <= time
    }

    /// Puts a record's own session among the others of the key, with all that it touches merged into it; its place.
    /// `None`: it touches none.
    #[cold]
    fn merge<A: AggregateFunction>(
        aggregate: &A,
        all: &mut Vec<Session<A::Accumulator>>,
        window: TimeWindow,
    ) -> Option<usize> {
        let first = all.iter().position(|session| session.touches(window))?;
        let touched = all[first..]
            .iter()
            .take_while(|s| s.touches(window))
            .count();
        let mut others = all.drain(first + 1..first + touched).collect::<Vec<_>>();
        let merged = &mut all[first];
        merged.start = merged.start.min(window.start);
        merged.end = merged.end.max(window.end);
        for other in others.drain(..) {
            merged.end = merged.end.max(other.end);
            aggregate.merge(&mut merged.accumulator, &other.accumulator);
        }
        Some(first)
    }
}

impl<A: AggregateFunction> Layout<A> for Sessions {
    const STATE: &'static str = "window-sessions";
    type Windows = SessionsOfKey<A::Accumulator>;

    #[inline]
    fn add(
        &mut self,
        aggregate: &A,
        windows: &mut Option<Self::Windows>,
        (record, timestamp): (&mut Option<A::In>, Timestamp),
        watermark: Timestamp,
        mut emit: impl FnMut(TimeWindow, A::Out),
    ) {
        let Some(value) = record.take() else {
            return;
        };
        let own = TimeWindow {
            start: timestamp,
            end: timestamp.saturating_add(self.gap),
        };
        let begin = |value| {
            let mut accumulator = aggregate.create_accumulator();
            aggregate.add(&mut accumulator, value);
            Session {
                start: own.start,
                end: own.end,
                is_emitted: false,
                accumulator,
            }
        };
        // Within the newest session, or right behind it: no other can be touched.
        if let Some(kept) = windows
            && timestamp >= kept.newest.start
            && timestamp <= kept.newest.end
        {
            let session = &mut kept.newest;
            session.end = session.end.max(own.end);
            aggregate.add(&mut session.accumulator, value);
            if self.may_be_kept_after_its_end() {
                session.settle(aggregate, watermark, &mut emit);
                kept.timer = kept.timer.min(session.due(self.lateness));
            }
            return;
        }
        let Some(mut kept) = windows.take() else {
            if self.is_gone(own, watermark) {
                *record = Some(value);
                return;
            }
            let mut newest = begin(value);
            newest.settle(aggregate, watermark, &mut emit);
            *windows = Some(SessionsOfKey {
                timer: newest.due(self.lateness),
                newest,
                older: Vec::new(),
            });
            return;
        };
        let mut all = mem::take(&mut kept.older);
        all.push(kept.newest);
        match Self::merge(aggregate, &mut all, own) {
            Some(at) => {
                let session = &mut all[at];
                aggregate.add(&mut session.accumulator, value);
                session.settle(aggregate, watermark, &mut emit);
                kept.timer = kept.timer.min(session.due(self.lateness));
            }
            None if self.is_gone(own, watermark) => *record = Some(value),
            None => {
                let mut session = begin(value);
                session.settle(aggregate, watermark, &mut emit);
                kept.timer = kept.timer.min(session.due(self.lateness));
                let at = all.partition_point(|other| other.start < own.start);
                all.insert(at, session);
            }
        }
        *windows = Some(SessionsOfKey {
            timer: kept.timer,
            newest: all.pop().expect("one was pushed"),
            older: all,
        });
    }

    fn fire(
        &self,
        aggregate: &A,
        windows: &mut Option<Self::Windows>,
        time: Timestamp,
        mut emit: impl FnMut(TimeWindow, A::Out),
    ) {
        let Some(kept) = windows else {
            return;
        };
        for session in kept.older.iter_mut().chain([&mut kept.newest]) {
            if !session.is_emitted {
                session.settle(aggregate, time, &mut emit);
            }
        }
        kept.older
            .retain(|session| !self.is_gone(session.window(), time));
        if self.is_gone(kept.newest.window(), time) {
            // The newest ends last.
            *windows = None;
            return;
        }
        let older = kept.older.iter().map(|session| session.due(self.lateness));
        kept.timer = older.fold(kept.newest.due(self.lateness), Timestamp::min);
    }
}

impl Sessions {
    fn may_be_kept_after_its_end(&self) -> bool {
        self.lateness > 0
    }
}
