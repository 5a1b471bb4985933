//! Why a checkpoint failed, and how many in a row a job puts up with (Flink's `CheckpointFailureManager`). Pure.
//!
//! Plain savepoints never count: a person's wish must not fail a job (Flink counts those that a task declines).

use crate::model::CheckpointId;

/// Why an attempt failed, or was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFailureReason {
    /// The store failed while the coordinator used it.
    IoException,
    /// An upload failed at a TaskManager.
    AsyncException,
    /// A task declined.
    Declined,
    /// Not all acknowledged in time.
    Expired,
    /// The record or the savepoint's metadata could not be written.
    FinalizeFailure,
    /// A newer one completed first.
    Subsumed,
    /// Tasks failed or were stopped.
    Suspended,
    /// The job ends.
    JobEnded,
    /// The queue is full.
    TooManyRequests,
    /// Within the minimum pause.
    MinimumPause,
    /// Some task does not run.
    NotAllTasksRunning,
}

impl CheckpointFailureReason {
    /// Every reason, for tables in tests and documents.
    pub const ALL: [Self; 11] = [
        Self::IoException,
        Self::AsyncException,
        Self::Declined,
        Self::Expired,
        Self::FinalizeFailure,
        Self::Subsumed,
        Self::Suspended,
        Self::JobEnded,
        Self::TooManyRequests,
        Self::MinimumPause,
        Self::NotAllTasksRunning,
    ];

    /// Whether it counts against `tolerable-failed-checkpoints`.
    #[must_use]
    pub fn is_counted(self) -> bool {
        match self {
            Self::IoException
            | Self::AsyncException
            | Self::Declined
            | Self::Expired
            | Self::FinalizeFailure => true,
            Self::Subsumed
            | Self::Suspended
            | Self::JobEnded
            | Self::TooManyRequests
            | Self::MinimumPause
            | Self::NotAllTasksRunning => false,
        }
    }
}

/// Counts failures in a row.
#[derive(Debug)]
pub struct FailureCounter {
    tolerable: u32,
    count: u32,
    last_success: Option<CheckpointId>,
    /// The newest ids that were counted, so that each counts once.
    counted: std::collections::BTreeSet<CheckpointId>,
}

/// Ids remembered as counted; more than can ever run at the same time.
const COUNTED_MAX: usize = 64;

impl FailureCounter {
    /// With the value of `tolerable-failed-checkpoints`.
    #[must_use]
    pub fn new(tolerable: u32) -> Self {
        Self {
            tolerable,
            count: 0,
            last_success: None,
            counted: std::collections::BTreeSet::new(),
        }
    }

    /// A checkpoint failed. Returns whether the job must fail over; the count then begins anew.
    #[must_use]
    pub fn on_failure(
        &mut self,
        checkpoint: CheckpointId,
        reason: CheckpointFailureReason,
    ) -> bool {
        if !reason.is_counted()
            || self.last_success.is_some_and(|s| checkpoint <= s)
            || !self.counted.insert(checkpoint)
        {
            return false;
        }
        while self.counted.len() > COUNTED_MAX {
            self.counted.pop_first();
        }
        self.count += 1;
        if self.count > self.tolerable {
            self.count = 0;
            return true;
        }
        false
    }

    /// A checkpoint completed.
    pub fn on_success(&mut self, checkpoint: CheckpointId) {
        if self.last_success.is_none_or(|s| checkpoint > s) {
            self.last_success = Some(checkpoint);
            self.counted.clear();
        }
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that Flink's `CheckpointFailureManager` counts; reason by reason, with 0 tolerable failures.
    #[test]
    fn only_five_reasons_count() {
        let counted: Vec<_> = CheckpointFailureReason::ALL
            .into_iter()
            .filter(|reason| FailureCounter::new(0).on_failure(CheckpointId(1), *reason))
            .collect();
        use CheckpointFailureReason::*;
        assert_eq!(
            counted,
            [
                IoException,
                AsyncException,
                Declined,
                Expired,
                FinalizeFailure
            ]
        );
    }

    #[test]
    fn failures_in_a_row_above_the_tolerable_number_fail_the_job_once() {
        let mut counter = FailureCounter::new(2);
        let mut fail = |n| counter.on_failure(CheckpointId(n), CheckpointFailureReason::Expired);
        assert_eq!(
            [fail(1), fail(2), fail(3), fail(4)],
            [false, false, true, false]
        );
    }

    #[test]
    fn a_success_resets_and_shields_older_ids() {
        let mut counter = FailureCounter::new(1);
        let declined = CheckpointFailureReason::Declined;
        assert!(!counter.on_failure(CheckpointId(1), declined));
        counter.on_success(CheckpointId(3));
        assert!(
            !counter.on_failure(CheckpointId(2), declined),
            "older than the success"
        );
        assert!(
            !counter.on_failure(CheckpointId(4), declined),
            "first in a row"
        );
        assert!(counter.on_failure(CheckpointId(5), declined));
    }

    #[test]
    fn one_checkpoint_counts_once() {
        let mut counter = FailureCounter::new(1);
        for _ in 0..5 {
            assert!(!counter.on_failure(CheckpointId(1), CheckpointFailureReason::Declined));
        }
    }
}
