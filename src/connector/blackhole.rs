//! A sink that keeps nothing, to measure what comes before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Sink, SinkWriter, SubtaskContext};
use crate::batch::{Batch, Record};
use crate::error::FunctionResult;

/// Drops records and counts them. Clones share the count, over all subtasks in this process and all attempts: a record that is
/// replayed after a failure is counted again.
#[derive(Debug, Clone, Default)]
pub struct BlackholeSink {
    count: Arc<AtomicU64>,
}

impl BlackholeSink {
    /// Begins at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records dropped so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl<T: Record> Sink<T> for BlackholeSink {
    fn writer(&self, _context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        Ok(Box::new(self.clone()))
    }
}

impl<T: Record> SinkWriter<T> for BlackholeSink {
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult {
        self.count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        batch.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::context;
    use super::*;

    #[test]
    fn subtasks_share_one_count() {
        let sink = BlackholeSink::new();
        for subtask in 0..2 {
            let mut writer = sink.writer(&context(subtask, 2, 1, 1)).unwrap();
            let mut batch = Batch::default();
            batch.push(1, Some(1));
            batch.push(2, Some(2));
            writer.write(&mut batch).unwrap();
            assert!(batch.is_empty() && !batch.has_timestamps());
        }
        assert_eq!(sink.count(), 4);
    }
}
