//! A whole cluster in one thread: real actors, sessions, tasks, channels and records over an in-memory network and store, under a
//! clock that advances only when nothing can run (design.md section 9).
//!
//! Invariant: a run is a pure function of its seed. Two runs of one seed give the same trace, so that a run that
//! fails can be repeated and watched. It simulates no thread: what only real parallelism breaks is for the process harness.

mod check;
mod cluster;
mod inside;
mod observer;
mod plan;
mod stepper;
mod stores;
mod trace;
use crate::workload;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::api::{Arguments, Submission};
use perennial::cluster::build_id;
use perennial::connector::CommittedCollect;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::entropy::Entropy;
use perennial_actors::fault::FaultSite;
use perennial_actors::model::{JobGraph, JobId, JobState};
use perennial_actors::rpc::MemoryNetwork;
use perennial_config::{Secret, Settings};

pub use crate::workload::Workload;
use check::Records;
use cluster::{Cluster, Machine};
use inside::Handles;
pub use inside::Inside;
use observer::Observer;
pub use plan::{Direction, FaultKind, Plan};
use stepper::Stepper;
use stores::SimulatedStores;
use trace::Trace;
use workload::{Fuse, Output};

/// How often faults, nodes and records are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Virtual time in which the job must finish after its last fault.
const DEADLINE: Duration = Duration::from_secs(90);
/// Virtual time in which its last task must be gone.
const TASKS_GONE: Duration = Duration::from_secs(30);

/// Breaks the run on purpose, to show that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Some tasks miss wake-ups.
    LoseWakeUps,
    /// The job keeps a part of its answer where no checkpoint sees it.
    ForgetState,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// What it was made of.
    pub plan: Plan,
    /// Of everything that happened.
    pub digest: u64,
    /// What happened.
    pub trace: Vec<String>,
    /// What does not hold; empty when all is well.
    pub violations: Vec<String>,
    /// Restarts of the job, as its last status says.
    pub restarts: u32,
    /// Virtual time.
    pub elapsed: Duration,
    /// How often each fault point was hit, over all nodes.
    pub sites: BTreeMap<FaultSite, u64>,
}

/// Runs the simulation of a seed.
///
/// # Panics
/// When no runtime can be built.
#[must_use]
pub fn simulate(seed: u64, sabotage: Option<Sabotage>) -> Report {
    simulate_plan(Plan::of(seed), Inside::default(), sabotage)
}

/// Runs a plan with faults from inside.
///
/// # Panics
/// When no runtime can be built.
#[must_use]
pub fn simulate_plan(plan: Plan, inside: Inside, sabotage: Option<Sabotage>) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing from the system");
    let report = runtime.block_on(run(plan, inside, sabotage));
    // What a killed node left behind waits for ever; it goes with the runtime.
    drop(runtime);
    report
}

/// Runs a seed twice: what does not hold, and whether both runs were the same. `Err` names the seed, the plan and the reason.
pub fn verify(seed: u64) -> Result<Report, String> {
    let first = simulate(seed, None);
    let failed = |why: String| {
        Err(format!(
            "seed {seed}: {why}\nrepeat: cargo run -p perennial-chaos --example simulate -- --trace --seeds {seed}\n{:#?}",
            first.plan
        ))
    };
    if !first.violations.is_empty() {
        return failed(first.violations.join("\n"));
    }
    let second = simulate(seed, None);
    if first.digest != second.digest {
        let differs = first
            .trace
            .iter()
            .zip(&second.trace)
            .position(|(a, b)| a != b);
        let at = differs.unwrap_or(first.trace.len().min(second.trace.len()));
        let around = |trace: &[String]| {
            trace[at.saturating_sub(4).min(trace.len())..(at + 3).min(trace.len())].join("\n")
        };
        return failed(format!(
            "two runs differ, from line {at} on:\n{}\n--- and ---\n{}",
            around(&first.trace),
            around(&second.trace)
        ));
    }
    Ok(first)
}

async fn run(plan: Plan, inside: Inside, sabotage: Option<Sabotage>) -> Report {
    let trace = Trace::new();
    let began = Instant::now();
    // Each part has dice of its own, so that a change of one leaves the others' draws alone.
    let dice = |part: u64| Entropy::seeded(plan.seed.wrapping_mul(1009).wrapping_add(part));
    let mut violations = Vec::new();
    let sink = CommittedCollect::<Output>::new();
    let fuse = Fuse::new();
    let registry = workload::registry(
        &plan.workload,
        &sink,
        &fuse,
        sabotage == Some(Sabotage::ForgetState),
    );
    let settings = match settings(&plan) {
        Ok(settings) => settings,
        Err(error) => return Report::broken(plan, error),
    };
    let submission = Submission {
        job: JobId(dice(1).u128()),
        build: build_id(),
        start_from: None,
    };
    let job = settings.job.clone();
    let graph = match registry.graph(
        workload::NAME,
        &Arguments::default(),
        |_| Ok(job),
        submission,
    ) {
        Ok(graph) => graph,
        Err(error) => return Report::broken(plan, error.to_string()),
    };
    let is_deafening = sabotage == Some(Sabotage::LoseWakeUps);
    let stepper = Stepper::new(trace.clone(), dice(2), is_deafening);
    let stepping = tokio::spawn(stepper.clone().run());
    let stores = SimulatedStores::new(settings.cluster.s3.clone(), dice(3), trace.clone());
    let mut cluster = Cluster {
        trace: trace.clone(),
        network: MemoryNetwork::new(),
        stores: stores.clone(),
        stepper: stepper.clone(),
        clock: Clock::starting_at(Duration::from_secs(1_700_000_000)),
        registry,
        fuse,
        dice: dice(4),
        leader: Arc::new(Mutex::default()),
        job_manager: Machine::new(),
        task_managers: (0..plan.task_managers).map(|_| Machine::new()).collect(),
        later: Vec::new(),
        handles: Handles::new(inside),
        settings,
    };
    cluster.tend().await;
    let mut records = Records::of(&graph);
    let observer = Observer::start(&cluster, graph, sink.clone(), dice(5));
    let status = drive(&mut cluster, &plan, &observer, &mut records).await;
    violations.append(&mut records.violations);
    match &status {
        Some(status) if status.summary.state == JobState::Finished => {
            violations.extend(check::output(&plan.workload, &sink));
            violations.extend(check::restarts(status));
            if let Some(task_managers) = observer.task_managers() {
                violations.extend(check::slots(&task_managers));
            }
        }
        Some(status) => violations.push(format!(
            "the job is {}: {:?}",
            status.summary.state, status.failure
        )),
        None => {
            violations.push(format!(
                "the job did not finish in time; last seen: {:#?}",
                observer.status()
            ));
            violations.extend(stepper.tasks());
        }
    }
    let gone = wait_for(TASKS_GONE, || stepper.tasks().is_empty()).await;
    if status.is_some() && !gone {
        violations.push("tasks are left after the end of the job:".to_owned());
        violations.extend(stepper.tasks());
    }
    observer.stop();
    let sites = cluster.handles.hits();
    let stuck = cluster.shutdown().await;
    if status.is_some() {
        violations.extend(stuck);
    }
    stepping.abort();
    Report {
        plan,
        digest: trace.digest(),
        trace: trace.lines(),
        violations,
        restarts: status.map_or(0, |s| s.summary.restarts),
        elapsed: began.elapsed(),
        sites,
    }
}

impl Report {
    fn broken(plan: Plan, error: String) -> Self {
        Self {
            plan,
            digest: 0,
            trace: Vec::new(),
            violations: vec![error],
            restarts: 0,
            elapsed: Duration::ZERO,
            sites: BTreeMap::new(),
        }
    }
}

/// Lets the faults happen until the job has ended: its last status; `None` when it does not end in time.
async fn drive(
    cluster: &mut Cluster,
    plan: &Plan,
    observer: &Observer,
    records: &mut Records,
) -> Option<perennial_actors::model::JobStatus> {
    let mut faults = plan.faults.iter();
    let mut next = faults.next();
    let mut accepted: Option<Instant> = None;
    let mut deadline = Instant::now() + DEADLINE;
    loop {
        cluster.tend().await;
        records.look(&cluster.stores);
        if let Some(end) = observer.end() {
            cluster.heal();
            cluster.tend().await;
            return Some(end);
        }
        if accepted.is_none() && observer.is_accepted() {
            accepted = Some(Instant::now());
        }
        while let (Some(began), Some((at, fault))) = (accepted, next) {
            if began.elapsed() < *at {
                break;
            }
            cluster.strike(fault);
            deadline = Instant::now() + DEADLINE;
            next = faults.next();
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn wait_for(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    while !holds() {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(TICK).await;
    }
    true
}

fn settings(plan: &Plan) -> Result<Settings, String> {
    let mut keys: Vec<(&str, String)> = [
        ("execution.checkpointing.mode", "EXACTLY_ONCE"),
        ("restart-strategy.type", "exponential-delay"),
        (
            "restart-strategy.exponential-delay.initial-backoff",
            "100ms",
        ),
        ("restart-strategy.exponential-delay.max-backoff", "2s"),
        ("task.cancellation.timeout", "20s"),
        ("slot.request.timeout", "60s"),
        ("jobmanager.rpc.address", "jobmanager"),
        ("execution.checkpointing.dir", "file:///simulated"),
    ]
    .map(|(key, value)| (key, value.to_owned()))
    .to_vec();
    keys.extend(plan.keys.iter().cloned());
    let mut settings = Settings::with(&keys).map_err(|e| e.to_string())?;
    // Configuration files cannot name memory.
    settings.job.checkpointing.directory = SimulatedStores::uri(JOBS);
    settings.cluster.ha_directory = SimulatedStores::uri("ha");
    settings.cluster.cluster_secret = Secret("simulated".to_owned());
    Ok(settings)
}

/// Where checkpoints lie.
const JOBS: &str = "checkpoints";

fn directory_of(graph: &JobGraph) -> String {
    format!("{JOBS}/{}", graph.job)
}
