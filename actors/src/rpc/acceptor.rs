//! Accepts connections and finds out who they are, many at once but never more than a bound.
//!
//! Invariant: whoever has not authenticated costs a bounded number of tasks for a bounded time. Probes are answered here; everything
//! else is handed on.

use std::sync::Arc;
use std::time::Duration;

use perennial_config::Secret;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::handshake::{Channel, HANDSHAKE_TIMEOUT, HandshakeError, Introduction, receive};
use super::transport::{BoxStream, Listener};
use crate::entropy::Entropy;
use crate::model::message::{Hello, Welcome};

/// Connections that are being authenticated.
pub(crate) const HANDSHAKES_MAX: usize = 64;
/// Before accepting again after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Tasks that end together and can be waited for.
pub(crate) struct Tasks {
    stop: CancellationToken,
    alive: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        let (alive, ended) = mpsc::channel(1);
        Self {
            stop: CancellationToken::new(),
            alive,
            ended,
        }
    }

    pub(crate) fn spawner(&self) -> Spawner {
        Spawner {
            stop: self.stop.clone(),
            alive: self.alive.clone(),
        }
    }

    /// Drops the futures of all tasks and resolves when they are gone.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        drop(self.alive);
        // `None`: every task has dropped its sender. Nothing is ever sent.
        let _none = self.ended.recv().await;
    }
}

/// Starts tasks of a [`Tasks`].
#[derive(Clone)]
pub(crate) struct Spawner {
    stop: CancellationToken,
    alive: mpsc::Sender<()>,
}

impl Spawner {
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Self { stop, alive } = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
            drop(alive);
        });
    }
}

/// An authenticated connection whose initiator was welcomed by a leader.
pub(crate) struct Accepted {
    pub(crate) channel: Channel,
    pub(crate) introduction: Introduction,
    pub(crate) welcome: Welcome,
}

pub(crate) type Welcomer = Arc<dyn Fn() -> Welcome + Send + Sync>;
pub(crate) type OnAccepted = Arc<dyn Fn(Box<Accepted>) + Send + Sync>;

/// What each handshake needs.
#[derive(Clone)]
pub(crate) struct Reception {
    pub(crate) secret: Secret,
    pub(crate) entropy: Entropy,
    pub(crate) welcome: Welcomer,
    pub(crate) on_accepted: OnAccepted,
}

/// Accepts until the tasks are stopped.
pub(crate) fn accept(tasks: &Tasks, mut listener: Box<dyn Listener>, reception: Reception) {
    let spawner = tasks.spawner();
    tasks.spawner().spawn(async move {
        let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let permit = Arc::clone(&permits)
                .acquire_owned()
                .await
                .expect("this semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let reception = reception.clone();
                    spawner.spawn(async move {
                        if let Err(error) = reception.receive(stream, peer.clone()).await {
                            tracing::warn!(%peer, %error, "refused a connection");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

impl Reception {
    async fn receive(&self, stream: BoxStream, peer: String) -> Result<(), HandshakeError> {
        let (mut channel, introduction) =
            receive(stream, peer, &self.secret, &self.entropy).await?;
        let welcome = (self.welcome)();
        let answering = channel.writer.message(&welcome);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, answering).await {
            Ok(result) => result?,
            Err(_elapsed) => return Err(HandshakeError::Timeout(HANDSHAKE_TIMEOUT)),
        }
        match &introduction.hello {
            Hello::TaskManager(_) | Hello::Client if welcome.epoch.is_some() => {
                (self.on_accepted)(Box::new(Accepted {
                    channel,
                    introduction,
                    welcome,
                }));
            }
            // A probe has what it wanted; others read in the welcome that nobody leads here.
            Hello::Probe | Hello::TaskManager(_) | Hello::Client => {
                // Best effort: the drop that follows closes the connection in any case.
                let closing = channel.writer.shutdown();
                let _elapsed = tokio::time::timeout(HANDSHAKE_TIMEOUT, closing).await;
            }
        }
        Ok(())
    }
}
