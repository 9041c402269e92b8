//! Plots as SVG text: bars with their spread, and latency by percentile.
//!
//! Pure: figures in, SVG out. `plotters` draws; decided here are scale, order and colour.

use anyhow::{Context, Result};
use plotters::coord::combinators::BindKeyPoints;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One bar: a median and the range of its rounds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// What stands beside the bar, the median in words.
    pub(crate) value: String,
    /// Ours are drawn in the accent colour.
    pub(crate) ours: bool,
}

/// One peer's latency distribution.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    pub(crate) label: String,
    /// Values behind it: the greatest stands where one of so many is above it.
    pub(crate) count: u64,
    /// Percentile (0 to 100) and value, ascending.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Horizontal bars from zero, one per peer, with a line from the least to the greatest round.
///
/// # Errors
/// The drawing library refuses (never seen for finite figures).
pub(crate) fn bars(bars: &[Bar]) -> Result<String> {
    let height = BAR_PITCH * i32::try_from(bars.len())? + 2 * BAR_GAP;
    let most = bars.iter().map(|bar| bar.max.max(bar.median)).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| BAR_LEFT + (value.max(0.0) / most * f64::from(BAR_LENGTH)).round() as i32;
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (WIDTH, height.unsigned_abs())).into_drawing_area();
        for (row, bar) in (0..).zip(bars) {
            let top = BAR_GAP + row * BAR_PITCH;
            let middle = top + BAR_PITCH / 2;
            let colour = if bar.ours { OURS } else { OTHERS };
            let body = [(BAR_LEFT, top + BAR_GAP), (x(bar.median), top + BAR_PITCH - BAR_GAP)];
            area.draw(&Rectangle::new(body, colour.filled()))?;
            area.draw(&PathElement::new([(x(bar.min), middle), (x(bar.max), middle)], INK))?;
            area.draw(&text(&bar.label, (BAR_LEFT - BAR_GAP, middle), HPos::Right))?;
            let beside = x(bar.max.max(bar.median)) + BAR_GAP;
            area.draw(&text(&bar.value, (beside, middle), HPos::Left))?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Latency in microseconds by percentile, both axes logarithmic: each step to the right is one more nine.
///
/// # Errors
/// There is no positive value, or the drawing library refuses.
pub(crate) fn percentile_curves(curves: &[Curve]) -> Result<String> {
    let values = || curves.iter().flat_map(|curve| &curve.points).map(|&(_, value)| value);
    let least = values().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    let most = values().fold(0.0, f64::max);
    anyhow::ensure!(most > 0.0, "no latency to draw");
    let (low, high) = (least * 0.8, most * 1.25);
    let scale = (low..high).log_scale().with_key_points(ticks(low, high));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, CURVES_HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .margin_right(16)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..NINES_MAX, scale)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.15))
            .x_labels(NINES_MAX as usize + 1)
            .x_label_formatter(&|nines| percentile_label(*nines))
            .y_label_formatter(&|value| micros_label(*value))
            .x_desc("percentile")
            .draw()?;
        for (index, curve) in curves.iter().enumerate() {
            let colour = PALETTE[index % PALETTE.len()];
            let line = curve
                .points
                .iter()
                .map(|&(percentile, value)| (nines(percentile, curve.count), value.max(least)));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(curve.label.as_str())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .draw()
            .context("drawing the legend")?;
        area.present()?;
    }
    Ok(svg)
}

const WIDTH: u32 = 880;
const CURVES_HEIGHT: u32 = 380;
const BAR_PITCH: i32 = 24;
const BAR_GAP: i32 = 4;
/// Room for the longest peer's name.
const BAR_LEFT: i32 = 170;
/// Leaves room for the value beside the longest bar.
const BAR_LENGTH: i32 = 560;
/// 99.999 %: beyond it a run of seconds has too few messages to say anything.
const NINES_MAX: f64 = 5.0;

const INK: RGBColor = RGBColor(38, 42, 51);
const OURS: RGBColor = RGBColor(18, 110, 130);
const OTHERS: RGBColor = RGBColor(178, 186, 199);
/// Twelve hues that stay apart for most colour-blind readers (after Paul Tol's muted scheme), darkest first.
const PALETTE: [RGBColor; 12] = [
    RGBColor(18, 110, 130),
    RGBColor(204, 102, 119),
    RGBColor(51, 34, 136),
    RGBColor(221, 170, 51),
    RGBColor(17, 119, 51),
    RGBColor(136, 34, 85),
    RGBColor(68, 170, 153),
    RGBColor(153, 153, 51),
    RGBColor(170, 68, 153),
    RGBColor(136, 204, 238),
    RGBColor(102, 102, 102),
    RGBColor(230, 85, 13),
];

fn text(words: &str, at: (i32, i32), side: HPos) -> Text<'_, (i32, i32), &str> {
    let style = ("sans-serif", 13).into_font().color(&INK).pos(Pos::new(side, VPos::Center));
    Text::new(words, at, style)
}

/// 0 for the 0th percentile, 1 for the 90th, 2 for the 99th; at most what `count` values can tell.
fn nines(percentile: f64, count: u64) -> f64 {
    let above = (1.0 - percentile / 100.0).max(1.0 / count.max(1) as f64);
    (-above.log10()).min(NINES_MAX)
}

/// 1, 2 and 5 times the powers of ten between two positive numbers.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
    steps.filter(|tick| (low..=high).contains(tick)).collect()
}

fn percentile_label(nines: f64) -> String {
    match nines.round() as usize {
        0 => "0".to_owned(),
        1 => "90".to_owned(),
        2 => "99".to_owned(),
        more => format!("99.{}", "9".repeat(more - 2)),
    }
}

fn micros_label(micros: f64) -> String {
    match micros {
        value if value >= 1e6 => format!("{:.0} s", value / 1e6),
        value if value >= 1e3 => format!("{:.0} ms", value / 1e3),
        value if value >= 1.0 => format!("{value:.0} us"),
        value => format!("{value:.1} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_is_a_step_and_the_slowest_stands_where_the_count_puts_it() {
        let steps = [0.0, 90.0, 99.0, 99.9, 100.0].map(|percentile| nines(percentile, 10_000));
        let expected = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert!(steps.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{steps:?}");
        assert_eq!([0.0, 1.0, 2.0, 4.0].map(percentile_label), ["0", "90", "99", "99.99"]);
    }

    #[test]
    fn a_narrow_range_has_ticks_too() {
        assert_eq!(ticks(16.0, 130.0), [20.0, 50.0, 100.0]);
        assert_eq!([20.0, 5e3, 2e6, 0.5].map(micros_label), ["20 us", "5 ms", "2 s", "0.5 us"]);
    }

    #[test]
    fn the_longest_bar_is_the_greatest_median_and_no_figure_breaks_the_plot() {
        let bar = |median: f64| Bar {
            label: "a".into(),
            median,
            min: median,
            max: median,
            value: String::new(),
            ours: false,
        };
        for values in [vec![1.0, 2.0], vec![0.0], vec![-1.0, 5.0], vec![]] {
            assert!(bars(&values.into_iter().map(bar).collect::<Vec<_>>()).is_ok());
        }
    }

    #[test]
    fn nothing_to_draw_is_an_error_not_an_empty_plot() {
        assert!(percentile_curves(&[]).is_err());
    }
}
