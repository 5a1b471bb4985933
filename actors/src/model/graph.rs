//! The job as data: what the client submits, the JobManager stores and a TaskManager checks its own build of the job against.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{BuildId, EdgeId, JobId, OperatorId, VertexId};

/// How records travel along an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exchange {
    /// Subtask i to subtask i; both sides have the same parallelism.
    Forward,
    /// Round robin to all.
    Rebalance,
    /// By key group.
    Hash,
    /// Every record to all.
    Broadcast,
}

/// An operator of a vertex, in chain order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorInfo {
    /// Derived from `uid`.
    pub id: OperatorId,
    /// Set by the user, or derived from the name and position.
    pub uid: String,
    /// For people.
    pub name: String,
    /// Whether it commits output to the outside on checkpoint completion (a two-phase commit sink).
    pub is_transactional: bool,
}

/// A chain of operators that runs as one task per subtask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobVertex {
    /// Its position in [`JobGraph::vertices`].
    pub id: VertexId,
    /// For people: the operators' names joined by ` -> `.
    pub name: String,
    /// Number of subtasks, at least 1.
    pub parallelism: u32,
    /// Number of key groups, at least `parallelism`, at most 32768.
    pub max_parallelism: u32,
    /// Whether `max_parallelism` was set by the user; a derived one gives way to that of a restored snapshot.
    pub is_max_parallelism_set: bool,
    /// At least one.
    pub operators: Vec<OperatorInfo>,
}

/// Records of one vertex going to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEdge {
    /// Its position in [`JobGraph::edges`].
    pub id: EdgeId,
    /// Producer.
    pub source: VertexId,
    /// Consumer; always a later vertex, so that the graph has no cycle.
    pub target: VertexId,
    /// How records are spread.
    pub exchange: Exchange,
}

/// A job as submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobGraph {
    /// Chosen by the client.
    pub job: JobId,
    /// For people.
    pub name: String,
    /// The name under which the job function is registered in the binary.
    pub registered: String,
    /// The arguments that the job function was called with; a TaskManager calls it with the same.
    pub arguments: BTreeMap<String, String>,
    /// The build whose code the vertices need.
    pub build: BuildId,
    /// In topological order: sources first.
    pub vertices: Vec<JobVertex>,
    /// In order of ids.
    pub edges: Vec<JobEdge>,
    /// Checkpointing, restart and the like.
    pub settings: perennial_config::JobSettings,
    /// The snapshot to start from, if any.
    pub start_from: Option<StartFrom>,
}

/// A savepoint or retained checkpoint named by the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFrom {
    /// URI of the snapshot's directory or of its `_metadata`.
    pub path: String,
    /// Whether state without an operator may be dropped (`--allow-non-restored-state`).
    pub allow_non_restored_state: bool,
}

/// A graph that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Nothing to run.
    #[error("job `{0}` has no operators: call a sink on a stream before execution")]
    Empty(String),
    /// Two operators would share their state.
    #[error("two operators have the uid `{0}`: give each stateful operator its own with .uid(..)")]
    DuplicateUid(String),
    /// The parallelism, or the number of key groups that bounds it, is out of range.
    #[error(
        "vertex `{vertex}` has parallelism {parallelism} and max parallelism {max_parallelism}: need 1 <= parallelism <= max parallelism <= 32768"
    )]
    Parallelism {
        /// Its name.
        vertex: String,
        /// As given.
        parallelism: u32,
        /// As given.
        max_parallelism: u32,
    },
    /// A forward edge needs equal parallelism.
    #[error(
        "forward edge from `{from}` ({from_parallelism}) to `{to}` ({to_parallelism}) needs equal parallelism: call .rebalance() between them"
    )]
    Forward {
        /// Producer.
        from: String,
        /// Its parallelism.
        from_parallelism: u32,
        /// Consumer.
        to: String,
        /// Its parallelism.
        to_parallelism: u32,
    },
    /// The data does not describe a graph; a client of another version, or damage.
    #[error("malformed job graph: {0}")]
    Malformed(String),
}

impl JobGraph {
    /// Checks what everybody downstream relies on.
    pub fn validate(&self) -> Result<(), GraphError> {
        if self.vertices.is_empty() {
            return Err(GraphError::Empty(self.name.clone()));
        }
        let mut uids = BTreeSet::new();
        for (index, vertex) in self.vertices.iter().enumerate() {
            if vertex.id.0 as usize != index || vertex.operators.is_empty() {
                return Err(GraphError::Malformed(format!(
                    "vertex {index} has id {} and {} operators",
                    vertex.id,
                    vertex.operators.len()
                )));
            }
            if vertex.parallelism == 0
                || vertex.parallelism > vertex.max_parallelism
                || vertex.max_parallelism > 32768
            {
                return Err(GraphError::Parallelism {
                    vertex: vertex.name.clone(),
                    parallelism: vertex.parallelism,
                    max_parallelism: vertex.max_parallelism,
                });
            }
            for operator in &vertex.operators {
                if !uids.insert(operator.id) {
                    return Err(GraphError::DuplicateUid(operator.uid.clone()));
                }
            }
        }
        for (index, edge) in self.edges.iter().enumerate() {
            let (Some(source), Some(target)) = (
                self.vertices.get(edge.source.0 as usize),
                self.vertices.get(edge.target.0 as usize),
            ) else {
                return Err(GraphError::Malformed(format!(
                    "edge {index} names a vertex that is not there"
                )));
            };
            if edge.id.0 as usize != index || edge.source >= edge.target {
                return Err(GraphError::Malformed(format!(
                    "edge {index} has id {} and goes from {} to {}",
                    edge.id, edge.source, edge.target
                )));
            }
            if edge.exchange == Exchange::Forward && source.parallelism != target.parallelism {
                return Err(GraphError::Forward {
                    from: source.name.clone(),
                    from_parallelism: source.parallelism,
                    to: target.name.clone(),
                    to_parallelism: target.parallelism,
                });
            }
        }
        Ok(())
    }

    /// A fingerprint of vertices and edges: what a TaskManager rebuilds from the same arguments must have the same.
    #[must_use]
    pub fn topology_hash(&self) -> u64 {
        use sha2::{Digest, Sha256};
        // A derived max parallelism does not count: that of a restored snapshot takes its place.
        let mut vertices = self.vertices.clone();
        for vertex in &mut vertices {
            if !vertex.is_max_parallelism_set {
                vertex.max_parallelism = 0;
            }
        }
        let bytes =
            rmp_serde::to_vec(&(&vertices, &self.edges)).expect("plain data always encodes");
        let digest = Sha256::digest(&bytes);
        u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    }

    /// Slots needed: one slot holds one subtask of every vertex (Flink's default slot sharing group).
    #[must_use]
    pub fn slots_needed(&self) -> u32 {
        self.vertices
            .iter()
            .map(|v| v.parallelism)
            .max()
            .unwrap_or(0)
    }

    /// URI of the directory of this job's records and objects, `<dir>/<job-id>`.
    #[must_use]
    pub fn checkpoint_directory(&self) -> String {
        let directory = &self.settings.checkpointing.directory;
        format!("{}/{}", directory.trim_end_matches('/'), self.job)
    }

    /// The edges that come into a vertex, in order of ids.
    pub fn inputs(&self, vertex: VertexId) -> impl Iterator<Item = &JobEdge> {
        self.edges.iter().filter(move |e| e.target == vertex)
    }

    /// The edges that leave a vertex, in order of ids.
    pub fn outputs(&self, vertex: VertexId) -> impl Iterator<Item = &JobEdge> {
        self.edges.iter().filter(move |e| e.source == vertex)
    }

    /// Whether any operator commits output on checkpoint completion.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.vertices
            .iter()
            .flat_map(|v| &v.operators)
            .any(|o| o.is_transactional)
    }
}
