//! Markers, which can be distinguished without colour.

use plotters::element::{Circle, DynElement, EmptyElement, IntoDynElement, PathElement, Polygon};
use plotters::style::ShapeStyle;

use crate::canvas::{Canvas, units};

/// The shape of a marker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marker {
    /// ●
    #[default]
    Disc,
    /// ■
    Square,
    /// ▲
    Triangle,
    /// ◆
    Diamond,
    /// ▼
    Down,
}

impl Marker {
    /// Marker number `i`; they repeat.
    pub fn number(i: usize) -> Self {
        [Self::Disc, Self::Square, Self::Triangle, Self::Diamond, Self::Down][i % 5]
    }

    /// The marker at a point, with its edge on top. All have about the same area. `radius` is in
    /// pixels.
    pub fn element<C: Clone + 'static>(
        self,
        at: C,
        radius: f32,
        fill: ShapeStyle,
        edge: ShapeStyle,
    ) -> DynElement<'static, Canvas, C> {
        let corners: &[(f32, f32)] = match self {
            Self::Disc => {
                let disc = |style| Circle::new((0, 0), units(radius), style);
                return (EmptyElement::at(at) + disc(fill) + disc(edge)).into_dyn();
            }
            Self::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Self::Triangle => &[(0.0, -1.3), (1.2, 0.8), (-1.2, 0.8)],
            Self::Diamond => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            Self::Down => &[(0.0, 1.3), (1.2, -0.8), (-1.2, -0.8)],
        };
        let around = corners.iter().chain(&corners[..1]);
        let around: Vec<(i32, i32)> =
            around.map(|(x, y)| (units(radius * x), units(radius * y))).collect();
        (EmptyElement::at(at) + Polygon::new(around.clone(), fill) + PathElement::new(around, edge))
            .into_dyn()
    }
}
