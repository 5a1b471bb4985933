//! What a campaign has come to, of what it was to come to: rows of the catalogue that its carriers strike, and places in the code where
//! faults can be armed.
//!
//! Invariant: pure. What is missing is always said; it is held against a campaign only when that had runs enough to come to everything,
//! or when whoever called it asks for that.

use perennial_actors::fault::FaultSite;
use serde::Serialize;

use crate::catalogue;
use crate::plan::{Carrier, Row};
use crate::summary::Summary;

/// When something that is missing makes a campaign fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Never: the figures are only shown again.
    Never,
    /// Once it had as many runs of processes as there are rows to strike.
    Enough,
    /// Always.
    Always,
}

/// What is due and what of it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Rows that were to be struck.
    pub due: usize,
    /// Those that no run has struck.
    pub rows: Vec<Row>,
    /// Fault points that no run has come by.
    pub sites: Vec<&'static str>,
    /// Whether the campaign fails by it.
    pub is_demanded: bool,
}

impl Coverage {
    /// Of a campaign that aimed at some rows; at none: at all.
    #[must_use]
    pub fn of(summary: &Summary, only: &[Row], demand: Demand) -> Self {
        let mut due: Vec<Row> = if only.is_empty() {
            let is_struck = |entry: &&catalogue::Entry| !entry.carriers.is_empty();
            let all = catalogue::ALL.iter().filter(is_struck);
            all.map(|entry| entry.row).collect()
        } else {
            only.to_vec()
        };
        due.sort_unstable();
        due.dedup();
        let is_missing = |row: &Row| {
            let row = summary.row(*row);
            // What real processes can show, a simulation alone does not.
            if catalogue::entry(row.row).is_carried_by(Carrier::Process) {
                row.struck == row.simulated
            } else {
                row.struck == 0
            }
        };
        let sites = FaultSite::ALL.into_iter().map(FaultSite::name);
        let sites = sites.filter(|site| only.is_empty() && !summary.sites.contains_key(*site));
        Self {
            is_demanded: match demand {
                Demand::Never => false,
                Demand::Enough => summary.process_runs >= due.len() as u64,
                Demand::Always => true,
            },
            due: due.len(),
            rows: due.into_iter().filter(is_missing).collect(),
            sites: sites.collect(),
        }
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.rows.is_empty() && self.sites.is_empty()
    }

    /// Whether the campaign fails by it.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.is_demanded && !self.is_complete()
    }

    /// What is missing and how to come to it; `None`: nothing is.
    #[must_use]
    pub fn sentence(&self) -> Option<String> {
        let mut parts = Vec::new();
        let mut advice = "go on with --resume".to_owned();
        if !self.rows.is_empty() {
            let names: Vec<&str> = self.rows.iter().map(|row| row.as_str()).collect();
            parts.push(format!(
                "{} of {} rows are not struck: {}",
                names.len(),
                self.due,
                names.join(" ")
            ));
            advice.push_str(&format!(", or aim with --only {}", names.join(",")));
        }
        if !self.sites.is_empty() {
            parts.push(format!(
                "no run has come by the fault points {}",
                self.sites.join(", ")
            ));
            advice.push_str(", with more --simulated runs");
        }
        (!parts.is_empty()).then(|| format!("{}; {advice}", parts.join("; ")))
    }
}

/// How a campaign ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything held, and what was due was come to.
    Passed,
    /// An invariant is broken.
    Broken,
    /// Nothing is broken, and nothing much was shown.
    Inconclusive,
    /// Nothing is broken, and not everything was come to.
    Uncovered,
}

/// Inconclusive is no verdict on the engine; a campaign of which more than one run in five is shows too little.
#[must_use]
pub fn verdict(summary: &Summary, coverage: &Coverage) -> Verdict {
    if summary.failed > 0 {
        Verdict::Broken
    } else if summary.passed == 0 || summary.inconclusive * 5 > summary.runs {
        Verdict::Inconclusive
    } else if coverage.fails() {
        Verdict::Uncovered
    } else {
        Verdict::Passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use crate::report::{Outcome, RunReport};
    use crate::summary::tests::report;

    fn coverage(reports: &[RunReport], only: &[Row], demand: Demand) -> Coverage {
        Coverage::of(&Summary::of(reports), only, demand)
    }

    /// A run that struck every row that is struck at all, by processes and by the simulator, and came by every site.
    fn everything() -> [RunReport; 2] {
        let mut run = report(Profile::Mixed, 1, Outcome::Pass);
        let strike = run.strikes[0].clone();
        let strikes = |carrier| {
            let strike = strike.clone();
            catalogue::carried_by(carrier).map(move |row| crate::report::Strike {
                row,
                ..strike.clone()
            })
        };
        run.strikes = strikes(Carrier::Process).collect();
        let mut simulated = run.clone();
        simulated.plan.carrier = Carrier::Simulator;
        simulated.strikes = strikes(Carrier::Simulator).collect();
        let sites = FaultSite::ALL.into_iter();
        simulated.sites = sites.map(|site| (site.name().to_owned(), 1)).collect();
        [run, simulated]
    }

    /// Whole, then without one row, without one site, and with a row that only a simulation struck.
    #[test]
    fn each_row_and_each_site_must_be_come_to() {
        let whole = everything();
        let all = coverage(&whole, &[], Demand::Always);
        assert!(all.is_complete() && !all.fails(), "{all:?}");
        assert_eq!(all.sentence(), None);

        let [mut run, mut simulated] = whole;
        run.strikes.retain(|strike| strike.row != Row::P1);
        simulated.sites.remove("on-close");
        assert!(simulated.strikes.iter().any(|s| s.row == Row::P1));
        let found = coverage(&[run, simulated], &[], Demand::Always);
        assert_eq!(
            (&*found.rows, &*found.sites),
            (&[Row::P1][..], &["on-close"][..])
        );
        let sentence = found.sentence().unwrap();
        assert!(
            found.fails() && sentence.contains("--only P1"),
            "{sentence}"
        );
        assert!(sentence.contains("on-close"), "{sentence}");
    }

    /// Few runs are told what is missing and do not fail by it; as many runs as rows do; rows that are named count alone.
    #[test]
    fn a_small_campaign_does_not_fail_by_what_it_could_not_come_to() {
        let run = report(Profile::Process, 1, Outcome::Pass);
        let few = coverage(std::slice::from_ref(&run), &[], Demand::Enough);
        assert!(!few.is_complete() && !few.fails());
        assert!(coverage(std::slice::from_ref(&run), &[], Demand::Always).fails());
        let many = vec![run.clone(); few.due];
        assert!(coverage(&many, &[], Demand::Enough).fails());
        assert!(!coverage(&many, &[], Demand::Never).fails());

        let struck = run.strikes[0].row;
        let named = coverage(std::slice::from_ref(&run), &[struck], Demand::Enough);
        assert!(named.is_demanded && named.is_complete());
        assert!(coverage(&[run], &[Row::N2], Demand::Enough).fails());
    }

    /// A broken invariant is said first, then doubts about more than one run in five, then what is missing.
    #[test]
    fn the_worst_is_the_verdict() {
        let run = |seed, outcome| report(Profile::Process, seed, outcome);
        let (pass, fail) = (run(1, Outcome::Pass), run(2, Outcome::Fail));
        let doubt = run(3, Outcome::Inconclusive("out of memory".to_owned()));
        let of = |reports: &[&RunReport], demand| {
            let summary = Summary::of(reports.iter().copied());
            verdict(&summary, &Coverage::of(&summary, &[], demand))
        };
        assert_eq!(of(&[&pass], Demand::Enough), Verdict::Passed);
        assert_eq!(of(&[&pass], Demand::Always), Verdict::Uncovered);
        assert_eq!(of(&[&pass, &doubt], Demand::Always), Verdict::Inconclusive);
        let mostly = [&pass, &pass, &pass, &pass, &doubt];
        assert_eq!(of(&mostly, Demand::Enough), Verdict::Passed);
        assert_eq!(of(&[&pass, &doubt, &fail], Demand::Always), Verdict::Broken);
        assert_eq!(of(&[], Demand::Enough), Verdict::Inconclusive);
    }
}
