//! A chart as data.

use crate::axis::Axis;
use crate::marker::Marker;

/// A chart: axes, and the series between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Title above the axes.
    pub title: String,
    /// Smaller text below the title; may be empty.
    pub note: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Series, from the back to the front.
    pub series: Vec<Series>,
    /// Entries of the legend, in grey, for marks that several series share. An entry is shown if
    /// there is such a mark.
    pub legend: Vec<(String, Mark)>,
    /// Whether the labels of series stand at the right, each where its line ends.
    pub ends: bool,
}

/// Points that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Name in the legend, where it stands if there is something to see; if empty, the series is
    /// not in the legend.
    pub name: String,
    /// Name beside the points; may be empty.
    pub label: String,
    /// Number of a colour in the palette.
    pub color: usize,
    /// How the points are drawn.
    pub mark: Mark,
    /// Horizontal and vertical values; all finite.
    pub points: Vec<(f64, f64)>,
    /// A text beside each point; may be empty.
    pub labels: Vec<String>,
    /// A tooltip for each point; may be empty.
    pub titles: Vec<String>,
    /// The range of values around each point; may be empty.
    pub spread: Vec<Spread>,
}

/// Lowest and highest values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Horizontal.
    pub x: (f64, f64),
    /// Vertical.
    pub y: (f64, f64),
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mark {
    /// A line.
    #[default]
    Line,
    /// A line whose dash pattern depends on the colour's number, so that lines differ without
    /// colour.
    Dashed,
    /// A thin, pale line.
    Thin,
    /// Filled markers.
    Filled(Marker),
    /// Open markers.
    Open(Marker),
    /// The pale area inside the points.
    Band,
    /// Horizontal bars from 0, each with its label after its end. The vertical axis only orders
    /// them.
    Bar,
}

impl Chart {
    /// Whether a mark is seen anywhere.
    pub(crate) fn shows(&self, mark: Mark) -> bool {
        self.series.iter().any(|series| series.mark == mark && series.is_seen())
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| s.points.is_empty())
    }
}

impl Series {
    /// Whether there is something to see of it: a line needs two points.
    pub(crate) fn is_seen(&self) -> bool {
        match self.mark {
            Mark::Line | Mark::Dashed | Mark::Thin => self.points.len() > 1,
            Mark::Band => self.points.len() > 2,
            Mark::Filled(_) | Mark::Open(_) | Mark::Bar => !self.points.is_empty(),
        }
    }
}
