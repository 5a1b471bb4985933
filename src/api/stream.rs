//! Typed streams.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use perennial_actors::model::Exchange;
use perennial_config::CheckpointingMode;

use super::plan::{Build, LogicalEdge, LogicalNode, MakeWriter, Route};
use super::{Builder, chain, watermark_operator};
use crate::batch::Record;
use crate::connector::{Sink, SinkWriter, SubtaskContext};
use crate::error::FunctionResult;
use crate::exchange::{BatchCodec, SerdeCodec};
use crate::key::Key;
use crate::operator::{
    AggregateFunction, Broadcast, ByKey, Chained, FilterOperator, FlatMapOperator, Forward,
    KeyedProcess, KeyedProcessFunction, MapOperator, Operator, OutputTag, Panes, PartitionWriter,
    Partitioner, Rebalance, Reduce, ReduceFunction, SeparateWindows, Sessions, SideOutput,
    SinkNode, TimeWindow, WatermarkStrategy, WindowAssigner, WindowKind, WindowOperator,
};
use crate::task::{Blocking, InputHead};

type MakePartitioner<T> = Rc<dyn Fn(&Build<'_>, usize, u32) -> Box<dyn Partitioner<T>>>;

/// Where records of a stream come from.
#[derive(Clone)]
struct Origin {
    node: usize,
    side: Option<String>,
}

/// What of an operator a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    /// Of a source.
    Watermarks,
}

/// A stream of records of one type.
///
/// `name`, `uid`, `parallelism`, `max_parallelism` and `side_output` concern the operator that the records come from: `union`, `rebalance`,
/// `broadcast` and a side output are no operators of their own, and behind `union` it is the one of the first stream.
pub struct DataStream<T> {
    builder: Rc<RefCell<Builder>>,
    origins: Vec<Origin>,
    route: Route,
    partitioner: Option<MakePartitioner<T>>,
    codec: Arc<dyn BatchCodec<T>>,
}

impl<T: Record> Clone for DataStream<T> {
    fn clone(&self) -> Self {
        Self {
            builder: self.builder.clone(),
            origins: self.origins.clone(),
            route: self.route,
            partitioner: self.partitioner.clone(),
            codec: self.codec.clone(),
        }
    }
}

impl<T: Record> DataStream<T> {
    pub(crate) fn of(builder: Rc<RefCell<Builder>>, node: usize, side: Option<String>) -> Self {
        Self {
            builder,
            origins: vec![Origin { node, side }],
            route: Route::Auto,
            partitioner: None,
            codec: Arc::new(SerdeCodec::default()),
        }
    }

    /// Encodes the records with another codec when they travel between processes.
    #[must_use]
    pub fn with_codec(mut self, codec: impl BatchCodec<T>) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// One record in, one out. A failure of the function goes to the restart strategy.
    pub fn map<O: Record>(
        &self,
        function: impl FnMut(T) -> FunctionResult<O> + Clone + Send + 'static,
    ) -> DataStream<O> {
        self.operator("map", move || MapOperator::new(function.clone()))
    }

    /// Keeps the records that a predicate holds for.
    pub fn filter(
        &self,
        predicate: impl FnMut(&T) -> FunctionResult<bool> + Clone + Send + 'static,
    ) -> DataStream<T> {
        self.operator("filter", move || FilterOperator::new(predicate.clone()))
    }

    /// One record in, any number out, drawn lazily.
    pub fn flat_map<O: Record, I>(
        &self,
        function: impl FnMut(T) -> FunctionResult<I> + Clone + Send + 'static,
    ) -> DataStream<O>
    where
        I: IntoIterator<Item = O> + 'static,
        I::IntoIter: Send + 'static,
    {
        self.operator("flat_map", move || {
            let mut function = function.clone();
            FlatMapOperator::new(move |value| Ok(function(value)?.into_iter()))
        })
    }

    /// Replaces event times and watermarks.
    pub fn assign_timestamps_and_watermarks(
        &self,
        strategy: WatermarkStrategy<T>,
    ) -> DataStream<T> {
        self.operator("watermarks", move || watermark_operator(&strategy))
    }

    /// The records of this and others of the same type.
    #[must_use]
    pub fn union(&self, others: &[&DataStream<T>]) -> DataStream<T> {
        let mut union = self.clone();
        for other in others {
            union.origins.extend(other.origins.iter().cloned());
        }
        union
    }

    /// Spreads records round robin over the next operator's subtasks.
    #[must_use]
    pub fn rebalance(&self) -> DataStream<T> {
        self.routed(
            Exchange::Rebalance,
            Rc::new(|build, _, _| {
                Box::new(Rebalance {
                    next: build.deployment.attempt.subtask.0 as usize,
                })
            }),
        )
    }

    /// Gives every record to all of the next operator's subtasks.
    #[must_use]
    pub fn broadcast(&self) -> DataStream<T> {
        self.routed(Exchange::Broadcast, Rc::new(|_, _, _| Box::new(Broadcast)))
    }

    /// Brings the records of one key to one subtask, with state and timers of their own. The selector is called where records are
    /// sent and where they arrive: it must give the same key both times.
    pub fn key_by<K: Key>(
        &self,
        selector: impl Fn(&T) -> K + Clone + Send + 'static,
    ) -> KeyedStream<K, T, impl Fn(&T) -> K + Clone + Send + 'static> {
        let for_writers = selector.clone();
        let stream = self.routed(
            Exchange::Hash,
            Rc::new(move |_, parallelism, max| {
                Box::new(ByKey::new(for_writers.clone(), parallelism as u32, max))
            }),
        );
        KeyedStream {
            stream,
            selector,
            _key: PhantomData,
        }
    }

    /// A side output of the operator that this stream comes from.
    #[must_use]
    pub fn side_output<S: Record>(&self, tag: &OutputTag<S>) -> DataStream<S> {
        DataStream::of(
            self.builder.clone(),
            self.origins[0].node,
            Some(tag.name.clone()),
        )
    }

    /// Ends the stream in a sink.
    pub fn sink_to(&self, sink: impl Sink<T>) -> DataStreamSink {
        let sink: Arc<dyn Sink<T>> = Arc::new(sink);
        let is_transactional = sink.is_transactional();
        let make = move |build: &Build<'_>, node: usize| -> Box<dyn Chained<T>> {
            Box::new(SinkNode::new(build.place(node), sink.clone()))
        };
        let node = self.add("sink", is_transactional, make);
        DataStreamSink {
            builder: self.builder.clone(),
            node,
        }
    }

    /// Hands every record to a closure, at least once: for tests and experiments.
    pub fn for_each(
        &self,
        function: impl Fn(T) -> FunctionResult + Clone + Send + Sync + 'static,
    ) -> DataStreamSink {
        self.sink_to(ForEach(function)).name("for_each")
    }

    /// Names the operator for people.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.change(|node, part| {
            if part == Part::Whole {
                node.name = name.to_owned();
            }
        });
        self
    }

    /// Identifies the operator's state across changes of the job. Give one to every operator that keeps state.
    #[must_use]
    pub fn uid(self, uid: &str) -> Self {
        self.change(|node, part| {
            node.uid = Some(match part {
                Part::Whole => uid.to_owned(),
                Part::Watermarks => format!("{uid}/watermarks"),
            });
        });
        self
    }

    /// Number of the operator's subtasks.
    #[must_use]
    pub fn parallelism(self, parallelism: u32) -> Self {
        self.change(|node, _| node.parallelism = Some(parallelism));
        self
    }

    /// Number of the operator's key groups: the upper bound of its parallelism for as long as its state lives.
    #[must_use]
    pub fn max_parallelism(self, max_parallelism: u32) -> Self {
        self.change(|node, _| node.max_parallelism = Some(max_parallelism));
        self
    }

    /// Changes the operator, and what belongs to it.
    fn change(&self, change: impl Fn(&mut LogicalNode, Part)) {
        let nodes = &mut self.builder.borrow_mut().logical.nodes;
        let last = self.origins[0].node;
        match nodes[last].part_of {
            Some(whole) => {
                change(&mut nodes[whole], Part::Whole);
                change(&mut nodes[last], Part::Watermarks);
            }
            None => change(&mut nodes[last], Part::Whole),
        }
    }

    /// Says that the stream's operator is a mere part of another, to which names and settings belong.
    pub(crate) fn mark_part_of(&self, whole: usize) {
        let nodes = &mut self.builder.borrow_mut().logical.nodes;
        nodes[self.origins[0].node].part_of = Some(whole);
    }

    fn routed(&self, exchange: Exchange, partitioner: MakePartitioner<T>) -> DataStream<T> {
        let mut routed = self.clone();
        routed.route = Route::Fixed(exchange);
        routed.partitioner = Some(partitioner);
        routed
    }

    /// Adds an operator behind this stream. `make` is called once per task.
    pub(crate) fn operator<O: Operator<In = T>>(
        &self,
        name: &str,
        make: impl Fn() -> O + 'static,
    ) -> DataStream<O::Out> {
        let node = self.add(name, false, move |build, node| chain(build, node, make()));
        DataStream::of(self.builder.clone(), node, None)
    }

    fn add(
        &self,
        name: &str,
        is_transactional: bool,
        make: impl Fn(&Build<'_>, usize) -> Box<dyn Chained<T>> + 'static,
    ) -> usize {
        let make = Rc::new(make);
        let for_head = make.clone();
        let codec = self.codec.clone();
        let mut builder = self.builder.borrow_mut();
        let node = builder.logical.nodes.len();
        builder.logical.nodes.push(LogicalNode {
            name: name.to_owned(),
            uid: None,
            parallelism: None,
            max_parallelism: None,
            is_transactional,
            part_of: None,
            chained: Some(Box::new(move |build, node| Box::new(make(build, node)))),
            head: Box::new(move |build, node| {
                let chain = for_head(build, node);
                let gate = build.exchange.open_input(
                    build.deployment.attempt,
                    build.inputs(),
                    codec.clone(),
                    build.waker.clone(),
                );
                let blocking = match build.graph.settings.checkpointing.mode {
                    CheckpointingMode::ExactlyOnce => Blocking::Aligned,
                    CheckpointingMode::AtLeastOnce => Blocking::Never,
                };
                Box::new(InputHead::new(gate, chain, blocking))
            }),
        });
        for origin in &self.origins {
            let side = origin.side.clone();
            let side_name = side.clone();
            builder.logical.edges.push(LogicalEdge {
                from: origin.node,
                side,
                to: node,
                route: self.route,
                writer: self.writer(),
                make_side: side_name.map(|name| -> super::plan::MakeSide {
                    Box::new(move |build, node| {
                        let output = build.output::<T>(node, Some(&name));
                        Box::new(SideOutput::new(name.clone(), output))
                    })
                }),
            });
        }
        node
    }

    fn writer(&self) -> MakeWriter {
        let codec = self.codec.clone();
        let partitioner = self.partitioner.clone();
        Box::new(move |build, channels, max_parallelism| {
            let outputs = build.exchange.open_output(
                build.deployment.attempt,
                channels,
                codec.clone(),
                build.waker.clone(),
            );
            let exchange = build.plan.edges[channels.edge.0 as usize].exchange;
            let partitioner: Box<dyn Partitioner<T>> = match (&partitioner, exchange) {
                (Some(make), _) => make(build, outputs.len(), max_parallelism),
                (None, Exchange::Forward) => Box::new(Forward),
                (None, _) => Box::new(Rebalance {
                    next: build.deployment.attempt.subtask.0 as usize % outputs.len().max(1),
                }),
            };
            let timeout = build.graph.settings.buffer_timeout;
            let writer: Box<dyn Chained<T>> =
                Box::new(PartitionWriter::new(partitioner, outputs, timeout));
            Box::new(writer)
        })
    }
}

/// A stream by key.
pub struct KeyedStream<K, T, S> {
    stream: DataStream<T>,
    selector: S,
    _key: PhantomData<fn() -> K>,
}

impl<K: Key, T: Record, S: Fn(&T) -> K + Clone + Send + 'static> KeyedStream<K, T, S> {
    /// Applies a function with state and timers; it is cloned for each attempt, in the state it has here.
    pub fn process<F: KeyedProcessFunction<K, T> + Clone>(
        &self,
        function: F,
    ) -> DataStream<F::Out> {
        let selector = self.selector.clone();
        self.stream.operator("process", move || {
            KeyedProcess::<F, K, T, S>::new(function.clone(), selector.clone())
        })
    }

    /// Combines the records of each key; emits the combined value after each.
    pub fn reduce<F: ReduceFunction<T> + Clone>(&self, function: F) -> DataStream<T> {
        let selector = self.selector.clone();
        self.stream.operator("reduce", move || {
            KeyedProcess::<_, K, T, S>::new(Reduce::new(function.clone()), selector.clone())
        })
    }

    /// Groups the records of each key by windows of event time.
    pub fn window<W: WindowAssigner>(&self, assigner: W) -> WindowedStream<K, T, S, W> {
        WindowedStream {
            stream: self.stream.clone(),
            selector: self.selector.clone(),
            assigner,
            allowed_lateness: Duration::ZERO,
            late: None,
            _key: PhantomData,
        }
    }
}

/// A stream by key and window.
pub struct WindowedStream<K, T, S, W> {
    stream: DataStream<T>,
    selector: S,
    assigner: W,
    allowed_lateness: Duration,
    late: Option<OutputTag<T>>,
    _key: PhantomData<fn() -> K>,
}

impl<K, T, S, W> WindowedStream<K, T, S, W>
where
    K: Key,
    T: Record,
    S: Fn(&T) -> K + Clone + Send + 'static,
    W: WindowAssigner,
{
    /// Keeps windows for this long after their end; a record that comes meanwhile emits the changed result.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.allowed_lateness = lateness;
        self
    }

    /// Sends records that come too late to a side output; without it they are dropped.
    #[must_use]
    pub fn side_output_late_data(mut self, tag: &OutputTag<T>) -> Self {
        self.late = Some(tag.clone());
        self
    }

    /// Emits the aggregate of each window.
    pub fn aggregate<A>(&self, aggregate: A) -> DataStream<A::Out>
    where
        A: AggregateFunction<In = T> + Clone,
    {
        self.aggregate_with(aggregate, |_: &K, _, out| out)
    }

    /// Emits what a function makes of each window's key, span and aggregate.
    pub fn aggregate_with<A, O, R>(&self, aggregate: A, result: R) -> DataStream<O>
    where
        A: AggregateFunction<In = T> + Clone,
        O: Record,
        R: Fn(&K, TimeWindow, A::Out) -> O + Clone + Send + 'static,
    {
        let lateness = i64::try_from(self.allowed_lateness.as_millis()).unwrap_or(i64::MAX);
        let (selector, late) = (self.selector.clone(), self.late.clone());
        let panes = match self.assigner.kind() {
            WindowKind::Aligned {
                size,
                slide,
                offset,
            } => Panes::new(size, slide, offset, lateness),
            WindowKind::Session { gap } => {
                return self.stream.operator("window", move || {
                    WindowOperator::<A, K, Sessions, S, R>::new(
                        aggregate.clone(),
                        Sessions::new(gap, lateness),
                        selector.clone(),
                        result.clone(),
                        late.clone(),
                    )
                });
            }
            WindowKind::Any => None,
        };
        if let Some(panes) = panes {
            return self.stream.operator("window", move || {
                WindowOperator::<A, K, Panes, S, R>::new(
                    aggregate.clone(),
                    panes.clone(),
                    selector.clone(),
                    result.clone(),
                    late.clone(),
                )
            });
        }
        let assigner = self.assigner.clone();
        self.stream.operator("window", move || {
            SeparateWindows::<A, K, W, S, R>::new(
                aggregate.clone(),
                assigner.clone(),
                selector.clone(),
                result.clone(),
                late.clone(),
                lateness,
            )
        })
    }
}

/// The end of a stream.
pub struct DataStreamSink {
    builder: Rc<RefCell<Builder>>,
    node: usize,
}

impl DataStreamSink {
    /// Names the sink for people.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.change(|node| node.name = name.to_owned())
    }

    /// Identifies the sink's state across changes of the job.
    #[must_use]
    pub fn uid(self, uid: &str) -> Self {
        self.change(|node| node.uid = Some(uid.to_owned()))
    }

    /// Number of the sink's subtasks.
    #[must_use]
    pub fn parallelism(self, parallelism: u32) -> Self {
        self.change(|node| node.parallelism = Some(parallelism))
    }

    fn change(self, change: impl FnOnce(&mut LogicalNode)) -> Self {
        change(&mut self.builder.borrow_mut().logical.nodes[self.node]);
        self
    }
}

struct ForEach<F>(F);

impl<T: Record, F: Fn(T) -> FunctionResult + Clone + Send + Sync + 'static> Sink<T> for ForEach<F> {
    fn writer(&self, _context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        Ok(Box::new(ForEachWriter(self.0.clone())))
    }
}

struct ForEachWriter<F>(F);

impl<T, F: Fn(T) -> FunctionResult + Send> SinkWriter<T> for ForEachWriter<F> {
    fn write(&mut self, batch: &mut crate::batch::Batch<T>) -> FunctionResult {
        batch.timestamps.clear();
        for (index, value) in batch.values.drain(..).enumerate() {
            (self.0)(value).map_err(|error| error.at_record(index))?;
        }
        Ok(())
    }
}
