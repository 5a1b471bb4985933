//! The results as one HTML page: no script, no font, no file beside it. Decides nothing.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::picture::draw;
use super::results::{Results, Side};
use super::tables::{DETAILS, advantage, calls, cell, reasons};
use crate::bars::{Judged, Verdict};
use crate::figures::Metric;

const STYLE: &str = include_str!("style.css");

pub(super) fn render(results: &Results, bars: &[Judged]) -> anyhow::Result<String> {
    let best = results.best();
    let mut pictures = Vec::new();
    for (title, metrics) in [
        (
            "Throughput, million events per second",
            &[Metric::WarmRate, Metric::Rate][..],
        ),
        ("Time to the first record, ms", &[Metric::FirstRecord]),
        ("Latency, 99 of 100 events, µs", &[Metric::LatencyP99]),
        ("Time of a checkpoint, ms", &[Metric::CheckpointTime]),
        ("Idle memory, MB", &[Metric::IdleMemory]),
    ] {
        pictures.extend(draw(title, &best, metrics)?);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "Perennial beside Flink" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Perennial beside Apache Flink and a bare loop" }
                p {
                    (results.processors) " × " (results.processor) ". Peers took turns; median (least-most) of the runs; Flink with the collector that did better. "
                    "“vs” is run by run, above 1 is better for Perennial."
                }
                @if let Some(calls) = calls(results) { p { (calls) } }
                @for picture in &pictures { (PreEscaped(picture)) }
                h2 { "Figures" }
                (figures(results))
                h2 { "Bars" }
                (judged(bars))
                h2 { "Details" }
                (details(results))
                @let reasons = reasons(results);
                @if !reasons.is_empty() {
                    h2 { "What has no figure" }
                    ul { @for reason in &reasons { li { (reason) } } }
                }
            }
        }
    };
    Ok(page.into_string())
}

fn figures(results: &Results) -> Markup {
    html! {
        table {
            tr { @for name in ["workload", "", "what", "Perennial", "Flink", "", "bare", "vs Flink", "vs bare"] { th { (name) } } }
            @for outcome in results.best() {
                @let metric = outcome.compared();
                tr {
                    td { (outcome.workload) }
                    td { (outcome.about) }
                    td { (metric.label()) }
                    td { (cell(outcome, Side::Perennial, metric)) }
                    td { (cell(outcome, Side::Rival, metric)) }
                    td { (outcome.rival.as_deref().unwrap_or_default()) }
                    td { (cell(outcome, Side::Bare, metric)) }
                    td { (advantage(outcome, Side::Rival, metric)) }
                    td { (advantage(outcome, Side::Bare, metric)) }
                }
            }
        }
    }
}

fn judged(bars: &[Judged]) -> Markup {
    html! {
        table {
            tr { @for name in ["bar", "wanted", "found", ""] { th { (name) } } }
            @for bar in bars {
                tr {
                    td { (bar.what) }
                    td { (bar.wanted) }
                    td { (bar.found.as_deref().unwrap_or_default()) }
                    @match bar.verdict {
                        Verdict::Met => td class="good" { "met" },
                        Verdict::Missed => td class="bad" { "missed" },
                        Verdict::NotMeasured => td class="quiet" { "not measured" },
                    }
                }
            }
        }
    }
}

fn details(results: &Results) -> Markup {
    let sides = [Side::Perennial, Side::Rival];
    html! {
        table {
            tr { @for name in ["workload", "what", "Perennial", "Flink"] { th { (name) } } }
            @for outcome in results.best() {
                @for metric in DETAILS.into_iter().filter(|m| *m != outcome.compared()) {
                    @if sides.iter().any(|side| outcome.spread(*side, metric).is_some()) {
                        tr {
                            td { (outcome.workload) }
                            td { (metric.label()) }
                            @for side in sides { td { (cell(outcome, side, metric)) } }
                        }
                    }
                }
            }
        }
    }
}
