//! What people ask of a job: status, savepoint, stop, cancel.
//!
//! Invariant: every request gets one answer; one that cannot be met now is refused with the reason, never queued without a word.

use tokio::sync::oneshot;

use super::master::{EndStage, Master, Phase, Slots, cast};
use super::{JobMasterMessage, JobRequest, Reply, StopMode, WAITERS_MAX};
use crate::checkpoint_coordinator::CoordinatorMessage;
use crate::model::message::{ClientResponse, RpcError, ToTaskManager};
use crate::model::{JobState, JobStatus, JobSummary, SnapshotKind};

/// A stop with savepoint under way.
pub(super) struct StopRequest {
    mode: StopMode,
    directory: Option<String>,
    reply: Reply,
    savepoint: StopSavepoint,
    /// Sources have been told that their input ends.
    is_draining: bool,
}

enum StopSavepoint {
    /// Draining: its time has not come.
    NotAsked,
    Asked,
    Complete(String),
    /// The job is drained, so it goes on to its end without.
    Failed(String),
}

impl StopRequest {
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }
}

impl Master {
    pub(super) fn on_request(&mut self, request: JobRequest) {
        match request {
            JobRequest::Summary(reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.summary());
            }
            JobRequest::Status(reply) => {
                let mut status = self.status();
                self.with_checkpoints(reply, move |checkpoints| {
                    status.checkpoints = checkpoints;
                    ClientResponse::Status(Box::new(status))
                });
            }
            JobRequest::Checkpoints(reply) => {
                self.with_checkpoints(reply, ClientResponse::Checkpoints);
            }
            JobRequest::Cancel(reply) => self.cancel(reply),
            JobRequest::Savepoint { directory, reply } => self.savepoint(directory, reply),
            JobRequest::Stop {
                directory,
                mode,
                reply,
            } => self.stop(directory, mode, reply),
            JobRequest::Inject { fault, reply } => self.inject(fault, reply),
        }
    }

    fn with_checkpoints(
        &self,
        reply: Reply,
        response: impl FnOnce(Vec<crate::model::CheckpointStatus>) -> ClientResponse + Send + 'static,
    ) {
        let (ask, answer) = oneshot::channel();
        self.tell_coordinator(CoordinatorMessage::Status(ask));
        let former = self.former_checkpoints();
        tokio::spawn(async move {
            // Without a coordinator there is only what a former one had.
            let checkpoints = answer.await.unwrap_or(former);
            respond(reply, Ok(response(checkpoints)));
        });
    }

    fn cancel(&mut self, reply: Reply) {
        match &self.phase {
            // Too late to wait here, and its result may not be stored yet.
            Phase::Over(_) => {
                let why = format!("the job is {}, and over here: ask again", self.state());
                refuse(reply, why);
            }
            Phase::Ending { .. } => {
                self.wait_for_end(reply);
            }
            Phase::Preparing(_) | Phase::Deploying { .. } | Phase::Running => {
                if self.wait_for_end(reply) {
                    tracing::info!(job = %self.options.graph.job, "job is cancelled by a client");
                    self.end_with(JobState::Canceled);
                }
            }
        }
    }

    fn wait_for_end(&mut self, reply: Reply) -> bool {
        if self.cancel_waiters.len() >= WAITERS_MAX {
            refuse(
                reply,
                format!("{WAITERS_MAX} clients wait for the job's end already"),
            );
            return false;
        }
        self.cancel_waiters.push(reply);
        true
    }

    fn savepoint(&mut self, directory: Option<String>, reply: Reply) {
        if let Some(why) = self.why_no_savepoint() {
            return refuse(reply, why);
        }
        let (ask, answer) = oneshot::channel();
        self.tell_coordinator(CoordinatorMessage::Savepoint {
            kind: SnapshotKind::Savepoint,
            directory,
            reply: ask,
        });
        tokio::spawn(async move {
            let result = match answer.await {
                Ok(Ok(path)) => Ok(ClientResponse::Savepoint { path }),
                Ok(Err(why)) => Err(RpcError::Refused(format!("savepoint failed: {why}"))),
                Err(_) => Err(RpcError::Refused(
                    "savepoint failed: the coordinator ended".to_owned(),
                )),
            };
            respond(reply, result);
        });
    }

    fn stop(&mut self, directory: Option<String>, mode: StopMode, reply: Reply) {
        if let Some(why) = self.why_no_savepoint() {
            return refuse(reply, why);
        }
        tracing::info!(job = %self.options.graph.job, ?mode, "job is stopped by a client");
        let mut request = StopRequest {
            mode,
            directory,
            reply,
            savepoint: StopSavepoint::NotAsked,
            is_draining: false,
        };
        match mode {
            StopMode::Suspend => {
                request.savepoint = StopSavepoint::Asked;
                self.ask_for_stop_savepoint(
                    SnapshotKind::StopWithSavepoint,
                    request.directory.clone(),
                );
            }
            StopMode::Drain => self.tell_coordinator(CoordinatorMessage::Hold),
        }
        self.stop = Some(request);
    }

    /// No snapshot but the final one begins any more: sources may end with input left.
    pub(super) fn drain(&mut self) {
        let is_running = matches!(self.phase, Phase::Running);
        if let Some(stop) = &mut self.stop
            && stop.mode == StopMode::Drain
            && is_running
        {
            stop.is_draining = true;
            let job = self.options.graph.job;
            self.send_to_all(&ToTaskManager::Drain { job });
        }
    }

    /// `None`: a savepoint may be taken.
    fn why_no_savepoint(&self) -> Option<String> {
        if !matches!(self.phase, Phase::Running) {
            let note = self
                .note()
                .map(|note| format!(" ({note})"))
                .unwrap_or_default();
            return Some(format!(
                "the job is {}{note}: a savepoint needs all tasks running; try again later",
                self.state()
            ));
        }
        self.stop
            .is_some()
            .then(|| "the job is being stopped already".to_owned())
    }

    fn ask_for_stop_savepoint(&self, kind: SnapshotKind, directory: Option<String>) {
        let (ask, answer) = oneshot::channel();
        self.tell_coordinator(CoordinatorMessage::Savepoint {
            kind,
            directory,
            reply: ask,
        });
        let myself = self.myself.clone();
        tokio::spawn(async move {
            let result = answer
                .await
                .unwrap_or_else(|_| Err("the coordinator ended".to_owned()));
            cast(&myself, JobMasterMessage::StopSavepoint(result));
        });
    }

    pub(super) fn ask_for_final_checkpoint(&mut self) {
        if let Some(stop) = &mut self.stop
            && stop.mode == StopMode::Drain
            && matches!(stop.savepoint, StopSavepoint::NotAsked)
        {
            stop.savepoint = StopSavepoint::Asked;
            let directory = stop.directory.clone();
            self.ask_for_stop_savepoint(SnapshotKind::Final, directory);
        }
        // Order matters: the coordinator puts the final checkpoint where the request before it says.
        self.tell_coordinator(CoordinatorMessage::AllAwaitingFinal);
    }

    pub(super) fn is_stop_savepoint_pending(&self) -> bool {
        self.stop
            .as_ref()
            .is_some_and(|stop| matches!(stop.savepoint, StopSavepoint::Asked))
    }

    pub(super) fn on_stop_savepoint(&mut self, result: Result<String, String>) {
        let Some(stop) = &mut self.stop else {
            return;
        };
        match (&self.phase, stop.mode, result) {
            (Phase::Running | Phase::Ending { .. }, _, Ok(path)) => {
                stop.savepoint = StopSavepoint::Complete(path);
            }
            (Phase::Running, StopMode::Drain, Err(why)) => {
                // Sources have ended: there is no way back, only on to the end, with a final checkpoint of the job's own.
                stop.savepoint = StopSavepoint::Failed(why);
                self.tell_coordinator(CoordinatorMessage::AllAwaitingFinal);
            }
            (Phase::Ending { .. }, _, Err(why)) => stop.savepoint = StopSavepoint::Failed(why),
            (Phase::Running, StopMode::Suspend, Err(why)) => {
                if let Some(stop) = self.stop.take() {
                    refuse(
                        stop.reply,
                        format!("savepoint failed, the job runs on: {why}"),
                    );
                }
            }
            (Phase::Preparing(_) | Phase::Deploying { .. } | Phase::Over(_), _, result) => {
                if let Some(stop) = self.stop.take() {
                    refuse(stop.reply, restarted_instead(result));
                }
            }
        }
    }

    /// The job restarts or ends otherwise: the stop is off. One whose savepoint is under way is answered when that is decided.
    pub(super) fn abandon_stop(&mut self) {
        let Some(stop) = self.stop.take() else {
            return;
        };
        match stop.savepoint {
            StopSavepoint::NotAsked => refuse(
                stop.reply,
                restarted_instead(Err("the job had not drained yet".to_owned())),
            ),
            StopSavepoint::Failed(why) => refuse(stop.reply, restarted_instead(Err(why))),
            StopSavepoint::Complete(path) => refuse(stop.reply, restarted_instead(Ok(path))),
            StopSavepoint::Asked => self.stop = Some(stop),
        }
    }

    /// What waiting clients hear at the job's end.
    pub(super) fn final_answers(
        &mut self,
        state: JobState,
    ) -> Vec<(Reply, Result<ClientResponse, RpcError>)> {
        let mut answers = Vec::new();
        let failure = self
            .failure
            .as_ref()
            .map(|failure| format!(": {failure}"))
            .unwrap_or_default();
        for reply in self.cancel_waiters.drain(..) {
            let answer = match state {
                JobState::Canceled => Ok(ClientResponse::Canceled),
                _ => Err(RpcError::Refused(format!(
                    "the job ended as {state} before it could be cancelled{failure}"
                ))),
            };
            answers.push((reply, answer));
        }
        if let Some(stop) = self.stop.take() {
            let answer = match (state, stop.savepoint) {
                (JobState::Finished, StopSavepoint::Complete(path)) => {
                    Ok(ClientResponse::Stopped { path })
                }
                (_, StopSavepoint::Complete(path)) => Err(RpcError::Refused(format!(
                    "the savepoint is complete at {path}, but the job ended as {state}{failure}"
                ))),
                (_, StopSavepoint::Failed(why)) => Err(RpcError::Refused(format!(
                    "the job ended as {state} without a savepoint: {why}"
                ))),
                (_, StopSavepoint::NotAsked | StopSavepoint::Asked) => Err(RpcError::Refused(
                    format!("the job ended as {state} before the savepoint was complete{failure}"),
                )),
            };
            answers.push((stop.reply, answer));
        }
        answers
    }

    pub(super) fn refuse_waiters(&mut self, why: &str) {
        for reply in self.cancel_waiters.drain(..) {
            refuse(reply, why.to_owned());
        }
        if let Some(stop) = self.stop.take() {
            refuse(stop.reply, why.to_owned());
        }
    }

    pub(super) fn state(&self) -> JobState {
        let is_recovering = self.restarts > 0 || self.options.recovered.is_some();
        match &self.phase {
            Phase::Preparing(_) | Phase::Deploying { .. } if is_recovering => JobState::Restarting,
            Phase::Preparing(_) | Phase::Deploying { .. } => JobState::Created,
            Phase::Running => JobState::Running,
            // Also once it is over: the JobManager tells the end when it has stored the result.
            Phase::Ending { state, .. } | Phase::Over(state) => state.until_stored(),
        }
    }

    fn note(&self) -> Option<String> {
        let live = self.executions.live().count();
        let total = self.executions.iter().count();
        match &self.phase {
            Phase::Preparing(preparation) => {
                let now = self.now();
                if !self.executions.have_ended(&preparation.tasks) {
                    return Some(format!("stopping: {live} of {total} tasks still run"));
                }
                if now < preparation.due {
                    let left = (preparation.due - now).as_secs_f64();
                    return Some(format!("restarting in {left:.1} s"));
                }
                if self.coordinator.is_none() {
                    return Some("starting the checkpoint coordinator".to_owned());
                }
                if let Slots::Asked { available } = preparation.slots {
                    let needed = self.options.graph.slots_needed();
                    return Some(format!("waiting for slots: {available} of {needed}"));
                }
                Some("choosing the checkpoint to restore".to_owned())
            }
            Phase::Deploying { .. } => {
                let running = self
                    .executions
                    .iter()
                    .filter(|(_, e)| e.is_running())
                    .count();
                Some(format!("starting: {running} of {total} tasks run"))
            }
            Phase::Running => self.stop.as_ref().map(|stop| match stop.mode {
                StopMode::Suspend => "stopping with a savepoint".to_owned(),
                StopMode::Drain => "draining before the savepoint".to_owned(),
            }),
            Phase::Ending {
                stage: EndStage::Stopping,
                ..
            } => Some(format!("stopping: {live} of {total} tasks still run")),
            Phase::Ending {
                stage: EndStage::Settling | EndStage::Releasing,
                ..
            } => Some("committing the output of the last checkpoint".to_owned()),
            Phase::Ending {
                stage: EndStage::Terminating,
                ..
            } => Some("writing the job's last record".to_owned()),
            Phase::Over(_) => None,
        }
    }

    fn summary(&self) -> JobSummary {
        let graph = &self.options.graph;
        let until = self
            .ended_ms
            .unwrap_or_else(|| self.options.clock.wall_ms());
        JobSummary {
            job: graph.job,
            name: graph.name.clone(),
            state: self.state(),
            tasks_running: self
                .executions
                .iter()
                .filter(|(_, e)| e.is_running())
                .count() as u32,
            tasks_total: self.executions.iter().count() as u32,
            duration_ms: until.saturating_sub(self.options.submitted_ms),
            restarts: self.restarts,
            last_checkpoint: self.last_checkpoint,
        }
    }

    /// Without the checkpoints, which the coordinator knows.
    pub(super) fn status(&self) -> JobStatus {
        JobStatus {
            summary: self.summary(),
            subtasks: self.executions.statuses(&self.options.graph),
            recoveries: self.all_recoveries(),
            checkpoints: Vec::new(),
            note: self.note(),
            failure: self.failure.clone(),
            notices: self.notices.iter().cloned().collect(),
        }
    }
}

fn restarted_instead(savepoint: Result<String, String>) -> String {
    match savepoint {
        Ok(path) => format!(
            "the savepoint is complete at {path}, but a task failed while the job was stopping: `perennial status` shows how it goes on"
        ),
        Err(why) => format!(
            "a failure came before the savepoint was complete: {why}; `perennial status` shows how the job goes on"
        ),
    }
}

/// The client may have gone; then nobody needs the answer.
pub(super) fn respond(reply: Reply, answer: Result<ClientResponse, RpcError>) {
    let _ = reply.send(answer);
}

pub(super) fn refuse(reply: Reply, why: String) {
    respond(reply, Err(RpcError::Refused(why)));
}
