//! Strikes a fault plan against real processes behind proxies, and judges what is left (faults.md section 2).
//!
//! Phases: warm-up until the first checkpoint is complete, fire, heal, drain to the end of the input, check. Invariant: a verdict is about the
//! runtime only: what the harness or the machine did wrong is [`Outcome::Inconclusive`] and never retried. What needs code inside the
//! node is not struck from here, and said so.

mod clients;
mod judge;
mod keep;
mod steps;
mod strike;
mod timeline;
mod victims;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::fault::CHAOS_KEY;
use perennial_actors::model::{JobId, JobState};

use super::{ClusterPlan, ProcessCluster};
use crate::checker::{Recorder, Struck, Tolerance};
use crate::job::JobUnderTest;
use crate::plan::{Carrier, Fault, FaultPlan, Invariant, PlannedFault, StoreShape, Target, When};
use crate::report::{Outcome, Progress, RecoveryTime, RunReport, Strike, Violation};
use crate::scenario::Scenario;
use crate::storage::StorageKind;
use judge::Judge;
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
/// As shells say SIGKILL.
const KILLED: i32 = 137;

/// What a run needs besides its plan.
#[derive(Clone)]
pub struct Options {
    /// The program that plays every role.
    pub binary: PathBuf,
    /// Where failing runs are kept, each in a directory of its own; `None`: in the system's temporary directory.
    pub keep: Option<PathBuf>,
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
            job: None,
        }
    }
}

/// Settings of nodes and job that a plan may override: small intervals, generous counts, everything retained so that it can be checked.
fn settings(plan: &FaultPlan) -> BTreeMap<String, String> {
    let high_availability = match (plan.cluster.job_managers, plan.cluster.store) {
        (0 | 1, _) => "none",
        (_, StoreShape::S3) => "s3",
        (_, StoreShape::Disk | StoreShape::Memory) => "file",
    };
    // Without a standby nobody waits for its end; a busy machine must not fence a leader that nobody replaces.
    let lease = if plan.cluster.job_managers > 1 {
        "4s"
    } else {
        "20s"
    };
    let mut settings: BTreeMap<String, String> = [
        ("high-availability.type", high_availability),
        ("high-availability.lease-duration", lease),
        ("high-availability.renew-interval", "500ms"),
        ("s3.connection.timeout", "2s"),
        ("s3.socket.timeout", "4s"),
        ("s3.operation.timeout", "10s"),
        ("execution.checkpointing.interval", "300ms"),
        ("execution.checkpointing.min-pause", "0s"),
        ("execution.checkpointing.timeout", "15s"),
        ("execution.checkpointing.num-retained", "1000"),
        ("execution.checkpointing.data-inline-threshold", "0"),
        (
            "execution.checkpointing.tolerable-failed-checkpoints",
            "1000",
        ),
        ("restart-strategy.type", "fixed-delay"),
        ("restart-strategy.fixed-delay.attempts", "1000"),
        ("restart-strategy.fixed-delay.delay", "100ms"),
        ("web.exception-history-size", "200"),
        ("web.checkpoints.history", "20"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    if plan.faults.iter().any(|f| strike::is_by_message(&f.what)) {
        settings.insert(CHAOS_KEY.to_owned(), "true".to_owned());
    }
    settings.extend(plan.settings.clone());
    settings
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
    let settings = settings(plan);
    // Where the cluster will find its store is not known yet; that it has one of this kind is.
    let directories = match storage {
        StorageKind::Disk => ["file:///checkpoints", "file:///leadership"],
        StorageKind::S3 => ["s3://bucket/checkpoints", "s3://bucket/leadership"],
    };
    let mut pairs: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (&**k, &**v)).collect();
    pairs.extend([
        ("execution.checkpointing.dir", directories[0]),
        ("high-availability.storageDir", directories[1]),
        ("s3.access-key", "of-the-server"),
        ("s3.secret-key", "of-the-server"),
    ]);
    let loaded = perennial_config::Settings::with(&pairs).context("the plan's settings")?;
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
        let why = strike::impossible(&fault.when, &fault.what, storage == StorageKind::S3);
        if let Some(why) = why {
            report.outcome = Outcome::Inconclusive(format!("fault {} ({fault}): {why}", index + 1));
            return Ok(report);
        }
    }
    progress(Progress::Started(plan.to_string()));
    let began = Instant::now();
    let mut cluster_plan = ClusterPlan::new(&options.binary)
        .storage(storage)
        .task_managers(plan.cluster.task_managers)
        .job_managers(plan.cluster.job_managers)
        .slots(plan.cluster.slots)
        .proxies(plan.seed);
    for (key, value) in &settings {
        cluster_plan = cluster_plan.set(key, value);
    }
    let cluster = match ProcessCluster::start(cluster_plan) {
        Ok(cluster) => cluster,
        Err(error) => {
            report.outcome = Outcome::Inconclusive(format!("no cluster: {error:#}"));
            return Ok(report);
        }
    };
    let run = match Run::begin(cluster, plan, scenario, loaded, progress) {
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
    /// Recoveries that were told already.
    told: usize,
    inconclusive: Option<String>,
    clients: Vec<std::thread::JoinHandle<Result<Option<String>, String>>>,
}

impl<'a> Run<'a> {
    fn begin(
        mut cluster: ProcessCluster,
        plan: &'a FaultPlan,
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
        let heartbeat = &self.settings.cluster.heartbeat;
        Tolerance {
            heartbeat: heartbeat.timeout,
            reconnect: heartbeat.reconnect_window,
        }
    }

    /// Everything that goes on beside: due steps, deaths, news. `false`: the run is over.
    fn turn(&mut self) -> (View, bool) {
        std::thread::sleep(TICK);
        let now = Instant::now();
        while let Some((index, step)) = self.timeline.due(now) {
            if let Err(error) = self.take(step, index) {
                self.inconclusive
                    .get_or_insert(format!("a fault could not be ended: {error:#}"));
            }
            if self.timeline.is_over(index)
                && let Some(struck) = self.struck.iter_mut().find(|s| s.fault == index)
            {
                struck.healed_ms = Some(self.clock.wall_ms());
            }
        }
        self.look_for_deaths();
        let view = self.watcher.view();
        self.tell(&view);
        let goes_on =
            self.inconclusive.is_none() && !self.judge.has_failed() && view.terminal().is_none();
        (view, goes_on)
    }

    fn look_for_deaths(&mut self) {
        let nodes: Vec<String> = self.cluster.nodes.keys().cloned().collect();
        for name in nodes {
            let Some(node) = self.cluster.nodes.get_mut(&name) else {
                continue;
            };
            let Ok(Some(code)) = node.exit_code() else {
                continue;
            };
            if node.is_allowed_to_exit() && !self.timeline.starts(&name) {
                // As its launcher would.
                self.cluster.say(&format!(
                    "{name} has ended with exit code {code}, as it may"
                ));
                if let Err(error) = self.cluster.restart(&name) {
                    self.inconclusive
                        .get_or_insert(format!("{name} cannot be started again: {error:#}"));
                }
            } else if let Some(node) = self.cluster.nodes.get_mut(&name)
                && node.unexpected_exit().is_some()
            {
                node.may_exit();
                if code == ANOTHER_LEADS && self.struck.is_empty() {
                    self.inconclusive.get_or_insert(format!(
                        "{name} lost its leadership before any fault: this machine is too busy"
                    ));
                } else if code == KILLED {
                    self.inconclusive.get_or_insert(format!(
                        "{name} was killed by somebody else, probably for want of memory"
                    ));
                } else {
                    self.judge.fail(
                        Invariant::R2,
                        format!("{name} ended unasked with exit code {code}"),
                    );
                }
            }
        }
    }

    /// Tells of recoveries that are over.
    fn tell(&mut self, view: &View) {
        let done: Vec<_> = view
            .recoveries
            .values()
            .filter(|r| r.phases.total_ms.is_some())
            .collect();
        for recovery in done.iter().skip(self.told) {
            let time = self.recovery_time(recovery);
            (self.progress)(Progress::Recovered(time));
        }
        self.told = self.told.max(done.len());
    }

    fn recovery_time(&self, recovery: &perennial_actors::model::RecoveryRecord) -> RecoveryTime {
        let struck = crate::checker::explain(recovery, &self.struck, self.tolerance());
        let phases = &recovery.phases;
        let total = phases.total_ms;
        let restore = [phases.slots_ms, phases.restore_ms, phases.first_record_ms];
        RecoveryTime {
            row: struck.map(|s| self.plan.faults[s.fault].row()),
            total_ms: struck
                .zip(total)
                .map(|(s, total)| recovery.detected_ms.saturating_sub(s.at_ms) + total as u64),
            restore_ms: restore.into_iter().flatten().sum::<f64>() as u64,
            cause: recovery.cause.to_string(),
        }
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

    fn is_triggered(&self, when: &When, view: &View, since: Instant) -> bool {
        // What was seen before the last strike says nothing about what it led to.
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
            // Refused before the run.
            When::FaultPoint { .. } => false,
        }
    }

    /// Warm-up, fire, heal, drain. Everything that goes wrong is noted on the way.
    fn go(&mut self) {
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
        let mut since = Instant::now();
        for (index, fault) in self.plan.faults.iter().enumerate() {
            let armed = Instant::now();
            loop {
                let (view, goes_on) = self.turn();
                if !goes_on {
                    return;
                }
                if self.is_triggered(&fault.when, &view, since) {
                    self.strike(index, fault, &view);
                    since = Instant::now();
                    break;
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
        while !self.timeline.is_empty() {
            if !self.turn().1 {
                return;
            }
        }
        self.heal();
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
            if healed.elapsed() > limit {
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
            if began.elapsed() > limit {
                self.judge.fail(
                    Invariant::L3,
                    format!("the job has not ended within {limit:?}"),
                );
                return;
            }
        }
    }

    fn strike(&mut self, index: usize, fault: &PlannedFault, view: &View) {
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
                return;
            }
        };
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
            hits_job_manager: hit.hits_job_manager,
            at_ms,
            healed_ms: is_over.then(|| self.clock.wall_ms()),
        });
        let now = Instant::now();
        for (after, step) in hit.steps {
            self.timeline.push(now + after, index, step);
        }
    }

    fn finish(mut self, options: &Options, report: &mut RunReport) {
        self.go();
        self.phase("checking");
        let view = self.watcher.view();
        report.strikes = std::mem::take(&mut self.strikes);
        let recoveries: Vec<_> = view.recoveries.values().cloned().collect();
        report.recoveries = recoveries.iter().map(|r| self.recovery_time(r)).collect();
        if self.inconclusive.is_none() {
            self.check(&view, &recoveries);
        }
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

/// Before a restart, as configured.
fn longest_delay(settings: &perennial_config::Settings) -> Duration {
    use perennial_config::RestartStrategy;
    match settings.job.restart.strategy {
        RestartStrategy::None => Duration::ZERO,
        RestartStrategy::FixedDelay { delay, .. } | RestartStrategy::FailureRate { delay, .. } => {
            delay
        }
        RestartStrategy::ExponentialDelay { max_backoff, .. } => max_backoff,
    }
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
