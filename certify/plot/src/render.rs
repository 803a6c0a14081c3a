//! Charts as files: SVG, PDF or PNG.

use std::path::Path;

use crate::chart::Chart;
use crate::scene::Scene;
use crate::{frame, pdf, png, svg};

/// Why charts cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chart without points.
    #[error("there is nothing to draw")]
    Empty,
    /// An unknown file extension.
    #[error("name the output .svg, .pdf or .png")]
    Format,
    /// An error of a drawing library.
    #[error("the figure cannot be drawn")]
    Drawing(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Vector graphics, with text as outlines.
    Svg,
    /// Vector graphics, with text that can be searched and copied.
    Pdf,
    /// Pixels, two per pixel of the scene.
    Png,
}

impl Format {
    /// The format that a file's extension names.
    ///
    /// # Errors
    /// [`Error::Format`] for any other extension.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match extension.to_lowercase().as_str() {
            "svg" => Ok(Self::Svg),
            "pdf" => Ok(Self::Pdf),
            "png" => Ok(Self::Png),
            _ => Err(Error::Format),
        }
    }
}

/// How charts lie in a figure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The title: of a single chart in place of its own, of several above all of them. If empty,
    /// charts have their own alone.
    pub title: String,
    /// Width and height in pixels. Without it, one chart is 960 by 560, of several each is 640 by
    /// 430, and a chart of bars is as high as its bars need.
    pub size: Option<(f32, f32)>,
}

/// The charts as one scene: as many beside one another as the page is wide.
///
/// # Errors
/// [`Error::Drawing`] if plotters fails.
pub fn scene(charts: &[Chart], page: &Page) -> Result<Scene, Error> {
    frame::scene(charts, page).map_err(|e| Error::Drawing(e.to_string().into()))
}

/// The bytes of a file with the charts, [as they lie](scene()) in a figure.
///
/// # Errors
/// [`Error::Empty`] for a chart without points, [`Error::Drawing`] if a library fails.
pub fn render(charts: &[Chart], page: &Page, format: Format) -> Result<Vec<u8>, Error> {
    if charts.is_empty() || charts.iter().any(Chart::is_empty) {
        return Err(Error::Empty);
    }
    draw(&scene(charts, page)?, format)
}

/// The bytes of a file with a scene.
///
/// # Errors
/// [`Error::Drawing`] if a library fails.
pub fn draw(scene: &Scene, format: Format) -> Result<Vec<u8>, Error> {
    match format {
        Format::Svg => Ok(svg::document(scene).into_bytes()),
        Format::Pdf => pdf::write(scene).map_err(|e| Error::Drawing(e.into())),
        Format::Png => png::write(scene).map_err(|what| Error::Drawing(what.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axis::Axis;
    use crate::chart::{Mark, Series, Spread};
    use crate::marker::Marker;
    use crate::scene::Item;

    fn chart() -> Chart {
        let points = vec![(0.0, 1.0), (1043.0, 2.0)];
        let marks = [
            Mark::Line,
            Mark::Dashed,
            Mark::Thin,
            Mark::Filled(Marker::Disc),
            Mark::Open(Marker::Diamond),
        ];
        let series = |(color, mark): (usize, Mark)| Series {
            name: "<runs> & \"more\"".into(),
            color,
            mark,
            points: points.clone(),
            labels: vec!["a".into(), "b".into()],
            titles: vec!["told".into()],
            spread: vec![Spread { x: (0.0, 5.0), y: (0.9, 1.1) }],
            ..Series::default()
        };
        let x = Axis { label: "L".into(), log10: true, ..Axis::default() };
        let series = marks.into_iter().enumerate().map(series).collect();
        Chart { title: "T".into(), x, series, ..Chart::default() }
    }

    fn written(charts: &[Chart], format: Format) -> Vec<u8> {
        render(charts, &Page::default(), format).unwrap()
    }

    #[test]
    fn all_formats_are_written_and_others_refused() {
        let text = String::from_utf8(written(&[chart()], Format::Svg)).unwrap();
        let png = written(&[chart(), chart()], Format::Png);
        for expected in [
            "aria-label=\"10¹⁰⁰⁰\"",
            "&lt;runs&gt; &amp; &quot;more&quot;",
            "stroke-dasharray",
            "<title>told",
        ] {
            assert!(text.contains(expected), "{expected}");
        }
        // Text is drawn as outlines, so that no font is needed.
        assert!(!text.contains("<text") && !text.contains("font-family"));
        let two = scene(&[chart(), chart()], &Page::default()).unwrap();
        let pixels = image::load_from_memory(&png).unwrap().to_rgb8();
        let size = |x: f32| (x * crate::png::SCALE) as u32;
        assert_eq!(pixels.dimensions(), (size(two.width), size(two.height)));
        let dark = pixels.pixels().filter(|p| p.0.iter().all(|c| *c < 90)).count();
        assert!(dark > 2000, "no text was drawn: {dark} dark pixels");
        for (name, format) in [
            ("a.svg", Format::Svg),
            ("a.b/X.SVG", Format::Svg),
            ("a.Png", Format::Png),
            ("a.PDF", Format::Pdf),
        ] {
            assert_eq!(Format::of(Path::new(name)).unwrap(), format);
        }
        for name in ["a.gif", "svg", "a."] {
            let said = Format::of(Path::new(name)).unwrap_err().to_string();
            assert!(said.contains(".svg, .pdf or .png"), "{said}");
        }
        for nothing in [&[][..], &[Chart::default()]] {
            assert!(matches!(render(nothing, &Page::default(), Format::Svg), Err(Error::Empty)));
        }
    }

    /// The texts of a scene, with their positions.
    fn texts(scene: &Scene) -> Vec<(&str, f32, f32)> {
        let text = |item| match item {
            &Item::Text { ref text, x, y, .. } => Some((text.as_str(), x, y)),
            Item::Shape { .. } => None,
        };
        scene.items.iter().filter_map(text).collect()
    }

    #[test]
    fn a_page_has_its_size_and_as_many_columns_as_it_is_wide() {
        let page = |w, h| Page { size: Some((w, h)), ..Page::default() };
        for (size, count, columns) in [
            ((500.0, 400.0), 1, 1),
            ((500.0, 1600.0), 4, 1),
            ((1280.0, 800.0), 4, 2),
            ((1500.0, 800.0), 4, 2),
            ((1500.0, 800.0), 5, 3),
            ((2000.0, 500.0), 4, 4),
        ] {
            let named = |i: usize| Chart { title: format!("chart {i}"), ..chart() };
            let charts: Vec<Chart> = (0..count).map(named).collect();
            let scene = scene(&charts, &page(size.0, size.1)).unwrap();
            assert!((scene.width - size.0).abs() < 0.1 && (scene.height - size.1).abs() < 0.1);
            let titles: Vec<_> =
                texts(&scene).into_iter().filter(|t| t.0.starts_with("chart ")).collect();
            let first = titles[0].2;
            let beside = titles.iter().filter(|t| t.2 == first).count();
            assert_eq!((titles.len(), beside), (count, columns), "{size:?}");
            for (text, x, y) in texts(&scene) {
                assert!((0.0..size.0).contains(&x) && (0.0..size.1).contains(&y), "{text}");
            }
        }
    }

    #[test]
    fn a_given_title_stands_once() {
        let page = Page { title: "given".into(), ..Page::default() };
        for (charts, own) in [(vec![chart()], 0), (vec![chart(), chart()], 2)] {
            let scene = scene(&charts, &page).unwrap();
            let count = |text| texts(&scene).iter().filter(|t| t.0 == text).count();
            assert_eq!((count("given"), count("T")), (1, own));
        }
    }

    #[test]
    fn the_legend_holds_what_is_seen() {
        let line = |name: &str, points| Series { name: name.into(), points, ..Series::default() };
        let disc = Mark::Filled(Marker::Disc);
        let chart = Chart {
            series: vec![
                line("two points", vec![(0.0, 0.0), (1.0, 1.0)]),
                line("one point", vec![(0.0, 0.0)]),
                line("no point", vec![]),
                Series { mark: disc, ..line("", vec![(0.0, 0.0)]) },
            ],
            legend: vec![("discs".into(), disc), ("squares".into(), Mark::Filled(Marker::Square))],
            ..Chart::default()
        };
        let scene = scene(&[chart], &Page::default()).unwrap();
        let has = |text| texts(&scene).iter().any(|t| t.0 == text);
        assert!(has("two points") && has("discs"));
        assert!(!has("one point") && !has("no point") && !has("squares"));
    }

    #[test]
    fn labels_stand_at_the_ends_of_lines_or_in_the_legend() {
        let series = |count: usize| -> Vec<Series> {
            let one = |i: usize| Series {
                label: format!("run {i}"),
                color: i,
                points: vec![(0.0, 0.0), (1.0, i as f64 / 100.0)],
                ..Series::default()
            };
            (0..count).map(one).collect()
        };
        for (count, at_ends) in [(1, true), (15, true), (60, false)] {
            let chart = Chart { series: series(count), ends: true, ..Chart::default() };
            let scene = scene(&[chart], &Page::default()).unwrap();
            let labels: Vec<_> =
                texts(&scene).into_iter().filter(|t| t.0.starts_with("run ")).collect();
            assert!(labels.iter().all(|t| (t.1 > 800.0) == at_ends) || !at_ends, "{labels:?}");
            assert_eq!(labels.len() == count, at_ends || count < 40, "{labels:?}");
            // The higher the end of the line, the higher the label.
            let rank = |name: &str| name.trim_start_matches("run ").parse::<usize>().unwrap();
            let mut ordered = labels.clone();
            ordered.sort_by(|a, b| a.2.total_cmp(&b.2));
            let ranks: Vec<usize> = ordered.iter().map(|t| rank(t.0)).collect();
            assert!(!at_ends || ranks.windows(2).all(|w| w[0] > w[1]), "{ranks:?}");
        }
    }

    #[test]
    fn long_texts_are_cut_and_take_no_time() {
        let long = "σ long ".repeat(20_000);
        let mut chart = chart();
        chart.title = long.clone();
        chart.note = long.clone();
        (chart.x.label, chart.y.label) = (long.clone(), long.clone());
        for series in &mut chart.series {
            (series.name, series.label) = (long.clone(), long.clone());
            series.labels = vec![long.clone(); 2];
            series.titles = vec![long.clone(); 2];
        }
        let bars = Series {
            mark: Mark::Bar,
            points: vec![(1.0, 0.0)],
            labels: vec![long.clone()],
            ..Series::default()
        };
        let bars = Chart { series: vec![bars], ..Chart::default() };
        let start = std::time::Instant::now();
        for chart in [chart.clone(), Chart { ends: true, ..chart }, bars] {
            for format in [Format::Svg, Format::Pdf, Format::Png] {
                let bytes = written(std::slice::from_ref(&chart), format);
                assert!(bytes.len() < 1_000_000, "{} bytes", bytes.len());
            }
            let scene = scene(&[chart], &Page::default()).unwrap();
            assert!(texts(&scene).iter().all(|t| t.0.chars().count() < 400));
        }
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
