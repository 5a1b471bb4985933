//! One connection of the memory network: two ends and, for each direction, the bytes under way.
//!
//! Invariant: inside a living link bytes arrive in order and once; what weather does is to let them arrive later, in smaller pieces, or
//! with a bit turned over, as a real network may. Nothing here draws its own randomness.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::{MemoryNetwork, State, locked};
use crate::clock::Instant;

/// Bytes under way in each direction of a link.
const LINK_BUFFER: usize = 64 << 10;
/// Of what a connection carries first, kept for a replay.
const OPENING_MAX: usize = 2 << 10;
/// With sliced links, one read gives at most so many bytes.
const SLICE_MAX: u64 = 200;

/// How one direction between two nodes behaves, besides being open or silent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Bytes arrive later by so much.
    pub delay: Duration,
    /// Plus up to so much.
    pub jitter: Duration,
    /// Not more than so many arrive; 0: no limit.
    pub bytes_per_second: u64,
    /// Reads give pieces of one to a few bytes.
    pub is_sliced: bool,
}

/// Bytes written by one side.
struct Pipe {
    chunks: VecDeque<Chunk>,
    buffered: usize,
    last_arrival: Option<Instant>,
    /// The writer has ended.
    is_closed: bool,
    /// Nobody reads any more.
    is_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Chunk {
    at: Instant,
    bytes: Vec<u8>,
    read: usize,
}

/// Sides 0 (who connected) and 1 (who accepted).
pub(super) struct Link {
    pub(super) nodes: [String; 2],
    /// Where side 0 connected to.
    address: String,
    is_cut: bool,
    /// This side's peer is gone, and nobody has told it.
    is_half_open: [bool; 2],
    pipes: [Pipe; 2],
    opening: usize,
}

impl Pipe {
    fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            buffered: 0,
            last_arrival: None,
            is_closed: false,
            is_gone: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    fn push(&mut self, at: Instant, bytes: &[u8]) {
        self.buffered += bytes.len();
        self.last_arrival = Some(at);
        match self.chunks.back_mut() {
            Some(last) if last.at == at => last.bytes.extend_from_slice(bytes),
            _ => self.chunks.push_back(Chunk {
                at,
                bytes: bytes.to_vec(),
                read: 0,
            }),
        }
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

impl Link {
    pub(super) fn new(nodes: [String; 2], address: &str) -> Self {
        Self {
            nodes,
            address: address.to_owned(),
            is_cut: false,
            is_half_open: [false; 2],
            pipes: [Pipe::new(), Pipe::new()],
            opening: 0,
        }
    }

    pub(super) fn wake(&mut self) {
        self.pipes.iter_mut().for_each(Pipe::wake);
    }

    pub(super) fn cut(&mut self) {
        self.is_cut = true;
        self.wake();
    }

    /// The end at `gone` is reset; the other hears nothing until it writes.
    pub(super) fn half_open(&mut self, gone: &str) {
        if let Some(side) = self.nodes.iter().position(|n| n == gone) {
            self.is_half_open[1 - side] = true;
            self.wake();
        }
    }

    fn is_reset(&self, side: usize) -> bool {
        self.is_cut || self.is_half_open[1 - side]
    }
}

pub(super) struct LinkEnd {
    network: MemoryNetwork,
    link: Arc<Mutex<Link>>,
    side: usize,
    arrival: Option<Pin<Box<Sleep>>>,
}

impl LinkEnd {
    /// Both ends.
    pub(super) fn pair(network: &MemoryNetwork, link: &Arc<Mutex<Link>>) -> [Self; 2] {
        [0, 1].map(|side| Self {
            network: network.clone(),
            link: Arc::clone(link),
            side,
            arrival: None,
        })
    }

    /// Puts bytes on the way as if this end had written them.
    pub(super) fn inject(&self, bytes: &[u8]) {
        locked(&self.link).pipes[self.side].push(Instant::now(), bytes);
    }

    /// `Err`: not before then.
    fn try_read(
        &self,
        context: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<io::Result<()>, Instant>> {
        let side = self.side;
        // Order matters: the network's lock is never taken under a link's.
        let mut state = locked(&self.network.0.state);
        let mut link = locked(&self.link);
        if link.is_reset(side) {
            return Poll::Ready(Ok(Err(io::ErrorKind::ConnectionReset.into())));
        }
        let is_held =
            link.is_half_open[side] || state.is_blocked(&link.nodes[1 - side], &link.nodes[side]);
        let slice = if state.is_calm() {
            None
        } else {
            let weather = state.weather_of(&link.nodes[1 - side], &link.nodes[side]);
            weather.is_sliced.then(|| slice(&mut state))
        };
        drop(state);
        let pipe = &mut link.pipes[1 - side];
        pipe.reader = Some(context.waker().clone());
        if is_held {
            return Poll::Pending;
        }
        let mut room = buffer.remaining().min(slice.unwrap_or(usize::MAX));
        let mut taken = 0;
        while room > 0
            && let Some(chunk) = pipe.chunks.front_mut()
        {
            if chunk.at > Instant::now() {
                if taken == 0 {
                    return Poll::Ready(Err(chunk.at));
                }
                break;
            }
            let piece = room.min(chunk.bytes.len() - chunk.read);
            buffer.put_slice(&chunk.bytes[chunk.read..chunk.read + piece]);
            chunk.read += piece;
            room -= piece;
            taken += piece;
            if chunk.read == chunk.bytes.len() {
                pipe.chunks.pop_front();
            }
        }
        if taken == 0 && !pipe.is_closed {
            return Poll::Pending;
        }
        pipe.buffered -= taken;
        if let Some(waker) = pipe.writer.take() {
            waker.wake();
        }
        Poll::Ready(Ok(Ok(())))
    }
}

fn slice(state: &mut State) -> usize {
    let die = state.die();
    if die & 1 == 0 {
        1
    } else {
        1 + usize::try_from((die >> 1) % SLICE_MAX).unwrap_or(0)
    }
}

impl AsyncRead for LinkEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.try_read(context, buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(result)) => return Poll::Ready(result),
                Poll::Ready(Err(at)) => {
                    let sleep = self
                        .arrival
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                    if sleep.deadline() != at {
                        sleep.as_mut().reset(at);
                    }
                    if sleep.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl AsyncWrite for LinkEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let side = self.side;
        let mut state = locked(&self.network.0.state);
        let mut link = locked(&self.link);
        if link.is_reset(side) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if link.is_half_open[side] {
            // Whoever is there now knows nothing of this connection, and says so.
            link.cut();
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if link.pipes[side].is_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = LINK_BUFFER - link.pipes[side].buffered;
        if room == 0 {
            link.pipes[side].writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes = &bytes[..room.min(bytes.len())];
        if side == 0 && link.opening < OPENING_MAX {
            link.opening += bytes.len();
            let is_first = link.opening == bytes.len();
            state.remember_opening(&link.nodes, &link.address, bytes, is_first);
        }
        let mut at = Instant::now();
        if state.is_calm() {
            link.pipes[side].push(at, bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let weather = state.weather_of(&link.nodes[side], &link.nodes[1 - side]);
        at += weather.delay;
        let jitter = u64::try_from(weather.jitter.as_micros()).unwrap_or(u64::MAX);
        if jitter > 0 {
            at += Duration::from_micros(state.die() % jitter);
        }
        // Bytes do not overtake.
        at = at.max(link.pipes[side].last_arrival.unwrap_or(at));
        let whole = bytes.len() as u64 * 1_000_000;
        if let Some(micros) = whole.checked_div(weather.bytes_per_second) {
            at += Duration::from_micros(micros);
        }
        if state.takes_flip(&link.nodes[side], &link.nodes[1 - side]) {
            let mut flipped = bytes.to_vec();
            let die = state.die();
            let index = usize::try_from(die >> 3).unwrap_or(0) % flipped.len().max(1);
            if let Some(byte) = flipped.get_mut(index) {
                *byte ^= 1 << (die & 7);
            }
            link.pipes[side].push(at, &flipped);
        } else {
            link.pipes[side].push(at, bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if locked(&self.link).is_reset(self.side) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut link = locked(&self.link);
        let pipe = &mut link.pipes[self.side];
        pipe.is_closed = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        let mut link = locked(&self.link);
        link.pipes[self.side].is_closed = true;
        link.pipes[1 - self.side].is_gone = true;
        link.wake();
    }
}
