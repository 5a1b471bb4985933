//! What Perennial must reach, as figures: met, missed, or not measured. A miss is shown like everything else.

use serde::Serialize;

use crate::figures::{Metric, short};
use crate::report::results::{Results, Side};

/// Whether a bar is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Met,
    /// It is not.
    Missed,
    /// A run that it needs was left out or failed.
    NotMeasured,
}

/// A bar, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// What it is about.
    pub what: String,
    /// The bar.
    pub wanted: String,
    /// The figure.
    pub found: Option<String>,
    /// See [`Verdict`].
    pub verdict: Verdict,
}

/// A figure and the unit it is shown with.
struct Figure {
    value: Option<f64>,
    unit: &'static str,
}

fn at_least(what: impl Into<String>, figure: &Figure, bar: f64) -> Judged {
    judged(what, figure, "at least", bar, |value| value >= bar)
}

fn at_most(what: impl Into<String>, figure: &Figure, bar: f64) -> Judged {
    judged(what, figure, "at most", bar, |value| value <= bar)
}

fn judged(
    what: impl Into<String>,
    figure: &Figure,
    relation: &str,
    bar: f64,
    is_met: impl Fn(f64) -> bool,
) -> Judged {
    let show = |value: f64| format!("{}{}", short(value), figure.unit);
    Judged {
        what: what.into(),
        wanted: format!("{relation} {}", show(bar)),
        found: figure.value.map(show),
        verdict: match figure.value {
            None => Verdict::NotMeasured,
            Some(value) if is_met(value) => Verdict::Met,
            Some(_) => Verdict::Missed,
        },
    }
}

/// Throughput against Flink: workload and how many times as fast.
const TIMES_FLINK: [(&str, f64); 14] = [
    ("keyed-count-1e6", 8.0),
    ("keyed-count-1e3", 4.0),
    ("window-tumbling", 5.0),
    ("window-sliding", 5.0),
    ("nexmark-q4", 5.0),
    ("nexmark-q5", 5.0),
    ("nexmark-q7", 5.0),
    ("nexmark-q8", 5.0),
    ("nexmark-q11", 5.0),
    ("nexmark-q0", 3.0),
    ("nexmark-q1", 3.0),
    ("nexmark-q2", 3.0),
    ("nexmark-q3", 3.0),
    ("shuffle", 2.0),
];

/// Timeout, interval and tolerance of our default heartbeats, in ms.
const HANG_MS_MAX: f64 = 3000.0 + 1000.0 + 200.0;

/// Judges every bar.
#[must_use]
pub fn judge(results: &Results) -> Vec<Judged> {
    let look = Look(results);
    let mut bars = Vec::new();
    for (workload, bar) in TIMES_FLINK {
        let figure = look.advantage(workload, Side::Rival);
        bars.push(at_least(format!("{workload} against Flink"), &figure, bar));
    }
    bars.push(look.ten_million_keys());
    for (workload, bar) in [("passthrough", 80.0), ("keyed-count-1e6", 50.0)] {
        let share = look.advantage(workload, Side::Bare).value;
        let figure = percent(share);
        bars.push(at_least(
            format!("{workload} against the bare loop"),
            &figure,
            bar,
        ));
    }
    let cost = look.cost("keyed-count-1e6", "keyed-count-1e6-cp1s");
    bars.push(at_most(
        "cost of a checkpoint every second, 1e6 keys",
        &percent(cost),
        10.0,
    ));
    let cost = look.cost("keyed-count-1e6-10pct", "keyed-count-1e6-10pct-cp1s");
    bars.push(at_most(
        "the same when every tenth key changes",
        &percent(cost),
        5.0,
    ));
    let pause = look.worst("keyed-count-1e6-cp1s", Metric::LongestPause);
    bars.push(at_most(
        "longest pause of a task meanwhile",
        &pause.unit(" ms"),
        5.0,
    ));
    for (what, metric) in [
        ("bytes", Metric::CheckpointSize),
        ("time", Metric::CheckpointTime),
    ] {
        let share = look.share("checkpoint-1e7-1pct", metric);
        let what = format!("{what} of a checkpoint of 1e7 keys, 1 % changed, of Flink's full one");
        bars.push(at_most(what, &percent(share), 10.0));
        let growth = look.growth("checkpoint-1e6", "checkpoint-1e7-same-changes", metric);
        let what = format!(
            "{} with the same changes, 1e7 keys over 1e6",
            metric.label()
        );
        bars.push(at_most(what, &growth, 1.3));
    }
    let cores = look.growth(
        "keyed-count-1e6-one-core",
        "keyed-count-1e6",
        Metric::WarmRate,
    );
    bars.push(at_least("two cores over one, keyed-count-1e6", &cores, 1.7));
    recoveries(&look, &mut bars);
    let ours = look.ours("latency", Metric::LatencyP99).value;
    for (what, workload, bar) in [
        ("Flink's at buffer timeout 0", "latency-buffer-0", 100.0),
        ("Flink's default", "latency", 10.0),
    ] {
        let theirs = results.median(workload, Side::Rival, Metric::LatencyP99);
        let share = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
        bars.push(at_most(
            format!("latency p99 at half load, of {what}"),
            &percent(share),
            bar,
        ));
    }
    let start = look.ours("start", Metric::FirstRecord);
    bars.push(at_most("start to first record", &start, 200.0));
    let idle = look.ours("idle", Metric::IdleMemory);
    bars.push(at_most(
        "idle memory of JobManager and TaskManager",
        &idle.unit(" MB"),
        30.0,
    ));
    bars
}

fn recoveries(look: &Look<'_>, bars: &mut Vec<Judged>) {
    let kill = "kill -9 of a TaskManager to first record, 1e6 keys";
    let median = look.ours("kill-1e6", Metric::FirstRecord);
    bars.push(at_most(format!("{kill}, p50"), &median, 200.0));
    let worst = look.worst("kill-1e6", Metric::FirstRecord);
    bars.push(at_most(format!("{kill}, worst"), &worst, 1000.0));
    let share = look.share("kill-1e6", Metric::FirstRecord);
    bars.push(at_most(
        format!("{kill}, of Flink's"),
        &percent(share),
        10.0,
    ));
    let share = look.share("kill-1e6-rocksdb", Metric::FirstRecord);
    let what = format!("{kill}, of Flink's with incremental RocksDB");
    bars.push(at_most(what, &percent(share), 25.0));
    let panic = look.ours("panic-1e6", Metric::FirstRecord);
    bars.push(at_most(
        "panic of a task to first record, 1e6 keys, p50",
        &panic,
        50.0,
    ));
    let hang = look.worst("hang-1e6", Metric::FirstRecord);
    bars.push(at_most(
        "hung TaskManager to first record, default heartbeats",
        &hang,
        HANG_MS_MAX,
    ));
}

fn percent(share: Option<f64>) -> Figure {
    Figure {
        value: share.map(|share| share * 100.0),
        unit: " %",
    }
}

impl Figure {
    fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }
}

struct Look<'a>(&'a Results);

impl Look<'_> {
    /// How many times as good as another side.
    fn advantage(&self, workload: &str, over: Side) -> Figure {
        let value = self.0.outcome(workload).and_then(|one| {
            let advantage = one.advantage(over, one.compared())?;
            Some(advantage.median)
        });
        Figure { value, unit: "x" }
    }

    /// Of ours.
    fn ours(&self, workload: &str, metric: Metric) -> Figure {
        Figure {
            value: self.0.median(workload, Side::Perennial, metric),
            unit: " ms",
        }
    }

    /// The most of all our runs, with whatever it was compared to.
    fn worst(&self, workload: &str, metric: Metric) -> Figure {
        let all = self
            .0
            .outcomes
            .iter()
            .filter(|one| one.workload == workload);
        let spreads = all.filter_map(|one| one.spread(Side::Perennial, metric));
        Figure {
            value: spreads.map(|spread| spread.max).reduce(f64::max),
            unit: " ms",
        }
    }

    /// Ours as a share of Flink's.
    fn share(&self, workload: &str, metric: Metric) -> Option<f64> {
        let outcome = self.0.outcome(workload)?;
        Some(1.0 / outcome.advantage(Side::Rival, metric)?.median)
    }

    /// What of our rate is lost from one workload to another.
    fn cost(&self, without: &str, with: &str) -> Option<f64> {
        let rate = |workload| {
            let outcome = self.0.outcome(workload)?;
            Some(outcome.spread(Side::Perennial, outcome.compared())?.median)
        };
        Some(1.0 - rate(with)? / rate(without)?)
    }

    fn growth(&self, from: &str, to: &str, metric: Metric) -> Figure {
        let value = |workload| self.0.median(workload, Side::Perennial, metric);
        Figure {
            value: value(to).zip(value(from)).map(|(to, from)| to / from),
            unit: "x",
        }
    }

    /// The easier of two bars counts.
    fn ten_million_keys(&self) -> Judged {
        const WORKLOAD: &str = "keyed-count-1e7";
        let what = "keyed-count-1e7 against Flink, or else the bare loop";
        let flink = at_least(what, &self.advantage(WORKLOAD, Side::Rival), 4.0);
        let bare = self.advantage(WORKLOAD, Side::Bare).value;
        let bare = at_least(what, &percent(bare), 60.0);
        let both = |one: &str, other: &str| format!("{one}, or {other} of the loop");
        let found = flink.found.as_deref().zip(bare.found.as_deref());
        Judged {
            what: what.to_owned(),
            wanted: both(&flink.wanted, &bare.wanted),
            found: found.map(|(one, other)| both(one, other)),
            verdict: match (flink.verdict, bare.verdict) {
                (Verdict::Met, _) | (_, Verdict::Met) => Verdict::Met,
                (Verdict::NotMeasured, _) | (_, Verdict::NotMeasured) => Verdict::NotMeasured,
                (Verdict::Missed, Verdict::Missed) => Verdict::Missed,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Measurement;
    use crate::report::results::Outcome;
    use crate::workload::{Profile, table};

    fn results(workload: &str, metric: Metric, ours: f64, theirs: f64) -> Results {
        let table = table(Profile::Full);
        let workload = table.iter().find(|one| one.name == workload).unwrap();
        let mut outcome = Outcome::new(workload, Some("flink-g1"));
        for (peer, value) in [("perennial", ours), ("flink-g1", theirs)] {
            let mut measurement = Measurement::default();
            measurement.set(metric, value);
            outcome.add(peer, measurement);
        }
        let mut results = Results::new(Profile::Full);
        results.outcomes.push(outcome);
        results
    }

    fn verdict(results: &Results, what: &str) -> Verdict {
        let bars = judge(results);
        bars.iter().find(|bar| bar.what == what).unwrap().verdict
    }

    /// Of rates more is better, of times less; what was left out is not called met.
    #[test]
    fn a_bar_is_met_missed_or_not_measured() {
        let shuffle = "shuffle against Flink";
        let rates = |ours| results("shuffle", Metric::WarmRate, ours, 10.0);
        assert_eq!(verdict(&rates(20.0), shuffle), Verdict::Met);
        assert_eq!(verdict(&rates(19.9), shuffle), Verdict::Missed);
        assert_eq!(
            verdict(&rates(20.0), "keyed-count-1e3 against Flink"),
            Verdict::NotMeasured
        );
        let kill = "kill -9 of a TaskManager to first record, 1e6 keys, of Flink's";
        let times = |ours| results("kill-1e6", Metric::FirstRecord, ours, 3000.0);
        assert_eq!(verdict(&times(299.0), kill), Verdict::Met);
        assert_eq!(verdict(&times(301.0), kill), Verdict::Missed);
    }

    /// One met bar of the two is enough, and needs both to be missed.
    #[test]
    fn the_easier_bar_of_ten_million_keys_counts() {
        let mut results = results("keyed-count-1e7", Metric::WarmRate, 6.0, 2.0);
        let what = "keyed-count-1e7 against Flink, or else the bare loop";
        assert_eq!(verdict(&results, what), Verdict::NotMeasured);
        let mut bare = Measurement::default();
        bare.set(Metric::WarmRate, 9.0);
        results.outcomes[0].add("bare", bare);
        assert_eq!(verdict(&results, what), Verdict::Met);
    }
}
