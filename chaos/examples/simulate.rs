//! Runs seeds of the simulator: `cargo run -p perennial-chaos --example simulate -- --seeds 0..50 [--trace] [--once]`.

use std::time::Instant;

use anyhow::{Context, bail};
use perennial_chaos::simulator::{simulate, verify};

#[allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a command of its own; real time is shown only"
)]
fn main() -> anyhow::Result<()> {
    let mut seeds = 0..50;
    let (mut shows_trace, mut runs_once) = (false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => {
                let text = arguments.next().context("--seeds A..B or --seeds A")?;
                seeds = match text.split_once("..") {
                    Some((from, to)) => from.parse()?..to.parse()?,
                    None => text.parse::<u64>().map(|seed| seed..seed + 1)?,
                };
            }
            "--trace" => shows_trace = true,
            "--once" => runs_once = true,
            other => bail!("unknown argument {other}"),
        }
    }
    let mut failed = Vec::new();
    for seed in seeds {
        let began = Instant::now();
        if shows_trace {
            println!("{}", simulate(seed, None).trace.join("\n"));
        }
        let result = if runs_once {
            let report = simulate(seed, None);
            if report.violations.is_empty() {
                Ok(report)
            } else {
                Err(report.violations.join("\n"))
            }
        } else {
            verify(seed)
        };
        let took = began.elapsed();
        match result {
            Ok(report) => println!(
                "seed {seed}: ok, {} faults, {} restarts, {:.1?} simulated in {took:.2?}, digest {:016x}",
                report.plan.faults.len(),
                report.restarts,
                report.elapsed,
                report.digest
            ),
            Err(why) => {
                println!("seed {seed}: FAILED in {took:.2?}\n{why}");
                failed.push(seed);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed seeds: {failed:?}");
    }
    Ok(())
}
