//! Several faults that belong together: the combinations that pay most, and the storm.

use super::Dice;
use super::recipes::{self, Nodes, SILENT, kill, one, soon};
use crate::plan::{
    ClusterShape, Direction, Fault, LinkFault, PlannedFault, Row, StoreFault, StoreRequests,
    Target, When,
};

/// Faults that pay most together.
pub(super) fn combination(dice: &Dice, cluster: &ClusterShape) -> Vec<PlannedFault> {
    let nodes = Nodes(dice, cluster.task_managers);
    let victim = nodes.index();
    let begin = soon(dice);
    let fault = |when, target, what| PlannedFault { when, target, what };
    let slow = || {
        Fault::Store(StoreFault::SlowBody {
            bytes_per_second: 1000,
            down: dice.millis(1000, 3000),
        })
    };
    match dice.between(0, 5) {
        // A zombie that wakes behind a black hole.
        0 => vec![
            fault(
                begin,
                Target::TaskManager(victim),
                Fault::Pause {
                    down: dice.millis(SILENT.0, SILENT.1),
                },
            ),
            fault(
                When::Recovering,
                Target::ControlLink(victim),
                Fault::Link(LinkFault::BlackHole {
                    direction: Direction::Both,
                    down: dice.millis(2000, 5000),
                }),
            ),
        ],
        // The leader is lost while the store throttles.
        1 => vec![
            fault(
                begin,
                Target::Store,
                Fault::Store(StoreFault::Answer {
                    status: 503,
                    percent: dice.between(30, 70) as u32,
                    requests: StoreRequests::All,
                    down: dice.millis(2000, 5000),
                }),
            ),
            fault(When::CheckpointPending, Target::Leader, kill(dice)),
        ],
        // A slow restore that fails late.
        2 => vec![
            fault(begin, Target::TaskManager(victim), kill(dice)),
            fault(When::Recovering, Target::Store, slow()),
            fault(When::Recovering, nodes.task_manager(), kill(dice)),
        ],
        // A kill right behind a rescale.
        3 => vec![
            fault(
                begin,
                Target::Leader,
                Fault::Rescale {
                    parallelism: dice.between(1, 3) as u32,
                },
            ),
            fault(When::Running, nodes.task_manager(), kill(dice)),
        ],
        // A partition heals within a restart storm.
        4 => vec![
            fault(
                begin,
                Target::AllLinksOf(victim),
                Fault::Link(LinkFault::BlackHole {
                    direction: Direction::Both,
                    down: dice.millis(3500, 5000),
                }),
            ),
            fault(
                When::Recovering,
                Target::UserCode,
                Fault::UserPanic {
                    times: dice.between(10, 12) as u32,
                },
            ),
        ],
        // Every conditional create loses its answer, and somebody dies.
        _ => vec![
            fault(
                begin,
                Target::Store,
                Fault::Store(StoreFault::LoseSuccess {
                    requests: StoreRequests::Create,
                    times: dice.between(10, 20) as u32,
                }),
            ),
            fault(
                When::CheckpointPending,
                dice.one_of(&[nodes.task_manager(), Target::Leader]),
                kill(dice),
            ),
        ],
    }
}

/// Kills and failures while the job still recovers from those before.
pub(super) fn storm(dice: &Dice, cluster: &ClusterShape) -> Vec<PlannedFault> {
    let nodes = Nodes(dice, cluster.task_managers);
    let mut faults = one(soon(dice), nodes.task_manager(), kill(dice));
    if dice.between(0, 1) == 0 {
        faults.extend(recipes::faults(Row::A9, dice, cluster));
    }
    for _ in 0..dice.between(4, 7) {
        let when = dice.one_of(&[When::Recovering, When::Running, When::Running]);
        let (target, what) = match dice.between(0, 5) {
            0 => (Target::Leader, kill(dice)),
            1 => (
                nodes.control(),
                Fault::Link(LinkFault::Reset {
                    down: dice.millis(0, 1500),
                }),
            ),
            _ => (nodes.task_manager(), kill(dice)),
        };
        faults.push(PlannedFault { when, target, what });
    }
    faults
}
