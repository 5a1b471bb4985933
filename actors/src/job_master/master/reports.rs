//! What TaskManagers report about tasks, and what it means that one went or came back.
//!
//! Invariant: a report counts only for the attempt that it names, and only when that is the current one. What a failure leads to is
//! decided in `failures`.

use super::{Master, Phase, Slots};
use crate::checkpoint_coordinator::CoordinatorMessage;
use crate::execution_graph::{Applied, TaskReport};
use crate::job_master::requests::StopRequest;
use crate::model::message::{TaskOutcome, ToJobManager, ToTaskManager};
use crate::model::{ExecutionAttemptId, FailureKind, InstanceId, TaskFailure, TaskState};
use crate::peer::PeerHandle;

impl Master {
    pub(super) fn on_task_message(&mut self, instance: InstanceId, message: ToJobManager) {
        match message {
            ToJobManager::TaskRestored { attempt, how, .. } => {
                if let Applied::Entered { id, .. } = self.report(&attempt, TaskReport::Restored) {
                    if let Some(execution) = self.executions.get_mut(id) {
                        execution.restored = Some(how);
                    }
                    let now = self.now();
                    let have_all = match &self.phase {
                        Phase::Deploying { tasks } => tasks
                            .iter()
                            .filter_map(|id| self.executions.get(*id))
                            .all(|e| e.state != TaskState::Deploying),
                        _ => false,
                    };
                    if let Some(recovery) = &mut self.recovery {
                        recovery.task_restored(how);
                        if have_all {
                            recovery.restored(now);
                        }
                    }
                }
            }
            ToJobManager::TaskRunning { attempt } => {
                self.report(&attempt, TaskReport::Running);
            }
            ToJobManager::TaskFirstRecord { attempt } => self.on_first_record(&attempt),
            ToJobManager::TaskAwaitingFinal { attempt } => {
                self.report(&attempt, TaskReport::AwaitingFinal);
            }
            ToJobManager::TaskEnded { attempt, outcome } => {
                self.on_task_ended(instance, &attempt, outcome);
            }
            ToJobManager::CheckpointAck(ack) => {
                self.tell_coordinator(CoordinatorMessage::Ack { instance, ack });
            }
            ToJobManager::CheckpointDeclined {
                checkpoint,
                attempt,
                reason,
                ..
            } => {
                let reason = match attempt {
                    Some(attempt) => format!("{attempt} declined: {reason}"),
                    None => format!("upload failed: {reason}"),
                };
                self.tell_coordinator(CoordinatorMessage::Declined { checkpoint, reason });
            }
            ToJobManager::JobReleased { .. } => {
                self.releasing.remove(&instance);
            }
            ToJobManager::Heartbeat { counters, .. } => {
                for (attempt, counters) in counters {
                    if let Ok(id) = self.executions.current(&attempt)
                        && let Some(execution) = self.executions.get_mut(id)
                    {
                        execution.counters = counters;
                    }
                }
            }
            // The JobManager's business: its `Lost` follows.
            ToJobManager::Goodbye { .. } => {}
        }
    }

    fn on_first_record(&mut self, attempt: &ExecutionAttemptId) {
        let Ok(id) = self.executions.current(attempt) else {
            return;
        };
        if let Some(execution) = self.executions.get_mut(id) {
            execution.has_first_record = true;
        }
        // What a survivor still processes while it is being stopped says nothing about the recovery.
        if !matches!(self.phase, Phase::Deploying { .. } | Phase::Running) {
            return;
        }
        // A source emits before anything was processed: where there are consumers, the first of them counts.
        let graph = &self.options.graph;
        let is_source = graph.inputs(id.vertex).next().is_none();
        let has_consumers = graph.outputs(id.vertex).next().is_some();
        if is_source && has_consumers {
            return;
        }
        let now = self.now();
        let record = match &mut self.recovery {
            Some(recovery) if !recovery.has_first_record() => {
                recovery.first_record(now);
                recovery.record()
            }
            _ => return,
        };
        tracing::info!(job = %graph.job, recovery = record.number, total_ms = record.phases.total_ms, "first record after recovery");
        self.tell_history();
    }

    fn on_task_ended(
        &mut self,
        instance: InstanceId,
        attempt: &ExecutionAttemptId,
        outcome: TaskOutcome,
    ) {
        let Applied::Entered { id, from } = self.report(attempt, TaskReport::from(&outcome)) else {
            return;
        };
        let was_stopping = from == TaskState::Canceling;
        match outcome {
            TaskOutcome::Failed(failure) => {
                self.armed.struck(&failure);
                let failure = self.placed(*failure, attempt);
                if was_stopping {
                    self.also_failed(failure);
                } else {
                    self.fail(failure, &[id], None);
                }
            }
            TaskOutcome::Canceled if !was_stopping => {
                let resource = self.resource_of(id);
                let kind = FailureKind::TaskManagerLost {
                    resource,
                    instance,
                    message: "it stopped a task that nobody had asked to stop: it is going down"
                        .to_owned(),
                };
                let failure = self.placed(TaskFailure::of_attempt(*attempt, kind), attempt);
                self.fail(failure, &[id], None);
            }
            TaskOutcome::Finished if !was_stopping && !self.may_finish => {
                let kind = FailureKind::Internal {
                    message: "the task finished before its final checkpoint was complete"
                        .to_owned(),
                };
                let failure = self.placed(TaskFailure::of_attempt(*attempt, kind), attempt);
                self.fail(failure, &[id], None);
            }
            TaskOutcome::Canceled | TaskOutcome::Finished => {}
        }
    }

    pub(super) fn on_task_manager_lost(&mut self, instance: InstanceId, cause: FailureKind) {
        self.peers.remove(&instance);
        self.releasing.remove(&instance);
        let had_place = self.places.iter().any(|place| place.instance == instance);
        let lost: Vec<_> = self
            .executions
            .live()
            .filter(|(_, _, on)| *on == instance)
            .collect();
        let mut failed = Vec::new();
        for (id, attempt, _) in &lost {
            if let Applied::Entered { from, .. } =
                self.executions.apply(attempt, TaskReport::Failed)
                && from != TaskState::Canceling
            {
                failed.push(*id);
            }
        }
        if let Phase::Preparing(preparation) = &mut self.phase
            && had_place
        {
            // Nothing is ever deployed to it again; the JobManager answers an open request anew by itself.
            if preparation.slots == Slots::Granted {
                preparation.slots = Slots::NotAsked;
                preparation.slots_awaited = None;
            }
        }
        let failure = TaskFailure::of_job(cause);
        if !failed.is_empty() {
            self.fail(failure, &failed, None);
        } else if !lost.is_empty() || self.explains(instance) {
            self.also_failed(failure);
        }
    }

    /// Whether the open incident began with a broken connection to this TaskManager.
    fn explains(&self, lost: InstanceId) -> bool {
        matches!(
            self.recovery.as_ref().map(|r| &r.cause().kind),
            Some(FailureKind::PeerLost { instance, .. }) if *instance == lost
        )
    }

    /// What was under way when the old session broke may be lost: it is compared with what runs there, and sent again.
    pub(super) fn on_task_manager_back(
        &mut self,
        instance: InstanceId,
        peer: PeerHandle,
        running: &[ExecutionAttemptId],
    ) {
        if !self.peers.contains_key(&instance) {
            return;
        }
        self.peers.insert(instance, peer);
        let here: Vec<_> = self
            .executions
            .live()
            .filter(|(_, _, on)| *on == instance)
            .collect();
        let mut failed = Vec::new();
        let mut stop_again = Vec::new();
        for (id, attempt, _) in here {
            let is_stopping = self
                .executions
                .get(id)
                .is_some_and(|e| e.state == TaskState::Canceling);
            // What `running` does not name may run nevertheless: it may be older than an order to deploy that arrived since. So nothing is
            // over before its TaskManager says so, which answers `Stop` also for what it does not have.
            match (running.contains(&attempt), is_stopping) {
                (_, true) => stop_again.push(attempt),
                (true, false) => {}
                (false, false) => failed.push((id, attempt)),
            }
        }
        if !stop_again.is_empty() {
            self.send(
                instance,
                ToTaskManager::Stop {
                    attempts: stop_again,
                },
            );
        }
        let job = self.options.graph.job;
        if let Some(checkpoint) = self.last_notified {
            self.send(
                instance,
                ToTaskManager::NotifyCheckpointComplete { job, checkpoint },
            );
        }
        if self.releasing.contains(&instance) {
            let output = self.output;
            self.send(instance, ToTaskManager::ReleaseJob { job, output });
        }
        if self.stop.as_ref().is_some_and(StopRequest::is_draining) {
            self.send(instance, ToTaskManager::Drain { job });
        }
        if let Some((id, attempt)) = failed.first() {
            let kind = FailureKind::Internal {
                message: "the task was gone when its TaskManager came back: it was never started, or ended while the connection was cut".to_owned(),
            };
            let failure = self.placed(TaskFailure::of_attempt(*attempt, kind), attempt);
            tracing::warn!(%job, %id, lost = failed.len(), "tasks are gone");
            let ids: Vec<_> = failed.iter().map(|(id, _)| *id).collect();
            self.fail(failure, &ids, None);
        }
    }

    fn report(&mut self, attempt: &ExecutionAttemptId, report: TaskReport) -> Applied {
        let applied = self.executions.apply(attempt, report);
        match applied {
            Applied::Entered { .. } => {}
            Applied::Ignored(reason) => {
                tracing::debug!(job = %attempt.job, vertex = %attempt.vertex, subtask = %attempt.subtask, attempt = %attempt.attempt, epoch = %attempt.epoch, ?report, reason, "report ignored");
            }
            Applied::Unexpected(state) => {
                tracing::error!(job = %attempt.job, vertex = %attempt.vertex, subtask = %attempt.subtask, attempt = %attempt.attempt, epoch = %attempt.epoch, ?report, ?state, "unexpected report");
            }
        }
        applied
    }
}
