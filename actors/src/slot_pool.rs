//! Which slots are there, and whose they are. Pure.
//!
//! Invariant: no TaskManager ever hosts more slots than it offers, also when it comes to offer less, and a job holds slot i at most once. A job gets all the slots that
//! it needs or none more than it has, so that two jobs never wait for each other. A lost TaskManager's slots are gone at once.
//! Who waits, and for how long, is the JobManager's business.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{BuildId, InstanceId, JobId, TaskManagerLocation};

/// Slots that a TaskManager may offer: as many as `taskmanager.numberOfTaskSlots` takes.
pub const TASK_MANAGER_SLOTS_MAX: u32 = 1024;

/// What the pool knows of a TaskManager.
#[derive(Debug, Clone)]
struct Offer {
    location: TaskManagerLocation,
    build: BuildId,
    slots: u32,
    used: u32,
    /// Whether new slots may be taken here: not while a former leader's tasks still run.
    is_open: bool,
}

/// The slots of all TaskManagers.
#[derive(Debug, Default)]
pub struct SlotPool {
    offers: BTreeMap<InstanceId, Offer>,
    /// Slot i of a job hosts subtask i of every vertex; `None` where its TaskManager was lost.
    jobs: BTreeMap<JobId, Vec<Option<InstanceId>>>,
}

/// Too few slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotsMissing {
    /// Slots the job needs.
    pub needed: u32,
    /// Slots that it has or could have now.
    pub available: u32,
}

impl SlotPool {
    /// Adds a TaskManager, or reopens one. A known one keeps its slots in use, and is closed when `is_open` says so. When it has less
    /// slots than are in use, jobs lose theirs: first those in which nothing runs (`busy` are slots in which something does).
    pub fn offer(
        &mut self,
        location: TaskManagerLocation,
        build: BuildId,
        slots: u32,
        is_open: bool,
        busy: &BTreeSet<(JobId, u32)>,
    ) {
        let instance = location.instance;
        let offer = self
            .offers
            .entry(location.instance)
            .or_insert_with(|| Offer {
                location: location.clone(),
                build: build.clone(),
                slots,
                used: 0,
                is_open,
            });
        offer.location = location;
        offer.build = build;
        offer.slots = slots;
        offer.is_open = is_open;
        while self
            .offers
            .get(&instance)
            .is_some_and(|offer| offer.used > offer.slots)
        {
            let held = self.jobs.iter_mut().flat_map(|(job, held)| {
                held.iter_mut()
                    .zip(0..)
                    .filter(|(slot, _)| **slot == Some(instance))
                    .map(|(slot, index)| ((*job, index), slot))
            });
            // The last of those that are equally free.
            let Some((_, slot)) =
                held.min_by_key(|(id, _)| (busy.contains(id), std::cmp::Reverse(*id)))
            else {
                break; // Excluded by the count.
            };
            *slot = None;
            self.give_back(instance);
        }
        self.check();
    }

    /// Removes a TaskManager. Returns the jobs that had slots there.
    pub fn lose(&mut self, instance: InstanceId) -> Vec<JobId> {
        self.offers.remove(&instance);
        let mut affected = Vec::new();
        for (job, slots) in &mut self.jobs {
            let mut is_affected = false;
            for slot in slots.iter_mut().filter(|slot| **slot == Some(instance)) {
                *slot = None;
                is_affected = true;
            }
            if is_affected {
                affected.push(*job);
            }
        }
        affected
    }

    /// Gives the job `needed` slots: those it has, and for the others first the preferred TaskManager of that slot, then the one with
    /// the fewest slots in use. All or none.
    pub fn allocate(
        &mut self,
        job: JobId,
        build: &BuildId,
        needed: u32,
        preferred: &BTreeMap<u32, InstanceId>,
    ) -> Result<Vec<TaskManagerLocation>, SlotsMissing> {
        let mut slots = self.jobs.get(&job).cloned().unwrap_or_default();
        slots.resize(needed as usize, None);
        let missing = slots.iter().filter(|slot| slot.is_none()).count() as u32;
        let free: u32 = self.candidates(build).map(|(_, o)| o.slots - o.used).sum();
        if free < missing {
            return Err(SlotsMissing {
                needed,
                available: needed - missing + free,
            });
        }
        // A job that came back smaller gives its surplus back.
        let surplus = self
            .jobs
            .get(&job)
            .map(|held| held.iter().skip(needed as usize).flatten().copied())
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        for instance in surplus {
            self.give_back(instance);
        }
        // Preferences first: a slot that has none must not take the place of one that does.
        for (index, slot) in slots.iter_mut().enumerate() {
            if slot.is_none()
                && let Some(instance) = preferred.get(&(index as u32))
                && self
                    .candidates(build)
                    .any(|(candidate, _)| candidate == *instance)
            {
                self.take(*instance);
                *slot = Some(*instance);
            }
        }
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            let emptiest = self
                .candidates(build)
                .min_by_key(|(instance, offer)| (offer.used, &offer.location.resource, *instance))
                .map(|(instance, _)| instance);
            let Some(instance) = emptiest else {
                break; // Excluded by the count above.
            };
            self.take(instance);
            *slot = Some(instance);
        }
        let locations: Vec<_> = slots
            .iter()
            .flatten()
            .filter_map(|instance| self.offers.get(instance))
            .map(|offer| offer.location.clone())
            .collect();
        self.jobs.insert(job, slots);
        self.check();
        Ok(locations)
    }

    /// Gives all slots of a job back.
    pub fn release(&mut self, job: JobId) {
        for instance in self.jobs.remove(&job).into_iter().flatten().flatten() {
            self.give_back(instance);
        }
        self.check();
    }

    /// Free slots, of all slots of a TaskManager.
    #[must_use]
    pub fn slots_of(&self, instance: InstanceId) -> (u32, u32) {
        self.offers
            .get(&instance)
            .map_or((0, 0), |offer| (offer.slots - offer.used, offer.slots))
    }

    fn candidates(&self, build: &BuildId) -> impl Iterator<Item = (InstanceId, &Offer)> {
        self.offers
            .iter()
            .filter(move |(_, o)| o.is_open && o.build == *build && o.used < o.slots)
            .map(|(instance, offer)| (*instance, offer))
    }

    fn take(&mut self, instance: InstanceId) {
        if let Some(offer) = self.offers.get_mut(&instance) {
            offer.used += 1;
        }
    }

    fn give_back(&mut self, instance: InstanceId) {
        if let Some(offer) = self.offers.get_mut(&instance) {
            offer.used -= 1;
        }
    }

    /// The invariant of the module.
    fn check(&self) {
        let mut used: BTreeMap<InstanceId, u32> = BTreeMap::new();
        for instance in self.jobs.values().flatten().flatten() {
            *used.entry(*instance).or_default() += 1;
        }
        for (instance, offer) in &self.offers {
            let used = used.remove(instance).unwrap_or(0);
            assert!(
                offer.used == used && used <= offer.slots,
                "TaskManager {} has {} slots, {} counted as used, {used} given to jobs",
                offer.location.resource,
                offer.slots,
                offer.used
            );
        }
        assert!(used.is_empty(), "slots of a lost TaskManager are given");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ResourceId;

    fn build(name: &str) -> BuildId {
        BuildId(name.to_owned())
    }

    fn pool(slots: &[u32]) -> SlotPool {
        let mut pool = SlotPool::default();
        for (i, slots) in slots.iter().enumerate() {
            offer(&mut pool, i as u128, *slots, "a");
        }
        pool
    }

    fn offer(pool: &mut SlotPool, instance: u128, slots: u32, name: &str) {
        pool.offer(
            TaskManagerLocation {
                resource: ResourceId(format!("tm-{instance}")),
                instance: InstanceId(instance),
                data_address: String::new(),
            },
            build(name),
            slots,
            true,
            &BTreeSet::new(),
        );
    }

    fn hosts(locations: &[TaskManagerLocation]) -> Vec<u128> {
        locations.iter().map(|l| l.instance.0).collect()
    }

    fn allocate(pool: &mut SlotPool, job: u128, needed: u32) -> Result<Vec<u128>, SlotsMissing> {
        pool.allocate(JobId(job), &build("a"), needed, &BTreeMap::new())
            .map(|locations| hosts(&locations))
    }

    #[test]
    fn slots_are_spread_evenly() {
        assert_eq!(allocate(&mut pool(&[3, 3, 3]), 1, 3), Ok(vec![0, 1, 2]));
        let mut spread = allocate(&mut pool(&[1, 3, 3]), 1, 6).unwrap();
        spread.sort_unstable();
        assert_eq!(spread, [0, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn a_job_gets_all_it_needs_or_nothing_more() {
        let mut pool = pool(&[2, 1]);
        allocate(&mut pool, 1, 1).unwrap();
        assert_eq!(
            allocate(&mut pool, 2, 3),
            Err(SlotsMissing {
                needed: 3,
                available: 2
            })
        );
        assert_eq!(
            allocate(&mut pool, 3, 2).unwrap().len(),
            2,
            "nothing was kept back"
        );
    }

    #[test]
    fn after_a_loss_the_others_stay_and_the_spare_steps_in() {
        let mut pool = pool(&[1, 1, 1, 1]);
        assert_eq!(allocate(&mut pool, 1, 3), Ok(vec![0, 1, 2]));
        assert_eq!(pool.lose(InstanceId(1)), [JobId(1)]);
        assert_eq!(allocate(&mut pool, 1, 3), Ok(vec![0, 3, 2]));
        pool.lose(InstanceId(0));
        assert!(allocate(&mut pool, 1, 3).is_err());
        offer(&mut pool, 9, 1, "a");
        assert_eq!(allocate(&mut pool, 1, 3), Ok(vec![9, 3, 2]));
    }

    #[test]
    fn a_slot_goes_back_to_where_its_state_lies() {
        let mut pool = pool(&[2, 2, 2]);
        let preferred = BTreeMap::from([
            (0, InstanceId(2)),
            (1, InstanceId(2)),
            (2, InstanceId(0)),
            (3, InstanceId(77)),
        ]);
        let locations = pool.allocate(JobId(1), &build("a"), 4, &preferred).unwrap();
        assert_eq!(hosts(&locations), [2, 2, 0, 1]);
    }

    #[test]
    fn only_taskmanagers_of_the_jobs_build_are_used_and_only_open_ones() {
        let mut pool = pool(&[1]);
        offer(&mut pool, 5, 4, "b");
        assert!(allocate(&mut pool, 1, 2).is_err());
        let location = pool.offers[&InstanceId(0)].location.clone();
        let none = BTreeSet::new();
        pool.offer(location.clone(), build("a"), 1, false, &none);
        assert!(allocate(&mut pool, 1, 1).is_err());
        pool.offer(location, build("a"), 1, true, &none);
        assert_eq!(allocate(&mut pool, 1, 1), Ok(vec![0]));
    }

    #[test]
    fn a_taskmanager_that_offers_less_costs_the_idle_slots_first() {
        let mut pool = pool(&[3, 1]);
        assert_eq!(allocate(&mut pool, 1, 2), Ok(vec![0, 1]));
        pool.lose(InstanceId(1));
        assert_eq!(allocate(&mut pool, 1, 2), Ok(vec![0, 0]));
        assert_eq!(allocate(&mut pool, 2, 1), Ok(vec![0]));
        let location = pool.offers[&InstanceId(0)].location.clone();
        let busy = BTreeSet::from([(JobId(1), 1), (JobId(2), 0)]);
        pool.offer(location.clone(), build("a"), 2, true, &busy);
        assert_eq!(pool.slots_of(InstanceId(0)), (0, 2));
        assert_eq!(pool.jobs[&JobId(1)], [None, Some(InstanceId(0))]);
        assert_eq!(pool.jobs[&JobId(2)], [Some(InstanceId(0))]);
        // With nothing left, busy or not.
        pool.offer(location, build("a"), 0, true, &busy);
        assert_eq!(pool.slots_of(InstanceId(0)), (0, 0));
        assert!(allocate(&mut pool, 1, 2).is_err());
    }

    proptest! {
        /// Random offers, losses, allocations and releases; `check` asserts the invariant inside.
        #[test]
        fn no_history_gives_a_slot_twice(steps in proptest::collection::vec(
            (0_u8..5, 0_u128..5, 1_u32..5, proptest::collection::btree_map(0_u32..5, 0_u128..5, 0..4)),
            1..60,
        )) {
            let mut pool = SlotPool::default();
            for (what, which, count, preferred) in steps {
                match what {
                    0 => offer(&mut pool, which, count, "a"),
                    1 => { pool.lose(InstanceId(which)); }
                    2 => pool.release(JobId(which)),
                    _ => {
                        let before = pool.jobs.get(&JobId(which)).cloned().unwrap_or_default();
                        let preferred = preferred.into_iter().map(|(i, t)| (i, InstanceId(t))).collect();
                        match pool.allocate(JobId(which), &build("a"), count, &preferred) {
                            Ok(locations) => {
                                prop_assert_eq!(locations.len(), count as usize);
                                for (kept, location) in before.iter().zip(&locations) {
                                    prop_assert!(kept.is_none_or(|kept| kept == location.instance));
                                }
                            }
                            Err(missing) => {
                                prop_assert!(missing.available < missing.needed);
                                prop_assert_eq!(pool.jobs.get(&JobId(which)).cloned().unwrap_or_default(), before);
                            }
                        }
                    }
                }
                pool.check();
            }
        }
    }
}
