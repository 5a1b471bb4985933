//! The `perennial` binary: every role of a cluster, with the example jobs.

fn main() {}
