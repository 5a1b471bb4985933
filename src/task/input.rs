//! Inputs from other tasks at the head of a task: takes elements in turn, aligns barriers, merges event time.

use std::collections::VecDeque;

use perennial_actors::clock::Instant;
use perennial_actors::fault::{FaultSite, Sabotage};
use perennial_actors::model::{CheckpointBarrier, CheckpointId};

use super::alignment::{Aligner, Alignment, Blocking};
use super::valve::{Advance, Valve};
use crate::batch::{Record, StreamElement, Timestamp};
use crate::exchange::InputGate;
use crate::operator::{
    Chained, Flow, Flush, Head, HeadPoll, Lifecycle, OperatorCapture, OperatorError, Signal,
    StartContext, TaskContext,
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
    due: VecDeque<CheckpointBarrier>,
    has_sent_end: bool,
    /// Channel and number of the batch taken last.
    position: Option<(usize, u64)>,
    batches: Vec<u64>,
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
            has_sent_end: false,
            position: None,
            batches: vec![0; channels],
        }
    }

    fn align(&mut self, channel: Option<usize>, alignment: Alignment) {
        match (alignment, channel) {
            (Alignment::Go, _) | (Alignment::Block, None) => {}
            (Alignment::Block, Some(channel)) => self.gate.block(channel),
            (Alignment::Due(barrier), _) => {
                self.gate.unblock_all();
                self.due.push_back(barrier);
            }
            (Alignment::Restarted { is_blocking }, channel) => {
                self.gate.unblock_all();
                if let (true, Some(channel)) = (is_blocking, channel) {
                    self.gate.block(channel);
                }
            }
        }
    }

    fn advance(&mut self, advance: Advance) {
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
        if let Some(barrier) = self.due.pop_front() {
            return Ok(HeadPoll::Barrier(barrier));
        }
        if self.aligner.has_ended() {
            if let Some(barrier) = self.aligner.announced_at_end() {
                return Ok(HeadPoll::Barrier(barrier));
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
                self.batches[channel] += 1;
                if cx.faults.is_sabotaged(Sabotage::DeliverTwice)
                    && self.batches[channel].is_multiple_of(8)
                {
                    let twice = batch.clone();
                    batch.values.extend(twice.values);
                    batch.timestamps.extend(twice.timestamps);
                }
                self.position = Some((channel, self.batches[channel]));
                *records_in += batch.len() as u64;
                self.chain.push(batch);
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
                let alignment = self.aligner.barrier(channel, barrier);
                if alignment == Alignment::Block {
                    cx.faults.hit(FaultSite::DuringAlignment)?;
                    if cx.faults.is_sabotaged(Sabotage::SkipAlignment) {
                        return Ok(HeadPoll::Progress);
                    }
                }
                self.align(Some(channel), alignment);
            }
            StreamElement::EndOfInput => {
                let advance = self.valve.ended(channel);
                self.advance(advance);
                let alignment = self.aligner.ended(channel);
                self.align(None, alignment);
            }
        }
        Ok(HeadPoll::Progress)
    }

    fn announce(&mut self, barrier: CheckpointBarrier) {
        // Only once the end has gone through the chain does an announcement stand in for barriers; before, it waits here.
        let alignment = self.aligner.announce(barrier);
        self.align(None, alignment);
    }

    fn abandon(&mut self, checkpoint: CheckpointId) {
        if self.aligner.abandon(checkpoint) {
            self.gate.unblock_all();
        }
        self.due.retain(|d| d.checkpoint != checkpoint);
    }

    fn drain(&mut self) {}

    fn start(&mut self) {
        self.gate.start();
    }

    fn position(&self) -> Option<String> {
        let (channel, batch) = self.position?;
        let peer = self.gate.peer(channel).attempt;
        Some(format!(
            "batch {batch} from vertex {} subtask {}",
            peer.vertex, peer.subtask
        ))
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

    fn bytes_out(&self) -> u64 {
        self.chain.bytes_out()
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.chain.watermark()
    }
}
