//! What a seed means: the cluster's shape, the workload, and which faults come when. Pure.

use std::time::Duration;

use perennial_actors::entropy::Entropy;

use super::workload::{LANES, Workload};

/// Faults of one run.
const FAULTS_MIN: u64 = 2;
/// See [`FAULTS_MIN`].
const FAULTS_MAX: u64 = 5;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// A TaskManager dies; another of the same name comes after a while.
    KillTaskManager {
        /// Which.
        node: usize,
        /// Until the next one starts.
        down: Duration,
    },
    /// The JobManager dies; the next one starts after a while, on the same store.
    KillJobManager {
        /// Until then.
        down: Duration,
    },
    /// The control link of a TaskManager breaks and cannot be made again for a while.
    CutControl {
        /// Which.
        node: usize,
        /// Shorter or longer than the reconnect window.
        down: Duration,
    },
    /// Control messages are held back.
    SilenceControl {
        /// Which TaskManager's.
        node: usize,
        /// Shorter or longer than the heartbeat timeout.
        down: Duration,
        /// What is held back.
        direction: Direction,
    },
    /// The data connections between two TaskManagers break.
    CutData {
        /// Two nodes.
        nodes: (usize, usize),
    },
    /// The data connections between two TaskManagers hold records back.
    SilenceData {
        /// Two nodes.
        nodes: (usize, usize),
        /// For how long.
        down: Duration,
    },
    /// The object store misbehaves.
    Storm {
        /// Share of calls.
        percent: u64,
        /// For how long.
        down: Duration,
    },
    /// The user function breaks at the next record from this one on.
    Function {
        /// Of the record.
        sequence: u64,
        /// Else it returns an error.
        panics: bool,
    },
}

/// Of a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// JobManager to TaskManager.
    Down,
    /// TaskManager to JobManager.
    Up,
    /// Both.
    Both,
}

/// Everything that a run is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Where it comes from.
    pub seed: u64,
    /// TaskManagers.
    pub task_managers: usize,
    /// Configuration that differs between runs.
    pub keys: Vec<(&'static str, String)>,
    /// What runs.
    pub workload: Workload,
    /// In order of time since the job was accepted.
    pub faults: Vec<(Duration, FaultKind)>,
}

struct Dice(Entropy);

impl Dice {
    fn below(&self, n: u64) -> u64 {
        self.0.u64() % n
    }

    fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    fn one_of<T: Copy>(&self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let dice = Dice(Entropy::seeded(seed));
        let slots = dice.between(1, 2);
        // Every subtask of the source needs a slot; sometimes there is a spare one.
        let needed = if slots == 1 { 3 } else { 2 };
        let task_managers = (needed + dice.below(2)) as usize;
        let keys = vec![
            ("taskmanager.numberOfTaskSlots", slots.to_string()),
            (
                "high-availability.type",
                dice.one_of(&["none", "file"]).to_owned(),
            ),
            (
                "execution.checkpointing.interval",
                dice.one_of(&["200ms", "500ms"]).to_owned(),
            ),
            (
                "execution.checkpointing.timeout",
                dice.one_of(&["3s", "10s"]).to_owned(),
            ),
            (
                "execution.checkpointing.min-pause",
                dice.one_of(&["0s", "100ms"]).to_owned(),
            ),
            (
                "execution.checkpointing.max-concurrent-checkpoints",
                dice.between(1, 2).to_string(),
            ),
            (
                "execution.checkpointing.num-retained",
                dice.between(1, 3).to_string(),
            ),
            (
                "execution.checkpointing.tolerable-failed-checkpoints",
                dice.one_of(&["0", "1", "1000"]).to_owned(),
            ),
            (
                "execution.checkpointing.incremental",
                dice.one_of(&["true", "false"]).to_owned(),
            ),
            (
                "execution.checkpointing.data-inline-threshold",
                dice.one_of(&["0", "512b", "20kb"]).to_owned(),
            ),
            (
                "execution.buffer-timeout.interval",
                dice.one_of(&["0ms", "10ms", "100ms"]).to_owned(),
            ),
        ];
        let workload = Workload {
            seed: dice.0.u64(),
            events: dice.between(900, 2000),
            rate: dice.one_of(&[150.0, 250.0, 400.0]),
            keys: dice.between(5, 60),
            process_parallelism: dice.between(1, 3) as u32,
            window_parallelism: dice.between(1, 2) as u32,
        };
        let length = workload.events as f64 / f64::from(LANES) / workload.rate;
        let length = Duration::from_secs_f64(length).as_millis() as u64;
        let mut faults: Vec<_> = (0..dice.between(FAULTS_MIN, FAULTS_MAX))
            .map(|_| {
                (
                    dice.millis(0, length + 500),
                    dice.fault(task_managers, &workload),
                )
            })
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            seed,
            task_managers,
            keys,
            workload,
            faults,
        }
    }
}

impl Dice {
    fn fault(&self, task_managers: usize, workload: &Workload) -> FaultKind {
        let node = self.below(task_managers as u64) as usize;
        let nodes = (node, (node + 1) % task_managers);
        match self.below(10) {
            0 | 1 => FaultKind::KillTaskManager {
                node,
                down: self.millis(50, 4000),
            },
            2 => FaultKind::KillJobManager {
                down: self.millis(50, 4000),
            },
            3 => FaultKind::CutControl {
                node,
                down: self.millis(0, 2500),
            },
            4 => FaultKind::SilenceControl {
                node,
                down: self.millis(500, 6000),
                direction: self.one_of(&[Direction::Down, Direction::Up, Direction::Both]),
            },
            5 => FaultKind::CutData { nodes },
            6 => FaultKind::SilenceData {
                nodes,
                down: self.millis(100, 4000),
            },
            7 | 8 => FaultKind::Storm {
                percent: self.between(5, 60),
                down: self.millis(200, 5000),
            },
            _ => FaultKind::Function {
                sequence: self.below(workload.events),
                panics: self.below(2) == 0,
            },
        }
    }
}
