//! Tables for the terminal.

use comfy_table::{ContentArrangement, Table, presets};

use super::results::{Outcome, Results, Runs, Side};
use crate::bars::{Judged, Verdict};
use crate::figures::Metric;

/// Not in the first table.
pub(super) const DETAILS: [Metric; 11] = [
    Metric::Rate,
    Metric::CpuPerMillion,
    Metric::PeakMemory,
    Metric::EverySubtask,
    Metric::LatencyP50,
    Metric::LatencyP999,
    Metric::Checkpoints,
    Metric::CheckpointTime,
    Metric::CheckpointSize,
    Metric::LongestPause,
    Metric::ForeignCpu,
];

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// A figure of a side, or why there is none.
pub(super) fn cell(outcome: &Outcome, side: Side, metric: Metric) -> String {
    if let Some(spread) = outcome.spread(side, metric) {
        return spread.to_string();
    }
    match outcome.side(side) {
        Some(Runs {
            failure: Some(_), ..
        }) => "FAILED".to_owned(),
        Some(Runs {
            impossible: Some(_),
            ..
        }) => "not possible".to_owned(),
        Some(_) | None => "-".to_owned(),
    }
}

/// By how much we are better, or worse.
pub(super) fn advantage(outcome: &Outcome, over: Side, metric: Metric) -> String {
    let spread = outcome.advantage(over, metric);
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{spread}x"))
}

/// That not all was measured at once, if so.
pub(super) fn calls(results: &Results) -> Option<String> {
    let calls = results.calls_measured();
    (calls > 1).then(|| {
        format!("Measured in {calls} calls (--resume); what is divided by each other is always of one call.")
    })
}

/// Why something has no figure.
pub(super) fn reasons(results: &Results) -> Vec<String> {
    let mut reasons = results.notes.clone();
    for outcome in &results.outcomes {
        for (peer, runs) in &outcome.peers {
            let told = [
                ("failed", &runs.failure),
                ("not possible", &runs.impossible),
            ];
            for (what, why) in told {
                if let Some(why) = why {
                    reasons.push(format!("{}, {peer}: {what}: {why}", outcome.workload));
                }
            }
        }
    }
    reasons
}

pub(super) fn text(results: &Results, bars: &[Judged]) -> String {
    let mut figures = table(&[
        "WORKLOAD",
        "WHAT",
        "PERENNIAL",
        "FLINK",
        "BARE",
        "VS FLINK",
        "VS BARE",
    ]);
    let mut details = table(&["WORKLOAD", "WHAT", "PERENNIAL", "FLINK"]);
    for outcome in results.best() {
        let metric = outcome.compared();
        figures.add_row([
            outcome.workload.clone(),
            metric.label().to_owned(),
            cell(outcome, Side::Perennial, metric),
            cell(outcome, Side::Rival, metric),
            cell(outcome, Side::Bare, metric),
            advantage(outcome, Side::Rival, metric),
            advantage(outcome, Side::Bare, metric),
        ]);
        for metric in DETAILS.into_iter().filter(|other| *other != metric) {
            let sides = [Side::Perennial, Side::Rival];
            let cells = sides.map(|side| cell(outcome, side, metric));
            if sides
                .iter()
                .any(|side| outcome.spread(*side, metric).is_some())
            {
                let [ours, theirs] = cells;
                details.add_row([
                    outcome.workload.clone(),
                    metric.label().to_owned(),
                    ours,
                    theirs,
                ]);
            }
        }
    }
    let mut judged = table(&["BAR", "WANTED", "FOUND", ""]);
    for bar in bars {
        judged.add_row([
            bar.what.clone(),
            bar.wanted.clone(),
            bar.found.clone().unwrap_or_default(),
            match bar.verdict {
                Verdict::Met => "met",
                Verdict::Missed => "MISSED",
                Verdict::NotMeasured => "not measured",
            }
            .to_owned(),
        ]);
    }
    let mut text = format!(
        "{details}\n\nMedian (least-most) of the runs; Flink with the collector that did better; `vs` is run by run, above 1 is better.\n{figures}\n\n{judged}\n"
    );
    for reason in calls(results).into_iter().chain(reasons(results)) {
        text.push_str(&reason);
        text.push('\n');
    }
    text
}
