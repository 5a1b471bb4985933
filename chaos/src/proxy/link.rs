//! TCP proxies on the links between nodes, each link with conditions of its own (the words are Toxiproxy's).
//!
//! One listener stands before each server; a connection belongs to the link from the node that dialled to that server. Invariant: what
//! passes is what was sent, in order, unless a bit was to be flipped; a black hole delays and loses nothing, as a network that drops
//! packets does to TCP: no byte, end or reset passes until it heals, and a new connection hangs.

mod carry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_actors::entropy::Entropy;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Roster, Threads};

/// Who dials when it is no node: a client.
pub const NO_NODE: &str = "?";
/// Bytes of a connection's beginning that are kept for a replay.
const FIRST_BYTES_MAX: usize = 4096;

/// What one way of a link is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// Nothing passes.
    pub is_blocked: bool,
    /// Everything comes so much later.
    pub delay: Duration,
    /// Plus up to so much; order is kept.
    pub jitter: Duration,
    /// Not more than so much passes.
    pub bytes_per_second: Option<u64>,
    /// Written in pieces of one to three bytes.
    pub is_sliced: bool,
}

/// What a link is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    /// From the node that dialled.
    pub up: Way,
    /// To it.
    pub down: Way,
    /// New connections are reset.
    pub refuses: bool,
    /// Connections from before are reset: raised by one for each reset.
    resets: u64,
    /// The server's ends of connections from before are reset, and the dialler hears nothing.
    half_opens: u64,
    /// Half-open connections up to this number are reset now.
    healed_half_opens: u64,
}

/// What has happened on a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes from the node that dialled.
    pub up: u64,
    /// Bytes to it.
    pub down: u64,
    /// Bits that were flipped.
    pub flipped: u64,
    /// Replays that the server answered by closing.
    pub replays_refused: u64,
}

#[derive(Debug)]
struct Link {
    server: SocketAddr,
    conditions: watch::Sender<Conditions>,
    flips: AtomicU32,
    first_bytes: Mutex<Vec<u8>>,
    connections: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    flipped: AtomicU64,
    replays_refused: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    roster: Roster,
    dice: Entropy,
    /// By name of the server's node.
    servers: Mutex<BTreeMap<String, SocketAddr>>,
    /// By dialler and server.
    links: Mutex<BTreeMap<(String, String), Arc<Link>>>,
}

/// All link proxies of a cluster. Dropping it closes them.
#[derive(Debug)]
pub struct LinkProxies {
    shared: Arc<Shared>,
    threads: Threads,
}

impl LinkProxies {
    /// None yet.
    ///
    /// # Errors
    /// When the machine has no thread to give.
    pub fn start(roster: Roster, seed: u64) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                roster,
                dice: Entropy::seeded(seed),
                servers: Mutex::default(),
                links: Mutex::default(),
            }),
            threads: Threads::start("link-proxy")?,
        })
    }

    /// Listens before a node's server. Returns the address that the others are to be told.
    ///
    /// # Errors
    /// When no port is free.
    pub fn stand_before(&self, server: &str, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = self
            .threads
            .handle()
            .block_on(TcpListener::bind("127.0.0.1:0"))?;
        let told = listener.local_addr()?;
        lock(&self.shared.servers).insert(server.to_owned(), address);
        let (shared, server) = (Arc::clone(&self.shared), server.to_owned());
        self.threads.handle().spawn(async move {
            loop {
                let Ok((client, peer)) = listener.accept().await else {
                    // Out of descriptors: the nodes' connections wait in the backlog.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let shared = Arc::clone(&shared);
                let server = server.clone();
                tokio::spawn(async move {
                    let dialler = shared.roster.owner_of(peer);
                    let dialler = dialler.as_deref().unwrap_or(NO_NODE);
                    if let Some(link) = shared.link(dialler, &server) {
                        carry::carry(&link, &shared.dice, client).await;
                    }
                });
            }
        });
        Ok(told)
    }

    /// Changes what a link is like, for connections that there are and that come.
    pub fn change(&self, dialler: &str, server: &str, change: impl FnOnce(&mut Conditions)) {
        if let Some(link) = self.shared.link(dialler, server) {
            link.conditions.send_modify(change);
        }
    }

    /// Resets all connections of a link.
    pub fn reset(&self, dialler: &str, server: &str) {
        self.change(dialler, server, |c| c.resets += 1);
    }

    /// Resets the server's ends; the dialler's stay open, and what it sends is lost.
    pub fn half_open(&self, dialler: &str, server: &str) {
        self.change(dialler, server, |c| c.half_opens += 1);
    }

    /// Resets what was left half open.
    pub fn heal_half_open(&self, dialler: &str, server: &str) {
        self.change(dialler, server, |c| c.healed_half_opens = c.half_opens);
    }

    /// Flips one bit of what passes next, either way.
    pub fn flip_bit(&self, dialler: &str, server: &str) {
        if let Some(link) = self.shared.link(dialler, server) {
            link.flips.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Dials the server and sends what the newest connection of the link began with.
    pub fn replay(&self, dialler: &str, server: &str) {
        if let Some(link) = self.shared.link(dialler, server) {
            self.threads
                .handle()
                .spawn(async move { carry::replay(&link).await });
        }
    }

    /// What has happened on a link.
    #[must_use]
    pub fn counters(&self, dialler: &str, server: &str) -> LinkCounters {
        let Some(link) = self.shared.link(dialler, server) else {
            return LinkCounters::default();
        };
        LinkCounters {
            connections: link.connections.load(Ordering::Relaxed),
            up: link.up.load(Ordering::Relaxed),
            down: link.down.load(Ordering::Relaxed),
            flipped: link.flipped.load(Ordering::Relaxed),
            replays_refused: link.replays_refused.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// `None`: nobody stands before such a server.
    fn link(&self, dialler: &str, server: &str) -> Option<Arc<Link>> {
        let address = *lock(&self.servers).get(server)?;
        let mut links = lock(&self.links);
        let link = links
            .entry((dialler.to_owned(), server.to_owned()))
            .or_insert_with(|| {
                Arc::new(Link {
                    server: address,
                    conditions: watch::Sender::new(Conditions::default()),
                    flips: AtomicU32::new(0),
                    first_bytes: Mutex::default(),
                    connections: AtomicU64::new(0),
                    up: AtomicU64::new(0),
                    down: AtomicU64::new(0),
                    flipped: AtomicU64::new(0),
                    replays_refused: AtomicU64::new(0),
                })
            });
        Some(Arc::clone(link))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
