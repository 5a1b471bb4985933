//! Bars on a logarithmic axis, a group for each workload and a bar for each peer.

use anyhow::anyhow;
use plotters::prelude::*;

use super::results::{Outcome, Side};
use crate::figures::{Metric, short};

const WIDTH: u32 = 1000;
const GROUP_HEIGHT: u32 = 54;
const MARGINS: u32 = 110;
const NAMES: u32 = 230;
const LEFT: i32 = 10;
const FONT: &str = "sans-serif";
/// Of the height of a group.
const BAR: f64 = 0.26;

const SIDES: [(Side, &str, RGBColor); 3] = [
    (Side::Perennial, "Perennial", RGBColor(47, 125, 79)),
    (Side::Rival, "Flink", RGBColor(214, 120, 44)),
    (Side::Bare, "bare loop", RGBColor(140, 150, 145)),
];

/// Draws the outcomes that compare one of some metrics, as SVG; `None` when there is none.
pub(super) fn draw(
    title: &str,
    outcomes: &[&Outcome],
    metrics: &[Metric],
) -> anyhow::Result<Option<String>> {
    let wanted = |outcome: &&Outcome| metrics.contains(&outcome.compared());
    // The first on top.
    let groups: Vec<&Outcome> = outcomes.iter().copied().filter(wanted).rev().collect();
    let value = |outcome: &Outcome, side| Some(outcome.spread(side, outcome.compared())?.median);
    let all = groups
        .iter()
        .flat_map(|one| SIDES.map(|(side, ..)| value(one, side)));
    let all: Vec<f64> = all.flatten().filter(|value| *value > 0.0).collect();
    let (Some(low), Some(high)) = (
        all.iter().copied().reduce(f64::min),
        all.iter().copied().reduce(f64::max),
    ) else {
        return Ok(None);
    };
    // Whole decades, with room for the figures right of the bars.
    let low = 10_f64.powf((low * 0.9).log10().floor());
    let high = high * 4.0;
    let height = groups.len() as u32 * GROUP_HEIGHT + MARGINS;
    let mut svg = String::new();
    {
        let error = |error: &dyn std::fmt::Display| anyhow!("cannot draw {title}: {error}");
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| error(&e))?;
        let rows = 0.0..groups.len() as f64;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 20))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(NAMES)
            .build_cartesian_2d((low..high).log_scale(), rows)
            .map_err(|e| error(&e))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_label_formatter(&|value| short(*value))
            .label_style((FONT, 14))
            .draw()
            .map_err(|e| error(&e))?;
        for (row, outcome) in groups.iter().enumerate() {
            let place = (low, row as f64 + 0.5);
            let (_x, y) = chart.plotting_area().map_coordinate(&place);
            let name = Text::new(outcome.workload.clone(), (LEFT, y - 7), (FONT, 14));
            root.draw(&name).map_err(|e| error(&e))?;
        }
        for (place, (side, label, color)) in SIDES.into_iter().enumerate() {
            let bars = groups.iter().enumerate().filter_map(|(row, one)| {
                let value = value(one, side)?;
                let top = row as f64 + 0.9 - place as f64 * BAR;
                Some((value, top))
            });
            let bars: Vec<_> = bars.collect();
            chart
                .draw_series(bars.iter().map(|(value, top)| {
                    Rectangle::new([(low, *top), (*value, top - BAR)], color.filled())
                }))
                .map_err(|e| error(&e))?
                .label(label)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled())
                });
            chart
                .draw_series(bars.iter().map(|(value, top)| {
                    Text::new(
                        format!(" {}", short(*value)),
                        (*value, top - 0.03),
                        (FONT, 13),
                    )
                }))
                .map_err(|e| error(&e))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, 14))
            .draw()
            .map_err(|e| error(&e))?;
        root.present().map_err(|e| error(&e))?;
    }
    Ok(Some(svg))
}
