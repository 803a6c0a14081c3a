//! Nodes, and what each kind of them computes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attention, Convolution, Function, Pool, Pooling};

/// One named node. Its name is one segment of the path of the weights below it; an empty name adds
/// no segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Path segment, without dots.
    #[serde(default)]
    pub name: String,
    /// What the node computes.
    #[serde(flatten)]
    pub op: Op,
}

impl Node {
    /// A node with a path segment; an empty name adds none.
    pub fn new(name: impl Into<String>, op: Op) -> Self {
        Self { name: name.into(), op }
    }

    /// The path of this node below `prefix`.
    pub fn path(&self, prefix: &str) -> String {
        join(prefix, &self.name)
    }
}

fn yes() -> bool {
    true
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// The body's nodes in turn.
    Sequential {
        /// First to last.
        body: Vec<Node>,
    },
    /// `Σ_i branch_i(x)`: branches side by side, each a node that reads the same x.
    Parallel {
        /// The branches; a branch of several nodes is a sequence.
        branches: Vec<Node>,
    },
    /// `skip·x + branch·body(x)`.
    Residual {
        /// Factor on the input.
        skip: f64,
        /// Factor on the body.
        branch: f64,
        /// First to last.
        body: Vec<Node>,
    },
    /// `W x + b`, `W` of shape `[outputs, inputs]`.
    Linear {
        /// Width in.
        inputs: usize,
        /// Width out.
        outputs: usize,
        /// Whether there is a `b`.
        bias: bool,
    },
    /// Token ids to rows of a `[vocabulary, dim]` table.
    Embedding {
        /// Rows.
        vocabulary: usize,
        /// Columns.
        dim: usize,
    },
    /// Adds row t of a `[length, dim]` table to token t.
    Positions {
        /// Rows.
        length: usize,
        /// Columns.
        dim: usize,
    },
    /// `scale·φ(x)`, elementwise.
    Activation {
        /// φ
        function: Function,
        /// Factor on φ.
        scale: f64,
    },
    /// `factor·x`.
    Scale {
        /// The factor.
        factor: f64,
    },
    /// `cap·tanh(x/cap)`, elementwise.
    SoftCap {
        /// Bound of the result.
        cap: f64,
    },
    /// Each element clipped to [-limit, limit]: bounds the pixels for the nodes that follow.
    Clip {
        /// The largest absolute value that passes.
        limit: f64,
    },
    /// Multi-head attention.
    Attention(Attention),
    /// Attention heads at fixed offsets: head h reads the token `offsets[h]` back, with probability
    /// 1, and the heads side by side are the output, `y_t = concat_h (w_h V_h x_{t−o_h})`. Before the
    /// first token there are zeros. V, of shape `[heads·head_dim, inputs]`, is `value.weight`, and w,
    /// of shape `[1, heads]`, is `shares.weight`: how much of the constant each head has.
    OffsetAttention {
        /// Width in; the width out is that of all heads together.
        inputs: usize,
        /// Width of each head.
        head_dim: usize,
        /// How many tokens back each head reads.
        offsets: Vec<usize>,
    },
    /// A convolution of an image.
    #[serde(rename = "conv2d")]
    Conv(Convolution),
    /// Moves each of as many groups of channels as there are offsets by its own, in pixels down and
    /// to the right: a permutation where the image goes round. Where zeros come in, what leaves the
    /// image is lost.
    Shift {
        /// Down and to the right, a group.
        offsets: Vec<[i32; 2]>,
        /// Whether the image goes round.
        #[serde(default)]
        circular: bool,
    },
    /// Squares of pixels as channels: `[c, h, w]` to `[c·size², h/size, w/size]`, with the pixels of
    /// a square, row by row, beside each other.
    SpaceToDepth {
        /// Side of a square in pixels.
        size: usize,
    },
    /// Pooling over windows of an image.
    Pool(Pool),
    /// Pooling over all pixels of an image: `[c, h, w]` to `[c]`.
    GlobalPool {
        /// What becomes of the pixels.
        pooling: Pooling,
    },
    /// `max(u, v)` and then `min(u, v)`, elementwise, for the first half u and the second half v of
    /// each token, or of an image's channels: a permutation of its elements, so it keeps norms, of values and of gradients
    /// (Anil, Lucas and Grosse, *Sorting out Lipschitz Function Approximation*, 2019). The halves
    /// rather than neighbours, so that loops over them are vectorised.
    MaxMin,
    /// `γ ∘ x / √(mean x² + ε)`.
    RmsNorm {
        /// Width.
        dim: usize,
        /// ε
        eps: f64,
        /// Whether there is a γ.
        #[serde(default = "yes")]
        gain: bool,
    },
    /// `γ ∘ (x − mean x) / √(var x + ε) + β`.
    LayerNorm {
        /// Width.
        dim: usize,
        /// ε
        eps: f64,
        /// Whether there is a β.
        bias: bool,
        /// Whether there is a γ.
        #[serde(default = "yes")]
        gain: bool,
    },
    /// `x / max(‖x‖₂, ε)`: a token or vector of length 1, or shorter where x is shorter than ε.
    Normalise {
        /// ε
        eps: f64,
    },
    /// `W_down (φ(W_gate x + b_gate) ∘ (W_up x + b_up)) + b_down`.
    GatedMlp {
        /// Width in and out.
        dim: usize,
        /// Width of the product.
        hidden: usize,
        /// φ
        function: Function,
        /// Whether the three maps have a bias.
        #[serde(default)]
        bias: bool,
    },
    /// Prepends a learned token.
    ClassToken {
        /// Width.
        dim: usize,
    },
    /// `[batch, tokens, dim]` to the first token `[batch, dim]`.
    FirstToken,
    /// `[batch, tokens, dim]` to the last token `[batch, dim]`.
    LastToken,
    /// `[batch, tokens, dim]` to the first token and the mean of the others, concatenated:
    /// `[batch, 2·dim]`.
    FirstAndMean,
    /// `[batch, …]` to `[batch, product]`.
    Flatten,
    /// Images to `[batch, tokens, channels·size²]`, non-overlapping squares, row by row.
    Patches {
        /// Side of a square in pixels.
        size: usize,
    },
    /// The mean over tokens: `[batch, tokens, dim]` to `[batch, dim]`.
    MeanPool,
}

impl Op {
    /// The kind as it is spelt in a serialised graph.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Sequential { .. } => "sequential",
            Op::Parallel { .. } => "parallel",
            Op::Residual { .. } => "residual",
            Op::Linear { .. } => "linear",
            Op::Embedding { .. } => "embedding",
            Op::Positions { .. } => "positions",
            Op::Activation { .. } => "activation",
            Op::Scale { .. } => "scale",
            Op::SoftCap { .. } => "soft_cap",
            Op::Clip { .. } => "clip",
            Op::Attention(_) => "attention",
            Op::OffsetAttention { .. } => "offset_attention",
            Op::Conv(_) => "conv2d",
            Op::Shift { .. } => "shift",
            Op::SpaceToDepth { .. } => "space_to_depth",
            Op::Pool(_) => "pool",
            Op::GlobalPool { .. } => "global_pool",
            Op::MaxMin => "max_min",
            Op::RmsNorm { .. } => "rms_norm",
            Op::LayerNorm { .. } => "layer_norm",
            Op::Normalise { .. } => "normalise",
            Op::GatedMlp { .. } => "gated_mlp",
            Op::Flatten => "flatten",
            Op::Patches { .. } => "patches",
            Op::MeanPool => "mean_pool",
            Op::ClassToken { .. } => "class_token",
            Op::FirstToken => "first_token",
            Op::LastToken => "last_token",
            Op::FirstAndMean => "first_and_mean",
        }
    }

    /// The nodes inside of a node that has some.
    #[must_use]
    pub fn body(&self) -> Option<&[Node]> {
        match self {
            Op::Sequential { body }
            | Op::Residual { body, .. }
            | Op::Parallel { branches: body } => Some(body),
            Op::Linear { .. }
            | Op::Embedding { .. }
            | Op::Positions { .. }
            | Op::Activation { .. }
            | Op::Scale { .. }
            | Op::SoftCap { .. }
            | Op::Clip { .. }
            | Op::Attention(_)
            | Op::OffsetAttention { .. }
            | Op::Conv(_)
            | Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::Pool(_)
            | Op::GlobalPool { .. }
            | Op::MaxMin
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::Normalise { .. }
            | Op::GatedMlp { .. }
            | Op::Flatten
            | Op::Patches { .. }
            | Op::MeanPool
            | Op::ClassToken { .. }
            | Op::FirstToken
            | Op::LastToken
            | Op::FirstAndMean => None,
        }
    }
}

/// Joins two path segments, either of which may be empty.
pub fn join(prefix: &str, name: &str) -> String {
    match (prefix.is_empty(), name.is_empty()) {
        (true, _) => name.to_string(),
        (_, true) => prefix.to_string(),
        _ => format!("{prefix}.{name}"),
    }
}
