//! The architecture graph: a network as a piece of data.
//!
//! A graph is an input and a sequence of named nodes. Every interpreter reads the same graph:
//! [`crate::Model`] runs it, training takes its parameters and their geometry from it, a
//! certificate is proven from it, a checkpoint stores it. A new layer kind is a new [`Op`]; the
//! compiler then names each interpreter that lacks an arm.

mod attention;
mod builder;
mod check;
mod id;
mod image;
mod outline;
mod parameter;
mod site;

pub use attention::{Alibi, Attention, NormKind, Pairing, PositionBias, Rotary, Span};
pub use builder::{Branches, Builder};
pub use id::NodeId;
pub use image::{Convolution, Pool, Pooling};
pub use outline::Outline;
pub use parameter::{Axis, Geometry, HeadBlocks, Init, Parameter};
pub use site::{Site, Stage};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, strict};

/// The format version of a serialised graph.
pub const FORMAT: u32 = 1;

/// A network: what goes in, and the nodes it passes through. Every graph there is fits together:
/// names, shapes and constants are checked when it is made, read or deserialised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Document", into = "Document")]
#[schemars(with = "Document")]
pub struct Graph {
    input: Input,
    nodes: Vec<Node>,
    output: Shape,
}

/// A network: what goes in, and the nodes it passes through.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Graph")]
struct Document {
    /// Format version, [`FORMAT`].
    format: u32,
    /// What the network reads.
    input: Input,
    /// The nodes, first to last.
    nodes: Vec<Node>,
}

impl TryFrom<Document> for Graph {
    type Error = Error;

    fn try_from(Document { format, input, nodes }: Document) -> Result<Self, Error> {
        if format != FORMAT {
            let what = format!("has format {format}, this version reads {FORMAT}");
            return Err(Error::graph("", what));
        }
        Self::new(input, nodes)
    }
}

impl From<Graph> for Document {
    fn from(Graph { input, nodes, .. }: Graph) -> Self {
        Self { format: FORMAT, input, nodes }
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What a network reads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Token ids `[batch, tokens]`; the first node is an [`Op::Embedding`].
    Tokens {
        /// Longest sequence.
        context: usize,
        /// The token that begins a new document: attention stays within a document.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        separator: Option<u32>,
        /// How many zero vectors stand in front of the embedding vectors of every sequence, so that
        /// its first tokens have others in sight as well. They stay zero up to the last attention,
        /// which [`Graph::new`] checks, and the output is without them.
        #[serde(default, skip_serializing_if = "is_zero")]
        zero_prefix: usize,
    },
    /// Images `[batch, channels, height, width]`.
    Pixels {
        /// Colour channels.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// Vectors `[batch, dim]`.
    Vector {
        /// Their length.
        dim: usize,
    },
}

impl Input {
    /// Token ids, up to `context` of them, one document.
    pub fn tokens(context: usize) -> Self {
        Self::Tokens { context, separator: None, zero_prefix: 0 }
    }

    /// How many positions metrics count per example: the tokens of a longest sequence; an image or
    /// a vector is one.
    pub fn positions(&self) -> usize {
        match self {
            Self::Tokens { context, .. } => *context,
            Self::Pixels { .. } | Self::Vector { .. } => 1,
        }
    }
}

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

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// x
    Identity,
    /// max(x, 0)
    Relu,
    /// |x|: its slope is ±1 everywhere, so it keeps the norm of a gradient (Anil, Lucas and Grosse,
    /// *Sorting out Lipschitz Function Approximation*, 2019).
    Abs,
    /// x·Φ(x)
    GeluErf,
    /// GELU's tanh approximation.
    GeluTanh,
    /// x·sigmoid(x)
    Silu,
    /// tanh(x)
    Tanh,
    /// 1/(1+e⁻ˣ)
    Sigmoid,
    /// max(x, 0)² (So et al., *Primer*, 2021). Its slope 2·max(x, 0) has no bound, so it has a
    /// Lipschitz constant only where its input is bounded.
    Relu2,
    /// x for x > 0, `slope`·x elsewhere.
    LeakyRelu {
        /// Slope on the left.
        slope: f64,
    },
    /// x for x > 0, `alpha`·(eˣ − 1) elsewhere (Clevert et al., 2016).
    Elu {
        /// Minus the limit on the left.
        alpha: f64,
    },
    /// ln(1+eˣ)
    Softplus,
    /// x·tanh(ln(1+eˣ)) (Misra, 2020).
    Mish,
    /// x·sigmoid(1.702·x), an approximation of GELU.
    QuickGelu,
    /// x·clip(x/6 + ½, 0, 1) (Howard et al., *Searching for MobileNetV3*, 2019).
    HardSwish,
    /// clip(x/6 + ½, 0, 1)
    HardSigmoid,
}

impl Function {
    /// Whether φ(0) = 0.
    pub fn keeps_zero(&self) -> bool {
        !matches!(self, Self::Sigmoid | Self::Softplus | Self::HardSigmoid)
    }

    /// All of them, those with a constant with one of its values.
    pub const ALL: [Self; 16] = [
        Self::Identity,
        Self::Relu,
        Self::Abs,
        Self::GeluErf,
        Self::GeluTanh,
        Self::Silu,
        Self::Tanh,
        Self::Sigmoid,
        Self::Relu2,
        Self::LeakyRelu { slope: -1.25 },
        Self::Elu { alpha: 1.5 },
        Self::Softplus,
        Self::Mish,
        Self::QuickGelu,
        Self::HardSwish,
        Self::HardSigmoid,
    ];

    /// Its constant and what that is called, if it has one.
    pub fn constant(self) -> Option<(&'static str, f64)> {
        match self {
            Self::LeakyRelu { slope } => Some(("slope", slope)),
            Self::Elu { alpha } => Some(("alpha", alpha)),
            _ => None,
        }
    }
}

/// In a word, and its constant.
impl std::fmt::Display for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeakyRelu { slope } => write!(f, "leakyrelu {slope}"),
            Self::Elu { alpha } => write!(f, "elu {alpha}"),
            other => f.write_str(&format!("{other:?}").to_lowercase()),
        }
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

/// The shape of one value, without the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Token ids.
    Ids,
    /// `[tokens, dim]`, any number of tokens.
    Tokens(usize),
    /// `[dim]`.
    Vector(usize),
    /// `[channels, height, width]`.
    Image(usize, usize, usize),
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Ids => write!(f, "token ids"),
            Shape::Tokens(d) => write!(f, "[tokens, {d}]"),
            Shape::Vector(d) => write!(f, "[{d}]"),
            Shape::Image(c, h, w) => write!(f, "[{c}, {h}, {w}]"),
        }
    }
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
}

impl Op {
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

impl Graph {
    /// A graph that fits together.
    ///
    /// # Errors
    /// [`Error::Graph`] names the first node whose shapes, names or constants do not fit.
    pub fn new(input: Input, nodes: Vec<Node>) -> Result<Self, Error> {
        let output = check::check(input, &nodes)?;
        Ok(Self { input, nodes, output })
    }

    /// Parses a graph; a key that means nothing is refused.
    ///
    /// # Errors
    /// [`Error::Graph`] if the text is not a graph of this format, or does not fit together.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        strict::from_str(text).map_err(|e| Error::graph("", format!("cannot be read: {e}")))
    }

    /// What the network reads.
    pub fn input(&self) -> Input {
        self.input
    }

    /// The nodes, first to last.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The shape of one output.
    pub fn output(&self) -> Shape {
        self.output
    }

    /// The parameters in the order of the forward pass, with name, shape, geometry and
    /// initialisation.
    pub fn parameters(&self) -> Vec<Parameter> {
        parameter::parameters(&self.nodes)
    }

    /// Numbers in one output: of a token, or of all.
    pub fn outputs(&self) -> usize {
        match self.output {
            Shape::Ids => 0,
            Shape::Tokens(n) | Shape::Vector(n) => n,
            Shape::Image(c, h, w) => c * h * w,
        }
    }

    /// The same network on sequences behind this many zero vectors.
    ///
    /// # Errors
    /// [`Error::Graph`] if it reads no tokens, or names the node that does not keep the zeros.
    pub fn behind_zeros(&self, count: usize) -> Result<Self, Error> {
        match self.input {
            Input::Tokens { context, separator, .. } => Self::new(
                Input::Tokens { context, separator, zero_prefix: count },
                self.nodes.clone(),
            ),
            _ => Err(Error::graph("input", "reads no tokens, so that zeros cannot go before")),
        }
    }

    /// The path of the first attention that reads tokens behind a token's own, if there is one.
    pub fn looks_ahead(&self) -> Option<String> {
        fn first(nodes: &[Node], prefix: &str) -> Option<String> {
            nodes.iter().find_map(|node| {
                let path = node.path(prefix);
                match &node.op {
                    Op::Attention(a) => (!a.causal).then_some(path),
                    op => op.body().and_then(|body| first(body, &path)),
                }
            })
        }
        first(&self.nodes, "")
    }

    /// How many tokens the graph knows, for token input.
    pub fn vocabulary(&self) -> Option<usize> {
        match self.nodes.first()?.op {
            Op::Embedding { vocabulary, .. } => Some(vocabulary),
            _ => None,
        }
    }

    /// The longest sequence the graph reads, for token input.
    pub fn context(&self) -> Option<usize> {
        match self.input {
            Input::Tokens { context, .. } => Some(context),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(op: Op) -> Result<Graph, String> {
        Graph::new(Input::Vector { dim: 4 }, vec![Node::new("node", op)]).map_err(|e| e.to_string())
    }

    fn linear(name: &str, outputs: usize) -> Node {
        Node::new(name, Op::Linear { inputs: 4, outputs, bias: false })
    }

    /// What would change the zeros, or read them, is named.
    #[test]
    fn a_prefix_of_zeros_stays_zero() {
        let body = |nodes: Vec<Node>| {
            let embedding = Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 });
            let nodes = std::iter::once(embedding).chain(nodes).collect();
            let found = Graph::new(Input::tokens(4), nodes).unwrap().behind_zeros(2);
            found.map(|_| ()).map_err(|e| e.to_string())
        };
        let seen = Attention { causal: true, ..Attention::new(4, 2, 2) };
        let attention = |a: &Attention| Node::new("attention", Op::Attention(a.clone()));
        let biased = Node::new("biased", Op::Linear { inputs: 4, outputs: 4, bias: true });
        let open = |function| Node::new("phi", Op::Activation { function, scale: 1.0 });
        let fine = [
            vec![attention(&seen), biased.clone()],
            vec![open(Function::Silu), attention(&seen), Node::new("", Op::LastToken)],
            vec![biased.clone()],
        ];
        for nodes in fine {
            assert_eq!(body(nodes.clone()), Ok(()), "{nodes:?}");
        }
        let positions = Node::new("positions", Op::Positions { length: 9, dim: 4 });
        let inside = Op::Residual { skip: 1.0, branch: 1.0, body: vec![biased.clone()] };
        for (nodes, named) in [
            (vec![biased.clone(), attention(&seen)], "biased"),
            (vec![Node::new("around", inside), attention(&seen)], "around.biased"),
            (vec![open(Function::Sigmoid), attention(&seen)], "phi"),
            (vec![positions, attention(&seen)], "positions"),
            (vec![attention(&Attention { causal: false, ..seen.clone() })], "attention"),
            (
                vec![
                    Node::new("own", Op::Attention(Attention { bias: true, ..seen.clone() })),
                    attention(&seen),
                ],
                "own",
            ),
            (vec![attention(&seen), Node::new("mean", Op::MeanPool)], "mean"),
        ] {
            let said = body(nodes).unwrap_err();
            assert!(said.contains(named) && said.contains("the prefix"), "{said}");
        }
        let separated = Input::Tokens { context: 4, separator: Some(1), zero_prefix: 2 };
        let embedding = Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 });
        let said = Graph::new(separated, vec![embedding]).unwrap_err().to_string();
        assert!(said.contains("separator"), "{said}");
        assert!(vectors(Op::Scale { factor: 2.0 }).unwrap().behind_zeros(1).is_err());
    }

    #[test]
    fn nodes_that_cannot_be_are_named() {
        let attention = |a: Attention| {
            let nodes = vec![
                Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 }),
                Node::new("node", Op::Attention(a)),
            ];
            Graph::new(Input::tokens(4), nodes).map_err(|e| e.to_string())
        };
        let two = Attention::new(4, 2, 2);
        let activation = |function| vectors(Op::Activation { function, scale: 1.0 });
        let parallel = |branches| vectors(Op::Parallel { branches });
        let slopes = |slopes| attention(Attention { alibi: Some(Alibi { slopes }), ..two.clone() });
        let nan = f64::NAN;
        for (found, what) in [
            (parallel(vec![]), "no branches"),
            (parallel(vec![linear("a", 3), linear("b", 4)]), "adds [3] to [4]"),
            (parallel(vec![linear("a", 4), linear("a", 4)]), "two weights"),
            (parallel(vec![linear("a", 4), linear("b.c", 4)]), "dot"),
            (vectors(Op::Normalise { eps: 0.0 }), "eps"),
            (vectors(Op::Normalise { eps: 1e-16 }), "eps"),
            (vectors(Op::RmsNorm { dim: 4, eps: 1e-60, gain: false }), "eps of at least 1e-30"),
            (
                vectors(Op::LayerNorm { dim: 4, eps: 1e-320, bias: false, gain: false }),
                "eps of at least 1e-30",
            ),
            (vectors(Op::Normalise { eps: nan }), "eps"),
            (vectors(Op::LastToken), "wants tokens"),
            (activation(Function::LeakyRelu { slope: f64::INFINITY }), "slope"),
            (activation(Function::Elu { alpha: nan }), "alpha"),
            (
                vectors(Op::GatedMlp {
                    dim: 4,
                    hidden: 3,
                    function: Function::Elu { alpha: nan },
                    bias: false,
                }),
                "alpha",
            ),
            (slopes(vec![0.5]), "1 slopes for 2 heads"),
            (slopes(vec![0.5, nan]), "slope"),
            (attention(Attention { query_key_shift: true, ..two.clone() }), "query_key_shift"),
            (
                attention(Attention { query_key_norm: Some(1e-31), ..two.clone() }),
                "query_key_norm of at least",
            ),
        ] {
            let said = found.unwrap_err();
            assert!(said.contains("node") && said.contains(what), "{said}, not {what}");
        }
        let deep = (0..40).fold(linear("a", 4), |inner, i| {
            Node::new(format!("n{i}"), Op::Parallel { branches: vec![inner] })
        });
        assert!(parallel(vec![deep]).unwrap_err().contains("nested deeper"));
    }

    /// What was written before a key existed reads as it did, and what is written is read back.
    #[test]
    fn what_is_not_said_is_as_it_was() {
        let text = "{\"format\": 1, \"input\": {\"kind\": \"tokens\", \"context\": 4}, \"nodes\": [
            {\"name\": \"e\", \"op\": \"embedding\", \"vocabulary\": 3, \"dim\": 4},
            {\"name\": \"r\", \"op\": \"rms_norm\", \"dim\": 4, \"eps\": 0.5},
            {\"name\": \"n\", \"op\": \"layer_norm\", \"dim\": 4, \"eps\": 0.5, \"bias\": true},
            {\"name\": \"a\", \"op\": \"attention\", \"dim\": 4, \"heads\": 2, \"key_value_heads\": 2,
             \"head_dim\": 2, \"logit_scale\": 0.5, \"output_scale\": 1.0, \"causal\": true,
             \"rotary\": null, \"bias\": false, \"output_bias\": false, \"query_key_norm\": 0.1}]}";
        let graph = Graph::from_json(text).unwrap();
        let names: Vec<String> = graph.parameters().into_iter().map(|p| p.name).collect();
        let wanted = [
            "e.weight",
            "r.weight",
            "n.weight",
            "n.bias",
            "a.query.weight",
            "a.query_norm.weight",
            "a.key.weight",
            "a.key_norm.weight",
            "a.value.weight",
            "a.output.weight",
        ];
        assert_eq!(names, wanted);
        let Op::Attention(a) = &graph.nodes()[3].op else { panic!() };
        let plain =
            Attention { logit_scale: 0.5, query_key_norm: Some(0.1), ..Attention::new(4, 2, 2) };
        assert_eq!(*a, plain);
        for function in Function::ALL {
            let phi = Node::new("", Op::Activation { function, scale: 1.0 });
            let branches = vec![linear("a", 4), Node::new("b", Op::Sequential { body: vec![phi] })];
            let graph = vectors(Op::Parallel { branches }).unwrap();
            let text = serde_json::to_string(&graph).unwrap();
            assert_eq!(Graph::from_json(&text).unwrap(), graph, "{text}");
        }
        let branch = "{\"op\": \"flatten\", \"axis\": 1}";
        let text = format!(
            "{{\"format\": 1, \"input\": {{\"kind\": \"vector\", \"dim\": 2}}, \"nodes\": \
             [{{\"op\": \"parallel\", \"branches\": [{branch}]}}]}}"
        );
        let said = Graph::from_json(&text).unwrap_err().to_string();
        assert!(said.contains("nodes[0].branches[0].axis"), "{said}");
    }

    /// In a residual every branch starts at zero, as a single one does; outside of one, none.
    #[test]
    fn where_branches_start() {
        let branch = |name: &str| {
            let body = vec![linear("up", 4), linear("down", 4)];
            Node::new(name, Op::Sequential { body })
        };
        let sum = Op::Parallel { branches: vec![branch("a"), branch("b")] };
        let zeros = |op: Op| -> Vec<String> {
            let start = vec![Node::new("node", op), Node::new("", Op::Scale { factor: 2.0 })];
            let graph = Graph::new(Input::Vector { dim: 4 }, start).unwrap();
            let zero = |p: Parameter| (p.init == Init::Zero).then_some(p.name);
            graph.parameters().into_iter().filter_map(zero).collect()
        };
        let body = vec![linear("first", 4), Node::new("sum", sum.clone())];
        let residual = |skip| Op::Residual { skip, branch: 1.0, body: body.clone() };
        assert_eq!(zeros(residual(1.0)), ["node.sum.a.down.weight", "node.sum.b.down.weight"]);
        assert!(zeros(residual(0.0)).is_empty());
        assert!(zeros(sum).is_empty());
    }

    /// Each branch reads what the node reads, and the next node reads every branch.
    #[test]
    fn branches_are_drawn_side_by_side() {
        let branches = vec![
            Node::new("b", Op::Sequential { body: vec![linear("x", 4), linear("y", 4)] }),
            linear("c", 4),
        ];
        let nodes =
            vec![linear("a", 4), Node::new("sum", Op::Parallel { branches }), linear("head", 4)];
        let graph = Graph::new(Input::Vector { dim: 4 }, nodes).unwrap();
        let dot = graph.to_dot(&|_| None);
        let edges: Vec<&str> = dot
            .lines()
            .filter_map(|line| line.trim().strip_suffix(';'))
            .filter(|l| l.contains("->"))
            .collect();
        // a is 1, the frame 2, the sequence 3, x 4, y 5, c 6, head 7.
        assert_eq!(edges, ["n0 -> n1", "n1 -> n4", "n4 -> n5", "n1 -> n6", "n5 -> n7", "n6 -> n7"]);
    }
}
