//! The snapshot that a person names for a job to begin with.
//!
//! Invariant: what is wrong with it is the person's to repair, so it never falls back to anything else; only a store that does not answer
//! may be asked again.

use std::sync::Arc;

use bytes::Bytes;

use super::io::{self, ObjectError};
use super::{
    METADATA, StoreError, StoreFactory, StoreResult, as_checkpoint_directory, decode_record,
    savepoint_note_key, snapshot_directory, verify_manifest,
};
use crate::model::{FailureKind, Manifest, RecordOutcome};

/// Reads its record, and where its objects lie. Their presence is not looked at.
pub(crate) async fn find(
    stores: &dyn StoreFactory,
    path: &str,
) -> Result<(Arc<Manifest>, String), FailureKind> {
    let directory = snapshot_directory(path);
    let failed = |error| failed(path, error);
    let store = stores.open(directory).map_err(failed)?;
    let bytes = store.get(METADATA, None).await.map_err(failed)?;
    let record =
        decode_record(&bytes).map_err(|e| wrong(format!("snapshot {path} cannot be read: {e}")))?;
    let manifest: Arc<Manifest> = match record.outcome {
        RecordOutcome::Completed(manifest) => Arc::from(manifest),
        RecordOutcome::Aborted { reason } => {
            return Err(wrong(format!(
                "{path} holds no snapshot: aborted, {reason}"
            )));
        }
        RecordOutcome::Claimed | RecordOutcome::Terminal { .. } => {
            return Err(wrong(format!("{path} is a record without a snapshot")));
        }
    };
    verify_manifest(&manifest).map_err(|e| wrong(format!("snapshot {path} is damaged: {e}")))?;
    let directory = match as_checkpoint_directory(directory) {
        None => directory.to_owned(),
        Some((job_directory, number)) => {
            let job_store = stores.open(job_directory).map_err(failed)?;
            let key = savepoint_note_key(number, record.epoch);
            let note: StoreResult<Bytes> = job_store.get(&key, None).await;
            match note {
                Ok(uri) => String::from_utf8_lossy(&uri).into_owned(),
                Err(StoreError::NotFound { .. }) => job_directory.to_owned(),
                Err(error) => return Err(failed(error)),
            }
        }
    };
    Ok((manifest, directory))
}

/// As [`find`], and verifies its objects: what is damaged is refused before any task starts.
pub(crate) async fn load(
    stores: &dyn StoreFactory,
    path: &str,
) -> Result<(Arc<Manifest>, String), FailureKind> {
    let (manifest, directory) = find(stores, path).await?;
    let store = stores
        .open(&directory)
        .map_err(|error| failed(path, error))?;
    io::verify_objects(&*store, &manifest)
        .await
        .map_err(|error| match error {
            ObjectError::Damaged(text) => wrong(format!("snapshot {path} is damaged: {text}")),
            ObjectError::Store(error) => failed(path, error),
        })?;
    Ok((manifest, directory))
}

fn wrong(message: String) -> FailureKind {
    FailureKind::IncompatibleState { message }
}

fn failed(path: &str, error: StoreError) -> FailureKind {
    match error {
        StoreError::NotFound { uri } => wrong(format!(
            "there is no snapshot at {path}: {uri} does not exist"
        )),
        error @ (StoreError::Invalid { .. } | StoreError::Unsupported { .. }) => {
            wrong(error.to_string())
        }
        error @ (StoreError::Failed { .. } | StoreError::Unknown { .. }) => FailureKind::Io {
            message: error.to_string(),
        },
    }
}
