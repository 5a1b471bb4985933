//! How records and other small control objects are written: `magic, format version, length, crc32c, rmp-serde body`.
//!
//! Invariant: decoding never panics, allocates no more than a small multiple of what it was given, and accepts nothing whose checksum
//! does not fit. It does no I/O.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::Record;

/// First bytes of a record.
pub const RECORD_MAGIC: [u8; 8] = *b"PRNLREC\n";
/// First bytes of the other control objects (hints, leases, leadership).
pub(crate) const NOTE_MAGIC: [u8; 8] = *b"PRNLNTE\n";
/// The format written; readers refuse others by number.
pub const RECORD_FORMAT: u32 = 1;
/// The longest body that is written or read, in bytes. What a record takes over from its base is bounded far below by
/// [`next_base`](super::next_base); what tasks add inline, by
/// [`inline_threshold`](super::inline_threshold).
pub const RECORD_LEN_MAX: u64 = 64 * 1024 * 1024;

const HEADER_LEN: usize = 8 + 4 + 8 + 4;

/// Bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than the header.
    #[error("{len} bytes are too few for a record: truncated, or another file")]
    TooShort {
        /// What was given.
        len: usize,
    },
    /// Another kind of file.
    #[error("unexpected magic number {found:02x?}: not a Perennial record, or corrupted")]
    Magic {
        /// What is there.
        found: [u8; 8],
    },
    /// Of a newer version.
    #[error("record format {found} is not supported: this version reads format {RECORD_FORMAT}")]
    Format {
        /// What is there.
        found: u32,
    },
    /// Truncated, or longer than the header says.
    #[error("record has {actual} bytes of content, its header says {expected}")]
    Length {
        /// In the header.
        expected: u64,
        /// Given.
        actual: u64,
    },
    /// Above [`RECORD_LEN_MAX`].
    #[error("record of {len} bytes is above the limit of {RECORD_LEN_MAX}")]
    TooLong {
        /// In bytes.
        len: u64,
    },
    /// Damaged.
    #[error("record checksum is {actual:08x}, its header says {expected:08x}: corrupted")]
    Checksum {
        /// In the header.
        expected: u32,
        /// Of the content.
        actual: u32,
    },
    /// Intact, but not what this version writes.
    #[error("record content does not decode: {0}")]
    Content(String),
}

/// The bytes of a record.
pub fn encode_record(record: &Record) -> Result<Vec<u8>, RecordError> {
    encode(RECORD_MAGIC, record)
}

/// Reads a record. For restores, and for readers without a cluster.
pub fn decode_record(bytes: &[u8]) -> Result<Record, RecordError> {
    decode(RECORD_MAGIC, bytes)
}

pub(crate) fn encode<T: Serialize>(magic: [u8; 8], value: &T) -> Result<Vec<u8>, RecordError> {
    let body = rmp_serde::to_vec(value).map_err(|e| RecordError::Content(e.to_string()))?;
    if body.len() as u64 > RECORD_LEN_MAX {
        return Err(RecordError::TooLong {
            len: body.len() as u64,
        });
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&RECORD_FORMAT.to_be_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub(crate) fn decode<T: DeserializeOwned>(magic: [u8; 8], bytes: &[u8]) -> Result<T, RecordError> {
    let (Some(header), Some(body)) = (bytes.first_chunk::<HEADER_LEN>(), bytes.get(HEADER_LEN..))
    else {
        return Err(RecordError::TooShort { len: bytes.len() });
    };
    let mut found = [0; 8];
    found.copy_from_slice(&header[..8]);
    if found != magic {
        return Err(RecordError::Magic { found });
    }
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&header[at..at + 4]);
        u32::from_be_bytes(word)
    };
    if word(8) != RECORD_FORMAT {
        return Err(RecordError::Format { found: word(8) });
    }
    let expected = (u64::from(word(12)) << 32) | u64::from(word(16));
    if expected > RECORD_LEN_MAX {
        return Err(RecordError::TooLong { len: expected });
    }
    if expected != body.len() as u64 {
        return Err(RecordError::Length {
            expected,
            actual: body.len() as u64,
        });
    }
    let actual = crc32c::crc32c(body);
    if actual != word(20) {
        return Err(RecordError::Checksum {
            expected: word(20),
            actual,
        });
    }
    rmp_serde::from_slice(body).map_err(|e| RecordError::Content(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::manifest_of;
    use crate::model::{CheckpointId, JobState, LeaderEpoch, RecordOutcome};
    use proptest::prelude::*;

    fn records() -> Vec<Record> {
        [
            RecordOutcome::Completed(Box::new(manifest_of(7, &[(0, 1, "a"), (2, 5, "b")]))),
            RecordOutcome::Aborted {
                reason: "expired".into(),
            },
            RecordOutcome::Claimed,
            RecordOutcome::Terminal {
                state: JobState::Failed,
                message: Some("no".into()),
            },
        ]
        .into_iter()
        .map(|outcome| Record {
            checkpoint: CheckpointId(7),
            epoch: LeaderEpoch(2),
            token: u128::MAX - 5,
            outcome,
        })
        .collect()
    }

    #[test]
    fn every_outcome_round_trips() {
        for record in records() {
            assert_eq!(
                decode_record(&encode_record(&record).unwrap()),
                Ok(record.clone())
            );
        }
    }

    #[test]
    fn a_record_of_a_newer_format_is_refused_by_number() {
        let mut bytes = encode_record(&records()[2]).unwrap();
        bytes[11] = 9;
        assert_eq!(decode_record(&bytes), Err(RecordError::Format { found: 9 }));
    }

    #[test]
    fn a_header_that_promises_too_much_allocates_nothing() {
        let mut bytes = encode_record(&records()[2]).unwrap();
        bytes[12] = 0xff;
        assert!(matches!(
            decode_record(&bytes),
            Err(RecordError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode_record(&bytes).is_err());
        }

        /// The checksum is right and the content is not: only the decoder stands between it and a panic.
        #[test]
        fn random_content_with_a_right_checksum_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = RECORD_MAGIC.to_vec();
            bytes.extend_from_slice(&RECORD_FORMAT.to_be_bytes());
            bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
            bytes.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
            bytes.extend_from_slice(&body);
            let _ = decode_record(&bytes); // Any answer but a panic is right.
        }

        #[test]
        fn truncated_and_bit_flipped_records_are_errors(which in 0_usize..4, cut in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let bytes = encode_record(&records()[which]).unwrap();
            let at = cut.index(bytes.len());
            prop_assert!(decode_record(&bytes[..at]).is_err());
            let mut flipped = bytes;
            flipped[at] ^= 1 << bit;
            prop_assert!(decode_record(&flipped).is_err());
        }
    }
}
