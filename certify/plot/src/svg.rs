//! A scene as SVG. Each glyph is defined once, and texts refer to it.

use std::collections::BTreeSet;
use std::fmt::Write;

use tiny_skia::{Path, PathSegment};
use ttf_parser::GlyphId;

use crate::font;
use crate::scene::{Color, Item, Line, Paint, Scene};

/// The glyphs that figures use: whether bold, and number.
pub type Glyphs = BTreeSet<(bool, u16)>;

/// A standalone document.
pub fn document(scene: &Scene) -> String {
    let mut glyphs = Glyphs::new();
    let body = body(scene, &mut glyphs, &|color| format!("#{:06x}", color.hex()));
    let Scene { width, height, .. } = scene;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         {}>\n<defs>\n{}</defs>\n{body}</svg>\n",
        view(scene),
        definitions(&glyphs)
    )
}

/// A part of a page. The page's style sheet must define the [variables](Color::variable) for
/// colours, and the page must contain the [`definitions`] of the glyphs that are added to `glyphs`.
pub fn part(scene: &Scene, glyphs: &mut Glyphs) -> String {
    let body = body(scene, glyphs, &|color| format!("var({})", color.variable()));
    format!("<svg {}>\n{body}</svg>\n", view(scene))
}

/// The outlines of the glyphs, for the `<defs>` of a page.
pub fn definitions(glyphs: &Glyphs) -> String {
    let mut text = String::new();
    for &(bold, number) in glyphs {
        if let Some(path) = font::outline(GlyphId(number), bold) {
            let _ = writeln!(text, "<path id=\"{}\" d=\"{}\"/>", name(bold, number), data(&path));
        }
    }
    text
}

fn name(bold: bool, number: u16) -> String {
    format!("{}{number}", if bold { "b" } else { "g" })
}

fn view(Scene { width, height, title, .. }: &Scene) -> String {
    format!("viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\"", escape(title))
}

fn body(scene: &Scene, glyphs: &mut Glyphs, color: &dyn Fn(Color) -> String) -> String {
    let mut text = String::new();
    for item in &scene.items {
        match item {
            Item::Shape { path, paint, line, title } => {
                let look =
                    line.map_or_else(|| filled(*paint, color), |line| stroked(*paint, line, color));
                let d = data(path);
                let _ = match title.is_empty() {
                    true => writeln!(text, "<path d=\"{d}\" style=\"{look}\"/>"),
                    false => writeln!(
                        text,
                        "<path d=\"{d}\" style=\"{look}\"><title>{}</title></path>",
                        escape(title)
                    ),
                };
            }
            Item::Text { text: words, x, y, style, upwards } => {
                let place = font::place(*style, (*x, *y), 0, *upwards);
                let matrix =
                    [place.sx, place.ky, place.kx, place.sy].map(|x| format!("{x:.6}")).join(" ");
                let (place, said) =
                    (format!("{matrix} {} {}", short(*x), short(*y)), escape(words));
                let look = filled(style.color.into(), color);
                let _ = write!(
                    text,
                    "<g aria-label=\"{said}\" transform=\"matrix({place})\" style=\"{look}\">"
                );
                for (glyph, at) in font::glyphs(words, style.bold) {
                    if font::outline(glyph, style.bold).is_none() {
                        continue;
                    }
                    glyphs.insert((style.bold, glyph.0));
                    let _ =
                        write!(text, "<use href=\"#{}\" x=\"{at}\"/>", name(style.bold, glyph.0));
                }
                text.push_str("</g>\n");
            }
        }
    }
    text
}

fn filled(paint: Paint, color: &dyn Fn(Color) -> String) -> String {
    match paint.opacity {
        1.0 => format!("fill:{}", color(paint.color)),
        part => format!("fill:{};fill-opacity:{part}", color(paint.color)),
    }
}

fn stroked(paint: Paint, Line { width, dash }: Line, color: &dyn Fn(Color) -> String) -> String {
    let color = color(paint.color);
    let mut text = format!("fill:none;stroke:{color};stroke-width:{width};stroke-linejoin:round");
    if paint.opacity < 1.0 {
        let _ = write!(text, ";stroke-opacity:{}", paint.opacity);
    }
    if !dash.is_empty() {
        let _ = write!(
            text,
            ";stroke-dasharray:{}",
            dash.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
        );
    }
    text
}

/// The `d` attribute of a path.
fn data(path: &Path) -> String {
    let mut text = String::new();
    for segment in path.segments() {
        let (letter, points) = match segment {
            PathSegment::MoveTo(p) => ('M', vec![p]),
            PathSegment::LineTo(p) => ('L', vec![p]),
            PathSegment::QuadTo(a, p) => ('Q', vec![a, p]),
            PathSegment::CubicTo(a, b, p) => ('C', vec![a, b, p]),
            PathSegment::Close => ('Z', vec![]),
        };
        let points: Vec<String> =
            points.iter().map(|p| format!("{} {}", short(p.x), short(p.y))).collect();
        let _ = write!(text, "{letter}{}", points.join(" "));
    }
    text
}

/// A coordinate, to hundredths of a pixel.
fn short(x: f32) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Whether a character shows nothing of itself and can change what the others show: controls, marks
/// of direction, and what has no width.
pub fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Escapes a text for XML and HTML, inside and outside of quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML cannot hold some of these, and the others make a text look like another one.
            c if invisible(c) && !"\n\t".contains(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}
