//! Carries one connection from its dialler to its server and back, under the link's conditions.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::{Conditions, FIRST_BYTES_MAX, Link, Way, lock};

/// Read at a time.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way, of one direction: what a delayed link holds. Beyond it the sender waits.
const CHUNKS_MAX: usize = 256;
/// Longest piece of a sliced write, in bytes.
const SLICE_BYTES_MAX: u64 = 3;
/// Between two pieces, so that the receiver sees them one by one.
const SLICE_PAUSE: Duration = Duration::from_micros(200);
/// How long a replayed beginning waits for the server to close.
const REPLAY_PATIENCE: Duration = Duration::from_secs(10);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Towards {
    Server,
    Dialler,
}

impl Towards {
    fn way(self, conditions: &Conditions) -> Way {
        match self {
            Self::Server => conditions.up,
            Self::Dialler => conditions.down,
        }
    }
}

/// Why a connection's life in the proxy ended.
enum End {
    /// Both ends closed in good order.
    Closed,
    /// Both ends must be reset.
    Reset,
    /// The server's end only.
    HalfOpen(u64),
}

pub(super) async fn carry(link: &Link, dice: &Entropy, mut client: TcpStream) {
    link.connections.fetch_add(1, Ordering::Relaxed);
    let mut seen = link.conditions.subscribe();
    let born = *seen.borrow_and_update();
    // A connection through a hole is not answered; the kernel has done so already, but nothing else happens.
    let opened = seen
        .wait_for(|c| {
            c.refuses || c.resets != born.resets || !(c.up.is_blocked || c.down.is_blocked)
        })
        .await;
    match opened.map(|c| c.refuses || c.resets != born.resets) {
        Ok(false) => {}
        Ok(true) | Err(_) => return abort(client),
    }
    let Ok(mut server) = TcpStream::connect(link.server).await else {
        // Nobody listens: to the dialler it must look like a refusal.
        return abort(client);
    };
    for socket in [&client, &server] {
        // Only a matter of speed.
        let _ = socket.set_nodelay(true);
    }
    let end = {
        let (client_in, client_out) = client.split();
        let (server_in, server_out) = server.split();
        let up = Pump {
            link,
            dice,
            towards: Towards::Server,
        };
        let down = Pump {
            towards: Towards::Dialler,
            ..up
        };
        tokio::select! {
            biased;
            end = broken(&mut seen, &born) => end,
            ended = async { tokio::try_join!(up.run(client_in, server_out), down.run(server_in, client_out)) } => match ended {
                Ok(_) => End::Closed,
                Err(_) => End::Reset,
            },
        }
    };
    match end {
        End::Closed => {}
        End::Reset => {
            abort(client);
            abort(server);
        }
        End::HalfOpen(number) => {
            abort(server);
            swallow(client, &mut seen, number, born.resets).await;
        }
    }
}

/// Waits for what ends a connection from outside.
async fn broken(seen: &mut watch::Receiver<Conditions>, born: &Conditions) -> End {
    let broken = seen
        .wait_for(|c| c.resets != born.resets || c.half_opens != born.half_opens)
        .await;
    match broken {
        Ok(now) if now.resets == born.resets => End::HalfOpen(now.half_opens),
        Ok(_) | Err(_) => End::Reset,
    }
}

/// Takes what comes and says nothing, until this half-open state is healed.
async fn swallow(
    mut client: TcpStream,
    seen: &mut watch::Receiver<Conditions>,
    number: u64,
    resets: u64,
) {
    let mut sink = vec![0; CHUNK_BYTES];
    let mut is_open = true;
    loop {
        tokio::select! {
            biased;
            _ = seen.wait_for(|c| c.healed_half_opens >= number || c.resets != resets) => return abort(client),
            read = client.read(&mut sink), if is_open => is_open = matches!(read, Ok(n) if n > 0),
        }
    }
}

/// Closes it so that the other side sees a reset.
fn abort(stream: TcpStream) {
    // A socket that is broken already needs no reset.
    let _ = stream.set_zero_linger();
}

/// Dials on its own and sends what the newest connection began with, as one that sniffed it would.
pub(super) async fn replay(link: &Link) {
    let bytes = lock(&link.first_bytes).clone();
    let Ok(mut server) = TcpStream::connect(link.server).await else {
        return;
    };
    let answered = async {
        server.write_all(&bytes).await?;
        let mut sink = vec![0; CHUNK_BYTES];
        while server.read(&mut sink).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    // Closed or reset: it did not take us for somebody else.
    if tokio::time::timeout(REPLAY_PATIENCE, answered)
        .await
        .is_ok()
    {
        link.replays_refused.fetch_add(1, Ordering::Relaxed);
    }
}

enum Piece {
    Bytes(Instant, Vec<u8>),
    End,
    Broken(io::Error),
}

#[derive(Clone, Copy)]
struct Pump<'a> {
    link: &'a Link,
    dice: &'a Entropy,
    towards: Towards,
}

impl Pump<'_> {
    /// Until the end has passed; an error when either socket broke.
    async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> io::Result<()> {
        let (pieces, queue) = mpsc::channel(CHUNKS_MAX);
        let reading = async {
            self.read(from, pieces).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            result = self.write(queue, to) => result,
            () = reading => Ok(()),
        }
    }

    fn way(self) -> Way {
        self.towards.way(&self.link.conditions.borrow())
    }

    fn counter(&self) -> &AtomicU64 {
        match self.towards {
            Towards::Server => &self.link.up,
            Towards::Dialler => &self.link.down,
        }
    }

    async fn read(self, mut from: ReadHalf<'_>, pieces: mpsc::Sender<Piece>) {
        let mut first: Option<Vec<u8>> = (self.towards == Towards::Server).then(Vec::new);
        let mut due = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let piece = match from.read(&mut chunk).await {
                Ok(0) => Piece::End,
                Ok(length) => {
                    chunk.truncate(length);
                    self.keep_first(&mut first, &chunk);
                    let way = self.way();
                    let late = way.delay + way.jitter.mul_f64(self.fraction());
                    // Never before what came before.
                    due = due.max(Instant::now() + late);
                    Piece::Bytes(due, chunk)
                }
                Err(error) => Piece::Broken(error),
            };
            let is_last = !matches!(piece, Piece::Bytes(..));
            if pieces.send(piece).await.is_err() || is_last {
                return;
            }
        }
    }

    fn keep_first(&self, first: &mut Option<Vec<u8>>, chunk: &[u8]) {
        let Some(bytes) = first else { return };
        let room = FIRST_BYTES_MAX - bytes.len();
        bytes.extend_from_slice(&chunk[..room.min(chunk.len())]);
        lock(&self.link.first_bytes).clone_from(bytes);
        if bytes.len() == FIRST_BYTES_MAX {
            *first = None;
        }
    }

    fn fraction(&self) -> f64 {
        (self.dice.u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    async fn write(
        self,
        mut queue: mpsc::Receiver<Piece>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<()> {
        let mut seen = self.link.conditions.subscribe();
        while let Some(piece) = queue.recv().await {
            if let Piece::Bytes(due, _) = &piece {
                tokio::time::sleep_until(*due).await;
            }
            // Neither bytes nor an end or a reset pass a hole.
            let is_open = seen.wait_for(|c| !self.towards.way(c).is_blocked).await;
            is_open.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
            match piece {
                Piece::Bytes(_, bytes) => self.pass(bytes, &mut to).await?,
                Piece::End => return to.shutdown().await,
                Piece::Broken(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn pass(&self, mut bytes: Vec<u8>, to: &mut WriteHalf<'_>) -> io::Result<()> {
        if takes_one(&self.link.flips) {
            let bit = self.dice.u64() % (bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            self.link.flipped.fetch_add(1, Ordering::Relaxed);
        }
        self.counter()
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut left = VecDeque::from(bytes);
        while !left.is_empty() {
            // Looked at again for each piece: a fault may end in the middle of a chunk.
            let way = self.way();
            let length = match (way.is_sliced, way.bytes_per_second) {
                (true, _) => 1 + (self.dice.u64() % SLICE_BYTES_MAX) as usize,
                // A tenth of a second's worth.
                (false, Some(rate)) => usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1),
                (false, None) => left.len(),
            };
            let piece: Vec<u8> = left.drain(..length.min(left.len())).collect();
            to.write_all(&piece).await?;
            if way.is_sliced {
                tokio::time::sleep(SLICE_PAUSE).await;
            }
            if let Some(rate) = way.bytes_per_second {
                let seconds = piece.len() as f64 / rate.max(1) as f64;
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
        }
        Ok(())
    }
}

fn takes_one(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_ok()
}
