//! Faults of local disks and descriptors: limits of a node's process.

use std::time::Duration;

use anyhow::bail;
use rustix::process::Resource;

use super::super::super::ProcessCluster;
use super::super::victims::Nodes;
use super::{Hit, Step, living};
use crate::plan::{DataFault, Target};

/// How long a node has no descriptor for anything new.
const NO_DESCRIPTORS: Duration = Duration::from_secs(3);
/// Bytes that a file of a node with a full disk may have.
const FULL_DISK_BYTES: u64 = 0;

pub(super) fn strike_data(
    cluster: &mut ProcessCluster,
    nodes: &Nodes,
    target: Target,
    what: &DataFault,
) -> anyhow::Result<Hit> {
    let mut hit = living(cluster, nodes, target)?;
    cluster.say(&format!("{what:?} on {}", hit.victim));
    for node in hit.nodes.clone() {
        match what {
            DataFault::DiskFull { down } => {
                let resource = Resource::Fsize;
                let before = cluster
                    .node_mut(&node)?
                    .limit(resource, Some(FULL_DISK_BYTES))?;
                hit.steps
                    .push((*down, Step::Unlimit(node, resource, before)));
            }
            DataFault::NoDescriptors => {
                let resource = Resource::Nofile;
                // What is open stays; the highest number in use is the lowest limit that changes nothing for it.
                let before = cluster.node_mut(&node)?.limit(resource, Some(0))?;
                hit.steps
                    .push((NO_DESCRIPTORS, Step::Unlimit(node, resource, before)));
            }
            DataFault::Leftovers => {
                // What a killed process leaves is what there is to sweep.
                cluster.kill(&node)?;
                hit.steps.push((Duration::ZERO, Step::Start(vec![node])));
            }
            DataFault::IoError { .. } | DataFault::SlowDisk { .. } => {
                bail!("cannot be struck from outside")
            }
        }
    }
    Ok(hit)
}
