//! What a step of one weight costs: the floating-point operations of its matrix products, as the
//! composed forms do them on a GPU.
//!
//! Everything else passes over the weights a few times, which products outweigh from a width of a
//! few hundred on.

use lipschitz_nn::graph::{Geometry, Parameter};

use crate::blocks::block;
use crate::constraint::{ConstraintKind, HardCap, ITERATIONS, NormEstimator, SQUARINGS};
use crate::polynomial::{by_gram, hard_cap_steps};
use crate::{NewtonSchulz, OptimizerConfig, Precision, Recipe};

/// One matrix seen from its short side s and its long side l.
#[derive(Clone, Copy)]
struct Sides {
    s: f64,
    l: f64,
    gram: bool,
}

impl Sides {
    /// `X Xᵀ`, or a product of an `[s, s]` matrix and X.
    fn long(self) -> f64 {
        2.0 * self.s * self.s * self.l
    }

    /// A product of two `[s, s]` matrices.
    fn short(self) -> f64 {
        2.0 * self.s.powi(3)
    }

    /// Odd quintics in turn: Gram matrix, its square, their sum times X. A cubic needs no square.
    fn quintics(self, steps: usize) -> f64 {
        steps as f64 * (2.0 * self.long() + self.short())
    }

    fn cubics(self, steps: usize) -> f64 {
        steps as f64 * 2.0 * self.long()
    }

    fn orthogonalise(self, set: NewtonSchulz) -> f64 {
        let steps = set.steps().len();
        // A step is the square of the Gram matrix G and the factors' product, and but for the last
        // two for the next G.
        if self.gram {
            2.0 * self.long() + (4 * steps - 3) as f64 * self.short()
        } else {
            self.quintics(steps)
        }
    }

    fn polar(self) -> f64 {
        self.orthogonalise(NewtonSchulz::SixStep) + self.cubics(3)
    }

    /// A product with a vector and one with the transpose, again and again.
    fn power(self) -> f64 {
        4.0 * self.s * self.l * ITERATIONS.1 as f64
    }

    /// A bound on the norm by Gram iteration.
    fn norm(self) -> f64 {
        self.long() + f64::from(SQUARINGS) * self.short()
    }
}

impl Recipe {
    /// Floating-point operations of the optimizer's products in a step of this weight.
    pub fn update_work(&self, parameter: &Parameter) -> f64 {
        match (self.optimizer_of(parameter), parameter.geometry) {
            (OptimizerConfig::Muon(muon), Geometry::Matrix) => {
                let (count, mut sides) = sides(block(parameter, muon.per_head.of(parameter)));
                sides.gram &= muon.precision == Precision::F32;
                count * sides.orthogonalise(muon.newton_schulz)
            }
            _ => 0.0,
        }
    }

    /// Floating-point operations of the constraint's products in a step of this weight; none known
    /// for an SVD.
    pub fn constraint_work(&self, parameter: &Parameter) -> Option<f64> {
        let config = &self.constraint;
        if parameter.geometry != Geometry::Matrix || config.caps_vectors(parameter) {
            return Some(0.0);
        }
        let (count, sides) = sides(block(parameter, config.per_head.of(parameter)));
        let bounded = self.optimizer_of(parameter).update_bound(parameter).is_some();
        let norm = if bounded { 0.0 } else { sides.norm() };
        Some(
            count
                * match config.method {
                    ConstraintKind::None | ConstraintKind::WeightDecay => 0.0,
                    ConstraintKind::SpectralWeightDecay | ConstraintKind::SpectralHammer => {
                        sides.power()
                    }
                    ConstraintKind::SpectralNormalize
                        if config.norm == Some(NormEstimator::Power) =>
                    {
                        sides.power()
                    }
                    ConstraintKind::SpectralNormalize => sides.norm(),
                    ConstraintKind::Stiefel => sides.polar(),
                    // Two cubics.
                    ConstraintKind::SpectralSoftCap => sides.cubics(2) + norm,
                    ConstraintKind::SpectralHardCap => {
                        norm + match config.form.unwrap_or_default() {
                            HardCap::Quintic => sides.quintics(hard_cap_steps().len()),
                            // The direction, its product with X, a sign of that, and one more
                            // product.
                            HardCap::Sign => {
                                let square = Sides { l: sides.s, gram: false, ..sides };
                                let sign = square.quintics(NewtonSchulz::SixStep.steps().len())
                                    + square.cubics(3);
                                sides.polar() + 2.0 * sides.long() + sign
                            }
                        }
                    }
                    ConstraintKind::SvdClip => return None,
                },
        )
    }
}

fn sides((count, rows, columns): (usize, usize, usize)) -> (f64, Sides) {
    let (s, l) = (rows.min(columns) as f64, rows.max(columns) as f64);
    (count as f64, Sides { s, l, gram: by_gram(rows, columns) })
}
