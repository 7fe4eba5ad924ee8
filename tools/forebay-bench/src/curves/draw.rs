//! A curve as an SVG: a panel for each figure, along the axis on a logarithmic scale.

use std::fs::File;
use std::io::Write as _;

use plotters::prelude::*;

use super::Curve;
use crate::Failure;
use crate::plot::{COLORS, Panel};

const WIDTH: u32 = 1_000;
const ROW_HEIGHT: u32 = 300;
const COLUMNS: usize = 2;

pub fn draw(mut file: File, curve: &Curve) -> Result<(), Failure> {
    Ok(file.write_all(svg(curve)?.as_bytes())?)
}

fn svg(curve: &Curve) -> Result<String, Failure> {
    let names = curve.names();
    let rows = names.len().div_ceil(COLUMNS);
    let mut text = String::new();
    {
        let size = (WIDTH, ROW_HEIGHT * rows as u32);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(&format!("forebay-bench curves {}", curve.axis), ("sans-serif", 20))?;
        for (panel, name) in area.split_evenly((rows, COLUMNS)).iter().zip(names) {
            figure(panel, curve.axis, name, &curve.medians(name))?;
        }
        area.present()?;
    }
    Ok(text)
}

fn figure(panel: &Panel<'_>, axis: &str, name: &str, points: &[(f64, f64)]) -> Result<(), Failure> {
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let y_max = points.iter().map(|point| point.1).fold(1e-3, f64::max);
    let mut chart = ChartBuilder::on(panel)
        .caption(name.replace('_', " "), ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        // A single point has room on both sides.
        .build_cartesian_2d((first * 0.9..last * 1.1).log_scale(), 0.0..y_max * 1.05)?;
    chart.configure_mesh().x_desc(axis).x_label_formatter(&|x| format!("{x:.0}")).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), COLORS[0].stroke_width(2)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, COLORS[0].filled())))?;
    Ok(())
}
