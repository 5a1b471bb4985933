//! Decides the load at which latency is measured: half of what the slower peer can do. Pure.
//!
//! Invariant: all passes have the same load, or their latencies could not be compared. It is therefore that of the first pass, also where
//! Flink does better in another.

use crate::figures::Metric;
use crate::plan::FIRST_PASS;
use crate::report::results::{Results, Side};

/// The workload whose rate tells it.
pub(crate) const REFERENCE: &str = "keyed-count-1e3-cp1s";

/// Events per second, when no run has told what the peers can do.
const DEFAULT: u64 = 1_000_000;

/// In events per second, from what is known by now.
pub(crate) fn half_load(known: &Results) -> u64 {
    let reference = known.of(REFERENCE, FIRST_PASS);
    let rate = |side| Some(reference?.spread(side, Metric::WarmRate)?.median);
    let rates = [Side::Perennial, Side::Rival].into_iter().filter_map(rate);
    let Some(slowest) = rates.min_by(f64::total_cmp) else {
        return DEFAULT;
    };
    // To the next hundred thousand, so that the figure can be said.
    ((slowest * 1e6 / 2.0 / 1e5).round() as u64).max(1) * 100_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Measurement;
    use crate::peer::flink::Collector;
    use crate::report::results::Outcome;
    use crate::workload::{Profile, table};

    /// The slower of both, of the first pass, whichever collector does better.
    #[test]
    fn half_load_is_half_of_the_slower_peers_rate_in_the_first_pass() {
        use Collector::{G1, Parallel};
        type Rates<'a> = (Collector, &'a [(&'a str, f64)]);
        let first: Rates<'_> = (Parallel, &[("perennial", 60.0), ("flink-parallel", 5.04)]);
        let second: Rates<'_> = (G1, &[("perennial", 61.0), ("flink-g1", 7.0)]);
        let ours: Rates<'_> = (Parallel, &[("perennial", 60.0)]);
        let least: Rates<'_> = (Parallel, &[("perennial", 0.01)]);
        let cases: [(&[Rates<'_>], u64); 6] = [
            (&[], DEFAULT),
            (&[second], DEFAULT),
            (&[first], 2_500_000),
            (&[first, second], 2_500_000),
            (&[ours], 30_000_000),
            (&[least], 100_000),
        ];
        let mut table = table(Profile::Full).into_iter();
        let reference = table.find(|one| one.name == REFERENCE).unwrap();
        for (passes, expected) in cases {
            let mut known = Results::new(Profile::Full, 1.0);
            for (pass, rates) in passes {
                let mut outcome = Outcome::new(&reference, *pass, true);
                for (peer, rate) in *rates {
                    let mut measurement = Measurement::default();
                    measurement.set(Metric::WarmRate, *rate);
                    outcome.add(peer, measurement);
                }
                known.put(outcome);
            }
            assert_eq!(half_load(&known), expected, "{passes:?}");
        }
    }
}
