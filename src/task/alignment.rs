//! When a task's inputs have all reached a barrier, by the rules of Flink's `SingleCheckpointBarrierHandler`.
//! Pure: knows channels by number and holds nothing back itself.
//!
//! Invariant: a snapshot is due exactly when it is known (by a barrier or by an announcement) and every channel has either
//! delivered its barrier or ended.

use std::collections::{BTreeSet, VecDeque};

use perennial_actors::model::{CheckpointBarrier, CheckpointId};

/// Announcements that wait for their barriers; the oldest go, as those of a coordinator that gave them up.
const ANNOUNCED_MAX: usize = 64;
/// Snapshots that are aligned at the same time, which only barriers that block nothing can be; the oldest go.
const PENDING_MAX: usize = 64;
/// Aborts that are remembered, so that barriers still on their way only pass; of more, all below the oldest count as aborted.
const ABANDONED_MAX: usize = 64;

/// What to do after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// Nothing changes.
    Go,
    /// Leave this channel's elements in its queue until the alignment ends.
    Block,
    /// Every channel has arrived: take the snapshot, then end all blocks.
    Due(CheckpointBarrier),
    /// A newer barrier overtook an alignment that will not complete: end all blocks, then block this channel if told so.
    Restarted {
        /// Whether the channel that brought the newer barrier is to be blocked.
        is_blocking: bool,
    },
}

/// Whether waiting channels are blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// Exactly once.
    Aligned,
    /// At least once.
    Never,
}

/// A snapshot that some channels have delivered a barrier of.
#[derive(Debug)]
struct Pending {
    barrier: CheckpointBarrier,
    arrived: Vec<bool>,
}

/// The alignment of one task.
#[derive(Debug)]
pub(crate) struct Aligner {
    blocking: Blocking,
    ended: Vec<bool>,
    /// In order of their numbers; at most one where barriers block.
    pending: VecDeque<Pending>,
    /// In order of their numbers.
    announced: VecDeque<CheckpointBarrier>,
    /// It and all below are over.
    last_done: Option<CheckpointId>,
    /// Aborted ones above it.
    abandoned: BTreeSet<CheckpointId>,
}

impl Aligner {
    pub(crate) fn new(channels: usize, blocking: Blocking) -> Self {
        Self {
            blocking,
            ended: vec![false; channels],
            pending: VecDeque::new(),
            announced: VecDeque::new(),
            last_done: None,
            abandoned: BTreeSet::new(),
        }
    }

    /// Whether channels are blocked.
    pub(crate) fn is_blocking(&self) -> bool {
        self.blocking == Blocking::Aligned && !self.pending.is_empty()
    }

    /// A channel delivered a barrier.
    pub(crate) fn barrier(&mut self, channel: usize, barrier: CheckpointBarrier) -> Alignment {
        let checkpoint = barrier.checkpoint;
        if self.is_done(checkpoint) {
            return Alignment::Go;
        }
        let is_blocking = self.blocking == Blocking::Aligned;
        let mut is_restarted = false;
        if is_blocking && let Some(newest) = self.pending.back() {
            if checkpoint < newest.barrier.checkpoint {
                return Alignment::Go;
            }
            is_restarted = checkpoint > newest.barrier.checkpoint;
            if is_restarted {
                self.pending.clear();
            }
        }
        let place = |pending: &VecDeque<Pending>| {
            pending.binary_search_by_key(&checkpoint, |pending| pending.barrier.checkpoint)
        };
        if place(&self.pending).is_err() && self.pending.len() == PENDING_MAX {
            self.pending.pop_front();
        }
        let at = place(&self.pending).unwrap_or_else(|at| {
            let arrived = vec![false; self.ended.len()];
            self.pending.insert(at, Pending { barrier, arrived });
            at
        });
        self.pending[at].arrived[channel] = true;
        if let Some(due) = self.due() {
            Alignment::Due(due)
        } else if is_restarted {
            Alignment::Restarted { is_blocking }
        } else if is_blocking {
            Alignment::Block
        } else {
            Alignment::Go
        }
    }

    /// A channel ended. There may be more than one that only waited for it: see [`Aligner::next_due`].
    pub(crate) fn ended(&mut self, channel: usize) -> Alignment {
        self.ended[channel] = true;
        self.due().map_or(Alignment::Go, Alignment::Due)
    }

    /// The next snapshot all of whose barriers have come.
    pub(crate) fn next_due(&mut self) -> Option<CheckpointBarrier> {
        let due = self.pending.iter().find(|pending| {
            let mut channels = pending.arrived.iter().zip(&self.ended);
            channels.all(|(arrived, ended)| *arrived || *ended)
        })?;
        let due = due.barrier;
        self.done(due.checkpoint);
        Some(due)
    }

    /// The JobManager has begun a snapshot; barriers are on their way through channels that are still open.
    pub(crate) fn announce(&mut self, barrier: CheckpointBarrier) -> Alignment {
        if self.is_done(barrier.checkpoint)
            || self
                .announced
                .back()
                .is_some_and(|a| a.checkpoint >= barrier.checkpoint)
        {
            return Alignment::Go;
        }
        if self.announced.len() == ANNOUNCED_MAX {
            self.announced.pop_front();
        }
        self.announced.push_back(barrier);
        self.due().map_or(Alignment::Go, Alignment::Due)
    }

    /// The next snapshot that nothing but its announcement was needed for, once every channel has ended.
    pub(crate) fn announced_at_end(&mut self) -> Option<CheckpointBarrier> {
        if self.has_ended() { self.due() } else { None }
    }

    /// A snapshot was aborted, and no other: `true` when an alignment ended by it (end all blocks).
    pub(crate) fn abandon(&mut self, checkpoint: CheckpointId) -> bool {
        if self.is_done(checkpoint) {
            return false;
        }
        self.announced.retain(|a| a.checkpoint != checkpoint);
        let before = self.pending.len();
        self.pending.retain(|p| p.barrier.checkpoint != checkpoint);
        self.abandoned.insert(checkpoint);
        if self.abandoned.len() > ABANDONED_MAX
            && let Some(oldest) = self.abandoned.pop_first()
        {
            self.done(oldest);
        }
        self.pending.len() < before
    }

    /// Whether every channel has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.iter().all(|e| *e)
    }

    fn is_done(&self, checkpoint: CheckpointId) -> bool {
        self.last_done.is_some_and(|done| checkpoint <= done)
            || self.abandoned.contains(&checkpoint)
    }

    fn due(&mut self) -> Option<CheckpointBarrier> {
        if !self.pending.is_empty() {
            return self.next_due();
        }
        if !self.has_ended() {
            return None;
        }
        let announced = *self.announced.front()?;
        self.done(announced.checkpoint);
        Some(announced)
    }

    /// Older ones that lack a barrier will never have it: channels deliver in order.
    fn done(&mut self, checkpoint: CheckpointId) {
        self.last_done = self.last_done.max(Some(checkpoint));
        self.pending.retain(|p| p.barrier.checkpoint > checkpoint);
        self.announced.retain(|a| a.checkpoint > checkpoint);
        self.abandoned.retain(|a| *a > checkpoint);
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::SnapshotKind;

    use super::*;

    fn barrier(n: u64) -> CheckpointBarrier {
        CheckpointBarrier {
            checkpoint: CheckpointId(n),
            base: None,
            kind: SnapshotKind::Checkpoint,
            timestamp_ms: 0,
        }
    }

    /// Aligned: the first blocks, the last completes.
    #[test]
    fn a_snapshot_is_due_when_the_last_channel_arrives() {
        let mut aligner = Aligner::new(3, Blocking::Aligned);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Block);
        assert_eq!(aligner.barrier(2, barrier(1)), Alignment::Block);
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Due(barrier(1)));
        assert_eq!(aligner.barrier(1, barrier(2)), Alignment::Block);
    }

    /// Barriers are only counted, as by Flink's `CheckpointBarrierTracker`.
    #[test]
    fn at_least_once_never_blocks() {
        let mut aligner = Aligner::new(2, Blocking::Never);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Go);
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Due(barrier(1)));
    }

    /// The older one's late barriers only pass.
    #[test]
    fn a_newer_barrier_ends_an_older_alignment() {
        let mut aligner = Aligner::new(2, Blocking::Aligned);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Block);
        assert_eq!(
            aligner.barrier(1, barrier(2)),
            Alignment::Restarted { is_blocking: true }
        );
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Go);
        assert_eq!(aligner.barrier(0, barrier(2)), Alignment::Due(barrier(2)));
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Go);
    }

    /// Also for the final checkpoint: ended channels count as arrived, an announcement stands in for a barrier.
    #[test]
    fn ended_channels_count_as_arrived() {
        let mut aligner = Aligner::new(2, Blocking::Aligned);
        assert_eq!(aligner.announce(barrier(1)), Alignment::Go);
        assert_eq!(aligner.ended(0), Alignment::Go);
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Due(barrier(1)));
        assert_eq!(aligner.announce(barrier(2)), Alignment::Go);
        assert_eq!(aligner.ended(1), Alignment::Due(barrier(2)));
        assert_eq!(aligner.announce(barrier(2)), Alignment::Go);
        assert_eq!(aligner.announce(barrier(3)), Alignment::Due(barrier(3)));
    }

    /// Several are under way when the last channel ends: each is due, in order.
    #[test]
    fn every_announced_snapshot_is_due_once_all_channels_have_ended() {
        let mut aligner = Aligner::new(1, Blocking::Aligned);
        assert_eq!(aligner.announce(barrier(1)), Alignment::Go);
        assert_eq!(aligner.announce(barrier(2)), Alignment::Go);
        assert_eq!(aligner.ended(0), Alignment::Due(barrier(1)));
        assert_eq!(aligner.announced_at_end(), Some(barrier(2)));
        assert_eq!(aligner.announced_at_end(), None);
    }

    /// Several are under way: each is taken, also when a channel ends that two of them waited for.
    #[test]
    fn at_least_once_a_newer_barrier_ends_no_older_snapshot() {
        let mut aligner = Aligner::new(3, Blocking::Never);
        for channel in [0, 1] {
            assert_eq!(aligner.barrier(channel, barrier(5)), Alignment::Go);
        }
        assert_eq!(aligner.barrier(0, barrier(6)), Alignment::Go);
        assert_eq!(aligner.barrier(2, barrier(5)), Alignment::Due(barrier(5)));
        assert_eq!(aligner.barrier(1, barrier(6)), Alignment::Go);
        for channel in [0, 1] {
            assert_eq!(aligner.barrier(channel, barrier(7)), Alignment::Go);
        }
        assert_eq!(aligner.ended(2), Alignment::Due(barrier(6)));
        assert_eq!(aligner.next_due(), Some(barrier(7)));
        assert_eq!(aligner.next_due(), None);
    }

    /// A savepoint that was asked for meanwhile fails: the checkpoint is taken all the same.
    #[test]
    fn an_abort_concerns_no_other_snapshot() {
        for blocking in [Blocking::Aligned, Blocking::Never] {
            let mut aligner = Aligner::new(2, blocking);
            aligner.barrier(0, barrier(5));
            assert!(!aligner.abandon(CheckpointId(6)));
            assert_eq!(aligner.barrier(1, barrier(5)), Alignment::Due(barrier(5)));
            assert_eq!(aligner.barrier(0, barrier(6)), Alignment::Go);
            assert_eq!(aligner.announce(barrier(7)), Alignment::Go);
            assert!(!aligner.abandon(CheckpointId(8)));
            assert_eq!(aligner.ended(0), Alignment::Go);
            assert_eq!(aligner.ended(1), Alignment::Due(barrier(7)));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut aligner = Aligner::new(2, Blocking::Never);
        for n in 1..=1000 {
            aligner.barrier(0, barrier(2 * n));
            aligner.abandon(CheckpointId(2 * n + 1));
        }
        assert_eq!(aligner.pending.len(), PENDING_MAX);
        assert_eq!(aligner.abandoned.len(), ABANDONED_MAX);
    }

    /// An abort ends the alignment and lets stragglers pass.
    #[test]
    fn an_aborted_snapshot_is_forgotten() {
        let mut aligner = Aligner::new(2, Blocking::Aligned);
        assert_eq!(aligner.barrier(0, barrier(1)), Alignment::Block);
        assert!(aligner.abandon(CheckpointId(1)));
        assert_eq!(aligner.barrier(1, barrier(1)), Alignment::Go);
        assert!(!aligner.abandon(CheckpointId(2)));
        assert_eq!(aligner.barrier(0, barrier(2)), Alignment::Go);
        assert_eq!(aligner.barrier(0, barrier(3)), Alignment::Block);
        assert_eq!(aligner.barrier(1, barrier(3)), Alignment::Due(barrier(3)));
    }
}
