//! The consuming end of a task's channels.
//!
//! Invariant: elements of one channel come in order; a blocked channel gives none; a broken channel is an error when its turn comes,
//! whether it is blocked or not, and stays one; every channel's turn comes, also while another is preferred. Which records may pass
//! when is decided by the task loop, not here.

use std::sync::Arc;

use perennial_actors::model::{ChannelPeer, FailureKind};

use super::codec::BatchCodec;
use super::consumer_link::ConsumerLink;
use super::frame::{ChannelId, DATA_PREFIX_BYTES, Window};
use super::local::{LocalChannel, Readiness};
use super::registry::{End, Registry};
use super::remote_input::{Received, RemoteInput};
use crate::batch::{Batch, Record, StreamElement};

/// Elements of the preferred channel in a row: then the others have a turn, so that none starves.
pub(super) const PREFERRED_IN_A_ROW_MAX: u32 = 16;

/// The consuming ends of a task's channels of one record type. Dropping it closes them.
pub struct InputGate<T> {
    channels: Vec<InputChannel<T>>,
    codec: Arc<dyn BatchCodec<T>>,
    /// Where the next look begins, but for the preferred channel.
    next: usize,
    preferred: Option<usize>,
    /// Elements of preferred channels since the others' last turn.
    in_a_row: u32,
    is_started: bool,
    bytes_received: u64,
    failure: Option<FailureKind>,
}

pub(super) struct InputChannel<T> {
    id: ChannelId,
    peer: ChannelPeer,
    is_blocked: bool,
    /// Of the last element taken.
    sequence: Option<u64>,
    source: Source<T>,
    registry: Arc<Registry>,
}

pub(super) enum Source<T> {
    Local(Arc<LocalChannel<T>>),
    Remote {
        input: Arc<RemoteInput>,
        link: Arc<ConsumerLink>,
        /// The link's number for it.
        number: u32,
        reserved: Option<Window>,
    },
    /// It could not be opened.
    Failed(FailureKind),
}

impl<T> InputChannel<T> {
    pub(super) fn new(
        id: ChannelId,
        peer: ChannelPeer,
        source: Source<T>,
        registry: Arc<Registry>,
    ) -> Self {
        Self {
            id,
            peer,
            is_blocked: false,
            sequence: None,
            source,
            registry,
        }
    }

    fn readiness(&self) -> Readiness {
        match &self.source {
            Source::Local(channel) => channel.readiness(),
            Source::Remote { input, .. } => input.readiness(),
            Source::Failed(_) => Readiness::Failed,
        }
    }

    fn lost(&self, message: String) -> FailureKind {
        peer_lost(&self.peer, message)
    }

    fn failure(&self) -> FailureKind {
        match &self.source {
            Source::Local(_) => self.lost("task ended before the end of its output".to_owned()),
            Source::Remote { input, .. } => self.lost(input.failure().unwrap_or_default()),
            Source::Failed(failure) => failure.clone(),
        }
    }
}

impl<T> Drop for InputChannel<T> {
    fn drop(&mut self) {
        match &self.source {
            Source::Local(channel) => {
                channel.drop_consumer();
                self.registry.drop_local(self.id, End::Consumer);
            }
            Source::Remote {
                link,
                number,
                reserved,
                ..
            } => {
                if link.close(*number) {
                    self.registry.drop_link(link);
                }
                self.registry.drop_input(*reserved);
            }
            Source::Failed(_) => {}
        }
    }
}

pub(super) fn peer_lost(peer: &ChannelPeer, message: String) -> FailureKind {
    FailureKind::PeerLost {
        resource: peer.location.resource.clone(),
        instance: peer.location.instance,
        message: format!("{}: {message}", peer.attempt),
    }
}

impl<T: Record> InputGate<T> {
    pub(super) fn new(channels: Vec<InputChannel<T>>, codec: Arc<dyn BatchCodec<T>>) -> Self {
        Self {
            channels,
            codec,
            next: 0,
            preferred: None,
            in_a_row: 0,
            is_started: false,
            bytes_received: 0,
            failure: None,
        }
    }

    /// Grants the first credit: the task has its state and is ready for records.
    pub fn start(&mut self) {
        if self.is_started {
            return;
        }
        self.is_started = true;
        for channel in &mut self.channels {
            match &mut channel.source {
                Source::Local(local) => local.start(),
                Source::Remote {
                    link,
                    number,
                    reserved,
                    ..
                } => {
                    let window = channel.registry.reserve();
                    *reserved = Some(window);
                    link.open(*number, window);
                }
                Source::Failed(_) => {}
            }
        }
    }

    /// Number of channels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// Whether there is no channel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Takes the next element of a channel that is not blocked, fairly among channels but for the [preferred](Self::prefer) one; `None`
    /// when there is none now. The waker is called when there may be one again.
    ///
    /// An error ends the gate: every later call returns it again.
    pub fn poll(&mut self) -> Result<Option<(usize, StreamElement<T>)>, FailureKind> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if let Some(preferred) = self.preferred
            && self.in_a_row < PREFERRED_IN_A_ROW_MAX
            && let Some(element) = self.take_if_ready(preferred)?
        {
            self.in_a_row += 1;
            return Ok(Some((preferred, element)));
        }
        self.in_a_row = 0;
        let count = self.channels.len();
        for offset in 0..count {
            let index = if self.next + offset < count {
                self.next + offset
            } else {
                self.next + offset - count
            };
            // It has had its turn, and has another when no other channel has anything.
            if self.preferred != Some(index)
                && let Some(element) = self.take_if_ready(index)?
            {
                self.next = if index + 1 == count { 0 } else { index + 1 };
                return Ok(Some((index, element)));
            }
        }
        let Some(preferred) = self.preferred else {
            return Ok(None);
        };
        let element = self.take_if_ready(preferred)?;
        Ok(element.map(|element| (preferred, element)))
    }

    /// Takes from this channel first from now on, as long as it has something, but a bounded number of elements in a row. `None`: all
    /// take turns.
    ///
    /// # Panics
    /// The next poll panics when there is no such channel.
    pub fn prefer(&mut self, channel: Option<usize>) {
        self.preferred = channel;
    }

    fn take_if_ready(&mut self, index: usize) -> Result<Option<StreamElement<T>>, FailureKind> {
        let channel = &self.channels[index];
        match channel.readiness() {
            Readiness::Empty => Ok(None),
            Readiness::Failed => {
                let failure = channel.failure();
                self.failure = Some(failure.clone());
                Err(failure)
            }
            Readiness::Ready if channel.is_blocked => Ok(None),
            Readiness::Ready => self.take(index),
        }
    }

    fn take(&mut self, index: usize) -> Result<Option<StreamElement<T>>, FailureKind> {
        let channel = &mut self.channels[index];
        match &channel.source {
            Source::Local(local) => Ok(local.take().map(|(sequence, element)| {
                channel.sequence = Some(sequence);
                element
            })),
            Source::Remote {
                input,
                link,
                number,
                ..
            } => {
                let (taken, credit) = input.take();
                if let Some(credit) = credit {
                    link.credit(*number, credit);
                }
                let Some((sequence, received)) = taken else {
                    return Ok(None);
                };
                channel.sequence = Some(sequence);
                let element = match received {
                    Received::Data { records, body } => {
                        self.bytes_received += body.len() as u64;
                        match decode(&*self.codec, records, &body) {
                            Ok(batch) => StreamElement::Batch(batch),
                            Err(message) => {
                                let failure = channel.lost(format!("frame {sequence}: {message}"));
                                self.failure = Some(failure.clone());
                                return Err(failure);
                            }
                        }
                    }
                    Received::Watermark(timestamp) => StreamElement::Watermark(timestamp),
                    Received::Status(status) => StreamElement::Status(status),
                    Received::Barrier(barrier) => StreamElement::Barrier(barrier),
                    Received::EndOfInput => StreamElement::EndOfInput,
                };
                Ok(Some(element))
            }
            Source::Failed(failure) => Err(failure.clone()),
        }
    }

    /// Leaves a channel's elements in its queue (its barrier has arrived, others' have not).
    pub fn block(&mut self, channel: usize) {
        self.channels[channel].is_blocked = true;
    }

    /// Ends all blocks.
    pub fn unblock_all(&mut self) {
        for channel in &mut self.channels {
            channel.is_blocked = false;
        }
    }

    /// Who produces into a channel.
    #[must_use]
    pub fn peer(&self, channel: usize) -> &ChannelPeer {
        &self.channels[channel].peer
    }

    /// The channel's identity and the sequence number of the last element taken from it: the position that a failure names.
    #[must_use]
    pub fn position(&self, channel: usize) -> (ChannelId, Option<u64>) {
        (self.channels[channel].id, self.channels[channel].sequence)
    }

    /// Records that wait in all channels.
    #[must_use]
    pub fn queued_records(&self) -> u64 {
        self.channels
            .iter()
            .map(|channel| match &channel.source {
                Source::Local(local) => local.queued_records() as u64,
                Source::Remote { input, .. } => input.queued().0,
                Source::Failed(_) => 0,
            })
            .sum()
    }

    /// Bytes that wait in channels from other processes.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.channels
            .iter()
            .map(|channel| match &channel.source {
                Source::Remote { input, .. } => input.queued().1,
                Source::Local(_) | Source::Failed(_) => 0,
            })
            .sum()
    }

    /// Gives an emptied batch back to the channel's producer, which reuses its memory. Optional.
    pub fn recycle(&self, channel: usize, batch: Batch<T>) {
        match &self.channels[channel].source {
            Source::Local(local) => local.recycle(batch),
            Source::Remote { .. } | Source::Failed(_) => {}
        }
    }

    /// Bytes received from other processes so far.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }
}

fn decode<T: Record>(
    codec: &dyn BatchCodec<T>,
    records: u32,
    body: &[u8],
) -> Result<Batch<T>, String> {
    let batch = codec
        .decode(body.get(DATA_PREFIX_BYTES..).unwrap_or_default())
        .map_err(|e| e.to_string())?;
    if batch.len() != records as usize {
        return Err(format!(
            "{} records, its header says {records}",
            batch.len()
        ));
    }
    Ok(batch)
}
