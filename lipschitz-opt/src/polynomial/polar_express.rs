//! The best odd quintics for the matrix sign, one after another (Amsel, Persson, Musco and Gower,
//! *The Polar Express*, 2025).

use super::steps::{Steps, at};

/// The factor by which rounding in low precision may take singular values above the interval. Each
/// step but the last is applied as if they were this much smaller.
const SAFETY: f64 = 1.01;

/// The share of the interval's upper end that its lower end is raised to. A quintic that reached
/// further down would leave the large singular values far from 1 for too long.
const CUSHION: f64 = 0.02407327424182761;

/// `count` steps for singular values in [`lower`, 1]. Each is the odd quintic nearest to 1 on the
/// interval that the previous one leaves, scaled so that the interval it leaves is centred on 1.
pub(super) fn steps(lower: f64, count: usize) -> Steps {
    let (mut low, mut high) = (lower, 1.0);
    (0..count)
        .map(|i| {
            let (quintic, error) = best(low.max(CUSHION * high), high);
            let value = at(&[quintic], low);
            let centre = if low < CUSHION * high { 2.0 / (value + 1.0 + error) } else { 1.0 };
            low = value * centre;
            high = 2.0 - low;
            let s: f64 = if i + 1 < count { SAFETY } else { 1.0 };
            [quintic[0] / s, quintic[1] / s.powi(3), quintic[2] / s.powi(5)].map(|x| x * centre)
        })
        .collect()
}

/// The odd quintic nearest to 1 on [`low`, `high`], and its error, by the Remez exchange. The error
/// of the best one alternates between ±E at four points: the two ends and the two extremes between.
fn best(low: f64, high: f64) -> ([f64; 3], f64) {
    if low >= high * (1.0 - 5e-6) {
        // The limit of the best ones on a shrinking interval: value 1, with first and second
        // derivative zero.
        let u = high;
        let limit = [15.0 / (8.0 * u), -10.0 / (8.0 * u.powi(3)), 3.0 / (8.0 * u.powi(5))];
        return (limit, (1.0 - low / high).powi(3));
    }
    let (mut q, mut r) = ((3.0 * low + high) / 4.0, (low + 3.0 * high) / 4.0);
    let (mut quintic, mut error) = ([0.0; 3], f64::INFINITY);
    for _ in 0..100 {
        let row = |x: f64, sign: f64| [x, x.powi(3), x.powi(5), sign, 1.0];
        let [a, b, c, e] = solve([row(low, 1.0), row(q, -1.0), row(r, 1.0), row(high, -1.0)]);
        let settled = (e.abs() - error).abs() <= 1e-15;
        (quintic, error) = ([a, b, c], e.abs());
        if settled {
            break;
        }
        let root = (9.0 * b * b - 20.0 * a * c).max(0.0).sqrt();
        (q, r) = (((-3.0 * b - root) / (10.0 * c)).sqrt(), ((-3.0 * b + root) / (10.0 * c)).sqrt());
    }
    (quintic, error)
}

/// Solves four linear equations, each with its right side last, by Gaussian elimination with
/// pivoting.
fn solve(mut m: [[f64; 5]; 4]) -> [f64; 4] {
    for i in 0..4 {
        let pivot = (i..4).max_by(|&p, &q| m[p][i].abs().total_cmp(&m[q][i].abs())).unwrap_or(i);
        m.swap(i, pivot);
        let row = m[i];
        for (j, other) in m.iter_mut().enumerate() {
            if j != i {
                let factor = other[i] / row[i];
                other.iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
            }
        }
    }
    [0, 1, 2, 3].map(|i| m[i][4] / m[i][i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first coefficients that the authors print for 10⁻³, before their safety factor.
    #[test]
    fn published_coefficients() {
        let published = [
            [8.28721201814563, -23.595886519098837, 17.300387312530933],
            [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
            [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
            [3.3184196573706015, -2.488488024314874, 0.51004894012372],
            [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
        ];
        for (i, (found, want)) in steps(1e-3, 9).iter().zip(published).enumerate() {
            for (k, (x, y)) in found.iter().zip(want).enumerate() {
                let x = x * SAFETY.powi(2 * k as i32 + 1);
                assert!((x - y).abs() < 1e-3 * y.abs(), "step {i}: {x} {y}");
            }
        }
    }

    /// The error is taken at four points, with alternating sign.
    #[test]
    fn the_error_equioscillates() {
        for (low, high) in [(1e-3, 1.0), (0.1, 1.9), (0.7, 1.3), (0.99, 1.01)] {
            let ([a, b, c], error) = best(low, high);
            let off = |x: f64| 1.0 - x * (a + x * x * (b + x * x * c));
            let grid = (0..=100_000).map(|i| off(low + (high - low) * f64::from(i) / 1e5));
            let worst = grid.fold(0.0, |m: f64, x| m.max(x.abs()));
            assert!((worst - error).abs() < 1e-8 + 1e-6 * error, "{low}: {worst} {error}");
            assert!((off(low) - error).abs() < 1e-9 && (off(high) + error).abs() < 1e-9, "{low}");
        }
    }
}
