//! The actor behind a JobManager's address: takes in authenticated connections and owns one child per TaskManager.
//!
//! Invariant: at most one child per process instance and per resource id, and every instance that was reported as registered is
//! reported as lost once, unless its connection was closed on request. It decides nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use perennial_config::{HeartbeatSettings, Secret};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::Semaphore;

use super::task_manager_peer::{PeerArguments, PeerMessage, TaskManagerPeer};
use super::{PeerEvent, PeerEvents};
use crate::client;
use crate::entropy::Entropy;
use crate::model::message::{Hello, Registration, RpcError, Welcome};
use crate::model::{InstanceId, ResourceId};
use crate::rpc::acceptor::{self, Accepted, Reception, Tasks};
use crate::rpc::{Connection, Envelope, Link, Transport};
use crate::supervision::{self, Exit, ExpectedExits};

/// Clients that are connected at the same time.
pub const CLIENT_SESSIONS_MAX: usize = 256;
/// TaskManagers that are connected, or missed within the reconnect window, at the same time.
pub const TASK_MANAGERS_MAX: usize = 4096;

/// How long the sessions' last words may take at shutdown.
const CHILDREN_END_MAX: Duration = Duration::from_secs(5);

/// What a listener needs.
#[derive(Clone)]
pub struct ListenerOptions {
    /// Where connections come from.
    pub transport: Arc<dyn Transport>,
    /// `host:port`; port 0 takes a free one.
    pub bind: String,
    /// Of the cluster.
    pub secret: Secret,
    /// Who answers. Asked at each connection: while `epoch` is `None`, TaskManagers and clients are turned away.
    pub welcome: Arc<dyn Fn() -> Welcome + Send + Sync>,
    /// When silence is a loss.
    pub heartbeat: HeartbeatSettings,
    /// For nonces and session ids.
    pub entropy: Entropy,
    /// Receives what connections report.
    pub events: PeerEvents,
}

/// A listener that runs.
pub struct ListenerHandle {
    address: String,
    actor: ActorRef<ListenerMessage>,
    join: tokio::task::JoinHandle<()>,
    tasks: Tasks,
}

impl ListenerHandle {
    /// `host:port` with the real port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Closes the listener and all connections. No [`PeerEvent::Lost`] follows. Resolves when all is released.
    pub async fn shutdown(self) {
        self.actor.stop(Some("shutdown".to_owned()));
        self.tasks.stop().await;
        if let Err(error) = self.join.await {
            tracing::warn!(%error, "the listener's actor ended badly");
        }
    }
}

/// Where a listener is started.
pub struct RpcListener;

impl RpcListener {
    /// Listens, and accepts in the background.
    pub async fn start(options: ListenerOptions) -> io::Result<ListenerHandle> {
        Self::spawn(options, None).await
    }

    /// The same, as a child of an actor, which hears of the listener's end.
    pub async fn start_linked(
        options: ListenerOptions,
        supervisor: ActorCell,
    ) -> io::Result<ListenerHandle> {
        Self::spawn(options, Some(supervisor)).await
    }

    async fn spawn(
        options: ListenerOptions,
        supervisor: Option<ActorCell>,
    ) -> io::Result<ListenerHandle> {
        let listener = options.transport.listen(&options.bind).await?;
        let address = listener.address();
        let arguments = options.clone();
        let spawned = match supervisor {
            Some(parent) => Actor::spawn_linked(None, ListenerActor, arguments, parent).await,
            None => Actor::spawn(None, ListenerActor, arguments).await,
        };
        let (actor, join) = spawned.map_err(io::Error::other)?;

        let tasks = Tasks::new();
        let (clients, spawner) = (
            Arc::new(Semaphore::new(CLIENT_SESSIONS_MAX)),
            tasks.spawner(),
        );
        let (events, target) = (Arc::clone(&options.events), actor.clone());
        let on_accepted = move |accepted: Box<Accepted>| match &accepted.introduction.hello {
            Hello::Client => match Arc::clone(&clients).try_acquire_owned() {
                Ok(permit) => {
                    let events = Arc::clone(&events);
                    spawner.spawn(async move {
                        client::serve(accepted.channel, events).await;
                        drop(permit);
                    });
                }
                Err(_all_taken) => {
                    tracing::warn!(limit = CLIENT_SESSIONS_MAX, "too many clients, one refused");
                }
            },
            Hello::TaskManager(_) => {
                // An actor that has ended drops the connection, which is the right answer.
                let _ended = target.cast(ListenerMessage::Accepted(accepted));
            }
            // Answered by the acceptor.
            Hello::Probe => {}
        };
        let reception = Reception {
            secret: options.secret,
            entropy: options.entropy,
            welcome: options.welcome,
            on_accepted: Arc::new(on_accepted),
        };
        acceptor::accept(&tasks, listener, reception);
        Ok(ListenerHandle {
            address,
            actor,
            join,
            tasks,
        })
    }
}

pub(super) enum ListenerMessage {
    /// A TaskManager said hello.
    Accepted(Box<Accepted>),
}

struct PeerEntry {
    instance: InstanceId,
    resource: ResourceId,
    actor: ActorRef<PeerMessage>,
}

struct ListenerState {
    options: ListenerOptions,
    peers: BTreeMap<ActorId, PeerEntry>,
    expected: ExpectedExits,
}

struct ListenerActor;

impl Actor for ListenerActor {
    type Msg = ListenerMessage;
    type State = ListenerState;
    type Arguments = ListenerOptions;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        options: ListenerOptions,
    ) -> Result<ListenerState, ActorProcessingErr> {
        Ok(ListenerState {
            options,
            peers: BTreeMap::new(),
            expected: ExpectedExits::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: ListenerMessage,
        state: &mut ListenerState,
    ) -> Result<(), ActorProcessingErr> {
        let ListenerMessage::Accepted(accepted) = message;
        let Hello::TaskManager(registration) = accepted.introduction.hello.clone() else {
            return Ok(());
        };
        state.admit(&myself, accepted, registration).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut ListenerState,
    ) -> Result<(), ActorProcessingErr> {
        // A peer that ends by itself has reported its TaskManager's loss, or was closed on request.
        let is_clean = matches!(event, SupervisionEvent::ActorTerminated(..));
        let Some((id, exit)) = supervision::classify(event, &mut state.expected) else {
            return Ok(());
        };
        let Some(entry) = state.peers.remove(&id) else {
            return Ok(());
        };
        if let (Exit::Failed(cause), false) = (exit.named("TaskManagerPeer"), is_clean) {
            tracing::error!(resource = %entry.resource, instance = %entry.instance, %cause, "a TaskManager's session broke");
            let instance = entry.instance;
            (state.options.events)(PeerEvent::Lost { instance, cause });
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut ListenerState,
    ) -> Result<(), ActorProcessingErr> {
        for entry in std::mem::take(&mut state.peers).into_values() {
            // One that has ended already needs no word.
            let _ended = entry
                .actor
                .cast(PeerMessage::Close("JobManager shuts down".to_owned()));
        }
        myself.drain_children_and_wait(Some(CHILDREN_END_MAX)).await;
        Ok(())
    }
}

impl ListenerState {
    async fn admit(
        &mut self,
        myself: &ActorRef<ListenerMessage>,
        accepted: Box<Accepted>,
        registration: Registration,
    ) {
        let location = &registration.location;
        let known = self
            .peers
            .values()
            .find(|p| p.instance == location.instance);
        let accepted = match known {
            Some(entry) if entry.resource != location.resource => {
                let message = format!(
                    "instance {} is registered as {}",
                    entry.instance, entry.resource
                );
                refuse(*accepted, RpcError::Refused(message));
                return;
            }
            // The peer may have ended in the meantime: then it has said so, and this is a new beginning.
            Some(entry) => match entry.actor.cast(PeerMessage::Attach(accepted)) {
                Ok(()) => return,
                Err(ractor::MessagingErr::SendErr(PeerMessage::Attach(accepted))) => accepted,
                Err(_) => return,
            },
            None => accepted,
        };
        // A successor on the same place: whoever was there is gone (its process cannot live on under the same name).
        let former = self.peers.iter().find(|(_, p)| {
            p.resource == location.resource && p.actor.get_status() < ractor::ActorStatus::Stopping
        });
        if let Some((&id, entry)) = former {
            let superseding = PeerMessage::Supersede(accepted, myself.clone());
            let result = entry.actor.cast(superseding);
            let former = self.peers.remove(&id);
            debug_assert!(former.is_some());
            match result {
                // It reports the loss first and hands the connection back.
                Ok(()) => return,
                Err(ractor::MessagingErr::SendErr(PeerMessage::Supersede(accepted, _))) => {
                    self.start_peer(myself, accepted, registration).await;
                }
                Err(_) => {}
            }
            return;
        }
        self.start_peer(myself, accepted, registration).await;
    }

    async fn start_peer(
        &mut self,
        myself: &ActorRef<ListenerMessage>,
        accepted: Box<Accepted>,
        registration: Registration,
    ) {
        if self.peers.len() >= TASK_MANAGERS_MAX {
            let message = format!("{TASK_MANAGERS_MAX} TaskManagers are registered, no more fit");
            refuse(*accepted, RpcError::Refused(message));
            return;
        }
        let arguments = PeerArguments {
            options: self.options.clone(),
            location: registration.location.clone(),
        };
        let parent = myself.get_cell();
        match Actor::spawn_linked(None, TaskManagerPeer, arguments, parent).await {
            Ok((actor, _join)) => {
                // Just started, and only we could have stopped it.
                let _ended = actor.cast(PeerMessage::Attach(accepted));
                let entry = PeerEntry {
                    instance: registration.location.instance,
                    resource: registration.location.resource,
                    actor: actor.clone(),
                };
                self.peers.insert(actor.get_id(), entry);
            }
            Err(error) => tracing::error!(%error, "cannot start the session of a TaskManager"),
        }
    }
}

/// Says why, and closes.
fn refuse(accepted: Accepted, error: RpcError) {
    tracing::warn!(peer = %accepted.channel.peer, %error, "refused a TaskManager");
    let epoch = accepted
        .welcome
        .epoch
        .unwrap_or(crate::model::LeaderEpoch(0));
    let connection: Connection<Envelope> =
        Connection::start::<Envelope>(accepted.channel, Arc::new(|_| {}));
    // When even this does not fit into a new queue, the close says enough.
    let _full = connection.send(Envelope {
        epoch,
        link: Link::Refused(error),
    });
    connection.close();
}
