//! Bytes of a control connection, after the preamble of the handshake.
//!
//! ```text
//! frame   = len: u32 BE   bytes that follow, 5 ..= 5 + limit
//!           kind: u8      1 whole message, 2 first chunk, 3 further chunk
//!           crc: u32 BE   CRC-32C of kind and body
//!           body          whole or further: bytes of the message; first chunk: its total length as u64 BE, then bytes
//! message = MessagePack (rmp-serde, named fields)
//! ```
//!
//! Whole messages may stand between the chunks of another message and are delivered at once, so that a heartbeat does not wait
//! for a large deployment. There is at most one message in chunks at a time.
//!
//! Invariant: memory grows only with bytes that have really arrived, never with a length that was announced. This module knows
//! nothing of what the messages mean.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Encoder, FramedRead, FramedWrite};

/// Version of everything that crosses a control connection: preamble, frames and messages. Nodes of different versions refuse
/// each other by name.
pub const PROTOCOL_VERSION: u16 = 3;
/// The longest body of one frame.
pub const FRAME_BODY_MAX: usize = 16 << 20;
/// The longest message, over all its chunks.
pub const MESSAGE_MAX: usize = 256 << 20;
/// Messages longer than this go in chunks of this size: what a heartbeat waits for at most.
pub const CHUNK_SIZE: usize = 64 << 10;

const LENGTH_SIZE: usize = 4;
const HEAD_SIZE: usize = 1 + 4;
const TOTAL_SIZE: usize = 8;

/// Bytes that are not the protocol. The connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed, or ended inside a frame.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// A frame or message over its bound.
    #[error("{what} of {length} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// `frame` or `message`.
        what: &'static str,
        /// As announced.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Not a frame of this version.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// Damaged on the way.
    #[error("frame of {length} bytes has checksum {actual:08x}, its head says {expected:08x}")]
    Checksum {
        /// Of the body.
        length: usize,
        /// Computed.
        actual: u32,
        /// Received.
        expected: u32,
    },
    /// The bytes are intact and are not the expected message.
    #[error("undecodable message: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    /// Ours is the bug: plain data always encodes.
    #[error("unencodable message: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A message.
    Whole,
    /// The length of a message and its first bytes.
    First,
    /// More bytes of it.
    Further,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Whole => 1,
            Self::First => 2,
            Self::Further => 3,
        }
    }

    fn of_code(code: u8) -> Result<Self, FrameError> {
        match code {
            1 => Ok(Self::Whole),
            2 => Ok(Self::First),
            3 => Ok(Self::Further),
            _ => Err(FrameError::Malformed("unknown kind")),
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What `body` is.
    pub kind: FrameKind,
    /// At most [`FRAME_BODY_MAX`] bytes.
    pub body: Bytes,
}

/// Cuts bytes into frames and back.
#[derive(Debug, Clone, Copy)]
pub struct FrameCodec;

fn checksum(kind: u8, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), body)
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(length) = source.first_chunk::<LENGTH_SIZE>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        let Some(body_length) = length.checked_sub(HEAD_SIZE) else {
            return Err(FrameError::Malformed("shorter than its head"));
        };
        // Order matters: the bound comes before anything is kept for the frame.
        if body_length > FRAME_BODY_MAX {
            return Err(FrameError::TooLarge {
                what: "frame",
                length: body_length as u64,
                limit: FRAME_BODY_MAX as u64,
            });
        }
        if source.len() < LENGTH_SIZE + length {
            return Ok(None);
        }
        source.advance(LENGTH_SIZE);
        let mut frame = source.split_to(length);
        let code = frame.get_u8();
        let expected = frame.get_u32();
        let actual = checksum(code, &frame);
        if actual != expected {
            return Err(FrameError::Checksum {
                length: body_length,
                actual,
                expected,
            });
        }
        Ok(Some(Frame {
            kind: FrameKind::of_code(code)?,
            body: frame.freeze(),
        }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, target: &mut BytesMut) -> Result<(), FrameError> {
        if frame.body.len() > FRAME_BODY_MAX {
            return Err(FrameError::TooLarge {
                what: "frame",
                length: frame.body.len() as u64,
                limit: FRAME_BODY_MAX as u64,
            });
        }
        target.reserve(LENGTH_SIZE + HEAD_SIZE + frame.body.len());
        // Fits: the limit is far below u32::MAX.
        target.put_u32((HEAD_SIZE + frame.body.len()) as u32);
        target.put_u8(frame.kind.code());
        target.put_u32(checksum(frame.kind.code(), &frame.body));
        target.put_slice(&frame.body);
        Ok(())
    }
}

/// Puts chunks together.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Option<(u64, BytesMut)>,
}

impl Assembler {
    /// Takes a frame; a message when one is complete.
    pub fn push(&mut self, frame: Frame) -> Result<Option<Bytes>, FrameError> {
        match (frame.kind, self.partial.take()) {
            (FrameKind::Whole, partial) => {
                self.partial = partial;
                Ok(Some(frame.body))
            }
            (FrameKind::First, None) => {
                let mut body = frame.body;
                if body.len() < TOTAL_SIZE {
                    return Err(FrameError::Malformed("first chunk without a total"));
                }
                let total = body.get_u64();
                if total > MESSAGE_MAX as u64 {
                    return Err(FrameError::TooLarge {
                        what: "message",
                        length: total,
                        limit: MESSAGE_MAX as u64,
                    });
                }
                self.extend(total, BytesMut::new(), &body)
            }
            (FrameKind::First, Some(_)) => {
                Err(FrameError::Malformed("a chunked message inside another"))
            }
            (FrameKind::Further, Some((total, bytes))) => self.extend(total, bytes, &frame.body),
            (FrameKind::Further, None) => {
                Err(FrameError::Malformed("a further chunk without a first"))
            }
        }
    }

    fn extend(
        &mut self,
        total: u64,
        mut bytes: BytesMut,
        more: &[u8],
    ) -> Result<Option<Bytes>, FrameError> {
        if (bytes.len() + more.len()) as u64 > total {
            return Err(FrameError::Malformed("more chunks than announced"));
        }
        bytes.extend_from_slice(more);
        if bytes.len() as u64 == total {
            return Ok(Some(bytes.freeze()));
        }
        if more.is_empty() {
            // Would let a peer keep us busy for ever without progress.
            return Err(FrameError::Malformed("an empty chunk"));
        }
        self.partial = Some((total, bytes));
        Ok(None)
    }
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, FrameError> {
    Ok(rmp_serde::to_vec_named(message)?.into())
}

/// The message of bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    Ok(rmp_serde::from_slice(bytes)?)
}

/// Reads messages.
pub struct MessageReader<R> {
    frames: FramedRead<R, FrameCodec>,
    assembler: Assembler,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads from after the preamble.
    pub fn new(inner: R) -> Self {
        Self {
            frames: FramedRead::new(inner, FrameCodec),
            assembler: Assembler::default(),
        }
    }

    /// The next message's bytes; `None` at the end of the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        while let Some(frame) = self.frames.next().await {
            if let Some(message) = self.assembler.push(frame?)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// The next message, decoded.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        match self.next().await? {
            Some(bytes) => Ok(Some(decode(&bytes)?)),
            None => Ok(None),
        }
    }
}

/// Writes messages.
pub struct MessageWriter<W> {
    frames: FramedWrite<W, FrameCodec>,
}

impl<W: AsyncWrite + Unpin> MessageWriter<W> {
    /// Writes from after the preamble.
    pub fn new(inner: W) -> Self {
        Self {
            frames: FramedWrite::new(inner, FrameCodec),
        }
    }

    /// Encodes and writes a message. Not cancel safe: a message that was begun must be ended.
    pub async fn message<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.send(encode(message)?, || None).await
    }

    /// Writes a message, in chunks when it is long; `urgent` is asked between chunks for short messages that may overtake.
    pub async fn send(
        &mut self,
        message: Bytes,
        mut urgent: impl FnMut() -> Option<Bytes>,
    ) -> Result<(), FrameError> {
        if message.len() > MESSAGE_MAX {
            return Err(FrameError::TooLarge {
                what: "message",
                length: message.len() as u64,
                limit: MESSAGE_MAX as u64,
            });
        }
        if message.len() <= CHUNK_SIZE {
            return self.frame(FrameKind::Whole, message).await;
        }
        let mut rest = message;
        let mut first = BytesMut::with_capacity(TOTAL_SIZE + CHUNK_SIZE);
        first.put_u64(rest.len() as u64);
        first.put_slice(&rest.split_to(CHUNK_SIZE));
        self.frame(FrameKind::First, first.freeze()).await?;
        while !rest.is_empty() {
            while let Some(message) = urgent() {
                self.frame(FrameKind::Whole, message).await?;
            }
            let chunk = rest.split_to(CHUNK_SIZE.min(rest.len()));
            self.frame(FrameKind::Further, chunk).await?;
        }
        Ok(())
    }

    async fn frame(&mut self, kind: FrameKind, body: Bytes) -> Result<(), FrameError> {
        self.frames.send(Frame { kind, body }).await
    }

    /// Tells the peer that nothing more comes.
    pub async fn shutdown(&mut self) -> Result<(), FrameError> {
        self.frames.close().await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(frame: Frame) -> BytesMut {
        let mut bytes = BytesMut::new();
        FrameCodec.encode(frame, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        /// Arbitrary bytes give frames, errors or wait for more; they never panic and never grow the buffer.
        #[test]
        fn random_bytes_never_panic_or_allocate(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut assembler = Assembler::default();
            while let Ok(Some(frame)) = FrameCodec.decode(&mut buffer) {
                if assembler.push(frame).is_err() {
                    break;
                }
            }
            prop_assert!(buffer.capacity() <= bytes.len().max(64));
            let _decoded: Result<crate::model::message::ToTaskManager, _> = decode(&bytes);
            let _decoded: Result<crate::model::message::Hello, _> = decode(&bytes);
        }

        /// Valid frames of random kinds, as a hostile but authenticated peer may send: kept bytes never exceed sent bytes.
        #[test]
        fn random_frames_never_panic_or_allocate(
            frames in proptest::collection::vec((1_u8..4, proptest::collection::vec(any::<u8>(), 0..40)), 0..50),
        ) {
            let mut assembler = Assembler::default();
            let mut sent = 0;
            for (code, body) in frames {
                sent += body.len();
                let frame = Frame { kind: FrameKind::of_code(code).unwrap(), body: body.into() };
                if assembler.push(frame).is_err() {
                    break;
                }
                if let Some((_, bytes)) = &assembler.partial {
                    prop_assert!(bytes.capacity() <= (2 * sent).max(64));
                }
            }
        }

        /// Every proper prefix of a frame waits, every flipped bit behind the length is noticed.
        #[test]
        fn truncated_frames_wait_and_damaged_ones_are_refused(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            cut in any::<prop::sample::Index>(),
            bit in any::<prop::sample::Index>(),
        ) {
            let frame = Frame { kind: FrameKind::Whole, body: body.into() };
            let bytes = encoded(frame.clone());
            let mut truncated = BytesMut::from(&bytes[..cut.index(bytes.len())]);
            prop_assert!(matches!(FrameCodec.decode(&mut truncated), Ok(None)));

            let mut damaged = bytes.clone();
            let bit = bit.index((bytes.len() - LENGTH_SIZE) * 8);
            damaged[LENGTH_SIZE + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(FrameCodec.decode(&mut damaged).is_err());

            let mut whole = bytes;
            prop_assert_eq!(FrameCodec.decode(&mut whole).unwrap(), Some(frame));
        }
    }

    #[test]
    fn announced_lengths_are_checked_before_allocation() {
        let mut bytes = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        let error = FrameCodec.decode(&mut bytes).unwrap_err();
        assert!(
            matches!(error, FrameError::TooLarge { what: "frame", .. }),
            "{error}"
        );

        let total = (MESSAGE_MAX as u64 + 1).to_be_bytes().to_vec();
        let first = Frame {
            kind: FrameKind::First,
            body: total.into(),
        };
        let error = Assembler::default().push(first).unwrap_err();
        assert!(
            matches!(
                error,
                FrameError::TooLarge {
                    what: "message",
                    ..
                }
            ),
            "{error}"
        );
    }

    /// The layout is a promise between versions: these bytes change only together with [`PROTOCOL_VERSION`].
    #[test]
    fn the_layout_is_as_documented() {
        let bytes = encoded(Frame {
            kind: FrameKind::Whole,
            body: Bytes::from_static(b"ab"),
        });
        assert_eq!(&bytes[..5], [0, 0, 0, 7, 1]);
        assert_eq!(bytes[5..9], crc32c::crc32c(b"\x01ab").to_be_bytes());
        assert_eq!(&bytes[9..], b"ab");
    }

    /// A message far over the frame limit passes, and a short one queued meanwhile arrives first.
    #[tokio::test]
    async fn a_heartbeat_overtakes_a_large_message() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let large = Bytes::from(vec![7_u8; FRAME_BODY_MAX + 12345]);
        let expected = large.clone();
        let writing = tokio::spawn(async move {
            let mut writer = MessageWriter::new(near);
            let mut urgent = Some(Bytes::from_static(b"beat"));
            writer.send(large, || urgent.take()).await.unwrap();
        });
        let mut reader = MessageReader::new(far);
        assert_eq!(reader.next().await.unwrap().unwrap(), &b"beat"[..]);
        assert_eq!(reader.next().await.unwrap().unwrap(), expected);
        writing.await.unwrap();
        assert!(reader.next().await.unwrap().is_none());
    }
}
