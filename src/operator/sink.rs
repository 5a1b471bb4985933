//! The end of a chain towards the outside (semantics.md section 10).

use std::sync::Arc;

use perennial_actors::clock::Instant;
use perennial_actors::fault::{FaultSite, Sabotage};
use perennial_actors::model::{CheckpointBarrier, CheckpointId, FailureKind};

use super::{
    Chained, Flow, Flush, Lifecycle, OperatorCapture, OperatorError, OperatorList,
    OperatorStateStore, Redistribution, Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, Record, Timestamp};
use crate::connector::{Committable, Sink, SinkWriter};

const COMMITTABLES: &str = "committables";

/// A sink's writer in a chain, with what it has prepared and not yet committed.
pub(crate) struct SinkNode<T> {
    index: usize,
    sink: Arc<dyn Sink<T>>,
    writer: Option<Box<dyn SinkWriter<T>>>,
    pending: Batch<T>,
    lists: OperatorStateStore,
    committables: Option<OperatorList<Committable>>,
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
            lists: OperatorStateStore::default(),
            committables: None,
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
    fn push(&mut self, mut batch: Batch<T>) {
        if self.pending.is_empty() {
            self.pending = batch;
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
        let mut writer = self.sink.writer(&cx.task.subtask_context(self.index))?;
        // Order as promised to writers: they learn what is committed before they are asked to commit their share.
        writer.recover(&everyones)?;
        // What the checkpoint holds is committed, whoever prepared it: its completion was decided before the failure.
        for committable in self.lists.get_mut(list).drain(..) {
            writer.commit(&committable)?;
        }
        self.writer = Some(writer);
        Ok(())
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        if !self.pending.is_empty() {
            cx.place.operator = Some(self.index);
            *cx.records_out += self.pending.len() as u64;
            let mut batch = std::mem::take(&mut self.pending);
            self.writer()?.write(&mut batch)?;
            self.is_dirty = true;
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
        if let Some(bytes) = self.writer()?.prepare_commit(checkpoint)?
            && let Some(list) = self.committables
        {
            cx.faults.hit(FaultSite::AfterPreCommit)?;
            let committable = Committable { checkpoint, bytes };
            if cx.faults.is_sabotaged(Sabotage::CommitWithoutPermit) {
                self.writer()?.commit(&committable)?;
            }
            self.lists.get_mut(list).push(committable);
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
        // Cumulative: an earlier notification may have been lost (semantics.md P2).
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
        Ok(())
    }

    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        match &mut self.writer {
            Some(writer) => Ok(writer.close()?),
            None => Ok(()),
        }
    }

    fn bytes_out(&self) -> u64 {
        0
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }
}
