//! One TaskManager as the JobManager sees it: its connection, its heartbeat deadline, the window in which it may come back.
//!
//! Invariant: the loss is reported once, as the last event of this instance, unless the session was closed on request. While the
//! socket lives, silence up to the heartbeat timeout is not a loss; when it breaks, a refused probe or another process at the
//! TaskManager's own address is one at once, and anything else is one after the reconnect window.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::listener::{ListenerMessage, ListenerOptions};
use super::{PeerEvent, PeerHandle};
use crate::fault::{ActorKind, PeerFault};
use crate::model::message::{Hello, RpcError, ToJobManager, ToTaskManager};
use crate::model::{FailureKind, InstanceId, LeaderEpoch, TaskManagerLocation};
use crate::rpc::acceptor::Accepted;
use crate::rpc::{
    Accept, Connection, Envelope, HandshakeError, Inbox, Introduction, Link, Outbox, SessionId,
    Wired, dial, encode, wired,
};

/// Between two probes of a process that takes connections and breaks them; within the reconnect window.
const PROBE_PAUSE: Duration = Duration::from_millis(10);

pub(super) struct PeerArguments {
    pub(super) options: ListenerOptions,
    pub(super) location: TaskManagerLocation,
}

pub(super) enum PeerMessage {
    /// A connection of this instance; replaces the one there is.
    Attach(Box<Accepted>),
    /// A connection of a successor: report the loss, then hand it back.
    Supersede(Box<Accepted>, ActorRef<ListenerMessage>),
    /// From the connection of a number.
    Wired(u64, Wired<ToJobManager>),
    Send(ToTaskManager),
    Close(String),
    Heartbeat(u64),
    /// What the TaskManager's own listener says after the connection of a number broke.
    Probed(u64, Result<InstanceId, HandshakeError>),
    WindowElapsed(u64),
    Fault(PeerFault),
}

enum Connected {
    /// Before the first connection.
    Not,
    Up {
        connection: Connection<Envelope>,
        heard: Instant,
        heartbeats: u64,
    },
    /// The socket broke, for this reason.
    Broken(String),
}

pub(super) struct PeerState {
    options: ListenerOptions,
    location: TaskManagerLocation,
    probe_address: Option<String>,
    epoch: LeaderEpoch,
    connected: Connected,
    /// Of the connection; events of earlier ones are stale.
    number: u64,
    /// Whose numbers outbox and inbox hold; `None` before the first connection.
    session: Option<SessionId>,
    outbox: Outbox,
    inbox: Inbox,
    /// Injected: it asks for no heartbeat before.
    silent_until: Option<Instant>,
}

pub(super) struct TaskManagerPeer;

impl Actor for TaskManagerPeer {
    type Msg = PeerMessage;
    type State = PeerState;
    type Arguments = PeerArguments;

    async fn pre_start(
        &self,
        _: ActorRef<PeerMessage>,
        arguments: PeerArguments,
    ) -> Result<PeerState, ActorProcessingErr> {
        Ok(PeerState {
            options: arguments.options,
            location: arguments.location,
            probe_address: None,
            epoch: LeaderEpoch(0),
            connected: Connected::Not,
            number: 0,
            session: None,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            silent_until: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PeerMessage>,
        message: PeerMessage,
        state: &mut PeerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PeerMessage::Attach(accepted) => state.attach(&myself, *accepted),
            PeerMessage::Supersede(accepted, listener) => {
                state.lost(&myself, "another process registered under its name");
                // The listener has ended: so has everything.
                let _ended = listener.cast(ListenerMessage::Accepted(accepted));
            }
            PeerMessage::Wired(number, wired) if number == state.number => {
                state.received(&myself, wired);
            }
            PeerMessage::Send(message) => state.send(&myself, &message),
            PeerMessage::Close(reason) => {
                if let Connected::Up { connection, .. } =
                    std::mem::replace(&mut state.connected, Connected::Not)
                {
                    // A peer that does not read learns it from the closed socket.
                    let _full = connection.send(Envelope {
                        epoch: state.epoch,
                        link: Link::Refused(RpcError::Refused(reason.clone())),
                    });
                    connection.close();
                }
                state.number += 1;
                myself.stop(Some(reason));
            }
            PeerMessage::Heartbeat(number) if number == state.number => state.heartbeat(&myself),
            PeerMessage::Probed(number, result) if number == state.number => {
                state.probed(&myself, result);
            }
            PeerMessage::WindowElapsed(number) if number == state.number => {
                if let Connected::Broken(error) = &state.connected {
                    let window = state.options.heartbeat.reconnect_window.as_millis();
                    let message = format!("{error}, and it did not reconnect within {window} ms");
                    state.lost(&myself, &message);
                }
            }
            PeerMessage::Fault(PeerFault::Actor(fault)) => {
                fault.strike(ActorKind::TaskManagerPeer).await;
            }
            PeerMessage::Fault(PeerFault::NoHeartbeats(duration)) => {
                state.silent_until = Some(Instant::now() + duration);
            }
            // Of a connection that was replaced meanwhile.
            PeerMessage::Wired(..)
            | PeerMessage::Heartbeat(_)
            | PeerMessage::Probed(..)
            | PeerMessage::WindowElapsed(_) => {}
        }
        Ok(())
    }
}

/// A cast to an actor that has ended is dropped: whoever waited for its effect has been told of the end.
fn cast(actor: &ActorRef<PeerMessage>, message: PeerMessage) {
    let _ended = actor.cast(message);
}

impl PeerState {
    fn attach(&mut self, myself: &ActorRef<PeerMessage>, accepted: Accepted) {
        let Accepted {
            channel,
            introduction,
            welcome,
        } = accepted;
        let Introduction {
            hello: Hello::TaskManager(mut registration),
            probe_address,
            resume,
        } = introduction
        else {
            return;
        };
        let epoch = welcome.epoch.unwrap_or(self.epoch);
        // One that never heard of our session's start asks for a former one, whose numbers say nothing about ours.
        let resume = resume.filter(|r| Some(r.session) == self.session && epoch == self.epoch);
        if self.number > 0 && resume.is_none() {
            // Same process, but what was under way in either direction is lost: the JobManager must not wait for it.
            self.report_lost("its session could not be resumed");
            self.outbox = Outbox::default();
            self.inbox = Inbox::default();
        }
        let session = match resume {
            Some(resume) => resume.session,
            None => SessionId(self.options.entropy.u64()),
        };
        self.session = Some(session);
        self.number += 1;
        self.epoch = epoch;
        self.probe_address = probe_address;
        if let Some(resume) = resume {
            self.outbox.acknowledge(resume.received);
            // Deployments that are under way will run: for the JobManager they are not missing.
            registration.running.extend(self.outbox.attempts());
            registration.running.sort_unstable();
            registration.running.dedup();
        }

        let (number, target) = (self.number, myself.clone());
        let peer = channel.peer.clone();
        let connection = Connection::start(
            channel,
            Arc::new(move |event| cast(&target, PeerMessage::Wired(number, wired(&peer, event)))),
        );
        let start = Link::Start {
            session,
            is_resumed: resume.is_some(),
            received: self.inbox.received,
        };
        let messages = self.outbox.unacknowledged().map(|(sequence, body)| {
            let received = self.inbox.received;
            Link::Message {
                sequence,
                received,
                body,
            }
        });
        // First on the lane that overtakes: the first heartbeat must not come before it.
        let _closed = connection.send_urgent(Envelope { epoch, link: start });
        for link in messages {
            // Fits: a new queue is longer than the outbox. When the socket has broken already, an event says so.
            let _closed = connection.send(Envelope { epoch, link });
        }
        self.connected = Connected::Up {
            connection,
            heard: Instant::now(),
            heartbeats: 0,
        };
        tracing::info!(
            resource = %self.location.resource,
            instance = %self.location.instance,
            is_resumed = resume.is_some(),
            "TaskManager registered"
        );

        // Handles stay valid over reconnects: they lead to this actor, not to a socket.
        let (sender, closer, breaker) = (myself.clone(), myself.clone(), myself.clone());
        (self.options.events)(PeerEvent::Registered {
            registration,
            peer: PeerHandle {
                send: Arc::new(move |message| cast(&sender, PeerMessage::Send(message))),
                close: Arc::new(move |reason| cast(&closer, PeerMessage::Close(reason))),
                fault: Arc::new(move |fault| cast(&breaker, PeerMessage::Fault(fault))),
            },
        });
        self.heartbeat(myself);
    }

    fn send(&mut self, myself: &ActorRef<PeerMessage>, message: &ToTaskManager) {
        let attempts = match message {
            ToTaskManager::Deploy { tasks, .. } => tasks.iter().map(|t| t.attempt).collect(),
            ToTaskManager::Registered { .. }
            | ToTaskManager::Stop { .. }
            | ToTaskManager::TriggerCheckpoint(_)
            | ToTaskManager::NotifyCheckpointComplete { .. }
            | ToTaskManager::NotifyCheckpointAborted { .. }
            | ToTaskManager::Drain { .. }
            | ToTaskManager::ReleaseJob { .. }
            | ToTaskManager::HeartbeatRequest { .. }
            | ToTaskManager::InjectFault(_) => Vec::new(),
        };
        let body = match encode(message) {
            Ok(body) => body,
            Err(error) => {
                self.lost(myself, &error.to_string());
                return;
            }
        };
        match self.outbox.push(body.clone(), attempts, false) {
            Ok(sequence) => {
                let received = self.inbox.received;
                let link = Link::Message {
                    sequence,
                    received,
                    body,
                };
                self.put(myself, link, Lane::Ordered);
            }
            Err(full) => self.lost(myself, &full.to_string()),
        }
    }

    /// Without a connection, a numbered message waits in the outbox.
    fn put(&mut self, myself: &ActorRef<PeerMessage>, link: Link, lane: Lane) {
        let Connected::Up { connection, .. } = &self.connected else {
            return;
        };
        let envelope = Envelope {
            epoch: self.epoch,
            link,
        };
        let result = match lane {
            Lane::Ordered => connection.send(envelope),
            Lane::Urgent => connection.send_urgent(envelope),
        };
        if let Err(error) = result {
            self.broken(myself, error.to_string());
        }
    }

    fn received(&mut self, myself: &ActorRef<PeerMessage>, wired: Wired<ToJobManager>) {
        match wired {
            Wired::Message {
                epoch,
                sequence,
                received,
                message,
                _permit,
            } => {
                let Connected::Up { heard, .. } = &mut self.connected else {
                    return;
                };
                if epoch != self.epoch {
                    let current = self.epoch;
                    let error = RpcError::Fenced {
                        ours: epoch,
                        current,
                    };
                    self.put(myself, Link::Refused(error.clone()), Lane::Ordered);
                    self.broken(myself, error.to_string());
                    return;
                }
                *heard = Instant::now();
                self.outbox.acknowledge(received);
                match self.inbox.accept(sequence) {
                    Accept::Handle => self.message(myself, *message),
                    Accept::Duplicate => {}
                    Accept::Gap => self.lost(myself, "its messages do not follow each other"),
                }
            }
            Wired::Refused(error) => match &error {
                // It serves a newer leader: we are the stale one, and whoever is told decides what that means.
                RpcError::Fenced { .. } => {
                    let message = error.to_string();
                    self.end(myself, FailureKind::Fenced { message });
                }
                RpcError::Timeout { .. }
                | RpcError::Closed { .. }
                | RpcError::Refused(_)
                | RpcError::Handshake { .. }
                | RpcError::JobNotFound(_) => self.lost(myself, &error.to_string()),
            },
            Wired::Start { .. } => self.lost(myself, "it spoke as if it were a JobManager"),
            Wired::Closed(error) => self.broken(myself, error.to_string()),
        }
    }

    fn message(&mut self, myself: &ActorRef<PeerMessage>, message: ToJobManager) {
        let goodbye = match &message {
            ToJobManager::Goodbye { reason } => Some(format!("it said goodbye: {reason}")),
            ToJobManager::TaskRestored { .. }
            | ToJobManager::TaskRunning { .. }
            | ToJobManager::TaskFirstRecord { .. }
            | ToJobManager::TaskAwaitingFinal { .. }
            | ToJobManager::TaskEnded { .. }
            | ToJobManager::CheckpointAck(_)
            | ToJobManager::CheckpointDeclined { .. }
            | ToJobManager::JobReleased { .. }
            | ToJobManager::Heartbeat { .. } => None,
        };
        (self.options.events)(PeerEvent::Message {
            instance: self.location.instance,
            message,
        });
        if let Some(goodbye) = goodbye {
            // No warning: the JobManager logs that it leaves.
            let cause = self.loss(&goodbye);
            self.report_end(myself, cause);
        }
    }

    fn heartbeat(&mut self, myself: &ActorRef<PeerMessage>) {
        let settings = &self.options.heartbeat;
        let Connected::Up {
            heard, heartbeats, ..
        } = &mut self.connected
        else {
            return;
        };
        let silent = heard.elapsed();
        if silent >= settings.timeout {
            let limit = settings.timeout.as_millis();
            self.lost(myself, &format!("no heartbeat for {limit} ms"));
            return;
        }
        // The deadline may lie before the next request.
        let wake = settings.interval.min(settings.timeout - silent);
        *heartbeats += 1;
        let request = ToTaskManager::HeartbeatRequest {
            sequence: *heartbeats,
        };
        let is_silent = self
            .silent_until
            .is_some_and(|until| Instant::now() < until);
        match encode(&request) {
            Ok(_) if is_silent => {}
            Ok(body) => {
                let received = self.inbox.received;
                let link = Link::Message {
                    sequence: 0,
                    received,
                    body,
                };
                self.put(myself, link, Lane::Urgent);
            }
            Err(error) => self.lost(myself, &error.to_string()),
        }
        let number = self.number;
        let wake = wake.max(Duration::from_millis(1));
        let _timer = myself.send_after(wake, move || PeerMessage::Heartbeat(number));
    }

    /// The socket broke: who or what broke it?
    fn broken(&mut self, myself: &ActorRef<PeerMessage>, error: String) {
        match &self.connected {
            Connected::Up { .. } => {}
            Connected::Not | Connected::Broken(_) => return,
        }
        tracing::warn!(resource = %self.location.resource, instance = %self.location.instance, %error, "connection to a TaskManager broke");
        self.connected = Connected::Broken(error);
        // Order matters: from here on, events of the broken connection are stale.
        self.number += 1;
        let number = self.number;
        let window = self.options.heartbeat.reconnect_window;
        let _timer = myself.send_after(window, move || PeerMessage::WindowElapsed(number));

        let Some(address) = self.probe_address.clone() else {
            return;
        };
        let (options, target) = (self.options.clone(), myself.clone());
        tokio::spawn(async move {
            let give_up = Instant::now() + window;
            let result = loop {
                let result = dial(
                    &*options.transport,
                    &address,
                    &options.secret,
                    &options.entropy,
                    Hello::Probe.into(),
                    window,
                )
                .await;
                match result {
                    // A process that is ending takes connections for as long as its listener is not closed yet, and resets them.
                    Err(error) if error.is_cut_off() && Instant::now() + PROBE_PAUSE < give_up => {
                        tokio::time::sleep(PROBE_PAUSE).await;
                    }
                    result => break result.map(|(_, welcome)| welcome.instance),
                }
            };
            cast(&target, PeerMessage::Probed(number, result));
        });
    }

    fn probed(
        &mut self,
        myself: &ActorRef<PeerMessage>,
        result: Result<InstanceId, HandshakeError>,
    ) {
        let Connected::Broken(error) = &self.connected else {
            return;
        };
        match result {
            // It lives: the link was cut, and it will come back.
            Ok(instance) if instance == self.location.instance => {}
            Ok(instance) => {
                let message = format!("{error}; its process was replaced by {instance}");
                self.lost(myself, &message);
            }
            Err(probe) if probe.is_refused() => {
                let message = format!("{error}; its process does not listen any more");
                self.lost(myself, &message);
            }
            // A network that is silent or closed in both directions says nothing about the process.
            Err(probe) => tracing::debug!(%probe, "probe without a result"),
        }
    }

    fn lost(&mut self, myself: &ActorRef<PeerMessage>, message: &str) {
        let cause = self.loss(message);
        self.end(myself, cause);
    }

    fn loss(&self, message: &str) -> FailureKind {
        FailureKind::TaskManagerLost {
            resource: self.location.resource.clone(),
            instance: self.location.instance,
            message: message.to_owned(),
        }
    }

    fn report_lost(&self, message: &str) {
        tracing::warn!(resource = %self.location.resource, instance = %self.location.instance, message, "lost a TaskManager");
        (self.options.events)(PeerEvent::Lost {
            instance: self.location.instance,
            cause: self.loss(message),
        });
    }

    /// The end of the TaskManager, unless it was reported before.
    fn end(&mut self, myself: &ActorRef<PeerMessage>, cause: FailureKind) {
        if !matches!(self.connected, Connected::Not) {
            tracing::warn!(resource = %self.location.resource, instance = %self.location.instance, %cause, "lost a TaskManager");
        }
        self.report_end(myself, cause);
    }

    /// Reports the end. `Not` afterwards, so that nothing can report it again before the actor has stopped.
    fn report_end(&mut self, myself: &ActorRef<PeerMessage>, cause: FailureKind) {
        let former = std::mem::replace(&mut self.connected, Connected::Not);
        self.number += 1;
        if let Connected::Up { connection, .. } = former {
            connection.close();
        } else if matches!(former, Connected::Not) {
            return;
        }
        let instance = self.location.instance;
        (self.options.events)(PeerEvent::Lost { instance, cause });
        myself.stop(Some("lost".to_owned()));
    }
}

#[derive(Clone, Copy)]
enum Lane {
    Ordered,
    Urgent,
}
