//! The data plane alone: real tasks, real channels, real state, driven by a script in place of the control plane.
//!
//! Proves what does not need a cluster: a bounded job gives the fold's output, also after a rollback in place and after a load.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

mod script;

use std::collections::BTreeMap;

use perennial::connector::read_committed;
use perennial::jobs::abnormal_detection::expected_alarms;
use perennial::jobs::keyed_count::expected_total;
use perennial_actors::model::RestoredHow;
use script::{Ended, Script};

fn arguments(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn sorted_output(directory: &std::path::Path) -> Vec<String> {
    let mut lines = read_committed(directory).unwrap();
    lines.sort();
    lines
}

/// Runs to the end without a failure.
#[test]
fn a_bounded_job_commits_what_the_fold_gives() {
    let output = tempfile::tempdir().unwrap();
    let directory = output.path().to_str().unwrap();
    let args = arguments(&[
        ("events", "3000"),
        ("interval-ms", "0"),
        ("output", directory),
    ]);
    let mut script = Script::new("abnormal-detection", args, &[]);
    script.deploy(None);
    assert_eq!(script.finish(), Ended::Finished);
    let mut expected: Vec<String> = expected_alarms(1, 3, 3000, std::time::Duration::ZERO, 0.3)
        .iter()
        .map(ToString::to_string)
        .collect();
    expected.sort();
    assert_eq!(sorted_output(output.path()), expected);
}

/// Stops in the middle, after a checkpoint, twice: once rolled back in place, once loaded by other tasks.
#[test]
fn stopping_and_restoring_in_the_middle_does_not_show_in_the_output() {
    for (events, keys) in [("200000", "1000"), ("50000", "20000")] {
        let output = tempfile::tempdir().unwrap();
        let directory = output.path().to_str().unwrap();
        let args = arguments(&[
            ("events", events),
            ("keys", keys),
            ("lanes", "3"),
            ("output", directory),
        ]);
        let mut script = Script::new("keyed-count", args, &[("parallelism.default", "2")]);
        script.deploy(None);
        let first = script.checkpoint(None);
        script.stop();
        assert_eq!(
            script.deploy(Some((first, true))),
            vec![RestoredHow::InPlace; 4]
        );
        let second = script.checkpoint(Some(first));
        let third = script.checkpoint(Some(second));
        script.stop();
        assert_eq!(
            script.deploy(Some((third, false))),
            vec![RestoredHow::Loaded; 4]
        );
        assert_eq!(script.finish(), Ended::Finished);
        let total = expected_total(events.parse().unwrap(), keys.parse().unwrap());
        assert_eq!(
            sorted_output(output.path()).len() as u64,
            total,
            "{events} events, {keys} keys"
        );
    }
}
