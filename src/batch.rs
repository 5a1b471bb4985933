//! The unit of work and what flows between tasks.

use perennial_actors::model::CheckpointBarrier;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Event time in milliseconds since the epoch.
pub type Timestamp = i64;

/// The watermark of an input that has ended.
pub const MAX_WATERMARK: Timestamp = i64::MAX;

/// Records that a node gathers before it hands them on. A batch may have more: one call may emit more, and what comes from another
/// process was gathered in larger ones.
pub const BATCH_RECORDS_MAX: usize = 1024;

/// What can travel between tasks. Implemented for every type that fits.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + 'static {}
impl<T: Clone + Serialize + DeserializeOwned + Send + 'static> Record for T {}

/// Values with optional columns of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// The records.
    pub values: Vec<T>,
    /// Their event times: empty (no record has one) or as long as `values`.
    pub timestamps: Vec<Timestamp>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            timestamps: Vec::new(),
        }
    }
}

impl<T> Batch<T> {
    /// An empty batch with room for `capacity` records.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            values: Vec::with_capacity(capacity),
            timestamps: Vec::new(),
        }
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether records carry event times.
    #[must_use]
    pub fn has_timestamps(&self) -> bool {
        !self.timestamps.is_empty()
    }

    /// The event time of a record, if it has one.
    #[must_use]
    pub fn timestamp(&self, index: usize) -> Option<Timestamp> {
        self.timestamps.get(index).copied()
    }

    /// Appends a record. Either all records of a batch have a timestamp or none: the first decides, a missing one later becomes
    /// `Timestamp::MIN`, a surplus one is dropped.
    #[inline]
    pub fn push(&mut self, value: T, timestamp: Option<Timestamp>) {
        match timestamp {
            Some(t) if self.timestamps.len() == self.values.len() => self.timestamps.push(t),
            None if !self.timestamps.is_empty() => self.timestamps.push(Timestamp::MIN),
            Some(_) | None => {}
        }
        self.values.push(value);
    }

    /// Removes all records and keeps the memory.
    pub fn clear(&mut self) {
        self.values.clear();
        self.timestamps.clear();
    }
}

/// What a channel carries, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamElement<T> {
    /// Records; never empty.
    Batch(Batch<T>),
    /// No record with a smaller or equal event time follows.
    Watermark(Timestamp),
    /// Whether the producer counts for the watermark: an idle one does not hold it back.
    Status(StreamStatus),
    /// Separates what a snapshot reflects from what it does not.
    Barrier(CheckpointBarrier),
    /// Nothing follows.
    EndOfInput,
}

/// See [`StreamElement::Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamStatus {
    /// Counts for the watermark.
    Active,
    /// Does not.
    Idle,
}
