//! The JobManager's end of its connections: one actor per TaskManager, one per client. Each owns a socket, its heartbeat deadline
//! and nothing else; everything that is decided is decided by whoever receives the [`PeerEvent`]s.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::fault::PeerFault;
use crate::model::message::{
    ClientRequest, ClientResponse, Registration, RpcError, ToJobManager, ToTaskManager,
};
use crate::model::{FailureKind, InstanceId};

/// Sends to one TaskManager; a message to a lost one is dropped, since its loss has been or will be reported.
#[derive(Clone)]
pub struct PeerHandle {
    /// Hands the message to the peer's actor. Never blocks. A full outgoing queue makes the peer lost.
    pub send: Arc<dyn Fn(ToTaskManager) + Send + Sync>,
    /// Ends the connection; no `Lost` follows.
    pub close: Arc<dyn Fn(String) + Send + Sync>,
    /// Breaks the peer's actor.
    pub fault: Arc<dyn Fn(PeerFault) + Send + Sync>,
}

/// What connections report.
pub enum PeerEvent {
    /// A TaskManager said hello (again: a new session of a known instance, within the reconnect window, is not a loss).
    Registered {
        /// Its introduction.
        registration: Registration,
        /// To answer it.
        peer: PeerHandle,
    },
    /// A message of a registered TaskManager.
    Message {
        /// Whose.
        instance: InstanceId,
        /// What.
        message: ToJobManager,
    },
    /// A TaskManager is gone: refused or other instance at once, silent after the heartbeat timeout, cut after the reconnect window.
    Lost {
        /// Which.
        instance: InstanceId,
        /// [`FailureKind::TaskManagerLost`] with how it was found out.
        cause: FailureKind,
    },
    /// A client asks. The answer may take as long as the work does; the client shows progress.
    Request {
        /// What.
        request: ClientRequest,
        /// Dropped when nobody will answer.
        reply: oneshot::Sender<Result<ClientResponse, RpcError>>,
    },
}

/// Receives what connections report; only hands it on.
pub type PeerEvents = Arc<dyn Fn(PeerEvent) + Send + Sync>;

mod listener;
mod task_manager_peer;

pub use listener::{
    CLIENT_SESSIONS_MAX, ListenerHandle, ListenerOptions, RpcListener, TASK_MANAGERS_MAX,
};
