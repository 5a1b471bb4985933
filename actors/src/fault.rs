//! Faults from inside: what a client may order by control message ([`Injection`]), the points in the code where one may strike
//! ([`FaultPoints`]), and the ways to break the engine on purpose ([`Sabotage`]).
//!
//! Invariant: nothing here happens by itself. Injections are obeyed only where `chaos.enabled` is true; points and sabotage exist only
//! with the feature `fault-points`, without which [`FaultPoints`] is a value without content whose calls come to nothing.

mod points;
mod sabotage;
mod site;

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(feature = "fault-points")]
pub use points::{FaultAction, FaultPointSpec, FaultScope, Hits, Platform, SpecError};
pub use points::{FaultPlace, FaultPoints, InjectedError};
pub use sabotage::Sabotage;
pub use site::FaultSite;

use crate::model::{ExecutionAttemptId, JobId, ResourceId};

/// The key that injections need.
pub const CHAOS_KEY: &str = "chaos.enabled";

/// User-code faults that one job may have armed.
pub const ARMED_MAX: usize = 16;

/// The longest that an injected stall or silence may last: longer ones are a kill by another name.
pub const INJECTED_MAX: Duration = Duration::from_secs(600);

/// Kinds of actors, as the supervision tree names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorKind {
    /// Root of a JobManager process.
    JobManager,
    /// Of a job.
    JobMaster,
    /// Of a job.
    CheckpointCoordinator,
    /// One per registered TaskManager, in the JobManager.
    TaskManagerPeer,
    /// Root of a TaskManager process.
    TaskManager,
    /// The TaskManager's connection to its JobManager.
    JobManagerSession,
    /// Guardian of a task.
    Subtask,
}

/// One actor of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActorAddress {
    /// The leading one.
    JobManager,
    /// Of a job.
    JobMaster(JobId),
    /// Of a job.
    CheckpointCoordinator(JobId),
    /// Of a TaskManager.
    TaskManagerPeer(ResourceId),
    /// By name.
    TaskManager(ResourceId),
    /// Of a TaskManager.
    JobManagerSession(ResourceId),
    /// Of a job.
    Subtask(JobId, TaskAddress),
}

/// One subtask of a job, and for user code one operator in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAddress {
    /// Uid or name of an operator, or name of its vertex; `None`: the first operator of the first vertex that has inputs.
    pub operator: Option<String>,
    /// Index of the subtask.
    pub subtask: u32,
}

/// What happens to an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActorFault {
    /// Its handler panics.
    Panic,
    /// Its handler takes so long; no thread is blocked meanwhile.
    Stall(Duration),
}

impl ActorFault {
    /// Strikes the actor whose handler awaits this.
    ///
    /// # Panics
    /// When it shall.
    pub(crate) async fn strike(self, actor: ActorKind) {
        match self {
            Self::Panic => {
                tracing::warn!(?actor, "injected fault: panic");
                panic!("injected panic of {actor:?}");
            }
            Self::Stall(duration) => {
                tracing::warn!(?actor, ?duration, "injected fault: the handler stalls");
                tokio::time::sleep(duration).await;
            }
        }
    }
}

/// What happens to a whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeFault {
    /// It sends no heartbeats, nor requests for them, for a while; else it works. Only a node that has nothing else to say is lost by
    /// it: any message is a sign of life.
    NoHeartbeats(Duration),
    /// Its wall clock jumps by so many milliseconds.
    ClockOffset(i64),
}

/// How user code breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserFault {
    /// It panics.
    Panic,
    /// It returns an error.
    Error {
        /// Marked so that no restart helps.
        is_unrecoverable: bool,
    },
    /// It never returns. The task's thread waits for ever and hears no order, as one that waits for an external system does; so this
    /// works in a simulation too.
    Stuck,
}

/// One fault for a running cluster, by control message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Injection {
    /// Of an actor, when it takes the message.
    Actor {
        /// Which.
        actor: ActorAddress,
        /// What.
        fault: ActorFault,
    },
    /// Of a node.
    Node {
        /// A TaskManager; `None`: the leading JobManager.
        node: Option<ResourceId>,
        /// What.
        fault: NodeFault,
    },
    /// Of user code, at the next record of an operator.
    UserCode {
        /// Whose.
        job: JobId,
        /// Where.
        place: TaskAddress,
        /// What.
        fault: UserFault,
        /// Attempts of the subtask that it breaks, wherever they run; `u32::MAX`: each.
        times: u32,
    },
}

impl Injection {
    /// Refuses what nobody can mean.
    pub fn validate(&self) -> Result<(), String> {
        let duration = match self {
            Self::Actor {
                fault: ActorFault::Stall(duration),
                ..
            }
            | Self::Node {
                fault: NodeFault::NoHeartbeats(duration),
                ..
            } => *duration,
            Self::UserCode { times: 0, .. } => {
                return Err("a fault that strikes no time is none: say 1 or more".to_owned());
            }
            Self::Actor { .. } | Self::Node { .. } | Self::UserCode { .. } => Duration::ZERO,
        };
        if duration > INJECTED_MAX {
            return Err(format!(
                "{} s is longer than {} s, the most that an injected fault may last",
                duration.as_secs(),
                INJECTED_MAX.as_secs()
            ));
        }
        Ok(())
    }
}

/// The part of an injection that a TaskManager carries out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskManagerInjection {
    /// Its root.
    TaskManager(ActorFault),
    /// Its session.
    JobManagerSession(ActorFault),
    /// The guardian of an attempt.
    Subtask(ExecutionAttemptId, ActorFault),
    /// All of it.
    Node(NodeFault),
    /// In an attempt.
    UserCode(ExecutionAttemptId, ArmedFault),
}

/// A user-code fault on its way to the task that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedFault {
    /// By the JobMaster, so that it knows the failure again.
    pub id: u32,
    /// The operator's place in the vertex.
    pub operator: u32,
    /// What.
    pub fault: UserFault,
}

impl ArmedFault {
    /// Stands in the failure that it leads to.
    #[must_use]
    pub fn message(&self) -> String {
        marker(self.id)
    }
}

/// Delimited, so that the first is not found in the tenth.
pub(crate) fn marker(id: u32) -> String {
    format!("injected fault [{id}] in user code")
}

/// To the actor of a TaskManager in the JobManager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerFault {
    /// Of the actor.
    Actor(ActorFault),
    /// It asks for no heartbeat for so long.
    NoHeartbeats(Duration),
}

/// Why a cluster obeys no injection.
#[must_use]
pub fn refusal(who: &str) -> String {
    format!(
        "fault injection is off at {who}: set `{CHAOS_KEY}: true` in its configuration, never in production"
    )
}
