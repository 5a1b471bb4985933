//! Warm-up, fire, heal, drain: in which order, and how long each may take.

use std::time::Duration;

use perennial_actors::clock::Instant;

use super::settings::longest_delay;
use super::watch::View;
use super::{CHECKPOINT_BUDGET, DRAIN_BUDGET, RESTORE_BUDGET, Run, TRIGGER_PATIENCE, WARM_UP_MAX};
use crate::plan::{Fault, Invariant, PlannedFault, When};

/// A busy machine may lengthen a limit to so many times its length.
const STALLED_MAX: u32 = 3;

impl Run<'_> {
    fn is_triggered(&self, when: &When, view: &View) -> bool {
        // What was seen before the last strike says nothing about what it led to.
        let since = self.fired;
        let is_new = view.asked.is_some_and(|asked| asked > since);
        match when {
            When::After(after) => self.accepted.elapsed() >= *after,
            When::Checkpoints(count) => {
                let new = view.completed.values().filter(|at| **at > since).count();
                new >= *count as usize
            }
            When::CheckpointPending => is_new && view.has_pending_checkpoint(),
            When::Recovering => !view.is_running(),
            When::Running => is_new && view.is_running(),
            // Struck by `turn`, whenever a node comes by.
            When::FaultPoint { .. } => true,
        }
    }

    /// Whether a process that shall be struck lives: one that is down is not killed once more.
    fn has_victim(&mut self, fault: &PlannedFault, view: &View) -> bool {
        let names = self.nodes(view).processes(fault.target);
        let mut is_alive = |name: &String| {
            let node = self.cluster.nodes.get_mut(name);
            node.is_some_and(|node| matches!(node.exit_code(), Ok(None)))
        };
        match &fault.what {
            Fault::Kill { .. }
            | Fault::Pause { .. }
            | Fault::Terminate { .. }
            | Fault::Starve { .. }
            | Fault::Data(_) => names.is_empty() || names.iter().any(&mut is_alive),
            Fault::Rescale { .. } => view.is_running(),
            _ => true,
        }
    }

    /// Warm-up, fire, heal, drain. Everything that goes wrong is noted on the way.
    pub(super) fn go(&mut self) {
        self.phase("warming up: waiting for the first checkpoint");
        let began = Instant::now();
        loop {
            let (view, goes_on) = self.turn();
            if !goes_on {
                return;
            }
            if !view.completed.is_empty() && view.is_running() {
                break;
            }
            if began.elapsed() > WARM_UP_MAX {
                self.inconclusive = Some(format!("no checkpoint within {WARM_UP_MAX:?}"));
                return;
            }
        }
        self.phase("fire");
        self.fired = Instant::now();
        for (index, fault) in self.plan.faults.iter().enumerate() {
            let armed = Instant::now();
            loop {
                let (view, goes_on) = self.turn();
                if !goes_on {
                    return;
                }
                if self.is_triggered(&fault.when, &view) && self.has_victim(fault, &view) {
                    let is_by_point = matches!(fault.when, When::FaultPoint { .. });
                    let is_struck = is_by_point || self.strike(index, fault, &view);
                    // A client that is told to try again does so.
                    if is_struck || !matches!(fault.what, Fault::Rescale { .. }) {
                        break;
                    }
                }
                let patience = match &fault.when {
                    When::After(after) => *after + TRIGGER_PATIENCE,
                    _ => TRIGGER_PATIENCE,
                };
                if armed.elapsed() > patience {
                    self.phase(&format!(
                        "fault {} is not struck: {:?} did not come",
                        index + 1,
                        fault.when
                    ));
                    break;
                }
            }
        }
        let armed = Instant::now();
        while !self.timeline.is_empty()
            || (self.points.is_waiting() && armed.elapsed() < TRIGGER_PATIENCE)
        {
            if !self.turn().1 {
                return;
            }
        }
        self.points.give_up();
        self.heal();
    }

    /// Whether something took longer than it may. What the machine kept everybody waiting is not held against it, up to a point.
    fn is_late(&self, since: Instant, limit: Duration) -> bool {
        let (from, to) = (self.clock.wall_ms_at(since), self.clock.wall_ms());
        let lost = self.machine.stalled(from, to);
        since.elapsed() > (limit + lost).min(limit * STALLED_MAX)
    }

    /// L1 and L3: what must happen once nothing is broken any more.
    fn heal(&mut self) {
        self.phase("healed: waiting until all tasks run and a checkpoint completes");
        let healed = Instant::now();
        let heartbeat = &self.settings.cluster.heartbeat;
        let detection = heartbeat.timeout + heartbeat.interval + heartbeat.reconnect_window;
        let running_by = detection + longest_delay(&self.settings) + RESTORE_BUDGET;
        let interval = self.settings.job.checkpointing.interval.unwrap_or_default();
        let checkpoint_by = running_by + 2 * interval + CHECKPOINT_BUDGET;
        let mut running = None;
        loop {
            let (view, goes_on) = self.turn();
            if !goes_on {
                return;
            }
            if running.is_none() && view.is_running() {
                running = Some(Instant::now());
                self.judge.count(Invariant::L1);
            }
            if let Some(running) = running
                && view.completed.values().any(|at| *at > running)
            {
                self.judge.count(Invariant::S7);
                break;
            }
            let limit = if running.is_some() {
                checkpoint_by
            } else {
                running_by
            };
            if self.is_late(healed, limit) {
                let what = match running {
                    None => "not all tasks run",
                    Some(_) => "no checkpoint completes",
                };
                let note = view.status.and_then(|s| s.note).unwrap_or_default();
                self.judge.fail(
                    Invariant::L1,
                    format!("{what} within {limit:?} after healing: {note}"),
                );
                return;
            }
        }
        self.phase("draining to the end of the input");
        let limit = self.scenario.duration() + DRAIN_BUDGET;
        let began = Instant::now();
        while self.turn().1 {
            if self.is_late(began, limit) {
                self.judge.fail(
                    Invariant::L3,
                    format!("the job has not ended within {limit:?}"),
                );
                return;
            }
        }
    }
}
