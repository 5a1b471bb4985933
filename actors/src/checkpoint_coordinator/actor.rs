//! The shell: mailbox, timers, spawned store work. What is decided lies in `state.rs`.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::checkpoint::io::{Claim, Decision};
use crate::checkpoint::{EpochGuard, Store, StoreFactory};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::fault::{ActorKind, FaultPoints};
use crate::model::{CheckpointId, CheckpointStatus, FailureKind, JobGraph, LeaderEpoch};

use super::state::{Intent, State};
use super::{CoordinatorEvents, CoordinatorMessage, RestoreChoice, RestoredSnapshot};

/// What a coordinator works on and with.
#[derive(Clone)]
pub struct CoordinatorConfig {
    /// The job.
    pub graph: Arc<JobGraph>,
    /// The leader's epoch.
    pub epoch: LeaderEpoch,
    /// Rooted at the job's checkpoint directory, `<checkpoint dir>/<job-id>`.
    pub store: Arc<dyn Store>,
    /// Opens savepoint directories and the snapshot to start from.
    pub stores: Arc<dyn StoreFactory>,
    /// Tells whether this leader still leads.
    pub guard: Arc<dyn EpochGuard>,
    /// Time.
    pub clock: Clock,
    /// Tokens, names, jitter.
    pub entropy: Entropy,
    /// What a former leader's coordinator told people, newest last.
    pub history: Vec<CheckpointStatus>,
    /// Where events go; called from the actor's handler, so it only hands them on.
    pub events: CoordinatorEvents,
    /// Of this node.
    pub faults: FaultPoints,
}

/// Starts coordinators. The actor has no children; its store work ends with it.
pub struct CheckpointCoordinator;

struct Worker;

/// Sends to a coordinator. A message to an ended one is dropped, and with it its reply channel.
#[derive(Clone)]
pub struct CoordinatorHandle {
    actor: ActorRef<Message>,
}

impl CoordinatorHandle {
    /// Hands the message to the actor; never blocks.
    pub fn send(&self, message: CoordinatorMessage) {
        // An ended coordinator: the supervisor has been or will be told; the reply channel inside is dropped.
        let _ = self.actor.cast(Message::External(message));
    }

    /// To tell its end from that of other children.
    #[must_use]
    pub fn cell(&self) -> ActorCell {
        self.actor.get_cell()
    }

    /// Ends it; what it was writing has an unknown outcome, which the next one settles.
    pub fn stop(&self) {
        self.actor.stop(None);
    }
}

/// What the actor hears.
pub(super) enum Message {
    External(CoordinatorMessage),
    Claimed(Claim),
    Decided {
        checkpoint: CheckpointId,
        intent: Intent,
        decision: Decision,
    },
    SavepointWritten {
        checkpoint: CheckpointId,
        result: Result<(), String>,
    },
    StartFromLoaded {
        skipped: Vec<String>,
        result: Result<RestoredSnapshot, FailureKind>,
        reply: oneshot::Sender<Result<RestoreChoice, FailureKind>>,
    },
    Retained {
        deleted_below: CheckpointId,
        /// Records that could not be replaced.
        standing: BTreeSet<CheckpointId>,
        /// Objects that could not be deleted, or not yet.
        undeleted: Vec<String>,
    },
    Cleaned,
    Ended,
    Notice(String),
    Tick(u64),
    /// A spawned task ended without its message: what it said when it panicked.
    TaskLost(String),
}

impl CheckpointCoordinator {
    /// Starts a coordinator under `supervisor`. It claims its place in the record sequence at once.
    pub async fn spawn(
        config: CoordinatorConfig,
        supervisor: ActorCell,
    ) -> Result<(CoordinatorHandle, JoinHandle<()>), SpawnErr> {
        let (actor, join) = Worker::spawn_linked(None, Worker, config, supervisor).await?;
        Ok((CoordinatorHandle { actor }, join))
    }
}

impl Actor for Worker {
    type Msg = Message;
    type State = State;
    type Arguments = CoordinatorConfig;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        config: CoordinatorConfig,
    ) -> Result<State, ActorProcessingErr> {
        let mut state = State::new(config, myself);
        state.claim();
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Message::External(CoordinatorMessage::Fault(fault)) = message {
            fault.strike(ActorKind::CheckpointCoordinator).await;
            return Ok(());
        }
        if let Message::TaskLost(said) = &message
            && !state.is_fenced()
        {
            return Err(Box::new(FailureKind::Actor {
                actor: "CheckpointCoordinator".to_owned(),
                message: format!("one of its tasks at the store panicked: {said}"),
            }));
        }
        state.on(message);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Message>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children; only its own links could speak here, and the default handler would end it for any of them.
        tracing::debug!(?event, "checkpoint coordinator ignores a supervision event");
        Ok(())
    }
}

/// Does work for the actor in a task of its own, which is answered for even when it panics.
pub(super) async fn answer(actor: ActorRef<Message>, work: impl Future<Output = Message> + Send) {
    let message = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(message) => message,
        Err(panic) => Message::TaskLost(text_of(&*panic)),
    };
    // An ended coordinator needs no answer.
    let _ = actor.cast(message);
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a text")
        .to_owned()
}
