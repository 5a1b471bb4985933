//! The tasks of a TaskManager: what may be deployed, what is told to which, and how each one's end is found out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ractor::{Actor, ActorRef};

use super::{Message, SUBTASKS_KNOWN_MAX, State, TaskManagerEnd, cast};
use crate::fault::{FaultPlace, FaultSite};
use crate::job_manager_session::SessionMessage;
use crate::model::message::{CheckpointAck, CheckpointPlan, TaskOutcome, ToJobManager};
use crate::model::{
    CheckpointId, ExecutionAttemptId, FailureKind, JobGraph, JobId, LeaderEpoch, TaskDeployment,
    TaskFailure, VertexId,
};
use crate::subtask::{Guarded, Subtask, SubtaskArguments, SubtaskMessage};
use crate::supervision::Exit;
use crate::task_runner::{DeclinedCheckpoint, TaskControl};

/// One attempt that runs here.
pub(super) struct Entry {
    pub(super) guardian: ActorRef<SubtaskMessage>,
    pub(super) guarded: Guarded,
    pub(super) graph: Arc<JobGraph>,
    pub(super) is_canceling: bool,
}

/// How many slots are in use: one slot holds one subtask of every vertex of a job.
#[derive(Debug, Default)]
pub(super) struct Placement(BTreeMap<JobId, BTreeMap<VertexId, u32>>);

impl Placement {
    pub(super) fn of(attempts: impl Iterator<Item = ExecutionAttemptId>) -> Self {
        let mut placement = Self::default();
        for attempt in attempts {
            placement.add(attempt);
        }
        placement
    }

    pub(super) fn add(&mut self, attempt: ExecutionAttemptId) {
        let vertices = self.0.entry(attempt.job).or_default();
        *vertices.entry(attempt.vertex).or_default() += 1;
    }

    pub(super) fn slots(&self) -> u32 {
        let of_job = |vertices: &BTreeMap<_, u32>| vertices.values().max().copied().unwrap_or(0);
        self.0.values().map(of_job).sum()
    }
}

impl State {
    /// Slots that are not lost to abandoned tasks.
    pub(super) fn slots(&self) -> u32 {
        let lost = Placement::of(self.abandoned.iter().copied()).slots();
        self.options.settings.task_slots.saturating_sub(lost)
    }

    /// Why a task may not start here; `Ok(false)` for one that is known already.
    fn admit(
        &self,
        epoch: LeaderEpoch,
        graph: &JobGraph,
        attempt: ExecutionAttemptId,
    ) -> Result<bool, FailureKind> {
        let subtask = (attempt.job, attempt.vertex, attempt.subtask);
        let fenced = |message: String| Err(FailureKind::Fenced { message });
        if attempt.epoch != epoch {
            return fenced(format!("deployed by the leader of epoch {epoch}"));
        }
        match self.highest.get(&subtask) {
            Some(known) if *known == (attempt.epoch, attempt.attempt) => return Ok(false),
            Some((epoch, number)) if (*epoch, *number) > (attempt.epoch, attempt.attempt) => {
                return fenced(format!("attempt {epoch}.{number} is known here"));
            }
            Some(_) | None => {}
        }
        if graph.job != attempt.job || graph.vertices.len() <= attempt.vertex.0 as usize {
            let message = format!("{attempt} is no task of job {}", graph.job);
            return Err(FailureKind::Internal { message });
        }
        let build = self.options.runner.build();
        if graph.build != build {
            let message = format!("job of build {}, TaskManager of build {build}", graph.build);
            return Err(FailureKind::BuildMismatch { message });
        }
        let mut placement = self.placement();
        placement.add(attempt);
        let (needed, slots) = (placement.slots(), self.slots());
        if needed > slots {
            let message = format!(
                "{needed} slots needed, {} has {slots}",
                self.options.resource
            );
            return Err(FailureKind::NoSlots { message });
        }
        Ok(true)
    }

    pub(super) async fn deploy(
        &mut self,
        myself: &ActorRef<Message>,
        epoch: LeaderEpoch,
        graph: Arc<JobGraph>,
        deployment: TaskDeployment,
    ) {
        let attempt = deployment.attempt;
        match self.admit(epoch, &graph, attempt) {
            Ok(true) => {}
            Ok(false) => {
                tracing::debug!(%attempt, "deployed already");
                return;
            }
            Err(kind) => {
                self.refuse(attempt, kind);
                return;
            }
        }
        let place = FaultPlace::Task(attempt);
        if let Err(error) = self.options.faults.hit(FaultSite::OnDeploy, place) {
            self.refuse(attempt, broken(&error.to_string()));
            return;
        }
        tracing::info!(job = %attempt.job, vertex = %attempt.vertex, subtask = %attempt.subtask, attempt = %attempt.attempt, "deploying");
        self.releasing.remove(&attempt.job);
        if self.highest.len() >= SUBTASKS_KNOWN_MAX {
            let running: BTreeSet<JobId> = self.tasks.keys().map(|a| a.job).collect();
            self.highest.retain(|(job, _, _), _| running.contains(job));
        }
        self.highest.insert(
            (attempt.job, attempt.vertex, attempt.subtask),
            (attempt.epoch, attempt.attempt),
        );
        let (target, started) = (myself.clone(), Arc::new(std::sync::Mutex::new(None)));
        let slot = Arc::clone(&started);
        let arguments = SubtaskArguments {
            runner: Arc::clone(&self.options.runner),
            graph: Arc::clone(&graph),
            deployment,
            on_report: Arc::new(move |report| cast(&target, Message::Report(attempt, report))),
            on_started: Box::new(move |guarded| *super::handle::locked(&slot) = Some(guarded)),
        };
        let spawned = Actor::spawn_linked(None, Subtask, arguments, myself.get_cell()).await;
        let guarded = super::handle::locked(&started).take();
        match (spawned, guarded) {
            (Ok((guardian, _join)), Some(guarded)) => {
                self.guardians.insert(guardian.get_id(), attempt);
                self.tasks.insert(
                    attempt,
                    Entry {
                        guardian,
                        guarded,
                        graph,
                        is_canceling: false,
                    },
                );
            }
            (Ok(_), None) => self.refuse(attempt, broken("it started without a task")),
            (Err(error), _) => self.refuse(attempt, broken(&error.to_string())),
        }
    }

    /// Nothing was started, so nothing needs to be waited for.
    fn refuse(&self, attempt: ExecutionAttemptId, kind: FailureKind) {
        tracing::warn!(%attempt, cause = %kind, "refused a deployment");
        let failure = Box::new(TaskFailure::of_attempt(attempt, kind));
        self.send(ToJobManager::TaskEnded {
            attempt,
            outcome: TaskOutcome::Failed(failure),
        });
    }

    pub(super) fn stop(&mut self, attempts: &[ExecutionAttemptId]) {
        for &attempt in attempts {
            if self.tasks.contains_key(&attempt) {
                self.cancel(attempt);
            } else {
                // Ended before, or never here: whoever waits for its end must get an answer. If it was reported as failed, that
                // report went first.
                let outcome = TaskOutcome::Canceled;
                self.send(ToJobManager::TaskEnded { attempt, outcome });
            }
        }
    }

    pub(super) fn cancel_where(&mut self, is_meant: impl Fn(&ExecutionAttemptId) -> bool) {
        let attempts: Vec<_> = self.tasks.keys().copied().filter(|a| is_meant(a)).collect();
        for attempt in attempts {
            self.cancel(attempt);
        }
    }

    fn cancel(&mut self, attempt: ExecutionAttemptId) {
        if let Some(entry) = self.tasks.get_mut(&attempt) {
            entry.is_canceling = true;
            // A guardian that has ended has its end under way to us.
            let _ended = entry.guardian.cast(SubtaskMessage::Cancel);
        }
    }

    pub(super) fn control_job(&self, job: JobId, control: &TaskControl) {
        for (attempt, entry) in &self.tasks {
            if attempt.job == job {
                let message = SubtaskMessage::Control(control.clone());
                let _ended = entry.guardian.cast(message);
            }
        }
    }

    pub(super) fn trigger(
        &self,
        myself: &ActorRef<Message>,
        epoch: LeaderEpoch,
        plan: CheckpointPlan,
    ) {
        let (job, checkpoint) = (plan.job, plan.barrier.checkpoint);
        let decline = |attempt, reason: String| {
            self.send(ToJobManager::CheckpointDeclined {
                job,
                checkpoint,
                attempt,
                reason,
            });
        };
        if plan.epoch != epoch {
            let reason = format!("planned in epoch {}, sent in epoch {epoch}", plan.epoch);
            decline(None, reason);
            return;
        }
        let missing = plan.attempts.iter().find(|attempt| {
            self.tasks
                .get(attempt)
                .is_none_or(|e| e.is_canceling || e.guarded.outcome().is_some())
        });
        if let Some(attempt) = missing {
            let reason = format!("{attempt} does not run on {}", self.options.resource);
            decline(Some(*attempt), reason);
            return;
        }
        // Order matters: the runner must know what to collect before the first snapshot can be there.
        let target = myself.clone();
        let (attempts, barrier) = (plan.attempts.clone(), plan.barrier);
        self.options.runner.plan_checkpoint(
            plan,
            Box::new(move |result| {
                let done = Message::CheckpointDone {
                    epoch,
                    job,
                    checkpoint,
                    result,
                };
                cast(&target, done);
            }),
        );
        for entry in attempts.iter().filter_map(|a| self.tasks.get(a)) {
            let trigger = TaskControl::Trigger(barrier);
            let _ended = entry.guardian.cast(SubtaskMessage::Control(trigger));
        }
    }

    pub(super) fn checkpoint_done(
        &self,
        epoch: LeaderEpoch,
        job: JobId,
        checkpoint: CheckpointId,
        result: Result<CheckpointAck, DeclinedCheckpoint>,
    ) {
        if epoch != self.epoch {
            // The leader that asked is gone, and its successor's numbers mean something else.
            tracing::info!(%job, %checkpoint, %epoch, "dropped a snapshot for a former leader");
            return;
        }
        self.send(match result {
            Ok(ack) => ToJobManager::CheckpointAck(Box::new(ack)),
            Err(declined) => ToJobManager::CheckpointDeclined {
                job,
                checkpoint,
                attempt: declined.attempt,
                reason: declined.reason,
            },
        });
    }

    pub(super) fn guardian_ended(
        &mut self,
        myself: &ActorRef<Message>,
        attempt: ExecutionAttemptId,
        typed: Option<TaskFailure>,
        exit: Exit,
    ) {
        let Some(entry) = self.tasks.get_mut(&attempt) else {
            return;
        };
        match (entry.guarded.outcome(), typed) {
            // The cause as the tree carried it.
            (Some(_), Some(failure)) => {
                self.task_gone(myself, attempt, TaskOutcome::Failed(Box::new(failure)));
            }
            (Some(outcome), None) => self.task_gone(myself, attempt, outcome),
            (None, Some(_)) => self.stuck(myself, attempt),
            (None, None) => {
                tracing::error!(%attempt, ?exit, "the guardian of a task broke: cancelling the task");
                entry.is_canceling = true;
                entry.guarded.control(TaskControl::Cancel);
                let timeout = entry.graph.settings.cancellation_timeout;
                let (guarded, target) = (entry.guarded.clone(), myself.clone());
                let kind = match exit {
                    Exit::Failed(kind) => kind,
                    Exit::Expected => broken("it was stopped"),
                };
                let failure = Box::new(TaskFailure::of_attempt(attempt, kind));
                tokio::spawn(async move {
                    let ended = if timeout.is_zero() {
                        guarded.ended().await;
                        true
                    } else {
                        let ended = tokio::time::timeout(timeout, guarded.ended());
                        ended.await.is_ok()
                    };
                    cast(
                        &target,
                        Message::OrphanEnded(attempt, ended.then_some(failure)),
                    );
                });
            }
        }
    }

    /// Nothing of the task is left: only now the JobManager hears of it.
    pub(super) fn task_gone(
        &mut self,
        myself: &ActorRef<Message>,
        attempt: ExecutionAttemptId,
        outcome: TaskOutcome,
    ) {
        if self.tasks.remove(&attempt).is_none() {
            return;
        }
        tracing::info!(job = %attempt.job, vertex = %attempt.vertex, subtask = %attempt.subtask, attempt = %attempt.attempt, ?outcome, "task ended");
        self.send(ToJobManager::TaskEnded { attempt, outcome });
        self.release_ended(myself);
        self.close_when_empty(myself);
    }

    /// The task ignores its cancellation, and a thread cannot be ended from outside.
    pub(super) fn stuck(&mut self, myself: &ActorRef<Message>, attempt: ExecutionAttemptId) {
        let Some(entry) = self.tasks.get(&attempt) else {
            return;
        };
        let seconds = entry.graph.settings.cancellation_timeout.as_secs();
        tracing::error!(%attempt, seconds, "a task does not end");
        if !self.options.abandon_stuck_tasks {
            self.finish(myself, TaskManagerEnd::StuckTask { attempt, seconds });
            return;
        }
        let (guarded, target) = (entry.guarded.clone(), myself.clone());
        tokio::spawn(async move {
            guarded.ended().await;
            cast(&target, Message::AbandonedEnded(attempt));
        });
        self.abandoned.insert(attempt);
        let kind = FailureKind::CancellationTimeout { seconds };
        let failure = Box::new(TaskFailure::of_attempt(attempt, kind));
        self.task_gone(myself, attempt, TaskOutcome::Failed(failure));
        // Says that there is a slot less.
        self.tell_session(SessionMessage::Reregister);
    }

    /// Drops what is kept of jobs that were released and have no task left.
    pub(super) fn release_ended(&mut self, myself: &ActorRef<Message>) {
        let running: BTreeSet<JobId> = self.tasks.keys().map(|a| a.job).collect();
        let (kept, ended): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.releasing)
            .into_iter()
            .partition(|(job, _)| running.contains(job));
        self.releasing = kept;
        for (job, output) in ended {
            let target = myself.clone();
            let done = Box::new(move || cast(&target, Message::Released(job)));
            self.options.runner.release_job(job, output, done);
            self.highest.retain(|(of, _, _), _| *of != job);
        }
    }
}

fn broken(message: &str) -> FailureKind {
    FailureKind::Actor {
        actor: "subtask".to_owned(),
        message: message.to_owned(),
    }
}
