//! Number formats of few bits: their ends, their rounding, and static scales.

use serde::{Deserialize, Serialize};

use crate::upper::Upper;

/// A format that tensors are stored or multiplied in.
///
/// Those of 8 bits with an exponent are from Micikevicius et al., *FP8 Formats for Deep Learning*
/// (2022): four bits of exponent, three of mantissa and no infinity, or five and two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Number {
    /// 8 bits, up to 448.
    E4m3,
    /// 8 bits, up to 57344.
    E5m2,
    /// 16 bits, IEEE 754 binary16, up to 65504.
    Fp16,
    /// 16 bits, the upper half of an f32, up to 3.39e38.
    Bf16,
    /// 8 bits, whole numbers up to 127.
    Int8,
}

impl Number {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::E4m3, Self::E5m2, Self::Fp16, Self::Bf16, Self::Int8];

    /// In a word, as it is spelt in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Its largest finite number.
    pub fn end(self) -> f64 {
        match self {
            Self::E4m3 => 448.0,
            Self::E5m2 => 57_344.0,
            Self::Fp16 => 65_504.0,
            // (2 − 2⁻⁷) 2¹²⁷
            Self::Bf16 => 255.0 * 2f64.powi(120),
            Self::Int8 => 127.0,
        }
    }

    /// Bits of the mantissa behind its first, and the least exponent of a normal number; none for
    /// whole numbers.
    fn digits(self) -> Option<(i32, i32)> {
        match self {
            Self::E4m3 => Some((3, -6)),
            Self::E5m2 => Some((2, -14)),
            Self::Fp16 => Some((10, -14)),
            Self::Bf16 => Some((7, -126)),
            Self::Int8 => None,
        }
    }

    /// The nearest number of the format, ties to even; its end for what is beyond, as conversions
    /// that saturate do. NaN stays NaN.
    pub fn round(self, x: f64) -> f64 {
        let end = self.end();
        if x.is_nan() {
            return x;
        }
        if x.abs() >= end {
            return end.copysign(x);
        }
        let unit = match self.digits() {
            None => 0,
            Some((mantissa, least)) => exponent(x).max(least) - mantissa,
        };
        // Powers of two: both products are exact.
        let rounded = (x * 2f64.powi(-unit)).round_ties_even() * 2f64.powi(unit);
        rounded.clamp(-end, end)
    }

    /// Whether all numbers up to this bound are within the format's ends.
    pub fn fits(self, largest: Upper) -> bool {
        largest <= Upper::from_f64(self.end())
    }

    /// The largest k such that `2^k` times the bound is within the ends; none for an infinite bound,
    /// and for 0, which any scale suits.
    pub fn scale(self, largest: Upper) -> Option<i64> {
        let (mantissa, exponent) = largest.parts();
        if !largest.is_finite() || mantissa == 0.0 {
            return None;
        }
        let (end_mantissa, end_exponent) = Upper::from_f64(self.end()).parts();
        let apart = end_exponent.checked_sub(exponent)?;
        if mantissa <= end_mantissa { Some(apart) } else { apart.checked_sub(1) }
    }

    /// log2 of the end over the bound, rounded down: how many bits are left; below 0 where it does
    /// not fit.
    pub fn headroom(self, largest: Upper) -> Option<f64> {
        let end = self.end().log10() * (1.0 - 4.0 * f64::EPSILON);
        let bits = (end - largest.log10()) / std::f64::consts::LOG10_2;
        Some(bits - 1e-12 * (1.0 + bits.abs())).filter(|bits| bits.is_finite())
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// e with 2^e ≤ |x| < 2^(e+1); the least of a normal f64 for smaller numbers.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All numbers of a format of 8 bits with so many bits of mantissa, up to its end.
    fn all(number: Number) -> Vec<f64> {
        let Some((mantissa, least)) = number.digits() else {
            return (-127..=127).map(f64::from).collect();
        };
        let mut out = Vec::new();
        for sign in [1.0, -1.0] {
            for e in least..=16 {
                for m in 0..1 << mantissa {
                    let digits = f64::from(m) * 2f64.powi(-mantissa);
                    out.push(sign * (1.0 + digits) * 2f64.powi(e));
                    // Without the first bit.
                    out.push(sign * digits * 2f64.powi(least));
                }
            }
        }
        out.retain(|x| x.abs() <= number.end());
        out
    }

    #[test]
    fn rounding_is_to_the_nearest_number_of_the_format() {
        for number in [Number::E4m3, Number::E5m2, Number::Int8] {
            let all = all(number);
            let there = |x: f64| all.contains(&x);
            assert!(there(number.end()), "{number}");
            assert!(all.iter().all(|x| number.round(*x) == *x), "{number}");
            let mut x = 1e-9;
            while x < 1.5 * number.end() {
                for x in [x, -x] {
                    let found = number.round(x);
                    let nearest = all.iter().fold(f64::MAX, |m: f64, y| m.min((x - y).abs()));
                    assert!(there(found) && (found - x).abs() <= nearest, "{number}: {x} {found}");
                }
                x *= 1.0037;
            }
            assert!(number.round(f64::NAN).is_nan());
            assert_eq!(number.round(f64::NEG_INFINITY), -number.end());
        }
    }

    #[test]
    fn rounding_is_that_of_half_precision() {
        for i in 0..2_000_000_u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (half, brain) = (half::f16::from_f32(x), half::bf16::from_f32(x));
            let x = f64::from(x);
            if half.is_finite() {
                assert_eq!(Number::Fp16.round(x), f64::from(half), "{x}");
            }
            if brain.is_finite() {
                assert_eq!(Number::Bf16.round(x), f64::from(brain), "{x}");
            }
        }
    }

    /// The scale is the largest power of two that keeps a bound within the ends, and the headroom
    /// is its exponent, rounded.
    #[test]
    fn scales_are_as_large_as_they_can_be() {
        for number in Number::ALL {
            for bound in [1e-30, 0.3, 1.0, 126.9, 127.0, 448.0, 448.1, 65_504.5, 1e20, 3e38, 1e200]
            {
                let x = Upper::from_f64(bound);
                let k = number.scale(x).unwrap();
                let scaled = |k: i64| x.times_power(k);
                assert!(number.fits(scaled(k)) && !number.fits(scaled(k + 1)), "{number} {bound}");
                assert_eq!(number.fits(x), k >= 0);
                let bits = number.headroom(x).unwrap();
                assert!(
                    bits < k as f64 + 1.0 && bits > k as f64 - 1e-9,
                    "{number} {bound}: {bits}"
                );
            }
            assert_eq!(number.scale(Upper::INFINITY), None);
            assert!(!number.fits(Upper::INFINITY) && number.fits(Upper::ZERO));
        }
    }
}
