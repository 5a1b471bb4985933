//! Checkpoints: what is decided about them. I/O happens behind [`Store`].
//!
//! The modules decide one thing each and do no I/O; `io` carries decisions out, and the coordinator (`checkpoint_coordinator.rs`)
//! puts them together.

mod assign;
mod chain;
mod compose;
mod failures;
pub(crate) mod io;
mod keys;
mod ladder;
mod pending;
mod protocol;
mod record;
mod request;
mod retention;
pub(crate) mod start_from;
#[cfg(test)]
mod state_tests;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use assign::{RestorePlan, effective_max_parallelism};
pub use chain::{CHAIN_LEN_MAX, full_bytes, segments_for_group, slice_of, verify_manifest};
pub use compose::{ComposeError, Header, compose, inline_threshold, new_bytes, next_base};
pub use failures::{CheckpointFailureReason, FailureCounter};
pub use io::{EpochGuard, terminal_state};
pub use keys::{
    LATEST_KEY, METADATA, ObjectKey, SHARED_PREFIX, as_checkpoint_directory, object_key,
    parse_object_key, quarantine_key, record_key, savepoint_note_key, snapshot_directory,
};
pub use ladder::{Choice, Rung, choose, span};
pub use pending::{AckResult, PendingCheckpoint, PendingState};
pub use protocol::{
    ANCHOR_EVERY, Action, EndProbe, Fate, Observation, OnFailure, Pace, Probe, RecordWriter,
    Sequence, is_anchor, next_anchor,
};
pub(crate) use record::{NOTE_MAGIC, decode as decode_note, encode as encode_note};
pub use record::{
    RECORD_FORMAT, RECORD_LEN_MAX, RECORD_MAGIC, RecordError, decode_record, encode_record,
};
pub use request::{Begin, FIRST_CHECKPOINT_DELAY, Load, REQUESTS_MAX, RequestQueue};
pub use retention::{
    Retained, RetirePlan, deletable_records, kept, plan as retention_plan, references, survives,
    sweep,
};
pub use store::{Created, ObjectMeta, Store, StoreError, StoreFactory, StoreResult};
