//! Fault points and sabotage of simulated nodes: each node has a handle of its own, whose platform is the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use perennial_actors::fault::{
    FaultAction, FaultPointSpec, FaultPoints, FaultScope, FaultSite, Hits, Platform, Sabotage,
};
use perennial_actors::rpc::MemoryNetwork;

use super::stepper::Stepper;
use super::stores::NodeStores;
use crate::plan::{Fault, FaultPlan, PlannedFault, Target, When};

/// The point that a planned fault waits at, if it waits at one.
///
/// # Errors
/// When there is no such site, or the fault cannot strike there.
pub(super) fn point(
    fault: &PlannedFault,
    plan: &FaultPlan,
) -> anyhow::Result<Option<FaultPointSpec>> {
    let When::FaultPoint { site, hit } = &fault.when else {
        return Ok(None);
    };
    let named = FaultSite::named(site).with_context(|| format!("there is no site `{site}`"))?;
    let action = match &fault.what {
        Fault::Kill { .. } => FaultAction::Exit,
        Fault::UserPanic { .. } => FaultAction::Panic,
        Fault::UserError { .. } => FaultAction::Error,
        Fault::SlowHandler { down, .. } => FaultAction::Delay(*down),
        other => bail!("{other:?} cannot strike at a fault point"),
    };
    let node = match fault.target {
        Target::TaskManager(n) => {
            let machine = n.checked_rem(plan.cluster.task_managers).unwrap_or(0);
            Some(super::cluster::task_manager_name(machine))
        }
        // Only JobManagers come by the sites that they have.
        Target::Leader => None,
        other => bail!("a fault point is of a TaskManager or the leader, not of {other:?}"),
    };
    Ok(Some(FaultPointSpec {
        site: named,
        scope: FaultScope {
            node,
            ..FaultScope::default()
        },
        hits: Hits::Nth(*hit),
        action,
    }))
}

/// What strikes from inside in a run. Points are armed in the first node that has the name, so that a restarted one goes on.
#[derive(Debug, Clone, Default)]
pub struct Inside {
    /// Where faults strike.
    pub points: Vec<FaultPointSpec>,
    /// How the engine is broken.
    pub sabotage: Vec<Sabotage>,
}

/// All handles of a run.
#[derive(Default)]
pub(super) struct Handles {
    inside: Inside,
    armed: BTreeSet<String>,
    /// By name of the node, in order of their beginning.
    all: Vec<(String, FaultPoints)>,
    /// Nodes that have ended themselves and were not tidied up yet.
    ended: Arc<Mutex<BTreeSet<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handles {
    pub(super) fn new(inside: Inside) -> Self {
        Self {
            inside,
            ..Self::default()
        }
    }

    /// For a new node; `tasks`: the name under which its tasks are stepped.
    pub(super) fn of_node(
        &mut self,
        name: &str,
        tasks: &str,
        network: &MemoryNetwork,
        stores: &NodeStores,
        stepper: &Stepper,
    ) -> FaultPoints {
        let points = if self.armed.insert(name.to_owned()) {
            self.inside.points.clone()
        } else {
            Vec::new()
        };
        let platform = Arc::new(Simulated {
            name: name.to_owned(),
            tasks: tasks.to_owned(),
            network: network.clone(),
            stores: stores.clone(),
            stepper: stepper.clone(),
            ended: self.ended.clone(),
        });
        let faults = FaultPoints::armed(name, points, &self.inside.sabotage, platform);
        self.all.push((name.to_owned(), faults.clone()));
        faults
    }

    /// Those that have ended themselves since the last call.
    pub(super) fn take_ended(&self) -> BTreeSet<String> {
        std::mem::take(&mut *lock(&self.ended))
    }

    /// Nodes whose armed handle has come to the n-th hit of a site, of those whose name begins so.
    pub(super) fn struck(&self, prefix: &str, site: FaultSite, hit: u32) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let armed = self.all.iter().filter(|(name, _)| seen.insert(name));
        armed
            .filter(|(name, points)| {
                let hits = points.hits().get(&site).copied().unwrap_or(0);
                name.starts_with(prefix) && hits >= u64::from(hit)
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// How often each site was hit, over all nodes.
    pub(super) fn hits(&self) -> BTreeMap<FaultSite, u64> {
        let mut sum = BTreeMap::new();
        for (site, hits) in self.all.iter().flat_map(|(_, points)| points.hits()) {
            *sum.entry(site).or_default() += hits;
        }
        sum
    }
}

struct Simulated {
    name: String,
    tasks: String,
    network: MemoryNetwork,
    stores: NodeStores,
    stepper: Stepper,
    ended: Arc<Mutex<BTreeSet<String>>>,
}

impl Platform for Simulated {
    fn exit(&self) {
        // At once, not when the node is looked at next: nothing that it still does may be heard of.
        self.network.kill(&self.name);
        self.stores.kill();
        self.stepper.kill(&self.tasks);
        lock(&self.ended).insert(self.name.clone());
    }

    /// A node that runs in our own thread cannot be stopped in the middle.
    fn stop(&self) {}

    /// A step takes no time.
    fn sleep(&self, _: Duration) {}
}
