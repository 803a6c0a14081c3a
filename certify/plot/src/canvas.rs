//! The plotters backend: it records shapes in a scene, which both writers then draw.

use std::convert::Infallible;

use plotters::element::{Drawable, DynElement, PointCollection};
use plotters::style::{FontDesc, FontFamily, FontStyle, FontTransform, TextStyle};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};
use tiny_skia::{Path, PathBuilder, Rect};

use crate::scene::{Color, Item, Line, Paint, Scene, Style};

/// Plotters uses integer coordinates. A pixel is ten of them, so positions and widths can lie
/// between pixels.
const UNITS: f32 = 10.0;

/// Pixels to plotters' units, rounded.
pub(crate) fn units(pixels: f32) -> i32 {
    (pixels * UNITS).round() as i32
}

/// A position in pixels.
pub(crate) fn pixels((x, y): BackendCoord) -> (f32, f32) {
    (x as f32 / UNITS, y as f32 / UNITS)
}

/// Properties of shapes that plotters does not have.
#[derive(Clone, Debug, Default)]
pub struct Pen {
    /// Tooltip; may be empty.
    pub title: String,
    /// Dash pattern: lengths on and off in turn, in pixels; empty for a solid line.
    pub dash: &'static [f32],
}

/// An element drawn with a pen.
pub struct With<C: Clone>(pub Pen, pub DynElement<'static, Canvas, C>);

impl<'a, C: Clone> PointCollection<'a, C> for &'a With<C> {
    type Point = &'a C;
    type IntoIter = &'a Vec<C>;

    fn point_iter(self) -> Self::IntoIter {
        self.1.point_iter()
    }
}

impl<C: Clone> Drawable<Canvas> for With<C> {
    fn draw<I: Iterator<Item = BackendCoord>>(
        &self,
        at: I,
        canvas: &mut Canvas,
        size: (u32, u32),
    ) -> Drawn {
        canvas.pen = self.0.clone();
        let drawn = self.1.draw(at, canvas, size);
        canvas.pen = Pen::default();
        drawn
    }
}

/// Records what is drawn.
#[derive(Default)]
pub struct Canvas {
    /// The shapes so far.
    pub scene: Scene,
    pen: Pen,
}

/// Recording a shape cannot fail.
type Drawn = Result<(), DrawingErrorKind<Infallible>>;

impl Canvas {
    /// A canvas that adds to a scene.
    pub fn new(scene: Scene) -> Self {
        Self { scene, pen: Pen::default() }
    }

    fn keep<S: BackendStyle>(&mut self, path: Option<Path>, style: &S, fill: bool) -> Drawn {
        let paint = paint(style.color());
        if let Some(path) = path.filter(|_| paint.opacity > 0.0) {
            let Pen { title, dash } = self.pen.clone();
            let line = (!fill).then_some(Line { width: style.stroke_width() as f32 / UNITS, dash });
            self.scene.items.push(Item::Shape { path, paint, line, title });
        }
        Ok(())
    }
}

fn paint(color: BackendColor) -> Paint {
    Paint { color: Color::of(color.rgb), opacity: color.alpha as f32 }
}

/// A style as plotters' text style.
pub(crate) fn font(style: Style) -> TextStyle<'static> {
    let weight = if style.bold { FontStyle::Bold } else { FontStyle::Normal };
    FontDesc::new(FontFamily::SansSerif, f64::from(style.size * UNITS), weight).color(&style.color)
}

/// A style from plotters' text style.
fn style<S: BackendTextStyle>(font: &S) -> Style {
    let (bold, color) = (matches!(font.style(), FontStyle::Bold), paint(font.color()).color);
    Style { size: font.size() as f32 / UNITS, bold, color }
}

/// The path through points; none with fewer than two.
fn outline(points: impl IntoIterator<Item = BackendCoord>, closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    let points: Vec<BackendCoord> = points.into_iter().collect();
    for (i, point) in points.iter().enumerate() {
        let (x, y) = pixels(*point);
        if i == 0 { builder.move_to(x, y) } else { builder.line_to(x, y) }
    }
    if closed || (points.len() > 2 && points.first() == points.last()) {
        builder.close();
    }
    builder.finish()
}

impl DrawingBackend for Canvas {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (units(self.scene.width) as u32, units(self.scene.height) as u32)
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Drawn {
        self.draw_rect((x, y), (x + 1, y + 1), &color, true)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Drawn {
        self.keep(outline([from, to], false), style, false)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        a: BackendCoord,
        b: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn {
        let ((x0, y0), (x1, y1)) = (pixels(a), pixels(b));
        let rect = Rect::from_ltrb(x0.min(x1), y0.min(y1), x0.max(x1), y0.max(y1));
        self.keep(rect.map(PathBuilder::from_rect), style, fill)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        self.keep(outline(path, false), style, false)
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        at: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn {
        let (x, y) = pixels(at);
        self.keep(PathBuilder::from_circle(x, y, radius as f32 / UNITS), style, fill)
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        self.keep(outline(path, true), style, true)
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, font: &S, at: BackendCoord) -> Drawn {
        let style = style(font);
        let along = match font.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -style.width(text) / 2.0,
            HPos::Right => -style.width(text),
        };
        let down = match font.anchor().v_pos {
            VPos::Top => style.above(),
            VPos::Center => style.above() / 2.0,
            VPos::Bottom => -style.below(),
        };
        let upwards = matches!(font.transform(), FontTransform::Rotate270);
        let (dx, dy) = if upwards { (down, -along) } else { (along, down) };
        let (x, y) = pixels(at);
        self.scene.items.push(Item::Text {
            text: text.into(),
            x: x + dx,
            y: y + dy,
            style,
            upwards,
        });
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        font: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let style = style(font);
        Ok((units(style.width(text)) as u32, units(style.above() + style.below()) as u32))
    }
}
