//! The JobMasters: one per job that is not over, started, watched, replaced when it broke, and answered when it reports.
//!
//! Invariant: no JobMaster of a job begins while tasks of a broken predecessor may still run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ractor::{ActorId, ActorRef, SupervisionEvent};

use super::Manager;
use super::ended::EndedJob;
use crate::clock::Instant;
use crate::failover::SubtaskId;
use crate::job_manager::store::{JobRecord, Past};
use crate::job_manager::{
    HISTORY_PAUSE, JOB_MASTER_RESTARTS_MAX, JOB_MASTER_RESTARTS_WINDOW, JobManagerEnd,
    JobManagerMessage,
};
use crate::job_master::history::JobHistory;
use crate::job_master::{JobMaster, JobMasterMessage, JobMasterOptions, JobMasterReport};
use crate::model::message::ToTaskManager;
use crate::model::{
    Attempt, ExecutionAttemptId, FailureKind, InstanceId, JobGraph, JobId, LeaderEpoch, TaskFailure,
};
use crate::supervision::{Exit, classify};

pub(in crate::job_manager) enum Runner {
    /// Tasks of a JobMaster that broke are being stopped.
    Stopping(FailureKind),
    Active(ActorRef<JobMasterMessage>),
    /// Ended; its result is being stored.
    Storing(Box<EndedJob>),
    /// Its JobMaster broke too often.
    Abandoned(TaskFailure),
}

pub(in crate::job_manager) struct JobEntry {
    pub(in crate::job_manager) graph: Arc<JobGraph>,
    pub(in crate::job_manager) submitted_ms: u64,
    pub(in crate::job_manager) runner: Runner,
    pub(super) used_waves: Attempt,
    pub(super) is_recovered: bool,
    pub(super) placed: BTreeMap<SubtaskId, (ExecutionAttemptId, InstanceId)>,
    /// Where former attempts ran, and their state may lie.
    pub(super) former: BTreeMap<SubtaskId, (ExecutionAttemptId, InstanceId)>,
    pub(super) crashes: VecDeque<Instant>,
    pub(in crate::job_manager) wants_slots: Option<u32>,
    /// The newest that was told, here or before.
    history: Option<Box<JobHistory>>,
    /// Those in the store that ours replaces.
    outdated_histories: Vec<LeaderEpoch>,
    storing: Storing,
}

/// Whether the history is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storing {
    No,
    /// One write, or the pause after it.
    UnderWay,
    /// The same, and there is news.
    Outdated,
}

impl Manager {
    /// Starts a job's JobMaster.
    pub(in crate::job_manager) async fn run(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        record: JobRecord,
        past: Past,
        recovered: Option<FailureKind>,
    ) {
        let job = record.graph.job;
        let entry = JobEntry {
            graph: Arc::new(record.graph),
            submitted_ms: record.submitted_ms,
            runner: Runner::Stopping(FailureKind::Internal {
                message: "not started".to_owned(),
            }),
            used_waves: Attempt(0),
            is_recovered: recovered.is_some(),
            placed: BTreeMap::new(),
            former: BTreeMap::new(),
            crashes: VecDeque::new(),
            wants_slots: None,
            history: past.history,
            outdated_histories: past.epochs,
            storing: Storing::No,
        };
        self.jobs.insert(job, entry);
        self.spawn_master(myself, job, recovered).await;
    }

    pub(super) async fn spawn_master(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        job: JobId,
        recovered: Option<FailureKind>,
    ) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        let reports = {
            let myself = myself.clone();
            Arc::new(move |report| drop(myself.cast(JobManagerMessage::Report(report))))
        };
        let options = JobMasterOptions {
            graph: Arc::clone(&entry.graph),
            epoch: self.options.epoch,
            clock: self.options.clock,
            entropy: self.options.entropy.clone(),
            coordinator: Arc::clone(&self.options.coordinator),
            assign: Arc::clone(&self.options.assign),
            reports,
            submitted_ms: entry.submitted_ms,
            used_waves: entry.used_waves,
            recovered,
            history: entry.history.clone(),
            faults: self.options.faults.clone(),
        };
        match JobMaster::spawn(options, myself.get_cell()).await {
            Ok(master) => entry.runner = Runner::Active(master),
            Err(error) => {
                let failure = TaskFailure::of_job(FailureKind::Actor {
                    actor: "JobMaster".to_owned(),
                    message: error.to_string(),
                });
                tracing::error!(%job, %failure, "JobMaster does not start");
                entry.runner = Runner::Abandoned(failure);
            }
        }
    }

    /// An end of a JobMaster that nobody asked for: its tasks are stopped, then another one takes the job up from the store.
    pub(in crate::job_manager) fn on_child(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        event: SupervisionEvent,
    ) {
        let ended = classify(event, &mut self.expected);
        if let Some((child, exit)) = ended
            && let Exit::Failed(cause) = exit.named("JobMaster")
            && let Some(job) = self.job_of(child)
        {
            drop(myself.cast(JobManagerMessage::JobMasterBroke { job, cause }));
        }
    }

    pub(super) async fn on_job_master_broke(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        job: JobId,
        cause: FailureKind,
    ) {
        let now = self.options.clock.now();
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        // It had reported the job's end before: nothing is left to be taken up.
        if !matches!(entry.runner, Runner::Active(_)) {
            return;
        }
        while entry
            .crashes
            .front()
            .is_some_and(|at| now - *at > JOB_MASTER_RESTARTS_WINDOW)
        {
            entry.crashes.pop_front();
        }
        entry.crashes.push_back(now);
        entry.wants_slots = None;
        self.waiting.retain(|waiting| *waiting != job);
        tracing::error!(%job, %cause, crashes = entry.crashes.len(), "JobMaster broke");
        entry.former.extend(entry.placed.clone());
        entry.runner = if entry.crashes.len() > JOB_MASTER_RESTARTS_MAX {
            self.pool.release(job);
            Runner::Abandoned(TaskFailure::of_job(cause))
        } else {
            Runner::Stopping(cause)
        };
        let mut by_instance: BTreeMap<InstanceId, Vec<_>> = BTreeMap::new();
        for (attempt, instance) in entry.placed.values() {
            by_instance.entry(*instance).or_default().push(*attempt);
        }
        for (instance, attempts) in by_instance {
            if let Some(task_manager) = self.task_managers.get_mut(&instance) {
                // Counted as a former leader's: its slots stay ours, but nobody gets new ones before these have ended.
                task_manager.to_stop.extend(attempts.iter().copied());
                (task_manager.peer.send)(ToTaskManager::Stop { attempts });
            }
            self.watch_stops(myself, instance);
            self.refresh_offer(instance, &BTreeSet::new());
        }
        self.resume_stopped(myself).await;
    }

    pub(super) fn job_of(&self, child: ActorId) -> Option<JobId> {
        self.jobs
            .iter()
            .find(|(_, entry)| {
                matches!(&entry.runner, Runner::Active(master) if master.get_id() == child)
            })
            .map(|(job, _)| *job)
    }

    /// Jobs whose last task has ended get their next JobMaster.
    pub(super) async fn resume_stopped(&mut self, myself: &ActorRef<JobManagerMessage>) {
        let ready: Vec<_> = self
            .jobs
            .iter()
            .filter(|(_, entry)| entry.placed.is_empty())
            .filter_map(|(job, entry)| match &entry.runner {
                Runner::Stopping(cause) => Some((*job, cause.clone())),
                Runner::Active(_) | Runner::Storing(_) | Runner::Abandoned(_) => None,
            })
            .collect();
        for (job, cause) in ready {
            self.spawn_master(myself, job, Some(cause)).await;
        }
    }

    pub(in crate::job_manager) fn tell(&self, job: JobId, message: JobMasterMessage) {
        if let Some(Runner::Active(master)) = self.jobs.get(&job).map(|entry| &entry.runner) {
            // One that just ended is told by its supervision event.
            drop(master.cast(message));
        }
    }

    pub(super) async fn on_report(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        report: JobMasterReport,
    ) {
        match report {
            JobMasterReport::NeedSlots { job, needed } => {
                if let Some(entry) = self.jobs.get_mut(&job) {
                    entry.wants_slots = Some(needed);
                    if !self.waiting.contains(&job) {
                        self.waiting.push_back(job);
                    }
                    self.serve_slots();
                }
            }
            JobMasterReport::Deployed { job, attempts } => {
                if let Some(entry) = self.jobs.get_mut(&job) {
                    for (attempt, instance) in attempts {
                        entry.used_waves = entry.used_waves.max(attempt.attempt);
                        let id = SubtaskId {
                            vertex: attempt.vertex,
                            subtask: attempt.subtask,
                        };
                        // A task that is on a TaskManager lost in the meantime is known lost to the JobMaster as well.
                        if self.task_managers.contains_key(&instance) {
                            entry.placed.insert(id, (attempt, instance));
                        }
                        entry.former.remove(&id);
                    }
                }
            }
            JobMasterReport::DeclareLost { instance, cause } => {
                self.declare_lost(myself, instance, &cause).await;
            }
            JobMasterReport::History { job, history } => {
                if let Some(entry) = self.jobs.get_mut(&job) {
                    entry.history = Some(history);
                    match entry.storing {
                        Storing::No => self.store_history(myself, job),
                        Storing::UnderWay | Storing::Outdated => entry.storing = Storing::Outdated,
                    }
                }
            }
            JobMasterReport::Ended {
                job,
                status,
                answers,
            } => self.on_ended(myself, job, status, answers),
            JobMasterReport::Fenced { job, message } => {
                self.finish(
                    myself,
                    JobManagerEnd::Fenced(format!("job {job}: {message}")),
                );
            }
        }
    }

    /// Best effort, aside: nothing waits for it.
    fn store_history(&mut self, myself: &ActorRef<JobManagerMessage>, job: JobId) {
        let Some(entry) = self.jobs.get_mut(&job) else {
            return;
        };
        let Some(history) = entry.history.clone() else {
            return;
        };
        entry.storing = Storing::UnderWay;
        let outdated = std::mem::take(&mut entry.outdated_histories);
        let (store, myself, epoch) = (self.jobs_store.clone(), myself.clone(), self.options.epoch);
        tokio::spawn(async move {
            let result = store.remember(job, epoch, *history, &outdated).await;
            tokio::time::sleep(HISTORY_PAUSE).await;
            drop(myself.cast(JobManagerMessage::HistoryStored { job, result }));
        });
    }

    pub(super) fn on_history_stored(&mut self, myself: &ActorRef<JobManagerMessage>, job: JobId) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            let has_news = entry.storing == Storing::Outdated;
            entry.storing = Storing::No;
            if has_news {
                self.store_history(myself, job);
            }
        }
    }
}
