//! What goes on beside all phases: due steps, nodes that die, news.

use std::time::Duration;

use perennial_actors::clock::Instant;
use perennial_actors::model::RecoveryRecord;

use super::strike::Step;
use super::watch::View;
use super::{ANOTHER_LEADS, FAILED, KILLED, Run, TICK};
use crate::checker::Struck;
use crate::plan::{Fault, Invariant};
use crate::report::{Progress, RecoveryTime};

/// Before a node is started again that has ended by itself.
const LAUNCHER_DELAY: Duration = Duration::from_millis(300);
/// How long a node counts as a newcomer that has not seen its store yet.
const START_MAX: Duration = Duration::from_secs(15);
/// After its end a store fault still explains what gives up by its own limits.
const STORE_ECHO: Duration = Duration::from_secs(15);
/// The longest that faults may go on after the end of the job.
const FAULTS_END_MAX: Duration = Duration::from_secs(60);

impl Run<'_> {
    /// Everything that goes on beside: due steps, deaths, news. `false`: the run is over.
    pub(super) fn turn(&mut self) -> (View, bool) {
        std::thread::sleep(TICK);
        let now = Instant::now();
        while let Some((index, step)) = self.timeline.due(now) {
            if let Err(error) = self.take(step, index) {
                self.inconclusive
                    .get_or_insert(format!("a fault could not be ended: {error:#}"));
            }
            if self.timeline.is_over(index)
                && let Some(struck) = self.struck.iter_mut().find(|s| s.fault == index)
            {
                struck.healed_ms = Some(self.clock.wall_ms());
            }
        }
        self.look_for_deaths();
        let view = self.watcher.view();
        if let Err(error) = self.take_points(&view) {
            self.inconclusive
                .get_or_insert(format!("a fault point cannot be struck: {error:#}"));
        }
        self.tell(&view);
        self.machine.look(self.clock.wall_ms());
        if view.terminal().is_some() {
            self.ended_ms.get_or_insert(self.clock.wall_ms());
        }
        let goes_on =
            self.inconclusive.is_none() && !self.judge.has_failed() && view.terminal().is_none();
        (view, goes_on)
    }

    /// Goes on until every fault is over: what was struck must be whole again before anybody looks at what is left.
    pub(super) fn end_faults(&mut self) {
        let began = Instant::now();
        while !self.timeline.is_empty() && began.elapsed() < FAULTS_END_MAX {
            self.turn();
        }
    }

    fn look_for_deaths(&mut self) {
        let nodes: Vec<String> = self.cluster.nodes.keys().cloned().collect();
        for name in nodes {
            let Some(node) = self.cluster.nodes.get_mut(&name) else {
                continue;
            };
            let Ok(Some(code)) = node.exit_code() else {
                continue;
            };
            if self.timeline.starts(&name) {
                continue;
            }
            let (is_allowed, age) = (node.is_allowed_to_exit(), node.age());
            let may_break = self.points.may_break(self.plan, &name);
            if is_allowed || may_break || self.is_the_store_s_doing(code, age) {
                // As its launcher would.
                self.cluster.say(&format!(
                    "{name} has ended with exit code {code}, as it may"
                ));
                let at = Instant::now() + LAUNCHER_DELAY;
                let fault = self.struck.last().map_or(0, |s| s.fault);
                self.timeline.push(at, fault, Step::Start(vec![name]));
            } else if !self.ended_badly.contains(&name) {
                self.judge_death(&name, code);
                self.ended_badly.insert(name);
            }
        }
    }

    /// Whether a node may have ended for want of the store: a leader that could not renew its lease, a newcomer whose first look at it fails.
    fn is_the_store_s_doing(&mut self, code: i32, age: Duration) -> bool {
        let now = self.clock.wall_ms();
        let is_recent = |s: &&mut Struck| {
            let is_store = matches!(s.what, Fault::Store(_));
            let echo = u64::try_from(STORE_ECHO.as_millis()).unwrap_or(u64::MAX);
            is_store && s.healed_ms.is_none_or(|healed| now <= healed + echo)
        };
        let Some(store) = self.struck.iter_mut().find(is_recent) else {
            return false;
        };
        match code {
            ANOTHER_LEADS => {
                store.hits_job_manager = true;
                true
            }
            FAILED => age < START_MAX,
            _ => false,
        }
    }

    fn judge_death(&mut self, name: &str, code: i32) {
        let now = self.clock.wall_ms();
        let recently = u64::try_from(STORE_ECHO.as_millis()).unwrap_or(u64::MAX);
        let stalled = self.machine.stalled(now.saturating_sub(recently), now);
        if code == ANOTHER_LEADS && (self.struck.is_empty() || stalled > STORE_ECHO / 2) {
            self.inconclusive.get_or_insert(format!(
                "{name} lost its leadership without a fault that explains it: this machine is too busy"
            ));
        } else if code == KILLED {
            self.inconclusive.get_or_insert(format!(
                "{name} was killed by somebody else, probably for want of memory"
            ));
        } else {
            self.judge.fail(
                Invariant::R2,
                format!("{name} ended unasked with exit code {code}"),
            );
        }
    }

    /// Tells of recoveries that are over.
    fn tell(&mut self, view: &View) {
        let done: Vec<_> = view
            .recoveries
            .values()
            .filter(|r| r.phases.total_ms.is_some())
            .collect();
        for recovery in done.iter().skip(self.told) {
            let time = self.recovery_time(recovery);
            (self.progress)(Progress::Recovered(time));
        }
        self.told = self.told.max(done.len());
    }

    pub(super) fn recovery_time(&self, recovery: &RecoveryRecord) -> RecoveryTime {
        let struck = crate::checker::explain(recovery, &self.struck, self.tolerance());
        let phases = &recovery.phases;
        let total = phases.total_ms;
        let restore = [phases.slots_ms, phases.restore_ms, phases.first_record_ms];
        RecoveryTime {
            row: struck.map(|s| self.plan.faults[s.fault].row()),
            total_ms: struck
                .zip(total)
                .map(|(s, total)| recovery.detected_ms.saturating_sub(s.at_ms) + total as u64),
            restore_ms: restore.into_iter().flatten().sum::<f64>() as u64,
            cause: recovery.cause.to_string(),
        }
    }
}
