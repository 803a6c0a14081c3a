//! A training run is the same, bit for bit, on any number of threads.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::Input;
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::presets::{Activation, BlockConfig, Gpt, Mlp, Positions};
use lipschitz_nn::{Graph, Model};
use lipschitz_opt::constraint::{ConstraintConfig, ConstraintKind};
use lipschitz_opt::{AdamWConfig, MuonConfig, OptimizerConfig, Rate, Recipe};
use lipschitz_train::step::{Times, Training};

fn training(graph: &Graph, recipe: &Recipe, recompute: bool) -> Training {
    let weights = init::weights(graph, 0, Blocks::Whole, &Device::Cpu, DType::F32).unwrap();
    let (model, vars) =
        Model::new(graph.clone(), weights).unwrap().recomputing(recompute).trainable().unwrap();
    let variables = recipe.variables(graph, vars, 0.02).unwrap();
    Training::new(model, variables, recipe, Rc::default()).unwrap()
}

/// Losses and final weights of four steps, taken in parts.
fn run(
    graph: &Graph,
    recipe: &Recipe,
    recompute: bool,
    parts: usize,
    threads: usize,
) -> (Vec<f64>, Vec<Vec<f32>>) {
    let work = || {
        let mut training = training(graph, recipe, recompute);
        let (x, y) = match graph.context() {
            Some(tokens) => {
                let ids: Vec<u32> = (0..6 * tokens as u32).map(|i| i * i % 65).collect();
                let x = Tensor::from_vec(ids, (6, tokens), &Device::Cpu).unwrap();
                (x.clone(), x)
            }
            None => {
                let pixels: Vec<f32> =
                    (0..300 * 48).map(|i| (i * 7919 % 1009) as f32 / 1009.0).collect();
                let classes: Vec<u32> = (0..300).map(|i| i % 10).collect();
                let x = Tensor::from_vec(pixels, (300, 48), &Device::Cpu).unwrap();
                (x, Tensor::from_vec(classes, 300, &Device::Cpu).unwrap())
            }
        };
        let mut step = || {
            training.step(&x, &y, parts, Rate::constant(0.02), &mut Times::default()).unwrap().loss
        };
        let losses = (0..4).map(|_| step()).collect();
        let weight =
            |v: &lipschitz_opt::Variable| v.var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (losses, training.variables.iter().map(weight).collect())
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn cases() -> Vec<(&'static str, Graph, Recipe)> {
    let gpt = Gpt { final_scale: 2.0, ..Gpt::new(65, 130, 2, BlockConfig::new(64, 2)) };
    let block = BlockConfig {
        positions: Some(Positions::Bias),
        activation: Activation::Abs,
        alpha: Some(1.0),
        ..BlockConfig::new(64, 4)
    };
    let tight = Gpt { final_scale: 2.0, ..Gpt::new(65, 130, 1, block) };
    let mlp = Mlp {
        input: Input::Vector { dim: 48 },
        hidden: vec![200, 90],
        outputs: 10,
        final_scale: 1.0,
    };
    let muon = OptimizerConfig::Muon(MuonConfig::default());
    let adamw = OptimizerConfig::Adamw(AdamWConfig::default());
    let soft = ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 2.0);
    vec![
        ("transformer, Muon", gpt.graph().unwrap(), Recipe::new(muon.clone(), soft.clone())),
        ("transformer, AdamW", gpt.graph().unwrap(), Recipe::new(adamw, soft.clone())),
        (
            "position bias and |x|, Muon",
            tight.graph().unwrap(),
            Recipe::new(muon.clone(), soft.clone()),
        ),
        ("MLP, Muon", mlp.graph().unwrap(), Recipe::new(muon, soft)),
    ]
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (name, graph, recipe) in cases() {
        let alone = run(&graph, &recipe, false, 1, 1);
        assert!(
            alone.0.iter().all(|loss| loss.is_finite()) && alone.0[3] < alone.0[0],
            "{name}: {:?}",
            alone.0
        );
        for threads in [2, 3, 8] {
            assert!(run(&graph, &recipe, false, 1, threads) == alone, "{name}: {threads} threads");
        }
        assert!(run(&graph, &recipe, true, 1, 2) == alone, "{name}: recomputed activations");
    }
}

/// Gradients added over parts of a batch are those of the batch, up to rounding; parts need not be
/// equal.
#[test]
fn parts_of_a_batch_add_up() {
    for (name, graph, recipe) in cases() {
        let whole = run(&graph, &recipe, false, 1, 2);
        for parts in [2, 4, 100] {
            let cut = run(&graph, &recipe, false, parts, 2);
            for (a, b) in whole.0.iter().zip(&cut.0) {
                assert!((a - b).abs() < 1e-4 * a, "{name} in {parts} parts: {a} {b}");
            }
        }
    }
}
