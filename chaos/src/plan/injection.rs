//! Faults of a plan that travel by control message, in the words of the message.

use perennial_actors::fault::{
    ActorAddress, ActorFault, ActorKind, Injection, NodeFault, TaskAddress, UserFault,
};
use perennial_actors::model::{JobId, ResourceId};

use super::{Fault, Target};

impl Fault {
    /// The message that strikes it into a running cluster with these TaskManagers; `None` for a fault that comes from outside, or when
    /// there is no TaskManager to strike. What a target does not say (which subtask) is the first.
    #[must_use]
    pub fn injection(
        &self,
        target: Target,
        job: JobId,
        task_managers: &[ResourceId],
    ) -> Option<Injection> {
        let node = || match target {
            Target::TaskManager(n)
            | Target::ControlLink(n)
            | Target::AllLinksOf(n)
            | Target::StoreOf(n)
            | Target::DataLink(n, _) => {
                let place = (n as usize).checked_rem(task_managers.len())?;
                task_managers.get(place).cloned()
            }
            Target::AllTaskManagers | Target::UserCode => task_managers.first().cloned(),
            Target::Leader | Target::Standby | Target::AllNodes | Target::Store => None,
        };
        let user = |fault, times| Injection::UserCode {
            job,
            place: TaskAddress::default(),
            fault,
            times,
        };
        let actor = |kind, fault| {
            // An actor of a TaskManager is one of the first, when the target names none.
            let at = || node().or_else(|| task_managers.first().cloned());
            let actor = match kind {
                ActorKind::JobManager => ActorAddress::JobManager,
                ActorKind::JobMaster => ActorAddress::JobMaster(job),
                ActorKind::CheckpointCoordinator => ActorAddress::CheckpointCoordinator(job),
                ActorKind::TaskManagerPeer => ActorAddress::TaskManagerPeer(at()?),
                ActorKind::TaskManager => ActorAddress::TaskManager(at()?),
                ActorKind::JobManagerSession => ActorAddress::JobManagerSession(at()?),
                ActorKind::Subtask => ActorAddress::Subtask(job, TaskAddress::default()),
            };
            Some(Injection::Actor { actor, fault })
        };
        let on_node = |fault| Injection::Node {
            node: node(),
            fault,
        };
        match self {
            Self::ActorPanic(kind) => actor(*kind, ActorFault::Panic),
            Self::SlowHandler { actor: kind, down } => actor(*kind, ActorFault::Stall(*down)),
            Self::NoHeartbeats { down } => Some(on_node(NodeFault::NoHeartbeats(*down))),
            Self::ClockOffset { millis } => Some(on_node(NodeFault::ClockOffset(*millis))),
            Self::UserPanic { times } => Some(user(UserFault::Panic, *times)),
            Self::UserError {
                times,
                is_unrecoverable,
            } => {
                let is_unrecoverable = *is_unrecoverable;
                Some(user(UserFault::Error { is_unrecoverable }, *times))
            }
            Self::UserStuck => Some(user(UserFault::Stuck, 1)),
            Self::Kill { .. }
            | Self::Pause { .. }
            | Self::Terminate { .. }
            | Self::RollingRestart
            | Self::Starve { .. }
            | Self::Link(_)
            | Self::Store(_)
            | Self::Data(_)
            | Self::ClientSavepoint
            | Self::Rescale { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_target_is_a_taskmanager_by_its_number_or_the_leader() {
        let names = ["a", "b"].map(|name| ResourceId(name.to_owned()));
        let fault = Fault::ClockOffset { millis: 5 };
        let node = |target| match fault.injection(target, JobId(1), &names) {
            Some(Injection::Node { node, .. }) => node.map(|n| n.0),
            other => panic!("{other:?}"),
        };
        assert_eq!(node(Target::TaskManager(3)), Some("b".to_owned()));
        assert_eq!(node(Target::Leader), None);
        let kill = Fault::Kill {
            down: Duration::ZERO,
        };
        assert_eq!(
            kill.injection(Target::TaskManager(0), JobId(1), &names),
            None
        );
        let session = Fault::ActorPanic(ActorKind::JobManagerSession);
        assert_eq!(session.injection(Target::Leader, JobId(1), &[]), None);
    }
}
