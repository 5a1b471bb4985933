//! One recipe per row of the catalogue.

use std::time::Duration;

use super::Dice;
use crate::plan::{
    ActorKind, ClusterShape, DataFault, Direction, Fault, LinkFault, PlannedFault, Row, StoreFault,
    StoreRequests, Target, When,
};

/// Longer than the heartbeat timeout (3 s) and the look that follows it.
pub(super) const SILENT: (u64, u64) = (4500, 6500);
/// Clearly shorter.
const BRIEF: (u64, u64) = (200, 1500);

/// Rows that only a node with fault points shows.
pub(super) const AT_POINTS: &[Row] = &[Row::A3, Row::C1];
/// Where a TaskManager dies badly (row P1 of the catalogue).
const BAD_FOR_TASK_MANAGERS: &[&str] = &[
    "during-alignment",
    "after-upload-before-ack",
    "after-pre-commit",
    "before-commit",
    "on-notify",
];
/// Where a JobManager dies badly (row P3 of the catalogue).
const BAD_FOR_LEADERS: &[&str] = &[
    "with-checkpoint-pending",
    "after-manifest-before-record",
    "after-record-before-notify",
];

/// At a fault point, after the job has run for a while.
fn at(dice: &Dice, sites: &[&str]) -> When {
    When::FaultPoint {
        site: dice.one_of(sites).to_owned(),
        hit: dice.between(4, 16) as u32,
    }
}

/// As [`any`], or, now and then, in the worst moment.
fn worst(dice: &Dice, sites: &[&str]) -> When {
    match dice.between(0, 3) {
        0 => at(dice, sites),
        _ => any(dice),
    }
}

pub(super) fn one(when: When, target: Target, what: Fault) -> Vec<PlannedFault> {
    vec![PlannedFault { when, target, what }]
}

/// The usual trigger: when there is something to go back to.
fn any(dice: &Dice) -> When {
    match dice.between(0, 3) {
        0 => When::CheckpointPending,
        n => When::Checkpoints(n as u32),
    }
}

/// As [`any`], but never while a checkpoint may not complete.
pub(super) fn soon(dice: &Dice) -> When {
    When::Checkpoints(dice.between(1, 3) as u32)
}

pub(super) struct Nodes<'a>(pub(super) &'a Dice, pub(super) u32);

impl Nodes<'_> {
    pub(super) fn index(&self) -> u32 {
        self.0.between(0, u64::from(self.1.max(1)) - 1) as u32
    }

    pub(super) fn task_manager(&self) -> Target {
        Target::TaskManager(self.index())
    }

    pub(super) fn control(&self) -> Target {
        Target::ControlLink(self.index())
    }

    fn data(&self) -> Target {
        let from = self.index();
        Target::DataLink(from, (from + 1) % self.1.max(1))
    }

    fn link(&self) -> Target {
        match self.0.between(0, 1) {
            0 => self.control(),
            _ => self.data(),
        }
    }

    fn store(&self) -> Target {
        match self.0.between(0, 2) {
            0 => Target::StoreOf(self.index()),
            _ => Target::Store,
        }
    }
}

/// Faults of a row; empty when processes do not carry it.
pub(super) fn faults(row: Row, dice: &Dice, cluster: &ClusterShape) -> Vec<PlannedFault> {
    let nodes = Nodes(dice, cluster.task_managers);
    let millis = |(low, high): (u64, u64)| dice.millis(low, high);
    match row {
        Row::P1 => one(
            worst(dice, BAD_FOR_TASK_MANAGERS),
            nodes.task_manager(),
            kill(dice),
        ),
        Row::P2 => one(any(dice), Target::AllTaskManagers, kill(dice)),
        Row::P3 => one(worst(dice, BAD_FOR_LEADERS), Target::Leader, kill(dice)),
        Row::P4 => one(any(dice), Target::AllNodes, kill(dice)),
        Row::P5 => one(
            any(dice),
            nodes.task_manager(),
            Fault::Pause {
                down: millis(BRIEF),
            },
        ),
        Row::P6 => one(
            any(dice),
            nodes.task_manager(),
            Fault::Pause {
                down: millis(SILENT),
            },
        ),
        Row::P7 => one(
            any(dice),
            Target::Leader,
            Fault::Pause {
                down: dice.millis(6000, 9000),
            },
        ),
        Row::P8 => one(
            any(dice),
            dice.one_of(&[nodes.task_manager(), nodes.task_manager(), Target::Leader]),
            Fault::Terminate {
                down: dice.millis(100, 2000),
            },
        ),
        Row::P9 => one(
            any(dice),
            nodes.task_manager(),
            Fault::Kill {
                down: Duration::ZERO,
            },
        ),
        Row::P10 => one(
            any(dice),
            nodes.task_manager(),
            Fault::Starve {
                percent: dice.between(10, 40) as u32,
                down: dice.millis(2000, 5000),
            },
        ),
        Row::P12 => one(soon(dice), Target::AllTaskManagers, Fault::RollingRestart),
        Row::A1 => {
            let times = dice.one_of(&[1, 1, 2, 3, u32::MAX]);
            let what = match dice.between(0, 1) {
                0 => Fault::UserPanic { times },
                _ => Fault::UserError {
                    times,
                    is_unrecoverable: false,
                },
            };
            one(soon(dice), Target::UserCode, what)
        }
        Row::A2 => one(
            soon(dice),
            Target::UserCode,
            Fault::UserError {
                times: 1,
                is_unrecoverable: true,
            },
        ),
        Row::A3 => one(
            at(dice, &["on-snapshot", "on-notify"]),
            Target::UserCode,
            Fault::UserPanic { times: 1 },
        ),
        Row::C1 => one(
            at(dice, &["before-upload", "after-upload-before-ack"]),
            nodes.task_manager(),
            Fault::SlowHandler {
                actor: ActorKind::TaskManager,
                down: dice.millis(5500, 8000),
            },
        ),
        Row::A4 => {
            let (actor, target) = actor(dice, &nodes);
            one(any(dice), target, Fault::ActorPanic(actor))
        }
        // It shows when the task shall stop.
        Row::A5 => {
            let mut faults = one(soon(dice), Target::UserCode, Fault::UserStuck);
            faults.extend(one(
                When::After(Duration::ZERO),
                nodes.task_manager(),
                kill(dice),
            ));
            faults
        }
        Row::A6 => {
            let (actor, target) = actor(dice, &nodes);
            let down = dice.millis(500, 5000);
            one(any(dice), target, Fault::SlowHandler { actor, down })
        }
        Row::A8 => {
            let mut faults = one(any(dice), nodes.task_manager(), kill(dice));
            for _ in 0..dice.between(1, 2) {
                faults.extend(one(When::Recovering, nodes.task_manager(), kill(dice)));
            }
            faults
        }
        Row::A9 => one(
            soon(dice),
            Target::UserCode,
            Fault::UserPanic {
                times: dice.between(10, 16) as u32,
            },
        ),
        Row::A10 => one(
            dice.one_of(&[When::CheckpointPending, When::Checkpoints(1), When::Running]),
            Target::Leader,
            Fault::ClientSavepoint,
        ),
        Row::N1
        | Row::N2
        | Row::N3
        | Row::N4
        | Row::N5
        | Row::N6
        | Row::N7
        | Row::N8
        | Row::N9
        | Row::N10 => {
            let (target, what) = link(row, dice, &nodes);
            one(any(dice), target, what)
        }
        Row::O1 | Row::O2 | Row::O3 | Row::O7 | Row::O8 | Row::O9 | Row::O11 | Row::O12 => {
            let (target, what) = store(row, dice, &nodes);
            one(soon(dice), target, Fault::Store(what))
        }
        // Damage shows only when somebody reads it: a restore.
        Row::O4 | Row::O5 => {
            let (target, what) = store(row, dice, &nodes);
            let mut faults = one(soon(dice), target, Fault::Store(what));
            faults.extend(one(
                When::After(Duration::ZERO),
                nodes.task_manager(),
                kill(dice),
            ));
            faults
        }
        Row::D1 => data(
            dice,
            &nodes,
            DataFault::DiskFull {
                down: dice.millis(500, 3000),
            },
        ),
        Row::D4 => data(dice, &nodes, DataFault::Leftovers),
        Row::D5 => data(dice, &nodes, DataFault::NoDescriptors),
        Row::T1 => one(
            soon(dice),
            dice.one_of(&[nodes.task_manager(), Target::Leader]),
            Fault::ClockOffset {
                millis: dice.one_of(&[-86_400_000, -3_600_000, 3_600_000, 86_400_000]),
            },
        ),
        Row::T3 => one(
            any(dice),
            Target::AllNodes,
            Fault::Pause {
                down: dice.millis(1000, 8000),
            },
        ),
        Row::C4 => one(
            soon(dice),
            Target::Leader,
            Fault::Rescale {
                parallelism: dice.between(1, 3) as u32,
            },
        ),
        // Shown by tests, by the simulator, or later: the catalogue says which.
        Row::P11
        | Row::A7
        | Row::A11
        | Row::N11
        | Row::O6
        | Row::O10
        | Row::T2
        | Row::D2
        | Row::D3
        | Row::C2
        | Row::C3 => Vec::new(),
    }
}

pub(super) fn kill(dice: &Dice) -> Fault {
    Fault::Kill {
        down: dice.millis(100, 2500),
    }
}

fn data(dice: &Dice, nodes: &Nodes<'_>, what: DataFault) -> Vec<PlannedFault> {
    one(soon(dice), nodes.task_manager(), Fault::Data(what))
}

fn actor(dice: &Dice, nodes: &Nodes<'_>) -> (ActorKind, Target) {
    match dice.between(0, 6) {
        0 => (ActorKind::JobManager, Target::Leader),
        1 => (ActorKind::JobMaster, Target::Leader),
        2 => (ActorKind::CheckpointCoordinator, Target::Leader),
        3 => (ActorKind::TaskManagerPeer, nodes.task_manager()),
        4 => (ActorKind::TaskManager, nodes.task_manager()),
        5 => (ActorKind::JobManagerSession, nodes.task_manager()),
        _ => (ActorKind::Subtask, nodes.task_manager()),
    }
}

fn link(row: Row, dice: &Dice, nodes: &Nodes<'_>) -> (Target, Fault) {
    let way = || dice.one_of(&[Direction::Up, Direction::Down, Direction::Both]);
    let (target, what) = match row {
        Row::N1 => (
            nodes.control(),
            LinkFault::Reset {
                // Within the reconnect window (1 s) and beyond it.
                down: dice.millis(0, 2000),
            },
        ),
        Row::N2 if dice.between(0, 3) == 0 => {
            let down = dice.millis(SILENT.0, SILENT.1);
            return (nodes.task_manager(), Fault::NoHeartbeats { down });
        }
        Row::N2 => (
            nodes.control(),
            LinkFault::BlackHole {
                direction: way(),
                down: dice.millis(SILENT.0, SILENT.1),
            },
        ),
        Row::N3 => {
            let target = match dice.between(0, 1) {
                0 => Target::AllLinksOf(nodes.index()),
                _ => nodes.data(),
            };
            let what = match dice.between(0, 1) {
                0 => LinkFault::Reset {
                    down: dice.millis(0, 3000),
                },
                _ => LinkFault::BlackHole {
                    direction: way(),
                    down: dice.millis(1000, 6000),
                },
            };
            (target, what)
        }
        Row::N4 => (
            nodes.link(),
            LinkFault::HalfOpen {
                down: dice.millis(1000, 6000),
            },
        ),
        Row::N5 => (
            nodes.link(),
            LinkFault::Latency {
                delay: dice.millis(10, 300),
                jitter: dice.millis(0, 100),
                down: dice.millis(1000, 4000),
            },
        ),
        Row::N6 => (
            nodes.link(),
            LinkFault::Slice {
                down: dice.millis(1000, 3000),
            },
        ),
        Row::N7 => (nodes.link(), LinkFault::FlipBit),
        Row::N8 => (nodes.link(), LinkFault::Replay),
        Row::N9 => (
            nodes.data(),
            LinkFault::Bandwidth {
                bytes_per_second: dice.one_of(&[1000, 10_000, 100_000]),
                down: dice.millis(1000, 3000),
            },
        ),
        _ => (
            nodes.link(),
            LinkFault::Flap {
                times: dice.between(3, 8) as u32,
                every: dice.millis(100, 800),
            },
        ),
    };
    (target, Fault::Link(what))
}

fn store(row: Row, dice: &Dice, nodes: &Nodes<'_>) -> (Target, StoreFault) {
    let down = dice.millis(1000, 5000);
    let writes = || {
        dice.one_of(&[
            StoreRequests::Put,
            StoreRequests::Create,
            StoreRequests::Create,
        ])
    };
    match row {
        Row::O1 => (
            nodes.store(),
            StoreFault::Answer {
                status: dice.one_of(&[500, 503]),
                percent: dice.between(20, 100) as u32,
                requests: dice.one_of(&[
                    StoreRequests::All,
                    StoreRequests::Put,
                    StoreRequests::Get,
                ]),
                down,
            },
        ),
        Row::O2 => (
            nodes.store(),
            match dice.between(0, 1) {
                0 => StoreFault::Silence { down },
                _ => StoreFault::SlowBody {
                    bytes_per_second: dice.one_of(&[100, 1000, 10_000]),
                    down,
                },
            },
        ),
        Row::O3 => (
            Target::Store,
            match dice.between(0, 2) {
                0 => StoreFault::LateWrite {
                    requests: writes(),
                    delay: dice.millis(500, 5000),
                },
                _ => StoreFault::LoseSuccess {
                    requests: writes(),
                    times: dice.between(1, 4) as u32,
                },
            },
        ),
        Row::O4 => (
            Target::Store,
            match dice.between(0, 2) {
                0 => StoreFault::CutBody {
                    times: dice.between(1, 3) as u32,
                },
                1 => StoreFault::CorruptObject,
                _ => StoreFault::TruncatedObject,
            },
        ),
        Row::O5 => (Target::Store, StoreFault::MissingObject),
        Row::O7 => (Target::Store, StoreFault::StaleList { down }),
        Row::O8 => (
            nodes.store(),
            StoreFault::Answer {
                status: 403,
                percent: 100,
                requests: StoreRequests::All,
                down,
            },
        ),
        Row::O9 => (Target::Store, StoreFault::Precondition { times: 1 }),
        Row::O11 => (Target::Store, StoreFault::Empty),
        _ => (Target::Store, StoreFault::NoDelete { down }),
    }
}
