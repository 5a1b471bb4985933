//! Operators and how they are chained.
//!
//! A chain is a tree of nodes that own their downstream. Work moves by batches; within a node, records are taken one by one and the
//! node looks after each whether its output must go on. Nothing here waits: a node that cannot go on keeps its place and says
//! [`Flow::Blocked`] or [`Flow::Yielded`]; [`Lifecycle::resume`] continues exactly there.
//!
//! Invariant: when `resume` of the first node says [`Flow::Drained`], no record and no signal is inside the chain, only in the
//! buffers of its `PartitionWriter`s. Barriers and the end are handled in that moment only.

mod keyed_process;
mod node;
mod output;
mod partition;
mod position;
mod read_ahead;
mod simple;
mod single;
mod sink;
mod source;
mod state_store;
mod watermark;
mod window;

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::fault::{FaultPlace, FaultPoints, FaultSite, Sabotage};
use perennial_actors::model::{
    CheckpointBarrier, CheckpointId, ExecutionAttemptId, FailureKind, KeyGroup, KeyGroupRange,
    OperatorId, SegmentKind, StateMeta,
};

use crate::batch::{Batch, StreamStatus, Timestamp};
use crate::connector::SubtaskContext;
use crate::error::{FunctionError, FunctionResult};
use crate::state::{KeyedState, StateError};

pub use keyed_process::{
    KeyedProcess, KeyedProcessFunction, OpenContext, ProcessContext, Reduce, ReduceFunction,
};
pub(crate) use node::Node;
pub(crate) use output::{AnySideOutput, Output, SideOutput};
pub use output::{OutputTag, SideOutputs};
pub(crate) use partition::{Broadcast, ByKey, Forward, PartitionWriter, Partitioner, Rebalance};
pub(crate) use position::{after, of_signal, span};
pub(crate) use simple::{FilterOperator, FlatMapOperator, MapOperator};
pub(crate) use single::Operator;
pub(crate) use sink::SinkNode;
pub(crate) use source::SourceHead;
pub(crate) use state_store::{
    NamedList, OperatorStateStore, decode_lists, encode_lists, redistribute, union,
};
pub use state_store::{OperatorList, Redistribution};
pub(crate) use watermark::WatermarkOperator;
pub use watermark::WatermarkStrategy;
pub use window::{
    AggregateFunction, EventTimeSessionWindows, SlidingEventTimeWindows, TimeWindow,
    TumblingEventTimeWindows, WindowAssigner, WindowKind,
};
pub(crate) use window::{Panes, SeparateWindows, Sessions, WindowOperator};

pub use crate::batch::BATCH_RECORDS_MAX;

/// Records that one call of a user function may emit, to the main output and to each side output.
pub const OUTPUT_OF_ONE_CALL_MAX: usize = 1 << 20;

/// Timers, or windows that are due, that fire in one go, before what they emitted is handed on.
/// They are also all that fire in one step, so that orders, captures and the next flush need not wait for the rest.
pub(crate) const TIMERS_OF_ONE_CALL_MAX: usize = 1024;

/// Calls that hand records to operators in one step of a task, each with about as much input or output as a batch has. A step that takes
/// one batch needs one to four for each operator; a `flat_map` that makes very much of a record would need any number.
pub const CALLS_OF_ONE_STEP_MAX: usize = 64;

/// Whether a chain has taken everything it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Nothing is left inside.
    Drained,
    /// Something is left: an output has no room now.
    Blocked,
    /// Something is left and can go on at once: the step has done its share.
    Yielded,
}

impl Flow {
    /// Of two outputs together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yielded, _) | (_, Self::Yielded) => Self::Yielded,
            (Self::Blocked, _) | (_, Self::Blocked) => Self::Blocked,
            (Self::Drained, Self::Drained) => Self::Drained,
        }
    }
}

/// Where in its input a node stands with work that has not ended, counted from the first record of the batch that it was given last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// At one of these records; at a single one where that is known.
    Records(Range<usize>),
    /// At work that is no record's.
    After {
        /// Records that came before.
        records: usize,
        /// What it works on; `None`: what was gathered of former records.
        signal: Option<Signal>,
    },
}

/// What flows besides records. Handed on in order, after the records before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Event time has come this far.
    Watermark(Timestamp),
    /// Whether this input counts for the watermark.
    Status(StreamStatus),
    /// Nothing follows.
    EndOfInput,
    /// Processing-time timers up to this wall-clock time (in ms) fire. Reaches every node, changes nothing else.
    ProcessingTime(Timestamp),
}

/// Keyed state of a task's operators, by the operator's place in the vertex; it outlives the operators.
pub type KeyedStates = Vec<Option<Box<dyn KeyedState>>>;

/// Where a task is, so that a failure can name its place. Kept outside what a panic unwinds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// The operator that was called last, by its place in the vertex.
    pub operator: Option<usize>,
    /// What for.
    pub work: Work,
}

/// What a task's operators were called for last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Work {
    /// Records, timers and what follows from them.
    #[default]
    Input,
    /// The synchronous part of a snapshot.
    Snapshot(CheckpointId),
    /// Output of a completed checkpoint.
    Commit(CheckpointId),
}

/// What a node needs from its task while it works.
pub struct TaskContext<'a> {
    /// Keyed state of all operators of the task.
    pub keyed: &'a mut KeyedStates,
    /// See there.
    pub place: &'a mut Place,
    /// The time of this step.
    pub now: Instant,
    /// How long in all the task has not asked for input, because its chain was not empty: back-pressure, many timers. It is no sign of
    /// an idle stream.
    pub held_up: Duration,
    /// Calls left to this step; see [`CALLS_OF_ONE_STEP_MAX`].
    pub calls_left: usize,
    /// For processing time.
    pub clock: &'a Clock,
    /// Counts records given to outputs and sinks.
    pub records_out: &'a mut u64,
    /// See there.
    pub faults: &'a TaskFaults,
}

/// The fault points of a task.
#[derive(Clone)]
pub struct TaskFaults {
    points: FaultPoints,
    attempt: ExecutionAttemptId,
}

impl TaskFaults {
    pub(crate) fn new(points: FaultPoints, attempt: ExecutionAttemptId) -> Self {
        Self { points, attempt }
    }

    /// The task has come here.
    #[inline]
    pub(crate) fn hit(&self, site: FaultSite) -> Result<(), OperatorError> {
        let place = FaultPlace::Task(self.attempt);
        self.points.hit(site, place).map_err(|error| {
            OperatorError(FailureKind::User {
                message: error.to_string(),
                is_unrecoverable: false,
            })
        })
    }

    /// Whether the engine shall be broken here.
    #[inline]
    pub(crate) fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.points.is_sabotaged(sabotage)
    }
}

/// What a node needs once, at the start of an attempt.
pub struct StartContext<'a> {
    /// Keyed state; an operator that keeps some puts its backend here, or finds one to take over.
    pub keyed: &'a mut KeyedStates,
    /// See there.
    pub place: &'a mut Place,
    /// Restored operator state, by place in the vertex.
    pub restored: &'a mut [RestoredOperator],
    /// The task.
    pub task: &'a TaskInfo,
    /// For deadlines that begin now.
    pub now: Instant,
}

/// What stays the same for an attempt.
#[derive(Debug, Clone)]
pub struct TaskInfo {
    /// Which.
    pub attempt: ExecutionAttemptId,
    /// For people.
    pub job_name: String,
    /// Subtasks of the vertex.
    pub parallelism: u32,
    /// Key groups of the vertex.
    pub max_parallelism: u32,
    /// Of this subtask.
    pub key_groups: KeyGroupRange,
    /// Ids and uids by place in the vertex.
    pub operators: Vec<(OperatorId, String)>,
    /// Names by place in the vertex.
    pub names: Vec<String>,
    /// `execution.buffer-timeout.interval`.
    pub buffer_timeout: Duration,
    /// Bound of one operator's pre-image log, in bytes.
    pub log_bytes_max: u64,
}

impl TaskInfo {
    /// The context that connectors see.
    #[must_use]
    pub fn subtask_context(&self, operator: usize) -> SubtaskContext {
        let (id, uid) = &self.operators[operator];
        SubtaskContext {
            attempt: self.attempt,
            operator: *id,
            uid: uid.clone(),
            job_name: self.job_name.clone(),
            parallelism: self.parallelism,
        }
    }
}

/// Operator state that one subtask of one operator begins with, already redistributed.
#[derive(Debug, Default)]
pub struct RestoredOperator {
    /// Whether there was a snapshot that knew the operator.
    pub is_restored: bool,
    /// The snapshot's number, when restored.
    pub checkpoint: Option<CheckpointId>,
    /// The operator's watermark.
    pub watermark: Option<Timestamp>,
    /// End of input was handled before the snapshot.
    pub is_finished: bool,
    /// Its share of the lists; once it is open, those that it has not registered.
    pub lists: Vec<NamedList>,
    /// All items of all subtasks, per list, for what must be known by all.
    pub everyones: Vec<NamedList>,
    /// Keyed state to load, in chain order; once the operator is open, none unless it keeps none.
    pub segments: Vec<LoadedSegment>,
}

/// The slices of one segment that this subtask owns, verified.
#[derive(Debug, Clone)]
pub struct LoadedSegment {
    /// When it was captured.
    pub checkpoint: CheckpointId,
    /// All or changes.
    pub kind: SegmentKind,
    /// The states it holds.
    pub states: Vec<StateMeta>,
    /// Bytes by key group.
    pub groups: Vec<(KeyGroup, Bytes)>,
}

/// One operator's part of a snapshot, taken at the barrier; keyed state follows by captures.
#[derive(Debug, Clone)]
pub struct OperatorCapture {
    /// Place in the vertex.
    pub operator: usize,
    /// Event-time watermark.
    pub watermark: Option<Timestamp>,
    /// Whether end of input was handled.
    pub is_finished: bool,
    /// Operator state.
    pub lists: Vec<NamedList>,
    /// Source positions.
    pub positions: Vec<(String, u64)>,
    /// Whether keyed state will follow.
    pub has_keyed: bool,
}

/// A failure inside the chain; the place is in [`Place`].
#[derive(Debug)]
pub struct OperatorError(pub FailureKind);

impl From<FunctionError> for OperatorError {
    fn from(error: FunctionError) -> Self {
        if let Some(state) = error.source().downcast_ref::<StateError>() {
            return Self(state_failure(state));
        }
        Self(FailureKind::User {
            message: error.to_string(),
            is_unrecoverable: error.is_unrecoverable(),
        })
    }
}

impl From<StateError> for OperatorError {
    fn from(error: StateError) -> Self {
        Self(state_failure(&error))
    }
}

impl From<FailureKind> for OperatorError {
    fn from(kind: FailureKind) -> Self {
        Self(kind)
    }
}

fn state_failure(error: &StateError) -> FailureKind {
    match error {
        StateError::Incompatible { .. } => FailureKind::IncompatibleState {
            message: error.to_string(),
        },
        _ => FailureKind::State {
            message: error.to_string(),
        },
    }
}

/// The life of a node and of everything downstream of it. Every call goes down the whole chain.
pub trait Lifecycle: Send {
    /// Registers state, makes readers and writers, takes restored operator state.
    fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError>;
    /// Goes on with what is inside.
    fn resume(&mut self, cx: &mut TaskContext<'_>) -> Result<Flow, OperatorError>;
    /// Takes a signal. Only when drained.
    fn signal(&mut self, signal: Signal);
    /// Sends what partition writers have gathered, when it is due (`Flush::Due`) or in any case.
    fn flush(&mut self, flush: Flush, cx: &mut TaskContext<'_>) -> Result<(), OperatorError>;
    /// When the node wants to be looked at again without input: timers, buffer timeouts, idleness.
    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant>;
    /// Whether a processing-time timer is due.
    fn is_timer_due(&self, cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool;
    /// Takes the synchronous part of a snapshot and sends the barrier on. Only when drained.
    fn snapshot(
        &mut self,
        barrier: &CheckpointBarrier,
        captures: &mut Vec<OperatorCapture>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError>;
    /// The checkpoint is complete: output up to it is committed. Keyed state is confirmed by the task.
    fn complete(
        &mut self,
        checkpoint: CheckpointId,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError>;
    /// The attempt ends, well or not. Called once.
    fn close(&mut self, cx: &mut TaskContext<'_>) -> Result<(), OperatorError>;
    /// Takes out what was prepared and not committed, of an attempt that ends otherwise than by finishing.
    fn leftovers(&mut self, leftovers: &mut Vec<Box<dyn Leftover>>);
    /// Where in the batch it was given last the work is that has not ended; `None`: there is none. Asked after a failure, a panic too.
    fn locate(&self) -> Option<Located>;
    /// Bytes sent to other processes.
    fn bytes_out(&self) -> u64;
    /// The watermark of the last node that has one; for counters.
    fn watermark(&self) -> Option<Timestamp>;
}

/// Output of an attempt that ended: prepared, not committed, and no successor's yet.
pub trait Leftover: Send {
    /// Whose.
    fn attempt(&self) -> ExecutionAttemptId;
    /// Commits what belongs to the job's last completed checkpoint, and removes what belongs to none. Idempotent, and harmless when a
    /// later attempt has settled it before.
    fn settle(self: Box<Self>, completed: Option<CheckpointId>) -> FunctionResult;
}

/// How eagerly to flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// What has waited for longer than the buffer timeout.
    Due,
    /// Everything.
    All,
}

/// A node that takes records of one type.
pub trait Chained<T>: Lifecycle {
    /// Takes the records of a batch. Only when drained. What it leaves is empty, with memory to fill again if the node has some to
    /// spare: so batches need no allocation each.
    fn push(&mut self, batch: &mut Batch<T>);
}

/// What a call of a head came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadPoll {
    /// Something was taken into the chain.
    Progress,
    /// Nothing there; look again at this time or when woken.
    Nothing {
        /// When.
        until: Option<Instant>,
    },
    /// All input has ended and the end has been handed to the chain.
    Ended,
    /// A barrier is due: every input has reached it. The chain is drained.
    Barrier {
        /// Which.
        barrier: CheckpointBarrier,
        /// From the first input's to the last one's.
        alignment: Duration,
    },
}

/// The beginning of a task: a source, or the inputs from other tasks.
pub trait Head: Lifecycle {
    /// Takes the next piece of input into the chain. Only when the chain is drained. Records taken are added to `records_in`.
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        records_in: &mut u64,
    ) -> Result<HeadPoll, OperatorError>;
    /// A snapshot was announced by control. A source answers it at its next poll; a task with inputs remembers it.
    fn announce(&mut self, barrier: CheckpointBarrier);
    /// A snapshot was aborted: alignment on it ends.
    fn abandon(&mut self, checkpoint: CheckpointId);
    /// Whether channels are blocked until a barrier has come through all: that nothing comes is then no sign of an idle stream.
    fn is_aligning(&self) -> bool {
        false
    }
    /// The input shall end here (stop with drain); for inputs from other tasks nothing happens.
    fn drain(&mut self);
    /// Records may come: the first credit is granted.
    fn start(&mut self);
    /// Where in the input the work is that has not ended, for failure messages.
    fn position(&self) -> Option<String>;
    /// The last record that was taken, for failure messages of other work.
    fn reached(&self) -> Option<String>;
    /// Bytes received from other processes.
    fn bytes_in(&self) -> u64;
}
