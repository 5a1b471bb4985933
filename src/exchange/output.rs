//! The producing end of a channel.
//!
//! Invariant: what was pushed goes in order, each element once; `push` never waits and `flush` never blocks.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use perennial_actors::model::{ChannelPeer, FailureKind};

use super::codec::BatchCodec;
use super::frame::{
    BODY_BYTES_MAX, BarrierBody, ChannelId, DATA_PREFIX_BYTES, Kind, StatusBody, WatermarkBody,
};
use super::gate::peer_lost;
use super::local::LocalChannel;
use super::queue::ElementQueue;
use super::registry::{End, Registry};
use super::remote_output::RemoteOutput;
use crate::batch::{BATCH_RECORDS_MAX, Batch, Record, StreamElement};

/// Records of one frame; a larger batch is split before it is encoded.
const FRAME_RECORDS_MAX: usize = 8192;
/// Records to gather at most for a channel to another process, where a batch costs system calls and the waking of four threads.
pub(super) const REMOTE_BATCH_RECORDS: usize = 4 * BATCH_RECORDS_MAX;
/// Bytes of a batch above which gathering more records than for a channel within the process does not pay.
const REMOTE_BATCH_BYTES: u64 = 64 * 1024;
const _: () = assert!(
    REMOTE_BATCH_RECORDS <= FRAME_RECORDS_MAX
        && 4 * REMOTE_BATCH_RECORDS <= super::registry::WINDOW_RECORDS as usize
        && 4 * REMOTE_BATCH_BYTES <= super::registry::WINDOW_BYTES,
    "a gathered batch goes as one frame, and some are under way while one is encoded and one decoded"
);
/// Barriers and the like that wait for a channel that takes nothing, e.g. one barrier for each checkpoint that failed meanwhile.
pub(super) const PENDING_CONTROLS_MAX: usize = 4096;

/// The producing end of one channel. Dropping it without `EndOfInput` breaks the channel for the consumer.
pub struct OutputChannel<T> {
    id: ChannelId,
    peer: ChannelPeer,
    pending: ElementQueue<T>,
    target: Target<T>,
    bytes_sent: u64,
    failure: Option<FailureKind>,
    registry: Arc<Registry>,
}

pub(super) enum Target<T> {
    Local(Arc<LocalChannel<T>>),
    Remote {
        output: Arc<RemoteOutput>,
        codec: Arc<dyn BatchCodec<T>>,
        /// The head of the pending output, encoded and waiting for room.
        encoded: VecDeque<Encoded>,
        encoded_records: usize,
        /// Capacity for the next encoding.
        last_bytes: usize,
        /// See [`OutputChannel::batch_records`].
        batch_records: usize,
    },
    /// It could not be opened.
    Failed(FailureKind),
}

impl<T> Target<T> {
    pub(super) fn remote(output: Arc<RemoteOutput>, codec: Arc<dyn BatchCodec<T>>) -> Self {
        Self::Remote {
            output,
            codec,
            encoded: VecDeque::new(),
            encoded_records: 0,
            last_bytes: 0,
            batch_records: BATCH_RECORDS_MAX,
        }
    }
}

pub(super) struct Encoded {
    records: u32,
    body: Bytes,
}

impl<T: Record> OutputChannel<T> {
    pub(super) fn new(
        id: ChannelId,
        peer: ChannelPeer,
        target: Target<T>,
        registry: Arc<Registry>,
    ) -> Self {
        Self {
            id,
            peer,
            pending: ElementQueue::new(),
            target,
            bytes_sent: 0,
            failure: None,
            registry,
        }
    }

    /// Appends to the pending output; never waits. Order is kept. A watermark directly behind a watermark replaces it, as does
    /// a status; an empty batch is dropped.
    pub fn push(&mut self, element: StreamElement<T>) {
        self.pending.push(element);
    }

    /// Hands pending output to the channel as far as credit goes; `true` when none is left. The waker is called when more may go.
    ///
    /// An error ends the channel: every later call returns it again. Besides [`FailureKind::PeerLost`] there are
    /// [`FailureKind::Limit`] for a record or a number of barriers that is too large, and [`FailureKind::User`] for a record that
    /// cannot be encoded.
    pub fn flush(&mut self) -> Result<bool, FailureKind> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let outcome = self.try_flush();
        match &outcome {
            Ok(false) if self.pending.controls() > PENDING_CONTROLS_MAX => {
                self.fail(FailureKind::Limit {
                    limit: "exchange.pending-controls".to_owned(),
                    message: format!(
                        "{} barriers and watermarks wait for {}, which takes nothing; at most {PENDING_CONTROLS_MAX} may",
                        self.pending.controls(),
                        self.peer.attempt
                    ),
                })
            }
            Ok(_) => outcome,
            Err(failure) => self.fail(failure.clone()),
        }
    }

    fn fail(&mut self, failure: FailureKind) -> Result<bool, FailureKind> {
        self.failure = Some(failure.clone());
        self.pending.clear();
        Err(failure)
    }

    fn try_flush(&mut self) -> Result<bool, FailureKind> {
        match &mut self.target {
            Target::Failed(failure) => Err(failure.clone()),
            Target::Local(channel) => channel
                .offer(&mut self.pending)
                .map_err(|_| peer_lost(&self.peer, "task ended before its input did".to_owned())),
            Target::Remote {
                output,
                codec,
                encoded,
                encoded_records,
                last_bytes,
                batch_records,
            } => {
                if let Some(message) = output.failure() {
                    return Err(peer_lost(&self.peer, message));
                }
                loop {
                    while let Some(head) = encoded.front() {
                        if !output.send_data(head.records, &head.body) {
                            return Ok(false);
                        }
                        self.bytes_sent += head.body.len() as u64;
                        *encoded_records -= head.records as usize;
                        encoded.pop_front();
                    }
                    let is_sent = match self.pending.front() {
                        None => return Ok(true),
                        Some(StreamElement::Batch(batch)) => {
                            if !output.may_encode(batch.len()) {
                                return Ok(false);
                            }
                            if let Some(StreamElement::Batch(batch)) = self.pending.pop() {
                                *encoded_records += batch.len();
                                encode(&**codec, batch, last_bytes, encoded)?;
                                if let Some(last) = encoded.back() {
                                    *batch_records = worth_gathering(last, output.window_bytes());
                                }
                            }
                            continue;
                        }
                        Some(StreamElement::Watermark(timestamp)) => output
                            .send_control(Kind::Watermark, || body(&WatermarkBody(*timestamp))),
                        Some(StreamElement::Status(status)) => {
                            output.send_control(Kind::Status, || body(&StatusBody::from(*status)))
                        }
                        Some(StreamElement::Barrier(barrier)) => {
                            output.send_control(Kind::Barrier, || body(&BarrierBody(*barrier)))
                        }
                        Some(StreamElement::EndOfInput) => {
                            output.send_control(Kind::EndOfInput, Bytes::new)
                        }
                    };
                    if !is_sent {
                        return Ok(false);
                    }
                    self.pending.pop();
                }
            }
        }
    }

    /// Puts a barrier before everything that waits in the channel; `false` when the channel cannot do that now, in which case the
    /// barrier is to be pushed in its place. What waits here is the caller's to store. Channels to other processes cannot do it yet.
    pub fn overtake(&mut self, element: StreamElement<T>) -> bool {
        match &self.target {
            Target::Local(channel) => channel.overtake(element),
            Target::Remote { .. } | Target::Failed(_) => false,
        }
    }

    /// Records pending here, not yet accepted by the channel.
    #[must_use]
    pub fn pending_records(&self) -> usize {
        let encoded = match &self.target {
            Target::Remote {
                encoded_records, ..
            } => *encoded_records,
            Target::Local(_) | Target::Failed(_) => 0,
        };
        self.pending.records() + encoded
    }

    /// An empty batch to fill, with memory that the consumer gave back if there is any.
    #[must_use]
    pub fn recycled(&self) -> Batch<T> {
        match &self.target {
            Target::Local(channel) => channel.recycled(),
            Target::Remote { .. } | Target::Failed(_) => Batch::default(),
        }
    }

    /// How many records are worth gathering into one batch, when there is no other reason to hand them over. To another process
    /// more, as long as they are small: that changes with what was sent last.
    #[must_use]
    pub fn batch_records(&self) -> usize {
        match &self.target {
            Target::Remote { batch_records, .. } => *batch_records,
            Target::Local(_) | Target::Failed(_) => BATCH_RECORDS_MAX,
        }
    }

    /// From how many records on a batch goes as it is instead of being gathered. To another process a batch costs more than moving its
    /// records into a larger one.
    #[must_use]
    pub fn whole_from(&self) -> usize {
        match &self.target {
            Target::Remote { batch_records, .. } => *batch_records,
            Target::Local(_) | Target::Failed(_) => BATCH_RECORDS_MAX / 4,
        }
    }

    /// Who consumes.
    #[must_use]
    pub fn peer(&self) -> &ChannelPeer {
        &self.peer
    }

    /// Bytes sent to another process so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }
}

impl<T> Drop for OutputChannel<T> {
    fn drop(&mut self) {
        match &self.target {
            Target::Local(channel) => {
                channel.drop_producer();
                self.registry.drop_local(self.id, End::Producer);
            }
            Target::Remote { output, .. } => {
                self.registry.drop_output(self.id);
                output.detach();
            }
            Target::Failed(_) => {}
        }
    }
}

fn body(value: &impl serde::Serialize) -> Bytes {
    // Plain data always encodes; if it did not, the consumer would report the empty body as malformed.
    postcard::to_stdvec(value).unwrap_or_default().into()
}

/// As many records as the last ones were small, within a quarter of the window, so that some batches are under way.
fn worth_gathering(last: &Encoded, window_bytes: u64) -> usize {
    let bytes = REMOTE_BATCH_BYTES.min(window_bytes / 4);
    let fitting = bytes * u64::from(last.records) / (last.body.len() as u64).max(1);
    (fitting as usize).clamp(BATCH_RECORDS_MAX, REMOTE_BATCH_RECORDS)
}

/// Encodes a batch into frames of bounded records and bytes.
fn encode<T: Record>(
    codec: &dyn BatchCodec<T>,
    batch: Batch<T>,
    last_bytes: &mut usize,
    out: &mut VecDeque<Encoded>,
) -> Result<(), FailureKind> {
    encode_within(codec, batch, last_bytes, out, BODY_BYTES_MAX)
}

fn encode_within<T: Record>(
    codec: &dyn BatchCodec<T>,
    batch: Batch<T>,
    last_bytes: &mut usize,
    out: &mut VecDeque<Encoded>,
    bytes_max: usize,
) -> Result<(), FailureKind> {
    let mut rest = vec![batch];
    while let Some(mut batch) = rest.pop() {
        if batch.len() > FRAME_RECORDS_MAX {
            rest.push(split_off(&mut batch, FRAME_RECORDS_MAX));
        }
        // A little more than last time: one byte too little would double it.
        let mut body = Vec::with_capacity(DATA_PREFIX_BYTES + *last_bytes + *last_bytes / 16);
        body.extend_from_slice(&(batch.len() as u32).to_le_bytes());
        codec
            .encode(&batch, &mut body)
            .map_err(|error| FailureKind::User {
                message: error.to_string(),
                is_unrecoverable: false,
            })?;
        if body.len() <= bytes_max {
            *last_bytes = body.len();
            out.push_back(Encoded {
                records: batch.len() as u32,
                body: body.into(),
            });
        } else if batch.len() > 1 {
            let middle = batch.len() / 2;
            let second = split_off(&mut batch, middle);
            rest.push(second);
            rest.push(batch);
        } else {
            return Err(FailureKind::Limit {
                limit: "exchange.frame-bytes".to_owned(),
                message: format!(
                    "one record has {} bytes encoded, a frame at most {bytes_max}: make records smaller",
                    body.len()
                ),
            });
        }
    }
    Ok(())
}

fn split_off<T>(batch: &mut Batch<T>, at: usize) -> Batch<T> {
    Batch {
        values: batch.values.split_off(at),
        timestamps: if batch.has_timestamps() {
            batch.timestamps.split_off(at.min(batch.timestamps.len()))
        } else {
            Vec::new()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::FixedCodec;
    use crate::exchange::registry::{WINDOW_BYTES, WINDOW_BYTES_MIN};

    /// Small records fourfold; large ones, and small windows, as within the process, so that a window holds several batches.
    #[test]
    fn what_is_gathered_for_another_process_follows_the_size_of_records() {
        let cases = [
            (9, WINDOW_BYTES, REMOTE_BATCH_RECORDS),
            (16, WINDOW_BYTES, REMOTE_BATCH_RECORDS),
            (32, WINDOW_BYTES, 2 * BATCH_RECORDS_MAX),
            (300, WINDOW_BYTES, BATCH_RECORDS_MAX),
            (9, WINDOW_BYTES_MIN, BATCH_RECORDS_MAX),
            (1, WINDOW_BYTES_MIN, REMOTE_BATCH_RECORDS),
            (9, 0, BATCH_RECORDS_MAX),
        ];
        for (record_bytes, window_bytes, expected) in cases {
            let last = Encoded {
                records: 100,
                body: vec![0; 100 * record_bytes].into(),
            };
            let found = worth_gathering(&last, window_bytes);
            assert_eq!(found, expected, "{record_bytes} in {window_bytes}");
        }
    }

    /// Batches above the limits of records and bytes leave as several frames, in order, each within both limits.
    #[test]
    fn a_batch_above_the_frame_limits_is_split_in_order() {
        let mut batch = Batch::default();
        for i in 0..20_000_u64 {
            batch.push(i, Some(i as i64));
        }
        let mut frames = VecDeque::new();
        let bytes_max = 4000;
        encode_within(
            &FixedCodec::new(),
            batch.clone(),
            &mut 0,
            &mut frames,
            bytes_max,
        )
        .unwrap();
        let mut joined = Batch::default();
        for frame in &frames {
            assert!(frame.body.len() <= bytes_max);
            let part: Batch<u64> = FixedCodec::new().decode(&frame.body[4..]).unwrap();
            assert_eq!(part.len(), frame.records as usize);
            joined.values.extend(part.values);
            joined.timestamps.extend(part.timestamps);
        }
        assert_eq!(joined, batch);
    }

    #[test]
    fn a_single_record_above_the_frame_limit_is_a_typed_error() {
        let batch = Batch {
            values: vec!["x".repeat(100)],
            timestamps: Vec::new(),
        };
        let codec = crate::exchange::SerdeCodec::new();
        let failure = encode_within(&codec, batch, &mut 0, &mut VecDeque::new(), 50).unwrap_err();
        assert!(matches!(failure, FailureKind::Limit { .. }), "{failure}");
    }
}
