//! Encoding batches and hashing keys, each beside the least that any program would have to do.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use perennial::batch::Batch;
use perennial::connector::mix;
use perennial::exchange::{BatchCodec, FixedCodec, SerdeCodec};
use perennial::key::KeyHash;

/// Records of a batch.
const RECORDS: u64 = 1024;

type Event = (u64, i64, bool);

fn batch() -> Batch<Event> {
    Batch {
        values: (0..RECORDS)
            .map(|n| (mix(n) % 1_000_000, n as i64, n % 3 == 0))
            .collect(),
        timestamps: Vec::new(),
    }
}

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode and decode a batch");
    group.throughput(Throughput::Elements(RECORDS));
    let batch = batch();
    let mut bytes = Vec::new();
    let mut round = |codec: &dyn BatchCodec<Event>| {
        bytes.clear();
        codec.encode(&batch, &mut bytes).unwrap();
        black_box(codec.decode(&bytes).unwrap());
    };
    let (serde, fixed) = (SerdeCodec::<Event>::new(), FixedCodec::<Event>::new());
    group.bench_function("serde", |b| b.iter(|| round(&serde)));
    group.bench_function("fixed width", |b| b.iter(|| round(&fixed)));
    group.bench_function("bare copy, in and out", |b| {
        b.iter(|| {
            let sent = black_box(batch.values.clone());
            black_box(sent.as_slice().to_vec());
        });
    });
    group.finish();
}

fn hash(c: &mut Criterion) {
    let mut group = c.benchmark_group("hash a key");
    group.throughput(Throughput::Elements(RECORDS));
    let numbers: Vec<u64> = (0..RECORDS).map(mix).collect();
    let words: Vec<String> = numbers.iter().map(|n| format!("user-{n}")).collect();
    group.bench_function("u64", |b| {
        b.iter(|| numbers.iter().fold(0, |sum, n| sum ^ KeyHash::of(n).0));
    });
    group.bench_function("bare u64 (splitmix64)", |b| {
        b.iter(|| numbers.iter().fold(0, |sum, n| sum ^ mix(*n)));
    });
    group.bench_function("String", |b| {
        b.iter(|| words.iter().fold(0, |sum, w| sum ^ KeyHash::of(w).0));
    });
    group.bench_function("bare String (crc32c)", |b| {
        b.iter(|| {
            words
                .iter()
                .fold(0, |sum, w| sum ^ crc32c::crc32c(w.as_bytes()))
        });
    });
    group.finish();
}

criterion_group!(benches, codec, hash);
criterion_main!(benches);
