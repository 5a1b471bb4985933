//! Inputs from other tasks at the head of a task: takes elements, aligns barriers, merges event time.
//!
//! The channel that is behind in event time goes first. Windows stay open until it has come as far as the others; and while it catches
//! up, the others' queues are full and hold back who is ahead. So inputs that are read at different paces do not drift apart for good.
//! The price: where barriers are not aligned (at least once), those of the others take longer meanwhile.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use perennial_actors::clock::Instant;
use perennial_actors::fault::{FaultSite, Sabotage};
use perennial_actors::model::{CheckpointBarrier, CheckpointId};

use super::alignment::{Aligner, Alignment, Blocking};
use super::valve::{Advance, Valve};
use crate::batch::{Record, StreamElement, Timestamp};
use crate::exchange::InputGate;
use crate::operator::{
    Chained, Flow, Flush, Head, HeadPoll, Leftover, Lifecycle, Located, OperatorCapture,
    OperatorError, Signal, StartContext, TaskContext, after, of_signal,
};

/// One gate of one record type and the chain behind it.
pub(crate) struct InputHead<T> {
    gate: InputGate<T>,
    chain: Box<dyn Chained<T>>,
    aligner: Aligner,
    valve: Valve,
    /// What goes down the chain before anything else; at most two.
    queued: VecDeque<Signal>,
    /// Snapshots to be taken before anything else is; as many as may be announced.
    due: VecDeque<(CheckpointBarrier, Duration)>,
    /// The snapshot whose first barrier has come, and when that was.
    aligning: Option<(CheckpointId, Instant)>,
    has_sent_end: bool,
    /// The channel of the batch taken last, and the batch's length.
    taken: Option<(usize, usize)>,
    /// Batches and records taken of each channel.
    counts: Vec<(u64, u64)>,
}

impl<T: Record> InputHead<T> {
    pub(crate) fn new(gate: InputGate<T>, chain: Box<dyn Chained<T>>, blocking: Blocking) -> Self {
        let channels = gate.len();
        Self {
            aligner: Aligner::new(channels, blocking),
            valve: Valve::new(channels),
            gate,
            chain,
            queued: VecDeque::new(),
            due: VecDeque::new(),
            aligning: None,
            has_sent_end: false,
            taken: None,
            counts: vec![(0, 0); channels],
        }
    }

    fn align(&mut self, channel: Option<usize>, alignment: Alignment, now: Option<Instant>) {
        match (alignment, channel) {
            (Alignment::Go, _) | (Alignment::Block, None) => {}
            (Alignment::Block, Some(channel)) => self.gate.block(channel),
            (Alignment::Due(barrier), _) => {
                self.gate.unblock_all();
                // Without a barrier of its own there was nothing to align: all channels have ended.
                let first = self.aligning.take();
                let first = first.filter(|(checkpoint, _)| *checkpoint == barrier.checkpoint);
                let alignment = first.zip(now).map_or(Duration::ZERO, |((_, first), now)| {
                    now.saturating_duration_since(first)
                });
                self.due.push_back((barrier, alignment));
            }
            (Alignment::Restarted { is_blocking }, channel) => {
                self.gate.unblock_all();
                if let (true, Some(channel)) = (is_blocking, channel) {
                    self.gate.block(channel);
                }
            }
        }
    }

    /// Records of the batch taken last, numbered as those of its channel: people count from 1.
    fn records(&self, at: Range<usize>) -> Option<String> {
        let (channel, len) = self.taken?;
        let (batch, records) = self.counts[channel];
        let peer = self.gate.peer(channel).attempt;
        let from = format!("from vertex {} subtask {}", peer.vertex, peer.subtask);
        let before = records - len as u64;
        let (first, last) = (at.start as u64 + 1, at.end as u64);
        Some(if first >= last {
            format!(
                "record {} {from} ({first} of batch {batch})",
                before + first
            )
        } else {
            format!(
                "records {} to {} {from} ({first} to {last} of batch {batch})",
                before + first,
                before + last
            )
        })
    }

    fn record_before(&self, index: usize) -> Option<String> {
        let last = index.checked_sub(1)?;
        self.records(last..index)
    }

    fn advance(&mut self, advance: Advance) {
        self.gate.prefer(self.valve.behind());
        // The status goes first, so that the watermark counts downstream.
        self.queued.extend(advance.status.map(Signal::Status));
        self.queued.extend(advance.watermark.map(Signal::Watermark));
    }
}

impl<T: Record> Head for InputHead<T> {
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        records_in: &mut u64,
    ) -> Result<HeadPoll, OperatorError> {
        if let Some(signal) = self.queued.pop_front() {
            self.chain.signal(signal);
            return Ok(HeadPoll::Progress);
        }
        if let Some((barrier, alignment)) = self.due.pop_front() {
            return Ok(HeadPoll::Barrier { barrier, alignment });
        }
        if self.aligner.has_ended() {
            if let Some(barrier) = self.aligner.announced_at_end() {
                return Ok(HeadPoll::Barrier {
                    barrier,
                    alignment: Duration::ZERO,
                });
            }
            if self.has_sent_end {
                return Ok(HeadPoll::Ended);
            }
            self.has_sent_end = true;
            self.chain.signal(Signal::EndOfInput);
            return Ok(HeadPoll::Progress);
        }
        let Some((channel, element)) = self.gate.poll()? else {
            return Ok(HeadPoll::Nothing { until: None });
        };
        match element {
            StreamElement::Batch(mut batch) => {
                let (batches, records) = &mut self.counts[channel];
                *batches += 1;
                if cx.faults.is_sabotaged(Sabotage::DeliverTwice) && batches.is_multiple_of(8) {
                    let twice = batch.clone();
                    batch.values.extend(twice.values);
                    batch.timestamps.extend(twice.timestamps);
                }
                *records += batch.len() as u64;
                self.taken = Some((channel, batch.len()));
                *records_in += batch.len() as u64;
                self.chain.push(&mut batch);
                self.gate.recycle(channel, batch);
            }
            StreamElement::Watermark(watermark) => {
                let advance = self.valve.watermark(channel, watermark);
                self.advance(advance);
            }
            StreamElement::Status(status) => {
                let advance = self.valve.status(channel, status);
                self.advance(advance);
            }
            StreamElement::Barrier(barrier) => {
                let checkpoint = barrier.checkpoint;
                if self.aligning.is_none_or(|(other, _)| other < checkpoint) {
                    self.aligning = Some((checkpoint, cx.now));
                }
                let alignment = self.aligner.barrier(channel, barrier);
                if alignment == Alignment::Block {
                    cx.faults.hit(FaultSite::DuringAlignment)?;
                    if cx.faults.is_sabotaged(Sabotage::SkipAlignment) {
                        return Ok(HeadPoll::Progress);
                    }
                }
                self.align(Some(channel), alignment, Some(cx.now));
            }
            StreamElement::EndOfInput => {
                let advance = self.valve.ended(channel);
                self.advance(advance);
                let alignment = self.aligner.ended(channel);
                self.align(None, alignment, Some(cx.now));
                while let Some(due) = self.aligner.next_due() {
                    self.align(None, Alignment::Due(due), Some(cx.now));
                }
            }
        }
        Ok(HeadPoll::Progress)
    }

    fn announce(&mut self, barrier: CheckpointBarrier) {
        // Only once the end has gone through the chain does an announcement stand in for barriers; before, it waits here.
        let alignment = self.aligner.announce(barrier);
        self.align(None, alignment, None);
    }

    fn is_aligning(&self) -> bool {
        self.aligner.is_blocking()
    }

    fn abandon(&mut self, checkpoint: CheckpointId) {
        if self.aligner.abandon(checkpoint) {
            self.gate.unblock_all();
        }
        self.due.retain(|(due, _)| due.checkpoint != checkpoint);
    }

    fn drain(&mut self) {}

    fn start(&mut self) {
        self.gate.start();
    }

    fn position(&self) -> Option<String> {
        match self.chain.locate() {
            Some(Located::Records(at)) => self.records(at),
            Some(Located::After { records, signal }) => {
                after(signal.map(of_signal), self.record_before(records))
            }
            None => after(None, self.reached()),
        }
    }

    fn reached(&self) -> Option<String> {
        let (_, len) = self.taken?;
        self.record_before(len)
    }

    fn bytes_in(&self) -> u64 {
        self.gate.bytes_received()
    }
}

impl<T: Record> Lifecycle for InputHead<T> {
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        self.chain.open(cx)
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        self.chain.resume(cx)
    }

    fn signal(&mut self, signal: Signal) {
        self.chain.signal(signal);
    }

    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        self.chain.flush(flush, cx)
    }

    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        self.chain.next_wakeup(cx)
    }

    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        self.chain.is_timer_due(cx, wall_ms)
    }

    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        self.chain.snapshot(barrier, captures, cx)
    }

    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        self.chain.complete(checkpoint, cx)
    }

    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        self.chain.close(cx)
    }

    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>) {
        self.chain.leftovers(leftovers);
    }

    fn locate(&self) -> Option<Located> {
        self.chain.locate()
    }

    fn bytes_out(&self) -> u64 {
        self.chain.bytes_out()
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.chain.watermark()
    }
}
