//! Fault points as triggers: a node with fault points stops itself where the plan says, and is struck while it stands there.
//!
//! Invariant: a point strikes once. A node that is started again before its point came has it again; one that was struck has it no more.
//! What breaks code and not a node (a panic, an error, a slow handler) happens at the point itself, without a stop.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use perennial_actors::fault::{FaultAction, FaultPointSpec, FaultScope, FaultSite, Hits};

use super::Run;
use super::watch::View;
use crate::node::sites;
use crate::plan::{Fault, FaultPlan, PlannedFault, Target, When};
use crate::process::Signal;
use crate::process::resources::is_stopped;

/// Hits in a row at which one fault may break code.
const TIMES_MAX: u32 = 20;

/// All points of a run.
#[derive(Debug, Default)]
pub(super) struct Points {
    armed: Vec<Point>,
    /// How far each node's log has been read.
    logs: BTreeMap<String, Log>,
    /// It is too late for those that have not come.
    are_given_up: bool,
}

/// One node that has a point.
#[derive(Debug)]
struct Point {
    fault: usize,
    node: String,
    specs: Vec<FaultPointSpec>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waits,
    /// The log says that it struck; the node is about to stand still.
    Stops,
    Done,
}

#[derive(Debug, Default)]
struct Log {
    offset: u64,
    /// A line that is not complete yet.
    rest: String,
}

impl Points {
    /// Points of a plan on the nodes of a fresh cluster.
    ///
    /// # Errors
    /// When a site does not exist, or nobody can come by.
    pub(super) fn of(plan: &FaultPlan) -> anyhow::Result<Self> {
        let mut armed = Vec::new();
        for (fault, planned) in plan.faults.iter().enumerate() {
            let When::FaultPoint { site, hit } = &planned.when else {
                continue;
            };
            let site = FaultSite::named(site)
                .with_context(|| format!("there is no fault point `{site}`"))?;
            let nodes = who_comes_by(plan, planned.target);
            ensure!(
                !nodes.is_empty(),
                "nobody comes by {site} as {:?}",
                planned.target
            );
            for node in nodes {
                armed.push(Point {
                    fault,
                    node,
                    specs: specs(site, *hit, &planned.what),
                    state: State::Waits,
                });
            }
        }
        Ok(Self {
            armed,
            ..Self::default()
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.armed.is_empty()
    }

    /// Whether a fault waits for its point.
    pub(super) fn is_waiting(&self) -> bool {
        let has_struck = |fault| {
            let of_it = |p: &&Point| p.fault == fault;
            self.armed
                .iter()
                .filter(of_it)
                .any(|p| p.state == State::Done)
        };
        self.armed.iter().any(|point| !has_struck(point.fault))
    }

    /// Whether code of this node may break by a point, which may end it.
    pub(super) fn may_break(&self, plan: &FaultPlan, node: &str) -> bool {
        let is_it = |p: &Point| p.node == node && is_inside(&plan.faults[p.fault].what);
        self.armed.iter().any(is_it)
    }

    /// From now on nobody is struck who comes by.
    pub(super) fn give_up(&mut self) {
        self.are_given_up = true;
    }

    /// What a process of this node that starts now shall have; `None`: nothing.
    pub(super) fn of_node(&self, node: &str) -> Option<String> {
        self.texts(node, |_| true)
    }

    /// As [`of_node`](Self::of_node), for its first process: what it comes by before there is a job waits for the next.
    pub(super) fn of_first(&self, node: &str) -> Option<String> {
        self.texts(node, |site| {
            !matches!(site, FaultSite::BeforeEpochClaim | FaultSite::OnRegister)
        })
    }

    fn texts(&self, node: &str, is_wanted: impl Fn(FaultSite) -> bool) -> Option<String> {
        let is_armed = |p: &&Point| {
            let comes = p.specs.first().is_some_and(|spec| is_wanted(spec.site));
            p.node == node && p.state == State::Waits && !self.are_given_up && comes
        };
        let texts: Vec<String> = self
            .armed
            .iter()
            .filter(is_armed)
            .flat_map(|p| p.specs.iter().map(ToString::to_string))
            .collect();
        (!texts.is_empty()).then(|| texts.join(";"))
    }

    /// Nodes with points.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.armed.iter().map(|point| &*point.node)
    }

    /// Marks the points that a node's log says have struck.
    fn read(&mut self, node: &str, log: &std::path::Path) {
        let Some(news) = self.logs.entry(node.to_owned()).or_default().news(log) else {
            return;
        };
        for point in &mut self.armed {
            let has_struck = |spec: &FaultPointSpec| {
                let words = format!("point={spec} ");
                news.lines()
                    .any(|l| l.contains("fault point strikes") && l.contains(&words))
            };
            if point.node == node
                && point.state == State::Waits
                && point.specs.iter().any(has_struck)
            {
                point.state = State::Stops;
            }
        }
    }
}

impl Log {
    /// Complete lines since the last look.
    fn news(&mut self, log: &std::path::Path) -> Option<String> {
        let mut file = std::fs::File::open(log).ok()?;
        file.seek(SeekFrom::Start(self.offset)).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        self.offset += bytes.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let end = self.rest.rfind('\n')? + 1;
        let tail = self.rest.split_off(end);
        Some(std::mem::replace(&mut self.rest, tail))
    }
}

/// Nodes whose code may come by for a target, in the names of a fresh cluster. Where the plan does not say which, it is the first that comes.
fn who_comes_by(plan: &FaultPlan, target: Target) -> Vec<String> {
    let count = plan.cluster.task_managers.max(1);
    let job_manager = |n: u32| format!("jobmanager-{n}");
    let task_manager = |n: u32| format!("taskmanager-{}", n % count + 1);
    match target {
        Target::Leader => vec![job_manager(1)],
        Target::Standby if plan.cluster.job_managers > 1 => vec![job_manager(2)],
        Target::Standby => Vec::new(),
        Target::TaskManager(n)
        | Target::ControlLink(n)
        | Target::DataLink(n, _)
        | Target::AllLinksOf(n)
        | Target::StoreOf(n) => vec![task_manager(n)],
        Target::AllTaskManagers | Target::UserCode => (0..count).map(task_manager).collect(),
        Target::AllNodes | Target::Store => {
            let job_managers = (1..=plan.cluster.job_managers).map(job_manager);
            job_managers.chain((0..count).map(task_manager)).collect()
        }
    }
}

fn specs(site: FaultSite, hit: u32, what: &Fault) -> Vec<FaultPointSpec> {
    let (action, times) = match what {
        Fault::UserPanic { times } => (FaultAction::Panic, *times),
        Fault::UserError { times, .. } => (FaultAction::Error, *times),
        Fault::ActorPanic(_) => (FaultAction::Panic, 1),
        Fault::SlowHandler { down, .. } => (FaultAction::Delay(*down), 1),
        _ => (FaultAction::Stop, 1),
    };
    let spec = |hits| FaultPointSpec {
        site,
        scope: FaultScope::default(),
        hits,
        action,
    };
    match times {
        u32::MAX => vec![spec(Hits::From(hit))],
        times => (0..times.clamp(1, TIMES_MAX))
            .map(|n| spec(Hits::Nth(hit.saturating_add(n))))
            .collect(),
    }
}

/// Whether the fault happens in the code at the point, so that nothing is left to be done from outside.
fn is_inside(what: &Fault) -> bool {
    matches!(
        what,
        Fault::UserPanic { .. }
            | Fault::UserError { .. }
            | Fault::ActorPanic(_)
            | Fault::SlowHandler { .. }
    )
}

impl Run<'_> {
    /// Strikes what waits for a point that a node has come to.
    pub(super) fn take_points(&mut self, view: &View) -> anyhow::Result<()> {
        let nodes: Vec<String> = self.points.nodes().map(str::to_owned).collect();
        for node in nodes {
            let log = self.cluster.node_mut(&node)?.log().to_owned();
            self.points.read(&node, &log);
        }
        for at in 0..self.points.armed.len() {
            let point = &self.points.armed[at];
            if point.state == State::Stops {
                let (fault, node) = (point.fault, point.node.clone());
                self.come_to(at, fault, &node, view)?;
            }
        }
        Ok(())
    }

    fn come_to(&mut self, at: usize, index: usize, node: &str, view: &View) -> anyhow::Result<()> {
        let plan = self.plan;
        let fault = &plan.faults[index];
        if is_inside(&fault.what) {
            self.points.armed[at].state = State::Done;
            if !self.is_struck(index) {
                // Whoever else comes by breaks as well.
                let of_it = |p: &&Point| p.fault == index;
                let nodes = self.points.armed.iter().filter(of_it);
                let nodes = nodes.map(|p| p.node.clone()).collect();
                self.struck_inside(index, fault, node, nodes);
            }
            return Ok(());
        }
        // It says so before it stands still.
        let is_alive = self.cluster.node_mut(node)?.exit_code()?.is_none();
        if is_alive && !is_stopped(self.cluster.node_mut(node)?.pid()) {
            return Ok(());
        }
        self.points.armed[at].state = State::Done;
        if !self.is_struck(index) && !self.points.are_given_up {
            let planned = PlannedFault {
                target: match fault.target {
                    // Whoever came first.
                    Target::UserCode => view_index(view, self, node),
                    target => target,
                },
                ..fault.clone()
            };
            self.strike(index, &planned, view);
        }
        let keeps_it = matches!(fault.what, Fault::Kill { .. } | Fault::Pause { .. })
            && self
                .struck
                .iter()
                .any(|s| s.fault == index && s.nodes.iter().any(|n| n == node));
        if !keeps_it && self.cluster.node_mut(node)?.exit_code()?.is_none() {
            self.cluster.node_mut(node)?.signal(Signal::CONT)?;
        }
        Ok(())
    }

    fn is_struck(&self, fault: usize) -> bool {
        self.strikes.iter().any(|s| s.fault == fault)
    }

    /// Starts a node again, with the points that have not come yet.
    pub(super) fn restart(&mut self, node: &str) -> anyhow::Result<()> {
        let points = self.points.of_node(node);
        self.cluster.node_mut(node)?.arm(points);
        self.cluster.restart(node)
    }

    /// How often each fault point was come by, as the nodes' logs say.
    pub(super) fn sites(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        let logs: Vec<PathBuf> = self
            .cluster
            .nodes
            .values()
            .map(|n| n.log().to_owned())
            .collect();
        for log in logs {
            let bytes = std::fs::read(log).unwrap_or_default();
            for (site, hits) in sites(&String::from_utf8_lossy(&bytes)) {
                *sum.entry(site).or_default() += hits;
            }
        }
        sum
    }
}

fn view_index(view: &View, run: &Run<'_>, node: &str) -> Target {
    let names = run.nodes(view).task_managers;
    let place = names.iter().position(|name| name == node).unwrap_or(0);
    Target::TaskManager(u32::try_from(place).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::{Carrier, ClusterShape, StoreShape, WorkloadPlan};

    fn plan(faults: Vec<PlannedFault>) -> FaultPlan {
        FaultPlan {
            seed: 1,
            profile: "test".to_owned(),
            carrier: Carrier::Process,
            cluster: ClusterShape {
                job_managers: 1,
                task_managers: 2,
                slots: 1,
                store: StoreShape::Disk,
            },
            workload: WorkloadPlan {
                job: "any".to_owned(),
                seed: 1,
                events: 1,
                rate: 1,
                keys: 1,
                parallelism: Vec::new(),
            },
            settings: BTreeMap::new(),
            faults,
        }
    }

    fn at(site: &str, hit: u32, target: Target, what: Fault) -> PlannedFault {
        let site = site.to_owned();
        PlannedFault {
            when: When::FaultPoint { site, hit },
            target,
            what,
        }
    }

    #[test]
    fn points_are_armed_on_the_nodes_that_come_by_until_they_have_struck() {
        let kill = Fault::Kill {
            down: Duration::ZERO,
        };
        let plan = plan(vec![
            at("on-notify", 3, Target::TaskManager(1), kill.clone()),
            at("on-failover", 1, Target::Leader, kill.clone()),
            at("before-epoch-claim", 1, Target::Leader, kill),
            at(
                "on-open",
                2,
                Target::UserCode,
                Fault::UserPanic { times: 2 },
            ),
        ]);
        let mut points = Points::of(&plan).unwrap();
        assert_eq!(
            points.of_node("taskmanager-2").as_deref(),
            Some("on-notify#3=stop;on-open#2=panic;on-open#3=panic")
        );
        assert_eq!(
            points.of_node("jobmanager-1").as_deref(),
            Some("on-failover#1=stop;before-epoch-claim#1=stop")
        );
        assert_eq!(
            points.of_first("jobmanager-1").as_deref(),
            Some("on-failover#1=stop")
        );
        let log = tempfile::NamedTempFile::new().unwrap();
        let line = "WARN fault point strikes point=on-notify#3=stop node=\"\" place=Node\n";
        std::fs::write(log.path(), &line[..30]).unwrap();
        points.read("taskmanager-2", log.path());
        assert!(points.of_node("taskmanager-2").unwrap().contains("notify"));
        std::fs::write(log.path(), line).unwrap();
        points.read("taskmanager-2", log.path());
        let left = points.of_node("taskmanager-2").unwrap();
        assert_eq!(left, "on-open#2=panic;on-open#3=panic");
        assert!(points.is_waiting());
    }

    #[test]
    fn sites_that_do_not_exist_and_nodes_that_are_not_there_are_refused() {
        let pause = Fault::Pause {
            down: Duration::ZERO,
        };
        let of = |fault| Points::of(&plan(vec![fault])).unwrap_err().to_string();
        let error = of(at("on-tuesday", 1, Target::Leader, pause.clone()));
        assert!(error.contains("on-tuesday"), "{error}");
        let error = of(at("on-open", 1, Target::Standby, pause));
        assert!(error.contains("nobody"), "{error}");
    }
}
