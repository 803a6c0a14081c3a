//! Random numbers, each stream from one seed. The formulas are written out here, so that an update
//! of a crate changes neither initial weights nor the order of data.

use rand::{Rng, SeedableRng};

/// A random stream; ChaCha reaches any of them at once, so nothing needs to be saved to go on in
/// the middle of a run.
pub use rand_chacha::ChaCha8Rng as Stream;

/// The stream of a seed.
#[must_use]
pub fn seeded(seed: u64) -> Stream {
    Stream::seed_from_u64(seed)
}

/// Stream number `number` of a seed; number 0 is [`seeded`].
#[must_use]
pub fn numbered(seed: u64, number: u64) -> Stream {
    let mut stream = seeded(seed);
    stream.set_stream(number);
    stream
}

/// The stream of one purpose (`label`, at most 24 bytes count) at one position (a step, an epoch);
/// streams of different seeds, labels or positions are independent.
#[must_use]
pub fn keyed(seed: u64, label: &str, position: u64) -> Stream {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    for (to, from) in key[8..].iter_mut().zip(label.bytes()) {
        *to = from;
    }
    let mut stream = Stream::from_seed(key);
    stream.set_stream(position);
    stream
}

/// A number below `n`, uniform up to n / 2⁶⁴; takes 64 bits.
pub fn below(stream: &mut impl Rng, n: usize) -> usize {
    ((u128::from(stream.next_u64()) * n as u128) >> 64) as usize
}

/// Uniform in [0, 1), a multiple of 2⁻⁵³; takes 64 bits.
pub fn unit(stream: &mut impl Rng) -> f64 {
    (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in [-1, 1], both ends included; takes 32 bits.
pub fn symmetric(stream: &mut impl Rng) -> f64 {
    f64::from(stream.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0
}

/// Standard normal numbers, in pairs (Box and Muller, *A Note on the Generation of Random Normal
/// Deviates*, 1958); takes 64 bits each, for an even number of them.
pub fn normals(stream: &mut impl Rng, count: usize) -> Vec<f64> {
    // Inside of (0, 1), so that the logarithm is finite.
    let mut open = || ((stream.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let pair = |_| {
        let (radius, angle) = ((-2.0 * open().ln()).sqrt(), std::f64::consts::TAU * open());
        [radius * angle.cos(), radius * angle.sin()]
    };
    let mut out: Vec<f64> = (0..count.div_ceil(2)).flat_map(pair).collect();
    out.truncate(count);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checkpoints and data orders rest on these.
    #[test]
    fn streams_stay_what_they_are() {
        let first = |mut stream: Stream| stream.next_u64();
        assert_eq!(first(seeded(7)), first(numbered(7, 0)));
        assert_eq!(
            [first(seeded(7)), first(numbered(7, 3)), first(keyed(7, "epoch", 3))],
            [2_910_824_217_569_608_635, 3_348_856_302_973_006_449, 8_074_141_382_633_281_537]
        );
    }

    #[test]
    fn streams_differ_by_seed_label_and_position_and_repeat() {
        let first = |seed, label, position| keyed(seed, label, position).next_u64();
        assert_eq!(first(1, "a", 2), first(1, "a", 2));
        let all = [
            first(1, "a", 2),
            first(2, "a", 2),
            first(1, "b", 2),
            first(1, "a", 3),
            first(1, "", u64::MAX),
        ];
        for (i, x) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|y| x != y), "{all:?}");
        }
    }

    #[test]
    fn below_reaches_every_number_about_equally_often() {
        let (mut stream, mut counts) = (keyed(3, "test", 0), [0; 7]);
        (0..70_000).for_each(|_| counts[below(&mut stream, 7)] += 1);
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
    }

    #[test]
    fn intervals_and_moments() {
        let mut stream = seeded(5);
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let units: Vec<f64> = (0..10_000).map(|_| unit(&mut stream)).collect();
        assert!(units.iter().all(|x| (0.0..1.0).contains(x)) && (mean(&units) - 0.5).abs() < 0.01);
        let signed: Vec<f64> = (0..10_000).map(|_| symmetric(&mut stream)).collect();
        assert!(signed.iter().all(|x| (-1.0..=1.0).contains(x)) && mean(&signed).abs() < 0.02);
        let normal = normals(&mut stream, 9_999);
        let squares: Vec<f64> = normal.iter().map(|x| x * x).collect();
        assert_eq!(normal.len(), 9_999);
        assert!(mean(&normal).abs() < 0.03 && (mean(&squares) - 1.0).abs() < 0.05);
    }
}
