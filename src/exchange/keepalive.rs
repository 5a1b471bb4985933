//! Notices a peer that fell silent without closing its connection: a cut cable, or a restarted peer behind an idle socket.
//!
//! Each end writes at least once an interval, an empty frame if nothing else, and gives the connection up when no byte came
//! for [`silence_max`](Keepalive::silence_max). That is two intervals longer than the JobManager waits for a heartbeat, so that a process
//! that hangs is lost by its heartbeats, as a whole and once; this is for the connection that broke alone.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use perennial_config::HeartbeatSettings;
use tokio::io::AsyncRead;
use tokio::sync::Notify;
use tokio_io_timeout::TimeoutReader;

use super::frame::LinkError;

#[derive(Debug, Clone, Copy)]
pub(super) struct Keepalive {
    interval: Duration,
    pub(super) silence_max: Duration,
}

impl Keepalive {
    pub(super) fn new(heartbeat: &HeartbeatSettings) -> Self {
        Self {
            interval: heartbeat.interval,
            silence_max: heartbeat.timeout + 2 * heartbeat.interval,
        }
    }

    /// A reader that fails after too long a silence; [`reason`](Self::reason) words its error.
    pub(super) fn watch<R: AsyncRead>(self, reader: R) -> Pin<Box<TimeoutReader<R>>> {
        let mut reader = TimeoutReader::new(reader);
        reader.set_timeout(Some(self.silence_max));
        Box::pin(reader)
    }

    pub(super) fn reason(self, error: LinkError) -> LinkError {
        match error {
            LinkError::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                LinkError::Silent(self.silence_max)
            }
            other => other,
        }
    }

    /// Waits until there may be something to write; `true` when an empty frame is due. Cancel safe.
    pub(super) async fn is_due(self, work: &Notify) -> bool {
        tokio::time::timeout(self.interval, work.notified())
            .await
            .is_err()
    }
}
