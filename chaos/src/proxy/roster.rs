//! Which node is at the other end of a connection.
//!
//! Invariant: it reads the kernel's own tables: `/proc/net/tcp` maps an address to a socket, `/proc/<pid>/fd` a socket to a process. So it
//! needs no help from the node and works before a byte has passed. IPv4 on this machine only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Nodes by process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<BTreeMap<u32, String>>>);

impl Roster {
    /// From now on the process is this node; what was known of the node's earlier process is forgotten.
    pub fn enter(&self, pid: u32, node: &str) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|_, name| name != node);
        nodes.insert(pid, node.to_owned());
    }

    /// The node that owns the far end of a connection, given its address; `None`: no node.
    #[must_use]
    pub fn owner_of(&self, peer: SocketAddr) -> Option<String> {
        let socket = format!("socket:[{}]", inode_of(peer)?);
        let nodes = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let owns = |pid: &u32| {
            let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten();
            entries
                .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .any(|target| target.as_os_str() == socket.as_str())
        };
        nodes.into_iter().find(|(pid, _)| owns(pid)).map(|(_, n)| n)
    }
}

/// Of the socket that is bound to this address and connected.
fn inode_of(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    // Written as one number in the machine's byte order, as the kernel prints it.
    let ip = u32::from_ne_bytes(address.ip().octets());
    let wanted = format!("{ip:08X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let is_it = fields.nth(1)? == wanted;
        // remote, state, queues, timer, retransmits, uid, timeout, then the inode.
        let inode = fields.nth(7)?;
        (is_it && inode != "0").then(|| inode.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_traced_to_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_theirs, peer) = listener.accept().unwrap();
        let roster = Roster::default();
        assert_eq!(roster.owner_of(peer), None, "nobody is known yet");
        roster.enter(1, "init");
        roster.enter(std::process::id(), "me");
        assert_eq!(roster.owner_of(peer).as_deref(), Some("me"));
        // Restarted as another process: this one is nobody any more.
        roster.enter(1, "me");
        assert_eq!(roster.owner_of(peer), None);
        drop(ours);
    }
}
