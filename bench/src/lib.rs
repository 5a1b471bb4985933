//! Measures Perennial beside Apache Flink and beside a bare loop, in one run on one machine.
//!
//! Invariant: nobody is fast by being wrong. Both systems run the same jobs over the same generated input, and a run whose output
//! (count and order-independent checksum) differs from a plain fold over that input fails.
//!
//! [`jobs`] and [`nexmark`] are what runs on the nodes of Perennial, with [`marks`] as the only trace of what happened when; the same jobs in Java lie in
//! `bench/flink`. Everything else, behind the feature `runner`, starts clusters, measures and reports. Nothing here is on any node but the
//! jobs themselves, and the engine is built as it is shipped.

pub mod jobs;
pub mod marks;
pub mod mix_map;
pub mod nexmark;

#[cfg(feature = "runner")]
pub mod bars;
#[cfg(feature = "runner")]
pub mod command;
#[cfg(feature = "runner")]
pub mod figures;
#[cfg(feature = "runner")]
mod load;
#[cfg(feature = "runner")]
pub mod machine;
#[cfg(feature = "runner")]
pub mod peer;
#[cfg(feature = "runner")]
pub mod plan;
#[cfg(feature = "runner")]
pub mod report;
#[cfg(feature = "runner")]
pub mod runner;
#[cfg(feature = "runner")]
pub mod workload;
