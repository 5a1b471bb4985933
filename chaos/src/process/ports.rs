//! Ports for nodes to listen on.

use std::net::TcpListener;

use anyhow::bail;
use perennial_actors::entropy::Entropy;

/// Below the ports that the system gives to outgoing connections: while a node is down, nobody else takes its port by chance.
const PORTS: std::ops::Range<u64> = 10_000..32_000;
/// How many are looked at.
const TRIES: u32 = 1000;

/// A port that nobody listens on right now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    let dice = Entropy::system();
    for _ in 0..TRIES {
        let port = PORTS.start + dice.u64() % (PORTS.end - PORTS.start);
        let port = u16::try_from(port)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {PORTS:?}")
}
