//! Faults of the object store: rules of the proxy before it, and damage to the objects behind it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use perennial_actors::checkpoint::Store;
use perennial_actors::clock::Instant;

use super::super::super::ProcessCluster;
use super::super::victims::Nodes;
use super::{Hit, Step, USE_PATIENCE};
use crate::checker::Recorder;
use crate::plan::{StoreFault, StoreRequests, Target};
use crate::proxy::store::{Break, Rule, Which};

fn which(requests: StoreRequests) -> Which {
    match requests {
        StoreRequests::All => Which::All,
        StoreRequests::Put => Which::Put,
        StoreRequests::Create => Which::Create,
        StoreRequests::CompleteMultipart => Which::CompleteMultipart,
        StoreRequests::Get => Which::Get,
    }
}

pub(super) fn strike_store(
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
