//! Which checkpoints are kept and what may be deleted. Pure.
//!
//! Invariant: nothing is deleted that a kept manifest refers to, and no object of a number that is not decided. References are
//! recomputed from the manifests every time; there are no counters that could drift.

use std::collections::{BTreeMap, BTreeSet};

use perennial_config::ExternalizedRetention;

use crate::model::{CheckpointId, JobState, Manifest};

use super::keys::parse_object_key;
use super::protocol::{ANCHOR_EVERY, is_anchor};
use super::store::ObjectMeta;

/// A completed checkpoint, as far as retention needs it.
#[derive(Debug, Clone, Copy)]
pub struct Retained<'a> {
    /// Its content.
    pub manifest: &'a Manifest,
    /// Whether a restore found it damaged: it does not count as one of those to keep.
    pub is_damaged: bool,
    /// Whether its objects lie in a savepoint's directory: they are the user's, and it does not push a checkpoint out.
    pub is_external: bool,
}

/// What retention wants to be done, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetirePlan {
    /// Replace these records by small ones, so that no restore chooses them.
    pub retire: Vec<CheckpointId>,
    /// Then delete these objects.
    pub delete: Vec<String>,
}

/// The checkpoints that stay: the newest `num_retained`, what is newer than those, and those pinned as the base of a running one.
#[must_use]
pub fn kept(
    completed: &BTreeMap<CheckpointId, Retained<'_>>,
    num_retained: u32,
    pinned: &BTreeSet<CheckpointId>,
) -> BTreeSet<CheckpointId> {
    let mut kept = BTreeSet::new();
    let mut healthy = 0;
    for (checkpoint, entry) in completed.iter().rev() {
        if healthy >= num_retained.max(1) {
            break;
        }
        kept.insert(*checkpoint);
        if !entry.is_damaged && !entry.is_external {
            healthy += 1;
        }
    }
    kept.extend(pinned.iter().filter(|p| completed.contains_key(p)));
    kept
}

/// Every object that these manifests refer to.
#[must_use]
pub fn references<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> BTreeSet<&'a str> {
    manifests
        .into_iter()
        .flat_map(|m| m.objects.iter().map(|o| o.key.as_str()))
        .collect()
}

/// What can go, given what must stay.
#[must_use]
pub fn plan(
    completed: &BTreeMap<CheckpointId, Retained<'_>>,
    num_retained: u32,
    pinned: &BTreeSet<CheckpointId>,
) -> RetirePlan {
    let kept = kept(completed, num_retained, pinned);
    let needed = references(
        completed
            .iter()
            .filter(|(id, _)| kept.contains(id))
            .map(|(_, e)| e.manifest),
    );
    let mut plan = RetirePlan::default();
    let mut delete = BTreeSet::new();
    for (checkpoint, entry) in completed {
        if kept.contains(checkpoint) {
            continue;
        }
        plan.retire.push(*checkpoint);
        if !entry.is_external {
            delete.extend(
                references([entry.manifest])
                    .into_iter()
                    .filter(|key| !needed.contains(key)),
            );
        }
    }
    plan.delete = delete.into_iter().map(str::to_owned).collect();
    plan
}

/// Which listed objects are garbage: of a decided number, and referred to by nobody. Needs no clock: an upload under way belongs to a
/// number that is not decided. A stale listing only leaves garbage for the next time.
#[must_use]
pub fn sweep(
    listed: &[ObjectMeta],
    last_decided: CheckpointId,
    needed: &BTreeSet<&str>,
) -> Vec<String> {
    listed
        .iter()
        .filter(|o| parse_object_key(&o.key).is_some_and(|k| k.checkpoint <= last_decided))
        .filter(|o| !needed.contains(o.key.as_str()))
        .map(|o| o.key.clone())
        .collect()
}

/// Whether checkpoints outlive a job that ended so.
#[must_use]
pub fn survives(state: JobState, retention: ExternalizedRetention) -> bool {
    match state {
        JobState::Finished => false,
        JobState::Canceled => match retention {
            ExternalizedRetention::RetainOnCancellation => true,
            ExternalizedRetention::DeleteOnCancellation
            | ExternalizedRetention::NoExternalizedCheckpoints => false,
        },
        JobState::Failed => match retention {
            ExternalizedRetention::RetainOnCancellation
            | ExternalizedRetention::DeleteOnCancellation => true,
            ExternalizedRetention::NoExternalizedCheckpoints => false,
        },
        // Not an end.
        JobState::Created
        | JobState::Running
        | JobState::Failing
        | JobState::Cancelling
        | JobState::Restarting
        | JobState::Suspended => true,
    }
}

/// Records that may be deleted, from `from` on: below everything kept and below the newest anchor, and no anchors themselves; see
/// `protocol.rs`. At most `max`, lowest first.
#[must_use]
pub fn deletable_records(
    from: CheckpointId,
    lowest_kept: CheckpointId,
    last_decided: CheckpointId,
    max: usize,
) -> Vec<CheckpointId> {
    let newest_anchor = last_decided.0 / ANCHOR_EVERY * ANCHOR_EVERY;
    let end = lowest_kept.0.min(newest_anchor);
    (from.0.max(1)..end)
        .map(CheckpointId)
        .filter(|n| !is_anchor(*n))
        .take(max)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::object_key;
    use crate::checkpoint::testing::manifest_with_objects;
    use crate::model::{Attempt, InstanceId, LeaderEpoch};
    use proptest::prelude::*;

    fn entries(manifests: &[Manifest]) -> BTreeMap<CheckpointId, Retained<'_>> {
        manifests
            .iter()
            .map(|manifest| {
                (
                    manifest.checkpoint,
                    Retained {
                        manifest,
                        is_damaged: false,
                        is_external: false,
                    },
                )
            })
            .collect()
    }

    fn key(checkpoint: u64) -> String {
        object_key(
            LeaderEpoch(1),
            CheckpointId(checkpoint),
            Attempt(1),
            InstanceId(1 << 100),
        )
    }

    #[test]
    fn a_subsumed_checkpoint_goes_and_what_the_newer_needs_stays() {
        let manifests = [
            manifest_with_objects(1, &["a", "b"]),
            manifest_with_objects(2, &["b", "c"]),
        ];
        let plan = plan(&entries(&manifests), 1, &BTreeSet::new());
        assert_eq!(plan.retire, [CheckpointId(1)]);
        assert_eq!(plan.delete, ["a"]);
    }

    #[test]
    fn a_damaged_or_external_one_does_not_push_a_healthy_one_out() {
        let manifests = [1, 2, 3].map(|n| manifest_with_objects(n, &[]));
        let mut all = entries(&manifests);
        all.get_mut(&CheckpointId(3)).unwrap().is_damaged = true;
        assert_eq!(
            kept(&all, 1, &BTreeSet::new()),
            BTreeSet::from([CheckpointId(2), CheckpointId(3)])
        );
    }

    /// Every end of a job with every value of `execution.checkpointing.externalized-checkpoint-retention`.
    #[test]
    fn checkpoints_outlive_the_job_as_externalized_retention_says() {
        use ExternalizedRetention::*;
        let row =
            |r| [JobState::Finished, JobState::Canceled, JobState::Failed].map(|s| survives(s, r));
        assert_eq!(row(NoExternalizedCheckpoints), [false, false, false]);
        assert_eq!(row(DeleteOnCancellation), [false, false, true]);
        assert_eq!(row(RetainOnCancellation), [false, true, true]);
    }

    proptest! {
        /// Random histories: each checkpoint refers to its own object and to some of its base's; some bases are pinned.
        #[test]
        fn retention_and_sweeping_never_delete_what_is_referenced(
            shape in proptest::collection::vec((1_u64..4, any::<u16>(), any::<bool>()), 1..30),
            num_retained in 1_u32..4,
            pins in proptest::collection::btree_set(1_u64..30, 0..3),
        ) {
            let mut manifests: Vec<Manifest> = Vec::new();
            for (i, (back, mask, _)) in shape.iter().enumerate() {
                let mut objects = vec![key(i as u64 + 1)];
                if let Some(base) = i.checked_sub(*back as usize).and_then(|b| manifests.get(b)) {
                    objects.extend(base.objects.iter().enumerate()
                        .filter(|(n, _)| mask & (1 << (n % 16)) != 0)
                        .map(|(_, o)| o.key.clone()));
                }
                let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
                manifests.push(manifest_with_objects(i as u64 + 1, &objects));
            }
            let pinned: BTreeSet<_> = pins.into_iter().map(CheckpointId).collect();
            let mut all = entries(&manifests);
            for ((_, _, damaged), entry) in shape.iter().zip(all.values_mut()) {
                entry.is_damaged = *damaged;
            }
            let kept = kept(&all, num_retained, &pinned);
            let plan = plan(&all, num_retained, &pinned);
            let last = CheckpointId(manifests.len() as u64);
            prop_assert!(kept.contains(&last), "the newest stays");
            let mut listed: Vec<ObjectMeta> = (1..=last.0 + 2).map(|n| ObjectMeta { key: key(n), size: 1 }).collect();
            listed.push(ObjectMeta { key: "shared/not-ours".into(), size: 1 });
            let needed: Vec<&Manifest> = manifests.iter().filter(|m| kept.contains(&m.checkpoint)).collect();
            let swept = sweep(&listed, last, &references(needed.iter().copied()));
            for manifest in needed {
                prop_assert!(!plan.retire.contains(&manifest.checkpoint));
                for object in &manifest.objects {
                    prop_assert!(!plan.delete.contains(&object.key) && !swept.contains(&object.key));
                }
            }
            for n in [last.0 + 1, last.0 + 2] {
                prop_assert!(!swept.contains(&key(n)), "not decided yet");
            }
            prop_assert!(!swept.contains(&"shared/not-ours".to_owned()));
            // And nothing leaks: what nobody needs is swept.
            prop_assert!(plan.delete.iter().all(|k| swept.contains(k)));
        }

        #[test]
        fn anchors_and_everything_kept_keep_their_records(from in 0_u64..300, lowest in 1_u64..300, more in 0_u64..100) {
            let head = lowest + more;
            for n in deletable_records(CheckpointId(from), CheckpointId(lowest), CheckpointId(head), 1000) {
                prop_assert!(n.0 < lowest && n.0 % ANCHOR_EVERY != 0 && n.0 < head / ANCHOR_EVERY * ANCHOR_EVERY);
            }
        }
    }
}
