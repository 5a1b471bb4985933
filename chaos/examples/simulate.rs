//! Runs seeds of the simulator: `cargo run -p perennial-chaos --example simulate -- --seeds 0..50 [--trace] [--once] [--threads N]`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use perennial_chaos::simulator::{Options, Repeat, draw, execute, run_seeds};

#[allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a command of its own; real time is shown only"
)]
fn main() -> anyhow::Result<()> {
    let mut seeds = 0..50;
    let (mut shows_trace, mut repeat, mut threads, mut is_quiet) =
        (false, Repeat::Always, 1, false);
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
            "--threads" => threads = arguments.next().context("--threads N")?.parse()?,
            "--trace" => shows_trace = true,
            "--once" => repeat = Repeat::Never,
            "--quiet" => is_quiet = true,
            other => bail!("unknown argument {other}"),
        }
    }
    if shows_trace {
        for seed in seeds.clone() {
            let plan = draw(seed);
            println!("{plan}{:?}", plan.settings);
            let options = Options {
                keeps_trace: true,
                ..Options::default()
            };
            println!(
                "{}",
                execute(&plan, &options, &mut |_| {})?.trace.join("\n")
            );
        }
    }
    let failed = Mutex::new(Vec::new());
    let (runs, faults) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = std::time::Instant::now();
    run_seeds(seeds, threads, repeat, &|seed, result| {
        runs.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(run) => {
                faults.fetch_add(run.report.strikes.len() as u64, Ordering::Relaxed);
                if !is_quiet {
                    println!(
                        "seed {seed}: ok, {} faults, {} restarts, {} checkpoints, {} ms simulated, digest {:016x}",
                        run.report.strikes.len(),
                        run.restarts,
                        run.checkpoints,
                        run.report.elapsed_ms,
                        run.digest
                    );
                }
            }
            Err(why) => {
                println!("FAILED {why}\n");
                if let Ok(mut failed) = failed.lock() {
                    failed.push(seed);
                }
            }
        }
    });
    println!(
        "{} runs, {} faults in {:.1?}",
        runs.into_inner(),
        faults.into_inner(),
        began.elapsed()
    );
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort_unstable();
    if !failed.is_empty() {
        bail!("failed seeds: {failed:?}");
    }
    Ok(())
}
