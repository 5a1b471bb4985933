//! A sink that keeps only what tells two outputs apart: their number, and a checksum that does not depend on their order.

use perennial::batch::{Batch, Record};
use perennial::connector::{Sink, SinkWriter, SubtaskContext, mix};
use perennial::error::FunctionResult;
use perennial::jobs::keyed_count::Event;
use serde::{Deserialize, Serialize};

use crate::marks::Marks;

/// Number and checksum of records. As JSON it is its text: many readers of JSON would round numbers of 64 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest {
    /// How many; those taken back count negatively, modulo 2^64.
    pub count: u64,
    /// Sum of all [`Digestible::digest`]s, modulo 2^64.
    pub sum: u64,
}

impl Digest {
    /// Adds a record.
    #[inline]
    pub fn add(&mut self, record: &impl Digestible) {
        if record.is_taken_back() {
            self.count = self.count.wrapping_sub(1);
            self.sum = self.sum.wrapping_sub(record.digest());
        } else {
            self.count = self.count.wrapping_add(1);
            self.sum = self.sum.wrapping_add(record.digest());
        }
    }

    /// Adds what another subtask or thread has seen.
    pub fn merge(&mut self, other: Self) {
        self.count = self.count.wrapping_add(other.count);
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// Between number and checksum.
const BETWEEN: &str = " records, checksum ";

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{BETWEEN}{:016x}", self.count, self.sum)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Text that is no digest.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no digest, which is `<count>{BETWEEN}<16 hexadecimal digits>`")]
pub struct NotADigest(String);

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        let parsed = text.split_once(BETWEEN).and_then(|(count, sum)| {
            Some(Self {
                count: count.parse().ok()?,
                sum: u64::from_str_radix(sum, 16).ok()?,
            })
        });
        // Numbers can be read from more texts than they are written as.
        let parsed = parsed.filter(|digest| digest.to_string() == text);
        parsed.ok_or(NotADigest(text))
    }
}

/// A record that can be told from others, in Java as in Rust: by mixing its fields as 64-bit numbers.
pub trait Digestible {
    /// Scrambled bits of all fields.
    fn digest(&self) -> u64;

    /// Whether it says that an equal record before it holds no more: in an answer that changes.
    #[inline]
    fn is_taken_back(&self) -> bool {
        false
    }
}

impl Digestible for u64 {
    #[inline]
    fn digest(&self) -> u64 {
        mix(*self)
    }
}

impl Digestible for Event {
    #[inline]
    fn digest(&self) -> u64 {
        mix(self.user ^ (self.time.cast_unsigned() << 24) ^ (u64::from(self.is_abnormal) << 63))
    }
}

/// Key, end of a window, count.
impl Digestible for (u64, i64, u64) {
    #[inline]
    fn digest(&self) -> u64 {
        mix(mix(mix(self.0) ^ self.1.cast_unsigned()) ^ self.2)
    }
}

/// Digests its input; each subtask says at its end what it has seen.
#[derive(Debug, Clone, Default)]
pub struct DigestSink {
    marks: Marks,
}

impl DigestSink {
    /// Says it there.
    #[must_use]
    pub fn new(marks: Marks) -> Self {
        Self { marks }
    }
}

struct Writer {
    digest: Digest,
    subtask: u32,
    marks: Marks,
}

impl<T: Record + Digestible> Sink<T> for DigestSink {
    fn writer(&self, context: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<T>>> {
        Ok(Box::new(Writer {
            digest: Digest::default(),
            subtask: context.attempt.subtask.0,
            marks: self.marks.clone(),
        }))
    }
}

impl<T: Digestible> SinkWriter<T> for Writer {
    fn write(&mut self, batch: &mut Batch<T>) -> FunctionResult {
        for record in &batch.values {
            self.digest.add(record);
        }
        batch.clear();
        Ok(())
    }

    fn close(&mut self) -> FunctionResult {
        let Digest { count, sum } = self.digest;
        let details = format!("subtask={} count={count} sum={sum}", self.subtask);
        Ok(self.marks.put("digest", &details)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Order does not matter; a field does, and so does a repetition.
    #[test]
    fn a_digest_tells_outputs_apart_and_not_their_order() {
        let digest = |records: &[(u64, i64, u64)]| {
            let mut digest = Digest::default();
            for record in records {
                digest.add(record);
            }
            digest
        };
        let one = digest(&[(1, 2, 3), (4, 5, 6)]);
        assert_eq!(one, digest(&[(4, 5, 6), (1, 2, 3)]));
        assert_ne!(one, digest(&[(1, 2, 3), (4, 6, 5)]));
        assert_ne!(one, digest(&[(1, 2, 3), (1, 2, 3)]));
        // What DigestSink.java must come to as well.
        assert_eq!(7_u64.digest(), 0xc584_133a_c916_ab3c);
    }

    /// What stands in results is what is read back, and nothing else is taken for it.
    #[test]
    fn the_text_of_a_digest_can_be_read_back() {
        for (count, sum) in [(0, 0), (12, 0xab), (u64::MAX, u64::MAX)] {
            let digest = Digest { count, sum };
            assert_eq!(Digest::try_from(digest.to_string()).unwrap(), digest);
        }
        for text in [
            "",
            "1 records",
            "-1 records, checksum 00",
            "1 records, checksum x",
            "1 records, checksum f",
            "+1 records, checksum 000000000000000f",
            "01 records, checksum 000000000000000f",
            "1 records, checksum 000000000000000F",
            "1 records, checksum +00000000000000f",
            "1 records, checksum 0000000000000000f",
            "1 records, checksum 000000000000000f ",
        ] {
            assert!(Digest::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
