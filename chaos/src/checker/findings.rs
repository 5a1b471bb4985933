//! What was checked in a run and what did not hold, and how committed output is held against the fold (S1).
//!
//! Invariant: nothing here asks the engine whether it was right; what is compared comes from the store, from what was committed and
//! from the job's history, and is held against plain models.

use std::collections::BTreeMap;

use crate::plan::Invariant;
use crate::report::Violation;

/// Violations kept of one run; more say nothing new.
const VIOLATIONS_MAX: usize = 50;

/// What was checked in a run, and what did not hold.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// In the order of discovery.
    pub violations: Vec<Violation>,
    /// How often each was checked.
    pub checked: BTreeMap<Invariant, u64>,
}

impl Findings {
    /// Counts a check, and keeps what it found.
    pub fn check<E: std::fmt::Display>(&mut self, invariant: Invariant, result: Result<(), E>) {
        *self.checked.entry(invariant).or_default() += 1;
        if let Err(error) = result {
            self.violate(invariant, format!("{error:#}"));
        }
    }

    /// Counts a check whose findings are what does not hold.
    pub fn check_all(&mut self, invariant: Invariant, broken: Vec<String>) {
        *self.checked.entry(invariant).or_default() += 1;
        for detail in broken {
            self.violate(invariant, detail);
        }
    }

    /// Keeps something that does not hold.
    pub fn violate(&mut self, invariant: Invariant, detail: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { invariant, detail });
        }
    }

    /// Adds those of another part of the run.
    pub fn append(&mut self, other: Self) {
        for (invariant, count) in other.checked {
            *self.checked.entry(invariant).or_default() += count;
        }
        for violation in other.violations {
            self.violate(violation.invariant, violation.detail);
        }
    }
}

/// How committed output relates to the fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputRule {
    /// The job finished: each record once.
    Exact,
    /// The job ended before its input: no record that does not belong there, none twice.
    Part,
    /// The user allowed to repeat: nothing is missing, nothing is foreign.
    MayRepeat,
}

/// S1.
///
/// # Errors
/// Counting what differs, with examples.
pub fn check_output<T: Ord + std::fmt::Debug>(
    committed: &[T],
    expected: &[T],
    rule: OutputRule,
) -> Result<(), String> {
    /// Differences shown.
    const SHOWN_MAX: usize = 5;
    let mut counts: BTreeMap<&T, (i64, i64)> = BTreeMap::new();
    for record in expected {
        counts.entry(record).or_default().1 += 1;
    }
    for record in committed {
        counts.entry(record).or_default().0 += 1;
    }
    counts.retain(|_, (is, should)| match rule {
        OutputRule::Exact => is != should,
        OutputRule::Part => is > should,
        OutputRule::MayRepeat => is < should || *should == 0,
    });
    if counts.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = counts
        .iter()
        .take(SHOWN_MAX)
        .map(|(r, (is, should))| format!("{is} instead of {should} times {r:?}"))
        .collect();
    Err(format!(
        "{} records are committed, {} expected ({rule:?}); {} differ:\n{}",
        committed.len(),
        expected.len(),
        counts.len(),
        shown.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each rule, with a lost, a repeated and a foreign record.
    #[test]
    fn every_rule_sees_what_it_must() {
        let expected = [1, 2, 3];
        for (committed, holds) in [
            (&[3, 1, 2][..], [true, true, true]),
            (&[1, 3], [false, true, false]),
            (&[1, 2, 2, 3], [false, false, true]),
            (&[1, 2, 3, 9], [false, false, false]),
        ] {
            let rules = [OutputRule::Exact, OutputRule::Part, OutputRule::MayRepeat];
            for (rule, holds) in rules.into_iter().zip(holds) {
                let found = check_output(committed, &expected, rule);
                assert_eq!(found.is_ok(), holds, "{committed:?} {rule:?}: {found:?}");
            }
        }
    }
}
