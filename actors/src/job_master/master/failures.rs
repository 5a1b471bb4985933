//! What a failure leads to: an incident opened or joined, a restart of the tasks it took down, or the end of the job.
//!
//! Invariant: no task is restarted and no job fails before the failure stands in the incident that it belongs to. The strategy and the
//! regions decide (`restart`, `failover`); this only carries out.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Master, Phase, Preparation, STOP_MARGIN, Slots};
use crate::clock::Instant;
use crate::execution_graph::TaskReport;
use crate::failover::SubtaskId;
use crate::fault::{FaultSite, Sabotage};
use crate::job_master::recovery::Recovery;
use crate::job_master::{DAMAGED_MAX, Timer};
use crate::model::message::ToTaskManager;
use crate::model::{FailureKind, JobState, Recoverability, RecoveryRecord, TaskFailure};
use crate::restart::{Incident, Verdict};

impl Master {
    /// A failure that does not change what is being done: what fails was being stopped.
    pub(super) fn also_failed(&mut self, failure: TaskFailure) {
        let job = self.options.graph.job;
        // Tasks that end one after the other miss each other: nobody needs to hear of that.
        if failure.kind.is_symptom() {
            tracing::debug!(%job, %failure, "failed while stopping");
        } else {
            tracing::warn!(%job, %failure, "failed while stopping");
        }
        if let Phase::Preparing(_) = self.phase {
            self.note_damage(&failure);
            if failure.kind.recoverability() == Recoverability::Recoverable {
                if let Some(recovery) = &mut self.recovery {
                    recovery.add_cause(failure);
                }
            } else {
                // What came first was an echo of it: the restart that was decided on for that is not carried out.
                self.take_back_restart();
                self.fail(failure, &[], Some(Incident::Ongoing));
            }
        } else if let Phase::Deploying { .. } | Phase::Running = self.phase
            && let Some(recovery) = &mut self.recovery
        {
            recovery.add_cause(failure);
        } else {
            self.explain_end(failure);
        }
    }

    /// Decides about a failure. `failed`: what it took down; nothing means the whole job (Flink's global failure).
    /// `incident`: whether it is a new one, when that does not follow from the phase.
    pub(super) fn fail(
        &mut self,
        failure: TaskFailure,
        failed: &[SubtaskId],
        incident: Option<Incident>,
    ) {
        match self.phase {
            Phase::Preparing(_) | Phase::Deploying { .. } | Phase::Running => {}
            Phase::Ending { .. } | Phase::Over(_) => {
                tracing::warn!(job = %self.options.graph.job, %failure, "failed while the job ends");
                self.explain_end(failure);
                return;
            }
        }
        // Deciding cannot fail: what shall is only told.
        if let Err(error) = self.hit(FaultSite::OnFailover) {
            self.notice(error.to_string());
        }
        match failure.kind.recoverability() {
            Recoverability::Fenced => return self.fenced(failure.to_string()),
            Recoverability::Unrecoverable => {
                let incident = incident.unwrap_or(Incident::New);
                let recovery = self.join_incident(failure.clone(), incident);
                recovery.decided("not recoverable: the job fails".to_owned());
                return self.fail_job(failure);
            }
            Recoverability::Recoverable => {}
        }
        let is_damage_found_on_the_way = self.note_damage(&failure);
        let incident = incident.unwrap_or(match &self.phase {
            Phase::Preparing(preparation) if preparation.is_recovery => Incident::Ongoing,
            // Stepping down the ladder belongs to the incident that led here.
            Phase::Deploying { .. } if is_damage_found_on_the_way && self.recovery.is_some() => {
                Incident::Ongoing
            }
            // Another region, that was not part of this restart, fails while the job is failing over.
            Phase::Deploying { tasks }
                if !failed.is_empty() && failed.iter().all(|id| !tasks.contains(id)) =>
            {
                Incident::Ongoing
            }
            _ => Incident::New,
        });
        let now = self.now();
        let times = if self.options.graph.settings.restart.is_strict {
            failed.len().max(1)
        } else {
            1
        };
        let is_miscounting = self.options.faults.is_sabotaged(Sabotage::MiscountRestarts);
        let mut decision = None;
        let mut counted = 0;
        for _ in 0..times {
            let entropy = self.options.entropy.clone();
            let next = self
                .backoff
                .on_failure(now, incident, move || dice(&entropy));
            if next.is_new_attempt && matches!(next.verdict, Verdict::Restart { .. }) {
                let one = if is_miscounting { 2 } else { 1 };
                counted += one;
            }
            decision = Some(next.verdict);
        }
        self.restarts = self.restarts.saturating_add(counted);
        let words = self.backoff.describe(now, &self.options.clock);
        tracing::warn!(
            job = %self.options.graph.job, epoch = %self.options.epoch, %failure, ?incident,
            decision = words, "failure"
        );
        let cause = failure.clone();
        let recovery = self.join_incident(failure, incident);
        recovery.decided(words.clone());
        self.tell_history();
        match decision {
            Some(Verdict::Restart { delay }) => self.restart(failed, now, delay, counted),
            Some(Verdict::Refused) | None => {
                let cause = self
                    .recovery
                    .as_ref()
                    .map_or(cause, |recovery| recovery.cause().clone());
                // Flink's words for it; the cause stays typed.
                self.notice(format!("recovery is suppressed by {words}"));
                self.fail_job(cause);
            }
        }
    }

    /// Adds a failure to the open incident or opens one.
    fn join_incident(&mut self, failure: TaskFailure, incident: Incident) -> &mut Recovery {
        let open = match (incident, self.recovery.take()) {
            (Incident::Ongoing, Some(mut open)) => {
                open.add_cause(failure);
                open
            }
            (Incident::New, Some(closed)) => {
                self.keep(closed);
                self.open_recovery(failure)
            }
            (_, None) => self.open_recovery(failure),
        };
        self.recovery.insert(open)
    }

    pub(super) fn open_recovery(&mut self, cause: TaskFailure) -> Recovery {
        self.recovery_count += 1;
        let now = self.now();
        let wall = self.options.clock.wall_ms_at(now);
        Recovery::new(self.recovery_count, now, wall, cause)
    }

    fn keep(&mut self, closed: Recovery) {
        let most = (self.options.graph.settings.exception_history_size as usize).max(1);
        while self.recoveries.len() >= most {
            self.recoveries.pop_front();
        }
        self.recoveries.push_back(closed.record().clone());
    }

    /// All recoveries, the one under way last.
    pub(in crate::job_master) fn all_recoveries(&self) -> Vec<RecoveryRecord> {
        let most = (self.options.graph.settings.exception_history_size as usize).max(1);
        let mut all: Vec<_> = self.recoveries.iter().cloned().collect();
        all.extend(self.recovery.as_ref().map(|open| open.record().clone()));
        let surplus = all.len().saturating_sub(most);
        all.drain(..surplus);
        all
    }

    /// Counts only what is carried out.
    fn take_back_restart(&mut self) {
        if let Phase::Preparing(preparation) = &mut self.phase {
            let counted = std::mem::take(&mut preparation.counted);
            self.restarts = self.restarts.saturating_sub(counted);
        }
    }

    /// `counted`: restarts that this one was counted as.
    fn restart(&mut self, failed: &[SubtaskId], now: Instant, delay: Duration, mut counted: u32) {
        // Regions that are finished or drained do not fit others that run on: then all go back together. A final checkpoint that was asked
        // for may still complete, and finishes those that run on.
        let is_whole_job = self.may_finish || self.is_final_asked || self.stop.is_some();
        self.suspend_checkpoints("tasks are being restarted");
        self.abandon_stop();
        let mut tasks = self
            .regions
            .to_restart(if is_whole_job { &[] } else { failed });
        let (mut slots, mut kept) = (Slots::NotAsked, None);
        match &mut self.phase {
            Phase::Preparing(preparation) => {
                tasks.append(&mut preparation.tasks);
                counted = counted.saturating_add(preparation.counted);
                slots = preparation.slots;
                // A choice that was made after the damage became known still stands.
                if self.damaged.is_empty() {
                    kept = preparation.choice.take().filter(Result::is_ok);
                }
            }
            Phase::Deploying { tasks: deploying } => tasks.append(deploying),
            Phase::Running | Phase::Ending { .. } | Phase::Over(_) => {}
        }
        // Regions elsewhere keep running; what was asked for the former preparation is void from here on.
        self.wave += 1;
        let has_choice = kept.is_some();
        self.stop_tasks(&tasks);
        self.phase = Phase::Preparing(Preparation {
            tasks,
            due: now + delay,
            is_recovery: true,
            counted,
            has_stopped: false,
            is_choice_asked: has_choice,
            choice: kept,
            slots,
            slots_awaited: None,
        });
        self.arm(delay, self.wave, Timer::Delay);
    }

    /// Orders live tasks to stop, and sees to it that they do.
    pub(super) fn stop_tasks(&mut self, tasks: &BTreeSet<SubtaskId>) {
        let live = self.executions.live_of(tasks);
        let has_any = !live.is_empty();
        for (instance, attempts) in live {
            for attempt in &attempts {
                self.executions.apply(attempt, TaskReport::Stopping);
            }
            self.send(instance, ToTaskManager::Stop { attempts });
        }
        let timeout = self.options.graph.settings.cancellation_timeout;
        if has_any && !timeout.is_zero() {
            self.arm(timeout + STOP_MARGIN, self.wave, Timer::Stop);
        }
    }

    fn fail_job(&mut self, failure: TaskFailure) {
        tracing::error!(job = %self.options.graph.job, %failure, "job fails");
        self.failure = Some(failure);
        self.end_with(JobState::Failed);
    }

    /// Remembers a damaged snapshot for the next choice. Returns whether it is the first report of it in this incident.
    fn note_damage(&mut self, failure: &TaskFailure) -> bool {
        let FailureKind::DamagedSnapshot {
            checkpoint,
            object,
            message,
        } = &failure.kind
        else {
            return false;
        };
        if self.damaged.len() < DAMAGED_MAX && self.damaged.iter().all(|(c, _)| c != checkpoint) {
            self.damaged
                .push((*checkpoint, format!("object {object}: {message}")));
        }
        self.known_damaged.insert(*checkpoint)
    }
}

/// Uniform in [0, 1).
fn dice(entropy: &crate::entropy::Entropy) -> f64 {
    (entropy.u64() >> 11) as f64 / (1_u64 << 53) as f64
}
