//! What a line means.

use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::batch::Record;

/// What a line gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<T> {
    /// A record.
    Record(T),
    /// Nothing, as the format allows, e.g. a blank line.
    Nothing,
}

/// Turns a line into a record.
pub trait LineDecoder: Clone + Send + Sync + 'static {
    /// The record type.
    type Item: Record;
    /// Decodes a line, given without its end. An error says what is wrong; the source adds file, offset and the line itself.
    fn decode(&self, line: &[u8]) -> Result<Decoded<Self::Item>, String>;
}

/// Text as it is; every line is a record.
#[derive(Debug, Clone, Copy, Default)]
pub struct TextDecoder;

impl LineDecoder for TextDecoder {
    type Item = String;

    fn decode(&self, line: &[u8]) -> Result<Decoded<String>, String> {
        match std::str::from_utf8(line) {
            Ok(text) => Ok(Decoded::Record(text.to_owned())),
            Err(error) => Err(format!("not UTF-8: {error}")),
        }
    }
}

/// A JSON value per line; blank lines mean nothing.
pub struct JsonDecoder<T>(PhantomData<fn() -> T>);

impl<T> Clone for JsonDecoder<T> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for JsonDecoder<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T> fmt::Debug for JsonDecoder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonDecoder<{}>", std::any::type_name::<T>())
    }
}

impl<T: Record + DeserializeOwned> LineDecoder for JsonDecoder<T> {
    type Item = T;

    fn decode(&self, line: &[u8]) -> Result<Decoded<T>, String> {
        if line.trim_ascii().is_empty() {
            return Ok(Decoded::Nothing);
        }
        match serde_json::from_slice(line) {
            Ok(record) => Ok(Decoded::Record(record)),
            Err(error) => Err(format!("not the JSON expected: {error}")),
        }
    }
}
