//! What a cluster under test is made of. Plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use perennial_actors::fault::Sabotage;

use crate::storage::StorageKind;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// The program that plays every role.
    pub binary: PathBuf,
    /// Where checkpoints lie.
    pub storage: StorageKind,
    /// TaskManagers at the start.
    pub task_managers: u32,
    /// Slots of each.
    pub slots: u32,
    /// `-D` settings of all nodes and commands.
    pub settings: Vec<(String, String)>,
    /// Fault points by the name of the node whose first process has them; needs [`chaos_node`](super::chaos_node).
    pub points: BTreeMap<String, String>,
    /// Ways in which every node breaks the engine on purpose; need [`chaos_node`](super::chaos_node).
    pub sabotage: Vec<Sabotage>,
    /// JobManagers at the start; more than one need `high-availability.type`.
    pub job_managers: u32,
    /// Every link and the store get a proxy, with dice of this seed.
    pub proxies: Option<u64>,
}

impl ClusterPlan {
    /// Three TaskManagers with one slot each on disk.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            storage: StorageKind::Disk,
            task_managers: 3,
            slots: 1,
            settings: Vec::new(),
            points: BTreeMap::new(),
            sabotage: Vec::new(),
            job_managers: 1,
            proxies: None,
        }
    }

    /// Fault points of the first process of a node, as [`crate::node::POINTS`] has them.
    #[must_use]
    pub fn arm(mut self, node: &str, points: &str) -> Self {
        self.points.insert(node.to_owned(), points.to_owned());
        self
    }

    /// Breaks the engine of every node on purpose.
    #[must_use]
    pub fn sabotage(mut self, switches: &[Sabotage]) -> Self {
        self.sabotage = switches.to_vec();
        self
    }

    /// Another kind of store.
    #[must_use]
    pub fn storage(mut self, storage: StorageKind) -> Self {
        self.storage = storage;
        self
    }

    /// Another number of TaskManagers.
    #[must_use]
    pub fn task_managers(mut self, count: u32) -> Self {
        self.task_managers = count;
        self
    }

    /// Another number of slots of each TaskManager.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// A setting of all nodes and commands.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Another number of JobManagers.
    #[must_use]
    pub fn job_managers(mut self, count: u32) -> Self {
        self.job_managers = count;
        self
    }

    /// A proxy on each link and before the store.
    #[must_use]
    pub fn proxies(mut self, seed: u64) -> Self {
        self.proxies = Some(seed);
        self
    }
}
