//! From an execution graph to the deployments of one wave. Pure.
//!
//! Invariant: both ends of every channel name each other's current attempt; the wave is closed under edges, so all of them are new.

use std::collections::{BTreeMap, BTreeSet};

use super::AssignedState;
use crate::checkpoint_coordinator::RestoredSnapshot;
use crate::execution_graph::ExecutionGraph;
use crate::failover::SubtaskId;
use crate::model::{
    ChannelPeer, EdgeChannels, Exchange, FailureKind, InstanceId, JobEdge, JobGraph, LeaderEpoch,
    SubtaskIndex, TaskDeployment, VertexId,
};

/// A snapshot spread over the subtasks.
pub(super) struct Restore<'a> {
    pub(super) snapshot: &'a RestoredSnapshot,
    pub(super) assigned: &'a AssignedState,
    /// Under which leader and where the former attempt of each subtask ran.
    pub(super) former: &'a BTreeMap<SubtaskId, (LeaderEpoch, InstanceId)>,
}

/// The deployments of `tasks`, which have their new attempts and places already, by TaskManager.
pub(super) fn deployments(
    graph: &JobGraph,
    executions: &ExecutionGraph,
    tasks: &BTreeSet<SubtaskId>,
    restore: Option<&Restore<'_>>,
) -> Result<BTreeMap<InstanceId, Vec<TaskDeployment>>, FailureKind> {
    let directory = graph.checkpoint_directory();
    let mut by_instance: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for id in tasks {
        let peer = peer(executions, *id)?;
        let vertex = graph
            .vertices
            .get(id.vertex.0 as usize)
            .ok_or_else(|| internal(format!("no {id}")))?;
        let task_restore = match restore {
            None => None,
            Some(restore) => {
                let mut task =
                    restore.assigned.tasks.get(id).cloned().ok_or_else(|| {
                        internal(format!("the snapshot was not assigned to {id}"))
                    })?;
                task.may_inherit = restore.snapshot.is_own_checkpoint
                    && has_state_of(restore, *id, peer.location.instance)
                    && has_parallelism_of(restore.snapshot, vertex);
                Some(task)
            }
        };
        let inputs = graph
            .inputs(id.vertex)
            .map(|edge| channels(graph, executions, edge, edge.source, id.subtask))
            .collect::<Result<_, _>>()?;
        let outputs = graph
            .outputs(id.vertex)
            .map(|edge| channels(graph, executions, edge, edge.target, id.subtask))
            .collect::<Result<_, _>>()?;
        by_instance
            .entry(peer.location.instance)
            .or_default()
            .push(TaskDeployment {
                attempt: peer.attempt,
                parallelism: vertex.parallelism,
                max_parallelism: vertex.max_parallelism,
                inputs,
                outputs,
                restore: task_restore,
                checkpoint_directory: directory.clone(),
            });
    }
    Ok(by_instance)
}

/// A leader hands out again the numbers of checkpoints that its predecessor left undecided: an attempt of that one may have been cut at
/// another checkpoint of the same number.
fn has_state_of(restore: &Restore<'_>, id: SubtaskId, instance: InstanceId) -> bool {
    let former = restore.former.get(&id);
    former.is_some_and(|(epoch, on)| *on == instance && *epoch >= restore.snapshot.manifest.epoch)
}

/// The other ends of an edge, of which `other` is the far vertex.
fn channels(
    graph: &JobGraph,
    executions: &ExecutionGraph,
    edge: &JobEdge,
    other: VertexId,
    subtask: SubtaskIndex,
) -> Result<EdgeChannels, FailureKind> {
    let peers: Vec<SubtaskIndex> = match edge.exchange {
        Exchange::Forward => vec![subtask],
        Exchange::Rebalance | Exchange::Hash | Exchange::Broadcast => {
            let parallelism = graph
                .vertices
                .get(other.0 as usize)
                .map_or(0, |vertex| vertex.parallelism);
            (0..parallelism).map(SubtaskIndex).collect()
        }
    };
    Ok(EdgeChannels {
        edge: edge.id,
        peers: peers
            .into_iter()
            .map(|subtask| {
                peer(
                    executions,
                    SubtaskId {
                        vertex: other,
                        subtask,
                    },
                )
            })
            .collect::<Result<_, _>>()?,
    })
}

fn peer(executions: &ExecutionGraph, id: SubtaskId) -> Result<ChannelPeer, FailureKind> {
    executions
        .get(id)
        .and_then(|execution| {
            Some(ChannelPeer {
                attempt: execution.attempt?,
                location: execution.location.clone()?,
            })
        })
        .ok_or_else(|| internal(format!("{id} has no place to run")))
}

/// Key-group ranges are those of the snapshot, so that state lies where it is needed.
fn has_parallelism_of(snapshot: &RestoredSnapshot, vertex: &crate::model::JobVertex) -> bool {
    vertex.operators.iter().all(|operator| {
        snapshot
            .manifest
            .operators
            .iter()
            .find(|state| state.id == operator.id)
            .is_none_or(|state| state.parallelism == vertex.parallelism)
    })
}

fn internal(message: String) -> FailureKind {
    FailureKind::Internal { message }
}
