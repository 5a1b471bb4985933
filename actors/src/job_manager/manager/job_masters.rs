//! The JobMasters: one per job that is not over, started, watched, replaced when it broke, and answered when it reports.
//!
//! Invariant: no JobMaster of a job begins while tasks of a broken predecessor may still run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ractor::{ActorId, ActorRef, ActorStatus, SupervisionEvent};

use super::Manager;
use crate::checkpoint::io::BackOff;
use crate::clock::Instant;
use crate::failover::SubtaskId;
use crate::fault::Sabotage;
use crate::job_manager::clients::{answer_for_ended, respond};
use crate::job_manager::store::{FinishError, JobRecord, Past};
use crate::job_manager::{
    HISTORY_MAX, HISTORY_PAUSE, JOB_MASTER_RESTARTS_MAX, JOB_MASTER_RESTARTS_WINDOW, JobManagerEnd,
    JobManagerMessage,
};
use crate::job_master::history::JobHistory;
use crate::job_master::{
    JobMaster, JobMasterMessage, JobMasterOptions, JobMasterReport, JobRequest, Reply, WAITERS_MAX,
};
use crate::model::message::{ClientResponse, RpcError, ToTaskManager};
use crate::model::{
    Attempt, ExecutionAttemptId, FailureKind, InstanceId, JobGraph, JobId, JobState, JobStatus,
    JobSummary, LeaderEpoch, TaskFailure,
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

/// A job whose result is being stored. Nobody is told that it has ended: a leader that finds no result may run it again.
pub(in crate::job_manager) struct EndedJob {
    status: JobStatus,
    /// Of those who waited for its end before.
    answers: Vec<(Reply, Result<ClientResponse, RpcError>)>,
    /// What came since and is answered by how it ended; at most [`WAITERS_MAX`].
    requests: Vec<JobRequest>,
}

impl EndedJob {
    pub(in crate::job_manager) fn shown(&self) -> JobStatus {
        let mut status = self.status.clone();
        status.summary.state = status.summary.state.until_stored();
        status.note = Some("storing the job's result".to_owned());
        status
    }

    pub(in crate::job_manager) fn ask(&mut self, request: JobRequest) {
        match request {
            JobRequest::Status(_) | JobRequest::Summary(_) | JobRequest::Checkpoints(_) => {
                answer_for_ended(request, self.shown());
            }
            JobRequest::Cancel(_)
            | JobRequest::Savepoint { .. }
            | JobRequest::Stop { .. }
            | JobRequest::Inject { .. }
                if self.requests.len() < WAITERS_MAX =>
            {
                self.requests.push(request);
            }
            JobRequest::Cancel(reply)
            | JobRequest::Savepoint { reply, .. }
            | JobRequest::Stop { reply, .. }
            | JobRequest::Inject { reply, .. } => {
                let why = format!("{WAITERS_MAX} clients wait for the job's end already");
                respond(reply, Err(RpcError::Refused(why)));
            }
        }
    }
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
            } => {
                if !self.options.faults.is_sabotaged(Sabotage::LeakSlot) {
                    self.pool.release(job);
                }
                self.waiting.retain(|waiting| *waiting != job);
                if let Some(entry) = self.jobs.get_mut(&job) {
                    let ended = EndedJob {
                        status: (*status).clone(),
                        answers,
                        requests: Vec::new(),
                    };
                    let runner =
                        std::mem::replace(&mut entry.runner, Runner::Storing(Box::new(ended)));
                    if let Runner::Active(master) = runner {
                        self.expected.stop(&master.get_cell(), "its job has ended");
                    }
                }
                self.store_result(myself, job, status);
                self.serve_slots();
            }
            JobMasterReport::Fenced { job, message } => {
                self.finish(
                    myself,
                    JobManagerEnd::Fenced(format!("job {job}: {message}")),
                );
            }
        }
    }

    /// Aside, until it is stored or this JobManager has ended: then it is the next one's to say how the job ends.
    fn store_result(
        &self,
        myself: &ActorRef<JobManagerMessage>,
        job: JobId,
        status: Box<JobStatus>,
    ) {
        let (store, guard) = (self.jobs_store.clone(), Arc::clone(&self.options.guard));
        let mut back_off = BackOff::new(self.options.entropy.clone());
        let myself = myself.clone();
        tokio::spawn(async move {
            while myself.get_status() < ActorStatus::Stopping {
                let message = match store.finish(&*guard, &status).await {
                    Ok(()) => JobManagerMessage::ResultStored(job),
                    Err(FinishError::Store(error)) => {
                        tracing::warn!(%job, %error, "job result cannot be stored; trying again");
                        back_off.pause().await;
                        continue;
                    }
                    Err(error @ FinishError::Fenced(_)) => {
                        JobManagerMessage::End(JobManagerEnd::Fenced(format!("job {job}: {error}")))
                    }
                };
                drop(myself.cast(message));
                return;
            }
        });
    }

    pub(super) fn on_result_stored(&mut self, job: JobId) {
        let Some(JobEntry {
            runner: Runner::Storing(ended),
            ..
        }) = self.jobs.remove(&job)
        else {
            return;
        };
        let EndedJob {
            status,
            answers,
            requests,
        } = *ended;
        for (reply, answer) in answers {
            respond(reply, answer);
        }
        for request in requests {
            answer_for_ended(request, status.clone());
        }
        self.remember(status);
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

    pub(super) fn remember(&mut self, status: JobStatus) {
        self.history.push_back(status);
        while self.history.len() > HISTORY_MAX {
            let Some(oldest) = self.history.pop_front() else {
                return;
            };
            // What could not be read is left for a person to look at.
            if !oldest.summary.state.is_terminal() {
                continue;
            }
            let (store, job) = (self.jobs_store.clone(), oldest.summary.job);
            tokio::spawn(async move {
                if let Err(error) = store.forget(job).await {
                    tracing::warn!(%job, %error, "old job result cannot be deleted");
                }
            });
        }
    }
}

/// Something to show for a job that only the store's damage is known of.
pub(super) fn unreadable(job: JobId, why: &str) -> JobStatus {
    JobStatus {
        summary: JobSummary {
            job,
            name: "?".to_owned(),
            state: JobState::Suspended,
            tasks_running: 0,
            tasks_total: 0,
            duration_ms: 0,
            restarts: 0,
            last_checkpoint: None,
        },
        subtasks: Vec::new(),
        recoveries: Vec::new(),
        checkpoints: Vec::new(),
        note: Some("its stored graph or result cannot be read".to_owned()),
        failure: Some(TaskFailure::of_job(FailureKind::Internal {
            message: format!("stored job: {why}"),
        })),
        notices: Vec::new(),
    }
}
