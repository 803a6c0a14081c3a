//! Charts as data, drawn to SVG and PNG.

mod axis;
mod canvas;
mod chart;
mod font;
mod frame;
mod labels;
mod marker;
mod png;
pub mod scene;
pub mod svg;

pub use axis::{Axis, plain};
pub use chart::{Chart, Error, Format, Mark, Series, Spread, render, scene};
pub use marker::Marker;
