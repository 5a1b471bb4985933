//! Around a process function: marks its first record, and panics when it is told to.

use std::path::PathBuf;

use perennial::batch::Timestamp;
use perennial::error::FunctionResult;
use perennial::key::Key;
use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext};
use perennial::state::TimeDomain;

use crate::marks::Marks;

/// Records between two looks whether to panic.
const LOOK_RECORDS: u64 = 1024;

/// A function that is watched. Marks: `first` with its subtask, at the first record of each attempt; `throw` before a panic.
#[derive(Debug, Clone)]
pub struct Watching<F> {
    inner: F,
    marks: Marks,
    /// Whose appearance asks for one panic.
    panic_file: PathBuf,
    subtask: u32,
    seen: u64,
}

impl<F> Watching<F> {
    /// Panics once a file appears; whoever takes it away is the one.
    pub fn new(inner: F, marks: Marks, panic_file: PathBuf) -> Self {
        Self {
            inner,
            marks,
            panic_file,
            subtask: 0,
            seen: 0,
        }
    }
}

impl<K: Key, T, F: KeyedProcessFunction<K, T>> KeyedProcessFunction<K, T> for Watching<F> {
    type Out = F::Out;

    fn open(&mut self, cx: &mut OpenContext<'_, K>) -> FunctionResult {
        self.subtask = cx.subtask().attempt.subtask.0;
        self.inner.open(cx)
    }

    #[inline]
    fn process(&mut self, value: T, cx: &mut ProcessContext<'_, K, F::Out>) -> FunctionResult {
        if self.seen.is_multiple_of(LOOK_RECORDS) {
            let details = format!("subtask={}", self.subtask);
            if self.seen == 0 {
                self.marks.put("first", &details)?;
            }
            if std::fs::remove_file(&self.panic_file).is_ok() {
                self.marks.put("throw", &details)?;
                panic!("asked to");
            }
        }
        self.seen += 1;
        self.inner.process(value, cx)
    }

    fn on_timer(
        &mut self,
        time: Timestamp,
        domain: TimeDomain,
        cx: &mut ProcessContext<'_, K, F::Out>,
    ) -> FunctionResult {
        self.inner.on_timer(time, domain, cx)
    }
}
