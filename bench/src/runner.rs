//! Measures what the plan says: peers and the workloads of a group take turns, so that what disturbs the machine disturbs all of them.
//!
//! A run that fails is told and kept, and the rest goes on. So are workloads that the time was not enough for.

use std::collections::BTreeMap;

use perennial_actors::clock::Instant;

use crate::command::progress::Progress;
use crate::figures::Measurement;
use crate::load::half_load;
use crate::peer::flink::{Collector, Flink, Installation};
use crate::peer::perennial::Perennial;
use crate::peer::{NotPossible, Peer, bare};
use crate::plan::{PeerName, Plan};
use crate::report::results::{Outcome, RUNS_UNTIL_BEATEN, Results};
use crate::workload::{Context, Workload, measure, warm_up};

/// Measures everything that the results lack. `keep` is called after each group with all that is known by then.
///
/// # Errors
/// When results cannot be kept, and before anything is measured or kept, [`ResumeError`](crate::report::ResumeError) when some would be
/// lost. A run that fails is none.
pub fn run(
    plan: &Plan,
    mut results: Results,
    progress: &Progress,
    mut keep: impl FnMut(&Results) -> anyhow::Result<()>,
) -> anyhow::Result<Results> {
    let mut plan = plan.clone();
    let mut installation = None;
    if plan.has(PeerName::Flink) {
        match Installation::prepare(&plan.cache, &|text| progress.say(text)) {
            Ok(found) => installation = Some(found),
            Err(error) => {
                let text = format!("without Flink: {error}");
                progress.say(&text);
                results.notes.push(text);
                plan.peers.retain(|peer| *peer != PeerName::Flink);
            }
        }
    }
    let workloads = plan.workloads();
    let pending = plan.pending(&workloads, &results);
    plan.refuse_loss(&pending, &results)?;
    let total: usize = pending.iter().map(|(_pass, group)| group.len()).sum();
    let mut peers: Option<(Collector, Peers)> = None;
    let mut first = 1;
    let began = Instant::now();
    let mut left_out = Vec::new();
    for (pass, group) in pending {
        if !plan.has_time(began.elapsed()) {
            left_out.extend(group.iter().map(|workload| workload.name.as_str()));
            continue;
        }
        // Nodes of one pass must be gone before those of the next come.
        peers = peers.filter(|(of, _)| *of == pass);
        let (_, peers) = peers.get_or_insert_with(|| {
            let perennial = plan.has(PeerName::Perennial);
            let rival = installation.clone();
            let of = Peers {
                perennial: perennial.then(|| Perennial::new(plan.binary.clone())),
                rival: rival.map(|at| Flink::new(at, pass)),
            };
            (pass, of)
        });
        let mut turns = Turns {
            context: Context {
                inputs: &plan.inputs,
                half_load: half_load(&results),
            },
            pass,
            members: Vec::new(),
            progress,
        };
        for (number, workload) in (first..).zip(group) {
            turns.members.push(Member {
                workload,
                wanted: plan.wanted(workload),
                place: format!("workload {number} of {total}"),
                outcome: Outcome::new(workload, pass, plan.has(PeerName::Flink)),
            });
        }
        first += turns.members.len();
        turns.run(peers, &results);
        for member in turns.members {
            results.put(member.outcome);
        }
        keep(&results)?;
    }
    if !left_out.is_empty() {
        // Those of all passes.
        left_out.sort_unstable();
        left_out.dedup();
        let names = left_out.join(", ");
        let text = format!("time is over; not measured: {names}: --resume goes on with them");
        progress.say(&text);
        results.notes.push(text);
    }
    // Also when there was nothing to do: what is left of the files may be of an earlier call.
    keep(&results)?;
    Ok(results)
}

/// Those with a cluster, as far as they are measured.
struct Peers {
    perennial: Option<Perennial>,
    rival: Option<Flink>,
}

/// All runs of one group.
struct Turns<'a> {
    context: Context<'a>,
    pass: Collector,
    members: Vec<Member<'a>>,
    progress: &'a Progress,
}

/// A workload of a group.
struct Member<'a> {
    workload: &'a Workload,
    wanted: Vec<(PeerName, usize)>,
    /// Which of how many.
    place: String,
    outcome: Outcome,
}

impl Turns<'_> {
    fn run(&mut self, peers: &mut Peers, known: &Results) {
        let (context, pass, progress) = (self.context, self.pass, self.progress);
        if let Some(peer) = &mut peers.rival {
            for member in &mut self.members {
                member.warm_up(peer, context, progress);
            }
        }
        let wanted = self.members.iter().flat_map(|one| &one.wanted);
        let most = wanted.map(|(_peer, runs)| *runs).max();
        for run in 1..=most.unwrap_or(0) {
            // Together or not at all, since they take turns.
            if run > RUNS_UNTIL_BEATEN
                && self.members.iter().all(|one| known.is_beaten(&one.outcome))
            {
                for member in &mut self.members {
                    member.outcome.is_beaten = true;
                }
                progress.say(&format!(
                    "{} does better with another collector",
                    self.names()
                ));
                break;
            }
            for member in &mut self.members {
                for (peer, runs) in member.wanted.clone() {
                    if run > runs || member.outcome.is_hopeless(peer.name(pass)) {
                        continue;
                    }
                    progress.now(&format!(
                        "{}, {}: {}, run {run}",
                        member.place,
                        member.workload.name,
                        peer.name(pass)
                    ));
                    let measured = member.measure(peers, peer, context);
                    member.ended(peer.name(pass), run, measured, progress);
                }
            }
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self
            .members
            .iter()
            .map(|one| one.workload.name.as_str())
            .collect();
        names.join(", ")
    }
}

impl Member<'_> {
    fn warm_up(&mut self, peer: &mut Flink, context: Context<'_>, progress: &Progress) {
        if !self.workload.has_rival {
            return;
        }
        let name = peer.name();
        let (place, workload) = (&self.place, &self.workload.name);
        progress.now(&format!("{place}, {workload}: {name} warms up"));
        let warm = scratch().and_then(|at| warm_up(peer, self.workload, context, at.path()));
        if let Err(error) = warm {
            self.failed(name, &error, progress);
        }
    }

    /// `None` for a peer that is not there.
    fn measure(
        &self,
        peers: &mut Peers,
        peer: PeerName,
        context: Context<'_>,
    ) -> Option<anyhow::Result<Measurement>> {
        let workload = self.workload;
        let with_cluster = |peer: &mut dyn Peer| {
            let measured = scratch().and_then(|at| measure(peer, workload, context, at.path()));
            if measured.is_err() {
                // What state it is in is not known.
                peer.stop();
            }
            measured
        };
        match peer {
            PeerName::Bare => {
                let work = workload.bare()?;
                let (events, keys) = (workload.events, workload.keys);
                Some(Ok(bare::run(work, events, keys, workload.processors)))
            }
            PeerName::Perennial => {
                let peer = peers.perennial.as_mut()?;
                let measured = with_cluster(peer);
                // It starts in no time, and must not be in the other's way.
                peer.stop();
                Some(measured)
            }
            PeerName::Flink => Some(with_cluster(peers.rival.as_mut()?)),
        }
    }

    fn ended(
        &mut self,
        peer: &str,
        run: usize,
        measured: Option<anyhow::Result<Measurement>>,
        progress: &Progress,
    ) {
        match measured {
            None => {}
            Some(Err(error)) => self.failed(peer, &error, progress),
            Some(Ok(measurement)) => {
                let headline = self.workload.headline;
                let value = measurement.metrics.get(&headline).copied();
                let rest: BTreeMap<_, _> = measurement
                    .metrics
                    .iter()
                    .filter(|(m, _)| **m != headline)
                    .collect();
                progress.finished(&self.workload.name, peer, run, (headline, value), &rest);
                self.outcome.add(peer, measurement);
            }
        }
    }

    fn failed(&mut self, peer: &str, error: &anyhow::Error, progress: &Progress) {
        let is_possible = error.downcast_ref::<NotPossible>().is_none();
        let text = format!("{error:#}");
        let what = if is_possible {
            "failed"
        } else {
            "not possible"
        };
        let workload = &self.workload.name;
        progress.say(&format!("{workload} {peer}: {what}: {text}"));
        self.outcome.fail(peer, text, is_possible);
    }
}

fn scratch() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("perennial-bench-")
        .tempdir()?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::workload::Profile;

    /// It is said which they are.
    #[test]
    fn what_comes_too_late_is_named_and_left_out() {
        for (begin_within, measured, noted) in [
            (None, 2, 0),
            (Some(Duration::from_hours(1)), 2, 0),
            (Some(Duration::ZERO), 0, 1),
        ] {
            let plan = Plan {
                profile: Profile::Quick,
                only: vec!["keyed-count-1e3".into()],
                runs: Some(1),
                scale: 0.001,
                peers: vec![PeerName::Bare],
                begin_within,
                binary: PathBuf::new(),
                inputs: PathBuf::new(),
                cache: PathBuf::new(),
            };
            let results = Results::new(plan.profile, plan.scale);
            let results = run(&plan, results, &Progress::new(), |_| Ok(())).unwrap();
            assert_eq!(results.outcomes.len(), measured);
            assert_eq!(results.notes.len(), noted, "{:?}", results.notes);
            let mut notes = results.notes.iter();
            assert!(notes.all(|note| note.contains("keyed-count-1e3-cp1s")));
        }
    }
}
