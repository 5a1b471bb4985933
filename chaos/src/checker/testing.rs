//! Recoveries as tests make them up.

use perennial_actors::model::{FailureKind, RecoveryPhases, RecoveryRecord, TaskFailure};

/// A recovery of which nothing is known but what is said here.
pub(crate) fn recovery(number: u32, detected_ms: u64, cause: FailureKind) -> RecoveryRecord {
    RecoveryRecord {
        number,
        attempt: None,
        detected_ms,
        cause: TaskFailure::of_job(cause),
        other_causes: Vec::new(),
        decision: String::new(),
        checkpoint: None,
        skipped: Vec::new(),
        phases: RecoveryPhases::default(),
        restored: (0, 0),
    }
}

/// A cause that says nothing.
pub(crate) fn some_cause() -> FailureKind {
    FailureKind::Internal {
        message: String::new(),
    }
}
