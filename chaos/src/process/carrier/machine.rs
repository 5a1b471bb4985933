//! How long the machine itself kept processes waiting, so that a late answer is not held against the runtime when nobody could have been in time.
//!
//! What the kernel counts as pressure (`/proc/pressure`): time in which somebody waited for a processor, a disk or memory. Where it does not
//! count, nothing is forgiven.

use std::time::Duration;

/// Between two looks.
const LOOK_INTERVAL_MS: u64 = 100;
/// Samples kept: an hour.
const SAMPLES_MAX: usize = 36_000;

/// Looks along, and says of any time what was lost in it.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Time of day in ms, and all that was lost until then.
    samples: Vec<(u64, Duration)>,
}

impl Machine {
    /// Takes a look, unless there was one just now.
    pub(super) fn look(&mut self, now_ms: u64) {
        let is_due = self
            .samples
            .last()
            .is_none_or(|(last, _)| now_ms >= last + LOOK_INTERVAL_MS);
        if is_due && self.samples.len() < SAMPLES_MAX {
            let lost = ["cpu", "io", "memory"].into_iter().map(lost_for).sum();
            self.samples.push((now_ms, lost));
        }
    }

    /// What was lost between two times, never more than lies between them.
    pub(super) fn stalled(&self, from_ms: u64, to_ms: u64) -> Duration {
        let before = self.samples.iter().rev().find(|(at, _)| *at <= from_ms);
        let after = self.samples.iter().find(|(at, _)| *at >= to_ms);
        let (Some(first), Some(last)) = (
            before.or(self.samples.first()),
            after.or(self.samples.last()),
        ) else {
            return Duration::ZERO;
        };
        let between = Duration::from_millis(to_ms.saturating_sub(from_ms));
        last.1.saturating_sub(first.1).min(between)
    }
}

fn lost_for(what: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/pressure/{what}")).unwrap_or_default();
    parse(&text)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=226218567`, in microseconds.
fn parse(text: &str) -> Duration {
    let line = text.lines().find(|line| line.starts_with("some "));
    let total = line
        .and_then(|line| line.split_once("total="))
        .and_then(|(_, total)| total.trim().parse().ok());
    Duration::from_micros(total.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_read_and_cut_to_the_time_asked_for() {
        let text = "some avg10=26.50 avg60=12.85 avg300=7.44 total=9194\nfull avg10=0.00 total=7\n";
        assert_eq!(parse(text), Duration::from_micros(9194));
        assert_eq!(parse(""), Duration::ZERO);
        let ms = Duration::from_millis;
        let machine = Machine {
            samples: vec![(1000, ms(5)), (1100, ms(65)), (1200, ms(365))],
        };
        assert_eq!(machine.stalled(1000, 1100), ms(60));
        assert_eq!(
            machine.stalled(1120, 1130),
            ms(10),
            "not more than the time"
        );
        assert_eq!(machine.stalled(0, 9000), ms(360));
        assert_eq!(Machine::default().stalled(0, 9000), Duration::ZERO);
    }
}
