//! Many seeds, on a few threads, each run with a runtime of its own.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Options, Run, draw, execute, repeat_command};
use crate::report::Outcome;

/// Which seeds are run a second time, to show that the second run is the first one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// None.
    Never,
    /// All.
    Always,
    /// One in so many.
    OneIn(u64),
}

impl Repeat {
    fn takes(self, seed: u64) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::OneIn(n) => seed.is_multiple_of(n.max(1)),
        }
    }
}

/// Runs seeds on some threads, and tells of each.
pub fn run_seeds(
    seeds: Range<u64>,
    threads: usize,
    repeat: Repeat,
    each: &(dyn Fn(u64, Result<Run, String>) + Sync),
) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    each(seed, verify(seed, repeat));
                }
            });
        }
    });
}

/// Runs a seed, once or twice: its run, or, with the command that repeats it, what does not hold or how both runs differ.
///
/// # Errors
/// When something does not hold.
pub fn verify(seed: u64, repeat: Repeat) -> Result<Run, String> {
    let plan = draw(seed);
    let failed = |why: String| {
        format!(
            "seed {seed}: {why}\nrepeat: {}\n{plan}{:?}",
            repeat_command(seed),
            plan.settings
        )
    };
    let run = |keeps_trace| {
        let options = Options {
            keeps_trace,
            ..Options::default()
        };
        execute(&plan, &options, &mut |_| {}).map_err(|e| failed(format!("{e:#}")))
    };
    let first = run(false)?;
    if first.report.outcome != Outcome::Pass {
        let violations = first.report.violations.iter();
        let lines: Vec<_> = violations
            .map(|v| format!("{}: {}", v.invariant, v.detail))
            .collect();
        return Err(failed(lines.join("\n")));
    }
    if repeat.takes(seed) && run(false)?.digest != first.digest {
        return Err(failed(difference(&run(true)?, &run(true)?)));
    }
    Ok(first)
}

fn difference(first: &Run, second: &Run) -> String {
    let pairs = first.trace.iter().zip(&second.trace);
    let at = pairs
        .enumerate()
        .find(|(_, (a, b))| a != b)
        .map_or(first.trace.len().min(second.trace.len()), |(at, _)| at);
    let around = |trace: &[String]| {
        trace[at.saturating_sub(4).min(trace.len())..(at + 3).min(trace.len())].join("\n")
    };
    format!(
        "two runs differ, from line {at} on:\n{}\n--- and ---\n{}",
        around(&first.trace),
        around(&second.trace)
    )
}
