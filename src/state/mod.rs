//! Keyed state: typed handles for functions, one backend behind them, and the face that the task loop sees.
//!
//! Access is fallible and never hands out references into the backend, so that a backend on disk fits behind the same handles.
//! Invariant: what a finished capture holds is exactly the state at its barrier (`tests` compares it with a copy of everything).
//! State does not know about checkpoints' outcome, files or networks: the task loop tells it and takes its bytes. Expiry (TTL)
//! will wrap the stored value with its time; nothing here depends on it.

mod aggregating;
mod capture;
mod cell;
mod composite;
mod encoding;
mod hash;
mod intervals;
mod list;
mod loading;
mod log;
mod map;
mod memory;
mod scheduled;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod value;

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
use perennial_actors::model::{
    CheckpointId, KeyGroup, KeyGroupRange, SegmentKind, SnapshotKind, StateMeta,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch::Timestamp;
use crate::key::{Key, KeyHash};

pub use aggregating::{AggregateFunction, AggregatingState, ReducingState};
pub use composite::MapKey;
pub use encoding::{DecodeError, RawEntry, decode_entries};
pub use list::ListState;
pub use map::MapState;
pub use memory::{CAPTURES_MAX, MemoryBackend};
pub(crate) use scheduled::{Scheduled, ScheduledState};
pub(crate) use table::READ_AHEAD_MAX;
pub use timers::Timers;
pub use value::ValueState;

/// What can be kept in state.
pub trait StateValue: Clone + Serialize + DeserializeOwned + Send + 'static {}
impl<V: Clone + Serialize + DeserializeOwned + Send + 'static> StateValue for V {}

/// What state and timers can be scoped by besides the key, e.g. a window.
pub trait Namespace:
    Clone + Ord + Eq + std::fmt::Debug + Serialize + DeserializeOwned + Send + 'static
{
}
impl<N: Clone + Ord + Eq + std::fmt::Debug + Serialize + DeserializeOwned + Send + 'static>
    Namespace for N
{
}

/// State could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Two registrations of one name disagree, or a snapshot's state is of another kind or key type.
    #[error("state `{name}`: {message}")]
    Incompatible {
        /// Of the state.
        name: String,
        /// Both sides.
        message: String,
    },
    /// A stored entry does not decode.
    #[error("state `{name}`, key group {group}: {message}")]
    Decode {
        /// Of the state.
        name: String,
        /// Where.
        group: KeyGroup,
        /// Why.
        message: String,
    },
    /// A value does not encode.
    #[error("state `{name}`: cannot encode a {type_name}: {message}")]
    Encode {
        /// Of the state.
        name: String,
        /// Rust's name of the value's type.
        type_name: &'static str,
        /// Why.
        message: String,
    },
    /// The backend's own disk or library failed.
    #[error("state backend: {0}")]
    Backend(String),
}

/// Where a capture begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureRequest {
    /// Which snapshot.
    pub checkpoint: CheckpointId,
    /// Write only what changed since; `None`: all.
    pub base: Option<CheckpointId>,
    /// Why.
    pub kind: SnapshotKind,
}

/// What one slice of capturing came to.
#[derive(Debug, Clone, PartialEq)]
pub enum CaptureProgress {
    /// More to do: call again.
    Working,
    /// All captures that were begun are done.
    Idle,
    /// This capture is complete.
    Done(CapturedState),
    /// This capture was given up, to keep the log within its limit: decline the checkpoint. Call again.
    Declined {
        /// Which snapshot.
        checkpoint: CheckpointId,
        /// Why.
        reason: String,
    },
}

/// A finished capture.
#[derive(Debug, Clone, PartialEq)]
pub struct CapturedState {
    /// Which snapshot.
    pub checkpoint: CheckpointId,
    /// All or changes (all when the base was not usable).
    pub kind: SegmentKind,
    /// Every registered state.
    pub states: Vec<StateMeta>,
    /// Ascending by group; with `Full`, every group of the range, even the empty ones.
    pub groups: Vec<(KeyGroup, Vec<u8>)>,
}

/// The answer to [`KeyedState::undo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// State is as it was at the checkpoint's barrier.
    Done,
    /// It must be loaded; the text says why. The state is not usable any more.
    Unavailable(String),
}

/// Figures for counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateFigures {
    /// Live entries.
    pub entries: u64,
    /// Estimated bytes of the pre-image log.
    pub log_bytes: u64,
    /// The log's soft limit is passed: a checkpoint would shorten it.
    pub wants_checkpoint: bool,
}

/// One operator's keyed state as the task loop sees it. One log serves three purposes: asynchronous snapshots, increments, undo in place.
/// Its nine rules:
///
/// 1. Interval b runs from this subtask's barrier b to its next. Each entry knows the interval of its last change, `since`.
/// 2. The first change of an entry in an interval logs its place, old value (or that it was absent) and old `since`, before it is made. A
///    delete leaves a tombstone. Before the first barrier nothing is logged.
/// 3. The value at barrier b is the oldest logged one of interval b and all later ones, else the live one. A capture takes live entries
///    with `since` < b, then logged ones with old `since` < b.
/// 4. An increment over base c takes only what has `since` >= c. The barrier carries c, whose objects stay while that is under way.
/// 5. Confirm(m) drops the logs of intervals before m and tombstones with `since` < m, but for what a running capture or its base needs.
/// 6. Abort(n) stops the capture and keeps the log. A savepoint is never a base and never a target of undo.
/// 7. Undo(m) stops all captures and applies the logs from the newest down to that of m. Where one is missing, state must be loaded.
/// 8. What is logged: an entry of a map, the old length of a list that is appended to (the list where it is replaced), a timer.
/// 9. The log is bounded. At half of the limit a checkpoint is asked for; at the limit undo is given up first, then the oldest capture.
pub trait KeyedState: Send {
    /// Rule 1: begins the interval of `request.checkpoint` and its capture. Cheap.
    fn barrier(&mut self, request: CaptureRequest) -> Result<(), StateError>;
    /// Works on the oldest running capture for at most about `slice`; also forgets, in slices, what a confirmed checkpoint has made
    /// superfluous: call it until `Idle` after `barrier`, `confirm`, `abort` and `undo`. An error is the capture's end.
    fn capture(&mut self, slice: Duration) -> Result<CaptureProgress, StateError>;
    /// Rule 5: the checkpoint is complete.
    fn confirm(&mut self, checkpoint: CheckpointId);
    /// Rule 6: the checkpoint will not complete.
    fn abort(&mut self, checkpoint: CheckpointId);
    /// Rule 7: back to the barrier of a completed checkpoint.
    fn undo(&mut self, checkpoint: CheckpointId) -> Undone;
    /// Begins a new attempt over kept tables: registrations and handles are void, tables wait for their registration.
    fn begin_attempt(&mut self);
    /// Loads one segment's slices (checksums verified by the caller), in chain order. Values decode when their state is registered.
    fn load(
        &mut self,
        checkpoint: CheckpointId,
        kind: SegmentKind,
        states: &[StateMeta],
        groups: Vec<(KeyGroup, Bytes)>,
    ) -> Result<(), StateError>;
    /// After all operators have registered their states: what was loaded and not registered is an error, or dropped.
    /// `checkpoint` becomes usable as a base and as an undo target.
    fn finish_load(
        &mut self,
        checkpoint: CheckpointId,
        allow_non_restored_state: bool,
    ) -> Result<(), StateError>;
    /// For counters.
    fn figures(&self) -> StateFigures;
    /// To get the typed backend back.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// Sabotage: from now on nothing is logged before it changes.
    #[cfg(feature = "fault-points")]
    fn drop_pre_images(&mut self);
}

/// Bounds of a backend.
#[derive(Debug, Clone, Copy)]
pub struct StateLimits {
    /// Hard limit of the pre-image log of one backend, in bytes; the soft one is half of it.
    pub log_bytes_max: u64,
}

/// The keyed state of one operator in one subtask; the one boundary that every access goes through.
pub enum KeyedBackend<K: Key> {
    /// Tables in memory with a pre-image log.
    Memory(MemoryBackend<K>),
}

/// Something that has a backend and a current key: a context, or the backend itself.
pub trait KeyedAccess {
    /// The key type.
    type Key: Key;
    /// The backend.
    fn backend(&mut self) -> &mut KeyedBackend<Self::Key>;
}

impl<K: Key> KeyedAccess for KeyedBackend<K> {
    type Key = K;
    fn backend(&mut self) -> &mut KeyedBackend<K> {
        self
    }
}

/// Event time or the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeDomain {
    /// Advanced by watermarks.
    EventTime,
    /// Advanced by the clock.
    ProcessingTime,
}

impl<K: Key> KeyedBackend<K> {
    /// An empty backend in memory.
    #[must_use]
    pub fn memory(range: KeyGroupRange, max_parallelism: u32, limits: StateLimits) -> Self {
        Self::Memory(MemoryBackend::new(range, max_parallelism, limits))
    }

    /// Sets the key that all handles work on.
    #[inline]
    pub fn set_current_key(&mut self, key: &K, hash: KeyHash) {
        let Self::Memory(memory) = self;
        memory.set_current_key(key, hash);
    }

    /// Brings the entries of the next keys near the processor. `scratch` is the caller's, to be used again.
    #[inline]
    pub(crate) fn read_ahead(
        &self,
        hashes: impl Iterator<Item = KeyHash>,
        scratch: &mut Vec<(usize, u64)>,
    ) {
        let Self::Memory(memory) = self;
        memory.read_ahead(hashes, scratch);
    }

    /// The key that all handles work on.
    #[must_use]
    pub fn current_key(&self) -> Option<&K> {
        let Self::Memory(memory) = self;
        memory.current_key()
    }

    /// Registers a value state. The same name gives the same state in every attempt.
    pub fn value_state<V: StateValue, N: Namespace>(
        &mut self,
        name: &str,
    ) -> Result<ValueState<V, N>, StateError> {
        ValueState::register(self, name, "value")
    }

    /// Registers a state of values that are due at times.
    pub(crate) fn scheduled_state<V: Scheduled>(
        &mut self,
        name: &str,
    ) -> Result<ScheduledState<V>, StateError> {
        ScheduledState::register(self, name)
    }

    /// Says that event-time timers of that name, which earlier builds stored, are needed no more: what is loaded of them is dropped,
    /// instead of refused as a state that nobody registers.
    pub(crate) fn retire_timers(&mut self, name: &str) {
        let Self::Memory(memory) = self;
        memory.retire(timers::state_name(name, TimeDomain::EventTime));
    }

    /// Registers a list state.
    pub fn list_state<E: StateValue, N: Namespace>(
        &mut self,
        name: &str,
    ) -> Result<ListState<E, N>, StateError> {
        ListState::register(self, name)
    }

    /// Registers a map state.
    pub fn map_state<M: MapKey, V: StateValue, N: Namespace>(
        &mut self,
        name: &str,
    ) -> Result<MapState<M, V, N>, StateError> {
        MapState::register(self, name)
    }

    /// Registers a value into which added values are folded by `reduce`.
    pub fn reducing_state<V: StateValue, N: Namespace, F: Fn(V, V) -> V>(
        &mut self,
        name: &str,
        reduce: F,
    ) -> Result<ReducingState<V, F, N>, StateError> {
        ReducingState::register(self, name, reduce)
    }

    /// Registers an accumulator.
    pub fn aggregating_state<G: AggregateFunction, N: Namespace>(
        &mut self,
        name: &str,
        function: G,
    ) -> Result<AggregatingState<G, N>, StateError> {
        AggregatingState::register(self, name, function)
    }

    /// Registers timers with a namespace.
    pub fn timers<N: Namespace>(&mut self, name: &str) -> Result<Timers<N>, StateError> {
        Timers::register_state(self, name)
    }

    /// Time of the earliest timer of a domain.
    #[must_use]
    pub fn next_timer(&self, domain: TimeDomain) -> Option<Timestamp> {
        let Self::Memory(memory) = self;
        memory.next_timer(domain)
    }
}

impl<K: Key> KeyedState for KeyedBackend<K> {
    fn barrier(&mut self, request: CaptureRequest) -> Result<(), StateError> {
        let Self::Memory(memory) = self;
        memory.barrier(request)
    }
    fn capture(&mut self, slice: Duration) -> Result<CaptureProgress, StateError> {
        let Self::Memory(memory) = self;
        memory.capture(slice)
    }
    fn confirm(&mut self, checkpoint: CheckpointId) {
        let Self::Memory(memory) = self;
        memory.confirm(checkpoint);
    }
    fn abort(&mut self, checkpoint: CheckpointId) {
        let Self::Memory(memory) = self;
        memory.abort(checkpoint);
    }
    fn undo(&mut self, checkpoint: CheckpointId) -> Undone {
        let Self::Memory(memory) = self;
        memory.undo(checkpoint)
    }
    fn begin_attempt(&mut self) {
        let Self::Memory(memory) = self;
        memory.begin_attempt();
    }
    fn load(
        &mut self,
        _checkpoint: CheckpointId,
        kind: SegmentKind,
        states: &[StateMeta],
        groups: Vec<(KeyGroup, Bytes)>,
    ) -> Result<(), StateError> {
        let Self::Memory(memory) = self;
        memory.load(kind, states, groups)
    }
    fn finish_load(
        &mut self,
        checkpoint: CheckpointId,
        allow_non_restored_state: bool,
    ) -> Result<(), StateError> {
        let Self::Memory(memory) = self;
        memory.finish_load(checkpoint, allow_non_restored_state)
    }
    fn figures(&self) -> StateFigures {
        let Self::Memory(memory) = self;
        memory.figures()
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    #[cfg(feature = "fault-points")]
    fn drop_pre_images(&mut self) {
        let Self::Memory(memory) = self;
        memory.intervals.drops_pre_images = true;
    }
}
