//! A source that marks how far it is.
//!
//! It looks once per batch, never per record, and what it wraps is the source that users have.

use perennial::batch::{Batch, Record};
use perennial::connector::{Source, SourceReader, SourceSplit, SourceStatus, SubtaskContext};
use perennial::error::FunctionResult;
use perennial_actors::clock::Instant;

use crate::marks::{Marks, MarksError};

/// Records of a reader between two marks.
pub const PROGRESS_RECORDS: u64 = 1 << 18;

/// Ids of splits in which there is nothing begin with this.
const IDLE: &str = "idle-";

/// A source with marks: `prefilled` once, and `progress` as it goes on.
#[derive(Debug, Clone)]
pub struct Watched<S> {
    inner: S,
    marks: Marks,
    prefill: u64,
    only_in_the_last: bool,
}

impl<S> Watched<S> {
    /// `prefill` records of each reader come before the measurement.
    pub fn new(inner: S, marks: Marks, prefill: u64) -> Self {
        Self {
            inner,
            marks,
            prefill,
            only_in_the_last: false,
        }
    }

    /// Gives the splits to the last subtasks instead of the first: so a job of several slots can have its source in another process
    /// than what comes after it.
    #[must_use]
    pub fn only_in_the_last_subtasks(mut self) -> Self {
        self.only_in_the_last = true;
        self
    }
}

impl<S: Source> Source for Watched<S> {
    type Item = S::Item;

    fn splits(&self, parallelism: u32) -> FunctionResult<Vec<SourceSplit>> {
        let splits = self.inner.splits(parallelism)?;
        if !self.only_in_the_last {
            return Ok(splits);
        }
        let idle = (parallelism as usize).saturating_sub(splits.len());
        let idle = (0..idle).map(|index| SourceSplit {
            id: format!("{IDLE}{index}"),
            position: 0,
            watermark: None,
            extra: Vec::new(),
        });
        Ok(idle.chain(splits).collect())
    }

    fn reader(
        &self,
        context: &SubtaskContext,
        mut splits: Vec<SourceSplit>,
    ) -> FunctionResult<Box<dyn SourceReader<S::Item>>> {
        splits.retain(|split| !split.id.starts_with(IDLE));
        let inner = self.inner.reader(context, splits)?;
        if !self.marks.are_wanted() {
            return Ok(inner);
        }
        let subtask = context.attempt.subtask.0;
        self.marks.put("reader", &format!("subtask={subtask}"))?;
        Ok(Box::new(Reader {
            inner,
            marks: self.marks.clone(),
            prefill: self.prefill,
            subtask,
            count: 0,
            next: 0,
        }))
    }
}

struct Reader<T> {
    inner: Box<dyn SourceReader<T>>,
    marks: Marks,
    prefill: u64,
    subtask: u32,
    count: u64,
    /// Count at which the next mark is due.
    next: u64,
}

impl<T> Reader<T> {
    fn mark(&self, what: &str) -> Result<(), MarksError> {
        let details = format!("subtask={} count={}", self.subtask, self.count);
        self.marks.put(what, &details)
    }
}

impl<T: Record> SourceReader<T> for Reader<T> {
    fn poll(
        &mut self,
        out: &mut Batch<T>,
        max: usize,
        now: Instant,
    ) -> FunctionResult<SourceStatus> {
        let before = out.len();
        let status = self.inner.poll(out, max, now)?;
        let was_prefilled = self.count >= self.prefill;
        self.count += (out.len() - before) as u64;
        if self.count >= self.prefill && (!was_prefilled || self.next == 0) {
            self.mark("prefilled")?;
        }
        if self.count >= self.next {
            self.next = self.count + PROGRESS_RECORDS;
            self.mark("progress")?;
        }
        if status == SourceStatus::Finished {
            self.mark("progress")?;
        }
        Ok(status)
    }

    fn snapshot(&self) -> Vec<SourceSplit> {
        self.inner.snapshot()
    }

    fn position(&self, index: usize) -> Option<(String, u64)> {
        self.inner.position(index)
    }
}
