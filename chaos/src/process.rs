//! Runs a cluster of real processes and breaks it: signals, limits, proxies on its links and before its store.
//!
//! Invariant: whatever happens to a test, no process and no file of its cluster is left, and a failing one shows what its nodes logged.
//! It waits for conditions, never for time. [`ProcessCluster`] looks only at what a user can see: the command line, exit codes, files;
//! [`carrier`] strikes a whole [`FaultPlan`](crate::plan::FaultPlan) and judges what is left.

mod binary;
pub mod carrier;
mod cluster;
mod commands;
mod ending;
mod inject;
mod logs;
mod node;
mod permit;
mod plan;
mod ports;
mod proxies;
pub mod resources;
mod wait;

use std::time::Duration;

use binary::try_chaos_node;
pub use binary::{BINARY, binary, chaos_node};
pub use cluster::ProcessCluster;
pub use ending::end_nodes_with_us;
pub use node::{Node, Signal};
pub use plan::ClusterPlan;
pub use ports::free_port;
pub use wait::newest_completed;

/// Between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
