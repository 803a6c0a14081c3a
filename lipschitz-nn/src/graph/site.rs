//! The tensors of a forward pass: which node makes each, and what it is there.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attention, Graph, Input, Node, NodeId, Op, join};

/// What a tensor is in its node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// What the network reads, where that is numbers.
    Input,
    /// What a node's linear maps multiply: the node's input.
    Operand,
    /// The node's output.
    Output,
    /// Queries as they are projected, bias and all.
    Query,
    /// Keys as they are projected.
    Key,
    /// Values.
    Value,
    /// Queries behind their norm.
    NormedQuery,
    /// Keys behind their norm.
    NormedKey,
    /// Queries with rotary positions.
    TurnedQuery,
    /// Keys with rotary positions.
    TurnedKey,
    /// `q kᵀ`, before the scale.
    Product,
    /// Scaled logits.
    Logit,
    /// Logits behind the soft cap.
    CappedLogit,
    /// Logits with their position bias, before the mask.
    BiasedLogit,
    /// Probabilities.
    Probability,
    /// Means of values, of all heads.
    Mixed,
    /// `W_O o + b_O`, where a factor follows.
    Projected,
    /// The gate's map, before its function.
    Gate,
    /// The map that the gate multiplies.
    Up,
    /// φ of the gate.
    OpenGate,
    /// The product of both.
    Hidden,
}

impl Stage {
    /// The word behind a node's path; none for its output.
    fn word(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Operand => "operand",
            Self::Output => "",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::NormedQuery => "query_norm",
            Self::NormedKey => "key_norm",
            Self::TurnedQuery => "query_rotary",
            Self::TurnedKey => "key_rotary",
            Self::Product => "product",
            Self::Logit => "logit",
            Self::CappedLogit => "logit_cap",
            Self::BiasedLogit => "logit_bias",
            Self::Probability => "probability",
            Self::Mixed => "mixed",
            Self::Projected => "projected",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::OpenGate => "gate_activation",
            Self::Hidden => "hidden",
        }
    }

    /// Whether a product of matrices multiplies it, in attention with or without a norm and
    /// positions on queries and keys.
    fn is_operand(self, a: Option<&Attention>) -> bool {
        let normed = a.is_some_and(|a| a.query_key_norm.is_some());
        let turned = a.is_some_and(|a| a.rotary.is_some());
        match self {
            Self::Operand | Self::Probability | Self::Mixed | Self::Hidden => true,
            // Those of heads at fixed offsets are only scaled.
            Self::Value => a.is_some(),
            Self::Query | Self::Key => !normed && !turned,
            Self::NormedQuery | Self::NormedKey => !turned,
            Self::TurnedQuery | Self::TurnedKey => true,
            Self::Input
            | Self::Output
            | Self::Product
            | Self::Logit
            | Self::CappedLogit
            | Self::BiasedLogit
            | Self::Projected
            | Self::Gate
            | Self::Up
            | Self::OpenGate => false,
        }
    }

    /// Whether it is a logit of attention: a number for a query and a key.
    pub fn is_logit(self) -> bool {
        matches!(self, Self::Product | Self::Logit | Self::CappedLogit | Self::BiasedLogit)
    }
}

/// One tensor of a forward pass.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The node that makes it; the graph itself for what the network reads.
    pub id: NodeId,
    /// What it is there.
    pub stage: Stage,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.id, self.stage)
    }
}

impl Graph {
    /// Every tensor that a forward pass makes between two operations, in its order, each with a name
    /// of its own: the node's path, and what the tensor is there. A sequence makes none itself, and
    /// the sums so far of branches count as the sum.
    pub fn sites(&self) -> Vec<(Site, String)> {
        let mut out = Vec::new();
        if !matches!(self.input, Input::Tokens { .. }) {
            let site = Site { id: NodeId::default(), stage: Stage::Input };
            out.push((site, Stage::Input.word().to_string()));
        }
        collect(&self.nodes, "", &NodeId::default(), &mut out);
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        out.iter().for_each(|(_, name)| *seen.entry(name.clone()).or_default() += 1);
        for (site, name) in &mut out {
            if seen.get(name).is_some_and(|count| *count > 1) {
                *name = format!("{name} ({})", site.id);
            }
        }
        out
    }

    /// The tensors of [`Graph::sites`] that products of matrices multiply: what hardware for numbers
    /// of few bits rounds, where it adds in many.
    pub fn operands(&self) -> Vec<Site> {
        let mut out = Vec::new();
        operands(&self.nodes, &NodeId::default(), &mut out);
        out
    }
}

/// Which tensors products of matrices multiply.
fn operands(nodes: &[Node], above: &NodeId, out: &mut Vec<Site>) {
    for (i, node) in nodes.iter().enumerate() {
        let id = above.child(i);
        operands(node.op.body().unwrap_or_default(), &id, out);
        let attention = if let Op::Attention(a) = &node.op { Some(a) } else { None };
        let all = stages(&node.op).into_iter().filter(|stage| stage.is_operand(attention));
        out.extend(all.map(|stage| Site { id: id.clone(), stage }));
    }
}

fn collect(nodes: &[Node], prefix: &str, above: &NodeId, out: &mut Vec<(Site, String)>) {
    for (i, node) in nodes.iter().enumerate() {
        let (id, path) = (above.child(i), node.path(prefix));
        // The output of a node without a name is told by its kind.
        let name = |stage: Stage| match stage {
            Stage::Output if node.name.is_empty() => join(&path, node.op.kind()),
            stage => join(&path, stage.word()),
        };
        collect(node.op.body().unwrap_or_default(), &path, &id, out);
        let stages = stages(&node.op);
        out.extend(stages.into_iter().map(|s| (Site { id: id.clone(), stage: s }, name(s))));
    }
}

/// What a node makes, its bodies aside.
fn stages(op: &Op) -> Vec<Stage> {
    match op {
        Op::Sequential { .. } => Vec::new(),
        Op::Attention(a) => attention(a),
        Op::GatedMlp { .. } => {
            let inside = [Stage::Gate, Stage::Up, Stage::OpenGate, Stage::Hidden];
            [&[Stage::Operand], &inside[..], &[Stage::Output]].concat()
        }
        Op::Linear { .. } | Op::Conv(_) => vec![Stage::Operand, Stage::Output],
        Op::OffsetAttention { .. } => vec![Stage::Operand, Stage::Value, Stage::Output],
        Op::Parallel { .. }
        | Op::Residual { .. }
        | Op::Embedding { .. }
        | Op::Positions { .. }
        | Op::Activation { .. }
        | Op::Scale { .. }
        | Op::SoftCap { .. }
        | Op::Clip { .. }
        | Op::Shift { .. }
        | Op::SpaceToDepth { .. }
        | Op::Pool(_)
        | Op::GlobalPool { .. }
        | Op::MaxMin
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::Normalise { .. }
        | Op::Flatten
        | Op::Patches { .. }
        | Op::MeanPool
        | Op::ClassToken { .. }
        | Op::FirstToken
        | Op::LastToken
        | Op::FirstAndMean => vec![Stage::Output],
    }
}

fn attention(a: &Attention) -> Vec<Stage> {
    // All of them, so that whoever adds one looks whether it makes a tensor; and what bounds its
    // elements, in `lipschitz-certify`.
    let Attention {
        dim: _,
        heads: _,
        key_value_heads: _,
        head_dim: _,
        logit_scale: _,
        output_scale,
        causal: _,
        rotary,
        bias: _,
        output_bias: _,
        query_key_norm,
        query_key_span: _,
        query_key_kind: _,
        query_key_shift: _,
        logit_cap,
        window: _,
        position_bias,
        alibi,
    } = a;
    let (norm, rotary) = (query_key_norm.is_some(), rotary.is_some());
    let all = [
        (Stage::Operand, true),
        (Stage::Query, true),
        (Stage::NormedQuery, norm),
        (Stage::TurnedQuery, rotary),
        (Stage::Key, true),
        (Stage::NormedKey, norm),
        (Stage::TurnedKey, rotary),
        (Stage::Value, true),
        (Stage::Product, true),
        (Stage::Logit, true),
        (Stage::CappedLogit, logit_cap.is_some()),
        (Stage::BiasedLogit, position_bias.is_some() || alibi.is_some()),
        (Stage::Probability, true),
        (Stage::Mixed, true),
        (Stage::Projected, *output_scale != 1.0),
        (Stage::Output, true),
    ];
    all.into_iter().filter(|(_, is)| *is).map(|(stage, _)| stage).collect()
}
