//! What goes on beside all phases: due steps, nodes that die, news.

use perennial_actors::clock::Instant;
use perennial_actors::model::RecoveryRecord;

use super::watch::View;
use super::{ANOTHER_LEADS, KILLED, Run, TICK};
use crate::plan::Invariant;
use crate::report::{Progress, RecoveryTime};

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
        let goes_on =
            self.inconclusive.is_none() && !self.judge.has_failed() && view.terminal().is_none();
        (view, goes_on)
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
            if node.is_allowed_to_exit() && !self.timeline.starts(&name) {
                // As its launcher would.
                self.cluster.say(&format!(
                    "{name} has ended with exit code {code}, as it may"
                ));
                if let Err(error) = self.restart(&name) {
                    self.inconclusive
                        .get_or_insert(format!("{name} cannot be started again: {error:#}"));
                }
            } else if let Some(node) = self.cluster.nodes.get_mut(&name)
                && node.unexpected_exit().is_some()
            {
                node.may_exit();
                if code == ANOTHER_LEADS && self.struck.is_empty() {
                    self.inconclusive.get_or_insert(format!(
                        "{name} lost its leadership before any fault: this machine is too busy"
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
