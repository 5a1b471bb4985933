//! Process functions on keyed streams: state, timers, side outputs.

use std::marker::PhantomData;

use perennial_actors::clock::Instant;
use perennial_actors::fault::{FaultSite, Sabotage};
use perennial_actors::model::FailureKind;

use super::read_ahead::ReadAhead;
use super::single::{Emitted, Operator, Pending, SignalResult};
use super::{
    OperatorError, OperatorList, OperatorStateStore, OutputTag, Redistribution, Signal,
    StartContext, TIMERS_OF_ONE_CALL_MAX, TaskContext,
};
use crate::batch::{Batch, Record, Timestamp};
use crate::connector::SubtaskContext;
use crate::error::FunctionResult;
use crate::key::Key;
use crate::operator::SideOutputs;
use crate::state::{
    AggregateFunction, AggregatingState, KeyedAccess, KeyedBackend, KeyedState, ListState, MapKey,
    MapState, ReducingState, StateError, StateLimits, StateValue, TimeDomain, Timers, ValueState,
};

/// The name under which a process function's timers are stored.
const TIMERS: &str = "timers";

/// What to do with the records and timers of each key. One object serves all keys of a subtask; what belongs to a key is in state.
///
/// The function is made anew for every attempt. Fields are not restored, and what it shares through `Arc` or statics is not either.
pub trait KeyedProcessFunction<K: Key, T>: Send + 'static {
    /// Emitted to the main output.
    type Out: Record;

    /// Registers state. Called once per attempt, before any record; there is no current key.
    fn open(&mut self, _cx: &mut OpenContext<'_, K>) -> FunctionResult {
        Ok(())
    }

    /// Handles one record of the current key.
    fn process(&mut self, value: T, cx: &mut ProcessContext<'_, K, Self::Out>) -> FunctionResult;

    /// Handles a timer of the current key.
    fn on_timer(
        &mut self,
        _time: Timestamp,
        _domain: TimeDomain,
        _cx: &mut ProcessContext<'_, K, Self::Out>,
    ) -> FunctionResult {
        Ok(())
    }
}

/// What a function has in [`KeyedProcessFunction::open`].
///
/// ```
/// use perennial::error::{FunctionError, FunctionResult};
/// use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext};
/// use perennial::state::{ListState, MapState, ReducingState};
///
/// /// Keeps a user's pages, counts them by name, and their longest stay.
/// #[derive(Clone, Default)]
/// struct Visits {
///     pages: Option<ListState<String>>,
///     counts: Option<MapState<String, u64>>,
///     longest: Option<ReducingState<u64, fn(u64, u64) -> u64>>,
/// }
///
/// impl KeyedProcessFunction<u64, (String, u64)> for Visits {
///     type Out = u64;
///
///     fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
///         self.pages = Some(cx.list_state("pages")?);
///         self.counts = Some(cx.map_state("counts")?);
///         self.longest = Some(cx.reducing_state("longest", u64::max as fn(u64, u64) -> u64)?);
///         Ok(())
///     }
///
///     fn process(
///         &mut self,
///         (page, stay): (String, u64),
///         cx: &mut ProcessContext<'_, u64, u64>,
///     ) -> FunctionResult {
///         let (Some(pages), Some(counts), Some(longest)) = (&self.pages, &self.counts, &self.longest)
///         else {
///             return Err(FunctionError::new("open was not called"));
///         };
///         pages.add(cx, page.clone())?;
///         let count = counts.get(cx, &page)?.unwrap_or(0) + 1;
///         counts.insert(cx, &page, count)?;
///         longest.add(cx, stay)?;
///         cx.emit(count);
///         Ok(())
///     }
/// }
/// ```
pub struct OpenContext<'a, K: Key> {
    backend: &'a mut KeyedBackend<K>,
    lists: &'a mut OperatorStateStore,
    subtask: &'a SubtaskContext,
}

impl<K: Key> OpenContext<'_, K> {
    /// Registers a value per key.
    pub fn value_state<V: StateValue>(&mut self, name: &str) -> Result<ValueState<V>, StateError> {
        self.backend.value_state(name)
    }

    /// Registers a list per key.
    pub fn list_state<E: StateValue>(&mut self, name: &str) -> Result<ListState<E>, StateError> {
        self.backend.list_state(name)
    }

    /// Registers a map per key.
    pub fn map_state<M: MapKey, V: StateValue>(
        &mut self,
        name: &str,
    ) -> Result<MapState<M, V>, StateError> {
        self.backend.map_state(name)
    }

    /// Registers a value per key that what is added is combined with.
    pub fn reducing_state<V: StateValue, F: Fn(V, V) -> V>(
        &mut self,
        name: &str,
        reduce: F,
    ) -> Result<ReducingState<V, F>, StateError> {
        self.backend.reducing_state(name, reduce)
    }

    /// Registers an accumulator per key.
    pub fn aggregating_state<G: AggregateFunction>(
        &mut self,
        name: &str,
        aggregate: G,
    ) -> Result<AggregatingState<G>, StateError> {
        self.backend.aggregating_state(name, aggregate)
    }

    /// Registers a list of operator state.
    pub fn operator_list<V: StateValue>(
        &mut self,
        name: &str,
        redistribution: Redistribution,
    ) -> FunctionResult<OperatorList<V>> {
        self.lists
            .register(name, redistribution)
            .map_err(|OperatorError(kind)| kind.into())
    }

    /// Where the function runs.
    #[must_use]
    pub fn subtask(&self) -> &SubtaskContext {
        self.subtask
    }
}

impl<K: Key> KeyedAccess for OpenContext<'_, K> {
    type Key = K;
    fn backend(&mut self) -> &mut KeyedBackend<K> {
        self.backend
    }
}

/// What a function has while it handles a record or timer.
pub struct ProcessContext<'a, K: Key, O> {
    backend: &'a mut KeyedBackend<K>,
    batch: &'a mut Batch<O>,
    sides: &'a mut SideOutputs,
    lists: &'a mut OperatorStateStore,
    timers: &'a Timers,
    timestamp: Option<Timestamp>,
    watermark: Option<Timestamp>,
    wall_ms: Timestamp,
}

impl<K: Key, O: Record> ProcessContext<'_, K, O> {
    /// Emits a record with the event time of the one being handled. At most
    /// [`OUTPUT_OF_ONE_CALL_MAX`](super::OUTPUT_OF_ONE_CALL_MAX) in one call: with more, the attempt fails.
    #[inline]
    pub fn emit(&mut self, value: O) {
        self.batch.push(value, self.timestamp);
    }

    /// Emits to a side output.
    pub fn emit_to<S: Record>(&mut self, tag: &OutputTag<S>, value: S) {
        self.sides.emit(tag, value, self.timestamp);
    }

    /// Event time of the record, or the time of an event-time timer; `None` without one, and in processing-time timers.
    #[must_use]
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.timestamp
    }

    /// Event time so far; `None` before the first watermark.
    #[must_use]
    pub fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }

    /// Wall-clock time in ms.
    #[must_use]
    pub fn processing_time(&self) -> Timestamp {
        self.wall_ms
    }

    /// The key of the record or timer.
    ///
    /// # Panics
    /// Never: a function is called with a current key only.
    #[must_use]
    pub fn key(&self) -> &K {
        self.backend
            .current_key()
            .expect("a function is called with a current key")
    }

    /// Has [`KeyedProcessFunction::on_timer`] called when event time passes `time`.
    pub fn register_event_time_timer(&mut self, time: Timestamp) -> Result<(), StateError> {
        self.timers
            .register(self.backend, TimeDomain::EventTime, time, &())
    }

    /// Has [`KeyedProcessFunction::on_timer`] called at a wall-clock time, in ms.
    pub fn register_processing_time_timer(&mut self, time: Timestamp) -> Result<(), StateError> {
        self.timers
            .register(self.backend, TimeDomain::ProcessingTime, time, &())
    }

    /// Takes a timer back.
    pub fn delete_event_time_timer(&mut self, time: Timestamp) -> Result<(), StateError> {
        self.timers
            .delete(self.backend, TimeDomain::EventTime, time, &())
    }

    /// Takes a timer back.
    pub fn delete_processing_time_timer(&mut self, time: Timestamp) -> Result<(), StateError> {
        self.timers
            .delete(self.backend, TimeDomain::ProcessingTime, time, &())
    }

    /// A list of operator state.
    pub fn operator_list<V: StateValue>(&mut self, list: OperatorList<V>) -> &mut Vec<V> {
        self.lists.get_mut(list)
    }
}

impl<K: Key, O> KeyedAccess for ProcessContext<'_, K, O> {
    type Key = K;
    #[inline]
    fn backend(&mut self) -> &mut KeyedBackend<K> {
        self.backend
    }
}

/// Puts the operator's backend in its place: an inherited one, or a new one with what was loaded.
pub(crate) fn open_backend<'a, K: Key>(
    operator: usize,
    cx: &'a mut StartContext<'_>,
) -> Result<&'a mut KeyedBackend<K>, OperatorError> {
    if cx.keyed[operator].is_none() {
        let limits = StateLimits {
            log_bytes_max: cx.task.log_bytes_max,
        };
        let mut backend =
            KeyedBackend::<K>::memory(cx.task.key_groups, cx.task.max_parallelism, limits);
        for segment in std::mem::take(&mut cx.restored[operator].segments) {
            backend.load(
                segment.checkpoint,
                segment.kind,
                &segment.states,
                segment.groups,
            )?;
        }
        cx.keyed[operator] = Some(Box::new(backend));
    }
    backend_of(cx.keyed, operator)
}

/// Moves event time on to a watermark and returns where it is now. After a restore the inputs may be behind the stored one, e.g. those that
/// were idle. It does not go back: a timer that has fired would be late, a window come back with its late records only.
pub(crate) fn advance_event_time(
    event_time: &mut Option<Timestamp>,
    watermark: Timestamp,
) -> Timestamp {
    let now = event_time.map_or(watermark, |before| before.max(watermark));
    *event_time = Some(now);
    now
}

/// The typed backend of an operator.
#[inline]
pub(crate) fn backend_of<K: Key>(
    keyed: &mut super::KeyedStates,
    operator: usize,
) -> Result<&mut KeyedBackend<K>, OperatorError> {
    keyed[operator]
        .as_mut()
        .and_then(|state| state.as_any_mut().downcast_mut::<KeyedBackend<K>>())
        .ok_or_else(|| {
            OperatorError(FailureKind::Internal {
                message: format!(
                    "operator {operator} has no keyed state with keys of type {}",
                    std::any::type_name::<K>()
                ),
            })
        })
}

/// A process function in a chain.
pub struct KeyedProcess<F, K, T, S> {
    function: F,
    selector: S,
    operator: usize,
    timers: Option<Timers>,
    watermark: Option<Timestamp>,
    /// Cached, so that a step need not look into the backend.
    next_processing_timer: Option<Timestamp>,
    ahead: ReadAhead<K>,
    _types: PhantomData<fn(T) -> K>,
}

impl<F, K: Key, T, S> KeyedProcess<F, K, T, S> {
    pub(crate) fn new(function: F, selector: S) -> Self {
        Self {
            function,
            selector,
            operator: 0,
            timers: None,
            watermark: None,
            next_processing_timer: None,
            ahead: ReadAhead::new(),
            _types: PhantomData,
        }
    }
}

impl<F, K, T, S> Operator for KeyedProcess<F, K, T, S>
where
    F: KeyedProcessFunction<K, T>,
    K: Key,
    T: Record,
    S: Fn(&T) -> K + Send + 'static,
{
    type In = T;
    type Out = F::Out;

    fn open(
        &mut self,
        operator: usize,
        lists: &mut OperatorStateStore,
        cx: &mut StartContext<'_>,
    ) -> Result<(), OperatorError> {
        self.operator = operator;
        self.watermark = cx.restored[operator].watermark;
        let subtask = cx.task.subtask_context(operator);
        let backend = open_backend::<K>(operator, cx)?;
        self.timers = Some(backend.timers(TIMERS)?);
        self.function.open(&mut OpenContext {
            backend,
            lists,
            subtask: &subtask,
        })?;
        self.next_processing_timer = backend.next_timer(TimeDomain::ProcessingTime);
        Ok(())
    }

    fn process(
        &mut self,
        input: &mut Pending<T>,
        out: &mut Emitted<F::Out>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        let wall_ms = cx.clock.wall_ms_at(cx.now) as Timestamp;
        let backend = backend_of::<K>(cx.keyed, self.operator)?;
        let timers = self.timers.as_ref().expect("registered in open");
        self.ahead.read(input, &self.selector, backend);
        self.ahead
            .take_while_room(input, |(key, hash), value, timestamp| {
                backend.set_current_key(key, hash);
                let mut context = ProcessContext {
                    backend,
                    batch: &mut out.batch,
                    sides: &mut out.sides,
                    lists: &mut out.lists,
                    timers,
                    timestamp,
                    watermark: self.watermark,
                    wall_ms,
                };
                self.function.process(value, &mut context)?;
                Ok(out.has_room())
            })?;
        self.next_processing_timer = backend.next_timer(TimeDomain::ProcessingTime);
        Ok(())
    }

    fn signal(
        &mut self,
        signal: Signal,
        out: &mut Emitted<F::Out>,
        cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError> {
        let (domain, up_to) = match signal {
            Signal::Watermark(watermark) => {
                let watermark = advance_event_time(&mut self.watermark, watermark);
                (TimeDomain::EventTime, watermark)
            }
            Signal::ProcessingTime(now) => (TimeDomain::ProcessingTime, now),
            Signal::Status(_) | Signal::EndOfInput => return Ok(SignalResult::Forward(signal)),
        };
        let wall_ms = cx.clock.wall_ms_at(cx.now) as Timestamp;
        let backend = backend_of::<K>(cx.keyed, self.operator)?;
        let timers = self.timers.as_ref().expect("registered in open");
        // Bounded by timers too: what they emit to side outputs must be handed on.
        for _ in 0..TIMERS_OF_ONE_CALL_MAX {
            let Some((time, ())) = timers.pop(backend, domain, up_to)? else {
                self.next_processing_timer = backend.next_timer(TimeDomain::ProcessingTime);
                return Ok(SignalResult::Forward(signal));
            };
            cx.faults.hit(FaultSite::OnTimer)?;
            if cx.faults.is_sabotaged(Sabotage::LoseTimer) && time.rem_euclid(7) == 0 {
                continue;
            }
            let mut context = ProcessContext {
                backend,
                batch: &mut out.batch,
                sides: &mut out.sides,
                lists: &mut out.lists,
                timers,
                timestamp: (domain == TimeDomain::EventTime).then_some(time),
                watermark: self.watermark,
                wall_ms,
            };
            self.function.on_timer(time, domain, &mut context)?;
            if !out.has_room() {
                break;
            }
        }
        Ok(SignalResult::More)
    }

    fn looks_ahead(&self) -> Option<usize> {
        self.ahead.looks_ahead()
    }

    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        let at = self.next_processing_timer?;
        let wall = cx.clock.wall_ms_at(cx.now) as Timestamp;
        let wait = u64::try_from(at.saturating_sub(wall)).unwrap_or(0);
        Some(cx.now + std::time::Duration::from_millis(wait))
    }

    fn is_timer_due(&self, _cx: &TaskContext<'_>, wall_ms: Timestamp) -> bool {
        self.next_processing_timer.is_some_and(|at| at <= wall_ms)
    }

    fn has_keyed_state(&self) -> bool {
        true
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.watermark
    }
}

/// Combines two values of one key into one.
pub trait ReduceFunction<T>: Send + 'static {
    /// Combines.
    fn reduce(&mut self, left: T, right: T) -> FunctionResult<T>;
}

impl<T, F: FnMut(T, T) -> FunctionResult<T> + Send + 'static> ReduceFunction<T> for F {
    fn reduce(&mut self, left: T, right: T) -> FunctionResult<T> {
        self(left, right)
    }
}

/// A rolling reduce: emits the combined value of the key after each record.
pub struct Reduce<F, T> {
    function: F,
    state: Option<ValueState<T>>,
}

impl<F, T> Reduce<F, T> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            function,
            state: None,
        }
    }
}

impl<K: Key, T: Record, F: ReduceFunction<T>> KeyedProcessFunction<K, T> for Reduce<F, T> {
    type Out = T;

    fn open(&mut self, cx: &mut OpenContext<'_, K>) -> FunctionResult {
        self.state = Some(cx.value_state("reduced")?);
        Ok(())
    }

    fn process(&mut self, value: T, cx: &mut ProcessContext<'_, K, T>) -> FunctionResult {
        let state = self.state.as_ref().expect("registered in open");
        let function = &mut self.function;
        let combined = state.update_in(cx, &(), |slot| -> FunctionResult<T> {
            let next = match slot.clone() {
                Some(before) => function.reduce(before, value)?,
                None => value,
            };
            *slot = Some(next.clone());
            Ok(next)
        })??;
        cx.emit(combined);
        Ok(())
    }
}
