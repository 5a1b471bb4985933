//! The README's folders as rooms, and their doors, read from the manifests and the sources.
//!
//! Imports run `config <- actors <- perennial <- chaos <- bench`; each outside world has one door. A test that needs no compiler to fail.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const OURS: [&str; 5] = [
    "perennial-config",
    "perennial-actors",
    "perennial",
    "perennial-chaos",
    "perennial-bench",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Normal and build dependencies: what is shipped.
    Shipped,
    /// Of tests only.
    Dev,
}

/// Package -> its direct dependencies.
fn manifests() -> BTreeMap<String, Vec<(String, Kind)>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(ROOT)
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {errors}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let dependencies = dependencies.iter().map(|dependency| {
                let kind = match dependency["kind"].as_str() {
                    Some("dev") => Kind::Dev,
                    Some(_) | None => Kind::Shipped,
                };
                (text(&dependency["name"]), kind)
            });
            (text(&package["name"]), dependencies.collect())
        })
        .collect()
}

/// Every Rust file of the workspace, relative to its root, with its text.
fn sources() -> Vec<(String, String)> {
    let mut directories = ["src", "actors", "config", "chaos", "bench", "tests"]
        .map(|name| Path::new(ROOT).join(name))
        .to_vec();
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    directories.push(path);
                }
            } else if path.ends_with("tests/architecture.rs") {
                // Its own examples are no imports.
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path
                    .strip_prefix(ROOT)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                found.push((relative, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// Whether the code, without its comments, names this crate's path: `crate_name::…`, or imports it whole.
fn names_crate(source: &str, name: &str) -> bool {
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .any(|code| {
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            code.match_indices(name).any(|(at, _)| {
                let (before, after) = (&code[..at], &code[at + name.len()..]);
                // `module::name::` is a module of ours that has the same name.
                let starts = !before.ends_with(is_part)
                    && (!before.ends_with("::") || before.trim() == "use ::");
                let is_import =
                    before.trim_end().ends_with("use") || before.trim_end().ends_with("crate");
                starts
                    && (after.starts_with("::")
                        || (is_import && after.trim_start().starts_with(';')))
            })
        })
}

#[test]
fn the_workspace_has_the_rooms_of_the_design() {
    let packages: BTreeSet<_> = manifests().into_keys().collect();
    for ours in OURS {
        assert!(packages.contains(ours), "{ours} is missing in {packages:?}");
    }
}

#[test]
fn imports_run_from_config_to_actors_to_perennial_to_chaos_to_bench() {
    let manifests = manifests();
    for (level, package) in OURS.iter().enumerate() {
        for (dependency, kind) in &manifests[*package] {
            let Some(below) = OURS.iter().position(|ours| ours == dependency) else {
                continue;
            };
            // Tests of a crate may look upwards: tests/ proves with chaos.
            let is_downwards = below < level;
            assert!(
                is_downwards || *kind == Kind::Dev,
                "{package} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn each_outside_world_has_one_door_in_the_manifests() {
    for (dependency, owner) in [
        ("ractor", "perennial-actors"),
        ("rocksdb", "perennial"),
        ("aws-sdk-s3", "perennial"),
        ("aws-smithy-http-client", "perennial"),
        ("backoff", "perennial"),
    ] {
        for (package, dependencies) in manifests() {
            let has = dependencies.iter().any(|(name, _)| name == dependency);
            assert!(
                !has || package == owner,
                "{dependency} is for {owner}, not for {package}"
            );
        }
    }
}

#[test]
fn each_outside_world_has_one_door_in_the_sources() {
    let sources = sources();
    assert!(sources.len() > 20, "the scan found only {}", sources.len());
    for (name, doors) in [
        ("ractor", &["actors/"][..]),
        ("aws_sdk_s3", &["src/storage/"]),
        ("aws_smithy_http_client", &["src/storage/"]),
        ("backoff", &["src/storage/retry.rs"]),
        ("rocksdb", &["src/state/"]),
    ] {
        for (path, source) in &sources {
            let is_door = doors.iter().any(|door| path.starts_with(door));
            assert!(
                is_door || !names_crate(source, name),
                "{path} uses {name}; only {doors:?} may"
            );
        }
    }
}

/// What waits in a thread: no handler of an actor may, so nothing in their room has it.
const BLOCKING: [&str; 8] = [
    "std::fs",
    "std::net",
    "std::process",
    "thread::sleep",
    "thread::park",
    "block_on",
    "block_in_place",
    "spawn_blocking",
];

fn what_blocks(source: &str) -> Option<&'static str> {
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .find_map(|code| BLOCKING.into_iter().find(|word| code.contains(word)))
}

#[test]
fn nothing_that_blocks_is_in_the_room_of_the_actors() {
    let sources = sources();
    let actors: Vec<_> = sources
        .iter()
        .filter(|(path, _)| path.starts_with("actors/src"))
        .collect();
    assert!(actors.len() > 50, "the scan found only {}", actors.len());
    for (path, source) in actors {
        assert_eq!(what_blocks(source), None, "{path}");
    }
    assert_eq!(what_blocks("    std::fs::read(x)"), Some("std::fs"));
    assert_eq!(what_blocks("// std::fs::read(x)"), None);
}

#[test]
fn the_scan_sees_imports_and_not_words() {
    for yes in [
        "use ractor::Actor;",
        "    ractor::spawn();",
        "use ractor;",
        "use ::ractor::x;",
        "fn f(a: &ractor::A)",
    ] {
        assert!(names_crate(yes, "ractor"), "{yes}");
    }
    for no in [
        "// use ractor::Actor;",
        "use my_ractor::A;",
        "use ractor_cluster::A;",
        "x.backoff_delay()",
        "let ractor = 1;",
    ] {
        assert!(!names_crate(no, "ractor"), "{no}");
    }
    assert!(!names_crate("use crate::backoff::Policy;", "backoff"));
}
