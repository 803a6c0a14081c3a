//! The layers that most encoders are made of: attention and two linear maps, each on a branch, with
//! a norm in front of the branch or behind the sum.

use lipschitz_nn::graph::{Attention, Node};

use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::nodes::{attention, blocks, layer_norm, linear, residual};

/// Where the norms of a layer stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// `x + f(norm(x))`
    Before,
    /// `norm(x + f(x))`
    After,
}

/// What the tensors of a layer are called.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub mlp_norm: &'static str,
    /// One matrix, and one bias, of queries, keys and values one after the other, in place of theirs.
    pub fused: Option<[&'static str; 2]>,
}

impl Names {
    /// As BERT calls them.
    pub(crate) const BERT: Self = Self {
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        mlp_norm: "output.LayerNorm",
        fused: None,
    };

    /// As BART calls them.
    pub(crate) const BART: Self = Self {
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.out_proj",
        attention_norm: "self_attn_layer_norm",
        up: "fc1",
        down: "fc2",
        mlp_norm: "final_layer_norm",
        fused: None,
    };

    /// As CLIP calls them.
    pub(crate) const CLIP: Self = Self {
        attention_norm: "layer_norm1",
        up: "mlp.fc1",
        down: "mlp.fc2",
        mlp_norm: "layer_norm2",
        ..Self::BART
    };
}

/// Layers of one shape.
pub(crate) struct Layers {
    pub mixer: Attention,
    /// Width between the two linear maps.
    pub hidden: usize,
    pub eps: f64,
    pub phi: NamedActivation,
    pub norms: Norms,
    pub names: Names,
}

/// Attention of every token to every token, with biases.
pub(crate) fn mixer(dim: usize, heads: usize) -> Attention {
    let plain = Attention::new(dim, heads, dim / heads);
    Attention { causal: false, bias: true, output_bias: true, ..plain }
}

impl Layers {
    /// The layers whose tensors have these names in front, in order.
    pub(crate) fn all(
        &self,
        weights: &mut WeightMap,
        from: impl IntoIterator<Item = String>,
    ) -> Node {
        let one = |(i, from): (usize, String)| self.one(weights, &format!("blocks.{i}"), &from);
        blocks(from.into_iter().enumerate().map(one).collect())
    }

    fn one(&self, weights: &mut WeightMap, to: &str, from: &str) -> Vec<Node> {
        let Self { hidden, eps, norms, ref names, ref mixer, .. } = *self;
        let (dim, width) = (mixer.dim, mixer.heads * mixer.head_dim);
        let theirs = |name: &str| format!("{from}.{name}");
        let maps = [("query", names.query), ("key", names.key), ("value", names.value)];
        for (j, (ours, name)) in maps.into_iter().enumerate() {
            let to = format!("{to}.attention.{ours}");
            let Some([matrix, bias]) = names.fused else {
                weights.linear(&to, &theirs(name), width, dim, mixer.bias);
                continue;
            };
            let matrix = TensorExpr::new(theirs(matrix), &[3 * width, dim]);
            weights.put(format!("{to}.weight"), matrix.rows(j * width, width));
            if mixer.bias {
                let bias = TensorExpr::new(theirs(bias), &[3 * width]);
                weights.put(format!("{to}.bias"), bias.rows(j * width, width));
            }
        }
        let output = format!("{to}.attention.output");
        weights.linear(&output, &theirs(names.output), dim, width, mixer.output_bias);
        weights.linear(&format!("{to}.mlp.up"), &theirs(names.up), hidden, dim, true);
        weights.linear(&format!("{to}.mlp.down"), &theirs(names.down), dim, hidden, true);
        let end = if norms == Norms::Before { ".norm" } else { "_norm" };
        for (branch, name) in [("attention", names.attention_norm), ("mlp", names.mlp_norm)] {
            weights.norm(&format!("{to}.{branch}{end}"), &theirs(name), dim, true);
        }
        let mut mlp = vec![linear("up", dim, hidden, true)];
        mlp.extend(self.phi.nodes());
        mlp.push(linear("down", hidden, dim, true));
        let mut mix = vec![attention(mixer.clone())];
        match norms {
            Norms::Before => {
                mix.insert(0, layer_norm("norm", dim, eps, true));
                mlp.insert(0, layer_norm("norm", dim, eps, true));
                vec![residual("attention", mix), residual("mlp", mlp)]
            }
            Norms::After => vec![
                residual("attention", mix),
                layer_norm("attention_norm", dim, eps, true),
                residual("mlp", mlp),
                layer_norm("mlp_norm", dim, eps, true),
            ],
        }
    }
}
