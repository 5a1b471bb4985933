//! The one seeded, printable fault plan: *when*, *where*, *what*. Pure data.
//!
//! Invariant: a plan says everything that a run is made of, so that its text repeats the run, on whichever carrier: the simulator, real
//! processes behind proxies, or a running cluster that takes one fault by control message. Plans are drawn elsewhere ([`crate::simulator`], campaign
//! profiles) and struck elsewhere; here is only what they mean.

mod fault;
mod injection;
mod row;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use fault::{ActorKind, DataFault, Direction, Fault, LinkFault, StoreFault, StoreRequests};
pub use row::{Invariant, Row, Section};

/// Everything that a run is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultPlan {
    /// Where it was drawn from; also the seed of what is drawn while it runs.
    pub seed: u64,
    /// Which way of drawing.
    pub profile: String,
    /// What carries it.
    pub carrier: Carrier,
    /// Nodes.
    pub cluster: ClusterShape,
    /// What runs.
    pub workload: WorkloadPlan,
    /// Configuration that differs from the carrier's own.
    pub settings: BTreeMap<String, String>,
    /// In the order in which they are armed.
    pub faults: Vec<PlannedFault>,
}

/// What carries a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// A whole cluster in one thread.
    Simulator,
    /// Real processes, sockets and stores.
    Process,
}

/// The nodes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterShape {
    /// JobManagers; more than one: leader and standbys on one store.
    pub job_managers: u32,
    /// TaskManagers.
    pub task_managers: u32,
    /// Slots of each.
    pub slots: u32,
    /// Where checkpoints lie.
    pub store: StoreShape,
}

/// Where checkpoints lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreShape {
    /// In memory (simulator).
    Memory,
    /// `file://`.
    Disk,
    /// `s3://`, a real server behind the store proxy.
    S3,
}

/// The job of a run; which parameters mean what is the scenario's business.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadPlan {
    /// Name under which it is registered.
    pub job: String,
    /// Of its input.
    pub seed: u64,
    /// Records of all lanes.
    pub events: u64,
    /// Records per second and lane.
    pub rate: u64,
    /// Different keys.
    pub keys: u64,
    /// Subtasks of the vertices behind the source, in graph order; empty: the job's own.
    pub parallelism: Vec<u32>,
}

/// One fault of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedFault {
    /// Trigger.
    pub when: When,
    /// Victim.
    #[serde(rename = "where")]
    pub target: Target,
    /// What happens to it.
    pub what: Fault,
}

/// What a fault waits for. Triggers make faults from outside nearly repeatable; times do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// So long after the job was accepted.
    After(#[serde(with = "millis")] Duration),
    /// As soon as so many checkpoints have completed since the fault before was struck.
    Checkpoints(u32),
    /// As soon as a checkpoint is pending.
    CheckpointPending,
    /// As soon as a recovery is under way.
    Recovering,
    /// As soon as all tasks run (again).
    Running,
    /// At the n-th hit (from 1) of a fault point of the victim. Only with binaries that have fault points.
    FaultPoint {
        /// Name of the site, as `perennial_actors::fault::FaultSite` prints it.
        site: String,
        /// From 1.
        hit: u32,
    },
}

/// Who is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The JobManager that leads now.
    Leader,
    /// A JobManager that waits.
    Standby,
    /// A TaskManager, from 0, modulo those that there are.
    TaskManager(u32),
    /// All TaskManagers.
    AllTaskManagers,
    /// All nodes: a power cut.
    AllNodes,
    /// The control link between a TaskManager and the leader.
    ControlLink(u32),
    /// The data link between two TaskManagers, from producer to consumer.
    DataLink(u32, u32),
    /// Control and data links of a TaskManager to everybody, and to the store: it is alone.
    AllLinksOf(u32),
    /// The object store, for everybody.
    Store,
    /// The object store, for one TaskManager.
    StoreOf(u32),
    /// User code of the job, in the first subtask that meets the fault.
    UserCode,
}

impl FaultPlan {
    /// Rows of the catalogue that the plan touches.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.faults.iter().map(PlannedFault::row).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }
}

impl PlannedFault {
    /// The row of the catalogue that it belongs to.
    #[must_use]
    pub fn row(&self) -> Row {
        self.what.row(self.target, &self.when)
    }
}

impl std::fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "seed {} profile {}: {} JobManagers, {} TaskManagers with {} slots, {:?}; {} with {} events",
            self.seed,
            self.profile,
            self.cluster.job_managers,
            self.cluster.task_managers,
            self.cluster.slots,
            self.cluster.store,
            self.workload.job,
            self.workload.events
        )?;
        for (index, fault) in self.faults.iter().enumerate() {
            writeln!(f, "  {:>2}. {fault}", index + 1)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for PlannedFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {:?}: {:?} on {:?}",
            self.row(),
            self.when,
            self.what,
            self.target
        )
    }
}

/// Durations as whole milliseconds, so that a plan's text can be read and edited.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
