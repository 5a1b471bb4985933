//! Writes the report of a directory of results: terminal, JSON, page.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::args::Cli;
use super::{BROKEN, CommandError, INCONCLUSIVE, UNCOVERED, command_line, output, plans};
use crate::coverage::{Coverage, Demand, Verdict, verdict};
use crate::html::{self, Page};
use crate::plan::Row;
use crate::report::RunReport;
use crate::results::Results;
use crate::summary::{Summary, Trouble};

/// What scripts read.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    coverage: &'a Coverage,
}

/// `report`.
pub(super) fn again(cli: &Cli) -> Result<u8, CommandError> {
    let reports = Results::read(&cli.dir)?;
    render(cli, &reports, &[], Demand::Never)
}

/// Writes `report.json` and `report.html` and says the rest; returns the exit code that it amounts to.
pub(super) fn render(
    cli: &Cli,
    reports: &[RunReport],
    only: &[Row],
    demand: Demand,
) -> Result<u8, CommandError> {
    let summary = Summary::of(reports);
    let coverage = Coverage::of(&summary, only, demand);
    let json = Json {
        summary: &summary,
        coverage: &coverage,
    };
    let text = serde_json::to_string_pretty(&json).context("the report as JSON")?;
    write(&cli.dir.join("report.json"), &text)?;
    let commands = |trouble: &Trouble| {
        let file = plans::file(&cli.dir, &trouble.plan).display().to_string();
        ["replay", "shrink"]
            .map(|verb| command_line(Some(&trouble.plan), &[verb.to_owned(), file.clone()]))
            .to_vec()
    };
    let dir = cli.dir.display().to_string();
    let again = command_line(None, &["report".to_owned(), "--dir".to_owned(), dir]);
    let page = cli.dir.join("report.html");
    write(
        &page,
        &html::render(&Page {
            summary: &summary,
            command: &again,
            commands: &commands,
            coverage: &coverage,
        }),
    )?;
    if cli.json {
        output::line(&text);
    } else {
        output::line(&format!("\n{}", output::summary(&summary, &coverage)));
        for failure in &summary.failures {
            for command in commands(failure) {
                output::line(&format!("  {command}"));
            }
        }
        output::line(&format!("report: {}", page.display()));
    }
    Ok(match verdict(&summary, &coverage) {
        Verdict::Passed => 0,
        Verdict::Broken => BROKEN,
        Verdict::Uncovered => UNCOVERED,
        Verdict::Inconclusive => INCONCLUSIVE,
    })
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), CommandError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
