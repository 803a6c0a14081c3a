//! What a training step takes, before anything is run: memory of a process, floating-point
//! operations, bytes exchanged and time, from shapes alone.
//!
//! Candle's composed operations are counted, as a GPU runs them; on the CPU whole blocks are one
//! operation and keep less.

mod count;
mod least;

pub use least::{Least, Mostly, check, forward, least};

use std::collections::HashMap;

use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Geometry, Input, Parameter};
use lipschitz_nn::linalg::Precision;
use lipschitz_opt::{MAX_BATCHED_ELEMENTS, OptimizerConfig, Recipe};

use crate::Error;
use crate::config::{Config, TrainConfig};
use crate::ranks::owners;
use crate::step;
use count::{F32, Segment, segments};

/// Memory accesses per activation that is kept for the gradient. Forward: written and read.
/// Backward: its gradient is cleared, read and written, what is added to it written and read, and
/// the activation and the next gradient read.
const PASSES: f64 = 9.0;

/// Temporaries of the update of a stack of matrices, in stacks.
const STACK: f64 = 8.0;

/// Tensors as large as the logits that a loss against a teacher's probabilities makes: these, logits over the
/// temperature, their products, the gradients of each, and a second cross-entropy beside the classes.
const TAUGHT: f64 = 8.0;

/// Passes of optimizer and constraint over weights, gradients and momentum.
const UPDATE_PASSES: f64 = 12.0;

/// Sustained speeds of a device.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// Floating-point operations per second of matmuls in f32.
    pub f32: f64,
    /// The same in bf16.
    pub bf16: f64,
    /// Bytes per second to and from its memory.
    pub memory: f64,
    /// Bytes per second that each process sends to the others.
    pub exchange: f64,
}

/// Floating-point operations of matmuls, by the type they are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flops {
    /// In f32.
    pub f32: f64,
    /// In bf16.
    pub bf16: f64,
}

impl Flops {
    fn new(precision: Precision, operations: f64) -> Self {
        match precision {
            Precision::F32 => Self { f32: operations, bf16: 0.0 },
            Precision::Bf16 => Self { f32: 0.0, bf16: operations },
        }
    }

    fn and(self, other: Self) -> Self {
        Self { f32: self.f32 + other.f32, bf16: self.bf16 + other.bf16 }
    }

    fn seconds(self, speeds: &Speeds) -> f64 {
        self.f32 / speeds.f32 + self.bf16 / speeds.bf16
    }
}

/// What a step takes of each process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Weights of the whole network.
    pub weights: u64,
    /// Tokens or images per step, over all processes.
    pub tokens: u64,
    /// Parts that each process makes its share of the batch in.
    pub parts: usize,
    /// Its memory.
    pub memory: Memory,
    /// Operations of forward and backward pass.
    pub gradient: Flops,
    /// Operations of the optimizer and the constraint, at the process that has most; an SVD's are
    /// not known.
    pub update: Option<Flops>,
    /// Bytes that forward and backward pass move to and from memory, and the update.
    pub moved: (f64, f64),
    /// Bytes that a process sends.
    pub sent: f64,
}

/// Bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// The weights, in f32; with their mean, where they are averaged, and on a CPU those before a step
    /// that is logged.
    pub weights: f64,
    /// Their gradients.
    pub gradients: f64,
    /// What the optimizer keeps for the weights that are this process's own.
    pub optimizer: f64,
    /// What forward and backward pass keep of one part of the batch.
    pub activations: f64,
    /// What an update works with, after the activations are gone.
    pub update: f64,
}

impl Memory {
    /// The most at any time.
    #[must_use]
    pub fn peak(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations.max(self.update)
    }
}

impl StepCost {
    /// Seconds of the matmuls of forward and backward pass, of their memory traffic, of update and
    /// constraint, and of exchange. None of them overlap.
    #[must_use]
    pub fn seconds(&self, speeds: &Speeds) -> Option<[f64; 4]> {
        let update = self.update?.seconds(speeds) + self.moved.1 / speeds.memory;
        let exchange = self.sent / speeds.exchange;
        Some([self.gradient.seconds(speeds), self.moved.0 / speeds.memory, update, exchange])
    }
}

/// What a step of a run on this many processes takes, with these teachers.
///
/// # Errors
/// [`Error::UnevenBatch`] if they cannot share the batch evenly.
pub fn estimate(
    config: &Config,
    graph: &Graph,
    teachers: &[Graph],
    processes: usize,
) -> Result<StepCost, Error> {
    let train = &config.train;
    let parameters = graph.parameters();
    let weights = parameters.iter().map(numbers).sum::<f64>();
    let share = step::share(train.batch_size, processes)?;
    let (examples, part) = (share as f64, step::part(share, train.accumulate));
    let parts = share.div_ceil(part.max(1));
    let kernels = train.device != "cpu";
    let segments = segments(graph, graph.input(), train.precision, train.dropout > 0.0, kernels);
    let gradient = GradientCost::new(train, &segments);
    let update = UpdateCost::new(&config.recipe(), &parameters, processes);
    let copies = [true, config.averaging.is_some(), train.device == "cpu"];
    let copies = copies.into_iter().filter(|there| *there).count() as f64;
    let others = (processes - 1) as f64 / processes as f64;
    // With several parts, the sum so far and the gradient of a part, which is added block by block
    // where blocks are recomputed.
    let gradients = if parts > 1 && !train.recompute { 2.0 } else { 1.0 };
    // A recomputed activation is written and read once more.
    let passes = PASSES + if train.recompute { 2.0 } else { 0.0 };
    let taught = teachers.iter().map(|t| TaughtCost::new(train, t, graph.input(), kernels));
    let taught = taught.fold(TaughtCost::default(), TaughtCost::and);
    Ok(StepCost {
        weights: weights as u64,
        tokens: graph.input().positions() as u64 * train.batch_size as u64,
        parts,
        memory: Memory {
            weights: F32 * (weights * copies + all_weights(teachers)),
            gradients: F32 * weights * gradients,
            optimizer: F32 * update.state,
            activations: (gradient.held + taught.held) * part as f64 + gradient.rounded,
            update: F32 * (update.own + STACK * update.stack),
        },
        gradient: Flops::new(train.precision, examples * (gradient.operations + taught.operations))
            .and(Flops::new(Precision::F32, examples * (gradient.tiles + taught.tiles))),
        update: update.flops,
        moved: (
            (passes * gradient.kept + taught.moved) * examples,
            UPDATE_PASSES * F32 * update.own,
        ),
        // A sum over a ring, then the weights from their owners.
        sent: F32 * weights * others * 3.0,
    })
}

/// Forward and backward pass of one example.
struct GradientCost {
    /// Bytes kept for the gradient.
    kept: f64,
    /// Bytes in memory at a time.
    held: f64,
    /// Bytes of weights rounded to bf16, whatever the number of examples.
    rounded: f64,
    /// Floating-point operations.
    operations: f64,
    /// Those of a GPU's attention beside them, in f32.
    tiles: f64,
}

impl GradientCost {
    fn new(train: &TrainConfig, segments: &[Segment]) -> Self {
        let sum = |part: fn(&Segment) -> f64| segments.iter().map(part).sum::<f64>();
        let max = |part: fn(&Segment) -> f64| segments.iter().map(part).fold(0.0, f64::max);
        let (forward, kept) = (sum(|s| s.products), sum(|s| s.kept));
        let unneeded = sum(|s| s.without_gradient);
        let (again, held, rounded) = if train.recompute {
            let again = segments.iter().rev().skip(1).map(|s| s.products).sum();
            (again, sum(|s| s.input) + max(|s| s.kept), max(|s| s.rounded_weights))
        } else {
            (0.0, kept, sum(|s| s.rounded_weights))
        };
        let held = held + max(|s| s.at_work);
        let again_tiles = if train.recompute { sum(|s| s.tiles[1]) } else { 0.0 };
        let tiles = sum(|s| s.tiles[0]) + again_tiles;
        Self { kept, held, rounded, operations: 3.0 * forward + again - unneeded, tiles }
    }
}

/// A teacher's forward pass of one example.
#[derive(Default)]
struct TaughtCost {
    /// Bytes of its probabilities and of the loss against them.
    held: f64,
    /// Bytes written and read.
    moved: f64,
    /// Floating-point operations.
    operations: f64,
    /// Those of a GPU's attention beside them, in f32.
    tiles: f64,
}

impl TaughtCost {
    /// For what the network reads, which may be less than the teacher could.
    fn new(train: &TrainConfig, graph: &Graph, input: Input, kernels: bool) -> Self {
        let segments = segments(graph, input, train.precision, false, kernels);
        let sum = |part: fn(&Segment) -> f64| segments.iter().map(part).sum::<f64>();
        Self {
            held: TAUGHT * segments.last().map_or(0.0, |last| last.logits),
            moved: 2.0 * sum(|s| s.kept),
            operations: sum(|s| s.products),
            tiles: sum(|s| s.tiles[1]),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            // One after the other.
            held: self.held.max(other.held),
            moved: self.moved + other.moved,
            operations: self.operations + other.operations,
            tiles: self.tiles + other.tiles,
        }
    }
}

/// Optimizer and constraint, at the process that has most of each.
struct UpdateCost {
    /// Numbers in the weights that one process owns.
    own: f64,
    /// Numbers in the optimizer's state of them.
    state: f64,
    /// Those of them that there are whatever the optimizer's constants.
    least_state: f64,
    /// Numbers in the largest stack of matrices that is updated at once.
    stack: f64,
    flops: Option<Flops>,
}

impl UpdateCost {
    fn new(recipe: &Recipe, parameters: &[Parameter], processes: usize) -> Self {
        let owners = owners(&parameters.iter().map(step::work).collect::<Vec<_>>(), processes);
        let most = |f: &dyn Fn(&Parameter) -> f64| {
            let mut sums = vec![0.0; processes];
            parameters.iter().zip(&owners).for_each(|(p, owner)| sums[*owner] += f(p));
            sums.into_iter().fold(0.0, f64::max)
        };
        let own = most(&numbers);
        let state = most(&|p| {
            numbers(p)
                * match recipe.optimizer_of(p) {
                    OptimizerConfig::Adamw(_) => 2.0,
                    OptimizerConfig::Muon(_) | OptimizerConfig::Sgd(_) => 1.0,
                }
        });
        let least_state = most(&|p| {
            numbers(p)
                * match recipe.optimizer_of(p) {
                    OptimizerConfig::Adamw(_) => 2.0,
                    OptimizerConfig::Muon(_) => 1.0,
                    OptimizerConfig::Sgd(_) => 0.0,
                }
        });
        let in_bf16 = |p: &Parameter| match recipe.optimizer_of(p) {
            OptimizerConfig::Muon(muon) => muon.precision == Precision::Bf16,
            OptimizerConfig::Adamw(_) | OptimizerConfig::Sgd(_) => false,
        };
        let counted = parameters.iter().all(|p| recipe.constraint_work(p).is_some());
        let flops = counted.then(|| Flops {
            f32: most(&|p| {
                let update = if in_bf16(p) { 0.0 } else { recipe.update_work(p) };
                update + recipe.constraint_work(p).unwrap_or_default()
            }),
            bf16: most(&|p| if in_bf16(p) { recipe.update_work(p) } else { 0.0 }),
        });
        // All matrices of one shape are updated together, as far as they fit.
        let mut alike: HashMap<&[usize], f64> = HashMap::new();
        for p in parameters {
            *alike.entry(&p.shape).or_default() += numbers(p);
        }
        let stack = parameters.iter().filter(|p| p.geometry == Geometry::Matrix).map(|p| {
            let alike = alike.get(&p.shape[..]).copied().unwrap_or_default();
            alike.min(own).min((MAX_BATCHED_ELEMENTS as f64).max(numbers(p)))
        });
        Self { own, state, least_state, stack: stack.fold(0.0, f64::max), flops }
    }
}

fn numbers(parameter: &Parameter) -> f64 {
    parameter.shape.iter().product::<usize>() as f64
}

/// Numbers in the weights of these networks.
fn all_weights(graphs: &[Graph]) -> f64 {
    graphs.iter().flat_map(Graph::parameters).map(|p| numbers(&p)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(preset: &str, settings: &[&str], outputs: usize) -> StepCost {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        let config = Config::parse(crate::preset::text(preset).unwrap(), &settings).unwrap();
        estimate(&config, &config.graph(outputs).unwrap(), &[], 1).unwrap()
    }

    #[test]
    fn matmuls_are_counted() {
        // The gradient with respect to pixels is not computed.
        let mlp = of("mlp-cifar10", &["train.batch_size=7"], 10);
        let (first, others) = (3072 * 256, 256 * 256 + 256 * 10);
        assert_eq!(
            mlp.gradient,
            Flops { f32: (7 * 2 * (2 * first + 3 * others)) as f64, bf16: 0.0 }
        );
        assert_eq!(mlp.tokens, 7);

        let settings = [
            "model.dim=64",
            "model.layers=2",
            "model.heads=2",
            "model.context=32",
            "train.batch_size=5",
        ];
        let gpt = of("gpt-shakespeare", &settings, 30);
        // Four square matrices and two of 4 × 64 a layer, the head; scores and mixed values.
        let forward = 2 * 32 * (2 * 12 * 64 * 64 + 64 * 30) + 2 * 2 * 2 * 32 * 32 * 64;
        assert_eq!(gpt.gradient.f32, (5 * 3 * forward) as f64);
        assert_eq!(gpt.tokens, 5 * 32);
        let again = of(
            "gpt-shakespeare",
            &[&settings[..], &["train.recompute=true", "train.precision=bf16"]].concat(),
            30,
        );
        assert_eq!(
            again.gradient,
            Flops { f32: 0.0, bf16: (5 * (4 * forward - 2 * 32 * 64 * 30)) as f64 }
        );

        // Patches of 8 × 8 pixels: one token each.
        let vit = of(
            "mlp-cifar10",
            &[
                "model={ preset = \"vit\", dim = 16, layers = 1, heads = 2, patch = 8 }",
                "train.batch_size=1",
            ],
            10,
        );
        assert!(vit.gradient.f32 > 0.0 && vit.tokens == 1);
    }

    /// A teacher is a forward pass of what the network reads, whatever it could read itself, and its weights.
    #[test]
    fn teachers_are_counted() {
        let size = ["model.dim=64", "model.layers=2", "model.heads=2", "train.batch_size=5"];
        let graph = |context: usize, layers: usize| {
            let (context, layers) =
                (format!("model.context={context}"), format!("model.layers={layers}"));
            let settings = [&size[..], &[&*context, &*layers]].concat();
            let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
            let text = crate::preset::text("gpt-shakespeare").unwrap();
            let config = Config::parse(text, &settings).unwrap();
            (config.graph(30).unwrap(), config)
        };
        let (own, config) = graph(32, 2);
        let cost = |teachers: &[Graph]| estimate(&config, &own, teachers, 1).unwrap();
        let alone = cost(&[]);
        for (context, layers) in [(32, 1), (512, 1), (32, 3)] {
            let teacher = graph(context, layers).0;
            let taught = cost(std::slice::from_ref(&teacher));
            let per_layer = 2 * 32 * 12 * 64 * 64 + 2 * 2 * 32 * 32 * 64;
            let forward = (layers * per_layer + 2 * 32 * 64 * 30) as f64;
            assert_eq!(taught.gradient.f32 - alone.gradient.f32, 5.0 * forward);
            let weights = teacher.parameters().iter().map(numbers).sum::<f64>();
            assert_eq!(taught.memory.weights - alone.memory.weights, 4.0 * weights);
            assert_eq!(
                taught.memory.activations - alone.memory.activations,
                5.0 * 8.0 * 4.0 * 32.0 * 30.0
            );
            assert!(taught.moved.0 > alone.moved.0);
            let both = cost(&[teacher.clone(), teacher]);
            assert_eq!(both.gradient.f32 - alone.gradient.f32, 10.0 * forward);
        }
    }

    /// On a GPU, logits and probabilities are no tensors: what is kept grows with the tokens, not with their
    /// square, and attention's operations are in f32.
    #[test]
    fn a_gpu_keeps_no_logits() {
        let at = |context: usize, device: &str| {
            let context = format!("model.context={context}");
            let device = format!("train.device={device}");
            let sizes = ["model.dim=256", "model.layers=3", "model.heads=4", "train.batch_size=8"];
            let settings = [&[&*context, &*device, "train.precision=bf16"], &sizes[..]].concat();
            of("gpt-shakespeare", &settings, 30)
        };
        let [short, long] = [512, 2048].map(|context| at(context, "cuda:0"));
        let grows = |a: &StepCost, b: &StepCost| b.memory.activations / a.memory.activations;
        assert!((3.9..4.1).contains(&grows(&short, &long)), "{short:?} {long:?}");
        let [other, composed] = [512, 2048].map(|context| at(context, "cpu"));
        assert!(
            grows(&other, &composed) > 10.0 && short.memory.activations < other.memory.activations
        );
        // Nine products of four heads of width 64, of which a causal mask hides half.
        let one = 512.0 * 512.0 * 4.0 * 64.0;
        assert_eq!(short.gradient.f32, 8.0 * 3.0 * 9.0 * one);
        assert_eq!(other.gradient.f32, 0.0);
    }

    #[test]
    fn updates_are_counted() {
        let one = |settings: &[&str]| {
            of(
                "mlp-cifar10",
                &[&["model.hidden=[512]", "constraint.sigma_max=4"], settings].concat(),
                512,
            )
            .update
        };
        let (s, l) = (512f64, 3072f64);
        // The square matrix by six quintics, the other by its Gram matrix.
        let muon = 6.0 * 6.0 * s.powi(3) + (4.0 * s * s * l + 21.0 * 2.0 * s.powi(3));
        let soft = 8.0 * s.powi(3) + 8.0 * s * s * l;
        assert_eq!(one(&[]), Some(Flops { f32: muon + soft, bf16: 0.0 }));
        // In bf16 the Gram form is not used, and the cap is followed by a norm.
        let plain = 6.0 * 6.0 * s.powi(3) + 6.0 * (4.0 * s * s * l + 2.0 * s.powi(3));
        let norms = (2.0 + 18.0) * s.powi(3) + (2.0 * s * s * l + 18.0 * s.powi(3));
        assert_eq!(
            one(&["optimizer.precision=bf16"]),
            Some(Flops { f32: soft + norms, bf16: plain })
        );
        assert_eq!(one(&["constraint.method=svd_clip"]), None);
    }
}
