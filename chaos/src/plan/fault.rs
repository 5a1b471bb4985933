//! What can happen.

use std::time::Duration;

pub use perennial_actors::fault::ActorKind;
use serde::{Deserialize, Serialize};

use super::{Row, Target, When, millis};

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL; a node like it starts after a while, as by a process supervisor.
    Kill {
        /// Until then.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// SIGSTOP, SIGCONT after a while.
    Pause {
        /// Until then.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// SIGTERM; a node like it starts after a while.
    Terminate {
        /// Until then.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Each TaskManager is terminated and started again, one after the other.
    RollingRestart,
    /// The node runs in short turns only.
    Starve {
        /// Share of time that it gets.
        percent: u32,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// On a link.
    Link(LinkFault),
    /// Between nodes and the object store.
    Store(StoreFault),
    /// Of local disk or descriptors.
    Data(DataFault),
    /// An actor panics.
    ActorPanic(ActorKind),
    /// An actor's handler stalls. At a fault point: the code there does, whosever it is.
    SlowHandler {
        /// Whose.
        actor: ActorKind,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// The node stops to send heartbeats, else it works.
    NoHeartbeats {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// The node's wall clock jumps.
    ClockOffset {
        /// By so many milliseconds; may be negative.
        millis: i64,
    },
    /// The user function panics at a record; each of so many attempts. At a fault point: the code there does, once.
    UserPanic {
        /// Attempts that it breaks; `u32::MAX`: each.
        times: u32,
    },
    /// The user function returns an error at a record; each of so many attempts. At a fault point: the code there does, once.
    UserError {
        /// Attempts that it breaks; `u32::MAX`: each.
        times: u32,
        /// Marked so that no restart helps.
        is_unrecoverable: bool,
    },
    /// The user function does not return.
    UserStuck,
    /// A client cancels, asks for a savepoint and cancels it, or the like, at a bad moment.
    ClientSavepoint,
    /// The job is stopped with a savepoint and goes on from it at another parallelism.
    Rescale {
        /// New parallelism.
        parallelism: u32,
    },
}

/// Failures of one record from which on it is a restart storm.
const STORM_MIN: u32 = 6;

/// What happens on a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkFault {
    /// Connections are reset; new ones are refused for a while.
    Reset {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Nothing passes, nothing is refused.
    BlackHole {
        /// Which way.
        direction: Direction,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// The peer's end is closed without a word to the other side.
    HalfOpen {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Everything comes later.
    Latency {
        /// By so much.
        #[serde(with = "millis")]
        delay: Duration,
        /// Plus up to so much.
        #[serde(with = "millis")]
        jitter: Duration,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Not more than so much passes.
    Bandwidth {
        /// Bytes per second.
        bytes_per_second: u64,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Written in pieces of one to a few bytes.
    Slice {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// One bit of what passes next is flipped.
    FlipBit,
    /// What an earlier connection carried first is sent again on a new one.
    Replay,
    /// Reset again and again.
    Flap {
        /// How often.
        times: u32,
        /// Between two.
        #[serde(with = "millis")]
        every: Duration,
    },
}

/// Of a link fault, seen from the TaskManager or, between two, from the producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Towards it.
    Down,
    /// From it.
    Up,
    /// Both.
    Both,
}

/// What happens between nodes and the object store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFault {
    /// A share of requests is answered with a status: 500, 503, 403.
    Answer {
        /// The status.
        status: u16,
        /// Share of requests.
        percent: u32,
        /// Which.
        requests: StoreRequests,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Requests are taken and never answered.
    Silence {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Bodies crawl, both ways.
    SlowBody {
        /// Bytes per second.
        bytes_per_second: u64,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// The next answers with a body end in the middle.
    CutBody {
        /// How many.
        times: u32,
    },
    /// The server does it; the answer is lost.
    LoseSuccess {
        /// Which.
        requests: StoreRequests,
        /// How many.
        times: u32,
    },
    /// A request that the client has given up on reaches the server later.
    LateWrite {
        /// Which.
        requests: StoreRequests,
        /// By so much.
        #[serde(with = "millis")]
        delay: Duration,
    },
    /// Listings show what was there before.
    StaleList {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// An object of the newest completed checkpoint is gone.
    MissingObject,
    /// A byte of an object of the newest completed checkpoint is another.
    CorruptObject,
    /// An object of the newest completed checkpoint ends early.
    TruncatedObject,
    /// A rival answers a conditional create with 412 before the writer.
    Precondition {
        /// How many.
        times: u32,
    },
    /// Everything below the job's prefix is gone.
    Empty,
    /// Deletes fail.
    NoDelete {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
}

/// Which requests a store fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreRequests {
    /// Each.
    All,
    /// Plain writes.
    Put,
    /// Conditional creates.
    Create,
    /// Completion of a multipart upload.
    CompleteMultipart,
    /// Reads.
    Get,
}

/// What happens to local disk and descriptors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFault {
    /// No space is left.
    DiskFull {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Reads and writes fail.
    IoError {
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Every call takes long.
    SlowDisk {
        /// So long.
        #[serde(with = "millis")]
        delay: Duration,
        /// For how long.
        #[serde(with = "millis")]
        down: Duration,
    },
    /// Directories of dead processes lie about.
    Leftovers,
    /// No descriptor is left.
    NoDescriptors,
}

impl Fault {
    /// The row of the catalogue that the fault belongs to, with its victim and trigger.
    #[must_use]
    pub fn row(&self, target: Target, when: &When) -> Row {
        if let When::FaultPoint { site, .. } = when
            && let Some(row) = self.row_at(site)
        {
            return row;
        }
        match self {
            Self::Kill { down } => match target {
                Target::AllTaskManagers => Row::P2,
                Target::Leader | Target::Standby => Row::P3,
                Target::AllNodes => Row::P4,
                _ if *when == When::Recovering => Row::A8,
                _ if down.is_zero() => Row::P9,
                _ => Row::P1,
            },
            Self::Pause { down } => match target {
                Target::Leader | Target::Standby => Row::P7,
                Target::AllNodes => Row::T3,
                // The default heartbeat timeout.
                _ if *down < Duration::from_secs(3) => Row::P5,
                _ => Row::P6,
            },
            Self::Terminate { .. } => Row::P8,
            Self::RollingRestart => Row::P12,
            Self::Starve { .. } => Row::P10,
            Self::Link(link) => link.row(target),
            Self::Store(store) => store.row(),
            Self::Data(data) => data.row(),
            Self::ActorPanic(_) => Row::A4,
            Self::SlowHandler { .. } => Row::A6,
            Self::NoHeartbeats { .. } => Row::N2,
            Self::ClockOffset { .. } => Row::T1,
            Self::UserPanic { times } if (STORM_MIN..u32::MAX).contains(times) => Row::A9,
            Self::UserPanic { .. } => Row::A1,
            Self::UserError {
                is_unrecoverable: true,
                ..
            } => Row::A2,
            Self::UserError { .. } => Row::A1,
            Self::UserStuck => Row::A5,
            Self::ClientSavepoint => Row::A10,
            Self::Rescale { .. } => Row::C4,
        }
    }
}

/// Fault points that only a recovery comes by.
const RECOVERY_SITES: [&str; 8] = [
    "on-failover",
    "on-restore-choice",
    "before-deploy",
    "after-deploy",
    "on-deploy",
    "before-restore",
    "during-restore",
    "on-first-record",
];
/// Where a TaskManager that is slow lets its acknowledgement come too late.
const ACKNOWLEDGEMENT_SITES: [&str; 2] = ["before-upload", "after-upload-before-ack"];

impl Fault {
    /// The row of code that breaks at a fault point; `None`: the victim decides.
    fn row_at(&self, site: &str) -> Option<Row> {
        match self {
            Self::Kill { .. } | Self::UserPanic { .. } | Self::UserError { .. }
                if RECOVERY_SITES.contains(&site) =>
            {
                Some(Row::A8)
            }
            Self::UserPanic { .. } | Self::UserError { .. } => Some(Row::A3),
            Self::SlowHandler { .. } if ACKNOWLEDGEMENT_SITES.contains(&site) => Some(Row::C1),
            _ => None,
        }
    }
}

impl LinkFault {
    fn row(&self, target: Target) -> Row {
        match self {
            _ if matches!(target, Target::AllLinksOf(_)) => Row::N3,
            Self::Reset { .. } | Self::BlackHole { .. }
                if matches!(target, Target::DataLink(..)) =>
            {
                Row::N3
            }
            Self::Reset { .. } => Row::N1,
            Self::BlackHole { .. } => Row::N2,
            Self::HalfOpen { .. } => Row::N4,
            Self::Bandwidth { .. } if matches!(target, Target::DataLink(..)) => Row::N9,
            Self::Latency { .. } | Self::Bandwidth { .. } => Row::N5,
            Self::Slice { .. } => Row::N6,
            Self::FlipBit => Row::N7,
            Self::Replay => Row::N8,
            Self::Flap { .. } => Row::N10,
        }
    }
}

impl StoreFault {
    fn row(&self) -> Row {
        match self {
            Self::Answer { status: 403, .. } => Row::O8,
            Self::Answer { .. } => Row::O1,
            Self::Silence { .. } | Self::SlowBody { .. } => Row::O2,
            Self::LoseSuccess { .. } | Self::LateWrite { .. } => Row::O3,
            Self::CutBody { .. } | Self::CorruptObject | Self::TruncatedObject => Row::O4,
            Self::MissingObject => Row::O5,
            Self::StaleList { .. } => Row::O7,
            Self::Precondition { .. } => Row::O9,
            Self::Empty => Row::O11,
            Self::NoDelete { .. } => Row::O12,
        }
    }
}

impl DataFault {
    fn row(&self) -> Row {
        match self {
            Self::DiskFull { .. } => Row::D1,
            Self::IoError { .. } => Row::D2,
            Self::SlowDisk { .. } => Row::D3,
            Self::Leftovers => Row::D4,
            Self::NoDescriptors => Row::D5,
        }
    }
}
