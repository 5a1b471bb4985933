//! One accumulator per key and window, stored apart: for assigners of one's own, and for aligned windows of which a key would have
//! too many at a time to be kept together.
//!
//! Invariant: a window that was begun has a timer until its state is gone. A record touches every window that it lies in.

use std::marker::PhantomData;

use perennial_actors::fault::FaultSite;

use super::{AggregateFunction, TimeWindow, WindowAssigner, event_time_of};
use crate::batch::{Record, Timestamp};
use crate::key::{Key, KeyHash};
use crate::operator::keyed_process::{advance_event_time, backend_of, open_backend};
use crate::operator::single::{Emitted, Operator, Pending, SignalResult};
use crate::operator::{
    OperatorError, OperatorStateStore, OutputTag, Signal, StartContext, TIMERS_OF_ONE_CALL_MAX,
    TaskContext,
};
use crate::state::{TimeDomain, Timers, ValueState};

/// Keeps an accumulator per key and window, emits when the watermark passes the window's end.
pub(crate) struct SeparateWindows<A: AggregateFunction, K, W, S, R> {
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

impl<A: AggregateFunction, K, W, S, R> SeparateWindows<A, K, W, S, R> {
    pub(crate) fn new(
        aggregate: A,
        assigner: W,
        selector: S,
        result: R,
        late: Option<OutputTag<A::In>>,
        allowed_lateness: i64,
    ) -> Self {
        Self {
            aggregate,
            assigner,
            selector,
            result,
            late,
            allowed_lateness,
            operator: 0,
            state: None,
            timers: None,
            watermark: None,
            windows: Vec::new(),
            _key: PhantomData,
        }
    }
}

impl<A, K, W, S, R, O> Operator for SeparateWindows<A, K, W, S, R>
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
        let lateness = self.allowed_lateness;
        input.take_while_room(|value, timestamp| {
            let timestamp = event_time_of(timestamp)?;
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
                .filter(|w| w.gone_at(lateness) > watermark)
                .count();
            let mut left = live;
            for window in windows.iter().copied() {
                if window.gone_at(lateness) <= watermark {
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
                // With allowed lateness it may have been emitted already, by a subtask that was ahead of this one before a rescale.
                if !is_fired && (is_new || lateness > 0) {
                    let at = window.max_timestamp();
                    timers.register(backend, TimeDomain::EventTime, at, &window)?;
                }
                if is_new && lateness > 0 {
                    let at = window.gone_at(lateness);
                    timers.register(backend, TimeDomain::EventTime, at, &window)?;
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
            Ok(out.has_room())
        })
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
        let watermark = advance_event_time(&mut self.watermark, watermark);
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
            let is_cleanup = time == window.gone_at(self.allowed_lateness);
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
            if !out.has_room() {
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
