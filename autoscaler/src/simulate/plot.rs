//! A plot of one run or two, as SVG: messages ready, workers and waits over the same time.
//!
//! No font is read: an SVG only names its fonts, and the viewer has them. So texts are placed with room to spare.

use anyhow::anyhow;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, Polygon, Rectangle, Text};
use plotters::prelude::{Cartesian2d, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::run::{Sample, Simulation, TICK_MS};

const WIDTH: u32 = 1_200;
const TITLE: u32 = 64;
const PANEL: u32 = 230;
/// Points over the width; more would overlap.
const COLUMNS: usize = 1_000;

const INK: RGBColor = RGBColor(40, 40, 48);
const FAINT: RGBColor = RGBColor(226, 226, 232);
const COLORS: [RGBColor; 2] = [RGBColor(31, 110, 180), RGBColor(217, 95, 2)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Points = Vec<(f64, f64)>;

/// A run to draw, and the policy's name.
pub struct Drawn<'a> {
    /// The policy's name in the legend.
    pub name: &'a str,
    /// The run.
    pub simulation: &'a Simulation<'a>,
}

/// Draws one run, or two of the same trace, and returns the text of an SVG file.
///
/// # Errors
/// When the drawing library cannot draw.
pub fn plot(title: &str, runs: &[Drawn<'_>]) -> anyhow::Result<String> {
    let runs = &runs[..runs.len().min(COLORS.len())];
    let panels = 2 + runs.len() as u32;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, TITLE + PANEL * panels)).into_drawing_area();
        draw(&root, title, runs, panels as usize).map_err(|error| anyhow!("drawing the plot: {error}"))?;
    }
    Ok(svg)
}

fn draw(root: &Area<'_>, title: &str, runs: &[Drawn<'_>], panels: usize) -> Result<(), String> {
    root.fill(&plotters::style::WHITE).map_err(said)?;
    let (head, body) = root.split_vertically(TITLE);
    let axis = Axis::over(runs);
    write(&head, title, (24, 14), 24.0, INK)?;
    let caption = match axis.ticks_per_point {
        1 => "a point a second".to_owned(),
        ticks => format!("each point is the highest of {ticks} s"),
    };
    write(&head, &caption, (24, 42), 15.0, INK.mix(0.7))?;
    let panels = body.split_evenly((panels, 1));
    draw_depth(&panels[0], &axis, runs)?;
    for (at, run) in runs.iter().enumerate() {
        draw_workers(&panels[1 + at], &axis, run, COLORS[at], most_workers(runs))?;
    }
    draw_waits(&panels[1 + runs.len()], &axis, runs)?;
    root.present().map_err(said)
}

/// The time axis, in a unit that suits its length.
struct Axis {
    unit: &'static str,
    unit_s: f64,
    end: f64,
    ticks_per_point: usize,
}

impl Axis {
    fn over(runs: &[Drawn<'_>]) -> Axis {
        let ticks = runs.iter().map(|run| run.simulation.samples().len()).max().unwrap_or(0).max(1);
        let seconds = ticks as f64 * TICK_MS as f64 / 1e3;
        let (unit, unit_s) = match seconds {
            ..300.0 => ("s", 1.0),
            ..18_000.0 => ("min", 60.0),
            ..259_200.0 => ("h", 3_600.0),
            _ => ("days", 86_400.0),
        };
        Axis { unit, unit_s, end: seconds / unit_s, ticks_per_point: ticks.div_ceil(COLUMNS) }
    }

    fn at(&self, ms: f64) -> f64 {
        ms / 1e3 / self.unit_s
    }

    /// Returns the points of a stepped line: the highest of every few samples, which holds until the next.
    fn steps(&self, samples: &[Sample], read: impl Fn(&Sample) -> u32) -> Points {
        let mut points = Points::new();
        for (column, few) in samples.chunks(self.ticks_per_point).enumerate() {
            let highest = f64::from(few.iter().map(&read).max().unwrap_or(0));
            let from = column * self.ticks_per_point;
            // A sample is the state after a tick; the first tick comes after one second.
            let at = |tick: usize| self.at(tick as f64 * TICK_MS as f64);
            points.push((at(from + 1), highest));
            points.push((at(from + few.len() + 1).min(self.end), highest));
        }
        points
    }

    /// Returns the longest wait of the jobs that came within every few seconds, if any came.
    fn waits(&self, simulation: &Simulation<'_>) -> Points {
        let column_ms = self.ticks_per_point as u64 * TICK_MS;
        let mut points: Vec<(u64, u64)> = Vec::new();
        for (job, run) in simulation.trace().jobs().iter().zip(simulation.runs()) {
            let column = job.arrival_ms / column_ms;
            match points.last_mut() {
                _ if run.starts == 0 => {}
                Some((last, longest_ms)) if *last == column => *longest_ms = run.wait_ms.max(*longest_ms),
                _ => points.push((column, run.wait_ms)),
            }
        }
        let middle = |column: u64| self.at((column as f64 + 0.5) * column_ms as f64).min(self.end);
        points.into_iter().map(|(column, ms)| (middle(column), ms as f64 / 1e3)).collect()
    }
}

fn draw_depth(area: &Area<'_>, axis: &Axis, runs: &[Drawn<'_>]) -> Result<(), String> {
    let lines: Vec<Points> =
        runs.iter().map(|run| axis.steps(run.simulation.samples(), |sample| sample.depth)).collect();
    let mut chart = panel(area, axis, "messages", highest(&lines))?;
    for (line, color) in lines.into_iter().zip(COLORS) {
        stroke(&mut chart, line, color, 2)?;
    }
    legend(area, "Messages ready", &names(runs))
}

fn draw_workers(
    area: &Area<'_>,
    axis: &Axis,
    run: &Drawn<'_>,
    color: RGBColor,
    most: f64,
) -> Result<(), String> {
    let samples = run.simulation.samples();
    let mut chart = panel(area, axis, "workers", most)?;
    let mut busy = axis.steps(samples, |sample| sample.busy);
    if let (Some(first), Some(last)) = (busy.first().copied(), busy.last().copied()) {
        busy.extend([(last.0, 0.0), (first.0, 0.0)]);
        chart.draw_series([Polygon::new(busy, color.mix(0.25))]).map_err(said)?;
    }
    stroke(&mut chart, axis.steps(samples, |sample| sample.wanted), INK, 1)?;
    stroke(&mut chart, axis.steps(samples, |sample| sample.ready), color, 2)?;
    let title = format!("Workers, {}", run.name);
    let entries = [
        ("wanted".to_owned(), INK.filled()),
        ("ready".to_owned(), color.filled()),
        ("busy".to_owned(), color.mix(0.25).filled()),
    ];
    legend(area, &title, &entries)
}

fn draw_waits(area: &Area<'_>, axis: &Axis, runs: &[Drawn<'_>]) -> Result<(), String> {
    let waits: Vec<Points> = runs.iter().map(|run| axis.waits(run.simulation)).collect();
    let mut chart = panel(area, axis, "seconds", highest(&waits))?;
    for (points, color) in waits.into_iter().zip(COLORS) {
        let dots = points.into_iter().map(|point| Circle::new(point, 2, color.mix(0.8).filled()));
        chart.draw_series(dots).map_err(said)?;
    }
    legend(area, "Wait for a slot, at the time the job came", &names(runs))
}

/// Axes with their units and a faint grid.
fn panel<'a, 'b>(area: &Area<'b>, axis: &Axis, unit: &str, highest: f64) -> Result<Chart<'a, 'b>, String> {
    let mut chart = ChartBuilder::on(area)
        .margin_top(34)
        .margin_left(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..axis.end, 0.0..(1.06 * highest).max(1.0))
        .map_err(said)?;
    let labels: TextStyle = ("sans-serif", 15).into_font().color(&INK);
    chart
        .configure_mesh()
        .light_line_style(plotters::style::TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK.mix(0.5))
        .x_labels(13)
        .y_labels(6)
        .x_desc(format!("time ({})", axis.unit))
        .y_desc(unit)
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&|value| plain(*value))
        .label_style(labels.clone())
        .axis_desc_style(labels)
        .draw()
        .map_err(said)?;
    Ok(chart)
}

/// Draws the line of text above a panel: what it shows, and its colours.
fn legend(area: &Area<'_>, title: &str, entries: &[(String, ShapeStyle)]) -> Result<(), String> {
    write(area, title, (76, 10), 18.0, INK)?;
    // Entries are placed from the right, with room for a wide font.
    let mut right = WIDTH as i32 - 24;
    for (name, style) in entries.iter().rev() {
        right -= 9 * name.chars().count() as i32;
        write(area, name, (right, 11), 16.0, INK)?;
        right -= 22;
        area.draw(&Rectangle::new([(right, 14), (right + 14, 22)], *style)).map_err(said)?;
        right -= 22;
    }
    Ok(())
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: f64, color: impl Color) -> Result<(), String> {
    let style: TextStyle = ("sans-serif", size).into_font().color(&color);
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(said)
}

fn stroke(chart: &mut Chart<'_, '_>, line: Points, color: RGBColor, width: u32) -> Result<(), String> {
    chart.draw_series(LineSeries::new(line, color.stroke_width(width))).map_err(said)?;
    Ok(())
}

fn names(runs: &[Drawn<'_>]) -> Vec<(String, ShapeStyle)> {
    runs.iter().zip(COLORS).map(|(run, color)| (run.name.to_owned(), color.filled())).collect()
}

fn highest(lines: &[Points]) -> f64 {
    lines.iter().flatten().map(|(_, y)| *y).fold(0.0, f64::max)
}

fn most_workers(runs: &[Drawn<'_>]) -> f64 {
    let wanted = runs.iter().flat_map(|run| run.simulation.samples()).map(|sample| sample.wanted);
    f64::from(wanted.max().unwrap_or(0))
}

/// Formats a number with as many decimals as it has, up to two.
fn plain(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}
