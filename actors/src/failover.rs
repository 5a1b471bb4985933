//! Which tasks restart together (Flink's pipelined regions). Pure.
//!
//! Invariant: the tasks to restart are closed under edges, so that every channel of a restarted task is new at both ends. All our edges
//! are pipelined, hence a region is a connected component of the graph of subtasks, and a component has no neighbours to add.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Exchange, JobGraph, SubtaskIndex, VertexId};

/// One subtask of a job, whatever its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubtaskId {
    /// The vertex.
    pub vertex: VertexId,
    /// The subtask.
    pub subtask: SubtaskIndex,
}

impl std::fmt::Display for SubtaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vertex {} subtask {}", self.vertex, self.subtask)
    }
}

/// The pipelined regions of a job.
#[derive(Debug, Clone)]
pub struct Regions {
    /// Region of each subtask, numbered by their first subtask.
    region_of: BTreeMap<SubtaskId, usize>,
    regions: Vec<BTreeSet<SubtaskId>>,
}

impl Regions {
    /// Of a validated graph.
    #[must_use]
    pub fn of(graph: &JobGraph) -> Self {
        let first_of: Vec<usize> = graph
            .vertices
            .iter()
            .scan(0, |next, vertex| {
                let first = *next;
                *next += vertex.parallelism as usize;
                Some(first)
            })
            .collect();
        let total = graph.vertices.iter().map(|v| v.parallelism as usize).sum();
        let mut sets = DisjointSets::new(total);
        for edge in &graph.edges {
            let (source, target) = (edge.source.0 as usize, edge.target.0 as usize);
            let (Some(from), Some(to)) = (graph.vertices.get(source), graph.vertices.get(target))
            else {
                continue; // Excluded by JobGraph::validate.
            };
            let (first_from, first_to) = (first_of[source], first_of[target]);
            match edge.exchange {
                Exchange::Forward => {
                    for i in 0..from.parallelism.min(to.parallelism) as usize {
                        sets.join(first_from + i, first_to + i);
                    }
                }
                Exchange::Rebalance | Exchange::Hash | Exchange::Broadcast => {
                    // All to all: joining everybody with the first of each side is the same and linear.
                    for i in 0..from.parallelism as usize {
                        sets.join(first_from + i, first_to);
                    }
                    for i in 0..to.parallelism as usize {
                        sets.join(first_from, first_to + i);
                    }
                }
            }
        }
        let mut number_of_root = BTreeMap::new();
        let mut region_of = BTreeMap::new();
        let mut regions: Vec<BTreeSet<SubtaskId>> = Vec::new();
        for (vertex, first) in graph.vertices.iter().zip(&first_of) {
            for i in 0..vertex.parallelism {
                let id = SubtaskId {
                    vertex: vertex.id,
                    subtask: SubtaskIndex(i),
                };
                let root = sets.root(first + i as usize);
                let number = *number_of_root.entry(root).or_insert_with(|| {
                    regions.push(BTreeSet::new());
                    regions.len() - 1
                });
                regions[number].insert(id);
                region_of.insert(id, number);
            }
        }
        Self { region_of, regions }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.regions.len()
    }

    /// All subtasks of the job.
    #[must_use]
    pub fn all(&self) -> BTreeSet<SubtaskId> {
        self.region_of.keys().copied().collect()
    }

    /// The subtasks that restart when these have failed: their regions. Without any, the failure is the job's: all.
    #[must_use]
    pub fn to_restart(&self, failed: &[SubtaskId]) -> BTreeSet<SubtaskId> {
        if failed.is_empty() {
            return self.all();
        }
        failed
            .iter()
            .filter_map(|id| self.region_of.get(id))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .flat_map(|number| self.regions[*number].iter().copied())
            .collect()
    }
}

/// Union-find with path halving.
struct DisjointSets(Vec<usize>);

impl DisjointSets {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn root(&mut self, mut element: usize) -> usize {
        while self.0[element] != element {
            self.0[element] = self.0[self.0[element]];
            element = self.0[element];
        }
        element
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        // The smaller root wins, so that regions are numbered in order of their first subtask.
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::graph;

    fn id(vertex: u32, subtask: u32) -> SubtaskId {
        SubtaskId {
            vertex: VertexId(vertex),
            subtask: SubtaskIndex(subtask),
        }
    }

    /// Measured on Flink 2.3.0: one failing subtask of a keyed job at parallelism 2 restarts 4 of 4 tasks.
    #[test]
    fn a_keyed_edge_makes_one_region() {
        for exchange in [Exchange::Hash, Exchange::Rebalance, Exchange::Broadcast] {
            let regions = Regions::of(&graph(&[2, 2], &[(0, 1, exchange)]));
            assert_eq!(regions.count(), 1);
            assert_eq!(regions.to_restart(&[id(1, 0)]).len(), 4);
        }
    }

    /// As in Flink, where without keyBy 1 of 2 pipelines restarts.
    #[test]
    fn forward_edges_keep_pipelines_apart() {
        let regions = Regions::of(&graph(&[3, 3], &[(0, 1, Exchange::Forward)]));
        assert_eq!(regions.count(), 3);
        assert_eq!(
            regions.to_restart(&[id(1, 1)]),
            BTreeSet::from([id(0, 1), id(1, 1)])
        );
        assert_eq!(
            regions.to_restart(&[id(1, 1), id(0, 2)]),
            BTreeSet::from([id(0, 1), id(1, 1), id(0, 2), id(1, 2)])
        );
    }

    /// A coordinator's failure belongs to no task.
    #[test]
    fn a_failure_of_the_job_restarts_everything() {
        let regions = Regions::of(&graph(&[3, 3], &[(0, 1, Exchange::Forward)]));
        assert_eq!(regions.to_restart(&[]).len(), 6);
    }

    #[test]
    fn unconnected_parts_of_a_job_are_regions_of_their_own() {
        let edges = [(0, 1, Exchange::Hash), (2, 3, Exchange::Hash)];
        let regions = Regions::of(&graph(&[2, 1, 2, 3], &edges));
        assert_eq!(regions.count(), 2);
        assert_eq!(regions.to_restart(&[id(3, 2)]).len(), 5);
    }

    proptest! {
        /// The closure under edges that the whole recovery relies on, on random graphs.
        #[test]
        fn what_restarts_is_closed_under_edges(
            parallelism in proptest::collection::vec(1_u32..4, 2..6),
            edges in proptest::collection::vec((0_usize..6, 0_usize..6, 0_u8..4), 0..8),
            failed in (0_usize..6, 0_u32..4),
        ) {
            let count = parallelism.len();
            let edges: Vec<(u32, u32, Exchange)> = edges
                .into_iter()
                .map(|(a, b, kind)| (a % count, b % count, kind))
                .filter(|(a, b, _)| a < b)
                .map(|(a, b, kind)| {
                    let exchange = match kind {
                        0 if parallelism[a] == parallelism[b] => Exchange::Forward,
                        0 | 1 => Exchange::Rebalance,
                        2 => Exchange::Hash,
                        _ => Exchange::Broadcast,
                    };
                    (a as u32, b as u32, exchange)
                })
                .collect();
            let graph = graph(&parallelism, &edges);
            let vertex = failed.0 % count;
            let failed = id(vertex as u32, failed.1 % parallelism[vertex]);
            let tasks = Regions::of(&graph).to_restart(&[failed]);
            prop_assert!(tasks.contains(&failed));
            for (source, target, exchange) in edges {
                for i in 0..parallelism[source as usize] {
                    for j in 0..parallelism[target as usize] {
                        if exchange != Exchange::Forward || i == j {
                            prop_assert_eq!(
                                tasks.contains(&id(source, i)),
                                tasks.contains(&id(target, j))
                            );
                        }
                    }
                }
            }
        }
    }
}
