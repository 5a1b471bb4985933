//! Whether to claim, to wait or to go away, from what was seen so far. Pure.

use std::time::Duration;

use perennial_config::HighAvailability;

use crate::clock::Instant;
use crate::model::{InstanceId, LeaderEpoch};

use super::{LeaderInfo, Lease};

/// What came of asking at the incumbent's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// This process answers there.
    Answered(InstanceId),
    /// Nobody listens there.
    Refused,
    /// No answer in time, or the address cannot be reached.
    Silent,
}

/// The incumbent, as seen once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The newest epoch.
    pub epoch: LeaderEpoch,
    /// Who claimed it; `None` when its object is damaged.
    pub leader: Option<LeaderInfo>,
    /// Its counter, if it was ever written.
    pub lease: Option<Lease>,
    /// Who answers at its address.
    pub probe: ProbeOutcome,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Create the object of this epoch.
    Claim(LeaderEpoch),
    /// Look again after the renewal interval.
    Wait,
    /// Another leads, and there is no standby: end with an error.
    Refuse,
}

/// See the module.
#[derive(Debug)]
pub struct Election {
    instance: InstanceId,
    high_availability: HighAvailability,
    lease_duration: Duration,
    renew_interval: Duration,
    watched: Option<Watched>,
}

#[derive(Debug, Clone, Copy)]
struct Watched {
    epoch: LeaderEpoch,
    lease: Option<Lease>,
    /// On our own clock.
    still_since: Instant,
    has_moved: bool,
}

impl Election {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(
        instance: InstanceId,
        high_availability: HighAvailability,
        lease_duration: Duration,
        renew_interval: Duration,
    ) -> Self {
        Self {
            instance,
            high_availability,
            lease_duration,
            renew_interval,
            watched: None,
        }
    }

    /// Takes a sighting into account.
    pub fn observe(&mut self, now: Instant, sighting: Option<&Sighting>) -> Verdict {
        let Some(sighting) = sighting else {
            return Verdict::Claim(LeaderEpoch(1));
        };
        let next = Verdict::Claim(LeaderEpoch(sighting.epoch.0 + 1));
        let watched = match self.watched.filter(|w| w.epoch == sighting.epoch) {
            Some(mut watched) => {
                if watched.lease != sighting.lease {
                    watched.lease = sighting.lease;
                    watched.still_since = now;
                    watched.has_moved = true;
                }
                watched
            }
            None => Watched {
                epoch: sighting.epoch,
                lease: sighting.lease,
                still_since: now,
                has_moved: false,
            },
        };
        self.watched = Some(watched);
        if sighting.lease.is_some_and(|l| l.is_released) {
            return next;
        }
        let incumbent = sighting.leader.as_ref().map(|l| l.instance);
        if incumbent == Some(self.instance) {
            return next; // A leadership of ours that was lost, or a claim whose answer was.
        }
        let is_incumbent_there = match sighting.probe {
            // Another process has its address: it is gone.
            ProbeOutcome::Answered(found) if incumbent.is_some_and(|i| i != found) => return next,
            ProbeOutcome::Answered(_) => true,
            ProbeOutcome::Refused | ProbeOutcome::Silent => false,
        };
        let stands_still = now.saturating_duration_since(watched.still_since);
        let patience = match sighting.probe {
            // Refused may also mean that we ask at the wrong place (`localhost` of another host): a look at the counter tells.
            ProbeOutcome::Refused => (self.renew_interval * 2).min(self.lease_duration),
            ProbeOutcome::Answered(_) | ProbeOutcome::Silent => self.lease_duration,
        };
        if stands_still >= patience {
            return next;
        }
        match self.high_availability {
            HighAvailability::None if is_incumbent_there || watched.has_moved => Verdict::Refuse,
            HighAvailability::None | HighAvailability::Store => Verdict::Wait,
        }
    }
}
