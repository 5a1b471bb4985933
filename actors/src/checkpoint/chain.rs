//! How a key group's state is spread over segments: the last full one and the deltas after it. One definition for restore, retention,
//! verification and readers without a cluster. Pure.

use std::collections::BTreeMap;

use crate::model::{
    DataRef, GroupSlice, KeyGroup, KeyedSegment, Manifest, OperatorState, SegmentKind,
};

/// The longest chain of segments that a restore reads for one key group.
pub const CHAIN_LEN_MAX: usize = 16;

/// The part of a segment that belongs to a group.
#[must_use]
pub fn slice_of(segment: &KeyedSegment, group: KeyGroup) -> Option<GroupSlice> {
    let at = segment
        .groups
        .binary_search_by_key(&group, |s| s.group)
        .ok()?;
    segment.groups.get(at).copied()
}

/// What to read for a group, in order: the last full segment and the deltas after it. Empty when no full segment covers the group,
/// which [`verify_manifest`] refuses for an operator with keyed state.
#[must_use]
pub fn segments_for_group(
    operator_state: &OperatorState,
    group: KeyGroup,
) -> Vec<(&KeyedSegment, GroupSlice)> {
    let mut chain = Vec::new();
    for segment in operator_state.keyed.iter().rev() {
        if let Some(slice) = slice_of(segment, group) {
            chain.push((segment, slice));
            if segment.kind == SegmentKind::Full {
                chain.reverse();
                return chain;
            }
        }
    }
    Vec::new()
}

/// For each group of an operator: index of the last full segment, and the number of segments from there on.
pub(crate) fn chains(keyed: &[KeyedSegment]) -> BTreeMap<KeyGroup, Chain> {
    let mut chains = BTreeMap::new();
    for (index, segment) in keyed.iter().enumerate() {
        for slice in &segment.groups {
            let chain = chains.entry(slice.group).or_insert(Chain {
                full: None,
                length: 0,
            });
            match segment.kind {
                SegmentKind::Full => {
                    *chain = Chain {
                        full: Some(index),
                        length: 1,
                    };
                }
                SegmentKind::Delta => chain.length += 1,
            }
        }
    }
    chains
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) full: Option<usize>,
    pub(crate) length: usize,
}

/// Whether segment `index` still matters for a group.
pub(crate) fn is_live(chain: Chain, index: usize) -> bool {
    chain.full.is_none_or(|full| index >= full)
}

/// Checks everything about a manifest that can be checked without its objects; the text says what is wrong.
pub fn verify_manifest(manifest: &Manifest) -> Result<(), String> {
    for operator in &manifest.operators {
        verify_operator(manifest, operator).map_err(|e| {
            format!(
                "checkpoint {}, operator `{}`: {e}",
                manifest.checkpoint, operator.uid
            )
        })?;
    }
    Ok(())
}

fn verify_operator(manifest: &Manifest, operator: &OperatorState) -> Result<(), String> {
    let max = operator.max_parallelism;
    if operator.parallelism == 0 || operator.parallelism > max || max > 32768 {
        return Err(format!(
            "parallelism {} of at most {max}",
            operator.parallelism
        ));
    }
    for segment in &operator.keyed {
        verify_data(manifest, &segment.data)?;
        let length = segment.data.length();
        let mut before = None;
        for slice in &segment.groups {
            if before.is_some_and(|b| b >= slice.group) || u32::from(slice.group.0) >= max {
                return Err(format!(
                    "key group {} is out of order or range",
                    slice.group
                ));
            }
            before = Some(slice.group);
            if slice
                .offset
                .checked_add(slice.length)
                .is_none_or(|end| end > length)
            {
                return Err(format!(
                    "key group {} lies outside its segment",
                    slice.group
                ));
            }
        }
    }
    if !operator.keyed.is_empty() {
        let chains = chains(&operator.keyed);
        for group in 0..max {
            let is_covered = u16::try_from(group)
                .ok()
                .and_then(|g| chains.get(&KeyGroup(g)))
                .is_some_and(|c| c.full.is_some());
            if !is_covered {
                return Err(format!("no full segment covers key group {group}"));
            }
        }
    }
    let mut seen = vec![false; operator.parallelism as usize];
    for state in &operator.subtasks {
        match seen.get_mut(state.subtask.0 as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(format!("subtask {} twice or out of range", state.subtask)),
        }
        if let Some(data) = &state.operator_state {
            verify_data(manifest, data)?;
        }
    }
    if let Some(missing) = seen.iter().position(|s| !s) {
        return Err(format!("subtask {missing} is missing"));
    }
    Ok(())
}

fn verify_data(manifest: &Manifest, data: &DataRef) -> Result<(), String> {
    match data {
        DataRef::Inline(_) => Ok(()),
        DataRef::Object {
            object,
            offset,
            length,
        } => {
            let info = manifest
                .objects
                .get(*object as usize)
                .ok_or_else(|| format!("object {object} is not listed"))?;
            match offset.checked_add(*length) {
                Some(end) if end <= info.length => Ok(()),
                _ => Err(format!(
                    "bytes {offset}+{length} lie outside object {} of {} bytes",
                    info.key, info.length
                )),
            }
        }
    }
}

/// Bytes that a restore of everything reads.
#[must_use]
pub fn full_bytes(manifest: &Manifest) -> u64 {
    manifest
        .operators
        .iter()
        .map(|o| {
            let keyed: u64 = o.keyed.iter().map(|s| s.data.length()).sum();
            let rest: u64 = o
                .subtasks
                .iter()
                .filter_map(|s| s.operator_state.as_ref())
                .map(DataRef::length)
                .sum();
            keyed + rest
        })
        .sum()
}
