//! A chart as data, drawn as SVG or PNG with a font of its own.

use std::path::Path;
use std::sync::Once;

use lipschitz_nn::checkpoint;
use plotters::chart::SeriesLabelPosition;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::Error;

/// Axes and what is drawn between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Above the axes.
    pub title: String,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// What is drawn.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// What it measures, with its unit or norm.
    pub label: String,
    /// Whether its values are log10 of what the ticks are to say.
    pub log10: bool,
}

/// Points that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Name in the legend; without one it is not in the legend.
    pub name: String,
    /// Which colour of the palette.
    pub color: usize,
    /// How the points are drawn.
    pub mark: Mark,
    /// Horizontal and vertical; all finite.
    pub points: Vec<(f64, f64)>,
    /// A text above each point; may be empty.
    pub labels: Vec<String>,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// Joined.
    #[default]
    Line,
    /// Joined by a thin line.
    Thin,
    /// Discs.
    Disc,
    /// Rings.
    Ring,
    /// Horizontal bars from 0, each with its label behind its end; the vertical axis then only puts them in order.
    Bar,
}

// Okabe and Ito's palette, which colour-blind readers can tell apart.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(228, 228, 228);
const WIDTH: u32 = 960;
const HEIGHT: u32 = 560;

/// Writes charts below one another, as the extension of `path` says: `.svg` or `.png`.
///
/// # Errors
/// [`Error::Network`] for another extension, a chart without points, or a file that cannot be written.
pub fn write(path: &Path, charts: &[Chart]) -> Result<(), Error> {
    let problem = |what: String| Error::from(lipschitz_nn::Error::file(path, what));
    if charts.iter().any(|c| c.series.iter().all(|s| s.points.is_empty())) {
        return Err(problem("there is nothing to draw: no run has both values".into()));
    }
    embed_font();
    // Bars need room for their labels.
    let bars = |c: &Chart| c.series.iter().filter(|s| s.mark == Mark::Bar).map(|s| s.points.len()).sum::<usize>();
    let height = charts.iter().map(|c| HEIGHT.max(120 + 21 * bars(c).min(1000) as u32)).max().unwrap_or(HEIGHT);
    let size = (WIDTH, height * charts.len() as u32);
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => {
            let mut text = String::new();
            draw(&SVGBackend::with_string(&mut text, size).into_drawing_area(), charts).map_err(problem)?;
            text.into_bytes()
        }
        Some("png") => {
            let mut pixels = vec![0; (size.0 * size.1 * 3) as usize];
            draw(&BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), charts).map_err(problem)?;
            let mut png = std::io::Cursor::new(Vec::new());
            image::write_buffer_with_format(
                &mut png,
                &pixels,
                size.0,
                size.1,
                image::ExtendedColorType::Rgb8,
                image::ImageFormat::Png,
            )
            .map_err(|e| problem(e.to_string()))?;
            png.into_inner()
        }
        _ => return Err(problem("name the output .svg or .png".into())),
    };
    Ok(checkpoint::write(path, &bytes)?)
}

fn embed_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails for a damaged font alone, and the bytes are part of the program.
        let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold());
    });
}

fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, charts: &[Chart]) -> Result<(), String> {
    area.fill(&WHITE).map_err(|e| e.to_string())?;
    for (part, chart) in area.split_evenly((charts.len(), 1)).iter().zip(charts) {
        draw_one(part, chart).map_err(|e| e.to_string())?;
    }
    area.present().map_err(|e| e.to_string())
}

type Problem<B> = DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>;

fn draw_one<B: DrawingBackend>(area: &DrawingArea<B, Shift>, chart: &Chart) -> Result<(), Problem<B>> {
    let all = || chart.series.iter().flat_map(|s| &s.points);
    let bars = chart.series.iter().any(|s| s.mark == Mark::Bar);
    let (mut xs, ys) = (range(all().map(|p| p.0).chain(bars.then_some(0.0))), range(all().map(|p| p.1)));
    if bars {
        xs.end += 0.4 * (xs.end - xs.start);
    }
    let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
    let mut context = ChartBuilder::on(area)
        .margin(16)
        .margin_right(28)
        .caption(&chart.title, ("sans-serif", 21).into_font().style(FontStyle::Bold).color(&INK))
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(xs.clone(), ys.clone())?;
    let x_text = |value: &f64| tick(*value, &chart.x);
    let y_text = |value: &f64| tick(*value, &chart.y);
    let mut mesh = context.configure_mesh();
    if bars {
        mesh.disable_y_mesh().disable_y_axis().y_labels(0);
    } else {
        mesh.y_labels(7).y_label_formatter(&y_text);
    }
    mesh.light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(font(15))
        .axis_desc_style(font(17))
        .x_desc(chart.x.label.as_str())
        .y_desc(chart.y.label.as_str())
        .x_labels(8)
        .x_label_formatter(&x_text)
        .draw()?;
    for series in &chart.series {
        draw_series(&mut context, series)?;
    }
    if chart.series.iter().any(|s| !s.name.is_empty()) {
        context
            .configure_series_labels()
            .position(if bars { SeriesLabelPosition::LowerRight } else { emptiest_corner(all(), &xs, &ys) })
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .label_font(font(15))
            .margin(14)
            .draw()?;
    }
    Ok(())
}

fn draw_series<'a, B: DrawingBackend + 'a>(
    context: &mut ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    series: &Series,
) -> Result<(), Problem<B>> {
    let color = PALETTE[series.color % PALETTE.len()];
    if series.mark == Mark::Bar {
        return draw_bars(context, series, color);
    }
    let points = series.points.iter().copied();
    let style = match series.mark {
        Mark::Disc | Mark::Bar => color.filled(),
        Mark::Line | Mark::Ring => color.stroke_width(2),
        Mark::Thin => color.mix(0.55).stroke_width(1),
    };
    let lines = matches!(series.mark, Mark::Line | Mark::Thin);
    let annotation = if lines {
        context.draw_series(LineSeries::new(points, style))?
    } else {
        context.draw_series(points.clone().map(|p| Circle::new(p, 5, WHITE.filled())))?;
        context.draw_series(points.map(|p| Circle::new(p, 5, style)))?
    };
    if !series.name.is_empty() {
        annotation.label(&series.name).legend(move |(x, y)| match lines {
            true => PathElement::new(vec![(x, y), (x + 18, y)], style).into_dyn(),
            false => Circle::new((x + 9, y), 5, style).into_dyn(),
        });
    }
    let above = Pos::new(HPos::Center, VPos::Bottom);
    let text = ("sans-serif", 14).into_font().color(&INK).pos(above);
    let labels = series.points.iter().zip(&series.labels).filter(|(_, label)| !label.is_empty());
    context.draw_series(
        labels.map(|(point, label)| EmptyElement::at(*point) + Text::new(label.clone(), (0, -9), text.clone())),
    )?;
    Ok(())
}

fn draw_bars<'a, B: DrawingBackend + 'a>(
    context: &mut ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    series: &Series,
    color: RGBColor,
) -> Result<(), Problem<B>> {
    let bar = |(x, y): &(f64, f64)| Rectangle::new([(0.0, y - 0.36), (*x, y + 0.36)], color.filled());
    let annotation = context.draw_series(series.points.iter().map(bar))?;
    if !series.name.is_empty() {
        annotation
            .label(&series.name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], color.filled()));
    }
    let behind = Pos::new(HPos::Left, VPos::Center);
    let text = ("sans-serif", 13).into_font().color(&INK).pos(behind);
    context.draw_series(
        series
            .points
            .iter()
            .zip(&series.labels)
            .map(|((x, y), label)| EmptyElement::at((x.max(0.0), *y)) + Text::new(label.clone(), (6, 0), text.clone())),
    )?;
    Ok(())
}

/// The values' range with some room around it.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
    let room = if high > low { 0.09 * (high - low) } else { 0.5 };
    low - room..high + room
}

/// The corner of the axes with the fewest points, for the legend.
fn emptiest_corner<'a>(
    points: impl Iterator<Item = &'a (f64, f64)>,
    x: &std::ops::Range<f64>,
    y: &std::ops::Range<f64>,
) -> SeriesLabelPosition {
    let mut counts = [0; 4];
    for (a, b) in points {
        let right = *a > (x.start + x.end) / 2.0;
        let upper = *b > (y.start + y.end) / 2.0;
        counts[usize::from(!right) + 2 * usize::from(!upper)] += 1;
    }
    use SeriesLabelPosition::{LowerLeft, LowerRight, UpperLeft, UpperRight};
    let corners = [UpperRight, UpperLeft, LowerRight, LowerLeft];
    let best = (0..4).min_by_key(|i| counts[*i]).unwrap_or_default();
    corners[best].clone()
}

/// The text at a tick.
fn tick(value: f64, axis: &Axis) -> String {
    if !axis.log10 {
        return plain(value);
    }
    if value.abs() <= 3.0 { plain(10f64.powf(value)) } else { format!("10{}", superscript(&plain(value))) }
}

/// At most four significant digits.
fn plain(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        return format!("{value:.1e}");
    }
    let decimals = (2.0 - magnitude).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

fn superscript(text: &str) -> String {
    let raise = |c: char| match c {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' | '4'..='9' => char::from_u32(0x2070 + u32::from(c) - u32::from('0')).unwrap_or(c),
        '-' => '⁻',
        '.' => '˙',
        other => other,
    };
    text.chars().map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_read_as_numbers() {
        let (linear, log10) = (Axis::default(), Axis { log10: true, ..Axis::default() });
        assert_eq!(tick(0.25, &linear), "0.25");
        assert_eq!(tick(1500.0, &linear), "1500");
        assert_eq!(tick(0.5, &log10), "3.16");
        assert_eq!(tick(2.0, &log10), "100");
        assert_eq!(tick(-12.0, &log10), "10⁻¹²");
        assert_eq!(tick(1043.0, &log10), "10¹⁰⁴³");
    }

    #[test]
    fn both_formats_are_written_and_others_refused() {
        let dir = tempfile::tempdir().unwrap();
        let points = vec![(0.0, 1.0), (1043.0, 2.0)];
        let labels = vec!["a".into(), "b".into()];
        let marks = [Mark::Line, Mark::Thin, Mark::Disc, Mark::Ring].into_iter().enumerate();
        let series = marks
            .map(|(color, mark)| Series {
                name: "runs".into(),
                color,
                mark,
                points: points.clone(),
                labels: labels.clone(),
            })
            .collect();
        let axis = Axis { label: "L".into(), log10: true };
        let chart = Chart { title: "T".into(), x: axis, y: Axis::default(), series };
        let (svg, png) = (dir.path().join("a.svg"), dir.path().join("a.png"));
        write(&svg, std::slice::from_ref(&chart)).unwrap();
        write(&png, &[chart.clone(), chart.clone()]).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.contains("10¹⁰⁰⁰"), "{text}");
        let pixels = image::open(&png).unwrap().to_rgb8();
        assert_eq!(pixels.dimensions(), (WIDTH, 2 * HEIGHT));
        let dark = pixels.pixels().filter(|p| p.0.iter().all(|c| *c < 90)).count();
        assert!(dark > 500, "no text was drawn: {dark} dark pixels");
        assert!(write(&dir.path().join("a.gif"), &[chart]).unwrap_err().to_string().contains(".svg or .png"));
        assert!(write(&svg, &[Chart::default()]).unwrap_err().to_string().contains("nothing to draw"));
    }
}
