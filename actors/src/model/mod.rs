//! Plain data shared by all actors, and with the data plane. No I/O, no clock, no threads.

mod deployment;
mod failure;
mod graph;
mod ids;
mod manifest;
pub mod message;
mod status;

pub use deployment::*;
pub use failure::*;
pub use graph::*;
pub use ids::*;
pub use manifest::*;
pub use status::*;
