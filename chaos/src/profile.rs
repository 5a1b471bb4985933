//! Draws plans for runs of real processes: a profile and a seed give a plan, always the same one.
//!
//! Invariant: pure. Each row that processes carry ([`crate::catalogue`]) is drawn by some seed, and [`Draw::only`] aims at rows by name.
//! Cluster, workload and settings are drawn as well: what is constant in every run is tested in one way only.

mod combined;
mod recipes;
mod settings;

use std::time::Duration;

use perennial_actors::entropy::Entropy;

use crate::catalogue::carried_by;
use crate::job::JobUnderTest;
use crate::plan::{
    Carrier, ClusterShape, Fault, FaultPlan, LinkFault, PlannedFault, Row, Section, StoreFault,
    StoreShape, When, WorkloadPlan,
};

/// Faults that a drawn plan may hold.
pub const FAULTS_MAX: usize = 12;
/// Time that a job needs without any fault: first checkpoints, and some left over for the end.
const CALM: Duration = Duration::from_secs(4);
/// Paced input for each fault, so that there is work left when it is struck.
const PER_FAULT: Duration = Duration::from_millis(2500);
/// Rows of the swarm get weights below this.
const WEIGHT_MAX: u64 = 4;

/// A way of drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// One fault, one section of the catalogue per seed (modulo 8; the last is a combination).
    Smoke,
    /// Signals to nodes.
    Process,
    /// Links between nodes.
    Network,
    /// The object store.
    Store,
    /// Actors and user code.
    Actors,
    /// Local disks, descriptors and leftovers.
    Disk,
    /// Wall clocks.
    Clock,
    /// All rows, each run with rates of its own (swarm).
    Mixed,
    /// Those that pay most together.
    Combinations,
    /// Many faults, faster than recovery.
    Storm,
}

impl Profile {
    /// All, in order.
    pub const ALL: &[Self] = &[
        Self::Smoke,
        Self::Process,
        Self::Network,
        Self::Store,
        Self::Actors,
        Self::Disk,
        Self::Clock,
        Self::Mixed,
        Self::Combinations,
        Self::Storm,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Process => "process",
            Self::Network => "network",
            Self::Store => "store",
            Self::Actors => "actors",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Mixed => "mixed",
            Self::Combinations => "combinations",
            Self::Storm => "storm",
        }
    }

    /// What it draws, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Smoke => "one fault, one section of the catalogue per seed",
            Self::Process => "signals to nodes: kill -9, freeze, SIGTERM, restarts",
            Self::Network => "links: reset, black hole, latency, flipped bits, partitions",
            Self::Store => "the object store: errors, silence, lost answers, damaged objects",
            Self::Actors => "panics and stalls of actors and user code",
            Self::Disk => "local disks, descriptors, leftovers, savepoints and rescales",
            Self::Clock => "wall clocks that jump, machines that sleep",
            Self::Mixed => "all rows, each run with rates of its own",
            Self::Combinations => "pairs of faults that pay most together",
            Self::Storm => "many faults, faster than recovery",
        }
    }

    fn sections(self) -> &'static [Section] {
        match self {
            Self::Process => &[Section::Process],
            Self::Network => &[Section::Network],
            Self::Store => &[Section::Store],
            Self::Actors => &[Section::Actor],
            Self::Disk => &[Section::Disk, Section::Configuration],
            Self::Clock => &[Section::Clock],
            Self::Smoke | Self::Mixed | Self::Combinations | Self::Storm => &[
                Section::Process,
                Section::Actor,
                Section::Network,
                Section::Store,
                Section::Disk,
                Section::Clock,
                Section::Configuration,
            ],
        }
    }

    /// The profile of a campaign's run when none is named: mostly the swarm, now and then the others.
    #[must_use]
    pub fn of_campaign(seed: u64) -> Self {
        const TURNS: &[Profile] = &[
            Profile::Process,
            Profile::Mixed,
            Profile::Network,
            Profile::Combinations,
            Profile::Mixed,
            Profile::Store,
            Profile::Process,
            Profile::Actors,
            Profile::Mixed,
            Profile::Storm,
            Profile::Disk,
            Profile::Mixed,
            Profile::Clock,
        ];
        TURNS[(seed % TURNS.len() as u64) as usize]
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |p: &&Self| p.as_str() == text;
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.as_str()).collect();
            format!("`{text}` is none of {}", names.join(", "))
        })
    }
}

/// What a drawing depends on beside the seed.
pub struct Draw<'a> {
    /// The way.
    pub profile: Profile,
    /// Rows to aim at; empty: those of the profile.
    pub only: &'a [Row],
    /// Jobs to choose from; at least one.
    pub jobs: &'a [&'a dyn JobUnderTest],
    /// Whether there is a program of the nodes that has fault points: of one's own job there is none.
    pub has_points: bool,
    /// Where checkpoints lie; on disk, rows of the object store are left out unless they are named. `None`: drawn.
    pub store: Option<StoreShape>,
}

/// Why nothing can be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// No job.
    #[error("there is no job to run")]
    NoJob,
    /// Not by processes.
    #[error("{0} is not struck in runs of processes: `list` says what shows it")]
    NotCarried(Row),
}

impl Draw<'_> {
    /// The plan of a seed.
    ///
    /// # Errors
    /// When there is no job, or a row is named that processes do not carry.
    pub fn plan(&self, seed: u64) -> Result<FaultPlan, DrawError> {
        let jobs = self.jobs;
        let Some(last) = jobs.len().checked_sub(1) else {
            return Err(DrawError::NoJob);
        };
        let carried = self.carried();
        if let Some(row) = self.only.iter().find(|row| !carried.contains(row)) {
            return Err(DrawError::NotCarried(*row));
        }
        // Each part has dice of its own, so that a change of one leaves the others' draws alone.
        let dice = |part: u64| Dice::new(seed.wrapping_mul(1009).wrapping_add(part));
        let job = jobs[dice(1).between(0, last as u64) as usize];
        let needed = job.slots();
        let mut cluster = settings::cluster(&dice(2), needed);
        let faults = self.faults(seed, &dice(3), &mut cluster);
        settings::fit(&mut cluster, &faults, self.store);
        let mut settings = settings::draw(&dice(4), &cluster, &faults);
        settings.extend(job.settings());
        let workload = workload(&dice(5), job, &faults);
        Ok(FaultPlan {
            seed,
            profile: self.profile.to_string(),
            carrier: Carrier::Process,
            cluster,
            workload,
            settings,
            faults,
        })
    }

    fn faults(&self, seed: u64, dice: &Dice, cluster: &mut ClusterShape) -> Vec<PlannedFault> {
        let rows = self.rows();
        let mut faults = Vec::new();
        match self.profile {
            _ if !self.only.is_empty() => {
                // In turn, so that a campaign of as many runs as rows has aimed at each.
                let first = self.only[(seed % self.only.len() as u64) as usize];
                faults.extend(recipes::faults(first, dice, cluster));
                for _ in 0..dice.between(0, 2) {
                    faults.extend(recipes::faults(dice.one_of(self.only), dice, cluster));
                }
            }
            Profile::Smoke => {
                let section = Self::smoke_section(seed);
                match section {
                    Some(section) => {
                        let of: Vec<Row> = rows
                            .iter()
                            .copied()
                            .filter(|row| row.section() == section)
                            .collect();
                        faults.extend(recipes::faults(dice.one_of(&of), dice, cluster));
                    }
                    None => faults.extend(combined::combination(dice, cluster)),
                }
            }
            Profile::Combinations => faults.extend(combined::combination(dice, cluster)),
            Profile::Storm => faults.extend(combined::storm(dice, cluster)),
            Profile::Mixed => {
                let weights: Vec<u64> = rows
                    .iter()
                    .map(|_| dice.between(0, 1) * dice.between(1, WEIGHT_MAX - 1))
                    .collect();
                for _ in 0..dice.between(2, 5) {
                    faults.extend(recipes::faults(
                        dice.weighted(&rows, &weights),
                        dice,
                        cluster,
                    ));
                }
            }
            _ => {
                for _ in 0..dice.between(2, 4) {
                    faults.extend(recipes::faults(dice.one_of(&rows), dice, cluster));
                }
            }
        }
        if self.only.is_empty() && self.store == Some(StoreShape::Disk) {
            faults.retain(|fault| !matches!(fault.what, Fault::Store(_)));
            if faults.is_empty() {
                faults = recipes::faults(Row::P1, dice, cluster);
            }
        }
        if !self.has_points {
            for fault in &mut faults {
                if matches!(fault.when, When::FaultPoint { .. }) {
                    fault.when = When::CheckpointPending;
                }
            }
        }
        faults.truncate(FAULTS_MAX);
        // What ends the job comes last, and once: nothing can be struck behind it.
        let (ends, mut goes_on): (Vec<_>, Vec<_>) =
            faults.into_iter().partition(|fault| ends_job(&fault.what));
        goes_on.extend(ends.into_iter().take(1));
        goes_on
    }

    fn carried(&self) -> Vec<Row> {
        carried_by(Carrier::Process)
            .filter(|row| self.has_points || !recipes::AT_POINTS.contains(row))
            .collect()
    }

    /// Rows that the profile draws.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        if !self.only.is_empty() {
            return self.only.to_vec();
        }
        let sections = self.profile.sections();
        let mut rows = self.carried();
        rows.retain(|row| sections.contains(&row.section()));
        rows
    }

    fn smoke_section(seed: u64) -> Option<Section> {
        let sections = Profile::Smoke.sections();
        sections
            .get((seed % (sections.len() as u64 + 1)) as usize)
            .copied()
    }
}

/// Whether the job is expected to end FAILED by it.
#[must_use]
pub fn ends_job(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::UserPanic { times: u32::MAX }
            | Fault::UserError {
                times: u32::MAX,
                ..
            }
            | Fault::UserError {
                is_unrecoverable: true,
                ..
            }
    )
}

fn workload(dice: &Dice, job: &dyn JobUnderTest, faults: &[PlannedFault]) -> WorkloadPlan {
    let mut workload = WorkloadPlan {
        job: job.name().to_owned(),
        seed: dice.between(1, 1 << 20),
        events: 0,
        rate: dice.one_of(&[200, 500, 1000]),
        keys: dice.one_of(&[7, 100, 1000]),
        parallelism: Vec::new(),
    };
    let faults: Duration = faults.iter().map(|f| PER_FAULT + busy(&f.what)).sum();
    let length = CALM + faults;
    let lanes = job.lanes(&workload).max(1);
    workload.events = length.as_millis() as u64 * workload.rate * lanes / 1000 + dice.between(0, 9);
    workload
}

/// How long the job goes on reading while a fault lasts.
fn busy(fault: &Fault) -> Duration {
    match fault {
        Fault::Pause { down }
        | Fault::Starve { down, .. }
        | Fault::SlowHandler { down, .. }
        | Fault::NoHeartbeats { down }
        | Fault::Link(
            LinkFault::BlackHole { down, .. }
            | LinkFault::HalfOpen { down }
            | LinkFault::Latency { down, .. }
            | LinkFault::Bandwidth { down, .. }
            | LinkFault::Slice { down },
        )
        | Fault::Store(
            StoreFault::Answer { down, .. }
            | StoreFault::Silence { down }
            | StoreFault::SlowBody { down, .. }
            | StoreFault::StaleList { down }
            | StoreFault::NoDelete { down },
        ) => *down,
        Fault::RollingRestart => Duration::from_secs(10),
        Fault::Link(LinkFault::Flap { times, every }) => *every * *times,
        _ => Duration::ZERO,
    }
}

/// Dice for plans.
struct Dice(Entropy);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Entropy::seeded(seed))
    }

    /// Both ends included.
    fn between(&self, low: u64, high: u64) -> u64 {
        low + self.0.u64() % (high - low + 1)
    }

    fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    fn one_of<T: Clone>(&self, values: &[T]) -> T {
        values[(self.0.u64() % values.len() as u64) as usize].clone()
    }

    /// Where all weights are 0, each counts.
    fn weighted<T: Copy>(&self, values: &[T], weights: &[u64]) -> T {
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return self.one_of(values);
        }
        let mut left = self.0.u64() % total;
        for (value, weight) in values.iter().zip(weights) {
            if left < *weight {
                return *value;
            }
            left -= weight;
        }
        unreachable!("the draw is below the sum of all weights")
    }
}

#[cfg(test)]
mod tests;
