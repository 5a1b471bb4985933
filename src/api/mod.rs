//! The programming interface: an environment, typed streams, and the registry of jobs that makes a binary play every role.

mod arguments;
mod plan;
mod registry;
mod stream;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use perennial_actors::model::{BuildId, GraphError, JobId, StartFrom};
pub use perennial_config::CheckpointingMode;

use crate::batch::Record;
use crate::connector::Source;
use crate::error::FunctionError;
use crate::operator::{Chained, Node, Output, SourceHead, WatermarkOperator, WatermarkStrategy};

pub use arguments::{ArgumentError, Arguments};
use plan::LogicalNode;
pub(crate) use plan::{Build, LogicalGraph};
pub use registry::{JobOption, JobRegistry, RegisteredJob};
pub use stream::{DataStream, DataStreamSink, KeyedStream, WindowedStream};

/// A job cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No job of that name.
    #[error("no job `{name}` in this binary{}; it has: {known}", suggestion.as_ref().map(|s| format!(" (did you mean `{s}`?)")).unwrap_or_default())]
    Unknown {
        /// As asked for.
        name: String,
        /// The nearest one.
        suggestion: Option<String>,
        /// All of them.
        known: String,
    },
    /// An argument is missing, unknown or malformed.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The job function failed.
    #[error("job `{name}` cannot be built: {source}")]
    Function {
        /// Of the job.
        name: String,
        /// The cause.
        source: FunctionErrorSource,
    },
    /// A key that the job or the command line sets is wrong.
    #[error("{0}")]
    Settings(String),
    /// What the job function declared is not a graph that can run.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The text of a job function's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FunctionErrorSource(pub String);

impl From<FunctionError> for FunctionErrorSource {
    fn from(error: FunctionError) -> Self {
        Self(error.to_string())
    }
}

/// Shared by an environment and its streams.
pub(crate) struct Builder {
    pub(crate) logical: LogicalGraph,
    /// What the job function set, by configuration key; a later one of the same key wins.
    pub(crate) keys: Vec<(String, String)>,
    pub(crate) name: Option<String>,
}

/// Where a job function begins. It is called at the client to make the graph, and again on every TaskManager to make the operators:
/// what it declares may depend on its arguments only.
pub struct StreamEnvironment {
    builder: Rc<RefCell<Builder>>,
}

impl StreamEnvironment {
    pub(crate) fn new() -> Self {
        Self {
            builder: Rc::new(RefCell::new(Builder {
                logical: LogicalGraph::default(),
                keys: Vec::new(),
                name: None,
            })),
        }
    }

    /// Sets a configuration key for this job. It wins over profile, file and environment of the client that submits it; `-D` and `-p` of that
    /// command win over it. Keys of nodes are refused.
    pub fn set(&self, key: &str, value: impl std::fmt::Display) {
        self.builder
            .borrow_mut()
            .keys
            .push((key.to_owned(), value.to_string()));
    }

    /// Sets the default parallelism of operators.
    pub fn set_parallelism(&self, parallelism: u32) {
        self.set("parallelism.default", parallelism);
    }

    /// Takes a checkpoint every `interval`.
    pub fn enable_checkpointing(&self, interval: Duration, mode: CheckpointingMode) {
        self.set(
            "execution.checkpointing.interval",
            format!("{}ms", interval.as_millis()),
        );
        self.set(
            "execution.checkpointing.mode",
            match mode {
                CheckpointingMode::ExactlyOnce => "EXACTLY_ONCE",
                CheckpointingMode::AtLeastOnce => "AT_LEAST_ONCE",
            },
        );
    }

    /// Time from the end of a checkpoint to the begin of the next.
    pub fn set_min_pause_between_checkpoints(&self, pause: Duration) {
        self.set(
            "execution.checkpointing.min-pause",
            format!("{}ms", pause.as_millis()),
        );
    }

    /// Time after which a checkpoint is given up.
    pub fn set_checkpoint_timeout(&self, timeout: Duration) {
        self.set(
            "execution.checkpointing.timeout",
            format!("{}ms", timeout.as_millis()),
        );
    }

    /// Checkpoints under way at once.
    pub fn set_max_concurrent_checkpoints(&self, count: u32) {
        self.set("execution.checkpointing.max-concurrent-checkpoints", count);
    }

    /// Asks for unaligned checkpoints.
    pub fn enable_unaligned_checkpoints(&self, is_enabled: bool) {
        self.set("execution.checkpointing.unaligned.enabled", is_enabled);
    }

    /// Names the job for people; by default its registered name.
    pub fn set_job_name(&self, name: &str) {
        self.builder.borrow_mut().name = Some(name.to_owned());
    }

    /// A stream of a source's records, with event times by a strategy.
    pub fn from_source<S: Source>(
        &self,
        source: S,
        watermarks: WatermarkStrategy<S::Item>,
        name: &str,
    ) -> DataStream<S::Item> {
        let source: Arc<dyn Source<Item = S::Item>> = Arc::new(source);
        let node = self.add(LogicalNode {
            name: name.to_owned(),
            uid: None,
            parallelism: None,
            max_parallelism: None,
            is_transactional: false,
            part_of: None,
            chained: None,
            head: Box::new(move |build, node| {
                let output = build.output::<S::Item>(node, None);
                Box::new(SourceHead::new(build.place(node), source.clone(), output))
            }),
        });
        let stream = DataStream::of(self.builder.clone(), node, None);
        if watermarks.is_needed() {
            let stream = stream.assign_timestamps_and_watermarks(watermarks);
            stream.mark_part_of(node);
            stream
        } else {
            stream
        }
    }

    fn add(&self, node: LogicalNode) -> usize {
        let nodes = &mut self.builder.borrow_mut().logical.nodes;
        nodes.push(node);
        nodes.len() - 1
    }

    pub(crate) fn into_builder(self) -> Option<Builder> {
        Rc::into_inner(self.builder).map(RefCell::into_inner)
    }
}

/// What a client adds to what the job function declared.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Chosen by the client.
    pub job: JobId,
    /// Of the client's executable.
    pub build: BuildId,
    /// The snapshot to begin from.
    pub start_from: Option<StartFrom>,
}

/// A chained operator node, boxed for the plan.
pub(crate) fn chain<O: crate::operator::Operator>(
    build: &Build<'_>,
    node: usize,
    operator: O,
) -> Box<dyn Chained<O::In>> {
    let output: Output<O::Out> = build.output(node, None);
    Box::new(Node::new(
        build.place(node),
        operator,
        output,
        build.sides(node),
    ))
}

pub(crate) fn watermark_operator<T: Record>(
    strategy: &WatermarkStrategy<T>,
) -> WatermarkOperator<T> {
    WatermarkOperator::new(strategy.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::{BlackholeSink, GeneratorSource};

    /// A restore finds source positions by uid, and a source with three subtasks and watermarks of one would lose event time's order.
    #[test]
    fn a_source_and_its_watermarks_are_one_operator_to_users() {
        let registry = JobRegistry::new().job("j", "", &[], |env, _| {
            let source = GeneratorSource::new(None, |c| (c.index, Some(0)));
            let _sink = env
                .from_source(source, WatermarkStrategy::monotonous(), "numbers")
                .uid("numbers")
                .parallelism(3)
                .sink_to(BlackholeSink::new())
                .parallelism(1);
            Ok(())
        });
        let submission = Submission {
            job: JobId(1),
            build: BuildId("b".into()),
            start_from: None,
        };
        let settings = |_: &[_]| Ok(perennial_config::JobSettings::default());
        let graph = registry
            .graph("j", &Arguments::default(), settings, submission)
            .unwrap();
        let vertex = &graph.vertices[0];
        let uids: Vec<_> = vertex.operators.iter().map(|o| o.uid.as_str()).collect();
        assert_eq!(uids, ["numbers", "numbers/watermarks"]);
        assert_eq!(vertex.operators[0].name, "numbers");
        assert_eq!((vertex.parallelism, graph.vertices[1].parallelism), (3, 1));
    }
}
