//! Strikes one fault: does it, says who was hit, and what is to be done later to end it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use perennial_actors::checkpoint::Store;
use perennial_actors::clock::Instant;
use perennial_actors::fault::ActorKind;
use perennial_actors::model::{JobId, ResourceId};
use rustix::process::Resource;

use super::super::{ProcessCluster, Signal};
use super::victims::{LinkVictim, Nodes};
use crate::checker::Recorder;
use crate::plan::{DataFault, Fault, LinkFault, StoreFault, StoreRequests, Target};
use crate::proxy::link::Way;
use crate::proxy::store::{Break, Rule, RuleId, Which};

/// A starved node's turns: it runs for its share of each.
pub(super) const STARVE_PERIOD: Duration = Duration::from_millis(100);
/// How long a rule for some requests waits for them.
const USE_PATIENCE: Duration = Duration::from_secs(5);
/// Failures of a storm that are waited for.
const STORM_MAX: u32 = 20;
/// How long a node has no descriptor for anything new.
const NO_DESCRIPTORS: Duration = Duration::from_secs(3);
/// Bytes that a file of a node with a full disk may have.
const FULL_DISK_BYTES: u64 = 0;

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

fn strike_links(
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
    let all = |change: &dyn Fn(&LinkVictim, &mut crate::proxy::link::Conditions)| {
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

fn which(requests: StoreRequests) -> Which {
    match requests {
        StoreRequests::All => Which::All,
        StoreRequests::Put => Which::Put,
        StoreRequests::Create => Which::Create,
        StoreRequests::CompleteMultipart => Which::CompleteMultipart,
        StoreRequests::Get => Which::Get,
    }
}

fn strike_store(
    cluster: &mut ProcessCluster,
    recorder: Option<&Recorder>,
    job: &str,
    nodes: &Nodes,
    target: Target,
    what: &StoreFault,
) -> anyhow::Result<Hit> {
    let node = nodes.of_store(target);
    cluster.say(&format!(
        "{what:?} for {}",
        node.as_deref().unwrap_or("all")
    ));
    let mut hit = Hit {
        victim: format!("the store, for {}", node.as_deref().unwrap_or("all")),
        nodes: node.clone().into_iter().collect(),
        ..Hit::default()
    };
    let proxy = cluster.store_proxy().context("no proxy before the store")?;
    let mut add = |which, how, percent, times, down: Option<Duration>| {
        let rule = proxy.add(Rule {
            node: node.clone(),
            percent,
            times,
            ..Rule::new(which, how)
        });
        let step = match down {
            Some(down) => (down, Step::Store(rule)),
            None => {
                let until = Instant::now() + USE_PATIENCE;
                (Duration::ZERO, Step::UsedUp(rule, times.into(), until))
            }
        };
        hit.steps.push(step);
    };
    match what {
        StoreFault::Answer {
            status,
            percent,
            requests,
            down,
        } => {
            let how = Break::Answer(*status);
            add(which(*requests), how, *percent, u32::MAX, Some(*down));
        }
        StoreFault::Silence { down } => {
            add(Which::All, Break::Silence, 100, u32::MAX, Some(*down));
        }
        StoreFault::SlowBody {
            bytes_per_second,
            down,
        } => {
            let how = Break::Crawl(*bytes_per_second);
            add(Which::All, how, 100, u32::MAX, Some(*down));
        }
        StoreFault::CutBody { times } => add(Which::Get, Break::CutBody, 100, *times, None),
        StoreFault::LoseSuccess { requests, times } => {
            add(which(*requests), Break::LoseSuccess, 100, *times, None);
        }
        StoreFault::LateWrite { requests, delay } => {
            add(which(*requests), Break::Late(*delay), 100, 1, None);
        }
        StoreFault::StaleList { down } => {
            add(Which::List, Break::Stale, 100, u32::MAX, Some(*down));
        }
        StoreFault::Precondition { times } => {
            add(Which::CreateRecord, Break::Rival, 100, *times, None);
            // The leader is fenced by it, and its launcher starts it again.
            hit.hits_job_manager = true;
            for name in &nodes.job_managers {
                cluster.node_mut(name)?.may_exit();
            }
        }
        StoreFault::NoDelete { down } => {
            let how = Break::Answer(500);
            add(Which::Delete, how, 100, u32::MAX, Some(*down));
        }
        StoreFault::MissingObject
        | StoreFault::CorruptObject
        | StoreFault::TruncatedObject
        | StoreFault::Empty => {
            hit.victim = damage(cluster, recorder, job, what)?;
        }
    }
    Ok(hit)
}

/// Changes the real objects, past the proxy.
fn damage(
    cluster: &ProcessCluster,
    recorder: Option<&Recorder>,
    job: &str,
    what: &StoreFault,
) -> anyhow::Result<String> {
    let recorder = recorder.context("nobody reads the checkpoints")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stores = cluster.storage().open();
    let store = stores.open(&cluster.storage().uri(&format!("checkpoints/{job}")))?;
    runtime.block_on(async {
        if *what == StoreFault::Empty {
            recorder.expect_emptiness();
            let all = store.list("").await?;
            for object in &all {
                store.delete(&object.key).await?;
            }
            return Ok(format!("{} objects of the job", all.len()));
        }
        // Only what has been checked as sound may be damaged. Retention may have deleted it by now: then the next one.
        for _ in 0..20 {
            let (number, keys) = recorder
                .newest()
                .ok_or_else(|| anyhow!("no checkpoint is complete yet"))?;
            let key = keys
                .first()
                .ok_or_else(|| anyhow!("checkpoint {number} has no object"))?;
            recorder.expect_damage(key);
            if change(store.as_ref(), key, what).await.is_ok() {
                return Ok(format!("{key} of checkpoint {number}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("no object of the newest checkpoint could be changed")
    })
}

async fn change(store: &dyn Store, key: &str, what: &StoreFault) -> anyhow::Result<()> {
    let bytes = store.get(key, None).await?;
    ensure!(!bytes.is_empty(), "{key} is empty");
    match what {
        StoreFault::MissingObject => store.delete(key).await?,
        StoreFault::CorruptObject => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            store.put(key, bytes.into()).await?;
        }
        _ => {
            let half: Bytes = bytes.slice(..bytes.len() / 2);
            store.put(key, half).await?;
        }
    }
    Ok(())
}

fn strike_data(
    cluster: &mut ProcessCluster,
    nodes: &Nodes,
    target: Target,
    what: &DataFault,
) -> anyhow::Result<Hit> {
    let mut hit = living(cluster, nodes, target)?;
    cluster.say(&format!("{what:?} on {}", hit.victim));
    for node in hit.nodes.clone() {
        match what {
            DataFault::DiskFull { down } => {
                let resource = Resource::Fsize;
                let before = cluster
                    .node_mut(&node)?
                    .limit(resource, Some(FULL_DISK_BYTES))?;
                hit.steps
                    .push((*down, Step::Unlimit(node, resource, before)));
            }
            DataFault::NoDescriptors => {
                let resource = Resource::Nofile;
                // What is open stays; the highest number in use is the lowest limit that changes nothing for it.
                let before = cluster.node_mut(&node)?.limit(resource, Some(0))?;
                hit.steps
                    .push((NO_DESCRIPTORS, Step::Unlimit(node, resource, before)));
            }
            DataFault::Leftovers => {
                // What a killed process leaves is what there is to sweep.
                cluster.kill(&node)?;
                hit.steps.push((Duration::ZERO, Step::Start(vec![node])));
            }
            DataFault::IoError { .. } | DataFault::SlowDisk { .. } => {
                bail!("cannot be struck from outside")
            }
        }
    }
    Ok(hit)
}
