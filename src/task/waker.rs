//! Parks a task's thread and wakes it.
//!
//! Invariant: who makes something true and then wakes is either seen by the task's next look, or ends its sleep. The model checker
//! holds it to that (`tests/waker.rs`): what a processor may reorder here, a test on one kind of processor does not show.

use std::sync::OnceLock;

use perennial_actors::clock::Instant;

use super::threads::{AtomicU8, Ordering, Thread, park, park_timeout};
use crate::exchange::TaskWaker;

const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const WOKEN: u8 = 2;

/// Wakes a parked thread; one atomic swap when it is awake.
pub(crate) struct ThreadWaker {
    state: AtomicU8,
    thread: OnceLock<Thread>,
}

impl TaskWaker for ThreadWaker {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl ThreadWaker {
    /// Of a thread that is awake, once it says which it is.
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU8::new(AWAKE),
            thread: OnceLock::new(),
        }
    }

    /// Says which thread parks.
    pub(crate) fn set(&self, thread: Thread) {
        // Set once, by the thread itself.
        let _ = self.thread.set(thread);
    }

    /// Sleeps until woken, or until a time. Returns at once when woken since the last sleep.
    pub(crate) fn park(&self, until: Option<Instant>, now: Instant) {
        if self
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            while self.state.load(Ordering::Acquire) == ASLEEP {
                match until {
                    None => park(),
                    Some(until) => {
                        park_timeout(until.saturating_duration_since(now));
                        break;
                    }
                }
            }
        }
        // A swap, not a store: a store could be delayed past the step's first look at its queues and then wipe out a wake that came in
        // between. With a swap, either the waker sees AWAKE, or we see everything that it wrote before waking.
        self.state.swap(AWAKE, Ordering::AcqRel);
    }
}
