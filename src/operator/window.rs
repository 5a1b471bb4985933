//! Event-time windows with incremental aggregation.

use std::marker::PhantomData;
use std::time::Duration;

use perennial_actors::fault::FaultSite;
use perennial_actors::model::FailureKind;
use serde::{Deserialize, Serialize};

use super::keyed_process::{backend_of, open_backend};
use super::single::{Emitted, Operator, Pending, SignalResult};
use super::{
    OperatorError, OperatorStateStore, OutputTag, Signal, StartContext, TIMERS_OF_ONE_CALL_MAX,
    TaskContext,
};
use crate::batch::{Record, Timestamp};
use crate::key::{Key, KeyHash};
use crate::state::{StateValue, TimeDomain, Timers, ValueState};

/// A span of event time, in ms: from `start` to just before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimeWindow {
    /// First time inside.
    pub start: Timestamp,
    /// First time after.
    pub end: Timestamp,
}

impl TimeWindow {
    /// The last time inside.
    #[must_use]
    pub fn max_timestamp(self) -> Timestamp {
        self.end - 1
    }
}

/// Tells the windows of a record.
pub trait WindowAssigner: Send + Clone + 'static {
    /// Calls `each` with every window that an event time lies in.
    fn assign(&self, timestamp: Timestamp, each: &mut dyn FnMut(TimeWindow));
}

/// Windows of equal size that do not overlap.
#[derive(Debug, Clone, Copy)]
pub struct TumblingEventTimeWindows {
    size: i64,
    offset: i64,
}

impl TumblingEventTimeWindows {
    /// Windows of `size`, beginning at the epoch.
    ///
    /// # Panics
    /// When `size` is shorter than 1 ms: a job function's mistake, found when the job is built.
    #[must_use]
    pub fn of(size: Duration) -> Self {
        let size = i64::try_from(size.as_millis()).unwrap_or(i64::MAX);
        assert!(size > 0, "a window's size must be at least 1 ms");
        Self { size, offset: 0 }
    }

    /// Moves the beginnings, e.g. for days of another time zone.
    #[must_use]
    pub fn with_offset(mut self, offset: Duration) -> Self {
        self.offset = i64::try_from(offset.as_millis()).unwrap_or(0) % self.size;
        self
    }
}

impl WindowAssigner for TumblingEventTimeWindows {
    fn assign(&self, timestamp: Timestamp, each: &mut dyn FnMut(TimeWindow)) {
        let mut since = timestamp.rem_euclid(self.size) - self.offset;
        if since < 0 {
            since += self.size;
        }
        // The first window of all time is a shorter one.
        let start = timestamp.saturating_sub(since);
        each(TimeWindow {
            start,
            end: start.saturating_add(self.size),
        });
    }
}

/// Folds the records of a window into an accumulator.
pub trait AggregateFunction: Send + 'static {
    /// Records.
    type In: Record;
    /// What is stored.
    type Accumulator: StateValue;
    /// The result.
    type Out: Record;
    /// An empty accumulator.
    fn create_accumulator(&self) -> Self::Accumulator;
    /// Adds a record.
    fn add(&self, accumulator: &mut Self::Accumulator, value: Self::In);
    /// The result so far.
    fn result(&self, accumulator: &Self::Accumulator) -> Self::Out;
}

/// Keeps an accumulator per key and window, emits when the watermark passes the window's end.
pub(crate) struct WindowOperator<A: AggregateFunction, K, W, S, R> {
    aggregate: A,
    assigner: W,
    selector: S,
    result: R,
    late: Option<OutputTag<A::In>>,
    allowed_lateness: i64,
    operator: usize,
    state: Option<ValueState<A::Accumulator, TimeWindow>>,
    timers: Option<Timers<TimeWindow>>,
    watermark: Option<Timestamp>,
    windows: Vec<TimeWindow>,
    _key: PhantomData<fn() -> K>,
}

impl<A: AggregateFunction, K, W, S, R> WindowOperator<A, K, W, S, R> {
    pub(crate) fn new(
        aggregate: A,
        assigner: W,
        selector: S,
        result: R,
        late: Option<OutputTag<A::In>>,
        allowed_lateness: Duration,
    ) -> Self {
        Self {
            aggregate,
            assigner,
            selector,
            result,
            late,
            allowed_lateness: i64::try_from(allowed_lateness.as_millis()).unwrap_or(i64::MAX),
            operator: 0,
            state: None,
            timers: None,
            watermark: None,
            windows: Vec::new(),
            _key: PhantomData,
        }
    }

    fn cleanup_time(&self, window: TimeWindow) -> Timestamp {
        window.max_timestamp().saturating_add(self.allowed_lateness)
    }
}

impl<A, K, W, S, R, O> Operator for WindowOperator<A, K, W, S, R>
where
    A: AggregateFunction,
    K: Key,
    W: WindowAssigner,
    S: Fn(&A::In) -> K + Send + 'static,
    R: Fn(&K, TimeWindow, A::Out) -> O + Send + 'static,
    O: Record,
{
    type In = A::In;
    type Out = O;

    fn open(
        &mut self,
        operator: usize,
        _lists: &mut OperatorStateStore,
        cx: &mut StartContext<'_>,
    ) -> Result<(), OperatorError> {
        self.operator = operator;
        self.watermark = cx.restored[operator].watermark;
        let backend = open_backend::<K>(operator, cx)?;
        self.state = Some(backend.value_state("window-contents")?);
        self.timers = Some(backend.timers("window-timers")?);
        Ok(())
    }

    fn process(
        &mut self,
        input: &mut Pending<A::In>,
        out: &mut Emitted<O>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        let backend = backend_of::<K>(cx.keyed, self.operator)?;
        let state = self.state.as_ref().expect("registered in open");
        let timers = self.timers.as_ref().expect("registered in open");
        while !out.is_any_full() {
            let Some((value, timestamp)) = input.next() else {
                break;
            };
            let Some(timestamp) = timestamp.filter(|t| *t > Timestamp::MIN) else {
                return Err(OperatorError(FailureKind::User {
                    message: "a record without event time reached an event-time window: give the source a WatermarkStrategy with timestamps".into(),
                    is_unrecoverable: true,
                }));
            };
            let key = (self.selector)(&value);
            backend.set_current_key(&key, KeyHash::of(&key));
            self.windows.clear();
            self.assigner
                .assign(timestamp, &mut |window| self.windows.push(window));
            let mut is_late = true;
            let mut value = Some(value);
            let windows = std::mem::take(&mut self.windows);
            let watermark = self.watermark.unwrap_or(Timestamp::MIN);
            let live = windows
                .iter()
                .filter(|w| self.cleanup_time(**w) > watermark)
                .count();
            let mut left = live;
            for window in windows.iter().copied() {
                if self.cleanup_time(window) <= watermark {
                    continue;
                }
                is_late = false;
                left -= 1;
                let item = if left == 0 {
                    value.take()
                } else {
                    value.clone()
                };
                let Some(item) = item else { continue };
                let is_fired = window.max_timestamp() <= watermark;
                let aggregate = &self.aggregate;
                let (is_new, fired) = state.update_in(backend, &window, |slot| {
                    let is_new = slot.is_none();
                    let accumulator = slot.get_or_insert_with(|| aggregate.create_accumulator());
                    aggregate.add(accumulator, item);
                    (is_new, is_fired.then(|| aggregate.result(accumulator)))
                })?;
                if is_new {
                    if !is_fired {
                        timers.register(
                            backend,
                            TimeDomain::EventTime,
                            window.max_timestamp(),
                            &window,
                        )?;
                    }
                    if self.allowed_lateness > 0 {
                        let at = self.cleanup_time(window);
                        timers.register(backend, TimeDomain::EventTime, at, &window)?;
                    }
                }
                if let Some(result) = fired {
                    out.batch.push(
                        (self.result)(&key, window, result),
                        Some(window.max_timestamp()),
                    );
                }
            }
            self.windows = windows;
            if is_late && let (Some(tag), Some(value)) = (&self.late, value) {
                out.sides.emit(tag, value, Some(timestamp));
            }
        }
        Ok(())
    }

    fn signal(
        &mut self,
        signal: Signal,
        out: &mut Emitted<O>,
        cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError> {
        let Signal::Watermark(watermark) = signal else {
            return Ok(SignalResult::Forward(signal));
        };
        // After a restore the inputs may be behind the stored watermark, e.g. those that were idle. Event time does not go back: a
        // window that has fired and gone would come back with its late records only.
        let watermark = self.watermark.map_or(watermark, |w| w.max(watermark));
        self.watermark = Some(watermark);
        let backend = backend_of::<K>(cx.keyed, self.operator)?;
        let state = self.state.as_ref().expect("registered in open");
        let timers = self.timers.as_ref().expect("registered in open");
        for _ in 0..TIMERS_OF_ONE_CALL_MAX {
            let Some((time, window)) = timers.pop(backend, TimeDomain::EventTime, watermark)?
            else {
                return Ok(SignalResult::Forward(signal));
            };
            cx.faults.hit(FaultSite::OnTimer)?;
            let is_end = time == window.max_timestamp();
            let is_cleanup = time == self.cleanup_time(window);
            let aggregate = &self.aggregate;
            let result = state.update_in(backend, &window, |slot| {
                let result = slot
                    .as_ref()
                    .filter(|_| is_end)
                    .map(|accumulator| aggregate.result(accumulator));
                if is_cleanup {
                    *slot = None;
                }
                result
            })?;
            if let Some(result) = result {
                let key = backend.current_key().expect("a timer has a key");
                out.batch.push(
                    (self.result)(key, window, result),
                    Some(window.max_timestamp()),
                );
            }
            if out.is_any_full() {
                break;
            }
        }
        Ok(SignalResult::More)
    }

    fn has_keyed_state(&self) -> bool {
        true
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table, with negative times and an offset.
    #[test]
    fn tumbling_windows_cover_every_time_once() {
        let windows = |assigner: TumblingEventTimeWindows, t| {
            let mut found = Vec::new();
            assigner.assign(t, &mut |w| found.push((w.start, w.end)));
            found
        };
        let ten = TumblingEventTimeWindows::of(Duration::from_millis(10));
        assert_eq!(windows(ten, 0), [(0, 10)]);
        assert_eq!(windows(ten, 9), [(0, 10)]);
        assert_eq!(windows(ten, 10), [(10, 20)]);
        assert_eq!(windows(ten, -1), [(-10, 0)]);
        let shifted = ten.with_offset(Duration::from_millis(3));
        assert_eq!(windows(shifted, 2), [(-7, 3)]);
        assert_eq!(windows(shifted, 3), [(3, 13)]);
        assert_eq!(windows(shifted, -7), [(-7, 3)]);
        assert_eq!(windows(shifted, -8), [(-17, -7)]);
        for assigner in [ten, shifted] {
            let first = windows(assigner, Timestamp::MIN + 1)[0];
            assert!(first.0 <= Timestamp::MIN + 1 && Timestamp::MIN + 1 < first.1);
            let last = windows(assigner, Timestamp::MAX - 1)[0];
            assert!(last.0 < Timestamp::MAX && Timestamp::MAX - 1 < last.1);
        }
    }
}
