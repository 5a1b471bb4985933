//! Keeps a leadership: renews its counter, watches for a higher epoch, and says when it is lost.
//!
//! Invariant: when the counter could not be raised for the length of the lease, on our own monotonic clock, the loss is reported, even
//! if the store hangs: others may lead from then on.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checkpoint::{Store, StoreResult};
use crate::clock::Instant;
use crate::model::LeaderEpoch;

use super::{Candidate, LeaderInfo, Lease, StoreEpochs, newest_from, write_lease};

/// Renewals under way at once: beside one that may hang, another begins after a share of the lease. None is given up before it could not
/// help any more: a store that is slow is better than none.
const TRIES_MAX: usize = 3;

/// Why a leadership ended. The process stops leading at once, without touching anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeadershipLost {
    /// Somebody claimed a higher epoch.
    #[error("epoch {epoch} leads now")]
    Superseded {
        /// The epoch met.
        epoch: LeaderEpoch,
    },
    /// The counter could not be raised in time.
    #[error("leadership could not be renewed for {0:?}")]
    RenewalFailed(Duration),
    /// The renewal itself ended: a fault of ours.
    #[error("the renewal of leadership ended")]
    Ended,
}

/// A leadership in force. Dropped without [`release`](Self::release), others find its counter standing still.
pub struct Leadership {
    info: LeaderInfo,
    store: Arc<dyn Store>,
    lost: watch::Receiver<Option<LeadershipLost>>,
    renewal: JoinHandle<()>,
}

impl Leadership {
    pub(super) fn begin(candidate: &Candidate, info: LeaderInfo) -> Self {
        let (sender, lost) = watch::channel(None);
        let renewal = Renewal {
            store: Arc::clone(&candidate.store),
            epoch: info.epoch,
            lease_duration: candidate.lease_duration,
            renew_interval: candidate.renew_interval,
        };
        let renewal = tokio::spawn(async move {
            let cause = renewal.run().await;
            tracing::error!(%cause, "leadership lost");
            // Nobody may be listening any more.
            let _ = sender.send(Some(cause));
        });
        Self {
            info,
            store: Arc::clone(&candidate.store),
            lost,
            renewal,
        }
    }

    /// Epoch, address and instance.
    #[must_use]
    pub fn info(&self) -> &LeaderInfo {
        &self.info
    }

    /// What coordinators ask before they tell anybody of a record.
    #[must_use]
    pub fn epochs(&self) -> Arc<StoreEpochs> {
        Arc::new(StoreEpochs::new(Arc::clone(&self.store), self.info.epoch))
    }

    /// Ends when the leadership is lost. Any number of callers may wait; the future does not borrow the leadership.
    pub fn lost(&self) -> impl Future<Output = LeadershipLost> + Send + 'static {
        let mut lost = self.lost.clone();
        async move {
            match lost.wait_for(Option::is_some).await {
                Ok(cause) => cause.clone().unwrap_or(LeadershipLost::Ended),
                Err(_closed) => LeadershipLost::Ended,
            }
        }
    }

    /// Ends in good order, so that the next one need not wait.
    pub async fn release(self) -> StoreResult<()> {
        self.renewal.abort();
        let lease = Lease {
            counter: 0,
            is_released: true,
        };
        write_lease(&*self.store, self.info.epoch, lease).await
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

struct Renewal {
    store: Arc<dyn Store>,
    epoch: LeaderEpoch,
    lease_duration: Duration,
    renew_interval: Duration,
}

impl Renewal {
    async fn run(self) -> LeadershipLost {
        let mut counter = 0;
        let mut last_success = Instant::now();
        let (mut next, mut newest) = (last_success, last_success);
        let mut tries = FuturesUnordered::new();
        loop {
            let end = last_success + self.lease_duration;
            tokio::select! {
                biased;
                Some((begin, renewed)) = tries.next(), if !tries.is_empty() => match renewed {
                    Ok(Ok(None)) => {
                        last_success = last_success.max(begin);
                        if begin == newest {
                            next = begin + self.renew_interval;
                        }
                    }
                    Ok(Ok(Some(epoch))) => return LeadershipLost::Superseded { epoch },
                    Err(_elapsed) => tracing::warn!("a renewal of the leadership got no answer"),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "leadership not renewed; trying again");
                        next = next.min(begin + self.renew_interval);
                    }
                },
                () = tokio::time::sleep_until(end) => {
                    return LeadershipLost::RenewalFailed(self.lease_duration);
                }
                () = tokio::time::sleep_until(next), if tries.len() < TRIES_MAX => {
                    if !tries.is_empty() {
                        let left = end.saturating_duration_since(Instant::now());
                        tracing::warn!(?left, "leadership not renewed: the store is silent; asking once more");
                    }
                    counter += 1;
                    // From before the write: others may have seen it as early as that.
                    let begin = Instant::now();
                    newest = begin;
                    // What is given up may still land: a counter that goes back has moved, too.
                    let renewal = tokio::time::timeout_at(begin + self.lease_duration, self.renew(counter));
                    tries.push(async move { (begin, renewal.await) });
                    next = begin + self.lease_duration / TRIES_MAX as u32;
                }
            }
        }
    }

    /// Raises the counter; the higher epoch, if there is one.
    async fn renew(&self, counter: u64) -> StoreResult<Option<LeaderEpoch>> {
        let lease = Lease {
            counter,
            is_released: false,
        };
        let written = write_lease(&*self.store, self.epoch, lease).await;
        let next = LeaderEpoch(self.epoch.0 + 1);
        // Read even when the write failed: to be superseded is the better explanation.
        let newer = newest_from(&*self.store, next).await?;
        if newer.is_none() {
            written?;
        }
        Ok(newer.map(|n| n.epoch))
    }
}
