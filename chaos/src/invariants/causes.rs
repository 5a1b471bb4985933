//! S6: each cause that the job's history names must be explained by a fault that was struck before.

use perennial_actors::model::FailureKind;

use crate::plan::{Fault, PlannedFault, StoreFault, Target};

/// Whether a fault can lead to such a failure, directly or by what it sets off.
#[must_use]
pub fn explains(planned: &PlannedFault, kind: &FailureKind) -> bool {
    let fault = &planned.what;
    let is_user = matches!(
        fault,
        Fault::UserPanic { .. } | Fault::UserPanicIn { .. } | Fault::UserError { .. }
    );
    let is_client = matches!(fault, Fault::ClientSavepoint | Fault::Rescale { .. });
    let is_storage = matches!(fault, Fault::Store(_) | Fault::Data(_));
    let is_actor = matches!(
        fault,
        Fault::ActorPanic(_) | Fault::SlowHandler { .. } | Fault::NoHeartbeats { .. }
    );
    let is_node = matches!(
        fault,
        Fault::Kill { .. }
            | Fault::Pause { .. }
            | Fault::Terminate { .. }
            | Fault::RollingRestart
            | Fault::UserStuck
    );
    let is_link = matches!(fault, Fault::Link(_));
    let is_of_leader = matches!(
        planned.target,
        Target::Leader | Target::Standby | Target::AllNodes
    );
    match kind {
        FailureKind::Panic { .. } => {
            matches!(fault, Fault::UserPanic { .. } | Fault::UserPanicIn { .. })
        }
        FailureKind::User { .. } => matches!(fault, Fault::UserError { .. }),
        FailureKind::PeerLost { .. }
        | FailureKind::TaskManagerLost { .. }
        | FailureKind::NoSlots { .. } => is_node || is_link || is_actor,
        FailureKind::DamagedSnapshot { .. } => {
            matches!(
                fault,
                Fault::Store(
                    StoreFault::MissingObject
                        | StoreFault::CorruptObject
                        | StoreFault::TruncatedObject
                        | StoreFault::CutBody { .. }
                        | StoreFault::Empty
                )
            )
        }
        FailureKind::State { .. } | FailureKind::Io { .. } => is_storage,
        // Whatever slows a checkpoint down.
        FailureKind::Checkpoints { .. } => !is_user && !is_client,
        FailureKind::CancellationTimeout { .. } => is_node || matches!(fault, Fault::Starve { .. }),
        FailureKind::Actor { .. } | FailureKind::Fenced { .. } => {
            is_of_leader || is_storage || is_link || is_actor
        }
        // Nothing that can be injected may lead here.
        FailureKind::Limit { .. }
        | FailureKind::IncompatibleState { .. }
        | FailureKind::BuildMismatch { .. }
        | FailureKind::Internal { .. } => false,
    }
}

/// Whether any of the faults explains the failure.
pub fn is_explained<'a>(
    kind: &FailureKind,
    mut struck: impl Iterator<Item = &'a PlannedFault>,
) -> bool {
    struck.any(|fault| explains(fault, kind))
}
