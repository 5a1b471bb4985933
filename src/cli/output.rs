//! What the command line shows: tables for people, JSON for scripts.
//!
//! Invariant: a reader that has gone away (`| head`) is no error, and never a panic: nobody is left to tell.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use perennial_actors::model::{
    CheckpointState, CheckpointStatus, JobState, JobStatus, JobSummary, RecoveryRecord,
    TaskManagerStatus,
};
use serde::Serialize;

use super::CliError;

pub(crate) fn error(error: &CliError) {
    note(&format!("error: {error}"));
}

pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    // Losing it is right: see the invariant.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

pub(crate) fn note(text: &str) {
    // As above.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Node(e.to_string()))?;
    line(&text);
    Ok(())
}

/// A table in the one style of this command line.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// `1 restart`, `2 restarts`.
pub(crate) fn restarts(count: u32) -> String {
    match count {
        1 => "1 restart".to_owned(),
        _ => format!("{count} restarts"),
    }
}

/// `1.2 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{:.1} s", millis as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

/// `17.0 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// `12 345 678`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn jobs(jobs: &[JobSummary]) -> String {
    if jobs.is_empty() {
        return "no jobs; run one with `perennial run JOB`".into();
    }
    table(
        &[
            "job",
            "name",
            "state",
            "tasks",
            "time",
            "restarts",
            "checkpoint",
        ],
        jobs.iter().map(|job| {
            vec![
                job.job.to_string(),
                job.name.clone(),
                job.state.to_string(),
                format!("{}/{}", job.tasks_running, job.tasks_total),
                duration(job.duration_ms),
                job.restarts.to_string(),
                job.last_checkpoint
                    .map_or_else(|| "-".into(), |c| c.to_string()),
            ]
        }),
    )
}

pub(crate) fn task_managers(nodes: &[TaskManagerStatus]) -> String {
    if nodes.is_empty() {
        return "no TaskManagers; start one with `perennial taskmanager`".into();
    }
    table(
        &["taskmanager", "address", "free slots", "last heartbeat"],
        nodes.iter().map(|node| {
            vec![
                node.resource.to_string(),
                node.address.clone(),
                format!("{}/{}", node.slots.0, node.slots.1),
                format!("{} ago", duration(node.last_heartbeat_ms)),
            ]
        }),
    )
}

pub(crate) fn checkpoints(checkpoints: &[CheckpointStatus]) -> String {
    if checkpoints.is_empty() {
        return "no checkpoints yet".into();
    }
    table(
        &[
            "checkpoint",
            "kind",
            "state",
            "time",
            "acks",
            "written",
            "to restore",
            "longest pause",
            "path or reason",
        ],
        checkpoints.iter().map(|c| {
            let state = match c.state {
                CheckpointState::InProgress => "in progress",
                CheckpointState::Completed => "completed",
                CheckpointState::Failed => "failed",
            };
            vec![
                c.checkpoint.to_string(),
                format!("{:?}", c.kind).to_lowercase(),
                state.into(),
                duration(c.duration_ms),
                format!("{}/{}", c.acknowledged.0, c.acknowledged.1),
                bytes(c.bytes),
                bytes(c.full_bytes),
                format!("{:.1} ms", c.longest_pause_us as f64 / 1000.0),
                c.failure
                    .clone()
                    .or_else(|| c.path.clone())
                    .unwrap_or_default(),
            ]
        }),
    )
}

fn phase(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |ms| format!("{ms:.1}"))
}

/// What failed and what follows: known at once.
pub(crate) fn recovery_cause(recovery: &RecoveryRecord) -> String {
    let mut text = format!("#{} {}\n", recovery.number, recovery.cause);
    for other in &recovery.other_causes {
        text.push_str(&format!("   with: {other}\n"));
    }
    text.push_str(&format!("   decision: {}", recovery.decision));
    text
}

/// What was restored and how long it took; some of it is known only when the first record has passed.
pub(crate) fn recovery_outcome(recovery: &RecoveryRecord) -> String {
    let mut text = String::new();
    for skipped in &recovery.skipped {
        text.push_str(&format!("   skipped: {skipped}\n"));
    }
    let p = &recovery.phases;
    text.push_str(&format!(
        "   checkpoint {}, {} in place, {} loaded; ms: stop {}, delay {}, slots {}, restore {}, first record {}, total {}",
        recovery.checkpoint.map_or_else(|| "none".into(), |c| c.to_string()),
        recovery.restored.0,
        recovery.restored.1,
        phase(p.stop_ms),
        phase(p.delay_ms),
        phase(p.slots_ms),
        phase(p.restore_ms),
        phase(p.first_record_ms),
        phase(p.total_ms),
    ));
    text
}

pub(crate) fn status(status: &JobStatus) -> String {
    let summary = &status.summary;
    let mut text = format!(
        "{} ({}) is {} for {}, {}\n",
        summary.name,
        summary.job,
        summary.state,
        duration(summary.duration_ms),
        restarts(summary.restarts)
    );
    if let Some(note) = &status.note {
        text.push_str(&format!("{note}\n"));
    }
    for notice in &status.notices {
        text.push_str(&format!("notice: {notice}\n"));
    }
    if let Some(failure) = &status.failure {
        text.push_str(&format!("failure: {failure}\n"));
    }
    text.push('\n');
    text.push_str(&table(
        &[
            "task",
            "subtask",
            "attempt",
            "state",
            "taskmanager",
            "in",
            "out",
            "busy",
            "entries",
        ],
        status.subtasks.iter().map(|task| {
            let c = &task.counters;
            let total = (c.busy_ms + c.idle_ms + c.back_pressured_ms).max(1);
            vec![
                task.name.clone(),
                task.subtask.to_string(),
                task.attempt.clone(),
                format!("{:?}", task.state).to_uppercase(),
                task.task_manager
                    .as_ref()
                    .map_or_else(|| "-".into(), ToString::to_string),
                count(c.records_in),
                count(c.records_out),
                format!("{}%", c.busy_ms * 100 / total),
                count(c.state_entries),
            ]
        }),
    ));
    text.push_str("\n\nrecoveries:\n");
    if status.recoveries.is_empty() {
        text.push_str("none\n");
    }
    for one in &status.recoveries {
        text.push_str(&format!("{}\n", recovery_cause(one)));
        // A job that gave up restored nothing.
        if one.attempt.is_some() {
            text.push_str(&format!("{}\n", recovery_outcome(one)));
        }
    }
    text.push_str("\ncheckpoints:\n");
    let recent = status.checkpoints.len().saturating_sub(5);
    text.push_str(&checkpoints(&status.checkpoints[recent..]));
    text
}

/// One line of progress.
pub(crate) fn progress(status: &JobStatus, rate: Option<f64>, elapsed: Duration) -> String {
    let summary = &status.summary;
    let records: u64 = status.subtasks.iter().map(|t| t.counters.records_in).sum();
    let mut text = format!(
        "{} {} | {}/{} tasks | {} records",
        duration(u64::try_from(elapsed.as_millis()).unwrap_or(0)),
        summary.state,
        summary.tasks_running,
        summary.tasks_total,
        count(records),
    );
    if let Some(rate) = rate {
        text.push_str(&format!(" ({}/s)", count(rate as u64)));
    }
    if let Some(last) = status
        .checkpoints
        .iter()
        .rev()
        .find(|c| c.state == CheckpointState::Completed)
    {
        text.push_str(&format!(
            " | checkpoint {} {} {}",
            last.checkpoint,
            duration(last.duration_ms),
            bytes(last.bytes)
        ));
    }
    text.push_str(&format!(" | {}", restarts(summary.restarts)));
    if let Some(note) = &status.note
        && summary.state != JobState::Running
    {
        text.push_str(&format!(" | {note}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures as people read them.
    #[test]
    fn figures_are_readable() {
        assert_eq!(duration(999), "999 ms");
        assert_eq!(duration(61_000), "1 min 1 s");
        assert_eq!(bytes(17_000_000), "17.0 MB");
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(count(12), "12");
    }
}
