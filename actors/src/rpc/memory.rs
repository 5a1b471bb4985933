//! A network inside the process, for tests and the simulator: named nodes, byte streams, and switches for what goes wrong.
//!
//! Invariant: deterministic. No socket, no thread, and dice from a given seed only; what a stream does depends on the order of polls.
//! Bytes are never lost inside a living link (a silent one holds them back, as TCP would), and a cut link is seen by both ends.

mod link;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc};

use super::transport::{BoxStream, Listener, Transport};
use link::{Link, LinkEnd};

pub use link::Weather;

/// Replayed connections that are held open.
const GHOSTS_MAX: usize = 8;
/// Connections that wait to be accepted.
const BACKLOG_MAX: usize = 128;
const FIRST_PORT: u16 = 20_000;

/// The network and its switches. Clones are the same network.
#[derive(Clone)]
pub struct MemoryNetwork(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Told of every switch, for those who wait; wakes them in order, which a `watch` does not.
    changed: Notify,
}

#[derive(Default)]
struct State {
    last_port: u16,
    listeners: BTreeMap<String, ListenerEntry>,
    links: Vec<Weak<Mutex<Link>>>,
    /// From, to.
    silent: BTreeSet<(String, String)>,
    frozen: BTreeSet<String>,
    incarnations: BTreeMap<String, u64>,
    /// From, to.
    weather: BTreeMap<(String, String), Weather>,
    /// The next bytes from, to have a bit turned over.
    flips: BTreeSet<(String, String)>,
    /// What the newest connection from, to carried first, and where it went.
    openings: BTreeMap<(String, String), (String, Vec<u8>)>,
    ghosts: VecDeque<LinkEnd>,
    dice: u64,
}

struct ListenerEntry {
    node: String,
    backlog: mpsc::Sender<(BoxStream, String)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn is_blocked(&self, from: &str, to: &str) -> bool {
        self.frozen.contains(from)
            || self.frozen.contains(to)
            || self.silent.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Nothing but silence is to be looked for.
    fn is_calm(&self) -> bool {
        self.weather.is_empty() && self.flips.is_empty()
    }

    fn weather_of(&self, from: &str, to: &str) -> Weather {
        let pair = (from.to_owned(), to.to_owned());
        self.weather.get(&pair).copied().unwrap_or_default()
    }

    fn takes_flip(&mut self, from: &str, to: &str) -> bool {
        self.flips.remove(&(from.to_owned(), to.to_owned()))
    }

    fn remember_opening(
        &mut self,
        nodes: &[String; 2],
        address: &str,
        bytes: &[u8],
        is_first: bool,
    ) {
        let opening = self.openings.entry((nodes[0].clone(), nodes[1].clone()));
        let opening = opening.or_default();
        if is_first {
            *opening = (address.to_owned(), Vec::new());
        }
        opening.1.extend_from_slice(bytes);
    }

    /// `SplitMix64`.
    fn die(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn living_links(&mut self) -> Vec<Arc<Mutex<Link>>> {
        self.links.retain(|l| l.strong_count() > 0);
        self.links.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Default for MemoryNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryNetwork {
    /// No nodes, no faults.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// The network as seen from a node, which need not exist yet. Addresses are `node:port`; a listener always listens on its own
    /// node, whatever host it names.
    #[must_use]
    pub fn node(&self, name: &str) -> MemoryTransport {
        let incarnation = locked(&self.0.state)
            .incarnations
            .get(name)
            .copied()
            .unwrap_or(0);
        MemoryTransport {
            network: self.clone(),
            node: name.to_owned(),
            incarnation,
        }
    }

    /// Number of links that both ends or one still hold.
    #[must_use]
    pub fn links(&self) -> usize {
        locked(&self.0.state).living_links().len()
    }

    /// Number of listeners.
    #[must_use]
    pub fn listeners(&self) -> usize {
        locked(&self.0.state).listeners.len()
    }

    /// Resets the existing links between two nodes; new ones can be made.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_where(|[x, y]| (x == a && y == b) || (x == b && y == a));
    }

    /// Holds back all bytes in one direction, also on new links. Nobody gets an error; connecting takes for ever.
    pub fn silence(&self, from: &str, to: &str) {
        self.switch(|state| {
            state.silent.insert((from.to_owned(), to.to_owned()));
        });
    }

    /// Lets bytes flow again in one direction: those that were held back come first.
    pub fn unsilence(&self, from: &str, to: &str) {
        self.switch(|state| {
            state.silent.remove(&(from.to_owned(), to.to_owned()));
        });
    }

    /// Lets one direction be slow, narrow or sliced; the default is fair.
    pub fn set_weather(&self, from: &str, to: &str, weather: Weather) {
        self.switch(|state| {
            let pair = (from.to_owned(), to.to_owned());
            if weather == Weather::default() {
                state.weather.remove(&pair);
            } else {
                state.weather.insert(pair, weather);
            }
        });
    }

    /// Turns one bit over in what is written next in one direction.
    pub fn flip_bit(&self, from: &str, to: &str) {
        self.switch(|state| {
            state.flips.insert((from.to_owned(), to.to_owned()));
        });
    }

    /// The existing links between two nodes end at `gone` without a word to the other, which notices when it writes.
    pub fn half_open(&self, gone: &str, other: &str) {
        let is_meant = |nodes: &[String; 2]| {
            nodes.iter().any(|n| n == gone) && nodes.iter().any(|n| n == other)
        };
        self.each_link(is_meant, |link| link.half_open(gone));
    }

    /// Makes a connection that carries once more what the newest one from a node to another carried first. `false`: there was none,
    /// or nobody listens there.
    #[must_use]
    pub fn replay(&self, from: &str, to: &str) -> bool {
        let mut state = locked(&self.0.state);
        let pair = (from.to_owned(), to.to_owned());
        let Some((address, bytes)) = state.openings.get(&pair).cloned() else {
            return false;
        };
        let Ok(near) = self.link(&mut state, from, &address) else {
            return false;
        };
        near.inject(&bytes);
        if state.ghosts.len() >= GHOSTS_MAX {
            state.ghosts.pop_front();
        }
        state.ghosts.push_back(near);
        true
    }

    /// Seeds the dice of jitter, slices and flipped bits.
    pub fn seed(&self, seed: u64) {
        locked(&self.0.state).dice = seed;
    }

    /// A new link to whoever listens there: the near end.
    fn link(&self, state: &mut State, from: &str, address: &str) -> io::Result<LinkEnd> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let entry = state.listeners.get(address).ok_or_else(refused)?;
        let nodes = [from.to_owned(), entry.node.clone()];
        let link = Arc::new(Mutex::new(Link::new(nodes, address)));
        let [near, far] = LinkEnd::pair(self, &link);
        let accepted = (Box::new(far) as BoxStream, from.to_owned());
        entry.backlog.try_send(accepted).map_err(|_| refused())?;
        state.links.push(Arc::downgrade(&link));
        Ok(near)
    }

    /// Like SIGSTOP as its peers see it: connections are made and stay silent.
    pub fn freeze(&self, node: &str) {
        self.switch(|state| {
            state.frozen.insert(node.to_owned());
        });
    }

    /// Like SIGCONT.
    pub fn thaw(&self, node: &str) {
        self.switch(|state| {
            state.frozen.remove(node);
        });
    }

    /// Like SIGKILL as its peers see it: links are reset, listeners are gone. Transports made before never connect again; a
    /// successor gets its own from [`node`](Self::node).
    pub fn kill(&self, node: &str) {
        self.switch(|state| {
            *state.incarnations.entry(node.to_owned()).or_default() += 1;
            state.listeners.retain(|_, l| l.node != node);
            state.frozen.remove(node);
        });
        self.cut_where(|nodes| nodes.iter().any(|n| n == node));
    }

    fn cut_where(&self, is_meant: impl Fn(&[String; 2]) -> bool) {
        self.each_link(is_meant, Link::cut);
    }

    fn each_link(&self, is_meant: impl Fn(&[String; 2]) -> bool, change: impl Fn(&mut Link)) {
        let links = locked(&self.0.state).living_links();
        for link in links {
            let mut link = locked(&link);
            if is_meant(&link.nodes) {
                change(&mut link);
            }
        }
    }

    fn switch(&self, change: impl FnOnce(&mut State)) {
        let links = {
            let mut state = locked(&self.0.state);
            change(&mut state);
            state.living_links()
        };
        for link in links {
            locked(&link).wake();
        }
        self.0.changed.notify_waiters();
    }
}

/// See [`MemoryNetwork::node`].
#[derive(Clone)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    node: String,
    incarnation: u64,
}

impl MemoryTransport {
    fn is_alive(&self, state: &State) -> bool {
        state.incarnations.get(&self.node).copied().unwrap_or(0) == self.incarnation
    }

    /// `None`: not now, ask again after a change.
    fn try_connect(&self, address: &str) -> Option<io::Result<BoxStream>> {
        let mut state = locked(&self.network.0.state);
        let node = address.split(':').next().unwrap_or_default();
        let is_silent = [(&*self.node, node), (node, &self.node)]
            .into_iter()
            .any(|(a, b)| state.silent.contains(&(a.to_owned(), b.to_owned())));
        if is_silent || !self.is_alive(&state) || state.frozen.contains(&self.node) {
            return None;
        }
        let linked = self.network.link(&mut state, &self.node, address);
        Some(linked.map(|near| Box::new(near) as BoxStream))
    }
}

impl Transport for MemoryTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            loop {
                // Order matters: a switch between the look and the wait is not missed.
                let changed = self.network.0.changed.notified();
                if let Some(result) = self.try_connect(address) {
                    return result;
                }
                changed.await;
            }
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let port = address.rsplit(':').next().and_then(|p| p.parse().ok());
            let Some(mut port) = port else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let mut state = locked(&self.network.0.state);
            if !self.is_alive(&state) {
                return Err(io::ErrorKind::NetworkDown.into());
            }
            if port == 0 {
                port = state.last_port.max(FIRST_PORT).wrapping_add(1);
                state.last_port = port;
            }
            let address = format!("{}:{port}", self.node);
            if state.listeners.contains_key(&address) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let (backlog, accepted) = mpsc::channel(BACKLOG_MAX);
            let node = self.node.clone();
            state
                .listeners
                .insert(address.clone(), ListenerEntry { node, backlog });
            Ok(Box::new(MemoryListener {
                transport: self.clone(),
                address,
                accepted,
            }) as Box<dyn Listener>)
        })
    }
}

struct MemoryListener {
    transport: MemoryTransport,
    address: String,
    accepted: mpsc::Receiver<(BoxStream, String)>,
}

impl Listener for MemoryListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, String)>> {
        Box::pin(async move {
            match self.accepted.recv().await {
                Some(accepted) => Ok(accepted),
                // Killed: nothing will ever come.
                None => std::future::pending().await,
            }
        })
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        let mut state = locked(&self.transport.network.0.state);
        // A killed node's successor may listen on the same address.
        if self.transport.is_alive(&state) {
            state.listeners.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    async fn linked(network: &MemoryNetwork) -> (Box<dyn Listener>, BoxStream, BoxStream) {
        let mut listener = network.node("b").listen("0.0.0.0:0").await.unwrap();
        let near = network
            .node("a")
            .connect(&listener.address())
            .await
            .unwrap();
        let (far, from) = listener.accept().await.unwrap();
        assert_eq!(from, "a");
        (listener, near, far)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_holds_bytes_back_in_one_direction_and_loses_none() {
        let network = MemoryNetwork::new();
        let (_listener, mut near, mut far) = linked(&network).await;
        network.silence("a", "b");
        near.write_all(b"x").await.unwrap();
        far.write_all(b"y").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'y');
        let waiting = timeout(Duration::from_secs(9), far.read_u8()).await;
        assert!(waiting.is_err());
        network.unsilence("a", "b");
        assert_eq!(far.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_is_seen_by_both_ends_and_a_new_link_works() {
        let network = MemoryNetwork::new();
        let (mut listener, mut near, mut far) = linked(&network).await;
        let reading = tokio::spawn(async move { near.read_u8().await });
        tokio::task::yield_now().await;
        network.cut("b", "a");
        let kind = |error: io::Error| error.kind();
        let reset = io::ErrorKind::ConnectionReset;
        assert_eq!(kind(reading.await.unwrap().unwrap_err()), reset);
        assert_eq!(kind(far.write_u8(1).await.unwrap_err()), reset);
        let address = listener.address();
        let again = network.node("a").connect(&address).await;
        assert!(again.is_ok() && listener.accept().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_silent_node_connect_in_the_order_in_which_they_came() {
        let network = MemoryNetwork::new();
        let listener = network.node("b").listen("b:1").await.unwrap();
        network.silence("a", "b");
        let order = Arc::new(Mutex::new(Vec::new()));
        for number in 0..16 {
            let (node, order) = (network.node("a"), Arc::clone(&order));
            tokio::spawn(async move {
                let _stream = node.connect("b:1").await.unwrap();
                locked(&order).push(number);
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        network.unsilence("a", "b");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*locked(&order), (0..16).collect::<Vec<_>>());
        drop(listener);
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_node_refuses_and_a_frozen_one_accepts_in_silence() {
        let network = MemoryNetwork::new();
        let (listener, mut near, _far) = linked(&network).await;
        network.freeze("b");
        let mut other = network
            .node("a")
            .connect(&listener.address())
            .await
            .unwrap();
        assert!(
            timeout(Duration::from_secs(9), other.read_u8())
                .await
                .is_err()
        );
        network.kill("b");
        assert!(near.read_u8().await.is_err());
        let refused = network.node("a").connect(&listener.address()).await;
        assert_eq!(
            refused.err().unwrap().kind(),
            io::ErrorKind::ConnectionRefused
        );
        drop((other, near, _far, listener));
        assert_eq!((network.links(), network.listeners()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn latency_lets_bytes_come_later_in_order_and_slices_lose_none() {
        let network = MemoryNetwork::new();
        let (_listener, mut near, mut far) = linked(&network).await;
        let began = tokio::time::Instant::now();
        let weather = Weather {
            delay: Duration::from_millis(100),
            jitter: Duration::from_millis(50),
            is_sliced: true,
            ..Weather::default()
        };
        network.set_weather("a", "b", weather);
        let sent: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for piece in sent.chunks(100) {
            near.write_all(piece).await.unwrap();
        }
        let mut got = vec![0; sent.len()];
        far.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        let took = began.elapsed().as_millis();
        assert!((100..=151).contains(&took), "{took}");
        network.set_weather("a", "b", Weather::default());
        near.write_u8(1).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), 1);
        let narrow = Weather {
            bytes_per_second: 1000,
            ..Weather::default()
        };
        network.set_weather("b", "a", narrow);
        let began = tokio::time::Instant::now();
        far.write_all(&sent).await.unwrap();
        near.read_exact(&mut got).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn one_bit_is_turned_over_once() {
        let network = MemoryNetwork::new();
        let (_listener, mut near, mut far) = linked(&network).await;
        network.flip_bit("a", "b");
        let mut got = [0; 8];
        near.write_all(&[0; 8]).await.unwrap();
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(got.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        near.write_all(&[0; 8]).await.unwrap();
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [0; 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_open_link_is_silent_until_its_living_end_writes() {
        let network = MemoryNetwork::new();
        let (_listener, mut near, mut far) = linked(&network).await;
        network.half_open("b", "a");
        let reset = io::ErrorKind::ConnectionReset;
        assert_eq!(far.read_u8().await.unwrap_err().kind(), reset);
        let waiting = timeout(Duration::from_secs(9), near.read_u8()).await;
        assert!(waiting.is_err());
        assert_eq!(near.write_u8(1).await.unwrap_err().kind(), reset);
        assert_eq!(near.read_u8().await.unwrap_err().kind(), reset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replay_brings_the_first_bytes_of_the_newest_connection_again() {
        let network = MemoryNetwork::new();
        assert!(!network.replay("a", "b"));
        let (mut listener, mut near, _far) = linked(&network).await;
        near.write_all(b"hello").await.unwrap();
        assert!(network.replay("a", "b"));
        let (mut ghost, from) = listener.accept().await.unwrap();
        let mut got = [0; 5];
        ghost.read_exact(&mut got).await.unwrap();
        assert_eq!((&got, &*from), (b"hello", "a"));
    }
}
