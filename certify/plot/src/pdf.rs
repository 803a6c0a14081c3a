//! A scene as PDF. Its text is text: it can be searched and copied, in a font that the file brings,
//! of which it holds the glyphs in use.

use std::collections::BTreeMap;
use std::io::Write;

use pdf_writer::types::{CidFontType, FontFlags, LineJoinStyle, SystemInfo, UnicodeCmap};
use pdf_writer::{Content, Filter, Finish, Name, Pdf, Rect, Ref, Str, TextStr};
use subsetter::GlyphRemapper;
use tiny_skia::PathSegment;

use crate::font;
use crate::scene::{Color, Item, Line, Scene};

/// Points of the page per pixel of the scene.
const SCALE: f32 = 0.75;

const CATALOG: Ref = Ref::new(1);
const PAGES: Ref = Ref::new(2);
const PAGE: Ref = Ref::new(3);
const CONTENT: Ref = Ref::new(4);
const INFO: Ref = Ref::new(5);
/// The objects of the regular face begin here, those of the bold one after them.
const FONTS: i32 = 6;
const PER_FONT: i32 = 5;

const IDENTITY: SystemInfo =
    SystemInfo { registry: Str(b"Adobe"), ordering: Str(b"Identity"), supplement: 0 };

/// The glyphs of a face that the figure uses: their new numbers, and the characters they show.
#[derive(Default)]
struct Used {
    numbers: GlyphRemapper,
    shown: BTreeMap<u16, char>,
}

/// The bytes of the file.
///
/// # Errors
/// In words, if the font cannot be cut to the glyphs in use.
pub(crate) fn write(scene: &Scene) -> Result<Vec<u8>, String> {
    let mut fonts = [Used::default(), Used::default()];
    let mut opacities: Vec<f32> = Vec::new();
    let content = content(scene, &mut fonts, &mut opacities);

    let mut pdf = Pdf::new();
    pdf.catalog(CATALOG).pages(PAGES);
    pdf.pages(PAGES).kids([PAGE]).count(1);
    let mut info = pdf.document_info(INFO);
    info.title(TextStr(&scene.title)).producer(TextStr("lipschitz-plot"));
    info.finish();
    let mut page = pdf.page(PAGE);
    page.parent(PAGES).contents(CONTENT);
    page.media_box(Rect::new(0.0, 0.0, scene.width * SCALE, scene.height * SCALE));
    let mut resources = page.resources();
    let mut names = resources.fonts();
    for (i, _) in fonts.iter().enumerate().filter(|(_, used)| !used.shown.is_empty()) {
        names.pair(Name(face_name(i == 1)), font_object(i, 0));
    }
    names.finish();
    let mut states = resources.ext_g_states();
    for (i, opacity) in opacities.iter().enumerate() {
        let name = format!("O{i}");
        let mut state =
            states.insert(Name(name.as_bytes())).start::<pdf_writer::writers::ExtGraphicsState>();
        state.non_stroking_alpha(*opacity).stroking_alpha(*opacity);
    }
    states.finish();
    resources.finish();
    page.finish();
    let packed = pack(&content)?;
    pdf.stream(CONTENT, &packed).filter(Filter::FlateDecode);
    for (i, used) in fonts.iter().enumerate().filter(|(_, used)| !used.shown.is_empty()) {
        embed(&mut pdf, i, used)?;
    }
    Ok(pdf.finish())
}

fn face_name(bold: bool) -> &'static [u8] {
    if bold { b"B" } else { b"R" }
}

fn font_object(face: usize, object: i32) -> Ref {
    Ref::new(FONTS + PER_FONT * face as i32 + object)
}

fn pack(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).and_then(|()| packer.finish()).map_err(|e| e.to_string())
}

/// The drawing. Its coordinates are those of the scene, downwards.
fn content(scene: &Scene, fonts: &mut [Used; 2], opacities: &mut Vec<f32>) -> Vec<u8> {
    let mut content = Content::new();
    content.transform([SCALE, 0.0, 0.0, -SCALE, 0.0, scene.height * SCALE]);
    content.set_line_join(LineJoinStyle::RoundJoin);
    let rgb = |color: Color| {
        let [_, r, g, b] = color.hex().to_be_bytes();
        [r, g, b].map(|x| f32::from(x) / 255.0)
    };
    for item in &scene.items {
        match item {
            Item::Shape { path, paint, line, .. } => {
                content.save_state();
                if paint.opacity < 1.0 {
                    let known = opacities.iter().position(|x| *x == paint.opacity);
                    let number = known.unwrap_or_else(|| {
                        opacities.push(paint.opacity);
                        opacities.len() - 1
                    });
                    content.set_parameters(Name(format!("O{number}").as_bytes()));
                }
                let [r, g, b] = rgb(paint.color);
                if let Some(Line { width, dash }) = line {
                    content.set_stroke_rgb(r, g, b).set_line_width(*width);
                    content.set_dash_pattern(dash.iter().copied(), 0.0);
                    trace(&mut content, path);
                    content.stroke();
                } else {
                    content.set_fill_rgb(r, g, b);
                    trace(&mut content, path);
                    content.fill_nonzero();
                }
                content.restore_state();
            }
            Item::Text { text, x, y, style, upwards } => {
                let used = &mut fonts[usize::from(style.bold)];
                let mut codes = Vec::new();
                for (c, (glyph, _)) in text.chars().zip(font::glyphs(text, style.bold)) {
                    let number = used.numbers.remap(glyph.0);
                    used.shown.entry(number).or_insert(c);
                    codes.extend(number.to_be_bytes());
                }
                let [r, g, b] = rgb(style.color);
                content.begin_text().set_fill_rgb(r, g, b);
                content.set_font(Name(face_name(style.bold)), style.size);
                // Glyphs have their top upwards, the scene's coordinates run downwards.
                content.set_text_matrix(if *upwards {
                    [0.0, -1.0, -1.0, 0.0, *x, *y]
                } else {
                    [1.0, 0.0, 0.0, -1.0, *x, *y]
                });
                content.show(Str(&codes)).end_text();
            }
        }
    }
    content.finish().to_vec()
}

fn trace(content: &mut Content, path: &tiny_skia::Path) {
    let mut at = (0.0, 0.0);
    for segment in path.segments() {
        match segment {
            PathSegment::MoveTo(p) => {
                content.move_to(p.x, p.y);
                at = (p.x, p.y);
            }
            PathSegment::LineTo(p) => {
                content.line_to(p.x, p.y);
                at = (p.x, p.y);
            }
            // PDF has cubic curves alone.
            PathSegment::QuadTo(c, p) => {
                let third = |end: f32, control: f32| end + 2.0 / 3.0 * (control - end);
                content.cubic_to(
                    third(at.0, c.x),
                    third(at.1, c.y),
                    third(p.x, c.x),
                    third(p.y, c.y),
                    p.x,
                    p.y,
                );
                at = (p.x, p.y);
            }
            PathSegment::CubicTo(a, b, p) => {
                content.cubic_to(a.x, a.y, b.x, b.y, p.x, p.y);
                at = (p.x, p.y);
            }
            PathSegment::Close => {
                content.close_path();
            }
        }
    }
}

/// Writes a face: its glyphs in use, their widths, and the characters they stand for.
fn embed(pdf: &mut Pdf, face: usize, used: &Used) -> Result<(), String> {
    let bold = face == 1;
    let (per_em, [ascent, descent], frame) = font::metrics(bold).ok_or("the font is damaged")?;
    let unit = 1000.0 / per_em;
    let name = if bold { "AAAAAA+DejaVuSans-Bold" } else { "AAAAAA+DejaVuSans" };
    let name = Name(name.as_bytes());
    let object = |number| font_object(face, number);
    pdf.type0_font(object(0))
        .base_font(name)
        .encoding_predefined(Name(b"Identity-H"))
        .descendant_font(object(1))
        .to_unicode(object(4));
    let mut cid = pdf.cid_font(object(1));
    cid.subtype(CidFontType::Type2).base_font(name).system_info(IDENTITY);
    cid.font_descriptor(object(2)).default_width(0.0).cid_to_gid_map_predefined(Name(b"Identity"));
    let width = |glyph| f32::from(font::advance(ttf_parser::GlyphId(glyph), bold)) * unit;
    cid.widths().consecutive(0, used.numbers.remapped_gids().map(width));
    cid.finish();
    let [left, bottom, right, top] = frame.map(|x| x * unit);
    pdf.font_descriptor(object(2))
        .name(name)
        .flags(FontFlags::SYMBOLIC)
        .bbox(Rect::new(left, bottom, right, top))
        .italic_angle(0.0)
        .ascent(ascent * unit)
        .descent(descent * unit)
        .cap_height(729.0)
        .stem_v(if bold { 140.0 } else { 80.0 })
        .font_file2(object(3));
    let glyphs =
        subsetter::subset(font::file(bold), 0, &used.numbers).map_err(|e| e.to_string())?;
    let packed = pack(&glyphs)?;
    let mut file = pdf.stream(object(3), &packed);
    file.filter(Filter::FlateDecode).pair(Name(b"Length1"), glyphs.len() as i32);
    file.finish();
    let mut map = UnicodeCmap::new(Name(b"Custom"), IDENTITY);
    used.shown.iter().for_each(|(number, c)| map.pair(*number, *c));
    pdf.cmap(object(4), &map.finish());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Style;

    #[test]
    fn a_figure_is_a_whole_file_that_brings_its_font() {
        let mut scene = Scene::new(400.0, 300.0, "σ & more");
        scene.rectangle((0.0, 0.0, 400.0, 300.0), Some(Color::Paper), Some(Color::Ink));
        let plain = write(&scene).unwrap();
        scene.text("L ≤ 10⁶ (σ → ℓ2)", (20.0, 40.0), Style::new(13.0));
        scene.text("bold", (20.0, 80.0), Style::new(13.0).bold());
        let bytes = write(&scene).unwrap();
        assert_eq!(bytes, write(&scene).unwrap(), "the same figure is the same file");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("%PDF-") && text.trim_end().ends_with("%%EOF"));
        assert!(text.contains("[0 0 300 225]"), "the page");
        for has in ["DejaVuSans", "DejaVuSans-Bold", "/FontFile2", "/ToUnicode", "<2264>"] {
            assert!(text.contains(has), "{has}");
            assert!(has == "DejaVuSans" || !String::from_utf8_lossy(&plain).contains(has));
        }
        // A subset, not the font of half a megabyte.
        assert!(bytes.len() < 40_000, "{} bytes", bytes.len());
    }
}
