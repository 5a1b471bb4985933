//! The jobs that the stock binary carries.

pub mod abnormal_detection;
pub mod keyed_count;
pub mod word_count;

use crate::api::JobRegistry;

/// All of them.
#[must_use]
pub fn registry() -> JobRegistry {
    let registry = abnormal_detection::register(JobRegistry::new());
    let registry = keyed_count::register(registry);
    word_count::register(registry)
}
