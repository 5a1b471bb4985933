//! What the coordinator knows, and how each message changes it. Store work is spawned and comes back as a message; nothing here waits.

mod failure;
mod finish;
mod history;
mod restore;
mod retain;
mod trigger;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use ractor::ActorRef;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::checkpoint::io::{
    self, Claim, Decision, FoundCheckpoint, Hint, Ledger, Patience, Survey,
};
use crate::checkpoint::{
    self, AckResult, Begin, CheckpointFailureReason as Reason, Choice, FailureCounter, Fate,
    Header, Load, OnFailure, PendingCheckpoint, RequestQueue, Retained, Rung, Sequence, Store,
};
use crate::clock::Instant;
use crate::fault::{FaultPlace, FaultSite, InjectedError, Sabotage};
use crate::model::message::{CheckpointAck, CheckpointPlan};
use crate::model::{
    CheckpointBarrier, CheckpointId, CheckpointState, CheckpointStatus, ExecutionAttemptId,
    FailureKind, InstanceId, JobState, LeaderEpoch, Manifest, Record, RecordOutcome, SnapshotKind,
    VertexId,
};

use super::actor::{CoordinatorConfig, Message, answer};
use super::{CoordinatorEvent, CoordinatorMessage, RestoreChoice, RestoredSnapshot};

/// Messages that may wait for the claim.
const EARLY_MAX: usize = 256;
/// Numbers that may be undecided before nothing new is begun: the store lags.
const UNDECIDED_MAX: u64 = 16;
/// Aborted savepoints whose late objects are still cleaned up; Flink remembers as many.
const DEAD_SAVEPOINTS_MAX: usize = 16;
/// Old records deleted after one checkpoint.
const RECORDS_DELETED_MAX: usize = 64;
/// Objects that are remembered to be deleted at the end; the sweep finds the rest.
const UNDELETED_MAX: usize = 10_000;

/// How a number is to be decided.
#[derive(Debug, Clone)]
pub(super) enum Intent {
    Complete(Arc<Manifest>),
    Abort(String),
    Terminal(JobState, Option<String>),
}

impl Intent {
    fn outcome(&self) -> RecordOutcome {
        match self {
            Self::Complete(manifest) => RecordOutcome::Completed(Box::new((**manifest).clone())),
            Self::Abort(reason) => RecordOutcome::Aborted {
                reason: reason.clone(),
            },
            Self::Terminal(state, message) => RecordOutcome::Terminal {
                state: *state,
                message: message.clone(),
            },
        }
    }

    fn on_failure(&self) -> OnFailure {
        match self {
            Self::Complete(_) => OnFailure::Settle,
            Self::Abort(_) | Self::Terminal(..) => OnFailure::Repeat,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Claiming,
    Leading,
    /// The job had ended before.
    Over(JobState),
    Fenced(LeaderEpoch),
}

type SavepointReply = oneshot::Sender<Result<String, String>>;
type RestoreReply = oneshot::Sender<Result<RestoreChoice, FailureKind>>;

#[derive(Debug)]
struct SavepointRequest {
    kind: SnapshotKind,
    directory: Option<String>,
    reply: SavepointReply,
}

/// Where a savepoint goes, and who waits for it.
struct Target {
    store: Arc<dyn Store>,
    uri: String,
    reply: Option<SavepointReply>,
}

impl Target {
    fn answer(&mut self, result: Result<String, String>) {
        if let Some(reply) = self.reply.take() {
            // Whoever asked may have gone.
            let _ = reply.send(result);
        }
    }
}

struct Underway {
    pending: PendingCheckpoint,
    triggered_ms: u64,
    target: Option<Target>,
}

struct Completing {
    kind: SnapshotKind,
    manifest: Arc<Manifest>,
    base: Option<CheckpointId>,
    target: Option<Target>,
    objects: Vec<String>,
}

struct Completed {
    manifest: Option<Arc<Manifest>>,
    external: Option<String>,
    damage: Option<String>,
}

struct Ending {
    state: JobState,
    message: Option<String>,
    reply: Option<oneshot::Sender<()>>,
    is_allotted: bool,
}

/// See the module.
pub(super) struct State {
    config: CoordinatorConfig,
    me: ActorRef<Message>,
    ledger: Ledger,
    tasks: JoinSet<()>,
    phase: Phase,
    early: Vec<CoordinatorMessage>,
    sequence: Sequence<Intent>,
    queue: RequestQueue<SavepointRequest>,
    /// And not answered yet.
    is_hold_asked: bool,
    participants: Vec<(InstanceId, Vec<ExecutionAttemptId>)>,
    underway: BTreeMap<CheckpointId, Underway>,
    completing: BTreeMap<CheckpointId, Completing>,
    completed: BTreeMap<CheckpointId, Completed>,
    /// What the next barrier may be based on.
    base: Option<CheckpointId>,
    max_parallelism: BTreeMap<VertexId, u32>,
    /// The snapshot named at submission, when it is what runs now.
    started_from: Option<CheckpointId>,
    start_from_damage: Option<String>,
    final_savepoint: Option<SavepointRequest>,
    restores: Vec<RestoreReply>,
    counter: FailureCounter,
    history: VecDeque<CheckpointStatus>,
    /// Objects of numbers that will be aborted, to be deleted once they are.
    garbage: BTreeMap<CheckpointId, Vec<String>>,
    dead_savepoints: VecDeque<(CheckpointId, Arc<dyn Store>)>,
    is_retaining: bool,
    /// No longer to be chosen, while their records may still stand: whoever leads next must know of them, for their objects.
    retiring: BTreeSet<CheckpointId>,
    deleted_below: CheckpointId,
    /// Objects of retired checkpoints, to be deleted at the end: a listing that is stale then does not show them.
    undeleted: BTreeSet<String>,
    /// Bounded: the one JobMaster asks once, at the end.
    asked_for_last: Vec<oneshot::Sender<Option<CheckpointId>>>,
    ending: Option<Ending>,
    timer: Option<(Instant, JoinHandle<()>)>,
    generation: u64,
}

impl State {
    pub(super) fn new(config: CoordinatorConfig, me: ActorRef<Message>) -> Self {
        let settings = &config.graph.settings.checkpointing;
        Self {
            ledger: Ledger {
                store: Arc::clone(&config.store),
                guard: Arc::clone(&config.guard),
                epoch: config.epoch,
                entropy: config.entropy.clone(),
            },
            queue: RequestQueue::new(
                settings.interval,
                settings.min_pause,
                settings.max_concurrent,
            ),
            counter: FailureCounter::new(settings.tolerable_failed),
            config,
            me,
            tasks: JoinSet::new(),
            phase: Phase::Claiming,
            early: Vec::new(),
            sequence: Sequence::after(CheckpointId(0)),
            is_hold_asked: false,
            participants: Vec::new(),
            underway: BTreeMap::new(),
            completing: BTreeMap::new(),
            completed: BTreeMap::new(),
            base: None,
            max_parallelism: BTreeMap::new(),
            started_from: None,
            start_from_damage: None,
            final_savepoint: None,
            restores: Vec::new(),
            history: VecDeque::new(),
            garbage: BTreeMap::new(),
            dead_savepoints: VecDeque::new(),
            is_retaining: false,
            retiring: BTreeSet::new(),
            deleted_below: CheckpointId(1),
            undeleted: BTreeSet::new(),
            asked_for_last: Vec::new(),
            ending: None,
            timer: None,
            generation: 0,
        }
    }

    fn spawn(&mut self, work: impl Future<Output = Message> + Send + 'static) {
        self.tasks.spawn(answer(self.me.clone(), work));
    }

    fn emit(&self, event: CoordinatorEvent) {
        (self.config.events)(event);
    }

    fn now(&self) -> Instant {
        self.config.clock.now()
    }

    fn hit(&self, site: FaultSite) -> Result<(), InjectedError> {
        let place = FaultPlace::Job(self.config.graph.job);
        self.config.faults.hit(site, place)
    }

    pub(super) fn is_fenced(&self) -> bool {
        matches!(self.phase, Phase::Fenced(_))
    }

    pub(super) fn claim(&mut self) {
        let (ledger, me) = (self.ledger.clone(), self.me.clone());
        self.spawn(async move {
            let notice = move |text: String| {
                // An ended coordinator has no notices.
                let _ = me.cast(Message::Notice(text));
            };
            Message::Claimed(ledger.claim(notice).await)
        });
    }

    pub(super) fn on(&mut self, message: Message) {
        match message {
            Message::External(message) => self.on_external(message),
            Message::Claimed(claim) => self.on_claimed(claim),
            Message::Decided {
                checkpoint,
                intent,
                decision,
            } => self.on_decided(checkpoint, intent, decision),
            Message::SavepointWritten { checkpoint, result } => {
                self.on_savepoint_written(checkpoint, result);
            }
            Message::StartFromLoaded {
                skipped,
                result,
                reply,
            } => self.on_start_from_loaded(skipped, result, reply),
            Message::Retained {
                deleted_below,
                standing,
                undeleted,
            } => {
                self.is_retaining = false;
                self.retiring = standing;
                self.undeleted.extend(undeleted);
                while self.undeleted.len() > UNDELETED_MAX {
                    self.undeleted.pop_first();
                }
                self.deleted_below = self.deleted_below.max(deleted_below);
            }
            Message::Ended => {
                if let Some(reply) = self.ending.take().and_then(|e| e.reply) {
                    // The JobMaster may have ended first.
                    let _ = reply.send(());
                }
                self.me.stop(None);
                return;
            }
            Message::Notice(text) => self.emit(CoordinatorEvent::Notice(text)),
            Message::Tick(generation) => {
                if generation == self.generation {
                    self.timer = None;
                }
            }
            Message::Cleaned => {}
            Message::TaskLost(_) => {} // Aborted because we are fenced; else the shell has ended the actor.
        }
        self.pump();
    }

    fn on_external(&mut self, message: CoordinatorMessage) {
        if let CoordinatorMessage::Status(reply) = message {
            // Whoever asked may have gone.
            let _ = reply.send(self.status());
            return;
        }
        match self.phase {
            Phase::Leading => self.on_leading(message),
            Phase::Claiming => {
                if self.early.len() < EARLY_MAX {
                    self.early.push(message);
                } else {
                    tracing::warn!("message dropped: too many wait for the checkpoint directory");
                }
            }
            Phase::Over(state) => self.refuse(message, &format!("the job has ended as {state}")),
            Phase::Fenced(epoch) => {
                // Nothing is durable any more by our doing: let the reply of a Terminate drop.
                if !matches!(message, CoordinatorMessage::Terminate { .. }) {
                    self.refuse(message, &format!("epoch {epoch} leads now"));
                }
            }
        }
    }

    fn refuse(&mut self, message: CoordinatorMessage, why: &str) {
        match message {
            CoordinatorMessage::Savepoint { reply, .. } => {
                let _ = reply.send(Err(why.to_owned())); // May have gone.
            }
            CoordinatorMessage::ChooseRestore { reply, .. } => {
                let _ = reply.send(Err(FailureKind::Fenced {
                    message: why.to_owned(),
                })); // May have gone.
            }
            CoordinatorMessage::Terminate { reply, .. } => {
                let _ = reply.send(()); // May have gone.
                self.me.stop(None);
            }
            CoordinatorMessage::TasksRunning(_)
            | CoordinatorMessage::Suspend { .. }
            | CoordinatorMessage::Ack { .. }
            | CoordinatorMessage::Declined { .. }
            | CoordinatorMessage::Hold
            | CoordinatorMessage::AllAwaitingFinal
            | CoordinatorMessage::LastCompleted(_)
            | CoordinatorMessage::Status(_)
            | CoordinatorMessage::Fault(_) => {}
        }
    }

    fn on_leading(&mut self, message: CoordinatorMessage) {
        match message {
            CoordinatorMessage::TasksRunning(participants) => {
                self.participants = participants;
                let now = self.now();
                self.queue.start(now);
                self.is_hold_asked = false;
            }
            CoordinatorMessage::Suspend { reason } => self.suspend(Reason::Suspended, &reason),
            CoordinatorMessage::Ack { instance, ack } => self.on_ack(instance, *ack),
            CoordinatorMessage::Declined { checkpoint, reason } => {
                // One that is complete or gone is not harmed by a late refusal.
                self.fail(checkpoint, Reason::Declined, &reason);
            }
            CoordinatorMessage::Hold => {
                self.queue.hold();
                self.is_hold_asked = true;
            }
            CoordinatorMessage::AllAwaitingFinal => {
                let now = self.now();
                self.queue.final_checkpoint(now);
            }
            CoordinatorMessage::Savepoint {
                kind,
                directory,
                reply,
            } => self.on_savepoint(SavepointRequest {
                kind,
                directory,
                reply,
            }),
            CoordinatorMessage::ChooseRestore { damaged, reply } => {
                self.quarantine(damaged);
                self.restores.push(reply);
            }
            CoordinatorMessage::Terminate {
                state,
                message,
                reply,
            } => {
                if self.ending.is_none() {
                    self.suspend(Reason::JobEnded, "the job ends");
                    self.ending = Some(Ending {
                        state,
                        message,
                        reply: Some(reply),
                        is_allotted: false,
                    });
                }
            }
            CoordinatorMessage::LastCompleted(reply) => self.asked_for_last.push(reply),
            // Answered in every phase; carried out by the shell.
            CoordinatorMessage::Status(_) | CoordinatorMessage::Fault(_) => {}
        }
    }

    fn on_claimed(&mut self, claim: Claim) {
        match claim {
            Claim::Fenced(epoch) => {
                self.fence(epoch);
            }
            Claim::Terminal(survey) => {
                let state = survey.terminal.map_or(JobState::Finished, |(s, _)| s);
                self.phase = Phase::Over(state);
                self.emit(CoordinatorEvent::Notice(format!(
                    "the job has ended as {state} and does not run again"
                )));
            }
            Claim::Claimed(number, survey) => {
                tracing::info!(job = %self.config.graph.job, epoch = %self.config.epoch, checkpoint = %number, "claimed the record sequence");
                self.adopt(number, survey);
            }
        }
        for message in std::mem::take(&mut self.early) {
            self.on_external(message);
        }
    }

    fn adopt(&mut self, number: CheckpointId, survey: Survey) {
        self.recall_history();
        self.phase = Phase::Leading;
        self.sequence = Sequence::after(number);
        self.deleted_below = survey.deleted_below;
        let mut is_all_readable = true;
        for found in survey.completed {
            let FoundCheckpoint {
                checkpoint,
                manifest,
                external,
                damage,
            } = found;
            is_all_readable &= manifest.is_some();
            if let Some(manifest) = &manifest {
                let status = self.completed_status(manifest, external.as_deref(), damage.clone());
                self.remember_found(status);
            }
            let completed = Completed {
                manifest,
                external,
                damage,
            };
            self.completed.insert(checkpoint, completed);
        }
        self.write_hint();
        // With a record that cannot be read, nobody knows what it needs.
        if is_all_readable {
            let (ledger, needed) = (self.ledger.clone(), self.needed());
            self.spawn(async move {
                io::sweep(&ledger, number, needed, Patience::Brief).await;
                Message::Cleaned
            });
        }
    }

    fn needed(&self) -> BTreeSet<String> {
        let manifests = self
            .completed
            .values()
            .filter_map(|c| c.manifest.as_deref());
        let completing = self.completing.values().map(|c| &*c.manifest);
        checkpoint::references(manifests.chain(completing))
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// Where the next leader begins to look.
    fn hint(&self) -> Hint {
        let standing: BTreeSet<_> = self.completed.keys().chain(&self.retiring).collect();
        Hint {
            next: self.sequence.last_decided().next(),
            retained: standing.into_iter().copied().collect(),
            deleted_below: self.deleted_below,
        }
    }

    fn write_hint(&mut self) {
        let hint = self.hint();
        let store = Arc::clone(&self.config.store);
        self.spawn(async move {
            hint.write(&*store).await;
            Message::Cleaned
        });
    }

    fn fence(&mut self, epoch: LeaderEpoch) {
        if matches!(self.phase, Phase::Fenced(_)) {
            return;
        }
        tracing::error!(job = %self.config.graph.job, ours = %self.config.epoch, %epoch, "fenced: this leader stops");
        self.phase = Phase::Fenced(epoch);
        // Nothing of ours may have effect from here on.
        self.tasks.abort_all();
        let why = format!("fenced: epoch {epoch} leads now");
        for mut underway in std::mem::take(&mut self.underway).into_values() {
            if let Some(target) = &mut underway.target {
                target.answer(Err(why.clone()));
            }
        }
        for mut completing in std::mem::take(&mut self.completing).into_values() {
            if let Some(target) = &mut completing.target {
                target.answer(Err(why.clone()));
            }
        }
        for request in self
            .queue
            .stop()
            .into_iter()
            .chain(self.final_savepoint.take())
        {
            let _ = request.reply.send(Err(why.clone())); // May have gone.
        }
        for reply in std::mem::take(&mut self.restores) {
            let _ = reply.send(Err(FailureKind::Fenced {
                message: why.clone(),
            })); // May have gone.
        }
        self.ending = None;
        self.emit(CoordinatorEvent::Fenced { epoch });
    }

    fn pump(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        if self.phase != Phase::Leading {
            return;
        }
        self.expire();
        self.trigger_what_is_due();
        self.tell_last_completed();
        self.end_if_asked();
        self.write_next_record();
        self.choose_restores();
        self.arm();
    }

    fn arm(&mut self) {
        let now = self.now();
        let next = self
            .underway
            .values()
            .filter_map(|u| u.pending.deadline())
            .chain(self.queue.wake_at(now))
            .min();
        if self.timer.as_ref().map(|(at, _)| *at) == next {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            timer.abort();
        }
        if let Some(at) = next {
            self.generation += 1;
            let (generation, me) = (self.generation, self.me.clone());
            let timer = tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                // An ended coordinator needs no timer.
                let _ = me.cast(Message::Tick(generation));
            });
            self.timer = Some((at, timer));
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some((_, timer)) = self.timer.take() {
            timer.abort();
        }
    }
}
