//! The command line says what to do, and its exit codes and JSON are an interface.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use perennial_chaos::oracle::{committed_lines, compare, word_count};
use perennial_chaos::process::binary;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn perennial(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// As one line: help is wrapped to the terminal.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_the_jobs_and_the_exit_codes() {
    let help = perennial(&["--help"]);
    assert_eq!(code(&help), 0);
    for word in [
        "jobmanager",
        "taskmanager",
        "start",
        "run",
        "list",
        "status",
        "cancel",
        "stop",
        "savepoint",
        "checkpoints",
        "config",
        "--json",
        "-D",
        "Exit codes",
        "5 another JobManager leads",
    ] {
        assert!(
            unwrapped(&stdout(&help)).contains(word),
            "{word} is missing"
        );
    }
    let run = perennial(&["run", "--help"]);
    for job in ["abnormal-detection", "keyed-count", "word-count"] {
        assert!(stdout(&run).contains(job), "{job} is missing");
    }
    let job = perennial(&["run", "abnormal-detection", "--help"]);
    for option in [
        "--events",
        "--interval-ms",
        "--seed",
        "--output",
        "--from-savepoint",
        "--local",
    ] {
        assert!(stdout(&job).contains(option), "{option} is missing");
    }
    assert_eq!(code(&perennial(&["--version"])), 0);
}

#[test]
fn wrong_usage_ends_with_2_and_suggests_what_was_meant() {
    for (arguments, suggestion) in [
        (&["run", "abnormal-detecton"][..], "abnormal-detection"),
        (&["run", "keyed-count", "--event", "3"], "--events"),
        (&["statsu", "x"], "status"),
        (&["run"], "keyed-count"),
        (&["start", "--taskmanagers", "many"], "invalid value"),
        (&["start", "--taskmanagers", "0"], "invalid value"),
        // Two clusters named at once.
        (&["run", "keyed-count", "--local", "-m", "a:1"], "--local"),
        (&["-m", "a:1", "run", "keyed-count", "--local"], "--local"),
        (&["-m", "a:1", "taskmanager"], "jobmanager.rpc.address"),
        (&["-m", "a:1", "jobmanager"], "jobmanager.rpc.address"),
        (&["-m", "a:1", "start"], "jobmanager.rpc.address"),
    ] {
        let output = perennial(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        let said = stderr(&output) + &stdout(&output);
        assert!(said.contains(suggestion), "{arguments:?}: {said}");
    }
}

/// As behind `| head`: the reader of both outputs is gone before anything is written.
fn unread(arguments: &[&str]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_perennial"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child
}

/// A JobManager works on when nobody reads its log, a job that prints fails once and for all, and a command has done what it did.
#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!(
        "execution.checkpointing.dir=file://{}",
        directory.path().display()
    );
    let port = free_port();
    let key = format!("jobmanager.rpc.port={port}");
    let mut node = unread(&["-D", &store, "-D", &key, "jobmanager"]);
    let list = ["-D", &key, "list"];
    // 30 seconds in all.
    let answers = (0..300).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        code(&perennial(&list)) == 0
    });
    let listed = unread(&list).wait().unwrap().code();
    kill_process(Pid::from_child(&node), Signal::TERM).unwrap();
    let ended = node.wait().unwrap().code();
    assert_eq!((answers, listed, ended), (true, Some(0), Some(0)));

    let endless = ["run", "abnormal-detection", "--local", "--interval-ms", "1"];
    let mut job = unread(&[&["-D", &store][..], &endless].concat());
    assert_eq!(job.wait().unwrap().code(), Some(1));
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn a_cluster_that_does_not_answer_ends_with_3_and_says_how_to_start_one() {
    let address = format!("127.0.0.1:{}", free_port());
    for command in [
        &["list"][..],
        &["status", "abc"],
        &["cancel", "abc"],
        &["run", "keyed-count", "-d"],
    ] {
        let output = perennial(&[&["--jobmanager", &address], command].concat());
        assert_eq!(code(&output), 3, "{command:?}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.contains(&address) && said.contains("perennial start"),
            "{said}"
        );
    }
}

#[test]
fn wrong_configuration_ends_with_4_and_names_key_file_line_and_what_was_meant() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(
        &file,
        "jobmanager.rpc.port: 6123\nexecution.checkpointing.intervall: 10s\n",
    )
    .unwrap();
    for arguments in [
        &["config", "check", &path][..],
        &["--config", &path, "jobmanager"],
        &["--config", &path, "list"],
    ] {
        let output = perennial(arguments);
        assert_eq!(code(&output), 4, "{arguments:?}: {}", stderr(&output));
        let said = stderr(&output);
        for part in [
            "execution.checkpointing.intervall",
            "execution.checkpointing.interval",
            "config.yaml:2",
        ] {
            assert!(said.contains(part), "{part} is missing: {said}");
        }
    }
    for define in [
        "parallelism.default=none",
        "no-such-key=1",
        "state.backend.type=rocksdb",
    ] {
        let output = perennial(&["-D", define, "list"]);
        assert_eq!(code(&output), 4, "{define}: {}", stderr(&output));
        let key = define.split('=').next().unwrap();
        assert!(stderr(&output).contains(key), "{}", stderr(&output));
    }
}

/// Missing credentials are told before the store is asked for anything.
#[test]
fn a_node_whose_s3_credentials_are_missing_ends_with_4_and_names_the_key() {
    let store = "execution.checkpointing.dir=s3://bucket/checkpoints";
    let port = format!("jobmanager.rpc.port={}", free_port());
    for role in [&["jobmanager"][..], &["run", "keyed-count", "--local"]] {
        let output = Command::new(binary())
            .args(["-D", store, "-D", "s3.region=eu-central-1", "-D", &port])
            .args(role)
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .output()
            .unwrap();
        let said = stderr(&output);
        assert_eq!(code(&output), 4, "{role:?}: {said}");
        for part in ["s3.access-key", "AWS_ACCESS_KEY_ID"] {
            assert!(said.contains(part), "{part} is missing: {said}");
        }
    }
}

#[test]
fn config_check_shows_key_value_origin_and_verdict_in_a_table_and_in_json() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(&file, "taskmanager:\n  numberOfTaskSlots: 4\n").unwrap();
    let table = perennial(&["config", "check", &path]);
    assert_eq!(code(&table), 0, "{}", stderr(&table));
    let text = stdout(&table);
    for part in [
        "taskmanager.numberOfTaskSlots",
        "4",
        "config.yaml",
        "VERDICT",
    ] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    let json = perennial(&["--json", "config", "check", &path]);
    let rows: Value = serde_json::from_slice(&json.stdout).unwrap();
    let row = &rows[0];
    assert_eq!(row["key"], "taskmanager.numberOfTaskSlots");
    assert_eq!(row["value"], "4");
    assert!(
        row["origin"].as_str().unwrap().contains("config.yaml"),
        "{row}"
    );
    assert!(row["verdict"].is_string());
    let all = perennial(&["--json", "config", "show"]);
    let rows: Value = serde_json::from_slice(&all.stdout).unwrap();
    assert!(rows.as_array().unwrap().len() > 50);
}

#[test]
fn a_secret_is_never_shown() {
    let output = perennial(&[
        "-D",
        "security.cluster-secret=hunter2",
        "-D",
        "s3.secret-key=hunter3",
        "config",
        "show",
    ]);
    let said = stdout(&output) + &stderr(&output);
    assert!(!said.contains("hunter"), "{said}");
}

fn write_texts(directory: &Path) -> Vec<String> {
    std::fs::create_dir_all(directory).unwrap();
    let texts: Vec<String> = (0..5_u64)
        .map(|file| {
            (0..400_u64)
                .map(|line| {
                    format!(
                        "Line {line} of file-{file}: the quick brown fox, w{}!\n",
                        line * 7 % 31
                    )
                })
                .collect()
        })
        .collect();
    for (number, text) in texts.iter().enumerate() {
        std::fs::write(directory.join(format!("text-{number}.txt")), text).unwrap();
    }
    texts
}

#[test]
fn one_command_counts_the_words_of_real_files_on_a_local_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let texts = write_texts(&directory.path().join("input"));
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let store = format!("execution.checkpointing.dir=file://{}", path("store"));
    let output = perennial(&[
        "--json",
        "-D",
        &store,
        "run",
        "word-count",
        "--local",
        "--taskmanagers",
        "2",
        "-p",
        "2",
        "--input",
        &path("input"),
        "--output",
        &path("output"),
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["summary"]["state"], "FINISHED");
    compare(
        &committed_lines(Path::new(&path("output"))).unwrap(),
        &word_count(&texts),
    )
    .unwrap();
}

#[test]
fn a_job_that_fails_ends_with_1_and_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!(
        "execution.checkpointing.dir=file://{}/store",
        directory.path().display()
    );
    let missing = directory
        .path()
        .join("missing.txt")
        .to_string_lossy()
        .into_owned();
    let output = perennial(&[
        "-D",
        &store,
        "-D",
        "restart-strategy.type=none",
        "run",
        "word-count",
        "--local",
        "--taskmanagers",
        "1",
        "--input",
        &missing,
    ]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("missing.txt"),
        "{}",
        stderr(&output)
    );
}

/// What no attempt can change ends at once, whatever the strategy, and says what to do.
#[test]
fn what_cannot_work_is_told_at_once_and_not_tried_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let path = file.to_string_lossy().into_owned();
    let missing = format!("file://{path}-missing");
    let store = format!(
        "execution.checkpointing.dir=file://{}/store",
        directory.path().display()
    );
    for (arguments, expected, words) in [
        (
            &["--output", &path][..],
            1,
            &[&path[..], "another directory"][..],
        ),
        (
            &["--from-savepoint", &missing],
            1,
            &[&missing, "no snapshot"],
        ),
        (
            &["--from-savepoint", "hdfs://name/savepoint"],
            2,
            &["hdfs", "file://"],
        ),
    ] {
        // The defaults' strategy would go on for ever, and so would this test.
        let strategy = "restart-strategy.type=fixed-delay";
        let settings = ["-D", &store, "-D", strategy];
        let run = ["run", "keyed-count", "--local", "--taskmanagers", "1"];
        let output = perennial(&[&settings[..], &run, arguments].concat());
        let said = stderr(&output);
        assert_eq!(code(&output), expected, "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{word} is missing: {said}");
        }
        // Nothing was tried twice.
        assert!(!said.contains("attempt 1.2"), "{said}");
    }
}
