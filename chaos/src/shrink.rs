//! Makes a failing plan small: fewer faults, less input, rounder times, while the same thing fails.
//!
//! Invariant: pure over the closure that runs a plan. The answer always failed when it was tried last (or is the plan that was given), and
//! the closure is never called more often than the bound says.

use serde_json::Value;

use crate::plan::FaultPlan;

/// Least input that is tried.
const EVENTS_MIN: u64 = 30;
/// Times are rounded down to one of these, in ms.
const ROUND: &[u64] = &[0, 100, 200, 500, 1000, 2000, 5000, 10_000];

/// What is left of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Shrunk {
    /// The smallest that still fails.
    pub plan: FaultPlan,
    /// Runs that it took.
    pub tries: u32,
    /// Whether each further step was tried and did not fail; else the bound was met first.
    pub is_minimal: bool,
    /// What was left out, in words.
    pub steps: Vec<String>,
}

/// Shrinks a plan with at most so many tries. `fails` tells whether a plan fails as the first one did.
pub fn shrink(
    plan: &FaultPlan,
    tries_max: u32,
    fails: &mut dyn FnMut(&FaultPlan) -> bool,
) -> Shrunk {
    let mut work = Work {
        plan: plan.clone(),
        left: tries_max,
        steps: Vec::new(),
        fails,
    };
    let is_minimal = work.everything().is_some();
    Shrunk {
        plan: work.plan,
        tries: tries_max - work.left,
        is_minimal,
        steps: work.steps,
    }
}

struct Work<'a> {
    plan: FaultPlan,
    left: u32,
    steps: Vec<String>,
    fails: &'a mut dyn FnMut(&FaultPlan) -> bool,
}

/// `None`: no tries are left.
type Tried<T> = Option<T>;

impl Work<'_> {
    fn everything(&mut self) -> Tried<()> {
        self.faults()?;
        self.settings()?;
        self.cluster()?;
        self.input()?;
        self.times()
    }

    /// Takes a smaller plan over when it still fails.
    fn attempt(&mut self, smaller: FaultPlan, step: impl FnOnce() -> String) -> Tried<bool> {
        if smaller == self.plan {
            return Some(false);
        }
        self.left = self.left.checked_sub(1)?;
        if !(self.fails)(&smaller) {
            return Some(false);
        }
        self.plan = smaller;
        self.steps.push(step());
        Some(true)
    }

    fn faults(&mut self) -> Tried<()> {
        let faults = self.plan.faults.clone();
        minimize(&faults, &mut |kept| {
            let smaller = FaultPlan {
                faults: kept.to_vec(),
                ..self.plan.clone()
            };
            let of = self.plan.faults.len();
            self.attempt(smaller, || format!("{} of {of} faults", kept.len()))
        })?;
        Some(())
    }

    fn settings(&mut self) -> Tried<()> {
        let settings: Vec<_> = self.plan.settings.clone().into_iter().collect();
        minimize(&settings, &mut |kept| {
            let smaller = FaultPlan {
                settings: kept.iter().cloned().collect(),
                ..self.plan.clone()
            };
            let of = self.plan.settings.len();
            self.attempt(smaller, || format!("{} of {of} settings", kept.len()))
        })?;
        Some(())
    }

    fn cluster(&mut self) -> Tried<()> {
        while self.plan.cluster.job_managers > 1 {
            let mut smaller = self.plan.clone();
            smaller.cluster.job_managers -= 1;
            if !self.attempt(smaller, || "a JobManager less".to_owned())? {
                break;
            }
        }
        while self.plan.cluster.task_managers > 1 {
            let mut smaller = self.plan.clone();
            smaller.cluster.task_managers -= 1;
            if !self.attempt(smaller, || "a TaskManager less".to_owned())? {
                break;
            }
        }
        Some(())
    }

    fn input(&mut self) -> Tried<()> {
        // By halves, then by quarters of what is left.
        for (keep, of) in [(1, 2), (3, 4)] {
            loop {
                let events = self.plan.workload.events * keep / of;
                if events < EVENTS_MIN {
                    break;
                }
                let mut smaller = self.plan.clone();
                smaller.workload.events = events;
                if !self.attempt(smaller, || format!("{events} records"))? {
                    break;
                }
            }
        }
        Some(())
    }

    fn times(&mut self) -> Tried<()> {
        for index in 0..self.plan.faults.len() {
            let row = self.plan.faults[index].row();
            let Ok(mut value) = serde_json::to_value(&self.plan.faults[index]) else {
                continue;
            };
            round(&mut value);
            let Ok(rounder) = serde_json::from_value::<crate::plan::PlannedFault>(value) else {
                continue;
            };
            // Another row would be another story.
            if rounder.row() != row {
                continue;
            }
            let mut smaller = self.plan.clone();
            smaller.faults[index] = rounder;
            self.attempt(smaller, || format!("rounder times of fault {}", index + 1))?;
        }
        Some(())
    }
}

/// Rounds all times in a fault's JSON.
fn round(value: &mut Value) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, field) in fields {
        let is_time = ["down", "delay", "jitter", "every", "after"].contains(&name.as_str());
        match field.as_u64() {
            Some(millis) if is_time => {
                let rounder = ROUND.iter().rev().find(|r| **r <= millis).copied();
                *field = Value::from(rounder.unwrap_or(0));
            }
            _ => round(field),
        }
    }
}

/// Delta debugging (Zeller's ddmin): a part of the items for which `fails` still says true, from which no single item can be left out.
/// `fails` is asked for parts only, never for all; `None` from it ends the search.
pub fn minimize<T: Clone>(
    items: &[T],
    fails: &mut dyn FnMut(&[T]) -> Option<bool>,
) -> Option<Vec<T>> {
    let mut kept = items.to_vec();
    let mut parts = 2;
    while !kept.is_empty() {
        let size = kept.len().div_ceil(parts);
        let mut is_smaller = false;
        let mut from = 0;
        while from < kept.len() {
            let to = (from + size).min(kept.len());
            let rest: Vec<T> = kept[..from].iter().chain(&kept[to..]).cloned().collect();
            if fails(&rest)? {
                kept = rest;
                is_smaller = true;
                // What follows has moved here.
            } else {
                from = to;
            }
        }
        if is_smaller {
            parts = 2.max(parts - 1);
        } else if size == 1 {
            break;
        } else {
            parts = (parts * 2).min(kept.len());
        }
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::Jobs;
    use crate::plan::{Fault, Row};
    use crate::profile::{Draw, Profile};

    fn storm(seed: u64) -> FaultPlan {
        let jobs = Jobs::stock();
        Draw {
            profile: Profile::Storm,
            only: &[],
            jobs: &jobs.all(),
            has_points: true,
            store: None,
        }
        .plan(seed)
        .unwrap()
    }

    /// Every pair of culprits among many is found, whatever their places.
    #[test]
    fn the_culprits_are_what_is_left() {
        let items: Vec<u32> = (0..12).collect();
        for a in 0..12 {
            for b in a..12 {
                let mut calls = 0;
                let left = minimize(&items, &mut |part| {
                    calls += 1;
                    assert!(part.len() < 12, "the whole is known to fail");
                    Some(part.contains(&a) && part.contains(&b))
                });
                let expected = if a == b { vec![a] } else { vec![a, b] };
                assert_eq!(left, Some(expected));
                assert!(calls < 80, "{calls} calls");
            }
        }
        assert_eq!(minimize(&items, &mut |_| Some(true)), Some(vec![]));
        assert_eq!(minimize(&items, &mut |_| Some(false)), Some(items.clone()));
    }

    /// A failure that needs one kill and 100 records is told by one kill and about 100 records.
    #[test]
    fn a_plan_shrinks_to_its_reason() {
        for seed in 0..20 {
            let plan = storm(seed);
            let needs = |plan: &FaultPlan| {
                plan.rows().contains(&Row::P1)
                    && plan.workload.events >= 100
                    && plan.settings.contains_key("restart-strategy.type")
            };
            assert!(needs(&plan));
            let shrunk = shrink(&plan, 200, &mut |plan| needs(plan));
            assert!(shrunk.is_minimal && shrunk.tries <= 200);
            let small = &shrunk.plan;
            assert!(needs(small));
            assert_eq!(small.faults.len(), 1, "{small}");
            assert_eq!(small.settings.len(), 1);
            assert!(small.workload.events < 140, "{small}");
            assert_eq!(small.cluster.task_managers, 1);
            let Fault::Kill { down } = small.faults[0].what else {
                panic!("{small}");
            };
            assert!(ROUND.contains(&(down.as_millis() as u64)) && down > Duration::ZERO);
        }
    }

    /// The bound holds, and what is returned is what failed last.
    #[test]
    fn tries_are_bounded_and_the_answer_fails() {
        let plan = storm(3);
        for tries in 0..30 {
            let mut calls = 0;
            let mut last = plan.clone();
            let shrunk = shrink(&plan, tries, &mut |plan| {
                calls += 1;
                let fails = plan.faults.len() >= 2;
                if fails {
                    last = plan.clone();
                }
                fails
            });
            assert!(calls <= tries && shrunk.tries == calls);
            assert_eq!(shrunk.plan, last);
        }
        // Nothing smaller fails: the plan stays.
        assert_eq!(shrink(&plan, 500, &mut |_| false).plan, plan);
    }
}
