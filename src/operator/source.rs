//! A source at the head of a task.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointBarrier, CheckpointId, FailureKind, SnapshotKind};

use super::{
    BATCH_RECORDS_MAX, Flow, Flush, Head, HeadPoll, Leftover, Lifecycle, Located,
    OUTPUT_OF_ONE_CALL_MAX, OperatorCapture, OperatorError, OperatorStateStore, Output,
    Redistribution, Signal, StartContext, TaskContext, after, of_signal, span,
};
use crate::batch::{Batch, MAX_WATERMARK, Record, Timestamp};
use crate::connector::{Source, SourceReader, SourceSplit, SourceStatus};

const SPLITS: &str = "splits";

/// Triggers that wait while the chain cannot take its output; the oldest go, as those of a coordinator that gave them up.
const ANNOUNCED_MAX: usize = 64;

/// How far the source is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    /// All records are out; event time ends next.
    SendMaxWatermark,
    /// Then the input does.
    SendEnd,
    Ended,
}

/// What is being done; after a failure, what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    None,
    Polling,
    HandingOn,
}

/// Reads its splits into the chain and answers triggers with barriers.
pub(crate) struct SourceHead<T> {
    index: usize,
    source: Arc<dyn Source<Item = T>>,
    reader: Option<Box<dyn SourceReader<T>>>,
    /// Where the reader appends, so that a panic of it leaves what it had appended.
    batch: Batch<T>,
    /// Records of the last batch that was not empty.
    given: usize,
    activity: Activity,
    output: Output<T>,
    stage: Stage,
    /// Triggers that were not answered yet, in order.
    announced: VecDeque<CheckpointBarrier>,
    /// Set from the barrier of a stop with savepoint on: nothing more is emitted.
    halted_by: Option<CheckpointId>,
    is_draining: bool,
}

impl<T: Record> SourceHead<T> {
    pub(crate) fn new(index: usize, source: Arc<dyn Source<Item = T>>, output: Output<T>) -> Self {
        Self {
            index,
            source,
            reader: None,
            batch: Batch::default(),
            given: 0,
            activity: Activity::None,
            output,
            stage: Stage::Reading,
            announced: VecDeque::new(),
            halted_by: None,
            is_draining: false,
        }
    }

    fn record(&self, index: usize) -> Option<(String, u64)> {
        self.reader.as_ref()?.position(index)
    }

    fn records(&self, at: Range<usize>) -> Option<String> {
        let first = self.record(at.start)?;
        let last = match at.len() {
            0 | 1 => first.clone(),
            _ => self.record(at.end - 1)?,
        };
        Some(span(&first, &last))
    }

    fn record_before(&self, index: usize) -> Option<String> {
        let last = index.checked_sub(1)?;
        self.records(last..index)
    }
}

fn check_limit(records: usize) -> Result<(), OperatorError> {
    if records <= OUTPUT_OF_ONE_CALL_MAX {
        return Ok(());
    }
    Err(OperatorError(FailureKind::Limit {
        limit: "OUTPUT_OF_ONE_CALL_MAX".into(),
        message: format!(
            "one poll of a source gave {records} records, at most {OUTPUT_OF_ONE_CALL_MAX} are allowed: heed `max`, which was {BATCH_RECORDS_MAX}"
        ),
    }))
}

fn unopened() -> OperatorError {
    OperatorError(FailureKind::Internal {
        message: "a source was used before it was opened".into(),
    })
}

impl<T: Record> Head for SourceHead<T> {
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        _records_in: &mut u64,
    ) -> Result<HeadPoll, OperatorError> {
        if let Some(barrier) = self.announced.pop_front() {
            if barrier.kind == SnapshotKind::StopWithSavepoint {
                self.halted_by = Some(barrier.checkpoint);
            }
            return Ok(HeadPoll::Barrier {
                barrier,
                alignment: Duration::ZERO,
            });
        }
        if self.halted_by.is_some() {
            return Ok(HeadPoll::Nothing { until: None });
        }
        match self.stage {
            Stage::Reading if self.is_draining => {
                self.stage = Stage::SendMaxWatermark;
                Ok(HeadPoll::Progress)
            }
            Stage::Reading => {
                cx.place.operator = Some(self.index);
                let now = cx.now;
                let reader = self.reader.as_mut().ok_or_else(unopened)?;
                self.batch.values.reserve(BATCH_RECORDS_MAX);
                self.activity = Activity::Polling;
                let status = reader.poll(&mut self.batch, BATCH_RECORDS_MAX, now)?;
                check_limit(self.batch.len())?;
                let is_empty = self.batch.is_empty();
                if !is_empty {
                    self.given = self.batch.len();
                    self.activity = Activity::HandingOn;
                    self.output.push(&mut self.batch);
                }
                self.activity = Activity::None;
                Ok(match status {
                    SourceStatus::Finished => {
                        self.stage = Stage::SendMaxWatermark;
                        HeadPoll::Progress
                    }
                    SourceStatus::Waiting { until } if is_empty => HeadPoll::Nothing { until },
                    SourceStatus::More | SourceStatus::Waiting { .. } => HeadPoll::Progress,
                })
            }
            Stage::SendMaxWatermark => {
                self.output.signal(Signal::Watermark(MAX_WATERMARK));
                self.stage = Stage::SendEnd;
                Ok(HeadPoll::Progress)
            }
            Stage::SendEnd => {
                self.output.signal(Signal::EndOfInput);
                self.stage = Stage::Ended;
                Ok(HeadPoll::Progress)
            }
            Stage::Ended => Ok(HeadPoll::Ended),
        }
    }

    fn announce(&mut self, barrier: CheckpointBarrier) {
        // Each is answered: a savepoint may be asked for while a checkpoint waits, and several checkpoints may be under way.
        if self
            .announced
            .back()
            .is_none_or(|a| a.checkpoint < barrier.checkpoint)
        {
            if self.announced.len() == ANNOUNCED_MAX {
                self.announced.pop_front();
            }
            self.announced.push_back(barrier);
        }
    }

    fn abandon(&mut self, checkpoint: CheckpointId) {
        self.announced.retain(|a| a.checkpoint != checkpoint);
        if self.halted_by == Some(checkpoint) {
            self.halted_by = None;
        }
    }

    fn drain(&mut self) {
        self.is_draining = true;
    }

    fn start(&mut self) {}

    fn position(&self) -> Option<String> {
        match (self.activity, self.output.locate()) {
            (Activity::Polling, _) => self.records(self.batch.len()..self.batch.len() + 1),
            (_, Some(Located::Records(at))) => self.records(at),
            (_, Some(Located::After { records, signal })) => {
                after(signal.map(of_signal), self.record_before(records))
            }
            (Activity::HandingOn, None) => self.records(0..self.given),
            (Activity::None, None) => after(None, self.reached()),
        }
    }

    fn reached(&self) -> Option<String> {
        self.record_before(self.given)
    }

    fn bytes_in(&self) -> u64 {
        0
    }
}

impl<T: Record> Lifecycle for SourceHead<T> {
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let subtask = cx.task.attempt.subtask.0 as usize;
        let parallelism = cx.task.parallelism as usize;
        let restored = &mut cx.restored[self.index];
        // After a drain there may be input left, but the job's event time is at its end.
        if restored.is_finished {
            self.stage = Stage::SendMaxWatermark;
        }
        let splits = if restored.is_restored {
            let mut store = OperatorStateStore::default();
            store.restore(restored);
            let list = store.register::<SourceSplit>(SPLITS, Redistribution::Split)?;
            restored.lists = store.unclaimed();
            std::mem::take(store.get_mut(list))
        } else {
            let all = self.source.splits(cx.task.parallelism)?;
            all.into_iter()
                .enumerate()
                .filter(|(i, _)| i % parallelism == subtask)
                .map(|(_, split)| split)
                .collect()
        };
        let context = cx.task.subtask_context(self.index);
        self.reader = Some(self.source.reader(&context, splits)?);
        self.output.open(cx)
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        self.output.resume(cx)
    }

    fn signal(&mut self, signal: Signal) {
        self.output.signal(signal);
    }

    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        self.output.flush(flush, cx)
    }

    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        self.output.next_wakeup(cx)
    }

    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        self.output.is_timer_due(cx, wall_ms)
    }

    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        let splits = self.reader.as_ref().ok_or_else(unopened)?.snapshot();
        let positions = splits.iter().map(|s| (s.id.clone(), s.position)).collect();
        let mut store = OperatorStateStore::default();
        let list = store.register::<SourceSplit>(SPLITS, Redistribution::Split)?;
        *store.get_mut(list) = splits;
        captures.push(OperatorCapture {
            operator: self.index,
            watermark: None,
            is_finished: self.stage == Stage::Ended,
            lists: store.capture()?,
            positions,
            has_keyed: false,
        });
        self.output.snapshot(barrier, captures, cx)
    }

    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        self.output.complete(checkpoint, cx)
    }

    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        cx.place.operator = Some(self.index);
        self.reader = None;
        self.output.close(cx)
    }

    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>) {
        self.output.leftovers(leftovers);
    }

    fn locate(&self) -> Option<Located> {
        self.output.locate()
    }

    fn bytes_out(&self) -> u64 {
        self.output.bytes_out()
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.output.watermark()
    }
}
