//! The end of a job: its tasks stop, its last output is settled, its last record is written.
//!
//! Invariant: the stages come in this order, and each waits for facts, not for messages in some order.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{CoordinatorState, Master, Phase, cast};
use crate::checkpoint_coordinator::CoordinatorMessage;
use crate::job_master::{JobMasterMessage, JobMasterReport, Timer};
use crate::model::JobState;
use crate::model::message::{PreparedOutput, ToTaskManager};

/// What a TaskManager gets to settle the output of a job's last tasks.
const RELEASE_MAX: Duration = Duration::from_secs(30);

/// How far a job is with its end, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::job_master) enum EndStage {
    /// Tasks are told to end.
    Stopping,
    /// The coordinator is asked for the last completed checkpoint: a record may have been under way when the tasks were stopped.
    Settling,
    /// TaskManagers commit what was prepared for it, and drop the rest.
    Releasing,
    /// The last record is written. Order matters: it lets retention delete what a successor would have to commit from.
    Terminating,
}

impl Master {
    /// Returns whether there is something to wait for.
    pub(super) fn end(&mut self) -> bool {
        let Phase::Ending { state, stage } = self.phase else {
            return true;
        };
        match stage {
            EndStage::Stopping => {
                if self.executions.live().next().is_some() {
                    return true;
                }
                // It may be writing its first record; it can write the last one only after that.
                if self.coordinator_state == CoordinatorState::Starting {
                    return true;
                }
                // A client that waits for a savepoint's path gets it before the coordinator goes.
                if state == JobState::Finished && self.is_stop_savepoint_pending() {
                    return true;
                }
                if state == JobState::Finished || self.coordinator.is_none() {
                    // Tasks that finished have committed. Without a coordinator nobody knows what is complete.
                    self.enter(EndStage::Releasing);
                    self.release(PreparedOutput::Keep);
                } else {
                    self.enter(EndStage::Settling);
                    self.ask_for_last_completed();
                }
                false
            }
            EndStage::Settling => true,
            EndStage::Releasing if !self.releasing.is_empty() => true,
            EndStage::Releasing => {
                self.enter(EndStage::Terminating);
                self.terminate(state);
                true
            }
            EndStage::Terminating => true,
        }
    }

    fn enter(&mut self, next: EndStage) {
        if let Phase::Ending { stage, .. } = &mut self.phase {
            *stage = next;
        }
    }

    fn ask_for_last_completed(&mut self) {
        let (reply, answer) = oneshot::channel();
        self.tell_coordinator(CoordinatorMessage::LastCompleted(reply));
        let myself = self.myself.clone();
        tokio::spawn(async move {
            let output = match answer.await {
                Ok(completed) => PreparedOutput::Settle { completed },
                Err(_) => PreparedOutput::Keep,
            };
            cast(&myself, JobMasterMessage::Settled(output));
        });
    }

    pub(super) fn on_settled(&mut self, output: PreparedOutput) {
        if let Phase::Ending {
            stage: EndStage::Settling,
            ..
        } = self.phase
        {
            self.enter(EndStage::Releasing);
            if output == PreparedOutput::Keep {
                self.notice("nobody could say which checkpoint is the last: uncommitted output stays hidden".to_owned());
            }
            self.release(output);
        }
    }

    fn release(&mut self, output: PreparedOutput) {
        let job = self.options.graph.job;
        self.output = output;
        self.releasing = self.peers.keys().copied().collect();
        for peer in self.peers.values() {
            (peer.send)(ToTaskManager::ReleaseJob { job, output });
        }
        self.arm(RELEASE_MAX, self.wave, Timer::Release);
    }

    fn terminate(&mut self, state: JobState) {
        let message = self.failure.as_ref().map(ToString::to_string);
        tracing::info!(job = %self.options.graph.job, %state, message, "job ends");
        let (terminate_reply, terminated) = oneshot::channel();
        let (status_reply, history) = oneshot::channel();
        // None was needed: the record was there. One that never started has written none, and the result alone tells of the end.
        let has_record =
            self.coordinator.is_none() && self.coordinator_state == CoordinatorState::Started;
        self.tell_coordinator(CoordinatorMessage::Status(status_reply));
        self.tell_coordinator(CoordinatorMessage::Terminate {
            state,
            message,
            reply: terminate_reply,
        });
        let myself = self.myself.clone();
        tokio::spawn(async move {
            let checkpoints = history.await.unwrap_or_default();
            let is_durable = terminated.await.is_ok() || has_record;
            cast(
                &myself,
                JobMasterMessage::Terminated {
                    is_durable,
                    checkpoints,
                },
            );
        });
    }

    /// What is not settled by now is left as it is.
    pub(super) fn release_no_longer(&mut self) {
        let late = std::mem::take(&mut self.releasing);
        if !late.is_empty() {
            let seconds = RELEASE_MAX.as_secs();
            let late: Vec<_> = late.iter().map(ToString::to_string).collect();
            self.notice(format!(
                "not settled within {seconds} s: the output of tasks on {}; what is left there stays hidden",
                late.join(", ")
            ));
        }
    }

    /// Stops everything; the job ends in `state` when nothing lives any more.
    pub(in crate::job_master) fn end_with(&mut self, state: JobState) {
        self.suspend_checkpoints("the job is ending");
        self.abandon_stop();
        self.wave += 1;
        self.phase = Phase::Ending {
            state,
            stage: EndStage::Stopping,
        };
        let all = self.regions.all();
        self.stop_tasks(&all);
    }

    pub(super) fn on_terminated(
        &mut self,
        is_durable: bool,
        checkpoints: Vec<crate::model::CheckpointStatus>,
    ) {
        let Phase::Ending { state, .. } = self.phase else {
            return;
        };
        if !is_durable {
            self.notice(
                "the job's last record could not be written; its result is kept by the JobManager"
                    .to_owned(),
            );
        }
        let job = self.options.graph.job;
        self.ended_ms = Some(self.options.clock.wall_ms());
        self.phase = Phase::Over(state);
        let mut status = self.status();
        status.summary.state = state;
        status.checkpoints = checkpoints;
        let answers = self.final_answers(state);
        (self.options.reports)(JobMasterReport::Ended {
            job,
            status: Box::new(status),
            answers,
        });
    }
}
