//! Registering and firing timers, beside a plain ordered set.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::collections::BTreeSet;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use perennial::connector::mix;
use perennial::key::KeyHash;
use perennial::state::{KeyedBackend, StateLimits, TimeDomain};
use perennial_actors::model::{KeyGroupRange, SubtaskIndex};

const TIMERS: u64 = 10_000;
const KEYS: u64 = 1_000;
const MAX_PARALLELISM: u32 = 128;

fn timers(c: &mut Criterion) {
    let mut group = c.benchmark_group("register and fire a timer");
    group.throughput(Throughput::Elements(TIMERS));
    let all: Vec<(u64, i64)> = (0..TIMERS)
        .map(|n| (mix(n) % KEYS, (mix(mix(n)) % 1_000_000) as i64))
        .collect();
    let fresh = || {
        let range = KeyGroupRange::of(SubtaskIndex(0), 1, MAX_PARALLELISM);
        let limits = StateLimits {
            log_bytes_max: 1 << 30,
        };
        let mut backend = KeyedBackend::<u64>::memory(range, MAX_PARALLELISM, limits);
        let timers = backend.timers::<()>("timers").unwrap();
        (backend, timers)
    };
    group.bench_function("keyed timers", |b| {
        b.iter_batched(
            fresh,
            |(mut backend, timers)| {
                for (key, time) in &all {
                    backend.set_current_key(key, KeyHash::of(key));
                    timers
                        .register(&mut backend, TimeDomain::EventTime, *time, &())
                        .unwrap();
                }
                while let Some(fired) = timers
                    .pop(&mut backend, TimeDomain::EventTime, i64::MAX)
                    .unwrap()
                {
                    black_box(fired);
                }
                backend
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("bare ordered set", |b| {
        b.iter_batched(
            BTreeSet::new,
            |mut set| {
                for (key, time) in &all {
                    set.insert((*time, *key));
                }
                while let Some(fired) = set.pop_first() {
                    black_box(fired);
                }
                set
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, timers);
criterion_main!(benches);
