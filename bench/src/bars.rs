//! What Perennial must reach, as figures: met, missed, or not measured. A miss is shown like everything else.

use serde::Serialize;

use crate::figures::{Metric, Spread, short};
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
    /// The figure: a middle, with the least and the most where it has some.
    pub found: Option<String>,
    /// See [`Verdict`].
    pub verdict: Verdict,
}

/// A figure, of which the middle is judged, and the unit it is shown with.
struct Figure {
    spread: Option<Spread>,
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
    let unit = figure.unit;
    Judged {
        what: what.into(),
        wanted: format!("{relation} {}{unit}", short(bar)),
        found: figure.spread.map(|spread| format!("{spread}{unit}")),
        verdict: match figure.spread {
            None => Verdict::NotMeasured,
            Some(spread) if is_met(spread.median) => Verdict::Met,
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
        let figure = percent(look.advantage(workload, Side::Bare).spread);
        bars.push(at_least(
            format!("{workload} against the bare loop"),
            &figure,
            bar,
        ));
    }
    let cost = look.cost("keyed-count-1e6-long", "keyed-count-1e6-long-cp1s");
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
    let pause = look.worst("keyed-count-1e6-long-cp1s", Metric::LongestPause);
    bars.push(at_most(
        "longest pause of a task meanwhile, 1e6 keys",
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
    bars.push(look.two_cores());
    recoveries(&look, &mut bars);
    let of = "latency p99 at half load, of Flink's";
    let share = look.latency_share();
    let what = format!("{of} at buffer timeout 0");
    bars.push(at_most(what, &percent(share), 100.0));
    let share = look.share("latency", Metric::LatencyP99);
    let what = format!("{of} default");
    bars.push(at_most(what, &percent(share), 10.0));
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

fn percent(share: Option<Spread>) -> Figure {
    Figure {
        spread: share.map(|share| share.map(|share| share * 100.0)),
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
        let outcome = self.0.outcome(workload);
        let spread = outcome.and_then(|one| one.advantage(over, one.compared()));
        Figure { spread, unit: "x" }
    }

    /// Of ours.
    fn ours(&self, workload: &str, metric: Metric) -> Figure {
        let outcome = self.0.outcome(workload);
        Figure {
            spread: outcome.and_then(|one| one.spread(Side::Perennial, metric)),
            unit: " ms",
        }
    }

    /// The most of all our runs, with whatever it was compared to.
    fn worst(&self, workload: &str, metric: Metric) -> Figure {
        let all = self.0.all(workload);
        let spreads = all.filter_map(|one| one.spread(Side::Perennial, metric));
        Figure {
            spread: Spread::of(spreads.map(|spread| spread.max).reduce(f64::max)),
            unit: " ms",
        }
    }

    /// Ours as a share of Flink's.
    fn share(&self, workload: &str, metric: Metric) -> Option<Spread> {
        let advantage = self.0.outcome(workload)?.advantage(Side::Rival, metric);
        Some(advantage?.map(|advantage| 1.0 / advantage))
    }

    /// Our latency as we are shipped, as a share of Flink's with what makes it fastest: of the pass in which that was best.
    fn latency_share(&self) -> Option<Spread> {
        let theirs = self.0.outcome("latency-buffer-0")?;
        let ours = self.0.beside(theirs, "latency")?;
        let pairs = ours.pairs(Side::Perennial, (theirs, Side::Rival), Metric::LatencyP99);
        Spread::of(pairs.map(|(ours, theirs)| ours / theirs))
    }

    /// The rate that all of these have: that of the warm half, unless a run was too short to have one.
    fn rate(&self, workloads: &[&str]) -> Metric {
        let mut all = workloads.iter().flat_map(|workload| self.0.all(workload));
        if all.all(|one| one.compared() == Metric::WarmRate) {
            Metric::WarmRate
        } else {
            Metric::Rate
        }
    }

    /// What of our rate is lost from one workload to another, run by run.
    fn cost(&self, without: &str, with: &str) -> Option<Spread> {
        let kept = self
            .0
            .ratios(Side::Perennial, with, without, self.rate(&[with, without]))?;
        Some(kept.map(|kept| 1.0 - kept))
    }

    /// How much more a figure of ours is in one workload than in another, run by run.
    fn growth(&self, from: &str, to: &str, metric: Metric) -> Figure {
        Figure {
            spread: self.0.ratios(Side::Perennial, to, from, metric),
            unit: "x",
        }
    }

    /// Beside what a plain loop gains by the second core: where two share a cache and the way to memory, nothing gains twice as much.
    fn two_cores(&self) -> Judged {
        let (one, both) = ("keyed-count-1e6-one-core", "keyed-count-1e6");
        let rate = self.rate(&[one, both]);
        let gain = self.growth(one, both, rate);
        let bare = self.0.ratios(Side::Bare, both, one, rate);
        let judged = at_least("two cores over one, keyed-count-1e6", &gain, 1.7);
        Judged {
            found: judged.found.map(|found| match bare {
                Some(bare) => format!("{found}, and the bare loop {bare}x"),
                None => found,
            }),
            ..judged
        }
    }

    /// The easier of two bars counts.
    fn ten_million_keys(&self) -> Judged {
        const WORKLOAD: &str = "keyed-count-1e7";
        let what = "keyed-count-1e7 against Flink, or else the bare loop";
        let flink = at_least(what, &self.advantage(WORKLOAD, Side::Rival), 4.0);
        let bare = self.advantage(WORKLOAD, Side::Bare).spread;
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
    use crate::peer::flink::Collector;
    use crate::plan::PeerName;
    use crate::report::results::Outcome;
    use crate::workload::{Profile, table};

    /// A run of each peer for each value.
    fn add(results: &mut Results, workload: &str, metric: Metric, runs: &[(f64, f64)]) {
        let table = table(Profile::Full);
        let workload = table.iter().find(|one| one.name == workload).unwrap();
        let mut outcome = Outcome::new(workload, Collector::G1, true);
        for (ours, theirs) in runs {
            for (peer, value) in [("perennial", ours), ("flink-g1", theirs)] {
                let mut measurement = Measurement::default();
                measurement.set(metric, *value);
                outcome.add(peer, measurement);
            }
        }
        results.put(outcome);
    }

    fn results(workload: &str, metric: Metric, ours: f64, theirs: f64) -> Results {
        let mut results = Results::new(Profile::Full, 1.0);
        add(&mut results, workload, metric, &[(ours, theirs)]);
        results
    }

    fn bar(results: &Results, what: &str) -> Judged {
        let mut bars = judge(results).into_iter();
        bars.find(|bar| bar.what == what).unwrap()
    }

    fn verdict(results: &Results, what: &str) -> Verdict {
        bar(results, what).verdict
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

    /// No program gains more by a second core than the machine gives.
    #[test]
    fn the_gain_by_a_second_core_is_told_beside_that_of_the_loop() {
        let mut results = Results::new(Profile::Full, 1.0);
        let rate = Metric::WarmRate;
        for (workload, ours, of_the_loop) in [
            ("keyed-count-1e6-one-core", 10.0, 12.0),
            ("keyed-count-1e6", 15.0, 15.0),
        ] {
            add(&mut results, workload, rate, &[(ours, 1.0)]);
            let mut bare = Measurement::default();
            bare.set(rate, of_the_loop);
            results.outcomes.last_mut().unwrap().add("bare", bare);
        }
        let judged = bar(&results, "two cores over one, keyed-count-1e6");
        let found = "1.50x, and the bare loop 1.25x";
        assert_eq!(judged.found.as_deref(), Some(found));
        assert_eq!(judged.verdict, Verdict::Missed);
    }

    /// The machine is half as fast in every second run: by their medians checkpoints would cost half, and by pairs they cost a sixteenth.
    #[test]
    fn costs_are_those_of_pairs_of_runs_with_their_spread() {
        let mut results = Results::new(Profile::Full, 1.0);
        let (without, with) = ("keyed-count-1e6-long", "keyed-count-1e6-long-cp1s");
        let what = "cost of a checkpoint every second, 1e6 keys";
        let rates = |rates: [f64; 3]| rates.map(|rate| (rate, 1.0));
        add(
            &mut results,
            without,
            Metric::WarmRate,
            &rates([40.0, 20.0, 40.0]),
        );
        assert_eq!(verdict(&results, what), Verdict::NotMeasured);
        add(
            &mut results,
            with,
            Metric::WarmRate,
            &rates([37.5, 18.75, 20.0]),
        );
        let judged = bar(&results, what);
        assert_eq!(judged.found.as_deref(), Some("6.25 (6.25-50.0) %"));
        assert_eq!(verdict(&results, what), Verdict::Met);
    }

    /// Ours at default settings against theirs at the best, run by run.
    #[test]
    fn our_default_latency_is_compared_with_flinks_at_buffer_timeout_0() {
        let mut results = Results::new(Profile::Full, 1.0);
        let p99 = Metric::LatencyP99;
        add(&mut results, "latency", p99, &[(5.0, 90.0), (10.0, 90.0)]);
        add(
            &mut results,
            "latency-buffer-0",
            p99,
            &[(1.0, 10.0), (1.0, 10.0)],
        );
        let judged = bar(
            &results,
            "latency p99 at half load, of Flink's at buffer timeout 0",
        );
        assert_eq!(judged.found.as_deref(), Some("75.0 (50.0-100) %"));
    }

    /// Whatever a bar asks for is measured by `full`: with every workload of it done, none is left unjudged.
    #[test]
    fn full_measures_what_every_bar_asks_for() {
        let metrics = [
            Metric::WarmRate,
            Metric::IdleMemory,
            Metric::FirstRecord,
            Metric::LatencyP99,
            Metric::CheckpointTime,
            Metric::CheckpointSize,
            Metric::LongestPause,
        ];
        let mut results = Results::new(Profile::Full, 1.0);
        let mut whole = Measurement::default();
        for metric in metrics {
            whole.set(metric, 1.0);
        }
        for workload in table(Profile::Full) {
            let pass = Collector::Parallel;
            let mut outcome = Outcome::new(&workload, pass, true);
            let mut peers = vec![PeerName::Perennial];
            peers.extend(workload.has_rival.then_some(PeerName::Flink));
            peers.extend(workload.bare().map(|_| PeerName::Bare));
            for peer in peers {
                outcome.add(peer.name(pass), whole.clone());
            }
            results.put(outcome);
        }
        for bar in judge(&results) {
            assert_ne!(bar.verdict, Verdict::NotMeasured, "{}", bar.what);
        }
    }
}
