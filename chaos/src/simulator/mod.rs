//! A whole cluster in one thread: real actors, sessions, tasks, channels and records over an in-memory network and store, under a
//! clock that advances only when nothing can run.
//!
//! Invariant: a run is a pure function of its plan. Two runs of one plan give the same trace, so that a run that
//! fails can be repeated and watched. It simulates no thread: what only real parallelism breaks is for the process harness.

mod campaign;
mod cluster;
mod draw;
mod drive;
mod fold;
mod inside;
mod observer;
mod rival;
mod stepper;
mod stores;
mod strike;
mod trace;
mod verdict;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use perennial::connector::CommittedCollect;
use perennial::storage::StoreChange;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::entropy::Entropy;
use perennial_actors::fault::CHAOS_KEY;
use perennial_actors::rpc::MemoryNetwork;
use perennial_config::{Secret, Settings};

pub use campaign::{Repeat, run_seeds, verify};
use cluster::Cluster;
pub use draw::draw;
use fold::Fold;
use inside::Handles;
pub use inside::Inside;
use observer::{Jobs, Observer};
use stepper::Stepper;
use stores::SimulatedStores;
use trace::Trace;

use crate::checker::StoreHistory;
use crate::plan::{Carrier, FaultPlan};
use crate::proxy::store::WriteKind;
use crate::report::{Progress, RunReport};
use crate::workload::{self, Fuse, Output};

/// How often faults and nodes are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Where checkpoints lie.
const JOBS: &str = "checkpoints";
/// Where savepoints lie.
const SAVEPOINTS: &str = "savepoints";
/// Wall-clock time at the beginning.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// Where leadership lies.
const HA: &str = "ha";

/// Breaks the run on purpose, to show that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Some tasks miss wake-ups.
    LoseWakeUps,
    /// The job keeps a part of its answer where no checkpoint sees it.
    ForgetState,
}

/// How a plan is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Lines of the trace are kept for reading.
    pub keeps_trace: bool,
    /// See [`Sabotage`].
    pub sabotage: Option<Sabotage>,
    /// Fault points besides those of the plan, and switches that break the engine.
    pub inside: Inside,
}

/// What came of a run, with what only a simulation has.
#[derive(Debug)]
pub struct Run {
    /// As of every carrier.
    pub report: RunReport,
    /// Of everything that happened.
    pub digest: u64,
    /// What happened, when it was asked for.
    pub trace: Vec<String>,
    /// Restarts of the job, as its last status says.
    pub restarts: u32,
    /// Completed checkpoints.
    pub checkpoints: usize,
}

/// Runs a plan to its end.
///
/// # Errors
/// When the plan itself cannot be run.
pub fn run(
    plan: &FaultPlan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<RunReport> {
    Ok(execute(plan, options, progress)?.report)
}

/// As [`run`], with all that a simulation tells.
///
/// # Errors
/// When the plan itself cannot be run.
pub fn execute(
    plan: &FaultPlan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Run> {
    ensure!(
        plan.carrier == Carrier::Simulator,
        "the plan is for {:?}",
        plan.carrier
    );
    ensure!(
        plan.workload.job == workload::NAME,
        "the simulator runs the job `{}`, not `{}`",
        workload::NAME,
        plan.workload.job
    );
    plan.faults.iter().try_for_each(strike::check)?;
    let mut inside = options.inside.clone();
    for fault in &plan.faults {
        inside.points.extend(inside::point(fault, plan)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let run = runtime.block_on(simulate(plan, options, inside, progress));
    // What a killed node left behind waits for ever; it goes with the runtime.
    drop(runtime);
    run
}

async fn simulate(
    plan: &FaultPlan,
    options: &Options,
    inside: Inside,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Run> {
    progress(Progress::Started(repeat_command(plan.seed)));
    let trace = Trace::new(options.keeps_trace);
    let began = Instant::now();
    // Each part has dice of its own, so that a change of one leaves the others' draws alone.
    let dice = |part: u64| Entropy::seeded(plan.seed.wrapping_mul(1009).wrapping_add(part));
    let sink = CommittedCollect::<Output>::new();
    let fuse = Fuse::default();
    let is_forgetful = options.sabotage == Some(Sabotage::ForgetState);
    let registry = workload::registry(&plan.workload, &sink, &fuse, is_forgetful);
    let settings = settings(plan)?;
    let jobs = Jobs {
        registry: registry.clone(),
        settings: settings.job.clone(),
        dice: dice(1),
    };
    let parallelism = |i: usize| plan.workload.parallelism.get(i).copied().unwrap_or(1);
    let graph = jobs
        .graph((parallelism(0), parallelism(1)), None)
        .map_err(|e| anyhow!(e))?;
    let is_deafening = options.sabotage == Some(Sabotage::LoseWakeUps);
    let stepper = Stepper::new(trace.clone(), dice(2), is_deafening);
    let stepping = tokio::spawn(stepper.clone().run());
    let history = Arc::new(Mutex::new(StoreHistory::default()));
    let stores = {
        let (history, oracle) = (history.clone(), Fold(plan.workload.clone()));
        let on_change = move |change: StoreChange<'_>| {
            let below = |directory: &str| change.key.strip_prefix(directory)?.strip_prefix('/');
            let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = below(SAVEPOINTS) {
                let object = |key: &str| {
                    let key = format!("{SAVEPOINTS}/{key}");
                    change.objects.get(&key).cloned()
                };
                history.change_savepoint(key, change.after, &object, &oracle);
            }
            let Some(key) = below(JOBS) else {
                return;
            };
            let object = |key: &str| change.objects.get(&format!("{JOBS}/{key}")).cloned();
            let kind = match change.operation {
                "create" => WriteKind::Create,
                "delete" => WriteKind::Delete,
                _ => WriteKind::Put,
            };
            history.change(kind, key, change.after, &object, &oracle);
        };
        SimulatedStores::new(
            settings.cluster.s3.clone(),
            dice(3),
            trace.clone(),
            Box::new(on_change),
        )
    };
    let network = MemoryNetwork::new();
    network.seed(dice(6).u64());
    let (job_managers, task_managers) = Cluster::machines(plan, &settings);
    let mut cluster = Cluster {
        trace: trace.clone(),
        network,
        stores,
        stepper: stepper.clone(),
        clock: Clock::starting_at(EPOCH),
        registry,
        fuse,
        dice: dice(4),
        leader: Arc::new(Mutex::new("nobody:1".to_owned())),
        job_managers,
        task_managers,
        later: Vec::new(),
        settings,
        history,
        handles: Handles::new(inside),
    };
    cluster.tend().await;
    let observer = Observer::start(&cluster, jobs, graph, sink.clone(), dice(5));
    progress(Progress::Phase("the job is submitted".to_owned()));
    let drive = drive::drive(&mut cluster, plan, &observer, progress).await;
    progress(Progress::Phase("checking".to_owned()));
    let run = verdict::conclude(plan, cluster, observer, &sink, drive, began).await;
    stepping.abort();
    Ok(run)
}

fn repeat_command(seed: u64) -> String {
    format!("cargo run -p perennial-chaos --example simulate -- --trace --seeds {seed}")
}

fn settings(plan: &FaultPlan) -> anyhow::Result<Settings> {
    let mut keys: Vec<(&str, String)> = [
        ("execution.checkpointing.mode", "EXACTLY_ONCE"),
        ("task.cancellation.timeout", "20s"),
        ("slot.request.timeout", "60s"),
        ("web.exception-history-size", "10000"),
        ("jobmanager.rpc.address", "jobmanager"),
        ("execution.checkpointing.dir", "file:///simulated"),
        ("execution.checkpointing.savepoint-dir", "file:///simulated"),
    ]
    .map(|(key, value)| (key, value.to_owned()))
    .to_vec();
    let slots = plan.cluster.slots.to_string();
    keys.push(("taskmanager.numberOfTaskSlots", slots));
    if plan.faults.iter().any(|f| strike::is_by_message(&f.what)) {
        keys.push((CHAOS_KEY, "true".to_owned()));
    }
    keys.extend(plan.settings.iter().map(|(k, v)| (&**k, v.clone())));
    let mut settings = Settings::with(&keys).context("the plan's settings")?;
    // Configuration files cannot name memory.
    settings.job.checkpointing.directory = SimulatedStores::uri(JOBS);
    settings.job.checkpointing.savepoint_directory = Some(SimulatedStores::uri(SAVEPOINTS));
    settings.cluster.ha_directory = SimulatedStores::uri(HA);
    settings.cluster.cluster_secret = Secret("simulated".to_owned());
    Ok(settings)
}
