//! What each subtask reads to restore a snapshot (Flink's `StateAssignmentOperation`). Pure.
//!
//! Invariant: every key group of every stateful operator goes to exactly one subtask, with its last full segment and all deltas after it.
//! How lists of operator state are spread is the data plane's business: every subtask is given all of them.

use std::collections::BTreeMap;

use crate::checkpoint_coordinator::RestoredSnapshot;
use crate::model::{
    DataRef, FailureKind, GroupSlice, JobGraph, JobVertex, KeyGroupRange, KeyedSegment, Manifest,
    OperatorState, SubtaskIndex, TaskRestore, VertexId,
};

use super::chain;
use super::compose::Objects;

/// A snapshot checked against a graph; gives each subtask its part.
#[derive(Debug, Clone)]
pub struct RestorePlan<'a> {
    snapshot: &'a RestoredSnapshot,
    graph: &'a JobGraph,
    parallelism: Vec<u32>,
    max_parallelism: BTreeMap<VertexId, u32>,
    allow_non_restored_state: bool,
}

fn incompatible(message: String) -> FailureKind {
    FailureKind::IncompatibleState { message }
}

fn has_state(operator: &OperatorState) -> bool {
    operator.keyed.iter().any(|s| s.data.length() > 0)
        || operator.subtasks.iter().any(|s| s.operator_state.is_some())
        || operator.coordinator.is_some()
}

/// The number of key groups that a vertex must have to read the snapshot: the stored one, when an operator of it has keyed state.
pub fn effective_max_parallelism(
    vertex: &JobVertex,
    manifest: &Manifest,
) -> Result<u32, FailureKind> {
    let mut stored: Option<&OperatorState> = None;
    for operator in &vertex.operators {
        let Some(state) = manifest.operators.iter().find(|o| o.id == operator.id) else {
            continue;
        };
        if state.keyed.is_empty() {
            continue;
        }
        if let Some(other) = stored.filter(|o| o.max_parallelism != state.max_parallelism) {
            return Err(incompatible(format!(
                "operators `{}` and `{}` were stored with max parallelism {} and {} and are now chained in vertex `{}`: keep them apart",
                other.uid, state.uid, other.max_parallelism, state.max_parallelism, vertex.name
            )));
        }
        stored = Some(state);
    }
    let Some(stored) = stored else {
        return Ok(vertex.max_parallelism);
    };
    if vertex.is_max_parallelism_set && vertex.max_parallelism != stored.max_parallelism {
        return Err(incompatible(format!(
            "operator `{}` was stored with max parallelism {} and vertex `{}` sets {}: set it to the stored value, or leave it out",
            stored.uid, stored.max_parallelism, vertex.name, vertex.max_parallelism
        )));
    }
    Ok(stored.max_parallelism)
}

impl<'a> RestorePlan<'a> {
    /// Checks that the snapshot fits. `parallelism` is that of this run, by vertex.
    pub fn new(
        snapshot: &'a RestoredSnapshot,
        graph: &'a JobGraph,
        parallelism: &[u32],
    ) -> Result<Self, FailureKind> {
        let manifest = &snapshot.manifest;
        // The flag is about the snapshot that the user named; our own checkpoints hold nothing else.
        let allow_non_restored_state = graph
            .start_from
            .as_ref()
            .is_some_and(|s| s.allow_non_restored_state);
        chain::verify_manifest(manifest).map_err(incompatible)?;
        if parallelism.len() != graph.vertices.len() {
            return Err(FailureKind::Internal {
                message: format!(
                    "parallelism of {} vertices was given for {}",
                    parallelism.len(),
                    graph.vertices.len()
                ),
            });
        }
        let orphan = manifest.operators.iter().find(|stored| {
            has_state(stored)
                && !graph
                    .vertices
                    .iter()
                    .flat_map(|v| &v.operators)
                    .any(|o| o.id == stored.id)
        });
        if let Some(orphan) = orphan.filter(|_| !allow_non_restored_state) {
            return Err(incompatible(format!(
                "the snapshot {} holds state of operator `{}`, which the job does not have: add an operator with that uid, or allow non-restored state",
                snapshot.directory, orphan.uid
            )));
        }
        let mut max_parallelism = BTreeMap::new();
        for (vertex, parallelism) in graph.vertices.iter().zip(parallelism) {
            let max = effective_max_parallelism(vertex, manifest)?;
            if *parallelism == 0 || *parallelism > max {
                return Err(incompatible(format!(
                    "vertex `{}` has parallelism {parallelism}, and the snapshot allows 1 to {max}",
                    vertex.name
                )));
            }
            max_parallelism.insert(vertex.id, max);
        }
        Ok(Self {
            snapshot,
            graph,
            parallelism: parallelism.to_vec(),
            max_parallelism,
            allow_non_restored_state,
        })
    }

    /// The number of key groups to deploy a vertex with.
    #[must_use]
    pub fn max_parallelism(&self, vertex: VertexId) -> Option<u32> {
        self.max_parallelism.get(&vertex).copied()
    }

    /// The part of one subtask.
    pub fn task(
        &self,
        vertex: VertexId,
        subtask: SubtaskIndex,
    ) -> Result<TaskRestore, FailureKind> {
        let internal = |message: String| FailureKind::Internal { message };
        let manifest = &self.snapshot.manifest;
        let at = vertex.0 as usize;
        let (Some(info), Some(parallelism), Some(max)) = (
            self.graph.vertices.get(at),
            self.parallelism.get(at).copied(),
            self.max_parallelism(vertex),
        ) else {
            return Err(internal(format!("vertex {vertex} is not in the graph")));
        };
        if subtask.0 >= parallelism {
            return Err(internal(format!(
                "vertex {vertex} has no subtask {subtask}"
            )));
        }
        let range = KeyGroupRange::of(subtask, parallelism, max);
        let mut objects = Objects::default();
        let mut operators = Vec::new();
        let mut is_same_parallelism = true;
        for operator in &info.operators {
            let Some(stored) = manifest.operators.iter().find(|o| o.id == operator.id) else {
                continue; // New in this version of the job: begins empty.
            };
            is_same_parallelism &= stored.parallelism == parallelism;
            let mut cut = OperatorState {
                keyed: cut_segments(&stored.keyed, range),
                ..stored.clone()
            };
            let keyed = cut.keyed.iter_mut().map(|s| &mut s.data);
            let rest = cut
                .subtasks
                .iter_mut()
                .filter_map(|s| s.operator_state.as_mut());
            for data in keyed.chain(rest) {
                *data = objects.adopt(&manifest.objects, data).map_err(internal)?;
            }
            operators.push(cut);
        }
        Ok(TaskRestore {
            checkpoint: if manifest.job == self.graph.job {
                manifest.checkpoint
            } else {
                TaskRestore::OF_ANOTHER_JOB
            },
            may_inherit: self.snapshot.is_own_checkpoint && is_same_parallelism,
            directory: self.snapshot.directory.clone(),
            operators,
            objects: objects.list,
            allow_non_restored_state: self.allow_non_restored_state,
        })
    }
}

/// Cuts each segment to the groups of the range that still matter, and its data to the bytes of those: one read per segment.
fn cut_segments(keyed: &[KeyedSegment], range: KeyGroupRange) -> Vec<KeyedSegment> {
    let chains = chain::chains(keyed);
    let mut cut = Vec::new();
    for (index, segment) in keyed.iter().enumerate() {
        let mut groups: Vec<GroupSlice> = segment
            .groups
            .iter()
            .filter(|s| range.contains(s.group))
            .filter(|s| {
                chains
                    .get(&s.group)
                    .is_some_and(|c| chain::is_live(*c, index))
            })
            .copied()
            .collect();
        if groups.is_empty() {
            continue;
        }
        let first = groups.iter().map(|s| s.offset).min().unwrap_or(0);
        let end = groups
            .iter()
            .map(|s| s.offset + s.length)
            .max()
            .unwrap_or(0);
        for slice in &mut groups {
            slice.offset -= first;
        }
        cut.push(KeyedSegment {
            checkpoint: segment.checkpoint,
            kind: segment.kind,
            data: cut_data(&segment.data, first, end),
            groups,
        });
    }
    cut
}

fn cut_data(data: &DataRef, first: u64, end: u64) -> DataRef {
    match data {
        DataRef::Inline(bytes) => {
            // Inside by verify_manifest; clamped all the same, since slicing outside would panic.
            let end = usize::try_from(end).unwrap_or(usize::MAX).min(bytes.len());
            let first = usize::try_from(first).unwrap_or(usize::MAX).min(end);
            DataRef::Inline(bytes.slice(first..end))
        }
        DataRef::Object { object, offset, .. } => DataRef::Object {
            object: *object,
            offset: offset + first,
            length: end - first,
        },
    }
}
