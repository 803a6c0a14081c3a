//! Draws charts with plotters: title, legend, axes, series, labels.

use std::cell::RefCell;
use std::error::Error;
use std::iter::once;
use std::rc::Rc;

use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::drawing::DrawingArea;
use plotters::element::{
    EmptyElement, ErrorBar, IntoDynElement, PathElement, Polygon, Rectangle, Text,
};
use plotters::series::LineSeries;
use plotters::style::Color as _;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::axis::Scale;
use crate::canvas::{Canvas, Pen, With, font, pixels, units};
use crate::chart::{Chart, Mark, Series};
use crate::labels::{Area, Labels};
use crate::scene::{Color, Scene, Style};

const WIDTH: f32 = 960.0;
const HEIGHT: f32 = 560.0;
/// Height of a bar with its gap.
const BAR: f32 = 21.0;
/// Height of a row of text above the axes.
const ROW: f32 = 23.0;
/// Margin to the right of the axes.
const RIGHT: f32 = 28.0;

const TITLE: Style = Style::new(19.0).bold();
const NOTE: Style = Style::new(13.5).color(Color::Muted);
const AXIS: Style = Style::new(16.0);
const TICK: Style = Style::new(14.0);
const LEGEND: Style = Style::new(14.0);
const LABEL: Style = Style::new(13.0);

/// Radius of a marker.
const POINT: f32 = 4.6;

/// A part of the figure.
type Part = DrawingArea<Canvas, Shift>;
/// The area between the axes.
type Plot<'a> = ChartContext<'a, Canvas, Cartesian2d<Scale, Scale>>;
type Drawn<T = ()> = Result<T, Box<dyn Error>>;

/// The charts below one another.
///
/// # Errors
/// Plotters' own.
pub(crate) fn scene(charts: &[Chart]) -> Drawn<Scene> {
    let heights: Vec<f32> = charts.iter().map(height).collect();
    let title = charts.iter().map(|c| c.title.as_str()).collect::<Vec<_>>().join("; ");
    let canvas =
        Rc::new(RefCell::new(Canvas::new(Scene::new(WIDTH, heights.iter().sum(), &title))));
    let mut rest = Part::from(&canvas);
    rest.fill(&Color::Paper)?;
    for (chart, height) in charts.iter().zip(heights) {
        let (part, below) = rest.split_vertically(units(height));
        draw(&part, chart)?;
        rest = below;
    }
    Ok(canvas.take().scene)
}

fn bars(chart: &Chart) -> usize {
    chart.series.iter().filter(|s| s.mark == Mark::Bar).map(|s| s.points.len()).sum()
}

fn height(chart: &Chart) -> f32 {
    match bars(chart) {
        0 => HEIGHT,
        n => 150.0 + BAR * n.min(1000) as f32,
    }
}

fn draw(part: &Part, chart: &Chart) -> Drawn {
    let bars = bars(chart) > 0;
    // `beside` is the width of the label and numbers of the vertical axis.
    let (left, beside) = if bars { (28.0, 0.0) } else { (14.0, 74.0) };
    let width = WIDTH - left - beside - RIGHT;
    let (x, mut y) = (left + beside, 25.0);
    text(part, &TITLE.fit(&chart.title, width), (x, y), TITLE)?;
    if !chart.note.is_empty() {
        y += ROW;
        text(part, &NOTE.fit(&chart.note, width), (x, y), NOTE)?;
    }
    y = legend(part, chart, x, y)?;
    let (across, upwards) = scales(chart, bars, width);
    let mut label = chart.x.label.clone();
    if across.compressed() {
        label += " (exponents beyond 6 are compressed)";
    }
    let mut plot = ChartBuilder::on(part)
        .margin_top(units(y + 21.0))
        .margin_right(units(RIGHT))
        .margin_bottom(units(14.0))
        .margin_left(units(left))
        .x_label_area_size(units(52.0))
        .y_label_area_size(units(beside))
        .build_cartesian_2d(across, upwards)?;
    let axis = Color::Ink.stroke_width(units(1.2) as u32);
    let mut mesh = plot.configure_mesh();
    mesh.x_labels(9).y_labels(8).x_desc(label).y_desc(&chart.y.label);
    mesh.label_style(font(TICK)).axis_desc_style(font(AXIS)).axis_style(axis);
    mesh.bold_line_style(Color::Grid.stroke_width(units(1.0) as u32));
    mesh.light_line_style(Color::Grid.mix(0.6).stroke_width(units(0.6) as u32))
        .set_all_tick_mark_size(units(5.0));
    if bars {
        mesh.disable_y_mesh().disable_y_axis();
    }
    mesh.draw()?;
    if bars {
        let ends = plot.y_range();
        plot.draw_series(once(PathElement::new(vec![(0.0, ends.start), (0.0, ends.end)], axis)))?;
    }
    for series in &chart.series {
        draw_series(&mut plot, series)?;
    }
    names(part, &plot, chart)
}

/// Draws a text from its left end, vertically centred at y.
fn text(part: &Part, text: &str, (x, y): (f32, f32), style: Style) -> Drawn {
    Ok(part.draw_text(
        text,
        &font(style).pos(Pos::new(HPos::Left, VPos::Center)),
        (units(x), units(y)),
    )?)
}

/// Draws the named series in rows; returns the position of the last row.
fn legend(part: &Part, chart: &Chart, left: f32, above: f32) -> Drawn<f32> {
    let (mut x, mut y) = (left, above);
    for series in chart.series.iter().filter(|s| !s.name.is_empty()) {
        let name = LEGEND.fit(&series.name, WIDTH - RIGHT - left - 30.0);
        let width = 30.0 + LEGEND.width(&name) + 24.0;
        if y == above || x + width > WIDTH - RIGHT + 24.0 {
            (x, y) = (left, y + ROW);
        }
        let at = |dx: f32, dy: f32| (units(x + dx), units(y + dy));
        match series.mark {
            Mark::Bar => part.draw(&Rectangle::new(
                [at(0.0, -5.0), at(22.0, 5.0)],
                Color::Data(series.color).filled(),
            ))?,
            mark => {
                let point = matches!(mark, Mark::Filled(_) | Mark::Open(_));
                let sample =
                    if point { vec![at(11.0, 0.0)] } else { vec![at(0.0, 0.0), at(24.0, 0.0)] };
                elements(series, sample).iter().try_for_each(|element| part.draw(element))?;
            }
        }
        text(part, &name, (x + 30.0, y), LEGEND)?;
        x += width;
    }
    Ok(y)
}

fn scales(chart: &Chart, bars: bool, width: f32) -> (Scale, Scale) {
    let all = || chart.series.iter();
    let xs = || {
        all().flat_map(|s| {
            s.points.iter().map(|p| p.0).chain(s.spread.iter().flat_map(|s| [s.x.0, s.x.1]))
        })
    };
    let ys = || {
        all().flat_map(|s| {
            s.points.iter().map(|p| p.1).chain(s.spread.iter().flat_map(|s| [s.y.0, s.y.1]))
        })
    };
    if !bars {
        return (Scale::new(xs(), &chart.x, 0.04), Scale::new(ys(), &chart.y, 0.06));
    }
    // Room after the longest bar for the longest label.
    let text = all().flat_map(|s| &s.labels).map(|text| LABEL.width(text)).fold(0.0, f32::max);
    let (low, high) = (xs().fold(0.0, f64::min), xs().fold(0.0, f64::max));
    let share = f64::from((text + 20.0) / width).min(0.7);
    let room = (high - low).max(0.1) / (1.0 - share);
    let upwards = Scale::new(ys().flat_map(|y| [y - 0.6, y + 0.6]), &chart.y, 0.0);
    (Scale::new([low, low + room].into_iter(), &chart.x, 0.0), upwards)
}

fn draw_series(plot: &mut Plot, series: &Series) -> Drawn {
    let color = Color::Data(series.color);
    if series.mark == Mark::Bar {
        let bar =
            |&(x, y): &(f64, f64)| Rectangle::new([(0.0, y - 0.36), (x, y + 0.36)], color.filled());
        plot.draw_series(series.points.iter().map(bar))?;
        let style = font(LABEL).pos(Pos::new(HPos::Left, VPos::Center));
        let behind = |((x, y), text): (&(f64, f64), &String)| {
            EmptyElement::at((x.max(0.0), *y))
                + Text::new(text.clone(), (units(7.0), 0), style.clone())
        };
        plot.draw_series(series.points.iter().zip(&series.labels).map(behind))?;
        return Ok(());
    }
    let (style, width) = (color.stroke_width(units(1.3) as u32), units(5.0) as u32);
    let spread = || series.points.iter().zip(&series.spread);
    let across = spread().filter(|(_, s)| s.x.0 < s.x.1);
    plot.draw_series(
        across.map(|(p, s)| ErrorBar::new_horizontal(p.1, s.x.0, p.0, s.x.1, style, width)),
    )?;
    let upwards = spread().filter(|(_, s)| s.y.0 < s.y.1);
    plot.draw_series(
        upwards.map(|(p, s)| ErrorBar::new_vertical(p.0, s.y.0, p.1, s.y.1, style, width)),
    )?;
    plot.draw_series(elements(series, series.points.clone()))?;
    Ok(())
}

/// The elements that a series draws at points.
fn elements<C: Clone + 'static>(series: &Series, points: Vec<C>) -> Vec<With<C>> {
    /// Dash patterns, so that lines differ in grey as well.
    const DASHES: [&[f32]; 8] = [
        &[],
        &[8.0, 4.0],
        &[2.5, 3.0],
        &[10.0, 3.0, 2.5, 3.0],
        &[14.0, 4.0],
        &[5.0, 2.0],
        &[10.0, 3.0, 2.5, 3.0, 2.5, 3.0],
        &[1.5, 5.0],
    ];
    let color = Color::Data(series.color);
    let width = |width: f32| units(width) as u32;
    let line = |points, opacity, pixels, dash: &'static [f32]| {
        let line = LineSeries::new(points, color.mix(opacity).stroke_width(width(pixels)));
        line.map(|line| With(Pen { dash, ..Pen::default() }, line)).collect()
    };
    let each = |points: Vec<C>, marker: crate::marker::Marker, fill: Color, edge| {
        let title = |i: usize| series.titles.get(i).cloned().unwrap_or_default();
        let element = |(i, at): (usize, C)| {
            With(
                Pen { title: title(i), ..Pen::default() },
                marker.element(at, POINT, fill.filled(), edge),
            )
        };
        points.into_iter().enumerate().map(element).collect()
    };
    match series.mark {
        Mark::Line => line(points, 1.0, 2.0, &[]),
        Mark::Dashed => line(points, 1.0, 1.8, DASHES[series.color % DASHES.len()]),
        Mark::Thin => line(points, 0.5, 1.0, &[]),
        Mark::Filled(marker) => each(points, marker, color, Color::Paper.stroke_width(width(0.9))),
        Mark::Open(marker) => each(points, marker, Color::Paper, color.stroke_width(width(1.5))),
        Mark::Band => vec![With(Pen::default(), Polygon::new(points, color.mix(0.12)).into_dyn())],
        Mark::Bar => Vec::new(),
    }
}

/// Draws the labels of series and points beside them.
fn names(part: &Part, plot: &Plot, chart: &Chart) -> Drawn {
    // Positions are those in the whole figure, as plotters gives them.
    let (across, upwards) = plot.plotting_area().get_pixel_range();
    let ((left, top), (right, bottom)) =
        (pixels((across.start, upwards.start)), pixels((across.end, upwards.end)));
    let mut labels = Labels::new(Area(left + 3.0, top, right + 12.0, bottom - 2.0));
    let at = |x, y| pixels(plot.backend_coord(&(x, y)));
    let all = |series: &Series| -> Vec<(f32, f32)> {
        series.points.iter().map(|p| at(p.0, p.1)).collect()
    };
    for series in &chart.series {
        for ((x, y), spread) in series.points.iter().zip(&series.spread) {
            labels.avoid_line(at(spread.x.0, *y), at(spread.x.1, *y));
            labels.avoid_line(at(*x, spread.y.0), at(*x, spread.y.1));
        }
        match series.mark {
            Mark::Bar | Mark::Band => {}
            Mark::Filled(_) | Mark::Open(_) => {
                all(series).into_iter().for_each(|p| labels.avoid(p, POINT + 1.0))
            }
            _ => all(series).windows(2).for_each(|ends| labels.avoid_line(ends[0], ends[1])),
        }
    }
    let (_, base) = part.get_base_pixel();
    let mut put = |text: &str, points: &[(f32, f32)], style: Style| -> Drawn {
        let text = style.fit(text, 0.4 * WIDTH);
        let Some(placed) = labels.place(&text, points, style) else { return Ok(()) };
        let local = |(x, y): (f32, f32)| (units(x), units(y) - base);
        if let Some(ends) = placed.leader {
            let line = style.color.mix(0.6).stroke_width(units(0.8) as u32);
            part.draw(&PathElement::new(ends.map(local).to_vec(), line))?;
        }
        let style_ = font(style).pos(Pos::new(HPos::Left, VPos::Bottom));
        Ok(part.draw_text(&text, &style_, local((placed.at.0, placed.at.1 + style.below())))?)
    };
    for series in chart.series.iter().filter(|s| !s.label.is_empty() && !s.points.is_empty()) {
        // On a line, positions near its end come first.
        const CANDIDATES: usize = 14;
        let step = series.points.len().div_ceil(CANDIDATES);
        let points: Vec<(f32, f32)> = all(series).into_iter().rev().step_by(step).collect();
        put(&series.label, &points, LABEL.bold().color(Color::Data(series.color)))?;
    }
    for series in chart.series.iter().filter(|s| s.mark != Mark::Bar) {
        for (point, text) in
            all(series).into_iter().zip(&series.labels).filter(|(_, text)| !text.is_empty())
        {
            put(text, &[point], LABEL)?;
        }
    }
    Ok(())
}
