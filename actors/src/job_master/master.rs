//! The state machine of a job: every message leads to [`Master::advance`], which goes as far as the job can go.
//!
//! Invariant: `advance` looks at facts (who lives, what was granted, what time it is), never at the order in which they came.

mod ending;
mod failures;
mod preparing;
mod reports;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ractor::ActorRef;

pub(super) use ending::EndStage;

use super::history::Telling;
use super::injection::Armed;
use super::recovery::Recovery;
use super::requests::StopRequest;
use super::{
    CoordinatorHandle, JobMasterMessage, JobMasterOptions, JobMasterReport, NOTICES_MAX, Reply,
    Timer,
};
use crate::checkpoint_coordinator::{CoordinatorEvent, CoordinatorMessage, RestoreChoice};
use crate::clock::Instant;
use crate::execution_graph::ExecutionGraph;
use crate::failover::{Regions, SubtaskId};
use crate::fault::{FaultPlace, FaultSite, InjectedError};
use crate::model::message::{PreparedOutput, ToTaskManager};
use crate::model::{
    CheckpointId, ExecutionAttemptId, FailureKind, InstanceId, JobState, LeaderEpoch,
    RecoveryRecord, SnapshotKind, TaskFailure, TaskManagerLocation, TaskState,
};
use crate::peer::PeerHandle;
use crate::restart::{Incident, RestartBackoff};

/// What a TaskManager's own watchdog gets on top of `task.cancellation.timeout`, before the JobMaster gives the TaskManager up.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// What stands between now and the next deployment.
pub(super) struct Preparation {
    /// What will be deployed. Closed under edges.
    pub(super) tasks: BTreeSet<SubtaskId>,
    /// Not before.
    pub(super) due: Instant,
    is_recovery: bool,
    /// Restarts that were counted for it and are not carried out yet.
    counted: u32,
    has_stopped: bool,
    is_choice_asked: bool,
    choice: Option<Result<RestoreChoice, FailureKind>>,
    pub(super) slots: Slots,
    /// Since when the open request for slots keeps the job waiting; not while the delay runs.
    slots_awaited: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slots {
    NotAsked,
    Asked { available: u32 },
    Granted,
}

pub(super) enum Phase {
    Preparing(Preparation),
    /// Sent; not all tasks run yet.
    Deploying {
        tasks: BTreeSet<SubtaskId>,
    },
    Running,
    /// No task shall live; then the `Terminal` record is written.
    Ending {
        state: JobState,
        stage: EndStage,
    },
    /// Ended for good, or suspended.
    Over(JobState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CoordinatorState {
    NotStarted,
    Starting,
    Started,
}

/// See the module.
pub(super) struct Master {
    pub(super) myself: ActorRef<JobMasterMessage>,
    pub(super) options: JobMasterOptions,
    pub(super) phase: Phase,
    coordinator_state: CoordinatorState,
    pub(super) coordinator: Option<CoordinatorHandle>,
    /// Whether the coordinator was told that all tasks run, and not yet that they do no longer.
    is_checkpointing: bool,
    pub(super) executions: ExecutionGraph,
    regions: Regions,
    pub(super) backoff: RestartBackoff,
    /// Number of the preparation; what belongs to an older one is ignored.
    wave: u64,
    pub(super) peers: BTreeMap<InstanceId, PeerHandle>,
    places: Vec<TaskManagerLocation>,
    /// Under which leader and where attempts before this JobMaster's ran.
    former: BTreeMap<SubtaskId, (LeaderEpoch, InstanceId)>,
    recovery: Option<Recovery>,
    pub(super) recoveries: VecDeque<RecoveryRecord>,
    pub(super) recovery_count: u32,
    pub(super) telling: Telling,
    damaged: Vec<(CheckpointId, String)>,
    /// Stepped over in this incident already: each is free of charge once.
    known_damaged: BTreeSet<CheckpointId>,
    pub(super) restarts: u32,
    pub(super) last_checkpoint: Option<CheckpointId>,
    /// The last one that tasks were told of; told again after a broken connection.
    last_notified: Option<CheckpointId>,
    /// A final checkpoint or stop with savepoint is complete: tasks may finish.
    may_finish: bool,
    is_final_asked: bool,
    pub(super) notices: VecDeque<String>,
    pub(super) failure: Option<TaskFailure>,
    pub(super) stop: Option<StopRequest>,
    pub(super) cancel_waiters: Vec<Reply>,
    pub(super) ended_ms: Option<u64>,
    pub(super) armed: Armed,
    /// At the job's end: TaskManagers that have not answered yet, and what they were told.
    releasing: BTreeSet<InstanceId>,
    output: PreparedOutput,
}

impl Master {
    pub(super) fn new(myself: ActorRef<JobMasterMessage>, options: JobMasterOptions) -> Self {
        let graph = &options.graph;
        let regions = Regions::of(graph);
        let phase = Phase::Preparing(Preparation {
            tasks: regions.all(),
            due: options.clock.now(),
            is_recovery: false,
            counted: 0,
            has_stopped: false,
            is_choice_asked: false,
            choice: None,
            slots: Slots::NotAsked,
            slots_awaited: None,
        });
        Self {
            myself,
            phase,
            coordinator_state: CoordinatorState::NotStarted,
            coordinator: None,
            is_checkpointing: false,
            executions: ExecutionGraph::new(graph, options.epoch, options.used_waves),
            regions,
            backoff: RestartBackoff::new(&graph.settings.restart),
            wave: 0,
            peers: BTreeMap::new(),
            places: Vec::new(),
            former: BTreeMap::new(),
            recovery: None,
            recoveries: VecDeque::new(),
            recovery_count: 0,
            telling: Telling::default(),
            damaged: Vec::new(),
            known_damaged: BTreeSet::new(),
            restarts: 0,
            last_checkpoint: None,
            last_notified: None,
            may_finish: false,
            is_final_asked: false,
            notices: VecDeque::new(),
            failure: None,
            stop: None,
            cancel_waiters: Vec::new(),
            ended_ms: None,
            armed: Armed::default(),
            releasing: BTreeSet::new(),
            output: PreparedOutput::Keep,
            options,
        }
    }

    pub(super) fn start(&mut self) {
        tracing::info!(job = %self.options.graph.job, epoch = %self.options.epoch, name = %self.options.graph.name, "job begins");
        if let Some(history) = self.options.history.take() {
            self.recall(*history);
        }
        if let Some(kind) = self.options.recovered.clone() {
            let mut recovery = self.open_recovery(TaskFailure::of_job(kind));
            recovery.decided("taken up again by this JobManager, at once".to_owned());
            self.recovery = Some(recovery);
        }
        self.advance();
    }

    pub(super) fn hit(&self, site: FaultSite) -> Result<(), InjectedError> {
        let place = FaultPlace::Job(self.options.graph.job);
        self.options.faults.hit(site, place)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Over(_)
                | Phase::Ending {
                    stage: EndStage::Terminating,
                    ..
                }
        )
    }

    pub(super) fn now(&self) -> Instant {
        self.options.clock.now()
    }

    pub(super) fn handle(&mut self, message: JobMasterMessage) {
        if let Phase::Over(_) = self.phase {
            // A late report finds the job ended; only questions still have an answer.
            if let JobMasterMessage::Request(request) = message {
                self.on_request(request);
            }
            return;
        }
        match message {
            JobMasterMessage::CoordinatorStarted(result) => self.on_coordinator_started(result),
            JobMasterMessage::Coordinator(event) => self.on_coordinator(event),
            JobMasterMessage::FromTaskManager { instance, message } => {
                self.on_task_message(instance, message);
            }
            JobMasterMessage::TaskManagerLost { instance, cause } => {
                self.on_task_manager_lost(instance, cause);
            }
            JobMasterMessage::TaskManagerBack {
                instance,
                peer,
                running,
            } => self.on_task_manager_back(instance, peer, &running),
            JobMasterMessage::Slots { slots, former } => self.on_slots(slots, former),
            JobMasterMessage::SlotsMissing(missing) => self.on_slots_missing(missing),
            JobMasterMessage::RestoreChosen { wave, choice } => {
                if let Phase::Preparing(preparation) = &mut self.phase
                    && wave == self.wave
                {
                    preparation.choice = Some(choice);
                }
            }
            JobMasterMessage::Timer { wave, timer } => {
                if wave == self.wave {
                    self.on_timer(timer);
                }
            }
            JobMasterMessage::Request(request) => self.on_request(request),
            JobMasterMessage::HistoryAsked(checkpoints) => self.on_history_asked(checkpoints),
            JobMasterMessage::StrategyForgets => self.on_strategy_forgets(),
            JobMasterMessage::StopSavepoint(result) => self.on_stop_savepoint(result),
            JobMasterMessage::Settled(output) => self.on_settled(output),
            JobMasterMessage::Terminated {
                is_durable,
                checkpoints,
            } => self.on_terminated(is_durable, checkpoints),
            JobMasterMessage::Suspend { reason } => self.suspend(&reason),
            // Carried out by the shell.
            JobMasterMessage::Fault(_) => {}
        }
        self.advance();
    }

    /// Goes as far as the job can go. Called after everything that happens.
    fn advance(&mut self) {
        // Each turn changes the phase or returns; the bound only guards against a mistake in that.
        for _ in 0..8 {
            let is_done = match &self.phase {
                Phase::Preparing(_) => self.prepare(),
                Phase::Deploying { tasks } => {
                    if self.executions.iter().all(|(_, e)| e.is_running()) {
                        let tasks = tasks.clone();
                        self.all_running(&tasks);
                        false
                    } else {
                        true
                    }
                }
                Phase::Running => self.run_to_the_end(),
                Phase::Ending { .. } => self.end(),
                Phase::Over(_) => true,
            };
            if is_done {
                return;
            }
        }
        tracing::error!(job = %self.options.graph.job, "job does not come to rest");
    }

    fn all_running(&mut self, tasks: &BTreeSet<SubtaskId>) {
        tracing::info!(job = %self.options.graph.job, tasks = tasks.len(), "all tasks run");
        let now = self.now();
        if let Some(recovery) = &mut self.recovery {
            // Its report may have been lost with a connection.
            recovery.restored(now);
        }
        self.known_damaged.clear();
        if self.recovery.is_some() {
            self.tell_history();
        }
        self.phase = Phase::Running;
        let mut participants: BTreeMap<InstanceId, Vec<ExecutionAttemptId>> = BTreeMap::new();
        for (_, attempt, instance) in self.executions.live() {
            participants.entry(instance).or_default().push(attempt);
        }
        self.is_checkpointing = true;
        self.tell_coordinator(CoordinatorMessage::TasksRunning(
            participants.into_iter().collect(),
        ));
    }

    /// Returns whether there is something to wait for.
    fn run_to_the_end(&mut self) -> bool {
        if self
            .executions
            .iter()
            .all(|(_, e)| e.state == TaskState::Finished)
        {
            self.phase = Phase::Ending {
                state: JobState::Finished,
                stage: EndStage::Stopping,
            };
            return false;
        }
        let all_wait = self
            .executions
            .iter()
            .all(|(_, e)| e.state == TaskState::AwaitingFinalCheckpoint);
        if all_wait && !self.may_finish && !self.is_final_asked {
            self.is_final_asked = true;
            self.ask_for_final_checkpoint();
        }
        true
    }

    fn on_coordinator(&mut self, event: CoordinatorEvent) {
        let job = self.options.graph.job;
        match event {
            CoordinatorEvent::Trigger(plans) => {
                // One that crossed a failure on its way: the coordinator hears of it and aborts.
                if !self.is_checkpointing {
                    return;
                }
                for (instance, plan) in plans {
                    self.send(instance, ToTaskManager::TriggerCheckpoint(plan));
                }
            }
            CoordinatorEvent::Completed { checkpoint, kind } => {
                tracing::info!(%job, %checkpoint, ?kind, "checkpoint completed");
                match kind {
                    SnapshotKind::Checkpoint => {
                        self.last_checkpoint = self.last_checkpoint.max(Some(checkpoint));
                    }
                    SnapshotKind::Final => {
                        self.last_checkpoint = self.last_checkpoint.max(Some(checkpoint));
                        self.may_finish = true;
                    }
                    SnapshotKind::StopWithSavepoint => self.may_finish = true,
                    // A plain savepoint commits nothing, as in Flink.
                    SnapshotKind::Savepoint => return,
                }
                self.last_notified = Some(checkpoint);
                self.send_to_all(&ToTaskManager::NotifyCheckpointComplete { job, checkpoint });
            }
            CoordinatorEvent::Aborted { checkpoint, reason } => {
                tracing::warn!(%job, %checkpoint, reason, "checkpoint aborted");
                // Also to where no task lives any more: what was collected for it would stay there. Not after the release, which dropped
                // everything.
                if !matches!(
                    self.phase,
                    Phase::Ending {
                        stage: EndStage::Releasing | EndStage::Terminating,
                        ..
                    }
                ) {
                    for peer in self.peers.values() {
                        (peer.send)(ToTaskManager::NotifyCheckpointAborted { job, checkpoint });
                    }
                }
                // A final checkpoint is taken again by the coordinator itself.
                self.tell_history();
            }
            CoordinatorEvent::Failure(kind) => {
                self.fail(TaskFailure::of_job(kind), &[], None);
            }
            CoordinatorEvent::Held => self.drain(),
            CoordinatorEvent::Fenced { epoch } => {
                self.fenced(format!("epoch {epoch} has taken the job's records over"));
            }
            CoordinatorEvent::Notice(text) => self.notice(text),
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Delay => {}
            Timer::Release => self.release_no_longer(),
            Timer::Slots => {
                let now = self.now();
                let timeout = self.options.graph.settings.slot_request_timeout;
                if let Phase::Preparing(preparation) = &self.phase
                    && let Slots::Asked { available } = preparation.slots
                    // Else the timer is that of a request before, whose slots were lost again.
                    && preparation
                        .slots_awaited
                        .is_some_and(|since| now.saturating_duration_since(since) >= timeout)
                {
                    let needed = self.options.graph.slots_needed();
                    let seconds = timeout.as_secs();
                    let kind = FailureKind::NoSlots {
                        message: format!(
                            "{available} of {needed} slots after {seconds} s: start TaskManagers of build {}, or lower the parallelism",
                            self.options.graph.build
                        ),
                    };
                    self.fail(TaskFailure::of_job(kind), &[], Some(Incident::New));
                }
            }
            Timer::Stop => {
                let seconds = self.options.graph.settings.cancellation_timeout.as_secs();
                let stuck: BTreeMap<_, _> = self
                    .executions
                    .live()
                    .filter(|(id, _, _)| {
                        self.executions
                            .get(*id)
                            .is_some_and(|e| e.state == TaskState::Canceling)
                    })
                    .map(|(id, attempt, instance)| (instance, (id, attempt)))
                    .collect();
                for (instance, (id, attempt)) in stuck {
                    tracing::error!(job = %attempt.job, %id, "task does not stop: its TaskManager is given up");
                    let kind = FailureKind::CancellationTimeout { seconds };
                    let message = format!("{attempt} {kind}");
                    let cause = FailureKind::TaskManagerLost {
                        resource: self.resource_of(id),
                        instance,
                        message,
                    };
                    let failure = self.placed(TaskFailure::of_attempt(attempt, kind), &attempt);
                    self.also_failed(failure);
                    (self.options.reports)(JobMasterReport::DeclareLost { instance, cause });
                }
            }
        }
    }

    /// An echo may have ended the job: what it echoes comes while the tasks stop, and is what the job failed by.
    fn explain_end(&mut self, failure: TaskFailure) {
        let Phase::Ending {
            state: JobState::Failed,
            ..
        } = self.phase
        else {
            return;
        };
        if let Some(ended_by) = &mut self.failure
            && ended_by.kind.is_symptom()
            && !failure.kind.is_symptom()
        {
            *ended_by = failure.clone();
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.add_cause(failure);
        }
    }

    fn fenced(&mut self, message: String) {
        tracing::error!(job = %self.options.graph.job, epoch = %self.options.epoch, message, "fenced");
        let job = self.options.graph.job;
        self.suspend(&message);
        (self.options.reports)(JobMasterReport::Fenced { job, message });
    }

    /// Leaves tasks, records and slots as they are.
    fn suspend(&mut self, reason: &str) {
        if let Phase::Over(_) = self.phase {
            return;
        }
        tracing::info!(job = %self.options.graph.job, reason, "job is suspended");
        self.phase = Phase::Over(JobState::Suspended);
        self.refuse_waiters(&format!("this JobManager no longer runs the job: {reason}"));
    }

    fn suspend_checkpoints(&mut self, reason: &str) {
        if std::mem::take(&mut self.is_checkpointing) {
            self.tell_coordinator(CoordinatorMessage::Suspend {
                reason: reason.to_owned(),
            });
        }
    }

    /// Fills in what the TaskManager left out.
    fn placed(&self, mut failure: TaskFailure, attempt: &ExecutionAttemptId) -> TaskFailure {
        failure.attempt.get_or_insert(*attempt);
        if failure.vertex.is_none() {
            failure.vertex = self
                .options
                .graph
                .vertices
                .get(attempt.vertex.0 as usize)
                .map(|vertex| vertex.name.clone());
        }
        failure
    }

    fn resource_of(&self, id: SubtaskId) -> crate::model::ResourceId {
        self.executions
            .get(id)
            .and_then(|e| e.location.as_ref())
            .map_or_else(
                || crate::model::ResourceId("unknown".to_owned()),
                |l| l.resource.clone(),
            )
    }

    pub(super) fn notice(&mut self, text: String) {
        tracing::warn!(job = %self.options.graph.job, notice = text, "notice");
        while self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back(text);
    }

    /// A message to a lost TaskManager is dropped: its loss has been told.
    pub(super) fn send(&self, instance: InstanceId, message: ToTaskManager) {
        if let Some(peer) = self.peers.get(&instance) {
            (peer.send)(message);
        }
    }

    /// To every TaskManager with a live task of the job.
    pub(super) fn send_to_all(&self, message: &ToTaskManager) {
        let instances: BTreeSet<_> = self.executions.live().map(|(_, _, on)| on).collect();
        for instance in instances {
            self.send(instance, message.clone());
        }
    }

    pub(super) fn tell_coordinator(&self, message: CoordinatorMessage) {
        if let Some(coordinator) = &self.coordinator {
            coordinator(message);
        }
    }

    fn arm(&self, after: Duration, wave: u64, timer: Timer) {
        // The handle is dropped: a timer that is no longer wanted is told by its wave.
        drop(
            self.myself
                .send_after(after, move || JobMasterMessage::Timer { wave, timer }),
        );
    }
}

fn subtask_of(attempt: &ExecutionAttemptId) -> SubtaskId {
    SubtaskId {
        vertex: attempt.vertex,
        subtask: attempt.subtask,
    }
}

/// To our own mailbox; once the actor is gone, nobody needs the message.
pub(super) fn cast(myself: &ActorRef<JobMasterMessage>, message: JobMasterMessage) {
    drop(myself.cast(message));
}
