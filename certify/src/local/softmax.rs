//! What a softmax leaves out to second order, and what its rounding takes.

use super::maps::tiny;
use super::spread::root_of_squares;
use crate::spectral::{Matrix, gamma, quick_norm, vector_norm};
use crate::upper::{Upper, count};

/// Exponentials, divisions and positions are computed to within this many units.
pub(super) const UNITS: f64 = 64.0 * (f64::EPSILON / 2.0);

/// Probabilities are off by a relative error of this and γ of their number: the arguments of
/// exponentials are at most 750 in absolute value where they are not 0.
pub(super) const SOFTMAX: f64 = 2048.0 * (f64::EPSILON / 2.0);

/// Probabilities that are computed as 0 are below this.
pub(super) const NEGLIGIBLE: f64 = 1e-300;

/// Times the share of rounding, above [`NEGLIGIBLE`].
pub(super) const SMALL: f64 = 1e-280;

/// What is known inside of attention at given deviations; `[heads, tokens]` each.
pub(super) struct Reach {
    pub(super) scale: Upper,
    pub(super) beta: Upper,
    /// w
    pub(super) off: Vec<Upper>,
    /// A bound on half of the third moment, over √Var(a); on ‖Δp‖₁.
    pub(super) curved: Vec<Upper>,
    pub(super) moved: Vec<Upper>,
    /// What the deviation of all keys together counts for a query where it meets √Var(a), and that of all
    /// values where it meets ‖λ‖.
    pub(super) keys: Vec<Upper>,
    pub(super) values: Vec<Upper>,
    /// The largest |Δℓ| before the cap.
    pub(super) logit: Vec<Upper>,
    pub(super) query: Vec<Upper>,
    /// The largest of the keys and of the values in sight.
    pub(super) key: Vec<Upper>,
    pub(super) value: Vec<Upper>,
}

/// The rest of one head, one query, one functional; or of all functionals together, where they are the
/// elements of a vector.
pub(super) struct Rest {
    pub(super) at: usize,
    /// √Var(a)
    pub(super) sigma: Upper,
    /// ‖λ‖
    pub(super) norm: Upper,
    /// The largest |a_j − ā|.
    pub(super) apart: Upper,
    /// Σ |g_j|, and what rounding adds to it; before and behind the slopes of a soft cap.
    pub(super) capped: Upper,
    pub(super) pull: Upper,
    pub(super) off: Upper,
    /// Rounding of what the query is multiplied by.
    pub(super) query: Upper,
}

impl Reach {
    /// What logits are apart from a number, at most, and how far probabilities move in ℓ1.
    pub(super) fn of(&self, place: usize) -> (f64, f64) {
        (self.off[place].to_f64(), self.moved[place].to_f64())
    }
}

impl Rest {
    pub(super) fn at(&self, reach: &Reach) -> Upper {
        let i = self.at;
        // Softmax: half the third moment, or both parts on their own.
        let straight = reach.moved[i] * self.apart + self.sigma * reach.off[i];
        let softmax = (self.sigma * reach.curved[i]).min(straight);
        // Probabilities and values move together; queries and keys; and the cap bends.
        let values = self.norm * (reach.value[i] * reach.moved[i]).min(reach.values[i]);
        let products = reach.scale
            * reach.query[i]
            * (self.pull * reach.key[i]).min(self.sigma * reach.keys[i]);
        let cap = self.capped * reach.beta * reach.logit[i] * reach.logit[i];
        let rounding = self.off * reach.logit[i] + self.query * reach.query[i];
        softmax + values + products + cap + rounding
    }

    /// Of the vector of all these: the most that a functional of norm 1 of it has. `λ` are the functionals of
    /// the head's output, `[count, head_dim]`, and `gaps` their a_j − ā, `[count, keys]`, with the
    /// probabilities of the keys. The standard deviation of such a combination is at most the norm of
    /// `√p_j (a_j − ā)` as a matrix, and it bounds the mean of what is apart as well.
    pub(super) fn together(
        each: &[&Self],
        at: usize,
        lambda: &Matrix,
        gaps: Matrix,
        p: &[f64],
    ) -> Self {
        let of = |f: &dyn Fn(&Self) -> Upper| {
            root_of_squares(&each.iter().map(|rest| f(rest)).collect::<Vec<_>>())
        };
        let off = of(&|rest| rest.off);
        let column = |j: usize| -> Upper {
            let all: Vec<f64> =
                gaps.data.iter().skip(j).step_by(gaps.columns.max(1)).copied().collect();
            vector_norm(&all)
        };
        let apart = (0..gaps.columns).fold(Upper::ZERO, |m, j| m.max(column(j))) + off;
        let mut weighted = gaps;
        for row in weighted.data.chunks_mut(weighted.columns.max(1)) {
            row.iter_mut().zip(p).for_each(|(gap, p)| *gap *= p.sqrt());
        }
        let sigma = quick_norm(&weighted) + gamma(4) * vector_norm(&weighted.data) + tiny();
        let all = gamma(p.len() + 64) + Upper::from_f64(4.0 * SOFTMAX);
        let tail = count(p.len()) * Upper::from_f64(NEGLIGIBLE) * apart * apart;
        let sigma = (sigma * sigma * (Upper::ONE + all) + tail).sqrt() + off;
        Self {
            at,
            sigma,
            norm: quick_norm(lambda),
            apart,
            capped: sigma,
            pull: sigma + off,
            off,
            query: of(&|rest| rest.query),
        }
    }
}

/// e^x, rounded up.
pub(super) fn exp(x: Upper) -> Upper {
    let x = x.to_f64();
    if x > 700.0 { Upper::INFINITY } else { Upper::from_f64(x.exp() * (1.0 + 1e-13)) }
}
