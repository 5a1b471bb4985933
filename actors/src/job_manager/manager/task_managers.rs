//! Who is there: TaskManagers come, report, leave and are lost.
//!
//! Invariant: what a lost TaskManager had (slots, tasks, state in memory) is gone at once, everywhere. What that means for a job is decided
//! by its JobMaster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ractor::ActorRef;

use super::job_masters::Runner;
use super::{Manager, STOP_MARGIN};
use crate::clock::Instant;
use crate::failover::SubtaskId;
use crate::fault::{FaultPlace, FaultSite};
use crate::job_manager::JobManagerMessage;
use crate::job_master::JobMasterMessage;
use crate::model::message::{Registration, ToJobManager, ToTaskManager};
use crate::model::{
    BuildId, ExecutionAttemptId, FailureKind, InstanceId, JobId, TaskManagerLocation,
};
use crate::peer::PeerHandle;
use crate::slot_pool::TASK_MANAGER_SLOTS_MAX;

pub(in crate::job_manager) struct TaskManagerEntry {
    pub(in crate::job_manager) location: TaskManagerLocation,
    pub(super) build: BuildId,
    pub(super) slots: u32,
    pub(in crate::job_manager) peer: PeerHandle,
    pub(in crate::job_manager) is_chaos_enabled: bool,
    pub(in crate::job_manager) last_heartbeat: Instant,
    /// Attempts of former leaders, or given up by us, that still run there. Bounded by the registration's frame.
    pub(super) to_stop: BTreeSet<ExecutionAttemptId>,
}

impl Manager {
    pub(super) async fn on_registered(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        registration: Registration,
        peer: PeerHandle,
    ) {
        if let Some(why) = self.why_refused(&registration) {
            let location = registration.location;
            tracing::error!(resource = %location.resource, instance = %location.instance, why, "registration refused");
            let cause = FailureKind::TaskManagerLost {
                resource: location.resource,
                instance: location.instance,
                message: why.clone(),
            };
            // What was known of it can no longer be believed.
            self.lose(myself, location.instance, &cause).await;
            (peer.close)(why);
            return;
        }
        let Registration {
            location,
            slots,
            build,
            running,
            is_chaos_enabled,
        } = registration;
        let instance = location.instance;
        let site = FaultSite::OnRegister;
        if let Err(error) = self.options.faults.hit(site, FaultPlace::Node) {
            // It comes again.
            return (peer.close)(error.to_string());
        }
        let replaced: Vec<_> = self
            .task_managers
            .values()
            .filter(|entry| {
                entry.location.resource == location.resource && entry.location.instance != instance
            })
            .map(|entry| entry.location.instance)
            .collect();
        for old in replaced {
            let cause = FailureKind::TaskManagerLost {
                resource: location.resource.clone(),
                instance: old,
                message: "another process has registered under its name".to_owned(),
            };
            self.declare_lost(myself, old, &cause).await;
        }
        let is_known = self.task_managers.contains_key(&instance);
        let placed: BTreeSet<_> = self
            .jobs
            .values()
            .filter(|entry| matches!(entry.runner, Runner::Active(_)))
            .flat_map(|entry| entry.placed.values())
            .filter(|(_, on)| *on == instance)
            .map(|(attempt, _)| *attempt)
            .collect();
        let stop: BTreeSet<_> = running
            .iter()
            .filter(|attempt| !placed.contains(attempt))
            .copied()
            .collect();
        for attempt in &stop {
            if let Some(entry) = self.jobs.get_mut(&attempt.job) {
                let id = SubtaskId {
                    vertex: attempt.vertex,
                    subtask: attempt.subtask,
                };
                let vertex = entry.graph.vertices.get(id.vertex.0 as usize);
                if vertex.is_none_or(|vertex| id.subtask.0 >= vertex.parallelism) {
                    continue;
                }
                let newest = entry.former.entry(id).or_insert((*attempt, instance));
                if *attempt > newest.0 {
                    *newest = (*attempt, instance);
                }
            }
        }
        tracing::info!(
            resource = %location.resource, %instance, slots, running = running.len(),
            stop = stop.len(), is_known, "TaskManager registers"
        );
        (peer.send)(ToTaskManager::Registered {
            stop: stop.iter().copied().collect(),
            probe: self.probe.clone(),
        });
        self.task_managers.insert(
            instance,
            TaskManagerEntry {
                location,
                build,
                slots,
                peer: peer.clone(),
                is_chaos_enabled,
                last_heartbeat: self.options.clock.now(),
                to_stop: stop,
            },
        );
        if !is_known {
            self.release_ended(&peer);
        }
        self.watch_stops(myself, instance);
        // A task that should run here and does not may have been abandoned: its slot is the one that is not offered any more.
        let slot_of = |attempt: &ExecutionAttemptId| (attempt.job, attempt.subtask.0);
        let missing: BTreeSet<_> = placed
            .iter()
            .filter(|attempt| !running.contains(attempt))
            .map(slot_of)
            .collect();
        let mut busy: BTreeSet<_> = running.iter().map(slot_of).collect();
        busy.retain(|slot| !missing.contains(slot));
        self.refresh_offer(instance, &busy);
        if is_known {
            // What a broken JobMaster left behind and is no longer there has ended.
            for entry in self.jobs.values_mut() {
                if matches!(entry.runner, Runner::Stopping(_) | Runner::Abandoned(_)) {
                    entry
                        .placed
                        .retain(|_, (attempt, on)| *on != instance || running.contains(attempt));
                }
            }
            for entry in self.jobs.values() {
                if let Runner::Active(master) = &entry.runner {
                    drop(master.cast(JobMasterMessage::TaskManagerBack {
                        instance,
                        peer: peer.clone(),
                        running: running.clone(),
                    }));
                }
            }
            self.resume_stopped(myself).await;
        }
        self.serve_slots();
    }

    /// What cannot be true: nobody has so many slots, and no process changes what it is.
    fn why_refused(&self, registration: &Registration) -> Option<String> {
        let Registration {
            location,
            slots,
            build,
            ..
        } = registration;
        if *slots > TASK_MANAGER_SLOTS_MAX {
            return Some(format!(
                "it offers {slots} slots: at most {TASK_MANAGER_SLOTS_MAX} are possible (taskmanager.numberOfTaskSlots)"
            ));
        }
        let known = self.task_managers.get(&location.instance)?;
        if known.location != *location {
            return Some(format!(
                "the same process registered as {} at {} before",
                known.location.resource, known.location.data_address
            ));
        }
        (known.build != *build).then(|| {
            format!(
                "the same process registered with build {} before, now with {build}",
                known.build
            )
        })
    }

    /// The attempt that a report is about, when it was deployed somewhere else.
    fn task_of_another(
        &self,
        instance: InstanceId,
        message: &ToJobManager,
    ) -> Option<ExecutionAttemptId> {
        let attempt = match message {
            ToJobManager::TaskRestored { attempt, .. }
            | ToJobManager::TaskRunning { attempt }
            | ToJobManager::TaskFirstRecord { attempt }
            | ToJobManager::TaskAwaitingFinal { attempt }
            | ToJobManager::TaskEnded { attempt, .. } => *attempt,
            ToJobManager::CheckpointAck(_)
            | ToJobManager::CheckpointDeclined { .. }
            | ToJobManager::JobReleased { .. }
            | ToJobManager::Heartbeat { .. }
            | ToJobManager::Goodbye { .. } => return None,
        };
        let id = SubtaskId {
            vertex: attempt.vertex,
            subtask: attempt.subtask,
        };
        let (placed, on) = self.jobs.get(&attempt.job)?.placed.get(&id)?;
        (*placed == attempt && *on != instance).then_some(attempt)
    }

    /// Former tasks that do not end cost their TaskManager.
    pub(super) fn watch_stops(&self, myself: &ActorRef<JobManagerMessage>, instance: InstanceId) {
        let Some(told) = self.task_managers.get(&instance).map(|e| e.to_stop.clone()) else {
            return;
        };
        let ours = self.options.settings.job.cancellation_timeout;
        // That of a job counts as far as the job is known.
        let jobs = told
            .iter()
            .filter_map(|attempt| self.jobs.get(&attempt.job));
        let timeouts = jobs.map(|entry| entry.graph.settings.cancellation_timeout);
        let timeout = timeouts.fold(ours, Duration::max);
        if !told.is_empty() && !ours.is_zero() {
            drop(myself.send_after(timeout + STOP_MARGIN, move || {
                JobManagerMessage::StopTimeout(instance, told)
            }));
        }
    }

    pub(super) async fn on_task_manager_message(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        instance: InstanceId,
        message: ToJobManager,
    ) {
        if let Some(attempt) = self.task_of_another(instance, &message) {
            tracing::error!(%instance, %attempt, "report about a task of another TaskManager ignored");
            return;
        }
        let Some(task_manager) = self.task_managers.get_mut(&instance) else {
            // It was given up; when it comes back it is told what to stop.
            tracing::debug!(%instance, "message of a lost TaskManager ignored");
            return;
        };
        let job = match &message {
            ToJobManager::Heartbeat { .. } => {
                task_manager.last_heartbeat = self.options.clock.now();
                self.pass_heartbeat(instance, message);
                return;
            }
            ToJobManager::Goodbye { reason } => {
                let cause = FailureKind::TaskManagerLost {
                    resource: task_manager.location.resource.clone(),
                    instance,
                    message: format!("it went: {reason}"),
                };
                tracing::info!(resource = %task_manager.location.resource, %instance, reason, "TaskManager leaves");
                (task_manager.peer.close)(cause.to_string());
                return self.forget_task_manager(myself, instance, &cause).await;
            }
            ToJobManager::TaskRestored { attempt, .. }
            | ToJobManager::TaskRunning { attempt }
            | ToJobManager::TaskFirstRecord { attempt }
            | ToJobManager::TaskAwaitingFinal { attempt } => attempt.job,
            ToJobManager::TaskEnded { attempt, .. } => {
                let attempt = *attempt;
                let was_former = task_manager.to_stop.remove(&attempt);
                let is_clean = task_manager.to_stop.is_empty();
                if let Some(entry) = self.jobs.get_mut(&attempt.job) {
                    entry.placed.retain(|_, (placed, _)| *placed != attempt);
                }
                // First the JobMaster hears of it, so that new slots find it prepared.
                self.tell(
                    attempt.job,
                    JobMasterMessage::FromTaskManager { instance, message },
                );
                if was_former && is_clean {
                    self.refresh_offer(instance, &BTreeSet::new());
                    self.serve_slots();
                }
                return self.resume_stopped(myself).await;
            }
            ToJobManager::CheckpointAck(ack) => ack.job,
            ToJobManager::CheckpointDeclined { job, .. } | ToJobManager::JobReleased { job } => {
                *job
            }
        };
        self.tell(job, JobMasterMessage::FromTaskManager { instance, message });
    }

    /// Each job gets its part.
    pub(super) fn pass_heartbeat(&self, instance: InstanceId, message: ToJobManager) {
        let ToJobManager::Heartbeat { sequence, counters } = message else {
            return;
        };
        let mut by_job: BTreeMap<JobId, Vec<_>> = BTreeMap::new();
        for (attempt, figures) in counters {
            by_job
                .entry(attempt.job)
                .or_default()
                .push((attempt, figures));
        }
        for (job, counters) in by_job {
            let message = ToJobManager::Heartbeat { sequence, counters };
            self.tell(job, JobMasterMessage::FromTaskManager { instance, message });
        }
    }

    /// Ends the connection first, so that it cannot speak again.
    pub(super) async fn declare_lost(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        instance: InstanceId,
        cause: &FailureKind,
    ) {
        if let Some(entry) = self.task_managers.get(&instance) {
            (entry.peer.close)(cause.to_string());
        }
        self.lose(myself, instance, cause).await;
    }

    pub(super) async fn lose(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        instance: InstanceId,
        cause: &FailureKind,
    ) {
        // A goodbye came before, or another cause.
        if !self.task_managers.contains_key(&instance) {
            return;
        }
        tracing::warn!(%instance, %cause, "TaskManager is lost");
        self.forget_task_manager(myself, instance, cause).await;
    }

    /// Its slots and what ran there are gone.
    pub(super) async fn forget_task_manager(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        instance: InstanceId,
        cause: &FailureKind,
    ) {
        self.task_managers.remove(&instance);
        self.pool.lose(instance);
        for entry in self.jobs.values_mut() {
            entry.placed.retain(|_, (_, on)| *on != instance);
            entry.former.retain(|_, (_, on)| *on != instance);
            if let Runner::Active(master) = &entry.runner {
                drop(master.cast(JobMasterMessage::TaskManagerLost {
                    instance,
                    cause: cause.clone(),
                }));
            }
        }
        self.resume_stopped(myself).await;
        self.serve_slots();
    }
}
