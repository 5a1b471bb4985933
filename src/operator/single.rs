//! What an operator is asked for, what it is given and what it fills. How it is driven is the node's business.

use std::collections::VecDeque;
use std::vec::IntoIter;

use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointId, FailureKind};

use super::{
    BATCH_RECORDS_MAX, OUTPUT_OF_ONE_CALL_MAX, OperatorError, OperatorStateStore, SideOutputs,
    Signal, StartContext, TaskContext,
};
use crate::batch::{Batch, Record, Timestamp};

/// What an operator does with records and time. Everything else is the node's.
pub(crate) trait Operator: Send + 'static {
    /// Taken.
    type In: Record;
    /// Emitted.
    type Out: Record;

    /// Registers state and takes what was restored.
    fn open(
        &mut self,
        operator: usize,
        lists: &mut OperatorStateStore,
        cx: &mut StartContext<'_>,
    ) -> Result<(), OperatorError>;

    /// Processes records from the front of `input` until it is empty or `out` has [`BATCH_RECORDS_MAX`] records. Takes each when its
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

    /// Acts on a signal, one bounded piece a call, and says when it is done and what goes on downstream.
    fn signal(
        &mut self,
        signal: Signal,
        out: &mut Emitted<Self::Out>,
        cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError>;

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
}

impl<T> Pending<T> {
    pub(super) fn empty() -> Self {
        Self {
            values: Vec::new().into_iter(),
            timestamps: Vec::new().into_iter(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.len() == 0
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

/// The memory of an iterator that is at its end: collecting in place is how the standard library gives it back. (If it did not, this
/// would be an empty vector all the same.)
fn emptied<T>(rest: IntoIter<T>) -> Vec<T> {
    rest.filter(|_| false).collect()
}

impl<T> Iterator for Pending<T> {
    type Item = (T, Option<Timestamp>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let value = self.values.next()?;
        Some((value, self.timestamps.next()))
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
    /// Whether the node must hand on before it goes on; for operators without side outputs.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.batch.len() >= BATCH_RECORDS_MAX
    }

    /// As [`is_full`](Self::is_full), for operators with side outputs.
    #[inline]
    pub(crate) fn is_any_full(&self) -> bool {
        self.is_full() || self.sides.longest >= BATCH_RECORDS_MAX
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
