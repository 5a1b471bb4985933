//! Channels between tasks: queues within a process, framed TCP with credits between processes.
//!
//! A channel belongs to one producing and one consuming attempt and is never used again. Between processes the consumer's side dials
//! the producer's, one connection for all channels of that direction; credit, not the socket, is what holds a producer back.
//! Invariant: no record is lost, repeated or reordered within a channel; where that cannot be kept, both ends get
//! [`FailureKind::PeerLost`] and the job's restart decides. Task threads never wait for a socket.
//!
//! [`FailureKind::PeerLost`]: perennial_actors::model::FailureKind::PeerLost

mod codec;
mod consumer_link;
mod frame;
mod gate;
mod handshake;
mod keepalive;
mod local;
mod output;
mod producer_link;
mod queue;
mod registry;
mod remote_input;
mod remote_output;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use perennial_actors::DataPlane;
use perennial_actors::model::{
    ChannelPeer, EdgeChannels, ExecutionAttemptId, FailureKind, InstanceId, ResourceId,
};
use perennial_actors::rpc::Transport;
use perennial_config::HeartbeatSettings;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use codec::{BatchCodec, CodecError, FixedCodec, FixedWidth, SerdeCodec};
pub use frame::ChannelId;
pub use gate::InputGate;
pub use output::OutputChannel;
pub use registry::ExchangeUsage;

use consumer_link::ConsumerLink;
use gate::{InputChannel, Source};
use handshake::Identity;
use keepalive::Keepalive;
use output::Target;
use registry::{End, Registry};
use remote_input::RemoteInput;
use remote_output::RemoteOutput;

use crate::batch::Record;

/// The time that binding the listener may take.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// Wakes a task that waits for input, output or control. Cheap when the task is awake.
pub trait TaskWaker: Send + Sync + 'static {
    /// Makes the task run soon. Never blocks.
    fn wake(&self);
}

/// What an [`Exchange`] is made from.
pub struct ExchangeOptions<'a> {
    /// To connect and listen with.
    pub transport: Arc<dyn Transport>,
    /// Where to listen.
    pub bind_address: &'a str,
    /// What peers are told, given the bound address; `None`: that address itself.
    pub advertised: Option<&'a (dyn Fn(&str) -> String + Sync)>,
    /// Who this process is.
    pub resource: ResourceId,
    /// This run of it.
    pub instance: InstanceId,
    /// The cluster's.
    pub secret: &'a str,
    /// Shared out among the channels from other processes, in bytes.
    pub network_memory: u64,
    /// A connection on which nothing was heard for the timeout and two intervals is lost.
    pub heartbeat: &'a HeartbeatSettings,
    /// Where socket work runs.
    pub handle: Handle,
}

/// The data connections of one TaskManager. Dropping it closes them.
pub struct Exchange {
    inner: Arc<Inner>,
    address: String,
    resource: ResourceId,
    handle: Handle,
}

/// What the connections' tasks share.
struct Inner {
    registry: Arc<Registry>,
    transport: Arc<dyn Transport>,
    identity: Identity,
    keepalive: Keepalive,
    /// Numbers connections, for nonces.
    connections: AtomicU64,
    cancel: CancellationToken,
    /// Tasks that run.
    running: watch::Sender<usize>,
}

impl Inner {
    fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a task that [`Exchange::close`] waits for.
    fn spawn(self: &Arc<Self>, handle: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|n| *n += 1);
        let guard = Running(Arc::clone(self));
        handle.spawn(async move {
            let _guard = guard;
            task.await;
        });
    }
}

/// Counts a task out, also when the runtime drops it.
struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|n| *n = n.saturating_sub(1));
    }
}

impl Exchange {
    /// Listens for consumers of other processes.
    pub async fn bind(options: ExchangeOptions<'_>) -> io::Result<Arc<Self>> {
        let ExchangeOptions {
            transport,
            bind_address,
            advertised,
            resource,
            instance,
            secret,
            network_memory,
            heartbeat,
            handle,
        } = options;
        let listener = tokio::time::timeout(BIND_TIMEOUT, transport.listen(bind_address))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("bind {bind_address}")))?
            .map_err(|e| io::Error::new(e.kind(), format!("bind {bind_address}: {e}")))?;
        let bound = listener.address();
        let address = match advertised {
            Some(advertised) => advertised(&bound),
            None => bound,
        };
        let inner = Arc::new(Inner {
            registry: Arc::new(Registry::new(network_memory)),
            transport,
            identity: Identity {
                instance,
                secret: secret.as_bytes().to_vec(),
            },
            keepalive: Keepalive::new(heartbeat),
            connections: AtomicU64::new(0),
            cancel: CancellationToken::new(),
            running: watch::Sender::new(0),
        });
        inner.spawn(
            &handle,
            server::accept(Arc::clone(&inner), listener, handle.clone()),
        );
        Ok(Arc::new(Self {
            inner,
            address,
            resource,
            handle,
        }))
    }

    /// Opens the consuming ends of all channels of some edges with the same record type (a union). No element arrives before [`InputGate::start`].
    ///
    /// Never fails: a channel that cannot be opened is an error of [`InputGate::poll`].
    pub fn open_input<T: Record>(
        &self,
        me: ExecutionAttemptId,
        edges: &[EdgeChannels],
        codec: Arc<dyn BatchCodec<T>>,
        waker: Arc<dyn TaskWaker>,
    ) -> InputGate<T> {
        let mut channels = Vec::new();
        for edge in edges {
            for peer in &edge.peers {
                let id = ChannelId {
                    edge: edge.edge,
                    producer: peer.attempt,
                    consumer: me,
                };
                let registry = &self.inner.registry;
                let source = if self.is_here(peer) {
                    match registry.local(id, End::Consumer) {
                        Ok(channel) => {
                            channel.set_consumer(Arc::clone(&waker));
                            Source::Local(channel)
                        }
                        Err(message) => Source::Failed(FailureKind::Internal { message }),
                    }
                } else {
                    self.open_remote(id, peer, &waker)
                };
                channels.push(InputChannel::new(
                    id,
                    peer.clone(),
                    source,
                    Arc::clone(registry),
                ));
            }
        }
        InputGate::new(channels, codec)
    }

    fn open_remote<T>(
        &self,
        id: ChannelId,
        peer: &ChannelPeer,
        waker: &Arc<dyn TaskWaker>,
    ) -> Source<T> {
        let input = Arc::new(RemoteInput::new(id, Arc::clone(waker)));
        let registry = &self.inner.registry;
        registry.add_inputs(1);
        if let Some(link) = registry.link(peer.location.instance)
            && let Some(number) = link.register(&input)
        {
            return Source::Remote {
                input,
                link,
                number,
                reserved: None,
            };
        }
        let link = Arc::new(ConsumerLink::new(peer.location.clone()));
        let Some(number) = link.register(&input) else {
            registry.drop_input(None);
            return Source::Failed(FailureKind::Internal {
                message: "a new connection takes no channel".to_owned(),
            });
        };
        registry.set_link(&link);
        let (inner, running) = (Arc::clone(&self.inner), Arc::clone(&link));
        self.inner.spawn(&self.handle, async move {
            let reason = tokio::select! {
                biased;
                () = inner.cancel.cancelled() => "the exchange of this process is closed".to_owned(),
                reason = running.run(&*inner.transport, &inner.identity, || inner.next_connection(), inner.keepalive) => reason,
            };
            // First out of the registry, so that no channel to come registers with a connection that has ended.
            inner.registry.drop_link(&running);
            running.fail(&reason);
        });
        Source::Remote {
            input,
            link,
            number,
            reserved: None,
        }
    }

    /// Opens the producing ends of the channels of one edge, in order of the consumers.
    ///
    /// Never fails: a channel that cannot be opened is an error of [`OutputChannel::flush`].
    pub fn open_output<T: Record>(
        &self,
        me: ExecutionAttemptId,
        edge: &EdgeChannels,
        codec: Arc<dyn BatchCodec<T>>,
        waker: Arc<dyn TaskWaker>,
    ) -> Vec<OutputChannel<T>> {
        let registry = &self.inner.registry;
        let open = |peer: &ChannelPeer| {
            let id = ChannelId {
                edge: edge.edge,
                producer: me,
                consumer: peer.attempt,
            };
            let target = if self.is_here(peer) {
                match registry.local(id, End::Producer) {
                    Ok(channel) => {
                        channel.set_producer(Arc::clone(&waker));
                        Target::Local(channel)
                    }
                    Err(message) => Target::Failed(FailureKind::Internal { message }),
                }
            } else {
                let output = Arc::new(RemoteOutput::new(Arc::clone(&waker)));
                if registry.add_output(id, &output) {
                    Target::remote(output, Arc::clone(&codec))
                } else {
                    let message = format!("the producing end of {id} was opened twice");
                    Target::Failed(FailureKind::Internal { message })
                }
            };
            OutputChannel::new(id, peer.clone(), target, Arc::clone(registry))
        };
        edge.peers.iter().map(open).collect()
    }

    fn is_here(&self, peer: &ChannelPeer) -> bool {
        peer.location.instance == self.inner.identity.instance
    }

    /// Who this process is to its peers.
    #[must_use]
    pub fn resource(&self) -> &ResourceId {
        &self.resource
    }

    /// What is open; all zero when all tasks are gone.
    #[must_use]
    pub fn usage(&self) -> ExchangeUsage {
        self.inner.registry.usage()
    }
}

impl DataPlane for Exchange {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.inner.cancel.cancel();
        let mut running = self.inner.running.subscribe();
        Box::pin(async move {
            // An error means that the sender, and with it every task, is gone: that is what we wait for.
            let _ = running.wait_for(|n| *n == 0).await;
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.inner.cancel.cancel();
    }
}
