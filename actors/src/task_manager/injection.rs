//! What a TaskManager does with an injected fault.

use super::State;
use crate::clock::Instant;
use crate::fault::{ActorKind, NodeFault, TaskManagerInjection, refusal};
use crate::job_manager_session::SessionMessage;
use crate::subtask::SubtaskMessage;
use crate::task_runner::TaskControl;

impl State {
    /// The JobManager has looked whether this node wants faults; a node that does not obeys nobody.
    pub(super) async fn inject(&mut self, injection: TaskManagerInjection) {
        if !self.options.settings.is_chaos_enabled {
            tracing::warn!("{}", refusal(&self.options.resource.to_string()));
            return;
        }
        tracing::warn!(?injection, "fault injected");
        match injection {
            TaskManagerInjection::TaskManager(fault) => fault.strike(ActorKind::TaskManager).await,
            TaskManagerInjection::JobManagerSession(fault) => {
                self.tell_session(SessionMessage::Fault(fault));
            }
            TaskManagerInjection::Subtask(attempt, fault) => {
                if let Some(entry) = self.tasks.get(&attempt) {
                    let _ended = entry.guardian.cast(SubtaskMessage::Fault(fault));
                }
            }
            TaskManagerInjection::Node(NodeFault::NoHeartbeats(duration)) => {
                self.silent_until = Some(Instant::now() + duration);
            }
            TaskManagerInjection::Node(NodeFault::ClockOffset(millis)) => {
                if !self.options.clock.jump(millis) {
                    tracing::warn!("the clock of this node cannot be set off");
                }
            }
            TaskManagerInjection::UserCode(attempt, fault) => {
                if let Some(entry) = self.tasks.get(&attempt) {
                    let order = SubtaskMessage::Control(TaskControl::Fault(fault));
                    let _ended = entry.guardian.cast(order);
                }
            }
        }
    }
}
