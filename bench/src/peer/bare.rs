//! The machine's limit: the same work in a plain loop on two threads or one, without an engine, an exchange or a recovery.
//!
//! Where records change hands in the job, each of two threads keeps what it has made: what it finds out is then not the job's output, and
//! only the time counts.

use perennial::jobs::keyed_count::event;
use perennial_actors::clock::Instant;

use crate::figures::{Measurement, Metric};
use crate::jobs::digest::Digest;
use crate::jobs::passthrough;
use crate::mix_map::MixMap;

/// Work that a bare loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// A count per key.
    KeyedCount,
    /// A map and a checksum.
    Passthrough,
}

/// One of so many parts of the events and of the keys.
fn keyed_count<const PARTS: u64>(events: u64, keys: u64, part: u64) -> Digest {
    const { assert!(PARTS.is_power_of_two()) };
    let mut counts: MixMap<u64> = MixMap::default();
    let mut digest = Digest::default();
    for sequence in (part..events).step_by(PARTS as usize) {
        let event = event(sequence, keys);
        let count = counts
            .entry((event.user & !(PARTS - 1)) | part)
            .or_insert(0);
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

/// Runs the loop, on as many threads as the jobs have subtasks, or on one where there is one processor for it.
#[must_use]
pub fn run(work: Loop, events: u64, keys: u64, processors: Option<usize>) -> Measurement {
    match processors {
        Some(1) => on_threads::<1>(work, events, keys),
        _ => on_threads::<2>(work, events, keys),
    }
}

fn on_threads<const THREADS: u64>(work: Loop, events: u64, keys: u64) -> Measurement {
    let began = Instant::now();
    let digest = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|part| {
                scope.spawn(move || match work {
                    Loop::KeyedCount => keyed_count::<THREADS>(events, keys, part),
                    Loop::Passthrough => passthrough::part(events, keys, part, THREADS as usize),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::keyed_count::expected;

    /// Alone, a thread has all keys and sees all of their events.
    #[test]
    fn one_thread_finds_out_what_the_job_does() {
        assert_eq!(keyed_count::<1>(10_000, 100, 0), expected(10_000, 100));
    }
}
