//! The constrained transformer: no layer norm, no biases, residuals that are convex combinations.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::graph::{Attention, Function, Graph, Input, Node, Op, Pairing, PositionBias, Rotary};

/// Newhouse et al. (2025) divide GELU by 1.1289, which makes |φ(x)| ≤ |x| / 1.1289 (its slope stays
/// slightly above 1).
pub const GELU_SCALE: f64 = 1.0 / 1.1289;

/// A decoder-only transformer (Newhouse et al., *Training Transformers with Enforced Lipschitz
/// Constants*, 2025, section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt {
    /// Token ids.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Blocks.
    pub layers: usize,
    /// One of them.
    pub block: BlockConfig,
    /// Factor on the logits of the network.
    pub final_scale: f64,
    /// The token that begins a new document, if attention is to stay within one.
    pub separator: Option<u32>,
    /// How many zero vectors stand in front of every sequence.
    pub zero_prefix: usize,
}

impl Gpt {
    /// One document, and logits as they are.
    pub fn new(vocabulary: usize, context: usize, layers: usize, block: BlockConfig) -> Self {
        let (final_scale, separator, zero_prefix) = (1.0, None, 0);
        Self { vocabulary, context, layers, block, final_scale, separator, zero_prefix }
    }

    /// The graph: the embedding, the blocks, the head.
    ///
    /// # Errors
    /// [`Error::Graph`] if a size is zero, α is out of range, or the heads do not divide the width
    /// into parts that fit.
    pub fn graph(&self) -> Result<Graph, Error> {
        let &Self { vocabulary, context, layers, ref block, final_scale, separator, zero_prefix } =
            self;
        let dim = block.dim;
        let mut nodes = vec![
            Node::new("embedding", Op::Embedding { vocabulary, dim }),
            blocks(block, layers)?,
            Node::new("head", Op::Linear { inputs: dim, outputs: vocabulary, bias: false }),
        ];
        if final_scale != 1.0 {
            nodes.push(Node::new("", Op::Scale { factor: final_scale }));
        }
        Graph::new(Input::Tokens { context, separator, zero_prefix }, nodes)
    }
}

/// The activation of an MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU/1.1289, as in Newhouse et al. (2025).
    #[default]
    Gelu,
    /// |x|, which keeps the norm of a gradient: it trains further at a small constant.
    Abs,
}

/// How attention knows the distance from a query to a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Queries and keys are rotated by their position, as in Newhouse et al. (2025).
    #[default]
    Rotary,
    /// A learned bias per distance is added to the logits, 32 buckets up to a distance of 128 as in
    /// T5: heads can attend to near tokens whatever the caps are.
    Bias,
}

/// One block: attention, then an MLP four times as wide.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Attention heads; divides `dim`.
    pub heads: usize,
    /// Factor on the attention logits `q·k`.
    pub logit_scale: f64,
    /// Factor on the attention output.
    pub output_scale: f64,
    /// Whether a token sees only itself and earlier tokens.
    pub causal: bool,
    /// How attention knows distances, if it does.
    pub positions: Option<Positions>,
    /// The activation of the MLP.
    pub activation: Activation,
    /// α, the weight of each block in `(1−α)x + α·block(x)`; 1/(2·layers) if not given.
    pub alpha: Option<f64>,
}

impl BlockConfig {
    /// As in Newhouse et al. (2025): causal, logits over head_dim, a third of the attention output,
    /// rotary positions, GELU.
    pub fn new(dim: usize, heads: usize) -> Self {
        Self {
            dim,
            heads,
            logit_scale: heads as f64 / dim as f64,
            output_scale: 1.0 / 3.0,
            causal: true,
            positions: Some(Positions::Rotary),
            activation: Activation::Gelu,
            alpha: None,
        }
    }
}

/// The most blocks: a number with a few digits too many is refused before it takes all memory.
const MAX_LAYERS: usize = 10_000;

/// The node `blocks`: `(1−α)x + α·attention(x)` and `(1−α)x + α·mlp(x)` in turn.
///
/// # Errors
/// [`Error::Graph`] if there are no layers or more than [`MAX_LAYERS`], `heads` does not divide the
/// width, or α is not above 0 and at most 1.
pub(super) fn blocks(block: &BlockConfig, layers: usize) -> Result<Node, Error> {
    let &BlockConfig {
        dim,
        heads,
        logit_scale,
        output_scale,
        causal,
        positions,
        activation,
        alpha,
    } = block;
    if heads == 0 || dim % heads != 0 {
        let what = format!("has dim = {dim}, which heads = {heads} do not divide");
        return Err(Error::graph("", what));
    }
    if layers == 0 {
        return Err(Error::graph("", "has layers = 0; it wants one or more"));
    }
    if layers > MAX_LAYERS {
        return Err(Error::graph("", format!("has {layers} layers, more than {MAX_LAYERS}")));
    }
    let alpha = alpha.unwrap_or(1.0 / (2.0 * layers as f64));
    if !(alpha > 0.0 && alpha <= 1.0) {
        return Err(Error::graph(
            "",
            format!("has alpha = {alpha}, which must be above 0 and at most 1"),
        ));
    }
    let residual =
        |name: &str, body| Node::new(name, Op::Residual { skip: 1.0 - alpha, branch: alpha, body });
    let linear =
        |name: &str, inputs, outputs| Node::new(name, Op::Linear { inputs, outputs, bias: false });
    let attention = Op::Attention(Attention {
        logit_scale,
        output_scale,
        causal,
        rotary: (positions == Some(Positions::Rotary)).then(|| Rotary::new(10000.0, Pairing::Half)),
        position_bias: (positions == Some(Positions::Bias))
            .then_some(PositionBias { buckets: 32, max_distance: 128 }),
        ..Attention::new(dim, heads, dim / heads)
    });
    let activation = match activation {
        Activation::Gelu => Op::Activation { function: Function::GeluErf, scale: GELU_SCALE },
        Activation::Abs => Op::Activation { function: Function::Abs, scale: 1.0 },
    };
    // A width that is too large is refused with the graph.
    let hidden = dim.saturating_mul(4);
    let one = |i: usize| {
        let mlp = vec![
            linear("up", dim, hidden),
            Node::new("", activation.clone()),
            linear("down", hidden, dim),
        ];
        let body = vec![
            residual("attention", vec![Node::new("", attention.clone())]),
            residual("mlp", mlp),
        ];
        Node::new(i.to_string(), Op::Sequential { body })
    };
    Ok(Node::new("blocks", Op::Sequential { body: (0..layers).map(one).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Init;

    fn starts(alpha: Option<f64>) -> Vec<(String, Init)> {
        let block =
            BlockConfig { positions: Some(Positions::Bias), alpha, ..BlockConfig::new(8, 2) };
        let parameters = Gpt::new(5, 4, 1, block).graph().unwrap().parameters();
        parameters.into_iter().map(|p| (p.name, p.init)).collect()
    }

    /// Branches start at zero where there is a skip connection; where there is none, a network
    /// of zeros would never move.
    #[test]
    fn what_starts_at_zero() {
        let zeros = |alpha| {
            let zero = starts(alpha).into_iter().filter(|(_, init)| *init == Init::Zero);
            zero.map(|(name, _)| name).collect::<Vec<_>>()
        };
        let branches = ["blocks.0.attention.output.weight", "blocks.0.mlp.down.weight"];
        assert_eq!(zeros(None), [branches[0], branches[1], "head.weight"]);
        assert_eq!(zeros(Some(1.0)), ["head.weight"]);
    }

    #[test]
    fn a_network_too_large_to_write_down_is_refused() {
        for layers in [10_001, 1 << 40, usize::MAX] {
            let said = Gpt::new(5, 4, layers, BlockConfig::new(8, 2)).graph().unwrap_err();
            assert!(said.to_string().contains("layers, more than 10000"), "{said}");
        }
        for dim in [1 << 40, 1 << 62, usize::MAX - 1] {
            assert!(Gpt::new(5, 4, 1, BlockConfig::new(dim, 2)).graph().is_err());
        }
    }

    #[test]
    fn shares_out_of_range_are_refused() {
        for alpha in [0.0, -0.5, 1.5, f64::NAN] {
            let block = BlockConfig { alpha: Some(alpha), ..BlockConfig::new(8, 2) };
            let said = Gpt::new(5, 4, 1, block).graph().unwrap_err().to_string();
            assert!(said.contains("alpha"), "{said}");
        }
    }
}
