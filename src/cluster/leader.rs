//! Finds the leading JobManager of a highly available cluster in its store, for TaskManagers and clients.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::job_manager_session::LeaderDiscovery;
use perennial_actors::leadership::discover;

/// Where the newest epoch's object says.
pub struct StoredLeader {
    stores: Arc<dyn StoreFactory>,
    directory: String,
}

impl StoredLeader {
    /// Looks in the leadership directory of a cluster.
    #[must_use]
    pub fn new(stores: Arc<dyn StoreFactory>, directory: &str) -> Self {
        Self {
            stores,
            directory: directory.to_owned(),
        }
    }
}

impl LeaderDiscovery for StoredLeader {
    fn address(&self) -> BoxFuture<'_, Result<String, String>> {
        async {
            let store = self
                .stores
                .open(&self.directory)
                .map_err(|e| e.to_string())?;
            match discover(store.as_ref()).await {
                Ok(Some(leader)) => Ok(leader.address),
                Ok(None) => Err(format!("no JobManager has led on {} yet", self.directory)),
                Err(error) => Err(error.to_string()),
            }
        }
        .boxed()
    }
}
