//! Axes: where a value lies, and which values have ticks.

use std::ops::Range;

use plotters::coord::ranged1d::{
    BoldPoints, KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter,
};
use plotters::coord::types::RangedCoordf64;

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// What it measures, with its unit or norm.
    pub label: String,
    /// Whether its values are log10 of what the ticks show.
    pub log10: bool,
    /// Values that the axis must include, such as 0; may be empty.
    pub include: Vec<f64>,
    /// Whether a few values far from all others lie beyond the end of the axis, where they are
    /// marked, rather than set its end.
    pub robust: bool,
}

impl Axis {
    /// A value in words.
    pub(crate) fn text(&self, value: f64) -> String {
        match self.log10 {
            true if value.abs() < 300.0 => plain(10f64.powf(value)),
            true => power((10.0 * value).round() / 10.0),
            false => plain(value),
        }
    }
}

/// The map from values to positions, as a share of the axis.
///
/// Logarithms that span many decades are compressed beyond [`KNEE`]: 10⁰ to 10⁶ keep most of the
/// axis when there are points at 10³⁰⁰. The map is increasing and continuous everywhere.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    log10: bool,
    compressed: bool,
    gap: (f64, f64),
}

/// The number of decades on each side of 10⁰ that stay evenly spaced on a compressed axis.
const KNEE: f64 = 6.0;

/// An axis of more decades than this is compressed.
const MANY: f64 = 24.0;

/// The least distance between tick labels as a share of the axis: at least the first, and at least
/// the second times the number of characters.
const GAP: (f64, f64) = (0.045, 0.014);

impl Scale {
    /// The scale for these values and those that the axis must include, with a margin `room` at
    /// both ends, as a share of the axis.
    pub(crate) fn new(values: impl Iterator<Item = f64>, axis: &Axis, room: f64) -> Self {
        // A range beyond that of f64 has no ticks.
        let all = values.chain(axis.include.iter().copied()).map(|x| x.clamp(-1e300, 1e300));
        let (low, high) =
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let mut scale = Self {
            low,
            high,
            log10: axis.log10,
            compressed: axis.log10 && high - low > MANY,
            gap: GAP,
        };
        let (a, b) = (scale.bend(low), scale.bend(high));
        // Of ends that are next to each other in f64, no tick would lie between.
        let least = 1e-9 * a.abs().max(b.abs());
        let room = if b > a { room * (b - a) } else { 0.5 }.max(least);
        // An included value, such as 0, gets no margin.
        let end = |x: f64| axis.include.contains(&x);
        scale.low = if end(low) { low } else { scale.unbend(a - room) };
        scale.high = if end(high) && high > low { high } else { scale.unbend(b + room) };
        scale
    }

    /// The same, of a horizontal axis this many pixels long.
    pub(crate) fn across(self, length: f32) -> Self {
        let share = |pixels: f64| pixels / f64::from(length).max(1.0);
        Self { gap: (share(38.0), share(11.0)), ..self }
    }

    /// The same, of a vertical axis this many pixels long.
    pub(crate) fn upwards(self, length: f32) -> Self {
        Self { gap: (20.0 / f64::from(length).max(1.0), 0.0), ..self }
    }

    /// The share of the axis that lies below a value.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let (a, b) = (self.bend(self.low), self.bend(self.high));
        (self.bend(value) - a) / (b - a)
    }

    /// Whether the axis is compressed.
    pub(crate) fn compressed(&self) -> bool {
        self.compressed
    }

    fn bend(&self, x: f64) -> f64 {
        if !self.compressed || x.abs() <= KNEE {
            x
        } else {
            x.signum() * KNEE * (1.0 + (x.abs() / KNEE).ln())
        }
    }

    fn unbend(&self, x: f64) -> f64 {
        if !self.compressed || x.abs() <= KNEE {
            x
        } else {
            x.signum() * KNEE * (x.abs() / KNEE - 1.0).exp()
        }
    }

    /// Values with a labelled tick, at most about `count` of them, and values with a minor tick.
    fn ticks(&self, count: usize) -> (Vec<f64>, Vec<f64>) {
        let even = |low: f64, high: f64| {
            let zero = move |x: f64| if x.abs() < 1e-9 * (high - low) { 0.0 } else { x };
            RangedCoordf64::from(low..high).key_points(BoldPoints(count)).into_iter().map(zero)
        };
        let span = self.high - self.low;
        let (names, marks): (Vec<f64>, Vec<f64>) = if self.compressed {
            let names = [
                0.0, 6.0, 100.0, 1000.0, 10.0, 3.0, 1e4, 1e5, 1e6, 20.0, 50.0, 200.0, 500.0,
                2000.0, 5000.0,
            ];
            let both = |ticks: &[f64]| ticks.iter().flat_map(|x| [*x, -x]).collect();
            (both(&names), both(&[1.0, 2.0, 4.0, 5.0]))
        } else if !self.log10 {
            (even(self.low, self.high).collect(), Vec::new())
        } else if span < 1.2 && self.low > -300.0 && self.high < 300.0 {
            // Within about one decade, evenly spaced numbers.
            (
                even(10f64.powf(self.low), 10f64.powf(self.high)).map(f64::log10).collect(),
                Vec::new(),
            )
        } else {
            let mut names: Vec<f64> =
                even(self.low, self.high).filter(|x| (x - x.round()).abs() < 1e-9).collect();
            // With few decades, also numbers between powers of ten.
            let digits = |digits: &[f64]| -> Vec<f64> {
                let decades = self.low.floor() as i64..=self.high.floor() as i64;
                decades
                    .flat_map(|decade| {
                        digits.iter().map(move |digit| decade as f64 + digit.log10())
                    })
                    .collect()
            };
            if span < 3.4 && self.small() {
                names.append(&mut digits(if span < 2.2 { &[2.0, 5.0] } else { &[3.0] }));
            }
            let every = span < count as f64;
            (
                names,
                if every { digits(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]) } else { Vec::new() },
            )
        };
        let inside = |x: &f64| (-1e-9..=1.0 + 1e-9).contains(&self.at(*x));
        let (mut named, mut marked): (Vec<f64>, Vec<f64>) =
            (Vec::new(), marks.into_iter().filter(inside).collect());
        for x in names.into_iter().filter(inside) {
            // Earlier values have priority.
            let gap = self.gap.0.max(self.gap.1 * self.format_ext(&x).chars().count() as f64);
            let free = named.iter().all(|other| (self.at(x) - self.at(*other)).abs() > gap);
            if free { named.push(x) } else { marked.push(x) }
        }
        (named, marked)
    }

    /// Whether powers of ten are best written out.
    fn small(&self) -> bool {
        self.low > -4.0 && self.high < 5.0
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.at(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let (named, marked) = self.ticks(hint.bold_points());
        if hint.weight().allow_light_points() { marked } else { named }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, value: &f64) -> String {
        match self.log10 {
            false => plain(*value),
            true if self.small() => plain(10f64.powf(*value)),
            true => power(*value),
        }
    }
}

fn power(exponent: f64) -> String {
    format!("10{}", superscript(&plain(exponent)))
}

/// A number with at most four significant digits.
pub fn plain(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        return format!("{value:.1e}");
    }
    let decimals = (3.0 - magnitude).clamp(0.0, 7.0) as usize;
    let text = format!("{value:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.replace('-', "\u{2212}")
}

fn superscript(text: &str) -> String {
    let raise = |c: char| match c {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' | '4'..='9' => char::from_u32(0x2070 + u32::from(c) - u32::from('0')).unwrap_or(c),
        '-' | '\u{2212}' => '⁻',
        '.' => '˙',
        other => other,
    };
    text.chars().map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<String> {
        let mut named = scale.key_points(BoldPoints(9));
        named.sort_by(f64::total_cmp);
        named.iter().map(|x| scale.format_ext(x)).collect()
    }

    fn log10(values: &[f64]) -> Scale {
        let axis = Axis { log10: true, ..Axis::default() };
        Scale::new(values.iter().copied(), &axis, 0.05)
    }

    #[test]
    fn the_largest_numbers_have_ticks_too() {
        for values in [[-1e308, 1e308], [f64::MAX, f64::MAX], [-f64::MAX, 0.0], [1e17, 1e17 + 16.0]]
        {
            let scale = Scale::new(values.into_iter(), &Axis::default(), 0.05);
            assert!(!texts(&scale).is_empty() && scale.at(values[1]).is_finite(), "{values:?}");
        }
    }

    /// Logarithms of numbers that are none of f64.
    #[test]
    fn a_log_axis_beyond_floats_has_ticks() {
        for low in [307.9, 400.0, -400.0, -320.0] {
            let axis = Axis { log10: true, ..Axis::default() };
            let scale = Scale::new([low, low + 0.5].into_iter(), &axis, 0.05);
            assert!(!texts(&scale).is_empty(), "{low}");
        }
    }

    #[test]
    fn ticks_read_as_numbers() {
        let linear = Scale::new([0.0, 1500.0].into_iter(), &Axis::default(), 0.05);
        assert_eq!(texts(&linear), ["0", "200", "400", "600", "800", "1000", "1200", "1400"]);
        let shares = Axis { include: vec![0.0, 1.0], ..Axis::default() };
        let shares = Scale::new([0.3].into_iter(), &shares, 0.05);
        assert_eq!((shares.at(0.0), shares.at(1.0)), (0.0, 1.0));
        assert_eq!(texts(&shares), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(texts(&log10(&[0.0, 0.9])), ["1", "2", "3", "4", "5", "6", "7", "8"]);
        assert_eq!(texts(&log10(&[-1.0, 3.0])), ["0.1", "1", "10", "100", "1000"]);
        assert_eq!(
            texts(&log10(&[1.0, 8.0])),
            ["10¹", "10²", "10³", "10⁴", "10⁵", "10⁶", "10⁷", "10⁸"]
        );
        assert_eq!(texts(&log10(&[12.0, 23.0])), ["10¹²", "10¹⁴", "10¹⁶", "10¹⁸", "10²⁰", "10²²"]);
    }

    #[test]
    fn one_axis_holds_1_and_10_to_the_300() {
        let values = [0.0, 0.5, 1.0, 3.0, 12.0, 274.0, 1043.0];
        let scale = log10(&values);
        assert!(scale.compressed());
        let places: Vec<f64> = values.iter().map(|x| scale.at(*x)).collect();
        assert!(
            places.windows(2).all(|w| w[0] < w[1]) && places[0] > 0.0 && places[6] < 1.0,
            "{places:?}"
        );
        assert!(places[2] - places[0] > 0.02, "a decade is still seen: {places:?}");
        let ticks = texts(&scale);
        for text in ["10⁰", "10⁶", "10¹⁰⁰", "10¹⁰⁰⁰"] {
            assert!(ticks.iter().any(|t| t == text), "{ticks:?}");
        }
        // Continuous, and its own inverse.
        for x in [-300.0, -6.0, 0.0, 5.9, 6.0, 6.1, 1043.0] {
            assert!((scale.unbend(scale.bend(x)) - x).abs() < 1e-9 * (1.0 + f64::abs(x)));
            assert!((scale.bend(x + 1e-9) - scale.bend(x)).abs() < 2e-9);
        }
    }
}
