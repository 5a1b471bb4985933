//! Other names of keys: Flink's deprecated ones, and those that the articles use. One line each, so that the table can be read.

use super::{Key, Kind, Meaning, Translate};

const fn alias(name: &'static str, to: &'static str, note: &'static str) -> Key {
    alias_as(name, to, Translate::Same, note)
}

const fn alias_as(
    name: &'static str,
    to: &'static str,
    translate: Translate,
    note: &'static str,
) -> Key {
    Key {
        name,
        kind: Kind::Text,
        default: None,
        note,
        meaning: Meaning::Alias { to, translate },
    }
}

const DEPRECATED: &str = "Flink's deprecated name";
const NEVER_READ: &str = "Flink never read this name";
const OPERATOR: &str = "never a key of Flink's operator";
const ARTICLE: &str = "the article's name";

// One line per key, so that the table can be read and searched as one.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    // Checkpoints, state and savepoints (requirements 2 and 3).
    alias("execution.checkpointing.unaligned", "execution.checkpointing.unaligned.enabled", DEPRECATED),
    alias("execution.checkpointing.alignment-timeout", "execution.checkpointing.aligned-checkpoint-timeout", DEPRECATED),
    alias("state.backend", "state.backend.type", DEPRECATED),
    alias("state.backend.incremental", "execution.checkpointing.incremental", DEPRECATED),
    alias("state.backend.local-recovery", "execution.state-recovery.from-local", DEPRECATED),
    alias("state.checkpoints.dir", "execution.checkpointing.dir", DEPRECATED),
    alias("state.savepoints.dir", "execution.checkpointing.savepoint-dir", DEPRECATED),
    alias("state.checkpoints.num-retained", "execution.checkpointing.num-retained", DEPRECATED),
    alias("state.storage.fs.memory-threshold", "execution.checkpointing.data-inline-threshold", DEPRECATED),
    alias("state.backend.fs.memory-threshold", "execution.checkpointing.data-inline-threshold", DEPRECATED),
    alias("execution.checkpointing.snapshot-compression", "execution.checkpointing.snapshot-compression.enabled", "Flink's name"),
    alias("kubernetes.operator.periodic.savepoint.interval", "execution.savepoint.interval", "the operator's name"),
    alias("execution.savepoint.path", "execution.state-recovery.path", DEPRECATED),
    alias("execution.savepoint.ignore-unclaimed-state", "execution.state-recovery.ignore-unclaimed-state", DEPRECATED),
    alias("execution.savepoint-restore-mode", "execution.state-recovery.claim-mode", DEPRECATED),
    // RocksDB (4).
    alias("state.backend.rocksdb.block.bloom-filter-bits-per-key", "state.backend.rocksdb.bloom-filter.bits-per-key", NEVER_READ),
    alias("state.backend.rocksdb.write-buffer-size", "state.backend.rocksdb.writebuffer.size", NEVER_READ),
    alias("state.backend.rocksdb.max-write-buffer-number", "state.backend.rocksdb.writebuffer.count", NEVER_READ),
    alias("state.backend.rocksdb.min-write-buffer-number-to-merge", "state.backend.rocksdb.writebuffer.number-to-merge", NEVER_READ),
    alias_as("state.backend.rocksdb.writeoptions.disable-wal", "state.backend.rocksdb.wal.enabled", Translate::Not, NEVER_READ),
    alias("state.backend.rocksdb.writeoptions.sync", "state.backend.rocksdb.wal.sync", NEVER_READ),
    alias("state.backend.rocksdb.compression.type", "state.backend.rocksdb.compression.per.level", NEVER_READ),
    alias("state.backend.rocksdb.compaction.level.target-file-size", "state.backend.rocksdb.compaction.level.target-file-size-base", NEVER_READ),
    // Restart (5).
    alias("restart-strategy", "restart-strategy.type", DEPRECATED),
    alias_as("automation_rules.auto_recovery.enabled", "restart-strategy.type", Translate::Words(&[("true", "fixed-delay"), ("false", "none")]), ARTICLE),
    alias("automation_rules.auto_recovery.max_restart_attempts", "restart-strategy.fixed-delay.attempts", ARTICLE),
    alias("automation_rules.auto_recovery.restart_delay", "restart-strategy.fixed-delay.delay", ARTICLE),
    alias("automation_rules.auto_recovery.escalation_timeout", "recovery.escalation-timeout", ARTICLE),
    // Memory and network (6, 7).
    alias("taskmanager.network.memory.fraction", "taskmanager.memory.network.fraction", DEPRECATED),
    alias("taskmanager.network.memory.min", "taskmanager.memory.network.min", DEPRECATED),
    alias("taskmanager.network.memory.max", "taskmanager.memory.network.max", DEPRECATED),
    alias("taskmanager.network.netty.server.numThreads", "taskmanager.network.threads.server", "Netty's threads"),
    alias("taskmanager.network.netty.client.numThreads", "taskmanager.network.threads.client", "Netty's threads"),
    alias("taskmanager.network.netty.server.backlog", "taskmanager.network.listen-backlog", "Netty's backlog"),
    alias_as("taskmanager.network.netty.client.connectTimeoutSec", "taskmanager.network.connect-timeout", Translate::Seconds, "in seconds"),
    alias_as("taskmanager.network.netty.client.requestTimeoutSec", "taskmanager.network.request-timeout", Translate::Seconds, NEVER_READ),
    alias("execution.buffer-timeout", "execution.buffer-timeout.interval", DEPRECATED),
    alias("task.cancellation-timeout", "task.cancellation.timeout", DEPRECATED),
    alias_as("cluster.evenly-spread-out-slots", "taskmanager.load-balance.mode", Translate::Words(&[("true", "slots"), ("false", "none")]), DEPRECATED),
    // High availability (8).
    alias("high-availability", "high-availability.type", DEPRECATED),
    alias("high-availability.zookeeper.storageDir", "high-availability.storageDir", DEPRECATED),
    alias("kubernetes.operator.leader.election.lease-duration", "high-availability.lease-duration", "elected the operator, not the JobManager"),
    alias("kubernetes.operator.leader.election.renew-deadline", "high-availability.renew-deadline", "elected the operator, not the JobManager"),
    alias("kubernetes.operator.leader.election.retry-period", "high-availability.renew-interval", "elected the operator, not the JobManager"),
    alias("kubernetes.operator.leader-election.lease-duration", "high-availability.lease-duration", "the operator's name"),
    alias("kubernetes.operator.leader-election.renew-deadline", "high-availability.renew-deadline", "the operator's name"),
    alias("kubernetes.operator.leader-election.retry-period", "high-availability.renew-interval", "the operator's name"),
    alias("high-availability.kubernetes.leader-election.lease-duration", "high-availability.lease-duration", "for every kind of high availability"),
    alias("high-availability.kubernetes.leader-election.renew-deadline", "high-availability.renew-deadline", "for every kind of high availability"),
    alias("high-availability.kubernetes.leader-election.retry-period", "high-availability.renew-interval", "for every kind of high availability"),
    // Autoscaling (9).
    alias("kubernetes.operator.auto-scaling.enabled", "job.autoscaler.enabled", OPERATOR),
    alias("kubernetes.operator.auto-scaling.metrics.window", "job.autoscaler.metrics.window", OPERATOR),
    alias("kubernetes.operator.auto-scaling.metrics.delay", "job.autoscaler.stabilization.interval", OPERATOR),
    alias("kubernetes.operator.auto-scaling.scale-up.grace-period", "job.autoscaler.scale-up.grace-period", OPERATOR),
    alias("kubernetes.operator.auto-scaling.scale-down.grace-period", "job.autoscaler.scale-down.grace-period", OPERATOR),
    alias("kubernetes.operator.auto-scaling.target.utilization", "job.autoscaler.utilization.target", OPERATOR),
    alias("kubernetes.operator.auto-scaling.min.replicas", "job.autoscaler.replicas.min", OPERATOR),
    alias("kubernetes.operator.auto-scaling.max.replicas", "job.autoscaler.replicas.max", OPERATOR),
    alias("kubernetes.operator.auto-scaling.metrics.jvm.cpu", "job.autoscaler.inputs.cpu", OPERATOR),
    alias("kubernetes.operator.auto-scaling.metrics.jvm.memory", "job.autoscaler.inputs.memory", OPERATOR),
    alias("kubernetes.operator.auto-scaling.metrics.operator.num-records-in", "job.autoscaler.inputs.records-in", OPERATOR),
    alias("kubernetes.operator.auto-scaling.metrics.operator.num-records-out", "job.autoscaler.inputs.records-out", OPERATOR),
    alias("automation_rules.auto_scaling.enabled", "job.autoscaler.enabled", ARTICLE),
    alias("automation_rules.auto_scaling.min_replicas", "job.autoscaler.replicas.min", ARTICLE),
    alias("automation_rules.auto_scaling.max_replicas", "job.autoscaler.replicas.max", ARTICLE),
    alias("automation_rules.auto_scaling.target_cpu", "job.autoscaler.target.cpu", ARTICLE),
    alias("automation_rules.auto_scaling.target_memory", "job.autoscaler.target.memory", ARTICLE),
    alias("automation_rules.auto_scaling.scale_up_cooldown", "job.autoscaler.scale-up.grace-period", ARTICLE),
    alias("automation_rules.auto_scaling.scale_down_cooldown", "job.autoscaler.scale-down.grace-period", ARTICLE),
    // Backup, updates, monitoring, alerts (11, 12, 16).
    alias("backup_schedule.checkpoint_interval", "backup.checkpoints.interval", ARTICLE),
    alias("backup_schedule.savepoint_interval", "backup.savepoints.interval", ARTICLE),
    alias("backup_schedule.retention_policy", "backup.retention", ARTICLE),
    alias("backup_schedule.backup_storage", "backup.storage", ARTICLE),
    alias("backup_schedule.compression", "backup.compression", ARTICLE),
    alias("backup_schedule.encryption", "backup.encryption", ARTICLE),
    alias("backup_config.*.*", "backup.*.*", ARTICLE),
    alias("automation_rules.auto_backup.*", "backup.auto.*", ARTICLE),
    alias("update_config.*", "update.*", ARTICLE),
    alias("automation_rules.auto_update.*", "update.*", ARTICLE),
    alias("monitoring_config.*", "monitoring.*", ARTICLE),
    alias("alert_rules.*", "alerts.*", ARTICLE),
    alias("notification_channels.*.*", "notifications.*.*", ARTICLE),
    alias("metrics.reporter.*.class", "metrics.reporter.*.factory.class", "Flink refuses this name in a log line"),
    // Nodes and connections.
    alias("pekko.ask.timeout", "rpc.ask.timeout", "Pekko's name"),
    alias("akka.ask.timeout", "rpc.ask.timeout", "Akka's name"),
    alias("jobmanager.web.port", "rest.port", DEPRECATED),
    alias("jobmanager.web.checkpoints.history", "web.checkpoints.history", DEPRECATED),
    alias("taskmanager.maxRegistrationDuration", "taskmanager.registration.timeout", DEPRECATED),
    alias("s3.access.key", "s3.access-key", "the other spelling"),
    alias("s3.secret.key", "s3.secret-key", "the other spelling"),
    alias("s3.session.token", "s3.session-token", "the other spelling"),
    alias("s3.path-style-access", "s3.path.style.access", "the other spelling"),
    alias("s3.endpoint.region", "s3.region", "Hadoop's name"),
    alias("fs.s3a.endpoint", "s3.endpoint", "Hadoop's name"),
    alias("fs.s3a.endpoint.region", "s3.region", "Hadoop's name"),
    alias("fs.s3a.access.key", "s3.access-key", "Hadoop's name"),
    alias("fs.s3a.secret.key", "s3.secret-key", "Hadoop's name"),
    alias("fs.s3a.session.token", "s3.session-token", "Hadoop's name"),
    alias("fs.s3a.path.style.access", "s3.path.style.access", "Hadoop's name"),
    alias("presto.s3.endpoint", "s3.endpoint", "Presto's name"),
    alias("presto.s3.access-key", "s3.access-key", "Presto's name"),
    alias("presto.s3.secret-key", "s3.secret-key", "Presto's name"),
    alias("presto.s3.session-token", "s3.session-token", "Presto's name"),
    alias("presto.s3.path-style-access", "s3.path.style.access", "Presto's name"),
];
