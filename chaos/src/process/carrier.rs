//! Strikes a fault plan against real processes behind proxies, and judges what is left.
//!
//! Phases: warm-up until the first checkpoint is complete, fire, heal, drain to the end of the input, check. Invariant: a verdict is about the
//! runtime only: what the harness or the machine did wrong is [`Outcome::Inconclusive`] and never retried. Faults that are control
//! messages go to the leader; those that wait for a fault point need a program that has them ([`Options::with_points`]).

mod clients;
mod judge;
mod keep;
mod machine;
mod phases;
mod points;
mod settings;
mod steps;
mod strike;
mod timeline;
mod turn;
mod victims;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::fault::Sabotage;
use perennial_actors::model::{JobId, JobState};

use super::{ClusterPlan, ProcessCluster, try_chaos_node};
use crate::checker::{Recorder, Struck, Tolerance};
use crate::job::JobUnderTest;
use crate::plan::{Carrier, Fault, FaultPlan, Invariant, PlannedFault, StoreShape, Target};
use crate::report::{Outcome, Progress, RunReport, Strike, Violation};
use crate::scenario::Scenario;
use crate::storage::StorageKind;
use judge::Judge;
use machine::Machine;
use points::Points;
use strike::Hit;
use timeline::Timeline;
use victims::Nodes;
use watch::{View, Watcher};

/// Between two turns of the loop.
const TICK: Duration = Duration::from_millis(10);
/// Until the first checkpoint is complete.
const WARM_UP_MAX: Duration = Duration::from_secs(40);
/// How long a trigger is waited for; then its fault is not struck.
const TRIGGER_PATIENCE: Duration = Duration::from_secs(20);
/// L1: what a recovery may take on top of detection and the strategy's delay, in a debug build on a busy machine.
pub const RESTORE_BUDGET: Duration = Duration::from_secs(20);
/// L1: what a checkpoint may take on top of two intervals, there.
pub const CHECKPOINT_BUDGET: Duration = Duration::from_secs(10);
/// L3: what the rest of the input may take on top of its own length, there.
pub const DRAIN_BUDGET: Duration = Duration::from_secs(60);
/// L3: how long a node that was asked to end may take.
pub const TERMINATION_BUDGET: Duration = Duration::from_secs(15);
/// A JobManager that may not lead any more.
const ANOTHER_LEADS: i32 = 5;
/// A node that broke, or could not start.
const FAILED: i32 = 1;
/// As shells say SIGKILL.
const KILLED: i32 = 137;
/// As shells say SIGTERM, of a program that does not handle it.
const TERMINATED: i32 = 143;

/// What a run needs besides its plan.
#[derive(Clone)]
pub struct Options {
    /// The program that plays every role.
    pub binary: PathBuf,
    /// Where failing runs are kept, each in a directory of its own; `None`: in the system's temporary directory.
    pub keep: Option<PathBuf>,
    /// The same program with fault points, for plans that wait for one; `None`: `perennial-chaos-node`, built beside the caller.
    pub with_points: Option<PathBuf>,
    /// Ways to break the engine on purpose, to see that it is noticed; as points, they need a program that has them.
    pub sabotage: Vec<Sabotage>,
    /// The job and its oracle, when it is none of ours.
    pub job: Option<Arc<dyn JobUnderTest>>,
}

impl Options {
    /// With one of our own jobs.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            keep: None,
            with_points: None,
            sabotage: Vec::new(),
            job: None,
        }
    }
}

/// Runs a plan to its end. `Err` only when the plan itself cannot be run (unknown job, impossible shape); trouble of harness or machine is
/// [`Outcome::Inconclusive`].
///
/// # Errors
/// See above.
pub fn run(
    plan: &FaultPlan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<RunReport> {
    ensure!(
        plan.carrier == Carrier::Process,
        "the plan is for {:?}",
        plan.carrier
    );
    let storage = match plan.cluster.store {
        StoreShape::Disk => StorageKind::Disk,
        StoreShape::S3 => StorageKind::S3,
        StoreShape::Memory => anyhow::bail!("processes do not share memory: use disk or s3"),
    };
    ensure!(
        plan.cluster.job_managers >= 1 && plan.cluster.task_managers >= 1,
        "a cluster has a JobManager and a TaskManager"
    );
    let needs_standby = |f: &PlannedFault| f.target == Target::Standby;
    ensure!(
        plan.cluster.job_managers > 1 || !plan.faults.iter().any(needs_standby),
        "there is no standby in a cluster of one JobManager"
    );
    let settings = settings::settings(plan);
    let loaded = settings::load(&settings, storage)?;
    let points = Points::of(plan)?;
    let scenario = match &options.job {
        Some(job) => Scenario::new(Arc::clone(job), &plan.workload),
        None => Scenario::stock(&plan.workload)?,
    };
    let mut report = RunReport {
        plan: plan.clone(),
        outcome: Outcome::Pass,
        violations: Vec::new(),
        strikes: Vec::new(),
        recoveries: Vec::new(),
        checked: BTreeMap::new(),
        sites: BTreeMap::new(),
        elapsed_ms: 0,
        kept: None,
    };
    for (index, fault) in plan.faults.iter().enumerate() {
        let why = strike::impossible(&fault.what, storage == StorageKind::S3);
        if let Some(why) = why {
            report.outcome = Outcome::Inconclusive(format!("fault {} ({fault}): {why}", index + 1));
            return Ok(report);
        }
    }
    let is_plain = points.is_empty() && options.sabotage.is_empty();
    let binary = match (is_plain, &options.with_points) {
        (true, _) => options.binary.clone(),
        (false, Some(binary)) => binary.clone(),
        (false, None) => match try_chaos_node() {
            Ok(binary) => binary,
            Err(error) => {
                report.outcome = Outcome::Inconclusive(format!("fault points: {error:#}"));
                return Ok(report);
            }
        },
    };
    progress(Progress::Started(plan.to_string()));
    let began = Instant::now();
    let mut cluster_plan = ClusterPlan::new(binary)
        .storage(storage)
        .task_managers(plan.cluster.task_managers)
        .job_managers(plan.cluster.job_managers)
        .slots(plan.cluster.slots)
        .sabotage(&options.sabotage)
        .proxies(plan.seed);
    for (key, value) in &settings {
        cluster_plan = cluster_plan.set(key, value);
    }
    for node in points.nodes() {
        if let Some(text) = points.of_first(node) {
            cluster_plan = cluster_plan.arm(node, &text);
        }
    }
    let cluster = match ProcessCluster::start(cluster_plan) {
        Ok(cluster) => cluster,
        Err(error) => {
            report.outcome = Outcome::Inconclusive(format!("no cluster: {error:#}"));
            return Ok(report);
        }
    };
    let run = match Run::begin(cluster, plan, points, scenario, loaded, progress) {
        Ok(run) => run,
        Err(error) => {
            report.outcome = Outcome::Inconclusive(format!("the job cannot be watched: {error:#}"));
            return Ok(report);
        }
    };
    run.finish(options, &mut report);
    report.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// A run under way.
struct Run<'a> {
    cluster: ProcessCluster,
    plan: &'a FaultPlan,
    scenario: Scenario,
    settings: perennial_config::Settings,
    progress: &'a mut dyn FnMut(Progress),
    clock: Clock,
    accepted: Instant,
    job: String,
    output: PathBuf,
    watcher: Watcher,
    /// Of the job that runs; of earlier ones only what they said.
    recorder: Option<Recorder>,
    earlier: Vec<anyhow::Result<crate::checker::Recording>>,
    timeline: Timeline,
    strikes: Vec<Strike>,
    struck: Vec<Struck>,
    judge: Judge,
    points: Points,
    /// Nodes whose end was judged.
    ended_badly: BTreeSet<String>,
    machine: Machine,
    /// When the last fault was struck.
    fired: Instant,
    /// When the job was first seen to have ended, in ms since the epoch.
    ended_ms: Option<u64>,
    /// Recoveries that were told already.
    told: usize,
    inconclusive: Option<String>,
    clients: Vec<std::thread::JoinHandle<Result<Option<String>, String>>>,
}

impl<'a> Run<'a> {
    fn begin(
        mut cluster: ProcessCluster,
        plan: &'a FaultPlan,
        points: Points,
        scenario: Scenario,
        settings: perennial_config::Settings,
        progress: &'a mut dyn FnMut(Progress),
    ) -> anyhow::Result<Self> {
        let output = cluster.path("output");
        let judge = Judge::begin(&mut cluster)?;
        let arguments = scenario.arguments(&output);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let job = cluster.submit(&[], &arguments)?;
        let recorder = follow(&cluster, &job, &scenario)?;
        let watcher = Watcher::start(job.parse()?, cluster.addresses.clone())?;
        Ok(Self {
            cluster,
            plan,
            scenario,
            settings,
            progress,
            clock: Clock::system(),
            accepted: Instant::now(),
            job,
            output,
            watcher,
            recorder: Some(recorder),
            earlier: Vec::new(),
            timeline: Timeline::default(),
            strikes: Vec::new(),
            struck: Vec::new(),
            judge,
            points,
            ended_badly: BTreeSet::new(),
            machine: Machine::default(),
            fired: Instant::now(),
            ended_ms: None,
            told: 0,
            inconclusive: None,
            clients: Vec::new(),
        })
    }

    fn phase(&mut self, text: &str) {
        self.cluster.say(text);
        (self.progress)(Progress::Phase(text.to_owned()));
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::of(&self.settings.cluster.heartbeat)
    }

    fn nodes(&self, view: &View) -> Nodes {
        let job_managers = self.cluster.job_manager_names();
        Nodes {
            leader: view
                .leader
                .clone()
                .or_else(|| job_managers.first().cloned())
                .unwrap_or_default(),
            job_managers,
            task_managers: self.cluster.task_manager_names(),
        }
    }

    /// `false`: it could not be struck.
    fn strike(&mut self, index: usize, fault: &PlannedFault, view: &View) -> bool {
        let at = self.accepted.elapsed();
        let at_ms = self.clock.wall_ms();
        let nodes = self.nodes(view);
        let hit = match &fault.what {
            Fault::ClientSavepoint => self.ask_for_a_savepoint(),
            Fault::Rescale { parallelism } => self.rescale(*parallelism),
            what => strike::strike(
                &mut self.cluster,
                self.recorder.as_ref(),
                &self.job,
                &nodes,
                fault.target,
                what,
            ),
        };
        let hit = match hit {
            Ok(hit) => hit,
            Err(error) => {
                self.phase(&format!("fault {} is not struck: {error:#}", index + 1));
                return false;
            }
        };
        self.note(index, fault, hit, at, at_ms);
        true
    }

    fn note(&mut self, index: usize, fault: &PlannedFault, hit: Hit, at: Duration, at_ms: u64) {
        let strike = Strike {
            fault: index,
            row: fault.row(),
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            victim: hit.victim,
        };
        (self.progress)(Progress::Struck(strike.clone()));
        self.strikes.push(strike);
        let is_over = hit.steps.is_empty();
        self.struck.push(Struck {
            fault: index,
            what: fault.what.clone(),
            nodes: hit.nodes,
            is_data_link: hit.is_data_link,
            // The proxies before the store are another fault's.
            is_store_link: false,
            hits_job_manager: hit.hits_job_manager,
            at_ms,
            healed_ms: is_over.then(|| self.clock.wall_ms()),
        });
        let now = Instant::now();
        self.fired = now;
        for (after, step) in hit.steps {
            self.timeline.push(now + after, index, step);
        }
    }

    /// Notes a fault that happened in a node's code.
    fn struck_inside(
        &mut self,
        index: usize,
        fault: &PlannedFault,
        node: &str,
        nodes: Vec<String>,
    ) {
        let hit = strike::inside(&fault.what, node, nodes);
        self.note(
            index,
            fault,
            hit,
            self.accepted.elapsed(),
            self.clock.wall_ms(),
        );
    }

    fn finish(mut self, options: &Options, report: &mut RunReport) {
        self.go();
        self.end_faults();
        self.phase("checking");
        let view = self.watcher.view();
        report.strikes = std::mem::take(&mut self.strikes);
        let recoveries: Vec<_> = view.recoveries.values().cloned().collect();
        report.recoveries = recoveries.iter().map(|r| self.recovery_time(r)).collect();
        if self.inconclusive.is_none() {
            self.check(&view, &recoveries);
        }
        report.sites = self.sites();
        report.checked = self.judge.checked();
        report.violations = self.judge.violations();
        report.outcome = match (&self.inconclusive, report.violations.is_empty()) {
            // What was seen to be broken is broken, whatever else went wrong.
            (_, false) => Outcome::Fail,
            (Some(why), true) => Outcome::Inconclusive(why.clone()),
            (None, true) if report.strikes.is_empty() && !self.plan.faults.is_empty() => {
                Outcome::Inconclusive("no fault was struck".to_owned())
            }
            (None, true) => Outcome::Pass,
        };
        if report.outcome != Outcome::Pass {
            match keep::keep(self.cluster, options.keep.as_deref(), report, &view) {
                Ok(kept) => report.kept = Some(kept),
                Err(error) => tracing::error!(%error, "the run cannot be kept"),
            }
        }
    }
}

fn follow(cluster: &ProcessCluster, job: &str, scenario: &Scenario) -> anyhow::Result<Recorder> {
    Recorder::follow(
        cluster.storage().open(),
        &cluster.storage().uri("checkpoints"),
        job.parse::<JobId>()?,
        scenario.state(),
    )
}

/// The end that a plan allows: FINISHED, or FAILED where the catalogue says so.
fn may_fail(plan: &FaultPlan) -> bool {
    use crate::plan::StoreFault;
    plan.faults.iter().any(|f| {
        matches!(
            f.what,
            Fault::Store(
                StoreFault::MissingObject
                    | StoreFault::CorruptObject
                    | StoreFault::TruncatedObject
                    | StoreFault::Empty
            )
        )
    })
}

fn violation(invariant: Invariant, detail: String) -> Violation {
    Violation { invariant, detail }
}

fn is_finished(view: &View) -> bool {
    view.terminal() == Some(JobState::Finished)
}
