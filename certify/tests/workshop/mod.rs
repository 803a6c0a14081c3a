//! Checkpoints for tests, written by the library.

#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::checkpoint::{self, Meta, Provenance};
use lipschitz_nn::graph::{Attention, Function, Graph, Input, Node, Op, Pairing, Rotary};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::presets::{BlockConfig, Gpt};
use lipschitz_nn::{Model, Weights};
use tempfile::TempDir;

/// A directory with `model.safetensors`: a transformer with four heads and a head matrix that is
/// not zero.
pub struct Workshop(TempDir);

impl Workshop {
    pub fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        workshop.save("model.safetensors", |_| {});
        workshop
    }

    pub fn model() -> Model {
        let gpt = Gpt::new(11, 6, 2, BlockConfig::new(16, 4));
        let graph = gpt.graph().unwrap();
        let mut weights =
            init::weights(&graph, 7, Blocks::Whole, &Device::Cpu, DType::F32).unwrap();
        for (name, w) in &mut weights {
            if name.ends_with("head.weight")
                || name.ends_with("output.weight")
                || name.ends_with("down.weight")
            {
                let values: Vec<f32> =
                    (0..w.elem_count()).map(|i| ((i * i) as f32 * 0.7).sin() * 0.4).collect();
                *w = Tensor::from_vec(values, w.shape(), &Device::Cpu).unwrap();
            }
        }
        Model::new(graph, weights).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn string(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn save(&self, name: &str, change: impl Fn(&mut Weights)) -> String {
        let model = Self::model();
        let mut weights = model.weights().clone();
        change(&mut weights);
        let model = Model::new(model.graph().clone(), weights).unwrap();
        let meta = Meta {
            format: checkpoint::FORMAT,
            graph: model.graph().clone(),
            config: serde_json::Value::Null,
            tokenizer: None,
            classes: Vec::new(),
            provenance: Provenance {
                version: "0".into(),
                seed: None,
                data_digest: None,
                teachers: Vec::new(),
                step: None,
                origin: None,
            },
        };
        checkpoint::save(&self.path(name), &model, &meta).unwrap();
        self.string(name)
    }
}

/// A transformer with all features of imported models: norms with gains and shifts, biases, grouped
/// queries, gated units.
pub fn normalised() -> Model {
    let attention = Attention {
        dim: 8,
        heads: 4,
        key_value_heads: 2,
        head_dim: 4,
        logit_scale: 0.5,
        output_scale: 1.0,
        causal: true,
        rotary: Some(Rotary::new(100.0, Pairing::Half)),
        bias: true,
        output_bias: true,
        query_key_norm: Some(0.01),
        logit_cap: Some(5.0),
        ..Attention::new(8, 4, 4)
    };
    let residual =
        |name: &str, body| Node::new(name, Op::Residual { skip: 1.0, branch: 1.0, body });
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary: 7, dim: 8 }),
        Node::new("positions", Op::Positions { length: 5, dim: 8 }),
        residual(
            "a",
            vec![
                Node::new("norm", Op::LayerNorm { dim: 8, eps: 0.1, bias: true, gain: true }),
                Node::new("attention", Op::Attention(attention)),
            ],
        ),
        residual(
            "b",
            vec![
                Node::new("norm", Op::RmsNorm { dim: 8, eps: 0.1, gain: true }),
                Node::new(
                    "mlp",
                    Op::GatedMlp { dim: 8, hidden: 6, function: Function::Silu, bias: true },
                ),
            ],
        ),
        residual(
            "c",
            vec![
                Node::new("norm", Op::LayerNorm { dim: 8, eps: 0.1, bias: true, gain: true }),
                Node::new("up", Op::Linear { inputs: 8, outputs: 12, bias: true }),
                Node::new("", Op::Activation { function: Function::GeluTanh, scale: 1.0 }),
                Node::new("down", Op::Linear { inputs: 12, outputs: 8, bias: true }),
            ],
        ),
        Node::new("norm", Op::RmsNorm { dim: 8, eps: 0.1, gain: true }),
        Node::new("head", Op::Linear { inputs: 8, outputs: 7, bias: false }),
        Node::new("", Op::SoftCap { cap: 30.0 }),
    ];
    let graph = Graph::new(Input::tokens(5), nodes).unwrap();
    let mut k = 0;
    let mut weight = |shape: &[usize]| {
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|_| {
                k += 1;
                (f64::from(k) * 1.7).sin() * 0.5
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let weights = graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.shape))).collect();
    Model::new(graph, weights).unwrap()
}
