//! A chart as data, drawn as SVG or PNG.

use std::path::Path;

use crate::axis::Axis;
use crate::marker::Marker;
use crate::scene::Scene;
use crate::{frame, png, svg};

/// Why charts are not drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chart without a point.
    #[error("there is nothing to draw")]
    Empty,
    /// A file extension that is no format.
    #[error("name the output .svg or .png")]
    Format,
    /// A library that draws gave up.
    #[error("the figure cannot be drawn")]
    Drawing(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Scalable, with text as outlines.
    Svg,
    /// Pixels, two for each of the scene's.
    Png,
}

impl Format {
    /// The format that a file's extension names.
    ///
    /// # Errors
    /// [`Error::Format`] for any other extension.
    pub fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => Err(Error::Format),
        }
    }
}

/// Axes and what is drawn between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Above the axes.
    pub title: String,
    /// Below the title, smaller; may be empty.
    pub note: String,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// What is drawn, from the back to the front.
    pub series: Vec<Series>,
}

/// Points that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Name in the legend; without one it is not in the legend.
    pub name: String,
    /// Name beside the points themselves; may be empty.
    pub label: String,
    /// Which colour of the palette.
    pub color: usize,
    /// How the points are drawn.
    pub mark: Mark,
    /// Horizontal and vertical; all finite.
    pub points: Vec<(f64, f64)>,
    /// A text beside each point; may be empty.
    pub labels: Vec<String>,
    /// What a pointer that rests on a point is told; may be empty.
    pub titles: Vec<String>,
    /// From where to where a value was seen, around each point; may be empty.
    pub spread: Vec<Spread>,
}

/// Lowest and highest value, across and upwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Horizontal.
    pub x: (f64, f64),
    /// Vertical.
    pub y: (f64, f64),
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mark {
    /// Joined.
    #[default]
    Line,
    /// Joined, with gaps whose pattern goes by the number of the series' colour, so that lines
    /// differ without colour.
    Dashed,
    /// Joined by a thin, pale line.
    Thin,
    /// Filled shapes.
    Filled(Marker),
    /// Open shapes.
    Open(Marker),
    /// The area that the points go around, pale.
    Band,
    /// Horizontal bars from 0, each with its label behind its end; the vertical axis then only puts
    /// them in order.
    Bar,
}

impl Chart {
    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| s.points.is_empty())
    }
}

/// The charts below one another as one scene.
///
/// # Errors
/// [`Error::Drawing`] if plotters gives up.
pub fn scene(charts: &[Chart]) -> Result<Scene, Error> {
    frame::scene(charts).map_err(|e| Error::Drawing(e.to_string().into()))
}

/// The bytes of a file with the charts below one another.
///
/// # Errors
/// [`Error::Empty`] for a chart without points, [`Error::Drawing`] if a library gives up.
pub fn render(charts: &[Chart], format: Format) -> Result<Vec<u8>, Error> {
    if charts.is_empty() || charts.iter().any(Chart::is_empty) {
        return Err(Error::Empty);
    }
    let scene = scene(charts)?;
    match format {
        Format::Svg => Ok(svg::document(&scene).into_bytes()),
        Format::Png => png::write(&scene).map_err(|what| Error::Drawing(what.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn both_formats_are_written_and_others_refused() {
        let text = String::from_utf8(render(&[chart()], Format::Svg).unwrap()).unwrap();
        let png = render(&[chart(), chart()], Format::Png).unwrap();
        for expected in [
            "aria-label=\"10¹⁰⁰⁰\"",
            "&lt;runs&gt; &amp; &quot;more&quot;",
            "stroke-dasharray",
            "<title>told",
        ] {
            assert!(text.contains(expected), "{expected}");
        }
        // Text is outlines, so that no font is asked for.
        assert!(!text.contains("<text") && !text.contains("font-family"));
        let one = scene(&[chart()]).unwrap();
        let pixels = image::load_from_memory(&png).unwrap().to_rgb8();
        let size = |x: f32| (x * crate::png::SCALE) as u32;
        assert_eq!(pixels.dimensions(), (size(one.width), 2 * size(one.height)));
        let dark = pixels.pixels().filter(|p| p.0.iter().all(|c| *c < 90)).count();
        assert!(dark > 2000, "no text was drawn: {dark} dark pixels");
        assert_eq!(Format::of(Path::new("a.svg")).unwrap(), Format::Svg);
        let said = Format::of(Path::new("a.gif")).unwrap_err().to_string();
        assert!(said.contains(".svg or .png"), "{said}");
        for nothing in [&[][..], &[Chart::default()]] {
            assert!(matches!(render(nothing, Format::Svg), Err(Error::Empty)));
        }
    }
}
