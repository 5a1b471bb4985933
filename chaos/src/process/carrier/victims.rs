//! Who is struck: turns a plan's target into nodes and links of the cluster that runs. Pure.

use crate::plan::{Direction, Target};

/// One link, and how the fault's "up" and "down" lie on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkVictim {
    pub(super) dialler: String,
    pub(super) server: String,
    /// The fault is seen from the dialler: its "up" is what the dialler sends.
    pub(super) is_seen_from_dialler: bool,
}

impl LinkVictim {
    /// Which ways of the link a direction means: (from the dialler, to it).
    pub(super) fn ways(&self, direction: Direction) -> (bool, bool) {
        let (up, down) = match direction {
            Direction::Up => (true, false),
            Direction::Down => (false, true),
            Direction::Both => (true, true),
        };
        if self.is_seen_from_dialler {
            (up, down)
        } else {
            (down, up)
        }
    }
}

/// The nodes that there are.
#[derive(Debug, Clone)]
pub(super) struct Nodes {
    pub(super) job_managers: Vec<String>,
    pub(super) task_managers: Vec<String>,
    /// Who leads, as far as is known.
    pub(super) leader: String,
}

impl Nodes {
    fn task_manager(&self, index: u32) -> String {
        let count = self.task_managers.len().max(1);
        let index = index as usize % count;
        self.task_managers.get(index).cloned().unwrap_or_default()
    }

    /// Processes that a target means; none for links, the store and user code.
    pub(super) fn processes(&self, target: Target) -> Vec<String> {
        match target {
            Target::Leader => vec![self.leader.clone()],
            Target::Standby => {
                let waits = |n: &&String| **n != self.leader;
                self.job_managers
                    .iter()
                    .find(waits)
                    .cloned()
                    .into_iter()
                    .collect()
            }
            Target::TaskManager(index) => vec![self.task_manager(index)],
            Target::AllTaskManagers => self.task_managers.clone(),
            Target::AllNodes => self
                .job_managers
                .iter()
                .chain(&self.task_managers)
                .cloned()
                .collect(),
            Target::ControlLink(_)
            | Target::DataLink(..)
            | Target::AllLinksOf(_)
            | Target::Store
            | Target::StoreOf(_)
            | Target::UserCode => Vec::new(),
        }
    }

    /// Links that a target means. TaskManagers dial the JobManager; a consumer dials its producer.
    pub(super) fn links(&self, target: Target) -> Vec<LinkVictim> {
        let control = |node: String, server: &String| LinkVictim {
            dialler: node,
            server: server.clone(),
            is_seen_from_dialler: true,
        };
        let data = |producer: String, consumer: String| LinkVictim {
            dialler: consumer,
            server: producer,
            is_seen_from_dialler: false,
        };
        match target {
            Target::ControlLink(index) => vec![control(self.task_manager(index), &self.leader)],
            Target::DataLink(producer, consumer) => {
                let (producer, mut consumer) =
                    (self.task_manager(producer), self.task_manager(consumer));
                if producer == consumer {
                    // A plan for more nodes than there are: the next one.
                    let next = self.task_managers.iter().find(|n| **n != producer);
                    consumer = next.cloned().unwrap_or_default();
                }
                vec![data(producer, consumer)]
            }
            Target::AllLinksOf(index) => {
                let node = self.task_manager(index);
                let others = || self.task_managers.iter().filter(|n| **n != node);
                let leaders = self.job_managers.iter().map(|j| control(node.clone(), j));
                let to_others = others().map(|other| data(node.clone(), other.clone()));
                let from_others = others().map(|other| LinkVictim {
                    is_seen_from_dialler: true,
                    ..data(other.clone(), node.clone())
                });
                leaders.chain(to_others).chain(from_others).collect()
            }
            Target::Leader
            | Target::Standby
            | Target::TaskManager(_)
            | Target::AllTaskManagers
            | Target::AllNodes
            | Target::Store
            | Target::StoreOf(_)
            | Target::UserCode => Vec::new(),
        }
    }

    /// The node whose view of the store a target means; `None`: everybody's.
    pub(super) fn of_store(&self, target: Target) -> Option<String> {
        match target {
            Target::StoreOf(index) | Target::AllLinksOf(index) => Some(self.task_manager(index)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Nodes {
        let names = |kind: &str, n| (1..=n).map(|i| format!("{kind}-{i}")).collect();
        Nodes {
            job_managers: names("jm", 2),
            task_managers: names("tm", 3),
            leader: "jm-2".to_owned(),
        }
    }

    #[test]
    fn targets_mean_the_nodes_that_there_are() {
        let nodes = nodes();
        assert_eq!(nodes.processes(Target::Leader), ["jm-2"]);
        assert_eq!(nodes.processes(Target::Standby), ["jm-1"]);
        assert_eq!(nodes.processes(Target::TaskManager(4)), ["tm-2"]);
        assert_eq!(nodes.processes(Target::AllNodes).len(), 5);
        assert!(nodes.processes(Target::Store).is_empty());
    }

    /// A black hole "from" a producer is what its consumer's connection receives.
    #[test]
    fn directions_are_seen_from_the_task_manager_and_from_the_producer() {
        let nodes = nodes();
        let control = &nodes.links(Target::ControlLink(0))[0];
        assert_eq!((&*control.dialler, &*control.server), ("tm-1", "jm-2"));
        assert_eq!(control.ways(Direction::Up), (true, false));
        let data = &nodes.links(Target::DataLink(0, 2))[0];
        assert_eq!((&*data.dialler, &*data.server), ("tm-3", "tm-1"));
        assert_eq!(data.ways(Direction::Up), (false, true));
        assert_eq!(data.ways(Direction::Both), (true, true));
    }

    #[test]
    fn an_isolated_node_loses_every_link_it_has() {
        let links = nodes().links(Target::AllLinksOf(1));
        // Both JobManagers; two others, each as producer and as consumer.
        assert_eq!(links.len(), 2 + 2 + 2);
        assert!(
            links
                .iter()
                .all(|l| l.dialler == "tm-2" || l.server == "tm-2")
        );
        for link in links {
            let from_it = link.ways(Direction::Up);
            assert_eq!(from_it, (link.dialler == "tm-2", link.server == "tm-2"));
        }
    }
}
