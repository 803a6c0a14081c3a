//! A figure as a list of shapes. Both writers, SVG and PNG, draw the same list, so they show the
//! same.

use plotters::style::Color as _;
use plotters_backend::BackendColor;
use tiny_skia::{Path, PathBuilder, Rect};

/// A colour by its role; the writers choose the shade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// The background.
    Paper,
    /// Text and axes.
    Ink,
    /// Secondary text.
    Muted,
    /// Grid lines.
    Grid,
    /// Data: a number in the palette, which repeats.
    Data(usize),
}

/// The number of colours for data.
pub const COLORS: usize = PALETTE.len();

/// The number of the grey among the colours for data, for what belongs to no series.
pub const GREY: usize = COLORS - 1;

/// Colours close to Okabe and Ito's palette, which colour-blind readers can distinguish, in an
/// order whose neighbours differ in lightness.
const PALETTE: [u32; 8] =
    [0x0072b2, 0xd55e00, 0x009e73, 0xcc79a7, 0x56b4e9, 0xe69f00, 0x7a5195, 0x5a5a5a];

impl Color {
    /// Red, green and blue on white paper.
    pub fn hex(self) -> u32 {
        match self {
            Self::Paper => 0xffffff,
            Self::Ink => 0x222222,
            Self::Muted => 0x6b6b6b,
            Self::Grid => 0xe4e4e4,
            Self::Data(i) => PALETTE[i % COLORS],
        }
    }

    /// All colours.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Paper, Self::Ink, Self::Muted, Self::Grid]
            .into_iter()
            .chain((0..COLORS).map(Self::Data))
    }

    /// The colour with these values on white paper; ink if there is none.
    pub fn of(rgb: (u8, u8, u8)) -> Self {
        Self::all().find(|color| color.rgb() == rgb).unwrap_or(Self::Ink)
    }

    /// Its variable in a style sheet.
    pub fn variable(self) -> String {
        match self {
            Self::Paper => "--paper".into(),
            Self::Ink => "--ink".into(),
            Self::Muted => "--muted".into(),
            Self::Grid => "--grid".into(),
            Self::Data(i) => format!("--data{}", i % COLORS),
        }
    }
}

impl plotters::style::Color for Color {
    fn to_backend_color(&self) -> BackendColor {
        let [_, r, g, b] = self.hex().to_be_bytes();
        BackendColor { alpha: 1.0, rgb: (r, g, b) }
    }
}

/// A colour and its opacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paint {
    /// The colour.
    pub color: Color,
    /// From 0 (transparent) to 1.
    pub opacity: f32,
}

impl From<Color> for Paint {
    fn from(color: Color) -> Self {
        Self { color, opacity: 1.0 }
    }
}

/// The style of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Its width in pixels.
    pub width: f32,
    /// Dash pattern: lengths on and off in turn, in pixels; empty for a solid line.
    pub dash: &'static [f32],
}

/// The style of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Font size in pixels.
    pub size: f32,
    /// Whether it is bold.
    pub bold: bool,
    /// Its colour.
    pub color: Color,
}

impl Style {
    /// Plain text in ink.
    pub const fn new(size: f32) -> Self {
        Self { size, bold: false, color: Color::Ink }
    }

    /// The same in another colour.
    pub const fn color(self, color: Color) -> Self {
        Self { color, ..self }
    }

    /// The same in bold.
    pub const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// How far letters extend above the baseline, in pixels.
    pub fn above(self) -> f32 {
        0.74 * self.size
    }

    /// How far letters extend below the baseline, in pixels.
    pub fn below(self) -> f32 {
        0.22 * self.size
    }
}

/// One shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An outline.
    Shape {
        /// The outline, in pixels from the upper left corner.
        path: Path,
        /// Colour and opacity.
        paint: Paint,
        /// The line along the outline; without one, its inside is filled.
        line: Option<Line>,
        /// Tooltip; may be empty.
        title: String,
    },
    /// A text, from the left end of its baseline.
    Text {
        /// The text.
        text: String,
        /// Pixels from the left.
        x: f32,
        /// Pixels from the top.
        y: f32,
        /// Its style.
        style: Style,
        /// Whether it runs upwards.
        upwards: bool,
    },
}

/// A figure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scene {
    /// Width in pixels.
    pub width: f32,
    /// Height in pixels.
    pub height: f32,
    /// Description for screen readers.
    pub title: String,
    /// Shapes, from the back to the front.
    pub items: Vec<Item>,
}

impl Scene {
    /// An empty figure.
    pub fn new(width: f32, height: f32, title: &str) -> Self {
        Self { width, height, title: title.into(), items: Vec::new() }
    }

    /// Adds a rectangle, given by its left, top, width and height in pixels: filled, with an edge,
    /// or both.
    pub fn rectangle(
        &mut self,
        (x, y, width, height): (f32, f32, f32, f32),
        fill: Option<Color>,
        edge: Option<Color>,
    ) {
        let Some(shape) = Rect::from_xywh(x, y, width, height) else { return };
        let path = PathBuilder::from_rect(shape);
        let line = Line { width: 1.0, dash: &[] };
        for (color, line) in [(fill, None), (edge, Some(line))] {
            if let Some(color) = color {
                let (path, paint) = (path.clone(), color.into());
                self.items.push(Item::Shape { path, paint, line, title: String::new() });
            }
        }
    }

    /// Adds a thin line between two points, in pixels.
    pub fn line(&mut self, from: (f32, f32), to: (f32, f32), color: Color) {
        let mut path = PathBuilder::new();
        path.move_to(from.0, from.1);
        path.line_to(to.0, to.1);
        let Some(path) = path.finish() else { return };
        let line = Some(Line { width: 1.0, dash: &[] });
        self.items.push(Item::Shape { path, paint: color.into(), line, title: String::new() });
    }

    /// Adds a text from the left end of its baseline, in pixels.
    pub fn text(&mut self, text: &str, (x, y): (f32, f32), style: Style) {
        if !text.is_empty() {
            self.items.push(Item::Text { text: text.into(), x, y, style, upwards: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_is_known_by_its_values() {
        for color in Color::all() {
            assert_eq!(Color::of(color.rgb()), color);
        }
    }
}
