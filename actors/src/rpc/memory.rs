//! A network inside the process, for tests and the simulator: named nodes, byte streams, and switches for what goes wrong.
//!
//! Invariant: deterministic. No socket, no thread, no randomness; what a stream does depends only on the order of polls. Bytes are
//! never lost inside a living link (a silent one holds them back, as TCP would), and a cut link is seen by both ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{Notify, mpsc};

use super::transport::{BoxStream, Listener, Transport};

/// Bytes under way in each direction of a link.
const LINK_BUFFER: usize = 64 << 10;
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
}

struct ListenerEntry {
    node: String,
    backlog: mpsc::Sender<(BoxStream, String)>,
}

/// Ends 0 (who connected) and 1 (who accepted).
struct Link {
    nodes: [String; 2],
    is_cut: bool,
    readers: [Option<Waker>; 2],
    writers: [Option<Waker>; 2],
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
        let links = locked(&self.0.state).living_links();
        for link in links {
            let mut link = locked(&link);
            if is_meant(&link.nodes) {
                link.is_cut = true;
                wake(&mut link);
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
            wake(&mut locked(&link));
        }
        self.0.changed.notify_waiters();
    }
}

fn wake(link: &mut Link) {
    let wakers = link.readers.iter_mut().chain(&mut link.writers);
    for waker in wakers.filter_map(Option::take) {
        waker.wake();
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
        let Some(entry) = state.listeners.get(address) else {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        };
        let (near, far) = tokio::io::duplex(LINK_BUFFER);
        let link = Arc::new(Mutex::new(Link {
            nodes: [self.node.clone(), entry.node.clone()],
            is_cut: false,
            readers: [None, None],
            writers: [None, None],
        }));
        let end = |side, inner| {
            Box::new(LinkEnd {
                network: self.network.clone(),
                link: Arc::clone(&link),
                side,
                inner,
            }) as BoxStream
        };
        let accepted = (end(1, far), self.node.clone());
        if entry.backlog.try_send(accepted).is_err() {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        state.links.push(Arc::downgrade(&link));
        Some(Ok(end(0, near)))
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

struct LinkEnd {
    network: MemoryNetwork,
    link: Arc<Mutex<Link>>,
    side: usize,
    inner: DuplexStream,
}

impl LinkEnd {
    fn check_write(&self, context: &Context<'_>) -> io::Result<()> {
        let mut link = locked(&self.link);
        if link.is_cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        link.writers[self.side] = Some(context.waker().clone());
        Ok(())
    }
}

impl AsyncRead for LinkEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let side = self.side;
        let is_blocked = {
            // Order matters: the network's lock is never taken under a link's.
            let state = locked(&self.network.0.state);
            let mut link = locked(&self.link);
            if link.is_cut {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            link.readers[side] = Some(context.waker().clone());
            state.is_blocked(&link.nodes[1 - side], &link.nodes[side])
        };
        if is_blocked {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for LinkEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_write(context)?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_write(context)?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
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
}
