//! The operator for windows that a key keeps together: one entry of state per key, read ahead, which says when it is due.

use perennial_actors::fault::FaultSite;

use super::{AggregateFunction, Layout, TimeWindow, event_time_of};
use crate::batch::{Record, Timestamp};
use crate::key::Key;
use crate::operator::keyed_process::{advance_event_time, backend_of, open_backend};
use crate::operator::read_ahead::ReadAhead;
use crate::operator::single::{Emitted, Operator, Pending, SignalResult};
use crate::operator::{
    OperatorError, OperatorStateStore, OutputTag, Signal, StartContext, TIMERS_OF_ONE_CALL_MAX,
    TaskContext,
};
use crate::state::ScheduledState;

/// Emits the aggregate of each key's windows when the watermark passes their ends.
pub(crate) struct WindowOperator<A: AggregateFunction, K, L: Layout<A>, S, R> {
    aggregate: A,
    layout: L,
    selector: S,
    result: R,
    late: Option<OutputTag<A::In>>,
    operator: usize,
    state: Option<ScheduledState<L::Windows>>,
    watermark: Option<Timestamp>,
    ahead: ReadAhead<K>,
    /// What one record or due time emits; scratch space.
    results: Vec<(TimeWindow, A::Out)>,
}

impl<A: AggregateFunction, K: Key, L: Layout<A>, S, R> WindowOperator<A, K, L, S, R> {
    pub(crate) fn new(
        aggregate: A,
        layout: L,
        selector: S,
        result: R,
        late: Option<OutputTag<A::In>>,
    ) -> Self {
        Self {
            aggregate,
            layout,
            selector,
            result,
            late,
            operator: 0,
            state: None,
            watermark: None,
            ahead: ReadAhead::new(),
            results: Vec::new(),
        }
    }
}

impl<A, K, L, S, R, O> Operator for WindowOperator<A, K, L, S, R>
where
    A: AggregateFunction,
    K: Key,
    L: Layout<A>,
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
        self.state = Some(backend.scheduled_state(L::STATE)?);
        // Earlier builds kept timers beside the windows; their savepoints would be refused.
        backend.retire_timers(&format!("{}-timers", L::STATE));
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
        let watermark = self.watermark.unwrap_or(Timestamp::MIN);
        self.ahead.read(input, &self.selector, backend);
        self.ahead
            .take_while_room(input, |(key, hash), value, timestamp| {
                let mut record = Some(value);
                let timestamp = event_time_of(timestamp)?;
                backend.set_current_key(key, hash);
                let (aggregate, layout, results) =
                    (&self.aggregate, &mut self.layout, &mut self.results);
                state.update(backend, |windows| {
                    layout.add(
                        aggregate,
                        windows,
                        (&mut record, timestamp),
                        watermark,
                        |window, result| results.push((window, result)),
                    )
                })?;
                // Spares most records the drain.
                if !results.is_empty() {
                    for (window, result) in results.drain(..) {
                        let fired = (self.result)(key, window, result);
                        out.batch.push(fired, Some(window.max_timestamp()));
                    }
                }
                if let (Some(tag), Some(late)) = (&self.late, record) {
                    out.sides.emit(tag, late, Some(timestamp));
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
        for _ in 0..TIMERS_OF_ONE_CALL_MAX {
            let Some(time) = state.next_due(backend, watermark)? else {
                return Ok(SignalResult::Forward(signal));
            };
            cx.faults.hit(FaultSite::OnTimer)?;
            let (aggregate, layout, results) = (&self.aggregate, &self.layout, &mut self.results);
            state.fire(backend, time, |windows| {
                layout.fire(aggregate, windows, time, |window, result| {
                    results.push((window, result));
                });
            })?;
            let key = backend.current_key().expect("what is due has a key");
            for (window, result) in self.results.drain(..) {
                let record = (self.result)(key, window, result);
                out.batch.push(record, Some(window.max_timestamp()));
            }
            if !out.has_room() {
                break;
            }
        }
        Ok(SignalResult::More)
    }

    fn looks_ahead(&self) -> Option<usize> {
        self.ahead.looks_ahead()
    }

    fn has_keyed_state(&self) -> bool {
        true
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }
}
