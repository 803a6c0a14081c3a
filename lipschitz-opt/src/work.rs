//! What a step of one weight costs: the floating-point operations of its matrix products, as the
//! composed forms do them on a GPU.
//!
//! All other work passes over the weights a few times. From a width of a few hundred on, the
//! products outweigh it. Each formula stands beside the code that it counts.

use lipschitz_nn::graph::{HeadBlocks, Parameter};

use crate::blocks::block;

/// The short side s and the long side l of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Sides {
    pub(crate) short: usize,
    pub(crate) long: usize,
}

impl Sides {
    /// How many blocks a matrix has, and the sides of one.
    pub(crate) fn of(parameter: &Parameter, heads: Option<HeadBlocks>) -> (f64, Self) {
        let (count, rows, columns) = block(parameter, heads);
        (count as f64, Self { short: rows.min(columns), long: rows.max(columns) })
    }

    /// s.
    pub(crate) fn s(self) -> f64 {
        self.short as f64
    }

    /// l.
    pub(crate) fn l(self) -> f64 {
        self.long as f64
    }

    /// `X Xᵀ`, or a product of an `[s, s]` matrix and X.
    pub(crate) fn long_product(self) -> f64 {
        2.0 * self.s() * self.s() * self.l()
    }

    /// A product of two `[s, s]` matrices.
    pub(crate) fn short_product(self) -> f64 {
        2.0 * self.s().powi(3)
    }

    /// Odd quintics in turn: per step the Gram matrix, its square, and their sum times X.
    pub(crate) fn quintics(self, steps: usize) -> f64 {
        steps as f64 * (2.0 * self.long_product() + self.short_product())
    }

    /// Odd cubics in turn, which need no square.
    pub(crate) fn cubics(self, steps: usize) -> f64 {
        steps as f64 * 2.0 * self.long_product()
    }
}
