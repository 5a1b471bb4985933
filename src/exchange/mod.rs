//! Channels between tasks: queues within a process, framed TCP with credits between processes.

use std::sync::Arc;

use perennial_actors::model::{ChannelPeer, EdgeChannels, ExecutionAttemptId, FailureKind};

use crate::batch::{Batch, StreamElement};

/// Turns batches into bytes and back. Both ends are the same build, so that the encoding needs no schema.
pub trait BatchCodec<T>: Send + Sync + 'static {
    /// Appends the encoding to `out`.
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

/// Wakes a task that waits for input, output or control. Cheap when the task is awake.
pub trait TaskWaker: Send + Sync + 'static {
    /// Makes the task run soon. Never blocks.
    fn wake(&self);
}

/// The data connections of one TaskManager.
pub struct Exchange {}

impl Exchange {
    /// Opens the consuming ends of all channels of some edges with the same record type (a union). No element arrives before [`InputGate::start`].
    pub fn open_input<T: crate::batch::Record>(
        &self,
        _me: ExecutionAttemptId,
        _edges: &[EdgeChannels],
        _codec: Arc<dyn BatchCodec<T>>,
        _waker: Arc<dyn TaskWaker>,
    ) -> InputGate<T> {
        unimplemented!()
    }

    /// Opens the producing ends of the channels of one edge, in order of the consumers.
    pub fn open_output<T: crate::batch::Record>(
        &self,
        _me: ExecutionAttemptId,
        _edge: &EdgeChannels,
        _codec: Arc<dyn BatchCodec<T>>,
        _waker: Arc<dyn TaskWaker>,
    ) -> Vec<OutputChannel<T>> {
        unimplemented!()
    }
}

/// The consuming ends of a task's channels of one record type. Dropping it closes them.
pub struct InputGate<T> {
    _t: std::marker::PhantomData<T>,
}

impl<T: crate::batch::Record> InputGate<T> {
    /// Grants the first credit: the task has its state and is ready for records.
    pub fn start(&mut self) {
        unimplemented!()
    }

    /// Number of channels.
    #[must_use]
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Takes the next element of a channel that is not blocked, fairly among channels; `None` when there is none now.
    /// The waker is called when there may be one again.
    pub fn poll(&mut self) -> Result<Option<(usize, StreamElement<T>)>, FailureKind> {
        unimplemented!()
    }

    /// Leaves a channel's elements in its queue (its barrier has arrived, others' have not).
    pub fn block(&mut self, _channel: usize) {
        unimplemented!()
    }

    /// Ends all blocks.
    pub fn unblock_all(&mut self) {
        unimplemented!()
    }

    /// Who produces into a channel.
    #[must_use]
    pub fn peer(&self, _channel: usize) -> &ChannelPeer {
        unimplemented!()
    }

    /// Bytes received from other processes so far.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        unimplemented!()
    }
}

/// The producing end of one channel. Dropping it without `EndOfInput` breaks the channel for the consumer.
pub struct OutputChannel<T> {
    _t: std::marker::PhantomData<T>,
}

impl<T: crate::batch::Record> OutputChannel<T> {
    /// Appends to the pending output; never waits. Order is kept.
    pub fn push(&mut self, _element: StreamElement<T>) {
        unimplemented!()
    }

    /// Hands pending output to the channel as far as credit goes; `true` when none is left. The waker is called when more may go.
    pub fn flush(&mut self) -> Result<bool, FailureKind> {
        unimplemented!()
    }

    /// Records pending here, not yet accepted by the channel.
    #[must_use]
    pub fn pending_records(&self) -> usize {
        unimplemented!()
    }

    /// Bytes sent to another process so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        unimplemented!()
    }
}
