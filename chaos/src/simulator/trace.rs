//! What happened in a simulated run, in order and with virtual times: two runs of one seed must give the same.
//!
//! Invariant: nothing in a trace comes from outside the simulation: no real time, no address, no actor id.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_actors::clock::Instant;

/// Lines kept; what comes after counts in the digest only.
pub(super) const TRACE_LINES_MAX: usize = 200_000;

/// A trace under construction. Clones write the same one.
#[derive(Clone)]
pub(super) struct Trace {
    began: Instant,
    content: Arc<Mutex<Content>>,
}

struct Content {
    lines: Vec<String>,
    digest: u64,
}

impl Trace {
    /// Begins now.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            content: Arc::new(Mutex::new(Content {
                lines: Vec::new(),
                // The basis of FNV-1a.
                digest: 0xcbf2_9ce4_8422_2325,
            })),
        }
    }

    /// Adds a line.
    pub(super) fn line(&self, text: impl std::fmt::Display) {
        let at = self.began.elapsed().as_millis();
        let line = format!("{:>3}.{:03} {text}", at / 1000, at % 1000);
        let mut content = self.lock();
        content.fold(line.as_bytes());
        if content.lines.len() < TRACE_LINES_MAX {
            content.lines.push(line);
        }
    }

    /// Adds something too frequent for a line of its own.
    pub(super) fn fold(&self, bytes: &[u8]) {
        let at = self.began.elapsed().as_nanos();
        let mut content = self.lock();
        content.fold(&at.to_le_bytes());
        content.fold(bytes);
    }

    /// The digest of everything so far.
    #[must_use]
    pub(super) fn digest(&self) -> u64 {
        self.lock().digest
    }

    /// The lines so far.
    #[must_use]
    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Content {
    fn fold(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
