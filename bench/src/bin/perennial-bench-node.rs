//! The nodes of a benchmark: every role of a cluster, with the jobs of the benchmark.

use std::process::ExitCode;

fn main() -> ExitCode {
    perennial::cli::main(perennial_bench::jobs::registry())
}
