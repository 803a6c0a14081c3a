//! A picture as a list of shapes. Both writers, SVG and PNG, draw the same list, so they show the same.

use tiny_skia::{Path, PathBuilder, Rect};

use super::font;

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

/// Okabe and Ito's palette, which colour-blind readers can tell apart, in an order whose neighbours differ in lightness.
const PALETTE: [u32; 8] = [0x0072b2, 0xd55e00, 0x009e73, 0xcc79a7, 0x56b4e9, 0xe69f00, 0x7a5195, 0x5a5a5a];

impl Color {
    /// Red, green and blue on white paper.
    pub fn rgb(self) -> u32 {
        match self {
            Self::Paper => 0xffffff,
            Self::Ink => 0x222222,
            Self::Muted => 0x6b6b6b,
            Self::Grid => 0xe4e4e4,
            Self::Data(i) => PALETTE[i % COLORS],
        }
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

/// A line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stroke {
    /// Its colour.
    pub paint: Paint,
    /// Its width in pixels.
    pub width: f32,
    /// Lengths on and off in turn; empty for a line without gaps.
    pub dash: &'static [f32],
}

impl Stroke {
    /// A line without gaps.
    pub fn new(color: Color, width: f32) -> Self {
        Self { paint: color.into(), width, dash: &[] }
    }
}

/// Where a text is tied to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// It is centred there.
    Middle,
    /// It ends there.
    End,
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

    /// The width of a text, in pixels.
    pub fn width(self, text: &str) -> f32 {
        font::width(text, self)
    }
}

/// One shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An outline.
    Shape {
        /// In pixels from the upper left corner.
        path: Path,
        /// Inside.
        fill: Option<Paint>,
        /// Along the outline.
        stroke: Option<Stroke>,
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

    /// A line through points.
    pub fn line(&mut self, points: &[(f32, f32)], stroke: Stroke) {
        self.shape(outline(points, false), None, Some(stroke), "");
    }

    /// A rectangle.
    pub fn rectangle(&mut self, [x, y, width, height]: [f32; 4], fill: Option<Paint>, stroke: Option<Stroke>) {
        self.shape(Rect::from_xywh(x, y, width, height).map(PathBuilder::from_rect), fill, stroke, "");
    }

    /// An outline, if it is one.
    pub fn shape(&mut self, path: Option<Path>, fill: Option<Paint>, stroke: Option<Stroke>, title: &str) {
        if let Some(path) = path {
            self.items.push(Item::Shape { path, fill, stroke, title: title.into() });
        }
    }

    /// A text whose base line is at `y`.
    pub fn text(&mut self, text: &str, (x, y): (f32, f32), anchor: Anchor, style: Style) {
        let x = x - shift(text, anchor, style);
        self.items.push(Item::Text { text: text.into(), x, y, style, upwards: false });
    }

    /// A text that runs upwards, its base line at `x`.
    pub fn text_upwards(&mut self, text: &str, (x, y): (f32, f32), anchor: Anchor, style: Style) {
        let y = y + shift(text, anchor, style);
        self.items.push(Item::Text { text: text.into(), x, y, style, upwards: true });
    }
}

fn shift(text: &str, anchor: Anchor, style: Style) -> f32 {
    match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => style.width(text) / 2.0,
        Anchor::End => style.width(text),
    }
}

/// The outline through points; none without two of them.
pub fn outline(points: &[(f32, f32)], closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        if i == 0 { builder.move_to(*x, *y) } else { builder.line_to(*x, *y) }
    }
    if closed {
        builder.close();
    }
    builder.finish()
}
