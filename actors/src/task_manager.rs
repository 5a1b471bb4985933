//! The root actor of a TaskManager process: runs what the leading JobManager deploys, and nothing else.
//!
//! Invariant: a task is reported as ended only when nothing of it is left (or, once, as abandoned and fenced where the process must
//! live on), and no attempt below one known for the same subtask is ever started. It never decides about restarts.

mod handle;
mod injection;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use perennial_config::ClusterSettings;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

pub use handle::{TaskManager, TaskManagerEnd, TaskManagerHandle};
use tasks::{Entry, Placement};

use crate::checkpoint::StoreFactory;
use crate::clock::{Clock, Instant};
use crate::entropy::Entropy;
use crate::fault::FaultPoints;
use crate::job_manager_session::{
    JobManagerSession, LeaderDiscovery, SessionArguments, SessionEvent, SessionMessage,
};
use crate::model::message::{
    CheckpointAck, PreparedOutput, Registration, StoreProbe, ToJobManager, ToTaskManager,
};
use crate::model::{
    Attempt, CheckpointId, ExecutionAttemptId, InstanceId, JobId, LeaderEpoch, ResourceId,
    SubtaskIndex, TaskFailure, TaskManagerLocation, VertexId,
};
use crate::rpc::Transport;
use crate::subtask::Timer;
use crate::supervision::{self, ExpectedExits};
use crate::task_runner::{DataPlane, DeclinedCheckpoint, TaskControl, TaskRunner};

/// Subtasks whose highest attempt is remembered; beyond, jobs without a running task are forgotten.
pub const SUBTASKS_KNOWN_MAX: usize = 1 << 16;

/// What a TaskManager needs.
#[derive(Clone)]
pub struct TaskManagerOptions {
    /// Of the cluster.
    pub settings: ClusterSettings,
    /// For control connections.
    pub transport: Arc<dyn Transport>,
    /// Runs tasks.
    pub runner: Arc<dyn TaskRunner>,
    /// Connects them.
    pub data_plane: Arc<dyn DataPlane>,
    /// To read the JobManager's probe object back.
    pub stores: Arc<dyn StoreFactory>,
    /// Wall clock, for messages.
    pub clock: Clock,
    /// For nonces and jitter.
    pub entropy: Entropy,
    /// Its lasting name.
    pub resource: ResourceId,
    /// This process.
    pub instance: InstanceId,
    /// Finds the JobManager.
    pub leader: Arc<dyn LeaderDiscovery>,
    /// What to do with a task that ignores its cancellation: end the process (false), or lose its slot and live on (true), where
    /// the process is the whole cluster.
    pub abandon_stuck_tasks: bool,
    /// Of this node.
    pub faults: FaultPoints,
}

/// To the TaskManager.
enum Message {
    Session(SessionEvent),
    /// Of a guardian.
    Report(ExecutionAttemptId, ToJobManager),
    CheckpointDone {
        epoch: LeaderEpoch,
        job: JobId,
        checkpoint: CheckpointId,
        result: Result<CheckpointAck, DeclinedCheckpoint>,
    },
    /// Nothing of the job is left here.
    Released(JobId),
    /// The probe object of the checkpoint directory says that this node sees another one.
    StoreNotShared(String),
    /// A task whose guardian broke has ended, or (`None`) does not end.
    OrphanEnded(ExecutionAttemptId, Option<Box<TaskFailure>>),
    /// A task that was given up has ended after all.
    AbandonedEnded(ExecutionAttemptId),
    GraceElapsed(u64),
    RegistrationElapsed(u64),
    Shutdown(String),
    DataPlaneClosed,
}

struct State {
    options: TaskManagerOptions,
    session: ActorRef<SessionMessage>,
    expected: ExpectedExits,
    /// Of the leader whose messages are followed.
    epoch: LeaderEpoch,
    is_registered: bool,
    /// Counts changes of `is_registered`; timers of earlier ones are stale.
    registration: u64,
    /// Those that wait for the JobManager.
    timers: Vec<Timer>,
    tasks: BTreeMap<ExecutionAttemptId, Entry>,
    guardians: BTreeMap<ActorId, ExecutionAttemptId>,
    /// The highest attempt of each subtask that was deployed here; pruned with its job.
    highest: BTreeMap<(JobId, VertexId, SubtaskIndex), (LeaderEpoch, Attempt)>,
    /// Jobs to release when their last task is gone.
    releasing: BTreeMap<JobId, PreparedOutput>,
    /// Tasks that were given up; each keeps the slot that it was in.
    abandoned: BTreeSet<ExecutionAttemptId>,
    /// Why it ends, once it does; shared with the handle.
    end: Arc<Mutex<Option<TaskManagerEnd>>>,
    is_ending: bool,
    is_closing: bool,
    /// Injected: it answers no request for a heartbeat before.
    silent_until: Option<Instant>,
}

#[cfg(test)]
mod fakes;
#[cfg(test)]
mod tests;

struct TaskManagerActor;

struct Arguments {
    options: TaskManagerOptions,
    probe_address: String,
    end: Arc<Mutex<Option<TaskManagerEnd>>>,
}

/// A cast to a TaskManager that has ended is dropped: with it ended everything that could matter.
fn cast(actor: &ActorRef<Message>, message: Message) {
    let _ended = actor.cast(message);
}

impl Actor for TaskManagerActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments {
            options,
            probe_address,
            end,
        } = arguments;
        let target = myself.clone();
        let session = SessionArguments {
            transport: Arc::clone(&options.transport),
            leader: Arc::clone(&options.leader),
            secret: options.settings.cluster_secret.clone(),
            heartbeat: options.settings.heartbeat.clone(),
            connect_timeout: options.settings.heartbeat.timeout,
            entropy: options.entropy.clone(),
            probe_address,
            on_event: Arc::new(move |event| cast(&target, Message::Session(event))),
        };
        let (session, _join) =
            Actor::spawn_linked(None, JobManagerSession, session, myself.get_cell()).await?;
        let timeout = options.settings.registration_timeout;
        let timer = myself.send_after(timeout, || Message::RegistrationElapsed(0));
        Ok(State {
            options,
            session,
            expected: ExpectedExits::default(),
            epoch: LeaderEpoch(0),
            is_registered: false,
            registration: 0,
            timers: vec![Timer::of(&timer)],
            tasks: BTreeMap::new(),
            guardians: BTreeMap::new(),
            highest: BTreeMap::new(),
            releasing: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            end,
            is_ending: false,
            is_closing: false,
            silent_until: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Session(SessionEvent::NeedsRegistration) => {
                let registration = Box::new(state.registration());
                state.tell_session(SessionMessage::Dial(registration));
            }
            Message::Session(SessionEvent::Down { error }) => state.disconnected(&myself, &error),
            Message::Session(SessionEvent::Message { epoch, message }) => {
                state.order(&myself, epoch, *message).await;
            }
            Message::Report(attempt, report) => {
                // Its end may have been reported already: supervision overtakes messages, and nothing may follow an end.
                if state.tasks.contains_key(&attempt) {
                    state.send(report);
                }
            }
            Message::CheckpointDone {
                epoch,
                job,
                checkpoint,
                result,
            } => state.checkpoint_done(epoch, job, checkpoint, result),
            Message::StoreNotShared(message) => {
                state.finish(&myself, TaskManagerEnd::StoreNotShared { message });
            }
            Message::Released(job) => state.send(ToJobManager::JobReleased { job }),
            Message::OrphanEnded(attempt, Some(failure)) => {
                state.task_gone(
                    &myself,
                    attempt,
                    crate::model::message::TaskOutcome::Failed(failure),
                );
            }
            Message::OrphanEnded(attempt, None) => state.stuck(&myself, attempt),
            Message::AbandonedEnded(attempt) => {
                tracing::info!(%attempt, "an abandoned task has ended: its slot is back");
                state.abandoned.remove(&attempt);
                state.tell_session(SessionMessage::Reregister);
            }
            Message::GraceElapsed(registration) => {
                if !state.is_registered && registration == state.registration {
                    let tasks = state.tasks.len();
                    tracing::warn!(
                        tasks,
                        "no JobManager within `taskmanager.jobmanager-grace`: stopping all tasks"
                    );
                    state.cancel_where(|_| true);
                }
            }
            Message::RegistrationElapsed(registration) => {
                if !state.is_registered && registration == state.registration {
                    let seconds = state.options.settings.registration_timeout.as_secs();
                    state.finish(&myself, TaskManagerEnd::RegistrationTimeout { seconds });
                }
            }
            Message::Shutdown(reason) => {
                state.finish(&myself, TaskManagerEnd::Shutdown { reason });
            }
            Message::DataPlaneClosed => myself.stop(Some("ended".to_owned())),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let typed = match &event {
            SupervisionEvent::ActorFailed(_, error) => error.downcast_ref::<TaskFailure>().cloned(),
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ActorTerminated(..)
            | SupervisionEvent::ProcessGroupChanged(_) => None,
        };
        let Some((id, exit)) = supervision::classify(event, &mut state.expected) else {
            return Ok(());
        };
        if id == state.session.get_id() {
            // Without it there is no way to know what the JobManager was told: a new process begins clean.
            let exit = exit.named("JobManagerSession");
            let message = format!("the session with the JobManager broke: {exit:?}");
            state.finish(&myself, TaskManagerEnd::Broken { message });
        } else if let Some(attempt) = state.guardians.remove(&id) {
            state.guardian_ended(&myself, attempt, typed, exit.named("Subtask"));
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // Its last words are queued; guardians that are left guard stuck tasks and end with us.
        if state.session.drain().is_ok() {
            let waiting = state.session.wait(Some(handle::SESSION_END_MAX)).await;
            if waiting.is_err() {
                tracing::warn!("the session with the JobManager did not end in time");
            }
        }
        Ok(())
    }
}

impl State {
    fn registration(&self) -> Registration {
        let options = &self.options;
        Registration {
            location: TaskManagerLocation {
                resource: options.resource.clone(),
                instance: options.instance,
                data_address: options.data_plane.address(),
            },
            slots: self.slots(),
            build: options.runner.build(),
            running: self.tasks.keys().copied().collect(),
            is_chaos_enabled: options.settings.is_chaos_enabled,
        }
    }

    fn tell_session(&self, message: SessionMessage) {
        // A session that has ended is reported by the tree.
        let _ended = self.session.cast(message);
    }

    fn send(&self, message: ToJobManager) {
        self.tell_session(SessionMessage::Send(message));
    }

    fn disconnected(&mut self, myself: &ActorRef<Message>, error: &str) {
        if !self.is_registered {
            return;
        }
        self.is_registered = false;
        self.registration += 1;
        let registration = self.registration;
        let settings = &self.options.settings;
        tracing::warn!(
            error,
            tasks = self.tasks.len(),
            "lost the JobManager: tasks run on for a grace period"
        );
        let grace = myself.send_after(settings.job_manager_grace, move || {
            Message::GraceElapsed(registration)
        });
        let timeout = myself.send_after(settings.registration_timeout, move || {
            Message::RegistrationElapsed(registration)
        });
        self.timers = vec![Timer::of(&grace), Timer::of(&timeout)];
    }

    async fn order(
        &mut self,
        myself: &ActorRef<Message>,
        epoch: LeaderEpoch,
        message: ToTaskManager,
    ) {
        if self.is_ending {
            // The goodbye is out; nothing is begun any more.
            return;
        }
        self.epoch = self.epoch.max(epoch);
        match message {
            ToTaskManager::Registered { stop, probe } => {
                if !self.is_registered {
                    self.is_registered = true;
                    self.timers.clear();
                    self.registration += 1;
                }
                self.stop(&stop);
                if let Some(probe) = probe {
                    self.verify_store(myself, probe);
                }
            }
            ToTaskManager::Deploy { graph, tasks } => {
                let graph = Arc::from(graph);
                for deployment in tasks {
                    self.deploy(myself, epoch, Arc::clone(&graph), deployment)
                        .await;
                }
            }
            ToTaskManager::Stop { attempts } => self.stop(&attempts),
            ToTaskManager::TriggerCheckpoint(plan) => self.trigger(myself, epoch, plan),
            ToTaskManager::NotifyCheckpointComplete { job, checkpoint } => {
                self.control_job(job, &TaskControl::NotifyComplete(checkpoint));
            }
            ToTaskManager::NotifyCheckpointAborted { job, checkpoint } => {
                self.options.runner.abort_checkpoint(job, checkpoint);
                self.control_job(job, &TaskControl::NotifyAborted(checkpoint));
            }
            ToTaskManager::Drain { job } => self.control_job(job, &TaskControl::Drain),
            ToTaskManager::ReleaseJob { job, output } => {
                self.cancel_where(|attempt| attempt.job == job);
                self.releasing.insert(job, output);
                self.release_ended(myself);
            }
            ToTaskManager::HeartbeatRequest { .. }
                if self
                    .silent_until
                    .is_some_and(|until| Instant::now() < until) => {}
            ToTaskManager::InjectFault(injection) => self.inject(injection).await,
            ToTaskManager::HeartbeatRequest { sequence } => {
                let counters = self
                    .tasks
                    .iter()
                    .map(|(attempt, entry)| (*attempt, entry.guarded.counters()))
                    .collect();
                self.tell_session(SessionMessage::SendUrgent(ToJobManager::Heartbeat {
                    sequence,
                    counters,
                }));
            }
        }
    }

    fn verify_store(&self, myself: &ActorRef<Message>, probe: StoreProbe) {
        let (stores, target) = (Arc::clone(&self.options.stores), myself.clone());
        tokio::spawn(async move {
            if let Err(message) = handle::verify(&*stores, &probe).await {
                cast(&target, Message::StoreNotShared(message));
            }
        });
    }

    /// Says goodbye, ends all tasks, then itself. The first reason stays, unless a task gets stuck on the way.
    fn finish(&mut self, myself: &ActorRef<Message>, end: TaskManagerEnd) {
        let is_stuck = matches!(end, TaskManagerEnd::StuckTask { .. });
        if self.is_ending && !is_stuck {
            return;
        }
        let reason = end.to_string();
        tracing::info!(reason, "TaskManager ends");
        *handle::locked(&self.end) = Some(end);
        self.is_ending = true;
        if is_stuck {
            // No goodbye: the JobManager must not take these slots for free before the process is gone, and the closed
            // sockets tell it at once when it is.
            myself.stop(Some(reason));
            return;
        }
        self.tell_session(SessionMessage::Leave(reason));
        self.cancel_where(|_| true);
        self.close_when_empty(myself);
    }

    fn close_when_empty(&mut self, myself: &ActorRef<Message>) {
        if !self.is_ending || self.is_closing || !self.tasks.is_empty() {
            return;
        }
        self.is_closing = true;
        let (data_plane, target) = (Arc::clone(&self.options.data_plane), myself.clone());
        tokio::spawn(async move {
            let closing = data_plane.close();
            if tokio::time::timeout(handle::DATA_PLANE_CLOSE_MAX, closing)
                .await
                .is_err()
            {
                tracing::warn!("data connections did not close in time");
            }
            cast(&target, Message::DataPlaneClosed);
        });
    }

    fn placement(&self) -> Placement {
        Placement::of(
            self.tasks
                .iter()
                .filter(|(_, entry)| !entry.is_canceling)
                .map(|(attempt, _)| *attempt),
        )
    }
}
