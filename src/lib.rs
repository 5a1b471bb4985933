//! Perennial: a stream-processing runtime that comes back from every failure.

pub mod batch;
pub mod connector;
pub mod error;
pub mod exchange;
pub mod key;
pub mod state;
