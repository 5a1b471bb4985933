//! What a session between JobManager and TaskManager puts around each message, and how it survives a broken socket.
//!
//! Invariant: within one session (one JobManager process and epoch, one TaskManager process), every numbered message is handled
//! exactly once and in order, over any number of connections, or the session is given up as a whole. Both ends keep what the
//! other has not acknowledged, bounded by count and bytes. Pure: no I/O, no clock.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::connection::{ConnectionEvent, Permit};
use super::frame;
use crate::model::message::RpcError;
use crate::model::{ExecutionAttemptId, LeaderEpoch};

/// Messages kept until the peer acknowledges them.
pub const OUTBOX_MESSAGES_MAX: usize = 1024;
/// Bytes kept until the peer acknowledges them.
pub const OUTBOX_BYTES_MAX: usize = 512 << 20;

/// One session. Drawn anew for each: numbers begin at 1 in all of them, so that those of a former session between the same two
/// processes would pass for this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// The unit on the wire, in both directions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The leader that sends, or that is spoken to.
    pub epoch: LeaderEpoch,
    /// What.
    pub link: Link,
}

/// The content of an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Link {
    /// First of the JobManager on each connection.
    Start {
        /// Of the messages that follow.
        session: SessionId,
        /// Whether the earlier session goes on; else both begin anew.
        is_resumed: bool,
        /// The number of the last message received in order.
        received: u64,
    },
    /// A message.
    Message {
        /// From 1 in each session; 0 for one that may overtake and be lost (heartbeats).
        sequence: u64,
        /// The number of the last message received in order.
        received: u64,
        /// The message, encoded.
        body: Bytes,
    },
    /// Last before closing: a stale epoch, a registration that is not wanted.
    Refused(RpcError),
}

/// An [`Envelope`] or the end of its connection, with the body decoded.
pub(crate) enum Wired<T> {
    Start {
        epoch: LeaderEpoch,
        session: SessionId,
        is_resumed: bool,
        received: u64,
    },
    Message {
        epoch: LeaderEpoch,
        sequence: u64,
        received: u64,
        message: Box<T>,
        _permit: Permit,
    },
    Refused(RpcError),
    Closed(RpcError),
}

/// Decodes the body in the connection's task rather than in an actor.
pub(crate) fn wired<T: serde::de::DeserializeOwned>(
    peer: &str,
    event: ConnectionEvent<Envelope>,
) -> Wired<T> {
    match event {
        ConnectionEvent::Message(Envelope { epoch, link }, permit) => match link {
            Link::Start {
                session,
                is_resumed,
                received,
            } => Wired::Start {
                epoch,
                session,
                is_resumed,
                received,
            },
            Link::Message {
                sequence,
                received,
                body,
            } => match frame::decode(&body) {
                Ok(message) => Wired::Message {
                    epoch,
                    sequence,
                    received,
                    message: Box::new(message),
                    _permit: permit,
                },
                Err(error) => Wired::Closed(RpcError::Closed {
                    peer: peer.to_owned(),
                    message: error.to_string(),
                }),
            },
            Link::Refused(error) => Wired::Refused(error),
        },
        ConnectionEvent::Closed(error) => Wired::Closed(error),
    }
}

/// More is unacknowledged than may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{messages} messages of {bytes} bytes are not acknowledged")]
pub struct OutboxFull {
    messages: usize,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Kept {
    sequence: u64,
    body: Bytes,
    attempts: Vec<ExecutionAttemptId>,
    is_lasting: bool,
}

/// Numbers messages and keeps them until they are acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    last: u64,
    bytes: usize,
    kept: VecDeque<Kept>,
}

impl Outbox {
    /// Keeps a message. `attempts` are those that it starts or ends; a lasting one also outlives the session.
    pub(crate) fn push(
        &mut self,
        body: Bytes,
        attempts: Vec<ExecutionAttemptId>,
        is_lasting: bool,
    ) -> Result<u64, OutboxFull> {
        if self.kept.len() >= OUTBOX_MESSAGES_MAX || self.bytes + body.len() > OUTBOX_BYTES_MAX {
            return Err(OutboxFull {
                messages: self.kept.len(),
                bytes: self.bytes,
            });
        }
        self.last += 1;
        self.bytes += body.len();
        self.kept.push_back(Kept {
            sequence: self.last,
            body,
            attempts,
            is_lasting,
        });
        Ok(self.last)
    }

    /// Drops what the peer has.
    pub(crate) fn acknowledge(&mut self, received: u64) {
        while let Some(first) = self.kept.front()
            && first.sequence <= received
        {
            self.bytes -= first.body.len();
            self.kept.pop_front();
        }
    }

    /// What the peer does not have, in order.
    pub(crate) fn unacknowledged(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        self.kept.iter().map(|k| (k.sequence, k.body.clone()))
    }

    /// The attempts of what the peer does not have.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = ExecutionAttemptId> + '_ {
        self.kept.iter().flat_map(|k| k.attempts.iter().copied())
    }

    /// Begins a new session: only lasting messages remain, numbered from 1.
    pub(crate) fn restart(&mut self) {
        self.kept.retain(|k| k.is_lasting);
        self.last = 0;
        for kept in &mut self.kept {
            self.last += 1;
            kept.sequence = self.last;
        }
        self.bytes = self.kept.iter().map(|k| k.body.len()).sum();
    }
}

/// What to do with a received number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accept {
    Handle,
    /// It came over an earlier connection as well.
    Duplicate,
    /// Something before it is missing: the peer's bug, or ours.
    Gap,
}

/// Follows the numbers of the peer.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) received: u64,
}

impl Inbox {
    pub(crate) fn accept(&mut self, sequence: u64) -> Accept {
        if sequence == 0 {
            Accept::Handle
        } else if sequence <= self.received {
            Accept::Duplicate
        } else if sequence == self.received + 1 {
            self.received = sequence;
            Accept::Handle
        } else {
            Accept::Gap
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Connections that break after any number of deliveries and acknowledgements: every message arrives once, in order.
        #[test]
        fn every_message_is_handled_once_over_any_number_of_connections(
            rounds in proptest::collection::vec((0_usize..5, 0_usize..5, any::<bool>()), 1..30),
        ) {
            let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
            let (mut pushed, mut handled) = (0_u8, Vec::new());
            for (new, delivered, is_acknowledged) in rounds {
                for _ in 0..new {
                    outbox.push(Bytes::from(vec![pushed]), Vec::new(), false).unwrap();
                    pushed += 1;
                }
                let wire: Vec<_> = outbox.unacknowledged().take(delivered).collect();
                for (sequence, body) in wire {
                    match inbox.accept(sequence) {
                        Accept::Handle => handled.push(body[0]),
                        Accept::Duplicate => {}
                        Accept::Gap => prop_assert!(false, "gap at {sequence}"),
                    }
                }
                if is_acknowledged {
                    outbox.acknowledge(inbox.received);
                }
            }
            let expected: Vec<u8> = (0..handled.len() as u8).collect();
            prop_assert_eq!(handled, expected);
        }
    }

    #[test]
    fn the_outbox_is_bounded_and_a_gap_is_noticed() {
        let mut outbox = Outbox::default();
        for _ in 0..OUTBOX_MESSAGES_MAX {
            outbox.push(Bytes::new(), Vec::new(), false).unwrap();
        }
        assert!(outbox.push(Bytes::new(), Vec::new(), false).is_err());
        outbox.acknowledge(1);
        outbox.push(Bytes::new(), Vec::new(), false).unwrap();
        assert_eq!(Inbox::default().accept(2), Accept::Gap);
    }

    #[test]
    fn only_lasting_messages_outlive_a_session() {
        let mut outbox = Outbox::default();
        for (body, is_lasting) in [("a", false), ("b", true), ("c", false), ("d", true)] {
            outbox.push(body.into(), Vec::new(), is_lasting).unwrap();
        }
        outbox.restart();
        let kept: Vec<_> = outbox.unacknowledged().collect();
        assert_eq!(kept, [(1, "b".into()), (2, "d".into())]);
        assert_eq!(outbox.push("e".into(), Vec::new(), false), Ok(3));
    }
}
