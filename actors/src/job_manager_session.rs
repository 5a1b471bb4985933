//! The TaskManager's end of its connection to the leading JobManager: finds it, connects, answers, and comes back when the link
//! breaks.
//!
//! Invariant: nothing of a lower epoch than the highest one seen is handed on; it is answered with `Fenced` and the connection is
//! closed. What the TaskManager sends is kept until it is acknowledged; how tasks ended even outlives the session, everything
//! else is dropped when the JobManager does not know the session any more. It decides nothing about tasks.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use perennial_config::{HeartbeatSettings, Secret};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::entropy::Entropy;
use crate::fault::{ActorFault, ActorKind};
use crate::model::LeaderEpoch;
use crate::model::message::{Hello, Registration, RpcError, ToJobManager, ToTaskManager, Welcome};
use crate::rpc::{
    Accept, Channel, Connection, Envelope, Inbox, Introduction, Link, Outbox, ResumePoint,
    SessionId, Transport, Wired, dial, encode, wired,
};

/// Upper bound of the first wait before connecting again; it doubles with each failure. The waits are drawn from zero to the bound.
pub const RECONNECT_BACKOFF_INITIAL: Duration = Duration::from_millis(100);
/// Upper bound of all waits.
pub const RECONNECT_BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Tries in the reconnect window at least, if each fails at once.
const WINDOW_TRIES_MIN: u32 = 5;

/// Finds the leader.
pub trait LeaderDiscovery: Send + Sync + 'static {
    /// `host:port` of the leading JobManager, or why it is not known now. Asked before each connection.
    fn address(&self) -> BoxFuture<'_, Result<String, String>>;
}

/// A JobManager that is always at the same address.
#[derive(Debug, Clone)]
pub struct FixedLeader(pub String);

impl LeaderDiscovery for FixedLeader {
    fn address(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

/// What the session reports; only handed on.
pub(crate) enum SessionEvent {
    /// About to connect: what runs here? Answered by [`SessionMessage::Dial`].
    NeedsRegistration,
    /// A message of the leader.
    Message {
        epoch: LeaderEpoch,
        message: Box<ToTaskManager>,
    },
    /// The connection is gone, or could not be made.
    Down { error: String },
}

pub(crate) struct SessionArguments {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) leader: Arc<dyn LeaderDiscovery>,
    pub(crate) secret: Secret,
    pub(crate) heartbeat: HeartbeatSettings,
    pub(crate) connect_timeout: Duration,
    pub(crate) entropy: Entropy,
    pub(crate) probe_address: String,
    pub(crate) on_event: Arc<dyn Fn(SessionEvent) + Send + Sync>,
}

pub(crate) enum SessionMessage {
    Dial(Box<Registration>),
    Dialled(u64, Box<Result<(Channel, Welcome), String>>),
    Wired(u64, Wired<ToTaskManager>),
    Send(ToJobManager),
    /// May overtake, and is lost without a connection.
    SendUrgent(ToJobManager),
    CheckSilence(u64),
    Retry(u64),
    /// What runs here or fits here has changed beyond what messages say.
    Reregister,
    /// The last message; the session is over and does not come back.
    Leave(String),
    Fault(ActorFault),
}

enum Phase {
    /// Waits to be told what runs here, or to connect again.
    Waiting,
    Dialling,
    /// Connected; numbered messages wait for the JobManager's `Start`.
    Opening {
        connection: Connection<Envelope>,
        heard: Instant,
    },
    Up {
        connection: Connection<Envelope>,
        heard: Instant,
    },
    Left,
}

pub(crate) struct SessionState {
    arguments: SessionArguments,
    phase: Phase,
    /// Of the connection; events of earlier ones are stale.
    number: u64,
    failures: u32,
    /// When the connection broke, or was not to be had first.
    lost: Instant,
    highest_epoch: LeaderEpoch,
    /// Of the connection that is up.
    epoch: LeaderEpoch,
    /// Whose numbers outbox and inbox hold, as the last start received said; `None` when they must begin anew.
    session: Option<SessionId>,
    outbox: Outbox,
    inbox: Inbox,
}

pub(crate) struct JobManagerSession;

/// A cast to a session that has ended is dropped: its supervisor hears of the end.
fn cast(actor: &ActorRef<SessionMessage>, message: SessionMessage) {
    let _ended = actor.cast(message);
}

impl Actor for JobManagerSession {
    type Msg = SessionMessage;
    type State = SessionState;
    type Arguments = SessionArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        arguments: SessionArguments,
    ) -> Result<SessionState, ActorProcessingErr> {
        cast(&myself, SessionMessage::Retry(0));
        Ok(SessionState {
            arguments,
            phase: Phase::Waiting,
            number: 0,
            failures: 0,
            lost: Instant::now(),
            highest_epoch: LeaderEpoch(0),
            epoch: LeaderEpoch(0),
            session: None,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMessage::Retry(number) if number == state.number => {
                if matches!(state.phase, Phase::Waiting) {
                    state.report(SessionEvent::NeedsRegistration);
                }
            }
            SessionMessage::Dial(registration) => {
                if matches!(state.phase, Phase::Waiting) {
                    state.dial(&myself, *registration);
                }
            }
            SessionMessage::Dialled(number, result) if number == state.number => match *result {
                Ok((channel, welcome)) => state.opened(&myself, channel, &welcome),
                Err(error) => state.down(&myself, error),
            },
            SessionMessage::Wired(number, wired) if number == state.number => {
                state.received(&myself, wired);
            }
            SessionMessage::Send(message) => state.send(&myself, &message),
            SessionMessage::SendUrgent(message) => {
                if let (Phase::Up { connection, .. }, Ok(body)) = (&state.phase, encode(&message)) {
                    // A heartbeat that does not fit is late already; the other side judges by its deadline.
                    let _full = connection.send_urgent(state.envelope(0, body));
                }
            }
            SessionMessage::CheckSilence(number) if number == state.number => {
                state.check_silence(&myself);
            }
            SessionMessage::Reregister => match state.phase {
                Phase::Opening { .. } | Phase::Up { .. } => {
                    state.down(&myself, "registers anew".to_owned());
                }
                // The next registration is still to come.
                Phase::Waiting | Phase::Dialling | Phase::Left => {}
            },
            SessionMessage::Leave(reason) => {
                state.send(&myself, &ToJobManager::Goodbye { reason });
                state.number += 1;
                match std::mem::replace(&mut state.phase, Phase::Left) {
                    Phase::Up { connection, .. } => connection.close(),
                    Phase::Waiting | Phase::Dialling | Phase::Opening { .. } | Phase::Left => {}
                }
            }
            SessionMessage::Fault(fault) => fault.strike(ActorKind::JobManagerSession).await,
            // Of a connection that was given up meanwhile.
            SessionMessage::Retry(_)
            | SessionMessage::Dialled(..)
            | SessionMessage::Wired(..)
            | SessionMessage::CheckSilence(_) => {}
        }
        Ok(())
    }
}

impl SessionState {
    fn report(&self, event: SessionEvent) {
        (self.arguments.on_event)(event);
    }

    fn envelope(&self, sequence: u64, body: bytes::Bytes) -> Envelope {
        Envelope {
            epoch: self.epoch,
            link: Link::Message {
                sequence,
                received: self.inbox.received,
                body,
            },
        }
    }

    fn dial(&mut self, myself: &ActorRef<SessionMessage>, mut registration: Registration) {
        // Those that have ended, and whose end is still under way, are not missing for the JobManager.
        registration.running.extend(self.outbox.attempts());
        registration.running.sort_unstable();
        registration.running.dedup();
        let introduction = Introduction {
            hello: Hello::TaskManager(registration),
            probe_address: Some(self.arguments.probe_address.clone()),
            resume: self.session.map(|session| ResumePoint {
                session,
                received: self.inbox.received,
            }),
        };
        self.phase = Phase::Dialling;
        self.number += 1;
        let (number, target) = (self.number, myself.clone());
        let transport = Arc::clone(&self.arguments.transport);
        let leader = Arc::clone(&self.arguments.leader);
        let (secret, entropy) = (
            self.arguments.secret.clone(),
            self.arguments.entropy.clone(),
        );
        let timeout = self.arguments.connect_timeout;
        tokio::spawn(async move {
            let work = async {
                let address = match tokio::time::timeout(timeout, leader.address()).await {
                    Ok(found) => found?,
                    Err(_elapsed) => return Err("the leader's address is not known".to_owned()),
                };
                dial(
                    &*transport,
                    &address,
                    &secret,
                    &entropy,
                    introduction,
                    timeout,
                )
                .await
                .map_err(|error| error.into_rpc(&address).to_string())
            };
            let result = Box::new(work.await);
            cast(&target, SessionMessage::Dialled(number, result));
        });
    }

    fn opened(&mut self, myself: &ActorRef<SessionMessage>, channel: Channel, welcome: &Welcome) {
        let Some(epoch) = welcome.epoch else {
            self.down(myself, format!("{} does not lead", welcome.name));
            return;
        };
        let (number, target) = (self.number, myself.clone());
        let peer = channel.peer.clone();
        let connection = Connection::start(
            channel,
            Arc::new(move |event| {
                cast(&target, SessionMessage::Wired(number, wired(&peer, event)));
            }),
        );
        let heard = Instant::now();
        self.phase = Phase::Opening { connection, heard };
        if epoch < self.highest_epoch {
            self.fence(myself, epoch);
            return;
        }
        self.highest_epoch = epoch;
        self.epoch = epoch;
        self.arm_silence(myself);
    }

    fn fence(&mut self, myself: &ActorRef<SessionMessage>, ours: LeaderEpoch) {
        let current = self.highest_epoch;
        let error = RpcError::Fenced { ours, current };
        tracing::warn!(epoch = %ours, %current, "fenced a former leader");
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Opening { connection, .. } | Phase::Up { connection, .. } => {
                // When it does not fit, the closed socket is answer enough: nothing of that leader is handed on.
                let _full = connection.send(Envelope {
                    epoch: ours,
                    link: Link::Refused(error.clone()),
                });
                connection.close();
            }
            Phase::Waiting | Phase::Dialling | Phase::Left => {}
        }
        self.down(myself, error.to_string());
    }

    fn received(&mut self, myself: &ActorRef<SessionMessage>, event: Wired<ToTaskManager>) {
        match event {
            Wired::Start { epoch, .. } | Wired::Message { epoch, .. }
                if epoch < self.highest_epoch =>
            {
                self.fence(myself, epoch);
            }
            Wired::Start {
                session,
                is_resumed,
                received,
                ..
            } => self.start(myself, session, is_resumed, received),
            Wired::Message {
                epoch,
                sequence,
                received,
                message,
                _permit,
            } => {
                let Phase::Up { heard, .. } = &mut self.phase else {
                    self.down(myself, "a message before the session's start".to_owned());
                    return;
                };
                *heard = Instant::now();
                self.highest_epoch = epoch;
                self.epoch = epoch;
                self.outbox.acknowledge(received);
                match self.inbox.accept(sequence) {
                    Accept::Handle => self.report(SessionEvent::Message { epoch, message }),
                    Accept::Duplicate => {}
                    Accept::Gap => {
                        self.session = None;
                        self.down(myself, "messages of the JobManager are missing".to_owned());
                    }
                }
            }
            Wired::Refused(error) => self.down(myself, error.to_string()),
            Wired::Closed(error) => self.down(myself, error.to_string()),
        }
    }

    fn start(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        session: SessionId,
        is_resumed: bool,
        received: u64,
    ) {
        let (connection, heard) = match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Opening { connection, heard } => (connection, heard),
            other @ (Phase::Waiting | Phase::Dialling | Phase::Up { .. } | Phase::Left) => {
                self.phase = other;
                self.down(myself, "a second start of the session".to_owned());
                return;
            }
        };
        if is_resumed {
            self.outbox.acknowledge(received);
        } else {
            self.outbox.restart();
            self.inbox = Inbox::default();
        }
        self.session = Some(session);
        self.failures = 0;
        tracing::info!(epoch = %self.epoch, is_resumed, "connected to the JobManager");
        let messages: Vec<_> = self.outbox.unacknowledged().collect();
        for (sequence, body) in messages {
            // Fits: a new queue is longer than the outbox. When the socket has broken already, an event says so.
            let _closed = connection.send(self.envelope(sequence, body));
        }
        self.phase = Phase::Up { connection, heard };
    }

    fn send(&mut self, myself: &ActorRef<SessionMessage>, message: &ToJobManager) {
        let (attempts, is_lasting) = match message {
            ToJobManager::TaskEnded { attempt, .. } => (vec![*attempt], true),
            ToJobManager::TaskRestored { .. }
            | ToJobManager::TaskRunning { .. }
            | ToJobManager::TaskFirstRecord { .. }
            | ToJobManager::TaskAwaitingFinal { .. }
            | ToJobManager::CheckpointAck(_)
            | ToJobManager::CheckpointDeclined { .. }
            | ToJobManager::JobReleased { .. }
            | ToJobManager::Heartbeat { .. }
            | ToJobManager::Goodbye { .. } => (Vec::new(), false),
        };
        let body = match encode(message) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(%error, "cannot send to the JobManager");
                return;
            }
        };
        let sequence = match self.outbox.push(body.clone(), attempts.clone(), is_lasting) {
            Ok(sequence) => sequence,
            Err(full) => {
                // The session cannot go on without a gap: begin a new one, which keeps how tasks ended.
                self.session = None;
                self.outbox.restart();
                if is_lasting && self.outbox.push(body, attempts, true).is_err() {
                    tracing::error!(%full, "the end of a task was not reported: the next registration shows it");
                }
                self.down(myself, full.to_string());
                return;
            }
        };
        if let Phase::Up { connection, .. } = &self.phase
            && let Err(error) = connection.send(self.envelope(sequence, body))
        {
            self.down(myself, error.to_string());
        }
    }

    fn arm_silence(&self, myself: &ActorRef<SessionMessage>) {
        let (Phase::Opening { heard, .. } | Phase::Up { heard, .. }) = &self.phase else {
            return;
        };
        let settings = &self.arguments.heartbeat;
        let left = settings.timeout.saturating_sub(heard.elapsed());
        let number = self.number;
        let wake = left.max(Duration::from_millis(1));
        let _timer = myself.send_after(wake, move || SessionMessage::CheckSilence(number));
    }

    fn check_silence(&mut self, myself: &ActorRef<SessionMessage>) {
        let (Phase::Opening { heard, .. } | Phase::Up { heard, .. }) = &self.phase else {
            return;
        };
        let timeout = self.arguments.heartbeat.timeout;
        if heard.elapsed() >= timeout {
            let error = format!(
                "no heartbeat of the JobManager for {} ms",
                timeout.as_millis()
            );
            self.down(myself, error);
        } else {
            self.arm_silence(myself);
        }
    }

    /// Drops the connection, says so, and arms the next try: the first at once, so that a cut link costs no more than it must.
    fn down(&mut self, myself: &ActorRef<SessionMessage>, error: String) {
        if matches!(self.phase, Phase::Left) {
            return;
        }
        tracing::warn!(%error, failures = self.failures, "no connection to the JobManager");
        self.phase = Phase::Waiting;
        self.number += 1;
        let number = self.number;
        if self.failures == 0 {
            self.lost = Instant::now();
        }
        let most = longest_wait(
            self.lost.elapsed(),
            self.arguments.heartbeat.reconnect_window,
        );
        let wait = backoff(self.failures, most, &self.arguments.entropy);
        self.failures = self.failures.saturating_add(1);
        self.report(SessionEvent::Down { error });
        let _timer = myself.send_after(wait, move || SessionMessage::Retry(number));
    }
}

/// While the JobManager waits for us, no try of ours is far away: a link that heals in time is found in time.
fn longest_wait(lost_for: Duration, window: Duration) -> Duration {
    if lost_for < window {
        window / WINDOW_TRIES_MIN
    } else {
        RECONNECT_BACKOFF_MAX
    }
}

/// Exponential with full jitter: a fleet that lost its JobManager does not come back in step.
fn backoff(failures: u32, most: Duration, entropy: &Entropy) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let doubled = RECONNECT_BACKOFF_INITIAL.saturating_mul(1 << (failures - 1).min(16));
    let bound = doubled.min(most).as_micros() as u64;
    Duration::from_micros(entropy.u64() % (bound + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// N1: whenever the link heals in the first half of the window, there is a try in the second.
    #[test]
    fn no_wait_within_the_reconnect_window_outlasts_its_rest() {
        let window = Duration::from_secs(1);
        for seed in 0..200 {
            let entropy = Entropy::seeded(seed);
            let (mut at, mut failures) = (Duration::ZERO, 0);
            while at < window / 2 {
                at += backoff(failures, longest_wait(at, window), &entropy);
                failures += 1;
            }
            assert!(at < window * 3 / 4, "seed {seed}: {at:?}");
        }
    }

    #[test]
    fn reconnects_back_off_exponentially_with_full_jitter_and_a_bound() {
        let entropy = Entropy::seeded(1);
        let most = RECONNECT_BACKOFF_MAX;
        assert_eq!(backoff(0, most, &entropy), Duration::ZERO);
        for failures in 1..100 {
            let bound = (RECONNECT_BACKOFF_INITIAL * (1 << (failures - 1).min(10)))
                .min(RECONNECT_BACKOFF_MAX);
            let waits: Vec<_> = (0..50).map(|_| backoff(failures, most, &entropy)).collect();
            assert!(waits.iter().all(|w| *w <= bound));
            assert!(
                waits.iter().any(|w| *w > bound / 2),
                "it uses the upper half"
            );
            assert!(waits.iter().any(|w| *w < bound / 2), "and the lower");
        }
    }
}
