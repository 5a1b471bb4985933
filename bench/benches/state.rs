//! State access and what the pre-image log costs it, each beside a plain hash map that does the same.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use perennial::connector::mix;
use perennial::key::KeyHash;
use perennial::state::{
    CaptureProgress, CaptureRequest, KeyedBackend, KeyedState, StateLimits, ValueState,
};
use perennial_actors::model::{CheckpointId, KeyGroupRange, SnapshotKind, SubtaskIndex};
use perennial_bench::mix_map::MixMap;

/// Accesses of one iteration.
const ACCESSES: u64 = 10_000;
const SIZES: [u64; 3] = [1_000, 100_000, 1_000_000];
const MAX_PARALLELISM: u32 = 128;

fn backend(keys: u64) -> (KeyedBackend<u64>, ValueState<u64>) {
    let range = KeyGroupRange::of(SubtaskIndex(0), 1, MAX_PARALLELISM);
    let limits = StateLimits {
        log_bytes_max: 4 << 30,
    };
    let mut backend = KeyedBackend::memory(range, MAX_PARALLELISM, limits);
    let state = backend.value_state::<u64, ()>("count").unwrap();
    for key in 0..keys {
        backend.set_current_key(&key, KeyHash::of(&key));
        state.set(&mut backend, 0).unwrap();
    }
    (backend, state)
}

fn add(backend: &mut KeyedBackend<u64>, state: ValueState<u64>, key: u64) {
    backend.set_current_key(&key, KeyHash::of(&key));
    state
        .update(backend, |value| *value = Some(value.unwrap_or(0) + 1))
        .unwrap();
}

/// Takes a checkpoint to its end and confirms it, so that the next interval begins with an empty log.
fn checkpoint(backend: &mut KeyedBackend<u64>, number: u64, base: Option<u64>) {
    let checkpoint = CheckpointId(number);
    let request = CaptureRequest {
        checkpoint,
        base: base.map(CheckpointId),
        kind: SnapshotKind::Checkpoint,
    };
    backend.barrier(request).unwrap();
    while !matches!(
        backend.capture(Duration::from_secs(1)).unwrap(),
        CaptureProgress::Idle
    ) {}
    backend.confirm(checkpoint);
    while !matches!(
        backend.capture(Duration::from_secs(1)).unwrap(),
        CaptureProgress::Idle
    ) {}
}

fn access(c: &mut Criterion) {
    let mut group = c.benchmark_group("state access");
    group.throughput(Throughput::Elements(ACCESSES));
    for keys in SIZES {
        let mut sequence = 0;
        let (mut state_backend, state) = backend(keys);
        group.bench_function(BenchmarkId::new("memory backend", keys), |b| {
            b.iter(|| {
                for _ in 0..ACCESSES {
                    sequence += 1;
                    add(&mut state_backend, state, mix(sequence) % keys);
                }
            });
        });
        let mut bare: MixMap<u64> = (0..keys).map(|key| (key, 0)).collect();
        group.bench_function(BenchmarkId::new("bare hash map", keys), |b| {
            b.iter(|| {
                for _ in 0..ACCESSES {
                    sequence += 1;
                    *bare.entry(mix(sequence) % keys).or_insert(0) += 1;
                }
            });
        });
        black_box(&bare);
    }
    group.finish();
}

/// The first change of an entry after a barrier puts its old value aside; further ones do not.
fn pre_images(c: &mut Criterion) {
    let mut group = c.benchmark_group("first change after a checkpoint");
    let keys = 100_000;
    group.throughput(Throughput::Elements(keys));
    group.sample_size(20);
    let (mut state_backend, state) = backend(keys);
    let mut number = 0_u64;
    group.bench_function("memory backend with pre-image log", |b| {
        b.iter(|| {
            number += 1;
            for key in 0..keys {
                add(&mut state_backend, state, key);
            }
            checkpoint(&mut state_backend, number, number.checked_sub(1));
        });
    });
    let mut bare: MixMap<u64> = (0..keys).map(|key| (key, 0)).collect();
    group.bench_function("bare hash map, copied as a whole", |b| {
        b.iter(|| {
            for key in 0..keys {
                *bare.entry(key).or_insert(0) += 1;
            }
            black_box(bare.clone());
        });
    });
    group.finish();
}

criterion_group!(benches, access, pre_images);
criterion_main!(benches);
