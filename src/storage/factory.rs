//! Opens stores by URI, and keeps what they share: connections, the turns of blocking threads, memory.
//!
//! Invariant: stores of one URI see the same objects. Opening touches neither disk nor network.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use perennial_actors::checkpoint::{Store, StoreFactory, StoreResult};
use perennial_actors::entropy::Entropy;
use perennial_config::S3Settings;
use tokio::sync::Semaphore;

use super::disk::{DiskStore, OPERATIONS_IN_FLIGHT_MAX};
use super::memory::{MemoryStore, Shared, StoreHook};
use super::s3::{Clients, S3Store};
use super::uri::StoreUri;

/// The stores of a process. Clones share everything.
#[derive(Clone)]
pub struct Stores(Arc<Inner>);

struct Inner {
    settings: S3Settings,
    entropy: Entropy,
    /// Of the one endpoint that the settings name; built when first needed.
    clients: Mutex<Option<Clients>>,
    memory: Mutex<BTreeMap<String, Arc<Shared>>>,
    disk_turns: Arc<Semaphore>,
}

impl Stores {
    /// With the settings of S3 and the dice for jitter and temporary names.
    #[must_use]
    pub fn new(settings: S3Settings, entropy: Entropy) -> Self {
        Self(Arc::new(Inner {
            settings,
            entropy,
            clients: Mutex::new(None),
            memory: Mutex::new(BTreeMap::new()),
            disk_turns: Arc::new(Semaphore::new(OPERATIONS_IN_FLIGHT_MAX)),
        }))
    }

    /// Replaces the hook of the memory stores of this name, those that are open included.
    pub fn set_memory_hook(&self, name: &str, hook: Option<Arc<dyn StoreHook>>) {
        self.memory(name).set_hook(hook);
    }

    /// Lets listings of the memory stores of this name show what there is now until further notice.
    pub fn freeze_memory_listings(&self, name: &str, is_frozen: bool) {
        self.memory(name).freeze_listings(is_frozen);
    }

    fn memory(&self, name: &str) -> Arc<Shared> {
        let mut memory = self.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(memory.entry(name.to_owned()).or_default())
    }

    fn clients(&self, uri: &str) -> StoreResult<Clients> {
        let mut clients = self
            .0
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = &*clients {
            return Ok(clients.clone());
        }
        let built = Clients::new(uri, &self.0.settings)?;
        *clients = Some(built.clone());
        Ok(built)
    }
}

impl StoreFactory for Stores {
    fn open(&self, uri: &str) -> StoreResult<Arc<dyn Store>> {
        let entropy = self.0.entropy.clone();
        Ok(match StoreUri::parse(uri)? {
            StoreUri::File(root) => {
                let turns = Arc::clone(&self.0.disk_turns);
                Arc::new(DiskStore::new(&root, turns, entropy))
            }
            StoreUri::S3 { bucket, prefix } => {
                let clients = self.clients(uri)?;
                Arc::new(S3Store::new(&bucket, &prefix, clients, entropy))
            }
            StoreUri::Memory { name, prefix } => {
                Arc::new(MemoryStore::new(&name, &prefix, self.memory(&name)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use perennial_config::Settings;

    fn stores() -> Stores {
        Stores::new(Settings::default().cluster.s3, Entropy::seeded(1))
    }

    #[tokio::test]
    async fn stores_of_one_name_share_their_objects_and_a_prefix_is_a_sub_tree() {
        let stores = stores();
        let whole = stores.open("memory://m").unwrap();
        let part = stores.clone().open("memory://m/ha/").unwrap();
        let other = stores.open("memory://n").unwrap();
        part.put("epoch-1", Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(&whole.get("ha/epoch-1", None).await.unwrap()[..], b"x");
        assert!(other.get("ha/epoch-1", None).await.is_err());
        assert_eq!((part.uri(), whole.uri()), ("memory://m/ha", "memory://m"));
    }

    #[test]
    fn opening_an_unknown_scheme_or_s3_without_keys_is_an_error_at_once() {
        for (uri, hint) in [
            ("gs://b/p", "file, s3 and memory"),
            ("s3://abc/p", "s3.access-key"),
        ] {
            let error = stores().open(uri).err().unwrap().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
