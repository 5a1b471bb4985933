//! Both ends of a client's connection: [`Client`] for the command line, and the JobManager's side of it.
//!
//! Invariant: each request gets exactly one answer or the client an error; requests of one client are handled one at a time. While
//! the JobManager works it says so, so that a silent link is noticed although a savepoint may take long.

use std::time::Duration;

use perennial_config::Secret;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use crate::entropy::Entropy;
use crate::fault::Injection;
use crate::model::message::{ClientRequest, ClientResponse, Hello, RpcError, Welcome};
use crate::peer::{PeerEvent, PeerEvents};
use crate::rpc::{Channel, FrameError, MessageWriter, Transport, dial};

/// How often a JobManager that works on a request says so.
const WORKING_INTERVAL: Duration = Duration::from_secs(1);
/// How long a client waits for any sign of life.
pub const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long a client may ask for nothing before its session is ended. A host that vanishes says nothing, and would hold its session for ever.
pub(crate) const CLIENT_IDLE_MAX: Duration = Duration::from_mins(10);

#[derive(Debug, Serialize, Deserialize)]
struct Call {
    id: u64,
    request: ClientRequest,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    id: u64,
    /// `None`: still working.
    result: Option<Result<ClientResponse, RpcError>>,
}

/// A connection to the leading JobManager.
pub struct Client {
    channel: Channel,
    welcome: Welcome,
    last_id: u64,
    /// Set while a message is half written or an answer half read is impossible to tell: such a connection is not used again.
    is_broken: bool,
}

impl Client {
    /// Connects and authenticates. A JobManager that does not lead refuses.
    pub async fn connect(
        transport: &dyn Transport,
        address: &str,
        secret: &Secret,
        timeout: Duration,
    ) -> Result<Self, RpcError> {
        Self::connect_with(transport, address, secret, timeout, &Entropy::system()).await
    }

    /// As [`connect`](Self::connect), with the dice for nonces given.
    pub async fn connect_with(
        transport: &dyn Transport,
        address: &str,
        secret: &Secret,
        timeout: Duration,
        entropy: &Entropy,
    ) -> Result<Self, RpcError> {
        let hello = Hello::Client.into();
        let (channel, welcome) = dial(transport, address, secret, entropy, hello, timeout)
            .await
            .map_err(|error| error.into_rpc(address))?;
        if welcome.epoch.is_none() {
            return Err(RpcError::Refused(format!(
                "JobManager {} at {address} is not the leader: ask the leader, or again in a moment",
                welcome.name
            )));
        }
        Ok(Self {
            channel,
            welcome,
            last_id: 0,
            is_broken: false,
        })
    }

    /// Who answered.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Asks, and waits for the answer until the deadline, or for as long as the JobManager shows that it works on it. After
    /// [`RpcError::Timeout`] the effect is unknown and the connection can be used again; after [`RpcError::Closed`] it cannot.
    pub async fn request(
        &mut self,
        request: ClientRequest,
        deadline: Option<Duration>,
    ) -> Result<ClientResponse, RpcError> {
        if self.is_broken {
            return Err(self.closed("is no longer usable: connect again"));
        }
        self.last_id += 1;
        let id = self.last_id;
        let until = deadline.map(|d| Instant::now() + d);

        // Set until the message is out as a whole: a request that was cut short by its deadline leaves half a frame behind.
        self.is_broken = true;
        let call = Call { id, request };
        let sending = self.channel.writer.message(&call);
        let limit = deadline.map_or(CLIENT_SILENCE_MAX, |d| d.min(CLIENT_SILENCE_MAX));
        match tokio::time::timeout(limit, sending).await {
            Ok(Ok(())) => self.is_broken = false,
            Ok(Err(error)) => return Err(self.closed(&error.to_string())),
            Err(_elapsed) => return Err(self.timeout(limit)),
        }
        loop {
            let silence = Instant::now() + CLIENT_SILENCE_MAX;
            let wake = until.map_or(silence, |u| u.min(silence));
            let reading = self.channel.reader.message::<Reply>();
            match tokio::time::timeout_at(wake, reading).await {
                Ok(Ok(Some(reply))) if reply.id == id => {
                    if let Some(result) = reply.result {
                        return result;
                    }
                }
                // The late answer to a request that was given up.
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => {
                    self.is_broken = true;
                    return Err(self.closed("was closed before the answer"));
                }
                Ok(Err(error)) => {
                    self.is_broken = true;
                    return Err(self.closed(&error.to_string()));
                }
                Err(_elapsed) => {
                    let is_silent = until.is_none_or(|u| u > silence);
                    self.is_broken = is_silent;
                    let waited = deadline.filter(|_| !is_silent);
                    return Err(self.timeout(waited.unwrap_or(CLIENT_SILENCE_MAX)));
                }
            }
        }
    }

    /// Breaks something of the cluster, where `chaos.enabled` is true; returns who is struck, in words. The order is on its way then,
    /// and may be lost with its victim.
    pub async fn inject(
        &mut self,
        injection: Injection,
        deadline: Duration,
    ) -> Result<String, RpcError> {
        let request = ClientRequest::InjectFault(Box::new(injection));
        match self.request(request, Some(deadline)).await? {
            ClientResponse::Injected { victim } => Ok(victim),
            other => Err(RpcError::Refused(format!(
                "the JobManager answered something else: {other:?}"
            ))),
        }
    }

    fn closed(&self, message: &str) -> RpcError {
        RpcError::Closed {
            peer: self.channel.peer.clone(),
            message: message.to_owned(),
        }
    }

    fn timeout(&self, after: Duration) -> RpcError {
        RpcError::Timeout {
            peer: self.channel.peer.clone(),
            millis: after.as_millis() as u64,
        }
    }
}

/// Asks who listens at an address; also answered by a JobManager that does not lead.
pub async fn probe(
    transport: &dyn Transport,
    address: &str,
    secret: &Secret,
    timeout: Duration,
) -> Result<Welcome, RpcError> {
    probe_with(transport, address, secret, timeout, &Entropy::system()).await
}

/// As [`probe`], with the dice for nonces given.
pub async fn probe_with(
    transport: &dyn Transport,
    address: &str,
    secret: &Secret,
    timeout: Duration,
    entropy: &Entropy,
) -> Result<Welcome, RpcError> {
    let hello = Hello::Probe.into();
    match dial(transport, address, secret, entropy, hello, timeout).await {
        Ok((_channel, welcome)) => Ok(welcome),
        Err(error) => Err(error.into_rpc(address)),
    }
}

/// The JobManager's side: ends when the client goes.
pub(crate) async fn serve(channel: Channel, events: PeerEvents) {
    let peer = channel.peer.clone();
    if let Err(error) = serve_calls(channel, events).await {
        tracing::debug!(%peer, %error, "client connection ended");
    }
}

async fn serve_calls(channel: Channel, events: PeerEvents) -> Result<(), FrameError> {
    let Channel {
        mut reader,
        mut writer,
        ..
    } = channel;
    // At most one call waits behind the one that is worked on: a client that gave up on that one.
    let mut waiting: Option<Call> = None;
    loop {
        let call = match waiting.take() {
            Some(call) => call,
            None => match tokio::time::timeout(CLIENT_IDLE_MAX, reader.message()).await {
                Ok(call) => match call? {
                    Some(call) => call,
                    None => return Ok(()),
                },
                Err(_idle) => return Ok(()),
            },
        };
        let (reply, mut answer) = oneshot::channel();
        events(PeerEvent::Request {
            request: call.request,
            reply,
        });
        let mut working = tokio::time::interval(WORKING_INTERVAL);
        working.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer.unwrap_or_else(|_dropped| {
                    // Whether the request had an effect is unknown.
                    Err(RpcError::Closed {
                        peer: "JobManager".to_owned(),
                        message: "was closed: it ended before it could answer".to_owned(),
                    })
                }),
                // The client is gone or talks: in the first case the reply is dropped with `answer`.
                next = reader.message(), if waiting.is_none() => match next? {
                    Some(call) => waiting = Some(call),
                    None => return Ok(()),
                },
                _ = working.tick() => answer_with(&mut writer, Reply { id: call.id, result: None }).await?,
            }
        };
        let result = Some(result);
        answer_with(
            &mut writer,
            Reply {
                id: call.id,
                result,
            },
        )
        .await?;
    }
}

/// A client that does not read must not keep its session for ever.
async fn answer_with<W: AsyncWrite + Unpin>(
    writer: &mut MessageWriter<W>,
    reply: Reply,
) -> Result<(), FrameError> {
    match tokio::time::timeout(CLIENT_SILENCE_MAX, writer.message(&reply)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(FrameError::Io(std::io::ErrorKind::TimedOut.into())),
    }
}
