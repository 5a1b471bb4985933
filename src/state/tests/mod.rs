//! Tests of the whole room: `model` against a copy of everything, `rules` for what the model does not reach,
//! `scheduled` for both of what is due, `formats` for bytes.

mod formats;
mod model;
mod rules;
mod scheduled;

use std::time::Duration;

use bytes::Bytes;
use perennial_actors::model::{
    CheckpointId, KeyGroup, KeyGroupRange, SegmentKind, SnapshotKind, StateMeta, SubtaskIndex,
};

use super::*;
use crate::key::KeyHash;

const LIMITS: StateLimits = StateLimits {
    log_bytes_max: 1 << 20,
};

fn backend(limits: StateLimits) -> KeyedBackend<u64> {
    let range = KeyGroupRange::of(SubtaskIndex(0), 1, 8);
    KeyedBackend::memory(range, 8, limits)
}

fn use_key<K: Key>(backend: &mut KeyedBackend<K>, key: K) {
    backend.set_current_key(&key, KeyHash::of(&key));
}

fn barrier<K: Key>(backend: &mut KeyedBackend<K>, checkpoint: u64, base: Option<u64>) {
    let request = CaptureRequest {
        checkpoint: CheckpointId(checkpoint),
        base: base.map(CheckpointId),
        kind: SnapshotKind::Checkpoint,
    };
    backend.barrier(request).unwrap();
}

fn finish<K: Key>(backend: &mut KeyedBackend<K>) -> CapturedState {
    loop {
        match backend.capture(Duration::from_secs(1)).unwrap() {
            CaptureProgress::Done(captured) => return captured,
            CaptureProgress::Working => {}
            other => panic!("{other:?}"),
        }
    }
}

fn load<K: Key>(backend: &mut KeyedBackend<K>, captured: &CapturedState) -> Result<(), StateError> {
    let groups = captured.groups.iter().cloned();
    backend.load(
        captured.checkpoint,
        captured.kind,
        &captured.states,
        groups.map(|(g, b)| (g, Bytes::from(b))).collect(),
    )
}
