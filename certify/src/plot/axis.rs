//! Axes: where a value lies, and which values are named.

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// What it measures, with its unit or norm.
    pub label: String,
    /// Whether its values are log10 of what the ticks are to say.
    pub log10: bool,
    /// Values that are to be on it, such as 0; may be empty.
    pub include: Vec<f64>,
}

/// From values to a share of the axis.
///
/// Logarithms that span many decades are themselves compressed beyond [`KNEE`]: 10⁰ to 10⁶ keep most of the axis when
/// there are points at 10³⁰⁰, and order and continuity hold everywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    log10: bool,
    compressed: bool,
}

/// Decades on each side of 10⁰ that stay evenly spaced on a compressed axis.
const KNEE: f64 = 6.0;

/// Decades from which an axis is compressed.
const MANY: f64 = 24.0;

/// A place on an axis with its name, or without one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// The value.
    pub value: f64,
    /// Its text; empty for a mark alone.
    pub text: String,
}

impl Scale {
    /// Over the values and what the axis includes, with some room at the ends; `room` is a share of the axis.
    pub fn new(values: impl Iterator<Item = f64>, axis: &Axis, room: f64) -> Self {
        let all = values.chain(axis.include.iter().copied());
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let mut scale = Self { low, high, log10: axis.log10, compressed: axis.log10 && high - low > MANY };
        let (a, b) = (scale.bend(low), scale.bend(high));
        let room = if b > a { room * (b - a) } else { 0.5 };
        // What is included, such as 0, stays the end.
        let end = |x: f64| axis.include.contains(&x);
        scale.low = if end(low) { low } else { scale.unbend(a - room) };
        scale.high = if end(high) && high > low { high } else { scale.unbend(b + room) };
        scale
    }

    /// The share of the axis that lies below a value.
    pub fn at(&self, value: f64) -> f64 {
        let (a, b) = (self.bend(self.low), self.bend(self.high));
        (self.bend(value) - a) / (b - a)
    }

    /// Whether the axis is compressed.
    pub fn compressed(&self) -> bool {
        self.compressed
    }

    fn bend(&self, x: f64) -> f64 {
        if !self.compressed || x.abs() <= KNEE { x } else { x.signum() * KNEE * (1.0 + (x.abs() / KNEE).ln()) }
    }

    fn unbend(&self, x: f64) -> f64 {
        if !self.compressed || x.abs() <= KNEE { x } else { x.signum() * KNEE * (x.abs() / KNEE - 1.0).exp() }
    }

    /// Values to name, about `count` of them, and between them values to mark.
    pub fn ticks(&self, count: usize) -> Vec<Tick> {
        let inside = |x: &f64| (-1e-9..=1.0 + 1e-9).contains(&self.at(*x));
        let span = self.high - self.low;
        if self.compressed {
            let far = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 1e4, 1e5, 1e6];
            let near = [0.0, 2.0, 4.0, 6.0];
            let mut all: Vec<f64> = near.iter().chain(&far).flat_map(|x| [-x, *x]).filter(inside).collect();
            all.sort_by(f64::total_cmp);
            all.dedup();
            return all.into_iter().map(|value| Tick { value, text: power(value) }).collect();
        }
        if self.log10 && span < 1.2 {
            // Within a decade or so, numbers themselves.
            return even(10f64.powf(self.low), 10f64.powf(self.high), count)
                .into_iter()
                .filter(|x| *x > 0.0)
                .map(|x| Tick { value: x.log10(), text: plain(x) })
                .filter(|tick| inside(&tick.value))
                .collect();
        }
        if self.log10 {
            let step = (span / count as f64).round().max(1.0);
            let step = [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0].into_iter().find(|s| *s >= step).unwrap_or(step);
            let first = (self.low / step).ceil() as i64;
            let decades: Vec<f64> = (first..).map(|i| i as f64 * step).take_while(|x| *x <= self.high + 1e-9).collect();
            let small = decades.iter().all(|x| (-3.0..=4.0).contains(x));
            let text = |x: f64| if small { plain(10f64.powf(x)) } else { power(x) };
            let mut ticks: Vec<Tick> = decades.iter().map(|x| Tick { value: *x, text: text(*x) }).collect();
            if step == 1.0 {
                // 2 to 9 of each decade; with few decades some of them by name.
                for decade in (self.low.floor() as i64)..=(self.high.floor() as i64) {
                    for digit in 2..10 {
                        let value = decade as f64 + f64::from(digit).log10();
                        let named = small && ((span < 2.2 && [2, 3, 5].contains(&digit)) || (span < 3.4 && digit == 3));
                        let text = if named { plain(10f64.powf(value)) } else { String::new() };
                        ticks.push(Tick { value, text });
                    }
                }
            }
            ticks.retain(|tick| inside(&tick.value));
            return ticks;
        }
        even(self.low, self.high, count).into_iter().map(|value| Tick { value, text: plain(value) }).collect()
    }
}

/// About `count` round numbers from `low` to `high`.
fn even(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count.max(1) as f64;
    let size = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|s| s * size).find(|s| *s >= raw * 0.999).unwrap_or(raw);
    let first = (low / step - 1e-9).ceil() as i64;
    // Divided, so that 3 · 0.1 is 0.3; and no -0.
    (first..).map(|i| i as f64 * step + 0.0).take_while(|x| *x <= high + 1e-9 * step).take(100).collect()
}

fn power(exponent: f64) -> String {
    format!("10{}", superscript(&plain(exponent)))
}

/// At most four significant digits.
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
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
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
        let named = |t: Tick| Some(t.text).filter(|text| !text.is_empty());
        scale.ticks(7).into_iter().filter_map(named).collect()
    }

    fn log10(values: &[f64]) -> Scale {
        let axis = Axis { log10: true, ..Axis::default() };
        Scale::new(values.iter().copied(), &axis, 0.05)
    }

    #[test]
    fn ticks_read_as_numbers() {
        let linear = Scale::new([0.0, 1500.0].into_iter(), &Axis::default(), 0.05);
        assert_eq!(texts(&linear), ["0", "250", "500", "750", "1000", "1250", "1500"]);
        let shares = Axis { include: vec![0.0, 1.0], ..Axis::default() };
        let shares = Scale::new([0.3].into_iter(), &shares, 0.05);
        assert_eq!((shares.at(0.0), shares.at(1.0)), (0.0, 1.0));
        assert_eq!(texts(&shares), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(texts(&log10(&[0.0, 0.9])), ["2", "4", "6", "8"]);
        assert_eq!(texts(&log10(&[-1.0, 3.0])), ["0.1", "1", "10", "100", "1000"]);
        assert_eq!(texts(&log10(&[1.0, 8.0])), ["10¹", "10²", "10³", "10⁴", "10⁵", "10⁶", "10⁷", "10⁸"]);
        assert_eq!(texts(&log10(&[12.0, 23.0])), ["10¹²", "10¹⁴", "10¹⁶", "10¹⁸", "10²⁰", "10²²"]);
    }

    #[test]
    fn one_axis_holds_1_and_10_to_the_300() {
        let values = [0.0, 0.5, 1.0, 3.0, 12.0, 274.0, 1043.0];
        let scale = log10(&values);
        assert!(scale.compressed());
        let places: Vec<f64> = values.iter().map(|x| scale.at(*x)).collect();
        assert!(places.windows(2).all(|w| w[0] < w[1]) && places[0] > 0.0 && places[6] < 1.0, "{places:?}");
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
