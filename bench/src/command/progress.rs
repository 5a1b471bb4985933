//! What happens right now: a line that changes on a terminal, and a line for each finished run.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::figures::{Metric, short};

/// A line for people.
pub(super) fn line(text: &str) {
    // Whoever reads may have gone: what is measured and kept goes on.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// See the module.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner:.green} {elapsed:>4} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        // Seldom, so that it takes nothing away from what is measured.
        bar.enable_steady_tick(Duration::from_secs(1));
        Self { bar }
    }

    /// What is going on.
    pub fn now(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| line(text));
    }

    /// A run is done.
    pub fn finished(
        &self,
        workload: &str,
        peer: &str,
        run: usize,
        (headline, value): (Metric, Option<f64>),
        rest: &BTreeMap<&Metric, &f64>,
    ) {
        let value = value.map_or_else(|| "-".to_owned(), short);
        let rest = rest
            .iter()
            .map(|(metric, value)| format!("{} {}", short(**value), metric.label()));
        let rest = rest.collect::<Vec<_>>().join(", ");
        let headline = headline.label();
        self.say(&format!(
            "{workload:<28} {peer:<14} {run:>2}  {value:>8} {headline}  ({rest})"
        ));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
