//! How sinks turn records into lines.
//!
//! Invariant: an encoder appends one record and no line end; the sink adds that.

use std::fmt::{Debug, Display};
use std::io::Write;

use serde::Serialize;

use crate::error::FunctionResult;

/// Appends one record to a buffer.
pub trait Encoder<T>: Clone + Send + Sync + 'static {
    /// Appends the record, without a line end. What was appended before an error is discarded by the caller.
    fn encode(&self, record: &T, out: &mut Vec<u8>) -> FunctionResult;
    /// Of files with such lines, without a dot.
    fn extension(&self) -> &'static str;
}

/// The record as it displays itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct DisplayLines;

impl<T: Display> Encoder<T> for DisplayLines {
    fn encode(&self, record: &T, out: &mut Vec<u8>) -> FunctionResult {
        Ok(write!(out, "{record}")?)
    }

    fn extension(&self) -> &'static str {
        "txt"
    }
}

/// The record as a programmer sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct DebugLines;

impl<T: Debug> Encoder<T> for DebugLines {
    fn encode(&self, record: &T, out: &mut Vec<u8>) -> FunctionResult {
        Ok(write!(out, "{record:?}")?)
    }

    fn extension(&self) -> &'static str {
        "txt"
    }
}

/// The record as JSON, on one line.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonLines;

impl<T: Serialize> Encoder<T> for JsonLines {
    fn encode(&self, record: &T, out: &mut Vec<u8>) -> FunctionResult {
        Ok(serde_json::to_writer(out, record)?)
    }

    fn extension(&self) -> &'static str {
        "jsonl"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode<T>(encoder: impl Encoder<T>, record: &T) -> String {
        let mut out = b"before ".to_vec();
        encoder.encode(record, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn encoders_append_without_a_line_end() {
        assert_eq!(encode(DisplayLines, &"a b"), "before a b");
        assert_eq!(encode(DebugLines, &"a\nb"), r#"before "a\nb""#);
        assert_eq!(encode(JsonLines, &(1, "a\nb")), r#"before [1,"a\nb"]"#);
    }

    #[test]
    fn a_record_that_cannot_be_encoded_is_an_error() {
        let keys_are_no_text = std::collections::BTreeMap::from([((1, 2), 3)]);
        let result = JsonLines.encode(&keys_are_no_text, &mut Vec::new());
        assert!(result.is_err());
    }
}
