//! The producer's side of a channel to another process: how much of the consumer's window is taken.
//!
//! Invariant: never more under way than the window, except a single batch that is larger, when nothing else is.
//! Lock order: registry, then output, then link.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::TaskWaker;
use super::frame::{CloseBody, Credit, Frame, Kind, Window};
use super::producer_link::ProducerLink;

pub(super) struct RemoteOutput {
    waker: Arc<dyn TaskWaker>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// Sent and not yet credited back.
    under_way: Credit,
    next_sequence: u64,
    /// The task was refused and wants to be woken.
    is_waiting: bool,
    is_ended: bool,
    failure: Option<String>,
}

struct Link {
    link: Arc<ProducerLink>,
    alias: u32,
    window: Window,
}

impl State {
    fn has_room(&self, records: u64, bytes: u64) -> bool {
        let (taken, window) = match &self.link {
            Some(link) => (self.under_way, link.window),
            None => return false,
        };
        (taken.records == 0 && taken.bytes == 0)
            || (taken.records + records <= u64::from(window.records)
                && taken.bytes + bytes <= window.bytes)
    }

    fn has_much_room(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            self.under_way.records <= u64::from(link.window.records / 2)
                && self.under_way.bytes <= link.window.bytes / 2
                && self.under_way.controls <= u64::from(link.window.controls / 2)
        })
    }

    fn send(&mut self, kind: Kind, body: Bytes) {
        if let Some(link) = &self.link {
            link.link.send(Frame {
                kind,
                alias: link.alias,
                sequence: self.next_sequence,
                body,
            });
            self.next_sequence += 1;
        }
    }
}

impl RemoteOutput {
    pub(super) fn new(waker: Arc<dyn TaskWaker>) -> Self {
        Self {
            waker,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the consumer; `false` when there was one before: attempts are never used twice.
    pub(super) fn attach(
        self: &Arc<Self>,
        link: &Arc<ProducerLink>,
        alias: u32,
        window: Window,
    ) -> bool {
        {
            let mut state = self.lock();
            if state.link.is_some() || state.failure.is_some() {
                return false;
            }
            match link.bind(alias, self) {
                Ok(()) => {
                    state.link = Some(Link {
                        link: Arc::clone(link),
                        alias,
                        window,
                    });
                }
                Err(closed) => state.failure = Some(closed),
            }
        }
        self.waker.wake();
        true
    }

    /// Takes credit back; an error text when it is more than was under way.
    pub(super) fn credit(&self, credit: Credit) -> Result<(), String> {
        let wakes = {
            let mut state = self.lock();
            let under_way = state.under_way;
            let (Some(records), Some(bytes), Some(controls)) = (
                under_way.records.checked_sub(credit.records),
                under_way.bytes.checked_sub(credit.bytes),
                under_way.controls.checked_sub(credit.controls),
            ) else {
                return Err(format!("{credit:?} returned, {under_way:?} under way"));
            };
            state.under_way = Credit {
                records,
                bytes,
                controls,
            };
            let wakes = state.is_waiting && state.has_much_room();
            if wakes {
                state.is_waiting = false;
            }
            wakes
        };
        if wakes {
            self.waker.wake();
        }
        Ok(())
    }

    /// Ends the channel. What was sent before an end of input was all there is, so that nothing is lost with the connection
    /// that the consumer does not report itself.
    pub(super) fn fail(&self, message: &str) {
        {
            let mut state = self.lock();
            if state.is_ended || state.failure.is_some() {
                return;
            }
            state.failure = Some(message.to_owned());
        }
        self.waker.wake();
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// What may be under way, in bytes; before anybody has connected nothing.
    pub(super) fn window_bytes(&self) -> u64 {
        let state = self.lock();
        state.link.as_ref().map_or(0, |link| link.window.bytes)
    }

    /// Whether a batch of so many records is worth encoding now; if not, the task will be woken.
    pub(super) fn may_encode(&self, records: usize) -> bool {
        let mut state = self.lock();
        let may = state.has_room(records as u64, 0);
        state.is_waiting |= !may;
        may
    }

    /// Sends an encoded batch if there is room for it; if not, the task will be woken.
    pub(super) fn send_data(&self, records: u32, body: &Bytes) -> bool {
        let mut state = self.lock();
        let bytes = body.len() as u64;
        if !state.has_room(u64::from(records), bytes) {
            state.is_waiting = true;
            return false;
        }
        state.under_way.add(Credit {
            records: u64::from(records),
            bytes,
            controls: 0,
        });
        state.send(Kind::Data, body.clone());
        true
    }

    /// Sends anything else; it waits only while the window of such elements is full, or nobody has connected.
    pub(super) fn send_control(&self, kind: Kind, body: impl FnOnce() -> Bytes) -> bool {
        let mut state = self.lock();
        let has_room = state
            .link
            .as_ref()
            .is_some_and(|l| state.under_way.controls < u64::from(l.window.controls));
        if !has_room {
            state.is_waiting = true;
            return false;
        }
        state.under_way.controls += 1;
        state.is_ended = kind == Kind::EndOfInput;
        state.send(kind, body());
        true
    }

    /// The task's end is dropped; the consumer learns it unless it was told the end of input.
    pub(super) fn detach(&self) {
        let mut state = self.lock();
        if let Some(Link { link, alias, .. }) = state.link.take() {
            if !state.is_ended {
                let message = "the producing task ended before the end of its output".to_owned();
                link.send(Frame::control(
                    Kind::Close,
                    alias,
                    0,
                    &CloseBody { message },
                ));
            }
            link.unbind(alias);
        }
    }
}
