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
