//! Failures of user code: recovered from exactly when they pass, reported with their place when they stay.
//!
//! Runs the example of a user's own binary (`examples/own_binary.rs`) in every role; its check panics or returns errors on demand.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use perennial_actors::model::{FailureKind, JobState};
use perennial_chaos::oracle::{committed_lines, compare};
use perennial_chaos::process::{ClusterPlan, ProcessCluster};
use perennial_chaos::seed::Seed;

const LONG: Duration = Duration::from_secs(30);
const EVENTS: u64 = 4000;
const KEYS: u64 = 10;

/// The example, built here: `cargo test --test user_failures` alone does not build examples.
fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let profile = Path::new(env!("CARGO_BIN_EXE_perennial")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args([
                "build",
                "--quiet",
                "--example",
                "own_binary",
                "--target-dir",
            ])
            .arg(profile.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(
            cargo.status().unwrap().success(),
            "the example does not build"
        );
        profile.join("examples/own_binary")
    })
}

fn cluster() -> ProcessCluster {
    let plan = ClusterPlan::new(binary())
        .task_managers(2)
        .set("execution.checkpointing.interval", "100ms")
        .set("parallelism.default", "2");
    ProcessCluster::start(plan).unwrap()
}

fn submit(cluster: &ProcessCluster, settings: &[(&str, &str)], more: &[&str]) -> (String, PathBuf) {
    let output = cluster.path("output");
    let (events, keys, path) = (
        EVENTS.to_string(),
        KEYS.to_string(),
        output.to_string_lossy().into_owned(),
    );
    let mut arguments = vec![
        "running-totals",
        "--events",
        &events,
        "--keys",
        &keys,
        "--rate",
        "1500",
        "--output",
        &path,
    ];
    arguments.extend(more);
    (cluster.submit(settings, &arguments).unwrap(), output)
}

/// Every intermediate count of every key.
fn expected() -> Vec<String> {
    let mut lines: Vec<String> = (0..KEYS)
        .flat_map(|key| {
            let count = (0..EVENTS).filter(|number| number % KEYS == key).count();
            (1..=count).map(move |total| format!("{key} {total}"))
        })
        .collect();
    lines.sort();
    lines
}

fn recovers_exactly(cluster: &mut ProcessCluster, option: &str, seed: &Seed) -> FailureKind {
    let at = seed.between(EVENTS / 3, EVENTS / 2).to_string();
    let marker = cluster.path("marker");
    let settings = [
        ("restart-strategy.type", "fixed-delay"),
        ("restart-strategy.fixed-delay.attempts", "3"),
        ("restart-strategy.fixed-delay.delay", "50ms"),
    ];
    let (job, output) = submit(
        cluster,
        &settings,
        &[option, &at, "--marker", &marker.to_string_lossy()],
    );
    let status = cluster.wait_for_state(&job, JobState::Finished, LONG);
    assert!(marker.try_exists().unwrap(), "it never failed");
    compare(&committed_lines(&output).unwrap(), &expected()).unwrap();
    assert_eq!(status.summary.restarts, 1, "{:?}", status.recoveries);
    let recovery = &status.recoveries[0];
    assert!(
        recovery.checkpoint.is_some(),
        "nothing was restored: {recovery:?}"
    );
    assert_eq!(recovery.cause.operator.as_deref(), Some("check"));
    // Two lanes take turns: number n is the (n / 2)th of lane n % 2.
    let number: u64 = at.parse().unwrap();
    let expected = format!("lane-{}@{}", number % 2, number / 2);
    assert_eq!(recovery.cause.position, Some(expected));
    recovery.cause.kind.clone()
}

#[test]
fn a_panic_in_user_code_is_recovered_from_exactly_and_shown_with_its_place() {
    let seed = Seed::announce(
        "user_failures",
        "a_panic_in_user_code_is_recovered_from_exactly_and_shown_with_its_place",
    );
    let mut cluster = cluster();
    let FailureKind::Panic { message, location } =
        recovers_exactly(&mut cluster, "--panic-at", &seed)
    else {
        panic!("the cause is not the panic");
    };
    assert!(message.contains("asked to panic"), "{message}");
    assert!(location.contains("own_binary.rs:"), "{location}");
    cluster.wait_until("a backtrace in the log", LONG, |cluster| {
        let mut nodes = cluster.task_manager_names().into_iter();
        Ok(nodes.find_map(|node| {
            let log = cluster.log(&node).ok()?;
            let (_, backtrace) = log.split_once("a panic, from here")?;
            backtrace.contains("own_binary::").then_some(())
        }))
    });
}

#[test]
fn an_error_of_user_code_is_recovered_from_exactly() {
    let seed = Seed::announce(
        "user_failures",
        "an_error_of_user_code_is_recovered_from_exactly",
    );
    let FailureKind::User {
        message,
        is_unrecoverable,
    } = recovers_exactly(&mut cluster(), "--error-at", &seed)
    else {
        panic!("the cause is not the error");
    };
    assert!(
        message.contains("asked to fail") && !is_unrecoverable,
        "{message}"
    );
}

#[test]
fn a_job_that_always_fails_ends_failed_with_its_cause_after_exactly_the_configured_attempts() {
    let seed = Seed::announce(
        "user_failures",
        "a_job_that_always_fails_ends_failed_with_its_cause_after_exactly_the_configured_attempts",
    );
    let mut cluster = cluster();
    let attempts = seed.between(2, 5);
    let text = attempts.to_string();
    let settings = [
        ("restart-strategy.type", "fixed-delay"),
        ("restart-strategy.fixed-delay.attempts", text.as_str()),
        ("restart-strategy.fixed-delay.delay", "20ms"),
    ];
    let (job, output) = submit(&cluster, &settings, &["--error-at", "1000"]);
    let status = cluster.wait_for_state(&job, JobState::Failed, LONG);
    assert_eq!(u64::from(status.summary.restarts), attempts);
    assert_eq!(
        status.recoveries.len() as u64,
        attempts + 1,
        "each failure is recorded, and the last decision"
    );
    assert!(
        status.recoveries.last().unwrap().attempt.is_none(),
        "the last one gave up"
    );
    let failure = status.failure.unwrap();
    assert_eq!(
        failure.operator.as_deref(),
        Some("check"),
        "{failure}: {:#?}",
        status.recoveries
    );
    // 1000 is the 501st number of the first of two lanes.
    assert_eq!(failure.position.as_deref(), Some("lane-0@500"));
    let shown = cluster.ask_text(&["status", &job]).unwrap();
    assert!(
        shown.contains("in operator `check` at lane-0@500 failed"),
        "{shown}"
    );
    assert!(
        matches!(&failure.kind, FailureKind::User { message, .. } if message.contains("1000")),
        "{failure}"
    );
    // What was committed before is right as far as it goes: no line twice.
    let lines = committed_lines(&output).unwrap();
    let mut unique = lines.clone();
    unique.dedup();
    assert_eq!(lines, unique);
}

#[test]
fn an_error_that_no_retry_can_help_fails_the_job_at_once() {
    let _seed = Seed::announce(
        "user_failures",
        "an_error_that_no_retry_can_help_fails_the_job_at_once",
    );
    let mut cluster = cluster();
    let settings = [
        ("restart-strategy.type", "fixed-delay"),
        ("restart-strategy.fixed-delay.attempts", "100"),
    ];
    let (job, _) = submit(&cluster, &settings, &["--fatal-at", "1000"]);
    let status = cluster.wait_for_state(&job, JobState::Failed, LONG);
    let attempts: Vec<&str> = status.subtasks.iter().map(|t| t.attempt.as_str()).collect();
    assert!(
        attempts.iter().all(|attempt| *attempt == "1.1"),
        "deployed again: {attempts:?}"
    );
    assert!(
        status
            .failure
            .unwrap()
            .to_string()
            .contains("asked to fail at 1000")
    );
}

#[test]
fn exponential_delays_are_visible_in_the_recoveries() {
    let _seed = Seed::announce(
        "user_failures",
        "exponential_delays_are_visible_in_the_recoveries",
    );
    let mut cluster = cluster();
    let settings = [
        ("restart-strategy.type", "exponential-delay"),
        (
            "restart-strategy.exponential-delay.initial-backoff",
            "100ms",
        ),
        ("restart-strategy.exponential-delay.max-backoff", "500ms"),
        (
            "restart-strategy.exponential-delay.backoff-multiplier",
            "2.0",
        ),
        ("restart-strategy.exponential-delay.jitter-factor", "0"),
        (
            "restart-strategy.exponential-delay.attempts-before-reset-backoff",
            "4",
        ),
    ];
    let (job, _) = submit(&cluster, &settings, &["--error-at", "100"]);
    let status = cluster.wait_for_state(&job, JobState::Failed, LONG);
    // The delay runs while tasks stop: the phases are what was left of it and what came before.
    let delays: Vec<f64> = status
        .recoveries
        .iter()
        .filter_map(|r| Some(r.phases.delay_ms? + r.phases.stop_ms?))
        .collect();
    assert_eq!(delays.len(), 4, "{:?}", status.recoveries);
    for (actual, planned) in delays.iter().zip([100.0, 200.0, 400.0, 500.0]) {
        // Late by scheduling at most, never early.
        assert!(
            *actual >= planned - 2.0 && *actual < planned + 400.0,
            "{delays:?}"
        );
    }
    for (recovery, number) in status.recoveries.iter().zip(1..=4) {
        let words = format!("exponential-delay: attempt {number}");
        assert!(
            recovery.decision.starts_with(&words),
            "{}",
            recovery.decision
        );
    }
}
