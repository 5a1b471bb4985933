//! What clients ask of the cluster. Whatever needs I/O or another actor's answer runs aside and replies from there.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::oneshot;

use super::manager::{JobEntry, Manager, Runner};
use super::store::{JobRecord, Past, Submission};
use super::{JOBS_MAX, JobManagerMessage};
use crate::checkpoint::{StoreError, StoreFactory, start_from};
use crate::checkpoint_coordinator::RestoredSnapshot;
use crate::job_master::{Assign, JobMasterMessage, JobRequest, Reply, StopMode};
use crate::model::message::{ClientRequest, ClientResponse, RpcError};
use crate::model::{
    FailureKind, JobGraph, JobId, JobState, JobStatus, JobSummary, TaskFailure, TaskManagerStatus,
};

/// How long a JobMaster may take to tell its line of the list; its handlers never wait, so this is ample.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(1);

impl Manager {
    pub(super) fn on_request(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        request: ClientRequest,
        reply: Reply,
    ) {
        match request {
            ClientRequest::Submit(graph) => self.submit(myself, *graph, reply),
            ClientRequest::ListJobs => self.list_jobs(reply),
            ClientRequest::ListTaskManagers => {
                let now = self.options.clock.now();
                let list = self
                    .task_managers
                    .values()
                    .map(|entry| TaskManagerStatus {
                        resource: entry.location.resource.clone(),
                        address: entry.location.data_address.clone(),
                        slots: self.pool.slots_of(entry.location.instance),
                        last_heartbeat_ms: (now - entry.last_heartbeat).as_millis() as u64,
                    })
                    .collect();
                respond(reply, Ok(ClientResponse::TaskManagers(list)));
            }
            ClientRequest::Status(job) => self.ask(job, reply, JobRequest::Status),
            ClientRequest::Checkpoints(job) => self.ask(job, reply, JobRequest::Checkpoints),
            ClientRequest::Cancel(job) => self.ask(job, reply, JobRequest::Cancel),
            ClientRequest::Savepoint { job, directory } => {
                self.ask(job, reply, |reply| JobRequest::Savepoint {
                    directory,
                    reply,
                });
            }
            ClientRequest::InjectFault(injection) => self.inject(myself, *injection, reply),
            ClientRequest::Stop {
                job,
                directory,
                drain,
            } => {
                let mode = if drain {
                    StopMode::Drain
                } else {
                    StopMode::Suspend
                };
                self.ask(job, reply, |reply| JobRequest::Stop {
                    directory,
                    mode,
                    reply,
                });
            }
        }
    }

    fn submit(&mut self, myself: &ActorRef<JobManagerMessage>, graph: JobGraph, reply: Reply) {
        if let Err(error) = graph.validate() {
            return respond(reply, Err(RpcError::Refused(error.to_string())));
        }
        if self.jobs.len() >= JOBS_MAX && !self.jobs.contains_key(&graph.job) {
            let why = format!("{JOBS_MAX} jobs run already: cancel or finish some first");
            return respond(reply, Err(RpcError::Refused(why)));
        }
        // One that asks again, having missed the answer, was looked at before.
        let is_new = !self.jobs.contains_key(&graph.job)
            && self.history.iter().all(|s| s.summary.job != graph.job);
        let (stores, assign) = (
            Arc::clone(&self.options.stores),
            Arc::clone(&self.options.assign),
        );
        let record = JobRecord::new(graph, self.options.clock.wall_ms());
        let (store, myself) = (self.jobs_store.clone(), myself.clone());
        tokio::spawn(async move {
            if is_new && let Err(why) = can_begin(&*stores, &assign, &record.graph).await {
                return respond(reply, Err(RpcError::Refused(why)));
            }
            let result = store.submit(&record).await;
            drop(myself.cast(JobManagerMessage::Submitted {
                record: Box::new(record),
                result,
                reply,
            }));
        });
    }

    pub(super) async fn on_submitted(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        record: JobRecord,
        result: Result<Submission, StoreError>,
        reply: Reply,
    ) {
        let job = record.graph.job;
        let answer = match result {
            Ok(Submission::New | Submission::Known) => {
                let is_here = self.jobs.contains_key(&job)
                    || self.history.iter().any(|status| status.summary.job == job);
                if !is_here {
                    tracing::info!(%job, name = record.graph.name, "job submitted");
                    self.run(myself, record, Past::default(), None).await;
                }
                Ok(ClientResponse::Submitted(job))
            }
            Ok(Submission::Taken) => Err(RpcError::Refused(format!(
                "another job has the id {job}: submit with a new one"
            ))),
            Err(error) => Err(RpcError::Refused(format!(
                "job {job} was not stored: {error}"
            ))),
        };
        respond(reply, answer);
    }

    fn list_jobs(&self, reply: Reply) {
        let mut jobs: Vec<JobSummary> = self.history.iter().map(|s| s.summary.clone()).collect();
        let mut asked = Vec::new();
        for entry in self.jobs.values() {
            match &entry.runner {
                Runner::Active(master) => {
                    let (ask, answer) = oneshot::channel();
                    drop(master.cast(JobMasterMessage::Request(JobRequest::Summary(ask))));
                    asked.push(answer);
                }
                Runner::Storing(ended) => jobs.push(ended.shown().summary),
                Runner::Stopping(_) | Runner::Abandoned(_) => {
                    jobs.push(self.status_without_master(entry).summary);
                }
            }
        }
        tokio::spawn(async move {
            // One that ends at this moment is in the next list.
            if let Ok(answers) =
                tokio::time::timeout(SUMMARY_TIMEOUT, futures::future::join_all(asked)).await
            {
                jobs.extend(answers.into_iter().flatten());
            }
            jobs.sort_by_key(|summary| summary.job);
            respond(reply, Ok(ClientResponse::Jobs(jobs)));
        });
    }

    pub(super) fn ask(
        &mut self,
        job: JobId,
        reply: Reply,
        request: impl FnOnce(Reply) -> JobRequest,
    ) {
        if let Some(Runner::Storing(ended)) = self.jobs.get_mut(&job).map(|e| &mut e.runner) {
            return ended.ask(request(reply));
        }
        let Some(entry) = self.jobs.get(&job) else {
            let status = self.history.iter().find(|s| s.summary.job == job).cloned();
            return match status {
                Some(status) => answer_for_ended(request(reply), status),
                None => respond(reply, Err(RpcError::JobNotFound(job))),
            };
        };
        match &entry.runner {
            Runner::Active(master) => {
                // A reply that is dropped with a dying actor tells the client.
                drop(master.cast(JobMasterMessage::Request(request(reply))));
            }
            // `Storing` was asked above.
            Runner::Storing(_) | Runner::Stopping(_) | Runner::Abandoned(_) => {
                answer_for_ended(request(reply), self.status_without_master(entry));
            }
        }
    }

    fn status_without_master(&self, entry: &JobEntry) -> JobStatus {
        let (state, note, failure) = match &entry.runner {
            Runner::Abandoned(failure) => (
                JobState::Suspended,
                "its JobMaster broke too often; the next JobManager takes the job up again",
                Some(failure.clone()),
            ),
            Runner::Stopping(cause) => (
                JobState::Restarting,
                "its JobMaster broke; its tasks are being stopped",
                Some(TaskFailure::of_job(cause.clone())),
            ),
            Runner::Active(_) | Runner::Storing(_) => (JobState::Restarting, "", None),
        };
        JobStatus {
            summary: JobSummary {
                job: entry.graph.job,
                name: entry.graph.name.clone(),
                state,
                tasks_running: 0,
                tasks_total: entry.graph.vertices.iter().map(|v| v.parallelism).sum(),
                duration_ms: self
                    .options
                    .clock
                    .wall_ms()
                    .saturating_sub(entry.submitted_ms),
                restarts: 0,
                last_checkpoint: None,
            },
            subtasks: Vec::new(),
            recoveries: Vec::new(),
            checkpoints: Vec::new(),
            note: Some(note.to_owned()),
            failure,
            notices: Vec::new(),
        }
    }
}

/// What would only fail once the job has begun: directories that cannot be used with the settings of this cluster, a snapshot to begin
/// with that is not there or does not fit. Its objects are verified before tasks start.
async fn can_begin(
    stores: &dyn StoreFactory,
    assign: &Assign,
    graph: &JobGraph,
) -> Result<(), String> {
    let savepoints = &graph.settings.checkpointing.savepoint_directory;
    for directory in std::iter::once(&graph.checkpoint_directory()).chain(savepoints) {
        stores.open(directory).map_err(|error| error.to_string())?;
    }
    let Some(start) = &graph.start_from else {
        return Ok(());
    };
    let (manifest, directory) = start_from::find(stores, &start.path)
        .await
        .map_err(|kind| match kind {
            FailureKind::Io { message } => {
                format!("the snapshot to begin with cannot be read: {message}; submit again")
            }
            kind => kind.to_string(),
        })?;
    let snapshot = RestoredSnapshot {
        manifest,
        directory,
        is_own_checkpoint: false,
    };
    assign(graph, &snapshot)
        .map(|_| ())
        .map_err(|kind| kind.to_string())
}

/// Answers from what is remembered of a job without a JobMaster.
pub(super) fn answer_for_ended(request: JobRequest, status: JobStatus) {
    let state = status.summary.state;
    let refused = |what: &str| {
        Err(RpcError::Refused(format!(
            "the job is {state}: {what} needs a running one"
        )))
    };
    match request {
        JobRequest::Status(reply) => respond(reply, Ok(ClientResponse::Status(Box::new(status)))),
        JobRequest::Summary(reply) => {
            // Whoever asked may be gone.
            let _ = reply.send(status.summary);
        }
        JobRequest::Checkpoints(reply) => {
            respond(reply, Ok(ClientResponse::Checkpoints(status.checkpoints)));
        }
        JobRequest::Cancel(reply) if state == JobState::Canceled => {
            respond(reply, Ok(ClientResponse::Canceled));
        }
        JobRequest::Cancel(reply) => respond(reply, refused("cancelling")),
        JobRequest::Savepoint { reply, .. } => respond(reply, refused("a savepoint")),
        JobRequest::Stop { reply, .. } => respond(reply, refused("stopping")),
        JobRequest::Inject { reply, .. } => respond(reply, refused("a fault")),
    }
}

/// The client may have gone; then nobody needs the answer.
pub(super) fn respond(reply: Reply, answer: Result<ClientResponse, RpcError>) {
    let _ = reply.send(answer);
}
