//! Which interval it is and what is still needed of the past: the bookkeeping of the rules of
//! [`KeyedState`](super::KeyedState) without any table.
//!
//! Invariant: whatever is not covered by the floor ([`Intervals::refresh`]) is needed by nobody: no running capture, no checkpoint that may
//! become an undo target, no checkpoint that may become a base. It does not touch entries; tables ask it before they log or forget.

use perennial_actors::model::{CheckpointId, SnapshotKind};

/// Undecided barriers that are remembered; the oldest is then taken as aborted. Flink's coordinator allows one at a time by default.
pub(super) const PENDING_MAX: usize = 64;

/// One backend's intervals.
#[derive(Debug)]
pub(super) struct Intervals {
    /// The interval that changes now belong to: the id of the last barrier, 0 before the first.
    pub(super) current: u64,
    /// Whether first changes append their pre-image.
    pub(super) is_logging: bool,
    /// Whether a deleted entry must stay as a tombstone. True whenever `is_logging` is.
    pub(super) keeps_tombstones: bool,
    /// User code has a `&mut` to an entry. Stays set when that code panics.
    pub(super) is_mutating: bool,
    /// Estimated bytes of all logs.
    pub(super) log_bytes: u64,
    /// From the start of which interval the log is complete.
    log_from: Option<u64>,
    /// The newest completed checkpoint, here or by loading.
    target: Option<u64>,
    /// Below this, tombstones may be gone.
    tombstones_from: u64,
    /// False when the target holds state that this backend dropped at loading.
    target_is_base: bool,
    pending: Vec<(u64, SnapshotKind)>,
    #[cfg(feature = "fault-points")]
    pub(super) drops_pre_images: bool,
}

impl Intervals {
    pub(super) fn new() -> Self {
        Self {
            current: 0,
            is_logging: false,
            keeps_tombstones: false,
            is_mutating: false,
            log_bytes: 0,
            log_from: None,
            target: None,
            tombstones_from: 0,
            target_is_base: false,
            pending: Vec::new(),
            #[cfg(feature = "fault-points")]
            drops_pre_images: false,
        }
    }

    /// Rule 1. False when the id does not advance.
    pub(super) fn begin(&mut self, checkpoint: CheckpointId, kind: SnapshotKind) -> bool {
        if checkpoint.0 <= self.current {
            return false;
        }
        self.current = checkpoint.0;
        if self.pending.len() == PENDING_MAX {
            self.pending.remove(0);
        }
        self.pending.push((checkpoint.0, kind));
        if !self.is_logging {
            self.is_logging = true;
            self.log_from = Some(checkpoint.0);
        }
        self.keeps_tombstones = true;
        #[cfg(feature = "fault-points")]
        if self.drops_pre_images {
            self.is_logging = false;
        }
        true
    }

    /// Whether everything that changed since `base` can be told.
    pub(super) fn is_base(&self, base: CheckpointId) -> bool {
        let is_known = (self.target == Some(base.0) && self.target_is_base)
            || self
                .pending
                .iter()
                .any(|(id, kind)| *id == base.0 && !kind.is_savepoint());
        is_known && base.0 < self.current && base.0 >= self.tombstones_from
    }

    /// Whether a checkpoint that was undone to may be built upon.
    pub(super) fn is_usable_as_base(&self, checkpoint: CheckpointId) -> bool {
        self.target != Some(checkpoint.0) || self.target_is_base
    }

    /// Rule 5. False when it changes nothing: a savepoint, an unknown or an older checkpoint.
    pub(super) fn confirm(&mut self, checkpoint: CheckpointId) -> bool {
        let Some(at) = self.pending.iter().position(|(id, _)| *id == checkpoint.0) else {
            return false;
        };
        let (_, kind) = self.pending.remove(at);
        if kind.is_savepoint() {
            return true;
        }
        self.target = Some(checkpoint.0);
        self.target_is_base = true;
        // What was begun earlier and is not decided is subsumed; a savepoint is decided by itself.
        self.pending
            .retain(|(id, kind)| *id > checkpoint.0 || kind.is_savepoint());
        true
    }

    /// Rule 6.
    pub(super) fn abort(&mut self, checkpoint: CheckpointId) {
        self.pending.retain(|(id, _)| *id != checkpoint.0);
    }

    /// Rule 7: why the log does not lead back to a checkpoint, if it does not.
    pub(super) fn undo_obstacle(&self, checkpoint: CheckpointId) -> Option<String> {
        if self.is_mutating {
            return Some("user code panicked while changing state".to_owned());
        }
        let kind = self.pending.iter().find(|(id, _)| *id == checkpoint.0);
        match kind {
            Some((_, kind)) if kind.is_savepoint() => {
                return Some(format!("{checkpoint} is a savepoint"));
            }
            Some(_) => {}
            None if self.target == Some(checkpoint.0) => {}
            None => {
                return Some(format!(
                    "checkpoint {checkpoint} is neither pending nor the newest completed one here"
                ));
            }
        }
        match self.log_from {
            Some(from) if from <= checkpoint.0 => None,
            Some(_) | None => Some(format!(
                "the log back to checkpoint {checkpoint} was given up"
            )),
        }
    }

    /// A completed checkpoint is the start of the current interval, and nothing happened since.
    pub(super) fn settle_on(&mut self, checkpoint: CheckpointId, is_base: bool) {
        self.current = checkpoint.0;
        self.pending.clear();
        self.target = Some(checkpoint.0);
        self.target_is_base = is_base;
        self.tombstones_from = self.tombstones_from.min(checkpoint.0);
        self.is_logging = true;
        self.keeps_tombstones = true;
        self.log_from = Some(checkpoint.0);
    }

    /// Rule 5's bound: segments and tombstones of earlier intervals may go. `captures` is the lowest id or base of a running capture.
    pub(super) fn refresh(&mut self, captures: Option<u64>) -> u64 {
        let pending = self
            .pending
            .iter()
            .filter(|(_, kind)| !kind.is_savepoint())
            .map(|(id, _)| *id)
            .min();
        match [self.target, pending, captures].into_iter().flatten().min() {
            Some(floor) => {
                self.tombstones_from = self.tombstones_from.max(floor);
                floor
            }
            None => {
                // Nothing can be a base or an undo target before the next barrier.
                self.is_logging = false;
                self.keeps_tombstones = false;
                self.log_from = None;
                self.tombstones_from = self.current + 1;
                u64::MAX
            }
        }
    }

    /// Rule 9: no way back any more, except what running captures need (`from` the lowest id of one).
    pub(super) fn give_up_undo(&mut self, from: Option<u64>) -> u64 {
        self.log_from = from;
        self.is_logging = from.is_some();
        from.unwrap_or(u64::MAX)
    }

    /// Whether the log is complete from a base on, so that changes since can be read off it.
    pub(super) fn is_logged_since(&self, base: u64) -> bool {
        self.log_from.is_some_and(|from| from <= base)
    }
}
