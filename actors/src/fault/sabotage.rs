//! Ten ways to break the engine on purpose: a harness is trusted only after it has caught each.

/// One of them. Each is a single `if` in the code that it breaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "fault-points", derive(Debug))]
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
    /// Each restart counts twice.
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

    /// As a node is told.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AckBeforeUpload => "ack-before-upload",
            Self::SkipAlignment => "skip-alignment",
            Self::IgnoreEpoch => "ignore-epoch",
            Self::CommitWithoutPermit => "commit-without-permit",
            Self::RestoreOlder => "restore-older",
            Self::LoseTimer => "lose-timer",
            Self::DropPreImage => "drop-pre-image",
            Self::LeakSlot => "leak-slot",
            Self::MiscountRestarts => "miscount-restarts",
            Self::DeliverTwice => "deliver-twice",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|sabotage| sabotage.name() == name)
    }

    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}
