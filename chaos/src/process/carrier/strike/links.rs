//! Faults of links: conditions of the proxies between nodes.

use anyhow::{Context, ensure};

use super::super::super::ProcessCluster;
use super::super::victims::{LinkVictim, Nodes};
use super::{Hit, Step};
use crate::plan::{LinkFault, Target};
use crate::proxy::link::{Conditions, Way};
use crate::proxy::store::{Break, Rule, Which};

pub(super) fn strike_links(
    cluster: &ProcessCluster,
    nodes: &Nodes,
    target: Target,
    what: &LinkFault,
) -> anyhow::Result<Hit> {
    let victims = nodes.links(target);
    ensure!(!victims.is_empty(), "{target:?} is no link of this cluster");
    let links = cluster.links().context("the cluster has no proxies")?;
    let names: Vec<String> = victims
        .iter()
        .map(|v| format!("{} -> {}", v.dialler, v.server))
        .collect();
    cluster.say(&format!("{what:?} on {}", names.join(", ")));
    let is_task_manager = |name: &String| nodes.task_managers.contains(name);
    let mut hit = Hit {
        victim: names.join(", "),
        nodes: victims
            .iter()
            .flat_map(|v| [v.dialler.clone(), v.server.clone()])
            .filter(is_task_manager)
            .collect(),
        is_data_link: victims.iter().any(|v| is_task_manager(&v.server)),
        ..Hit::default()
    };
    let all = |change: &dyn Fn(&LinkVictim, &mut Conditions)| {
        for v in &victims {
            links.change(&v.dialler, &v.server, |c| change(v, c));
        }
    };
    let both = |way: Way| {
        all(&|_, c| {
            let blocked = (c.up.is_blocked, c.down.is_blocked);
            (c.up, c.down) = (way, way);
            (c.up.is_blocked, c.down.is_blocked) = blocked;
        });
    };
    match what {
        LinkFault::Reset { down } => {
            all(&|_, c| c.refuses = true);
            for v in &victims {
                links.reset(&v.dialler, &v.server);
            }
            hit.steps
                .push((*down, Step::Refuse(victims.clone(), false)));
        }
        LinkFault::BlackHole { direction, down } => {
            all(&|v, c| {
                let (up, down) = v.ways(*direction);
                c.up.is_blocked |= up;
                c.down.is_blocked |= down;
            });
            hit.steps.push((*down, Step::Unblock(victims.clone())));
        }
        LinkFault::HalfOpen { down } => {
            for v in &victims {
                links.half_open(&v.dialler, &v.server);
            }
            hit.steps.push((*down, Step::HealHalfOpen(victims.clone())));
        }
        LinkFault::Latency {
            delay,
            jitter,
            down,
        } => {
            both(Way {
                delay: *delay,
                jitter: *jitter,
                ..Way::default()
            });
            hit.steps.push((*down, Step::Calm(victims.clone())));
        }
        LinkFault::Bandwidth {
            bytes_per_second,
            down,
        } => {
            both(Way {
                bytes_per_second: Some(*bytes_per_second),
                ..Way::default()
            });
            hit.steps.push((*down, Step::Calm(victims.clone())));
        }
        LinkFault::Slice { down } => {
            both(Way {
                is_sliced: true,
                ..Way::default()
            });
            hit.steps.push((*down, Step::Calm(victims.clone())));
        }
        LinkFault::FlipBit => {
            for v in &victims {
                links.flip_bit(&v.dialler, &v.server);
            }
        }
        LinkFault::Replay => {
            for v in &victims {
                links.replay(&v.dialler, &v.server);
            }
        }
        LinkFault::Flap { times, every } => {
            for n in 0..*times {
                hit.steps.push((*every * n, Step::Reset(victims.clone())));
            }
        }
    }
    if matches!(target, Target::AllLinksOf(_))
        && let LinkFault::BlackHole { down, .. } | LinkFault::Reset { down } = what
        && let Some(store) = cluster.store_proxy()
    {
        let rule = store.add(Rule {
            node: nodes.of_store(target),
            ..Rule::new(Which::All, Break::Silence)
        });
        hit.steps.push((*down, Step::Store(rule)));
    }
    Ok(hit)
}
