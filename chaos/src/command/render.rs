//! Writes the report of a directory of results: terminal, JSON, page.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::args::Cli;
use super::{
    BROKEN, CommandError, INCONCLUSIVE, UNCOVERED, campaign, command_line, output, plan_file,
};
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
    /// What was to be covered and was not.
    missed: &'a [Row],
}

/// `report`.
pub(super) fn again(cli: &Cli) -> Result<u8, CommandError> {
    let reports = Results::read(&cli.dir)?;
    render(cli, &reports, &[])
}

/// Writes `report.json` and `report.html` and says the rest; returns the exit code that it amounts to.
pub(super) fn render(cli: &Cli, reports: &[RunReport], due: &[Row]) -> Result<u8, CommandError> {
    let summary = Summary::of(reports);
    let missed = campaign::missed(&summary, due);
    let json = Json {
        summary: &summary,
        missed: &missed,
    };
    let text = serde_json::to_string_pretty(&json).context("the report as JSON")?;
    write(&cli.dir.join("report.json"), &text)?;
    let commands = |trouble: &Trouble| {
        let file = plan_file(&cli.dir, &trouble.plan).display().to_string();
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
            missed: &missed,
        }),
    )?;
    if cli.json {
        output::line(&text);
    } else {
        output::line(&format!("\n{}", output::summary(&summary, &missed)));
        for failure in &summary.failures {
            for command in commands(failure) {
                output::line(&format!("  {command}"));
            }
        }
        output::line(&format!("report: {}", page.display()));
    }
    Ok(match campaign::verdict(&summary, &missed) {
        campaign::Verdict::Passed => 0,
        campaign::Verdict::Broken => BROKEN,
        campaign::Verdict::Uncovered => UNCOVERED,
        campaign::Verdict::Inconclusive => INCONCLUSIVE,
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
