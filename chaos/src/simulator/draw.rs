//! What a seed means: the cluster's shape, the workload, and which faults come when. Pure.
//!
//! Each run draws its own rates (swarm testing): most kinds of faults are off in a given run and some are frequent, so that runs differ
//! in kind and not only in order.

mod kind;

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_actors::entropy::Entropy;
use perennial_actors::fault::FaultSite;

use crate::plan::{
    Carrier, ClusterShape, Fault, FaultPlan, PlannedFault, StoreFault, StoreShape, When,
    WorkloadPlan,
};
use crate::workload::{LANES, NAME};

use kind::{KINDS, Kind, LEADER_SITES, TASK_SITES};

/// Faults of one run.
const FAULTS_MIN: u64 = 2;
/// See [`FAULTS_MIN`].
const FAULTS_MAX: u64 = 6;
/// One kind in so many is on in a run.
const KINDS_ON_ONE_IN: u64 = 3;

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
        let count = self.between(FAULTS_MIN, FAULTS_MAX);
        let mut at = 0;
        let mut faults = Vec::new();
        for number in 0..count {
            // So many of them strike, whatever becomes of the others.
            let kind = if number < FAULTS_MIN {
                let is_first = number == 0;
                self.kind(weights, |kind| {
                    kind.is_certain() && !(is_first && kind.ends_the_job())
                })
            } else {
                self.kind(weights, |_| true)
            };
            // The first two come while there is input for sure.
            at += self.between(
                0,
                if number < FAULTS_MIN {
                    length / 3
                } else {
                    length / 2
                },
            );
            let (target, what) = self.fault(kind, cluster);
            let when = self.when(kind, number, at);
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

    /// One of those that are wanted, by this run's rates or, if they have none, by those of all runs.
    fn kind(&self, weights: &[(Kind, u64)], is_wanted: impl Fn(Kind) -> bool) -> Kind {
        let wanted = |weights: &[(Kind, u64)]| -> Vec<(Kind, u64)> {
            let wanted = weights.iter().filter(|(kind, _)| is_wanted(*kind));
            wanted.copied().collect()
        };
        let mut weights = wanted(weights);
        if weights.is_empty() {
            weights = wanted(KINDS);
        }
        let mut roll = self.below(weights.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in &weights {
            if roll < *weight {
                return *kind;
            }
            roll -= weight;
        }
        Kind::KillTaskManager
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
        if number < FAULTS_MIN {
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
}
