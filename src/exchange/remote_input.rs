//! The consumer's side of a channel from another process: a queue of encoded frames, bounded by the credit that it grants.
//!
//! Invariant: frames come out in the order of their sequence numbers, each once; what waits or is taken without having been
//! credited back never exceeds the window (or is one single batch). A producer that sends more, or leaves a gap, loses the connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use perennial_actors::model::CheckpointBarrier;

use super::TaskWaker;
use super::frame::{
    BarrierBody, ChannelId, CloseBody, Credit, Frame, Kind, LinkError, StatusBody, WatermarkBody,
    Window,
};
use super::local::{Readiness, Signal};
use crate::batch::{StreamStatus, Timestamp};

/// An element as received; batches are decoded on the task's thread.
#[derive(Debug)]
pub(super) enum Received {
    Data { records: u32, body: Bytes },
    Watermark(Timestamp),
    Status(StreamStatus),
    Barrier(CheckpointBarrier),
    EndOfInput,
}

pub(super) struct RemoteInput {
    channel: ChannelId,
    waker: Arc<dyn TaskWaker>,
    signal: Signal,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(u64, Received)>,
    /// Waiting.
    queued: Credit,
    /// Taken and not yet credited back.
    taken: Credit,
    window: Option<Window>,
    next_sequence: u64,
    is_ended: bool,
    failure: Option<String>,
}

impl State {
    fn readiness(&self) -> Readiness {
        if self.failure.is_some() {
            Readiness::Failed
        } else if self.queue.is_empty() {
            Readiness::Empty
        } else {
            Readiness::Ready
        }
    }

    /// Why a frame of this cost is more than the producer may have under way.
    fn excess(&self, cost: Credit) -> Option<String> {
        let Some(window) = self.window else {
            return Some("no credit was granted yet".to_owned());
        };
        let (records, bytes, controls) = (
            self.queued.records + self.taken.records,
            self.queued.bytes + self.taken.bytes,
            self.queued.controls + self.taken.controls,
        );
        let is_within = if cost.controls > 0 {
            controls + cost.controls <= u64::from(window.controls)
        } else {
            (records == 0 && bytes == 0)
                || (records + cost.records <= u64::from(window.records)
                    && bytes + cost.bytes <= window.bytes)
        };
        (!is_within).then(|| {
            format!("{cost:?} on top of {records} records, {bytes} bytes, {controls} controls; {window:?}")
        })
    }
}

impl RemoteInput {
    pub(super) fn new(channel: ChannelId, waker: Arc<dyn TaskWaker>) -> Self {
        Self {
            channel,
            waker,
            signal: Signal::new(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Sets what is granted with `Open`.
    pub(super) fn set_window(&self, window: Window) {
        self.lock().window = Some(window);
    }

    /// Queues a frame. Called by the connection's reader.
    pub(super) fn receive(&self, frame: Frame) -> Result<(), LinkError> {
        if frame.kind == Kind::Close {
            let body: CloseBody = frame.parse()?;
            self.fail(&body.message);
            return Ok(());
        }
        let received = match frame.kind {
            Kind::Data => Received::Data {
                records: frame.records()?,
                body: frame.body.clone(),
            },
            Kind::Watermark => Received::Watermark(frame.parse::<WatermarkBody>()?.0),
            Kind::Status => Received::Status(frame.parse::<StatusBody>()?.into()),
            Kind::Barrier => Received::Barrier(frame.parse::<BarrierBody>()?.0),
            Kind::EndOfInput => Received::EndOfInput,
            kind @ (Kind::Open | Kind::Credit | Kind::Close | Kind::Keepalive) => {
                return Err(LinkError::Direction { kind });
            }
        };
        let was_empty = {
            let mut state = self.lock();
            if state.is_ended {
                return Err(frame.malformed("it follows the end of input".to_owned()));
            }
            if frame.sequence != state.next_sequence {
                return Err(LinkError::Sequence {
                    channel: Box::new(self.channel),
                    got: frame.sequence,
                    expected: state.next_sequence,
                });
            }
            let cost = cost(&received);
            if let Some(message) = state.excess(cost) {
                return Err(LinkError::Credit {
                    channel: Box::new(self.channel),
                    message,
                });
            }
            state.next_sequence += 1;
            state.is_ended = matches!(received, Received::EndOfInput);
            let was_empty = state.queue.is_empty();
            match (state.queue.back_mut(), &received) {
                (Some((sequence, last @ Received::Watermark(_))), Received::Watermark(_))
                | (Some((sequence, last @ Received::Status(_))), Received::Status(_)) => {
                    (*sequence, *last) = (frame.sequence, received);
                    // It takes no room of its own, so it is credited back with the next report.
                    state.taken.add(cost);
                }
                _ => {
                    state.queue.push_back((frame.sequence, received));
                    state.queued.add(cost);
                }
            }
            self.signal.set(state.readiness());
            was_empty
        };
        if was_empty {
            self.waker.wake();
        }
        Ok(())
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.signal.get()
    }

    /// Takes the next element with its sequence number, and the credit to report now, if it is time: half of the window, or
    /// all when the queue is empty, so that a producer with a batch larger than the window learns that the window is free.
    #[allow(clippy::type_complexity, reason = "taken apart at the only call")]
    pub(super) fn take(&self) -> (Option<(u64, Received)>, Option<Credit>) {
        let mut state = self.lock();
        let taken = state.queue.pop_front();
        if let Some((_, received)) = &taken {
            let cost = cost(received);
            state.queued.records -= cost.records;
            state.queued.bytes -= cost.bytes;
            state.queued.controls -= cost.controls;
            state.taken.add(cost);
        }
        self.signal.set(state.readiness());
        let is_due = state.taken != Credit::default()
            && !state.is_ended
            && state.window.is_some_and(|window| {
                state.queue.is_empty()
                    || state.taken.records >= u64::from(window.records / 2)
                    || state.taken.bytes >= window.bytes / 2
                    || state.taken.controls >= u64::from(window.controls / 2)
            });
        (taken, is_due.then(|| std::mem::take(&mut state.taken)))
    }

    /// Ends the channel, unless all of its input is here already.
    pub(super) fn fail(&self, message: &str) {
        {
            let mut state = self.lock();
            if state.is_ended || state.failure.is_some() {
                return;
            }
            state.failure = Some(message.to_owned());
            self.signal.set(state.readiness());
        }
        self.waker.wake();
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Records and bytes that wait.
    pub(super) fn queued(&self) -> (u64, u64) {
        let state = self.lock();
        (state.queued.records, state.queued.bytes)
    }
}

fn cost(received: &Received) -> Credit {
    match received {
        Received::Data { records, body } => Credit {
            records: u64::from(*records),
            bytes: body.len() as u64,
            controls: 0,
        },
        Received::Watermark(_)
        | Received::Status(_)
        | Received::Barrier(_)
        | Received::EndOfInput => Credit {
            controls: 1,
            ..Credit::default()
        },
    }
}
