//! The kinds of faults that the simulator draws, and what one of a kind is like.

use std::time::Duration;

use perennial_actors::fault::{ActorKind, FaultSite};

use super::Dice;
use crate::plan::{
    ClusterShape, DataFault, Direction, Fault, LinkFault, StoreFault, StoreRequests, Target,
};

/// Kinds of faults that the simulator draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) const KINDS: &[(Kind, u64)] = &[
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
pub(super) const TASK_SITES: &[FaultSite] = &[
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
pub(super) const LEADER_SITES: &[FaultSite] = &[
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

impl Kind {
    /// Happens for sure when its time comes: a fault point may never be come by.
    pub(super) fn is_certain(self) -> bool {
        !matches!(
            self,
            Self::PointOfTask | Self::PointOfLeader | Self::LateAcknowledgement
        )
    }

    /// No other fault can follow.
    pub(super) fn ends_the_job(self) -> bool {
        matches!(self, Self::UserPoison | Self::UserUnrecoverable)
    }
}

impl Dice {
    pub(super) fn fault(&self, kind: Kind, cluster: &ClusterShape) -> (Target, Fault) {
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
