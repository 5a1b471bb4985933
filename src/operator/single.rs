//! What an operator is asked for, what it is given and what it fills. How it is driven is the node's business.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::vec::IntoIter;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointId, FailureKind};

use super::{
    BATCH_RECORDS_MAX, OUTPUT_OF_ONE_CALL_MAX, OperatorError, OperatorStateStore, SideOutputs,
    Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, Record, Timestamp};
use crate::error::FunctionResult;

/// What an operator does with records and time. Everything else is the node's.
pub(crate) trait Operator: Send + 'static {
    /// Taken.
    type In: Record;
    /// Emitted.
    type Out: Record;

    /// Registers state and takes what was restored; without, there is none.
    fn open(
        &mut self,
        _operator: usize,
        _lists: &mut OperatorStateStore,
        _cx: &mut StartContext<'_>,
    ) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Processes records from the front of `input` until it is empty or `out` has no room, or all of it as one batch. Takes each when its
    /// turn comes, so that what is left tells which one fails.
    fn process(
        &mut self,
        input: &mut Pending<Self::In>,
        out: &mut Emitted<Self::Out>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError>;

    /// Which record of what is left of the input is looked at before its turn; `None`: the one taken last is worked on.
    fn looks_ahead(&self) -> Option<usize> {
        None
    }

    /// Whether each record gives one or none, at once and in order: then an output tells where it came from.
    fn is_at_most_one(&self) -> bool {
        false
    }

    /// Event time that the operator itself brings into the stream, once restored: downstream begins without.
    fn restored_watermark(&self) -> Option<Timestamp> {
        None
    }

    /// Acts on a signal, one bounded piece a call, and says when it is done and what goes on downstream; without, every signal does.
    fn signal(
        &mut self,
        signal: Signal,
        _out: &mut Emitted<Self::Out>,
        _cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError> {
        Ok(SignalResult::Forward(signal))
    }

    /// Whether a record that was taken from `input` still has output to come.
    fn is_busy(&self) -> bool {
        false
    }

    /// When to be woken without input.
    fn next_wakeup(&self, _cx: &TaskContext<'_>) -> Option<Instant> {
        None
    }

    /// Whether processing-time work is due.
    fn is_timer_due(&self, _cx: &TaskContext<'_>, _wall_ms: Timestamp) -> bool {
        false
    }

    /// Whether it keeps keyed state.
    fn has_keyed_state(&self) -> bool {
        false
    }

    /// Its event-time watermark, to be stored.
    fn watermark(&self) -> Option<Timestamp> {
        None
    }

    /// Before the operator state is captured: last chance to put something into lists.
    fn before_snapshot(
        &mut self,
        _checkpoint: CheckpointId,
        _lists: &mut OperatorStateStore,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        Ok(())
    }

    /// A checkpoint is complete.
    fn complete(&mut self, _checkpoint: CheckpointId) -> Result<(), OperatorError> {
        Ok(())
    }

    /// The attempt ends.
    fn close(&mut self) -> Result<(), OperatorError> {
        Ok(())
    }
}

/// What an operator made of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalResult {
    /// Call again: there is more to do, or output to hand on first.
    More,
    /// Done; this goes downstream.
    Forward(Signal),
    /// Done; nothing goes downstream.
    Swallow,
}

/// Input that was taken and not yet processed.
pub(crate) struct Pending<T> {
    pub(crate) values: IntoIter<T>,
    pub(crate) timestamps: IntoIter<Timestamp>,
    /// Records that left `values` to be worked on in place and whose turn has not come. Told when that work has ended, by a panic too.
    pub(super) in_place: usize,
}

impl<T> Pending<T> {
    pub(super) fn empty() -> Self {
        Self {
            values: Vec::new().into_iter(),
            timestamps: Vec::new().into_iter(),
            in_place: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len() + self.in_place
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.len() == 0
    }

    pub(super) fn has_timestamps(&self) -> bool {
        self.timestamps.len() > 0
    }

    /// Takes record after record, each with its event time, as long as `f` says that there is room for another, or until it fails. Each
    /// is copied as a whole from where it lies: out of an iterator it would come as an option, which takes a record with padding apart,
    /// and what was just written in pieces the processor cannot read as a whole before it has left the store buffer.
    #[inline]
    pub(super) fn take_while_room(
        &mut self,
        mut f: impl FnMut(T, Option<Timestamp>) -> Result<bool, OperatorError>,
    ) -> Result<(), OperatorError> {
        let Self {
            values, timestamps, ..
        } = self;
        let flow = values.try_for_each(|value| match f(value, timestamps.next()) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(Ok(())),
            Err(error) => ControlFlow::Break(Err(error)),
        });
        flow.break_value().unwrap_or(Ok(()))
    }

    /// Takes the records of a batch when none of its own are left, and leaves their memory there.
    pub(super) fn fill(&mut self, batch: &mut Batch<T>) {
        let taken = std::mem::take(batch);
        batch.values = emptied(std::mem::replace(
            &mut self.values,
            taken.values.into_iter(),
        ));
        batch.timestamps = emptied(std::mem::replace(
            &mut self.timestamps,
            taken.timestamps.into_iter(),
        ));
    }
}

/// The memory of an iterator that is at its end, if it fits: collecting in place is how the standard library gives it back. (If it did
/// not, this would be an empty vector all the same.)
pub(super) fn emptied<T, U>(rest: IntoIter<T>) -> Vec<U> {
    rest.filter_map(|_| None).collect()
}

/// Counts the records whose turn has not come, which costs no write for each, and tells it when dropped.
struct Left<'a> {
    records: usize,
    told: &'a mut usize,
}

impl Left<'_> {
    #[inline]
    fn one_taken(&mut self) {
        self.records -= 1;
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        *self.told = self.records;
    }
}

/// Output that was emitted and not yet handed on.
pub(crate) struct Emitted<T> {
    pub(crate) batch: Batch<T>,
    pub(crate) sides: SideOutputs,
    /// What follows the batch, in order.
    pub(crate) signals: VecDeque<Signal>,
    pub(crate) lists: OperatorStateStore,
}

impl<T> Emitted<T> {
    /// Whether the operator may go on; else the node hands on first.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.batch.len() < BATCH_RECORDS_MAX && self.sides.longest < BATCH_RECORDS_MAX
    }

    /// Whether all of the input may be worked on in place: what it is made to fits into its memory, and nothing was emitted before.
    pub(super) fn may_take_over<I>(&self, input: &Pending<I>) -> bool {
        size_of::<I>() == size_of::<T>()
            && align_of::<I>() == align_of::<T>()
            && self.batch.is_empty()
            && !input.is_empty()
    }

    /// Emits what `f` makes of each record of the input, in the input's memory, which takes the memory of the batch in turn: a copy of a
    /// record from one batch into another costs as much as a cheap function. Event times stay as they are: with them `f` may drop none.
    pub(super) fn take_over<I>(
        &mut self,
        input: &mut Pending<I>,
        mut f: impl FnMut(I) -> FunctionResult<Option<T>>,
    ) -> Result<(), OperatorError> {
        let Batch { values, timestamps } = &mut self.batch;
        let times = std::mem::take(timestamps).into_iter();
        *timestamps = std::mem::replace(&mut input.timestamps, times).collect();
        let memory = emptied(std::mem::take(values).into_iter());
        let taken = std::mem::replace(&mut input.values, memory.into_iter());
        let mut left = Left {
            records: taken.len(),
            told: &mut input.in_place,
        };
        *values = taken
            .filter_map(move |value| {
                left.one_taken();
                f(value).transpose()
            })
            .collect::<FunctionResult<_>>()?;
        Ok(())
    }

    /// Emits the input as it is: its memory, which takes that of the batch in turn.
    pub(super) fn take_whole(&mut self, input: &mut Pending<T>) {
        assert!(self.batch.is_empty(), "what was emitted is handed on");
        let Batch { values, timestamps } = std::mem::take(&mut self.batch);
        self.batch = Batch {
            values: std::mem::replace(&mut input.values, values.into_iter()).collect(),
            timestamps: std::mem::replace(&mut input.timestamps, timestamps.into_iter()).collect(),
        };
    }

    pub(super) fn check_limit(&self) -> Result<(), OperatorError> {
        let sides = self.sides.sides.iter();
        let too_long = std::iter::once((self.batch.len(), None))
            .chain(sides.map(|side| (side.len(), Some(side.name()))))
            .find(|(len, _)| *len > OUTPUT_OF_ONE_CALL_MAX);
        let Some((len, side)) = too_long else {
            return Ok(());
        };
        let (to, advice) = match side {
            Some(side) => (format!(" to side output `{side}`"), "split the record"),
            None => (
                String::new(),
                "return an iterator from flat_map, or split the record",
            ),
        };
        Err(OperatorError(FailureKind::Limit {
            limit: "OUTPUT_OF_ONE_CALL_MAX".into(),
            message: format!(
                "one call emitted {len} records{to}, at most {OUTPUT_OF_ONE_CALL_MAX} are allowed: {advice}"
            ),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::error::FunctionError;

    fn emitted<T>(values: Vec<T>) -> Emitted<T> {
        Emitted {
            batch: Batch {
                values,
                timestamps: Vec::new(),
            },
            sides: SideOutputs::default(),
            signals: VecDeque::new(),
            lists: OperatorStateStore::default(),
        }
    }

    fn pending(values: Vec<u64>, timestamps: Vec<Timestamp>) -> Pending<u64> {
        let mut pending = Pending::empty();
        pending.fill(&mut Batch { values, timestamps });
        pending
    }

    /// Both memories stay in use: what the input had holds the output, what the output had takes the next input.
    #[test]
    fn work_in_place_passes_memory_on_in_both_directions() {
        let (first, second) = (vec![1, 2, 3], Vec::<i64>::with_capacity(3));
        let (of_input, of_output) = (first.as_ptr().addr(), second.as_ptr().addr());
        let (mut input, mut out) = (pending(first, vec![10, 20, 30]), emitted(second));
        assert!(out.may_take_over(&input));
        out.take_over(&mut input, |n| Ok(Some(-n.cast_signed())))
            .unwrap();
        assert_eq!(out.batch.values, [-1, -2, -3]);
        assert_eq!(out.batch.timestamps, [10, 20, 30]);
        assert_eq!(out.batch.values.as_ptr().addr(), of_input);
        let mut upstream = Batch::default();
        input.fill(&mut upstream);
        assert_eq!(upstream.values.as_ptr().addr(), of_output);
        assert_eq!(upstream.values.capacity(), 3);
    }

    #[test]
    fn work_in_place_drops_records_and_tells_how_many_were_not_reached() {
        let mut out = emitted(Vec::<u64>::new());
        let mut input = pending((0..10).collect(), Vec::new());
        out.take_over(&mut input, |n| Ok((n % 2 == 1).then_some(n)))
            .unwrap();
        assert_eq!((out.batch.values, input.len()), (vec![1, 3, 5, 7, 9], 0));

        let mut out = emitted(Vec::<u64>::new());
        let mut input = pending((0..10).collect(), Vec::new());
        let fails_at_3 = |n| match n {
            3 => Err(FunctionError::unrecoverable("three")),
            n => Ok(Some(n)),
        };
        assert!(out.take_over(&mut input, fails_at_3).is_err());
        assert_eq!(input.len(), 6);
    }

    #[test]
    fn input_that_is_handed_on_as_it_is_changes_places_with_the_output() {
        let (first, second) = (vec![1, 2, 3], Vec::<u64>::with_capacity(5));
        let (of_input, of_output) = (first.as_ptr().addr(), second.as_ptr().addr());
        let times = vec![10, 20, 30];
        let of_times = times.as_ptr().addr();
        let (mut input, mut out) = (pending(first, times), emitted(second));
        out.take_whole(&mut input);
        assert_eq!(out.batch.values, [1, 2, 3]);
        assert_eq!(out.batch.timestamps, [10, 20, 30]);
        assert_eq!(out.batch.values.as_ptr().addr(), of_input);
        assert_eq!(out.batch.timestamps.as_ptr().addr(), of_times);
        let mut upstream = Batch::default();
        input.fill(&mut upstream);
        assert_eq!(upstream.values.as_ptr().addr(), of_output);
    }

    /// What is not taken stays, in order, with its event time.
    #[test]
    fn records_are_taken_until_there_is_no_room_or_one_fails() {
        let mut input = pending((0..6).collect(), (0..6).collect());
        let mut seen = Vec::new();
        let mut take = |last: u64, bad: u64, input: &mut Pending<u64>| {
            input.take_while_room(|n, time| {
                seen.push((n, time));
                let error = || FunctionError::unrecoverable("bad");
                (n != bad).then_some(()).ok_or_else(error)?;
                Ok(n != last)
            })
        };
        take(1, 9, &mut input).unwrap();
        take(9, 3, &mut input).unwrap_err();
        assert_eq!(input.len(), 2);
        take(9, 9, &mut input).unwrap();
        let all: Vec<_> = (0..6).map(|n| (n, Some(n as Timestamp))).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn memory_is_taken_over_where_records_fit_and_nothing_was_emitted() {
        let input = pending(vec![1], Vec::new());
        assert!(emitted(Vec::<i64>::new()).may_take_over(&input));
        assert!(!emitted(vec![1_i64]).may_take_over(&input));
        assert!(!emitted(Vec::<u32>::new()).may_take_over(&input));
        assert!(!emitted(Vec::<[u32; 2]>::new()).may_take_over(&input));
        assert!(!emitted(Vec::<u64>::new()).may_take_over(&pending(Vec::new(), Vec::new())));
    }
}
