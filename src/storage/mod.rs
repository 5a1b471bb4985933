//! Where checkpoints, savepoints and leadership lie: a directory, an S3 bucket, or memory.
//!
//! Invariant: [`perennial_actors::checkpoint::Store::create`] never answers `New` or `Exists` wrongly. Whatever is in doubt (a lost
//! answer, a timeout, a failed fsync after the name was visible) is `Unknown`, and the caller settles it by the token in the object.
//!
//! Does not decide what is stored, deleted or kept; that is the control plane's business.

mod disk;
mod factory;
mod key;
mod memory;
mod probe;
pub mod retry;
mod s3;
mod uri;

pub use disk::DiskStore;
pub use factory::Stores;
pub use key::{KEY_BYTES_MAX, SEGMENT_BYTES_MAX};
pub use memory::{Fault, MemoryStore, Outcome, StoreCall, StoreChange, StoreHook};
pub use probe::probe_conditional_create;
pub use s3::S3Store;
pub use uri::StoreUri;

use std::ops::Range;

use perennial_actors::checkpoint::StoreError;

/// The error of a range that does not lie in its object, in the same words for every store.
fn past_the_end(uri: String, range: &Range<u64>, size: u64) -> StoreError {
    StoreError::Failed {
        operation: "get",
        uri,
        message: format!(
            "range {}..{} goes past the end: the object has {size} bytes",
            range.start, range.end
        ),
    }
}

/// Refuses a range whose end lies before its start.
fn check_range(uri: impl Fn() -> String, range: Option<&Range<u64>>) -> Result<(), StoreError> {
    match range {
        Some(range) if range.start > range.end => Err(StoreError::Invalid {
            uri: uri(),
            message: format!("range {}..{} ends before it starts", range.start, range.end),
        }),
        Some(_) | None => Ok(()),
    }
}
