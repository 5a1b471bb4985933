//! Strikes one fault: does it, says who was hit, and what is to be done later to end it.

mod data;
mod links;
mod store;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use perennial_actors::clock::Instant;
use perennial_actors::fault::ActorKind;
use perennial_actors::model::{JobId, ResourceId};
use rustix::process::Resource;

use super::super::{ProcessCluster, Signal};
use super::victims::{LinkVictim, Nodes};
use crate::checker::Recorder;
use crate::plan::{DataFault, Fault, Target};
use crate::proxy::store::RuleId;
use data::strike_data;
use links::strike_links;
use store::strike_store;

/// A starved node's turns: it runs for its share of each.
pub(super) const STARVE_PERIOD: Duration = Duration::from_millis(100);
/// How long a rule for some requests waits for them.
const USE_PATIENCE: Duration = Duration::from_secs(5);
/// Failures of a storm that are waited for.
const STORM_MAX: u32 = 20;

/// What ends a fault, or goes on with it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Start(Vec<String>),
    Cont(Vec<String>),
    /// Stops a node for the rest of its turn, then lets it run for its share.
    Starve {
        node: String,
        percent: u32,
        until: Instant,
    },
    Refuse(Vec<LinkVictim>, bool),
    Unblock(Vec<LinkVictim>),
    Calm(Vec<LinkVictim>),
    Reset(Vec<LinkVictim>),
    HealHalfOpen(Vec<LinkVictim>),
    Store(RuleId),
    /// Ends a rule that breaks so many requests, once it has, or nobody makes such requests.
    UsedUp(RuleId, u64, Instant),
    Unlimit(String, Resource, Option<u64>),
    /// Waits until code has broken so often, or nobody comes by.
    Spent(u32, Instant),
    /// Terminates and starts again the first, then goes on with the others.
    Roll(Vec<String>),
}

/// What a strike came to.
#[derive(Debug, Default)]
pub(super) struct Hit {
    /// For people.
    pub(super) victim: String,
    /// Nodes whose process, links or store it hit.
    pub(super) nodes: Vec<String>,
    pub(super) is_data_link: bool,
    pub(super) hits_job_manager: bool,
    /// When what is done.
    pub(super) steps: Vec<(Duration, Step)>,
}

/// Whether a fault is ordered from the cluster itself.
pub(super) fn is_by_message(what: &Fault) -> bool {
    let somebody = [ResourceId(String::new())];
    let injection = what.injection(Target::TaskManager(0), JobId(0), &somebody);
    injection.is_some()
}

/// Why a fault cannot be struck; `None`: it can.
pub(super) fn impossible(what: &Fault, has_store_proxy: bool) -> Option<String> {
    match what {
        Fault::Data(DataFault::IoError { .. } | DataFault::SlowDisk { .. }) => Some(
            "disk errors and slow disks need fault points: signals and limits cannot make them"
                .to_owned(),
        ),
        Fault::Store(_) if !has_store_proxy => {
            Some("only a store behind the proxy (s3) can misbehave".to_owned())
        }
        _ => None,
    }
}

pub(super) fn strike(
    cluster: &mut ProcessCluster,
    recorder: Option<&Recorder>,
    job: &str,
    nodes: &Nodes,
    target: Target,
    what: &Fault,
) -> anyhow::Result<Hit> {
    match what {
        Fault::Kill { down } => {
            let mut hit = living(cluster, nodes, target)?;
            for node in &hit.nodes {
                cluster.kill(node)?;
            }
            hit.steps.push((*down, Step::Start(hit.nodes.clone())));
            Ok(hit)
        }
        Fault::Pause { down } => {
            let mut hit = living(cluster, nodes, target)?;
            for node in &hit.nodes {
                cluster.stop(node)?;
                if hit.hits_job_manager {
                    // It may wake up as one that another has replaced.
                    cluster.node_mut(node)?.may_exit();
                }
            }
            hit.steps.push((*down, Step::Cont(hit.nodes.clone())));
            Ok(hit)
        }
        Fault::Terminate { down } => {
            let mut hit = living(cluster, nodes, target)?;
            for node in &hit.nodes {
                cluster.say(&format!("SIGTERM {node}"));
                cluster.node_mut(node)?.signal(Signal::TERM)?;
            }
            hit.steps.push((*down, Step::Start(hit.nodes.clone())));
            Ok(hit)
        }
        Fault::RollingRestart => {
            let mut hit = processes(nodes, Target::AllTaskManagers)?;
            hit.steps
                .push((Duration::ZERO, Step::Roll(hit.nodes.clone())));
            Ok(hit)
        }
        Fault::Starve { percent, down } => {
            let mut hit = living(cluster, nodes, target)?;
            for node in hit.nodes.clone() {
                let step = Step::Starve {
                    node,
                    percent: (*percent).min(100),
                    until: Instant::now() + *down,
                };
                hit.steps.push((Duration::ZERO, step));
            }
            Ok(hit)
        }
        Fault::Link(link) => strike_links(cluster, nodes, target, link),
        Fault::Store(store) => strike_store(cluster, recorder, job, nodes, target, store),
        Fault::Data(data) => strike_data(cluster, nodes, target, data),
        Fault::ClientSavepoint | Fault::Rescale { .. } => {
            bail!("struck by the carrier itself")
        }
        Fault::ActorPanic(_)
        | Fault::SlowHandler { .. }
        | Fault::NoHeartbeats { .. }
        | Fault::ClockOffset { .. }
        | Fault::UserPanic { .. }
        | Fault::UserError { .. }
        | Fault::UserStuck => inject(cluster, job, nodes, target, what),
    }
}

/// By control message to the leader, who says whom it strikes.
fn inject(
    cluster: &mut ProcessCluster,
    job: &str,
    nodes: &Nodes,
    target: Target,
    what: &Fault,
) -> anyhow::Result<Hit> {
    let names = nodes.task_managers.iter().cloned();
    let names: Vec<ResourceId> = names.map(ResourceId).collect();
    let injection = what
        .injection(target, job.parse()?, &names)
        .with_context(|| format!("{target:?} is nobody who can be struck by {what:?}"))?;
    // Nothing is to be done when it has lasted so long, but until then it explains what happens.
    let lasts = |down: Duration| vec![(down, Step::Start(Vec::new()))];
    // What may end its process, and what ends it.
    let (ends, steps) = match what {
        Fault::ActorPanic(ActorKind::JobManager) => (Target::Leader, Vec::new()),
        Fault::ActorPanic(ActorKind::TaskManager) => (target, Vec::new()),
        Fault::ActorPanic(_) | Fault::ClockOffset { .. } => (Target::Store, Vec::new()),
        Fault::SlowHandler { down, .. } | Fault::NoHeartbeats { down } => {
            (Target::AllNodes, lasts(*down))
        }
        Fault::UserStuck => (Target::AllTaskManagers, lasts(USE_PATIENCE)),
        Fault::UserPanic { times } | Fault::UserError { times, .. } => {
            (Target::Store, vec![spent(*times)])
        }
        other => bail!("{other:?} is no control message"),
    };
    cluster.talk_to(&nodes.leader)?;
    for node in nodes.processes(ends) {
        cluster.node_mut(&node)?.may_exit();
    }
    let victim = cluster.inject(injection)?;
    Ok(Hit {
        victim,
        nodes: match target {
            Target::UserCode => nodes.task_managers.clone(),
            target => nodes.processes(target),
        },
        hits_job_manager: target == Target::Leader,
        steps,
        ..Hit::default()
    })
}

fn spent(times: u32) -> (Duration, Step) {
    let times = times.clamp(1, STORM_MAX);
    let until = Instant::now() + USE_PATIENCE * times;
    (Duration::ZERO, Step::Spent(times, until))
}

/// What is known of a fault that happens in a node's code at a fault point.
pub(super) fn inside(what: &Fault, node: &str, nodes: Vec<String>) -> Hit {
    let steps = match what {
        Fault::UserPanic { times } | Fault::UserError { times, .. } => vec![spent(*times)],
        Fault::SlowHandler { down, .. } => vec![(*down, Step::Start(Vec::new()))],
        _ => Vec::new(),
    };
    Hit {
        victim: format!("the code of {node}"),
        nodes,
        hits_job_manager: node.starts_with("job"),
        steps,
        ..Hit::default()
    }
}

fn processes(nodes: &Nodes, target: Target) -> anyhow::Result<Hit> {
    let names = nodes.processes(target);
    ensure!(
        !names.is_empty(),
        "{target:?} is no process of this cluster"
    );
    Ok(Hit {
        victim: names.join(", "),
        hits_job_manager: names.iter().any(|n| nodes.job_managers.contains(n)),
        nodes: names,
        ..Hit::default()
    })
}

/// Those of a target that run right now.
fn living(cluster: &mut ProcessCluster, nodes: &Nodes, target: Target) -> anyhow::Result<Hit> {
    let mut hit = processes(nodes, target)?;
    let mut alive = Vec::new();
    for name in std::mem::take(&mut hit.nodes) {
        if cluster.node_mut(&name)?.exit_code()?.is_none() {
            alive.push(name);
        }
    }
    ensure!(!alive.is_empty(), "{} is down already", hit.victim);
    hit.victim = alive.join(", ");
    hit.hits_job_manager = alive.iter().any(|n| nodes.job_managers.contains(n));
    hit.nodes = alive;
    Ok(hit)
}
