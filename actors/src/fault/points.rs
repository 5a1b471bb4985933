//! The handle that is passed down a node: the code says where it is, the handle counts and strikes.
//!
//! Invariant: without the feature `fault-points` the handle has no content and its calls are empty. No registry is global: several
//! simulated nodes live in one process, each with its own.

#[cfg(feature = "fault-points")]
mod armed;

#[cfg(feature = "fault-points")]
pub use armed::{FaultAction, FaultPointSpec, FaultScope, Hits, Platform, SpecError};

use super::{FaultSite, Sabotage};
use crate::model::{ExecutionAttemptId, JobId};

/// Whose moment it is.
#[derive(Clone, Copy)]
#[cfg_attr(feature = "fault-points", derive(Debug))]
pub enum FaultPlace {
    /// The node's.
    Node,
    /// A job's.
    Job(JobId),
    /// A task's.
    Task(ExecutionAttemptId),
}

/// What a point that shall fail returns. Without the feature there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InjectedError(
    #[cfg(feature = "fault-points")] FaultSite,
    #[cfg(not(feature = "fault-points"))] std::convert::Infallible,
);

impl std::fmt::Display for InjectedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        #[cfg(feature = "fault-points")]
        return write!(f, "injected error at {}", self.0);
        #[cfg(not(feature = "fault-points"))]
        return std::fmt::Display::fmt(&self.0, f);
    }
}

impl std::error::Error for InjectedError {}

/// A node's fault points. Clones are the same.
#[derive(Clone, Default)]
pub struct FaultPoints {
    #[cfg(feature = "fault-points")]
    armed: Option<std::sync::Arc<armed::Armed>>,
}

#[cfg(not(feature = "fault-points"))]
#[allow(
    clippy::unused_self,
    clippy::unused_async,
    reason = "stands in for the real ones"
)]
impl FaultPoints {
    /// The code has come here; for threads that may block.
    #[inline(always)]
    pub fn hit(&self, _site: FaultSite, _place: FaultPlace) -> Result<(), InjectedError> {
        Ok(())
    }

    /// As [`hit`](Self::hit), for tasks that must not block.
    #[inline(always)]
    pub async fn reach(&self, _site: FaultSite, _place: FaultPlace) -> Result<(), InjectedError> {
        Ok(())
    }

    /// Whether the engine shall be broken here.
    #[inline(always)]
    #[must_use]
    pub fn is_sabotaged(&self, _sabotage: Sabotage) -> bool {
        false
    }
}

#[cfg(feature = "fault-points")]
impl FaultPoints {
    /// Armed for a node of this name.
    #[must_use]
    pub fn armed(
        node: &str,
        points: Vec<FaultPointSpec>,
        sabotage: &[Sabotage],
        platform: std::sync::Arc<dyn Platform>,
    ) -> Self {
        let armed = armed::Armed::new(node, points, sabotage, platform);
        Self {
            armed: Some(std::sync::Arc::new(armed)),
        }
    }

    /// The code has come here; for threads that may block. `Err` when it shall fail.
    ///
    /// # Panics
    /// When it shall.
    pub fn hit(&self, site: FaultSite, place: FaultPlace) -> Result<(), InjectedError> {
        match &self.armed {
            Some(armed) => armed.hit(site, place).map_err(InjectedError),
            None => Ok(()),
        }
    }

    /// As [`hit`](Self::hit), for tasks that must not block.
    ///
    /// # Panics
    /// When it shall.
    pub async fn reach(&self, site: FaultSite, place: FaultPlace) -> Result<(), InjectedError> {
        match &self.armed {
            Some(armed) => armed.reach(site, place).await.map_err(InjectedError),
            None => Ok(()),
        }
    }

    /// Whether the engine shall be broken here.
    #[must_use]
    pub fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.armed
            .as_ref()
            .is_some_and(|armed| armed.is_sabotaged(sabotage))
    }

    /// How often each site was hit.
    #[must_use]
    pub fn hits(&self) -> std::collections::BTreeMap<FaultSite, u64> {
        self.armed
            .as_ref()
            .map_or_else(Default::default, |armed| armed.hits())
    }
}
