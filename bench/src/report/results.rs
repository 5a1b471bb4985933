//! All measurements of a run, and the figures that are compared.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::figures::{Measurement, Metric, Spread};
use crate::machine;
use crate::marks::now_us;
use crate::peer::flink::Collector;
use crate::plan::PeerName;
use crate::workload::{Kind, Profile, Workload};

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This project.
    Perennial,
    /// Flink, with the collector that does better.
    Rival,
    /// The plain loop.
    Bare,
}

/// Runs of one peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Runs {
    /// Those that succeeded, in their order.
    pub measurements: Vec<Measurement>,
    /// Why one failed.
    pub failure: Option<String>,
    /// Why there can be none.
    pub impossible: Option<String>,
}

/// Runs after which a collector that did worse in each than the other in all of its runs is not measured any more.
pub const RUNS_UNTIL_BEATEN: usize = 2;

/// One workload, measured in turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub workload: String,
    /// In which pass; there is one for each collector of Flink.
    pub pass: Collector,
    /// When, in seconds since the epoch.
    pub began: u64,
    /// What it is.
    pub about: String,
    /// What is compared.
    pub headline: Metric,
    /// Keys of the job.
    pub keys: u64,
    /// Events of a bounded job.
    pub events: u64,
    /// The name of the other system.
    pub rival: Option<String>,
    /// Whether it was left at [`RUNS_UNTIL_BEATEN`] runs, because that system did better in another pass.
    pub is_beaten: bool,
    /// By name.
    pub peers: BTreeMap<String, Runs>,
}

impl Outcome {
    /// Nothing is measured yet.
    #[must_use]
    pub fn new(workload: &Workload, pass: Collector, has_flink: bool) -> Self {
        let rival = (has_flink && workload.has_rival).then(|| pass.peer().to_owned());
        Self {
            workload: workload.name.clone(),
            pass,
            began: now_us() / 1_000_000,
            about: workload.about.clone(),
            headline: workload.headline,
            keys: workload.keys,
            events: workload.events,
            rival,
            is_beaten: false,
            peers: BTreeMap::new(),
        }
    }

    fn runs(&mut self, peer: &str) -> &mut Runs {
        self.peers.entry(peer.to_owned()).or_default()
    }

    pub(crate) fn add(&mut self, peer: &str, measurement: Measurement) {
        self.runs(peer).measurements.push(measurement);
    }

    pub(crate) fn fail(&mut self, peer: &str, why: String, is_possible: bool) {
        let runs = self.runs(peer);
        if is_possible {
            runs.failure = Some(why);
        } else {
            runs.impossible = Some(why);
        }
    }

    /// Whether another run of this peer would end as the one before.
    pub(crate) fn is_hopeless(&self, peer: &str) -> bool {
        let runs = self.peers.get(peer);
        runs.is_some_and(|runs| runs.impossible.is_some() || runs.failure.is_some())
    }

    /// Whether nothing is left to measure: each of these peers has its runs, or can have none. Other sizes than those of today's table do
    /// not count, nor does latency at another load than this one; `None`: that is not known yet.
    pub(crate) fn is_complete(
        &self,
        workload: &Workload,
        wanted: &[(PeerName, usize)],
        half_load: Option<u64>,
    ) -> bool {
        let has = |(peer, wanted): &(PeerName, usize)| {
            let wanted = match self.is_beaten {
                true => RUNS_UNTIL_BEATEN.min(*wanted),
                false => *wanted,
            };
            self.peers.get(peer.name(self.pass)).is_some_and(|runs| {
                let is_done = runs.failure.is_none() && runs.measurements.len() >= wanted;
                is_done || runs.impossible.is_some()
            })
        };
        let has_its_load = match &workload.kind {
            Kind::Latency { .. } => half_load.is_some_and(|load| self.has_load(load)),
            Kind::Throughput(_)
            | Kind::Nexmark(_)
            | Kind::Files
            | Kind::Recovery(_)
            | Kind::Start(_)
            | Kind::Idle
            | Kind::Checkpoints { .. }
            | Kind::Restore => true,
        };
        let has_its_sizes = (self.events, self.keys) == (workload.events, workload.keys);
        has_its_sizes && has_its_load && wanted.iter().all(has)
    }

    /// Whether each run had this rate, in events per second.
    fn has_load(&self, load: u64) -> bool {
        let mut runs = self.peers.values().flat_map(|runs| &runs.measurements);
        runs.all(|run| {
            let rate = run.metrics.get(&Metric::Rate);
            rate.is_some_and(|rate| (rate * 1e6).round() as u64 == load)
        })
    }

    /// Runs of one side.
    #[must_use]
    pub fn side(&self, side: Side) -> Option<&Runs> {
        self.peers.get(match side {
            Side::Perennial => PeerName::Perennial.name(self.pass),
            Side::Rival => self.rival.as_deref()?,
            Side::Bare => PeerName::Bare.name(self.pass),
        })
    }

    /// A figure of each run of a side, in their order: `None` where a run has no such figure.
    fn values(&self, side: Side, metric: Metric) -> impl Iterator<Item = Option<f64>> {
        let runs = self.side(side).map(|runs| runs.measurements.as_slice());
        let runs = runs.unwrap_or_default().iter();
        runs.map(move |run| run.metrics.get(&metric).copied())
    }

    /// A figure over all runs of a side.
    #[must_use]
    pub fn spread(&self, side: Side, metric: Metric) -> Option<Spread> {
        Spread::of(self.values(side, metric).flatten())
    }

    /// What is compared here: the headline, or where a run was too short for the rate of its second half, that of the whole.
    #[must_use]
    pub fn compared(&self) -> Metric {
        let has = |side, metric| {
            self.side(side).is_none_or(|runs| {
                runs.measurements.is_empty() || self.spread(side, metric).is_some()
            })
        };
        let sides = [Side::Perennial, Side::Rival, Side::Bare];
        if self.headline == Metric::WarmRate && !sides.into_iter().all(|s| has(s, Metric::WarmRate))
        {
            return Metric::Rate;
        }
        self.headline
    }

    /// A figure of each run of one side, and of the run of a side of another workload that took turns with it.
    pub(crate) fn pairs(
        &self,
        side: Side,
        (other, its): (&Self, Side),
        metric: Metric,
    ) -> impl Iterator<Item = (f64, f64)> {
        let pairs = self.values(side, metric).zip(other.values(its, metric));
        pairs.filter_map(|(one, other)| one.zip(other))
    }

    /// By how much we are better (above 1) or worse than another side, run by run.
    #[must_use]
    pub fn advantage(&self, over: Side, metric: Metric) -> Option<Spread> {
        let pairs = self.pairs(Side::Perennial, (self, over), metric);
        Spread::of(pairs.map(|(ours, theirs)| {
            if metric.is_more_better() {
                ours / theirs
            } else {
                theirs / ours
            }
        }))
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Which sizes.
    pub profile: Profile,
    /// Of the number of events.
    pub scale: f64,
    /// When each call began that added to them, in seconds since the epoch.
    pub calls: Vec<u64>,
    /// Of the machine.
    pub processor: String,
    /// Of the machine.
    pub processors: usize,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// In the order in which they were first measured.
    pub outcomes: Vec<Outcome>,
}

impl Results {
    /// Nothing is measured yet.
    #[must_use]
    pub fn new(profile: Profile, scale: f64) -> Self {
        Self {
            profile,
            scale,
            calls: vec![now_us() / 1_000_000],
            processor: machine::processor_model(),
            processors: machine::processors(),
            notes: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// Adds an outcome, in the place of what there was of that workload and pass.
    pub(crate) fn put(&mut self, outcome: Outcome) {
        let is_same =
            |one: &&mut Outcome| one.workload == outcome.workload && one.pass == outcome.pass;
        match self.outcomes.iter_mut().find(is_same) {
            Some(before) => *before = outcome,
            None => self.outcomes.push(outcome),
        }
    }

    /// The outcome of a workload in a pass.
    #[must_use]
    pub fn of(&self, workload: &str, pass: Collector) -> Option<&Outcome> {
        let mut outcomes = self.outcomes.iter();
        outcomes.find(|one| one.workload == workload && one.pass == pass)
    }

    /// Outcomes of a workload, one for each pass that measured it.
    pub fn all<'a>(&'a self, workload: &'a str) -> impl Iterator<Item = &'a Outcome> {
        let outcomes = self.outcomes.iter();
        outcomes.filter(move |one| one.workload == workload)
    }

    /// Which call measured it.
    fn call(&self, outcome: &Outcome) -> usize {
        self.calls.partition_point(|call| *call <= outcome.began)
    }

    /// In how many calls of the program these outcomes were measured.
    pub(crate) fn calls_of<'a>(&self, outcomes: impl IntoIterator<Item = &'a Outcome>) -> usize {
        let calls = outcomes.into_iter().map(|one| self.call(one));
        calls.collect::<BTreeSet<_>>().len()
    }

    /// In how many calls of the program all that there is was measured.
    #[must_use]
    pub fn calls_measured(&self) -> usize {
        self.calls_of(&self.outcomes)
    }

    /// The outcome of another workload whose runs took turns with those of this one; of another pass or call they did not.
    pub(crate) fn beside(&self, outcome: &Outcome, workload: &str) -> Option<&Outcome> {
        let other = self.of(workload, outcome.pass)?;
        (self.call(other) == self.call(outcome)).then_some(other)
    }

    /// A side's figure in one workload over that in another, run by run: outcomes of a pass pair with each other, the pairs of all passes
    /// count together.
    #[must_use]
    pub fn ratios(&self, side: Side, workload: &str, over: &str, metric: Metric) -> Option<Spread> {
        let pairs = self.all(workload).filter_map(|one| {
            let other = self.beside(one, over)?;
            Some(one.pairs(side, (other, side), metric))
        });
        Spread::of(pairs.flatten().map(|(one, other)| one / other))
    }

    /// Whether the other system did better in another pass, in each run, than in any of this outcome's.
    #[must_use]
    pub fn is_beaten(&self, outcome: &Outcome) -> bool {
        let metric = outcome.compared();
        let ends = |one: &Outcome| {
            let spread = one.spread(Side::Rival, metric)?;
            let (worst, best) = match metric.is_more_better() {
                true => (spread.min, spread.max),
                false => (-spread.max, -spread.min),
            };
            (spread.runs >= RUNS_UNTIL_BEATEN).then_some((worst, best))
        };
        let Some((_, best)) = ends(outcome) else {
            return false;
        };
        // One that was beaten itself would leave the workload without any that has all runs.
        let others = self.all(&outcome.workload);
        let others = others.filter(|one| one.pass != outcome.pass && !one.is_beaten);
        others.filter_map(ends).any(|(worst, _)| worst > best)
    }

    /// One outcome per workload: where Flink was measured with several collectors, that in which it did best.
    #[must_use]
    pub fn best(&self) -> Vec<&Outcome> {
        let mut best: Vec<&Outcome> = Vec::new();
        for outcome in &self.outcomes {
            let same = best.iter_mut().find(|one| one.workload == outcome.workload);
            match same {
                None => best.push(outcome),
                Some(before) => {
                    let metric = before.compared();
                    let value = |one: &Outcome| one.spread(Side::Rival, metric).map(|s| s.median);
                    let is_better = match (value(outcome), value(before)) {
                        (Some(new), Some(old)) => (new > old) == metric.is_more_better(),
                        (new, old) => new.is_some() && old.is_none(),
                    };
                    if is_better {
                        *before = outcome;
                    }
                }
            }
        }
        best
    }

    /// The outcome of a workload.
    #[must_use]
    pub fn outcome(&self, workload: &str) -> Option<&Outcome> {
        self.best().into_iter().find(|one| one.workload == workload)
    }

    /// Whether a run failed or an output was wrong.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let mut runs = self.outcomes.iter().flat_map(|one| one.peers.values());
        runs.any(|runs| runs.failure.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::digest::Digest;
    use crate::workload::table;

    /// It takes two runs, no overlap, and another that was not left early itself; of latency less is better.
    #[test]
    fn a_collector_is_beaten_when_its_best_run_is_below_the_others_worst() {
        let table = table(Profile::Full);
        let place = |name: &str| table.iter().position(|one| one.name == name).unwrap();
        let (count, latency) = (place("keyed-count-1e3"), place("latency"));
        for (place, figures, is_other_beaten, expected) in [
            (count, vec![1.9, 1.0], false, true),
            (count, vec![1.9, 1.0], true, false),
            (count, vec![2.1, 1.0], false, false),
            (count, vec![4.1, 5.0], false, false),
            (count, vec![1.0], false, false),
            (count, vec![], false, false),
            (latency, vec![4.1, 5.0], false, true),
            (latency, vec![3.9, 5.0], false, false),
            (latency, vec![1.9, 1.0], false, false),
        ] {
            let workload = &table[place];
            let wanted = [(PeerName::Flink, 5)];
            let outcome_of = |pass: Collector, figures: &[f64]| {
                let mut outcome = Outcome::new(workload, pass, true);
                for figure in figures {
                    let mut measurement = Measurement::default();
                    measurement.set(workload.headline, *figure);
                    measurement.set(Metric::Rate, 1.0);
                    outcome.add(pass.peer(), measurement);
                }
                outcome
            };
            let mut results = Results::new(Profile::Full, 1.0);
            let mut other = outcome_of(Collector::Parallel, &[2.0, 3.0, 4.0]);
            other.is_beaten = is_other_beaten;
            results.put(other);
            let mut g1 = outcome_of(Collector::G1, &figures);
            let what = format!("{} {figures:?} {is_other_beaten}", workload.name);
            assert_eq!(results.is_beaten(&g1), expected, "{what}");
            let is_complete = |one: &Outcome| one.is_complete(workload, &wanted, Some(1_000_000));
            assert!(!is_complete(&g1), "{what}");
            g1.is_beaten = expected;
            assert_eq!(is_complete(&g1), expected, "{what}");
        }
    }

    fn measurement(rate: f64) -> Measurement {
        let mut measurement = Measurement::default();
        measurement.set(Metric::WarmRate, rate);
        measurement
    }

    fn outcome(place: usize, pass: Collector, rates: &[(f64, f64)]) -> Outcome {
        let table = table(Profile::Quick);
        let mut outcome = Outcome::new(&table[place], pass, true);
        for (ours, theirs) in rates {
            outcome.add("perennial", measurement(*ours));
            outcome.add(pass.peer(), measurement(*theirs));
        }
        outcome
    }

    fn results() -> Results {
        let mut results = Results::new(Profile::Full, 1.0);
        let parallel = [(60.0, 5.0), (50.0, 5.0), (40.0, 5.0)];
        results.put(outcome(0, Collector::Parallel, &parallel));
        let g1 = [(60.0, 7.0), (35.0, 7.0), (70.0, 7.0)];
        results.put(outcome(0, Collector::G1, &g1));
        results
    }

    /// We are compared with the best that Flink did, run by run.
    #[test]
    fn the_better_collector_is_the_rival() {
        let mut results = results();
        let best = results.best();
        assert_eq!(best.len(), 1);
        assert_eq!(best[0].rival.as_deref(), Some("flink-g1"));
        let advantage = best[0].advantage(Side::Rival, Metric::WarmRate).unwrap();
        assert_eq!((advantage.min, advantage.max), (5.0, 10.0));
        assert!(!results.has_failed());
        results.outcomes[0].fail("flink-parallel", "wrong output".into(), true);
        assert!(results.has_failed());
    }

    /// A machine that is half as fast in the second run and in the other pass changes no ratio; a run without the figure has no pair, and
    /// does not shift those after it.
    #[test]
    fn ratios_of_workloads_pair_runs_of_the_same_pass() {
        let mut results = results();
        let [one, other] = [0, 1].map(|place| table(Profile::Quick).remove(place).name);
        let ratios =
            |results: &Results| results.ratios(Side::Perennial, &other, &one, Metric::WarmRate);
        assert_eq!(ratios(&results), None);
        let halves = [(30.0, 1.0), (25.0, 1.0), (20.0, 1.0)];
        results.put(outcome(1, Collector::Parallel, &halves));
        let halves = [(30.0, 1.0), (17.5, 1.0), (35.0, 1.0)];
        results.put(outcome(1, Collector::G1, &halves));
        let found = ratios(&results).unwrap();
        assert_eq!((found.min, found.max, found.runs), (0.5, 0.5, 6));
        let runs = results.outcomes[3].peers.get_mut("perennial").unwrap();
        runs.measurements[0].metrics.clear();
        let found = ratios(&results).unwrap();
        assert_eq!((found.min, found.max, found.runs), (0.5, 0.5, 5));
        // Of another call, and so of another time.
        let last = results.outcomes[3].began + 1;
        results.calls.push(last);
        results.outcomes[3].began = last;
        assert_eq!(ratios(&results).unwrap().runs, 3);
    }

    /// Every part of them, by way of the text of the file.
    #[test]
    fn results_can_be_read_back() {
        let mut results = results();
        results.notes.push("a note".into());
        let mut last = measurement(2.5);
        last.output = Some(Digest {
            count: 3,
            sum: u64::MAX,
        });
        last.set(Metric::ForeignCpu, f64::NAN);
        results.outcomes[0].add("bare", last);
        results.outcomes[0].fail("flink-parallel", "wrong output".into(), true);
        results.outcomes[1].fail("flink-g1", "cannot".into(), false);
        let text = serde_json::to_string_pretty(&results).unwrap();
        let back: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(back, results);
    }

    /// A call of which nothing is left does not count.
    #[test]
    fn calls_are_counted_by_what_is_left_of_them() {
        let mut results = results();
        results.calls = vec![100, 200, 300];
        results.outcomes[0].began = 150;
        results.outcomes[1].began = 150;
        assert_eq!(results.calls_measured(), 1);
        let mut anew = results.outcomes[1].clone();
        anew.began = 300;
        results.put(anew);
        assert_eq!((results.outcomes.len(), results.calls_measured()), (2, 2));
    }
}
