//! Settings in the making: keys set one field each, then [`Draft::finish`] derives what depends on several keys and checks what
//! must agree.
//!
//! Invariant: settings that leave `finish` without a complaint satisfy every bound that the rest of the code relies on. It reads no
//! source and knows no default: those are texts in the table of keys.

use std::time::Duration;

use crate::settings::{
    CheckpointSettings, CheckpointingMode, ClusterSettings, ExternalizedRetention,
    HeartbeatSettings, HighAvailability, JobSettings, RestartSettings, RestartStrategy, S3Settings,
    Secret, Settings,
};
use crate::value::NEVER;

/// `restart-strategy.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    None,
    FixedDelay,
    FailureRate,
    ExponentialDelay,
}

impl Strategy {
    /// Where its own keys begin.
    pub(crate) fn prefix(self) -> Option<&'static str> {
        match self {
            Strategy::None => None,
            Strategy::FixedDelay => Some("restart-strategy.fixed-delay."),
            Strategy::FailureRate => Some("restart-strategy.failure-rate."),
            Strategy::ExponentialDelay => Some("restart-strategy.exponential-delay."),
        }
    }
}

/// `high-availability.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HaType {
    None,
    File,
    S3,
}

/// The keys of all strategies, of which one will be chosen.
#[derive(Debug, Clone, Default)]
pub(crate) struct RestartDraft {
    pub(crate) strategy: Option<Strategy>,
    pub(crate) is_strict: bool,
    pub(crate) attempts: u32,
    pub(crate) fixed_delay: Duration,
    pub(crate) max_failures: u32,
    pub(crate) failure_interval: Duration,
    pub(crate) failure_delay: Duration,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) multiplier: f64,
    pub(crate) reset_threshold: Duration,
    pub(crate) jitter_factor: f64,
    pub(crate) attempts_before_reset: Option<u32>,
}

/// What the keys have said so far.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) cluster: ClusterSettings,
    pub(crate) job: JobSettings,
    pub(crate) restart: RestartDraft,
    pub(crate) ha_type: HaType,
    pub(crate) ha_directory: Option<String>,
    pub(crate) has_buffer_timeout: bool,
    pub(crate) wants_unaligned: bool,
    /// Lines about the key that is being set; the loader takes them.
    pub(crate) said: Vec<String>,
}

/// Settings that do not agree.
pub(crate) struct Complaint {
    /// The keys, so that a complaint about a value that was refused anyway can be left out.
    pub(crate) keys: [&'static str; 2],
    pub(crate) message: String,
}

/// What came of a draft.
pub(crate) struct Finished {
    pub(crate) settings: Settings,
    /// The strategy in force, chosen or by default.
    pub(crate) strategy: Strategy,
    /// What does not agree.
    pub(crate) complaints: Vec<Complaint>,
    /// A key and a line about it.
    pub(crate) remarks: Vec<(&'static str, String)>,
}

impl Draft {
    /// Holds nothing yet: every field is set by the default of its key, which a test proves.
    pub(crate) fn blank() -> Draft {
        Draft {
            cluster: ClusterSettings {
                cluster_id: String::new(),
                high_availability: HighAvailability::None,
                ha_directory: String::new(),
                lease_duration: Duration::ZERO,
                renew_interval: Duration::ZERO,
                rpc_address: String::new(),
                rpc_port: 0,
                rpc_bind_port: None,
                bind_host: String::new(),
                task_manager_host: String::new(),
                task_manager_bind_host: String::new(),
                data_port: 0,
                data_bind_port: None,
                resource_id: None,
                task_slots: 0,
                registration_timeout: Duration::ZERO,
                job_manager_grace: Duration::ZERO,
                managed_memory: 0,
                network_memory: 0,
                cluster_secret: Secret(String::new()),
                heartbeat: HeartbeatSettings {
                    interval: Duration::ZERO,
                    timeout: Duration::ZERO,
                    reconnect_window: Duration::ZERO,
                },
                ask_timeout: Duration::ZERO,
                s3: S3Settings {
                    endpoint: None,
                    region: None,
                    is_path_style: false,
                    access_key: None,
                    secret_key: None,
                    session_token: None,
                    connect_timeout: Duration::ZERO,
                    read_timeout: Duration::ZERO,
                    operation_timeout: Duration::ZERO,
                    max_retries: 0,
                    part_size: 0,
                },
                is_chaos_enabled: false,
            },
            job: JobSettings {
                parallelism: 0,
                max_parallelism: None,
                checkpointing: CheckpointSettings {
                    interval: None,
                    mode: CheckpointingMode::ExactlyOnce,
                    timeout: Duration::ZERO,
                    min_pause: Duration::ZERO,
                    max_concurrent: 0,
                    tolerable_failed: 0,
                    num_retained: 0,
                    retention: ExternalizedRetention::NoExternalizedCheckpoints,
                    is_incremental: false,
                    inline_threshold: 0,
                    directory: String::new(),
                    savepoint_directory: None,
                    allow_repeat: false,
                },
                restart: RestartSettings {
                    strategy: RestartStrategy::None,
                    is_strict: false,
                },
                buffer_timeout: Duration::ZERO,
                cancellation_timeout: Duration::ZERO,
                slot_request_timeout: Duration::ZERO,
                checkpoint_history_size: 0,
                exception_history_size: 0,
            },
            restart: RestartDraft::default(),
            ha_type: HaType::None,
            ha_directory: None,
            has_buffer_timeout: false,
            wants_unaligned: false,
            said: Vec::new(),
        }
    }

    /// Adds a line that is said about the key being set.
    pub(crate) fn say(&mut self, text: &str) {
        self.said.push(text.to_owned());
    }

    /// Derives and checks. `at` renders a key with its value and place.
    pub(crate) fn finish(mut self, at: &dyn Fn(&str) -> String) -> Finished {
        let mut complaints = Vec::new();
        let mut remarks = Vec::new();
        let strategy = self.finish_job(at, &mut complaints, &mut remarks);
        self.finish_cluster(at, &mut complaints, &mut remarks);
        Finished {
            settings: Settings {
                cluster: self.cluster,
                job: self.job,
            },
            strategy,
            complaints,
            remarks,
        }
    }

    fn finish_job(
        &mut self,
        at: &dyn Fn(&str) -> String,
        complaints: &mut Vec<Complaint>,
        remarks: &mut Vec<(&'static str, String)>,
    ) -> Strategy {
        if !self.has_buffer_timeout {
            self.job.buffer_timeout = NEVER;
        }
        let checkpointing = &mut self.job.checkpointing;
        if !checkpointing.min_pause.is_zero() && checkpointing.max_concurrent > 1 {
            checkpointing.max_concurrent = 1;
            remarks.push((
                "execution.checkpointing.max-concurrent-checkpoints",
                "1 is used, because execution.checkpointing.min-pause means one checkpoint at a time".to_owned(),
            ));
        }
        if self.wants_unaligned && checkpointing.mode == CheckpointingMode::AtLeastOnce {
            remarks.push((
                "execution.checkpointing.unaligned.enabled",
                "means nothing with execution.checkpointing.mode AT_LEAST_ONCE, which aligns no barriers".to_owned(),
            ));
        }
        if self
            .job
            .max_parallelism
            .is_some_and(|max| self.job.parallelism > max)
        {
            complaints.push(Complaint {
                keys: ["parallelism.default", "pipeline.max-parallelism"],
                message: format!(
                    "{} is above {}: raise the second or lower the first",
                    at("parallelism.default"),
                    at("pipeline.max-parallelism")
                ),
            });
        }
        let restart = &self.restart;
        // Flink's defaults.
        let strategy = restart
            .strategy
            .unwrap_or(match self.job.checkpointing.interval {
                Some(_) => Strategy::ExponentialDelay,
                None => Strategy::None,
            });
        if strategy == Strategy::ExponentialDelay && restart.initial_backoff > restart.max_backoff {
            complaints.push(Complaint {
                keys: [
                    "restart-strategy.exponential-delay.initial-backoff",
                    "restart-strategy.exponential-delay.max-backoff",
                ],
                message: format!(
                    "{} is above {}",
                    at("restart-strategy.exponential-delay.initial-backoff"),
                    at("restart-strategy.exponential-delay.max-backoff")
                ),
            });
        }
        self.job.restart = RestartSettings {
            is_strict: restart.is_strict,
            strategy: match strategy {
                Strategy::None => RestartStrategy::None,
                Strategy::FixedDelay => RestartStrategy::FixedDelay {
                    attempts: restart.attempts,
                    delay: restart.fixed_delay,
                },
                Strategy::FailureRate => RestartStrategy::FailureRate {
                    max_failures_per_interval: restart.max_failures,
                    interval: restart.failure_interval,
                    delay: restart.failure_delay,
                },
                Strategy::ExponentialDelay => RestartStrategy::ExponentialDelay {
                    initial_backoff: restart.initial_backoff,
                    max_backoff: restart.max_backoff,
                    multiplier: restart.multiplier,
                    reset_threshold: restart.reset_threshold,
                    jitter_factor: restart.jitter_factor,
                    attempts_before_reset: restart.attempts_before_reset,
                },
            },
        };
        strategy
    }

    fn finish_cluster(
        &mut self,
        at: &dyn Fn(&str) -> String,
        complaints: &mut Vec<Complaint>,
        remarks: &mut Vec<(&'static str, String)>,
    ) {
        let cluster = &mut self.cluster;
        let storage = self
            .ha_directory
            .take()
            .unwrap_or_else(|| format!("{}/ha", self.job.checkpointing.directory));
        // As in Flink: clusters with different ids share a storage directory.
        cluster.ha_directory = format!("{storage}/{}", cluster.cluster_id);
        cluster.high_availability = match self.ha_type {
            HaType::None => HighAvailability::None,
            HaType::File | HaType::S3 => HighAvailability::Store,
        };
        let scheme = match self.ha_type {
            HaType::None => "",
            HaType::File => "file://",
            HaType::S3 => "s3://",
        };
        if !cluster.ha_directory.starts_with(scheme) {
            complaints.push(Complaint {
                keys: ["high-availability.type", "high-availability.storageDir"],
                message: format!(
                    "{} needs a {scheme} directory, but {} gives {}",
                    at("high-availability.type"),
                    at("high-availability.storageDir"),
                    cluster.ha_directory
                ),
            });
        }
        if cluster.lease_duration <= cluster.renew_interval {
            complaints.push(Complaint {
                keys: [
                    "high-availability.lease-duration",
                    "high-availability.renew-interval",
                ],
                message: format!(
                    "{} must be longer than {}",
                    at("high-availability.lease-duration"),
                    at("high-availability.renew-interval")
                ),
            });
        }
        if cluster.heartbeat.timeout <= cluster.heartbeat.interval {
            complaints.push(Complaint {
                keys: ["heartbeat.timeout", "heartbeat.interval"],
                message: format!(
                    "{} must be longer than {}",
                    at("heartbeat.timeout"),
                    at("heartbeat.interval")
                ),
            });
        }
        let s3 = &cluster.s3;
        if s3.access_key.is_some() != s3.secret_key.is_some() {
            complaints.push(Complaint {
                keys: ["s3.access-key", "s3.secret-key"],
                message: "s3.access-key and s3.secret-key go together: set both or none".into(),
            });
        }
        if s3.session_token.is_some() && s3.access_key.is_none() {
            complaints.push(Complaint {
                keys: ["s3.session-token", "s3.access-key"],
                message:
                    "s3.session-token belongs to an s3.access-key and s3.secret-key: set them too"
                        .into(),
            });
        }
        if s3.operation_timeout < s3.connect_timeout {
            complaints.push(Complaint {
                keys: ["s3.operation.timeout", "s3.connection.timeout"],
                message: format!(
                    "{} must be at least {}",
                    at("s3.operation.timeout"),
                    at("s3.connection.timeout")
                ),
            });
        }
        if cluster.cluster_secret.0.is_empty() {
            let open = [&cluster.bind_host, &cluster.task_manager_bind_host]
                .into_iter()
                .find(|host| !is_loopback(host));
            let text = match open {
                Some(host) => format!(
                    "no cluster secret set, and the node listens on {host}: whoever reaches it can run jobs"
                ),
                None => {
                    "no cluster secret set: whoever reaches this machine's own ports can run jobs"
                        .to_owned()
                }
            };
            remarks.push(("security.cluster-secret", text));
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
