//! Every job that is measured puts out what a plain loop says, on a cluster in one process. So a wrong engine is not called fast.
//!
//! Each runs as users run it, by the command line of the node; what it saw is read from its marks.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use perennial_bench::jobs::digest::Digest;
use perennial_bench::jobs::{keyed_count, passthrough, shuffle, window};
use perennial_bench::marks::{self, now_us};

const EVENTS: u64 = 300_000;
const KEYS: u64 = 1000;

/// Runs a job to its end and adds up what its sinks saw.
fn run(job: &str, arguments: &[&str]) -> Digest {
    let directory = std::env::temp_dir().join(format!("bench-{job}-{}", now_us()));
    let marks = directory.join("marks");
    std::fs::create_dir_all(&marks).unwrap();
    let store = directory.join("checkpoints");
    let output = Command::new(env!("CARGO_BIN_EXE_perennial-bench-node"))
        .arg("-D")
        .arg(format!(
            "execution.checkpointing.dir=file://{}",
            store.display()
        ))
        .args(["run", job, "--local", "--parallelism", "2", "--marks"])
        .arg(&marks)
        .args(["--events", &EVENTS.to_string(), "--keys", &KEYS.to_string()])
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{job}: {errors}");
    let digest = sum(&marks);
    std::fs::remove_dir_all(&directory).unwrap();
    digest
}

fn sum(directory: &Path) -> Digest {
    let mut digest = Digest::default();
    for mark in marks::read(directory).unwrap() {
        if mark.what == "digest" {
            digest.merge(Digest {
                count: mark.number("count").unwrap(),
                sum: mark.number("sum").unwrap(),
            });
        }
    }
    digest
}

#[test]
fn keyed_count_puts_out_what_a_loop_says() {
    assert_eq!(run("keyed-count", &[]), keyed_count::expected(EVENTS, KEYS));
    let arguments = ["--prefill", "1000", "--touched", "100"];
    let expected = keyed_count::expected_after(EVENTS, KEYS, KEYS, 100);
    assert_eq!(run("keyed-count", &arguments), expected);
}

#[test]
fn passthrough_puts_out_what_a_loop_says() {
    assert_eq!(run("passthrough", &[]), passthrough::expected(EVENTS, KEYS));
}

#[test]
fn shuffle_puts_out_what_a_loop_says() {
    let digest = run("shuffle", &["--sources", "1"]);
    assert_eq!(digest, shuffle::expected(EVENTS, KEYS));
}

#[test]
fn window_puts_out_what_a_loop_says() {
    let second = Duration::from_secs(1);
    let expected = window::expected(EVENTS, KEYS, second, second);
    assert_eq!(run("window", &["--size", "1"]), expected);
    let expected = window::expected(EVENTS, KEYS, 3 * second, second);
    let arguments = ["--size", "3", "--slide", "1"];
    assert_eq!(run("window", &arguments), expected);
}
