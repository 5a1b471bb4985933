//! A sink for people: one line per record on standard output.
//!
//! Invariant: a line is never mixed with one of another subtask of the process. Not exactly-once: after a failure, what was
//! printed since the checkpoint is printed again.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::encoder::{DisplayLines, Encoder};
use super::{Sink, SinkWriter, SubtaskContext};
use crate::batch::{Batch, Record};
use crate::error::{FunctionError, FunctionResult};

/// Lines are collected up to this many bytes before they are given to the writer; a batch's end gives them in any case.
pub const PRINT_BUFFER_MAX: usize = 64 * 1024;

/// Where lines go; shared by all subtasks.
pub type SharedWriter = Arc<Mutex<dyn Write + Send>>;

/// A line could not be printed.
#[derive(Debug, thiserror::Error)]
#[error(
    "print sink `{uid}` subtask {subtask}: writing {bytes} bytes failed; is the reader of standard output gone?"
)]
pub struct PrintError {
    /// The operator.
    pub uid: String,
    /// From 0.
    pub subtask: u32,
    /// How many bytes were to be written; some of them may have been.
    pub bytes: usize,
    /// Why.
    pub source: io::Error,
}

/// Prints records. As with Flink's, lines begin with the number of the subtask, from 1, when there are several (`2> `), and
/// with the identifier when one is given (`alarms:2> `, or `alarms> ` for a single subtask).
#[derive(Clone)]
pub struct PrintSink<E = DisplayLines> {
    encoder: E,
    identifier: Option<String>,
    writer: SharedWriter,
}

impl PrintSink<DisplayLines> {
    /// Prints records as they display themselves, to standard output.
    #[must_use]
    pub fn new() -> Self {
        Self::with_encoder(DisplayLines)
    }
}

impl Default for PrintSink<DisplayLines> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> PrintSink<E> {
    /// Prints records as the encoder has them, to standard output.
    pub fn with_encoder(encoder: E) -> Self {
        Self {
            encoder,
            identifier: None,
            writer: Arc::new(Mutex::new(io::stdout())),
        }
    }

    /// Begins each line with a name.
    #[must_use]
    pub fn identifier(mut self, identifier: impl Into<String>) -> Self {
        self.identifier = Some(identifier.into());
        self
    }

    /// Prints to somewhere else.
    #[must_use]
    pub fn to(mut self, writer: SharedWriter) -> Self {
        self.writer = writer;
        self
    }

    fn prefix(&self, context: &SubtaskContext) -> String {
        let number = u64::from(context.attempt.subtask.0) + 1;
        match (&self.identifier, context.parallelism > 1) {
            (None, false) => String::new(),
            (None, true) => format!("{number}> "),
            (Some(identifier), false) => format!("{identifier}> "),
            (Some(identifier), true) => format!("{identifier}:{number}> "),
        }
    }
}

impl<T: Record, E: Encoder<T>> Sink<T> for PrintSink<E> {
    fn writer(&self, context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        Ok(Box::new(PrintWriter {
            uid: context.uid.clone(),
            subtask: context.attempt.subtask.0,
            prefix: self.prefix(context).into_bytes(),
            encoder: self.encoder.clone(),
            writer: Arc::clone(&self.writer),
            buffer: Vec::new(),
        }))
    }
}

struct PrintWriter<E> {
    uid: String,
    subtask: u32,
    prefix: Vec<u8>,
    encoder: E,
    writer: SharedWriter,
    /// Whole lines; empty between calls.
    buffer: Vec<u8>,
}

impl<E> PrintWriter<E> {
    fn print(&mut self) -> FunctionResult {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let result = writer
            .write_all(&self.buffer)
            .and_then(|()| writer.flush())
            .map_err(|source| {
                let kind = source.kind();
                let error = PrintError {
                    uid: self.uid.clone(),
                    subtask: self.subtask,
                    bytes: self.buffer.len(),
                    source,
                };
                // A reader that has gone (`| head`) does not come back, however often the job restarts.
                match kind {
                    io::ErrorKind::BrokenPipe => FunctionError::unrecoverable(error),
                    _ => FunctionError::new(error),
                }
            });
        self.buffer.clear();
        result
    }
}

impl<T: Record, E: Encoder<T>> SinkWriter<T> for PrintWriter<E> {
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult {
        for (index, record) in batch.values.iter().enumerate() {
            let line = self.buffer.len();
            self.buffer.extend_from_slice(&self.prefix);
            if let Err(error) = self.encoder.encode(record, &mut self.buffer) {
                // The lines before it are printed: they say how far the job came.
                self.buffer.truncate(line);
                self.print()?;
                return Err(error.at_record(index));
            }
            self.buffer.push(b'\n');
            if self.buffer.len() >= PRINT_BUFFER_MAX {
                self.print()?;
            }
        }
        batch.clear();
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.print()
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder::JsonLines;
    use super::super::test_support::context;
    use super::*;

    fn print<E: Encoder<String>>(
        sink: PrintSink<E>,
        subtask: u32,
        parallelism: u32,
        records: &[&str],
    ) -> String {
        let captured = Arc::new(Mutex::new(Vec::new()));
        let sink = sink.to(Arc::clone(&captured) as SharedWriter);
        let mut writer = sink.writer(&context(subtask, parallelism, 1, 1)).unwrap();
        let mut batch = Batch::default();
        for record in records {
            batch.push((*record).to_owned(), None);
        }
        writer.write(&mut batch).unwrap();
        assert!(batch.is_empty());
        String::from_utf8(captured.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn prefixes_are_those_of_flink() {
        let named = || PrintSink::new().identifier("alarms");
        assert_eq!(print(PrintSink::new(), 0, 1, &["a", "b"]), "a\nb\n");
        assert_eq!(print(PrintSink::new(), 1, 3, &["a", "b"]), "2> a\n2> b\n");
        assert_eq!(print(named(), 0, 1, &["a"]), "alarms> a\n");
        assert_eq!(print(named(), 2, 3, &["a"]), "alarms:3> a\n");
        assert_eq!(
            print(PrintSink::with_encoder(JsonLines), 0, 1, &["a"]),
            "\"a\"\n"
        );
    }

    #[test]
    fn a_large_batch_is_printed_whole_and_in_order() {
        let long = "x".repeat(1000);
        let records = vec![long.as_str(); 300];
        let printed = print(PrintSink::new(), 0, 1, &records);
        assert_eq!(printed.lines().collect::<Vec<_>>(), records);
    }

    struct Broken(io::ErrorKind);
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_output_is_a_typed_error_that_no_restart_mends() {
        for (kind, is_final) in [
            (io::ErrorKind::BrokenPipe, true),
            (io::ErrorKind::StorageFull, false),
        ] {
            let sink = PrintSink::new().to(Arc::new(Mutex::new(Broken(kind))));
            let mut writer = sink.writer(&context(0, 1, 1, 1)).unwrap();
            let mut batch = Batch::default();
            batch.push(1, None);
            let error = writer.write(&mut batch).unwrap_err();
            assert_eq!(error.is_unrecoverable(), is_final, "{kind:?}");
            let cause = error.source().downcast_ref::<PrintError>().unwrap();
            assert_eq!(cause.source.kind(), kind);
            assert_eq!((cause.uid.as_str(), cause.subtask), ("out", 0));
        }
    }
}
