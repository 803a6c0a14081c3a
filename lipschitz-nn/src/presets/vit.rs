//! The constrained vision transformer: the constrained transformer on the squares of an image.

use super::gpt::{BlockConfig, blocks};
use crate::Error;
use crate::graph::{Graph, Input, Node, Op};

/// A vision transformer without layer norm, biases or a class token: patches, an embedding that is
/// averaged with learned positions, blocks whose tokens all see each other, the mean over tokens,
/// and the head (after Dosovitskiy et al., *An image is worth 16×16 words*, 2021).
///
/// Pixels are clipped to [-1, 1], so that attention's inputs are bounded, and with them the
/// constant for all inputs; those of images, in [0, 1], stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Vit {
    /// Colour channels, height and width of an image.
    pub image: [usize; 3],
    /// Side of a patch, in pixels; divides height and width.
    pub patch: usize,
    /// Number of classes.
    pub outputs: usize,
    /// The blocks.
    pub block: BlockConfig,
    /// How many of them.
    pub layers: usize,
    /// Factor on the logits of the network.
    pub final_scale: f64,
}

impl Vit {
    /// The graph.
    ///
    /// # Errors
    /// [`Error::Graph`] if a size is zero, `heads` does not divide the width, or `patch` the sides
    /// of the image.
    pub fn graph(&self) -> Result<Graph, Error> {
        let [channels, height, width] = self.image;
        let (patch, dim) = (self.patch, self.block.dim);
        // Sizes that are too large are refused with the graph.
        let pixels = channels.saturating_mul(patch).saturating_mul(patch);
        let patches = (height / patch.max(1)).saturating_mul(width / patch.max(1));
        let linear = |name: &str, inputs, outputs| {
            Node::new(name, Op::Linear { inputs, outputs, bias: false })
        };
        let mut nodes = vec![
            Node::new("", Op::Clip { limit: 1.0 }),
            Node::new("", Op::Patches { size: patch }),
            linear("embedding", pixels, dim),
            Node::new("positions", Op::Positions { length: patches, dim }),
            Node::new("", Op::Scale { factor: 0.5 }),
            blocks(&self.block, self.layers)?,
            Node::new("", Op::MeanPool),
            linear("head", dim, self.outputs),
        ];
        if self.final_scale != 1.0 {
            nodes.push(Node::new("", Op::Scale { factor: self.final_scale }));
        }
        Graph::new(Input::Pixels { channels, height, width }, nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_overflow_are_refused() {
        let (block, largest) = (BlockConfig::new(8, 2), usize::MAX);
        for (image, patch) in
            [([3, 32, 32], largest), ([3, 32, 32], 1 << 32), ([3, largest, largest], 1)]
        {
            let (block, outputs) = (block.clone(), 10);
            let vit = Vit { image, patch, outputs, block, layers: 1, final_scale: 1.0 };
            assert!(vit.graph().is_err(), "{image:?} {patch}");
        }
    }
}
