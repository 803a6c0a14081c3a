//! A scene as PNG, with two pixels of the file per pixel of the scene.

use tiny_skia::{Color as Raw, FillRule, LineCap, LineJoin, Pixmap, Stroke, StrokeDash, Transform};

use crate::font;
use crate::scene::{Item, Line, Paint, Scene};

/// Pixels of the file per pixel of the scene.
pub(crate) const SCALE: f32 = 2.0;

/// The bytes of the file.
///
/// # Errors
/// In words, if the figure is too large.
pub(crate) fn write(scene: &Scene) -> Result<Vec<u8>, String> {
    let size = |x: f32| (x * SCALE) as u32;
    let (width, height) = (size(scene.width), size(scene.height));
    let mut pixels = Pixmap::new(width, height).ok_or("the figure is too large")?;
    pixels.fill(Raw::WHITE);
    let zoom = Transform::from_scale(SCALE, SCALE);
    for item in &scene.items {
        match item {
            Item::Shape { path, paint: p, line: None, .. } => {
                pixels.fill_path(path, &paint(*p), FillRule::Winding, zoom, None);
            }
            Item::Shape { path, paint: p, line: Some(Line { width, dash }), .. } => {
                let dash = StrokeDash::new(dash.to_vec(), 0.0);
                let (line_cap, line_join) = (LineCap::Butt, LineJoin::Round);
                let line = Stroke { width: *width, dash, line_cap, line_join, ..Stroke::default() };
                pixels.stroke_path(path, &paint(*p), &line, zoom, None);
            }
            Item::Text { text, x, y, style, upwards } => {
                for (glyph, at) in font::glyphs(text, style.bold) {
                    let Some(path) = font::outline(glyph, style.bold) else { continue };
                    let place = font::place(*style, (*x, *y), at, *upwards).post_concat(zoom);
                    pixels.fill_path(
                        &path,
                        &paint(style.color.into()),
                        FillRule::Winding,
                        place,
                        None,
                    );
                }
            }
        }
    }
    // The background is opaque, so every pixel is.
    let rgb: Vec<u8> =
        pixels.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    let mut png = std::io::Cursor::new(Vec::new());
    let (color, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
    image::write_buffer_with_format(&mut png, &rgb, width, height, color, format)
        .map_err(|e| e.to_string())?;
    Ok(png.into_inner())
}

fn paint(p: Paint) -> tiny_skia::Paint<'static> {
    let [_, r, g, b] = p.color.hex().to_be_bytes();
    let mut paint = tiny_skia::Paint { anti_alias: true, ..tiny_skia::Paint::default() };
    paint.set_color_rgba8(r, g, b, (p.opacity * 255.0).round() as u8);
    paint
}
