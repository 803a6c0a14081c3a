//! DejaVu Sans as outlines: text looks the same everywhere, and a figure needs no font to be shown.

use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder, Transform};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use crate::scene::Style;

static REGULAR: LazyLock<Option<Face<'static>>> =
    LazyLock::new(|| Face::parse(dejavu::sans::regular(), 0).ok());
static BOLD: LazyLock<Option<Face<'static>>> =
    LazyLock::new(|| Face::parse(dejavu::sans::bold(), 0).ok());

/// None only for a damaged font, and the bytes are part of the program.
fn face(bold: bool) -> Option<&'static Face<'static>> {
    if bold { BOLD.as_ref() } else { REGULAR.as_ref() }
}

/// Pixels per unit of the font.
pub(crate) fn scale(style: Style) -> f32 {
    face(style.bold).map_or(0.0, |face| style.size / f32::from(face.units_per_em()))
}

/// The glyphs of a text and where each begins, in units of the font. Characters that the font lacks
/// become its placeholder glyph.
pub(crate) fn glyphs(text: &str, bold: bool) -> Vec<(GlyphId, u32)> {
    let Some(face) = face(bold) else { return Vec::new() };
    let mut x = 0;
    let mut place = |c: char| {
        let glyph = face.glyph_index(c).unwrap_or_default();
        let at = x;
        x += u32::from(face.glyph_hor_advance(glyph).unwrap_or_default());
        (glyph, at)
    };
    text.chars().map(&mut place).collect()
}

impl Style {
    /// The width of a text, in pixels.
    pub fn width(self, text: &str) -> f32 {
        let Some(face) = face(self.bold) else { return 0.0 };
        let end = glyphs(text, self.bold).last().map_or(0, |(glyph, at)| {
            at + u32::from(face.glyph_hor_advance(*glyph).unwrap_or_default())
        });
        end as f32 * scale(self)
    }

    /// The text, or as much of its beginning as fits into `width` pixels, with an ellipsis.
    pub fn fit(self, text: &str, width: f32) -> String {
        if self.width(text) <= width {
            return text.into();
        }
        let mut short: String = text.into();
        while short.pop().is_some() && self.width(&short) + self.width("…") > width {}
        short + "…"
    }
}

/// The outline of a glyph in units of the font, upwards; none for a space.
pub(crate) fn outline(glyph: GlyphId, bold: bool) -> Option<Path> {
    let mut pen = Pen(PathBuilder::new());
    face(bold)?.outline_glyph(glyph, &mut pen)?;
    pen.0.finish()
}

/// The transform from units of the font to pixels, for a glyph that begins `at` units along a text
/// from (`x`, `y`).
pub(crate) fn place(style: Style, (x, y): (f32, f32), at: u32, upwards: bool) -> Transform {
    let s = scale(style);
    let along = at as f32 * s;
    if upwards {
        // The text runs upwards, and the font's up direction is left.
        Transform::from_row(0.0, -s, -s, 0.0, x, y - along)
    } else {
        Transform::from_row(s, 0.0, 0.0, -s, x + along, y)
    }
}

struct Pen(PathBuilder);

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.0.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.0.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.0.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.0.close();
    }
}
