//! Codecs: batches to bytes and back.
//!
//! Layout, the same for every codec: varint number of records, one byte whether they have timestamps, the values, the timestamps
//! (zigzag varints: the first, then differences), zeros up to one byte per record. The padding is the bound: a count above the
//! length of the input is an error before anything is allocated, also for records that encode to nothing.
//!
//! No schema, no versions: both ends are the same build. State and snapshots have their own formats.

use std::any::type_name;
use std::marker::PhantomData;

use crate::append::{AppendBuffer, Room};
use crate::batch::{Batch, Record, Timestamp};
use crate::varint;

/// Turns batches into bytes and back. Both ends are the same build, so that the encoding needs no schema.
pub trait BatchCodec<T>: Send + Sync + 'static {
    /// Appends the encoding to `out`. After an error `out` is as before.
    fn encode(&self, batch: &Batch<T>, out: &mut Vec<u8>) -> Result<(), CodecError>;
    /// Decodes what [`encode`](Self::encode) wrote. Any bytes are safe: an error, never a panic, and no allocation beyond a small multiple of the input.
    fn decode(&self, bytes: &[u8]) -> Result<Batch<T>, CodecError>;
}

/// Bytes that are not a batch, or a record that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} a batch of {type_name}: {message}")]
pub struct CodecError {
    /// `encode` or `decode`.
    pub operation: &'static str,
    /// The record type.
    pub type_name: &'static str,
    /// Why.
    pub message: String,
}

/// Memory reserved for values before any of them is decoded, at most; more comes as they do.
const RESERVE_BYTES_MAX: usize = 64 * 1024;

fn decode_error<T>(message: impl ToString) -> CodecError {
    CodecError {
        operation: "decode",
        type_name: type_name::<T>(),
        message: message.to_string(),
    }
}

/// Any serde type, in postcard's compact encoding.
pub struct SerdeCodec<T>(PhantomData<fn() -> T>);

impl<T> SerdeCodec<T> {
    /// The codec.
    #[must_use]
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for SerdeCodec<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Encodes values one behind the other; the number of the one that cannot be, and why.
fn put_values<T: Record>(values: &[T], out: &mut Vec<u8>) -> Result<(), (usize, postcard::Error)> {
    let mut buffer = AppendBuffer::behind(std::mem::take(out));
    let mut values = values.iter().enumerate();
    let result = values.try_for_each(|(index, value)| {
        let put = |room: &mut Room<'_>| postcard::serialize_with_flavor(value, room);
        buffer.append(put).map_err(|error| (index, error))
    });
    *out = buffer.into_bytes();
    result
}

impl<T: Record> BatchCodec<T> for SerdeCodec<T> {
    fn encode(&self, batch: &Batch<T>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = begin(batch, out);
        if let Err((index, error)) = put_values(&batch.values, out) {
            out.truncate(start);
            return Err(CodecError {
                operation: "encode",
                type_name: type_name::<T>(),
                message: format!("record {index} of {}: {error}", batch.len()),
            });
        }
        end(batch, out, start);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Batch<T>, CodecError> {
        let (count, has_timestamps, rest) = header::<T>(bytes)?;
        let mut values = Vec::with_capacity(cautious::<T>(count));
        let mut input = postcard::Deserializer::from_bytes(rest);
        for index in 0..count {
            let value = T::deserialize(&mut input)
                .map_err(|e| decode_error::<T>(format!("record {index} of {count}: {e}")))?;
            values.push(value);
        }
        let rest = input.finalize().map_err(decode_error::<T>)?;
        finish(values, has_timestamps, rest, bytes.len())
    }
}

/// Plain data of a constant encoded length, for [`FixedCodec`]. A struct implements it by writing and reading its fields in order:
///
/// ```
/// use perennial::exchange::FixedWidth;
///
/// #[derive(Clone, Copy)]
/// struct Click { user: u64, page: u32 }
///
/// impl FixedWidth for Click {
///     const WIDTH: usize = <(u64, u32)>::WIDTH;
///     fn write(&self, out: &mut Vec<u8>) {
///         (self.user, self.page).write(out);
///     }
///     fn read(bytes: &[u8]) -> Option<Self> {
///         <(u64, u32)>::read(bytes).map(|(user, page)| Self { user, page })
///     }
/// }
/// ```
pub trait FixedWidth: Sized {
    /// Bytes of every value.
    const WIDTH: usize;
    /// Appends exactly [`WIDTH`](Self::WIDTH) bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads them; `None` when they are not a value or not exactly [`WIDTH`](Self::WIDTH) bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! fixed_numbers {
    ($($number:ty)*) => {
        $(
            impl FixedWidth for $number {
                const WIDTH: usize = size_of::<$number>();
                #[inline]
                fn write(&self, out: &mut Vec<u8>) {
                    out.extend_from_slice(&self.to_le_bytes());
                }
                #[inline]
                fn read(bytes: &[u8]) -> Option<Self> {
                    bytes.try_into().ok().map(Self::from_le_bytes)
                }
            }
        )*
    };
}

fixed_numbers!(u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64);

impl FixedWidth for bool {
    const WIDTH: usize = 1;
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

impl FixedWidth for char {
    const WIDTH: usize = 4;
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        u32::from(*self).write(out);
    }
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        u32::read(bytes).and_then(char::from_u32)
    }
}

impl<V: FixedWidth, const N: usize> FixedWidth for [V; N] {
    const WIDTH: usize = V::WIDTH * N;
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        for value in self {
            value.write(out);
        }
    }
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::WIDTH {
            return None;
        }
        let mut is_valid = true;
        let values: [Option<V>; N] = std::array::from_fn(|i| {
            let value = V::read(&bytes[i * V::WIDTH..(i + 1) * V::WIDTH]);
            is_valid &= value.is_some();
            value
        });
        is_valid.then(|| values.map(|v| v.expect("all of them were found valid above")))
    }
}

macro_rules! fixed_tuples {
    ($(($($name:ident)*))*) => {
        $(
            impl<$($name: FixedWidth),*> FixedWidth for ($($name,)*) {
                const WIDTH: usize = 0 $(+ $name::WIDTH)*;
                #[inline]
                #[allow(non_snake_case, unused_variables, reason = "the type parameters name the fields")]
                fn write(&self, out: &mut Vec<u8>) {
                    let ($($name,)*) = self;
                    $($name.write(out);)*
                }
                #[inline]
                #[allow(unused_variables, unused_mut, unused_assignments, clippy::unused_unit, reason = "the empty tuple reads nothing")]
                fn read(bytes: &[u8]) -> Option<Self> {
                    if bytes.len() != Self::WIDTH {
                        return None;
                    }
                    let mut at = 0;
                    Some(($({
                        let value = $name::read(&bytes[at..at + $name::WIDTH])?;
                        at += $name::WIDTH;
                        value
                    },)*))
                }
            }
        )*
    };
}

fixed_tuples!(() (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G) (A B C D E F G H));

/// The fast path for plain data: fixed-width little-endian records.
pub struct FixedCodec<T>(PhantomData<fn() -> T>);

impl<T> FixedCodec<T> {
    /// The codec.
    #[must_use]
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for FixedCodec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: FixedWidth + 'static> BatchCodec<T> for FixedCodec<T> {
    fn encode(&self, batch: &Batch<T>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = begin(batch, out);
        let values = out.len();
        out.reserve(batch.len().saturating_mul(T::WIDTH));
        for value in &batch.values {
            value.write(out);
        }
        // A hand-written implementation that breaks its promise would otherwise shift every later record.
        let written = out.len() - values;
        if written != batch.len() * T::WIDTH {
            out.truncate(start);
            return Err(CodecError {
                operation: "encode",
                type_name: type_name::<T>(),
                message: format!(
                    "FixedWidth::write wrote {written} bytes for {} records of WIDTH {}",
                    batch.len(),
                    T::WIDTH
                ),
            });
        }
        end(batch, out, start);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Batch<T>, CodecError> {
        let (count, has_timestamps, rest) = header::<T>(bytes)?;
        let (mut data, rest) = count
            .checked_mul(T::WIDTH)
            .and_then(|length| rest.split_at_checked(length))
            .ok_or_else(|| decode_error::<T>(format!("{count} records do not fit")))?;
        let mut values = Vec::with_capacity(cautious::<T>(count));
        for index in 0..count {
            let (record, after) = data.split_at(T::WIDTH);
            values.push(T::read(record).ok_or_else(|| {
                decode_error::<T>(format!("record {index} of {count} is not a value"))
            })?);
            data = after;
        }
        finish(values, has_timestamps, rest, bytes.len())
    }
}

fn cautious<T>(count: usize) -> usize {
    count.min(RESERVE_BYTES_MAX / size_of::<T>().max(1))
}

/// Writes what comes before the values; returns where the encoding begins.
fn begin<T>(batch: &Batch<T>, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    varint::put(batch.len() as u64, |byte| out.push(byte));
    out.push(u8::from(batch.has_timestamps()));
    start
}

/// Writes what comes after them.
fn end<T>(batch: &Batch<T>, out: &mut Vec<u8>, start: usize) {
    if batch.has_timestamps() {
        debug_assert_eq!(batch.timestamps.len(), batch.len(), "a column is complete");
        let mut previous = 0;
        // A batch whose column is short or long is filled or cut, as Batch::push would have.
        let column = batch
            .timestamps
            .iter()
            .copied()
            .chain(std::iter::repeat(Timestamp::MIN));
        for timestamp in column.take(batch.len()) {
            let difference = zigzag(timestamp.wrapping_sub(previous));
            varint::put(difference, |byte| out.push(byte));
            previous = timestamp;
        }
    }
    if out.len() - start < batch.len() {
        out.resize(start + batch.len(), 0);
    }
}

fn header<T>(bytes: &[u8]) -> Result<(usize, bool, &[u8]), CodecError> {
    let mut rest = bytes;
    let count = varint::take(&mut rest)
        .map_err(|error| decode_error::<T>(format!("record count: {error}")))?;
    if count > bytes.len() as u64 {
        return Err(decode_error::<T>(format!(
            "{count} records claimed in {} bytes",
            bytes.len()
        )));
    }
    match rest {
        [0, rest @ ..] => Ok((count as usize, false, rest)),
        [1, rest @ ..] => Ok((count as usize, true, rest)),
        _ => Err(decode_error::<T>("no timestamp flag")),
    }
}

fn finish<T>(
    values: Vec<T>,
    has_timestamps: bool,
    mut rest: &[u8],
    length: usize,
) -> Result<Batch<T>, CodecError> {
    let mut timestamps = Vec::new();
    if has_timestamps {
        timestamps.reserve(values.len());
        let mut previous: Timestamp = 0;
        for index in 0..values.len() {
            let difference = varint::take(&mut rest)
                .map_err(|error| decode_error::<T>(format!("timestamp {index}: {error}")))?;
            previous = previous.wrapping_add(unzigzag(difference));
            timestamps.push(previous);
        }
    }
    if rest.iter().any(|b| *b != 0) || (!rest.is_empty() && length != values.len()) {
        return Err(decode_error::<T>(format!(
            "{} bytes after the last record",
            rest.len()
        )));
    }
    Ok(Batch { values, timestamps })
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Event {
        Nothing,
        Text(String, Option<i64>),
        Many { list: Vec<u16>, flag: bool },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Nothing),
            (".{0,12}", any::<Option<i64>>()).prop_map(|(t, o)| Event::Text(t, o)),
            (prop::collection::vec(any::<u16>(), 0..5), any::<bool>())
                .prop_map(|(list, flag)| Event::Many { list, flag }),
        ]
    }

    fn batch<T: Clone + std::fmt::Debug>(
        value: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Batch<T>> {
        (
            prop::collection::vec((value, any::<i64>()), 0..40),
            any::<bool>(),
        )
            .prop_map(|(rows, timed)| {
                let mut batch = Batch::default();
                for (value, timestamp) in rows {
                    batch.push(value, timed.then_some(timestamp));
                }
                batch
            })
    }

    /// Encodes and decodes, after a prefix that must stay; then damages: every truncation is an error.
    fn check<T: Clone + PartialEq + std::fmt::Debug + 'static>(
        codec: &dyn BatchCodec<T>,
        batch: &Batch<T>,
    ) {
        let mut out = vec![1, 2, 3];
        codec.encode(batch, &mut out).unwrap();
        assert_eq!(out[..3], [1, 2, 3]);
        let bytes = &out[3..];
        assert_eq!(codec.decode(bytes).unwrap(), *batch);
        for length in 0..bytes.len() {
            assert!(codec.decode(&bytes[..length]).is_err(), "cut to {length}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(codec.decode(&longer).is_err(), "one byte too many");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn serde_batches_come_back_and_cut_ones_are_errors(batch in batch(event())) {
            check(&SerdeCodec::new(), &batch);
        }

        #[test]
        fn fixed_batches_come_back_and_cut_ones_are_errors(
            batch in batch(any::<(u64, [i16; 3], bool, char, i128)>())
        ) {
            check(&FixedCodec::new(), &batch);
        }

        #[test]
        fn random_bytes_never_panic_and_never_decode_to_more_records_than_bytes(
            bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            for len in [
                SerdeCodec::<Event>::new().decode(&bytes).map(|b| b.len()),
                SerdeCodec::<()>::new().decode(&bytes).map(|b| b.len()),
                FixedCodec::<(u32, bool)>::new().decode(&bytes).map(|b| b.len()),
                FixedCodec::<()>::new().decode(&bytes).map(|b| b.len()),
            ].into_iter().flatten() {
                prop_assert!(len <= bytes.len());
            }
        }
    }

    #[test]
    fn records_that_encode_to_nothing_come_back() {
        let units = Batch {
            values: vec![(); 300],
            timestamps: Vec::new(),
        };
        check(&SerdeCodec::new(), &units);
        check(&FixedCodec::new(), &units);
    }

    /// A count of 2^63 in a frame of 11 bytes must be refused before memory is asked for: the process would abort.
    #[test]
    fn a_huge_count_in_a_short_frame_is_an_error() {
        let mut bytes = Vec::new();
        varint::put(1 << 63, |byte| bytes.push(byte));
        bytes.push(0);
        for error in [
            SerdeCodec::<u64>::new().decode(&bytes).unwrap_err(),
            FixedCodec::<u64>::new().decode(&bytes).unwrap_err(),
        ] {
            assert!(error.to_string().contains("records claimed"), "{error}");
        }
    }

    #[test]
    fn a_fixed_width_that_lies_is_an_error() {
        #[derive(Clone)]
        struct Liar;
        impl FixedWidth for Liar {
            const WIDTH: usize = 2;
            fn write(&self, out: &mut Vec<u8>) {
                out.push(0);
            }
            fn read(_: &[u8]) -> Option<Self> {
                Some(Self)
            }
        }
        let batch = Batch {
            values: vec![Liar],
            timestamps: Vec::new(),
        };
        let mut out = vec![7];
        assert!(FixedCodec::new().encode(&batch, &mut out).is_err());
        assert_eq!(out, [7]);
    }
}
