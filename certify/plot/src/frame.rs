//! Draws charts with plotters: where each lies, then its title, legend, axes, series, labels.

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
use crate::clip;
use crate::labels::{Area, Labels};
use crate::marker::Marker;
use crate::render::Page;
use crate::scene::{COLORS, Color, GREY, Scene, Style};

/// Below this width, texts are smaller.
const NARROW: f32 = 600.0;
/// Width and height of one chart.
const SIZE: (f32, f32) = (960.0, 560.0);
/// Width and height of one of several charts.
const SMALL: (f32, f32) = (640.0, 430.0);
/// The least width of one of several charts that lie beside one another.
const LEAST: f32 = 460.0;
/// Height of a bar with its gap, and of what is around the bars.
const BAR: f32 = 21.0;
const AROUND: f32 = 150.0;
/// Height of a row of text above the axes.
const ROW: f32 = 23.0;
/// Margin to the right of the axes.
const RIGHT: f32 = 28.0;
/// Height of a label at the end of a line.
const END: f32 = 15.0;

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

/// The charts in rows, as many beside one another as the page is wide.
///
/// # Errors
/// Plotters' own.
pub(crate) fn scene(charts: &[Chart], page: &Page) -> Drawn<Scene> {
    let charts: Vec<Chart> = charts.iter().map(clip::shown).collect();
    let (title, charts) = match &charts[..] {
        [one] if !page.title.is_empty() => {
            (String::new(), vec![Chart { title: page.title.clone(), ..one.clone() }])
        }
        _ => (page.title.clone(), charts),
    };
    let several = charts.len() > 1 && charts.iter().all(|chart| bars(chart) == 0);
    let width = page.size.map_or(if several { 2.0 * SMALL.0 } else { SIZE.0 }, |size| size.0);
    let columns = if several { ((width / LEAST) as usize).clamp(1, charts.len()) } else { 1 };
    // As many in a row as the rows need: four lie two by two, not three and one.
    let columns = charts.len().div_ceil(charts.len().div_ceil(columns).max(1)).max(1);
    let rows: Vec<&[Chart]> = charts.chunks(columns).collect();
    let heading = TITLE.rows(&title, width - 40.0, 2);
    let above = if heading.is_empty() { 0.0 } else { 14.0 + 25.0 * heading.len() as f32 };
    let own = |chart: &Chart| match bars(chart) {
        0 if several => SMALL.1,
        0 => SIZE.1,
        n => AROUND + BAR * n.min(1000) as f32,
    };
    let mut heights: Vec<f32> =
        rows.iter().map(|row| row.iter().map(own).fold(0.0, f32::max)).collect();
    if let Some((_, height)) = page.size {
        let share = (height - above) / heights.iter().sum::<f32>().max(1.0);
        heights.iter_mut().for_each(|height| *height *= share);
    }
    let said: Vec<&str> = std::iter::once(title.as_str())
        .chain(charts.iter().map(|chart| chart.title.as_str()))
        .filter(|title| !title.is_empty())
        .collect();
    let total = above + heights.iter().sum::<f32>();
    let said = LABEL.fit(&said.join("; "), 4000.0);
    let canvas = Rc::new(RefCell::new(Canvas::new(Scene::new(width, total, &said))));
    let whole = Part::from(&canvas);
    whole.fill(&Color::Paper)?;
    for (i, row) in heading.iter().enumerate() {
        text(&whole, row, (20.0, 27.0 + 25.0 * i as f32), TITLE)?;
    }
    let (mut y, cell) = (above, width / columns as f32);
    for (row, height) in rows.into_iter().zip(heights) {
        for (i, chart) in row.iter().enumerate() {
            let at = (units(cell * i as f32), units(y));
            let part = whole.clone().shrink(at, (units(cell), units(height)));
            draw(&part, chart, (cell, height))?;
        }
        y += height;
    }
    // The areas hold the canvas too.
    drop(whole);
    Ok(canvas.take().scene)
}

fn bars(chart: &Chart) -> usize {
    chart.series.iter().filter(|s| s.mark == Mark::Bar).map(|s| s.points.len()).sum()
}

fn draw(part: &Part, chart: &Chart, (width, height): (f32, f32)) -> Drawn {
    let count = bars(chart);
    let bars = count > 0;
    // `beside` is the width of the label and numbers of the vertical axis.
    let (left, beside) = if bars { (28.0, 0.0) } else { (14.0, 74.0) };
    let (x, mut y) = (left + beside, 25.0);
    let room = width - x - RIGHT;
    let title = if width < NARROW { Style { size: 16.0, ..TITLE } } else { TITLE };
    for (i, row) in title.rows(&chart.title, room, 2).iter().enumerate() {
        y += if i > 0 { ROW } else { 0.0 };
        text(part, row, (x, y), title)?;
    }
    for row in NOTE.rows(&chart.note, room, 3) {
        y += ROW;
        text(part, &row, (x, y), NOTE)?;
    }
    let inner = |y: f32| (height - y - 21.0 - 14.0 - 52.0).max(1.0);
    let (ends, column) = ends(chart, width, inner(y));
    // Labels that find no place at the ends of their lines are in the legend.
    let listed = chart.ends && ends.is_empty();
    y = legend(part, chart, listed, (x, y), (width - RIGHT, y + 0.4 * inner(y)))?;
    let (across_px, upwards_px) = (room - column, inner(y));
    let (across, upwards) = scales(chart, bars, across_px);
    let mut label = chart.x.label.clone();
    if across.compressed() {
        label += " (exponents beyond 6 are compressed)";
    }
    let mut plot = ChartBuilder::on(part)
        .margin_top(units(y + 21.0))
        .margin_right(units(RIGHT + column))
        .margin_bottom(units(14.0))
        .margin_left(units(left))
        .x_label_area_size(units(52.0))
        .y_label_area_size(units(beside))
        .build_cartesian_2d(across.across(across_px), upwards.upwards(upwards_px))?;
    let axis = Color::Ink.stroke_width(units(1.2) as u32);
    let mut mesh = plot.configure_mesh();
    mesh.x_labels(((across_px / 80.0) as usize).clamp(3, 10));
    mesh.y_labels(((upwards_px / 38.0) as usize).clamp(3, 10));
    // A long description of a short axis is smaller.
    let describe = |text: &str, length: f32| {
        let style = if AXIS.width(&LABEL.fit(text, length)) > length { LABEL } else { AXIS };
        (style.fit(text, length), style)
    };
    let (label, style) = describe(&label, across_px + 1.6 * RIGHT.min(x));
    let (label_y, style_y) = describe(&chart.y.label, upwards_px + 50.0);
    let style = if style.size < style_y.size { style } else { style_y };
    mesh.x_desc(label).y_desc(label_y).axis_desc_style(font(style));
    mesh.label_style(font(TICK)).axis_style(axis);
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
    let bar = LABEL.size.min(0.8 * upwards_px / count.max(1) as f32);
    for series in &chart.series {
        draw_series(&mut plot, series, (Style { size: bar, ..LABEL }, 0.7 * across_px))?;
    }
    name_ends(part, &plot, &ends)?;
    names(part, &plot, chart, width)
}

/// Draws a text from its left end, vertically centred at y.
fn text(part: &Part, text: &str, (x, y): (f32, f32), style: Style) -> Drawn {
    Ok(part.draw_text(
        text,
        &font(style).pos(Pos::new(HPos::Left, VPos::Center)),
        (units(x), units(y)),
    )?)
}

/// A series whose label stands where its line ends, with the rows of the label.
type End<'a> = (&'a Series, Vec<String>);

/// The labels at the ends of lines, and the width they need beside the plot; none if they do not fit
/// below one another into `height`.
fn ends(chart: &Chart, width: f32, height: f32) -> (Vec<End<'_>>, f32) {
    let labelled =
        |series: &&Series| !series.label.is_empty() && !series.points.is_empty() && chart.ends;
    let count = chart.series.iter().filter(labelled).count() as f32;
    if count == 0.0 || count * END > height {
        return (Vec::new(), 0.0);
    }
    // Long labels have two rows where there is room.
    let most = 0.3 * width;
    let rows = |series: &Series, rows| LABEL.rows(&series.label, most, rows);
    let long = chart.series.iter().filter(labelled).any(|series| rows(series, 2).len() > 1);
    let lines = if long && 2.0 * count * END <= height { 2 } else { 1 };
    let ends: Vec<End> =
        chart.series.iter().filter(labelled).map(|series| (series, rows(series, lines))).collect();
    let texts = ends.iter().flat_map(|(_, rows)| rows);
    let widest = texts.map(|text| LABEL.width(text)).fold(0.0, f32::max);
    (ends, (widest + 24.0 - RIGHT).max(0.0))
}

/// Draws the labels at the ends of lines: in the order of these ends, none on another, each with a
/// line in the colour of its series.
fn name_ends(part: &Part, plot: &Plot, ends: &[End]) -> Drawn {
    let (across, upwards) = plot.plotting_area().get_pixel_range();
    let ((_, top), (right, bottom)) =
        (pixels((across.start, upwards.start)), pixels((across.end, upwards.end)));
    let place = |(series, rows): &End| {
        let end = series.points.last()?;
        Some((pixels(plot.backend_coord(end)), Color::Data(series.color), rows.clone()))
    };
    let mut all: Vec<((f32, f32), Color, Vec<String>)> = ends.iter().filter_map(place).collect();
    all.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
    let wanted: Vec<f32> = all.iter().map(|(end, ..)| end.1).collect();
    let Some(rows) = all.iter().map(|(.., rows)| rows.len()).max() else { return Ok(()) };
    let apart = END * rows as f32;
    let (base_x, base_y) = part.get_base_pixel();
    for ((end, color, rows), y) in all.into_iter().zip(spread(&wanted, apart, top, bottom)) {
        let local = |(x, y): (f32, f32)| (units(x) - base_x, units(y) - base_y);
        let line = color.stroke_width(units(1.4) as u32);
        let joint = if (end.1 - y).abs() > 1.0 || end.0 < right - 1.0 {
            vec![(end.0 + 1.0, end.1), (right + 8.0, y), (right + 16.0, y)]
        } else {
            vec![(right + 4.0, y), (right + 16.0, y)]
        };
        part.draw(&PathElement::new(joint.into_iter().map(local).collect::<Vec<_>>(), line))?;
        let style = font(LABEL).pos(Pos::new(HPos::Left, VPos::Center));
        let first = y - END * (rows.len() - 1) as f32 / 2.0;
        for (i, row) in rows.iter().enumerate() {
            part.draw_text(row, &style, local((right + 20.0, first + END * i as f32)))?;
        }
    }
    Ok(())
}

/// Heights at least this far apart and between `top` and `bottom`, near the wanted ones, which are
/// in order.
fn spread(wanted: &[f32], apart: f32, top: f32, bottom: f32) -> Vec<f32> {
    // Labels that would overlap form a block around the mean of what they want.
    let mut blocks: Vec<(f32, usize)> = Vec::new();
    let start = |(sum, count): (f32, usize)| {
        let half = apart * (count - 1) as f32 / 2.0;
        let last = bottom - 2.0 * half;
        (sum / count as f32 - half).min(last).max(top)
    };
    for y in wanted {
        let mut block = (*y, 1);
        while let Some(before) = blocks.last().copied() {
            if start(before) + apart * before.1 as f32 <= start(block) {
                break;
            }
            blocks.pop();
            block = (before.0 + block.0, before.1 + block.1);
        }
        blocks.push(block);
    }
    let each = |block: (f32, usize)| (0..block.1).map(move |i| start(block) + apart * i as f32);
    blocks.into_iter().flat_map(each).collect()
}

/// Draws the named series, and the chart's own entries, in rows from `(left, above)` to the right
/// and the lowest position; returns the position of the last row.
fn legend(
    part: &Part,
    chart: &Chart,
    listed: bool,
    (left, above): (f32, f32),
    (right, below): (f32, f32),
) -> Drawn<f32> {
    let entry = |(name, mark): &(String, Mark)| Series {
        name: name.clone(),
        color: GREY,
        mark: *mark,
        ..Series::default()
    };
    let named = chart.series.iter().filter(|s| s.is_seen()).map(|series| Series {
        name: if listed && series.name.is_empty() { &series.label } else { &series.name }.clone(),
        color: series.color,
        mark: series.mark,
        ..Series::default()
    });
    let shared = chart.legend.iter().filter(|(_, mark)| chart.shows(*mark)).map(entry);
    let entries: Vec<Series> = named.chain(shared).filter(|s| !s.name.is_empty()).collect();
    let (mut x, mut y) = (left, above);
    for (i, series) in entries.iter().enumerate() {
        let name = LEGEND.fit(&series.name, right - left - 30.0);
        let width = 30.0 + LEGEND.width(&name) + 24.0;
        if y == above || x + width > right + 24.0 {
            if y > above && y + 2.0 * ROW > below && i + 1 < entries.len() {
                let more = format!("… and {} more", entries.len() - i);
                text(part, &more, (left, y + ROW), LEGEND.color(Color::Muted))?;
                return Ok(y + ROW);
            }
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
    let widest = |text: &String| LABEL.width(&LABEL.fit(text, 0.7 * width));
    let text = all().flat_map(|s| &s.labels).map(widest).fold(0.0, f32::max);
    let (low, high) = (xs().fold(0.0, f64::min), xs().fold(0.0, f64::max));
    let share = f64::from((text + 20.0) / width).min(0.75);
    let room = (high - low).max(0.1) / (1.0 - share);
    let upwards = Scale::new(ys().flat_map(|y| [y - 0.6, y + 0.6]), &chart.y, 0.0);
    (Scale::new([low, low + room].into_iter(), &chart.x, 0.0), upwards)
}

/// Draws a series; labels of bars have a style and a width.
fn draw_series(plot: &mut Plot, series: &Series, (label, widest): (Style, f32)) -> Drawn {
    let color = Color::Data(series.color);
    if series.mark == Mark::Bar {
        let bar =
            |&(x, y): &(f64, f64)| Rectangle::new([(0.0, y - 0.36), (x, y + 0.36)], color.filled());
        plot.draw_series(series.points.iter().map(bar))?;
        let style = font(label).pos(Pos::new(HPos::Left, VPos::Center));
        let behind = |((x, y), text): (&(f64, f64), &String)| {
            let text = label.fit(text, widest);
            EmptyElement::at((x.max(0.0), *y)) + Text::new(text, (units(7.0), 0), style.clone())
        };
        // Bars that are too thin have no labels.
        let readable = label.size > 5.0;
        let labels = series.labels.iter().filter(|_| readable);
        plot.draw_series(series.points.iter().zip(labels).map(behind))?;
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
    let each = |points: Vec<C>, marker: Marker, fill: Color, edge| {
        let title =
            |i: usize| series.titles.get(i).map_or_else(String::new, |t| LABEL.fit(t, 2000.0));
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
        Mark::Dashed => {
            line(points, 1.0, 1.8, DASHES[(series.color + series.color / COLORS) % DASHES.len()])
        }
        Mark::Thin => line(points, 0.5, 1.0, &[]),
        Mark::Filled(marker) => each(points, marker, color, Color::Paper.stroke_width(width(0.9))),
        Mark::Open(marker) => each(points, marker, Color::Paper, color.stroke_width(width(1.5))),
        Mark::Band => vec![With(Pen::default(), Polygon::new(points, color.mix(0.12)).into_dyn())],
        Mark::Bar => Vec::new(),
    }
}

/// Draws the labels of series and points beside them.
fn names(part: &Part, plot: &Plot, chart: &Chart, width: f32) -> Drawn {
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
    let (base_x, base_y) = part.get_base_pixel();
    let mut put = |text: &str, points: &[(f32, f32)], style: Style| -> Drawn {
        let text = style.fit(text, 0.45 * width);
        let Some(placed) = labels.place(&text, points, style) else { return Ok(()) };
        let local = |(x, y): (f32, f32)| (units(x) - base_x, units(y) - base_y);
        if let Some(ends) = placed.leader {
            let line = style.color.mix(0.6).stroke_width(units(0.8) as u32);
            part.draw(&PathElement::new(ends.map(local).to_vec(), line))?;
        }
        let style_ = font(style).pos(Pos::new(HPos::Left, VPos::Bottom));
        Ok(part.draw_text(&text, &style_, local((placed.at.0, placed.at.1 + style.below())))?)
    };
    let labelled = |s: &&Series| !(chart.ends || s.label.is_empty() || s.points.is_empty());
    for series in chart.series.iter().filter(labelled) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_at_ends_are_in_order_and_apart() {
        let mut state = 1u32;
        for count in [0, 1, 2, 5, 9, 20] {
            for _ in 0..50 {
                let mut next = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    100.0 + 300.0 * (state >> 8) as f32 / (1 << 24) as f32
                };
                let mut wanted: Vec<f32> = (0..count).map(|_| next()).collect();
                wanted.sort_by(f32::total_cmp);
                let placed = spread(&wanted, END, 100.0, 400.0);
                assert_eq!(placed.len(), count);
                assert!(placed.iter().all(|y| (99.9..400.1).contains(y)), "{placed:?}");
                assert!(placed.windows(2).all(|w| w[1] - w[0] > END - 0.01), "{placed:?}");
                let apart = wanted.windows(2).all(|w| w[1] - w[0] > END);
                assert!(!apart || placed == wanted, "{wanted:?} {placed:?}");
            }
        }
    }
}
