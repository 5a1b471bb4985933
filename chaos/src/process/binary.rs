//! Which programs the processes of a run are.

use std::path::{Path, PathBuf};

/// Environment variable that names the program under test.
pub const BINARY: &str = "PERENNIAL_BINARY";

const CHAOS_NODE_HINT: &str = "build it with `cargo build -p perennial-chaos --bins`";

/// The program that is broken from outside: what [`BINARY`] names (`make test` builds it alone, as a release is built), else the one
/// that cargo has built beside the caller, in which fault points are linked but not armed.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    match std::env::var_os(BINARY) {
        Some(path) => existing(&PathBuf::from(path), BINARY),
        None => existing(
            &sibling("perennial"),
            "build it with `cargo build -p perennial --bins`",
        ),
    }
}

/// The program with fault points, built beside the caller.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn chaos_node() -> PathBuf {
    try_chaos_node().unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn try_chaos_node() -> anyhow::Result<PathBuf> {
    let path = sibling("perennial-chaos-node");
    anyhow::ensure!(
        path.is_file(),
        "there is no program {}: {CHAOS_NODE_HINT}",
        path.display()
    );
    Ok(path)
}

/// Tests and examples lie one directory below the binaries of their profile.
fn sibling(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let directory = own.parent().expect("a program lies in a directory");
    let is_below = ["deps", "examples"]
        .into_iter()
        .any(|below| directory.ends_with(below));
    match directory.parent() {
        Some(profile) if is_below => profile.join(name),
        Some(_) | None => directory.join(name),
    }
}

fn existing(path: &Path, hint: &str) -> PathBuf {
    assert!(
        path.is_file(),
        "there is no program {}: {hint}",
        path.display()
    );
    path.to_owned()
}
