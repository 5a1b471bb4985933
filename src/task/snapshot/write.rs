//! From captured state to bytes: what is small travels in the acknowledgement, the rest goes into one object.
//!
//! Invariant: [`write()`] returns only after every byte that its answer names is durable.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use perennial_actors::checkpoint::{Store, StoreFactory};
use perennial_actors::fault::{FaultPoints, Sabotage};
use perennial_actors::model::message::{CheckpointAck, CheckpointPlan, OperatorAck, SubtaskAck};
use perennial_actors::model::{
    DataRef, ExecutionAttemptId, GroupSlice, InstanceId, KeyedSegment, ObjectInfo, SubtaskState,
};

use super::SubtaskSnapshot;
use crate::operator::{OperatorCapture, encode_lists};
use crate::state::CapturedState;

/// State of one TaskManager that may travel inside one acknowledgement, in bytes.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// Deletes what was written in vain. What stays, because the store fails now, is left to the sweeper.
pub(super) async fn discard(
    stores: &dyn StoreFactory,
    plan: &CheckpointPlan,
    objects: &[ObjectInfo],
) {
    for object in objects {
        let deleted = match stores.open(&plan.directory) {
            Ok(store) => store.delete(&object.key).await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            tracing::info!(job = %plan.job, checkpoint = %plan.barrier.checkpoint, %error, "object of an aborted checkpoint not deleted");
        }
    }
}

/// The object under construction.
struct ObjectBuilder {
    bytes: Vec<u8>,
    inline_left: u64,
}

impl ObjectBuilder {
    /// Places bytes inline or in the object.
    fn place(&mut self, bytes: Vec<u8>, is_inline: bool) -> DataRef {
        if is_inline {
            return DataRef::Inline(Bytes::from(bytes));
        }
        let offset = self.bytes.len() as u64;
        let length = bytes.len() as u64;
        self.bytes.extend_from_slice(&bytes);
        DataRef::Object {
            object: 0,
            offset,
            length,
        }
    }
}

pub(super) async fn write(
    stores: &dyn StoreFactory,
    instance: InstanceId,
    plan: &CheckpointPlan,
    parts: BTreeMap<ExecutionAttemptId, SubtaskSnapshot>,
    faults: &FaultPoints,
) -> Result<CheckpointAck, String> {
    let mut object = ObjectBuilder {
        bytes: Vec::new(),
        inline_left: INLINE_BYTES_MAX,
    };
    let newest = parts.keys().map(|a| a.attempt).max();
    let subtasks = parts
        .into_values()
        .map(|part| encode_subtask(part, plan.inline_threshold, &mut object))
        .collect();
    let mut objects = Vec::new();
    if !object.bytes.is_empty() {
        let key = perennial_actors::checkpoint::object_key(
            plan.epoch,
            plan.barrier.checkpoint,
            newest.ok_or("a checkpoint plan without attempts")?,
            instance,
        );
        let bytes = Bytes::from(object.bytes);
        let info = ObjectInfo {
            key: key.clone(),
            length: bytes.len() as u64,
            crc32c: crc32c::crc32c(&bytes),
            compression: "none".into(),
            encryption: "none".into(),
            format: 1,
        };
        let store = stores.open(&plan.directory).map_err(|e| e.to_string())?;
        // Order matters: the acknowledgement makes the object count, so it must be durable first.
        if faults.is_sabotaged(Sabotage::AckBeforeUpload) {
            tokio::spawn(async move { write_late(&*store, &key, bytes).await });
        } else {
            store.put(&key, bytes).await.map_err(|e| e.to_string())?;
        }
        objects.push(info);
    }
    Ok(CheckpointAck {
        job: plan.job,
        checkpoint: plan.barrier.checkpoint,
        objects,
        subtasks,
    })
}

/// Sabotage: how late an object is written.
const LATE: Duration = Duration::from_millis(500);

async fn write_late(store: &dyn Store, key: &str, bytes: Bytes) {
    tokio::time::sleep(LATE).await;
    if let Err(error) = store.put(key, bytes).await {
        tracing::warn!(%error, key, "not written at all");
    }
}

fn encode_subtask(
    part: SubtaskSnapshot,
    inline_threshold: u64,
    object: &mut ObjectBuilder,
) -> SubtaskAck {
    let keyed_bytes: usize = part
        .keyed
        .iter()
        .flat_map(|(_, captured)| &captured.groups)
        .map(|(_, bytes)| bytes.len())
        .sum();
    let lists: Vec<(OperatorCapture, Option<Vec<u8>>)> = part
        .captures
        .into_iter()
        .map(|capture| {
            let bytes = (!capture.lists.is_empty()).then(|| encode_lists(&capture.lists));
            (capture, bytes)
        })
        .collect();
    let list_bytes: usize = lists
        .iter()
        .filter_map(|(_, b)| b.as_ref().map(Vec::len))
        .sum();
    let total = (keyed_bytes + list_bytes) as u64;
    let is_inline = total <= inline_threshold && total <= object.inline_left;
    if is_inline {
        object.inline_left -= total;
    }
    let mut keyed: BTreeMap<usize, CapturedState> = part.keyed.into_iter().collect();
    let operators = lists
        .into_iter()
        .map(|(capture, list_bytes)| {
            let (id, _) = part.info.operators[capture.operator];
            let captured = keyed.remove(&capture.operator);
            let states = captured
                .as_ref()
                .map(|c| c.states.clone())
                .unwrap_or_default();
            let operator_state_crc32c = list_bytes.as_ref().map_or(0, |b| crc32c::crc32c(b));
            OperatorAck {
                id,
                states,
                keyed: captured.map(|c| encode_segment(c, is_inline, object)),
                state: SubtaskState {
                    subtask: part.info.attempt.subtask,
                    watermark: capture.watermark,
                    is_finished: capture.is_finished,
                    operator_state: list_bytes.map(|bytes| object.place(bytes, is_inline)),
                    operator_state_crc32c,
                    positions: capture.positions,
                },
            }
        })
        .collect();
    SubtaskAck {
        attempt: part.info.attempt,
        operators,
        longest_pause_us: part.longest_pause_us,
        alignment_us: part.alignment_us,
    }
}

fn encode_segment(
    captured: CapturedState,
    is_inline: bool,
    object: &mut ObjectBuilder,
) -> KeyedSegment {
    let mut bytes = Vec::with_capacity(captured.groups.iter().map(|(_, b)| b.len()).sum());
    let mut groups = Vec::with_capacity(captured.groups.len());
    for (group, slice) in captured.groups {
        groups.push(GroupSlice {
            group,
            offset: bytes.len() as u64,
            length: slice.len() as u64,
            crc32c: crc32c::crc32c(&slice),
        });
        bytes.extend_from_slice(&slice);
    }
    KeyedSegment {
        checkpoint: captured.checkpoint,
        kind: captured.kind,
        data: object.place(bytes, is_inline),
        groups,
    }
}
