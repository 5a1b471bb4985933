//! What of a job outlives its JobMaster and its JobManager, beside graph, records and result: what a person wants to look up, and what the
//! restart strategy has used up.
//!
//! Invariant: no recovery and no checkpoint waits for it. It is told to the JobManager after the fact, at most one telling under way; what
//! was not told or stored in time is missing from the history, and nothing else. It is bounded by what it is made of.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::master::{Master, cast};
use super::{JobMasterMessage, JobMasterReport, NOTICES_MAX};
use crate::checkpoint_coordinator::CoordinatorMessage;
use crate::clock::Instant;
use crate::model::{CheckpointStatus, RecoveryRecord};
use crate::restart::BackoffMemory;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobHistory {
    pub(crate) restarts: u32,
    /// Recoveries ever; the next one is numbered after it.
    pub(crate) recovery_count: u32,
    /// Newest last.
    pub(crate) recoveries: Vec<RecoveryRecord>,
    /// Newest last.
    pub(crate) checkpoints: Vec<CheckpointStatus>,
    pub(crate) notices: Vec<String>,
    pub(crate) backoff: BackoffMemory,
}

/// Where telling stands.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Checkpoints of before, for as long as there is no coordinator to ask.
    former: Vec<CheckpointStatus>,
    is_under_way: bool,
    /// More has happened since.
    is_stale: bool,
    /// When the strategy will have forgotten everything, which is to be told as well.
    forgets_at: Option<Instant>,
}

impl Master {
    /// Goes on from what a predecessor told.
    pub(super) fn recall(&mut self, history: JobHistory) {
        let JobHistory {
            restarts,
            recovery_count,
            recoveries,
            checkpoints,
            notices,
            backoff,
        } = history;
        self.restarts = restarts;
        self.recovery_count = recovery_count;
        self.recoveries.extend(recoveries);
        let surplus = notices.len().saturating_sub(NOTICES_MAX);
        self.notices.extend(notices.into_iter().skip(surplus));
        self.telling.former = checkpoints;
        let now = self.now();
        self.backoff.recall(&backoff, now);
        self.watch_forgetting();
    }

    pub(super) fn former_checkpoints(&self) -> Vec<CheckpointStatus> {
        self.telling.former.clone()
    }

    /// Something happened that a successor should know.
    pub(super) fn tell_history(&mut self) {
        self.watch_forgetting();
        if std::mem::replace(&mut self.telling.is_under_way, true) {
            self.telling.is_stale = true;
            return;
        }
        let (ask, answer) = oneshot::channel();
        self.tell_coordinator(CoordinatorMessage::Status(ask));
        let myself = self.myself.clone();
        tokio::spawn(async move {
            // Without a coordinator the question is dropped.
            cast(&myself, JobMasterMessage::HistoryAsked(answer.await.ok()));
        });
    }

    pub(super) fn on_history_asked(&mut self, checkpoints: Option<Vec<CheckpointStatus>>) {
        let history = JobHistory {
            restarts: self.restarts,
            recovery_count: self.recovery_count,
            recoveries: self.all_recoveries(),
            checkpoints: checkpoints.unwrap_or_else(|| self.former_checkpoints()),
            notices: self.notices.iter().cloned().collect(),
            backoff: self.backoff.memory(self.now()),
        };
        (self.options.reports)(JobMasterReport::History {
            job: self.options.graph.job,
            history: Box::new(history),
        });
        self.telling.is_under_way = false;
        if std::mem::take(&mut self.telling.is_stale) {
            self.tell_history();
        }
    }

    /// Without this, a quiet time before a change of JobManagers would not count.
    fn watch_forgetting(&mut self) {
        if self.telling.forgets_at.is_some() {
            return;
        }
        let now = self.now();
        if let Some(at) = self.backoff.forgets_at().filter(|at| *at > now) {
            self.telling.forgets_at = Some(at);
            let after = at - now;
            // One at a time, re-armed when it comes too early.
            drop(
                self.myself
                    .send_after(after, || JobMasterMessage::StrategyForgets),
            );
        }
    }

    pub(super) fn on_strategy_forgets(&mut self) {
        self.telling.forgets_at = None;
        let now = self.now();
        if self.backoff.forgets_at().is_some_and(|at| at > now) {
            // There were failures since.
            self.watch_forgetting();
        } else {
            self.tell_history();
        }
    }
}
