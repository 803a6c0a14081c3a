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

/// The file of a face.
pub(crate) fn file(bold: bool) -> &'static [u8] {
    if bold { dejavu::sans::bold() } else { dejavu::sans::regular() }
}

/// Units of a face per em, how far it reaches above and below the baseline, and its box.
pub(crate) fn metrics(bold: bool) -> Option<(f32, [f32; 2], [f32; 4])> {
    let face = face(bold)?;
    let frame = face.global_bounding_box();
    let frame = [frame.x_min, frame.y_min, frame.x_max, frame.y_max].map(f32::from);
    let reach = [face.ascender(), face.descender()].map(f32::from);
    Some((f32::from(face.units_per_em()), reach, frame))
}

/// How far a glyph moves the text on, in units of the font.
pub(crate) fn advance(glyph: GlyphId, bold: bool) -> u16 {
    face(bold).and_then(|face| face.glyph_hor_advance(glyph)).unwrap_or_default()
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

    /// The text, or as much of its beginning as fits into `width` pixels, with an ellipsis. What
    /// lies beyond that width is not looked at, however long the text is.
    pub fn fit(self, text: &str, width: f32) -> String {
        let Some(face) = face(self.bold) else { return text.into() };
        let advance = |c| {
            let glyph = face.glyph_index(c).unwrap_or_default();
            f32::from(face.glyph_hor_advance(glyph).unwrap_or_default()) * scale(self)
        };
        let (mut end, mut cut) = (0.0, 0);
        for (at, c) in text.char_indices() {
            if end + advance('…') <= width {
                cut = at;
            }
            end += advance(c);
            if end > width {
                return format!("{}…", text[..cut].trim_end());
            }
        }
        text.into()
    }

    /// The text in rows of at most `width` pixels, broken at spaces; what does not fit into the
    /// last of `rows` is cut off.
    pub fn rows(self, text: &str, width: f32, rows: usize) -> Vec<String> {
        let mut done: Vec<String> = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let whole = self.fit(rest, width);
            if whole == rest || done.len() + 1 >= rows {
                done.push(whole);
                break;
            }
            // The last space before which everything fits; a word that is too long is cut.
            let kept = whole.trim_end_matches('…').len();
            let after = rest[kept..].starts_with(' ');
            let end = if after { Some(kept) } else { rest[..kept].rfind(' ') };
            match end {
                Some(end) if end > 0 => {
                    done.push(rest[..end].trim_end().into());
                    rest = rest[end..].trim_start();
                }
                _ => {
                    done.push(whole);
                    break;
                }
            }
        }
        done
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_it_stops_fitting() {
        let style = Style::new(13.0);
        for text in ["", "short", "a longer text that is cut somewhere", "ééé→→→σσσ"] {
            for width in [0.0, 20.0, 60.0, 1000.0] {
                let cut = style.fit(text, width);
                assert!(cut == text || cut.ends_with('…'), "{cut}");
                assert_eq!(cut == text, style.width(text) <= width, "{cut}");
                assert!(cut == text || cut == "…" || style.width(&cut) <= width, "{cut}");
                // One character more would be too many.
                let kept = cut.chars().count().saturating_sub(1);
                let more: String = text.chars().take(kept + 1).chain(['…']).collect();
                let spaces = text.chars().nth(kept) == Some(' ');
                assert!(cut == text || spaces || style.width(&more) > width, "{cut} {more}");
            }
        }
    }

    #[test]
    fn the_time_for_a_long_label_does_not_grow_with_its_square() {
        let text = "long label ".repeat(200_000);
        let start = std::time::Instant::now();
        let cut = Style::new(13.0).fit(&text, 300.0);
        let rows = Style::new(13.0).rows(&text, 300.0, 3);
        assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
        assert!(cut.len() < 60 && rows.len() == 3, "{cut} {rows:?}");
    }

    #[test]
    fn rows_hold_all_words_in_their_order() {
        let style = Style::new(13.0);
        let text = "validation loss against certified Lipschitz constant";
        let rows = style.rows(text, 150.0, 9);
        assert!(rows.len() > 1 && rows.iter().all(|row| style.width(row) <= 150.0), "{rows:?}");
        assert_eq!(rows.join(" "), text);
        assert!(style.rows(text, 150.0, 2)[1].ends_with('…'));
        assert_eq!(style.rows("", 150.0, 2), Vec::<String>::new());
    }
}
