//! Fault points are in the chaos node, each where it says, and not in what is shipped.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use perennial_actors::fault::{FaultSite, Sabotage};
use perennial_actors::model::JobState;
use perennial_chaos::node::sites;
use perennial_chaos::oracle::committed_lines;
use perennial_chaos::plan::WorkloadPlan;
use perennial_chaos::process::{BINARY, ClusterPlan, ProcessCluster};
use perennial_chaos::scenario::ENDURING;
use perennial_chaos::workload;

const CHAOS_NODE: &str = env!("CARGO_BIN_EXE_perennial-chaos-node");

/// The binary as a release has it, built alone: cargo gives a package that is built with others the features that the others want.
fn alone() -> PathBuf {
    if let Some(path) = std::env::var_os(BINARY) {
        return path.into();
    }
    let profile = Path::new(CHAOS_NODE).parent().unwrap();
    let target = profile.join("alone-build");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--locked", "-p", "perennial", "--bins"])
        .arg("--manifest-path")
        .arg(manifest)
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .unwrap();
    assert!(status.success(), "the binary does not build alone");
    target.join("debug/perennial")
}

fn names_in(program: &Path) -> Vec<&'static str> {
    let bytes = std::fs::read(program).unwrap();
    let contains = |name: &str| {
        let name = name.as_bytes();
        bytes.windows(name.len()).any(|window| window == name)
    };
    let sites = FaultSite::ALL.into_iter().map(FaultSite::name);
    let switches = Sabotage::ALL.into_iter().map(Sabotage::name);
    sites
        .chain(switches)
        .filter(|name| contains(name))
        .collect()
}

/// By the names in the file: whatever is left of a site or a switch needs its name to be armed.
#[test]
fn the_shipped_binary_has_no_fault_points_and_the_chaos_node_has_all() {
    let all = FaultSite::ALL.len() + Sabotage::ALL.len();
    assert_eq!(names_in(Path::new(CHAOS_NODE)).len(), all);
    let found = names_in(&alone());
    assert!(found.is_empty(), "{found:?}");
}

/// A node that ends itself in the worst moment, as P1 and P3 want, one after the other; the output is exact. Every site comes by.
#[test]
fn nodes_that_end_at_fault_points_do_not_show_in_the_output_and_every_site_is_hit() {
    let workload = WorkloadPlan {
        job: workload::PROCESS_NAME.to_owned(),
        seed: 7,
        events: 9000,
        rate: 150,
        keys: 40,
        parallelism: Vec::new(),
    };
    let plan = ClusterPlan::new(CHAOS_NODE)
        .arm("taskmanager-1", "after-upload-before-ack#3=exit")
        .arm("taskmanager-2", "during-restore#1=panic;on-notify#12=exit")
        .arm("jobmanager-1", "after-record-before-notify#9=exit");
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let names = ["taskmanager-1", "taskmanager-2", "jobmanager-1"];
    for name in names {
        cluster.node_mut(name).unwrap().may_exit();
    }
    let output = cluster.path("output");
    let job = cluster
        .submit(
            &[
                &[("execution.checkpointing.interval", "300ms")][..],
                &ENDURING,
            ]
            .concat(),
            &[
                workload::PROCESS_NAME,
                "--seed",
                &workload.seed.to_string(),
                "--events",
                &workload.events.to_string(),
                "--rate",
                &workload.rate.to_string(),
                "--keys",
                &workload.keys.to_string(),
                "--output",
                &output.to_string_lossy(),
            ],
        )
        .unwrap();
    for name in names {
        let code = cluster
            .wait_for_exit(name, Duration::from_secs(30))
            .unwrap();
        assert_eq!(code, 128 + 9, "{name} was ended as by kill -9");
        cluster.restart(name).unwrap();
    }
    cluster.wait_until_running(&job, Duration::from_secs(30));
    let savepoints = format!("file://{}", cluster.path("savepoints").display());
    cluster.wait_until("a savepoint", Duration::from_secs(20), |cluster| {
        let answer = cluster.cli(&["savepoint", &job, &savepoints])?;
        Ok(answer.status.success().then_some(()))
    });
    cluster.wait_for_state(&job, JobState::Finished, Duration::from_secs(60));
    let mut lines = committed_lines(&output).unwrap();
    lines.sort();
    assert_eq!(lines, workload::expected_lines(&workload));
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    for name in cluster
        .task_manager_names()
        .into_iter()
        .chain(["jobmanager-1".to_owned()])
    {
        for (site, n) in sites(&cluster.log(&name).unwrap()) {
            *hits.entry(site).or_default() += n;
        }
    }
    let missed: Vec<_> = FaultSite::ALL
        .into_iter()
        .filter(|site| !hits.contains_key(site.name()))
        .map(FaultSite::name)
        .collect();
    assert!(missed.is_empty(), "never hit: {missed:?} of {hits:?}");
}

#[test]
fn a_point_that_does_not_exist_is_refused_before_the_node_starts() {
    let output = Command::new(CHAOS_NODE)
        .arg("taskmanager")
        .env(perennial_chaos::node::POINTS, "on-timre=panic")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("there is no site `on-timre`"), "{text}");
}
