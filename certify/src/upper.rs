//! Non-negative numbers with a 64-bit exponent. Every operation rounds up.
//!
//! Products of many norms exceed the range of `f64`, and a bound must never be rounded down. A
//! value is `m·2^e` with m in [1, 2), or zero, or infinity.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Mul};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::decimal::decimal;

/// An upper bound: a non-negative number, possibly infinite.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "Stored")]
#[must_use = "a bound that is dropped bounds nothing"]
pub struct Upper {
    /// In [1, 2), or 0, or infinity.
    mantissa: f64,
    exponent: i64,
}

/// `x·2ⁿ` for normal results.
fn scale(x: f64, n: i64) -> f64 {
    x * f64::from_bits(((1023 + n) as u64) << 52)
}

impl Upper {
    /// 0
    pub const ZERO: Upper = Upper { mantissa: 0.0, exponent: 0 };
    /// 1
    pub const ONE: Upper = Upper { mantissa: 1.0, exponent: 0 };
    /// ∞: nothing is bounded.
    pub const INFINITY: Upper = Upper { mantissa: f64::INFINITY, exponent: 0 };

    /// Exactly `x`; infinity for NaN and negative numbers, which bound nothing.
    pub fn from_f64(x: f64) -> Self {
        if x == 0.0 {
            return Self::ZERO;
        }
        if x.is_nan() || x < 0.0 || x == f64::INFINITY {
            return Self::INFINITY;
        }
        Self::normalised(x, 0)
    }

    /// `x·2^exponent` for finite x > 0.
    fn normalised(x: f64, exponent: i64) -> Self {
        // Subnormal numbers are first scaled into the normal range, exactly.
        let (x, shift) = if x < f64::MIN_POSITIVE { (x * 2f64.powi(64), -64) } else { (x, 0) };
        let bits = x.to_bits();
        let own = ((bits >> 52) & 0x7ff) as i64 - 1023;
        let mantissa = f64::from_bits((bits & !(0x7ff << 52)) | (1023 << 52));
        match exponent.checked_add(own + shift) {
            Some(exponent) => Self { mantissa, exponent },
            None if exponent < 0 => Self { mantissa: 1.0, exponent: i64::MIN },
            None => Self::INFINITY,
        }
    }

    /// e of m·2^e; 0 for zero and infinity.
    pub(crate) fn exponent(self) -> i64 {
        self.exponent
    }

    fn special(self) -> bool {
        self.mantissa == 0.0 || self.mantissa == f64::INFINITY
    }

    /// Whether the bound is finite.
    pub fn is_finite(self) -> bool {
        self.mantissa.is_finite()
    }

    /// Not below the value; infinite beyond the range of `f64`.
    pub fn to_f64(self) -> f64 {
        match self.exponent {
            _ if self.special() => self.mantissa,
            1024.. => f64::INFINITY,
            -1022..=1023 => scale(self.mantissa, self.exponent),
            _ => f64::MIN_POSITIVE,
        }
    }

    /// Not below `self/lower`; infinite unless `lower > 0`. Rounds up when `lower` is at most the
    /// divisor meant.
    pub fn div_up(self, lower: f64) -> Self {
        if lower.is_nan() || lower <= 0.0 {
            return Self::INFINITY;
        }
        if self.special() {
            return self;
        }
        if lower == f64::INFINITY {
            return Self::normalised(f64::MIN_POSITIVE, self.exponent);
        }
        let d = Self::normalised(lower, 0);
        let quotient = self.mantissa / d.mantissa;
        let exact = quotient.mul_add(d.mantissa, -self.mantissa) == 0.0;
        let Some(exponent) = self.exponent.checked_sub(d.exponent) else { return Self::INFINITY };
        Self::normalised(if exact { quotient } else { quotient.next_up() }, exponent)
    }

    /// Mantissa, in [1, 2) or 0 or infinity, and exponent.
    pub(crate) fn parts(self) -> (f64, i64) {
        (self.mantissa, self.exponent)
    }

    /// `self·2ⁿ`
    pub(crate) fn times_power(self, n: i64) -> Self {
        if self.special() {
            return self;
        }
        match self.exponent.checked_add(n) {
            Some(exponent) => Self { exponent, ..self },
            None if n < 0 => Self { mantissa: 1.0, exponent: i64::MIN },
            None => Self::INFINITY,
        }
    }

    /// Not below the square root.
    pub fn sqrt(self) -> Self {
        if self.special() {
            return self;
        }
        let odd = self.exponent.rem_euclid(2);
        let x = if odd == 1 { 2.0 * self.mantissa } else { self.mantissa };
        let root = x.sqrt();
        let exact = root.mul_add(root, -x) == 0.0;
        Self::normalised(if exact { root } else { root.next_up() }, (self.exponent - odd) / 2)
    }

    /// `exp`, by sums and products alone, so that it is the same everywhere; infinite from 2⁹ on.
    pub(crate) fn exp(self) -> Self {
        /// Terms of the series, and how often its argument is halved: up to ½.
        const TERMS: usize = 18;
        const HALVED: i64 = 10;
        if self >= Self::from_f64(512.0) {
            return Self::INFINITY;
        }
        let x = self.times_power(-HALVED);
        let (mut term, mut sum) = (Self::ONE, Self::ONE);
        for k in 1..TERMS {
            term = (term * x).div_up(k as f64);
            sum = sum + term;
        }
        // All that follow are at most a 36th of the last, and so on.
        let mut power = sum + term;
        for _ in 0..HALVED {
            power = power * power;
        }
        power
    }

    /// The larger.
    pub fn max(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// The smaller.
    pub fn min(self, other: Self) -> Self {
        if other < self { other } else { self }
    }

    /// log10 of the value, slightly too large rather than too small.
    pub fn log10(self) -> f64 {
        self.log10_plus(8.0)
    }

    /// log10 and `units` times ε (|log10| + 1). libm's log10 and the sum are off by less than 2.5 of
    /// these units: half an ulp of the constant, of the product and of the sum, an ulp of libm's.
    fn log10_plus(self, units: f64) -> f64 {
        if self.special() {
            return self.mantissa.log10();
        }
        let log = self.mantissa.log10() + self.exponent as f64 * std::f64::consts::LOG10_2;
        log + units * f64::EPSILON * (log.abs() + 1.0)
    }

    /// For scripts, such as `3.94`, `1.2e17` or `1e1043`; not below the value.
    pub fn plain(self) -> String {
        self.text(|log| format!("1e{}", log.ceil()))
    }

    fn text(self, huge: impl Fn(f64) -> String) -> String {
        if self.special() {
            return if self.mantissa == 0.0 { "0".into() } else { "inf".into() };
        }
        let x = self.to_f64();
        if x > 1e300 || self.exponent < -1000 {
            return huge(self.log10());
        }
        if (1e-3..1e6).contains(&x) {
            return decimals(x, |x, digits| format!("{x:.digits$}"), if x < 10.0 { 4 } else { 2 });
        }
        decimals(x, |x, digits| format!("{x:.digits$e}"), 2)
    }
}

/// n as a number.
pub(crate) fn count(n: usize) -> Upper {
    Upper::from_f64(n as f64)
}

/// |x| as a number; infinite for NaN, so that nothing is proven about it.
pub(crate) fn abs(x: f64) -> Upper {
    if x.is_nan() { Upper::INFINITY } else { Upper::from_f64(x.abs()) }
}

/// Not above √x.
pub(crate) fn root_down(x: f64) -> f64 {
    x.sqrt().next_down()
}

/// Prints x with `digits` decimals, rounded up: the text, read back, is at least x.
fn decimals(x: f64, print: impl Fn(f64, usize) -> String, digits: usize) -> String {
    let mut at = x;
    let mut step = x * f64::EPSILON;
    loop {
        let text = print(at, digits);
        // A text that cannot be read back would be a defect of the standard library.
        if text.parse::<f64>().is_ok_and(|shown| shown >= x) {
            let trimmed = if text.contains('e') { text } else { trim(&text) };
            return trimmed;
        }
        at = x + step;
        step *= 2.0;
    }
}

fn trim(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text.to_string()
    }
}

impl Add for Upper {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        if self == Self::INFINITY || other == Self::INFINITY {
            return Self::INFINITY;
        }
        if self.mantissa == 0.0 {
            return other;
        }
        if other.mantissa == 0.0 {
            return self;
        }
        let (large, small) = if self >= other { (self, other) } else { (other, self) };
        let shift = large.exponent.saturating_sub(small.exponent);
        if shift > 1000 {
            return Self::normalised(large.mantissa.next_up(), large.exponent);
        }
        let b = scale(small.mantissa, -shift);
        let sum = large.mantissa + b;
        // Exact if the rounding error of the sum is zero (Dekker's fast two-sum, as large ≥ small).
        let exact = b - (sum - large.mantissa) == 0.0;
        Self::normalised(if exact { sum } else { sum.next_up() }, large.exponent)
    }
}

impl Mul for Upper {
    type Output = Self;

    /// Zero times infinity is infinity, so that an unknown norm leaves no bound.
    fn mul(self, other: Self) -> Self {
        if self == Self::INFINITY || other == Self::INFINITY {
            return Self::INFINITY;
        }
        if self.mantissa == 0.0 || other.mantissa == 0.0 {
            return Self::ZERO;
        }
        let product = self.mantissa * other.mantissa;
        let exact = self.mantissa.mul_add(other.mantissa, -product) == 0.0;
        match self.exponent.checked_add(other.exponent) {
            Some(exponent) => {
                Self::normalised(if exact { product } else { product.next_up() }, exponent)
            }
            None if self.exponent < 0 => Self { mantissa: 1.0, exponent: i64::MIN },
            None => Self::INFINITY,
        }
    }
}

impl PartialOrd for Upper {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if self.special() || other.special() {
            let key = |x: &Self| if x.special() { x.mantissa } else { 1.0 };
            return key(self).partial_cmp(&key(other));
        }
        Some(self.exponent.cmp(&other.exponent).then(self.mantissa.total_cmp(&other.mantissa)))
    }
}

impl fmt::Display for Upper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` honours a width given by the caller.
        f.pad(&self.text(|log| format!("10^{:.1}", (log * 10.0).ceil() / 10.0)))
    }
}

/// The number `mantissa·2^exponent`, exact, with what readers take it for: a decimal number and a
/// logarithm, neither below it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Upper")]
#[serde(deny_unknown_fields)]
struct Stored {
    /// As a decimal number, rounded up: read as a number of f64 or of more digits it is not below the exact
    /// one. `inf` for infinity. It is checked when the document is read; documents of
    /// version 0.1.0 lack it.
    #[serde(default)]
    value: Option<String>,
    /// In [1, 2); 0 for zero; null for infinity.
    mantissa: Option<f64>,
    /// Of base 2, not of base 10.
    exponent: i64,
    /// Its logarithm to base 10, rounded up. It is checked when the document is read. Null for zero
    /// and infinity.
    #[serde(default)]
    log10: Option<f64>,
}

impl Serialize for Upper {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let log10 = Some(self.log10()).filter(|x| x.is_finite());
        let mantissa = Some(self.mantissa).filter(|x| x.is_finite());
        let value = Some(decimal(*self));
        Stored { value, mantissa, exponent: self.exponent, log10 }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Upper {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { value: said, mantissa, exponent, log10 } = Stored::deserialize(deserializer)?;
        let value = match mantissa {
            None if exponent == 0 => Self::INFINITY,
            Some(0.0) if exponent == 0 => Self::ZERO,
            Some(m) if (1.0..2.0).contains(&m) => Self { mantissa: m, exponent },
            m => {
                let text = format!("mantissa {m:?} with exponent {exponent} is no bound");
                return Err(serde::de::Error::custom(text));
            }
        };
        if let Some(said) = said.filter(|said| *said != decimal(value)) {
            let text = format!("value {said} is not that of {value}");
            return Err(serde::de::Error::custom(text));
        }
        let log = Some(value.log10()).filter(|log| log.is_finite());
        match (log10, log) {
            (None, None) => Ok(value),
            (None, Some(log)) => {
                Err(serde::de::Error::custom(format!("log10 of {value} is missing: {log}")))
            }
            // Logarithms differ slightly between versions of libm, so a stated one may differ from
            // ours; below the true one it may not be.
            (Some(said), Some(log))
                if said >= value.log10_plus(2.5) && said - log <= 1e-12 * (1.0 + log.abs()) =>
            {
                Ok(value)
            }
            (Some(said), _) => {
                Err(serde::de::Error::custom(format!("log10 {said} is not that of {value}")))
            }
        }
    }
}

/// A number in a few digits, never above it.
pub fn down(x: f64) -> String {
    if x > 0.0 && x < f64::MIN_POSITIVE {
        return "0".into();
    }
    if x >= f64::MAX {
        return "∞".into();
    }
    if (x > 0.0 && x < 1e-6) || (x > 1e9 && x.is_finite()) {
        // Four digits round by at most 5e-4 of it.
        return format!("{:.3e}", x * (1.0 - 5.1e-4));
    }
    let places = 4 - (x.abs().max(1e-300).log10().floor() as i32);
    let places = places.clamp(0, 12) as usize;
    let scale = 10f64.powi(places as i32);
    let x =
        if x.is_finite() { (x * scale * (1.0 - 4.0 * f64::EPSILON)).floor() / scale } else { x };
    format!("{x:.places$}")
}

/// A radius as it is, where that is short; otherwise as [`down`] has it.
pub fn radius(x: f64) -> String {
    let exact = [x.to_string(), format!("{x:e}")];
    exact.into_iter().find(|text| text.len() <= 8).unwrap_or_else(|| down(x))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn up(x: f64) -> Upper {
        Upper::from_f64(x)
    }

    #[test]
    fn exact_results_stay_exact() {
        assert_eq!(up(1.0) * up(1.0), Upper::ONE);
        assert_eq!(up(0.75) + up(0.25), Upper::ONE);
        assert_eq!(up(9.0).sqrt(), up(3.0));
        assert_eq!(up(6.0).div_up(3.0), up(2.0));
        assert_eq!(up(5e-324).to_f64(), f64::MIN_POSITIVE);
        assert_eq!(up(f64::NAN), Upper::INFINITY);
        assert_eq!(up(-1.0), Upper::INFINITY);
        assert_eq!(Upper::ZERO * Upper::INFINITY, Upper::INFINITY);
        assert_eq!(up(1.0).div_up(0.0), Upper::INFINITY);
    }

    /// Against exact integer arithmetic: products and sums of 53-bit integers in 128 bits.
    #[test]
    fn never_below_the_exact_result_and_within_two_units() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..100_000 {
            let mut draw = || (rng.next_u64() >> 11) >> (rng.next_u32() % 50);
            let (a, b) = (draw().max(1), draw().max(1));
            // As integers: mantissa·2⁵² is one, so is the value shifted.
            let value = |u: Upper| {
                let m = (u.mantissa * 2f64.powi(52)) as u128;
                if u.exponent >= 52 { m << (u.exponent - 52) } else { m >> (52 - u.exponent) }
            };
            let (x, y) = (up(a as f64), up(b as f64));
            let product = u128::from(a) * u128::from(b);
            let found = value(x * y);
            assert!(found >= product && found - product <= product >> 51, "{a} · {b}");
            let (sum, found) = (u128::from(a) + u128::from(b), value(x + y));
            assert!(found >= sum && found - sum <= 2 + (sum >> 51), "{a} + {b}");
            let root = x.sqrt();
            assert!(root * root >= x);
            assert!(x.div_up(b as f64) * y >= x, "{a} / {b}");
        }
    }

    #[test]
    fn exponentials_are_no_less_and_little_more() {
        assert_eq!(Upper::ZERO.exp(), Upper::ONE);
        for i in 0..6000 {
            let x = f64::from(i) * 0.1001;
            let (found, truth) = (Upper::from_f64(x).exp().to_f64(), x.exp());
            // The truth is rounded, by less than this.
            assert!(found >= truth * (1.0 - 1e-15), "{x}: {found} {truth}");
            assert!(found <= truth * (1.0 + 1e-11) || x >= 512.0, "{x}: {found} {truth}");
        }
        assert_eq!(Upper::INFINITY.exp(), Upper::INFINITY);
    }

    #[test]
    fn exponents_do_not_overflow() {
        let mut x = up(1e300);
        for _ in 0..40 {
            x = x * x;
        }
        assert!(x.is_finite() && (x.log10() / (300.0 * 2f64.powi(40)) - 1.0).abs() < 1e-9);
        for _ in 0..40 {
            x = x * x;
        }
        assert_eq!(x, Upper::INFINITY);
        assert!(up(1e-300) * up(1e-300) * up(1e300) * up(1e300) >= up(0.999_999));
    }

    #[test]
    fn printed_values_are_not_below_the_value() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..100_000 {
            let x = f64::from_bits(rng.next_u64() >> 1);
            if !x.is_finite() || !(1e-290..1e290).contains(&x) {
                continue;
            }
            let (shown, plain) = (up(x).to_string(), up(x).plain());
            assert!(
                shown.parse::<f64>().unwrap() >= x && plain.parse::<f64>().unwrap() >= x,
                "{x}: {shown} {plain}"
            );
        }
        assert_eq!(up(3.94).to_string(), "3.94");
        assert_eq!(up(2.0).to_string(), "2");
        assert_eq!(up(1.2e17).to_string(), "1.20e17");
        let mut huge = up(1e300);
        huge = huge * huge * huge * up(1e143) * up(1.5);
        assert_eq!((huge.to_string().as_str(), huge.plain().as_str()), ("10^1043.2", "1e1044"));
    }

    #[test]
    fn stored_exactly() {
        for x in [Upper::ZERO, Upper::ONE, Upper::INFINITY, up(0.1), up(1e300) * up(1e300)] {
            let json = serde_json::to_string(&x).unwrap();
            assert_eq!(serde_json::from_str::<Upper>(&json).unwrap(), x, "{json}");
        }
        assert!(serde_json::from_str::<Upper>("{\"mantissa\":0.5,\"exponent\":1}").is_err());
    }

    /// What a reader takes from a document is bound to the bound, and older documents are read.
    #[test]
    fn what_is_stated_beside_the_bound_is_not_below_it() {
        let read = |value: &str, log10: f64| {
            let text = format!("{{\"mantissa\":1.58,\"exponent\":1,\"log10\":{log10:?}{value}}}");
            serde_json::from_str::<Upper>(&text).map_err(|e| e.to_string())
        };
        let (x, log) = (up(3.16), up(3.16).log10());
        assert_eq!(read("", log), Ok(x), "a document of before");
        assert_eq!(read(",\"value\":\"3.1600000000000002\"", log), Ok(x));
        for value in ["3.16", "3.15", "4", "", "inf", "three"] {
            let said = read(&format!(",\"value\":\"{value}\""), log).unwrap_err();
            assert!(said.contains("is not that of"), "{said}");
        }
        for log in [log - 1e-14, 0.4, 0.5, log + 1e-9] {
            assert!(read("", log).unwrap_err().contains("log10"), "{log}");
        }
        // As another libm may compute it.
        assert_eq!(read("", log + 2.0 * f64::EPSILON), Ok(x));
    }
}
