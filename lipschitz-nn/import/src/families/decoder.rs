//! What decoders have in common: an embedding, blocks of attention and a unit, a norm and a head.
//! A family says how its tensors are called and where its norms are.

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::heads::Head;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::nodes::{attention, blocks, linear};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::Dialect;
use lipschitz_nn::graph::{Attention, Function, Input, Node, NormKind, Op, Span};

/// How the gain of a norm is stored.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Gain {
    /// There is none.
    None,
    /// As it is.
    Plain,
    /// Less 1.
    LessOne,
}

/// A norm of one family; all of its norms are alike.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    pub gain: Gain,
    /// Whether it has a shift.
    pub shift: bool,
}

impl Norm {
    /// A layer norm with gain and shift.
    pub(crate) fn layer(eps: f64) -> Self {
        Self { kind: NormKind::Layer, eps, gain: Gain::Plain, shift: true }
    }

    pub(crate) fn node(&self, name: &str, dim: usize) -> Node {
        let Self { eps, shift, .. } = *self;
        let gain = self.gain != Gain::None;
        let op = match self.kind {
            NormKind::Rms => Op::RmsNorm { dim, eps, gain },
            NormKind::Layer => Op::LayerNorm { dim, eps, bias: shift, gain },
        };
        Node::new(name, op)
    }

    /// The gain and the shift, from the tensors below `from`.
    pub(crate) fn put(&self, weights: &mut WeightMap, to: &str, from: &str, dim: usize) {
        self.put_gain(weights, to, TensorExpr::new(format!("{from}.weight"), &[dim]));
        if self.shift {
            weights.vector(&format!("{to}.bias"), &format!("{from}.bias"), dim);
        }
    }

    fn put_gain(&self, weights: &mut WeightMap, to: &str, gain: TensorExpr) {
        match self.gain {
            Gain::None => {}
            Gain::Plain => weights.put(format!("{to}.weight"), gain),
            Gain::LessOne => weights.put(format!("{to}.weight"), gain.add(1.0)),
        }
    }
}

/// Where the norms of a block are, and how they are called.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    /// `y = x + a(norm x)`, then `y + m(norm y)`.
    Before { attention: &'static str, unit: &'static str },
    /// `y = x + norm a(x)`, then `y + norm m(y)`.
    Inside { attention: &'static str, unit: &'static str },
    /// Before and inside.
    Both { attention: [&'static str; 2], unit: [&'static str; 2] },
    /// `y = norm(x + a(x))`, then `norm(y + m(y))`.
    After { attention: &'static str, unit: &'static str },
    /// `n = norm x`, `y = n + a(n)`, then the same with the unit.
    Around { attention: &'static str, unit: &'static str },
    /// `n = norm x`, `x + a(n) + m(n)`.
    Parallel { norm: &'static str },
    /// `x + a(norm x) + m(norm x)`.
    ParallelApart { attention: &'static str, unit: &'static str },
}

impl Layout {
    /// The norms of a block, ours and the library's.
    fn names(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Before { attention, unit } | Self::ParallelApart { attention, unit } => {
                vec![("attention.norm", attention), ("mlp.norm", unit)]
            }
            Self::Inside { attention, unit } => {
                vec![("attention.post_norm", attention), ("mlp.post_norm", unit)]
            }
            Self::Both { attention, unit } => vec![
                ("attention.norm", attention[0]),
                ("attention.post_norm", attention[1]),
                ("mlp.norm", unit[0]),
                ("mlp.post_norm", unit[1]),
            ],
            Self::After { attention, unit } | Self::Around { attention, unit } => {
                vec![("attention_norm", attention), ("mlp_norm", unit)]
            }
            Self::Parallel { norm } => vec![("norm", norm)],
        }
    }
}

/// How queries, keys and values are stored.
#[derive(Clone, Copy)]
pub(crate) enum Projections {
    /// A tensor each: queries, keys, values.
    Apart([&'static str; 3]),
    /// One tensor: all queries, all keys, all values.
    Rows(&'static str),
    /// One tensor: for each head of keys the queries that read it, the key and the value.
    Groups(&'static str),
}

/// A norm of queries and keys.
#[derive(Clone, Copy)]
pub(crate) struct QueryKeyNorm {
    pub kind: NormKind,
    pub shift: bool,
    pub span: Span,
    /// The tensors, of queries and of keys.
    pub names: [&'static str; 2],
    /// How gains are stored for [`Span::EachHead`].
    pub gains: Gains,
}

/// How the gains of all heads are stored.
#[derive(Clone, Copy)]
pub(crate) enum Gains {
    /// In one vector.
    Vector,
    /// In one matrix, a row a head.
    Matrix,
    /// In a tensor `norms.{head}` each.
    Apart,
}

/// How the matrices of a gated unit are stored.
#[derive(Clone, Copy)]
pub(crate) enum Gates {
    /// A tensor each: gate, up, down.
    Apart([&'static str; 3]),
    /// Gate and up in one tensor, and down.
    Rows([&'static str; 2]),
}

/// The pointwise unit of a block.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// `W_down (φ(W_gate x) ∘ W_up x)`.
    Gated { function: Function, names: Gates },
    /// `W_down φ(W_up x)`.
    Plain { phi: NamedActivation, up: &'static str, down: &'static str },
}

/// What the blocks of a model have in common.
pub(crate) struct Block {
    pub dim: usize,
    pub hidden: usize,
    pub norm: Norm,
    pub layout: Layout,
    pub projections: Projections,
    /// The output projection of attention.
    pub output: &'static str,
    pub query_key: Option<QueryKeyNorm>,
    pub unit: Unit,
    /// Whether the unit has biases.
    pub unit_bias: bool,
    /// Factor on what is added to the residual stream.
    pub branch: f64,
    /// Whether matrices are stored `[inputs, outputs]`.
    pub transposed: bool,
}

impl Block {
    /// Adds the weights of block `from` under `to`, and gives its nodes, around this attention.
    pub(crate) fn body(
        &self,
        weights: &mut WeightMap,
        to: &str,
        from: &str,
        mixer: Attention,
    ) -> Vec<Node> {
        self.attention(weights, &format!("{to}.attention"), from, &mixer);
        self.unit(weights, &format!("{to}.mlp"), from);
        for (ours, theirs) in self.layout.names() {
            self.norm.put(weights, &format!("{to}.{ours}"), &format!("{from}.{theirs}"), self.dim);
        }
        self.nodes(self.with_norm(mixer))
    }

    /// A matrix `[outputs, inputs]` and its bias.
    fn linear(
        &self,
        weights: &mut WeightMap,
        to: &str,
        from: &str,
        [outputs, inputs]: [usize; 2],
        bias: bool,
    ) {
        weights.put(format!("{to}.weight"), self.matrix(from, outputs, inputs));
        if bias {
            weights.vector(&format!("{to}.bias"), &format!("{from}.bias"), outputs);
        }
    }

    fn matrix(&self, from: &str, outputs: usize, inputs: usize) -> TensorExpr {
        let name = format!("{from}.weight");
        if self.transposed {
            TensorExpr::new(name, &[inputs, outputs]).transpose()
        } else {
            TensorExpr::new(name, &[outputs, inputs])
        }
    }

    fn attention(&self, weights: &mut WeightMap, to: &str, from: &str, a: &Attention) {
        let (query, key) = (a.heads * a.head_dim, a.key_value_heads * a.head_dim);
        let ours = ["query", "key", "value"].map(|name| format!("{to}.{name}"));
        match self.projections {
            Projections::Apart(names) => {
                for ((to, theirs), width) in ours.iter().zip(names).zip([query, key, key]) {
                    let from = format!("{from}.{theirs}");
                    self.linear(weights, to, &from, [width, self.dim], a.bias);
                }
            }
            Projections::Rows(name) => {
                let starts = [(0, query), (query, key), (query + key, key)];
                self.fused(weights, &ours, &format!("{from}.{name}"), a, |part, all, _| {
                    all.rows(starts[part].0, starts[part].1)
                });
            }
            Projections::Groups(name) => {
                let group = a.group_size();
                self.fused(weights, &ours, &format!("{from}.{name}"), a, |part, all, columns| {
                    let split = [&[a.key_value_heads, group + 2, a.head_dim], columns].concat();
                    let (from, count) = [(0, group), (group, 1), (group + 1, 1)][part];
                    let rows = a.key_value_heads * count * a.head_dim;
                    all.reshape(&split).narrow(1, from, count).reshape(&[&[rows], columns].concat())
                });
            }
        }
        let output = format!("{from}.{}", self.output);
        let shape = [self.dim, query];
        self.linear(weights, &format!("{to}.output"), &output, shape, a.output_bias);
        if let Some(norm) = &self.query_key {
            for ((ours, theirs), heads) in
                ["query_norm", "key_norm"].iter().zip(norm.names).zip([a.heads, a.key_value_heads])
            {
                let (to, from) = (format!("{to}.{ours}"), format!("{from}.{theirs}"));
                self.query_key_norm(weights, &to, &from, norm, [heads, a.head_dim]);
            }
        }
    }

    /// Queries, keys and values out of one tensor: `take` of each, given which of the three it is
    /// and how many columns there are.
    fn fused(
        &self,
        weights: &mut WeightMap,
        to: &[String; 3],
        from: &str,
        a: &Attention,
        take: impl Fn(usize, TensorExpr, &[usize]) -> TensorExpr,
    ) {
        let rows = (a.heads + 2 * a.key_value_heads) * a.head_dim;
        for (part, to) in to.iter().enumerate() {
            let all = self.matrix(from, rows, self.dim);
            weights.put(format!("{to}.weight"), take(part, all, &[self.dim]));
            if a.bias {
                let all = TensorExpr::new(format!("{from}.bias"), &[rows]);
                weights.put(format!("{to}.bias"), take(part, all, &[]));
            }
        }
    }

    fn query_key_norm(
        &self,
        weights: &mut WeightMap,
        to: &str,
        from: &str,
        norm: &QueryKeyNorm,
        [heads, head_dim]: [usize; 2],
    ) {
        let width = if norm.span == Span::Head { head_dim } else { heads * head_dim };
        let gain = match norm.gains {
            Gains::Vector => TensorExpr::new(format!("{from}.weight"), &[width]),
            Gains::Matrix => {
                TensorExpr::new(format!("{from}.weight"), &[heads, head_dim]).reshape(&[width])
            }
            Gains::Apart => {
                let of =
                    |h: usize| TensorExpr::new(format!("{from}.norms.{h}.weight"), &[head_dim]);
                (1..heads).fold(of(0), |all, h| all.append(of(h)))
            }
        };
        self.norm.put_gain(weights, to, gain);
        if norm.shift {
            weights.vector(&format!("{to}.bias"), &format!("{from}.bias"), width);
        }
    }

    fn unit(&self, weights: &mut WeightMap, to: &str, from: &str) {
        let Self { dim, hidden, unit_bias: bias, .. } = *self;
        let mut put = |ours: &str, theirs: &str, shape| {
            self.linear(weights, &format!("{to}.{ours}"), &format!("{from}.{theirs}"), shape, bias);
        };
        match self.unit {
            Unit::Plain { up, down, .. } => {
                put("up", up, [hidden, dim]);
                put("down", down, [dim, hidden]);
            }
            Unit::Gated { names: Gates::Apart([gate, up, down]), .. } => {
                put("gate", gate, [hidden, dim]);
                put("up", up, [hidden, dim]);
                put("down", down, [dim, hidden]);
            }
            Unit::Gated { names: Gates::Rows([both, down]), .. } => {
                put("down", down, [dim, hidden]);
                let both = self.matrix(&format!("{from}.{both}"), 2 * hidden, dim);
                weights.put(format!("{to}.gate.weight"), both.clone().rows(0, hidden));
                weights.put(format!("{to}.up.weight"), both.rows(hidden, hidden));
            }
        }
    }

    fn with_norm(&self, a: Attention) -> Attention {
        match &self.query_key {
            None => a,
            Some(norm) => Attention {
                query_key_norm: Some(self.norm.eps),
                query_key_span: norm.span,
                query_key_kind: norm.kind,
                query_key_shift: norm.shift,
                ..a
            },
        }
    }

    fn nodes(&self, mixer: Attention) -> Vec<Node> {
        let Self { dim, hidden, unit_bias: bias, .. } = *self;
        let norm = |name: &str| self.norm.node(name, dim);
        let mixer = vec![attention(mixer)];
        let unit = match self.unit {
            Unit::Gated { function, .. } => {
                vec![Node::new("", Op::GatedMlp { dim, hidden, function, bias })]
            }
            Unit::Plain { phi, .. } => {
                let mut unit = vec![linear("up", dim, hidden, bias)];
                unit.extend(phi.nodes());
                unit.push(linear("down", hidden, dim, bias));
                unit
            }
        };
        let around = |before: bool, body: Vec<Node>, after: bool| {
            let before = before.then(|| norm("norm")).into_iter();
            before.chain(body).chain(after.then(|| norm("post_norm"))).collect::<Vec<_>>()
        };
        let sum = |name: &str, body| {
            Node::new(name, Op::Residual { skip: 1.0, branch: self.branch, body })
        };
        let in_turn = |before: bool, after: bool, mixer, unit| {
            vec![
                sum("attention", around(before, mixer, after)),
                sum("mlp", around(before, unit, after)),
            ]
        };
        let side_by_side = |mixer, unit| {
            let branches = [("attention", mixer), ("mlp", unit)]
                .map(|(name, body)| Node::new(name, Op::Sequential { body }));
            Node::new("", Op::Parallel { branches: branches.into() })
        };
        match self.layout {
            Layout::Before { .. } => in_turn(true, false, mixer, unit),
            Layout::Inside { .. } => in_turn(false, true, mixer, unit),
            Layout::Both { .. } => in_turn(true, true, mixer, unit),
            Layout::After { .. } => vec![
                sum("attention", mixer),
                norm("attention_norm"),
                sum("mlp", unit),
                norm("mlp_norm"),
            ],
            Layout::Around { .. } => vec![
                norm("attention_norm"),
                sum("attention", mixer),
                norm("mlp_norm"),
                sum("mlp", unit),
            ],
            Layout::Parallel { .. } => vec![sum("", vec![norm("norm"), side_by_side(mixer, unit)])],
            Layout::ParallelApart { .. } => {
                let branches = side_by_side(around(true, mixer, false), around(true, unit, false));
                vec![sum("", vec![branches])]
            }
        }
    }
}

/// What is around the blocks of a decoder.
pub(crate) struct Frame {
    pub head: Head,
    pub vocabulary: usize,
    /// Width of the embedding and of what the head reads.
    pub dim: usize,
    /// The longest sequence.
    pub context: usize,
    /// The embedding's name.
    pub embedding: String,
    /// Factor on embedding vectors.
    pub factor: f64,
    /// The name of the scores of the vocabulary, and whether they have a bias.
    pub scores: (&'static str, bool),
    /// The name of the scores of classes of each token.
    pub token_classes: &'static str,
}

/// What is between the embedding and the head.
pub(crate) struct Body {
    pub weights: WeightMap,
    pub before: Vec<Node>,
    pub blocks: Vec<Vec<Node>>,
    pub after: Vec<Node>,
    /// Behind the scores of the vocabulary.
    pub logits: Vec<Node>,
}

impl Frame {
    /// The decoder.
    pub(crate) fn around(self, model: &ModelDir, body: Body) -> Result<Mapping, Error> {
        let Self { head, vocabulary, dim, .. } = self;
        let config = model.config;
        // The library's masks read it of any config.
        if config.names("is_causal") && !config.flag("is_causal")? {
            return Err(config.unsupported("is_causal", "off"));
        }
        let Body { mut weights, before, blocks: bodies, after, logits } = body;
        let (scores, bias) = self.scores;
        let shape = [vocabulary, dim];
        model.candle_has(head, &[Head::Vocabulary])?;
        let vocabulary_head = head == Head::Vocabulary;
        // Written into candle's code.
        let always = model.of_candle() && TIED_BY_CANDLE.contains(&model.family);
        let tie = model.tie(
            (config.flag("tie_word_embeddings")? || always) && vocabulary_head,
            TensorExpr::new(format!("{}.weight", self.embedding), &shape),
            TensorExpr::new(format!("{scores}.weight"), &shape),
        )?;
        let embedding = tie.first.clone();
        let scaled = self.factor != 1.0;
        let embedding = if scaled { embedding.times(self.factor) } else { embedding };
        weights.put("embedding.weight", embedding);
        let mut nodes = vec![Node::new("embedding", Op::Embedding { vocabulary, dim })];
        nodes.extend(before);
        nodes.push(blocks(bodies));
        nodes.extend(after);
        match head {
            Head::Hidden | Head::Replaced => {}
            Head::Vocabulary => {
                nodes.push(linear("head", dim, vocabulary, bias));
                weights.put("head.weight", tie.second.clone());
                if bias {
                    weights.vector("head.bias", &format!("{scores}.bias"), vocabulary);
                }
                nodes.extend(logits);
            }
            Head::Classes => {
                let labels = config.labels()?;
                weights.linear("head", "score", labels, dim, false);
                nodes.extend([Node::new("", Op::LastToken), linear("head", dim, labels, false)]);
            }
            Head::TokenClasses => {
                let labels = config.labels()?;
                weights.linear("head", self.token_classes, labels, dim, true);
                nodes.push(linear("head", dim, labels, true));
            }
            Head::Answers => {
                weights.linear("head", "qa_outputs", 2, dim, true);
                nodes.push(linear("head", dim, 2, true));
            }
        }
        let mut mapping = Mapping::new(Input::tokens(self.context), nodes, weights)?;
        if vocabulary_head {
            mapping = mapping.tied(tie);
        }
        if head == Head::Classes {
            mapping = mapping.note("scores are read at the last token, which no padding follows");
        }
        Ok(mapping)
    }
}

/// Families whose scores candle takes from the embedding, whatever the config says.
const TIED_BY_CANDLE: [&str; 3] = ["gemma", "gemma2", "gpt_bigcode"];

/// Refuses candle's function of a family that is read as the library has it alone.
pub(crate) fn as_the_library(model: &ModelDir) -> Result<(), Error> {
    let &ModelDir { config, dialect, family, .. } = model;
    if dialect == Dialect::Candle {
        let what =
            format!("is {family}, which is imported as the library computes it, not as candle");
        return Err(config.wrong("model_type", what));
    }
    Ok(())
}

/// The heads that most decoders of the library have.
pub(crate) const HEADS: &[Head] = &[Head::Vocabulary, Head::Classes, Head::TokenClasses];

/// The same, with answers.
pub(crate) const ALL_HEADS: &[Head] =
    &[Head::Vocabulary, Head::Classes, Head::TokenClasses, Head::Answers];

/// Heads that the width divides among, read from this option.
pub(crate) fn head_dim(
    config: &ConfigReader,
    heads: &str,
    dim: usize,
) -> Result<(usize, usize), Error> {
    let heads = config.heads(heads, dim)?;
    Ok((heads, dim / heads))
}
