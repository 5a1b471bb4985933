//! Takes the steps that end faults, or go on with them.

use std::time::Duration;

use anyhow::Context;
use perennial_actors::clock::Instant;

use super::super::Signal;
use super::strike::{STARVE_PERIOD, Step};
use super::victims::LinkVictim;
use super::{KILLED, Run, TERMINATED, TERMINATION_BUDGET};
use crate::checker::Struck;
use crate::plan::{Fault, Invariant};
use crate::proxy::LinkProxies;
use crate::proxy::link::Way;

/// A program that was started so recently may not listen to signals yet.
const START_MAX: Duration = Duration::from_secs(3);
/// Before a look at something that has not come yet.
const AGAIN: Duration = Duration::from_millis(50);

impl Run<'_> {
    pub(super) fn take(&mut self, step: Step, fault: usize) -> anyhow::Result<()> {
        let now = Instant::now();
        match step {
            Step::Start(nodes) => {
                for node in nodes {
                    self.start(node, fault)?;
                }
            }
            Step::Cont(nodes) => {
                for node in nodes {
                    // It may have been killed meanwhile by another fault.
                    if self.is_alive(&node)? {
                        self.cluster.cont(&node)?;
                    }
                }
            }
            Step::Starve {
                node,
                percent,
                until,
            } => {
                if self.is_alive(&node)? {
                    let run = STARVE_PERIOD * percent / 100;
                    let signal =
                        |run: &mut Self, signal| run.cluster.node_mut(&node)?.signal(signal);
                    if now >= until {
                        signal(self, Signal::CONT)?;
                    } else {
                        signal(self, Signal::STOP)?;
                        let stopped = STARVE_PERIOD - run;
                        let next = Step::Starve {
                            node: node.clone(),
                            percent,
                            until,
                        };
                        self.timeline
                            .push(now + stopped, fault, Step::Cont(vec![node]));
                        self.timeline.push(now + STARVE_PERIOD, fault, next);
                    }
                }
            }
            Step::Refuse(links, refuses) => {
                self.on_links(&links, |c, _| c.refuses = refuses)?;
            }
            Step::Unblock(links) => self.on_links(&links, |c, _| {
                c.up.is_blocked = false;
                c.down.is_blocked = false;
            })?,
            Step::Calm(links) => self.on_links(&links, |c, _| {
                for way in [&mut c.up, &mut c.down] {
                    *way = Way {
                        is_blocked: way.is_blocked,
                        ..Way::default()
                    };
                }
            })?,
            Step::Reset(links) => {
                self.each_link(&links, |l, v| l.reset(&v.dialler, &v.server))?;
            }
            Step::HealHalfOpen(links) => {
                self.each_link(&links, |l, v| l.heal_half_open(&v.dialler, &v.server))?;
            }
            Step::Store(rule) => {
                let proxy = self.cluster.store_proxy().context("no store proxy")?;
                let hits = proxy.remove(rule);
                self.cluster.say(&format!(
                    "the store works again; {hits} requests were broken"
                ));
            }
            Step::UsedUp(rule, times, until) => {
                let proxy = self.cluster.store_proxy().context("no store proxy")?;
                if proxy.hits(rule) < times && now < until {
                    self.timeline
                        .push(now + AGAIN, fault, Step::UsedUp(rule, times, until));
                } else {
                    let hits = proxy.remove(rule);
                    self.cluster
                        .say(&format!("{hits} of {times} requests were broken"));
                }
            }
            Step::Unlimit(node, resource, soft) => {
                if self.is_alive(&node)? {
                    self.cluster.node_mut(&node)?.limit(resource, soft)?;
                }
            }
            Step::Spent(times, until) => {
                if self.broken_since(fault) < times as usize && now < until {
                    self.timeline
                        .push(now + AGAIN, fault, Step::Spent(times, until));
                }
            }
            Step::Roll(nodes) => self.roll(nodes, fault)?,
        }
        Ok(())
    }

    /// Injected failures that recoveries tell of since a fault was struck.
    fn broken_since(&self, fault: usize) -> usize {
        let struck = self.struck.iter().find(|s| s.fault == fault);
        let since = struck.map_or(0, |s| s.at_ms);
        let view = self.watcher.view();
        let recoveries = view.recoveries.values().filter(|r| r.detected_ms >= since);
        recoveries
            .flat_map(|r| std::iter::once(&r.cause).chain(&r.other_causes))
            .filter(|cause| cause.kind.to_string().contains("injected"))
            .count()
    }

    fn is_alive(&mut self, node: &str) -> anyhow::Result<bool> {
        Ok(self.cluster.node_mut(node)?.exit_code()?.is_none())
    }

    /// Starts a node again once it has ended; one that was asked to end must do so well, and in time.
    fn start(&mut self, node: String, fault: usize) -> anyhow::Result<()> {
        let was_asked = was_asked(&self.struck, fault, &node);
        let Some(code) = self.cluster.node_mut(&node)?.exit_code()? else {
            if !was_asked || !self.cluster.node_mut(&node)?.is_allowed_to_exit() {
                // Another fault has ended it as well, and it is back already.
                return Ok(());
            }
            let asked_at = self.struck.iter().find(|s| s.fault == fault);
            let asked_ms = asked_at.map_or(0, |s| s.at_ms);
            let now_ms = self.clock.wall_ms();
            let waited = Duration::from_millis(now_ms.saturating_sub(asked_ms));
            if waited > TERMINATION_BUDGET + self.machine.stalled(asked_ms, now_ms) {
                self.judge.fail(
                    Invariant::L3,
                    format!("{node} has not ended within {TERMINATION_BUDGET:?} after SIGTERM"),
                );
                return Ok(());
            }
            let at = Instant::now() + AGAIN;
            self.timeline.push(at, fault, Step::Start(vec![node]));
            return Ok(());
        };
        // A kill may have been faster, or the program was not yet there to hear it.
        let age = self.cluster.node_mut(&node)?.age();
        let is_deaf = code == TERMINATED && age < START_MAX;
        if was_asked && code != KILLED && !is_deaf {
            self.judge.count(Invariant::L3);
            if code != 0 {
                self.judge.fail(
                    Invariant::L3,
                    format!("{node} ended with exit code {code} after SIGTERM, not 0"),
                );
            }
        }
        self.restart(&node)
    }

    /// One after the other: the next goes down when the one before is back and the job runs.
    fn roll(&mut self, mut nodes: Vec<String>, fault: usize) -> anyhow::Result<()> {
        let Some(node) = nodes.first().cloned() else {
            return Ok(());
        };
        let now = Instant::now();
        match self.cluster.node_mut(&node)?.exit_code()? {
            None if self.cluster.node_mut(&node)?.is_allowed_to_exit() => {
                // Asked already, still ending.
                self.timeline.push(now + AGAIN, fault, Step::Roll(nodes));
            }
            None => {
                let view = self.watcher.view();
                if view.is_running()
                    && view.task_managers.len() == self.cluster.task_manager_names().len()
                {
                    self.cluster.say(&format!("rolling: SIGTERM {node}"));
                    self.cluster.node_mut(&node)?.signal(Signal::TERM)?;
                }
                self.timeline.push(now + AGAIN, fault, Step::Roll(nodes));
            }
            Some(_) => {
                self.restart(&node)?;
                nodes.remove(0);
                // The view may still show the cluster as it was: its look must come round.
                let next = now + Duration::from_millis(800);
                self.timeline.push(next, fault, Step::Roll(nodes));
            }
        }
        Ok(())
    }

    fn each_link(
        &self,
        links: &[LinkVictim],
        what: impl Fn(&LinkProxies, &LinkVictim),
    ) -> anyhow::Result<()> {
        let proxies = self.cluster.links().context("no link proxies")?;
        links.iter().for_each(|v| what(proxies, v));
        Ok(())
    }

    fn on_links(
        &self,
        links: &[LinkVictim],
        change: impl Fn(&mut crate::proxy::link::Conditions, &LinkVictim),
    ) -> anyhow::Result<()> {
        self.each_link(links, |proxies, v| {
            proxies.change(&v.dialler, &v.server, |c| change(c, v));
        })
    }
}

/// Whether a fault asked a node to end: one that ended by itself may be started by the last fault, whatever that was.
fn was_asked(struck: &[Struck], fault: usize, node: &str) -> bool {
    struck.iter().any(|s| {
        s.fault == fault
            && matches!(s.what, Fault::Terminate { .. })
            && s.nodes.iter().any(|n| n == node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Process seed 780578: a node that had ended by itself was taken for one that was asked to, and did not end with 0.
    #[test]
    fn only_the_fault_that_terminates_a_node_has_asked_it_to_end() {
        let down = Duration::from_secs(1);
        let struck = |fault, what| Struck {
            fault,
            what,
            nodes: vec!["taskmanager-1".to_owned()],
            is_data_link: false,
            is_store_link: false,
            hits_job_manager: false,
            at_ms: 1000,
            healed_ms: None,
        };
        let all = [
            struck(0, Fault::Kill { down }),
            struck(1, Fault::Terminate { down }),
        ];
        assert!(was_asked(&all, 1, "taskmanager-1"));
        assert!(!was_asked(&all, 1, "taskmanager-2"), "another node");
        assert!(!was_asked(&all, 0, "taskmanager-1"), "it was killed");
        assert!(!was_asked(&all[..1], 1, "taskmanager-1"), "never struck");
    }
}
