//! The jobs that are measured, one file each; `bench/flink` has the same in Java.
//!
//! Invariant: a job emits the same records on both systems, whatever the parallelism, so that count and checksum can be compared.

pub mod digest;
pub mod file_to_file;
pub mod input;
pub mod keyed_count;
pub mod latency;
pub mod passthrough;
pub mod shuffle;
pub mod watched;
pub mod watching;
pub mod window;

use perennial::api::JobRegistry;

/// All of them.
#[must_use]
pub fn registry() -> JobRegistry {
    let registry = file_to_file::register(JobRegistry::new());
    let registry = keyed_count::register(registry);
    let registry = latency::register(registry);
    let registry = passthrough::register(registry);
    let registry = shuffle::register(registry);
    let registry = window::register(registry);
    crate::nexmark::register(registry)
}
