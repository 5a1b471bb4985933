//! Recovery times as a strip plot: a line per kind of fault, a dot per recovery, on a logarithmic axis.

use maud::{Markup, html};

use crate::summary::Times;

/// One kind of fault.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) title: &'a str,
    pub(super) times: &'a Times,
}

const WIDTH: f64 = 1060.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 34.0;
const HEIGHT: f64 = 24.0;
/// Of a title, in characters: what fits left of the axis.
const TITLE_MAX: usize = 46;
/// Dots of one line; more are thinned evenly, the ends stay.
const DOTS_MAX: usize = 400;

/// Times on the axis.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// From the power of ten below all times to a round number above them.
    fn of(lines: &[Line<'_>]) -> Self {
        let samples = || lines.iter().flat_map(|l| l.times.samples.iter().copied());
        let least = samples().min().unwrap_or(1).max(1) as f64;
        let most = samples().max().unwrap_or(1000).max(10) as f64;
        let low = 10_f64.powf(least.log10().floor());
        let decade = 10_f64.powf(most.log10().floor());
        let high = [1.0, 2.0, 5.0, 10.0]
            .map(|n| n * decade)
            .into_iter()
            .find(|edge| *edge >= most && *edge > low)
            .unwrap_or(decade * 10.0);
        Self { low, high }
    }

    fn x(&self, millis: f64) -> f64 {
        let share = (millis.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        LEFT + share * (RIGHT - LEFT)
    }

    fn ticks(&self) -> Vec<f64> {
        // As many as have room for their labels.
        let steps: &[f64] = match self.high / self.low {
            ..=100.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0, 3.0],
        };
        let mut ticks = Vec::new();
        let mut decade = self.low;
        while decade <= self.high {
            ticks.extend(steps.iter().map(|n| n * decade));
            decade *= 10.0;
        }
        ticks.retain(|tick| *tick <= self.high * 1.001);
        ticks
    }
}

fn label(millis: f64) -> String {
    if millis < 1000.0 {
        format!("{millis:.0} ms")
    } else {
        format!("{:.0} s", millis / 1000.0)
    }
}

fn time(millis: Option<u64>) -> String {
    match millis {
        None => "-".to_owned(),
        Some(millis @ 0..1000) => format!("{millis} ms"),
        Some(millis) => format!("{:.2} s", millis as f64 / 1000.0),
    }
}

fn shortened(title: &str) -> String {
    if title.chars().count() <= TITLE_MAX {
        return title.to_owned();
    }
    let mut short: String = title.chars().take(TITLE_MAX - 1).collect();
    short.truncate(short.trim_end_matches([' ', ',']).len());
    short + "…"
}

/// Dots must not hide each other: each gets a height of its own, the same in each rendering.
fn scatter(index: usize) -> f64 {
    const HEIGHTS: &[f64] = &[0.0, -4.0, 3.0, -2.0, 5.0, -5.0, 1.5, -3.0, 4.0, -1.0];
    HEIGHTS[index % HEIGHTS.len()]
}

fn thinned(samples: &[u64]) -> Vec<u64> {
    if samples.len() <= DOTS_MAX {
        return samples.to_vec();
    }
    let last = samples.len() - 1;
    (0..DOTS_MAX)
        .map(|dot| samples[dot * last / (DOTS_MAX - 1)])
        .collect()
}

pub(super) fn render(lines: &[Line<'_>]) -> Markup {
    let axis = Axis::of(lines);
    let bottom = TOP + HEIGHT * lines.len() as f64;
    html! {
        svg class="plot" viewBox={ "0 0 " (WIDTH) " " (bottom + 6.0) } role="img"
            aria-label="recovery times per kind of fault" {
            @for tick in axis.ticks() {
                line class="grid" x1=(fixed(axis.x(tick))) x2=(fixed(axis.x(tick))) y1=(TOP - 6.0) y2=(bottom) {}
                text class="tick" x=(fixed(axis.x(tick))) y=(TOP - 12.0) text-anchor="middle" { (label(tick)) }
            }
            @for (index, name) in ["n", "p50", "p95", "max"].iter().enumerate() {
                text class="tick" x=(column(index)) y=(TOP - 12.0) text-anchor="end" { (name) }
            }
            @for (index, line) in lines.iter().enumerate() {
                (one(&axis, line, TOP + HEIGHT * (index as f64 + 0.5)))
            }
        }
    }
}

fn column(index: usize) -> f64 {
    RIGHT + 50.0 + 66.0 * index as f64
}

/// Short enough for thousands of dots.
fn fixed(x: f64) -> String {
    format!("{x:.1}")
}

fn one(axis: &Axis, line: &Line<'_>, y: f64) -> Markup {
    let times = line.times;
    let at = |millis: Option<u64>| fixed(axis.x(millis.unwrap_or(0) as f64));
    let values = [
        times.samples.len().to_string(),
        time(times.p50_ms),
        time(times.p95_ms),
        time(times.max_ms),
    ];
    html! {
        g {
            title { (line.name) " " (line.title) ": " (times.samples.len()) " recoveries, p50 " (values[1]) ", p95 " (values[2]) ", max " (values[3]) }
            line class="base" x1=(LEFT) x2=(RIGHT) y1=(y) y2=(y) {}
            text class="name" x="0" y=(y + 4.0) { (line.name) }
            text class="title" x="38" y=(y + 4.0) { (shortened(line.title)) }
            line class="span" x1=(at(times.p50_ms)) x2=(at(times.p95_ms)) y1=(y) y2=(y) {}
            @for (index, sample) in thinned(&times.samples).iter().enumerate() {
                circle class="sample" cx=(at(Some(*sample))) cy=(fixed(y + scatter(index))) r="2.4" {}
            }
            line class="p50" x1=(at(times.p50_ms)) x2=(at(times.p50_ms)) y1=(y - 8.0) y2=(y + 8.0) {}
            circle class="max" cx=(at(times.max_ms)) cy=(y) r="4.5" {}
            @for (index, value) in values.iter().enumerate() {
                text class="value" x=(column(index)) y=(y + 4.0) text-anchor="end" { (value) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the samples, every dot lies between the ends of the axis, and the axis has ticks at both.
    #[test]
    fn every_sample_is_on_the_axis() {
        for samples in [
            vec![0],
            vec![3],
            vec![1000],
            vec![1, 100_000],
            vec![950, 1050],
            vec![7; 2000],
        ] {
            let times = Times {
                samples: samples.clone(),
                ..Times::default()
            };
            let lines = [Line {
                name: "P1",
                title: "t",
                times: &times,
            }];
            let axis = Axis::of(&lines);
            assert!(axis.low < axis.high);
            for sample in thinned(&samples) {
                let x = axis.x(sample as f64);
                assert!((LEFT..=RIGHT).contains(&x), "{sample} at {x}");
            }
            let ticks = axis.ticks();
            assert!(ticks.len() >= 2 && ticks.len() < 20, "{ticks:?}");
        }
        let many: Vec<u64> = (0..5000).collect();
        let thin = thinned(&many);
        assert_eq!(
            (thin.len(), thin[0], thin[DOTS_MAX - 1]),
            (DOTS_MAX, 0, 4999)
        );
    }
}
