//! What the command prints: lines for people, JSON for scripts.
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::catalogue::{self, Entry};
use crate::coverage::Coverage;
use crate::html::number;
use crate::plan::{Carrier, FaultPlan, Row};
use crate::report::{Outcome, Progress, RunReport, Violation};
use crate::story;
use crate::summary::{Summary, Times};

/// Violations of one run that are printed.
const VIOLATIONS_MAX: usize = 5;
/// Characters of each.
const DETAIL_MAX: usize = 600;

pub(super) fn line(text: &str) {
    // Whoever reads may have gone: what is found out and kept goes on.
    let _ = writeln!(std::io::stdout(), "{text}");
}

pub(super) fn note(text: &str) {
    // As above.
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

fn millis(millis: u64) -> String {
    story::duration(Duration::from_millis(millis))
}

/// The plan in sentences, indented.
pub(super) fn plan(plan: &FaultPlan) -> String {
    let mut text = String::new();
    for (index, line) in story::tell(plan).iter().enumerate() {
        let indent = if index == 0 { "" } else { "  " };
        // Writing into a string cannot fail.
        _ = writeln!(text, "{indent}{line}");
    }
    text
}

/// What happens right now; `None`: nothing for people.
pub(super) fn progress(plan: &FaultPlan, progress: &Progress) -> Option<String> {
    match progress {
        // The command has said it already, with its own name.
        Progress::Started(_) => None,
        Progress::Struck(strike) => {
            let fault = plan.faults.get(strike.fault).map(story::sentence);
            let fault = fault.unwrap_or_else(|| strike.row.to_string());
            Some(format!(
                "{:>8}  struck {}. {fault} ({})",
                millis(strike.at_ms),
                strike.fault + 1,
                strike.victim
            ))
        }
        Progress::Recovered(recovery) => {
            let time = recovery.total_ms.unwrap_or(recovery.restore_ms);
            let of = recovery.row.map_or("?", Row::as_str);
            Some(format!(
                "          recovered from {of} in {}: {}",
                millis(time),
                recovery.cause
            ))
        }
        Progress::Phase(phase) => Some(format!("          {phase}")),
    }
}

/// `P1 N2 O1`.
pub(super) fn rows(rows: &[Row]) -> String {
    let names: Vec<&str> = rows.iter().map(|row| row.as_str()).collect();
    names.join(" ")
}

/// Invariants, each once, in order: `S1 S2`.
fn broken(violations: &[Violation]) -> String {
    let names: BTreeSet<&str> = violations.iter().map(|v| v.invariant.as_str()).collect();
    Vec::from_iter(names).join(" ")
}

/// What does not hold, a few of them, each cut where it gets long; a report has all.
pub(super) fn violations(violations: &[Violation]) -> String {
    let mut text = String::new();
    for violation in violations.iter().take(VIOLATIONS_MAX) {
        let cut = violation.detail.char_indices().nth(DETAIL_MAX);
        let detail = match cut {
            Some((at, _)) => format!("{} …", &violation.detail[..at]),
            None => violation.detail.clone(),
        };
        _ = writeln!(
            text,
            "{} is broken: {}\n  {detail}",
            violation.invariant,
            catalogue::invariant(violation.invariant),
        );
    }
    let rest = violations.len().saturating_sub(VIOLATIONS_MAX);
    if rest > 0 {
        _ = writeln!(text, "and {rest} more violations");
    }
    text
}

/// One line about a run.
pub(super) fn run_line(report: &RunReport) -> String {
    let outcome = match &report.outcome {
        Outcome::Pass => "pass".to_owned(),
        Outcome::Fail => {
            format!("FAIL {}", broken(&report.violations))
        }
        Outcome::Inconclusive(reason) => {
            format!(
                "inconclusive: {}",
                reason.lines().next().unwrap_or_default()
            )
        }
    };
    format!(
        "{} seed {}: {outcome} in {}; {} of {} faults struck ({}), {} recoveries",
        report.plan.profile,
        report.plan.seed,
        millis(report.elapsed_ms),
        report.strikes.len(),
        report.plan.faults.len(),
        rows(&report.plan.rows()),
        report.recoveries.len()
    )
}

/// All about a run that has ended.
pub(super) fn run(report: &RunReport) -> String {
    let mut text = run_line(report);
    let checks: u64 = report.checked.values().sum();
    _ = write!(text, "\n{} checks:", number(checks));
    for (invariant, count) in &report.checked {
        _ = write!(text, " {invariant} {}", number(*count));
    }
    if !report.violations.is_empty() {
        _ = write!(text, "\n\n{}", violations(&report.violations).trim_end());
    }
    if let Outcome::Inconclusive(reason) = &report.outcome {
        _ = write!(text, "\n\nproves nothing: {reason}");
    }
    if let Some(kept) = &report.kept {
        _ = write!(text, "\nlogs, store listing and status: {}", kept.display());
    }
    text
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.iter().map(|h| h.to_uppercase()));
    table
}

/// A campaign in a screenful.
pub(super) fn summary(summary: &Summary, coverage: &Coverage) -> String {
    let mut text = figures(summary);
    if let Some(sentence) = coverage.sentence() {
        let word = if coverage.fails() {
            "NOT COVERED"
        } else {
            "not covered yet"
        };
        _ = writeln!(text, "{word}: {sentence}");
    }
    text
}

/// Runs, faults, recoveries, checks, and what was not well.
pub(super) fn figures(summary: &Summary) -> String {
    let mut text = format!(
        "{} runs: {} passed, {} failed, {} inconclusive; {} faults, {} recoveries, {} checks\n",
        number(summary.runs),
        number(summary.passed),
        number(summary.failed),
        number(summary.inconclusive),
        number(summary.strikes),
        number(summary.recoveries),
        number(summary.checks)
    );
    let mut lines = table(&[
        "row",
        "fault",
        "struck",
        "recoveries",
        "p50",
        "p95",
        "max",
        "failed",
    ]);
    for index in 2..8 {
        if let Some(column) = lines.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in summary.rows.iter().filter(|row| row.struck > 0) {
        // Virtual time is no time: it is shown where there is nothing else.
        let times = if row.process.samples.is_empty() {
            &row.simulator
        } else {
            &row.process
        };
        lines.add_row(vec![
            row.row.to_string(),
            row.title.to_owned(),
            number(row.struck),
            number(row.process.recoveries + row.simulator.recoveries),
            time(times.p50_ms),
            time(times.p95_ms),
            time(times.max_ms),
            if row.failed > 0 {
                number(row.failed)
            } else {
                String::new()
            },
        ]);
    }
    let in_all: Vec<u64> = all_times(summary);
    if !in_all.is_empty() {
        lines.add_row(vec![
            String::new(),
            "all".to_owned(),
            number(summary.strikes),
            number(summary.recoveries),
            time(crate::summary::percentile(&in_all, 50)),
            time(crate::summary::percentile(&in_all, 95)),
            time(in_all.last().copied()),
            String::new(),
        ]);
    }
    _ = writeln!(text, "\n{}", lines.trim_fmt());
    let checked: Vec<String> = summary
        .invariants
        .iter()
        .filter(|line| line.checked > 0 || line.violated > 0)
        .map(|line| match line.violated {
            0 => format!("{} {}", line.invariant, number(line.checked)),
            n => format!("{} {} ({n} BROKEN)", line.invariant, number(line.checked)),
        })
        .collect();
    _ = writeln!(text, "\nchecked: {}", checked.join(", "));
    for doubt in &summary.doubts {
        let reason = doubt.reason.as_deref().unwrap_or_default();
        _ = writeln!(
            text,
            "inconclusive: {} seed {}: {}",
            doubt.plan.profile,
            doubt.plan.seed,
            reason.lines().next().unwrap_or_default()
        );
    }
    for failure in &summary.failures {
        _ = writeln!(
            text,
            "FAILED: {} seed {}: {}",
            failure.plan.profile,
            failure.plan.seed,
            broken(&failure.violations)
        );
    }
    text
}

/// Of process runs, or, when there are none, of simulated ones.
fn all_times(summary: &Summary) -> Vec<u64> {
    let of = |pick: fn(&crate::summary::RowSummary) -> &Times| {
        let mut all: Vec<u64> = summary
            .rows
            .iter()
            .flat_map(|row| pick(row).samples.iter().copied())
            .collect();
        all.sort_unstable();
        all
    };
    let real = of(|row| &row.process);
    if real.is_empty() {
        of(|row| &row.simulator)
    } else {
        real
    }
}

fn time(time: Option<u64>) -> String {
    time.map_or_else(|| "-".to_owned(), millis)
}

/// The catalogue, a line each.
pub(super) fn catalogue() -> String {
    let mut lines = table(&["row", "fault", "expected", "struck by"]);
    for entry in catalogue::ALL {
        lines.add_row(vec![
            entry.row.to_string(),
            entry.title.to_owned(),
            entry.expected.to_owned(),
            shown_by(entry),
        ]);
    }
    let mut text = lines.trim_fmt();
    text.push_str("\n\nNot struck by plans, and why:");
    let unstruck = |entry: &&Entry| entry.carriers.is_empty() || entry.later.is_some();
    for entry in catalogue::ALL.iter().filter(unstruck) {
        let tests =
            (!entry.tests.is_empty()).then(|| format!("shown by {}", entry.tests.join(", ")));
        let later = entry.later.map(|why| format!("later: {why}"));
        let reasons: Vec<String> = tests.into_iter().chain(later).collect();
        _ = write!(text, "\n {:<4} {}", entry.row, reasons.join("; "));
    }
    text
}

fn shown_by(entry: &Entry) -> String {
    let carriers: Vec<&str> = entry
        .carriers
        .iter()
        .map(|carrier| match carrier {
            Carrier::Simulator => "simulator",
            Carrier::Process => "processes",
        })
        .collect();
    match (carriers.as_slice(), entry.tests, entry.later) {
        ([], [], Some(_)) => "later".to_owned(),
        ([], tests, _) if !tests.is_empty() => "tests".to_owned(),
        (carriers, _, _) => carriers.join(", "),
    }
}

/// A row with all that is known of it.
pub(super) fn entry(entry: &Entry) -> String {
    let mut text = format!(
        "{}  {}\n    expected: {}\n",
        entry.row, entry.title, entry.expected
    );
    _ = writeln!(text, "    struck by: {}", shown_by(entry));
    for invariant in catalogue::ALWAYS.iter().chain(entry.invariants) {
        _ = writeln!(
            text,
            "    checked: {invariant} {}",
            catalogue::invariant(*invariant)
        );
    }
    for test in entry.tests {
        _ = writeln!(text, "    tests: {test}");
    }
    if let Some(later) = entry.later {
        _ = writeln!(text, "    later: {later}");
    }
    text
}
