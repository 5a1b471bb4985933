//! Every write that went through the store proxy, in order, with what its name and bytes say of who wrote it.

use bytes::Bytes;
use perennial_actors::checkpoint::{ObjectKey, decode_record, parse_object_key};
use perennial_actors::model::{CheckpointId, LeaderEpoch, RecordOutcome};

/// Writes that are remembered; a run of minutes makes some thousands.
const WRITES_MAX: usize = 200_000;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// If there is none of that name.
    Create,
    /// In any case.
    Put,
    /// Of an object in parts.
    Complete,
    /// Of an object.
    Delete,
}

/// What a checkpoint record says, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// Its number.
    pub checkpoint: CheckpointId,
    /// Who wrote it.
    pub epoch: LeaderEpoch,
    /// Of this very attempt to write it.
    pub token: u128,
    /// `completed`, `aborted: …`, `claimed` or `terminal`.
    pub outcome: String,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// When the server got it: position among all beginnings and ends.
    pub began: u64,
    /// When the server had answered.
    pub ended: u64,
    /// Who; `None`: no node.
    pub node: Option<String>,
    /// What.
    pub kind: WriteKind,
    /// Path of the object, after the bucket.
    pub key: String,
    /// The server's answer, whether the client got it or not.
    pub status: u16,
    /// When it is a checkpoint record.
    pub record: Option<RecordHead>,
    /// When it is a state object.
    pub object: Option<ObjectKey>,
}

impl Write {
    /// Whether the server has done it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The checkpoint directory of a record or state object: all that comes before its own name.
    #[must_use]
    pub fn directory(&self) -> &str {
        let end = self
            .key
            .rfind("/chk-")
            .or_else(|| self.key.rfind("/shared/"));
        end.map_or("", |end| &self.key[..end])
    }
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In the order in which they ended.
    pub writes: Vec<Write>,
    /// Beyond the bound.
    pub forgotten: u64,
    clock: u64,
}

impl History {
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Writes down what a store in memory has done: nothing overlaps there.
    pub(crate) fn done_at_once(&mut self, kind: WriteKind, key: &str, body: Option<&Bytes>) {
        let at = self.tick();
        self.push(Write {
            began: at,
            ended: at,
            node: None,
            kind,
            key: key.to_owned(),
            status: 200,
            record: body.and_then(record_head),
            object: None,
        });
    }

    pub(super) fn push(&mut self, write: Write) {
        if self.writes.len() < WRITES_MAX {
            self.writes.push(write);
        } else {
            self.forgotten += 1;
        }
    }
}

/// What the record in a request's body says, if it is one.
pub(super) fn record_head(body: &Bytes) -> Option<RecordHead> {
    let record = decode_record(body).ok()?;
    Some(RecordHead {
        checkpoint: record.checkpoint,
        epoch: record.epoch,
        token: record.token,
        outcome: match record.outcome {
            RecordOutcome::Completed(_) => "completed".to_owned(),
            RecordOutcome::Aborted { reason } => format!("aborted: {reason}"),
            RecordOutcome::Claimed => "claimed".to_owned(),
            RecordOutcome::Terminal { .. } => "terminal".to_owned(),
        },
    })
}

/// What the key of a state object says, wherever its directory is.
pub(super) fn object_key(key: &str) -> Option<ObjectKey> {
    parse_object_key(&key[key.rfind("shared/")?..])
}
