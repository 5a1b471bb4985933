//! Where plans come from and where they go: drawn, read, kept; and the options that say how.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::CommandError;
use super::args::{DrawArgs, NodeArgs, Store};
use super::render::write;
use crate::job::Jobs;
use crate::plan::{FaultPlan, StoreShape};
use crate::profile::{Draw, DrawError, Profile};

/// Options that a drawing was asked for, to be written down again.
pub(super) fn drawn(draw: &DrawArgs, option: &mut dyn FnMut(&str, String)) {
    if !draw.only.is_empty() {
        let rows: Vec<&str> = draw.only.iter().map(|row| row.as_str()).collect();
        option("only", rows.join(","));
    }
    if let Some(store) = draw.store {
        option("store", store.name().to_owned());
    }
}

/// See [`drawn`].
pub(super) fn on(nodes: &NodeArgs, option: &mut dyn FnMut(&str, String)) {
    if let Some(job) = &nodes.job {
        option("job", job.clone());
    }
    if let Some(binary) = &nodes.binary {
        option("binary", binary.display().to_string());
    }
    if let Some(switches) = nodes.sabotage.text() {
        option("sabotage", switches);
    }
}

/// Draws a plan; says in words why there is none.
pub(super) fn draw(
    args: &DrawArgs,
    nodes: &NodeArgs,
    jobs: &Jobs,
    profile: Profile,
    seed: u64,
) -> Result<FaultPlan, CommandError> {
    try_draw(args, nodes, jobs, profile, seed).map_err(|error| {
        let known: Vec<&str> = jobs.all().iter().map(|job| job.name()).collect();
        match (&nodes.job, &error) {
            (Some(name), DrawError::NoJob) => CommandError::Usage(format!(
                "this command knows no job `{name}`, only {}; for one of yours see chaos/examples/own_job.rs",
                known.join(", ")
            )),
            (_, error) => CommandError::Usage(error.to_string()),
        }
    })
}

/// Draws a plan.
pub(super) fn try_draw(
    args: &DrawArgs,
    nodes: &NodeArgs,
    jobs: &Jobs,
    profile: Profile,
    seed: u64,
) -> Result<FaultPlan, DrawError> {
    let named = nodes.job.as_deref();
    let known = jobs;
    let mut jobs = known.all();
    jobs.retain(|job| named.is_none_or(|name| job.name() == name));
    Draw {
        profile,
        only: &args.only,
        has_points: has_points(known),
        jobs: &jobs,
        store: args.store.map(Store::shape),
    }
    .plan(seed)
}

/// Only the stock jobs are in `perennial-chaos-node`.
fn has_points(jobs: &Jobs) -> bool {
    jobs.binary() == Jobs::stock().binary()
}

/// Reads a plan.
pub(super) fn read(path: &Path) -> Result<FaultPlan, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CommandError::Usage(format!(
            "cannot read the plan {}: {e}; `run --plan` prints one",
            path.display()
        ))
    })?;
    serde_json::from_str(&text)
        .map_err(|e| CommandError::Usage(format!("{} is no plan: {e}", path.display())))
}

/// Writes a plan.
pub(super) fn keep(path: &Path, plan: &FaultPlan) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(plan).context("the plan as JSON")?;
    Ok(write(path, &text)?)
}

/// Where a plan's file goes in a directory of results.
pub(super) fn file(directory: &Path, plan: &FaultPlan) -> PathBuf {
    directory
        .join("failed")
        .join(format!("{}-{}.json", plan.profile, plan.seed))
}

/// Says how to get a server, before nodes and input are made in vain.
#[expect(
    clippy::disallowed_methods,
    reason = "where the harness's own server is belongs to no configuration"
)]
pub(super) fn check_store(plan: &FaultPlan) -> Result<(), CommandError> {
    let is_named = std::env::var("PERENNIAL_TEST_S3_ENDPOINT").is_ok();
    if plan.cluster.store != StoreShape::S3 || is_named {
        return Ok(());
    }
    Err(CommandError::Usage(
        "checkpoints of such runs lie in a real S3 server, and none is named: run the line above, which starts one, or leave it out with --store disk"
            .to_owned(),
    ))
}
