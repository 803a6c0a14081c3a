//! A chart as data, drawn as SVG or PNG.

use std::path::Path;

use lipschitz_nn::checkpoint;

pub use super::axis::Axis;
pub use super::marker::Marker;
use super::scene::Scene;
use super::{frame, png, svg};
use crate::Error;

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

/// The charts below one another as one picture.
///
/// # Errors
/// [`Error::Picture`], if plotters gives up.
pub fn scene(charts: &[Chart]) -> Result<Scene, Error> {
    frame::scene(charts).map_err(|e| Error::Picture(e.to_string()))
}

/// Writes charts below one another, as the extension of `path` says: `.svg` or `.png`.
///
/// # Errors
/// [`Error::Network`] for another extension, a chart without points, or a file that cannot be
/// written.
pub fn write(path: &Path, charts: &[Chart]) -> Result<(), Error> {
    let problem = |what: String| Error::from(lipschitz_nn::Error::file(path, what));
    if charts.is_empty() || charts.iter().any(Chart::is_empty) {
        return Err(problem("there is nothing to draw: no run has both values".into()));
    }
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => svg::document(&scene(charts)?).into_bytes(),
        Some("png") => png::write(&scene(charts)?).map_err(problem)?,
        _ => return Err(problem("name the output .svg or .png".into())),
    };
    Ok(checkpoint::write(path, &bytes)?)
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
        let dir = tempfile::tempdir().unwrap();
        let (svg, png) = (dir.path().join("a.svg"), dir.path().join("a.png"));
        write(&svg, &[chart()]).unwrap();
        write(&png, &[chart(), chart()]).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
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
        let pixels = image::open(&png).unwrap().to_rgb8();
        let size = |x: f32| (x * super::png::SCALE) as u32;
        assert_eq!(pixels.dimensions(), (size(one.width), 2 * size(one.height)));
        let dark = pixels.pixels().filter(|p| p.0.iter().all(|c| *c < 90)).count();
        assert!(dark > 2000, "no text was drawn: {dark} dark pixels");
        assert!(
            write(&dir.path().join("a.gif"), &[chart()])
                .unwrap_err()
                .to_string()
                .contains(".svg or .png")
        );
        assert!(
            write(&svg, &[Chart::default()]).unwrap_err().to_string().contains("nothing to draw")
        );
        assert!(write(&svg, &[]).unwrap_err().to_string().contains("nothing to draw"));
    }
}
