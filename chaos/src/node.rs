//! A node with fault points: `perennial-chaos-node` plays every role like `perennial`, and fails where the environment tells it to.
//!
//! Invariant: without [`POINTS`] and [`SABOTAGE`] it behaves as the shipped binary does; it only counts where it came by, and says so
//! in its log, in lines that [`sites`] reads.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use perennial::api::JobRegistry;
use perennial_actors::fault::{FaultPointSpec, FaultPoints, Platform, Sabotage};
use rustix::process::{Signal, getpid, kill_process};

use crate::workload;

/// Environment variable: points as [`FaultPointSpec`] reads them, separated by `;`.
pub const POINTS: &str = "PERENNIAL_FAULT_POINTS";
/// Environment variable: names of sabotage switches, separated by `,`.
pub const SABOTAGE: &str = "PERENNIAL_SABOTAGE";
/// Environment variable: the name that points with `node=` mean.
pub const NODE: &str = "PERENNIAL_NODE";

/// The jobs of the node: those of the shipped binary and the merciless one.
#[must_use]
pub fn registry() -> JobRegistry {
    workload::register(perennial::jobs::registry())
}

/// The `main` of `perennial-chaos-node`.
#[must_use]
#[expect(clippy::print_stderr, reason = "it is a command's main")]
pub fn main() -> ExitCode {
    match from_environment() {
        Ok(faults) => perennial::cli::main_with_faults(&registry(), faults),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn from_environment() -> anyhow::Result<FaultPoints> {
    let read = |name: &str| -> anyhow::Result<String> {
        let value = std::env::var_os(name).unwrap_or_default();
        value
            .into_string()
            .map_err(|value| anyhow!("{name} is no text: {}", value.display()))
    };
    let points = FaultPointSpec::list(&read(POINTS)?).context(POINTS)?;
    let sabotage: Vec<Sabotage> = read(SABOTAGE)?
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| {
            Sabotage::named(name).ok_or_else(|| anyhow!("{SABOTAGE}: no sabotage `{name}`"))
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(FaultPoints::armed(
        &read(NODE)?,
        points,
        &sabotage,
        Arc::new(Process),
    ))
}

/// This process.
struct Process;

impl Platform for Process {
    fn exit(&self) {
        // Nothing can keep it from being obeyed.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort();
    }

    fn stop(&self) {
        if let Err(error) = kill_process(getpid(), Signal::STOP) {
            tracing::error!(%error, "cannot stop this process");
        }
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// How often each fault point was hit, at least, as a node's log tells: a node says so at the first hit and at each power of two.
/// A process that was started again counts anew.
#[must_use]
pub fn sites(log: &str) -> BTreeMap<String, u64> {
    let mut sum: BTreeMap<String, u64> = BTreeMap::new();
    let mut highest: BTreeMap<String, u64> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("fault point")) {
        let field = |name: &str| {
            let value = line.split_once(&format!("{name}="))?.1;
            Some(value.split_whitespace().next().unwrap_or_default())
        };
        let (Some(site), Some(hits)) = (field("site"), field("hits")) else {
            continue;
        };
        let Ok(hits) = hits.parse::<u64>() else {
            continue;
        };
        let before = highest.entry(site.to_owned()).or_default();
        // It begins again: another process.
        if hits <= *before {
            *sum.entry(site.to_owned()).or_default() += *before;
        }
        *before = hits;
    }
    for (site, hits) in highest {
        *sum.entry(site).or_default() += hits;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_read_from_a_log_over_restarts() {
        let log = "--- node\n\
            INFO perennial_actors::fault: fault point site=on-open hits=1 node=\"\"\n\
            INFO perennial_actors::fault: fault point site=on-open hits=2 node=\"\"\n\
            WARN perennial_actors::fault: fault point strikes point=on-open#2=exit node=\"\"\n\
            --- node\n\
            INFO perennial_actors::fault: fault point site=on-open hits=1 node=\"\"\n\
            INFO perennial_actors::fault: fault point site=on-timer hits=1 node=\"\"\n";
        let expected = [("on-open".to_owned(), 3), ("on-timer".to_owned(), 1)];
        assert_eq!(sites(log), BTreeMap::from(expected));
    }
}
