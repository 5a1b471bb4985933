//! The end of a chain towards other tasks: spreads records over channels and gathers them into batches.

use std::time::Duration;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointBarrier, CheckpointId, owner_of};

use super::single::emptied;
use super::{
    BATCH_RECORDS_MAX, Chained, Flow, Flush, Leftover, Lifecycle, Located, OperatorCapture,
    OperatorError, Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, Record, StreamElement, Timestamp};
use crate::exchange::OutputChannel;
use crate::key::{Key, KeyHash};

/// Records that may wait for credit in one channel before the task stops taking input.
const PENDING_RECORDS_MAX: usize = BATCH_RECORDS_MAX;

/// Decides which channels a record goes to.
pub(crate) trait Partitioner<T>: Send {
    /// Moves the records of `batch` to the targets, and leaves it empty.
    fn split(&mut self, batch: &mut Batch<T>, targets: &mut Targets<T>);
}

/// Buffers and channels, one pair per consumer.
pub(crate) struct Targets<T> {
    targets: Vec<Target<T>>,
    /// When the oldest gathered record came.
    since: Option<Instant>,
    /// Records of the batch being split that user code has begun with; 0 where it has no say.
    begun: usize,
}

struct Target<T> {
    buffer: Batch<T>,
    /// See [`OutputChannel::batch_records`]; kept here for the push of each record.
    batch_records: usize,
    channel: OutputChannel<T>,
}

impl<T: Record> Targets<T> {
    pub(crate) fn len(&self) -> usize {
        self.targets.len()
    }

    // A call would pass the record through memory once more.
    #[inline(always)]
    pub(crate) fn push(&mut self, target: usize, value: T, timestamp: Option<Timestamp>) {
        let target = &mut self.targets[target];
        // A batch has event times or has none: those of a record do not depend on who is gathered with it.
        if timestamp.is_some() != target.buffer.has_timestamps() && !target.buffer.is_empty() {
            target.hand_over();
        }
        target.buffer.push(value, timestamp);
        if target.buffer.len() >= target.batch_records {
            target.hand_over();
        }
    }

    pub(crate) fn push_batch(&mut self, target: usize, batch: &mut Batch<T>) {
        let Target {
            buffer, channel, ..
        } = &mut self.targets[target];
        if buffer.is_empty() && batch.len() >= channel.whole_from() {
            let next = std::mem::take(buffer);
            let whole = std::mem::replace(batch, next);
            *buffer = channel.recycled();
            channel.push(StreamElement::Batch(whole));
            return;
        }
        drain_each(batch, |value, timestamp| {
            self.push(target, value, timestamp)
        });
    }

    fn hand_over(&mut self) {
        for target in &mut self.targets {
            if !target.buffer.is_empty() {
                target.hand_over();
            }
        }
        self.since = None;
    }
}

impl<T: Record> Target<T> {
    fn hand_over(&mut self) {
        let gathered = std::mem::replace(&mut self.buffer, self.channel.recycled());
        self.channel.push(StreamElement::Batch(gathered));
        self.batch_records = self.channel.batch_records();
    }
}

/// Takes the records out of a batch, one by one, and leaves it its memory. Not by an iterator: see
/// [`take_while_room`](super::single::Pending::take_while_room).
#[inline]
fn drain_each<T>(batch: &mut Batch<T>, mut f: impl FnMut(T, Option<Timestamp>)) {
    let mut values = std::mem::take(&mut batch.values).into_iter();
    let mut timestamps = batch.timestamps.drain(..);
    values
        .by_ref()
        .for_each(|value| f(value, timestamps.next()));
    batch.values = emptied(values);
}

/// Subtask i to subtask i.
pub(crate) struct Forward;

impl<T: Record> Partitioner<T> for Forward {
    fn split(&mut self, batch: &mut Batch<T>, targets: &mut Targets<T>) {
        targets.push_batch(0, batch);
    }
}

/// Round robin, record by record.
pub(crate) struct Rebalance {
    pub(crate) next: usize,
}

impl<T: Record> Partitioner<T> for Rebalance {
    fn split(&mut self, batch: &mut Batch<T>, targets: &mut Targets<T>) {
        let count = targets.len();
        if self.next >= count {
            self.next = 0;
        }
        drain_each(batch, |value, timestamp| {
            targets.push(self.next, value, timestamp);
            self.next += 1;
            if self.next >= count {
                self.next = 0;
            }
        });
    }
}

/// Every record to all.
pub(crate) struct Broadcast;

impl<T: Record> Partitioner<T> for Broadcast {
    fn split(&mut self, batch: &mut Batch<T>, targets: &mut Targets<T>) {
        let Some(last) = targets.len().checked_sub(1) else {
            return;
        };
        for target in 0..last {
            targets.push_batch(target, &mut batch.clone());
        }
        targets.push_batch(last, batch);
    }
}

/// By key group.
pub(crate) struct ByKey<S> {
    selector: S,
    max_parallelism: u32,
    owners: Vec<u16>,
}

impl<S> ByKey<S> {
    pub(crate) fn new(selector: S, parallelism: u32, max_parallelism: u32) -> Self {
        let owners = (0..max_parallelism)
            .map(|group| {
                let group = perennial_actors::model::KeyGroup(group as u16);
                owner_of(group, parallelism, max_parallelism).0 as u16
            })
            .collect();
        Self {
            selector,
            max_parallelism,
            owners,
        }
    }
}

impl<T, K, S> Partitioner<T> for ByKey<S>
where
    T: Record,
    K: Key,
    S: Fn(&T) -> K + Send,
{
    fn split(&mut self, batch: &mut Batch<T>, targets: &mut Targets<T>) {
        if targets.len() == 1 {
            targets.push_batch(0, batch);
            return;
        }
        drain_each(batch, |value, timestamp| {
            targets.begun += 1;
            let group = KeyHash::of(&(self.selector)(&value)).key_group(self.max_parallelism);
            let target = usize::from(self.owners[usize::from(group.0)]);
            targets.push(target, value, timestamp);
        });
    }
}

/// What is being done; after a failure, what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    None,
    Splitting,
    /// Of what was gathered: no particular record.
    Sending,
}

/// A chain's output on one edge.
pub(crate) struct PartitionWriter<T> {
    partitioner: Box<dyn Partitioner<T>>,
    targets: Targets<T>,
    buffer_timeout: Duration,
    has_pushed: u64,
    activity: Activity,
    has_ended: bool,
    watermark: Option<Timestamp>,
}

impl<T: Record> PartitionWriter<T> {
    pub(crate) fn new(
        partitioner: Box<dyn Partitioner<T>>,
        channels: Vec<OutputChannel<T>>,
        buffer_timeout: Duration,
    ) -> Self {
        let targets = channels
            .into_iter()
            .map(|channel| Target {
                buffer: Batch::default(),
                batch_records: channel.batch_records(),
                channel,
            })
            .collect();
        Self {
            partitioner,
            targets: Targets {
                targets,
                since: None,
                begun: 0,
            },
            activity: Activity::None,
            buffer_timeout,
            has_pushed: 0,
            has_ended: false,
            watermark: None,
        }
    }

    fn broadcast(&mut self, element: &StreamElement<T>) {
        self.targets.hand_over();
        for target in &mut self.targets.targets {
            target.channel.push(element.clone());
        }
    }
}

impl<T: Record> Chained<T> for PartitionWriter<T> {
    fn push(&mut self, batch: &mut Batch<T>) {
        self.has_pushed += batch.len() as u64;
        self.targets.begun = 0;
        self.activity = Activity::Splitting;
        self.partitioner.split(batch, &mut self.targets);
        self.activity = Activity::None;
    }
}

impl<T: Record> Lifecycle for PartitionWriter<T> {
    fn open(&mut self, _cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError> {
        *cx.records_out += std::mem::take(&mut self.has_pushed);
        if self.targets.since.is_none() && self.targets.targets.iter().any(|t| !t.buffer.is_empty())
        {
            self.targets.since = Some(cx.now);
        }
        let mut flow = Flow::Drained;
        self.activity = Activity::Sending;
        for target in &mut self.targets.targets {
            let is_empty = target.channel.flush()?;
            let pending = target.channel.pending_records();
            // The end of input must be on its way before the task may end.
            if pending >= PENDING_RECORDS_MAX || (self.has_ended && !is_empty) {
                flow = Flow::Blocked;
            }
        }
        self.activity = Activity::None;
        Ok(flow)
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Watermark(watermark) => {
                self.watermark = Some(watermark);
                self.broadcast(&StreamElement::Watermark(watermark));
            }
            Signal::Status(status) => self.broadcast(&StreamElement::Status(status)),
            Signal::EndOfInput => {
                self.has_ended = true;
                self.broadcast(&StreamElement::EndOfInput);
            }
            // Each task has its own clock.
            Signal::ProcessingTime(_) => {}
        }
    }

    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        let is_due = match flush {
            Flush::All => true,
            Flush::Due => self
                .targets
                .since
                .is_some_and(|since| cx.now >= since + self.buffer_timeout),
        };
        if is_due {
            self.targets.hand_over();
            self.activity = Activity::Sending;
            for target in &mut self.targets.targets {
                target.channel.flush()?;
            }
            self.activity = Activity::None;
        }
        Ok(())
    }

    fn next_wakeup(&self, _cx: &TaskContext<'_>) -> Option<Instant> {
        self.targets.since.map(|since| since + self.buffer_timeout)
    }

    fn is_timer_due(&self, _cx: &TaskContext<'_>, _wall_ms: Timestamp) -> bool {
        false
    }

    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        _captures: &mut Vec<OperatorCapture>,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        if self.has_ended {
            return Ok(());
        }
        self.broadcast(&StreamElement::Barrier(*barrier));
        for target in &mut self.targets.targets {
            target.channel.flush()?;
        }
        Ok(())
    }

    fn complete(
        &mut self,
        _checkpoint: CheckpointId,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        Ok(())
    }

    fn close(&mut self, _cx: &mut TaskContext<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    fn leftovers(&mut self, _leftovers: &mut Vec<Box<dyn Leftover>>) {}

    fn locate(&self) -> Option<Located> {
        let begun = self.targets.begun;
        match self.activity {
            Activity::Splitting if begun > 0 => Some(Located::Records(begun - 1..begun)),
            Activity::Sending => Some(Located::After {
                records: 0,
                signal: None,
            }),
            Activity::Splitting | Activity::None => None,
        }
    }

    fn bytes_out(&self) -> u64 {
        self.targets
            .targets
            .iter()
            .map(|t| t.channel.bytes_sent())
            .sum()
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }
}
