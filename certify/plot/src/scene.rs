//! A picture as a list of shapes. Both writers, SVG and PNG, draw the same list, so they show the
//! same.

use plotters::style::Color as _;
use plotters_backend::BackendColor;
use tiny_skia::{Path, PathBuilder, Rect};

use crate::font;

/// What a colour is for; the writers know which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// The background.
    Paper,
    /// Text and axes.
    Ink,
    /// Text that matters less.
    Muted,
    /// Lines behind the data.
    Grid,
    /// Data: a number in the palette, which repeats.
    Data(usize),
}

/// How many colours of data there are.
pub const COLORS: usize = PALETTE.len();

/// Okabe and Ito's palette, which colour-blind readers can tell apart, in an order whose neighbours
/// differ in lightness.
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

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Paper, Self::Ink, Self::Muted, Self::Grid]
            .into_iter()
            .chain((0..COLORS).map(Self::Data))
    }

    /// The colour that is this on white paper; ink for one that is not in use.
    pub fn of(rgb: (u8, u8, u8)) -> Self {
        Self::all().find(|color| color.rgb() == rgb).unwrap_or(Self::Ink)
    }

    /// Its name where a style sheet chooses the colours.
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

/// A colour and how much of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paint {
    /// The colour.
    pub color: Color,
    /// From 0, nothing, to 1.
    pub opacity: f32,
}

impl From<Color> for Paint {
    fn from(color: Color) -> Self {
        Self { color, opacity: 1.0 }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Its width in pixels.
    pub width: f32,
    /// Lengths on and off in turn, in pixels; empty for a line without gaps.
    pub dash: &'static [f32],
}

/// A text on a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Pixels to the em.
    pub size: f32,
    /// Heavier.
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

    /// The same, heavier.
    pub const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// How far letters reach above the base line, in pixels.
    pub fn above(self) -> f32 {
        0.74 * self.size
    }

    /// How far they reach below it.
    pub fn below(self) -> f32 {
        0.22 * self.size
    }

    /// The width of a text, in pixels.
    pub fn width(self, text: &str) -> f32 {
        font::width(text, self)
    }

    /// The text, or as much of its beginning as fits into `width` pixels.
    pub fn fit(self, text: &str, width: f32) -> String {
        if self.width(text) <= width {
            return text.into();
        }
        let mut short: String = text.into();
        while short.pop().is_some() && self.width(&short) + self.width("…") > width {}
        short + "…"
    }
}

/// One shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An outline.
    Shape {
        /// In pixels from the upper left corner.
        path: Path,
        /// What it is painted with.
        paint: Paint,
        /// Along the outline; else inside of it.
        line: Option<Line>,
        /// What a pointer that rests on it is told; may be empty.
        title: String,
    },
    /// A text, from the left end of its base line.
    Text {
        /// What it says.
        text: String,
        /// Pixels from the left.
        x: f32,
        /// Pixels from the top.
        y: f32,
        /// How it looks.
        style: Style,
        /// Whether it runs upwards.
        upwards: bool,
    },
}

/// A picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scene {
    /// In pixels.
    pub width: f32,
    /// In pixels.
    pub height: f32,
    /// What it shows, in words.
    pub title: String,
    /// From the back to the front.
    pub items: Vec<Item>,
}

impl Scene {
    /// An empty picture.
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

    /// Adds a text from the left end of its base line, in pixels.
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
    fn a_colour_is_known_by_its_mixture() {
        for color in Color::all() {
            assert_eq!(Color::of(color.rgb()), color);
        }
    }
}
