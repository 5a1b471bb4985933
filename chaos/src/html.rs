//! The report of a campaign as one HTML page that needs nothing else: no script, no font, no file beside it.
//!
//! Invariant: pure, and whatever a log or a panic said is escaped. It shows what [`Summary`] holds and decides nothing.

mod plot;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::catalogue;
use crate::coverage::{self, Coverage, Verdict};
use crate::plan::{Carrier, Row, Section};
use crate::report::Violation;
use crate::story;
use crate::summary::{RowSummary, Summary, Trouble};

const STYLE: &str = include_str!("html/style.css");

/// What the page shows beside the figures.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    /// The figures.
    pub summary: &'a Summary,
    /// The command that makes the page again.
    pub command: &'a str,
    /// Repeats and shrinks the run of a plan: given its profile and seed, a line for each.
    pub commands: &'a dyn Fn(&Trouble) -> Vec<String>,
    /// What it was to come to and has not.
    pub coverage: &'a Coverage,
}

/// Renders the page.
#[must_use]
pub fn render(page: &Page<'_>) -> String {
    let summary = page.summary;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Perennial chaos report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Perennial chaos report" }
                    (verdict(page))
                }
                (tiles(summary))
                @if !summary.failures.is_empty() { (failures(page)) }
                (recoveries(summary))
                (faults(summary))
                (invariants(summary))
                (coverage(page))
                @if !summary.doubts.is_empty() { (doubts(page)) }
                footer {
                    p { "Made again by " code { (page.command) } "." }
                    p {
                        "Times are from the moment a fault is struck to the first record that is processed after it; percentiles are by nearest rank. "
                        "A run is inconclusive when harness or machine had trouble: it counts neither as passed nor as failed."
                    }
                }
            }
        }
    }
    .into_string()
}

/// `12 345`.
#[must_use]
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            // Does not break, and is as narrow as in a table.
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

fn millis(millis: u64) -> String {
    story::duration(std::time::Duration::from_millis(millis))
}

fn verdict(page: &Page<'_>) -> Markup {
    let summary = page.summary;
    let (class, word) = match coverage::verdict(summary, page.coverage) {
        Verdict::Broken => ("bad", "Failed"),
        _ if summary.runs == 0 => ("doubt", "Nothing was run"),
        Verdict::Inconclusive => ("doubt", "Inconclusive"),
        Verdict::Uncovered => ("bad", "Not covered"),
        Verdict::Passed => ("good", "Passed"),
    };
    html! {
        p class={ "verdict " (class) } {
            strong { (word) }
            span {
                @if summary.failed > 0 {
                    (number(summary.failed)) " of " (number(summary.runs)) " runs broke an invariant."
                } @else {
                    "No run of " (number(summary.runs)) " broke an invariant in "
                    (number(summary.checks)) " checks, under " (number(summary.strikes)) " faults."
                }
                @if summary.inconclusive > 0 { " " (number(summary.inconclusive)) " runs are inconclusive." }
                @if page.coverage.fails() { " Not everything was come to: see Coverage." }
            }
        }
    }
}

fn tiles(summary: &Summary) -> Markup {
    let killed = |rows: &[Row]| -> u64 {
        let rows = rows.iter().map(|row| summary.row(*row));
        rows.map(|row| row.struck - row.simulated).sum()
    };
    let tiles = [
        ("runs", number(summary.runs)),
        ("passed", number(summary.passed)),
        ("failed", number(summary.failed)),
        ("inconclusive", number(summary.inconclusive)),
        ("faults", number(summary.strikes)),
        (
            "kill -9 of TaskManagers",
            number(killed(&[Row::P1, Row::P2, Row::P9, Row::A8])),
        ),
        (
            "kill -9 of JobManagers",
            number(killed(&[Row::P3, Row::P4])),
        ),
        ("recoveries", number(summary.recoveries)),
        ("checks", number(summary.checks)),
    ];
    html! {
        section class="tiles" {
            @for (name, value) in &tiles {
                div class=(if *name == "failed" && summary.failed > 0 { "tile bad" } else { "tile" }) {
                    b { (value) } span { (name) }
                }
            }
        }
        p class="note" {
            @if summary.process_runs > 0 {
                (number(summary.process_runs)) " runs of real processes, "
                (millis(summary.real_ms)) " in all. "
            }
            @if summary.simulator_runs > 0 {
                (number(summary.simulator_runs)) " simulated runs, "
                (millis(summary.virtual_ms)) " of virtual time in all. "
            }
        }
    }
}

fn recoveries(summary: &Summary) -> Markup {
    let of = |carrier: Carrier| {
        let rows: Vec<plot::Line<'_>> = summary
            .rows
            .iter()
            .map(|row| plot::Line {
                name: row.row.as_str(),
                title: row.title,
                times: match carrier {
                    Carrier::Process => &row.process,
                    Carrier::Simulator => &row.simulator,
                },
            })
            .filter(|line| !line.times.samples.is_empty())
            .collect();
        rows
    };
    let plots = [
        ("Recovery time, real processes", of(Carrier::Process)),
        (
            "Recovery time, simulator (virtual time)",
            of(Carrier::Simulator),
        ),
    ];
    html! {
        @for (title, lines) in plots.iter().filter(|(_, lines)| !lines.is_empty()) {
            section {
                h2 { (title) }
                p class="legend" {
                    span class="key sample" {} "one recovery"
                    span class="key span" {} "p50 to p95"
                    span class="key p50" {} "p50"
                    span class="key max" {} "max"
                }
                (plot::render(lines))
            }
        }
        @if summary.unexplained > 0 {
            p class="note" {
                (number(summary.unexplained)) " recoveries are explained by no single fault of their plan and are not in the plot."
            }
        }
    }
}

fn section_name(section: Section) -> &'static str {
    match section {
        Section::Process => "Processes",
        Section::Actor => "Actors and user code",
        Section::Network => "Network",
        Section::Store => "Object store",
        Section::Disk => "Disk",
        Section::Clock => "Clocks",
        Section::Configuration => "Checkpoints, slots, builds, rescaling",
    }
}

const SECTIONS: &[Section] = &[
    Section::Process,
    Section::Actor,
    Section::Network,
    Section::Store,
    Section::Disk,
    Section::Clock,
    Section::Configuration,
];

fn faults(summary: &Summary) -> Markup {
    let most = summary.rows.iter().map(|r| r.struck).max().unwrap_or(0);
    let struck = |section: Section| {
        let is_here = move |row: &&RowSummary| row.row.section() == section && row.struck > 0;
        summary.rows.iter().filter(is_here)
    };
    html! {
        section {
            h2 { "Faults" }
            table {
                thead { tr {
                    th { "Row" } th { "Fault" } th class="wide" { "Expected" }
                    th class="number" { "Struck" } th {} th class="number" { "Recoveries" } th class="number" { "Failed runs" }
                } }
                @for section in SECTIONS.iter().filter(|s| struck(**s).next().is_some()) {
                    tbody {
                        tr class="group" { th colspan="7" { (section_name(*section)) } }
                        @for row in struck(*section) {
                            tr {
                                td class="row" { (row.row) }
                                td { (row.title) }
                                td class="wide quiet" { (catalogue::entry(row.row).expected) }
                                td class="number" { (number(row.struck)) }
                                td class="bar" { span style={ "width:" (row.struck * 100 / most.max(1)) "%" } {} }
                                td class="number" { (number(row.process.recoveries + row.simulator.recoveries)) }
                                td class=(if row.failed > 0 { "number bad" } else { "number" }) { (number(row.failed)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn invariants(summary: &Summary) -> Markup {
    html! {
        section {
            h2 { "Invariants" }
            table {
                thead { tr {
                    th { "Id" } th { "What must hold" } th class="number" { "Checked" } th class="number" { "Broken" }
                } }
                tbody {
                    @for line in &summary.invariants {
                        tr class=(if line.checked == 0 { "quiet" } else { "" }) {
                            td class="row" { (line.invariant) }
                            td { (line.title) }
                            td class="number" { (number(line.checked)) }
                            td class=(if line.violated > 0 { "number bad" } else { "number" }) { (number(line.violated)) }
                        }
                    }
                }
            }
        }
    }
}

fn trouble(page: &Page<'_>, trouble: &Trouble) -> Markup {
    let mut story = story::tell(&trouble.plan).into_iter();
    html! {
        details open[!trouble.violations.is_empty()] {
            summary {
                "seed " (trouble.plan.seed) ", profile " (trouble.plan.profile) ": "
                @if let Some(reason) = &trouble.reason { (first_line(reason)) }
                @else { (broken(&trouble.violations)) }
            }
            @for violation in &trouble.violations {
                p { b { (violation.invariant) } ": " (catalogue::invariant(violation.invariant)) "." }
                pre { (violation.detail) }
            }
            @if let Some(reason) = &trouble.reason { pre { (reason) } }
            p class="quiet" { (story.next().unwrap_or_default()) }
            ul class="story" { @for line in story { li { (line) } } }
            @for command in (page.commands)(trouble) { pre class="command" { (command) } }
            @if let Some(kept) = &trouble.kept { p { "Logs, store listing and status: " code { (kept.display()) } } }
        }
    }
}

/// Invariants, each once.
fn broken(violations: &[Violation]) -> String {
    let mut names: Vec<&str> = violations.iter().map(|v| v.invariant.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn failures(page: &Page<'_>) -> Markup {
    html! {
        section {
            h2 { "Failing runs" }
            @for failure in &page.summary.failures { (trouble(page, failure)) }
            (rest(page.summary.failed, page.summary.failures.len()))
        }
    }
}

fn doubts(page: &Page<'_>) -> Markup {
    html! {
        section {
            h2 { "Inconclusive runs" }
            @for doubt in &page.summary.doubts { (trouble(page, doubt)) }
            (rest(page.summary.inconclusive, page.summary.doubts.len()))
        }
    }
}

fn rest(all: u64, shown: usize) -> Markup {
    let rest = all.saturating_sub(shown as u64);
    html! { @if rest > 0 { p class="note" { "and " (number(rest)) " more" } } }
}

fn coverage(page: &Page<'_>) -> Markup {
    let (summary, coverage) = (page.summary, page.coverage);
    let planned = summary.missed();
    html! {
        section {
            h2 { "Coverage" }
            @if coverage.is_complete() {
                p { "All of " (coverage.due) " rows that were to be struck were struck." }
            }
            @if !coverage.rows.is_empty() {
                p { (coverage.rows.len()) " of " (coverage.due) " rows that were to be struck are not struck so far:" }
                ul class="rows" { @for row in &coverage.rows {
                    li { b { (row) } " " (catalogue::entry(*row).title)
                        @if planned.contains(row) { " " em class="bad" { "planned, never struck" } }
                    }
                } }
            }
            @if !coverage.sites.is_empty() {
                p { "Fault points that no run came by: " @for site in &coverage.sites { code { (site) } " " } }
            }
            @if !summary.sites.is_empty() {
                details {
                    summary { (number(summary.sites.len() as u64)) " fault points were come by "
                        (number(summary.sites.values().sum())) " times" }
                    table { tbody { @for (site, hits) in &summary.sites {
                        tr { td { code { (site) } } td class="number" { (number(*hits)) } }
                    } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::Demand;
    use crate::profile::Profile;
    use crate::report::Outcome;
    use crate::summary::tests::report;

    fn page(summary: &Summary) -> String {
        render(&Page {
            summary,
            command: "perennial-chaos report",
            commands: &|trouble| vec![format!("perennial-chaos run --seed {}", trouble.plan.seed)],
            coverage: &Coverage::of(summary, &[], Demand::Always),
        })
    }

    /// One file, no script, no address; everything of the summary is there, and what a run said is escaped.
    #[test]
    fn the_page_is_self_contained_and_escapes_what_runs_said() {
        let reports: Vec<_> = (0..40)
            .map(|seed| {
                let outcome = match seed {
                    7 => Outcome::Fail,
                    9 => Outcome::Inconclusive("out of <memory>".to_owned()),
                    _ => Outcome::Pass,
                };
                report(Profile::of_campaign(seed), seed, outcome)
            })
            .collect();
        let summary = Summary::of(&reports);
        let text = page(&summary);
        for word in [
            "<script", "http://", "https://", "src=", "<link", "<lost>", "<memory>", "@import",
        ] {
            assert!(!text.contains(word), "{word}");
        }
        for word in [
            "3 &lt;lost&gt; &amp; 1 repeated",
            "out of &lt;memory&gt;",
            "1 of 40 runs broke an invariant",
            "perennial-chaos run --seed 7",
            "kill -9 of a TaskManager",
            "<svg",
        ] {
            assert!(text.contains(word), "{word}");
        }
        for row in summary.rows.iter().filter(|row| row.struck > 0) {
            assert!(text.contains(row.title), "{}", row.title);
        }
    }

    /// Nothing at all, and nothing but doubts, are no success.
    #[test]
    fn a_page_without_proof_does_not_say_passed() {
        assert!(page(&Summary::of([])).contains("Nothing was run"));
        let doubt = report(
            Profile::Process,
            1,
            Outcome::Inconclusive("killed".to_owned()),
        );
        assert!(page(&Summary::of([&doubt])).contains("<strong>Inconclusive"));
        let mut unstruck = report(Profile::Process, 1, Outcome::Pass);
        unstruck.strikes.clear();
        assert!(page(&Summary::of([&unstruck])).contains("<strong>Not covered"));
    }
}
