//! Fault points and sabotage of simulated nodes: each node has a handle of its own, whose platform is the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_actors::fault::{FaultPointSpec, FaultPoints, FaultSite, Platform, Sabotage};
use perennial_actors::rpc::MemoryNetwork;

use super::stepper::Stepper;
use super::stores::NodeStores;

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
    all: Vec<FaultPoints>,
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
        self.all.push(faults.clone());
        faults
    }

    /// Those that have ended themselves since the last call.
    pub(super) fn take_ended(&self) -> BTreeSet<String> {
        std::mem::take(&mut *lock(&self.ended))
    }

    /// How often each site was hit, over all nodes.
    pub(super) fn hits(&self) -> BTreeMap<FaultSite, u64> {
        let mut sum = BTreeMap::new();
        for (site, hits) in self.all.iter().flat_map(FaultPoints::hits) {
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
