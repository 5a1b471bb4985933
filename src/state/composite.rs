//! What identifies an entry: key, namespace and, for maps and timers, one more part (rule 8).

use std::cmp::Ordering;
use std::collections::BTreeSet;

use hashbrown::HashTable;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Namespace;
use super::encoding::{DecodeError, EntryRef, put_canonical, read_canonical};
use super::hash::{combine, hash_of, spread};
use super::table::{EntryKey, Index};
use crate::append::Room;
use crate::key::{Key, KeyHash};

/// A key of a map state. Implemented for every type that fits.
pub trait MapKey: Clone + Ord + Serialize + DeserializeOwned + Send + 'static {}
impl<T: Clone + Ord + Serialize + DeserializeOwned + Send + 'static> MapKey for T {}

pub(super) struct Composite<K, N, M> {
    pub(super) key: K,
    pub(super) namespace: N,
    /// Map key, or a timer's time, or nothing.
    pub(super) extra: M,
}

impl<K: Key, N: Namespace, M: MapKey> Composite<K, N, M> {
    pub(super) fn of(key: &K, namespace: &N, extra: &M) -> Self {
        Self {
            key: key.clone(),
            namespace: namespace.clone(),
            extra: extra.clone(),
        }
    }

    #[inline]
    pub(super) fn is_of(&self, key: &K, namespace: &N, extra: &M) -> bool {
        self.key == *key && self.namespace == *namespace && self.extra == *extra
    }
}

/// The order of keys of one hash: by their encoding. What does not encode has none.
#[cold]
pub(super) fn order_of_keys<K: Key>(a: &K, b: &K) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    let bytes = |key: &K| postcard::to_stdvec(key).unwrap_or_default();
    bytes(a).cmp(&bytes(b))
}

/// The table hash of an entry.
#[inline]
pub(super) fn table_hash<N: Serialize, M: Serialize>(
    key: KeyHash,
    namespace: &N,
    extra: &M,
) -> Result<u64, String> {
    let mut hash = spread(key.0);
    if size_of::<N>() > 0 {
        hash = combine(hash, hash_of(namespace).map_err(|e| e.to_string())?);
    }
    if size_of::<M>() > 0 {
        hash = combine(hash, hash_of(extra).map_err(|e| e.to_string())?);
    }
    Ok(hash)
}

impl<K: Key, N: Namespace, M: MapKey> EntryKey for Composite<K, N, M> {
    const IS_KEY_ALONE: bool = size_of::<N>() == 0 && size_of::<M>() == 0;

    #[inline]
    fn put(&self, room: &mut Room<'_>) -> Result<(), String> {
        put_canonical(&self.key, room)?;
        put_canonical(&self.namespace, room)?;
        put_canonical(&self.extra, room)
    }

    fn take(entry: &EntryRef<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            key: read_canonical(entry.key)?,
            namespace: read_canonical(entry.namespace)?,
            extra: read_canonical(entry.extra)?,
        })
    }

    fn key_hash(&self) -> KeyHash {
        KeyHash::of(&self.key)
    }

    fn table_hash(&self) -> Result<u64, String> {
        table_hash(self.key_hash(), &self.namespace, &self.extra)
    }

    fn is(&self, other: &Self) -> bool {
        self.is_of(&other.key, &other.namespace, &other.extra)
    }
}

/// The live map keys of each key and namespace, in order.
pub(super) struct MapIndex<K, N, M> {
    maps: HashTable<KeysOf<K, N, M>>,
}

struct KeysOf<K, N, M> {
    hash: u64,
    key: K,
    namespace: N,
    keys: BTreeSet<M>,
}

impl<K, N, M> Default for MapIndex<K, N, M> {
    fn default() -> Self {
        Self {
            maps: HashTable::new(),
        }
    }
}

impl<K: Key, N: Namespace, M: MapKey> MapIndex<K, N, M> {
    pub(super) fn keys(&self, key: &K, hash: KeyHash, namespace: &N) -> Option<&BTreeSet<M>> {
        let hash = Self::hash(hash, namespace);
        self.maps
            .find(hash, |m| m.key == *key && m.namespace == *namespace)
            .map(|m| &m.keys)
    }

    /// What does not encode is found by its neighbours' hash: slow, not wrong. It never gets into the table anyway.
    fn hash(key: KeyHash, namespace: &N) -> u64 {
        table_hash(key, namespace, &()).unwrap_or(0)
    }
}

impl<K: Key, N: Namespace, M: MapKey, V> Index<Composite<K, N, M>, V> for MapIndex<K, N, M> {
    type Part = ();

    #[inline]
    fn part(_value: &V) {}

    fn insert(&mut self, _shard: usize, entry: &Composite<K, N, M>, _value: &V) {
        let hash = Self::hash(entry.key_hash(), &entry.namespace);
        let is = |m: &KeysOf<K, N, M>| m.key == entry.key && m.namespace == entry.namespace;
        let found = self.maps.entry(hash, is, |m| m.hash);
        let mut map = found.or_insert_with(|| KeysOf {
            hash,
            key: entry.key.clone(),
            namespace: entry.namespace.clone(),
            keys: BTreeSet::new(),
        });
        map.get_mut().keys.insert(entry.extra.clone());
    }

    fn remove(&mut self, _shard: usize, entry: &Composite<K, N, M>) {
        let hash = Self::hash(entry.key_hash(), &entry.namespace);
        let is = |m: &KeysOf<K, N, M>| m.key == entry.key && m.namespace == entry.namespace;
        if let Ok(mut found) = self.maps.find_entry(hash, is) {
            found.get_mut().keys.remove(&entry.extra);
            if found.get().keys.is_empty() {
                found.remove();
            }
        }
    }
}
