//! Keys that are accepted and have no effect, because what they adjust exists only in the JVM, Netty or Pekko; and keys that are
//! refused for good because they would mislead.

use super::{Key, Kind, Meaning};

const fn ignored(name: &'static str, kind: Kind, note: &'static str) -> Key {
    Key {
        name,
        kind,
        default: None,
        note,
        meaning: Meaning::Ignored,
    }
}

const fn rejected(name: &'static str, note: &'static str) -> Key {
    Key {
        name,
        kind: Kind::Text,
        default: None,
        note,
        meaning: Meaning::Rejected,
    }
}

const JVM: &str = "there is no JVM";
const NETTY: &str = "there is no Netty";
const PEKKO: &str = "there is no Pekko";
const BLOB: &str = "there is no blob server; user code is linked into the binary";
const BATCH: &str = "streams have no sort shuffle";

// One line per key, so that the table can be read and searched as one.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    ignored("JAVA_OPTS", Kind::Text, JVM),
    ignored("env.java.**", Kind::Text, JVM),
    ignored("env.hadoop.conf.dir", Kind::Text, "there is no Hadoop"),
    ignored("env.yarn.conf.dir", Kind::Text, "there is no YARN"),
    ignored("env.log.dir", Kind::Text, "logs go to standard error"),
    ignored("env.log.max", Kind::Count, "logs go to standard error"),
    ignored("env.pid.dir", Kind::Text, "a node stays in the foreground"),
    ignored("env.ssh.opts", Kind::Text, "nodes are not started by SSH"),
    ignored("taskmanager.memory.jvm-metaspace.size", Kind::Size, JVM),
    ignored("taskmanager.memory.jvm-overhead.fraction", Kind::Share, JVM),
    ignored("taskmanager.memory.jvm-overhead.min", Kind::Size, JVM),
    ignored("taskmanager.memory.jvm-overhead.max", Kind::Size, JVM),
    ignored("taskmanager.memory.framework.heap.size", Kind::Size, JVM),
    ignored("taskmanager.memory.framework.off-heap.size", Kind::Size, JVM),
    ignored("jobmanager.memory.jvm-metaspace.size", Kind::Size, JVM),
    ignored("jobmanager.memory.jvm-overhead.fraction", Kind::Share, JVM),
    ignored("jobmanager.memory.jvm-overhead.min", Kind::Size, JVM),
    ignored("jobmanager.memory.jvm-overhead.max", Kind::Size, JVM),
    ignored("jobmanager.memory.heap.size", Kind::Size, JVM),
    ignored("jobmanager.memory.off-heap.size", Kind::Size, JVM),
    ignored("jobmanager.memory.flink.size", Kind::Size, JVM),
    ignored("taskmanager.jvm-exit-on-oom", Kind::Flag, JVM),
    ignored("taskmanager.debug.memory.log", Kind::Flag, JVM),
    ignored("taskmanager.debug.memory.log-interval", Kind::Duration, JVM),
    ignored("cluster.uncaught-exception-handling", Kind::Word, JVM),
    ignored("classloader.**", Kind::Text, "there is no class loader"),
    ignored("taskmanager.network.netty.num-arenas", Kind::Count, NETTY),
    ignored("taskmanager.network.netty.transport", Kind::Word, NETTY),
    ignored("taskmanager.network.netty.sendReceiveBufferSize", Kind::Count, NETTY),
    ignored("taskmanager.network.sort-shuffle.min-parallelism", Kind::Count, BATCH),
    ignored("taskmanager.network.sort-shuffle.min-buffers", Kind::Count, BATCH),
    ignored("taskmanager.network.batch-shuffle.compression.enabled", Kind::Flag, BATCH),
    ignored("taskmanager.rpc.port", Kind::Ports, "a TaskManager connects to the JobManager and listens for data only"),
    ignored("taskmanager.rpc.bind-port", Kind::Ports, "a TaskManager connects to the JobManager and listens for data only"),
    ignored("pekko.**", Kind::Text, PEKKO),
    ignored("akka.**", Kind::Text, PEKKO),
    ignored("blob.**", Kind::Text, BLOB),
    ignored("web.tmpdir", Kind::Text, BLOB),
    ignored("pipeline.object-reuse", Kind::Flag, "records move, they are never copied between chained operators"),
    ignored("pipeline.generic-types", Kind::Flag, "types are known when the job is compiled"),
    ignored("pipeline.jars", Kind::List, "user code is linked into the binary"),
    ignored("pipeline.classpaths", Kind::List, "user code is linked into the binary"),
    ignored("pipeline.serialization-config", Kind::List, "types are known when the job is compiled"),
    ignored("execution.attached", Kind::Flag, "the command says whether it waits"),
    ignored("execution.target", Kind::Text, "the command says where the job runs"),
    ignored("zookeeper.sasl.**", Kind::Text, "there is no ZooKeeper"),
    ignored("yarn.**", Kind::Text, "there is no YARN"),
    rejected("state.backend.rocksdb.block.cache-size-per-column-family", "RocksDB shares one cache; set state.backend.rocksdb.block.cache-size"),
    rejected("taskmanager.heap.size", "there is no heap to size; set taskmanager.memory.managed.size"),
    rejected("taskmanager.heap.mb", "there is no heap to size; set taskmanager.memory.managed.size"),
    rejected("jobmanager.heap.size", "there is no heap to size; leave it out, as jobmanager.memory.heap.size"),
    rejected("taskmanager.memory.size", "set taskmanager.memory.managed.size"),
    rejected("taskmanager.memory.fraction", "set taskmanager.memory.managed.size"),
    rejected("taskmanager.network.numberOfBuffers", "buffers are counted in bytes; set taskmanager.memory.network.size"),
    rejected("restart-strategy.fixed-delay.max-attempts", "set restart-strategy.fixed-delay.attempts"),
    rejected("restart-strategy.exponential-delay.max-attempts", "set restart-strategy.exponential-delay.attempts-before-reset-backoff"),
    rejected("execution.checkpointing.max-concurrent", "set execution.checkpointing.max-concurrent-checkpoints"),
    rejected("execution.checkpointing.prefer-checkpoint-for-recovery", "the newest completed state is always used first; see recovery.ladder.allow-repeat"),
    rejected("jobmanager.rpc.host", "set jobmanager.rpc.address"),
    rejected("s3.bucket", "the bucket is part of the URI; set execution.checkpointing.dir"),
];
