//! One job from its submission to its end: deploys it, answers every failure, ends it.
//!
//! Invariant: a subtask is deployed only when nothing of its former attempt is left or that attempt's TaskManager is lost. The decisions
//! themselves are pure and live in `restart`, `failover`, `execution_graph`; slots belong to the JobManager, records of checkpoints to
//! the coordinator. No handler waits: outcomes come back as messages.

mod deploy;
pub(crate) mod history;
mod injection;
mod master;
mod recovery;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use self::history::JobHistory;
use crate::checkpoint_coordinator::{
    CoordinatorEvent, CoordinatorEvents, CoordinatorMessage, RestoreChoice, RestoredSnapshot,
};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::failover::SubtaskId;
use crate::fault::{ActorFault, ActorKind, FaultPoints, TaskAddress, UserFault};
use crate::model::message::{ClientResponse, PreparedOutput, RpcError, ToJobManager};
use crate::model::{
    Attempt, CheckpointStatus, ExecutionAttemptId, FailureKind, InstanceId, JobGraph, JobId,
    JobState, JobStatus, JobSummary, LeaderEpoch, TaskManagerLocation, TaskRestore,
};
use crate::peer::PeerHandle;
use crate::slot_pool::SlotsMissing;
use crate::supervision::{Exit, ExpectedExits, classify};

/// Bound of [`JobStatus::notices`](crate::model::JobStatus::notices).
pub const NOTICES_MAX: usize = 32;

/// Bound of the damaged snapshots reported to the coordinator at once.
pub const DAMAGED_MAX: usize = 64;

/// Bound of the clients that wait for a job's end.
pub const WAITERS_MAX: usize = 64;

/// Hands a message to a coordinator; never blocks.
pub type CoordinatorHandle = Arc<dyn Fn(CoordinatorMessage) + Send + Sync>;

/// What a coordinator is started with.
pub struct CoordinatorContext {
    /// The job.
    pub graph: Arc<JobGraph>,
    /// For its records.
    pub epoch: LeaderEpoch,
    /// What a former leader's coordinator told people, newest last.
    pub history: Vec<CheckpointStatus>,
    /// Receives its events.
    pub events: CoordinatorEvents,
    /// The JobMaster's actor, to be linked to.
    pub supervisor: ActorCell,
}

/// What starting a coordinator found.
pub enum StartedCoordinator {
    /// It has claimed the job's records.
    Ready(CoordinatorHandle),
    /// The job has a `Terminal` record: it must not run again.
    AlreadyEnded {
        /// How it ended.
        state: JobState,
        /// For `FAILED`.
        message: Option<String>,
    },
}

/// Starts the coordinator of a job.
pub type CoordinatorSpawner = Arc<
    dyn Fn(CoordinatorContext) -> BoxFuture<'static, Result<StartedCoordinator, FailureKind>>
        + Send
        + Sync,
>;

/// The state of each subtask, and what the snapshot says about the vertices.
#[derive(Debug, Clone, Default)]
pub struct AssignedState {
    /// [`TaskRestore::may_inherit`] is decided by the JobMaster.
    pub tasks: BTreeMap<SubtaskId, TaskRestore>,
    /// Of each vertex, in order: that of the snapshot where the graph's was derived.
    pub max_parallelism: Vec<u32>,
}

/// Spreads a snapshot over the subtasks of a graph; an error names what does not fit.
pub type Assign =
    Arc<dyn Fn(&JobGraph, &RestoredSnapshot) -> Result<AssignedState, FailureKind> + Send + Sync>;

/// Answers a client.
pub type Reply = oneshot::Sender<Result<ClientResponse, RpcError>>;

/// A client's wish for one job.
pub(crate) enum JobRequest {
    Status(Reply),
    Summary(oneshot::Sender<JobSummary>),
    Checkpoints(Reply),
    Cancel(Reply),
    Savepoint {
        directory: Option<String>,
        reply: Reply,
    },
    Stop {
        directory: Option<String>,
        mode: StopMode,
        reply: Reply,
    },
    /// A fault of this job's own actors, tasks or user code.
    Inject {
        fault: JobFault,
        reply: Reply,
    },
}

/// See [`JobRequest::Inject`].
pub(crate) enum JobFault {
    JobMaster(ActorFault),
    CheckpointCoordinator(ActorFault),
    Subtask(TaskAddress, ActorFault),
    UserCode {
        place: TaskAddress,
        fault: UserFault,
        times: u32,
    },
}

/// How a job is stopped with a savepoint; Flink has the same two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopMode {
    /// State is kept for a successor: no window fires.
    Suspend,
    /// Everything fires first.
    Drain,
}

/// A slot and the way to its TaskManager.
#[derive(Clone)]
pub(crate) struct GrantedSlot {
    pub(crate) location: TaskManagerLocation,
    pub(crate) peer: PeerHandle,
}

/// To the JobMaster.
pub(crate) enum JobMasterMessage {
    CoordinatorStarted(Result<StartedCoordinator, FailureKind>),
    Coordinator(CoordinatorEvent),
    /// A report of a TaskManager about this job.
    FromTaskManager {
        instance: InstanceId,
        message: ToJobManager,
    },
    TaskManagerLost {
        instance: InstanceId,
        cause: FailureKind,
    },
    /// A TaskManager has a new session; what was under way on the old one may be lost.
    TaskManagerBack {
        instance: InstanceId,
        peer: PeerHandle,
        running: Vec<ExecutionAttemptId>,
    },
    /// Slot i is the i-th.
    Slots {
        slots: Vec<GrantedSlot>,
        /// Under which leader and where attempts of a former leader or JobMaster ran until they were stopped.
        former: BTreeMap<SubtaskId, (LeaderEpoch, InstanceId)>,
    },
    SlotsMissing(SlotsMissing),
    RestoreChosen {
        wave: u64,
        choice: Result<RestoreChoice, FailureKind>,
    },
    Timer {
        wave: u64,
        timer: Timer,
    },
    Request(JobRequest),
    /// What the coordinator shows, for the history; `None`: there is no coordinator.
    HistoryAsked(Option<Vec<CheckpointStatus>>),
    /// The strategy may have forgotten its failures by now.
    StrategyForgets,
    /// The savepoint of a `Stop` is complete, or will never be.
    StopSavepoint(Result<String, String>),
    /// The last completed checkpoint of a job that is ending; `Keep`: the coordinator went without saying so.
    Settled(PreparedOutput),
    /// The `Terminal` record is durable; `false`: the coordinator went without saying so.
    Terminated {
        is_durable: bool,
        checkpoints: Vec<CheckpointStatus>,
    },
    /// Leave everything as it is and end.
    Suspend {
        reason: String,
    },
    /// Injected into this actor.
    Fault(ActorFault),
}

/// What a timer of the JobMaster is for. A timer of an older wave is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The strategy's delay is over.
    Delay,
    /// `slot.request.timeout`.
    Slots,
    /// `task.cancellation.timeout`, with a margin for the TaskManager's own watchdog.
    Stop,
    /// For TaskManagers that do not release the job.
    Release,
}

/// From the JobMaster to the JobManager.
pub(crate) enum JobMasterReport {
    /// Give me slots, or tell me how many are missing and give them when they are there. Slots that the job has stay its own.
    NeedSlots { job: JobId, needed: u32 },
    /// These are about to run; said before the TaskManagers hear of it.
    Deployed {
        job: JobId,
        attempts: Vec<(ExecutionAttemptId, InstanceId)>,
    },
    /// It does not obey: its connection is to be ended and its loss told to everybody.
    DeclareLost {
        instance: InstanceId,
        cause: FailureKind,
    },
    /// What a successor shall know.
    History {
        job: JobId,
        history: Box<JobHistory>,
    },
    /// The job has ended for good.
    Ended {
        job: JobId,
        status: Box<JobStatus>,
        /// Clients that hear of it once the result is stored.
        answers: Vec<(Reply, Result<ClientResponse, RpcError>)>,
    },
    /// Somebody newer is in charge of this job, hence of the cluster.
    Fenced { job: JobId, message: String },
}

/// Receives reports; only hands them on.
pub(crate) type JobMasterReports = Arc<dyn Fn(JobMasterReport) + Send + Sync>;

/// What a JobMaster is started with.
#[derive(Clone)]
pub(crate) struct JobMasterOptions {
    pub(crate) graph: Arc<JobGraph>,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) coordinator: CoordinatorSpawner,
    pub(crate) assign: Assign,
    pub(crate) reports: JobMasterReports,
    /// In ms since the epoch.
    pub(crate) submitted_ms: u64,
    /// Waves of this epoch that a former JobMaster of the job has used.
    pub(crate) used_waves: Attempt,
    /// Why the job is taken up again; `None` for a new one.
    pub(crate) recovered: Option<FailureKind>,
    /// What a predecessor told.
    pub(crate) history: Option<Box<JobHistory>>,
    /// Of this node.
    pub(crate) faults: FaultPoints,
}

/// The actor; see the module.
pub(crate) struct JobMaster;

impl JobMaster {
    /// Starts it as a child of the JobManager.
    pub(crate) async fn spawn(
        options: JobMasterOptions,
        supervisor: ActorCell,
    ) -> Result<ActorRef<JobMasterMessage>, ractor::SpawnErr> {
        // The handle is not kept: a JobMaster owns no resource that outlives it.
        let (actor, _) = Actor::spawn_linked(None, Self, options, supervisor).await?;
        Ok(actor)
    }
}

/// The actor's state: the job, and the children whose end is expected.
pub(crate) struct State {
    master: master::Master,
    expected: ExpectedExits,
}

impl Actor for JobMaster {
    type Msg = JobMasterMessage;
    type State = State;
    type Arguments = JobMasterOptions;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        options: JobMasterOptions,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            master: master::Master::new(myself, options),
            expected: ExpectedExits::default(),
        })
    }

    async fn post_start(
        &self,
        _: ActorRef<Self::Msg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.master.start();
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: JobMasterMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JobMasterMessage::Fault(fault) => fault.strike(ActorKind::JobMaster).await,
            message => state.master.handle(message),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let ended = classify(event, &mut state.expected);
        match ended.map(|(_, exit)| exit.named("CheckpointCoordinator")) {
            None | Some(Exit::Expected) => Ok(()),
            // It ends after `Terminate`; how that went is told by its answer.
            Some(Exit::Failed(_)) if state.master.is_over() => Ok(()),
            // Without a coordinator nothing can be restored: the JobManager starts both anew from the store.
            Some(Exit::Failed(kind)) => Err(Box::new(kind)),
        }
    }
}
