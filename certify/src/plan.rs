//! From a target constant to caps, before the first step: the bound propagation of a certificate,
//! with caps in place of norms.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::Error;
use crate::bound::{Block, Kernel, Norm, Norms, Walk, paper, walk};
use crate::upper::{Upper, count};
use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Axis, Geometry, Parameter};
use lipschitz_opt::{Recipe, matrix_name, scale};

/// What a constraint promises about the weights of a graph.
struct Caps {
    weights: HashMap<String, Cap>,
    /// A vector whose norm was needed. Vectors have no cap, so what depends on its size has no
    /// bound.
    uncapped: OnceCell<String>,
}

struct Cap {
    parameter: Parameter,
    /// Cap on the spectral norm of the whole matrix.
    whole: Upper,
    /// Cap on the spectral norm of each head's block.
    head: Option<Upper>,
    /// Cap on the ℓ2 norm of each row.
    row: Upper,
    /// Cap on the ℓ2 norm of the convolution that it is the kernel of.
    convolution: Option<Upper>,
}

impl Caps {
    /// Checks that `bound` is finite.
    ///
    /// # Errors
    /// [`Error::Unknown`] names the vector on whose size it depends.
    fn finite(&self, bound: Upper) -> Result<(), Error> {
        match self.uncapped.get() {
            Some(vector) if !bound.is_finite() => Err(Error::Unknown(format!(
                "the cap of `{vector}`: vectors have none, and what follows depends on its size \
                 (leave it out, or plan no constant)"
            ))),
            _ => Ok(()),
        }
    }

    fn get(&self, name: &str) -> Result<&Cap, Error> {
        self.weights.get(name).ok_or_else(|| Error::Unknown(format!("the cap of `{name}`")))
    }
}

impl Caps {
    fn matrix(&self, block: &Block) -> Result<Upper, Error> {
        if let Some(gain) = &block.gain {
            return Err(unknown(gain));
        }
        let cap = self.get(&block.weight)?;
        // A cap per head bounds the blocks of single heads, and no other blocks are asked for.
        let part = |axis| if axis == Axis::Rows { block.rows.count } else { block.columns.count };
        let blocks = cap.parameter.heads.is_some_and(|h| h.count == part(h.axis));
        Ok(if blocks { cap.head.unwrap_or(cap.whole).min(cap.whole) } else { cap.whole })
    }

    fn row(&self, block: &Block) -> Result<Upper, Error> {
        Ok(self.matrix(block)?.min(self.get(&block.weight)?.row))
    }
}

impl Norms for Caps {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        match norm {
            Norm::Matrix(block) => self.matrix(block),
            // Of the windows that the kernel reads, a pixel is in so many.
            Norm::Convolution(Kernel { weight, convolution, sides: [height, width] }) => {
                let cap = self.get(weight)?;
                let windows = count(convolution.overlap(*height) * convolution.overlap(*width));
                let unfolded = windows.sqrt() * cap.whole;
                Ok(cap.convolution.map_or(unfolded, |cap| cap.min(unfolded)))
            }
            Norm::Row(block) => self.row(block),
            Norm::Product(a, b) | Norm::OutputValue(a, b) | Norm::QueryKey(a, b) => {
                Ok(self.matrix(a)? * self.matrix(b)?)
            }
            // A difference of two rows is Wᵀ times a vector of norm √2. Rows of tables are capped
            // individually.
            Norm::RowDifference(block) => {
                let two = Upper::from_f64(2.0);
                let table = self.get(&block.weight)?.parameter.geometry == Geometry::Table;
                let rows = self.row(block)? * two;
                Ok(if table { rows } else { rows.min(self.matrix(block)? * two.sqrt()) })
            }
            // A bias shifts outputs and changes no difference of outputs. So the constant is
            // infinite only where it depends on the size of a value.
            Norm::Affine(_, vector, _) | Norm::Vector(Block { weight: vector, .. }) => {
                self.uncapped.get_or_init(|| vector.clone());
                Ok(Upper::INFINITY)
            }
            Norm::Largest(vector) => Err(unknown(vector)),
            // All tokens read one.
            Norm::Reads(reads) => Ok(count(reads.tokens)),
        }
    }
}

fn unknown(vector: &str) -> Error {
    Error::Unknown(format!("the cap of `{vector}`: vectors have none"))
}

/// The bounds that hold for every network whose weights obey the constraint.
///
/// # Errors
/// If the constraint promises nothing about a weight, or has a factor for a name that no weight
/// has.
pub fn plan(graph: &Graph, recipe: &Recipe) -> Result<Walk, Error> {
    let caps = caps(graph, recipe)?;
    let walk = walk(graph, &caps, None)?;
    caps.finite(walk.lipschitz)?;
    Ok(walk)
}

/// The published formula for the caps, RMS → RMS; see [`paper`].
///
/// # Errors
/// As [`plan`], and for a node that the formula does not cover.
pub fn published(graph: &Graph, recipe: &Recipe) -> Result<Upper, Error> {
    paper::formula(graph, &caps(graph, recipe)?)
}

fn caps(graph: &Graph, recipe: &Recipe) -> Result<Caps, Error> {
    recipe.check_for(graph)?;
    let mut weights = HashMap::new();
    for parameter in graph.parameters() {
        let Some(promise) = recipe.promise(&parameter) else { continue };
        let sigma = Upper::from_f64(promise.sigma_max);
        // Two square roots and a product are rounded; this rounds down.
        let factor = |heads| scale(&parameter, heads) * (1.0 - 4.0 * f64::EPSILON);
        let (whole, head) = match (parameter.geometry, promise.heads) {
            (Geometry::Matrix, Some(heads)) => {
                let head = sigma.div_up(factor(Some(heads)));
                (head * Upper::from_f64(heads.count as f64).sqrt(), Some(head))
            }
            (Geometry::Matrix, None) => (sigma.div_up(factor(None)), None),
            (Geometry::Table, _) => {
                (sigma * Upper::from_f64(parameter.shape[1] as f64).sqrt(), None)
            }
            (Geometry::Vector, _) => continue,
        };
        // A square root and a quotient are rounded.
        let slack = Upper::from_f64(1.0 + 4.0 * f64::EPSILON);
        let row = promise.row.map_or(Upper::INFINITY, |row| Upper::from_f64(row) * slack);
        let convolution = promise.convolution.map(|norm| Upper::from_f64(norm) * slack);
        weights.insert(parameter.name.clone(), Cap { parameter, whole, head, row, convolution });
    }
    Ok(Caps { weights, uncapped: OnceCell::new() })
}

/// The constant, RMS → RMS, that [`plan`] gives.
///
/// # Errors
/// As [`plan`].
pub fn bound(graph: &Graph, recipe: &Recipe) -> Result<Upper, Error> {
    Ok(plan(graph, recipe)?.rms())
}

/// The largest cap, with the constraint's own factors, under which the constant is at most
/// `target`.
///
/// # Errors
/// If the constraint has no cap to choose, or no cap from 10⁻⁶ to 10⁶ meets the target.
pub fn solve(graph: &Graph, recipe: &Recipe, target: f64) -> Result<Recipe, Error> {
    let goal = Upper::from_f64(target);
    let with = |log: f64| recipe.with_sigma_max(10f64.powf(log)).ok_or_else(|| no_promise(recipe));
    if !with(0.0)?.promises_all(graph) {
        return Err(no_promise(recipe));
    }
    let fits = |log: f64| -> Result<bool, Error> { Ok(bound(graph, &with(log)?)? <= goal) };
    let (mut low, mut high) = (-6.0, 6.0);
    if !fits(low)? {
        return Err(Error::Unreachable { target, cap: 1e-6 });
    }
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if fits(middle)? { low = middle } else { high = middle }
    }
    with(low)
}

fn no_promise(recipe: &Recipe) -> Error {
    Error::NoPromise(recipe.constraint.method)
}

/// Factors stay between 1/FACTOR and FACTOR, so that no cap becomes very small.
const FACTOR: f64 = 8.0;

/// Spends a target unequally: searches for one factor per matrix name (queries, keys, …), from 1/8
/// to 8, that makes the geometric mean of all caps as large as possible under the target. Returns
/// the best factors it has seen, with their cap.
///
/// At an optimum inside these limits, a 1 % increase of the caps of one name costs the constant in
/// proportion to the number of its matrices. Caps that the constant hardly depends on are raised,
/// and those on which it depends most are lowered.
///
/// # Errors
/// As [`solve`].
pub fn spend(graph: &Graph, recipe: &Recipe, target: f64) -> Result<Recipe, Error> {
    const ROUNDS: usize = 60;
    let matrices: Vec<_> =
        graph.parameters().into_iter().filter(|p| p.geometry == Geometry::Matrix).collect();
    let names: BTreeSet<String> =
        matrices.iter().map(|p| matrix_name(&p.name).to_string()).collect();
    let share = |name: &str| {
        matrices.iter().filter(|p| matrix_name(&p.name) == name).count() as f64
            / matrices.len() as f64
    };
    if !recipe.constraint.method.capped() {
        return Err(no_promise(recipe));
    }
    let given = |logs: &BTreeMap<String, f64>| {
        let mut out = recipe.clone();
        out.constraint.factors = logs.iter().map(|(name, log)| (name.clone(), log.exp())).collect();
        out
    };
    let log_bound = |logs: &BTreeMap<String, f64>, cap: f64| -> Result<f64, Error> {
        Ok(bound(graph, &given(logs).with_sigma_max(cap).ok_or_else(|| no_promise(recipe))?)?
            .log10())
    };
    let mut logs: BTreeMap<String, f64> = names.iter().map(|name| (name.clone(), 0.0)).collect();
    let mut best = solve(graph, &given(&logs), target)?;
    for round in 0..ROUNDS {
        // Elasticity of the constant in the caps of each name, over its share of the matrices.
        let here = solve(graph, &given(&logs), target)?;
        let cap = here.constraint.sigma_max().ok_or_else(|| no_promise(recipe))?;
        if mean_cap(&here, &matrices) > mean_cap(&best, &matrices) {
            best = here;
        }
        let base = log_bound(&logs, cap)?;
        let mut slopes = BTreeMap::new();
        for name in &names {
            let mut moved = logs.clone();
            moved.entry(name.clone()).and_modify(|log| *log += 0.01);
            let rise = log_bound(&moved, cap)? - base;
            slopes.insert(
                name.clone(),
                (rise * std::f64::consts::LN_10 / 0.01 / share(name)).max(1e-3),
            );
        }
        let centre = names.iter().map(|name| share(name) * slopes[name].ln()).sum::<f64>();
        let step = 0.5 * (1.0 - round as f64 / ROUNDS as f64);
        for (name, log) in &mut logs {
            let limit = FACTOR.ln();
            *log = (*log + step * (centre - slopes[name].ln())).clamp(-limit, limit);
        }
    }
    Ok(best)
}

/// The geometric mean of the caps of all matrices.
pub fn mean_cap<'a>(recipe: &Recipe, matrices: impl IntoIterator<Item = &'a Parameter>) -> f64 {
    let caps = matrices
        .into_iter()
        .filter_map(|p| recipe.promise(p))
        .map(|promise| promise.sigma_max.ln());
    let (sum, count) = caps.fold((0.0, 0.0), |(sum, count), log| (sum + log, count + 1.0));
    f64::exp(sum / f64::max(count, 1.0))
}

#[cfg(test)]
mod tests {
    use lipschitz_nn::presets::{Activation, BlockConfig, Gpt, Positions, Vit};
    use lipschitz_opt::constraint::{ConstraintConfig, ConstraintKind};
    use lipschitz_opt::{MuonConfig, OptimizerConfig, PerHead};

    use super::*;

    fn graph() -> Graph {
        Gpt::new(30, 16, 3, BlockConfig::new(32, 4)).graph().unwrap()
    }

    fn recipe(method: ConstraintKind, per_head: PerHead) -> Recipe {
        let decay = (method == ConstraintKind::WeightDecay).then_some(0.1);
        let constraint = ConstraintConfig { per_head, decay, ..ConstraintConfig::new(method) };
        Recipe::new(OptimizerConfig::Muon(MuonConfig::default()), constraint)
    }

    fn constraint(per_head: bool) -> Recipe {
        recipe(ConstraintKind::SpectralNormalize, PerHead::All(per_head))
    }

    #[test]
    fn targets_are_met_and_nearly_used() {
        for per_head in [false, true] {
            for target in [0.5, 10.0, 1e4] {
                let uniform = solve(&graph(), &constraint(per_head), target).unwrap();
                let spent = spend(&graph(), &constraint(per_head), target).unwrap();
                for planned in [&uniform, &spent] {
                    let l = bound(&graph(), planned).unwrap().to_f64();
                    assert!(l <= target && l > 0.999 * target, "{target}: {l}");
                }
                let matrices: Vec<_> = graph().parameters();
                let (a, b) = (mean_cap(&uniform, &matrices), mean_cap(&spent, &matrices));
                assert!(b >= a, "{target}: {a} {b}");
                println!(
                    "per head {per_head}, target {target}: mean cap {a:.3} uniform, {b:.3} spent \
                     unequally"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_planned_is_refused() {
        let said = |r: Result<Recipe, Error>| r.unwrap_err().to_string();
        for method in [
            ConstraintKind::None,
            ConstraintKind::SpectralHammer,
            ConstraintKind::SpectralWeightDecay,
        ] {
            let said = said(solve(&graph(), &recipe(method, PerHead::default()), 10.0));
            assert!(said.contains("promises no norm"), "{said}");
        }
        assert!(said(solve(&graph(), &constraint(false), 1e-9)).contains("cannot be met"));
        let mut odd = constraint(false);
        odd.constraint.factors.insert("qurey".to_string(), 2.0);
        assert!(said(solve(&graph(), &odd, 10.0)).contains("query"));
    }

    /// Biases have no cap and need none, unless a later node depends on the size of its input.
    #[test]
    fn biases_matter_in_front_of_attention_alone() {
        use lipschitz_nn::graph::{Attention, Function, Input, Node, Op};
        let linear = |name: &str| Node::new(name, Op::Linear { inputs: 8, outputs: 8, bias: true });
        let relu = Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 });
        let attention = Node::new("mix", Op::Attention(Attention::new(8, 2, 4)));
        let embedding = Node::new("embedding", Op::Embedding { vocabulary: 5, dim: 8 });
        let graph = |nodes: &[&Node]| {
            Graph::new(Input::tokens(6), nodes.iter().map(|&node| node.clone()).collect()).unwrap()
        };
        let after = graph(&[&embedding, &attention, &linear("a"), &relu, &linear("b")]);
        let l = bound(&after, &solve(&after, &constraint(false), 7.0).unwrap()).unwrap().to_f64();
        assert!(l <= 7.0 && l > 0.999 * 7.0, "{l}");
        let before = graph(&[&embedding, &linear("a"), &attention, &linear("b")]);
        let said = solve(&before, &constraint(false), 7.0).unwrap_err().to_string();
        assert!(said.contains("`a.bias`"), "{said}");
    }

    /// For every constraint that promises a cap, on transformers and a vision transformer, the
    /// solved cap gives a constant just below the target.
    #[test]
    fn every_promise_is_solved_for() {
        let block = BlockConfig { logit_scale: 1.0 / 32.0, ..BlockConfig::new(32, 4) };
        let sees_all = BlockConfig { causal: false, positions: None, ..block.clone() };
        let vit = Vit {
            image: [3, 32, 32],
            patch: 8,
            outputs: 10,
            block: sees_all,
            layers: 2,
            final_scale: 2.0,
        }
        .graph()
        .unwrap();
        let names = PerHead::Named(["query", "key", "output"].map(String::from).into());
        let block = BlockConfig {
            positions: Some(Positions::Bias),
            activation: Activation::Abs,
            alpha: Some(1.0),
            ..block
        };
        let tight = Gpt::new(30, 16, 1, block).graph().unwrap();
        for graph in [graph(), tight, vit] {
            for method in ConstraintKind::ALL {
                for heads in [PerHead::All(false), PerHead::All(true), names.clone()] {
                    let mut recipe = recipe(
                        method,
                        if method == ConstraintKind::None { PerHead::default() } else { heads },
                    );
                    let capped = recipe.with_sigma_max(1.0).is_some_and(|r| r.promises_all(&graph));
                    let solved = solve(&graph, &recipe, 7.0);
                    assert_eq!(solved.is_ok(), capped, "{method:?}");
                    if !capped {
                        continue;
                    }
                    let l = bound(&graph, &solved.unwrap()).unwrap().to_f64();
                    assert!(l <= 7.0 && l > 0.999 * 7.0, "{method:?}: {l}");
                    if method.capped() {
                        recipe.constraint.row_caps.insert("head".to_string());
                        let l =
                            bound(&graph, &solve(&graph, &recipe, 7.0).unwrap()).unwrap().to_f64();
                        assert!(l <= 7.0 && l > 0.999 * 7.0, "{method:?}: {l}");
                    }
                }
            }
        }
    }
}
