//! Configuration of a run: what the carrier sets, then what the plan does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use perennial_actors::fault::CHAOS_KEY;
use perennial_config::{RestartStrategy, Settings};

use super::strike;
use crate::plan::{FaultPlan, StoreShape};
use crate::storage::StorageKind;

/// Settings of nodes and job that a plan may override: small intervals, generous counts, everything retained so that it can be checked.
pub(super) fn settings(plan: &FaultPlan) -> BTreeMap<String, String> {
    let high_availability = match (plan.cluster.job_managers, plan.cluster.store) {
        (0 | 1, _) => "none",
        (_, StoreShape::S3) => "s3",
        (_, StoreShape::Disk | StoreShape::Memory) => "file",
    };
    // Without a standby nobody waits for its end; a busy machine must not fence a leader that nobody replaces.
    let lease = if plan.cluster.job_managers > 1 {
        "4s"
    } else {
        "20s"
    };
    let mut settings: BTreeMap<String, String> = [
        ("high-availability.type", high_availability),
        ("high-availability.lease-duration", lease),
        ("high-availability.renew-interval", "500ms"),
        ("s3.connection.timeout", "2s"),
        ("s3.socket.timeout", "4s"),
        ("s3.operation.timeout", "10s"),
        ("execution.checkpointing.interval", "300ms"),
        ("execution.checkpointing.min-pause", "0s"),
        ("execution.checkpointing.timeout", "15s"),
        ("execution.checkpointing.num-retained", "1000"),
        ("execution.checkpointing.data-inline-threshold", "0"),
        (
            "execution.checkpointing.tolerable-failed-checkpoints",
            "1000",
        ),
        ("restart-strategy.type", "fixed-delay"),
        ("restart-strategy.fixed-delay.attempts", "1000"),
        ("restart-strategy.fixed-delay.delay", "100ms"),
        ("web.exception-history-size", "200"),
        ("web.checkpoints.history", "20"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    if plan.faults.iter().any(|f| strike::is_by_message(&f.what)) {
        settings.insert(CHAOS_KEY.to_owned(), "true".to_owned());
    }
    settings.extend(plan.settings.clone());
    settings
}

/// As the nodes will understand them.
pub(super) fn load(
    settings: &BTreeMap<String, String>,
    storage: StorageKind,
) -> anyhow::Result<Settings> {
    // Where the cluster will find its store is not known yet; that it has one of this kind is.
    let directories = match storage {
        StorageKind::Disk => ["file:///checkpoints", "file:///leadership"],
        StorageKind::S3 => ["s3://bucket/checkpoints", "s3://bucket/leadership"],
    };
    let mut pairs: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (&**k, &**v)).collect();
    pairs.extend([
        ("execution.checkpointing.dir", directories[0]),
        ("high-availability.storageDir", directories[1]),
        ("s3.access-key", "of-the-server"),
        ("s3.secret-key", "of-the-server"),
    ]);
    Settings::with(&pairs).context("the plan's settings")
}

/// Before a restart, as configured.
pub(super) fn longest_delay(settings: &Settings) -> Duration {
    match settings.job.restart.strategy {
        RestartStrategy::None => Duration::ZERO,
        RestartStrategy::FixedDelay { delay, .. } | RestartStrategy::FailureRate { delay, .. } => {
            delay
        }
        RestartStrategy::ExponentialDelay { max_backoff, .. } => max_backoff,
    }
}
