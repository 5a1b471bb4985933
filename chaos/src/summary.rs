//! Adds reports of runs up: the figures of a campaign.
//!
//! Invariant: pure. Every report counts once; a run that proves nothing (inconclusive) is counted as such and its recoveries and strikes are
//! still shown; nothing is averaged that was not measured.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::catalogue;
use crate::plan::{Carrier, FaultPlan, Invariant, Row};
use crate::report::{Outcome, RunReport, Violation};

/// Failing and inconclusive runs that are kept with all they said; the others are counted.
pub const KEPT_MAX: usize = 200;

/// What came of many runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// All.
    pub runs: u64,
    /// Everything held.
    pub passed: u64,
    /// Something did not.
    pub failed: u64,
    /// Neither.
    pub inconclusive: u64,
    /// Of these, runs of real processes.
    pub process_runs: u64,
    /// Of these, simulated ones.
    pub simulator_runs: u64,
    /// Faults that were struck.
    pub strikes: u64,
    /// Recoveries of jobs.
    pub recoveries: u64,
    /// Those that no fault of the plan explains.
    pub unexplained: u64,
    /// Checks of all invariants.
    pub checks: u64,
    /// Of process runs, in ms.
    pub real_ms: u64,
    /// Of simulated runs, in ms.
    pub virtual_ms: u64,
    /// Each row of the catalogue, in order.
    pub rows: Vec<RowSummary>,
    /// Each invariant, in order.
    pub invariants: Vec<InvariantSummary>,
    /// Hits of each fault point.
    pub sites: BTreeMap<String, u64>,
    /// Failing runs.
    pub failures: Vec<Trouble>,
    /// Inconclusive runs.
    pub doubts: Vec<Trouble>,
}

/// A row of the catalogue in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct RowSummary {
    /// Which.
    pub row: Row,
    /// What happens.
    pub title: &'static str,
    /// Faults of plans.
    pub planned: u64,
    /// Faults that were struck.
    pub struck: u64,
    /// Of these, in simulated runs.
    pub simulated: u64,
    /// Runs that it was struck in.
    pub runs: u64,
    /// Failing ones among them.
    pub failed: u64,
    /// Recoveries of real processes.
    pub process: Times,
    /// Simulated recoveries, in virtual time.
    pub simulator: Times,
}

/// How long recoveries took, from the fault to the first record.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Times {
    /// Recoveries.
    pub recoveries: u64,
    /// Of those with a known time, in ms, nearest rank.
    pub p50_ms: Option<u64>,
    /// See `p50_ms`.
    pub p95_ms: Option<u64>,
    /// See `p50_ms`.
    pub max_ms: Option<u64>,
    /// Sorted.
    #[serde(skip)]
    pub samples: Vec<u64>,
}

/// An invariant in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct InvariantSummary {
    /// Which.
    pub invariant: Invariant,
    /// What it says.
    pub title: &'static str,
    /// How often.
    pub checked: u64,
    /// How often it did not hold.
    pub violated: u64,
}

/// A run that did not pass.
#[derive(Debug, Clone, Serialize)]
pub struct Trouble {
    /// What it was made of.
    pub plan: FaultPlan,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Why it proves nothing.
    pub reason: Option<String>,
    /// Where its logs are.
    pub kept: Option<std::path::PathBuf>,
}

impl Summary {
    /// Of some reports.
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a RunReport>) -> Self {
        let mut summary = Self {
            rows: catalogue::ALL.iter().map(RowSummary::new).collect(),
            invariants: Invariant::ALL.iter().map(InvariantSummary::new).collect(),
            ..Self::default()
        };
        for report in reports {
            summary.add(report);
        }
        for row in &mut summary.rows {
            row.process.close();
            row.simulator.close();
        }
        summary
    }

    fn add(&mut self, report: &RunReport) {
        self.runs += 1;
        match report.plan.carrier {
            Carrier::Process => {
                self.process_runs += 1;
                self.real_ms += report.elapsed_ms;
            }
            Carrier::Simulator => {
                self.simulator_runs += 1;
                self.virtual_ms += report.elapsed_ms;
            }
        }
        let is_failed = report.outcome == Outcome::Fail;
        match &report.outcome {
            Outcome::Pass => self.passed += 1,
            Outcome::Fail => {
                self.failed += 1;
                keep(&mut self.failures, report, None);
            }
            Outcome::Inconclusive(reason) => {
                self.inconclusive += 1;
                keep(&mut self.doubts, report, Some(reason));
            }
        }
        for fault in &report.plan.faults {
            self.rows[fault.row() as usize].planned += 1;
        }
        let mut struck = BTreeSet::new();
        for strike in &report.strikes {
            self.strikes += 1;
            let row = &mut self.rows[strike.row as usize];
            row.struck += 1;
            row.simulated += u64::from(report.plan.carrier == Carrier::Simulator);
            struck.insert(strike.row);
        }
        for row in struck {
            self.rows[row as usize].runs += 1;
            self.rows[row as usize].failed += u64::from(is_failed);
        }
        for recovery in &report.recoveries {
            self.recoveries += 1;
            let Some(row) = recovery.row else {
                self.unexplained += 1;
                continue;
            };
            let row = &mut self.rows[row as usize];
            let times = match report.plan.carrier {
                Carrier::Process => &mut row.process,
                Carrier::Simulator => &mut row.simulator,
            };
            times.recoveries += 1;
            times.samples.extend(recovery.total_ms);
        }
        for (invariant, count) in &report.checked {
            self.checks += count;
            self.invariants[*invariant as usize].checked += count;
        }
        for violation in &report.violations {
            self.invariants[violation.invariant as usize].violated += 1;
        }
        for (site, hits) in &report.sites {
            *self.sites.entry(site.clone()).or_default() += hits;
        }
    }

    /// Rows that plans held and no run struck.
    #[must_use]
    pub fn missed(&self) -> Vec<Row> {
        let is_missed = |row: &&RowSummary| row.planned > 0 && row.struck == 0;
        self.rows
            .iter()
            .filter(is_missed)
            .map(|row| row.row)
            .collect()
    }

    /// The row's numbers.
    #[must_use]
    pub fn row(&self, row: Row) -> &RowSummary {
        &self.rows[row as usize]
    }
}

fn keep(troubles: &mut Vec<Trouble>, report: &RunReport, reason: Option<&String>) {
    if troubles.len() < KEPT_MAX {
        troubles.push(Trouble {
            plan: report.plan.clone(),
            violations: report.violations.clone(),
            reason: reason.cloned(),
            kept: report.kept.clone(),
        });
    }
}

impl RowSummary {
    fn new(entry: &catalogue::Entry) -> Self {
        Self {
            row: entry.row,
            title: entry.title,
            planned: 0,
            struck: 0,
            simulated: 0,
            runs: 0,
            failed: 0,
            process: Times::default(),
            simulator: Times::default(),
        }
    }
}

impl InvariantSummary {
    fn new(invariant: &Invariant) -> Self {
        Self {
            invariant: *invariant,
            title: catalogue::invariant(*invariant),
            checked: 0,
            violated: 0,
        }
    }
}

impl Times {
    fn close(&mut self) {
        self.samples.sort_unstable();
        self.p50_ms = percentile(&self.samples, 50);
        self.p95_ms = percentile(&self.samples, 95);
        self.max_ms = self.samples.last().copied();
    }
}

/// Nearest rank in sorted samples.
#[must_use]
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::job::Jobs;
    use crate::profile::{Draw, Profile};
    use crate::report::{RecoveryTime, Strike};

    /// A report as a carrier would write it: each fault struck, one recovery each.
    pub(crate) fn report(profile: Profile, seed: u64, outcome: Outcome) -> RunReport {
        let jobs = Jobs::stock();
        let plan = Draw {
            profile,
            only: &[],
            jobs: &jobs.all(),
            has_points: true,
            store: None,
        }
        .plan(seed)
        .unwrap();
        let strikes: Vec<Strike> = plan
            .faults
            .iter()
            .enumerate()
            .map(|(fault, planned)| Strike {
                fault,
                row: planned.row(),
                at_ms: 1000 * (fault as u64 + 1),
                victim: format!("{:?}", planned.target),
            })
            .collect();
        let recoveries = strikes
            .iter()
            .map(|strike| RecoveryTime {
                row: Some(strike.row),
                total_ms: Some(100 + seed * 37 % 900 + strike.row as u64 * 20),
                restore_ms: 40,
                cause: "lost TaskManager".to_owned(),
            })
            .collect();
        let violations = match outcome {
            Outcome::Fail => vec![Violation {
                invariant: Invariant::S1,
                detail: "output differs from the sequential fold: 3 <lost> & 1 repeated".to_owned(),
            }],
            _ => Vec::new(),
        };
        RunReport {
            plan,
            outcome,
            violations,
            strikes,
            recoveries,
            checked: [(Invariant::S1, 1), (Invariant::S2, 12 + seed)].into(),
            sites: [("AfterUpload".to_owned(), seed)].into(),
            elapsed_ms: 12_000 + seed,
            kept: None,
        }
    }

    /// Sums of three runs, by hand.
    #[test]
    fn every_run_strike_and_recovery_counts_once() {
        let reports = [
            report(Profile::Process, 1, Outcome::Pass),
            report(Profile::Process, 2, Outcome::Fail),
            report(
                Profile::Network,
                3,
                Outcome::Inconclusive("no memory".to_owned()),
            ),
        ];
        let summary = Summary::of(&reports);
        assert_eq!(
            (
                summary.runs,
                summary.passed,
                summary.failed,
                summary.inconclusive
            ),
            (3, 1, 1, 1)
        );
        let strikes: usize = reports.iter().map(|r| r.strikes.len()).sum();
        assert_eq!(summary.strikes, strikes as u64);
        assert_eq!(
            summary.rows.iter().map(|r| r.struck).sum::<u64>(),
            strikes as u64
        );
        assert_eq!(
            summary
                .rows
                .iter()
                .map(|r| r.process.recoveries)
                .sum::<u64>(),
            strikes as u64
        );
        assert_eq!(summary.checks, 3 + 12 * 3 + 6);
        assert_eq!(summary.invariants[0].violated, 1);
        assert_eq!(summary.sites["AfterUpload"], 6);
        assert_eq!(summary.failures[0].plan, reports[1].plan);
        assert_eq!(summary.doubts[0].reason.as_deref(), Some("no memory"));
        assert!(summary.missed().is_empty());
    }

    /// A fault that its plan held and the run did not come to is no coverage.
    #[test]
    fn a_row_that_was_planned_and_not_struck_is_missed() {
        let mut lone = report(Profile::Clock, 1, Outcome::Pass);
        let rows = lone.plan.rows();
        lone.strikes.clear();
        let summary = Summary::of([&lone]);
        assert_eq!(summary.missed(), rows);
    }

    /// Nearest rank, from the definition.
    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&samples, 50), Some(50));
        assert_eq!(percentile(&samples, 95), Some(95));
        assert_eq!(percentile(&[7], 50), Some(7));
        assert_eq!(percentile(&[7, 9], 95), Some(9));
        assert_eq!(percentile(&[], 50), None);
    }
}
