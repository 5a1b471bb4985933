//! Cluster and configuration of a drawn plan.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Dice, ends_job};
use crate::plan::{ClusterShape, Fault, PlannedFault, StoreShape, Target};

/// Nodes enough for a job, with or without spare slots.
pub(super) fn cluster(dice: &Dice, slots_needed: u32) -> ClusterShape {
    let slots = dice.between(1, 2) as u32;
    let least = slots_needed.div_ceil(slots).max(2);
    ClusterShape {
        job_managers: dice.one_of(&[1, 1, 2]),
        task_managers: least + dice.between(0, 1) as u32,
        slots,
        store: dice.one_of(&[StoreShape::Disk, StoreShape::Disk, StoreShape::S3]),
    }
}

/// Makes the cluster one on which the faults can be struck.
pub(super) fn fit(cluster: &mut ClusterShape, faults: &[PlannedFault], wanted: Option<StoreShape>) {
    if let Some(store) = wanted {
        cluster.store = store;
    }
    for fault in faults {
        let is_frozen_leader = fault.target == Target::Leader
            && matches!(&fault.what, Fault::Pause { down } if *down > Duration::from_secs(1));
        if is_frozen_leader || fault.target == Target::Standby {
            cluster.job_managers = cluster.job_managers.max(2);
        }
        match fault.what {
            // The proxy stands before an object store.
            Fault::Store(_) => cluster.store = StoreShape::S3,
            // Files that others share are what breaks.
            Fault::Data(_) => cluster.store = StoreShape::Disk,
            _ => {}
        }
    }
    // Both cannot be had: without the proxy a store fault is none.
    if faults.iter().any(|f| matches!(f.what, Fault::Store(_))) {
        cluster.store = StoreShape::S3;
    }
}

/// Configuration that differs between runs.
pub(super) fn draw(
    dice: &Dice,
    cluster: &ClusterShape,
    faults: &[PlannedFault],
) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |key: &str, value: &str| {
        settings.insert(key.to_owned(), value.to_owned());
    };
    // A standby needs it; without one it is drawn.
    let needs_election = cluster.job_managers > 1;
    let election = match cluster.store {
        StoreShape::S3 => "s3",
        StoreShape::Disk | StoreShape::Memory => "file",
    };
    if needs_election || dice.between(0, 1) == 0 {
        set("high-availability.type", election);
    }
    set("parallelism.default", dice.one_of(&["1", "2", "3"]));
    set(
        "execution.checkpointing.interval",
        dice.one_of(&["100ms", "200ms", "500ms"]),
    );
    set(
        "execution.checkpointing.min-pause",
        dice.one_of(&["0s", "50ms"]),
    );
    set(
        "execution.checkpointing.timeout",
        dice.one_of(&["5s", "10s", "30s"]),
    );
    set(
        "execution.checkpointing.max-concurrent-checkpoints",
        dice.one_of(&["1", "2"]),
    );
    set(
        "execution.checkpointing.incremental",
        dice.one_of(&["true", "false"]),
    );
    set(
        "execution.checkpointing.data-inline-threshold",
        dice.one_of(&["0", "512b", "20kb"]),
    );
    set(
        "execution.checkpointing.tolerable-failed-checkpoints",
        "1000",
    );
    set(
        "execution.buffer-timeout.interval",
        dice.one_of(&["0ms", "10ms", "100ms"]),
    );
    if faults.iter().any(|f| f.what == Fault::UserStuck) {
        set("task.cancellation.timeout", "4s");
        // When nothing else fails, it shows by a checkpoint that does not come.
        set("execution.checkpointing.timeout", "5s");
        set("execution.checkpointing.tolerable-failed-checkpoints", "0");
    }
    let shall_fail = faults.iter().any(|f| ends_job(&f.what));
    match dice.between(0, 2) {
        // A job that always fails must come to its end: the others would try for long.
        0 | 1 if shall_fail => {
            set("restart-strategy.type", "fixed-delay");
            // What passes must not use them up.
            let passing = faults.iter().map(|f| match f.what {
                Fault::UserPanic { times } | Fault::UserError { times, .. } if times < u32::MAX => {
                    u64::from(times)
                }
                _ => 3,
            });
            set(
                "restart-strategy.fixed-delay.attempts",
                &(passing.sum::<u64>() + dice.between(1, 3)).to_string(),
            );
            set("restart-strategy.fixed-delay.delay", "100ms");
        }
        0 => {
            set("restart-strategy.type", "fixed-delay");
            set("restart-strategy.fixed-delay.attempts", "1000");
            set(
                "restart-strategy.fixed-delay.delay",
                dice.one_of(&["0s", "100ms", "500ms"]),
            );
        }
        1 => {
            set("restart-strategy.type", "exponential-delay");
            set(
                "restart-strategy.exponential-delay.initial-backoff",
                dice.one_of(&["50ms", "100ms", "300ms"]),
            );
            set("restart-strategy.exponential-delay.max-backoff", "2s");
            set(
                "restart-strategy.exponential-delay.jitter-factor",
                dice.one_of(&["0.0", "0.1", "0.5"]),
            );
        }
        _ => {
            set("restart-strategy.type", "failure-rate");
            set(
                "restart-strategy.failure-rate.max-failures-per-interval",
                if shall_fail { "20" } else { "1000" },
            );
            set("restart-strategy.failure-rate.failure-rate-interval", "60s");
            set(
                "restart-strategy.failure-rate.delay",
                dice.one_of(&["50ms", "200ms"]),
            );
        }
    }
    settings
}
