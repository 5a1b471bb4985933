//! An authenticated connection at work: one task reads, one writes, and whoever owns the [`Connection`] hears of its end once.
//!
//! Invariant: both directions are bounded. A full outgoing queue ends the connection (the peer does not read, and waiting for it
//! would only hide that); a receiver that does not keep up stops the reader. It does not reconnect and knows no heartbeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::frame::{FrameError, MessageWriter, decode, encode};
use super::handshake::Channel;
use crate::model::message::RpcError;

/// Messages that wait to be written. Above [`super::OUTBOX_MESSAGES_MAX`], so that a resumed session fits.
pub const OUTGOING_MESSAGES_MAX: usize = 2 * super::OUTBOX_MESSAGES_MAX;
/// Messages that may overtake and wait to be written.
pub const OUTGOING_URGENT_MAX: usize = 64;
/// Messages that were read and are not handled yet.
pub const INCOMING_MESSAGES_MAX: usize = 1024;
/// How long [`Connection::close`] tries to write what is queued.
pub const CLOSE_FLUSH_MAX: Duration = Duration::from_millis(500);

/// Held while a received message waits to be handled.
pub type Permit = OwnedSemaphorePermit;

/// What a connection reports.
pub enum ConnectionEvent<In> {
    /// A message. Drop the permit when it is handled.
    Message(In, Permit),
    /// The end, once, unless it was asked for. Nothing follows.
    Closed(RpcError),
}

/// Receives events; only hands them on.
pub type OnEvent<In> = Arc<dyn Fn(ConnectionEvent<In>) + Send + Sync>;

/// A connection. Dropping it cuts the link without writing what is queued.
pub struct Connection<Out> {
    ordered: mpsc::Sender<Out>,
    urgent: mpsc::Sender<Out>,
    shared: Arc<Shared>,
}

struct Shared {
    peer: String,
    /// Ends both tasks.
    ended: CancellationToken,
    /// Limits the time of the last writes.
    closing: CancellationToken,
    /// Whether the end was reported or asked for.
    is_settled: AtomicBool,
}

impl Shared {
    fn end<In>(&self, on_event: &OnEvent<In>, error: impl FnOnce() -> String) {
        if !self.is_settled.swap(true, Ordering::SeqCst) {
            on_event(ConnectionEvent::Closed(RpcError::Closed {
                peer: self.peer.clone(),
                message: error(),
            }));
        }
        self.ended.cancel();
    }
}

impl<Out: Serialize + Send + 'static> Connection<Out> {
    /// Starts both tasks.
    #[must_use]
    pub fn start<In: DeserializeOwned + Send + 'static>(
        channel: Channel,
        on_event: OnEvent<In>,
    ) -> Self {
        let (ordered, ordered_queue) = mpsc::channel(OUTGOING_MESSAGES_MAX);
        let (urgent, urgent_queue) = mpsc::channel(OUTGOING_URGENT_MAX);
        let Channel {
            mut reader,
            writer,
            peer,
        } = channel;
        let shared = Arc::new(Shared {
            peer,
            ended: CancellationToken::new(),
            closing: CancellationToken::new(),
            is_settled: AtomicBool::new(false),
        });

        let (on_read, read_shared) = (Arc::clone(&on_event), Arc::clone(&shared));
        tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(INCOMING_MESSAGES_MAX));
            let reading = async {
                loop {
                    let permit = Arc::clone(&permits)
                        .acquire_owned()
                        .await
                        .expect("this semaphore is never closed");
                    let Some(bytes) = reader.next().await? else {
                        return Ok::<_, FrameError>(());
                    };
                    on_read(ConnectionEvent::Message(decode(&bytes)?, permit));
                }
            };
            tokio::select! {
                biased;
                () = read_shared.ended.cancelled() => {}
                result = reading => read_shared.end(&on_read, || match result {
                    Ok(()) => "closed by the peer".to_owned(),
                    Err(error) => error.to_string(),
                }),
            }
        });

        let write_shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let overdue = async {
                write_shared.closing.cancelled().await;
                tokio::time::sleep(CLOSE_FLUSH_MAX).await;
            };
            tokio::select! {
                biased;
                () = write_shared.ended.cancelled() => {}
                () = overdue => write_shared.ended.cancel(),
                result = write(writer, ordered_queue, urgent_queue) => {
                    write_shared.end(&on_event, || match result {
                        Ok(()) => "closed".to_owned(),
                        Err(error) => error.to_string(),
                    });
                }
            }
        });
        Self {
            ordered,
            urgent,
            shared,
        }
    }

    /// Queues a message behind all others. On an error the connection is unusable.
    pub fn send(&self, message: Out) -> Result<(), RpcError> {
        self.queue(&self.ordered, message, OUTGOING_MESSAGES_MAX)
    }

    /// Queues a message that may overtake others, between the chunks of a long one.
    pub fn send_urgent(&self, message: Out) -> Result<(), RpcError> {
        self.queue(&self.urgent, message, OUTGOING_URGENT_MAX)
    }

    fn queue(&self, queue: &mpsc::Sender<Out>, message: Out, limit: usize) -> Result<(), RpcError> {
        queue.try_send(message).map_err(|error| RpcError::Closed {
            peer: self.shared.peer.clone(),
            message: match error {
                mpsc::error::TrySendError::Full(_) => {
                    format!("given up: {limit} messages wait to be written, the peer does not read")
                }
                mpsc::error::TrySendError::Closed(_) => "closed".to_owned(),
            },
        })
    }

    /// Writes what is queued, for a bounded time, and closes. No event follows.
    pub fn close(self) {
        self.shared.is_settled.store(true, Ordering::SeqCst);
        self.shared.closing.cancel();
    }
}

impl<Out> Drop for Connection<Out> {
    fn drop(&mut self) {
        self.shared.is_settled.store(true, Ordering::SeqCst);
        if !self.shared.closing.is_cancelled() {
            self.shared.ended.cancel();
        }
    }
}

/// Ends when both queues are closed and empty.
async fn write<Out: Serialize, W: tokio::io::AsyncWrite + Unpin>(
    mut writer: MessageWriter<W>,
    mut ordered: mpsc::Receiver<Out>,
    mut urgent: mpsc::Receiver<Out>,
) -> Result<(), FrameError> {
    loop {
        let message = tokio::select! {
            biased;
            Some(message) = urgent.recv() => message,
            Some(message) = ordered.recv() => message,
            else => break,
        };
        let mut failure = None;
        let more = || -> Option<Bytes> {
            match urgent.try_recv() {
                Ok(message) => encode(&message).map_err(|e| failure = Some(e)).ok(),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
            }
        };
        writer.send(encode(&message)?, more).await?;
        if let Some(error) = failure {
            return Err(error);
        }
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::super::frame::MessageReader;
    use super::super::transport::BoxStream;
    use super::*;

    fn channel(stream: tokio::io::DuplexStream) -> Channel {
        let (reader, writer) = tokio::io::split(Box::new(stream) as BoxStream);
        Channel {
            reader: MessageReader::new(reader),
            writer: MessageWriter::new(writer),
            peer: "peer".to_owned(),
        }
    }

    type Events = UnboundedReceiver<ConnectionEvent<String>>;

    fn start(stream: tokio::io::DuplexStream) -> (Connection<String>, Events) {
        let (sender, events) = unbounded_channel();
        let on_event: OnEvent<String> = Arc::new(move |e| drop(sender.send(e)));
        (Connection::start(channel(stream), on_event), events)
    }

    #[tokio::test(start_paused = true)]
    async fn close_delivers_what_was_queued_and_the_peer_hears_of_the_end_once() {
        let (near, far) = tokio::io::duplex(64);
        let (near, mut near_events) = start(near);
        let (far, mut far_events) = start(far);
        for n in 0..100 {
            near.send(format!("message {n}")).unwrap();
        }
        near.close();
        for n in 0..100 {
            let Some(ConnectionEvent::Message(text, _)) = far_events.recv().await else {
                panic!("message {n} is missing");
            };
            assert_eq!(text, format!("message {n}"));
        }
        assert!(matches!(
            far_events.recv().await,
            Some(ConnectionEvent::Closed(_))
        ));
        assert!(far_events.recv().await.is_none());
        assert!(near_events.recv().await.is_none(), "the end was asked for");
        drop(far);
        while tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
            > 0
        {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_costs_a_bounded_queue_and_a_bounded_close() {
        let (near, _far) = tokio::io::duplex(64);
        let (connection, _events) = start(near);
        let mut queued = 0;
        let error = loop {
            match connection.send("x".repeat(100)) {
                Ok(()) => queued += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(queued, OUTGOING_MESSAGES_MAX);
        assert!(error.to_string().contains("does not read"), "{error}");
        connection.close();
        let before = tokio::time::Instant::now();
        while tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
            > 0
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(before.elapsed() <= CLOSE_FLUSH_MAX + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn unhandled_messages_stop_the_reader() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (near, _near_events) = start(near);
        let (_far, mut far_events) = start(far);
        let mut held = Vec::new();
        for n in 0..2 * INCOMING_MESSAGES_MAX {
            near.send(n.to_string()).unwrap();
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Ok(event) = far_events.try_recv() {
            held.push(event);
        }
        assert_eq!(held.len(), INCOMING_MESSAGES_MAX);
        held.clear();
        assert!(
            far_events.recv().await.is_some(),
            "handled messages let it go on"
        );
    }
}
