//! A connection that was dialed: our consumers on one side, producers of another process on the other.
//!
//! Invariant: the socket is always read, because nobody may send more than the credit that its channel's queue has room for; so one
//! slow consumer never stops another. When the connection ends, every input that uses it fails at once with the reason.
//! It lives as long as it has channels.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_actors::model::TaskManagerLocation;
use perennial_actors::rpc::{BoxStream, Transport};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::Notify;

use super::frame::{CloseBody, Credit, Frame, Kind, LinkError, OpenBody, Window, read_frame};
use super::handshake::{HandshakeError, Identity};
use super::keepalive::Keepalive;
use super::producer_link::{READ_BUFFER_BYTES, WRITE_BUFFER_BYTES, write_frame};
use super::remote_input::RemoteInput;

/// How often a connection is tried.
const DIAL_ATTEMPTS: u32 = 5;
/// Before the second try; doubled for each further one: 50 + 100 + 200 + 400 ms.
const DIAL_BACKOFF: Duration = Duration::from_millis(50);
/// For one try, with the handshake.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct ConsumerLink {
    peer: TaskManagerLocation,
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Default)]
struct State {
    channels: BTreeMap<u32, Arc<RemoteInput>>,
    next_alias: u32,
    /// Aliases on the wire count opened channels only.
    next_wire: u32,
    /// From the number that `register` gave to the alias that `open` sent.
    wire: BTreeMap<u32, u32>,
    by_wire: BTreeMap<u32, Arc<RemoteInput>>,
    /// `Open` and `Close`: at most two for each channel.
    outgoing: VecDeque<Frame>,
    /// Merged for each channel until the writer takes them.
    credits: BTreeMap<u32, Credit>,
    closed: Option<String>,
}

impl ConsumerLink {
    pub(super) fn new(peer: TaskManagerLocation) -> Self {
        Self {
            peer,
            state: Mutex::default(),
            notify: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peer(&self) -> &TaskManagerLocation {
        &self.peer
    }

    /// Adds a channel; `None` when the connection has ended or is about to.
    pub(super) fn register(&self, input: &Arc<RemoteInput>) -> Option<u32> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return None;
        }
        let number = state.next_alias;
        state.next_alias += 1;
        state.channels.insert(number, Arc::clone(input));
        Some(number)
    }

    /// Asks the producer to begin.
    pub(super) fn open(&self, number: u32, window: Window) {
        {
            let mut state = self.lock();
            let Some(input) = state.channels.get(&number).cloned() else {
                return;
            };
            if state.closed.is_some() || state.wire.contains_key(&number) {
                return;
            }
            input.set_window(window);
            let alias = state.next_wire;
            state.next_wire += 1;
            state.wire.insert(number, alias);
            let channel = input.channel();
            state.by_wire.insert(alias, input);
            state.outgoing.push_back(Frame::control(
                Kind::Open,
                alias,
                0,
                &OpenBody { channel, window },
            ));
        }
        self.notify.notify_one();
    }

    /// Reports what the task has taken.
    pub(super) fn credit(&self, number: u32, credit: Credit) {
        {
            let mut state = self.lock();
            let Some(alias) = state.wire.get(&number).copied() else {
                return;
            };
            if state.closed.is_some() {
                return;
            }
            state.credits.entry(alias).or_default().add(credit);
        }
        self.notify.notify_one();
    }

    /// Removes a channel; the connection ends with its last one. `true` when it does.
    pub(super) fn close(&self, number: u32) -> bool {
        let is_last = {
            let mut state = self.lock();
            state.channels.remove(&number);
            if let Some(alias) = state.wire.remove(&number) {
                state.by_wire.remove(&alias);
                state.credits.remove(&alias);
                let message = "the consuming task ended".to_owned();
                state.outgoing.push_back(Frame::control(
                    Kind::Close,
                    alias,
                    0,
                    &CloseBody { message },
                ));
            }
            let is_last = state.channels.is_empty();
            if is_last {
                state
                    .closed
                    .get_or_insert_with(|| "no channel is left".to_owned());
            }
            is_last
        };
        self.notify.notify_one();
        is_last
    }

    fn is_unused(&self) -> bool {
        self.lock().channels.is_empty()
    }

    /// Dials, then reads and writes until the connection ends; returns why.
    pub(super) async fn run(
        &self,
        transport: &dyn Transport,
        identity: &Identity,
        connection_ids: impl Fn() -> u64,
        keepalive: Keepalive,
    ) -> String {
        let mut backoff = DIAL_BACKOFF;
        let mut attempt = 1;
        let stream = loop {
            match self.dial(transport, identity, connection_ids()).await {
                Ok(stream) => break stream,
                Err(DialError::Final(message)) => return message,
                Err(DialError::Retry(message)) => {
                    if attempt == DIAL_ATTEMPTS || self.is_unused() {
                        return message;
                    }
                    tracing::debug!(peer = %self.peer.resource, address = self.peer.data_address, attempt, reason = message, "data connection is tried again");
                }
            }
            attempt += 1;
            tokio::time::sleep(backoff).await;
            backoff *= 2;
        };
        let (reader, writer) = tokio::io::split(stream);
        let error = tokio::select! {
            biased;
            error = self.read(keepalive.watch(reader)) => keepalive.reason(error),
            error = self.write(writer, keepalive) => error,
        };
        error.to_string()
    }

    async fn dial(
        &self,
        transport: &dyn Transport,
        identity: &Identity,
        connection: u64,
    ) -> Result<BoxStream, DialError> {
        let address = &self.peer.data_address;
        let attempt = async {
            let mut stream = transport
                .connect(address)
                .await
                .map_err(|e| DialError::Retry(format!("connect to {address}: {e}")))?;
            identity
                .dial(&mut stream, connection, self.peer.instance)
                .await
                .map_err(|error| {
                    let message = format!("{address}: {error}");
                    match error {
                        HandshakeError::Io(_) => DialError::Retry(message),
                        HandshakeError::Magic
                        | HandshakeError::Version { .. }
                        | HandshakeError::OtherInstance { .. }
                        | HandshakeError::Secret => DialError::Final(message),
                    }
                })?;
            Ok(stream)
        };
        match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(DialError::Final(format!(
                "connect to {address}: no answer within {DIAL_TIMEOUT:?}"
            ))),
        }
    }

    async fn read(&self, reader: impl AsyncRead + Unpin) -> LinkError {
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
        loop {
            let frame = match read_frame(&mut reader).await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            let (kind, alias) = (frame.kind, frame.alias);
            if kind == Kind::Keepalive {
                continue;
            }
            let input = {
                let state = self.lock();
                match state.by_wire.get(&alias) {
                    Some(input) => Arc::clone(input),
                    // Sent before the producer heard that our end is gone.
                    None if alias < state.next_wire => continue,
                    None => return LinkError::Alias { kind, alias },
                }
            };
            if let Err(error) = input.receive(frame) {
                return error;
            }
        }
    }

    async fn write(&self, writer: impl AsyncWrite + Unpin, keepalive: Keepalive) -> LinkError {
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
        let mut is_due = false;
        loop {
            let (mut frames, is_closed) = {
                let mut state = self.lock();
                let mut frames: Vec<Frame> = state.outgoing.drain(..).collect();
                let credits = std::mem::take(&mut state.credits);
                frames.extend(
                    credits
                        .into_iter()
                        .map(|(alias, credit)| Frame::control(Kind::Credit, alias, 0, &credit)),
                );
                (frames, state.closed.is_some())
            };
            if is_due && frames.is_empty() {
                frames.push(Frame::keepalive());
            }
            for frame in &frames {
                if let Err(error) = write_frame(&mut writer, frame).await {
                    return error.into();
                }
            }
            if let Err(error) = writer.flush().await {
                return error.into();
            }
            if is_closed {
                return LinkError::Closed;
            }
            is_due = frames.is_empty() && keepalive.is_due(&self.notify).await;
        }
    }

    /// Ends the connection for everybody who uses it.
    pub(super) fn fail(&self, message: &str) {
        let channels = {
            let mut state = self.lock();
            state.closed.get_or_insert_with(|| message.to_owned());
            state.outgoing.clear();
            state.credits.clear();
            state.by_wire.clear();
            state.channels.values().cloned().collect::<Vec<_>>()
        };
        if !channels.is_empty() {
            tracing::warn!(peer = %self.peer.resource, instance = %self.peer.instance, channels = channels.len(), reason = message, "data connection to a producer ended");
        }
        for input in channels {
            input.fail(message);
        }
    }
}

enum DialError {
    Retry(String),
    Final(String),
}
