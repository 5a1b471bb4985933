//! All measurements of a run, and the figures that are compared.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::figures::{Measurement, Metric, Spread};
use crate::machine;
use crate::marks::now_us;
use crate::workload::{Profile, Workload};

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
#[derive(Debug, Clone, Default, Serialize)]
pub struct Runs {
    /// Those that succeeded, in their order.
    pub measurements: Vec<Measurement>,
    /// Why one failed.
    pub failure: Option<String>,
    /// Why there can be none.
    pub impossible: Option<String>,
}

/// One workload, measured in turns.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its name.
    pub workload: String,
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
    /// By name.
    pub peers: BTreeMap<String, Runs>,
}

impl Outcome {
    /// Nothing is measured yet.
    #[must_use]
    pub fn new(workload: &Workload, rival: Option<&str>) -> Self {
        Self {
            workload: workload.name.clone(),
            about: workload.about.clone(),
            headline: workload.headline,
            keys: workload.keys,
            events: workload.events,
            rival: rival.filter(|_| workload.has_rival).map(str::to_owned),
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

    /// Runs of one side.
    #[must_use]
    pub fn side(&self, side: Side) -> Option<&Runs> {
        self.peers.get(match side {
            Side::Perennial => "perennial",
            Side::Rival => self.rival.as_deref()?,
            Side::Bare => "bare",
        })
    }

    fn values(&self, side: Side, metric: Metric) -> impl Iterator<Item = f64> {
        let runs = self.side(side).map(|runs| runs.measurements.as_slice());
        let runs = runs.unwrap_or_default().iter();
        runs.filter_map(move |run| run.metrics.get(&metric).copied())
    }

    /// A figure over all runs of a side.
    #[must_use]
    pub fn spread(&self, side: Side, metric: Metric) -> Option<Spread> {
        Spread::of(self.values(side, metric))
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

    /// By how much we are better (above 1) or worse than another side, run by run.
    #[must_use]
    pub fn advantage(&self, over: Side, metric: Metric) -> Option<Spread> {
        let pairs = self
            .values(Side::Perennial, metric)
            .zip(self.values(over, metric));
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
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// Which sizes.
    pub profile: Profile,
    /// When it began, in seconds since the epoch.
    pub began: u64,
    /// Of the machine.
    pub processor: String,
    /// Of the machine.
    pub processors: usize,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// In the order in which they were measured.
    pub outcomes: Vec<Outcome>,
}

impl Results {
    /// Nothing is measured yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            began: now_us() / 1_000_000,
            processor: machine::processor_model(),
            processors: machine::processors(),
            notes: Vec::new(),
            outcomes: Vec::new(),
        }
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

    /// Middle of a side's runs.
    #[must_use]
    pub fn median(&self, workload: &str, side: Side, metric: Metric) -> Option<f64> {
        Some(self.outcome(workload)?.spread(side, metric)?.median)
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
    use crate::workload::table;

    fn outcome(rival: &str, rates: &[(f64, f64)]) -> Outcome {
        let table = table(Profile::Quick);
        let mut outcome = Outcome::new(&table[0], Some(rival));
        for (ours, theirs) in rates {
            for (peer, rate) in [("perennial", ours), (rival, theirs)] {
                let mut measurement = Measurement::default();
                measurement.set(Metric::WarmRate, *rate);
                outcome.add(peer, measurement);
            }
        }
        outcome
    }

    /// We are compared with the best that Flink did, run by run.
    #[test]
    fn the_better_collector_is_the_rival() {
        let mut results = Results::new(Profile::Full);
        results.outcomes.push(outcome(
            "flink-parallel",
            &[(60.0, 5.0), (50.0, 5.0), (40.0, 5.0)],
        ));
        results.outcomes.push(outcome(
            "flink-g1",
            &[(60.0, 7.0), (35.0, 7.0), (70.0, 7.0)],
        ));
        let best = results.best();
        assert_eq!(best.len(), 1);
        assert_eq!(best[0].rival.as_deref(), Some("flink-g1"));
        let advantage = best[0].advantage(Side::Rival, Metric::WarmRate).unwrap();
        assert_eq!((advantage.min, advantage.max), (5.0, 10.0));
        assert!(!results.has_failed());
        results.outcomes[0].fail("flink-parallel", "wrong output".into(), true);
        assert!(results.has_failed());
    }
}
