//! From the operators that a job function declared to the vertices and edges of a [`JobGraph`], and back from a vertex to a running chain.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use perennial_actors::model::{
    EdgeChannels, EdgeId, Exchange, FailureKind, JobEdge, JobGraph, JobVertex, OperatorId,
    OperatorInfo, TaskDeployment, VertexId, default_max_parallelism,
};
use perennial_config::JobSettings;

use crate::batch::Record;
use crate::exchange::{self, TaskWaker};
use crate::operator::AnySideOutput;
use crate::operator::{Chained, Head, Output, SideOutputs};

/// Makes a chained node; the box holds a `Box<dyn Chained<In>>`.
pub(crate) type MakeChained = Box<dyn Fn(&Build<'_>, usize) -> Box<dyn Any>>;
/// Makes the head of a vertex.
pub(crate) type MakeHead = Box<dyn Fn(&Build<'_>, usize) -> Box<dyn Head>>;
/// Makes the writer of an edge; the box holds a `Box<dyn Chained<T>>`.
pub(crate) type MakeWriter = Box<dyn Fn(&Build<'_>, &EdgeChannels, u32) -> Box<dyn Any>>;
/// Makes a side output with its consumers.
pub(crate) type MakeSide = Box<dyn Fn(&Build<'_>, usize) -> Box<dyn AnySideOutput>>;

/// How records go to a node, as declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Forward when the parallelism is equal, else round robin.
    Auto,
    /// As named.
    Fixed(Exchange),
}

/// An operator as declared.
pub(crate) struct LogicalNode {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    pub(crate) parallelism: Option<u32>,
    pub(crate) max_parallelism: Option<u32>,
    pub(crate) is_transactional: bool,
    /// The node that this one belongs to in the eyes of the user: a source's watermarks are no operator of their own.
    pub(crate) part_of: Option<usize>,
    /// `None` for sources.
    pub(crate) chained: Option<MakeChained>,
    pub(crate) head: MakeHead,
}

/// A stream between two operators as declared.
pub(crate) struct LogicalEdge {
    pub(crate) from: usize,
    pub(crate) side: Option<String>,
    pub(crate) to: usize,
    pub(crate) route: Route,
    pub(crate) writer: MakeWriter,
    pub(crate) make_side: Option<MakeSide>,
}

/// Everything a job function declared.
#[derive(Default)]
pub(crate) struct LogicalGraph {
    pub(crate) nodes: Vec<LogicalNode>,
    pub(crate) edges: Vec<LogicalEdge>,
}

/// Which nodes share a task, and which edges cross tasks.
pub(crate) struct Plan {
    /// Place of each node within its vertex.
    pub(crate) place_of: Vec<usize>,
    /// First node of each vertex.
    pub(crate) heads: Vec<usize>,
    /// Job edge of each logical edge; `None` for chained ones.
    pub(crate) job_edge_of: Vec<Option<EdgeId>>,
    pub(crate) vertices: Vec<JobVertex>,
    pub(crate) edges: Vec<JobEdge>,
}

impl LogicalGraph {
    /// Decides vertices and edges. The same declarations and settings always give the same plan.
    pub(crate) fn plan(&self, settings: &JobSettings) -> Plan {
        let parallelism = |node: &LogicalNode| node.parallelism.unwrap_or(settings.parallelism);
        let exchange_of = |edge: &LogicalEdge| match edge.route {
            Route::Fixed(exchange) => exchange,
            Route::Auto => {
                let (from, to) = (&self.nodes[edge.from], &self.nodes[edge.to]);
                if parallelism(from) == parallelism(to) {
                    Exchange::Forward
                } else {
                    Exchange::Rebalance
                }
            }
        };
        let mut vertex_of: Vec<usize> = Vec::with_capacity(self.nodes.len());
        let mut place_of = Vec::with_capacity(self.nodes.len());
        let mut heads = Vec::new();
        let mut vertices: Vec<JobVertex> = Vec::new();
        let mut chained_edges = vec![false; self.edges.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            let mut inputs = self.edges.iter().enumerate().filter(|(_, e)| e.to == index);
            let chained_to = match (inputs.next(), inputs.next()) {
                (Some((edge_index, edge)), None)
                    if exchange_of(edge) == Exchange::Forward
                        && parallelism(&self.nodes[edge.from]) == parallelism(node)
                        && node.max_parallelism.is_none_or(|max| {
                            self.nodes[edge.from].max_parallelism == Some(max)
                        }) =>
                {
                    chained_edges[edge_index] = true;
                    Some(vertex_of[edge.from])
                }
                _ => None,
            };
            let uid = node
                .uid
                .clone()
                .unwrap_or_else(|| format!("{}-{index}", node.name));
            let info = OperatorInfo {
                id: OperatorId::from_uid(&uid),
                uid,
                name: node.name.clone(),
                is_transactional: node.is_transactional,
            };
            let vertex = match chained_to {
                Some(vertex) => {
                    let chain = &mut vertices[vertex];
                    chain.name = format!("{} -> {}", chain.name, node.name);
                    chain.operators.push(info);
                    vertex
                }
                None => {
                    let parallelism = parallelism(node);
                    let set = node.max_parallelism.or(settings.max_parallelism);
                    heads.push(index);
                    vertices.push(JobVertex {
                        id: VertexId(vertices.len() as u32),
                        name: node.name.clone(),
                        parallelism,
                        max_parallelism: set
                            .unwrap_or_else(|| default_max_parallelism(parallelism.min(32768))),
                        is_max_parallelism_set: set.is_some(),
                        operators: vec![info],
                    });
                    vertices.len() - 1
                }
            };
            vertex_of.push(vertex);
            place_of.push(vertices[vertex].operators.len() - 1);
        }
        let mut edges = Vec::new();
        let mut job_edge_of = Vec::with_capacity(self.edges.len());
        for (index, edge) in self.edges.iter().enumerate() {
            if chained_edges[index] {
                job_edge_of.push(None);
                continue;
            }
            let id = EdgeId(edges.len() as u32);
            edges.push(JobEdge {
                id,
                source: VertexId(vertex_of[edge.from] as u32),
                target: VertexId(vertex_of[edge.to] as u32),
                exchange: exchange_of(edge),
            });
            job_edge_of.push(Some(id));
        }
        Plan {
            place_of,
            heads,
            job_edge_of,
            vertices,
            edges,
        }
    }
}

/// What is at hand while a vertex is made into a chain.
pub(crate) struct Build<'a> {
    pub(crate) logical: &'a LogicalGraph,
    pub(crate) plan: &'a Plan,
    pub(crate) graph: &'a JobGraph,
    pub(crate) deployment: &'a TaskDeployment,
    pub(crate) exchange: &'a exchange::Exchange,
    pub(crate) waker: Arc<dyn TaskWaker>,
}

impl Build<'_> {
    /// Makes the head of the deployed vertex with everything behind it.
    pub(crate) fn head(&self) -> Result<Box<dyn Head>, FailureKind> {
        let vertex = self.deployment.attempt.vertex.0 as usize;
        let node = *self
            .plan
            .heads
            .get(vertex)
            .ok_or_else(|| FailureKind::BuildMismatch {
                message: format!("the job has no vertex {vertex} in this build"),
            })?;
        Ok((self.logical.nodes[node].head)(self, node))
    }

    /// The consumers of a node's main output or of one of its side outputs.
    pub(crate) fn output<T: Record>(&self, node: usize, side: Option<&str>) -> Output<T> {
        let mut targets = Vec::new();
        for (index, edge) in self.logical.edges.iter().enumerate() {
            if edge.from != node || edge.side.as_deref() != side {
                continue;
            }
            let made = match self.plan.job_edge_of[index] {
                None => {
                    let make = self.logical.nodes[edge.to].chained.as_ref();
                    make.expect("a source has no input to be chained to")(self, edge.to)
                }
                Some(id) => {
                    let target = self.plan.edges[id.0 as usize].target;
                    let max_parallelism = self.graph.vertices[target.0 as usize].max_parallelism;
                    (edge.writer)(
                        self,
                        self.channels(&self.deployment.outputs, id),
                        max_parallelism,
                    )
                }
            };
            let chained = made
                .downcast::<Box<dyn Chained<T>>>()
                .expect("both ends of a stream have its type");
            targets.push(*chained);
        }
        Output::new(targets)
    }

    /// All side outputs of a node that have consumers.
    pub(crate) fn sides(&self, node: usize) -> SideOutputs {
        let mut sides: BTreeMap<&str, Box<dyn AnySideOutput>> = BTreeMap::new();
        for edge in &self.logical.edges {
            if let (true, Some(side), Some(make)) = (edge.from == node, &edge.side, &edge.make_side)
            {
                sides.entry(side).or_insert_with(|| make(self, node));
            }
        }
        SideOutputs::new(sides.into_values().collect())
    }

    /// The incoming channels of the deployed vertex.
    pub(crate) fn inputs(&self) -> &[EdgeChannels] {
        &self.deployment.inputs
    }

    /// A node's place in its vertex.
    pub(crate) fn place(&self, node: usize) -> usize {
        self.plan.place_of[node]
    }

    fn channels<'d>(&self, all: &'d [EdgeChannels], id: EdgeId) -> &'d EdgeChannels {
        all.iter()
            .find(|channels| channels.edge == id)
            .expect("a deployment lists every edge of its vertex; checked on arrival")
    }
}
