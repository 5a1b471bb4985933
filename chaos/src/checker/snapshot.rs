//! Reads one savepoint or checkpoint by its URI.

use std::sync::Arc;

use anyhow::bail;
use perennial_actors::checkpoint::{METADATA, Store, StoreFactory, decode_record};
use perennial_actors::model::{Manifest, RecordOutcome};

use super::check_manifest;
use crate::oracle::{Positions, StateOracle};

/// A savepoint, read offline.
pub struct SnapshotReader {
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Runtime,
    manifest: Manifest,
}

impl SnapshotReader {
    /// Reads its record.
    ///
    /// # Errors
    /// When there is none, or it does not decode.
    pub fn open(stores: &Arc<dyn StoreFactory>, uri: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let store = stores.open(uri)?;
        let bytes = runtime.block_on(store.get(METADATA, None))?;
        let RecordOutcome::Completed(manifest) = decode_record(&bytes)?.outcome else {
            bail!("{uri} is not a complete snapshot");
        };
        Ok(Self {
            store,
            runtime,
            manifest: *manifest,
        })
    }

    /// Its content.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Compares its state with the fold up to its source positions, which are returned.
    ///
    /// # Errors
    /// When they differ.
    pub fn check(&self, oracle: &dyn StateOracle) -> anyhow::Result<Positions> {
        self.runtime
            .block_on(check_manifest(&self.store, &self.manifest, oracle))
    }
}
