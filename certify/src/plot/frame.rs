//! Draws charts: title, legend, axes, series, texts beside points.

use super::axis::Scale;
use super::chart::{Chart, Mark, Marker, Series};
use super::labels::{Area, Labels};
use super::scene::{Anchor, Color, Paint, Scene, Stroke, Style, outline};

const WIDTH: f32 = 960.0;
const HEIGHT: f32 = 560.0;
/// Height of a bar with its gap.
const BAR: f32 = 21.0;

const TITLE: Style = Style::new(19.0).bold();
const NOTE: Style = Style::new(13.5).color(Color::Muted);
const AXIS: Style = Style::new(16.0);
const TICK: Style = Style::new(14.0);
const LEGEND: Style = Style::new(14.0);
const LABEL: Style = Style::new(13.0);

/// Radius of a point.
const POINT: f32 = 4.6;

/// The charts below one another.
pub fn scene(charts: &[Chart]) -> Scene {
    let heights: Vec<f32> = charts.iter().map(height).collect();
    let title = charts.iter().map(|c| c.title.as_str()).collect::<Vec<_>>().join("; ");
    let mut scene = Scene::new(WIDTH, heights.iter().sum(), &title);
    scene.rectangle([0.0, 0.0, scene.width, scene.height], Some(Color::Paper.into()), None);
    let mut top = 0.0;
    for (chart, height) in charts.iter().zip(heights) {
        draw(&mut scene, chart, top, height);
        top += height;
    }
    scene
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

/// The part of a picture between the axes, and what lies where in it.
struct Frame {
    area: Area,
    x: Scale,
    y: Scale,
}

impl Frame {
    fn x(&self, value: f64) -> f32 {
        self.area.0 + self.x.at(value) as f32 * (self.area.2 - self.area.0)
    }

    fn y(&self, value: f64) -> f32 {
        self.area.3 - self.y.at(value) as f32 * (self.area.3 - self.area.1)
    }

    fn at(&self, point: (f64, f64)) -> (f32, f32) {
        (self.x(point.0), self.y(point.1))
    }
}

fn draw(scene: &mut Scene, chart: &Chart, top: f32, height: f32) {
    let bars = bars(chart) > 0;
    let mut line = top + 32.0;
    let (left, right) = (if bars { 28.0 } else { 88.0 }, WIDTH - 28.0);
    scene.text(&fit(&chart.title, right - left, TITLE), (left, line), Anchor::Start, TITLE);
    if !chart.note.is_empty() {
        line += 22.0;
        scene.text(&fit(&chart.note, right - left, NOTE), (left, line), Anchor::Start, NOTE);
    }
    line = legend(scene, chart, left, line + 12.0, right);
    let area = Area(left, line + 12.0, right, top + height - 66.0);
    let frame = Frame { area, x: horizontal(chart, bars, area.2 - area.0), y: vertical(chart, bars) };
    axes(scene, chart, &frame, bars);
    let mut labels = Labels::new(Area(area.0 + 3.0, area.1, area.2 + 12.0, area.3 - 2.0));
    for series in &chart.series {
        series_marks(scene, &frame, series);
        obstacles(&mut labels, &frame, series);
    }
    for series in &chart.series {
        name_of(scene, &mut labels, &frame, series);
    }
    for series in chart.series.iter().filter(|s| s.mark != Mark::Bar) {
        for (point, text) in series.points.iter().zip(&series.labels).filter(|(_, text)| !text.is_empty()) {
            put(scene, &mut labels, &fit(text, 0.4 * WIDTH, LABEL), &[frame.at(*point)], LABEL);
        }
    }
}

/// The text, or as much of its beginning as there is room for.
fn fit(text: &str, width: f32, style: Style) -> String {
    if style.width(text) <= width {
        return text.into();
    }
    let mut short: String = text.into();
    while short.pop().is_some() && style.width(&short) + style.width("…") > width {}
    short + "…"
}

fn horizontal(chart: &Chart, bars: bool, width: f32) -> Scale {
    let xs = || {
        let spread = |s: &Series| s.spread.iter().flat_map(|s| [s.x.0, s.x.1]).collect::<Vec<_>>();
        chart.series.iter().flat_map(move |s| s.points.iter().map(|p| p.0).chain(spread(s)))
    };
    if !bars {
        return Scale::new(xs(), &chart.x, 0.04);
    }
    // Room behind the longest bar for the longest text.
    let text = chart.series.iter().flat_map(|s| &s.labels).map(|text| LABEL.width(text)).fold(0.0, f32::max);
    let high = xs().fold(0.0, f64::max);
    let low = xs().fold(0.0, f64::min);
    let share = f64::from((text + 20.0) / width).min(0.7);
    let room = (high - low).max(0.1) / (1.0 - share);
    Scale::new([low, low + room].into_iter(), &chart.x, 0.0)
}

fn vertical(chart: &Chart, bars: bool) -> Scale {
    let spread = |s: &Series| s.spread.iter().flat_map(|s| [s.y.0, s.y.1]).collect::<Vec<_>>();
    let ys = chart.series.iter().flat_map(|s| s.points.iter().map(|p| p.1).chain(spread(s)));
    if !bars {
        return Scale::new(ys, &chart.y, 0.06);
    }
    let (low, high) = ys.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)));
    Scale::new([low - 0.6, high + 0.6].into_iter(), &chart.y, 0.0)
}

fn axes(scene: &mut Scene, chart: &Chart, frame: &Frame, bars: bool) {
    let Area(left, top, right, bottom) = frame.area;
    let grid = Stroke::new(Color::Grid, 1.0);
    let axis = Stroke::new(Color::Ink, 1.2);
    let mut end = f32::NEG_INFINITY;
    for tick in frame.x.ticks(9) {
        let x = frame.x(tick.value);
        if tick.text.is_empty() {
            scene.line(&[(x, bottom), (x, bottom + 3.0)], axis);
            continue;
        }
        scene.line(&[(x, top), (x, bottom)], grid);
        scene.line(&[(x, bottom), (x, bottom + 6.0)], axis);
        let half = TICK.width(&tick.text) / 2.0;
        // Crowded ones keep their mark alone.
        if x - half > end + 8.0 {
            scene.text(&tick.text, (x, bottom + 22.0), Anchor::Middle, TICK);
            end = x + half;
        }
    }
    let label = match frame.x.compressed() {
        true => format!("{} (exponents beyond 6 are compressed)", chart.x.label),
        false => chart.x.label.clone(),
    };
    scene.text(&label, ((left + right) / 2.0, bottom + 48.0), Anchor::Middle, AXIS);
    scene.line(&[(left, bottom), (right, bottom)], axis);
    if bars {
        let zero = frame.x(0.0);
        scene.line(&[(zero, top), (zero, bottom)], axis);
        return;
    }
    let mut last = f32::INFINITY;
    for tick in frame.y.ticks(7) {
        let y = frame.y(tick.value);
        if tick.text.is_empty() {
            scene.line(&[(left - 3.0, y), (left, y)], axis);
            continue;
        }
        scene.line(&[(left, y), (right, y)], grid);
        scene.line(&[(left - 6.0, y), (left, y)], axis);
        if y + 16.0 < last {
            scene.text(&tick.text, (left - 10.0, y + 5.0), Anchor::End, TICK);
            last = y;
        }
    }
    scene.line(&[(left, top), (left, bottom)], axis);
    scene.text_upwards(&chart.y.label, (left - 64.0, (top + bottom) / 2.0), Anchor::Middle, AXIS);
}

/// The named series in rows; the height below them.
fn legend(scene: &mut Scene, chart: &Chart, left: f32, top: f32, right: f32) -> f32 {
    let (mut x, mut y) = (left, top + 10.0);
    let mut any = false;
    for series in chart.series.iter().filter(|s| !s.name.is_empty()) {
        let name = fit(&series.name, right - left - 30.0, LEGEND);
        let width = 30.0 + LEGEND.width(&name) + 24.0;
        if x + width > right + 24.0 && x > left {
            (x, y) = (left, y + 22.0);
        }
        let sample = match series.mark {
            Mark::Filled(_) | Mark::Open(_) => vec![(x + 11.0, y - 5.0)],
            _ => vec![(x, y - 5.0), (x + 24.0, y - 5.0)],
        };
        match series.mark {
            Mark::Bar => scene.rectangle([x, y - 10.0, 22.0, 10.0], Some(Color::Data(series.color).into()), None),
            mark => marks(scene, mark, series.color, &sample, &[]),
        }
        scene.text(&name, (x + 30.0, y), Anchor::Start, LEGEND);
        (x, any) = (x + width, true);
    }
    if any { y + 4.0 } else { top - 8.0 }
}

fn series_marks(scene: &mut Scene, frame: &Frame, series: &Series) {
    let color = Color::Data(series.color);
    if series.mark == Mark::Bar {
        for (i, point) in series.points.iter().enumerate() {
            let (zero, (x, y)) = (frame.x(0.0), frame.at(*point));
            let half = 0.36 * BAR;
            scene.rectangle([zero.min(x), y - half, (x - zero).abs(), 2.0 * half], Some(color.into()), None);
            let text = series.labels.get(i).map_or("", String::as_str);
            scene.text(text, (x.max(zero) + 7.0, y + 4.5), Anchor::Start, LABEL);
        }
        return;
    }
    let bar = Stroke::new(color, 1.3);
    for (point, spread) in series.points.iter().zip(&series.spread) {
        let (x, y) = frame.at(*point);
        let ((x0, x1), (y0, y1)) =
            ((frame.x(spread.x.0), frame.x(spread.x.1)), (frame.y(spread.y.0), frame.y(spread.y.1)));
        if x1 - x0 > 1.0 {
            scene.line(&[(x0, y), (x1, y)], bar);
            [x0, x1].into_iter().for_each(|x| scene.line(&[(x, y - 3.0), (x, y + 3.0)], bar));
        }
        if y0 - y1 > 1.0 {
            scene.line(&[(x, y0), (x, y1)], bar);
            [y0, y1].into_iter().for_each(|y| scene.line(&[(x - 3.0, y), (x + 3.0, y)], bar));
        }
    }
    let points: Vec<(f32, f32)> = series.points.iter().map(|p| frame.at(*p)).collect();
    marks(scene, series.mark, series.color, &points, &series.titles);
}

fn marks(scene: &mut Scene, mark: Mark, color: usize, points: &[(f32, f32)], titles: &[String]) {
    /// Patterns of gaps, so that lines differ in grey as well.
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
    let ink = Color::Data(color);
    let line = |width, opacity, dash| Stroke { paint: Paint { color: ink, opacity }, width, dash };
    let each = |scene: &mut Scene, marker: Marker, fill, stroke: Option<Stroke>| {
        for (i, point) in points.iter().enumerate() {
            let title = titles.get(i).map_or("", String::as_str);
            scene.shape(marker.path(*point, POINT), fill, stroke, title);
        }
    };
    match mark {
        Mark::Line => scene.line(points, line(2.0, 1.0, &[])),
        Mark::Dashed => scene.line(points, line(1.8, 1.0, DASHES[color % DASHES.len()])),
        Mark::Thin => scene.line(points, line(1.0, 0.5, &[])),
        Mark::Filled(marker) => {
            each(scene, marker, Some(ink.into()), Some(Stroke::new(Color::Paper, 0.9)));
        }
        Mark::Open(marker) => each(scene, marker, Some(Color::Paper.into()), Some(line(1.5, 1.0, &[]))),
        Mark::Band => scene.shape(outline(points, true), Some(Paint { color: ink, opacity: 0.12 }), None, ""),
        Mark::Bar => {}
    }
}

fn obstacles(labels: &mut Labels, frame: &Frame, series: &Series) {
    let points: Vec<(f32, f32)> = series.points.iter().map(|p| frame.at(*p)).collect();
    for ((x, y), spread) in points.iter().zip(&series.spread) {
        labels.avoid_line((frame.x(spread.x.0), *y), (frame.x(spread.x.1), *y));
        labels.avoid_line((*x, frame.y(spread.y.0)), (*x, frame.y(spread.y.1)));
    }
    match series.mark {
        Mark::Bar | Mark::Band => {}
        Mark::Filled(_) | Mark::Open(_) => points.iter().for_each(|p| labels.avoid(*p, POINT + 1.0)),
        _ => points.windows(2).for_each(|ends| labels.avoid_line(ends[0], ends[1])),
    }
}

/// The series' own name, beside one of its points: of a line, rather near its end.
fn name_of(scene: &mut Scene, labels: &mut Labels, frame: &Frame, series: &Series) {
    if series.label.is_empty() || series.points.is_empty() {
        return;
    }
    const CANDIDATES: usize = 14;
    let step = series.points.len().div_ceil(CANDIDATES);
    let points: Vec<(f32, f32)> = series.points.iter().rev().step_by(step).map(|p| frame.at(*p)).collect();
    let label = fit(&series.label, 0.4 * WIDTH, LABEL.bold());
    put(scene, labels, &label, &points, LABEL.bold().color(Color::Data(series.color)));
}

fn put(scene: &mut Scene, labels: &mut Labels, text: &str, points: &[(f32, f32)], style: Style) {
    let Some(placed) = labels.place(text, points, style) else { return };
    if let Some([from, to]) = placed.leader {
        scene.line(&[from, to], Stroke { paint: Paint { color: style.color, opacity: 0.6 }, width: 0.8, dash: &[] });
    }
    scene.text(text, placed.at, Anchor::Start, style);
}
