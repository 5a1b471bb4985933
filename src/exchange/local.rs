//! Channels within a process: batches move by pointer.
//!
//! Invariant: elements come out in the order in which they went in, each once; at most [`RECORDS_MAX`] records in [`BATCHES_MAX`]
//! batches wait, or a single larger batch, and [`CONTROLS_MAX`] other elements. Sides are woken at transitions only: the consumer
//! when an empty queue gets an element, the producer that was refused when half of the queue is free again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::TaskWaker;
use super::queue::{ElementQueue, coalesces};
use crate::batch::{Batch, StreamElement};

/// Records that wait in a channel.
pub(super) const RECORDS_MAX: usize = 8192;
/// Batches that wait in a channel.
pub(super) const BATCHES_MAX: usize = 256;
/// Barriers, watermarks and the like that wait in a channel; they go beside the records' window.
pub(super) const CONTROLS_MAX: usize = 256;
/// Emptied batches kept for reuse: as many as there are in a channel that is full of batches of a usual size.
const FREE_MAX: usize = 8;
/// Memory of a batch kept for reuse, in records.
const FREE_RECORDS_MAX: usize = RECORDS_MAX;

/// What can be seen of a channel without its lock.
pub(super) struct Signal(AtomicU8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Empty,
    Ready,
    Failed,
}

impl Signal {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    pub(super) fn get(&self) -> Readiness {
        match self.0.load(Ordering::Acquire) {
            0 => Readiness::Empty,
            1 => Readiness::Ready,
            _ => Readiness::Failed,
        }
    }

    /// Called under the channel's lock, so that the last writer has seen the queue as it is.
    pub(super) fn set(&self, readiness: Readiness) {
        let code = match readiness {
            Readiness::Empty => 0,
            Readiness::Ready => 1,
            Readiness::Failed => 2,
        };
        self.0.store(code, Ordering::Release);
    }
}

pub(super) struct LocalChannel<T> {
    state: Mutex<State<T>>,
    signal: Signal,
    consumer_waker: OnceLock<Arc<dyn TaskWaker>>,
    producer_waker: OnceLock<Arc<dyn TaskWaker>>,
}

struct State<T> {
    queue: VecDeque<(u64, StreamElement<T>)>,
    /// Taken before the queue: room for barriers that overtake.
    priority: Option<StreamElement<T>>,
    records: usize,
    batches: usize,
    controls: usize,
    next_sequence: u64,
    is_started: bool,
    is_ended: bool,
    producer_waits: bool,
    is_producer_gone: bool,
    is_consumer_gone: bool,
    free: Vec<Batch<T>>,
}

/// The other end was dropped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl<T> State<T> {
    fn fits(&self, element: &StreamElement<T>) -> bool {
        match element {
            StreamElement::Batch(batch) => {
                self.batches == 0
                    || (self.records + batch.len() <= RECORDS_MAX && self.batches < BATCHES_MAX)
            }
            StreamElement::Watermark(_)
            | StreamElement::Status(_)
            | StreamElement::Barrier(_)
            | StreamElement::EndOfInput => {
                self.controls < CONTROLS_MAX
                    || self
                        .queue
                        .back()
                        .is_some_and(|(_, last)| coalesces(last, element))
            }
        }
    }

    fn push(&mut self, element: StreamElement<T>) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        match &element {
            StreamElement::Batch(batch) => {
                self.records += batch.len();
                self.batches += 1;
            }
            StreamElement::EndOfInput => {
                self.is_ended = true;
                self.controls += 1;
            }
            StreamElement::Watermark(_) | StreamElement::Status(_) | StreamElement::Barrier(_) => {
                if let Some((s, last)) = self.queue.back_mut()
                    && coalesces(last, &element)
                {
                    (*s, *last) = (sequence, element);
                    return;
                }
                self.controls += 1;
            }
        }
        self.queue.push_back((sequence, element));
    }

    fn has_much_room(&self) -> bool {
        self.is_started
            && self.records <= RECORDS_MAX / 2
            && self.batches <= BATCHES_MAX / 2
            && self.controls <= CONTROLS_MAX / 2
    }

    fn readiness(&self) -> Readiness {
        if self.is_producer_gone && !self.is_ended {
            Readiness::Failed
        } else if self.queue.is_empty() && self.priority.is_none() {
            Readiness::Empty
        } else {
            Readiness::Ready
        }
    }
}

impl<T> LocalChannel<T> {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                priority: None,
                records: 0,
                batches: 0,
                controls: 0,
                next_sequence: 0,
                is_started: false,
                is_ended: false,
                producer_waits: false,
                is_producer_gone: false,
                is_consumer_gone: false,
                free: Vec::new(),
            }),
            signal: Signal::new(),
            consumer_waker: OnceLock::new(),
            producer_waker: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing of a user runs under this lock, so a poisoned one is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called once per end: the registry hands each end out once.
    pub(super) fn set_consumer(&self, waker: Arc<dyn TaskWaker>) {
        let _ = self.consumer_waker.set(waker);
    }

    /// See [`set_consumer`](Self::set_consumer).
    pub(super) fn set_producer(&self, waker: Arc<dyn TaskWaker>) {
        let _ = self.producer_waker.set(waker);
    }

    fn wake(waker: &OnceLock<Arc<dyn TaskWaker>>) {
        if let Some(waker) = waker.get() {
            waker.wake();
        }
    }

    /// The consumer has its state.
    pub(super) fn start(&self) {
        let waits = {
            let mut state = self.lock();
            state.is_started = true;
            std::mem::take(&mut state.producer_waits)
        };
        if waits {
            Self::wake(&self.producer_waker);
        }
    }

    /// Moves pending elements into the queue as far as they fit; `true` when all did.
    pub(super) fn offer(&self, pending: &mut ElementQueue<T>) -> Result<bool, Gone> {
        let (outcome, was_empty) = {
            let mut state = self.lock();
            if state.is_consumer_gone {
                // Who has said all and was heard, or need not be, loses nothing by the other's end.
                return if state.is_ended && pending.is_empty() {
                    Ok(true)
                } else {
                    Err(Gone)
                };
            }
            let was_empty = state.readiness() == Readiness::Empty;
            let mut is_done = true;
            while let Some(element) = pending.front() {
                if !state.is_started || !state.fits(element) {
                    state.producer_waits = true;
                    is_done = false;
                    break;
                }
                if let Some(element) = pending.pop() {
                    state.push(element);
                }
            }
            let readiness = state.readiness();
            self.signal.set(readiness);
            (is_done, was_empty && readiness == Readiness::Ready)
        };
        if was_empty {
            Self::wake(&self.consumer_waker);
        }
        Ok(outcome)
    }

    /// Puts a barrier before everything that waits; `false` when the slot is taken or the channel has not started.
    pub(super) fn overtake(&self, element: StreamElement<T>) -> bool {
        {
            let mut state = self.lock();
            if !state.is_started || state.priority.is_some() || state.is_consumer_gone {
                return false;
            }
            state.priority = Some(element);
            self.signal.set(state.readiness());
        }
        Self::wake(&self.consumer_waker);
        true
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.signal.get()
    }

    /// Takes the next element and its sequence number; one that overtook has that of the element it came before.
    pub(super) fn take(&self) -> Option<(u64, StreamElement<T>)> {
        let (taken, wakes) = {
            let mut state = self.lock();
            let taken = if let Some(element) = state.priority.take() {
                let sequence = state
                    .queue
                    .front()
                    .map_or(state.next_sequence, |(sequence, _)| *sequence);
                Some((sequence, element))
            } else {
                let taken = state.queue.pop_front();
                match &taken {
                    Some((_, StreamElement::Batch(batch))) => {
                        state.records -= batch.len();
                        state.batches -= 1;
                    }
                    Some(_) => state.controls -= 1,
                    None => {}
                }
                taken
            };
            let wakes = state.producer_waits && state.has_much_room();
            if wakes {
                state.producer_waits = false;
            }
            self.signal.set(state.readiness());
            (taken, wakes)
        };
        if wakes {
            Self::wake(&self.producer_waker);
        }
        taken
    }

    /// Records that wait.
    pub(super) fn queued_records(&self) -> usize {
        self.lock().records
    }

    /// Takes an emptied batch back for the producer.
    pub(super) fn recycle(&self, mut batch: Batch<T>) {
        batch.clear();
        if batch.values.capacity() == 0 || batch.values.capacity() > FREE_RECORDS_MAX {
            return;
        }
        let mut state = self.lock();
        if state.free.len() < FREE_MAX && !state.is_producer_gone {
            state.free.push(batch);
        }
    }

    /// An empty batch, with memory if there is a recycled one.
    pub(super) fn recycled(&self) -> Batch<T> {
        self.lock().free.pop().unwrap_or_default()
    }

    /// The producer's end is dropped.
    pub(super) fn drop_producer(&self) {
        let free = {
            let mut state = self.lock();
            state.is_producer_gone = true;
            self.signal.set(state.readiness());
            std::mem::take(&mut state.free)
        };
        drop(free);
        Self::wake(&self.consumer_waker);
    }

    /// The consumer's end is dropped.
    pub(super) fn drop_consumer(&self) {
        // Records are dropped outside of the lock: their Drop is user code.
        let waste = {
            let mut state = self.lock();
            state.is_consumer_gone = true;
            (state.records, state.batches, state.controls) = (0, 0, 0);
            (
                std::mem::take(&mut state.queue),
                std::mem::take(&mut state.free),
                state.priority.take(),
            )
        };
        drop(waste);
        Self::wake(&self.producer_waker);
    }
}
