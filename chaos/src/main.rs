//! The `perennial-chaos` command with the jobs of the stock binary.

use std::process::ExitCode;

use perennial_chaos::job::Jobs;

fn main() -> ExitCode {
    perennial_chaos::command::main(Jobs::stock())
}
