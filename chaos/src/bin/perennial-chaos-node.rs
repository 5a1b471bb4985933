//! Every role of a cluster with fault points in it; see `perennial_chaos::node`. Never shipped.

use std::process::ExitCode;

fn main() -> ExitCode {
    perennial_chaos::node::main()
}
