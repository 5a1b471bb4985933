//! The machine's limit: the same work in a plain loop on two threads or one, without an engine, an exchange or a recovery.
//!
//! Where records change hands in the job, each of two threads keeps what it has made: what it finds out is then not the job's output, and
//! only the time counts.

use std::ops::Range;

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

/// Does one of so many parts of the events, half after half; returns the rate of the second half, in events per second. As with the peers,
/// it begins when all keys are there.
fn in_halves<const PARTS: u64>(events: u64, part: u64, mut work: impl FnMut(Range<u64>)) -> f64 {
    let middle = part + events / PARTS / 2 * PARTS;
    work(part..middle);
    let half = Instant::now();
    work(middle..events);
    let made = events.saturating_sub(middle) as f64 / PARTS as f64;
    made / half.elapsed().as_secs_f64()
}

/// One of so many parts of the events and of the keys.
struct KeyedCount<const PARTS: u64> {
    keys: u64,
    part: u64,
    counts: MixMap<u64>,
    digest: Digest,
}

impl<const PARTS: u64> KeyedCount<PARTS> {
    const IS_POWER_OF_TWO: () = assert!(PARTS.is_power_of_two());

    fn new(keys: u64, part: u64) -> Self {
        let () = Self::IS_POWER_OF_TWO;
        Self {
            keys,
            part,
            counts: MixMap::default(),
            digest: Digest::default(),
        }
    }

    fn count(&mut self, events: Range<u64>) {
        let Self {
            keys,
            part,
            counts,
            digest,
        } = self;
        for sequence in events.step_by(PARTS as usize) {
            let event = event(sequence, *keys);
            let count = counts
                .entry((event.user & !(PARTS - 1)) | *part)
                .or_insert(0);
            *count += 1;
            if event.is_abnormal {
                *count += 1 << 32;
                if (*count >> 32).is_multiple_of(3) {
                    digest.add(&event.user);
                }
            }
        }
    }
}

/// What one of so many threads finds out, and how fast its second half was.
fn part<const PARTS: u64>(work: Loop, events: u64, keys: u64, part: u64) -> (Digest, f64) {
    match work {
        Loop::KeyedCount => {
            let mut counting = KeyedCount::<PARTS>::new(keys, part);
            let warm = in_halves::<PARTS>(events, part, |half| counting.count(half));
            (counting.digest, warm)
        }
        Loop::Passthrough => {
            let mut digest = Digest::default();
            let warm = in_halves::<PARTS>(events, part, |half| {
                digest.merge(passthrough::part(
                    half.end,
                    keys,
                    half.start,
                    PARTS as usize,
                ));
            });
            (digest, warm)
        }
    }
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
    let (digest, warm) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|one| scope.spawn(move || part::<THREADS>(work, events, keys, one)))
            .collect();
        let (mut digest, mut warm) = (Digest::default(), 0.0);
        for thread in threads {
            let (found, rate) = thread.join().expect("a plain loop does not panic");
            digest.merge(found);
            warm += rate;
        }
        (digest, warm)
    });
    let rate = events as f64 / began.elapsed().as_secs_f64() / 1e6;
    std::hint::black_box(digest);
    let mut measurement = Measurement::default();
    measurement.set(Metric::Rate, rate);
    measurement.set(Metric::WarmRate, warm / 1e6);
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
        let (digest, warm) = part::<1>(Loop::KeyedCount, 10_001, 100, 0);
        assert_eq!(digest, expected(10_001, 100));
        assert!(warm > 0.0);
    }
}
