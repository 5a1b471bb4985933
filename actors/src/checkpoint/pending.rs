//! One snapshot under way: who must acknowledge, who has, and when it may still fail (Flink's `PendingCheckpoint`). Pure.
//!
//! Invariant: acknowledgements count by attempt; once every attempt has acknowledged the snapshot is `Completing` and can neither
//! expire nor be declined nor be subsumed: its record may exist.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::model::message::CheckpointAck;
use crate::model::{CheckpointId, ExecutionAttemptId, InstanceId, SnapshotKind};

use super::CheckpointFailureReason;

/// Where an attempt at a snapshot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PendingState {
    /// Acknowledgements are missing.
    Pending,
    /// All are there; the record is on its way.
    Completing,
    /// Will never complete.
    Aborted(CheckpointFailureReason),
}

/// What an acknowledgement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckResult {
    /// Taken; more are missing.
    Success,
    /// Taken; it was the last.
    Complete,
    /// These attempts had acknowledged before; its objects are those of the first.
    Duplicate,
    /// Not one of ours, e.g. an earlier attempt; its objects are garbage.
    Unknown,
    /// Too late; its objects are garbage.
    Discarded,
}

/// See the module.
#[derive(Debug)]
pub struct PendingCheckpoint {
    /// Which.
    pub checkpoint: CheckpointId,
    /// Why.
    pub kind: SnapshotKind,
    /// Its deltas are over this one, which stays pinned.
    pub base: Option<CheckpointId>,
    /// When triggered.
    pub triggered: Instant,
    deadline: Instant,
    expected: BTreeMap<ExecutionAttemptId, InstanceId>,
    acknowledged: BTreeSet<ExecutionAttemptId>,
    acks: Vec<CheckpointAck>,
    state: PendingState,
}

impl PendingCheckpoint {
    /// Begins to wait for the acknowledgement of every attempt.
    #[must_use]
    pub fn new(
        checkpoint: CheckpointId,
        kind: SnapshotKind,
        base: Option<CheckpointId>,
        triggered: Instant,
        deadline: Instant,
        participants: &[(InstanceId, Vec<ExecutionAttemptId>)],
    ) -> Self {
        let expected = participants
            .iter()
            .flat_map(|(instance, attempts)| attempts.iter().map(|a| (*a, *instance)))
            .collect();
        Self {
            checkpoint,
            kind,
            base,
            triggered,
            deadline,
            expected,
            acknowledged: BTreeSet::new(),
            acks: Vec::new(),
            state: PendingState::Pending,
        }
    }

    /// A TaskManager's part.
    pub fn acknowledge(&mut self, instance: InstanceId, ack: CheckpointAck) -> AckResult {
        match self.state {
            PendingState::Pending => {}
            PendingState::Completing => {
                return if self.are_all_known(instance, &ack) {
                    AckResult::Duplicate
                } else {
                    AckResult::Unknown
                };
            }
            PendingState::Aborted(_) => return AckResult::Discarded,
        }
        if !self.are_all_known(instance, &ack) {
            return AckResult::Unknown;
        }
        if ack
            .subtasks
            .iter()
            .any(|s| self.acknowledged.contains(&s.attempt))
        {
            return AckResult::Duplicate;
        }
        self.acknowledged
            .extend(ack.subtasks.iter().map(|s| s.attempt));
        self.acks.push(ack);
        if self.acknowledged.len() == self.expected.len() {
            self.state = PendingState::Completing;
            AckResult::Complete
        } else {
            AckResult::Success
        }
    }

    fn are_all_known(&self, instance: InstanceId, ack: &CheckpointAck) -> bool {
        ack.checkpoint == self.checkpoint
            && !ack.subtasks.is_empty()
            && ack
                .subtasks
                .iter()
                .all(|s| self.expected.get(&s.attempt) == Some(&instance))
    }

    /// Gives the attempt up; `false` when it is too late for that or has happened.
    pub fn abort(&mut self, reason: CheckpointFailureReason) -> bool {
        match self.state {
            PendingState::Pending => {
                self.state = PendingState::Aborted(reason);
                true
            }
            PendingState::Completing | PendingState::Aborted(_) => false,
        }
    }

    /// Aborts at the deadline; `true` when that was now.
    pub fn expire(&mut self, now: Instant) -> bool {
        now >= self.deadline && self.abort(CheckpointFailureReason::Expired)
    }

    /// A newer checkpoint has every acknowledgement; savepoints stand for themselves.
    pub fn subsume(&mut self) -> bool {
        !self.kind.is_savepoint() && self.abort(CheckpointFailureReason::Subsumed)
    }

    /// When it expires, unless it is past that.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        (self.state == PendingState::Pending).then_some(self.deadline)
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &PendingState {
        &self.state
    }

    /// Subtasks that have acknowledged, of all.
    #[must_use]
    pub fn progress(&self) -> (u32, u32) {
        (self.acknowledged.len() as u32, self.expected.len() as u32)
    }

    /// What has been acknowledged.
    #[must_use]
    pub fn acks(&self) -> &[CheckpointAck] {
        &self.acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::{ack_of, attempt_of};
    use std::time::Duration;

    const ONE: InstanceId = InstanceId(1);
    const TWO: InstanceId = InstanceId(2);

    fn pending(kind: SnapshotKind) -> PendingCheckpoint {
        let now = Instant::now();
        PendingCheckpoint::new(
            CheckpointId(5),
            kind,
            None,
            now,
            now + Duration::from_secs(10),
            &[
                (ONE, vec![attempt_of(0, 0, 1), attempt_of(0, 1, 1)]),
                (TWO, vec![attempt_of(0, 2, 1)]),
            ],
        )
    }

    #[tokio::test(start_paused = true)]
    async fn acks_of_every_attempt_complete_it_and_each_counts_once() {
        let mut p = pending(SnapshotKind::Checkpoint);
        let one = ack_of(5, &[attempt_of(0, 0, 1), attempt_of(0, 1, 1)]);
        assert_eq!(p.acknowledge(ONE, one.clone()), AckResult::Success);
        assert_eq!(p.acknowledge(ONE, one.clone()), AckResult::Duplicate);
        assert_eq!(p.progress(), (2, 3));
        let two = ack_of(5, &[attempt_of(0, 2, 1)]);
        assert_eq!(p.acknowledge(TWO, two), AckResult::Complete);
        assert_eq!(p.acknowledge(ONE, one), AckResult::Duplicate);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_ack_of_an_old_attempt_does_not_complete_the_checkpoint() {
        let mut p = pending(SnapshotKind::Checkpoint);
        let one = ack_of(5, &[attempt_of(0, 0, 1), attempt_of(0, 1, 1)]);
        p.acknowledge(ONE, one);
        for (instance, attempt) in [
            (TWO, attempt_of(0, 2, 0)),
            (ONE, attempt_of(0, 2, 1)),
            (TWO, attempt_of(1, 2, 1)),
        ] {
            let ack = ack_of(5, &[attempt]);
            assert_eq!(p.acknowledge(instance, ack), AckResult::Unknown);
        }
        assert_eq!(p.acknowledge(TWO, ack_of(5, &[])), AckResult::Unknown);
        assert_eq!(*p.state(), PendingState::Pending);
    }

    #[tokio::test(start_paused = true)]
    async fn a_completing_checkpoint_cannot_expire_or_be_aborted() {
        let mut p = pending(SnapshotKind::Checkpoint);
        let late = Instant::now() + Duration::from_secs(100);
        p.acknowledge(ONE, ack_of(5, &[attempt_of(0, 0, 1), attempt_of(0, 1, 1)]));
        p.acknowledge(TWO, ack_of(5, &[attempt_of(0, 2, 1)]));
        assert!(!p.expire(late) && !p.abort(CheckpointFailureReason::Declined) && !p.subsume());
        assert_eq!(p.deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_checkpoint_discards_what_comes_late() {
        let mut p = pending(SnapshotKind::Checkpoint);
        assert!(!p.expire(Instant::now()));
        assert!(p.expire(Instant::now() + Duration::from_secs(10)));
        let late = ack_of(5, &[attempt_of(0, 2, 1)]);
        assert_eq!(p.acknowledge(TWO, late), AckResult::Discarded);
    }

    #[tokio::test(start_paused = true)]
    async fn checkpoints_are_subsumed_and_savepoints_are_not() {
        assert!(pending(SnapshotKind::Checkpoint).subsume());
        assert!(pending(SnapshotKind::Final).subsume());
        assert!(!pending(SnapshotKind::Savepoint).subsume());
        assert!(!pending(SnapshotKind::StopWithSavepoint).subsume());
    }
}
