//! Decides what is measured, and in which order: pass by pass, group by group. Pure.
//!
//! A pass has one collector of Flink. The workloads of a group take turns, run by run, and are measured together or not at all.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::load::{REFERENCE, half_load};
use crate::peer::flink::Collector;
use crate::report::ResumeError;
use crate::report::results::Results;
use crate::workload::{Kind, Profile, Workload, table};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerName {
    /// This project, as real processes
    Perennial,
    /// Apache Flink, as real processes
    Flink,
    /// A plain loop on two threads
    Bare,
}

impl PeerName {
    /// As it stands in results, of a pass.
    #[must_use]
    pub fn name(self, pass: Collector) -> &'static str {
        match self {
            Self::Perennial => "perennial",
            Self::Flink => pass.peer(),
            Self::Bare => "bare",
        }
    }
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sizes and number of runs.
    pub profile: Profile,
    /// Names of workloads, or how they begin; all when there are none.
    pub only: Vec<String>,
    /// Runs of each, instead of those of the table.
    pub runs: Option<usize>,
    /// Of the number of events.
    pub scale: f64,
    /// Who.
    pub peers: Vec<PeerName>,
    /// For how long groups may begin, once all is set up; those that come later are left out.
    pub begin_within: Option<Duration>,
    /// The program that plays Perennial's roles.
    pub binary: PathBuf,
    /// Where generated input is kept.
    pub inputs: PathBuf,
    /// Where Flink is kept.
    pub cache: PathBuf,
}

/// The pass that measures everything, and whose figures others are held against.
pub(crate) const FIRST_PASS: Collector = Collector::Parallel;

/// A group in a pass, with its members that are measured then.
pub type Group<'a> = (Collector, Vec<&'a Workload>);

impl Plan {
    pub(crate) fn has(&self, peer: PeerName) -> bool {
        self.peers.contains(&peer)
    }

    /// Whether a group may begin after so long.
    pub(crate) fn has_time(&self, elapsed: Duration) -> bool {
        self.begin_within.is_none_or(|within| elapsed < within)
    }

    /// The workloads that were asked for.
    #[must_use]
    pub fn workloads(&self) -> Vec<Workload> {
        let is_wanted = |workload: &Workload| {
            let mut only = self.only.iter();
            self.only.is_empty() || only.any(|name| workload.name.starts_with(name.as_str()))
        };
        let wanted = table(self.profile).into_iter().filter(is_wanted);
        wanted.map(|one| one.scaled(self.scale)).collect()
    }

    /// One for each collector; without Flink there is nothing to repeat.
    fn passes(&self) -> &'static [Collector] {
        match (self.has(PeerName::Flink), self.profile) {
            (false, _) | (true, Profile::Quick) => &[FIRST_PASS],
            (true, Profile::Full) => &[FIRST_PASS, Collector::G1],
        }
    }

    /// Who is to run a workload and how often, in their order.
    pub(crate) fn wanted(&self, workload: &Workload) -> Vec<(PeerName, usize)> {
        let runs = |runs| self.runs.unwrap_or(runs);
        let mut wanted = Vec::new();
        if workload.bare().is_some() {
            wanted.push((PeerName::Bare, runs(workload.runs)));
        }
        wanted.push((PeerName::Perennial, runs(workload.runs)));
        if workload.has_rival {
            wanted.push((PeerName::Flink, runs(workload.rival_runs)));
        }
        wanted.retain(|(peer, _runs)| self.has(*peer));
        wanted
    }

    /// What is not measured yet. A group is there with all of its members that were asked for, since they take turns: also when one alone
    /// lacks a run, and when each has its runs, but of different calls.
    #[must_use]
    pub fn pending<'a>(&self, workloads: &'a [Workload], known: &Results) -> Vec<Group<'a>> {
        let mut pending = Vec::new();
        let mut load = Some(half_load(known));
        for pass in self.passes().iter().copied() {
            for mut group in groups(workloads) {
                group.retain(|one| pass == FIRST_PASS || is_in_every_pass(one));
                group.retain(|one| !self.wanted(one).is_empty());
                let is_complete = |one: &&Workload| {
                    let outcome = known.of(&one.name, pass);
                    outcome.is_some_and(|outcome| outcome.is_complete(one, &self.wanted(one), load))
                };
                let measured = group.iter().filter_map(|one| known.of(&one.name, pass));
                let took_turns = known.calls_of(measured) <= 1;
                if !(took_turns && group.iter().all(is_complete)) {
                    if pass == FIRST_PASS && group.iter().any(|one| one.name == REFERENCE) {
                        // Another will be known by the time that latency is measured, which comes after it.
                        load = None;
                    }
                    pending.push((pass, group));
                }
            }
        }
        pending
    }

    /// Refuses pending groups that would take the place of results of a peer that takes no part now, be it that nobody named it or that
    /// it is not there.
    ///
    /// # Errors
    /// [`ResumeError::Loss`].
    pub(crate) fn refuse_loss(
        &self,
        pending: &[Group<'_>],
        known: &Results,
    ) -> Result<(), ResumeError> {
        for (pass, group) in pending {
            for outcome in group.iter().filter_map(|one| known.of(&one.name, *pass)) {
                let missing = PeerName::value_variants().iter();
                let mut missing = missing.filter(|peer| !self.has(**peer));
                let is_known = |peer: &&PeerName| outcome.peers.contains_key(peer.name(*pass));
                if let Some(peer) = missing.find(is_known) {
                    return Err(ResumeError::Loss {
                        workload: outcome.workload.clone(),
                        peer: peer.name(*pass),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Collectors differ in what they do under load.
fn is_in_every_pass(workload: &Workload) -> bool {
    let is_about_load = match workload.kind {
        Kind::Throughput(_) | Kind::Nexmark(_) | Kind::Latency { .. } => true,
        Kind::Files
        | Kind::Recovery(_)
        | Kind::Start(_)
        | Kind::Idle
        | Kind::Checkpoints { .. }
        | Kind::Restore => false,
    };
    is_about_load && workload.has_rival
}

/// Those that take turns together, at the place of the first of them.
fn groups(workloads: &[Workload]) -> Vec<Vec<&Workload>> {
    let mut groups: Vec<Vec<&Workload>> = Vec::new();
    for workload in workloads {
        let is_same = |group: &&mut Vec<&Workload>| {
            workload.turns.is_some() && group.iter().any(|one| one.turns == workload.turns)
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => group.push(workload),
            None => groups.push(vec![workload]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Measurement, Metric};
    use crate::report::results::Outcome;

    fn plan(profile: Profile, only: &[&str]) -> Plan {
        Plan {
            profile,
            only: only.iter().map(|name| (*name).to_owned()).collect(),
            runs: None,
            scale: 1.0,
            peers: vec![PeerName::Perennial, PeerName::Flink, PeerName::Bare],
            begin_within: None,
            binary: PathBuf::new(),
            inputs: PathBuf::new(),
            cache: PathBuf::new(),
        }
    }

    fn names(pending: &[Group<'_>]) -> Vec<String> {
        let name = |(pass, group): &Group<'_>| {
            let members: Vec<_> = group.iter().map(|one| one.name.as_str()).collect();
            format!("{}: {}", pass.peer(), members.join(" "))
        };
        pending.iter().map(name).collect()
    }

    /// All of a plan, as if it had been measured.
    fn all(plan: &Plan, workloads: &[Workload]) -> Results {
        let mut results = Results::new(plan.profile, plan.scale);
        for (pass, group) in plan.pending(workloads, &results.clone()) {
            for workload in group {
                let mut outcome = Outcome::new(workload, pass, plan.has(PeerName::Flink));
                let mut measurement = Measurement::default();
                measurement.set(Metric::WarmRate, 4.0);
                measurement.set(Metric::Rate, half_load(&results) as f64 / 1e6);
                for (peer, runs) in plan.wanted(workload) {
                    for _ in 0..runs {
                        outcome.add(peer.name(pass), measurement.clone());
                    }
                }
                results.put(outcome);
            }
        }
        results
    }

    /// Whatever is divided by each other is in one group, in `quick` as in `full`, and whoever takes turns can share a cluster.
    #[test]
    fn workloads_that_are_compared_take_turns() {
        let million = "keyed-count-1e6 keyed-count-1e6-cp1s";
        let long = "keyed-count-1e6-long keyed-count-1e6-long-cp1s";
        let thousand = "keyed-count-1e3 keyed-count-1e3-cp1s";
        let latency = "latency latency-buffer-0";
        let tenth = "keyed-count-1e6-10pct keyed-count-1e6-10pct-cp1s";
        let expected = [
            (
                Profile::Quick,
                vec![thousand.to_owned(), format!("{million} {long}")],
            ),
            (
                Profile::Full,
                vec![
                    thousand.to_owned(),
                    format!("{million} {long} {tenth} keyed-count-1e6-one-core"),
                    "keyed-count-1e7 keyed-count-1e7-cp1s".to_owned(),
                    latency.to_owned(),
                    "checkpoint-1e6 checkpoint-1e7-same-changes".to_owned(),
                ],
            ),
        ];
        for (profile, expected) in expected {
            let table = table(profile);
            let groups = groups(&table);
            for group in &groups {
                assert!(group.iter().all(|one| one.shape == group[0].shape));
            }
            let several = groups.iter().filter(|group| group.len() > 1);
            let names = several.map(|group| {
                let names: Vec<_> = group.iter().map(|one| one.name.as_str()).collect();
                names.join(" ")
            });
            assert_eq!(names.collect::<Vec<_>>(), expected, "{profile:?}");
        }
    }

    /// Only what is about load is measured with the other collector, and nothing of ours alone.
    #[test]
    fn the_second_pass_is_about_load_beside_flink() {
        let plan = plan(Profile::Full, &["keyed-count-1e6", "start", "shuffle"]);
        let workloads = plan.workloads();
        let known = Results::new(Profile::Full, 1.0);
        let pending = names(&plan.pending(&workloads, &known));
        let second: Vec<_> = pending
            .iter()
            .filter(|n| n.starts_with("flink-g1"))
            .collect();
        assert_eq!(
            second,
            [
                "flink-g1: keyed-count-1e6 keyed-count-1e6-cp1s",
                "flink-g1: shuffle",
                "flink-g1: shuffle-latency"
            ]
        );
    }

    /// One change to complete results at a time, and what is to be measured after it.
    #[test]
    fn what_is_complete_is_skipped_and_nothing_else() {
        type Change = fn(&mut Plan, &mut Results);
        fn runs<'a>(
            results: &'a mut Results,
            place: usize,
            peer: &str,
        ) -> &'a mut crate::report::results::Runs {
            results.outcomes[place].peers.get_mut(peer).unwrap()
        }
        fn measured_later(results: &mut Results, places: &[usize]) {
            let last = results.outcomes.iter().map(|one| one.began).max();
            let later = last.unwrap() + 1;
            results.calls.push(later);
            for place in places {
                results.outcomes[*place].began = later;
            }
        }
        let cases: [(&str, Change, &[&str]); 13] = [
            ("nothing", |_, _| {}, &[]),
            (
                "a run of ours is missing",
                |_, known| drop(runs(known, 0, "perennial").measurements.pop()),
                &["flink-parallel: latency latency-buffer-0"],
            ),
            (
                "a run of Flink's is missing, in the other pass",
                |_, known| drop(runs(known, 4, "flink-g1").measurements.pop()),
                &["flink-g1: latency latency-buffer-0"],
            ),
            (
                "a run failed",
                |_, known| runs(known, 2, "perennial").failure = Some("why".into()),
                &["flink-parallel: kill-jobmanager-1e6"],
            ),
            (
                "a peer never ran",
                |_, known| drop(known.outcomes[3].peers.remove("flink-parallel")),
                &["flink-parallel: idle"],
            ),
            (
                "a peer cannot",
                |_, known| {
                    *runs(known, 2, "flink-parallel") = crate::report::results::Runs {
                        impossible: Some("why".into()),
                        ..Default::default()
                    };
                },
                &[],
            ),
            (
                "an outcome is missing",
                |_, known| drop(known.outcomes.remove(3)),
                &["flink-parallel: idle"],
            ),
            (
                "a member was measured again, alone",
                |_, known| measured_later(known, &[1]),
                &["flink-parallel: latency latency-buffer-0"],
            ),
            (
                "a whole group was measured again",
                |_, known| measured_later(known, &[0, 1]),
                &[],
            ),
            (
                "more runs are asked for",
                |plan, _| {
                    plan.only = vec!["idle".into()];
                    plan.runs = Some(6);
                },
                &["flink-parallel: idle"],
            ),
            (
                "fewer runs are asked for",
                |plan, _| plan.runs = Some(1),
                &[],
            ),
            (
                "fewer peers are asked for",
                |plan, known| {
                    plan.peers = vec![PeerName::Perennial];
                    known.outcomes[3].peers.remove("flink-parallel");
                },
                &[],
            ),
            (
                "the table has other sizes by now",
                |_, known| known.outcomes[3].keys += 1,
                &["flink-parallel: idle"],
            ),
        ];
        for (what, change, expected) in cases {
            let mut plan = plan(Profile::Full, &["latency", "kill-jobmanager-1e6", "idle"]);
            let mut known = all(&plan, &plan.workloads());
            assert_eq!(known.outcomes.len(), 6);
            change(&mut plan, &mut known);
            let workloads = plan.workloads();
            assert_eq!(names(&plan.pending(&workloads, &known)), expected, "{what}");
        }
    }

    /// Nothing is replaced by something of fewer peers; what is complete, or is not known yet, needs no peer.
    #[test]
    fn no_peers_results_are_lost() {
        use PeerName::{Bare, Flink, Perennial};
        /// Peers and workloads of the call, runs of each, and whose results would be lost.
        type Case<'a> = (
            &'a [PeerName],
            &'a [&'a str],
            Option<usize>,
            Option<&'a str>,
        );
        let cases: [Case<'_>; 7] = [
            (&[Perennial, Flink, Bare], &[], Some(9), None),
            (&[Perennial], &[], None, None),
            (&[Perennial, Flink], &[], Some(9), Some("bare")),
            (&[Perennial, Bare], &[], Some(9), Some("flink-parallel")),
            (&[Flink, Bare], &[], Some(9), Some("perennial")),
            (&[Perennial], &["idle"], Some(9), Some("flink-parallel")),
            // What the table measures without Flink has none to lose, and this is not known.
            (
                &[Perennial],
                &["keyed-count-1e6-long-cp", "start"],
                Some(9),
                None,
            ),
        ];
        for (peers, only, runs, expected) in cases {
            let mut plan = plan(
                Profile::Full,
                &["passthrough", "idle", "keyed-count-1e6-long-cp"],
            );
            let known = all(&plan, &plan.workloads());
            if !only.is_empty() {
                plan.only = only.iter().map(|name| (*name).to_owned()).collect();
            }
            plan.runs = runs;
            plan.peers = peers.to_vec();
            let workloads = plan.workloads();
            let pending = plan.pending(&workloads, &known);
            assert_eq!(pending.is_empty(), runs.is_none(), "{peers:?} {only:?}");
            let lost = match plan.refuse_loss(&pending, &known) {
                Ok(()) => None,
                Err(ResumeError::Loss { peer, .. }) => Some(peer),
                Err(other) => panic!("{other}"),
            };
            assert_eq!(lost, expected, "{peers:?} {only:?}");
        }
    }

    /// One change to complete results at a time: latency is complete at half of what the reference did in the first pass.
    #[test]
    fn latency_at_another_load_is_measured_anew() {
        type Change = fn(&mut Results);
        fn set(outcome: &mut Outcome, metric: Metric, value: f64) {
            let runs = outcome.peers.values_mut();
            for measurement in runs.flat_map(|runs| &mut runs.measurements) {
                measurement.set(metric, value);
            }
        }
        const FIRST: &str = "flink-parallel: latency latency-buffer-0";
        const SECOND: &str = "flink-g1: latency latency-buffer-0";
        let reference = format!("flink-parallel: {REFERENCE}");
        let cases: [(&str, Change, &[&str]); 6] = [
            ("nothing", |_| {}, &[]),
            (
                "there was no reference at that time",
                |known| {
                    for place in [1, 2, 4, 5] {
                        set(&mut known.outcomes[place], Metric::Rate, 1.0);
                    }
                },
                &[FIRST, SECOND],
            ),
            (
                "one run had another load",
                |known| {
                    let runs = known.outcomes[5].peers.get_mut("perennial").unwrap();
                    runs.measurements[1].set(Metric::Rate, 1.9);
                },
                &[SECOND],
            ),
            (
                "the reference is faster by now",
                |known| set(&mut known.outcomes[0], Metric::WarmRate, 5.0),
                &[FIRST, SECOND],
            ),
            (
                "the reference is faster by now, in the other pass",
                |known| set(&mut known.outcomes[3], Metric::WarmRate, 5.0),
                &[],
            ),
            (
                "the reference is to be measured anew",
                |known| {
                    let runs = known.outcomes[0].peers.get_mut("perennial").unwrap();
                    runs.measurements.pop();
                },
                &[&reference, FIRST, SECOND],
            ),
        ];
        for (what, change, expected) in cases {
            let plan = plan(Profile::Full, &[REFERENCE, "latency"]);
            let workloads = plan.workloads();
            let mut known = all(&plan, &workloads);
            assert_eq!((known.outcomes.len(), half_load(&known)), (6, 2_000_000));
            change(&mut known);
            assert_eq!(names(&plan.pending(&workloads, &known)), expected, "{what}");
        }
    }
}
