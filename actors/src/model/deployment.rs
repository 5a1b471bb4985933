//! What a TaskManager needs to start a task.

use serde::{Deserialize, Serialize};

use super::{
    CheckpointId, EdgeId, ExecutionAttemptId, InstanceId, ObjectInfo, OperatorState, ResourceId,
};

/// A TaskManager process as seen by its peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskManagerLocation {
    /// Its lasting name.
    pub resource: ResourceId,
    /// This incarnation.
    pub instance: InstanceId,
    /// `host:port` of its exchange listener.
    pub data_address: String,
}

/// The other end of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelPeer {
    /// Who runs there.
    pub attempt: ExecutionAttemptId,
    /// Where.
    pub location: TaskManagerLocation,
}

/// The channels of one edge at one task, in order of the peer's subtask index.
///
/// For [`Exchange::Forward`](super::Exchange) there is exactly one, from or to the same subtask index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeChannels {
    /// Which edge.
    pub edge: EdgeId,
    /// The other ends.
    pub peers: Vec<ChannelPeer>,
}

/// The state that a task begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRestore {
    /// The snapshot; [`TaskRestore::OF_ANOTHER_JOB`] for one that is not of this job's own sequence.
    pub checkpoint: CheckpointId,
    /// Whether keyed state of this subtask's former attempt may be rolled back to `checkpoint` in place instead of loaded.
    /// False for savepoints and after a change of parallelism.
    pub may_inherit: bool,
    /// URI of the directory that object keys are relative to.
    pub directory: String,
    /// The operators of this vertex. Keyed segments are cut to those that overlap the subtask's key groups; all subtasks'
    /// operator state is listed, for redistribution.
    pub operators: Vec<OperatorState>,
    /// What `operators` refer to by index.
    pub objects: Vec<ObjectInfo>,
    /// Drop keyed states that the operator no longer registers, instead of failing.
    pub allow_non_restored_state: bool,
}

impl TaskRestore {
    /// Stands for the number of a snapshot of another job: that number says nothing in this job's sequence, which begins anew at 1.
    pub const OF_ANOTHER_JOB: CheckpointId = CheckpointId(0);
}

/// One task to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDeployment {
    /// Its identity.
    pub attempt: ExecutionAttemptId,
    /// As decided for this run; may differ from the graph's after a rescale.
    pub parallelism: u32,
    /// Number of key groups; that of the restored snapshot when the graph's was derived.
    pub max_parallelism: u32,
    /// Incoming, in order of edges.
    pub inputs: Vec<EdgeChannels>,
    /// Outgoing, in order of edges.
    pub outputs: Vec<EdgeChannels>,
    /// State, or `None` to start empty.
    pub restore: Option<TaskRestore>,
    /// URI of the job's checkpoint directory, `<dir>/<job-id>`.
    pub checkpoint_directory: String,
}
