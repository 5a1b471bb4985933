//! Proxies between real nodes: on every control and data link, and before the object store.
//!
//! Invariant: without a fault a proxy changes nothing that the nodes could tell: bytes, their order, who closed and how. Which node a
//! connection comes from is asked of the operating system ([`Roster`]), never of the bytes, so that proxies know no protocol of ours.
//! They do not decide when to break; that is the carrier's business.

pub mod link;
mod roster;
pub mod store;

pub use link::{LinkCounters, LinkProxies};
pub use roster::Roster;
pub use store::StoreProxy;

use std::io;

/// Threads that move bytes.
const PROXY_THREADS: usize = 1;

/// A runtime of the proxies' own; may be dropped within another.
#[derive(Debug)]
struct Threads(Option<tokio::runtime::Runtime>);

impl Threads {
    fn start(name: &str) -> io::Result<Self> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(PROXY_THREADS)
            .thread_name(name)
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("taken in drop only").handle()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
