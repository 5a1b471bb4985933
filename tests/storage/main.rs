//! The promises of `perennial_actors::checkpoint::Store`, proved on each store that we ship: memory, disk, and a real S3 server.
//!
//! The S3 server comes from `scripts/s3-server`; `make test` starts it. Each test has a prefix of its own in one bucket.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

mod conformance;
mod faults;
mod proxy;
mod setup;
