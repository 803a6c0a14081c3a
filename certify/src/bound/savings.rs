//! What each tightening saves: the same walk, with norms that do without it.

use super::{Block, Norm, Norms, Part, walk};
use crate::Error;
use crate::upper::Upper;
use lipschitz_nn::Graph;

/// A way in which the bound is tighter than the plainest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tightening {
    /// Norms of each head's own rows and columns.
    Heads,
    /// Norms of O_h V_h and Q_hᵀ K_h instead of products of norms.
    Products,
    /// Slopes of an activation split over the linear maps around it.
    Split,
    /// Gains of norms folded into the next linear map.
    Folding,
}

impl Tightening {
    /// All of them.
    pub const ALL: [Tightening; 4] = [Self::Heads, Self::Products, Self::Split, Self::Folding];

    /// What it does, in a few words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Heads => "norms of each head",
            Self::Products => "norms of the products O_h V_h and Q_hᵀ K_h",
            Self::Split => "slopes split over two linear maps",
            Self::Folding => "gains folded into the next linear map",
        }
    }
}

/// The constant, RMS → RMS, without a tightening.
///
/// # Errors
/// As [`walk`].
pub fn without(
    tightening: Tightening,
    graph: &Graph,
    norms: &dyn Norms,
    radius: Option<Upper>,
) -> Result<Upper, Error> {
    Ok(walk(graph, &Without { tightening, norms }, radius)?.rms())
}

struct Without<'a> {
    tightening: Tightening,
    norms: &'a dyn Norms,
}

/// Whether a product is that of a head, not of two linear maps around an activation.
fn of_a_head(a: &Block) -> bool {
    a.weight.ends_with("output.weight")
}

impl Norms for Without<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        let apart = |a: &Block, b: &Block| Ok(self.norms.matrix(a)? * self.norms.matrix(b)?);
        let whole = |block: &Block| block.clone().rows(Part::ALL).columns(Part::ALL);
        match (self.tightening, norm) {
            (Tightening::Heads, Norm::Matrix(block)) => self.norms.matrix(&whole(block)),
            (Tightening::Heads, Norm::Product(a, b)) if of_a_head(a) => apart(&whole(a), &whole(b)),
            (Tightening::Heads, Norm::TransposedProduct(a, b)) => apart(&whole(a), &whole(b)),
            (Tightening::Products, Norm::Product(a, b)) if of_a_head(a) => apart(a, b),
            (Tightening::Products, Norm::TransposedProduct(a, b)) => apart(a, b),
            (Tightening::Split, Norm::Product(a, b)) if !of_a_head(a) => apart(a, b),
            (Tightening::Folding, _) => self.unfolded(norm),
            _ => self.norms.norm(norm),
        }
    }
}

impl Without<'_> {
    /// Gains as factors: the norm of W diag γ is at most that of W times the largest gain.
    fn unfolded(&self, norm: &Norm) -> Result<Upper, Error> {
        let plain = |block: &Block| block.clone().gain(None);
        let gain = |block: &Block| match &block.gain {
            Some(gain) => self.norms.largest(gain),
            None => Ok(Upper::ONE),
        };
        Ok(match norm {
            Norm::Matrix(a) => self.norms.matrix(&plain(a))? * gain(a)?,
            Norm::Row(a) => self.norms.row(&plain(a))? * gain(a)?,
            Norm::RowDifference(a) => self.norms.norm(&Norm::RowDifference(plain(a)))? * gain(a)?,
            Norm::Product(a, b) => {
                self.norms.norm(&Norm::Product(plain(a), plain(b)))? * gain(a)? * gain(b)?
            }
            Norm::TransposedProduct(a, b) => {
                self.norms.norm(&Norm::TransposedProduct(plain(a), plain(b)))? * gain(a)? * gain(b)?
            }
            other => self.norms.norm(other)?,
        })
    }
}
