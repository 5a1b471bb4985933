//! The jobs that are over: their results, which are stored before anybody hears of them, and the list of the last ones.
//!
//! Invariant: nobody is told that a job has ended while the next leader could still run it.

use std::sync::Arc;

use ractor::{ActorRef, ActorStatus};

use super::{JobEntry, Manager, Runner};
use crate::checkpoint::io::BackOff;
use crate::fault::Sabotage;
use crate::job_manager::clients::{answer_for_ended, respond};
use crate::job_manager::store::FinishError;
use crate::job_manager::{HISTORY_MAX, JobManagerEnd, JobManagerMessage};
use crate::job_master::{JobRequest, Reply, WAITERS_MAX};
use crate::model::message::{ClientResponse, PreparedOutput, RpcError, ToTaskManager};
use crate::model::{FailureKind, JobId, JobState, JobStatus, JobSummary, TaskFailure};
use crate::peer::PeerHandle;

type Answer = (Reply, Result<ClientResponse, RpcError>);

/// A job whose result is being stored. Nobody is told that it has ended: a leader that finds no result may run it again.
pub(in crate::job_manager) struct EndedJob {
    status: JobStatus,
    /// Of those who waited for its end before.
    answers: Vec<Answer>,
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

impl Manager {
    /// A JobMaster has brought its job to its end.
    pub(super) fn on_ended(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        job: JobId,
        status: Box<JobStatus>,
        answers: Vec<Answer>,
    ) {
        if !self.options.faults.is_sabotaged(Sabotage::LeakSlot) {
            self.pool.release(job);
        }
        self.waiting.retain(|waiting| *waiting != job);
        // Its JobMaster has done so with those that it had slots on. One that was lost and has come back holds state of it, too.
        for task_manager in self.task_managers.values() {
            release(&task_manager.peer, job);
        }
        if let Some(entry) = self.jobs.get_mut(&job) {
            let ended = EndedJob {
                status: (*status).clone(),
                answers,
                requests: Vec::new(),
            };
            let runner = std::mem::replace(&mut entry.runner, Runner::Storing(Box::new(ended)));
            if let Runner::Active(master) = runner {
                self.expected.stop(&master.get_cell(), "its job has ended");
            }
        }
        self.store_result(myself, job, status);
        self.serve_slots();
    }

    /// A TaskManager has come that may hold state of jobs that ended while it was away.
    pub(super) fn release_ended(&self, peer: &PeerHandle) {
        for status in &self.history {
            if status.summary.state.is_terminal() {
                release(peer, status.summary.job);
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

    /// Lists an ended job; the oldest beyond the bound is forgotten, in the store too.
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

/// What tasks prepared for their sinks stays as it is: that is settled by now, or nobody knows how.
fn release(peer: &PeerHandle, job: JobId) {
    let output = PreparedOutput::Keep;
    (peer.send)(ToTaskManager::ReleaseJob { job, output });
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
