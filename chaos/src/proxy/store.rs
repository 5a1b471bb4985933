//! A proxy before a real S3 server that breaks chosen requests and remembers every write.
//!
//! Invariant: a request that no rule applies to reaches the server as the client signed it, `Host` included, and its answer the client
//! unchanged. It speaks HTTP/1.1 by hyper and knows of S3 only what names a request's kind. [`History`] is what invariants S3 and S4 are
//! judged by.

mod history;
mod rules;
mod serve;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use perennial_actors::checkpoint::Store;
use perennial_actors::entropy::Entropy;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Roster, Threads};
pub use history::{History, RecordHead, Write, WriteKind};
use rules::Rules;
pub use rules::{Break, Rule, RuleId, Which};

/// First lines of requests that are remembered; older ones are forgotten.
const SEEN_MAX: usize = 100_000;
/// Answers to listings that are remembered.
const LISTINGS_MAX: usize = 256;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct StoreProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _threads: Threads,
}

struct Shared {
    /// `host:port` of the real one.
    server: String,
    roster: Roster,
    dice: Entropy,
    client: Client<HttpConnector, Full<Bytes>>,
    rules: Mutex<Rules>,
    /// Raised whenever rules change, so that what is held looks again.
    changes: watch::Sender<u64>,
    /// First line of each request.
    seen: Mutex<Vec<String>>,
    history: Mutex<History>,
    /// The last true answer to each listing, by target.
    listings: Mutex<BTreeMap<String, Bytes>>,
    /// Rooted at the bucket, past this proxy: where a rival writes.
    bucket: Option<Arc<dyn Store>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "store proxy before {}", self.server)
    }
}

impl StoreProxy {
    /// Stands before the server at an endpoint (`http://host:port`). `bucket` is needed for [`Break::Rival`] alone.
    ///
    /// # Errors
    /// When no port or thread is free.
    pub fn before(
        endpoint: &str,
        roster: Roster,
        seed: u64,
        bucket: Option<Arc<dyn Store>>,
    ) -> io::Result<Self> {
        let threads = Threads::start("store-proxy")?;
        // Not by the runtime: it may be called within another.
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = {
            let _inside = threads.handle().enter();
            Arc::new(Shared {
                server: endpoint
                    .trim_start_matches("http://")
                    .trim_end_matches('/')
                    .to_owned(),
                roster,
                dice: Entropy::seeded(seed),
                client: Client::builder(TokioExecutor::new()).build_http(),
                rules: Mutex::default(),
                changes: watch::Sender::new(0),
                seen: Mutex::default(),
                history: Mutex::default(),
                listings: Mutex::default(),
                bucket,
            })
        };
        let accepting = Arc::clone(&shared);
        threads.handle().spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve::accept(accepting, listener).await,
                Err(error) => tracing::error!(%error, "the store proxy cannot listen"),
            }
        });
        Ok(Self {
            address,
            shared,
            _threads: threads,
        })
    }

    /// What nodes are to be told.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on requests that it applies to are broken.
    pub fn add(&self, rule: Rule) -> RuleId {
        let id = lock(&self.shared.rules).add(rule);
        self.shared.changes.send_modify(|n| *n += 1);
        id
    }

    /// Ends a rule; requests that it holds go on. Returns how many it has broken.
    pub fn remove(&self, id: RuleId) -> u64 {
        let hits = lock(&self.shared.rules).remove(id);
        self.shared.changes.send_modify(|n| *n += 1);
        hits
    }

    /// How many requests a rule has broken so far.
    #[must_use]
    pub fn hits(&self, id: RuleId) -> u64 {
        lock(&self.shared.rules).hits(id)
    }

    /// Requests whose first line contains `needle`.
    #[must_use]
    pub fn count(&self, needle: &str) -> usize {
        let seen = lock(&self.shared.seen);
        seen.iter().filter(|line| line.contains(needle)).count()
    }

    /// All writes so far.
    #[must_use]
    pub fn history(&self) -> History {
        lock(&self.shared.history).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
