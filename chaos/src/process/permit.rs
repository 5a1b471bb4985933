//! Bounds how many clusters run at once in one test program, so that tests do not starve each other of processors.

use std::sync::{Condvar, Mutex, PoisonError};

/// Clusters at a time.
const CLUSTERS_MAX: u32 = 2;

static RUNNING: Mutex<u32> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to run one cluster.
#[derive(Debug)]
pub(super) struct Permit(());

impl Permit {
    /// Waits for a turn.
    pub(super) fn take() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= CLUSTERS_MAX {
            running = FREED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
