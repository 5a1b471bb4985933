//! Live progress: bars on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output;
use crate::plan::FaultPlan;
use crate::report::{Outcome, Progress, RunReport};
use crate::story;

/// How long it will take, from what it took so far; `None`: too early to say.
pub(super) fn remaining(
    done: u64,
    runs: Option<u64>,
    elapsed: Duration,
    time: Option<Duration>,
) -> Option<Duration> {
    let by_time = time.map(|time| time.saturating_sub(elapsed));
    let by_runs = runs.filter(|_| done > 0).map(|runs| {
        let share = runs.saturating_sub(done) as f64 / done as f64;
        elapsed.mul_f64(share)
    });
    match (by_time, by_runs) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Shows a campaign.
pub(super) struct Display {
    bars: Option<Bars>,
    is_quiet: bool,
    is_terse: bool,
    done: u64,
    failed: u64,
    inconclusive: u64,
    faults: usize,
}

struct Bars {
    all: MultiProgress,
    main: ProgressBar,
    runs: BTreeMap<u64, (ProgressBar, FaultPlan)>,
}

impl Display {
    /// `is_quiet`: standard output belongs to somebody else; finished runs are told on standard error.
    pub(super) fn new(runs: Option<u64>, is_quiet: bool) -> Self {
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let main = all.add(runs.map_or_else(ProgressBar::no_length, ProgressBar::new));
            let template = if runs.is_some() {
                "{bar:30.green/dim} {pos}/{len} runs  {msg}"
            } else {
                "{spinner:.green} {pos} runs  {msg}"
            };
            main.set_style(style(template));
            main.enable_steady_tick(Duration::from_millis(200));
            Bars {
                all,
                main,
                runs: BTreeMap::new(),
            }
        });
        Self {
            bars,
            is_quiet,
            is_terse: false,
            done: 0,
            failed: 0,
            inconclusive: 0,
            faults: 0,
        }
    }

    /// For very many runs: those that passed are counted only.
    pub(super) fn terse(runs: Option<u64>, is_quiet: bool) -> Self {
        Self {
            is_terse: true,
            ..Self::new(runs, is_quiet)
        }
    }

    pub(super) fn began(&mut self, plan: &FaultPlan) {
        if let Some(bars) = &mut self.bars {
            let bar = bars.all.add(ProgressBar::new_spinner());
            bar.set_style(style("  {spinner:.green} {elapsed:>4} {prefix} {msg}"));
            bar.set_prefix(format!("{} seed {}", plan.profile, plan.seed));
            bar.enable_steady_tick(Duration::from_millis(200));
            bars.runs.insert(plan.seed, (bar, plan.clone()));
        }
    }

    pub(super) fn progress(&mut self, seed: u64, progress: &Progress) {
        if let Some((bar, plan)) = self.bars.as_ref().and_then(|bars| bars.runs.get(&seed))
            && let Some(text) = output::progress(plan, progress)
        {
            bar.set_message(text.trim().to_owned());
        }
    }

    pub(super) fn ended(
        &mut self,
        report: &RunReport,
        runs: Option<u64>,
        elapsed: Duration,
        time: Option<Duration>,
    ) {
        self.done += 1;
        self.faults += report.strikes.len();
        match &report.outcome {
            Outcome::Pass => {}
            Outcome::Fail => self.failed += 1,
            Outcome::Inconclusive(_) => self.inconclusive += 1,
        }
        let line = format!("{:>4}  {}", self.done, output::run_line(report));
        let is_quiet = self.is_quiet;
        let is_silent = self.is_terse && report.outcome == Outcome::Pass;
        let print = || {
            if is_silent {
                // Counted above.
            } else if is_quiet {
                output::note(&line);
            } else {
                output::line(&line);
            }
        };
        let Some(bars) = &mut self.bars else {
            return print();
        };
        if let Some((bar, _)) = bars.runs.remove(&report.plan.seed) {
            bar.finish_and_clear();
            bars.all.remove(&bar);
        }
        bars.all.suspend(print);
        bars.main.set_position(self.done);
        let eta = remaining(self.done, runs, elapsed, time).map_or_else(String::new, |eta| {
            format!(", {} left", story::duration(eta))
        });
        bars.main.set_message(format!(
            "{} faults, {} failed, {} inconclusive{eta}",
            self.faults, self.failed, self.inconclusive
        ));
    }

    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.main.finish_and_clear();
        }
    }
}

pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By runs, by time, whichever comes first; never below nothing.
    #[test]
    fn what_is_left_is_told_from_what_it_took() {
        let seconds = Duration::from_secs;
        assert_eq!(remaining(0, Some(10), seconds(5), None), None);
        assert_eq!(remaining(2, Some(10), seconds(20), None), Some(seconds(80)));
        assert_eq!(
            remaining(2, None, seconds(20), Some(seconds(60))),
            Some(seconds(40))
        );
        assert_eq!(
            remaining(2, Some(10), seconds(20), Some(seconds(60))),
            Some(seconds(40))
        );
        assert_eq!(
            remaining(12, Some(10), seconds(20), Some(seconds(6))),
            Some(seconds(0))
        );
    }
}
