//! The control connections: frames, authentication, sessions, heartbeats. See design.md section 3 and `ractor.md` section 2.

mod transport;

pub use transport::{BoxStream, Listener, Stream, TcpTransport, Transport};
