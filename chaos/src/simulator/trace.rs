//! What happened in a simulated run, in order and with virtual times: two runs of one seed must give the same.
//!
//! Invariant: nothing in a trace comes from outside the simulation: no real time, no address, no actor id. Lines are kept only when
//! somebody wants to read them; the digest is always of all of them.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_actors::clock::Instant;

/// Lines kept; what comes after counts in the digest only.
const TRACE_LINES_MAX: usize = 200_000;

/// A trace under construction. Clones write the same one.
#[derive(Clone)]
pub(super) struct Trace {
    began: Instant,
    content: Arc<Mutex<Content>>,
}

struct Content {
    lines: Option<Vec<String>>,
    digest: Digest,
}

/// FNV-1a.
struct Digest(u64);

impl Trace {
    /// Begins now.
    #[must_use]
    pub(super) fn new(keeps_lines: bool) -> Self {
        Self {
            began: Instant::now(),
            content: Arc::new(Mutex::new(Content {
                lines: keeps_lines.then(Vec::new),
                digest: Digest(0xcbf2_9ce4_8422_2325),
            })),
        }
    }

    /// Adds a line.
    pub(super) fn line(&self, text: impl std::fmt::Display) {
        let at = self.began.elapsed();
        let mut content = self.lock();
        content.digest.fold(&at.as_nanos().to_le_bytes());
        // Writing into a digest cannot fail.
        let _ = write!(content.digest, "{text}");
        if let Some(lines) = content.lines.as_mut().filter(|l| l.len() < TRACE_LINES_MAX) {
            let at = at.as_millis();
            lines.push(format!("{:>3}.{:03} {text}", at / 1000, at % 1000));
        }
    }

    /// Adds something too frequent for a line of its own.
    pub(super) fn fold(&self, bytes: &[u8]) {
        let at = self.began.elapsed().as_nanos();
        let mut content = self.lock();
        content.digest.fold(&at.to_le_bytes());
        content.digest.fold(bytes);
    }

    /// The digest of everything so far.
    #[must_use]
    pub(super) fn digest(&self) -> u64 {
        self.lock().digest.0
    }

    /// The lines so far; none when they are not kept.
    #[must_use]
    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().lines.clone().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Digest {
    fn fold(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.fold(text.as_bytes());
        Ok(())
    }
}
