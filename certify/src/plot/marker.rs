//! Shapes of points, which can be told apart without colour.

use tiny_skia::{Path, PathBuilder};

use super::scene::outline;

/// The shape of a point.
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
    /// Number `i`; they repeat.
    pub fn number(i: usize) -> Self {
        [Self::Disc, Self::Square, Self::Triangle, Self::Diamond, Self::Down][i % 5]
    }

    /// Its outline around a point; all have about the same area.
    pub fn path(self, (x, y): (f32, f32), radius: f32) -> Option<Path> {
        let r = radius;
        let around = |points: &[(f32, f32)]| {
            outline(&points.iter().map(|(dx, dy)| (x + r * dx, y + r * dy)).collect::<Vec<_>>(), true)
        };
        match self {
            Self::Disc => PathBuilder::from_circle(x, y, r),
            Self::Square => around(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            Self::Triangle => around(&[(0.0, -1.3), (1.2, 0.8), (-1.2, 0.8)]),
            Self::Diamond => around(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            Self::Down => around(&[(0.0, 1.3), (1.2, -0.8), (-1.2, -0.8)]),
        }
    }
}
