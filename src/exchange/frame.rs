//! Frames of a data connection.
//!
//! Little-endian: length u32 (of everything after it), kind u8, flags u8, alias u32, sequence u64, crc32c u32 (of kind to sequence
//! and the body), crc32c u32 of all these, body. The alias stands for a channel and thereby for both attempts; `Open` says for which. Flags: bit 0 and 1 are
//! reserved for the body's compression (0 none, 1 lz4, 2 zstd); today anything but 0 is refused.
//!
//! Invariant: bytes that were changed on the way never come out as a frame, and a length is checked before memory is asked for or a body
//! waited for: a sender without credit would never send the bytes that a longer one promises.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use perennial_actors::model::{CheckpointBarrier, EdgeId, ExecutionAttemptId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::batch::{StreamStatus, Timestamp};

/// The longest frame, without its length field.
pub(super) const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Kind to both checksums.
const HEADER_BYTES: usize = 1 + 1 + 4 + 8 + 4 + 4;
/// The longest body of a data frame.
pub(super) const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
/// A data body begins with its number of records.
pub(super) const DATA_PREFIX_BYTES: usize = 4;

/// A channel between two attempts. Attempts are never used twice, so neither is a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChannelId {
    /// The edge of the job graph.
    pub edge: EdgeId,
    /// Who sends.
    pub producer: ExecutionAttemptId,
    /// Who receives.
    pub consumer: ExecutionAttemptId,
}

impl std::fmt::Display for ChannelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "edge {} from {} to {}",
            self.edge, self.producer, self.consumer
        )
    }
}

/// What may be under way: sent and not yet taken by the consumer's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) records: u32,
    pub(super) bytes: u64,
    pub(super) controls: u32,
}

/// What the consumer's task has taken since it last said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Credit {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) controls: u64,
}

impl Credit {
    pub(super) fn add(&mut self, more: Self) {
        self.records += more.records;
        self.bytes += more.bytes;
        self.controls += more.controls;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Consumer to producer: connects an alias to a channel and grants the first credit.
    Open,
    /// Consumer to producer.
    Credit,
    Data,
    Watermark,
    Status,
    Barrier,
    EndOfInput,
    /// Either way: this end is gone.
    Close,
    /// Either way, for no channel: this end is there.
    Keepalive,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Open,
        Self::Credit,
        Self::Data,
        Self::Watermark,
        Self::Status,
        Self::Barrier,
        Self::EndOfInput,
        Self::Close,
        Self::Keepalive,
    ];

    fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Credit => 2,
            Self::Data => 3,
            Self::Watermark => 4,
            Self::Status => 5,
            Self::Barrier => 6,
            Self::EndOfInput => 7,
            Self::Close => 8,
            Self::Keepalive => 9,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.code() == code)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) alias: u32,
    pub(super) sequence: u64,
    pub(super) body: Bytes,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OpenBody {
    pub(super) channel: ChannelId,
    pub(super) window: Window,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WatermarkBody(pub(super) Timestamp);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StatusBody {
    is_idle: bool,
}

impl From<StreamStatus> for StatusBody {
    fn from(status: StreamStatus) -> Self {
        Self {
            is_idle: status == StreamStatus::Idle,
        }
    }
}

impl From<StatusBody> for StreamStatus {
    fn from(body: StatusBody) -> Self {
        if body.is_idle {
            Self::Idle
        } else {
            Self::Active
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BarrierBody(pub(super) CheckpointBarrier);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CloseBody {
    pub(super) message: String,
}

/// Why a connection cannot go on. Every one ends it, with all its channels.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("no word from the peer for {0:?}")]
    Silent(Duration),
    #[error("frame of {length} bytes: must be {HEADER_BYTES} to {FRAME_BYTES_MAX}")]
    Length { length: usize },
    #[error("checksum mismatch in a frame of {length} bytes: damaged on the way")]
    Checksum { length: usize },
    #[error("frame of unknown kind {kind} or flags {flags:#x}")]
    Unknown { kind: u8, flags: u8 },
    #[error("{kind:?} frame for alias {alias}, which was never opened")]
    Alias { kind: Kind, alias: u32 },
    #[error("{kind:?} frame does not go in this direction")]
    Direction { kind: Kind },
    #[error("sequence gap in {channel}: got {got}, expected {expected}")]
    Sequence {
        channel: Box<ChannelId>,
        got: u64,
        expected: u64,
    },
    #[error("{channel} sent more than its credit: {message}")]
    Credit {
        channel: Box<ChannelId>,
        message: String,
    },
    #[error("malformed {kind:?} frame: {message}")]
    Body { kind: Kind, message: String },
    #[error("more than {max} channels wait for their producers")]
    TooManyWaiting { max: usize },
}

impl Frame {
    /// A frame whose body is a small serde value.
    pub(super) fn control<B: Serialize>(kind: Kind, alias: u32, sequence: u64, body: &B) -> Self {
        Self {
            kind,
            alias,
            sequence,
            body: postcard::to_stdvec(body)
                .expect("plain data without maps of unknown length always encodes")
                .into(),
        }
    }

    pub(super) fn keepalive() -> Self {
        Self {
            kind: Kind::Keepalive,
            alias: 0,
            sequence: 0,
            body: Bytes::new(),
        }
    }

    /// Bytes on the wire before the body.
    pub(super) fn head(&self) -> [u8; 4 + HEADER_BYTES] {
        let mut head = [0; 4 + HEADER_BYTES];
        head[..4].copy_from_slice(&((HEADER_BYTES + self.body.len()) as u32).to_le_bytes());
        head[4] = self.kind.code();
        head[6..10].copy_from_slice(&self.alias.to_le_bytes());
        head[10..18].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[4..18]), &self.body);
        head[18..22].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&head[..22]);
        head[22..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// Decodes a control body.
    pub(super) fn parse<B: DeserializeOwned>(&self) -> Result<B, LinkError> {
        match postcard::take_from_bytes(&self.body) {
            Ok((body, [])) => Ok(body),
            Ok((_, rest)) => Err(self.malformed(format!("{} bytes too many", rest.len()))),
            Err(error) => Err(self.malformed(error.to_string())),
        }
    }

    /// The number of records that a data body claims; decoding checks it.
    pub(super) fn records(&self) -> Result<u32, LinkError> {
        match self.body.first_chunk::<DATA_PREFIX_BYTES>() {
            Some(records) => Ok(u32::from_le_bytes(*records)),
            None => Err(self.malformed("no record count".to_owned())),
        }
    }

    pub(super) fn malformed(&self, message: String) -> LinkError {
        LinkError::Body {
            kind: self.kind,
            message,
        }
    }
}

/// Reads one frame. Each body gets memory of its own, so that a waiting small one does not keep a large buffer alive.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Frame, LinkError> {
    let mut head = [0; 4 + HEADER_BYTES];
    // A clean end is one between two frames.
    if reader.read(&mut head[..1]).await? == 0 {
        return Err(LinkError::Closed);
    }
    reader.read_exact(&mut head[1..4]).await?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if !(HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length) {
        return Err(LinkError::Length { length });
    }
    reader.read_exact(&mut head[4..]).await?;
    let crc = u32::from_le_bytes([head[22], head[23], head[24], head[25]]);
    if crc32c::crc32c(&head[..22]) != crc {
        return Err(LinkError::Checksum { length });
    }
    let mut body = vec![0; length - HEADER_BYTES];
    reader.read_exact(&mut body).await?;
    let crc = u32::from_le_bytes([head[18], head[19], head[20], head[21]]);
    if crc32c::crc32c_append(crc32c::crc32c(&head[4..18]), &body) != crc {
        return Err(LinkError::Checksum { length });
    }
    let (kind, flags) = (head[4], head[5]);
    let (Some(kind), 0) = (Kind::of(kind), flags) else {
        return Err(LinkError::Unknown { kind, flags });
    };
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&head[10..18]);
    Ok(Frame {
        kind,
        alias: u32::from_le_bytes([head[6], head[7], head[8], head[9]]),
        sequence: u64::from_le_bytes(sequence),
        body: body.into(),
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn read(mut bytes: &[u8]) -> Result<Frame, LinkError> {
        read_frame(&mut bytes)
            .now_or_never()
            .expect("a slice never waits")
    }

    fn wire(frame: &Frame) -> Vec<u8> {
        let mut bytes = frame.head().to_vec();
        bytes.extend_from_slice(&frame.body);
        bytes
    }

    fn frame() -> impl Strategy<Value = Frame> {
        (
            0..Kind::ALL.len(),
            any::<u32>(),
            any::<u64>(),
            prop::collection::vec(any::<u8>(), 0..100),
        )
            .prop_map(|(kind, alias, sequence, body)| Frame {
                kind: Kind::ALL[kind],
                alias,
                sequence,
                body: body.into(),
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_come_back_and_cut_ones_are_errors(frame in frame()) {
            let bytes = wire(&frame);
            prop_assert_eq!(read(&bytes).unwrap(), frame);
            for length in 0..bytes.len() {
                prop_assert!(read(&bytes[..length]).is_err());
            }
        }

        /// Every single damaged byte is noticed: by the checksum, by the length, or by the end of the input.
        #[test]
        fn a_damaged_byte_is_always_an_error(frame in frame(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut bytes = wire(&frame);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let frame = Frame { kind: Kind::Open, alias: 0, sequence: 0, body: bytes.into() };
            let _ = frame.parse::<OpenBody>();
            let _ = frame.parse::<BarrierBody>();
            let _ = frame.parse::<CloseBody>();
            let _ = frame.records();
        }
    }

    /// The limit stands before the allocation: only the length field is there, so a reader that trusted it would ask for 4 GiB.
    #[test]
    fn a_length_above_the_limit_is_refused_before_memory_is_taken() {
        for length in [
            0,
            HEADER_BYTES as u32 - 1,
            FRAME_BYTES_MAX as u32 + 1,
            u32::MAX,
        ] {
            assert!(matches!(
                read(&length.to_le_bytes()),
                Err(LinkError::Length { .. })
            ));
        }
    }

    #[test]
    fn reserved_flags_are_refused() {
        let mut bytes = wire(&Frame {
            kind: Kind::EndOfInput,
            alias: 1,
            sequence: 2,
            body: Bytes::new(),
        });
        bytes[5] = 1;
        let crc = crc32c::crc32c(&bytes[4..18]);
        bytes[18..22].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..22]);
        bytes[22..26].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(read(&bytes), Err(LinkError::Unknown { .. })));
    }

    /// N7: whatever bit of the head is flipped, nobody waits for bytes that will not come.
    #[tokio::test]
    async fn a_damaged_head_is_noticed_although_nothing_follows() {
        let good = wire(&Frame {
            kind: Kind::Credit,
            alias: 1,
            sequence: 2,
            body: vec![7; 40].into(),
        });
        for bit in 0..8 * (4 + HEADER_BYTES) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Open, but silent behind the frame.
            let (mut reader, mut writer) = tokio::io::duplex(1024);
            tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes)
                .await
                .unwrap();
            let result = read_frame(&mut reader).now_or_never();
            assert!(matches!(result, Some(Err(_))), "bit {bit}: {result:?}");
        }
    }
}
