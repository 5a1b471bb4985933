//! Finds the leading JobManager of a highly available cluster in its store, for TaskManagers and clients.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::entropy::Entropy;
use perennial_actors::job_manager_session::LeaderDiscovery;
use perennial_actors::leadership::discover;
use perennial_config::{ClusterSettings, HighAvailability};

use crate::storage::Stores;

/// Where a client reaches the JobManager that leads, as `host:port`: under high availability, whoever its store says, else as configured.
///
/// A client may have no access to the store: then it is as configured, too, and `tell` hears why.
pub async fn leader_address(cluster: &ClusterSettings, tell: impl FnOnce(&str)) -> String {
    let configured = format!("{}:{}", cluster.rpc_address, cluster.rpc_port);
    match cluster.high_availability {
        HighAvailability::None => configured,
        HighAvailability::Store => {
            let stores = Stores::new(cluster.s3.clone(), Entropy::system());
            let directory = &cluster.ha_directory;
            let stored = StoredLeader::new(Arc::new(stores), directory);
            stored.address().await.unwrap_or_else(|why| {
                tell(&format!(
                    "no leader found in {directory}: {why}; trying {configured}"
                ));
                configured
            })
        }
    }
}

/// Where the newest epoch's object says.
pub(crate) struct StoredLeader {
    stores: Arc<dyn StoreFactory>,
    directory: String,
}

impl StoredLeader {
    /// Looks in the leadership directory of a cluster.
    #[must_use]
    pub(crate) fn new(stores: Arc<dyn StoreFactory>, directory: &str) -> Self {
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
