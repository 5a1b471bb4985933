//! What is left of a run: a table for the terminal, `results.json`, and one page with pictures that needs nothing else.

mod page;
mod picture;
pub mod results;
mod tables;

use std::path::Path;

use anyhow::Context as _;

use crate::bars;
use results::Results;

/// Everything that was measured.
pub const JSON: &str = "results.json";
/// For people.
pub const PAGE: &str = "report.html";

/// Writes both files; called again after every workload.
///
/// # Errors
/// When the directory cannot be written to.
pub fn write(results: &Results, directory: &Path) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let bars = bars::judge(results);
    let json = serde_json::json!({ "results": results, "bars": bars });
    write(JSON, serde_json::to_string_pretty(&json)?)?;
    write(PAGE, page::render(results, &bars)?)
}

/// For the terminal.
#[must_use]
pub fn text(results: &Results) -> String {
    tables::text(results, &bars::judge(results))
}
