//! Makes the faults of a plan happen to a simulated cluster.
//!
//! Invariant: says what the simulator cannot express instead of doing something else.

use std::time::Duration;

use anyhow::bail;
use perennial_actors::clock::Instant;
use perennial_actors::rpc::Weather;

use super::cluster::{Cluster, Later, Node};
use super::rival;
use super::stores::Ill;
use crate::plan::{DataFault, Direction, Fault, LinkFault, PlannedFault, StoreFault, Target, When};
use crate::workload::Break;

/// Between two restarts of a rolling one.
const ROLLING_PAUSE: Duration = Duration::from_millis(2500);

/// Whether the simulator can strike such a fault.
///
/// # Errors
/// Saying what it cannot.
pub(super) fn check(fault: &PlannedFault) -> anyhow::Result<()> {
    // What strikes there is seen to by `inside::point`.
    if let When::FaultPoint { .. } = &fault.when {
        return Ok(());
    }
    match (&fault.what, fault.target) {
        (Fault::Data(DataFault::Leftovers | DataFault::NoDescriptors), _)
        | (Fault::Store(StoreFault::Empty), _) => {
            bail!("the simulator cannot strike {:?}", fault.what)
        }
        (
            Fault::Link(_),
            Target::Leader | Target::ControlLink(_) | Target::DataLink(..) | Target::AllLinksOf(_),
        )
        | (Fault::Store(_) | Fault::Data(_), Target::Store | Target::StoreOf(_) | Target::Leader)
        | (
            Fault::UserPanic { .. }
            | Fault::UserError { .. }
            | Fault::UserStuck
            | Fault::ClientSavepoint
            | Fault::Rescale { .. },
            _,
        )
        | (
            Fault::RollingRestart
            | Fault::ActorPanic(_)
            | Fault::SlowHandler { .. }
            | Fault::NoHeartbeats { .. }
            | Fault::ClockOffset { .. },
            _,
        ) => Ok(()),
        (Fault::Link(_) | Fault::Store(_) | Fault::Data(_), target) => {
            bail!("the simulator cannot strike {:?} on {target:?}", fault.what)
        }
        (
            Fault::Kill { .. }
            | Fault::Pause { .. }
            | Fault::Terminate { .. }
            | Fault::Starve { .. },
            target,
        ) => match target {
            Target::Leader
            | Target::Standby
            | Target::TaskManager(_)
            | Target::AllTaskManagers
            | Target::AllNodes => Ok(()),
            _ => bail!("the simulator cannot strike {:?} on {target:?}", fault.what),
        },
    }
}

/// Whether a client orders it by control message.
pub(super) fn is_by_message(fault: &Fault) -> bool {
    match fault {
        Fault::ActorPanic(_)
        | Fault::SlowHandler { .. }
        | Fault::NoHeartbeats { .. }
        | Fault::ClockOffset { .. }
        | Fault::UserStuck => true,
        Fault::Kill { .. }
        | Fault::Pause { .. }
        | Fault::Terminate { .. }
        | Fault::RollingRestart
        | Fault::Starve { .. }
        | Fault::Link(_)
        | Fault::Store(_)
        | Fault::Data(_)
        | Fault::UserPanic { .. }
        | Fault::UserError { .. }
        | Fault::ClientSavepoint
        | Fault::Rescale { .. } => false,
    }
}

impl Cluster {
    /// Makes a fault happen; says who is hit. What a client does is the observer's business.
    pub(super) fn strike(&mut self, fault: &PlannedFault) -> String {
        let now = Instant::now();
        let nodes = self.nodes(fault.target);
        match &fault.what {
            Fault::Kill { down } => {
                for node in &nodes {
                    self.kill(*node, *down, "killed");
                }
            }
            Fault::Pause { down } => {
                for node in &nodes {
                    self.pause(*node, now + *down);
                }
            }
            Fault::Terminate { down } => {
                for node in &nodes {
                    self.terminate(*node, *down);
                }
            }
            Fault::RollingRestart => {
                for machine in 0..self.task_managers.len() {
                    let at = now + ROLLING_PAUSE * u32::try_from(machine).unwrap_or(0);
                    self.later.push((at, Later::Terminate(machine)));
                }
            }
            Fault::Starve { percent, down } => {
                for node in &nodes {
                    let id = self.names(*node).1;
                    self.stepper.starve(&id, *percent, now + *down);
                }
            }
            Fault::Link(link) => {
                for (a, b) in self.links(fault.target) {
                    self.strike_link(link, &a, &b, now);
                }
                if let Target::AllLinksOf(machine) = fault.target
                    && let LinkFault::BlackHole { down, .. } = link
                {
                    let node = self.task_manager(machine).1;
                    let silence = StoreFault::Silence { down: *down };
                    self.stores
                        .ail(Some(node), Ill::Store(silence), now + *down, u32::MAX);
                }
            }
            Fault::Store(store) => self.strike_store(store, fault.target, now),
            Fault::Data(data) => self.strike_data(data, fault.target, now),
            Fault::UserPanic { times } => self.fuse.light(Break::Panic, *times),
            Fault::UserError {
                times,
                is_unrecoverable,
            } => {
                let is_unrecoverable = *is_unrecoverable;
                self.fuse.light(Break::Error { is_unrecoverable }, *times);
            }
            // A client orders these; what they do ends by itself.
            Fault::SlowHandler { down, .. } | Fault::NoHeartbeats { down } => {
                self.later.push((now + *down, Later::Over));
            }
            Fault::ActorPanic(_)
            | Fault::ClockOffset { .. }
            | Fault::UserStuck
            | Fault::ClientSavepoint
            | Fault::Rescale { .. } => {}
        }
        match nodes.as_slice() {
            [] => format!("{:?}", fault.target),
            nodes => nodes
                .iter()
                .map(|node| self.names(*node).0)
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// Nodes that a fault there hits, and those at the ends of its links.
    pub(super) fn hit_by(&self, target: Target) -> Vec<String> {
        let nodes = self.nodes(target);
        let mut names: Vec<String> = nodes.iter().map(|node| self.names(*node).0).collect();
        names.extend(self.links(target).into_iter().flat_map(|(a, b)| [a, b]));
        if let Target::StoreOf(machine) = target {
            names.push(self.task_manager(machine).1);
        }
        names
    }

    fn task_manager(&self, machine: u32) -> (usize, String) {
        let machine = machine as usize % self.task_managers.len();
        (machine, self.task_managers[machine].name().to_owned())
    }

    fn nodes(&self, target: Target) -> Vec<Node> {
        let task_managers = (0..self.task_managers.len()).map(Node::TaskManager);
        match target {
            Target::Leader => self.leading().map(Node::JobManager).into_iter().collect(),
            Target::Standby => {
                let leading = self.leading();
                (0..self.job_managers.len())
                    .filter(|m| Some(*m) != leading)
                    .take(1)
                    .map(Node::JobManager)
                    .collect()
            }
            Target::TaskManager(machine) => vec![Node::TaskManager(self.task_manager(machine).0)],
            Target::AllTaskManagers => task_managers.collect(),
            Target::AllNodes => (0..self.job_managers.len())
                .map(Node::JobManager)
                .chain(task_managers)
                .collect(),
            Target::ControlLink(_)
            | Target::DataLink(..)
            | Target::AllLinksOf(_)
            | Target::Store
            | Target::StoreOf(_)
            | Target::UserCode => Vec::new(),
        }
    }

    /// Pairs of nodes, the TaskManager or the producer first.
    fn links(&self, target: Target) -> Vec<(String, String)> {
        let names = self.task_managers.iter().map(|m| m.name().to_owned());
        let leader = self
            .leading()
            .map(|machine| self.job_managers[machine].name().to_owned());
        match target {
            Target::ControlLink(machine) => leader
                .map(|leader| (self.task_manager(machine).1, leader))
                .into_iter()
                .collect(),
            Target::Leader => match leader {
                Some(leader) => names.map(|name| (name, leader.clone())).collect(),
                None => Vec::new(),
            },
            Target::DataLink(a, b) => {
                let pair = (self.task_manager(a).1, self.task_manager(b).1);
                (pair.0 != pair.1).then_some(pair).into_iter().collect()
            }
            Target::AllLinksOf(machine) => {
                let node = self.task_manager(machine).1;
                let job_managers = self.job_managers.iter().map(|m| m.name().to_owned());
                names
                    .chain(job_managers)
                    .filter(|other| *other != node)
                    .map(|other| (node.clone(), other))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn strike_link(&mut self, link: &LinkFault, a: &str, b: &str, now: Instant) {
        match link {
            LinkFault::Reset { down } => {
                self.network.cut(a, b);
                self.silence(a, b, now + *down);
                self.silence(b, a, now + *down);
            }
            LinkFault::BlackHole { direction, down } => {
                if *direction != Direction::Down {
                    self.silence(a, b, now + *down);
                }
                if *direction != Direction::Up {
                    self.silence(b, a, now + *down);
                }
            }
            LinkFault::HalfOpen { down } => {
                let (gone, other) = if self.dice.u64() & 1 == 0 {
                    (a, b)
                } else {
                    (b, a)
                };
                self.network.half_open(gone, other);
                self.silence(a, b, now + *down);
                self.silence(b, a, now + *down);
            }
            LinkFault::Latency {
                delay,
                jitter,
                down,
            } => {
                let weather = Weather {
                    delay: *delay,
                    jitter: *jitter,
                    ..Weather::default()
                };
                self.set_weather(a, b, weather, now + *down);
            }
            LinkFault::Bandwidth {
                bytes_per_second,
                down,
            } => {
                let weather = Weather {
                    bytes_per_second: *bytes_per_second,
                    ..Weather::default()
                };
                self.set_weather(a, b, weather, now + *down);
            }
            LinkFault::Slice { down } => {
                let weather = Weather {
                    is_sliced: true,
                    ..Weather::default()
                };
                self.set_weather(a, b, weather, now + *down);
            }
            LinkFault::FlipBit => {
                let (from, to) = if self.dice.u64() & 1 == 0 {
                    (a, b)
                } else {
                    (b, a)
                };
                self.network.flip_bit(from, to);
            }
            LinkFault::Replay => {
                let there = self.network.replay(a, b);
                let back = self.network.replay(b, a);
                self.trace
                    .line(format_args!("replay: {there} there, {back} back"));
            }
            LinkFault::Flap { times, every } => {
                for turn in 0..*times {
                    let pair = (a.to_owned(), b.to_owned());
                    self.later
                        .push((now + *every * turn, Later::Cut(pair.0, pair.1)));
                }
            }
        }
    }

    fn set_weather(&mut self, a: &str, b: &str, weather: Weather, until: Instant) {
        for (from, to) in [(a, b), (b, a)] {
            self.network.set_weather(from, to, weather);
            self.later
                .push((until, Later::Calm(from.to_owned(), to.to_owned())));
        }
    }

    fn silence(&mut self, from: &str, to: &str, until: Instant) {
        self.network.silence(from, to);
        self.later
            .push((until, Later::Unsilence(from.to_owned(), to.to_owned())));
    }

    fn caller(&self, target: Target) -> Option<String> {
        match target {
            Target::StoreOf(machine) => Some(self.task_manager(machine).1),
            Target::Leader => self
                .leading()
                .map(|m| self.job_managers[m].name().to_owned()),
            _ => None,
        }
    }

    fn strike_store(&mut self, fault: &StoreFault, target: Target, now: Instant) {
        const LONG: Duration = Duration::from_secs(3600);
        let (down, times) = match fault {
            StoreFault::Answer { down, .. }
            | StoreFault::Silence { down }
            | StoreFault::SlowBody { down, .. }
            | StoreFault::NoDelete { down } => (*down, u32::MAX),
            StoreFault::CutBody { times } | StoreFault::LoseSuccess { times, .. } => (LONG, *times),
            StoreFault::LateWrite { .. } => (LONG, 1),
            StoreFault::StaleList { down } => {
                self.stores.freeze_listings(true);
                self.later.push((now + *down, Later::FreshListings));
                return;
            }
            StoreFault::MissingObject | StoreFault::CorruptObject | StoreFault::TruncatedObject => {
                let die = self.dice.u64();
                let done = rival::damage(&self.stores, fault, die);
                if let Some((directory, key)) = &done {
                    let job = directory.rsplit('/').next().unwrap_or_default();
                    self.history().harm(job, key);
                }
                self.trace.line(format_args!("damaged: {done:?}"));
                return;
            }
            StoreFault::Precondition { .. } => {
                let done = rival::claim(&self.stores, &self.dice);
                self.trace.line(format_args!("a rival claims: {done:?}"));
                return;
            }
            StoreFault::Empty => return,
        };
        let node = self.caller(target);
        self.stores
            .ail(node, Ill::Store(fault.clone()), now + down, times);
    }

    fn strike_data(&mut self, fault: &DataFault, target: Target, now: Instant) {
        let (ill, down) = match fault {
            DataFault::DiskFull { down } => (Ill::Full, *down),
            DataFault::IoError { down } => (Ill::Broken, *down),
            DataFault::SlowDisk { delay, down } => (Ill::Slow(*delay), *down),
            DataFault::Leftovers | DataFault::NoDescriptors => return,
        };
        let node = self.caller(target);
        self.stores.ail(node, ill, now + down, u32::MAX);
    }
}
