//! Ten ways to break the engine on purpose: a harness is trusted only after it has caught each.

/// One of them. Each is a single `if` in the code that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sabotage {
    /// A TaskManager acknowledges a checkpoint before its object is written.
    AckBeforeUpload,
    /// The first channel whose barrier has come is read on.
    SkipAlignment,
    /// A leader that has been replaced goes on, and is listened to.
    IgnoreEpoch,
    /// A sink commits what it has prepared at once.
    CommitWithoutPermit,
    /// A restart begins with the checkpoint before the newest.
    RestoreOlder,
    /// Some timers do not fire.
    LoseTimer,
    /// Some changes are not logged, so that neither capture nor undo know the value before.
    DropPreImage,
    /// A job that ends keeps its slots.
    LeakSlot,
    /// Each failure counts twice.
    MiscountRestarts,
    /// Some batches are processed twice.
    DeliverTwice,
}

#[cfg(feature = "fault-points")]
impl Sabotage {
    /// All.
    pub const ALL: [Self; 10] = [
        Self::AckBeforeUpload,
        Self::SkipAlignment,
        Self::IgnoreEpoch,
        Self::CommitWithoutPermit,
        Self::RestoreOlder,
        Self::LoseTimer,
        Self::DropPreImage,
        Self::LeakSlot,
        Self::MiscountRestarts,
        Self::DeliverTwice,
    ];

    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}
