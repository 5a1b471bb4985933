//! The JobManager's state and what it does about jobs, TaskManagers and slots. The only thing that a handler awaits is the spawning of a
//! JobMaster, whose `pre_start` only builds plain state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ractor::{ActorId, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use super::store::{JobRecord, JobStore, StoredJob};
use super::{
    HISTORY_MAX, JOB_MASTER_RESTARTS_MAX, JOB_MASTER_RESTARTS_WINDOW, JobManagerEnd,
    JobManagerMessage, JobManagerOptions,
};
use crate::clock::Instant;
use crate::failover::SubtaskId;
use crate::job_master::{
    GrantedSlot, JobMaster, JobMasterMessage, JobMasterOptions, JobMasterReport,
};
use crate::model::message::{Registration, StoreProbe, ToJobManager, ToTaskManager};
use crate::model::{
    Attempt, BuildId, ExecutionAttemptId, FailureKind, InstanceId, JobGraph, JobId, JobState,
    JobStatus, JobSummary, TaskFailure, TaskManagerLocation,
};
use crate::peer::{PeerEvent, PeerHandle};
use crate::slot_pool::SlotPool;
use crate::supervision::{Exit, ExpectedExits, classify};

/// What a TaskManager's own watchdog gets on top of `task.cancellation.timeout`.
const STOP_MARGIN: std::time::Duration = std::time::Duration::from_secs(5);

pub(super) struct TaskManagerEntry {
    pub(super) location: TaskManagerLocation,
    build: BuildId,
    slots: u32,
    peer: PeerHandle,
    pub(super) last_heartbeat: Instant,
    /// Attempts of former leaders, or given up by us, that still run there. Bounded by the registration's frame.
    to_stop: BTreeSet<ExecutionAttemptId>,
}

pub(super) enum Runner {
    /// Tasks of a JobMaster that broke are being stopped.
    Stopping(FailureKind),
    Active(ActorRef<JobMasterMessage>),
    /// Ended; its result is being stored.
    Storing(Box<JobStatus>),
    /// Its JobMaster broke too often.
    Abandoned(TaskFailure),
}

pub(super) struct JobEntry {
    pub(super) graph: Arc<JobGraph>,
    pub(super) submitted_ms: u64,
    pub(super) runner: Runner,
    used_waves: Attempt,
    is_recovered: bool,
    placed: BTreeMap<SubtaskId, (ExecutionAttemptId, InstanceId)>,
    /// Where former attempts ran, and their state may lie.
    former: BTreeMap<SubtaskId, (ExecutionAttemptId, InstanceId)>,
    crashes: VecDeque<Instant>,
    pub(super) wants_slots: Option<u32>,
}

/// The actor's state.
pub(crate) struct Manager {
    pub(super) options: JobManagerOptions,
    pub(super) jobs_store: JobStore,
    stored: BTreeMap<JobId, StoredJob>,
    probe: Option<StoreProbe>,
    end: Option<oneshot::Sender<JobManagerEnd>>,
    pub(super) pool: SlotPool,
    pub(super) task_managers: BTreeMap<InstanceId, TaskManagerEntry>,
    pub(super) jobs: BTreeMap<JobId, JobEntry>,
    /// Oldest first.
    pub(super) history: VecDeque<JobStatus>,
    /// Jobs that wait for slots, first come first served.
    waiting: VecDeque<JobId>,
    expected: ExpectedExits,
    is_settled: bool,
}

impl Manager {
    pub(super) fn new(
        options: JobManagerOptions,
        jobs_store: JobStore,
        stored: BTreeMap<JobId, StoredJob>,
        probe: Option<StoreProbe>,
        end: oneshot::Sender<JobManagerEnd>,
    ) -> Self {
        Self {
            options,
            jobs_store,
            stored,
            probe,
            end: Some(end),
            pool: SlotPool::default(),
            task_managers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            history: VecDeque::new(),
            waiting: VecDeque::new(),
            expected: ExpectedExits::default(),
            is_settled: true,
        }
    }

    pub(super) async fn start(&mut self, myself: &ActorRef<JobManagerMessage>) {
        let epoch = self.options.epoch;
        tracing::info!(%epoch, jobs = self.stored.len(), "JobManager leads");
        let mut ended = Vec::new();
        for (job, stored) in std::mem::take(&mut self.stored) {
            match stored {
                StoredJob::Open(record) => {
                    self.is_settled = false;
                    let cause = FailureKind::Actor {
                        actor: "JobManager".to_owned(),
                        message: format!("epoch {epoch} takes the job over from its predecessor"),
                    };
                    self.run(myself, *record, Some(cause)).await;
                }
                StoredJob::Ended(status) => ended.push(*status),
                StoredJob::Unreadable(why) => {
                    tracing::error!(%job, why, "stored job cannot be read; it is left alone");
                    ended.push(unreadable(job, &why));
                }
            }
        }
        for status in ended {
            self.remember(status);
        }
        if !self.is_settled {
            let heartbeat = &self.options.settings.cluster.heartbeat;
            let window = heartbeat.reconnect_window + heartbeat.interval;
            drop(myself.send_after(window, || JobManagerMessage::Settled));
        }
    }

    pub(super) async fn handle(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        message: JobManagerMessage,
    ) {
        if self.end.is_none() {
            return; // What comes while the actor stops is for nobody; replies are dropped.
        }
        match message {
            JobManagerMessage::Peer(PeerEvent::Registered { registration, peer }) => {
                self.on_registered(myself, registration, peer).await;
            }
            JobManagerMessage::Peer(PeerEvent::Message { instance, message }) => {
                self.on_task_manager_message(myself, instance, message)
                    .await;
            }
            JobManagerMessage::Peer(PeerEvent::Lost { instance, cause }) => {
                self.lose(myself, instance, &cause).await;
            }
            JobManagerMessage::Peer(PeerEvent::Request { request, reply }) => {
                self.on_request(myself, request, reply);
            }
            JobManagerMessage::Report(report) => self.on_report(myself, report).await,
            JobManagerMessage::Submitted {
                record,
                result,
                reply,
            } => self.on_submitted(myself, *record, result, reply).await,
            JobManagerMessage::ResultStored {
                job,
                status,
                answers,
                result,
            } => {
                if let Err(error) = result {
                    // The job's own Terminal record still keeps it from running again.
                    tracing::error!(%job, %error, "job result cannot be stored");
                }
                self.jobs.remove(&job);
                self.remember(*status);
                for (reply, answer) in answers {
                    // The client may have gone.
                    let _ = reply.send(answer);
                }
            }
            JobManagerMessage::JobMasterBroke { job, cause } => {
                self.on_job_master_broke(myself, job, cause).await;
            }
            JobManagerMessage::Settled => {
                self.is_settled = true;
                self.serve_slots();
            }
            JobManagerMessage::StopTimeout(instance) => {
                if let Some(entry) = self.task_managers.get(&instance)
                    && !entry.to_stop.is_empty()
                {
                    let cause = FailureKind::TaskManagerLost {
                        resource: entry.location.resource.clone(),
                        instance,
                        message: format!("{} former tasks did not end", entry.to_stop.len()),
                    };
                    self.declare_lost(myself, instance, &cause).await;
                }
            }
            JobManagerMessage::End(end) => self.finish(myself, end),
            #[cfg(test)]
            JobManagerMessage::BreakJobMaster(job) => {
                self.tell(job, JobMasterMessage::Panic);
            }
        }
    }

    /// Ends; everything stays as it is.
    fn finish(&mut self, myself: &ActorRef<JobManagerMessage>, end: JobManagerEnd) {
        tracing::info!(epoch = %self.options.epoch, ?end, "JobManager ends");
        for entry in self.jobs.values() {
            if let Runner::Active(master) = &entry.runner {
                let reason = format!("{end:?}");
                drop(master.cast(JobMasterMessage::Suspend { reason }));
            }
        }
        if let Some(sender) = self.end.take() {
            // Nobody may be waiting.
            let _ = sender.send(end);
        }
        myself.stop(Some("JobManager ends".to_owned()));
    }

    /// Starts a job's JobMaster.
    pub(super) async fn run(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        record: JobRecord,
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
        };
        self.jobs.insert(job, entry);
        self.spawn_master(myself, job, recovered).await;
    }

    async fn spawn_master(
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
    pub(super) fn on_child(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        event: SupervisionEvent,
    ) {
        if let Some((child, Exit::Failed(cause))) = classify(event, &mut self.expected)
            && let Some(job) = self.job_of(child)
        {
            drop(myself.cast(JobManagerMessage::JobMasterBroke { job, cause }));
        }
    }

    async fn on_job_master_broke(
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
            self.refresh_offer(instance);
        }
        self.resume_stopped(myself).await;
    }

    fn job_of(&self, child: ActorId) -> Option<JobId> {
        self.jobs
            .iter()
            .find(|(_, entry)| {
                matches!(&entry.runner, Runner::Active(master) if master.get_id() == child)
            })
            .map(|(job, _)| *job)
    }

    /// Jobs whose last task has ended get their next JobMaster.
    async fn resume_stopped(&mut self, myself: &ActorRef<JobManagerMessage>) {
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

    async fn on_registered(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        registration: Registration,
        peer: PeerHandle,
    ) {
        let Registration {
            location,
            slots,
            build,
            running,
        } = registration;
        let instance = location.instance;
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
                last_heartbeat: self.options.clock.now(),
                to_stop: stop,
            },
        );
        self.watch_stops(myself, instance);
        self.refresh_offer(instance);
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

    fn refresh_offer(&mut self, instance: InstanceId) {
        if let Some(entry) = self.task_managers.get(&instance) {
            self.pool.offer(
                entry.location.clone(),
                entry.build.clone(),
                entry.slots,
                entry.to_stop.is_empty(),
            );
        }
    }

    /// Former tasks that do not end cost their TaskManager.
    fn watch_stops(&self, myself: &ActorRef<JobManagerMessage>, instance: InstanceId) {
        let timeout = self.options.settings.job.cancellation_timeout;
        let is_stopping = self
            .task_managers
            .get(&instance)
            .is_some_and(|entry| !entry.to_stop.is_empty());
        if is_stopping && !timeout.is_zero() {
            drop(myself.send_after(timeout + STOP_MARGIN, move || {
                JobManagerMessage::StopTimeout(instance)
            }));
        }
    }

    async fn on_task_manager_message(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        instance: InstanceId,
        message: ToJobManager,
    ) {
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
                    self.refresh_offer(instance);
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
    fn pass_heartbeat(&self, instance: InstanceId, message: ToJobManager) {
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

    pub(super) fn tell(&self, job: JobId, message: JobMasterMessage) {
        if let Some(Runner::Active(master)) = self.jobs.get(&job).map(|entry| &entry.runner) {
            // One that just ended is told by its supervision event.
            drop(master.cast(message));
        }
    }

    /// Ends the connection first, so that it cannot speak again.
    async fn declare_lost(
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

    async fn lose(
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
    async fn forget_task_manager(
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

    async fn on_report(&mut self, myself: &ActorRef<JobManagerMessage>, report: JobMasterReport) {
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
            JobMasterReport::Ended {
                job,
                status,
                answers,
            } => {
                self.pool.release(job);
                self.waiting.retain(|waiting| *waiting != job);
                if let Some(entry) = self.jobs.get_mut(&job) {
                    let runner = std::mem::replace(
                        &mut entry.runner,
                        Runner::Storing(Box::new((*status).clone())),
                    );
                    if let Runner::Active(master) = runner {
                        self.expected.stop(&master.get_cell(), "its job has ended");
                    }
                }
                let (store, myself) = (self.jobs_store.clone(), myself.clone());
                tokio::spawn(async move {
                    let result = store.finish(&status).await;
                    drop(myself.cast(JobManagerMessage::ResultStored {
                        job,
                        status,
                        answers,
                        result,
                    }));
                });
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

    /// Gives slots to whom they suffice for, first come first served.
    fn serve_slots(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            let Some(entry) = self.jobs.get_mut(&job) else {
                continue;
            };
            let (Some(needed), Runner::Active(master)) = (entry.wants_slots, &entry.runner) else {
                continue;
            };
            let preferred: BTreeMap<u32, InstanceId> = entry
                .former
                .iter()
                .map(|(id, (_, instance))| (id.subtask.0, *instance))
                .collect();
            // State in memory is worth a moment of waiting for the TaskManagers that hold it.
            let is_complete = (0..needed).all(|slot| preferred.contains_key(&slot));
            let result = if entry.is_recovered && !self.is_settled && !is_complete {
                Err(crate::slot_pool::SlotsMissing {
                    needed,
                    available: preferred.len() as u32,
                })
            } else {
                self.pool
                    .allocate(job, &entry.graph.build, needed, &preferred)
            };
            match result {
                Ok(locations) => {
                    let slots: Vec<_> = locations
                        .into_iter()
                        .filter_map(|location| {
                            let peer = self.task_managers.get(&location.instance)?.peer.clone();
                            Some(GrantedSlot { location, peer })
                        })
                        .collect();
                    tracing::info!(%job, slots = slots.len(), "slots granted");
                    entry.wants_slots = None;
                    let former = entry
                        .former
                        .iter()
                        .map(|(id, (_, instance))| (*id, *instance))
                        .collect();
                    drop(master.cast(JobMasterMessage::Slots { slots, former }));
                }
                Err(missing) => {
                    drop(master.cast(JobMasterMessage::SlotsMissing(missing)));
                    self.waiting.push_back(job);
                }
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
fn unreadable(job: JobId, why: &str) -> JobStatus {
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
