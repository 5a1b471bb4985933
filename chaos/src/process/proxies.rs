//! The proxies of one cluster: who stands before whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use anyhow::anyhow;

use crate::proxy::{LinkProxies, Roster, StoreProxy};
use crate::storage::Storage;

/// All proxies of a cluster.
#[derive(Debug)]
pub(super) struct Proxies {
    pub(super) roster: Roster,
    pub(super) links: LinkProxies,
    /// None before a directory.
    pub(super) store: Option<StoreProxy>,
    /// What the others are told, by node.
    told: Mutex<BTreeMap<String, u16>>,
}

impl Proxies {
    pub(super) fn start(storage: &Storage, seed: u64) -> anyhow::Result<Self> {
        let roster = Roster::default();
        let store = match storage.endpoint() {
            Some(endpoint) => Some(StoreProxy::before(
                endpoint,
                roster.clone(),
                seed,
                Some(storage.open().open(&storage.bucket())?),
            )?),
            None => None,
        };
        Ok(Self {
            links: LinkProxies::start(roster.clone(), seed)?,
            roster,
            store,
            told: Mutex::default(),
        })
    }

    /// Puts a proxy before a node's listener; returns the port that others are told.
    pub(super) fn stand_before(&self, node: &str, port: u16) -> anyhow::Result<u16> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let told = self.links.stand_before(node, address)?.port();
        let mut known = self.told.lock().unwrap_or_else(|e| e.into_inner());
        known.insert(node.to_owned(), told);
        Ok(told)
    }

    /// The port under which others find a node.
    pub(super) fn port_of(&self, node: &str) -> anyhow::Result<u16> {
        let known = self.told.lock().unwrap_or_else(|e| e.into_inner());
        let port = known.get(node).copied();
        port.ok_or_else(|| anyhow!("no proxy stands before {node}"))
    }
}
