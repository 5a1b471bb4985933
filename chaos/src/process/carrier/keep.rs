//! Keeps what a person needs to understand a run that did not pass, in one directory.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::super::{ProcessCluster, logs};
use super::watch::View;
use crate::report::RunReport;

/// Nodes' logs, its store and output are there anyway; beside them: `plan.json`, `report.json`, `story.txt`, `timeline.log`, `store.txt`, `status.json`.
pub(super) fn keep(
    mut cluster: ProcessCluster,
    below: Option<&Path>,
    report: &RunReport,
    view: &View,
) -> anyhow::Result<PathBuf> {
    let root = cluster.root().to_owned();
    let write = |name: &str, text: String| {
        std::fs::write(root.join(name), text).with_context(|| name.to_owned())
    };
    write("plan.json", serde_json::to_string_pretty(&report.plan)?)?;
    write("report.json", serde_json::to_string_pretty(report)?)?;
    write("status.json", serde_json::to_string_pretty(&view.status)?)?;
    write("story.txt", cluster.events.borrow().join("\n"))?;
    write(
        "timeline.log",
        logs::merged(&cluster.log_directory(), usize::MAX),
    )?;
    write(
        "store.txt",
        listing(&cluster).unwrap_or_else(|e| format!("{e:#}")),
    )?;
    let directory = cluster.directory.take().context("already kept")?;
    let kept = directory.keep();
    // Its nodes end before it is moved.
    drop(cluster);
    let Some(below) = below else { return Ok(kept) };
    std::fs::create_dir_all(below)?;
    let name = kept.file_name().context("no name")?.to_owned();
    let target = below.join(name);
    // Another file system: then it stays where it is.
    Ok(match std::fs::rename(&kept, &target) {
        Ok(()) => target,
        Err(_) => kept,
    })
}

fn listing(cluster: &ProcessCluster) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let storage = cluster.storage();
    let mut text = String::new();
    for part in ["checkpoints", "leadership", "savepoints"] {
        let store = storage.open().open(&storage.uri(part))?;
        for object in runtime.block_on(store.list(""))? {
            text.push_str(&format!("{part}/{} {}\n", object.key, object.size));
        }
    }
    Ok(text)
}
