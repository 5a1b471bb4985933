//! Makes the manifest of a checkpoint from the acknowledgements and the manifest of its base, and decides what the next barrier may
//! be based on. Pure.
//!
//! Invariant: for every key group, the composed chain is the base's chain followed by what the tasks captured, cut at the last full
//! segment; nothing that a restore would read is dropped, nothing that it would not read stays longer than its segment.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::message::CheckpointAck;
use crate::model::{
    CheckpointId, DataRef, JobGraph, KeyedSegment, LeaderEpoch, Manifest, ObjectInfo, OperatorId,
    OperatorState, SegmentKind, SnapshotKind, StateMeta, SubtaskState, VertexId,
};

use super::chain::{self, CHAIN_LEN_MAX};

/// What the manifest says besides the state.
#[derive(Debug, Clone)]
pub struct Header {
    /// Its number.
    pub checkpoint: CheckpointId,
    /// The leader.
    pub epoch: LeaderEpoch,
    /// Why.
    pub kind: SnapshotKind,
    /// When triggered.
    pub timestamp_ms: u64,
    /// Until all had acknowledged.
    pub duration_ms: u64,
}

/// Acknowledgements that do not fit together: a fault of ours or damage on the way. The checkpoint fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("acknowledgements of checkpoint {checkpoint} do not make a manifest: {message}")]
pub struct ComposeError {
    /// Which.
    pub checkpoint: CheckpointId,
    /// What, of whom.
    pub message: String,
}

/// Makes the manifest.
///
/// `max_parallelism` holds the number of key groups in force per vertex, where it differs from the graph's.
pub fn compose(
    header: Header,
    graph: &JobGraph,
    max_parallelism: &BTreeMap<VertexId, u32>,
    base: Option<&Manifest>,
    acks: &[CheckpointAck],
) -> Result<Manifest, ComposeError> {
    let checkpoint = header.checkpoint;
    compose_inner(header, graph, max_parallelism, base, acks).map_err(|message| ComposeError {
        checkpoint,
        message,
    })
}

fn compose_inner(
    header: Header,
    graph: &JobGraph,
    max_parallelism: &BTreeMap<VertexId, u32>,
    base: Option<&Manifest>,
    acks: &[CheckpointAck],
) -> Result<Manifest, String> {
    let mut objects = Objects::default();
    let mut new = collect(&header, graph, base.is_some(), acks, &mut objects)?;
    let mut operators = Vec::new();
    for vertex in &graph.vertices {
        for operator in &vertex.operators {
            let parts = new
                .remove(&operator.id)
                .ok_or_else(|| format!("operator `{}` is missing", operator.uid))?;
            let old = base.and_then(|b| b.operators.iter().find(|o| o.id == operator.id));
            let mut states = old.map(|o| o.states.clone()).unwrap_or_default();
            merge_states(&mut states, &parts.states)
                .map_err(|e| format!("operator `{}`: {e}", operator.uid))?;
            let mut keyed = Vec::new();
            if let (Some(old), Some(base)) = (old, base) {
                if parts.segments.is_empty() && !old.keyed.is_empty() {
                    return Err(format!(
                        "operator `{}` had keyed state in base {} and delivered none",
                        operator.uid, base.checkpoint
                    ));
                }
                for segment in &old.keyed {
                    keyed.push(KeyedSegment {
                        data: objects.adopt(&base.objects, &segment.data)?,
                        ..segment.clone()
                    });
                }
            }
            keyed.extend(parts.segments);
            prune(&mut keyed);
            operators.push(OperatorState {
                id: operator.id,
                uid: operator.uid.clone(),
                parallelism: parts.subtasks.len() as u32,
                max_parallelism: max_parallelism
                    .get(&vertex.id)
                    .copied()
                    .unwrap_or(vertex.max_parallelism),
                states,
                keyed,
                subtasks: parts.subtasks,
                coordinator: None,
            });
        }
    }
    let mut manifest = Manifest {
        job: graph.job,
        job_name: graph.name.clone(),
        checkpoint: header.checkpoint,
        epoch: header.epoch,
        kind: header.kind,
        timestamp_ms: header.timestamp_ms,
        duration_ms: header.duration_ms,
        operators,
        objects: objects.list,
    };
    drop_unused_objects(&mut manifest);
    // What we write, a restore must accept: better no checkpoint than one that fails when it is needed.
    chain::verify_manifest(&manifest)?;
    Ok(manifest)
}

#[derive(Default)]
struct Parts {
    states: Vec<StateMeta>,
    segments: Vec<KeyedSegment>,
    subtasks: Vec<SubtaskState>,
}

fn collect(
    header: &Header,
    graph: &JobGraph,
    has_base: bool,
    acks: &[CheckpointAck],
    objects: &mut Objects,
) -> Result<BTreeMap<OperatorId, Parts>, String> {
    let mut subtasks: Vec<_> = acks
        .iter()
        .flat_map(|ack| ack.subtasks.iter().map(move |s| (ack, s)))
        .collect();
    // One order whoever answered first, so that equal states give equal manifests.
    subtasks.sort_by_key(|(_, s)| s.attempt);
    let mut parts: BTreeMap<OperatorId, Parts> = BTreeMap::new();
    for (ack, subtask) in subtasks {
        let attempt = subtask.attempt;
        let vertex = graph
            .vertices
            .get(attempt.vertex.0 as usize)
            .ok_or_else(|| format!("{attempt} is of no vertex of the graph"))?;
        let delivered: BTreeSet<_> = subtask.operators.iter().map(|o| o.id).collect();
        if delivered.len() != subtask.operators.len()
            || delivered != vertex.operators.iter().map(|o| o.id).collect()
        {
            return Err(format!(
                "{attempt} delivered other operators than its vertex has"
            ));
        }
        for operator in &subtask.operators {
            let part = parts.entry(operator.id).or_default();
            merge_states(&mut part.states, &operator.states)
                .map_err(|e| format!("{attempt}: {e}"))?;
            if operator.state.subtask != attempt.subtask {
                return Err(format!("{attempt} delivered the state of another subtask"));
            }
            part.subtasks.push(SubtaskState {
                operator_state: match &operator.state.operator_state {
                    Some(data) => Some(objects.adopt(&ack.objects, data)?),
                    None => None,
                },
                ..operator.state.clone()
            });
            if let Some(segment) = &operator.keyed {
                if segment.kind == SegmentKind::Delta && !has_base {
                    return Err(format!(
                        "{attempt} delivered changes although all was asked for"
                    ));
                }
                part.segments.push(KeyedSegment {
                    // The number under which it is stored, whatever the task wrote there.
                    checkpoint: header.checkpoint,
                    data: objects.adopt(&ack.objects, &segment.data)?,
                    ..segment.clone()
                });
            }
        }
    }
    Ok(parts)
}

fn merge_states(into: &mut Vec<StateMeta>, from: &[StateMeta]) -> Result<(), String> {
    for state in from {
        match into.iter_mut().find(|s| s.index == state.index) {
            None => into.push(state.clone()),
            // The newest description wins: a serializer's version may have grown.
            Some(known) if known.name == state.name => *known = state.clone(),
            Some(known) => {
                return Err(format!(
                    "keyed state {} is called `{}` and `{}`: subtasks must register states in the same order",
                    state.index, known.name, state.name
                ));
            }
        }
    }
    into.sort_by_key(|s| s.index);
    Ok(())
}

/// Drops segments of which every group is superseded by a later full one.
fn prune(keyed: &mut Vec<KeyedSegment>) {
    let chains = chain::chains(keyed);
    let mut index = 0;
    keyed.retain(|segment| {
        let at = index;
        index += 1;
        segment
            .groups
            .iter()
            .any(|s| chains.get(&s.group).is_some_and(|c| chain::is_live(*c, at)))
    });
}

/// The objects of the new manifest, each once.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) list: Vec<ObjectInfo>,
    index: BTreeMap<String, u32>,
}

impl Objects {
    /// Translates a reference into `from` into one into this list.
    pub(super) fn adopt(&mut self, from: &[ObjectInfo], data: &DataRef) -> Result<DataRef, String> {
        match data {
            DataRef::Inline(_) => Ok(data.clone()),
            DataRef::Object {
                object,
                offset,
                length,
            } => {
                let info = from
                    .get(*object as usize)
                    .ok_or_else(|| format!("object {object} of {} is not listed", from.len()))?;
                let object = match self.index.get(&info.key) {
                    Some(index) => *index,
                    None => {
                        let index = self.list.len() as u32;
                        self.list.push(info.clone());
                        self.index.insert(info.key.clone(), index);
                        index
                    }
                };
                Ok(DataRef::Object {
                    object,
                    offset: *offset,
                    length: *length,
                })
            }
        }
    }
}

fn drop_unused_objects(manifest: &mut Manifest) {
    let mut objects = Objects::default();
    let old = std::mem::take(&mut manifest.objects);
    for operator in &mut manifest.operators {
        let keyed = operator.keyed.iter_mut().map(|s| &mut s.data);
        let rest = operator
            .subtasks
            .iter_mut()
            .filter_map(|s| s.operator_state.as_mut());
        for data in keyed.chain(rest) {
            if let Ok(translated) = objects.adopt(&old, data) {
                *data = translated;
            }
        }
    }
    manifest.objects = objects.list;
}

/// Changes that a record may take over from its base, in bytes: so far below [`RECORD_LEN_MAX`](super::RECORD_LEN_MAX) that whole segments
/// and what its own checkpoint brings find room. A record that is too long fails its checkpoint, and so would every later one over the same
/// base.
const INHERITED_LEN_MAX: u64 = 16 << 20;
/// What the subtasks of one checkpoint may bring into its record by state inside their acknowledgements, in bytes: as whole segments, as
/// changes, and again as what the next one brings, it is less than the limit.
const INLINE_LEN_MAX: u64 = 16 << 20;
/// About what one key group of a segment takes in a record, in bytes.
const GROUP_SLICE_LEN: u64 = 20;

/// Up to which size a subtask sends its state for the record, in bytes: as configured, or less, when so many subtasks would together
/// make it too long.
#[must_use]
pub fn inline_threshold(configured: u64, subtasks: usize) -> u64 {
    configured.min(INLINE_LEN_MAX / (subtasks as u64).max(1))
}

/// What the barrier after this checkpoint may be based on: this checkpoint, or nothing when its chains are long enough, when the
/// changes outweigh the full segments or when they make records too long, so that all is rewritten once.
#[must_use]
pub fn next_base(manifest: &Manifest) -> Option<CheckpointId> {
    let (mut full, mut delta, mut inherited) = (0_u64, 0_u64, 0_u64);
    for operator in &manifest.operators {
        for segment in &operator.keyed {
            match segment.kind {
                SegmentKind::Full => full += segment.data.length(),
                SegmentKind::Delta => {
                    delta += segment.data.length();
                    let index = segment.groups.len() as u64 * GROUP_SLICE_LEN;
                    inherited += inline_length(&segment.data) + index;
                }
            }
        }
        let longest = chain::chains(&operator.keyed)
            .values()
            .map(|c| c.length)
            .max();
        if longest.is_some_and(|l| l >= CHAIN_LEN_MAX) {
            return None;
        }
    }
    let is_base = inherited <= INHERITED_LEN_MAX && (delta == 0 || delta < full);
    is_base.then_some(manifest.checkpoint)
}

fn inline_length(data: &DataRef) -> u64 {
    match data {
        DataRef::Inline(bytes) => bytes.len() as u64,
        DataRef::Object { .. } => 0, // Counted with its object.
    }
}

/// Bytes that the acknowledgements newly brought.
#[must_use]
pub fn new_bytes(acks: &[CheckpointAck]) -> u64 {
    acks.iter()
        .map(|ack| {
            let objects: u64 = ack.objects.iter().map(|o| o.length).sum();
            let inlined: u64 = ack
                .subtasks
                .iter()
                .flat_map(|s| &s.operators)
                .map(|o| {
                    o.keyed.as_ref().map_or(0, |k| inline_length(&k.data))
                        + o.state.operator_state.as_ref().map_or(0, inline_length)
                })
                .sum();
            objects + inlined
        })
        .sum()
}
