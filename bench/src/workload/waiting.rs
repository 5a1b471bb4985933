//! Waiting for what a job marks.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use perennial_actors::clock::Instant;

use crate::marks::{self, Mark};
use crate::peer::{Checkpoint, Peer};

/// Marks carry their time, so that looking late costs no accuracy.
const POLL: Duration = Duration::from_millis(50);
/// Looks between two questions whether the job still lives.
const LOOKS_PER_QUESTION: u32 = 20;

/// Waits until the marks satisfy a condition; fails when the job ends before.
pub(super) fn for_marks<T>(
    peer: &mut dyn Peer,
    job: Option<&str>,
    directory: &Path,
    what: &str,
    deadline: Duration,
    condition: impl Fn(&[Mark]) -> Option<T>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let mut looks = 0;
    loop {
        if let Some(value) = condition(&marks::read(directory)?) {
            return Ok(value);
        }
        looks += 1;
        if let (Some(job), 0) = (job, looks % LOOKS_PER_QUESTION) {
            peer.check_alive(job)?;
        }
        if began.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(POLL);
    }
}

/// Waits for completed checkpoints that were triggered after a time; returns them.
pub(super) fn for_checkpoints(
    peer: &mut dyn Peer,
    job: &str,
    after_us: u64,
    count: usize,
    deadline: Duration,
) -> anyhow::Result<Vec<Checkpoint>> {
    const POLL: Duration = Duration::from_millis(250);
    let began = Instant::now();
    loop {
        let mut checkpoints = peer.checkpoints(job)?;
        checkpoints.retain(|checkpoint| checkpoint.triggered_us > after_us);
        if checkpoints.len() >= count {
            return Ok(checkpoints);
        }
        peer.check_alive(job)?;
        if began.elapsed() > deadline {
            bail!(
                "{count} checkpoints: only {} within {deadline:?}",
                checkpoints.len()
            );
        }
        std::thread::sleep(POLL);
    }
}
