//! Charts as files: SVG or PNG.

use std::path::Path;

use crate::chart::Chart;
use crate::scene::Scene;
use crate::{frame, png, svg};

/// Why charts cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chart without points.
    #[error("there is nothing to draw")]
    Empty,
    /// An unknown file extension.
    #[error("name the output .svg or .png")]
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
    /// Pixels, two per pixel of the scene.
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

/// The charts below one another as one scene.
///
/// # Errors
/// [`Error::Drawing`] if plotters fails.
pub fn scene(charts: &[Chart]) -> Result<Scene, Error> {
    frame::scene(charts).map_err(|e| Error::Drawing(e.to_string().into()))
}

/// The bytes of a file with the charts below one another.
///
/// # Errors
/// [`Error::Empty`] for a chart without points, [`Error::Drawing`] if a library fails.
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
    use crate::axis::Axis;
    use crate::chart::{Mark, Series, Spread};
    use crate::marker::Marker;

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
        // Text is drawn as outlines, so that no font is needed.
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
