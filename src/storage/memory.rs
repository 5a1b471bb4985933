//! A store in the memory of the process (`memory://name`), for tests and the simulator.
//!
//! Invariant: every operation takes effect at one instant, so that a history of calls has one order. A [`StoreHook`] decides, call by
//! call, what goes wrong; given the same calls and a seeded hook, two runs are the same. It is never durable, and no other process sees it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use perennial_actors::checkpoint::{Created, ObjectMeta, Store, StoreError, StoreResult};

use super::key::{check_key, check_prefix};
use super::{check_range, past_the_end};

/// A call, as a hook sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreCall<'a> {
    /// `get`, `put`, `create`, `list`, `delete`.
    pub operation: &'static str,
    /// The full URI of the object, or of the prefix of a listing.
    pub uri: &'a str,
}

/// What happens to a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// Waits before anything happens.
    pub delay_before: Duration,
    /// What happens then.
    pub outcome: Outcome,
    /// Waits before the answer.
    pub delay_after: Duration,
}

/// What a call comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    #[default]
    Normal,
    /// [`StoreError::Failed`]; nothing is changed.
    Fail(String),
    /// The store is changed, the answer is lost: [`StoreError::Unknown`]. Reads fail.
    AppliedAnswerLost(String),
    /// Nothing is changed, and nobody knows: [`StoreError::Unknown`]. Reads fail.
    LostBeforeApplied(String),
    /// [`StoreError::Unknown`] at once, and the change is made later, as by a request that was stuck on its way. Reads fail.
    AppliedLater(Duration, String),
    /// A `get` answers with one bit changed, at this byte modulo the length.
    FlipBit(usize),
    /// A `get` answers with at most this many bytes.
    Truncate(usize),
}

/// A change of the store, at the instant at which it happens.
pub struct StoreChange<'a> {
    /// `put`, `create`, `delete`.
    pub operation: &'static str,
    /// Within the named store.
    pub key: &'a str,
    /// What the object was.
    pub before: Option<&'a Bytes>,
    /// What it is now.
    pub after: Option<&'a Bytes>,
    /// All objects as they are now.
    pub objects: &'a BTreeMap<String, Bytes>,
}

/// Decides about the faults of a memory store. Implemented by closures.
pub trait StoreHook: Send + Sync {
    /// Called once before each operation, in the order of the calls.
    fn on_call(&self, call: StoreCall<'_>) -> Fault;

    /// Called with each change, also with one that comes late. Must not call the store.
    fn on_change(&self, change: StoreChange<'_>) {
        let _ = change; // Not every hook keeps a history.
    }
}

impl<F: Fn(StoreCall<'_>) -> Fault + Send + Sync> StoreHook for F {
    fn on_call(&self, call: StoreCall<'_>) -> Fault {
        self(call)
    }
}

/// What all stores of one name share.
#[derive(Default)]
pub(super) struct Shared(Mutex<Content>);

#[derive(Default)]
struct Content {
    objects: BTreeMap<String, Bytes>,
    hook: Option<Arc<dyn StoreHook>>,
    /// What listings show instead of the objects: keys and sizes.
    stale: Option<BTreeMap<String, u64>>,
}

impl Content {
    /// Makes an effect happen and tells the hook of it.
    fn apply<T>(
        &mut self,
        operation: &'static str,
        key: String,
        effect: impl FnOnce(&mut BTreeMap<String, Bytes>, String) -> T,
    ) -> T {
        let Some(hook) = self.hook.clone() else {
            return effect(&mut self.objects, key);
        };
        let before = self.objects.get(&key).cloned();
        let result = effect(&mut self.objects, key.clone());
        let after = self.objects.get(&key);
        if operation == "put" || before.is_some() != after.is_some() {
            hook.on_change(StoreChange {
                operation,
                key: &key,
                before: before.as_ref(),
                after,
                objects: &self.objects,
            });
        }
        result
    }
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Content) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_hook(&self, hook: Option<Arc<dyn StoreHook>>) {
        self.with(|content| content.hook = hook);
    }

    pub(super) fn freeze_listings(&self, is_frozen: bool) {
        self.with(|content| {
            let sizes = || {
                content
                    .objects
                    .iter()
                    .map(|(k, b)| (k.clone(), b.len() as u64))
            };
            content.stale = is_frozen.then(|| sizes().collect());
        });
    }
}

/// A sub-tree of a named memory store.
pub struct MemoryStore {
    uri: String,
    /// Ends with a slash unless empty.
    prefix: String,
    shared: Arc<Shared>,
}

impl MemoryStore {
    pub(super) fn new(name: &str, prefix: &str, shared: Arc<Shared>) -> Self {
        let slash = if prefix.is_empty() { "" } else { "/" };
        Self {
            uri: format!("memory://{name}{slash}{prefix}"),
            prefix: format!("{prefix}{slash}"),
            shared,
        }
    }

    /// A store of its own, that no factory knows.
    #[must_use]
    pub fn detached(name: &str) -> Self {
        Self::new(name, "", Arc::default())
    }

    /// Replaces the hook of all stores of this name.
    pub fn set_hook(&self, hook: Option<Arc<dyn StoreHook>>) {
        self.shared.set_hook(hook);
    }

    fn object_uri(&self, key: &str) -> String {
        format!("{}/{key}", self.uri)
    }

    /// Asks the hook, then makes `effect` happen when and if it should.
    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        effect: impl FnOnce(&mut BTreeMap<String, Bytes>, String) -> T + Send + 'static,
    ) -> StoreResult<T> {
        check_key(&self.uri, key)?;
        let uri = self.object_uri(key);
        let full_key = format!("{}{key}", self.prefix);
        let fault = self.ask(operation, &uri);
        pause(fault.delay_before).await;
        let unknown = |message| StoreError::Unknown {
            operation,
            uri: uri.clone(),
            message,
        };
        let apply = move |shared: &Shared| {
            shared.with(|content| content.apply(operation, full_key, effect))
        };
        let answer = match fault.outcome {
            Outcome::Normal | Outcome::FlipBit(_) | Outcome::Truncate(_) => Ok(apply(&self.shared)),
            Outcome::Fail(message) => Err(StoreError::Failed {
                operation,
                uri,
                message,
            }),
            Outcome::AppliedAnswerLost(message) => {
                apply(&self.shared);
                Err(unknown(message))
            }
            Outcome::LostBeforeApplied(message) => Err(unknown(message)),
            Outcome::AppliedLater(delay, message) => {
                let shared = Arc::clone(&self.shared);
                let error = unknown(message);
                tokio::spawn(async move {
                    pause(delay).await;
                    apply(&shared);
                });
                Err(error)
            }
        };
        pause(fault.delay_after).await;
        answer
    }

    /// Asks the hook, then reads; an altering outcome is left to the caller.
    async fn read<T>(
        &self,
        operation: &'static str,
        uri: String,
        effect: impl FnOnce(&Content) -> StoreResult<T>,
    ) -> StoreResult<(T, Outcome)> {
        let fault = self.ask(operation, &uri);
        pause(fault.delay_before).await;
        let answer = match fault.outcome {
            outcome @ (Outcome::Normal | Outcome::FlipBit(_) | Outcome::Truncate(_)) => self
                .shared
                .with(|content| effect(content))
                .map(|value| (value, outcome)),
            Outcome::Fail(message)
            | Outcome::AppliedAnswerLost(message)
            | Outcome::LostBeforeApplied(message)
            | Outcome::AppliedLater(_, message) => Err(StoreError::Failed {
                operation,
                uri,
                message,
            }),
        };
        pause(fault.delay_after).await;
        answer
    }

    fn ask(&self, operation: &'static str, uri: &str) -> Fault {
        // Cloned out of the lock: a hook may look at the store.
        let hook = self.shared.with(|content| content.hook.clone());
        hook.map_or_else(Fault::default, |hook| {
            hook.on_call(StoreCall { operation, uri })
        })
    }
}

impl Store for MemoryStore {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>> {
        self.write("create", key, move |objects, key| {
            if objects.contains_key(&key) {
                return Created::Exists;
            }
            objects.insert(key, bytes);
            Created::New
        })
        .boxed()
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>> {
        self.write("put", key, move |objects, key| {
            objects.insert(key, bytes);
        })
        .boxed()
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, StoreResult<Bytes>> {
        async move {
            check_key(&self.uri, key)?;
            let uri = self.object_uri(key);
            check_range(|| uri.clone(), range.as_ref())?;
            let full_key = format!("{}{key}", self.prefix);
            let read = |content: &Content| {
                let uri = self.object_uri(key);
                let Some(bytes) = content.objects.get(&full_key) else {
                    return Err(StoreError::NotFound { uri });
                };
                let Some(range) = range else {
                    return Ok(bytes.clone());
                };
                let size = bytes.len() as u64;
                if range.end > size {
                    return Err(past_the_end(uri, &range, size));
                }
                Ok(bytes.slice(range.start as usize..range.end as usize))
            };
            let (bytes, outcome) = self.read("get", uri, read).await?;
            Ok(alter(bytes, &outcome))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>> {
        async move {
            check_prefix(&self.uri, prefix)?;
            let full_prefix = format!("{}{prefix}", self.prefix);
            let read = |content: &Content| {
                let meta = |(key, size): (&String, u64)| ObjectMeta {
                    key: key[self.prefix.len()..].to_owned(),
                    size,
                };
                Ok(match &content.stale {
                    Some(stale) => below(stale, &full_prefix)
                        .map(|(k, size)| meta((k, *size)))
                        .collect(),
                    None => below(&content.objects, &full_prefix)
                        .map(|(k, bytes)| meta((k, bytes.len() as u64)))
                        .collect(),
                })
            };
            let (found, _) = self.read("list", self.object_uri(prefix), read).await?;
            Ok(found)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.write("delete", key, |objects, key| {
            objects.remove(&key);
        })
        .boxed()
    }
}

fn below<'a, T>(
    objects: &'a BTreeMap<String, T>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    objects
        .range(prefix.to_owned()..)
        .take_while(move |(key, _)| key.starts_with(prefix))
}

fn alter(bytes: Bytes, outcome: &Outcome) -> Bytes {
    match outcome {
        Outcome::FlipBit(at) if !bytes.is_empty() => {
            let mut altered = bytes.to_vec();
            let at = at % altered.len();
            altered[at] ^= 1;
            Bytes::from(altered)
        }
        Outcome::Truncate(length) => bytes.slice(..bytes.len().min(*length)),
        Outcome::Normal
        | Outcome::FlipBit(_)
        | Outcome::Fail(_)
        | Outcome::AppliedAnswerLost(_)
        | Outcome::LostBeforeApplied(_)
        | Outcome::AppliedLater(..) => bytes,
    }
}

/// No timer for no delay: the simulator's order of events does not depend on whether a hook is there.
async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with(fault: fn(StoreCall<'_>) -> Outcome) -> MemoryStore {
        let store = MemoryStore::detached("t");
        store.set_hook(Some(Arc::new(move |call: StoreCall<'_>| Fault {
            outcome: fault(call),
            ..Fault::default()
        })));
        store
    }

    fn on_create(call: StoreCall<'_>, outcome: Outcome) -> Outcome {
        if call.operation == "create" {
            outcome
        } else {
            Outcome::Normal
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_unknown_whether_or_not_it_was_applied() {
        let applied = store_with(|call| on_create(call, Outcome::AppliedAnswerLost("cut".into())));
        let lost = store_with(|call| on_create(call, Outcome::LostBeforeApplied("cut".into())));
        for (store, is_there) in [(applied, true), (lost, false)] {
            let created = store.create("a", Bytes::from_static(b"x")).await;
            assert!(matches!(created, Err(StoreError::Unknown { .. })));
            assert_eq!(store.get("a", None).await.is_ok(), is_there);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_stuck_on_its_way_is_applied_later_and_loses_to_whoever_came_first() {
        let late = Outcome::AppliedLater(Duration::from_secs(5), "stuck".into());
        let store = MemoryStore::detached("t");
        let hook = move |call: StoreCall<'_>| Fault {
            outcome: on_create(call, late.clone()),
            ..Fault::default()
        };
        store.set_hook(Some(Arc::new(hook)));
        for key in ["a", "b"] {
            let created = store.create(key, Bytes::from_static(b"late")).await;
            assert!(matches!(created, Err(StoreError::Unknown { .. })));
        }
        store.set_hook(None);
        let rival = store.create("b", Bytes::from_static(b"rival")).await;
        assert_eq!(rival.unwrap(), Created::New);
        assert!(store.get("a", None).await.is_err());
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(&store.get("a", None).await.unwrap()[..], b"late");
        assert_eq!(&store.get("b", None).await.unwrap()[..], b"rival");
    }

    #[tokio::test(start_paused = true)]
    async fn faults_of_reads_change_the_answer_and_not_the_object() {
        let store = MemoryStore::detached("t");
        store
            .put("a", Bytes::from_static(&[0, 0, 0]))
            .await
            .unwrap();
        for (outcome, answer) in [
            (Outcome::FlipBit(4), Some(vec![0, 1, 0])),
            (Outcome::Truncate(1), Some(vec![0])),
            (Outcome::Fail("503".into()), None),
            (Outcome::Normal, Some(vec![0, 0, 0])),
        ] {
            let hook = move |_: StoreCall<'_>| Fault {
                delay_before: Duration::from_secs(1),
                outcome: outcome.clone(),
                delay_after: Duration::from_secs(2),
            };
            store.set_hook(Some(Arc::new(hook)));
            let begin = perennial_actors::clock::Instant::now();
            let got = store.get("a", None).await.ok().map(|bytes| bytes.to_vec());
            assert_eq!(got, answer);
            assert_eq!(begin.elapsed().as_secs(), 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_sees_each_change_when_it_happens_and_listings_can_stand_still() {
        #[derive(Default)]
        struct History(Mutex<Vec<String>>);
        impl StoreHook for History {
            fn on_call(&self, call: StoreCall<'_>) -> Fault {
                let outcome = if call.uri.ends_with("late") {
                    Outcome::AppliedLater(Duration::from_secs(1), "late".into())
                } else {
                    Outcome::Normal
                };
                Fault {
                    outcome,
                    ..Fault::default()
                }
            }
            fn on_change(&self, change: StoreChange<'_>) {
                let (operation, key) = (change.operation, change.key);
                let line = format!("{operation} {key}, {}", change.objects.len());
                self.0.lock().unwrap().push(line);
            }
        }
        let store = MemoryStore::detached("t");
        let history = Arc::new(History::default());
        store.set_hook(Some(history.clone()));
        store.create("a", Bytes::new()).await.unwrap();
        assert_eq!(
            store.create("a", Bytes::new()).await.unwrap(),
            Created::Exists
        );
        assert!(store.put("late", Bytes::new()).await.is_err());
        store.shared.freeze_listings(true);
        store.delete("a").await.unwrap();
        store.delete("a").await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            *history.0.lock().unwrap(),
            ["create a, 1", "delete a, 0", "put late, 1"]
        );
        assert_eq!(store.list("").await.unwrap()[0].key, "a");
        store.shared.freeze_listings(false);
        assert_eq!(store.list("").await.unwrap()[0].key, "late");
    }
}
