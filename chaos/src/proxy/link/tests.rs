//! Each condition on an echo server: what passes, what does not, and what the ends see of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use perennial_actors::clock::Instant;

const SERVER: &str = "server";
/// Short enough to wait for, long enough for a busy machine to have delivered.
const A_WHILE: Duration = Duration::from_millis(300);

struct Bed {
    proxies: LinkProxies,
    told: SocketAddr,
}

/// An echo server behind a proxy; this process is the node `me`.
fn bed() -> Bed {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let roster = Roster::default();
    roster.enter(std::process::id(), "me");
    let proxies = LinkProxies::start(roster, 7).unwrap();
    let told = proxies.stand_before(SERVER, address).unwrap();
    Bed { proxies, told }
}

impl Bed {
    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.told).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.proxies.change("me", SERVER, change);
    }

    fn counters(&self) -> LinkCounters {
        self.proxies.counters("me", SERVER)
    }
}

fn echo(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    back
}

fn reads_nothing(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let read = stream.read(&mut [0]);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    matches!(read, Err(e) if e.kind() == ErrorKind::WouldBlock)
}

fn is_reset(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Err(e) if e.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn without_a_fault_bytes_and_the_end_pass() {
    let bed = bed();
    let mut stream = bed.dial();
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let (mut reader, sent) = (stream.try_clone().unwrap(), bytes.clone());
    let receiver = std::thread::spawn(move || {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        back
    });
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(receiver.join().unwrap() == bytes);
    let counters = bed.counters();
    assert_eq!((counters.connections, counters.up), (1, 200_000));
    assert_eq!(counters.down, 200_000);
}

#[test]
fn latency_delays_and_slices_and_rates_keep_the_order() {
    let bed = bed();
    let mut stream = bed.dial();
    bed.change(|c| c.up.delay = A_WHILE);
    let begin = Instant::now();
    assert_eq!(echo(&mut stream, b"late"), b"late");
    assert!(begin.elapsed() >= A_WHILE);
    bed.change(|c| {
        c.up = Way {
            is_sliced: true,
            jitter: Duration::from_millis(5),
            ..Way::default()
        };
    });
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(echo(&mut stream, &bytes), bytes);
    bed.change(|c| {
        c.up = Way::default();
        c.down.bytes_per_second = Some(1000);
    });
    let begin = Instant::now();
    assert_eq!(echo(&mut stream, &bytes), bytes);
    assert!(begin.elapsed() >= Duration::from_millis(200));
}

/// Each direction on its own; what was sent meanwhile comes when the hole heals.
#[test]
fn a_black_hole_delays_and_loses_nothing() {
    let bed = bed();
    let mut stream = bed.dial();
    assert_eq!(echo(&mut stream, b"x"), b"x");
    for is_up in [true, false] {
        let block = |blocked| {
            bed.change(|c| {
                if is_up {
                    c.up.is_blocked = blocked;
                } else {
                    c.down.is_blocked = blocked;
                }
            });
        };
        let before = bed.counters().up;
        block(true);
        stream.write_all(b"held").unwrap();
        assert!(reads_nothing(&mut stream));
        assert_eq!(bed.counters().up > before, !is_up, "the way that is open");
        // A new connection hangs as well.
        let mut new = bed.dial();
        new.write_all(b"new").unwrap();
        assert!(reads_nothing(&mut new));
        block(false);
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"held");
        let mut back = [0; 3];
        new.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"new");
    }
}

#[test]
fn a_reset_is_a_reset_and_refusal_lasts_until_it_ends() {
    let bed = bed();
    let mut stream = bed.dial();
    assert_eq!(echo(&mut stream, b"x"), b"x");
    bed.change(|c| c.refuses = true);
    bed.proxies.reset("me", SERVER);
    assert!(is_reset(&mut stream));
    assert!(is_reset(&mut bed.dial()));
    bed.change(|c| c.refuses = false);
    assert_eq!(echo(&mut bed.dial(), b"again"), b"again");
}

#[test]
fn a_half_open_connection_takes_everything_and_says_nothing() {
    let bed = bed();
    let mut stream = bed.dial();
    assert_eq!(echo(&mut stream, b"x"), b"x");
    bed.proxies.half_open("me", SERVER);
    assert!(reads_nothing(&mut stream));
    stream.write_all(b"into the void").unwrap();
    assert!(reads_nothing(&mut stream));
    // New ones work: only the old one is half open.
    assert_eq!(echo(&mut bed.dial(), b"new"), b"new");
    bed.proxies.heal_half_open("me", SERVER);
    assert!(is_reset(&mut stream));
}

#[test]
fn one_bit_is_flipped_and_only_one() {
    let bed = bed();
    let mut stream = bed.dial();
    assert_eq!(echo(&mut stream, b"before"), b"before");
    bed.proxies.flip_bit("me", SERVER);
    let back = echo(&mut stream, &[0; 16]);
    let ones: u32 = back.iter().map(|b| b.count_ones()).sum();
    assert_eq!(ones, 1, "{back:?}");
    assert_eq!(echo(&mut stream, b"after"), b"after");
    assert_eq!(bed.counters().flipped, 1);
}

/// A server that hears a beginning again sees the same bytes on a connection of its own.
#[test]
fn a_replay_sends_the_beginning_of_an_earlier_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let proxies = LinkProxies::start(Roster::default(), 7).unwrap();
    let told = proxies.stand_before(SERVER, address).unwrap();
    let mut stream = TcpStream::connect(told).unwrap();
    stream.write_all(b"hello").unwrap();
    let hear = || {
        let (mut heard, _) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        heard.read_exact(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(&hear(), b"hello");
    proxies.replay(NO_NODE, SERVER);
    assert_eq!(&hear(), b"hello");
    let deadline = Instant::now() + Duration::from_secs(20);
    while proxies.counters(NO_NODE, SERVER).replays_refused == 0 {
        assert!(Instant::now() < deadline, "closing it is a refusal");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_link_of_another_node_is_left_alone() {
    let bed = bed();
    let mut stream = bed.dial();
    bed.proxies
        .change("somebody else", SERVER, |c| c.up.is_blocked = true);
    bed.proxies.reset("somebody else", SERVER);
    assert_eq!(echo(&mut stream, b"mine"), b"mine");
}
