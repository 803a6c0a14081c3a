//! From margins to radii: how far an input may move before another output can be the largest.

use crate::Error;
use crate::bound::{PAIRS, Walk, WeightNorms};
use crate::upper::Upper;

/// The constants of the differences of two outputs, ℓ2 → absolute value.
///
/// Where a network ends in a linear map W, that of outputs i and j is `‖w_i − w_j‖` times the
/// constant of all else, which is less than one constant for all pairs; it is never more than that.
pub struct Margins {
    all: Upper,
    /// That of i > j at `i(i−1)/2 + j`; empty where there are too many pairs.
    pairs: Vec<Upper>,
    /// The largest radius of the walk: of a linear map it is ‖W‖R + ‖b‖, whatever of that cancels.
    size: f64,
}

/// Share of [`Margins::size`] that is taken off a margin.
///
/// A linear map of n inputs loses at most γₙ ‖W‖_F ‖x‖, γₙ ≈ 10⁻¹⁶ n, and what follows multiplies
/// that by its constant; where outputs grow by the same norms as differences do, as in a
/// perceptron, all of it together is far below this share of the largest radius. For other networks
/// it is no proven bound of what f64 loses.
const ROUNDING: f64 = 1e-9;

impl Margins {
    /// Of a network that has been walked with these norms.
    ///
    /// # Errors
    /// [`Error`] names a weight that cannot be read.
    pub fn new(walk: &Walk, norms: &WeightNorms) -> Result<Self, Error> {
        let pairs = match &walk.head {
            Some(head) if walk.outputs <= PAIRS => {
                let differences = norms.row_differences(&head.block)?;
                differences.into_iter().map(|d| (d * head.rest).min(walk.margin)).collect()
            }
            _ => Vec::new(),
        };
        let size = walk.rows.iter().map(|row| row.radius).fold(walk.radius, Upper::max);
        Ok(Self { all: walk.margin, pairs, size: size.to_f64() })
    }

    /// The constant of the difference of outputs i and j.
    pub fn constant(&self, i: usize, j: usize) -> Upper {
        let (i, j) = (i.max(j), i.min(j));
        if i == j {
            Upper::ZERO
        } else {
            self.pairs.get(i * (i - 1) / 2 + j).copied().unwrap_or(self.all)
        }
    }

    /// Within which ℓ2 distance of the input output `class` stays the largest: not above the least
    /// over the others of `(z_class − z_j) / constant`; 0 unless it is the largest.
    pub fn radius(&self, logits: &[f64], class: usize) -> f64 {
        let radius = |(j, z): (usize, &f64)| {
            let margin = logits[class] - z - ROUNDING * self.size;
            // Not a number where a logit is not one, and not above 0 where the size is infinite.
            if margin > 0.0 { (margin / self.constant(class, j).to_f64()).next_down() } else { 0.0 }
        };
        let others = logits.iter().enumerate().filter(|(j, _)| *j != class);
        others.map(radius).fold(f64::INFINITY, f64::min).max(0.0)
    }
}

/// The index of the largest number, and by how much it exceeds the next; none unless all are
/// finite.
pub fn largest(logits: &[f64]) -> Option<(usize, f64)> {
    if logits.iter().any(|z| !z.is_finite()) {
        return None;
    }
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))?;
    let others = logits.iter().enumerate().filter(|(j, _)| *j != best).map(|(_, z)| *z);
    Some((best, logits[best] - others.fold(f64::NEG_INFINITY, f64::max)))
}
