//! The object store of a simulated cluster: one in-memory store, its weather, and a gate per node that a dead node does not pass.
//!
//! Invariant: which call meets which fault depends on the seed and the order of calls only.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use perennial::storage::{Fault, Outcome, StoreCall, StoreHook, Stores};
use perennial_actors::checkpoint::{Created, ObjectMeta, Store, StoreFactory, StoreResult};
use perennial_actors::entropy::Entropy;
use perennial_config::S3Settings;

use super::trace::Trace;

/// The name of the store.
const NAME: &str = "simulated";
/// Latency of a call in good weather, before and after its effect.
const LATENCY_MS_MAX: u64 = 4;

/// How the store behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// Every call succeeds after a moment.
    Calm,
    /// This share of calls, in percent, fails, is lost, is applied late, or its answer is lost.
    Storm {
        /// 0 to 100.
        percent: u64,
    },
}

/// The store of the whole cluster. Clones are the same.
#[derive(Clone)]
pub(super) struct SimulatedStores {
    stores: Stores,
    hook: Arc<Hook>,
}

struct Hook {
    weather: Mutex<Weather>,
    /// Set while the checker looks: it is no part of the simulation.
    is_watched: AtomicBool,
    dice: Entropy,
    trace: Trace,
}

impl StoreHook for Hook {
    fn on_call(&self, call: StoreCall<'_>) -> Fault {
        if self.is_watched.load(Ordering::Relaxed) {
            return Fault::default();
        }
        let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let die = self.dice.u64();
        let latency = |roll: u64| Duration::from_millis(roll % (LATENCY_MS_MAX + 1));
        let outcome = match weather {
            Weather::Storm { percent } if die % 100 < percent => {
                let message = || "storm".to_owned();
                match (die / 100) % 5 {
                    0 => Outcome::AppliedAnswerLost(message()),
                    1 => Outcome::LostBeforeApplied(message()),
                    2 => Outcome::AppliedLater(Duration::from_millis(die / 1000 % 3000), message()),
                    _ => Outcome::Fail(message()),
                }
            }
            Weather::Calm | Weather::Storm { .. } => Outcome::Normal,
        };
        self.trace.line(format_args!(
            "store {} {} {outcome:?}",
            call.operation, call.uri
        ));
        Fault {
            delay_before: latency(die >> 20),
            outcome,
            delay_after: latency(die >> 40),
        }
    }
}

impl SimulatedStores {
    /// Empty, in good weather.
    #[must_use]
    pub(super) fn new(s3: S3Settings, dice: Entropy, trace: Trace) -> Self {
        let stores = Stores::new(s3, dice.clone());
        let hook = Arc::new(Hook {
            weather: Mutex::new(Weather::Calm),
            is_watched: AtomicBool::new(false),
            dice,
            trace,
        });
        stores.set_memory_hook(NAME, Some(hook.clone()));
        Self { stores, hook }
    }

    /// The URI of a directory.
    #[must_use]
    pub(super) fn uri(directory: &str) -> String {
        format!("memory://{NAME}/{directory}")
    }

    /// Changes the weather.
    pub(super) fn set_weather(&self, weather: Weather) {
        *self
            .hook
            .weather
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// The stores as a node sees them, until the node is killed.
    #[must_use]
    pub(super) fn of_node(&self) -> NodeStores {
        NodeStores {
            stores: self.stores.clone(),
            is_dead: Arc::default(),
        }
    }

    /// All objects below a directory whose key ends so, as they are at this instant.
    #[must_use]
    pub(super) fn look(&self, directory: &str, suffix: &str) -> Vec<(String, Bytes)> {
        self.hook.is_watched.store(true, Ordering::Relaxed);
        let look = async {
            let store = self.stores.open(&Self::uri(directory)).ok()?;
            let mut found = Vec::new();
            for object in store.list("").await.ok()? {
                if object.key.ends_with(suffix) {
                    let bytes = store.get(&object.key, None).await.ok()?;
                    found.push((object.key, bytes));
                }
            }
            Some(found)
        };
        // Without a fault a call of a memory store is ready at once.
        let found = look.now_or_never().flatten();
        self.hook.is_watched.store(false, Ordering::Relaxed);
        found.unwrap_or_default()
    }
}

/// See [`SimulatedStores::of_node`]. Clones are the same.
#[derive(Clone)]
pub(super) struct NodeStores {
    stores: Stores,
    is_dead: Arc<AtomicBool>,
}

impl NodeStores {
    /// From now on no call of this node begins or ends; one that is on its way still has its effect.
    pub(super) fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }
}

impl StoreFactory for NodeStores {
    fn open(&self, uri: &str) -> StoreResult<Arc<dyn Store>> {
        Ok(Arc::new(Gate {
            store: self.stores.open(uri)?,
            is_dead: self.is_dead.clone(),
        }))
    }
}

struct Gate {
    store: Arc<dyn Store>,
    is_dead: Arc<AtomicBool>,
}

impl Gate {
    async fn pass<T>(&self, call: impl Future<Output = T>) -> T {
        self.stop().await;
        let answer = call.await;
        self.stop().await;
        answer
    }

    async fn stop(&self) {
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

impl Store for Gate {
    fn uri(&self) -> &str {
        self.store.uri()
    }

    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>> {
        self.pass(self.store.create(key, bytes)).boxed()
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>> {
        self.pass(self.store.put(key, bytes)).boxed()
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, StoreResult<Bytes>> {
        self.pass(self.store.get(key, range)).boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>> {
        self.pass(self.store.list(prefix)).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.pass(self.store.delete(key)).boxed()
    }
}
