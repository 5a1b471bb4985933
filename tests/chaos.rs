//! A smoke of the process harness: one fixed plan for each part of the catalogue (P, A, N, O, D, T, C), against the unchanged binary and a real S3
//! server. `perennial-chaos campaign` draws thousands of others.
//!
//! Each run is judged by all invariants that its end allows; here is only which plans there are, and that they struck.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_actors::fault::Sabotage;
use perennial_chaos::plan::{
    ActorKind, Carrier, ClusterShape, DataFault, Direction, Fault, FaultPlan, Invariant, LinkFault,
    PlannedFault, Row, StoreFault, StoreRequests, StoreShape, Target, When, WorkloadPlan,
};
use perennial_chaos::process::binary;
use perennial_chaos::process::carrier::{Options, run};
use perennial_chaos::report::{Outcome, RecoveryTime, RunReport, Violation};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn fault(when: When, target: Target, what: Fault) -> PlannedFault {
    PlannedFault { when, target, what }
}

fn plan(seed: u64, job_managers: u32, events: u64, faults: Vec<PlannedFault>) -> FaultPlan {
    FaultPlan {
        seed,
        profile: "smoke".to_owned(),
        carrier: Carrier::Process,
        cluster: ClusterShape {
            job_managers,
            task_managers: 4,
            slots: 1,
            store: StoreShape::S3,
        },
        workload: WorkloadPlan {
            job: "abnormal-detection".to_owned(),
            seed,
            events,
            rate: 400,
            keys: 3,
            parallelism: Vec::new(),
        },
        settings: BTreeMap::new(),
        faults,
    }
}

/// Runs it and expects a pass in which every fault was struck.
fn passes(plan: &FaultPlan) -> RunReport {
    let mut told = Vec::new();
    let options = Options::new(binary());
    let report = run(plan, &options, &mut |p| told.push(p)).unwrap();
    let story = || {
        format!(
            "{plan}{told:#?}\n{:?}, kept in {:?}",
            report.violations, report.kept
        )
    };
    assert_eq!(report.outcome, Outcome::Pass, "{}", story());
    assert_eq!(report.strikes.len(), plan.faults.len(), "{}", story());
    for invariant in [
        Invariant::S1,
        Invariant::S2,
        Invariant::S3,
        Invariant::S4,
        Invariant::L1,
        Invariant::L3,
        Invariant::R1,
    ] {
        let times = report.checked.get(&invariant).copied().unwrap_or(0);
        assert!(times > 0, "{invariant} was not checked: {}", story());
    }
    report
}

/// P: a TaskManager dies while a checkpoint is pending, another while the job recovers from that.
#[test]
fn killed_task_managers_on_s3() {
    let kill = Fault::Kill { down: ms(500) };
    let report = passes(&plan(
        1,
        1,
        8000,
        vec![
            fault(
                When::CheckpointPending,
                Target::TaskManager(0),
                kill.clone(),
            ),
            fault(When::Recovering, Target::TaskManager(1), kill),
        ],
    ));
    assert!(
        report.recoveries.iter().any(|r| r.row.is_some()),
        "{report:?}"
    );
}

/// P: the leader is silent for longer than its lease, a standby leads, the old one wakes up and finds that out.
#[test]
fn a_frozen_leader_with_a_standby_on_s3() {
    let pause = Fault::Pause { down: ms(7000) };
    let faults = vec![fault(When::Checkpoints(1), Target::Leader, pause)];
    passes(&plan(2, 2, 9000, faults));
}

/// A: a client asks for a savepoint, and the job fails while it is being taken.
#[test]
fn a_savepoint_at_a_bad_moment_on_s3() {
    let report = passes(&plan(
        3,
        1,
        9000,
        vec![
            fault(
                When::Checkpoints(1),
                Target::UserCode,
                Fault::ClientSavepoint,
            ),
            fault(
                When::After(ms(0)),
                Target::TaskManager(2),
                Fault::Kill { down: ms(300) },
            ),
        ],
    ));
    assert_eq!(report.strikes[0].row, Row::A10);
}

/// N: bits flip, connections are reset for less and for more than the reconnect window, old beginnings are sent again.
#[test]
fn broken_links_on_s3() {
    let link = |target, what| fault(When::Checkpoints(1), target, Fault::Link(what));
    passes(&plan(
        4,
        1,
        14000,
        vec![
            link(Target::ControlLink(0), LinkFault::FlipBit),
            link(Target::DataLink(1, 2), LinkFault::FlipBit),
            link(Target::ControlLink(1), LinkFault::Reset { down: ms(200) }),
            link(Target::DataLink(2, 0), LinkFault::Replay),
        ],
    ));
}

/// N: a TaskManager hears and says nothing for longer than the heartbeat timeout, its links stay open.
#[test]
fn a_black_hole_around_a_task_manager_on_s3() {
    let hole = LinkFault::BlackHole {
        direction: Direction::Both,
        down: ms(6000),
    };
    let faults = vec![fault(
        When::Checkpoints(1),
        Target::AllLinksOf(1),
        Fault::Link(hole),
    )];
    let mut plan = plan(5, 1, 9000, faults);
    // Without a spare, so that the node has tasks.
    plan.cluster.task_managers = 3;
    let report = passes(&plan);
    assert!(
        report.recoveries.iter().any(|r| r.row == Some(Row::N3)),
        "{report:?}"
    );
}

/// O: the store throttles, does what it does not say, and says no for a while.
#[test]
fn a_bad_day_of_the_store_on_s3() {
    let store = |what| fault(When::Checkpoints(1), Target::Store, Fault::Store(what));
    passes(&plan(
        6,
        1,
        15000,
        vec![
            store(StoreFault::Answer {
                status: 503,
                percent: 50,
                requests: StoreRequests::All,
                down: ms(1500),
            }),
            store(StoreFault::LoseSuccess {
                requests: StoreRequests::Create,
                times: 2,
            }),
            store(StoreFault::Answer {
                status: 403,
                percent: 100,
                requests: StoreRequests::Put,
                down: ms(1000),
            }),
        ],
    ));
}

/// D: a node can open nothing new for a while, and finds its disk full.
#[test]
fn a_node_without_disk_and_descriptors_on_s3() {
    let data = |target, what| fault(When::Checkpoints(1), target, Fault::Data(what));
    passes(&plan(
        7,
        1,
        12000,
        vec![
            data(Target::TaskManager(0), DataFault::NoDescriptors),
            data(
                Target::TaskManager(1),
                DataFault::DiskFull { down: ms(1500) },
            ),
        ],
    ));
}

/// T: the whole machine is suspended; one recovery at most for each session that expired.
#[test]
fn a_suspended_machine_on_s3() {
    let pause = Fault::Pause { down: ms(5000) };
    let faults = vec![fault(When::Checkpoints(1), Target::AllNodes, pause)];
    passes(&plan(8, 1, 9000, faults));
}

/// C: the job goes on with another parallelism, twice.
#[test]
fn another_parallelism_on_s3() {
    let rescale = |parallelism| {
        fault(
            When::Checkpoints(1),
            Target::UserCode,
            Fault::Rescale { parallelism },
        )
    };
    passes(&plan(9, 1, 12000, vec![rescale(1), rescale(2)]));
}

/// A: faults that only the inside can make, by control message, into the unchanged binary.
#[test]
fn broken_user_code_actors_and_clocks_on_s3() {
    let inside = |target, what| fault(When::Checkpoints(1), target, what);
    let report = passes(&plan(
        10,
        1,
        12000,
        vec![
            inside(Target::UserCode, Fault::UserPanic { times: 2 }),
            inside(
                Target::TaskManager(1),
                Fault::ActorPanic(ActorKind::Subtask),
            ),
            inside(
                Target::TaskManager(0),
                Fault::ClockOffset {
                    millis: -86_400_000,
                },
            ),
        ],
    ));
    let of_user_code = |r: &RecoveryTime| r.row == Some(Row::A1);
    assert!(report.recoveries.iter().any(of_user_code), "{report:?}");
}

/// P: nodes with fault points die in the moments that hurt most: everything uploaded and nobody told, a record written and nobody told.
#[test]
fn nodes_killed_at_fault_points_on_s3() {
    let at = |site: &str, hit, target| {
        let site = site.to_owned();
        let kill = Fault::Kill { down: ms(300) };
        fault(When::FaultPoint { site, hit }, target, kill)
    };
    let report = passes(&plan(
        12,
        1,
        9000,
        vec![
            at("after-upload-before-ack", 3, Target::UserCode),
            at("after-record-before-notify", 6, Target::Leader),
        ],
    ));
    assert!(report.sites.contains_key("on-notify"), "{:?}", report.sites);
}

/// A harness is trusted when it can fail: an engine that is broken on purpose breaks the invariants that it should.
#[test]
fn a_broken_engine_is_noticed_on_s3() {
    let mut options = Options::new(binary());
    options.sabotage = vec![
        Sabotage::DeliverTwice,
        Sabotage::LeakSlot,
        Sabotage::MiscountRestarts,
    ];
    let kill = Fault::Kill { down: ms(300) };
    let faults = vec![fault(When::Checkpoints(1), Target::TaskManager(0), kill)];
    let report = run(&plan(13, 1, 4000, faults), &options, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Fail);
    for invariant in [Invariant::S2, Invariant::S5, Invariant::R1] {
        let is_it = |v: &Violation| v.invariant == invariant;
        assert!(
            report.violations.iter().any(is_it),
            "{invariant}: {:?}",
            report.violations
        );
    }
    std::fs::remove_dir_all(report.kept.unwrap()).unwrap();
}

/// Only plans that no cluster can run are errors.
#[test]
fn impossible_plans_are_refused_before_anything_starts() {
    let options = Options::new(binary());
    let kill = Fault::Kill { down: ms(1) };
    let mut unknown = plan(11, 1, 100, Vec::new());
    unknown.workload.job = "no-such-job".to_owned();
    let standby = plan(
        11,
        1,
        100,
        vec![fault(When::Running, Target::Standby, kill)],
    );
    let mut memory = plan(11, 1, 100, Vec::new());
    memory.cluster.store = StoreShape::Memory;
    let mut setting = plan(11, 1, 100, Vec::new());
    setting
        .settings
        .insert("no.such.key".to_owned(), "1".to_owned());
    for (plan, word) in [
        (unknown, "no-such-job"),
        (standby, "standby"),
        (memory, "memory"),
        (setting, "settings"),
    ] {
        let error = run(&plan, &options, &mut |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains(word), "{error:#}");
    }
}
