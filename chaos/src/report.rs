//! What came of runs: one report per run, whichever carrier it had. Plain data; campaigns add them up.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::{FaultPlan, Invariant, Row};

/// What came of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// What it was made of.
    pub plan: FaultPlan,
    /// Verdict.
    pub outcome: Outcome,
    /// What does not hold; empty unless it failed.
    pub violations: Vec<Violation>,
    /// Faults that were struck.
    pub strikes: Vec<Strike>,
    /// Recoveries of the job.
    pub recoveries: Vec<RecoveryTime>,
    /// How often each invariant was checked.
    pub checked: BTreeMap<Invariant, u64>,
    /// Hits of each fault point.
    pub sites: BTreeMap<String, u64>,
    /// Real or virtual time of the run, in ms.
    pub elapsed_ms: u64,
    /// Where logs, store listing and last status of a failed run are kept.
    pub kept: Option<PathBuf>,
}

/// Verdict on a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything holds.
    Pass,
    /// Something does not.
    Fail,
    /// The harness or the machine had trouble; neither a pass nor a failure, and counted.
    Inconclusive(String),
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen and what was expected.
    pub detail: String,
}

/// A fault that was struck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// Index in the plan.
    pub fault: usize,
    /// Its row.
    pub row: Row,
    /// Since the job was accepted, in ms.
    pub at_ms: u64,
    /// Who was hit, in the carrier's words.
    pub victim: String,
}

/// What a run tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It begins: its first line, the command that repeats it.
    Started(String),
    /// A fault was struck.
    Struck(Strike),
    /// The job has recovered.
    Recovered(RecoveryTime),
    /// What goes on now: "warming up", "checking".
    Phase(String),
}

/// One recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryTime {
    /// The row of the fault that it is attributed to; `None`: no fault of the plan explains it.
    pub row: Option<Row>,
    /// From the fault to the first record, in ms, where both are known.
    pub total_ms: Option<u64>,
    /// From the decision to the first record, in ms.
    pub restore_ms: u64,
    /// The cause, as the status names it.
    pub cause: String,
}
