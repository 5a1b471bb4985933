//! A node's outputs: the nodes it owns downstream, and its side outputs.

use std::any::Any;
use std::marker::PhantomData;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointBarrier, CheckpointId};

use super::{
    Chained, Flow, Flush, Leftover, Located, OperatorCapture, OperatorError, Signal, StartContext,
    TaskContext,
};
use crate::batch::{Batch, Record, Timestamp};

/// Names a side output and its record type.
#[derive(Debug)]
pub struct OutputTag<T> {
    pub(crate) name: String,
    _type: PhantomData<fn() -> T>,
}

impl<T> OutputTag<T> {
    /// A tag; the name is unique within the operator.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            _type: PhantomData,
        }
    }
}

impl<T> Clone for OutputTag<T> {
    fn clone(&self) -> Self {
        Self::new(&self.name)
    }
}

/// All consumers of one stream within a task.
pub(crate) struct Output<T> {
    targets: Vec<Box<dyn Chained<T>>>,
}

macro_rules! each {
    ($self:ident, $target:ident => $call:expr) => {{
        for $target in &mut $self.targets {
            $call?;
        }
        Ok(())
    }};
}

impl<T: Record> Output<T> {
    pub(crate) fn new(targets: Vec<Box<dyn Chained<T>>>) -> Self {
        Self { targets }
    }

    /// Hands the records of a batch to every target; each but the last gets a copy. Leaves an empty batch, see [`Chained::push`].
    pub(crate) fn push(&mut self, batch: &mut Batch<T>) {
        let Some((last, others)) = self.targets.split_last_mut() else {
            batch.clear();
            return;
        };
        for target in others {
            target.push(&mut batch.clone());
        }
        last.push(batch);
        debug_assert!(batch.is_empty(), "taken");
    }
}

impl<T> Output<T> {
    pub(crate) fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        each!(self, t => t.open(cx))
    }

    pub(crate) fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        let mut flow = Flow::Drained;
        for target in &mut self.targets {
            flow = flow.and(target.resume(cx)?);
        }
        Ok(flow)
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        for target in &mut self.targets {
            target.signal(signal);
        }
    }

    pub(crate) fn flush(
        &mut self,
        flush: Flush,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        each!(self, t => t.flush(flush, cx))
    }

    pub(crate) fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        self.targets.iter().filter_map(|t| t.next_wakeup(cx)).min()
    }

    pub(crate) fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        self.targets.iter().any(|t| t.is_timer_due(cx, wall_ms))
    }

    pub(crate) fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        each!(self, t => t.snapshot(barrier, captures, cx))
    }

    pub(crate) fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        each!(self, t => t.complete(checkpoint, cx))
    }

    /// Closes every target, also after one has failed; the first failure is returned.
    pub(crate) fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        let mut result = Ok(());
        for target in &mut self.targets {
            let closed = target.close(cx);
            result = result.and(closed);
        }
        result
    }

    pub(crate) fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>) {
        for target in &mut self.targets {
            target.leftovers(leftovers);
        }
    }

    pub(crate) fn locate(&self) -> Option<Located> {
        self.targets.iter().find_map(|t| t.locate())
    }

    pub(crate) fn bytes_out(&self) -> u64 {
        self.targets.iter().map(|t| t.bytes_out()).sum()
    }

    pub(crate) fn watermark(&self) -> Option<Timestamp> {
        self.targets.iter().find_map(|t| t.watermark())
    }
}

/// A side output whose type is not known to its node.
pub(crate) trait AnySideOutput: Send {
    fn name(&self) -> &str;
    /// Records emitted since the last hand-over.
    fn len(&self) -> usize;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// Hands on what was emitted.
    fn hand_on(&mut self);
    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError>;
    fn output(&mut self) -> &mut dyn ErasedOutput;
    fn output_ref(&self) -> &dyn ErasedOutput;
}

/// [`Output`] without its type.
pub(crate) trait ErasedOutput: Send {
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError>;
    fn signal(&mut self, signal: Signal);
    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError>;
    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant>;
    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool;
    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError>;
    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError>;
    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError>;
    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>);
    fn locate(&self) -> Option<Located>;
    fn bytes_out(&self) -> u64;
}

impl<T: Send> ErasedOutput for Output<T> {
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        Output::open(self, cx)
    }
    fn signal(&mut self, signal: Signal) {
        Output::signal(self, signal);
    }
    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        Output::flush(self, flush, cx)
    }
    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        Output::next_wakeup(self, cx)
    }
    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        Output::is_timer_due(self, cx, wall_ms)
    }
    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        Output::snapshot(self, barrier, captures, cx)
    }
    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        Output::complete(self, checkpoint, cx)
    }
    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        Output::close(self, cx)
    }
    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>) {
        Output::leftovers(self, leftovers);
    }
    fn locate(&self) -> Option<Located> {
        Output::locate(self)
    }
    fn bytes_out(&self) -> u64 {
        Output::bytes_out(self)
    }
}

/// The consumers of one side output, with what was emitted since the last hand-over.
pub(crate) struct SideOutput<T> {
    name: String,
    pub(super) batch: Batch<T>,
    output: Output<T>,
}

impl<T: Record> SideOutput<T> {
    pub(crate) fn new(name: String, output: Output<T>) -> Self {
        Self {
            name,
            batch: Batch::default(),
            output,
        }
    }
}

impl<T: Record> AnySideOutput for SideOutput<T> {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> usize {
        self.batch.len()
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn hand_on(&mut self) {
        if !self.batch.is_empty() {
            self.output.push(&mut self.batch);
        }
    }
    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        self.output.resume(cx)
    }
    fn output(&mut self) -> &mut dyn ErasedOutput {
        &mut self.output
    }
    fn output_ref(&self) -> &dyn ErasedOutput {
        &self.output
    }
}

/// The side outputs of one node.
#[derive(Default)]
pub struct SideOutputs {
    pub(crate) sides: Vec<Box<dyn AnySideOutput>>,
    /// Records that wait in the fullest of them.
    pub(crate) longest: usize,
}

impl SideOutputs {
    pub(crate) fn new(sides: Vec<Box<dyn AnySideOutput>>) -> Self {
        Self { sides, longest: 0 }
    }

    pub(crate) fn hand_on(&mut self) {
        self.longest = 0;
        for side in &mut self.sides {
            side.hand_on();
        }
    }

    /// Emits to a side output; without a consumer for the tag the record is dropped, as in Flink.
    pub(crate) fn emit<T: Record>(
        &mut self,
        tag: &OutputTag<T>,
        value: T,
        timestamp: Option<Timestamp>,
    ) {
        for side in &mut self.sides {
            if side.name() == tag.name {
                if let Some(side) = side.as_any_mut().downcast_mut::<SideOutput<T>>() {
                    side.batch.push(value, timestamp);
                    self.longest = self.longest.max(side.batch.len());
                }
                return;
            }
        }
    }
}
