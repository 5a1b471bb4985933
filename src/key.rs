//! Keys and their hash. The hash decides where state lives, on disk too: it is our own, seeded and versioned, over a canonical
//! encoding of the key without field names, and never `std::hash::Hash` (design.md section 4).

use std::fmt::Debug;

use perennial_actors::model::KeyGroup;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a stream can be keyed by. Implemented for every type that fits. Floating-point keys have no `Eq` and are thus excluded.
pub trait Key: Clone + Eq + Debug + Serialize + DeserializeOwned + Send + 'static {}
impl<K: Clone + Eq + Debug + Serialize + DeserializeOwned + Send + 'static> Key for K {}

/// The hash of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes a key.
    #[inline]
    #[must_use]
    pub fn of<K: Key>(_key: &K) -> Self {
        unimplemented!()
    }

    /// The shard that the key belongs to.
    #[inline]
    #[must_use]
    pub fn key_group(self, _max_parallelism: u32) -> KeyGroup {
        unimplemented!()
    }
}
