//! Loading: which source wins, what is refused with which words, what is said, what is never shown.

use std::time::Duration;

use perennial_config::value::NEVER;
use perennial_config::*;
use proptest::prelude::*;

fn file(content: &str) -> Sources {
    Sources {
        file: Some(ConfigFile::new("config.yaml", content)),
        ..Sources::default()
    }
}

fn refusal(sources: &Sources) -> String {
    Settings::load(sources).expect_err("a refusal").to_string()
}

fn refusal_of(pairs: &[(&str, &str)]) -> String {
    Settings::with(pairs).expect_err("a refusal").to_string()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

// Every field is written out, so that a key without a default, or a default that fills nothing, shows.
#[test]
fn the_defaults_are_those_that_are_documented() {
    let loaded = Settings::load(&Sources::default()).unwrap();
    let expected = Settings {
        cluster: ClusterSettings {
            cluster_id: "default".into(),
            high_availability: HighAvailability::None,
            ha_directory: "file:///tmp/perennial/checkpoints/ha/default".into(),
            lease_duration: seconds(5),
            renew_interval: seconds(1),
            rpc_address: "localhost".into(),
            rpc_port: 6123,
            rpc_bind_port: None,
            bind_host: "localhost".into(),
            task_manager_host: "localhost".into(),
            task_manager_bind_host: "localhost".into(),
            data_port: 0,
            data_bind_port: None,
            resource_id: None,
            task_slots: 1,
            registration_timeout: seconds(300),
            job_manager_grace: seconds(60),
            managed_memory: 512 << 20,
            network_memory: 128 << 20,
            cluster_secret: Secret(String::new()),
            heartbeat: HeartbeatSettings {
                interval: seconds(1),
                timeout: seconds(3),
                reconnect_window: seconds(1),
            },
            ask_timeout: seconds(10),
            s3: S3Settings {
                endpoint: None,
                region: None,
                is_path_style: false,
                access_key: None,
                secret_key: None,
                session_token: None,
                connect_timeout: seconds(5),
                read_timeout: seconds(30),
                operation_timeout: seconds(60),
                max_retries: 4,
                part_size: 8 << 20,
            },
            is_chaos_enabled: false,
        },
        job: JobSettings {
            parallelism: 1,
            max_parallelism: None,
            checkpointing: CheckpointSettings {
                interval: None,
                mode: CheckpointingMode::ExactlyOnce,
                timeout: seconds(600),
                min_pause: Duration::ZERO,
                max_concurrent: 1,
                tolerable_failed: 0,
                num_retained: 1,
                retention: ExternalizedRetention::NoExternalizedCheckpoints,
                is_incremental: true,
                inline_threshold: 20 << 10,
                directory: "file:///tmp/perennial/checkpoints".into(),
                savepoint_directory: None,
                allow_repeat: false,
            },
            restart: RestartSettings {
                strategy: RestartStrategy::None,
                is_strict: false,
            },
            buffer_timeout: Duration::from_millis(100),
            cancellation_timeout: seconds(180),
            slot_request_timeout: seconds(300),
            checkpoint_history_size: 10,
            exception_history_size: 16,
        },
    };
    assert_eq!(loaded.settings, expected);
    assert_eq!(Settings::default(), expected);
    assert_eq!(loaded.notices.len(), 1, "{:?}", loaded.notices);
    assert!(loaded.notices[0].text.contains("no cluster secret set"));
    assert!(loaded.table.iter().all(|row| !row.is_set()));
}

// One key in all layers; then the strongest layer is taken away, again and again.
#[test]
fn a_stronger_source_wins_and_the_table_says_by_which_it_was_overridden() {
    let mut sources = file("parallelism.default: 3\n");
    sources.profile = Some("development".into());
    sources.environment = Environment::new([
        ("PERENNIAL_PROPERTIES", "parallelism.default: 4"),
        ("PERENNIAL_PARALLELISM_DEFAULT", "5"),
    ]);
    sources.set("parallelism.default=6").unwrap();
    sources.set("parallelism.default=7").unwrap();
    let parallelism = |sources: &Sources| Settings::load(sources).unwrap().settings.job.parallelism;

    let loaded = Settings::load(&sources).unwrap();
    let (job, _) = loaded.job(&[("parallelism.default", "8")]).unwrap();
    assert_eq!(job.parallelism, 7);
    assert_eq!(loaded.settings.job.parallelism, 7);
    let rows: Vec<_> = loaded
        .table
        .iter()
        .filter(|row| row.key == "parallelism.default")
        .collect();
    let shown: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", row.value, row.origin))
        .collect();
    assert_eq!(
        shown,
        [
            "2 profile development:5",
            "3 config.yaml:1",
            "4 env PERENNIAL_PROPERTIES:1",
            "5 env PERENNIAL_PARALLELISM_DEFAULT",
            "6 -D",
            "7 -D"
        ]
    );
    assert!(rows[..5].iter().all(|row| row.overridden_by.is_some()));
    assert_eq!(rows[5].overridden_by, None);

    sources.overrides.clear();
    assert_eq!(parallelism(&sources), 5);
    let loaded = Settings::load(&sources).unwrap();
    let (job, _) = loaded.job(&[("parallelism.default", "8")]).unwrap();
    assert_eq!(job.parallelism, 8);
    sources.environment = Environment::new([("FLINK_PROPERTIES", "parallelism.default: 4")]);
    assert_eq!(parallelism(&sources), 4);
    sources.environment = Environment::default();
    assert_eq!(parallelism(&sources), 3);
    sources.file = None;
    assert_eq!(parallelism(&sources), 2);
    sources.profile = None;
    assert_eq!(parallelism(&sources), 1);
}

#[test]
fn all_errors_of_all_sources_come_together_with_file_and_line() {
    let mut sources = file(
        "paralelism.default: 4\nstate.backend: rocksdb\nheartbeat.interval: soon\nheartbeat.timeout: 1s\n\
         heartbeat.timeout: 2s\ntaskmanager:\n  heap.size: 1g\nbroken\n",
    );
    sources.profile = Some("prod".into());
    sources.set("nonsense=1").unwrap();
    let text = refusal(&sources);
    for expected in [
        "refused for 8 reasons",
        "unknown profile prod; there are: development, staging, production",
        "config.yaml:1: unknown key paralelism.default; did you mean parallelism.default?",
        "config.yaml:2: NOT YET: state.backend (means state.backend.type): the RocksDB backend is not built; use hashmap",
        "config.yaml:3: heartbeat.interval: \"soon\": expected",
        "config.yaml:5: key heartbeat.timeout is set twice, first at config.yaml:4",
        "config.yaml:7: taskmanager.heap.size is not accepted",
        "config.yaml:8: not valid YAML",
        "-D: unknown key nonsense",
    ] {
        assert!(text.contains(expected), "{expected}\nis not in\n{text}");
    }
}

/// A job's code cannot be changed by whoever runs it: the other name of a key is as good as its own.
#[test]
fn an_override_by_another_name_wins_over_the_job() {
    let mut sources = Sources::default();
    sources.set("state.checkpoints.dir=/theirs").unwrap();
    let loaded = Settings::load(&sources).unwrap();
    let (job, _) = loaded
        .job(&[("execution.checkpointing.dir", "/ours")])
        .unwrap();
    assert!(job.checkpointing.directory.ends_with("/theirs"));
}

#[test]
fn two_names_of_one_setting_may_agree_but_not_contradict() {
    let agreed =
        file("state.backend: memory\nstate.checkpoints.dir: /a\nexecution.checkpointing.dir: /a\n");
    assert!(Settings::load(&agreed).is_ok());
    let text = refusal(&file(
        "state.checkpoints.dir: /a\nexecution.checkpointing.dir: /b\n",
    ));
    assert!(text.contains("config.yaml:2: execution.checkpointing.dir contradicts state.checkpoints.dir at config.yaml:1"), "{text}");
    let text = refusal(&file(
        "state.backend.rocksdb.wal.enabled: true\nstate.backend.rocksdb.writeoptions.disable-wal: true\n",
    ));
    assert!(text.contains("contradicts"), "{text}");
    let text = refusal(&file(
        "state.checkpoints.dir: /a\nexecution.checkpointing.dir: /A\n",
    ));
    assert!(text.contains("contradicts"), "{text}");
    // In different sources it is not a contradiction but an override.
    let mut sources = file("state.checkpoints.dir: /a\n");
    sources.set("execution.checkpointing.dir=/b").unwrap();
    let settings = Settings::load(&sources).unwrap().settings;
    assert_eq!(settings.job.checkpointing.directory, "file:///b");
}

#[test]
fn what_is_not_built_refuses_only_where_it_would_be_in_force() {
    let mut sources = file("state.backend: rocksdb\nhigh-availability: zookeeper\n");
    assert!(refusal(&sources).contains("refused for 2 reasons"));
    sources.set("state.backend=hashmap").unwrap();
    sources.set("high-availability.type=none").unwrap();
    Settings::load(&sources).unwrap();
    // The value that says what happens anyway is no wish for something else.
    Settings::with(&[
        ("execution.savepoint.trigger", "MANUAL"),
        ("job.autoscaler.enabled", "false"),
    ])
    .unwrap();
    for (key, value) in [
        ("execution.savepoint.trigger", "periodic"),
        ("execution.checkpointing.aligned-checkpoint-timeout", "0s"),
        ("rest.port", "8081"),
        ("metrics.reporter.anything.port", "9249-9260"),
        ("kubernetes.cluster-id", "x"),
    ] {
        assert!(
            refusal_of(&[(key, value)]).contains(&format!("NOT YET: {key}")),
            "{key}"
        );
    }
    // Its syntax is checked all the same.
    assert!(refusal_of(&[("rest.port", "http")]).contains("whole number"));
}

#[test]
fn unaligned_checkpoints_are_accepted_with_a_notice() {
    for key in [
        "execution.checkpointing.unaligned",
        "execution.checkpointing.unaligned.enabled",
    ] {
        let loaded = Settings::load(&file(&format!("{key}: true\n"))).unwrap();
        let lines: Vec<_> = loaded.notices.iter().map(ToString::to_string).collect();
        assert!(
            lines
                .iter()
                .any(|line| line.contains("runs aligned until unaligned barriers exist")),
            "{lines:?}"
        );
    }
}

#[test]
fn aliases_and_keys_without_effect_are_told_in_one_line_each() {
    let loaded = Settings::load(&file(
        "state.backend: memory\nenv.java.opts.all: -Xmx1g\npekko.framesize: 1b\n",
    ))
    .unwrap();
    let lines: Vec<_> = loaded.notices.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(
        lines[0],
        "config.yaml:1: state.backend: memory is read as state.backend.type (Flink's deprecated name)"
    );
    assert_eq!(
        lines[1],
        "config.yaml:2: env.java.opts.all has no effect: there is no JVM"
    );
    assert!(lines.iter().all(|line| !line.contains('\n')));
}

#[test]
fn the_restart_strategy_follows_the_choice_else_the_checkpoints() {
    let strategy = |pairs: &[(&str, &str)]| Settings::with(pairs).unwrap().job.restart.strategy;
    let on = ("execution.checkpointing.interval", "10s");
    assert_eq!(strategy(&[]), RestartStrategy::None);
    assert_eq!(
        strategy(&[("execution.checkpointing.interval", "0")]),
        RestartStrategy::None
    );
    assert_eq!(
        strategy(&[on]),
        RestartStrategy::ExponentialDelay {
            initial_backoff: seconds(1),
            max_backoff: seconds(60),
            multiplier: 1.5,
            reset_threshold: seconds(3600),
            jitter_factor: 0.1,
            attempts_before_reset: None,
        }
    );
    for word in ["none", "off", "DISABLE"] {
        assert_eq!(
            strategy(&[on, ("restart-strategy", word)]),
            RestartStrategy::None
        );
    }
    for word in ["fixed-delay", "fixeddelay", "FIXED_DELAY"] {
        let expected = RestartStrategy::FixedDelay {
            attempts: 1,
            delay: seconds(1),
        };
        assert_eq!(strategy(&[("restart-strategy.type", word)]), expected);
    }
    for word in ["failure-rate", "failurerate"] {
        let expected = RestartStrategy::FailureRate {
            max_failures_per_interval: 1,
            interval: seconds(60),
            delay: seconds(1),
        };
        assert_eq!(strategy(&[("restart-strategy.type", word)]), expected);
    }
    let limited = strategy(&[
        ("restart-strategy", "exponentialdelay"),
        (
            "restart-strategy.exponential-delay.attempts-before-reset-backoff",
            "5",
        ),
    ]);
    assert!(matches!(
        limited,
        RestartStrategy::ExponentialDelay {
            attempts_before_reset: Some(5),
            ..
        }
    ));
}

#[test]
fn parameters_of_a_strategy_that_is_not_chosen_are_told() {
    let loaded = Settings::load(&file("restart-strategy.fixed-delay.attempts: 3\n")).unwrap();
    assert!(loaded.notices.iter().any(|notice| {
        notice
            .text
            .contains("restart-strategy.fixed-delay.attempts is not used")
    }));
}

#[test]
fn the_odd_values_of_flink_mean_what_they_mean_there() {
    let job = |key: &str, value: &str| Settings::with(&[(key, value)]).unwrap().job;
    assert_eq!(
        job("execution.buffer-timeout", "0").buffer_timeout,
        Duration::ZERO
    );
    assert_eq!(job("execution.buffer-timeout", "-1").buffer_timeout, NEVER);
    assert_eq!(
        job("execution.buffer-timeout.enabled", "false").buffer_timeout,
        NEVER
    );
    assert_eq!(
        job("task.cancellation.timeout", "0").cancellation_timeout,
        NEVER
    );
    assert_eq!(job("pipeline.max-parallelism", "-1").max_parallelism, None);
    assert_eq!(
        job("execution.checkpointing.num-retained", "0")
            .checkpointing
            .num_retained,
        1
    );
    assert_eq!(
        job("execution.checkpointing.mode", "at-least-once")
            .checkpointing
            .mode,
        CheckpointingMode::AtLeastOnce
    );
    let pause = Settings::with(&[
        ("execution.checkpointing.min-pause", "1s"),
        ("execution.checkpointing.max-concurrent-checkpoints", "3"),
    ]);
    assert_eq!(pause.unwrap().job.checkpointing.max_concurrent, 1);
}

// Each pair of settings breaks one rule between keys or one bound; the words must name the key.
#[test]
fn values_out_of_bounds_and_settings_that_disagree_are_refused_by_name() {
    let exponential = ("restart-strategy", "exponential-delay");
    for (pairs, word) in [
        (
            vec![
                exponential,
                ("restart-strategy.exponential-delay.initial-backoff", "2min"),
            ],
            "max-backoff (1min, default)",
        ),
        (
            vec![(
                "restart-strategy.exponential-delay.backoff-multiplier",
                "1.0",
            )],
            "above 1",
        ),
        (
            vec![("restart-strategy.exponential-delay.jitter-factor", "1.5")],
            "jitter-factor",
        ),
        (
            vec![(
                "restart-strategy.exponential-delay.attempts-before-reset-backoff",
                "0",
            )],
            "attempts-before-reset",
        ),
        (
            vec![("heartbeat.interval", "3s")],
            "heartbeat.timeout (3s, default) must be longer than heartbeat.interval (3s, -D)",
        ),
        (
            vec![
                ("parallelism.default", "9"),
                ("pipeline.max-parallelism", "8"),
            ],
            "pipeline.max-parallelism (8, -D)",
        ),
        (vec![("parallelism.default", "0")], "1 to 32768"),
        (vec![("jobmanager.rpc.port", "65536")], "0 to 65535"),
        (vec![("jobmanager.rpc.bind-port", "-1")], "0 to 65535"),
        (
            vec![("taskmanager.data.bind-port", "50100-50200")],
            "taskmanager.data.bind-port",
        ),
        (
            vec![("execution.checkpointing.interval", "9ms")],
            "at least 10ms",
        ),
        (
            vec![("execution.checkpointing.max-concurrent-checkpoints", "0")],
            "1 to 100",
        ),
        (
            vec![("high-availability.type", "s3")],
            "needs a s3:// directory",
        ),
        (
            vec![("high-availability.renew-interval", "5s")],
            "high-availability.lease-duration (5s, default)",
        ),
        (vec![("s3.access-key", "a")], "go together"),
        (vec![("s3.upload.min.part.size", "1mb")], "5mb"),
        (vec![("s3.endpoint", "localhost:9000")], "URL"),
        (
            vec![("high-availability.cluster-id", "../other")],
            "letters",
        ),
        (vec![("execution.checkpointing.dir", "hdfs://x/y")], "hdfs"),
    ] {
        let text = refusal_of(&pairs);
        assert!(text.contains(word), "{word}\nis not in\n{text}");
    }
}

#[test]
fn s3_falls_back_to_the_variables_of_aws_and_only_where_nothing_is_set() {
    let environment = Environment::new([
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", "http://aws:1"),
    ]);
    let sources = Sources {
        environment,
        ..file("s3.endpoint: http://mine:2/\n")
    };
    let s3 = Settings::load(&sources).unwrap().settings.cluster.s3;
    assert_eq!(s3.access_key.as_deref(), Some("id"));
    assert_eq!(s3.secret_key, Some(Secret("hidden".into())));
    assert_eq!(s3.region.as_deref(), Some("us-east-1"));
    assert_eq!(s3.endpoint.as_deref(), Some("http://mine:2"));
}

/// The token belongs to the key that stands beside it, and never goes with another's.
#[test]
fn a_session_token_goes_with_its_own_access_key_only() {
    let environment = Environment::new([
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("AWS_SESSION_TOKEN", "token"),
    ]);
    let mut sources = Sources {
        environment,
        ..Sources::default()
    };
    let token = |sources: &Sources| {
        let loaded = Settings::load(sources).unwrap();
        assert!(!format!("{:?}", loaded.table).contains("\"token\""));
        loaded.settings.cluster.s3.session_token
    };
    assert_eq!(token(&sources), Some(Secret("token".into())));
    sources.set("s3.access-key=another").unwrap();
    sources.set("s3.secret-key=another").unwrap();
    assert_eq!(token(&sources), None);
    sources.set("fs.s3a.session.token=its own").unwrap();
    assert_eq!(token(&sources), Some(Secret("its own".into())));
    let refusal = refusal_of(&[("s3.session-token", "alone")]);
    assert!(refusal.contains("s3.access-key"), "{refusal}");
}

#[test]
fn variables_that_name_no_key_are_told_and_ignored() {
    let environment = Environment::new([
        ("PERENNIAL_SERVICE_HOST", "10.0.0.1"),
        ("PERENNIAL_PARALELISM_DEFAULT", "2"),
        ("PERENNIAL_HEARTBEAT_TIMEOUT", ""),
        ("PERENNIAL_TEST_S3_ENDPOINT", "http://127.0.0.1:9000"),
        ("PATH", "/bin"),
    ]);
    let loaded = Settings::load(&Sources {
        environment,
        ..Sources::default()
    })
    .unwrap();
    let lines: Vec<_> = loaded.notices.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].contains("did you mean PERENNIAL_PARALLELISM_DEFAULT?"),
        "{lines:?}"
    );
    assert!(lines[1].contains("PERENNIAL_SERVICE_HOST"), "{lines:?}");
}

#[test]
fn a_file_of_unknown_keys_is_refused_whole_with_a_bounded_number_of_suggestions() {
    let content: String = (0..1000)
        .map(|n| format!("parallelism.defalt{n}: 1\n"))
        .collect();
    let text = refusal(&file(&content));
    assert!(text.contains("refused for 1000 reasons"));
    assert_eq!(text.matches("did you mean").count(), 32);
}

// The word is looked for in everything that can be printed, for right, misspelt, aliased and invalid keys.
#[test]
fn no_secret_is_ever_shown() {
    let mut sources = file(
        "security.cluster-secret: hunter2\ns3.acess-key: hunter2\nfs.s3a.secret.key: hunter2\n\
         notification_channels.slack.webhook_url: hunter2\nsecurity.ssl.internal.key-password: hunter2\n\
         my.password: [hunter2\n",
    );
    sources.environment = Environment::new([
        ("AWS_ACCESS_KEY_ID", "hunter2"),
        ("PERENNIAL_S3_ACCESS_KEY", "hunter2"),
    ]);
    sources.set("s3.secret-key=hunter2").unwrap();
    sources.set("some.token=hunter2").unwrap();
    let checked = check(&sources);
    let everything = format!(
        "{checked:?} {} {:?} {sources:?}",
        checked.errors, checked.notices
    );
    let shown = everything.matches("hunter2").count();
    // The one place is the access key in the settings themselves, which the S3 client needs as a plain text.
    assert_eq!(shown, 1, "{everything}");
    assert!(everything.contains("******"));
    for row in &checked.table {
        assert!(!row.value.contains("hunter2"), "{row:?}");
    }
}

#[test]
fn a_job_derives_its_own_settings_and_cannot_touch_the_node() {
    let loaded = Settings::load(&file("restart-strategy: none\nparallelism.default: 2\n")).unwrap();
    let (job, notices) = loaded
        .job(&[
            ("execution.checkpointing.interval", "1s"),
            ("state.backend", "hashmap"),
        ])
        .unwrap();
    assert_eq!(
        job.restart.strategy,
        RestartStrategy::None,
        "chosen in the file"
    );
    assert_eq!(
        (job.parallelism, job.checkpointing.interval),
        (2, Some(seconds(1)))
    );
    assert_eq!(notices.len(), 1, "{notices:?}");
    let text = loaded
        .job(&[("heartbeat.timeout", "9s"), ("nonsense", "1")])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("belongs to the node") && text.contains("unknown key nonsense"),
        "{text}"
    );
}

// The numbers of `config/profiles`, a second time, so that none changes by accident.
#[test]
fn each_profile_is_clean_and_has_its_numbers() {
    let profile = |name: &str| {
        let sources = Sources {
            profile: Some(name.into()),
            ..Sources::default()
        };
        let checked = check(&sources);
        assert_eq!(checked.errors, ConfigErrors::default(), "{name}");
        let rows = checked.table.iter().filter(|row| row.is_set());
        assert!(
            rows.clone().all(|row| row.verdict == Verdict::Native),
            "{name}"
        );
        assert!(rows.count() >= 7, "{name}");
        Settings::load(&sources).unwrap().settings
    };
    for (name, slots, parallelism, interval, mode) in [
        ("production", 8, 16, 60, CheckpointingMode::ExactlyOnce),
        ("staging", 4, 8, 120, CheckpointingMode::AtLeastOnce),
        ("development", 2, 2, 300, CheckpointingMode::AtLeastOnce),
    ] {
        let settings = profile(name);
        let checkpointing = &settings.job.checkpointing;
        assert_eq!(
            (settings.cluster.task_slots, settings.job.parallelism),
            (slots, parallelism)
        );
        assert_eq!(
            (checkpointing.interval, checkpointing.mode),
            (Some(seconds(interval)), mode)
        );
    }
    assert_eq!(profile_names().count(), 3);
    let production = profile("production");
    assert_eq!(
        production.cluster.high_availability,
        HighAvailability::Store
    );
    assert_eq!(
        production.cluster.ha_directory,
        "s3://prod-flink-ha/ha/default"
    );
    assert!(matches!(
        production.job.restart.strategy,
        RestartStrategy::ExponentialDelay { initial_backoff, max_backoff, .. }
            if (initial_backoff, max_backoff) == (seconds(10), seconds(120))
    ));
    let staging = profile("staging").job.restart.strategy;
    assert_eq!(
        staging,
        RestartStrategy::FixedDelay {
            attempts: 3,
            delay: seconds(10)
        }
    );
    let development = profile("development").job.restart.strategy;
    assert_eq!(
        development,
        RestartStrategy::FixedDelay {
            attempts: 1,
            delay: seconds(5)
        }
    );
}

#[test]
fn every_key_of_the_table_can_be_asked_for_without_a_panic() {
    for key in keys() {
        let name = key.name.replace('*', "x");
        for value in [
            "",
            "1",
            "true",
            "-1",
            "10s",
            "1g",
            "file:///x",
            "\u{0}",
            "99999999999999999999",
        ] {
            let _ = Settings::with(&[(name.as_str(), value)]);
        }
    }
}

#[test]
fn a_file_that_is_not_text_is_an_error_with_its_line() {
    let error = ConfigFile::from_bytes("config.yaml", b"a: 1\nb: \xff\n".to_vec()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("\n  config.yaml:2: not UTF-8 text")
    );
    let missing = ConfigFile::read(std::path::Path::new("/nonexistent/config.yaml")).unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("/nonexistent/config.yaml: cannot be read")
    );
}

/// A file with most kinds of lines, to be cut and damaged.
const SAMPLE: &str = "# head\nparallelism.default: 4\nexecution:\n  checkpointing:\n    interval: \"10s\"\n    mode: 'AT_LEAST_ONCE'\n\
                      restart-strategy: {type: fixed-delay, fixed-delay.attempts: 3}\nmetrics.reporters: [a, b]\ns3.secret-key: |\n  x\n  y\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic_the_loader(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(config) = ConfigFile::from_bytes("x", bytes) {
            let _ = check(&Sources { file: Some(config), ..Sources::default() });
        }
    }

    #[test]
    fn a_truncated_or_damaged_file_never_panics_the_loader(
        end in 0..=SAMPLE.len(), at in 0..SAMPLE.len(), byte in 0_u8..128
    ) {
        let mut bytes = SAMPLE.as_bytes()[..end].to_vec();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let config = ConfigFile::from_bytes("x", bytes).unwrap();
        let _ = check(&Sources { file: Some(config), ..Sources::default() });
    }

    #[test]
    fn random_overrides_never_panic_the_loader(key in "\\PC{0,40}", value in "\\PC{0,20}", argument in "\\PC{0,20}") {
        let mut sources = Sources::default();
        let _ = sources.set(&argument);
        sources.overrides.push((key, value));
        let _ = check(&sources);
    }
}
