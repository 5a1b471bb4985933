//! One operator of a chain with its pending input and its output: the pump that all operators share.

use std::collections::VecDeque;
use std::vec::IntoIter;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointBarrier, CheckpointId, FailureKind};

use super::{
    BATCH_RECORDS_MAX, Chained, Flow, Flush, Lifecycle, OUTPUT_OF_ONE_CALL_MAX, OperatorCapture,
    OperatorError, OperatorStateStore, Output, SideOutputs, Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, MAX_WATERMARK, Record, Timestamp};

/// What an operator does with records and time. Everything else is the node's.
pub(crate) trait Operator: Send + 'static {
    /// Taken.
    type In: Record;
    /// Emitted.
    type Out: Record;

    /// Registers state and takes what was restored.
    fn open(
        &mut self,
        operator: usize,
        lists: &mut OperatorStateStore,
        cx: &mut StartContext<'_>,
    ) -> Result<(), OperatorError>;

    /// Processes records from the front of `input` until it is empty or `out` has [`BATCH_RECORDS_MAX`] records.
    fn process(
        &mut self,
        input: &mut Pending<Self::In>,
        out: &mut Emitted<Self::Out>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError>;

    /// Acts on a signal, one bounded piece a call, and says when it is done and what goes on downstream.
    fn signal(
        &mut self,
        signal: Signal,
        out: &mut Emitted<Self::Out>,
        cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError>;

    /// Whether a record that was taken from `input` still has output to come.
    fn is_busy(&self) -> bool {
        false
    }

    /// When to be woken without input.
    fn next_wakeup(&self, _cx: &TaskContext<'_>) -> Option<Instant> {
        None
    }

    /// Whether processing-time work is due.
    fn is_timer_due(&self, _cx: &TaskContext<'_>, _wall_ms: Timestamp) -> bool {
        false
    }

    /// Whether it keeps keyed state.
    fn has_keyed_state(&self) -> bool {
        false
    }

    /// Its event-time watermark, to be stored.
    fn watermark(&self) -> Option<Timestamp> {
        None
    }

    /// Before the operator state is captured: last chance to put something into lists.
    fn before_snapshot(
        &mut self,
        _checkpoint: CheckpointId,
        _lists: &mut OperatorStateStore,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        Ok(())
    }

    /// A checkpoint is complete.
    fn complete(&mut self, _checkpoint: CheckpointId) -> Result<(), OperatorError> {
        Ok(())
    }

    /// The attempt ends.
    fn close(&mut self) -> Result<(), OperatorError> {
        Ok(())
    }
}

/// What an operator made of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalResult {
    /// Call again: there is more to do, or output to hand on first.
    More,
    /// Done; this goes downstream.
    Forward(Signal),
    /// Done; nothing goes downstream.
    Swallow,
}

/// Input that was taken and not yet processed.
pub(crate) struct Pending<T> {
    pub(crate) values: IntoIter<T>,
    pub(crate) timestamps: IntoIter<Timestamp>,
}

impl<T> Pending<T> {
    fn empty() -> Self {
        Self {
            values: Vec::new().into_iter(),
            timestamps: Vec::new().into_iter(),
        }
    }

    fn is_empty(&self) -> bool {
        self.values.len() == 0
    }
}

impl<T> Iterator for Pending<T> {
    type Item = (T, Option<Timestamp>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let value = self.values.next()?;
        Some((value, self.timestamps.next()))
    }
}

/// Output that was emitted and not yet handed on.
pub(crate) struct Emitted<T> {
    pub(crate) batch: Batch<T>,
    pub(crate) sides: SideOutputs,
    /// What follows the batch, in order.
    pub(crate) signals: VecDeque<Signal>,
    pub(crate) lists: OperatorStateStore,
}

impl<T> Emitted<T> {
    /// Whether the node must hand on before it goes on.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.batch.len() >= BATCH_RECORDS_MAX
    }
}

/// An operator in its place.
pub(crate) struct Node<O: Operator> {
    index: usize,
    operator: O,
    input: Pending<O::In>,
    signal: Option<Signal>,
    emitted: Emitted<O::Out>,
    output: Output<O::Out>,
    is_output_pending: bool,
    is_finished: bool,
}

impl<O: Operator> Node<O> {
    pub(crate) fn new(
        index: usize,
        operator: O,
        output: Output<O::Out>,
        sides: SideOutputs,
    ) -> Self {
        Self {
            index,
            operator,
            input: Pending::empty(),
            signal: None,
            emitted: Emitted {
                batch: Batch::default(),
                sides,
                signals: VecDeque::new(),
                lists: OperatorStateStore::default(),
            },
            output,
            is_output_pending: false,
            is_finished: false,
        }
    }

    fn hand_on(&mut self) -> Result<(), OperatorError> {
        if self.emitted.batch.len() > OUTPUT_OF_ONE_CALL_MAX {
            return Err(OperatorError(FailureKind::Limit {
                limit: "OUTPUT_OF_ONE_CALL_MAX".into(),
                message: format!(
                    "one call emitted {} records, at most {OUTPUT_OF_ONE_CALL_MAX} are allowed: return an iterator from flat_map, or split the record",
                    self.emitted.batch.len()
                ),
            }));
        }
        if !self.emitted.batch.is_empty() {
            let next = Batch::with_capacity(self.emitted.batch.len().min(BATCH_RECORDS_MAX));
            self.output
                .push(std::mem::replace(&mut self.emitted.batch, next));
            self.is_output_pending = true;
        }
        for side in &mut self.emitted.sides.sides {
            side.hand_on();
            self.is_output_pending = true;
        }
        Ok(())
    }

    fn resume_outputs(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        let mut flow = self.output.resume(cx)?;
        for side in &mut self.emitted.sides.sides {
            if side.resume(cx)? == Flow::Blocked {
                flow = Flow::Blocked;
            }
        }
        Ok(flow)
    }

    fn forward(&mut self, signal: Signal) {
        self.output.signal(signal);
        for side in &mut self.emitted.sides.sides {
            side.output().signal(signal);
        }
        self.is_output_pending = true;
    }
}

impl<O: Operator> Lifecycle for Node<O> {
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let restored = &mut cx.restored[self.index];
        self.is_finished = restored.is_finished;
        self.emitted.lists.restore(restored);
        self.operator
            .open(self.index, &mut self.emitted.lists, cx)?;
        self.output.open(cx)?;
        for side in &mut self.emitted.sides.sides {
            side.output().open(cx)?;
        }
        Ok(())
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        loop {
            if self.is_output_pending {
                if self.resume_outputs(cx)? == Flow::Blocked {
                    return Ok(Flow::Blocked);
                }
                self.is_output_pending = false;
            }
            if let Some(signal) = self.emitted.signals.pop_front() {
                self.forward(signal);
                continue;
            }
            if !self.input.is_empty() || self.operator.is_busy() {
                cx.place.operator = Some(self.index);
                self.operator
                    .process(&mut self.input, &mut self.emitted, cx)?;
            } else if let Some(signal) = self.signal {
                cx.place.operator = Some(self.index);
                let result = if self.is_finished && is_event_time_end(signal) {
                    SignalResult::Forward(signal)
                } else {
                    self.operator.signal(signal, &mut self.emitted, cx)?
                };
                match result {
                    SignalResult::More => {}
                    SignalResult::Swallow => self.signal = None,
                    SignalResult::Forward(forwarded) => {
                        if signal == Signal::EndOfInput {
                            self.is_finished = true;
                        }
                        self.signal = None;
                        self.hand_on()?;
                        self.forward(forwarded);
                        continue;
                    }
                }
            } else {
                return Ok(Flow::Drained);
            }
            self.hand_on()?;
        }
    }

    fn signal(&mut self, signal: Signal) {
        debug_assert!(
            self.signal.is_none(),
            "a signal comes when the one before it is handled"
        );
        self.signal = Some(signal);
    }

    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        self.output.flush(flush, cx)?;
        for side in &mut self.emitted.sides.sides {
            side.output().flush(flush, cx)?;
        }
        Ok(())
    }

    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        let sides = self
            .emitted
            .sides
            .sides
            .iter()
            .filter_map(|s| s.output_ref().next_wakeup(cx));
        sides
            .chain(self.operator.next_wakeup(cx))
            .chain(self.output.next_wakeup(cx))
            .min()
    }

    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        self.operator.is_timer_due(cx, wall_ms)
            || self.output.is_timer_due(cx, wall_ms)
            || self
                .emitted
                .sides
                .sides
                .iter()
                .any(|s| s.output_ref().is_timer_due(cx, wall_ms))
    }

    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        self.operator
            .before_snapshot(barrier.checkpoint, &mut self.emitted.lists, cx)?;
        captures.push(OperatorCapture {
            operator: self.index,
            watermark: self.operator.watermark(),
            is_finished: self.is_finished,
            lists: self.emitted.lists.capture()?,
            positions: Vec::new(),
            has_keyed: self.operator.has_keyed_state(),
        });
        self.output.snapshot(barrier, captures, cx)?;
        for side in &mut self.emitted.sides.sides {
            side.output().snapshot(barrier, captures, cx)?;
        }
        Ok(())
    }

    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        self.operator.complete(checkpoint)?;
        self.output.complete(checkpoint, cx)?;
        for side in &mut self.emitted.sides.sides {
            side.output().complete(checkpoint, cx)?;
        }
        Ok(())
    }

    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let mut result = self.operator.close();
        let closed = self.output.close(cx);
        result = result.and(closed);
        for side in &mut self.emitted.sides.sides {
            let closed = side.output().close(cx);
            result = result.and(closed);
        }
        result
    }

    fn bytes_out(&self) -> u64 {
        let sides: u64 = self
            .emitted
            .sides
            .sides
            .iter()
            .map(|s| s.output_ref().bytes_out())
            .sum();
        self.output.bytes_out() + sides
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.operator
            .watermark()
            .or_else(|| self.output.watermark())
    }
}

/// An operator that had handled the end of its input before the snapshot does not handle it again (semantics.md S1).
fn is_event_time_end(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::EndOfInput | Signal::Watermark(MAX_WATERMARK)
    )
}

impl<O: Operator> Chained<O::In> for Node<O> {
    fn push(&mut self, batch: Batch<O::In>) {
        debug_assert!(
            self.input.is_empty(),
            "batches come when the chain is drained"
        );
        self.input = Pending {
            values: batch.values.into_iter(),
            timestamps: batch.timestamps.into_iter(),
        };
    }
}
