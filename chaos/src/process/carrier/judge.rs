//! Judges a run by the invariants (what each says is in [`crate::catalogue`]).

mod leftovers;

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_actors::model::{FailureKind, JobState, RecoveryRecord};

use super::super::ProcessCluster;
use super::watch::View;
use super::{Run, is_finished, may_fail, violation};
use crate::checker::{
    Recorder, Recording, Struck, check_count, check_fencing, check_one_truth, check_restarts,
    explain_by_any_clock, found_out, is_retired, is_takeover, was_led,
};
use crate::oracle::compare;
use crate::plan::{Direction, Fault, FaultPlan, Invariant, LinkFault, StoreFault, Target, When};
use crate::profile::ends_job;
use crate::report::Violation;
use leftovers::Baseline;

/// L2: what detection may take on top of its configured bound, on a busy machine.
pub(super) const DETECTION_SLACK: Duration = Duration::from_millis(1500);

/// Collects what was checked and what does not hold.
#[derive(Debug, Default)]
pub(super) struct Judge {
    checked: BTreeMap<Invariant, u64>,
    violations: Vec<Violation>,
    baseline: BTreeMap<String, Baseline>,
}

impl Judge {
    pub(super) fn begin(cluster: &mut ProcessCluster) -> anyhow::Result<Self> {
        let nodes = cluster.nodes.iter();
        let baseline = nodes
            .map(|(name, node)| (name.clone(), Baseline::of(node.pid())))
            .collect();
        Ok(Self {
            baseline,
            ..Self::default()
        })
    }

    pub(super) fn count(&mut self, invariant: Invariant) {
        *self.checked.entry(invariant).or_default() += 1;
    }

    pub(super) fn fail(&mut self, invariant: Invariant, detail: String) {
        self.count(invariant);
        self.violations.push(violation(invariant, detail));
    }

    /// One check: what it found is what does not hold.
    fn all(&mut self, invariant: Invariant, broken: Vec<String>) {
        self.count(invariant);
        self.violations.extend(
            broken
                .into_iter()
                .map(|detail| violation(invariant, detail)),
        );
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.violations.is_empty()
    }

    pub(super) fn checked(&self) -> BTreeMap<Invariant, u64> {
        self.checked.clone()
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        self.violations.clone()
    }
}

fn broken(result: anyhow::Result<()>) -> Vec<String> {
    result.err().map(|e| format!("{e:#}")).into_iter().collect()
}

impl Run<'_> {
    pub(super) fn check(&mut self, view: &View, recoveries: &[RecoveryRecord]) {
        self.check_end(view, recoveries);
        self.check_output(view);
        self.check_checkpoints();
        self.check_store_history();
        let restart = &self.settings.job.restart;
        let histories = view.histories().into_iter();
        let mut law: Vec<_> = histories
            .flat_map(|history| check_restarts(restart, &history))
            .collect();
        law.extend(view.status.iter().flat_map(check_count));
        self.judge.all(Invariant::S5, law);
        self.check_causes(recoveries);
        self.check_detection(recoveries);
        let clients = self.check_clients();
        if !self
            .plan
            .faults
            .iter()
            .all(|f| f.what != Fault::ClientSavepoint)
        {
            self.judge.all(Invariant::L3, clients);
        }
        if view.terminal().is_some() {
            self.check_leftovers(view);
        }
    }

    /// L3.
    fn check_end(&mut self, view: &View, recoveries: &[RecoveryRecord]) {
        let state = view.terminal();
        let status = view.status.as_ref();
        let cause = status
            .and_then(|s| s.failure.as_ref())
            .map(ToString::to_string);
        let fatal = Fatal::of(self.plan, &self.struck, recoveries);
        let is_expected = may_end_so(state, fatal, may_fail(self.plan), cause.as_deref());
        let mut what = Vec::new();
        if !is_expected && !self.judge.has_failed() {
            what.push(format!("the job ended as {state:?}: {cause:?}"));
        }
        self.judge.all(Invariant::L3, what);
    }

    /// S1: exactly the fold's lines; of a job that failed nothing that the fold does not have, and nothing twice.
    fn check_output(&mut self, view: &View) {
        let expected = self.scenario.lines();
        let actual = match self.scenario.committed(&self.output) {
            Ok(lines) => lines,
            Err(error) => {
                self.inconclusive = Some(format!("the output cannot be read: {error:#}"));
                return;
            }
        };
        let may_repeat = self.settings_allow_repeat();
        let result = if is_finished(view) && !may_repeat {
            compare(&actual, &expected)
        } else {
            part_of(&actual, &expected, may_repeat)
        };
        self.judge.all(Invariant::S1, broken(result));
    }

    fn settings_allow_repeat(&self) -> bool {
        let key = "recovery.ladder.allow-repeat";
        self.plan.settings.get(key).is_some_and(|v| v == "true")
    }

    /// S2, and S3 of the records as they lie there.
    fn check_checkpoints(&mut self) {
        let mut all = std::mem::take(&mut self.earlier);
        all.extend(self.recorder.take().map(Recorder::finish));
        for recording in all {
            match recording {
                Ok(recording) => self.take_recording(&recording),
                Err(error) => self.judge.fail(Invariant::S2, format!("{error:#}")),
            }
        }
    }

    fn take_recording(&mut self, recording: &Recording) {
        for _ in &recording.checked {
            self.judge.count(Invariant::S2);
        }
        self.judge.count(Invariant::S3);
        let retired = recording.records.values().filter(|r| is_retired(r)).count();
        self.cluster.say(&format!(
            "{} records, {} checkpoints equal the fold, {retired} retired, missed {:?}, damaged by us {:?}",
            recording.records.len(),
            recording.checked.len(),
            recording.missed,
            recording.damaged
        ));
    }

    /// S3 and S4 by what the server was asked.
    fn check_store_history(&mut self) {
        let Some(proxy) = self.cluster.store_proxy() else {
            return;
        };
        let history = proxy.history();
        // An emptied store has forgotten what was created.
        let is_emptied = |f: &crate::plan::PlannedFault| f.what == Fault::Store(StoreFault::Empty);
        if !self.plan.faults.iter().any(is_emptied) {
            self.judge.all(Invariant::S3, check_one_truth(&history));
        }
        self.judge.all(Invariant::S4, check_fencing(&history));
    }

    /// S6.
    fn check_causes(&mut self, recoveries: &[RecoveryRecord]) {
        for recovery in recoveries {
            let struck = explain_by_any_clock(recovery, &self.struck, self.tolerance());
            let is_explained = struck.is_some();
            if !is_explained && self.is_the_machine_s_doing(recovery) {
                self.inconclusive.get_or_insert(format!(
                    "this machine is too busy for the heartbeat timeout: {}",
                    recovery.cause
                ));
                continue;
            }
            let unexplained = (!is_explained).then(|| {
                format!(
                    "recovery {}, detected {} ms after the job was accepted, is explained by no fault: {}",
                    recovery.number,
                    recovery.detected_ms.saturating_sub(self.accepted_ms()),
                    recovery.cause
                )
            });
            self.judge
                .all(Invariant::S6, unexplained.into_iter().collect());
        }
    }

    /// Whether a node was taken for dead that nobody has struck, while most of the time was lost to others.
    fn is_the_machine_s_doing(&self, recovery: &RecoveryRecord) -> bool {
        let timeout = self.settings.cluster.heartbeat.timeout;
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let until = recovery.detected_ms;
        let stalled = self.machine.stalled(until.saturating_sub(ms), until);
        is_starved(&recovery.cause.kind, timeout, stalled)
    }

    fn accepted_ms(&self) -> u64 {
        self.clock.wall_ms_at(self.accepted)
    }

    /// When there may have been no leader.
    fn outages(&self) -> Vec<(u64, Option<u64>)> {
        let takes_it = |s: &&Struck| {
            let target = self.plan.faults[s.fault].target;
            s.hits_job_manager && matches!(target, Target::Leader | Target::AllNodes)
        };
        let struck = self.struck.iter().filter(takes_it);
        struck.map(|s| (s.at_ms, s.healed_ms)).collect()
    }

    /// L2: the first that was found out of a fault was found out in time.
    fn check_detection(&mut self, recoveries: &[RecoveryRecord]) {
        let heartbeat = &self.settings.cluster.heartbeat;
        let by_socket = heartbeat.reconnect_window;
        let by_silence = heartbeat.timeout + heartbeat.interval;
        let mut late = Vec::new();
        let mut looks = 0;
        let outages = self.outages();
        let is_of_data =
            |s: &&Struck| matches!(self.plan.faults[s.fault].target, Target::DataLink(..));
        let costly: Vec<_> = self.struck.iter().filter(|s| !is_of_data(s)).collect();
        for struck in &self.struck {
            let target = self.plan.faults[struck.fault].target;
            let bound = match &struck.what {
                Fault::Kill { .. } | Fault::Terminate { .. } => by_socket,
                Fault::Pause { down } if *down > by_silence => by_silence,
                Fault::Link(LinkFault::BlackHole { down, direction })
                    if *down > by_silence && *direction == Direction::Both =>
                {
                    by_silence
                }
                _ => continue,
            };
            // Without a leader nobody detects.
            if !matches!(target, Target::TaskManager(_) | Target::ControlLink(_)) {
                continue;
            }
            let Some(found) = found_out(struck, &costly, recoveries, self.tolerance()) else {
                continue;
            };
            let took = Duration::from_millis(found - struck.at_ms);
            let limit = bound + DETECTION_SLACK;
            if took > limit && !was_led(struck, limit, &outages) {
                self.cluster.say(&format!(
                    "found out after {took:?}, which says nothing: the leader was struck as well"
                ));
                continue;
            }
            let stalled = self.machine.stalled(struck.at_ms, found);
            if took > limit && took <= limit + stalled {
                self.cluster.say(&format!(
                    "found out after {took:?}, which says nothing: the machine kept everybody waiting for {stalled:?} of it"
                ));
                continue;
            }
            looks += 1;
            if took > limit {
                late.push(format!(
                    "{:?} on {:?} was found out after {took:?}, the bound is {bound:?}",
                    struck.what, struck.nodes
                ));
            }
        }
        if looks > 0 {
            self.judge.all(Invariant::L2, late);
        }
    }
}

/// Whether a fault was struck that ends the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fatal {
    None,
    Struck,
    /// It was told to a leader, which keeps what is to be broken in its memory; another leads since.
    Forgotten,
}

impl Fatal {
    fn of(plan: &FaultPlan, struck: &[Struck], recoveries: &[RecoveryRecord]) -> Self {
        let is_told = |s: &Struck| !matches!(plan.faults[s.fault].when, When::FaultPoint { .. });
        let is_taken_over = |s: &Struck| {
            let mut takeovers = recoveries.iter().filter(|r| is_takeover(r));
            takeovers.any(|r| r.detected_ms >= s.at_ms)
        };
        let of = |s: &Struck| match is_told(s) && is_taken_over(s) {
            true => Self::Forgotten,
            false => Self::Struck,
        };
        let fatal = struck.iter().filter(|s| ends_job(&s.what));
        fatal.fold(Self::None, |all, s| match (all, of(s)) {
            (Self::Struck, _) => Self::Struck,
            (Self::None | Self::Forgotten, one) => one,
        })
    }
}

/// L3: whether a job may end in this state (`None`: it has not ended), by this cause. `may_fail`: the plan may leave nothing to restore
/// from.
fn may_end_so(state: Option<JobState>, fatal: Fatal, may_fail: bool, cause: Option<&str>) -> bool {
    let says = |words: &str| cause.is_some_and(|c| c.contains(words));
    match state {
        Some(JobState::Finished) => fatal != Fatal::Struck,
        Some(JobState::Failed) if fatal != Fatal::None => says("injected"),
        // The ladder's own words: nothing valid is left, or nothing that would not repeat output.
        Some(JobState::Failed) => {
            may_fail && (says("repeat committed output") || says("no valid checkpoint"))
        }
        _ => false,
    }
}

/// Whether a node that was taken for dead for its silence had no more than half of the time to say something.
fn is_starved(cause: &FailureKind, timeout: Duration, stalled: Duration) -> bool {
    let is_silence = matches!(cause, FailureKind::TaskManagerLost { message, .. } if message.contains("no heartbeat"));
    is_silence && stalled > timeout / 2
}

/// Nothing that is not expected; each so often at most, unless it may repeat.
fn part_of(actual: &[String], expected: &[String], may_repeat: bool) -> anyhow::Result<()> {
    let mut counts: BTreeMap<&String, i64> = BTreeMap::new();
    for line in expected {
        *counts.entry(line).or_default() += 1;
    }
    let known = counts.clone();
    for line in actual {
        anyhow::ensure!(known.contains_key(line), "`{line}` is not expected");
        let left = counts.entry(line).or_default();
        *left -= 1;
        anyhow::ensure!(may_repeat || *left >= 0, "`{line}` is there too often");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::{InstanceId, ResourceId};

    use super::*;
    use crate::checker::testing::{recovery, some_cause};

    #[test]
    fn a_part_has_nothing_foreign_and_nothing_twice() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let expected = lines("a b c");
        assert!(part_of(&lines("a c"), &expected, false).is_ok());
        assert!(part_of(&lines("a d"), &expected, true).is_err());
        assert!(part_of(&lines("a a"), &expected, false).is_err());
        assert!(part_of(&lines("a a"), &expected, true).is_ok());
    }

    #[test]
    fn a_job_ends_well_or_by_what_was_struck() {
        use Fatal::{Forgotten, Struck};
        use JobState::{Canceled, Failed, Finished};
        let injected = Some("injected fault [1] in user code");
        let nothing_left = Some("no valid checkpoint is left");
        let other = Some("no slots");
        for (state, fatal, may_fail, cause, expected) in [
            (Some(Finished), Fatal::None, false, None, true),
            (Some(Finished), Struck, false, None, false),
            (Some(Finished), Forgotten, false, None, true),
            (Some(Failed), Forgotten, false, injected, true),
            (Some(Failed), Struck, false, injected, true),
            (Some(Failed), Struck, false, other, false),
            (Some(Failed), Struck, false, None, false),
            (Some(Failed), Fatal::None, false, injected, false),
            (Some(Failed), Fatal::None, true, nothing_left, true),
            (Some(Failed), Fatal::None, true, other, false),
            (Some(Failed), Fatal::None, false, nothing_left, false),
            (Some(Canceled), Fatal::None, false, None, false),
            (None, Fatal::None, false, None, false),
        ] {
            assert_eq!(
                may_end_so(state, fatal, may_fail, cause),
                expected,
                "{state:?} by {cause:?}"
            );
        }
    }

    /// Process seed 146205: user code that is to panic for ever, and a JobManager that panics in the same breath.
    #[test]
    fn what_a_leader_was_told_is_over_with_it_and_what_a_node_holds_is_not() {
        let mut plan: FaultPlan = serde_json::from_str(
            r#"{"seed": 146205, "profile": "actors", "carrier": "process",
            "cluster": {"job_managers": 2, "task_managers": 3, "slots": 1, "store": "disk"},
            "workload": {"job": "abnormal-detection", "seed": 1, "events": 9, "rate": 9, "keys": 7, "parallelism": []},
            "settings": {},
            "faults": [{"when": "running", "where": "user-code", "what": {"user-panic": {"times": 4294967295}}}]}"#,
        )
        .unwrap();
        let struck = Struck {
            fault: 0,
            what: plan.faults[0].what.clone(),
            nodes: Vec::new(),
            is_data_link: false,
            is_store_link: false,
            hits_job_manager: false,
            at_ms: 1000,
            healed_ms: None,
        };
        let taken_over = |at| RecoveryRecord {
            decision: "taken up again by this JobManager, at once".to_owned(),
            ..recovery(1, at, some_cause())
        };
        let of = |plan: &FaultPlan, recoveries: &[RecoveryRecord]| {
            Fatal::of(plan, std::slice::from_ref(&struck), recoveries)
        };
        assert_eq!(Fatal::of(&plan, &[], &[taken_over(1000)]), Fatal::None);
        assert_eq!(of(&plan, &[recovery(1, 1500, some_cause())]), Fatal::Struck);
        assert_eq!(of(&plan, &[taken_over(999)]), Fatal::Struck);
        assert_eq!(of(&plan, &[taken_over(1000)]), Fatal::Forgotten);
        plan.faults[0].when = When::FaultPoint {
            site: "on-open".to_owned(),
            hit: 1,
        };
        assert_eq!(of(&plan, &[taken_over(1000)]), Fatal::Struck);
    }

    /// Half of the heartbeat timeout lost to others excuses a silence, and nothing but a silence.
    #[test]
    fn only_a_silent_node_on_a_busy_machine_is_excused() {
        let lost = |message: &str| FailureKind::TaskManagerLost {
            resource: ResourceId("taskmanager-1".to_owned()),
            instance: InstanceId(1),
            message: message.to_owned(),
        };
        let silent = lost("no heartbeat for 3000 ms");
        let broken = lost("connection closed by the peer");
        let (timeout, ms) = (Duration::from_secs(3), Duration::from_millis);
        assert!(is_starved(&silent, timeout, ms(1501)));
        assert!(!is_starved(&silent, timeout, ms(1500)));
        assert!(!is_starved(&broken, timeout, ms(3000)));
    }
}
