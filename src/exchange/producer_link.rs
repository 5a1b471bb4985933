//! A connection that was accepted: consumers of another process on one side, our producers on the other.
//!
//! Invariant: when the connection ends, for whatever reason, every output that used it fails at once with that reason. The queue
//! of frames to write needs no bound of its own: each output puts at most its consumer's window into it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_actors::model::InstanceId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::Notify;

use super::frame::{ChannelId, CloseBody, Credit, Frame, Kind, LinkError, OpenBody, read_frame};
use super::keepalive::Keepalive;
use super::registry::Registry;
use super::remote_output::RemoteOutput;

/// Bytes that are collected before a write.
pub(super) const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that are read at once.
pub(super) const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Frames taken from the queue at once.
const FRAMES_AT_ONCE: usize = 64;

pub(super) struct ProducerLink {
    peer: InstanceId,
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Frame>,
    slots: BTreeMap<u32, Slot>,
    next_alias: u32,
    closed: Option<String>,
}

#[derive(Clone)]
enum Slot {
    /// The producer has not started yet.
    Waiting(ChannelId),
    Bound(Arc<RemoteOutput>),
}

impl ProducerLink {
    pub(super) fn new(peer: InstanceId) -> Self {
        Self {
            peer,
            state: Mutex::default(),
            notify: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame for the writer.
    pub(super) fn send(&self, frame: Frame) {
        let was_empty = {
            let mut state = self.lock();
            if state.closed.is_some() {
                return;
            }
            state.queue.push_back(frame);
            state.queue.len() == 1
        };
        if was_empty {
            self.notify.notify_one();
        }
    }

    /// Connects an alias to an output; the reason of the end when the connection has ended.
    pub(super) fn bind(&self, alias: u32, output: &Arc<RemoteOutput>) -> Result<(), String> {
        let mut state = self.lock();
        match &state.closed {
            Some(closed) => Err(closed.clone()),
            None => {
                state.slots.insert(alias, Slot::Bound(Arc::clone(output)));
                Ok(())
            }
        }
    }

    pub(super) fn unbind(&self, alias: u32) {
        self.lock().slots.remove(&alias);
    }

    /// Notes that an alias waits for its producer.
    pub(super) fn wait(&self, alias: u32, channel: ChannelId) {
        self.lock().slots.insert(alias, Slot::Waiting(channel));
    }

    /// Answers an `Open` that cannot be served.
    pub(super) fn refuse(&self, alias: u32, message: &str) {
        let message = message.to_owned();
        self.send(Frame::control(
            Kind::Close,
            alias,
            0,
            &CloseBody { message },
        ));
    }

    /// Reads and writes until the connection ends.
    pub(super) async fn run(
        self: &Arc<Self>,
        registry: &Registry,
        stream: impl AsyncRead + AsyncWrite,
        keepalive: Keepalive,
    ) -> LinkError {
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            biased;
            error = self.read(registry, keepalive.watch(reader)) => keepalive.reason(error),
            error = self.write(writer, keepalive) => error,
        }
    }

    async fn read(
        self: &Arc<Self>,
        registry: &Registry,
        reader: impl AsyncRead + Unpin,
    ) -> LinkError {
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
        loop {
            let outcome = match read_frame(&mut reader).await {
                Ok(frame) => self.take(registry, &frame),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    fn take(self: &Arc<Self>, registry: &Registry, frame: &Frame) -> Result<(), LinkError> {
        let (kind, alias) = (frame.kind, frame.alias);
        match kind {
            Kind::Open => {
                {
                    // Aliases count up, so that one that was closed is told from one that never was.
                    let mut state = self.lock();
                    if alias != state.next_alias {
                        return Err(LinkError::Alias { kind, alias });
                    }
                    state.next_alias += 1;
                }
                let body: OpenBody = frame.parse()?;
                registry.open(self, alias, body.channel, body.window)
            }
            Kind::Credit => {
                let credit: Credit = frame.parse()?;
                let output = match self.known(kind, alias)? {
                    Some(Slot::Bound(output)) => output,
                    Some(Slot::Waiting(_)) => {
                        return Err(frame.malformed("nothing was sent yet".to_owned()));
                    }
                    // Our end is gone, the consumer does not know yet.
                    None => return Ok(()),
                };
                output.credit(credit).map_err(|m| frame.malformed(m))
            }
            Kind::Close => {
                let body: CloseBody = frame.parse()?;
                self.known(kind, alias)?;
                let slot = self.lock().slots.remove(&alias);
                match slot {
                    Some(Slot::Bound(output)) => output.fail(&body.message),
                    Some(Slot::Waiting(channel)) => registry.forget(self, channel),
                    // Both ends closed at the same time.
                    None => {}
                }
                Ok(())
            }
            Kind::Keepalive => Ok(()),
            Kind::Data | Kind::Watermark | Kind::Status | Kind::Barrier | Kind::EndOfInput => {
                Err(LinkError::Direction { kind })
            }
        }
    }

    /// The slot of an alias, `None` when it is closed, an error when it was never opened.
    fn known(&self, kind: Kind, alias: u32) -> Result<Option<Slot>, LinkError> {
        let state = self.lock();
        match state.slots.get(&alias) {
            Some(slot) => Ok(Some(slot.clone())),
            None if alias < state.next_alias => Ok(None),
            None => Err(LinkError::Alias { kind, alias }),
        }
    }

    async fn write(&self, writer: impl AsyncWrite + Unpin, keepalive: Keepalive) -> LinkError {
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
        let mut frames = Vec::with_capacity(FRAMES_AT_ONCE);
        loop {
            {
                let mut state = self.lock();
                let count = state.queue.len().min(FRAMES_AT_ONCE);
                frames.extend(state.queue.drain(..count));
            }
            if frames.is_empty() {
                if let Err(error) = writer.flush().await {
                    return error.into();
                }
                // A frame queued since the look above has left a permit, so that this returns at once.
                if keepalive.is_due(&self.notify).await {
                    frames.push(Frame::keepalive());
                }
                continue;
            }
            for frame in frames.drain(..) {
                if let Err(error) = write_frame(&mut writer, &frame).await {
                    return error.into();
                }
            }
        }
    }

    /// Ends the connection for everybody who used it.
    pub(super) fn fail(self: &Arc<Self>, registry: &Registry, message: &str) {
        let (slots, queue) = {
            let mut state = self.lock();
            state.closed = Some(message.to_owned());
            (
                std::mem::take(&mut state.slots),
                std::mem::take(&mut state.queue),
            )
        };
        drop(queue);
        tracing::debug!(peer = %self.peer, channels = slots.len(), reason = message, "data connection to a consumer ended");
        for slot in slots.into_values() {
            match slot {
                Slot::Bound(output) => output.fail(message),
                Slot::Waiting(channel) => registry.forget(self, channel),
            }
        }
    }
}

/// Writes a frame without copying a large body.
pub(super) async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    frame: &Frame,
) -> std::io::Result<()> {
    writer.write_all(&frame.head()).await?;
    writer.write_all(&frame.body).await
}
