//! The end of a chain towards the outside. Commits in two phases: what Flink has `SinkWriterOperator` and `CommitterOperator` for.

use std::collections::BTreeSet;
use std::sync::Arc;

use perennial_actors::clock::Instant;
use perennial_actors::fault::{FaultSite, Sabotage};
use perennial_actors::model::{
    Attempt, CheckpointBarrier, CheckpointId, ExecutionAttemptId, FailureKind, SnapshotKind,
};

use super::{
    Chained, Flow, Flush, Leftover, Lifecycle, Located, OperatorCapture, OperatorError,
    OperatorList, OperatorStateStore, Redistribution, Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, Record, Timestamp};
use crate::connector::{Committable, Sink, SinkWriter, SubtaskContext};
use crate::error::FunctionResult;

const COMMITTABLES: &str = "committables";

/// A sink's writer in a chain, with what it has prepared and not yet committed.
pub(crate) struct SinkNode<T> {
    index: usize,
    sink: Arc<dyn Sink<T>>,
    writer: Option<Box<dyn SinkWriter<T>>>,
    pending: Batch<T>,
    /// While the writer writes: the records of the batch.
    writing: Option<std::ops::Range<usize>>,
    lists: OperatorStateStore,
    committables: Option<OperatorList<Committable>>,
    /// Snapshots that hold the committables which are left, plain savepoints too; none while there is none.
    taken: BTreeSet<CheckpointId>,
    /// Once open.
    context: Option<SubtaskContext>,
    watermark: Option<Timestamp>,
    is_dirty: bool,
    is_finished: bool,
}

impl<T: Record> SinkNode<T> {
    pub(crate) fn new(index: usize, sink: Arc<dyn Sink<T>>) -> Self {
        Self {
            index,
            sink,
            writer: None,
            pending: Batch::default(),
            writing: None,
            lists: OperatorStateStore::default(),
            committables: None,
            taken: BTreeSet::new(),
            context: None,
            watermark: None,
            is_dirty: false,
            is_finished: false,
        }
    }

    fn writer(&mut self) -> Result<&mut Box<dyn SinkWriter<T>>, OperatorError> {
        self.writer.as_mut().ok_or_else(|| {
            OperatorError(FailureKind::Internal {
                message: "a sink was used before it was opened".into(),
            })
        })
    }
}

impl<T: Record> Chained<T> for SinkNode<T> {
    fn push(&mut self, batch: &mut Batch<T>) {
        if self.pending.is_empty() {
            std::mem::swap(&mut self.pending, batch);
        } else {
            self.pending.values.append(&mut batch.values);
            self.pending.timestamps.append(&mut batch.timestamps);
        }
    }
}

impl<T: Record> Lifecycle for SinkNode<T> {
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let restored = &mut cx.restored[self.index];
        self.watermark = restored.watermark;
        self.is_finished = restored.is_finished;
        self.lists.restore(restored);
        let everyones: Vec<Committable> = restored
            .everyones
            .iter()
            .filter(|list| list.name == COMMITTABLES)
            .flat_map(|list| &list.items)
            .map(|item| {
                rmp_serde::from_slice(item).map_err(|error| {
                    OperatorError(FailureKind::IncompatibleState {
                        message: format!("a stored committable does not decode: {error}"),
                    })
                })
            })
            .collect::<Result<_, _>>()?;
        let list = self
            .lists
            .register::<Committable>(COMMITTABLES, Redistribution::Split)?;
        self.committables = Some(list);
        cx.restored[self.index].lists = self.lists.unclaimed();
        let context = cx.task.subtask_context(self.index);
        let mut writer = self.sink.writer(&context)?;
        // Order as promised to writers: they learn what is committed before they are asked to commit their share.
        writer.recover(&everyones)?;
        // What the checkpoint holds is committed, whoever prepared it: its completion was decided before the failure.
        for committable in self.lists.get_mut(list).drain(..) {
            writer.commit(&committable)?;
        }
        self.writer = Some(writer);
        self.context = Some(context);
        Ok(())
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        if !self.pending.is_empty() {
            cx.place.operator = Some(self.index);
            *cx.records_out += self.pending.len() as u64;
            let mut batch = std::mem::take(&mut self.pending);
            self.writing = Some(0..batch.len());
            if let Err(error) = self.writer()?.write(&mut batch) {
                if let Some(index) = error.record() {
                    self.writing = Some(index..index + 1);
                }
                return Err(error.into());
            }
            self.writing = None;
            self.is_dirty = true;
            // What a writer leaves there is not its own any more; the memory serves again.
            batch.clear();
            self.pending = batch;
        }
        Ok(Flow::Drained)
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Watermark(watermark) => self.watermark = Some(watermark),
            Signal::EndOfInput => self.is_finished = true,
            Signal::Status(_) | Signal::ProcessingTime(_) => {}
        }
    }

    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        if flush == Flush::All && self.is_dirty && !self.sink.is_transactional() {
            cx.place.operator = Some(self.index);
            self.writer()?.flush()?;
            self.is_dirty = false;
        }
        Ok(())
    }

    fn next_wakeup(&self, _cx: &TaskContext<'_>) -> Option<Instant> {
        None
    }

    fn is_timer_due(&self, _cx: &TaskContext<'_>, _wall_ms: Timestamp) -> bool {
        false
    }

    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        self.writer()?.flush()?;
        self.is_dirty = false;
        let checkpoint = barrier.checkpoint;
        let prepared = match barrier.kind {
            SnapshotKind::Savepoint => self.writer()?.prepare_savepoint(checkpoint)?,
            SnapshotKind::Checkpoint | SnapshotKind::Final | SnapshotKind::StopWithSavepoint => {
                self.writer()?.prepare_commit(checkpoint)?
            }
        };
        if let Some(list) = self.committables {
            let prepared = prepared.map(|bytes| Committable { checkpoint, bytes });
            if let Some(committable) = &prepared {
                cx.faults.hit(FaultSite::AfterPreCommit)?;
                if cx.faults.is_sabotaged(Sabotage::CommitWithoutPermit) {
                    self.writer()?.commit(committable)?;
                }
            }
            let list = self.lists.get_mut(list);
            list.extend(prepared);
            if list.is_empty() {
                self.taken.clear();
            } else {
                self.taken.insert(checkpoint);
            }
        }
        captures.push(OperatorCapture {
            operator: self.index,
            watermark: self.watermark,
            is_finished: self.is_finished,
            lists: self.lists.capture()?,
            positions: Vec::new(),
            has_keyed: false,
        });
        Ok(())
    }

    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let Some(list) = self.committables else {
            return Ok(());
        };
        // Cumulative: an earlier notification may have been lost.
        let due: Vec<Committable> = self
            .lists
            .get(list)
            .iter()
            .filter(|c| c.checkpoint <= checkpoint)
            .cloned()
            .collect();
        for committable in &due {
            cx.faults.hit(FaultSite::BeforeCommit)?;
            self.writer()?.commit(committable)?;
        }
        self.lists
            .get_mut(list)
            .retain(|c| c.checkpoint > checkpoint);
        // Bounded: nothing asks for older ones than the last completed.
        self.taken = self.taken.split_off(&checkpoint);
        Ok(())
    }

    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        match &mut self.writer {
            Some(writer) => Ok(writer.close()?),
            None => Ok(()),
        }
    }

    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>) {
        if let (Some(context), Some(list)) = (self.context.take(), self.committables)
            && self.sink.is_transactional()
        {
            leftovers.push(Box::new(Uncommitted {
                sink: self.sink.clone(),
                context,
                committables: std::mem::take(self.lists.get_mut(list)),
                taken: std::mem::take(&mut self.taken),
            }));
        }
    }

    fn locate(&self) -> Option<Located> {
        self.writing.clone().map(Located::Records)
    }

    fn bytes_out(&self) -> u64 {
        0
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }
}

/// A sink's part of what an ended attempt left.
struct Uncommitted<T> {
    sink: Arc<dyn Sink<T>>,
    context: SubtaskContext,
    committables: Vec<Committable>,
    /// Snapshots that the attempt took part in.
    taken: BTreeSet<CheckpointId>,
}

impl<T: Record> Leftover for Uncommitted<T> {
    fn attempt(&self) -> ExecutionAttemptId {
        self.context.attempt
    }

    fn settle(self: Box<Self>, completed: Option<CheckpointId>) -> FunctionResult {
        let Self {
            sink,
            mut context,
            committables,
            taken,
        } = *self;
        // An attempt that has no part in the last checkpoint has none in any that still counts: what it prepared was committed by the
        // attempt that was restored after it, or is void.
        let completed = completed.filter(|completed| taken.contains(completed));
        let (due, void): (Vec<_>, Vec<_>) = committables
            .into_iter()
            .partition(|c| completed.is_some_and(|completed| c.checkpoint <= completed));
        tracing::info!(
            attempt = %context.attempt, uid = context.uid, ?completed,
            committed = due.len(), dropped = void.len(), "settles the output of an ended task"
        );
        // As its successor would, so that the writer takes for left over what this attempt and those before it made, and nothing that a
        // later attempt elsewhere did.
        context.attempt.attempt = Attempt(context.attempt.attempt.0.saturating_add(1));
        let mut writer = sink.writer(&context)?;
        writer.recover(&due)?;
        for committable in &due {
            writer.commit(committable)?;
        }
        writer.close()
    }
}
