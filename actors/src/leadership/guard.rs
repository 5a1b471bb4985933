//! Keeps a leadership: renews its counter, watches for a higher epoch, and says when it is lost.
//!
//! Invariant: when the counter could not be raised for the length of the lease, on our own monotonic clock, the loss is reported, even
//! if the store hangs: others may lead from then on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checkpoint::{Store, StoreResult};
use crate::clock::Instant;
use crate::model::LeaderEpoch;

use super::{Candidate, LeaderInfo, Lease, StoreEpochs, newest_from, write_lease};

/// A request that hangs costs this share of the lease at most, so that there is time for another.
const TRIES_MIN: u32 = 3;

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
        loop {
            counter += 1;
            // From before the write: others may have seen it as early as that.
            let begin = Instant::now();
            let end = last_success + self.lease_duration;
            let limit = end.min(begin + self.lease_duration / TRIES_MIN);
            match tokio::time::timeout_at(limit, self.renew(counter)).await {
                Ok(Ok(None)) => last_success = begin,
                Ok(Ok(Some(epoch))) => return LeadershipLost::Superseded { epoch },
                Ok(Err(error)) => tracing::warn!(%error, "leadership not renewed; trying again"),
                // What hangs may still land: a counter that goes back has moved, too.
                Err(_elapsed) => {
                    tracing::warn!(after = ?begin.elapsed(), left = ?end.saturating_duration_since(Instant::now()), "leadership not renewed: the store is silent; trying again");
                }
            }
            if last_success.elapsed() >= self.lease_duration {
                return LeadershipLost::RenewalFailed(self.lease_duration);
            }
            // At once after one that took its time.
            tokio::time::sleep_until(begin + self.renew_interval).await;
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
