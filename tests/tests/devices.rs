//! The same on every device: forward, backward, updates, constraints, training, and a run that
//! moves from one to another.
//!
//! The measure is the CPU in f64. Against it come the CPU in f32, the CPU in f32 without our
//! kernels, which runs what a GPU runs, and a GPU where there is one: `cargo test --release
//! --workspace --features cuda --test devices`.

use std::collections::BTreeMap;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor, Var};
use lipschitz_nn::checkpoint;
use lipschitz_nn::graph::{Geometry, Graph};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::linalg::without_kernels;
use lipschitz_nn::presets::{Activation, BlockConfig, Gpt, Mlp, Positions};
use lipschitz_nn::{Model, Weights, graph::Input};
use lipschitz_opt::constraint::{ConstraintConfig, ConstraintKind};
use lipschitz_opt::{AdamWConfig, MuonConfig, OptimizerConfig, PerHead, Rate, Recipe, SgdConfig};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model, skipped,
};
use lipschitz_train::step::{Times, Training};

/// Where something runs.
#[derive(Clone)]
struct Place {
    name: &'static str,
    device: Device,
    dtype: DType,
    kernels: bool,
}

impl Place {
    fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.kernels { f() } else { without_kernels(f) }
    }

    /// A tensor of the measure, here.
    fn tensor(&self, x: &Tensor) -> Tensor {
        let x = x.to_device(&self.device).unwrap();
        if x.dtype().is_float() { x.to_dtype(self.dtype).unwrap() } else { x }
    }
}

fn measure() -> Place {
    Place { name: "CPU f64", device: Device::Cpu, dtype: DType::F64, kernels: true }
}

fn places() -> Vec<Place> {
    let cpu = |name, kernels| Place { name, device: Device::Cpu, dtype: DType::F32, kernels };
    let mut places = vec![cpu("CPU f32", true), cpu("CPU f32, composed", false)];
    match Device::new_cuda(0) {
        Ok(device) => {
            let of =
                |name, kernels| Place { name, device: device.clone(), dtype: DType::F32, kernels };
            places.extend([of("CUDA f32", true), of("CUDA f32, composed", false)]);
        }
        Err(_) => skipped(format_args!("no CUDA device, or built without the feature `cuda`")),
    }
    places
}

fn wide(x: &Tensor) -> Tensor {
    x.detach().to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

fn largest(x: &Tensor) -> f64 {
    let all = x.abs().unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(all.iter().all(|x| x.is_finite()), "not a number, or infinite");
    all.into_iter().fold(0.0, f64::max)
}

/// The largest difference over the largest element.
fn distance(found: &Tensor, exact: &Tensor) -> f64 {
    let (found, exact) = (wide(found), wide(exact));
    assert_eq!(found.dims(), exact.dims());
    largest(&(found - &exact).unwrap()) / largest(&exact).max(1e-3)
}

#[test]
fn forward_and_backward_agree_on_networks_of_every_node() {
    let mut dice = Dice::new(41);
    for round in 0..80 {
        let graph = match round % 3 {
            _ if round >= 60 => random_convolution_graph(&mut dice),
            2 => random_image_graph(&mut dice),
            _ => random_graph(&mut dice),
        };
        let model = random_model(graph, &mut dice);
        let x = match model.graph().input() {
            Input::Tokens { .. } => {
                Tensor::new(&[[0u32, 3, 1, 4], [2, 2, 0, 1]], &Device::Cpu).unwrap()
            }
            _ => dice.tensor(&[2, 2, 4, 4], 1.0),
        };
        let at = |place: &Place| {
            place.run(|| {
                let (model, vars) =
                    model.to(&place.device, place.dtype).unwrap().trainable().unwrap();
                let y = model.forward(&place.tensor(&x)).unwrap();
                let weights = Tensor::arange(0f32, y.elem_count() as f32, &place.device).unwrap();
                let weights =
                    (weights.to_dtype(place.dtype).unwrap() * 0.7).unwrap().sin().unwrap();
                let loss = (y.flatten_all().unwrap() * weights).unwrap().sum_all().unwrap();
                let gradients = loss.backward().unwrap();
                let gradient = |v: &Var| gradients.get(v.as_tensor()).map(wide);
                (wide(&y), vars.iter().map(|(_, v)| gradient(v)).collect::<Vec<_>>())
            })
        };
        let exact = at(&measure());
        for place in places() {
            let found = at(&place);
            let of = |what: &str, error: f64, limit: f64| {
                assert!(
                    error < limit,
                    "{}: {what} {error:e} off in {:?}",
                    place.name,
                    model.graph()
                );
            };
            of("output", distance(&found.0, &exact.0), 2e-4);
            // Some gradients are zero but for rounding, such as that of a bias of keys.
            let scale = exact.1.iter().flatten().map(largest).fold(1e-3, f64::max);
            for (a, b) in found.1.iter().zip(&exact.1) {
                match (a, b) {
                    (Some(a), Some(b)) => of("gradient", largest(&(a - b).unwrap()) / scale, 2e-4),
                    // Where nothing depends on a weight, as behind the first token, there may be none.
                    (a, b) => {
                        let one = a.iter().chain(b).map(largest).fold(0.0, f64::max);
                        of("a gradient that is missing", one, 1e-12);
                    }
                }
            }
        }
    }
}

fn gpt() -> Graph {
    let gpt = Gpt {
        final_scale: 8.0,
        separator: Some(5),
        ..Gpt::new(31, 24, 2, BlockConfig::new(32, 2))
    };
    gpt.graph().unwrap()
}

/// With a position bias and |x|.
fn tight() -> Graph {
    let block = BlockConfig {
        positions: Some(Positions::Bias),
        activation: Activation::Abs,
        alpha: Some(1.0),
        ..BlockConfig::new(32, 4)
    };
    Gpt { final_scale: 8.0, separator: Some(5), ..Gpt::new(31, 24, 1, block) }.graph().unwrap()
}

fn mlp() -> Graph {
    Mlp { input: Input::Vector { dim: 48 }, hidden: vec![40, 24], outputs: 10, final_scale: 2.0 }
        .graph()
        .unwrap()
}

/// Initial weights that no place rounds: they are those of f32.
fn weights(graph: &Graph) -> Weights {
    init::weights(graph, 3, Blocks::Whole, &Device::Cpu, DType::F32).unwrap()
}

fn training(graph: &Graph, recipe: &Recipe, weights: &Weights, place: &Place) -> Training {
    let model =
        Model::new(graph.clone(), weights.clone()).unwrap().to(&place.device, place.dtype).unwrap();
    let (model, vars) = model.trainable().unwrap();
    let variables = recipe.variables(graph, vars, 0.02).unwrap();
    Training::new(model, variables, recipe, Rc::default()).unwrap()
}

/// A batch with something to learn: a token from the one before, or a class from one of the
/// numbers.
fn batch(graph: &Graph, place: &Place, step: u32) -> (Tensor, Tensor) {
    let (x, y) = match graph.context() {
        Some(tokens) => {
            let id = |i: u32, t: u32| (i * 7 + t * 3 + step * 5) % 31;
            let ids =
                |shift| (0..4).flat_map(move |i| (0..tokens as u32).map(move |t| id(i, t + shift)));
            let of = |shift| {
                Tensor::from_vec(ids(shift).collect::<Vec<u32>>(), (4, tokens), &Device::Cpu)
                    .unwrap()
            };
            (of(0), of(1))
        }
        None => {
            let x: Vec<f32> =
                (0..32 * 48).map(|i| ((i + 77 * step) * 7919 % 1009) as f32 / 1009.0).collect();
            let y: Vec<u32> = (0..32).map(|i| (x[i * 48] * 10.0) as u32).collect();
            (
                Tensor::from_vec(x, (32, 48), &Device::Cpu).unwrap(),
                Tensor::from_vec(y, 32, &Device::Cpu).unwrap(),
            )
        }
    };
    (place.tensor(&x), y.to_device(&place.device).unwrap())
}

/// Steps `from` to `to`, and their losses.
fn steps(
    training: &mut Training,
    graph: &Graph,
    place: &Place,
    steps: std::ops::Range<u32>,
) -> Vec<f64> {
    place.run(|| {
        let one = |step| {
            let (x, y) = batch(graph, place, step);
            training.step(&x, &y, 1, Rate::constant(0.02), &mut Times::default()).unwrap().loss
        };
        steps.map(one).collect()
    })
}

/// The largest distance of a weight of two trainings.
fn apart(a: &Training, b: &Training) -> f64 {
    let pairs = a.variables.iter().zip(&b.variables);
    pairs.map(|(a, b)| distance(a.var.as_tensor(), b.var.as_tensor())).fold(0.0, f64::max)
}

fn optimizers() -> Vec<OptimizerConfig> {
    vec![
        OptimizerConfig::Muon(MuonConfig::default()),
        OptimizerConfig::Muon(MuonConfig {
            nesterov: true,
            per_head: PerHead::All(true),
            ..MuonConfig::default()
        }),
        OptimizerConfig::Adamw(AdamWConfig::default()),
        OptimizerConfig::Sgd(SgdConfig::default()),
    ]
}

#[test]
fn one_step_of_each_optimizer_agrees() {
    for optimizer in optimizers() {
        for graph in [gpt(), mlp()] {
            let recipe =
                Recipe::new(optimizer.clone(), ConstraintConfig::new(ConstraintKind::None));
            let start = weights(&graph);
            let at = |place: &Place| {
                let mut training = training(&graph, &recipe, &start, place);
                steps(&mut training, &graph, place, 0..1);
                training
            };
            let exact = at(&measure());
            for place in places() {
                // Where the gradient is as small as its rounding, the directions of Muon and of
                // Adam are rounding too.
                let error = apart(&at(&place), &exact);
                assert!(error < 2e-3, "{}, {}: {error:e}", place.name, optimizer.name());
            }
        }
    }
}

#[test]
fn each_constraint_agrees() {
    let graph = gpt();
    let mut dice = Dice::new(9);
    let large: Weights = graph
        .parameters()
        .iter()
        .map(|p| (p.name.clone(), dice.tensor(&p.shape, 1.0).to_dtype(DType::F32).unwrap()))
        .collect();
    for method in ConstraintKind::ALL {
        for heads in [false, true] {
            let decays =
                matches!(method, ConstraintKind::WeightDecay | ConstraintKind::SpectralWeightDecay);
            let config = ConstraintConfig {
                sigma_max: method.capped().then_some(0.7),
                decay: decays.then_some(0.1),
                per_head: PerHead::All(heads),
                ..ConstraintConfig::new(method)
            };
            let recipe = Recipe::new(OptimizerConfig::Muon(MuonConfig::default()), config);
            if recipe.check_for(&graph).is_err() {
                continue;
            }
            let at = |place: &Place| {
                place.run(|| {
                    let mut training = training(&graph, &recipe, &large, place);
                    training.constraint.project(&training.variables).unwrap();
                    training.constraint.apply(&training.variables, Rate::constant(0.02)).unwrap();
                    training
                })
            };
            let exact = at(&measure());
            for place in places() {
                let error = apart(&at(&place), &exact);
                assert!(error < 2e-3, "{}, {method:?}, heads {heads}: {error:e}", place.name);
            }
        }
    }
}

#[test]
fn twenty_steps_agree() {
    for optimizer in optimizers() {
        for (graph, tolerance) in [(gpt(), 5e-3), (tight(), 5e-3), (mlp(), 5e-3)] {
            let recipe = Recipe::new(
                optimizer.clone(),
                ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 2.0),
            );
            let start = weights(&graph);
            let at = |place: &Place| {
                steps(&mut training(&graph, &recipe, &start, place), &graph, place, 0..20)
            };
            let exact = at(&measure());
            assert!(exact[19] < exact[0], "{exact:?}");
            for place in places() {
                for (found, exact) in at(&place).iter().zip(&exact) {
                    let error = (found - exact).abs() / (exact + 0.1);
                    assert!(
                        error < tolerance,
                        "{}, {}: {found} {exact}",
                        place.name,
                        optimizer.name()
                    );
                }
            }
        }
    }
}

/// Ten steps in one place, a checkpoint, ten more in another: as if it had stayed.
#[test]
fn a_run_moves_from_one_device_to_another() {
    let graph = gpt();
    let places: Vec<Place> = places();
    for optimizer in optimizers() {
        let recipe = Recipe::new(
            optimizer.clone(),
            ConstraintConfig::capped(ConstraintKind::SpectralSoftCap, 2.0),
        );
        let start = weights(&graph);
        for from in &places {
            for to in &places {
                let mut first = training(&graph, &recipe, &start, from);
                steps(&mut first, &graph, from, 0..10);
                let state = first.state().unwrap();
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("state.safetensors");
                let tensors = first
                    .variables
                    .iter()
                    .map(|v| (v.parameter.name.as_str(), v.var.as_tensor().clone()));
                let state = state.iter().map(|(name, t)| (name.as_str(), t.clone()));
                checkpoint::save_tensors(&path, tensors.chain(state), None).unwrap();
                let stayed = steps(&mut first, &graph, from, 10..20);

                let (read, _) = checkpoint::load_tensors(&path, &to.device).unwrap();
                let weights: Weights =
                    start.keys().map(|name| (name.clone(), read[name].clone())).collect();
                let mut second = training(&graph, &recipe, &weights, to);
                let state: BTreeMap<String, Tensor> =
                    read.into_iter().filter(|(name, _)| !start.contains_key(name)).collect();
                second.load_state(&state).unwrap();
                let moved = steps(&mut second, &graph, to, 10..20);
                let same = from.name == to.name;
                for (a, b) in stayed.iter().zip(&moved) {
                    let error = (a - b).abs() / (b + 0.1);
                    assert!(
                        error <= if same { 0.0 } else { 5e-3 },
                        "{} to {}: {a} {b}",
                        from.name,
                        to.name
                    );
                }
                assert!(second.variables.iter().any(|v| v.parameter.geometry == Geometry::Matrix));
            }
        }
    }
}
