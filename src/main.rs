//! The `perennial` binary: every role of a cluster, with the example jobs.

use std::process::ExitCode;

fn main() -> ExitCode {
    perennial::cli::main(perennial::jobs::registry())
}
