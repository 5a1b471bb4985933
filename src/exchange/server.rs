//! Accepts the connections of other processes' consumers.
//!
//! Invariant: what is not authenticated in time costs one small, bounded task and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use perennial_actors::rpc::{BoxStream, Listener};
use tokio::runtime::Handle;

use super::Inner;
use super::producer_link::ProducerLink;

/// Connections at once: one for each TaskManager, and a few that are being replaced.
const CONNECTIONS_MAX: usize = 4096;
/// For the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// After a failed `accept`, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Counts a connection out.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs until the exchange is closed.
pub(super) async fn accept(inner: Arc<Inner>, mut listener: Box<dyn Listener>, handle: Handle) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            biased;
            () = inner.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, address)) if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX => {
                tracing::warn!(
                    address,
                    max = CONNECTIONS_MAX,
                    "data connection refused: too many are open"
                );
            }
            Ok((stream, address)) => {
                open.fetch_add(1, Ordering::Relaxed);
                let slot = Slot(Arc::clone(&open));
                let shared = Arc::clone(&inner);
                inner.spawn(&handle, async move {
                    let _slot = slot;
                    serve(&shared, stream, &address).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a data connection");
                tokio::select! {
                    biased;
                    () = inner.cancel.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

async fn serve(inner: &Inner, mut stream: BoxStream, address: &str) {
    let handshake = inner.identity.answer(&mut stream, inner.next_connection());
    let peer = tokio::select! {
        biased;
        () = inner.cancel.cancelled() => return,
        outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => match outcome {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => {
                tracing::warn!(address, %error, "data connection refused");
                return;
            }
            Err(_) => {
                tracing::warn!(address, timeout = ?HANDSHAKE_TIMEOUT, "data connection refused: handshake took too long");
                return;
            }
        },
    };
    let link = Arc::new(ProducerLink::new(peer));
    let reason = tokio::select! {
        biased;
        () = inner.cancel.cancelled() => "the exchange of this process is closed".to_owned(),
        error = link.run(&inner.registry, stream, inner.keepalive) => error.to_string(),
    };
    link.fail(&inner.registry, &reason);
}
