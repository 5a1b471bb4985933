//! Event times and watermarks from records (semantics of Flink's `WatermarkStrategy`).

use std::sync::Arc;
use std::time::Duration;

use perennial_actors::clock::Instant;

use super::single::{Emitted, Operator, Pending, SignalResult};
use super::{OperatorError, OperatorStateStore, Signal, StartContext, TaskContext};
use crate::batch::{MAX_WATERMARK, Record, StreamStatus, Timestamp};

type Assigner<T> = Arc<dyn Fn(&T, Option<Timestamp>) -> Timestamp + Send + Sync>;

/// How event time is told from records.
pub struct WatermarkStrategy<T> {
    assigner: Option<Assigner<T>>,
    bound: Option<i64>,
    idleness: Option<Duration>,
}

impl<T> Clone for WatermarkStrategy<T> {
    fn clone(&self) -> Self {
        Self {
            assigner: self.assigner.clone(),
            bound: self.bound,
            idleness: self.idleness,
        }
    }
}

impl<T> WatermarkStrategy<T> {
    /// No watermarks until the end of input.
    #[must_use]
    pub fn no_watermarks() -> Self {
        Self {
            assigner: None,
            bound: None,
            idleness: None,
        }
    }

    /// Event times never fall.
    #[must_use]
    pub fn monotonous() -> Self {
        Self::bounded_out_of_orderness(Duration::ZERO)
    }

    /// A record is at most `bound` behind the latest one. The watermark is the latest event time less the bound less 1 ms.
    #[must_use]
    pub fn bounded_out_of_orderness(bound: Duration) -> Self {
        Self {
            assigner: None,
            bound: Some(i64::try_from(bound.as_millis()).unwrap_or(i64::MAX)),
            idleness: None,
        }
    }

    /// Takes the event time from the record; the second argument is the one the source gave.
    #[must_use]
    pub fn with_timestamps(
        mut self,
        assigner: impl Fn(&T, Option<Timestamp>) -> Timestamp + Send + Sync + 'static,
    ) -> Self {
        self.assigner = Some(Arc::new(assigner));
        self
    }

    /// After this long without a record the stream no longer holds back others.
    #[must_use]
    pub fn with_idleness(mut self, timeout: Duration) -> Self {
        self.idleness = Some(timeout);
        self
    }

    /// Whether the strategy changes anything.
    pub(crate) fn is_needed(&self) -> bool {
        self.assigner.is_some() || self.bound.is_some() || self.idleness.is_some()
    }
}

/// Assigns event times and follows each batch with a watermark.
pub(crate) struct WatermarkOperator<T> {
    strategy: WatermarkStrategy<T>,
    latest: Option<Timestamp>,
    emitted: Option<Timestamp>,
    is_assigning: bool,
    /// Event times of the batch that is worked on; between batches memory for the next.
    assigned: Vec<Timestamp>,
    /// When the last record came, and for how long the task had been held up by then: that time says nothing about the stream.
    last_record: Option<(Instant, Duration)>,
    is_idle: bool,
}

impl<T> WatermarkOperator<T> {
    pub(crate) fn new(strategy: WatermarkStrategy<T>) -> Self {
        Self {
            strategy,
            latest: None,
            emitted: None,
            is_assigning: false,
            assigned: Vec::new(),
            last_record: None,
            is_idle: false,
        }
    }
}

impl<T: Record> Operator for WatermarkOperator<T> {
    type In = T;
    type Out = T;

    fn open(
        &mut self,
        operator: usize,
        _lists: &mut OperatorStateStore,
        cx: &mut StartContext<'_>,
    ) -> Result<(), OperatorError> {
        let restored = cx.restored[operator].watermark;
        // Event time goes on from the snapshot, so that a record late before a failure is late after it.
        self.emitted = restored;
        self.latest = restored
            .zip(self.strategy.bound)
            .map(|(w, bound)| w.saturating_add(bound).saturating_add(1));
        self.last_record = Some((cx.now, Duration::ZERO));
        Ok(())
    }

    fn process(
        &mut self,
        input: &mut Pending<T>,
        out: &mut Emitted<T>,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        self.last_record = Some((cx.now, cx.held_up));
        if self.is_idle {
            self.is_idle = false;
            out.signals.push_back(Signal::Status(StreamStatus::Active));
            // The status must reach downstream before the records it announces.
            return Ok(());
        }
        if let Some(assigner) = &self.strategy.assigner {
            let given = input.timestamps.as_slice();
            let records = input.values.as_slice().iter().enumerate();
            self.assigned.clear();
            self.is_assigning = true;
            self.assigned
                .extend(records.map(|(at, value)| assigner(value, given.get(at).copied())));
            self.is_assigning = false;
            let assigned = std::mem::take(&mut self.assigned).into_iter();
            self.assigned = std::mem::replace(&mut input.timestamps, assigned).collect();
        }
        out.take_whole(input);
        let latest = out.batch.timestamps.iter().copied().max();
        self.latest = self.latest.max(latest.filter(|t| *t > Timestamp::MIN));
        if let (Some(latest), Some(bound)) = (self.latest, self.strategy.bound) {
            let watermark = latest.saturating_sub(bound).saturating_sub(1);
            if self.emitted.is_none_or(|e| watermark > e) {
                self.emitted = Some(watermark);
                out.signals.push_back(Signal::Watermark(watermark));
            }
        }
        Ok(())
    }

    fn signal(
        &mut self,
        signal: Signal,
        _out: &mut Emitted<T>,
        cx: &mut TaskContext<'_>,
    ) -> Result<SignalResult, OperatorError> {
        Ok(match signal {
            // Watermarks of the source are replaced by ours; only the end of time goes through.
            Signal::Watermark(MAX_WATERMARK) => {
                self.emitted = Some(MAX_WATERMARK);
                SignalResult::Forward(signal)
            }
            Signal::Watermark(_) => SignalResult::Swallow,
            Signal::ProcessingTime(_) => match self.idle_at(cx) {
                Some(at) if at <= cx.now && !self.is_idle => {
                    self.is_idle = true;
                    SignalResult::Forward(Signal::Status(StreamStatus::Idle))
                }
                _ => SignalResult::Forward(signal),
            },
            // Who is idle here is found out here: somebody before may wake up for records that do not come this far.
            Signal::Status(_) if self.strategy.idleness.is_some() => SignalResult::Swallow,
            Signal::Status(_) | Signal::EndOfInput => SignalResult::Forward(signal),
        })
    }

    fn looks_ahead(&self) -> Option<usize> {
        self.is_assigning.then_some(self.assigned.len())
    }

    fn is_at_most_one(&self) -> bool {
        true
    }

    fn restored_watermark(&self) -> Option<Timestamp> {
        self.emitted
    }

    fn next_wakeup(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        if self.is_idle { None } else { self.idle_at(cx) }
    }

    fn is_timer_due(&self, cx: &TaskContext<'_>, _wall_ms: Timestamp) -> bool {
        !self.is_idle && self.idle_at(cx).is_some_and(|at| at <= cx.now)
    }

    fn watermark(&self) -> Option<Timestamp> {
        self.emitted
    }
}

impl<T> WatermarkOperator<T> {
    fn idle_at(&self, cx: &TaskContext<'_>) -> Option<Instant> {
        let (at, held_up) = self.last_record?;
        let held_up = cx.held_up.saturating_sub(held_up);
        at.checked_add(self.strategy.idleness?)?
            .checked_add(held_up)
    }
}
