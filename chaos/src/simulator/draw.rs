//! What a seed means: the cluster's shape, the workload, and which faults come when. Pure.
//!
//! Each run draws its own rates (swarm testing): most kinds of faults are off in a given run and some are frequent, so that runs differ
//! in kind and not only in order.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_actors::entropy::Entropy;
use perennial_actors::fault::{ActorKind, FaultSite};

use crate::plan::{
    Carrier, ClusterShape, DataFault, Direction, Fault, FaultPlan, LinkFault, PlannedFault,
    StoreFault, StoreRequests, StoreShape, Target, When, WorkloadPlan,
};
use crate::workload::{LANES, NAME};

/// Faults of one run.
const FAULTS_MIN: u64 = 2;
/// See [`FAULTS_MIN`].
const FAULTS_MAX: u64 = 6;
/// One kind in so many is on in a run.
const KINDS_ON_ONE_IN: u64 = 3;

/// Kinds of faults that the simulator draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    KillTaskManager,
    KillAllTaskManagers,
    KillLeader,
    KillStandby,
    PowerCut,
    RestartAtOnce,
    PauseTaskManager,
    PauseLeader,
    PauseAll,
    Terminate,
    RollingRestart,
    Starve,
    UserFunction,
    UserStorm,
    UserPoison,
    UserUnrecoverable,
    UserStuck,
    Client,
    Rescale,
    ControlReset,
    ControlSilence,
    LeaderSilence,
    DataReset,
    DataSilence,
    Isolate,
    HalfOpen,
    Latency,
    Slice,
    FlipBit,
    Replay,
    Flap,
    StoreAnswers,
    StoreForbids,
    StoreSilence,
    StoreOfOne,
    StoreOfLeader,
    SlowBody,
    CutBody,
    LoseSuccess,
    LateWrite,
    StaleList,
    Damage,
    Rival,
    NoDelete,
    DiskFull,
    IoError,
    SlowDisk,
    Clock,
    ActorPanic,
    SlowActor,
    NoHeartbeats,
    PointOfTask,
    PointOfLeader,
    LateAcknowledgement,
}

/// With how often each is drawn among the others.
const KINDS: &[(Kind, u64)] = &[
    (Kind::KillTaskManager, 6),
    (Kind::KillAllTaskManagers, 2),
    (Kind::KillLeader, 5),
    (Kind::KillStandby, 1),
    (Kind::PowerCut, 2),
    (Kind::RestartAtOnce, 2),
    (Kind::PauseTaskManager, 4),
    (Kind::PauseLeader, 3),
    (Kind::PauseAll, 1),
    (Kind::Terminate, 2),
    (Kind::RollingRestart, 2),
    (Kind::Starve, 2),
    (Kind::UserFunction, 4),
    (Kind::UserStorm, 2),
    (Kind::UserPoison, 1),
    (Kind::UserUnrecoverable, 1),
    (Kind::UserStuck, 1),
    (Kind::Client, 3),
    (Kind::Rescale, 3),
    (Kind::ControlReset, 3),
    (Kind::ControlSilence, 3),
    (Kind::LeaderSilence, 2),
    (Kind::DataReset, 3),
    (Kind::DataSilence, 3),
    (Kind::Isolate, 3),
    (Kind::HalfOpen, 2),
    (Kind::Latency, 3),
    (Kind::Slice, 1),
    (Kind::FlipBit, 3),
    (Kind::Replay, 2),
    (Kind::Flap, 2),
    (Kind::StoreAnswers, 4),
    (Kind::StoreForbids, 2),
    (Kind::StoreSilence, 2),
    (Kind::StoreOfOne, 2),
    (Kind::StoreOfLeader, 2),
    (Kind::SlowBody, 2),
    (Kind::CutBody, 2),
    (Kind::LoseSuccess, 4),
    (Kind::LateWrite, 3),
    (Kind::StaleList, 2),
    (Kind::Damage, 2),
    (Kind::Rival, 2),
    (Kind::NoDelete, 2),
    (Kind::DiskFull, 2),
    (Kind::IoError, 2),
    (Kind::SlowDisk, 2),
    (Kind::Clock, 2),
    (Kind::ActorPanic, 3),
    (Kind::SlowActor, 2),
    (Kind::NoHeartbeats, 2),
    (Kind::PointOfTask, 6),
    (Kind::PointOfLeader, 5),
    (Kind::LateAcknowledgement, 2),
];

/// Fault points that a TaskManager and its tasks come by.
const TASK_SITES: &[FaultSite] = &[
    FaultSite::OnDeploy,
    FaultSite::BeforeRestore,
    FaultSite::DuringRestore,
    FaultSite::OnOpen,
    FaultSite::OnFirstRecord,
    FaultSite::OnTimer,
    FaultSite::DuringAlignment,
    FaultSite::OnSnapshot,
    FaultSite::AfterPreCommit,
    FaultSite::BeforeUpload,
    FaultSite::AfterUploadBeforeAck,
    FaultSite::OnNotify,
    FaultSite::BeforeCommit,
    FaultSite::OnClose,
];
/// Those that a JobManager comes by.
const LEADER_SITES: &[FaultSite] = &[
    FaultSite::BeforeEpochClaim,
    FaultSite::OnRegister,
    FaultSite::OnFailover,
    FaultSite::OnRestoreChoice,
    FaultSite::BeforeDeploy,
    FaultSite::AfterDeploy,
    FaultSite::WithCheckpointPending,
    FaultSite::OnSavepoint,
    FaultSite::AfterManifestBeforeRecord,
    FaultSite::AfterRecordBeforeNotify,
];
const ACTORS: &[ActorKind] = &[
    ActorKind::JobManager,
    ActorKind::JobMaster,
    ActorKind::CheckpointCoordinator,
    ActorKind::TaskManagerPeer,
    ActorKind::TaskManager,
    ActorKind::JobManagerSession,
    ActorKind::Subtask,
];

struct Dice(Entropy);

impl Dice {
    fn below(&self, n: u64) -> u64 {
        self.0.u64() % n.max(1)
    }

    fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn u32(&self, low: u32, high: u32) -> u32 {
        u32::try_from(self.between(u64::from(low), u64::from(high))).unwrap_or(low)
    }

    fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    fn one_of<T: Copy>(&self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    fn is_one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The plan of a seed.
#[must_use]
pub fn draw(seed: u64) -> FaultPlan {
    let dice = Dice(Entropy::seeded(seed));
    let slots = dice.u32(1, 2);
    // Every subtask of the source needs a slot; sometimes there is a spare one.
    let needed = if slots == 1 { LANES } else { LANES.div_ceil(2) };
    let cluster = ClusterShape {
        job_managers: dice.one_of(&[1, 1, 2, 2, 3]),
        task_managers: needed + dice.u32(0, 1),
        slots,
        store: StoreShape::Memory,
    };
    let workload = WorkloadPlan {
        job: NAME.to_owned(),
        seed: dice.0.u64(),
        events: dice.between(600, 1500),
        rate: dice.one_of(&[100, 150, 250]),
        keys: dice.between(5, 40),
        parallelism: vec![dice.u32(1, 3), dice.u32(1, 2)],
    };
    let weights = dice.swarm();
    let mut settings = dice.settings(&cluster);
    let length = 1000 * workload.events / u64::from(LANES) / workload.rate;
    let faults = dice.faults(&cluster, &weights, length);
    dice.suit(&mut settings, &faults);
    FaultPlan {
        seed,
        profile: "simulator".to_owned(),
        carrier: Carrier::Simulator,
        cluster,
        workload,
        settings,
        faults,
    }
}

impl Dice {
    /// Rates of this run.
    fn swarm(&self) -> Vec<(Kind, u64)> {
        let mut weights: Vec<(Kind, u64)> = KINDS
            .iter()
            .filter(|_| self.is_one_in(KINDS_ON_ONE_IN))
            .map(|(kind, weight)| (*kind, weight * self.between(1, 4)))
            .collect();
        if weights.is_empty() {
            weights = KINDS.to_vec();
        }
        weights
    }

    fn settings(&self, cluster: &ClusterShape) -> BTreeMap<String, String> {
        let high_availability = if cluster.job_managers > 1 {
            "file"
        } else {
            self.one_of(&["none", "file"])
        };
        let mut settings = BTreeMap::new();
        let mut set = |key: &str, value: &str| {
            settings.insert(key.to_owned(), value.to_owned());
        };
        set("high-availability.type", high_availability);
        let checkpointing = [
            ("interval", self.one_of(&["200ms", "300ms", "500ms"])),
            ("timeout", self.one_of(&["3s", "10s"])),
            ("min-pause", self.one_of(&["0s", "100ms"])),
            ("max-concurrent-checkpoints", self.one_of(&["1", "2"])),
            ("num-retained", self.one_of(&["1", "2", "3"])),
            (
                "tolerable-failed-checkpoints",
                self.one_of(&["0", "1", "1000"]),
            ),
            ("incremental", self.one_of(&["true", "false"])),
            ("data-inline-threshold", self.one_of(&["0", "512b", "20kb"])),
        ];
        for (key, value) in checkpointing {
            set(&format!("execution.checkpointing.{key}"), value);
        }
        set(
            "execution.buffer-timeout.interval",
            self.one_of(&["0ms", "10ms", "100ms"]),
        );
        let delay = self.one_of(&["50ms", "300ms", "1s"]);
        match self.below(10) {
            0 => {
                set("restart-strategy.type", "fixed-delay");
                let attempts = self.one_of(&["2", "4", "1000"]);
                set("restart-strategy.fixed-delay.attempts", attempts);
                set("restart-strategy.fixed-delay.delay", delay);
            }
            1 => {
                set("restart-strategy.type", "failure-rate");
                let most = self.one_of(&["3", "100"]);
                let key = "restart-strategy.failure-rate.max-failures-per-interval";
                set(key, most);
                set("restart-strategy.failure-rate.failure-rate-interval", "10s");
                set("restart-strategy.failure-rate.delay", delay);
            }
            _ => {
                set("restart-strategy.type", "exponential-delay");
                let initial = self.one_of(&["50ms", "100ms", "500ms"]);
                let backoff = "restart-strategy.exponential-delay.initial-backoff";
                set(backoff, initial);
                set("restart-strategy.exponential-delay.max-backoff", "2s");
                let reset = "restart-strategy.exponential-delay.reset-backoff-threshold";
                set(reset, self.one_of(&["3s", "1h"]));
            }
        }
        settings
    }

    /// Faults make sense under some settings only.
    fn suit(&self, settings: &mut BTreeMap<String, String>, faults: &[PlannedFault]) {
        let is_damaged = faults.iter().any(|f| {
            let damage = [
                StoreFault::MissingObject,
                StoreFault::CorruptObject,
                StoreFault::TruncatedObject,
            ];
            matches!(&f.what, Fault::Store(fault) if damage.contains(fault))
        });
        if is_damaged && self.is_one_in(2) {
            settings.insert("recovery.ladder.allow-repeat".into(), "true".into());
            settings.insert("execution.checkpointing.num-retained".into(), "3".into());
        }
        // What never returns is noticed only by a checkpoint that fails.
        if faults.iter().any(|f| f.what == Fault::UserStuck) {
            let key = "execution.checkpointing.tolerable-failed-checkpoints";
            settings.insert(key.to_owned(), "0".to_owned());
            settings.insert("execution.checkpointing.timeout".into(), "3s".into());
        }
        // A function that always breaks ends a job only where restarts are counted.
        let is_poison = |f: &PlannedFault| f.what == Fault::UserPanic { times: u32::MAX };
        if faults.iter().any(is_poison) {
            settings.retain(|key, _| !key.starts_with("restart-strategy."));
            settings.insert("restart-strategy.type".into(), "fixed-delay".into());
            let attempts = self.between(2, 9).to_string();
            settings.insert("restart-strategy.fixed-delay.attempts".into(), attempts);
            settings.insert("restart-strategy.fixed-delay.delay".into(), "200ms".into());
        }
    }

    fn faults(
        &self,
        cluster: &ClusterShape,
        weights: &[(Kind, u64)],
        length: u64,
    ) -> Vec<PlannedFault> {
        let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
        let count = self.between(FAULTS_MIN, FAULTS_MAX);
        let mut at = 0;
        let mut faults = Vec::new();
        for number in 0..count {
            let mut roll = self.below(total);
            let kind = weights.iter().find(|(_, weight)| {
                let is_it = roll < *weight;
                roll = roll.saturating_sub(*weight);
                is_it
            });
            let Some((kind, _)) = kind else { continue };
            // The first two come while there is input for sure.
            at += self.between(0, if number < 2 { length / 3 } else { length / 2 });
            let (target, what) = self.fault(*kind, cluster);
            let when = self.when(*kind, number, at);
            let is_last = matches!(
                kind,
                Kind::UserPoison | Kind::UserUnrecoverable | Kind::UserStuck | Kind::Rescale
            );
            faults.push(PlannedFault { when, target, what });
            if is_last && number + 1 >= FAULTS_MIN {
                break;
            }
        }
        // Nothing follows what ends a job.
        faults.sort_by_key(|f| {
            let ends = matches!(
                f.what,
                Fault::UserError {
                    is_unrecoverable: true,
                    ..
                } | Fault::UserPanic { times: u32::MAX }
            );
            u8::from(ends)
        });
        faults
    }

    fn when(&self, kind: Kind, number: u64, at: u64) -> When {
        let point = |site: FaultSite, most| When::FaultPoint {
            site: site.to_string(),
            hit: self.u32(1, most),
        };
        match kind {
            Kind::PointOfTask => return point(self.one_of(TASK_SITES), 9),
            Kind::PointOfLeader => return point(self.one_of(LEADER_SITES), 4),
            Kind::LateAcknowledgement => {
                let sites = [FaultSite::BeforeUpload, FaultSite::AfterUploadBeforeAck];
                return point(self.one_of(&sites), 9);
            }
            _ => {}
        }
        let at = Duration::from_millis(at);
        if number == 0 {
            return When::After(at);
        }
        match (kind, self.below(8)) {
            (Kind::Rescale, _) => When::Running,
            (_, 0) => When::Checkpoints(self.u32(1, 2)),
            (_, 1) => When::CheckpointPending,
            (_, 2 | 3) => When::Recovering,
            (_, 4) => When::Running,
            _ => When::After(at),
        }
    }

    fn fault(&self, kind: Kind, cluster: &ClusterShape) -> (Target, Fault) {
        let node = self.u32(0, cluster.task_managers - 1);
        let other = (node + self.u32(1, cluster.task_managers.max(2) - 1)) % cluster.task_managers;
        let (machine, control) = (Target::TaskManager(node), Target::ControlLink(node));
        let data = Target::DataLink(node, other);
        let any_link = self.one_of(&[control, data, data, Target::Leader]);
        let down = self.millis(50, 4000);
        let outage = self.millis(200, 5000);
        let requests = self.one_of(&[
            StoreRequests::All,
            StoreRequests::Put,
            StoreRequests::Create,
            StoreRequests::Get,
        ]);
        let direction = self.one_of(&[Direction::Down, Direction::Up, Direction::Both]);
        let times = self.u32(1, 4);
        match kind {
            Kind::KillTaskManager => (machine, Fault::Kill { down }),
            Kind::KillAllTaskManagers => (Target::AllTaskManagers, Fault::Kill { down }),
            Kind::KillLeader => (Target::Leader, Fault::Kill { down }),
            Kind::KillStandby => (Target::Standby, Fault::Kill { down }),
            Kind::PowerCut => (Target::AllNodes, Fault::Kill { down }),
            Kind::RestartAtOnce => (
                machine,
                Fault::Kill {
                    down: Duration::ZERO,
                },
            ),
            Kind::PauseTaskManager => (
                machine,
                Fault::Pause {
                    down: self.millis(200, 8000),
                },
            ),
            Kind::PauseLeader => (
                Target::Leader,
                Fault::Pause {
                    down: self.millis(500, 12_000),
                },
            ),
            Kind::PauseAll => (Target::AllNodes, Fault::Pause { down: outage }),
            Kind::Terminate => (
                self.one_of(&[machine, machine, Target::Leader]),
                Fault::Terminate { down },
            ),
            Kind::RollingRestart => (Target::AllTaskManagers, Fault::RollingRestart),
            Kind::Starve => (
                machine,
                Fault::Starve {
                    percent: self.u32(3, 40),
                    down: outage,
                },
            ),
            Kind::UserFunction => {
                let broken = if self.is_one_in(2) {
                    Fault::UserPanic { times }
                } else {
                    Fault::UserError {
                        times,
                        is_unrecoverable: false,
                    }
                };
                (Target::UserCode, broken)
            }
            Kind::UserStorm => (
                Target::UserCode,
                Fault::UserPanic {
                    times: self.u32(6, 15),
                },
            ),
            Kind::UserPoison => (Target::UserCode, Fault::UserPanic { times: u32::MAX }),
            Kind::UserUnrecoverable => (
                Target::UserCode,
                Fault::UserError {
                    times: 1,
                    is_unrecoverable: true,
                },
            ),
            Kind::UserStuck => (Target::UserCode, Fault::UserStuck),
            Kind::Client => (Target::Leader, Fault::ClientSavepoint),
            Kind::Rescale => (
                Target::Leader,
                Fault::Rescale {
                    parallelism: self.u32(1, 4.min(cluster.task_managers * cluster.slots)),
                },
            ),
            Kind::ControlReset => (
                control,
                Fault::Link(LinkFault::Reset {
                    down: self.millis(0, 2500),
                }),
            ),
            Kind::ControlSilence => (
                control,
                Fault::Link(LinkFault::BlackHole {
                    direction,
                    down: self.millis(500, 6000),
                }),
            ),
            Kind::LeaderSilence => (
                Target::Leader,
                Fault::Link(LinkFault::BlackHole { direction, down }),
            ),
            Kind::DataReset => (
                data,
                Fault::Link(LinkFault::Reset {
                    down: self.millis(0, 1500),
                }),
            ),
            Kind::DataSilence => (data, Fault::Link(LinkFault::BlackHole { direction, down })),
            Kind::Isolate => (
                Target::AllLinksOf(node),
                Fault::Link(LinkFault::BlackHole {
                    direction: Direction::Both,
                    down: self.millis(500, 7000),
                }),
            ),
            Kind::HalfOpen => (
                self.one_of(&[control, data]),
                Fault::Link(LinkFault::HalfOpen {
                    down: self.millis(0, 2000),
                }),
            ),
            Kind::Latency => (
                any_link,
                Fault::Link(if self.is_one_in(3) {
                    LinkFault::Bandwidth {
                        bytes_per_second: self.one_of(&[2_000, 20_000]),
                        down: outage,
                    }
                } else {
                    LinkFault::Latency {
                        delay: self.millis(10, 400),
                        jitter: self.millis(0, 300),
                        down: outage,
                    }
                }),
            ),
            Kind::Slice => (
                any_link,
                Fault::Link(LinkFault::Slice {
                    down: self.millis(200, 1500),
                }),
            ),
            Kind::FlipBit => (
                self.one_of(&[control, data]),
                Fault::Link(LinkFault::FlipBit),
            ),
            Kind::Replay => (
                self.one_of(&[control, data]),
                Fault::Link(LinkFault::Replay),
            ),
            Kind::Flap => (
                self.one_of(&[control, data]),
                Fault::Link(LinkFault::Flap {
                    times: self.u32(3, 10),
                    every: self.millis(50, 600),
                }),
            ),
            Kind::StoreAnswers => (
                Target::Store,
                Fault::Store(StoreFault::Answer {
                    status: self.one_of(&[500, 503]),
                    percent: self.u32(5, 100),
                    requests,
                    down: outage,
                }),
            ),
            Kind::StoreForbids => (
                Target::Store,
                Fault::Store(StoreFault::Answer {
                    status: 403,
                    percent: 100,
                    requests,
                    down: outage,
                }),
            ),
            Kind::StoreSilence => (
                Target::Store,
                Fault::Store(StoreFault::Silence { down: outage }),
            ),
            Kind::StoreOfOne => (
                Target::StoreOf(node),
                Fault::Store(StoreFault::Silence { down: outage }),
            ),
            Kind::StoreOfLeader => (
                Target::Leader,
                Fault::Store(StoreFault::Silence {
                    down: self.millis(1000, 12_000),
                }),
            ),
            Kind::SlowBody => (
                Target::Store,
                Fault::Store(StoreFault::SlowBody {
                    bytes_per_second: self.one_of(&[500, 4_000, 20_000]),
                    down: outage,
                }),
            ),
            Kind::CutBody => (
                Target::Store,
                Fault::Store(StoreFault::CutBody {
                    times: self.u32(1, 3),
                }),
            ),
            Kind::LoseSuccess => (
                Target::Store,
                Fault::Store(StoreFault::LoseSuccess {
                    requests: self.one_of(&[StoreRequests::Put, StoreRequests::Create]),
                    times,
                }),
            ),
            Kind::LateWrite => (
                Target::Store,
                Fault::Store(StoreFault::LateWrite {
                    requests: self.one_of(&[StoreRequests::Put, StoreRequests::Create]),
                    delay: self.millis(10, 4000),
                }),
            ),
            Kind::StaleList => (
                Target::Store,
                Fault::Store(StoreFault::StaleList { down: outage }),
            ),
            Kind::Damage => (
                Target::Store,
                Fault::Store(match self.below(3) {
                    0 => StoreFault::MissingObject,
                    1 => StoreFault::CorruptObject,
                    _ => StoreFault::TruncatedObject,
                }),
            ),
            Kind::Rival => (
                Target::Store,
                Fault::Store(StoreFault::Precondition { times: 1 }),
            ),
            Kind::NoDelete => (
                Target::Store,
                Fault::Store(StoreFault::NoDelete { down: outage }),
            ),
            Kind::DiskFull => (
                self.one_of(&[Target::Store, Target::StoreOf(node)]),
                Fault::Data(DataFault::DiskFull { down: outage }),
            ),
            Kind::IoError => (
                self.one_of(&[Target::Store, Target::StoreOf(node)]),
                Fault::Data(DataFault::IoError {
                    down: self.millis(100, 3000),
                }),
            ),
            Kind::SlowDisk => (
                self.one_of(&[Target::Store, Target::StoreOf(node)]),
                Fault::Data(DataFault::SlowDisk {
                    delay: self.millis(50, 800),
                    down: outage,
                }),
            ),
            Kind::ActorPanic => (machine, Fault::ActorPanic(self.one_of(ACTORS))),
            Kind::SlowActor => (
                machine,
                Fault::SlowHandler {
                    actor: self.one_of(ACTORS),
                    down: self.millis(100, 6000),
                },
            ),
            Kind::NoHeartbeats => (
                self.one_of(&[machine, machine, Target::Leader]),
                Fault::NoHeartbeats { down: outage },
            ),
            Kind::PointOfTask => (machine, self.breaks_there(down)),
            Kind::PointOfLeader => (Target::Leader, self.breaks_there(down)),
            Kind::LateAcknowledgement => (
                machine,
                Fault::SlowHandler {
                    actor: ActorKind::TaskManager,
                    down: self.millis(1000, 12_000),
                },
            ),
            Kind::Clock => {
                let hour = 3_600_000;
                let millis = self.one_of(&[hour, -hour, 24 * hour, -24 * hour]);
                let node = self.one_of(&[machine, Target::Leader]);
                (node, Fault::ClockOffset { millis })
            }
        }
    }

    /// What happens at a fault point.
    fn breaks_there(&self, down: Duration) -> Fault {
        match self.below(3) {
            0 => Fault::Kill { down },
            1 => Fault::UserPanic { times: 1 },
            _ => Fault::UserError {
                times: 1,
                is_unrecoverable: false,
            },
        }
    }
}
