//! One operator of a chain with its pending input and its output: the pump that all operators share.

use std::collections::VecDeque;
use std::ops::Range;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointBarrier, CheckpointId};

use super::single::{Emitted, Operator, Pending, SignalResult};
use super::{
    Chained, Flow, Flush, Leftover, Lifecycle, Located, OperatorCapture, OperatorError,
    OperatorStateStore, Output, SideOutputs, Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, MAX_WATERMARK, Timestamp};

/// Which of the operator's functions is being called; after a failure, which one failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    None,
    Records,
    Signal(Signal),
}

/// What the output that was handed on last was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MadeOf {
    /// Records of the batch that the node was given last.
    Records {
        input: Range<usize>,
        /// Length of the main output.
        output: usize,
    },
    Signal(Signal),
}

/// An operator in its place.
pub(crate) struct Node<O: Operator> {
    index: usize,
    operator: O,
    input: Pending<O::In>,
    /// Records of the batch that `input` is the rest of.
    given: usize,
    signal: Option<Signal>,
    activity: Activity,
    made_of: MadeOf,
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
            given: 0,
            signal: None,
            activity: Activity::None,
            made_of: MadeOf::Records {
                input: 0..0,
                output: 0,
            },
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

    /// Records taken of the batch that was given last.
    fn taken(&self) -> usize {
        self.given - self.input.len()
    }

    fn process(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let first = self.taken() - usize::from(self.operator.is_busy());
        self.activity = Activity::Records;
        self.operator
            .process(&mut self.input, &mut self.emitted, cx)?;
        self.emitted.check_limit()?;
        self.activity = Activity::None;
        self.made_of = MadeOf::Records {
            input: first..self.taken(),
            output: self.emitted.batch.len(),
        };
        Ok(())
    }

    fn act_on(
        &mut self,
        signal: Signal,
        cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError> {
        if self.is_finished && is_over_after_end(signal) {
            return Ok(SignalResult::Forward(signal));
        }
        cx.place.operator = Some(self.index);
        self.activity = Activity::Signal(signal);
        let result = self.operator.signal(signal, &mut self.emitted, cx)?;
        self.emitted.check_limit()?;
        self.activity = Activity::None;
        self.made_of = MadeOf::Signal(signal);
        Ok(result)
    }

    fn hand_on(&mut self) {
        if !self.emitted.batch.is_empty() {
            // Before the push, which may clone records: until it is done, that is what is under way.
            self.is_output_pending = true;
            self.output.push(&mut self.emitted.batch);
        }
        if !self.emitted.sides.sides.is_empty() {
            self.is_output_pending = true;
            self.emitted.sides.hand_on();
        }
    }

    fn resume_outputs(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        let mut flow = self.output.resume(cx)?;
        for side in &mut self.emitted.sides.sides {
            flow = flow.and(side.resume(cx)?);
        }
        self.is_output_pending = flow != Flow::Drained;
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
        cx.restored[self.index].lists = self.emitted.lists.unclaimed();
        self.output.open(cx)?;
        for side in &mut self.emitted.sides.sides {
            side.output().open(cx)?;
        }
        let restored = self.operator.restored_watermark();
        self.emitted.signals.extend(restored.map(Signal::Watermark));
        Ok(())
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        loop {
            if self.is_output_pending {
                let flow = self.resume_outputs(cx)?;
                if flow != Flow::Drained {
                    return Ok(flow);
                }
            }
            if let Some(signal) = self.emitted.signals.pop_front() {
                self.forward(signal);
                continue;
            }
            if !self.input.is_empty() || self.operator.is_busy() {
                let Some(left) = cx.calls_left.checked_sub(1) else {
                    return Ok(Flow::Yielded);
                };
                cx.calls_left = left;
                self.process(cx)?;
                self.hand_on();
            } else if let Some(signal) = self.signal {
                let result = self.act_on(signal, cx)?;
                self.hand_on();
                match result {
                    SignalResult::More => {
                        // The rest has its own steps: orders and captures come in between, barriers do not.
                        return match self.is_output_pending {
                            true => Ok(self.resume_outputs(cx)?.and(Flow::Yielded)),
                            false => Ok(Flow::Yielded),
                        };
                    }
                    SignalResult::Swallow => self.signal = None,
                    SignalResult::Forward(forwarded) => {
                        if signal == Signal::EndOfInput {
                            self.is_finished = true;
                        }
                        self.signal = None;
                        self.forward(forwarded);
                    }
                }
            } else {
                return Ok(Flow::Drained);
            }
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
        let own = match self.is_finished {
            true => None,
            false => self.operator.next_wakeup(cx),
        };
        sides.chain(own).chain(self.output.next_wakeup(cx)).min()
    }

    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        (!self.is_finished && self.operator.is_timer_due(cx, wall_ms))
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

    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>) {
        self.output.leftovers(leftovers);
        for side in &mut self.emitted.sides.sides {
            side.output().leftovers(leftovers);
        }
    }

    fn locate(&self) -> Option<Located> {
        let taken = self.taken();
        let downstream = match self.activity {
            Activity::Records => {
                let at = match self.operator.looks_ahead() {
                    Some(ahead) => taken + ahead,
                    None => taken.saturating_sub(1),
                };
                return Some(Located::Records(at..at + 1));
            }
            Activity::Signal(signal) => {
                return Some(Located::After {
                    records: taken,
                    signal: Some(signal),
                });
            }
            Activity::None => self.output.locate(),
        };
        let is_main = downstream.is_some();
        let downstream = downstream.or_else(|| {
            let sides = &self.emitted.sides.sides;
            sides.iter().find_map(|side| side.output_ref().locate())
        });
        if downstream.is_none() && !self.is_output_pending {
            return None;
        }
        Some(match (downstream, &self.made_of) {
            (Some(Located::After { signal, .. }), MadeOf::Records { input, .. }) => {
                Located::After {
                    records: input.end,
                    signal,
                }
            }
            (Some(Located::After { signal, .. }), MadeOf::Signal(_)) => Located::After {
                records: taken,
                signal,
            },
            // The i-th of n that are left of m has i before it and n - i - 1 behind it.
            (Some(Located::Records(at)), MadeOf::Records { input, output })
                if is_main && self.operator.is_at_most_one() && at.end <= *output =>
            {
                Located::Records(input.start + at.start..input.end - output + at.end)
            }
            (Some(Located::Records(_)) | None, MadeOf::Records { input, .. }) => {
                Located::Records(input.clone())
            }
            (Some(Located::Records(_)) | None, MadeOf::Signal(signal)) => Located::After {
                records: taken,
                signal: Some(*signal),
            },
        })
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

/// An operator that has handled the end of its input, in this attempt or before its snapshot, does not handle it again,
/// and its clock stands still: nothing follows the end.
fn is_over_after_end(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::EndOfInput | Signal::Watermark(MAX_WATERMARK) | Signal::ProcessingTime(_)
    )
}

impl<O: Operator> Chained<O::In> for Node<O> {
    fn push(&mut self, batch: &mut Batch<O::In>) {
        debug_assert!(
            self.input.is_empty(),
            "batches come when the chain is drained"
        );
        self.given = batch.len();
        self.input.fill(batch);
    }
}
