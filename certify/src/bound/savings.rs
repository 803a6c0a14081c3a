//! What each tightening saves: the same bound propagation, with norms that do without it.

use super::norms::{Block, Norm, Norms, Part};
use super::walk::walk;
use crate::Error;
use crate::upper::Upper;
use lipschitz_nn::Graph;

/// A refinement that makes the bound tighter than the simplest one.
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

    /// A short description.
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

impl Norms for Without<'_> {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        let apart = |a: &Block, b: &Block| Ok(self.norms.matrix(a)? * self.norms.matrix(b)?);
        let whole = |block: &Block| block.clone().rows(Part::ALL).columns(Part::ALL);
        match (self.tightening, norm) {
            (Tightening::Heads, Norm::Matrix(block)) => self.norms.matrix(&whole(block)),
            (Tightening::Heads, Norm::OutputValue(a, b) | Norm::QueryKey(a, b)) => {
                apart(&whole(a), &whole(b))
            }
            (Tightening::Products, Norm::OutputValue(a, b) | Norm::QueryKey(a, b))
            | (Tightening::Split, Norm::Product(a, b)) => apart(a, b),
            (Tightening::Folding, _) => self.unfolded(norm),
            _ => self.norms.norm(norm),
        }
    }
}

impl Without<'_> {
    /// With gains as factors: the norm of W diag γ is at most that of W times the largest gain.
    fn unfolded(&self, norm: &Norm) -> Result<Upper, Error> {
        let plain = |block: &Block| block.clone().gain(None);
        let gain = |block: &Block| match &block.gain {
            Some(gain) => self.norms.largest(gain),
            None => Ok(Upper::ONE),
        };
        let both = |of: fn(Block, Block) -> Norm, a: &Block, b: &Block| {
            Ok::<_, Error>(self.norms.norm(&of(plain(a), plain(b)))? * gain(a)? * gain(b)?)
        };
        Ok(match norm {
            Norm::Matrix(a) => self.norms.matrix(&plain(a))? * gain(a)?,
            Norm::Row(a) => self.norms.row(&plain(a))? * gain(a)?,
            Norm::RowDifference(a) => self.norms.norm(&Norm::RowDifference(plain(a)))? * gain(a)?,
            Norm::Product(a, b) => both(Norm::Product, a, b)?,
            Norm::OutputValue(a, b) => both(Norm::OutputValue, a, b)?,
            Norm::QueryKey(a, b) => both(Norm::QueryKey, a, b)?,
            other => self.norms.norm(other)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use lipschitz_nn::graph::{Function, Input, Node, Op};
    use lipschitz_nn::init::{self, Blocks};
    use lipschitz_nn::{Graph, Model};

    use super::*;
    use crate::bound::WeightNorms;
    use crate::spectral::Method;

    /// The name of a weight does not decide what it is.
    #[test]
    fn an_mlp_has_no_heads_whatever_its_layers_are_called() {
        let constants = |last: &str| {
            let linear = |name: &str, inputs, outputs| {
                Node::new(name, Op::Linear { inputs, outputs, bias: false })
            };
            let relu = Op::Activation { function: Function::Relu, scale: 1.0 };
            let nodes = vec![linear("first", 5, 7), Node::new("", relu), linear(last, 7, 4)];
            let graph = Graph::new(Input::Vector { dim: 5 }, nodes).unwrap();
            let mut weights =
                init::weights(&graph, 1, Blocks::Whole, &Device::Cpu, DType::F64).unwrap();
            weights.values_mut().for_each(|w| *w = (&*w + 0.1).unwrap());
            let model = Model::new(graph, weights).unwrap();
            let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
            let whole = walk(model.graph(), &norms, None).unwrap().rms();
            let without = Tightening::ALL.map(|t| without(t, model.graph(), &norms, None).unwrap());
            (whole, without)
        };
        let (whole, without) = constants("output");
        assert_eq!((whole, without), constants("head"));
        let [heads, products, split, folding] = without;
        assert_eq!([heads, products, folding], [whole; 3]);
        assert!(split > whole);
    }
}
