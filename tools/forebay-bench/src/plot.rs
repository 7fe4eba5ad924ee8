//! `--plot`: an SVG with two panels, latency by percentile and throughput over time.
//!
//! The latency panel is drawn as HdrHistogram draws it: `x` is `1 / (1 - p)` on a logarithmic scale, so each tenfold
//! step along it is one more nine, and the tail has as much room as the middle.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::Failure;
use crate::report::{Figures, repeat};
use crate::samples::Samples;

const SIZE: (u32, u32) = (1_000, 800);
pub const COLORS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40)];

/// What one run saw, by name; at most two.
pub type Curves = Vec<(&'static str, Samples)>;

/// Takes the figures of this many runs, and draws the last one to a file if one is given.
pub async fn draw_last(
    title: &str,
    path: Option<&Path>,
    runs: u64,
    one: impl AsyncFn() -> Result<(Figures, Curves), Failure>,
) -> Result<Vec<Figures>, Failure> {
    let file = path.map(create).transpose()?;
    let last = RefCell::new(Curves::new());
    let figures = repeat(runs, async || {
        let (figures, curves) = one().await?;
        last.replace(curves);
        Ok(figures)
    });
    let figures = figures.await?;
    if let Some(mut file) = file {
        file.write_all(svg(title, &last.into_inner())?.as_bytes())?;
    }
    Ok(figures)
}

/// Makes the file of a plot before anything is measured: what cannot be written is said at once.
pub fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| format!("{} cannot be written: {error}", path.display()).into())
}

type Points = Vec<(f64, f64)>;
pub type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, X> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>;

fn svg(title: &str, curves: &Curves) -> Result<String, Failure> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(title, ("sans-serif", 20))?;
        let panels = area.split_evenly((2, 1));
        latency(&panels[0], &points(curves, Samples::tail))?;
        throughput(&panels[1], &points(curves, Samples::rates))?;
        area.present()?;
    }
    Ok(text)
}

fn points(curves: &Curves, of: impl Fn(&Samples) -> Points) -> Vec<(&'static str, Points)> {
    curves.iter().map(|(name, samples)| (*name, of(samples))).collect()
}

/// The greatest of one coordinate, at least `least`.
fn greatest(lines: &[(&str, Points)], of: impl Fn(&(f64, f64)) -> f64, least: f64) -> f64 {
    lines.iter().flat_map(|(_, points)| points).map(of).fold(least, f64::max)
}

fn latency(panel: &Panel<'_>, lines: &[(&'static str, Points)]) -> Result<(), Failure> {
    let (x_max, y_max) = (greatest(lines, |point| point.0, 10.0), greatest(lines, |point| point.1, 1e-3));
    let mut chart = ChartBuilder::on(panel)
        .caption("Latency by percentile", ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((1.0..x_max).log_scale(), 0.0..y_max * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("messages that took no longer")
        .y_desc("milliseconds")
        .x_label_formatter(&|x| percent(*x))
        .draw()?;
    draw(&mut chart, lines, SeriesLabelPosition::UpperLeft)
}

fn throughput(panel: &Panel<'_>, lines: &[(&'static str, Points)]) -> Result<(), Failure> {
    let (x_max, y_max) = (greatest(lines, |point| point.0, 0.1), greatest(lines, |point| point.1, 1.0));
    let mut chart = ChartBuilder::on(panel)
        .caption("Throughput over time", ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..x_max, 0.0..y_max * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("messages a second")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    draw(&mut chart, lines, SeriesLabelPosition::LowerLeft)
}

/// Draws lines and says which is which.
fn draw<'a, X>(
    chart: &mut Chart<'a, X>,
    lines: &[(&'static str, Points)],
    names_at: SeriesLabelPosition,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64> + 'a,
{
    for ((name, points), color) in lines.iter().zip(COLORS) {
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    let mut names = chart.configure_series_labels();
    names.position(names_at).background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    Ok(())
}

/// The percentile at `1 / (1 - p)`, with as many nines as it has.
fn percent(x: f64) -> String {
    let decimals = (x.log10().ceil() as usize).saturating_sub(2);
    format!("{:.decimals$} %", 100.0 - 100.0 / x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenfold_step_is_one_more_nine() {
        let labels = [1.0, 2.0, 10.0, 100.0, 200.0, 1_000.0, 10_000.0].map(percent);
        assert_eq!(labels, ["0 %", "50 %", "90 %", "99 %", "99.5 %", "99.9 %", "99.99 %"]);
    }
}
