//! The `perennial-bench` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    perennial_bench::command::main()
}
