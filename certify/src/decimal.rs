//! Bounds as decimal numbers that are not below them.
//!
//! A finite f64 has at most 767 decimal digits, and the standard library prints them all, so a text
//! is rounded up by looking at the digits that it leaves out. A number outside of f64's range is
//! first multiplied by a power of ten whose rounding, like the product's, is upwards.

use std::ops::RangeInclusive;

use crate::upper::Upper;

/// The digits that tell one f64 from the next.
const DIGITS: usize = 17;

/// Fewer digits where a power of ten was rounded.
const FEWER: usize = 12;

/// Exponents of two for which a number is an f64, exactly.
const RANGE: RangeInclusive<i64> = -1022..=1023;

/// The number as a text, not below it: `3.1600000000000002`, `1.2e17`, `1.04712854805e1043`, `0`,
/// `inf`. The same number has the same text on every machine.
pub(crate) fn decimal(x: Upper) -> String {
    if x == Upper::ZERO {
        return "0".into();
    }
    // 30103/100000 is log10 of 2 up to 5e-9, which is near enough.
    let exponent = x.exponent();
    let shift = match RANGE.contains(&exponent) {
        true => 0,
        false => (i128::from(exponent) * 30_103 / 100_000) as i64,
    };
    let near = if shift == 0 { x } else { x * power_of_ten(-shift) };
    let near = near.to_f64();
    if !near.is_finite() {
        return "inf".into();
    }
    let (digits, first) = digits(near, if shift == 0 { DIGITS } else { FEWER });
    written(&digits, first.saturating_add(shift))
}

/// Not below 10ⁿ.
fn power_of_ten(n: i64) -> Upper {
    // The f64 next to a tenth is above it.
    let mut base = Upper::from_f64(if n < 0 { 0.1 } else { 10.0 });
    let (mut left, mut power) = (n.unsigned_abs(), Upper::ONE);
    while left > 0 {
        if left % 2 == 1 {
            power = power * base;
        }
        base = base * base;
        left /= 2;
    }
    power
}

/// The first digits of a finite x > 0, rounded up, and the power of ten of the first.
fn digits(x: f64, count: usize) -> (String, i64) {
    let all = format!("{x:.766e}");
    let (all, power) = all.split_once('e').unwrap_or((&all, "0"));
    let all: String = all.chars().filter(char::is_ascii_digit).collect();
    let power: i64 = power.parse().unwrap_or_default();
    let (kept, rest) = all.split_at(count.min(all.len()));
    if rest.bytes().all(|digit| digit == b'0') {
        return (kept.into(), power);
    }
    let nines = kept.bytes().rev().take_while(|digit| *digit == b'9').count();
    let (head, zeros) = (&kept[..kept.len() - nines], "0".repeat(nines));
    match head.as_bytes().split_last() {
        Some((last, before)) => {
            let next = char::from(last + 1);
            (format!("{}{next}{zeros}", &head[..before.len()]), power)
        }
        None => ("1".into(), power + 1),
    }
}

/// Digits, the first of which stands for this power of ten.
fn written(digits: &str, power: i64) -> String {
    let digits = match digits.trim_end_matches('0') {
        "" => "0",
        digits => digits,
    };
    let (first, rest) = digits.split_at(1);
    let places = digits.len() as i64 - 1;
    match power {
        // Zeros in front.
        -5..=-1 => format!("0.{}{digits}", "0".repeat((-1 - power) as usize)),
        0..=16 if power >= places => format!("{digits}{}", "0".repeat((power - places) as usize)),
        0..=16 => {
            let (whole, part) = digits.split_at(power as usize + 1);
            format!("{whole}.{part}")
        }
        _ if rest.is_empty() => format!("{first}e{power}"),
        _ => format!("{first}.{rest}e{power}"),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// An oracle that shares nothing with the code: a decimal text against m·2^e in whole numbers of
    /// any size, little-endian in base 10⁹.
    fn compare(text: &str, mantissa: f64, exponent: i64) -> Ordering {
        const BASE: u64 = 1_000_000_000;
        fn times(n: &mut Vec<u64>, factor: u64) {
            let mut carry = 0;
            for limb in n.iter_mut() {
                let product = *limb * factor + carry;
                (*limb, carry) = (product % BASE, product / BASE);
            }
            if carry > 0 {
                n.push(carry);
            }
        }
        let (number, power) = text.split_once('e').unwrap_or((text, "0"));
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let mut power: i64 = power.parse::<i64>().unwrap() - part.len() as i64;
        let mut left: Vec<u64> = vec![0];
        for digit in whole.bytes().chain(part.bytes()) {
            times(&mut left, 10);
            left[0] += u64::from(digit - b'0');
        }
        let bits = (mantissa * 2f64.powi(52)) as u64;
        let mut right = vec![bits % BASE, bits / BASE];
        let mut twos = exponent - 52;
        while power > 0 {
            times(&mut left, 10);
            power -= 1;
        }
        while power < 0 {
            times(&mut right, 10);
            power += 1;
        }
        while twos > 0 {
            times(&mut right, 2);
            twos -= 1;
        }
        while twos < 0 {
            times(&mut left, 2);
            twos += 1;
        }
        let trimmed = |n: Vec<u64>| {
            let length = n.iter().rposition(|limb| *limb > 0).map_or(0, |at| at + 1);
            n[..length].to_vec()
        };
        let (left, right) = (trimmed(left), trimmed(right));
        left.len().cmp(&right.len()).then_with(|| left.iter().rev().cmp(right.iter().rev()))
    }

    #[test]
    fn a_text_is_not_below_its_number_and_close_to_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut of = |exponents: i64, share: f64| {
            let mantissa = 1.0 + (rng.next_u64() >> 12) as f64 * f64::EPSILON;
            let exponent = (rng.next_u64() % (2 * exponents as u64)) as i64 - exponents;
            let x = Upper::from_f64(mantissa) * two_to(exponent);
            assert_eq!(x.exponent(), exponent);
            let text = decimal(x);
            assert_ne!(compare(&text, mantissa, exponent), Ordering::Less, "{text}");
            // A little more is above it.
            let more = mantissa * (1.0 + share);
            let (more, exponent) =
                if more < 2.0 { (more, exponent) } else { (more / 2.0, exponent + 1) };
            assert_ne!(compare(&text, more, exponent), Ordering::Greater, "{text}");
        };
        (0..3000).for_each(|_| of(60, 1e-15));
        (0..300).for_each(|_| of(1000, 1e-15));
        (0..60).for_each(|_| of(4000, 1e-10));
    }

    fn two_to(exponent: i64) -> Upper {
        let mut power = Upper::ONE;
        for _ in 0..exponent.abs() {
            power = power * Upper::from_f64(if exponent < 0 { 0.5 } else { 2.0 });
        }
        power
    }

    #[test]
    fn texts_are_plain_where_they_are_short() {
        let of = |x: f64| decimal(Upper::from_f64(x));
        for (x, text) in [
            (2.0, "2"),
            (0.0, "0"),
            (f64::INFINITY, "inf"),
            (1536.0, "1536"),
            (0.5, "0.5"),
            (0.1, "0.10000000000000001"),
            (3.16, "3.1600000000000002"),
            (1e16, "10000000000000000"),
            (1e22, "1e22"),
            (9_007_199_254_740_992.0, "9007199254740992"),
        ] {
            assert_eq!(of(x), text);
        }
        // All nines go up to the next power of ten.
        assert_eq!(digits(0.999_999_999_999_999_9, 3), ("1".into(), 0));
        assert!(of(f64::from_bits(1)).parse::<f64>().unwrap() > 0.0);
        assert_eq!(of(f64::MAX).parse::<f64>().unwrap(), f64::MAX);
        let huge = decimal(two_to(3465));
        assert!(huge.starts_with("1.17") && huge.ends_with("e1043"), "{huge}");
        // Beyond every use, and still a number or infinite.
        let mut huge = two_to(1000);
        (0..50).for_each(|_| huge = huge * huge);
        assert!(decimal(huge).parse::<f64>().is_ok());
    }
}
