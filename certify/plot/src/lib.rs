//! Charts as data, drawn to SVG, PDF and PNG alike.
//!
//! ```
//! use lipschitz_plot::{Axis, Chart, Format, Mark, Marker, Page, Series, render};
//!
//! let points = vec![(0.0, 3.0), (1.0, 2.5), (2.0, 2.2)];
//! let line = Series { name: "loss".into(), points: points.clone(), ..Series::default() };
//! let marks = Series { mark: Mark::Filled(Marker::Disc), points, ..Series::default() };
//! let chart = Chart {
//!     title: "Loss over the constant".into(),
//!     x: Axis { label: "L".into(), log10: true, ..Axis::default() },
//!     y: Axis { label: "nats".into(), ..Axis::default() },
//!     series: vec![line, marks],
//!     ..Chart::default()
//! };
//! let svg = render(&[chart], &Page::default(), Format::Svg)?;
//! assert!(svg.starts_with(b"<svg"));
//! # Ok::<(), lipschitz_plot::Error>(())
//! ```
//!
//! A [`scene::Scene`] is a list of shapes and texts, which all writers draw; text is in an embedded
//! font, in SVG and PNG as outlines.

mod axis;
mod canvas;
mod chart;
mod clip;
mod font;
mod frame;
mod labels;
mod marker;
mod pdf;
mod png;
mod render;
pub mod scene;
pub mod svg;

pub use axis::{Axis, plain};
pub use chart::{Chart, Mark, Series, Spread};
pub use marker::Marker;
pub use render::{Error, Format, Page, draw, render, scene};
