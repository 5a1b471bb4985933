//! Keys of a node. Each fills [`ClusterSettings`](crate::ClusterSettings).

use super::job::{count, expected, positive, size};
use super::{Key, Kind, Refusal, Scope, Set};
use crate::draft::HaType;
use crate::settings::Secret;
use crate::value::{fold, parse_count, parse_directory, parse_duration, parse_flag};

/// The smallest part that S3 accepts in a multipart upload, but for the last.
const S3_PART_BYTES_MIN: u64 = 5 << 20;
/// The largest part that S3 accepts.
const S3_PART_BYTES_MAX: u64 = 5 << 30;
/// The least memory that a budget may have: below it a single batch would not fit.
const BUDGET_BYTES_MIN: u64 = 1 << 20;
/// Slots are threads.
const SLOTS_MAX: i64 = 1024;

const fn node(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    note: &'static str,
    set: Set,
) -> Key {
    super::native(Scope::Cluster, name, kind, default, note, set)
}

pub(super) const KEYS: &[Key] = &[
    node(
        "high-availability.type",
        Kind::Word,
        Some("none"),
        "none, file or s3: leadership lies in high-availability.storageDir",
        |d, v| {
            d.ha_type = match fold(v).as_str() {
                "none" => HaType::None,
                "file" => HaType::File,
                "s3" => HaType::S3,
                "kubernetes" => {
                    return Err(Refusal::NotYet(
                        "leadership by a Kubernetes lease is not built; use s3, which needs nothing but the bucket",
                    ));
                }
                "zookeeper" => {
                    return Err(Refusal::NotYet(
                        "leadership by ZooKeeper is not built; use s3 or file, which need no other service",
                    ));
                }
                _ => return Err(expected("none, file or s3")),
            };
            Ok(())
        },
    ),
    node(
        "high-availability.storageDir",
        Kind::Directory,
        None,
        "leadership, graphs and results, under the cluster id; unset: <execution.checkpointing.dir>/ha",
        |d, v| {
            d.ha_directory = Some(parse_directory(v)?);
            Ok(())
        },
    ),
    node(
        "high-availability.cluster-id",
        Kind::Text,
        Some("default"),
        "clusters with different ids share a directory",
        |d, v| {
            d.cluster.cluster_id = name(v.trim_matches('/'))?;
            Ok(())
        },
    ),
    node(
        "high-availability.lease-duration",
        Kind::Duration,
        Some("5s"),
        "a leader that is silent for longer may be replaced",
        |d, v| {
            d.cluster.lease_duration = positive(v)?;
            Ok(())
        },
    ),
    node(
        "high-availability.renew-interval",
        Kind::Duration,
        Some("1s"),
        "how often a leader renews",
        |d, v| {
            d.cluster.renew_interval = positive(v)?;
            Ok(())
        },
    ),
    node(
        "jobmanager.rpc.address",
        Kind::Text,
        Some("localhost"),
        "where TaskManagers and clients find the JobManager",
        |d, v| {
            d.cluster.rpc_address = host(v)?;
            Ok(())
        },
    ),
    node(
        "jobmanager.rpc.port",
        Kind::Count,
        Some("6123"),
        "0 takes a free one",
        |d, v| {
            d.cluster.rpc_port = port(v)?;
            Ok(())
        },
    ),
    node(
        "jobmanager.rpc.bind-port",
        Kind::Count,
        None,
        "where the JobManager listens; unset: on jobmanager.rpc.port",
        |d, v| {
            d.cluster.rpc_bind_port = Some(port(v)?);
            Ok(())
        },
    ),
    node(
        "jobmanager.bind-host",
        Kind::Text,
        Some("localhost"),
        "the interface the JobManager listens on; 0.0.0.0: all",
        |d, v| {
            d.cluster.bind_host = host(v)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.host",
        Kind::Text,
        Some("localhost"),
        "the name that peers reach this TaskManager by",
        |d, v| {
            d.cluster.task_manager_host = host(v)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.bind-host",
        Kind::Text,
        Some("localhost"),
        "the interface a TaskManager listens on; 0.0.0.0: all",
        |d, v| {
            d.cluster.task_manager_bind_host = host(v)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.data.port",
        Kind::Count,
        Some("0"),
        "0 takes a free one",
        |d, v| {
            d.cluster.data_port = port(v)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.data.bind-port",
        Kind::Count,
        None,
        "where a TaskManager listens; unset: on taskmanager.data.port",
        |d, v| {
            d.cluster.data_bind_port = Some(port(v)?);
            Ok(())
        },
    ),
    node(
        "taskmanager.resource-id",
        Kind::Text,
        None,
        "a name that outlives the process; unset: drawn at start",
        |d, v| {
            d.cluster.resource_id = Some(name(v)?);
            Ok(())
        },
    ),
    node(
        "taskmanager.numberOfTaskSlots",
        Kind::Count,
        Some("1"),
        "subtasks of one operator that a TaskManager takes",
        |d, v| {
            d.cluster.task_slots = count(v, 1, SLOTS_MAX)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.registration.timeout",
        Kind::Duration,
        Some("5min"),
        "a TaskManager that finds no JobManager for so long ends",
        |d, v| {
            d.cluster.registration_timeout = positive(v)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.jobmanager-grace",
        Kind::Duration,
        Some("60s"),
        "how long tasks run on without a JobManager",
        |d, v| {
            d.cluster.job_manager_grace = parse_duration(v)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.memory.managed.size",
        Kind::Size,
        Some("512mb"),
        "divided by the slots: bound of the pre-image log of each keyed operator in a slot",
        |d, v| {
            d.cluster.managed_memory = size(v, BUDGET_BYTES_MIN, 1 << 50)?;
            Ok(())
        },
    ),
    node(
        "taskmanager.memory.network.size",
        Kind::Size,
        Some("128mb"),
        "bound of received, not yet processed data of a TaskManager",
        |d, v| {
            d.cluster.network_memory = size(v, BUDGET_BYTES_MIN, 1 << 50)?;
            Ok(())
        },
    ),
    node(
        "security.cluster-secret",
        Kind::Secret,
        Some(""),
        "shared secret of all nodes and clients of a cluster",
        |d, v| {
            d.cluster.cluster_secret = Secret(v.to_owned());
            Ok(())
        },
    ),
    node(
        "heartbeat.interval",
        Kind::Duration,
        Some("1s"),
        "between two heartbeats (Flink: 10s)",
        |d, v| {
            d.cluster.heartbeat.interval = positive(v)?;
            Ok(())
        },
    ),
    node(
        "heartbeat.timeout",
        Kind::Duration,
        Some("3s"),
        "a peer that is silent for longer is lost (Flink: 50s)",
        |d, v| {
            d.cluster.heartbeat.timeout = positive(v)?;
            Ok(())
        },
    ),
    node(
        "heartbeat.reconnect-window",
        Kind::Duration,
        Some("1s"),
        "how long a TaskManager whose connection broke may take to come back",
        |d, v| {
            d.cluster.heartbeat.reconnect_window = parse_duration(v)?;
            Ok(())
        },
    ),
    node(
        "rpc.ask.timeout",
        Kind::Duration,
        Some("10s"),
        "deadline of a request between nodes",
        |d, v| {
            d.cluster.ask_timeout = positive(v)?;
            Ok(())
        },
    ),
    node(
        "s3.endpoint",
        Kind::Text,
        None,
        "URL of an S3 server other than AWS; else AWS_ENDPOINT_URL",
        |d, v| {
            let is_url = ["http://", "https://"].iter().any(|scheme| {
                v.trim()
                    .strip_prefix(scheme)
                    .is_some_and(|rest| !rest.is_empty())
            });
            if !is_url {
                return Err(expected("a URL, like http://localhost:9000"));
            }
            d.cluster.s3.endpoint = Some(v.trim().trim_end_matches('/').to_owned());
            Ok(())
        },
    ),
    node(
        "s3.region",
        Kind::Text,
        None,
        "region of the buckets; else AWS_REGION",
        |d, v| {
            d.cluster.s3.region = Some(name(v)?);
            Ok(())
        },
    ),
    node(
        "s3.path.style.access",
        Kind::Flag,
        Some("false"),
        "the bucket is part of the path, as most S3 servers but AWS need it",
        |d, v| {
            d.cluster.s3.is_path_style = parse_flag(v)?;
            Ok(())
        },
    ),
    node(
        "s3.access-key",
        Kind::Secret,
        None,
        "else AWS_ACCESS_KEY_ID",
        |d, v| {
            d.cluster.s3.access_key = Some(not_empty(v)?);
            Ok(())
        },
    ),
    node(
        "s3.secret-key",
        Kind::Secret,
        None,
        "else AWS_SECRET_ACCESS_KEY",
        |d, v| {
            d.cluster.s3.secret_key = Some(Secret(not_empty(v)?));
            Ok(())
        },
    ),
    node(
        "s3.session-token",
        Kind::Secret,
        None,
        "of temporary credentials, which are not renewed: they must outlive the process; else AWS_SESSION_TOKEN",
        |d, v| {
            d.cluster.s3.session_token = Some(Secret(not_empty(v)?));
            Ok(())
        },
    ),
    node(
        "s3.connection.timeout",
        Kind::Duration,
        Some("5s"),
        "to open a connection",
        |d, v| {
            d.cluster.s3.connect_timeout = positive(v)?;
            Ok(())
        },
    ),
    node(
        "s3.socket.timeout",
        Kind::Duration,
        Some("30s"),
        "longest silence while reading",
        |d, v| {
            d.cluster.s3.read_timeout = positive(v)?;
            Ok(())
        },
    ),
    node(
        "s3.operation.timeout",
        Kind::Duration,
        Some("60s"),
        "one operation with its retries",
        |d, v| {
            d.cluster.s3.operation_timeout = positive(v)?;
            Ok(())
        },
    ),
    node(
        "s3.retry.max-num-retries",
        Kind::Count,
        Some("4"),
        "retries of one operation",
        |d, v| {
            d.cluster.s3.max_retries = count(v, 0, 100)?;
            Ok(())
        },
    ),
    node(
        "s3.upload.min.part.size",
        Kind::Size,
        Some("8mb"),
        "objects from this size go in parts",
        |d, v| {
            d.cluster.s3.part_size = size(v, S3_PART_BYTES_MIN, S3_PART_BYTES_MAX)?;
            Ok(())
        },
    ),
    node(
        "chaos.enabled",
        Kind::Flag,
        Some("false"),
        "clients may inject faults; never in production",
        |d, v| {
            d.cluster.is_chaos_enabled = parse_flag(v)?;
            Ok(())
        },
    ),
];

fn port(text: &str) -> Result<u16, Refusal> {
    let number = parse_count(text, 0, i64::from(u16::MAX))?;
    u16::try_from(number).map_err(|_| expected("a port from 0 to 65535"))
}

fn not_empty(text: &str) -> Result<String, Refusal> {
    match text.trim() {
        "" => Err(expected("a text that is not empty")),
        text => Ok(text.to_owned()),
    }
}

/// A name becomes part of paths and messages.
fn name(text: &str) -> Result<String, Refusal> {
    let text = not_empty(text)?;
    let is_plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if is_plain && text.len() <= 128 && !text.starts_with('.') {
        Ok(text)
    } else {
        Err(expected(
            "a name of at most 128 letters, digits, '-', '_' or '.'",
        ))
    }
}

fn host(text: &str) -> Result<String, Refusal> {
    let text = not_empty(text)?;
    let is_host = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.:[]%".contains(c));
    if is_host && text.len() <= 253 {
        Ok(text)
    } else {
        Err(expected("a host name or an IP address"))
    }
}
