//! Event-time windows with incremental aggregation.
//!
//! An assigner says which windows there are; from its [`WindowKind`] follows how they are kept:
//! - aligned windows (tumbling, sliding) as panes, the longest spans that no window begins or ends within: a record touches one pane,
//!   however many windows it lies in, and a window is put together when it fires ([`panes`]);
//! - sessions as spans that grow and merge ([`sessions`]);
//! - all others one by one ([`separate`]).
//!
//! Panes and sessions of a key are kept together in one entry of its state, which says when it is due ([`operator`]).
//!
//! Invariant: what a window emits is the fold of exactly the records that came before the watermark had passed its end (and the
//! allowed lateness); such a window emits at its end, and again with each record that is late and allowed. No state outlives the
//! last window that needs it.
//!
//! Windows by processing time, by count, and triggers are not here.

mod assigner;
mod operator;
mod panes;
mod separate;
mod sessions;
#[cfg(test)]
mod tests;

use perennial_actors::model::FailureKind;
use serde::{Deserialize, Serialize};

use super::OperatorError;
use crate::batch::{Record, Timestamp};
use crate::state::{Scheduled, StateValue};

pub use assigner::{
    EventTimeSessionWindows, SlidingEventTimeWindows, TumblingEventTimeWindows, WindowAssigner,
    WindowKind,
};
pub(crate) use operator::WindowOperator;
pub(crate) use panes::Panes;
pub(crate) use separate::SeparateWindows;
pub(crate) use sessions::Sessions;

/// A span of event time, in ms: from `start` to just before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimeWindow {
    /// First time inside.
    pub start: Timestamp,
    /// First time after.
    pub end: Timestamp,
}

impl TimeWindow {
    /// The last time inside.
    #[must_use]
    pub fn max_timestamp(self) -> Timestamp {
        self.end - 1
    }

    /// The watermark with which it is gone for late records, too.
    fn gone_at(self, lateness: i64) -> Timestamp {
        self.max_timestamp().saturating_add(lateness)
    }
}

/// Folds the records of a window into an accumulator.
///
/// The order of records within a window is not defined, and parts of a window may be folded apart and merged: an aggregate must not
/// depend on either.
pub trait AggregateFunction: Send + 'static {
    /// Records.
    type In: Record;
    /// What is stored.
    type Accumulator: StateValue;
    /// The result.
    type Out: Record;
    /// An empty accumulator.
    fn create_accumulator(&self) -> Self::Accumulator;
    /// Adds a record.
    fn add(&self, accumulator: &mut Self::Accumulator, value: Self::In);
    /// The result so far.
    fn result(&self, accumulator: &Self::Accumulator) -> Self::Out;
    /// Adds what another accumulator holds: panes of a sliding window, sessions that turn out to be one.
    fn merge(&self, accumulator: &mut Self::Accumulator, other: &Self::Accumulator);
}

/// How the windows of one key are kept, in one entry of its state. Pure: the operator owns state and output.
pub(crate) trait Layout<A: AggregateFunction>: Send + 'static {
    /// Name of the state.
    const STATE: &'static str;
    /// The windows of a key. They are due when one of them ends, or nothing needs it any more.
    type Windows: Scheduled;

    /// Adds a record, of which there is one: takes it, unless all its windows are gone. Windows that have ended already and are still kept
    /// go to `emit` with their new result.
    fn add(
        &mut self,
        aggregate: &A,
        windows: &mut Option<Self::Windows>,
        record: (&mut Option<A::In>, Timestamp),
        watermark: Timestamp,
        emit: impl FnMut(TimeWindow, A::Out),
    );

    /// Acts at the time that the windows are due: emits those that end, drops what no window needs any more. What is left is due later.
    fn fire(
        &self,
        aggregate: &A,
        windows: &mut Option<Self::Windows>,
        time: Timestamp,
        emit: impl FnMut(TimeWindow, A::Out),
    );
}

/// Refuses a record without event time, which the least of all times is, too.
#[inline]
fn event_time_of(timestamp: Option<Timestamp>) -> Result<Timestamp, OperatorError> {
    match timestamp {
        Some(timestamp) if timestamp > Timestamp::MIN => Ok(timestamp),
        _ => Err(without_event_time()),
    }
}

#[cold]
fn without_event_time() -> OperatorError {
    OperatorError(FailureKind::User {
        message: "a record without event time reached an event-time window: give the source a WatermarkStrategy with timestamps".into(),
        is_unrecoverable: true,
    })
}
