//! Aims faults at a job of one's own: here that of `examples/own_binary.rs`, which is a stand-in for a user's binary.
//!
//! ```text
//! cargo build --example own_binary
//! cargo run -p perennial-chaos --example own_job -- run --profile process --seed 7 --store disk
//! cargo run -p perennial-chaos --example own_job -- campaign --minutes 10 --store disk
//! ```
//!
//! All that is needed is how the job is submitted and what it must give; everything else is the `perennial-chaos` command.

use std::path::Path;
use std::process::ExitCode;

use perennial_chaos::job::{JobUnderTest, Jobs};
use perennial_chaos::plan::WorkloadPlan;

struct RunningTotals;

impl JobUnderTest for RunningTotals {
    fn name(&self) -> &str {
        "running-totals"
    }

    fn arguments(&self, workload: &WorkloadPlan, output: &Path) -> Vec<String> {
        let output = output.display();
        let (events, keys, rate) = (workload.events, workload.keys, workload.rate);
        let options = format!("--events {events} --keys {keys} --rate {rate} --output {output}");
        options.split(' ').map(str::to_owned).collect()
    }

    fn expected(&self, workload: &WorkloadPlan) -> Vec<String> {
        let mut totals = vec![0; workload.keys as usize];
        let line = |number: u64| {
            let key = number % workload.keys;
            totals[key as usize] += 1;
            format!("{key} {}", totals[key as usize])
        };
        (0..workload.events).map(line).collect()
    }
}

fn main() -> ExitCode {
    perennial_chaos::command::main(Jobs::of("own_binary", RunningTotals))
}
