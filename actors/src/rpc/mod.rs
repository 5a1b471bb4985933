//! The control connections: frames, authentication, sessions, heartbeats. Not those of
//! `ractor_cluster`, which do not detect dead peers.

pub(crate) mod acceptor;
mod connection;
mod envelope;
mod frame;
mod handshake;
mod memory;
mod transport;

pub use connection::{
    CLOSE_FLUSH_MAX, Connection, ConnectionEvent, INCOMING_MESSAGES_MAX, OUTGOING_MESSAGES_MAX,
    OUTGOING_URGENT_MAX, OnEvent, Permit,
};
pub(crate) use envelope::{Accept, Inbox, Outbox, Wired, wired};
pub use envelope::{Envelope, Link, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, OutboxFull, SessionId};
pub use frame::{
    Assembler, CHUNK_SIZE, FRAME_BODY_MAX, Frame, FrameCodec, FrameError, FrameKind, MESSAGE_MAX,
    MessageReader, MessageWriter, PROTOCOL_VERSION, decode, encode,
};
pub use handshake::{
    Channel, HANDSHAKE_TIMEOUT, HandshakeError, Introduction, ResumePoint, dial, receive,
};
pub use memory::{MemoryNetwork, MemoryTransport, Weather};
pub use transport::{BoxStream, Listener, Stream, TcpTransport, Transport};
