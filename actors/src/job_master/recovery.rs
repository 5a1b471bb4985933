//! The record of one recovery while it is being written: causes, decision, phases.
//!
//! Invariant: the cause is the first failure that explains the incident; an echo ([`is_symptom`](crate::model::FailureKind::is_symptom)) gives way to it,
//! and everything to one that no restart helps.
//! It decides nothing.

use std::time::Duration;

use crate::clock::Instant;
use crate::model::{
    Attempt, CheckpointId, FailureKind, LeaderEpoch, OTHER_CAUSES_MAX, Recoverability,
    RecoveryPhases, RecoveryRecord, RestoredHow, TaskFailure,
};

/// A recovery under way.
pub(super) struct Recovery {
    record: RecoveryRecord,
    detected: Instant,
    /// The end of the last phase that is over.
    last: Instant,
}

impl Recovery {
    pub(super) fn new(
        number: u32,
        detected: Instant,
        detected_ms: u64,
        cause: TaskFailure,
    ) -> Self {
        Self {
            record: RecoveryRecord {
                number,
                attempt: None,
                detected_ms,
                cause,
                other_causes: Vec::new(),
                decision: String::new(),
                checkpoint: None,
                skipped: Vec::new(),
                phases: RecoveryPhases::default(),
                restored: (0, 0),
            },
            detected,
            last: detected,
        }
    }

    /// Another failure of the same incident.
    pub(super) fn add_cause(&mut self, failure: TaskFailure) {
        let (cause, new) = (&self.record.cause.kind, &failure.kind);
        let is_fatal = |kind: &FailureKind| kind.recoverability() == Recoverability::Unrecoverable;
        let explains_more = cause.is_symptom() && !new.is_symptom();
        let other = if explains_more || (is_fatal(new) && !is_fatal(cause)) {
            std::mem::replace(&mut self.record.cause, failure)
        } else {
            failure
        };
        if self.record.other_causes.len() < OTHER_CAUSES_MAX {
            self.record.other_causes.push(other);
        }
    }

    pub(super) fn cause(&self) -> &TaskFailure {
        &self.record.cause
    }

    pub(super) fn decided(&mut self, words: String) {
        self.record.decision = words;
    }

    pub(super) fn stopped(&mut self, now: Instant) {
        self.record.phases.stop_ms = Some(self.lap(now));
    }

    pub(super) fn waited(&mut self, now: Instant) {
        if self.record.phases.delay_ms.is_none() {
            self.record.phases.delay_ms = Some(self.lap(now));
        }
    }

    pub(super) fn deployed(
        &mut self,
        now: Instant,
        (epoch, attempt): (LeaderEpoch, Attempt),
        checkpoint: Option<CheckpointId>,
        skipped: Vec<String>,
    ) {
        self.record.phases.slots_ms = Some(self.lap(now));
        self.record.attempt = Some(format!("{epoch}.{attempt}"));
        self.record.checkpoint = checkpoint;
        self.record.skipped = skipped;
        self.record.restored = (0, 0);
    }

    pub(super) fn task_restored(&mut self, how: RestoredHow) {
        match how {
            RestoredHow::Empty => {}
            RestoredHow::InPlace => self.record.restored.0 += 1,
            RestoredHow::Loaded => self.record.restored.1 += 1,
        }
    }

    pub(super) fn restored(&mut self, now: Instant) {
        if self.record.phases.restore_ms.is_none() {
            self.record.phases.restore_ms = Some(self.lap(now));
        }
    }

    pub(super) fn first_record(&mut self, now: Instant) {
        if self.record.phases.first_record_ms.is_none() {
            self.record.phases.first_record_ms = Some(self.lap(now));
            self.record.phases.total_ms = Some(millis(now - self.detected));
        }
    }

    pub(super) fn has_first_record(&self) -> bool {
        self.record.phases.first_record_ms.is_some()
    }

    pub(super) fn record(&self) -> &RecoveryRecord {
        &self.record
    }

    fn lap(&mut self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.last);
        self.last = self.last.max(now);
        millis(elapsed)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
