//! The machine's limit: the same work in a plain loop on two threads, without an engine, an exchange or a recovery.
//!
//! Where records change hands in the job, each thread keeps what it has made: what it finds out is then not the job's output, and only
//! the time counts.

use perennial::jobs::keyed_count::event;
use perennial_actors::clock::Instant;

use crate::figures::{Measurement, Metric};
use crate::jobs::digest::Digest;
use crate::jobs::passthrough;
use crate::mix_map::MixMap;

/// As many as the jobs have subtasks.
const THREADS: usize = 2;

/// Work that a bare loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// A count per key.
    KeyedCount,
    /// A map and a checksum.
    Passthrough,
}

/// Every second event, with half of the keys.
fn keyed_count(events: u64, keys: u64, part: u64) -> Digest {
    let mut counts: MixMap<u64> = MixMap::default();
    let mut digest = Digest::default();
    for sequence in (part..events).step_by(THREADS) {
        let event = event(sequence, keys);
        let count = counts.entry((event.user & !1) | part).or_insert(0);
        *count += 1;
        if event.is_abnormal {
            *count += 1 << 32;
            if (*count >> 32).is_multiple_of(3) {
                digest.add(&event.user);
            }
        }
    }
    digest
}

/// Runs the loop.
#[must_use]
pub fn run(work: Loop, events: u64, keys: u64) -> Measurement {
    let began = Instant::now();
    let digest = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|part| {
                scope.spawn(move || match work {
                    Loop::KeyedCount => keyed_count(events, keys, part),
                    Loop::Passthrough => passthrough::part(events, keys, part, THREADS),
                })
            })
            .collect();
        let mut digest = Digest::default();
        for thread in threads {
            digest.merge(thread.join().expect("a plain loop does not panic"));
        }
        digest
    });
    let rate = events as f64 / began.elapsed().as_secs_f64() / 1e6;
    std::hint::black_box(digest);
    let mut measurement = Measurement::default();
    measurement.set(Metric::Rate, rate);
    // There is nothing to start and nothing to warm up.
    measurement.set(Metric::WarmRate, rate);
    measurement.output = (work == Loop::Passthrough).then_some(digest);
    measurement
}
