//! The object store of a simulated cluster: one in-memory store, its weather, its history, and a gate per node that a dead node does
//! not pass and a paused one passes when it wakes.
//!
//! Invariant: which call meets which fault depends on the seed and the order of calls only.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use perennial::storage::{Fault, Outcome, StoreCall, StoreChange, StoreHook, Stores};
use perennial_actors::checkpoint::{Created, ObjectMeta, Store, StoreFactory, StoreResult};
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use perennial_config::S3Settings;
use tokio::sync::Notify;

use super::trace::Trace;
use crate::plan::{StoreFault, StoreRequests};

/// The name of the store.
const NAME: &str = "simulated";
/// Latency of a call in good weather, before and after its effect.
const LATENCY_MS_MAX: u64 = 4;
/// A client gives up on a call after so long.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of a body whose length is not known when its call is slowed down.
const BODY: u64 = 4 << 10;

/// What is told of each change, with all objects as they are then.
pub(super) type OnChange = Box<dyn Fn(StoreChange<'_>) + Send + Sync>;

/// The store of the whole cluster. Clones are the same.
#[derive(Clone)]
pub(super) struct SimulatedStores {
    stores: Stores,
    hook: Arc<Hook>,
}

/// A fault in force.
struct Active {
    /// Of which node's calls; `None`: all.
    node: Option<String>,
    fault: Ill,
    until: Instant,
    /// Calls that it still meets.
    left: u32,
}

/// Nobody but nodes calls.
const NONE: u8 = 0;
/// The harness changes or reads, and the history does not see it.
const UNSEEN: u8 = 1;
/// The harness acts as a node would.
const SEEN: u8 = 2;

/// What a call can meet.
#[derive(Debug, Clone)]
pub(super) enum Ill {
    /// As the plan says.
    Store(StoreFault),
    /// Writes find no space.
    Full,
    /// Nothing can be read or written.
    Broken,
    /// Every call takes so long.
    Slow(Duration),
}

struct Hook {
    active: Mutex<Vec<Active>>,
    /// Who is calling just now.
    caller: Mutex<Option<String>>,
    /// While the harness itself calls.
    hand: AtomicU8,
    on_change: OnChange,
    dice: Entropy,
    trace: Trace,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hook {
    /// The first fault in force that meets this call.
    fn meets(&self, operation: &str, die: u64) -> Option<Ill> {
        let mut active = lock(&self.active);
        let now = Instant::now();
        active.retain(|a| a.until > now && a.left > 0);
        let caller = lock(&self.caller);
        for a in active.iter_mut() {
            if a.node.is_some() && a.node != *caller {
                continue;
            }
            let is_met = match &a.fault {
                Ill::Store(fault) => is_met(fault, operation, die),
                Ill::Full => matches!(operation, "put" | "create"),
                Ill::Broken | Ill::Slow(_) => true,
            };
            if is_met {
                if a.left != u32::MAX {
                    a.left -= 1;
                }
                return Some(a.fault.clone());
            }
        }
        None
    }

    fn suffers(&self, ill: Ill, die: u64) -> (Duration, Outcome) {
        let at_once = |outcome| (Duration::ZERO, outcome);
        match ill {
            Ill::Full => at_once(Outcome::Fail("no space left on device".to_owned())),
            Ill::Broken => at_once(Outcome::Fail("input/output error".to_owned())),
            Ill::Slow(delay) => (delay, Outcome::Normal),
            Ill::Store(fault) => match fault {
                StoreFault::Answer { status, .. } => {
                    at_once(Outcome::Fail(format!("answered with status {status}")))
                }
                StoreFault::Silence { .. } => {
                    let lost = "no answer".to_owned();
                    if die & 1 == 0 {
                        (CALL_TIMEOUT, Outcome::LostBeforeApplied(lost))
                    } else {
                        (CALL_TIMEOUT, Outcome::AppliedAnswerLost(lost))
                    }
                }
                StoreFault::SlowBody {
                    bytes_per_second, ..
                } => {
                    let takes = Duration::from_millis(BODY * 1000 / bytes_per_second.max(1));
                    if takes > CALL_TIMEOUT {
                        (CALL_TIMEOUT, Outcome::LostBeforeApplied("stalled".into()))
                    } else {
                        (takes, Outcome::Normal)
                    }
                }
                StoreFault::CutBody { .. } => {
                    at_once(Outcome::Truncate(usize::try_from(die % 256).unwrap_or(0)))
                }
                StoreFault::LoseSuccess { .. } => at_once(Outcome::AppliedAnswerLost(
                    "the connection was cut after the request".to_owned(),
                )),
                StoreFault::LateWrite { delay, .. } => {
                    at_once(Outcome::AppliedLater(delay, "the request is stuck".into()))
                }
                StoreFault::NoDelete { .. } => {
                    at_once(Outcome::Fail("delete is refused".to_owned()))
                }
                // These change the store itself, or its listings.
                StoreFault::StaleList { .. }
                | StoreFault::MissingObject
                | StoreFault::CorruptObject
                | StoreFault::TruncatedObject
                | StoreFault::Precondition { .. }
                | StoreFault::Empty => at_once(Outcome::Normal),
            },
        }
    }
}

fn is_met(fault: &StoreFault, operation: &str, die: u64) -> bool {
    let is_of = |requests: &StoreRequests| match requests {
        StoreRequests::All => true,
        // A memory store knows no multipart upload: what it completes is one write.
        StoreRequests::Put | StoreRequests::CompleteMultipart => operation == "put",
        StoreRequests::Create => operation == "create",
        StoreRequests::Get => matches!(operation, "get" | "list"),
    };
    match fault {
        StoreFault::Answer {
            percent, requests, ..
        } => is_of(requests) && (die >> 8) % 100 < u64::from(*percent),
        StoreFault::Silence { .. } => true,
        StoreFault::SlowBody { .. } => matches!(operation, "put" | "create" | "get"),
        StoreFault::CutBody { .. } => operation == "get",
        StoreFault::LoseSuccess { requests, .. } | StoreFault::LateWrite { requests, .. } => {
            is_of(requests) && matches!(operation, "put" | "create")
        }
        StoreFault::NoDelete { .. } => operation == "delete",
        StoreFault::StaleList { .. }
        | StoreFault::MissingObject
        | StoreFault::CorruptObject
        | StoreFault::TruncatedObject
        | StoreFault::Precondition { .. }
        | StoreFault::Empty => false,
    }
}

impl StoreHook for Hook {
    fn on_call(&self, call: StoreCall<'_>) -> Fault {
        if self.hand.load(Ordering::Relaxed) != NONE {
            return Fault::default();
        }
        let die = self.dice.u64();
        let latency = |roll: u64| Duration::from_millis(roll % (LATENCY_MS_MAX + 1));
        let (delay, outcome) = match self.meets(call.operation, die) {
            Some(ill) => self.suffers(ill, die),
            None => (Duration::ZERO, Outcome::Normal),
        };
        self.trace.line(format_args!(
            "store {} {} {outcome:?}",
            call.operation, call.uri
        ));
        Fault {
            delay_before: delay + latency(die >> 20),
            outcome,
            delay_after: latency(die >> 40),
        }
    }

    fn on_change(&self, change: StoreChange<'_>) {
        if self.hand.load(Ordering::Relaxed) != UNSEEN {
            (self.on_change)(change);
        }
    }
}

impl SimulatedStores {
    /// Empty, in good weather.
    #[must_use]
    pub(super) fn new(s3: S3Settings, dice: Entropy, trace: Trace, on_change: OnChange) -> Self {
        let stores = Stores::new(s3, dice.clone());
        let hook = Arc::new(Hook {
            active: Mutex::default(),
            caller: Mutex::default(),
            hand: AtomicU8::new(NONE),
            on_change,
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

    /// Lets calls of a node, or of all, meet a fault for a while or so many times.
    pub(super) fn ail(&self, node: Option<String>, fault: Ill, until: Instant, left: u32) {
        lock(&self.hook.active).push(Active {
            node,
            fault,
            until,
            left,
        });
    }

    /// Whether any call can meet a fault that ends by itself.
    pub(super) fn is_ailing(&self) -> bool {
        let now = Instant::now();
        let mut active = lock(&self.hook.active);
        active.retain(|a| a.until > now && a.left > 0);
        active.iter().any(|a| a.left == u32::MAX)
    }

    /// Ends all faults of calls.
    pub(super) fn heal(&self) {
        lock(&self.hook.active).clear();
        self.freeze_listings(false);
    }

    /// Lets listings show what there is now.
    pub(super) fn freeze_listings(&self, is_frozen: bool) {
        self.stores.freeze_memory_listings(NAME, is_frozen);
    }

    /// The stores as a node sees them, until the node is killed.
    #[must_use]
    pub(super) fn of_node(&self, node: &str) -> NodeStores {
        NodeStores {
            stores: self.stores.clone(),
            gate: Arc::new(Gate {
                node: node.to_owned(),
                state: AtomicU8::new(OPEN),
                changed: Notify::new(),
                hook: self.hook.clone(),
            }),
        }
    }

    /// All objects below a directory, as they are at this instant.
    #[must_use]
    pub(super) fn look(&self, directory: &str) -> BTreeMap<String, Bytes> {
        let found = self.by_hand(directory, UNSEEN, async |store| {
            let mut found = BTreeMap::new();
            for object in store.list("").await.ok()? {
                let bytes = store.get(&object.key, None).await.ok()?;
                found.insert(object.key, bytes);
            }
            Some(found)
        });
        found.unwrap_or_default()
    }

    /// Replaces or deletes an object, unseen by the history.
    pub(super) fn tamper(&self, directory: &str, key: &str, bytes: Option<Bytes>) {
        let done = self.by_hand(directory, UNSEEN, async |store| match bytes {
            Some(bytes) => store.put(key, bytes).await.ok(),
            None => store.delete(key).await.ok(),
        });
        debug_assert!(done.is_some(), "{key} is ready at once");
    }

    /// Does something as a node would do it, at once and without faults; `None` when it would have to wait.
    pub(super) fn act<T>(
        &self,
        directory: &str,
        work: impl AsyncFnOnce(Arc<dyn Store>) -> Option<T>,
    ) -> Option<T> {
        self.by_hand(directory, SEEN, work)
    }

    fn by_hand<T>(
        &self,
        directory: &str,
        hand: u8,
        work: impl AsyncFnOnce(Arc<dyn Store>) -> Option<T>,
    ) -> Option<T> {
        let store = self.stores.open(&Self::uri(directory)).ok()?;
        self.hook.hand.store(hand, Ordering::Relaxed);
        // Without a fault a call of a memory store is ready at once.
        let done = pin!(work(store)).now_or_never().flatten();
        self.hook.hand.store(NONE, Ordering::Relaxed);
        done
    }
}

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const DEAD: u8 = 2;

/// See [`SimulatedStores::of_node`]. Clones are the same.
#[derive(Clone)]
pub(super) struct NodeStores {
    stores: Stores,
    gate: Arc<Gate>,
}

struct Gate {
    node: String,
    state: AtomicU8,
    changed: Notify,
    hook: Arc<Hook>,
}

impl NodeStores {
    /// From now on no call of this node begins or ends; one that is on its way still has its effect.
    pub(super) fn kill(&self) {
        self.gate.state.store(DEAD, Ordering::Relaxed);
    }

    /// No call begins or ends before `resume`; one that is on its way has its effect.
    pub(super) fn pause(&self) {
        let state = &self.gate.state;
        // A dead node stays dead.
        let _ = state.compare_exchange(OPEN, PAUSED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// See [`pause`](Self::pause).
    pub(super) fn resume(&self) {
        let state = &self.gate.state;
        let _ = state.compare_exchange(PAUSED, OPEN, Ordering::Relaxed, Ordering::Relaxed);
        self.gate.changed.notify_waiters();
    }
}

impl StoreFactory for NodeStores {
    fn open(&self, uri: &str) -> StoreResult<Arc<dyn Store>> {
        Ok(Arc::new(Gated {
            store: self.stores.open(uri)?,
            gate: self.gate.clone(),
        }))
    }
}

impl Gate {
    async fn stop(&self) {
        loop {
            // Order matters: a change between the look and the wait is not missed.
            let changed = self.changed.notified();
            match self.state.load(Ordering::Relaxed) {
                OPEN => return,
                PAUSED => changed.await,
                _ => std::future::pending().await,
            }
        }
    }
}

struct Gated {
    store: Arc<dyn Store>,
    gate: Arc<Gate>,
}

impl Gated {
    async fn pass<T>(&self, call: impl Future<Output = T>) -> T {
        self.gate.stop().await;
        let mut call = pin!(call);
        let answer = poll_fn(|context| {
            *lock(&self.gate.hook.caller) = Some(self.gate.node.clone());
            let answer = call.as_mut().poll(context);
            *lock(&self.gate.hook.caller) = None;
            answer
        })
        .await;
        self.gate.stop().await;
        answer
    }
}

impl Store for Gated {
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
