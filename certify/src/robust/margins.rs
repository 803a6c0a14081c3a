//! From margins to certified radii: how far an input may move before another output can be the
//! largest.

use lipschitz_nn::Graph;

use crate::Error;
use crate::bound::{F64, PAIRS, Walk, WeightNorms, rounding};
use crate::ellipsoid::Ellipsoids;
use crate::upper::Upper;

/// The constants of the differences of two outputs, ℓ2 → absolute value.
///
/// Where a network ends in a linear map W, that of outputs i and j is `‖w_i − w_j‖` times the
/// constant of everything else, and never more than the common constant of all pairs; or what
/// ellipsoids give for the two, if that is less.
pub struct Margins {
    /// The constant of all pairs.
    all: Upper,
    /// That of outputs i > j at `i(i−1)/2 + j`; empty if there are too many pairs.
    pairs: Vec<Upper>,
    /// What rounding may take of a margin: both outputs may be off.
    rounding: f64,
}

impl Margins {
    /// The margins of a network whose bounds were propagated with these norms, and by ellipsoids on
    /// a domain that contains this one, if they were. Outputs are those computed in f64, so what that
    /// rounds on the domain is taken off; nothing is certified where it is not bounded.
    ///
    /// # Errors
    /// [`Error`] names a weight that cannot be read.
    pub fn new(
        graph: &Graph,
        walk: &Walk,
        norms: &WeightNorms,
        ellipsoids: Option<&Ellipsoids>,
    ) -> Result<Self, Error> {
        let mut pairs: Vec<Upper> = match &walk.head {
            Some(head) if walk.outputs <= PAIRS => {
                let differences = norms.row_differences(&head.block)?;
                differences.into_iter().map(|d| (d * head.rest).min(walk.margin)).collect()
            }
            _ => Vec::new(),
        };
        let mut all = walk.margin;
        if let Some(ellipsoids) = ellipsoids {
            all = all.min(ellipsoids.bound.margin);
            if pairs.is_empty() {
                pairs.clone_from(&ellipsoids.pairs);
            }
            pairs.iter_mut().zip(&ellipsoids.pairs).for_each(|(pair, by)| *pair = pair.min(*by));
            pairs.iter_mut().for_each(|pair| *pair = pair.min(all));
        }
        let off = rounding(graph, norms, walk.domain, F64)?;
        Ok(Self { all, pairs, rounding: (off + off).to_f64() })
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

    /// The certified radius: within this ℓ2 distance of the input, output `class` stays the
    /// largest. At most the smallest `(z_class − z_j) / constant` over the other outputs j; 0
    /// unless output `class` is the largest.
    pub fn radius(&self, logits: &[f64], class: usize) -> f64 {
        let radius = |(j, z): (usize, &f64)| {
            let margin = (logits[class] - z).next_down() - self.rounding;
            // The margin is NaN if a logit is, and not above 0 if rounding is not bounded.
            if margin > 0.0 {
                (margin.next_down() / self.constant(class, j).to_f64()).next_down()
            } else {
                0.0
            }
        };
        let others = logits.iter().enumerate().filter(|(j, _)| *j != class);
        others.map(radius).fold(f64::INFINITY, f64::min).max(0.0)
    }
}

/// The index of the largest logit, and by how much it exceeds the second; none unless all are
/// finite.
pub fn largest(logits: &[f64]) -> Option<(usize, f64)> {
    if logits.iter().any(|z| !z.is_finite()) {
        return None;
    }
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))?;
    let others = logits.iter().enumerate().filter(|(j, _)| *j != best).map(|(_, z)| *z);
    Some((best, logits[best] - others.fold(f64::NEG_INFINITY, f64::max)))
}
