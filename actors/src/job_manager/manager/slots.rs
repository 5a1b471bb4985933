//! Who gets which slots: jobs are served first come first served, and near the state that they left in memory.

use std::collections::{BTreeMap, BTreeSet};

use super::Manager;
use super::job_masters::Runner;
use crate::job_master::{GrantedSlot, JobMasterMessage};
use crate::model::{InstanceId, JobId};

impl Manager {
    /// `busy`: slots in which tasks run, where the TaskManager may have come to offer less.
    pub(super) fn refresh_offer(&mut self, instance: InstanceId, busy: &BTreeSet<(JobId, u32)>) {
        if let Some(entry) = self.task_managers.get(&instance) {
            self.pool.offer(
                entry.location.clone(),
                entry.build.clone(),
                entry.slots,
                entry.to_stop.is_empty(),
                busy,
            );
        }
    }

    /// Gives slots to whom they suffice for, first come first served.
    pub(super) fn serve_slots(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            let Some(entry) = self.jobs.get_mut(&job) else {
                continue;
            };
            let (Some(needed), Runner::Active(master)) = (entry.wants_slots, &entry.runner) else {
                continue;
            };
            let preferred: BTreeMap<u32, InstanceId> = entry
                .former
                .iter()
                .map(|(id, (_, instance))| (id.subtask.0, *instance))
                .collect();
            // State in memory is worth a moment of waiting for the TaskManagers that hold it.
            let is_complete = (0..needed).all(|slot| preferred.contains_key(&slot));
            let result = if entry.is_recovered && !self.is_settled && !is_complete {
                Err(crate::slot_pool::SlotsMissing {
                    needed,
                    available: preferred.len() as u32,
                })
            } else {
                self.pool
                    .allocate(job, &entry.graph.build, needed, &preferred)
            };
            match result {
                Ok(locations) => {
                    let slots: Vec<_> = locations
                        .into_iter()
                        .filter_map(|location| {
                            let peer = self.task_managers.get(&location.instance)?.peer.clone();
                            Some(GrantedSlot { location, peer })
                        })
                        .collect();
                    tracing::info!(%job, slots = slots.len(), "slots granted");
                    entry.wants_slots = None;
                    let former = entry
                        .former
                        .iter()
                        .map(|(id, (attempt, instance))| (*id, (attempt.epoch, *instance)))
                        .collect();
                    drop(master.cast(JobMasterMessage::Slots { slots, former }));
                }
                Err(missing) => {
                    drop(master.cast(JobMasterMessage::SlotsMissing(missing)));
                    self.waiting.push_back(job);
                }
            }
        }
    }
}
