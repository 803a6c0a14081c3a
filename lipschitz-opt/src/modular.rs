//! The modular norm, which splits the learning rate over the weights of a network (Large et al.,
//! *Scalable Optimization in the Modular Norm*, 2024).
//!
//! Every module of a network has a mass, its share of what is learnt, and a sensitivity, by which
//! its output moves when its input moves by 1 and its weights have norm 1. Under composition masses
//! add and sensitivities multiply. An update of modular norm η then moves weight w by `η ·
//! mass(w)/mass(all) / (sensitivity of all that follows)`, and the output by at most η.

use std::collections::BTreeMap;

use lipschitz_nn::graph::{Attention, Function, Graph, Node, Op, join};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How the learning rate is split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RatesConfig {
    /// Every weight has the whole of it.
    // In braces, or serde takes any key beside it.
    Equal {},
    /// By the modular norm.
    Modular {
        /// How the factors of a residual connection count.
        #[serde(default)]
        residual: ResidualSensitivity,
        /// Total mass of all below a node, by the node's path, such as `blocks = 32`. Where none is
        /// given, every weight has mass 1.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        masses: BTreeMap<String, f64>,
    },
}

/// The sensitivity of the factors a and b in `a x + b f(x)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResidualSensitivity {
    /// |a| and |b|, as they are: convex combinations have sensitivity 1.
    #[default]
    Scaled,
    /// 1, as in the published code. Each residual connection doubles the sensitivity, so the rate
    /// halves with each of them towards the input.
    Unit,
}

impl Default for RatesConfig {
    fn default() -> Self {
        Self::Equal {}
    }
}

impl RatesConfig {
    /// Each weight's factor on the learning rate, by the weight's name; empty if all are 1.
    ///
    /// # Errors
    /// [`Error::Config`] names a mass that is out of range or belongs to no node, or a node that
    /// nothing passes through.
    pub fn shares(&self, graph: &Graph) -> Result<BTreeMap<String, f64>, Error> {
        let Self::Modular { residual, masses } = self else { return Ok(BTreeMap::new()) };
        if let Some((path, mass)) =
            masses.iter().find(|(_, mass)| !(mass.is_finite() && **mass > 0.0))
        {
            return Err(Error::Config(format!(
                "rates.masses.{path} is {mass}; it must be above 0"
            )));
        }
        let norm = ModularNorm { residual: *residual, masses };
        let modules = norm.modules(graph.nodes(), "");
        if let Some(path) =
            masses.keys().find(|path| !modules.iter().any(|module| module.has(path)))
        {
            return Err(Error::Config(format!(
                "rates.masses.{path}: the network has no node of this path with weights"
            )));
        }
        let mut out = BTreeMap::new();
        let mass = modules.iter().map(|module| module.mass).sum();
        allot(&modules, mass, 1.0, &mut out);
        match out.iter().find(|(_, rate)| !f64::is_finite(**rate)) {
            Some((name, _)) => Err(Error::Config(format!(
                "rates: `{name}` moves nothing, a scale after it is 0; choose kind = \"equal\""
            ))),
            None => Ok(out),
        }
    }
}

/// A module of a network: weights side by side, or a composition of modules.
struct Module {
    path: String,
    mass: f64,
    sensitivity: f64,
    /// The factor on the output of the modules inside.
    factor: f64,
    inside: Inside,
}

enum Inside {
    Nothing,
    /// Weights that move the output side by side.
    Weights(Vec<String>),
    Modules(Vec<Module>),
    /// Modules that read the same and are added up.
    Parallel(Vec<Module>),
}

impl Module {
    fn plain(path: &str, sensitivity: f64) -> Self {
        Self { path: path.into(), mass: 0.0, sensitivity, factor: 1.0, inside: Inside::Nothing }
    }

    fn weights(path: &str, names: Vec<String>, sensitivity: f64) -> Self {
        Self {
            path: path.into(),
            mass: names.len() as f64,
            sensitivity,
            factor: 1.0,
            inside: Inside::Weights(names),
        }
    }

    fn sequence(path: &str, modules: Vec<Module>) -> Self {
        let mass = modules.iter().map(|module| module.mass).sum();
        let sensitivity = modules.iter().map(|module| module.sensitivity).product();
        Self { path: path.into(), mass, sensitivity, factor: 1.0, inside: Inside::Modules(modules) }
    }

    fn parallel(path: &str, modules: Vec<Module>) -> Self {
        let mass = modules.iter().map(|module| module.mass).sum();
        let sensitivity = modules.iter().map(|module| module.sensitivity).sum();
        let inside = Inside::Parallel(modules);
        Self { path: path.into(), mass, sensitivity, factor: 1.0, inside }
    }

    fn has(&self, path: &str) -> bool {
        self.mass > 0.0 && self.path == path
            || match &self.inside {
                Inside::Modules(modules) | Inside::Parallel(modules) => {
                    modules.iter().any(|module| module.has(path))
                }
                Inside::Nothing | Inside::Weights(_) => false,
            }
    }
}

/// The modular norm under these settings.
struct ModularNorm<'a> {
    residual: ResidualSensitivity,
    masses: &'a BTreeMap<String, f64>,
}

impl ModularNorm<'_> {
    fn modules(&self, nodes: &[Node], prefix: &str) -> Vec<Module> {
        nodes.iter().map(|node| self.module(node, prefix)).collect()
    }

    fn module(&self, node: &Node, prefix: &str) -> Module {
        let path = node.path(prefix);
        let path = path.as_str();
        let weight = |name: &str| join(path, name);
        let with_bias = |bias: bool| {
            let mut names = vec![weight("weight")];
            names.extend(bias.then(|| weight("bias")));
            names
        };
        let mut module = match &node.op {
            Op::Sequential { body } => Module::sequence(path, self.modules(body, path)),
            Op::Parallel { branches } => Module::parallel(path, self.modules(branches, path)),
            Op::Residual { skip, branch, body } => {
                let inner = Module::sequence(path, self.modules(body, path));
                let (a, b) = match self.residual {
                    ResidualSensitivity::Scaled => (skip.abs(), branch.abs()),
                    ResidualSensitivity::Unit => (1.0, 1.0),
                };
                Module { sensitivity: a + b * inner.sensitivity, factor: b, ..inner }
            }
            Op::Linear { bias, .. } => Module::weights(path, with_bias(*bias), 1.0),
            Op::Conv(c) => Module::weights(path, with_bias(c.bias), 1.0),
            Op::Embedding { .. } | Op::Positions { .. } => {
                Module::weights(path, vec![weight("weight")], 1.0)
            }
            Op::RmsNorm { gain, .. } => norm(path, *gain, false),
            Op::LayerNorm { gain, bias, .. } => norm(path, *gain, *bias),
            Op::Activation { function, scale } => {
                Module::plain(path, scale.abs() * slope(*function))
            }
            Op::Scale { factor } => Module::plain(path, factor.abs()),
            Op::Attention(a) => attention(a, path),
            Op::OffsetAttention { .. } => {
                let names = ["value.weight", "shares.weight"].map(weight);
                Module::weights(path, names.to_vec(), 1.0)
            }
            // A product of two factors of norm 1, both moved by the input.
            Op::GatedMlp { function, bias, .. } => {
                let mut names = vec![weight("gate.weight"), weight("up.weight")];
                let mut down = vec![weight("down.weight")];
                if *bias {
                    names.extend([weight("gate.bias"), weight("up.bias")]);
                    down.push(weight("down.bias"));
                }
                let product = Module::weights(path, names, 2.0 * slope(*function).max(1.0));
                Module::sequence(path, vec![product, Module::weights(path, down, 1.0)])
            }
            Op::ClassToken { .. } => Module::weights(path, vec![weight("weight")], 1.0),
            // Two halves, each of norm at most that of the largest token.
            Op::FirstAndMean => Module::plain(path, 2f64.sqrt()),
            Op::SoftCap { .. }
            | Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::Pool(_)
            | Op::GlobalPool { .. }
            | Op::MaxMin
            | Op::Normalise { .. }
            | Op::Clip { .. }
            | Op::Flatten
            | Op::Patches { .. }
            | Op::MeanPool
            | Op::FirstToken
            | Op::LastToken => Module::plain(path, 1.0),
        };
        if let Some(mass) = self.masses.get(path)
            && module.mass > 0.0
        {
            tare(&mut module, *mass);
        }
        module
    }
}

/// Queries, keys and values side by side, then the mixing of values, then the output projection.
/// The three copies of the input give sensitivity 3; the output scale of ⅓ of Newhouse et al.
/// (2025) brings it back to 1.
fn attention(a: &Attention, path: &str) -> Module {
    let weight = |name: &str| join(path, name);
    let mut names: Vec<String> =
        ["query", "key", "value"].map(|name| weight(&format!("{name}.weight"))).to_vec();
    if a.bias {
        names.extend(["query", "key", "value"].map(|name| weight(&format!("{name}.bias"))));
    }
    if a.query_key_norm.is_some() {
        names.extend(["query", "key"].map(|name| weight(&format!("{name}_norm.weight"))));
    }
    if a.query_key_shift {
        names.extend(["query", "key"].map(|name| weight(&format!("{name}_norm.bias"))));
    }
    names.extend(a.position_bias.map(|_| weight("position_bias.weight")));
    let mut output = vec![weight("output.weight")];
    output.extend(a.output_bias.then(|| weight("output.bias")));
    let modules = vec![
        Module::weights(path, names, 3.0),
        Module::weights(path, output, 1.0),
        Module::plain(path, a.output_scale.abs()),
    ];
    Module::sequence(path, modules)
}

/// A norm over the last dimension, whose weights, if it has any, are side by side.
fn norm(path: &str, gain: bool, bias: bool) -> Module {
    let names: Vec<String> = [("weight", gain), ("bias", bias)]
        .into_iter()
        .filter(|(_, is)| *is)
        .map(|(name, _)| join(path, name))
        .collect();
    if names.is_empty() { Module::plain(path, 1.0) } else { Module::weights(path, names, 1.0) }
}

/// The sensitivity of an activation: its largest slope, for numbers up to 1 where it has none.
fn slope(function: Function) -> f64 {
    match function {
        Function::Identity
        | Function::Relu
        | Function::Abs
        | Function::Tanh
        | Function::Softplus => 1.0,
        Function::GeluErf | Function::GeluTanh => 1.129,
        Function::Silu | Function::QuickGelu => 1.1,
        Function::Mish => 1.0885,
        Function::Sigmoid => 0.25,
        Function::HardSwish => 1.5,
        Function::HardSigmoid => 1.0 / 6.0,
        Function::Relu2 => 2.0,
        Function::LeakyRelu { slope: constant } | Function::Elu { alpha: constant } => {
            constant.abs().max(1.0)
        }
    }
}

/// Scales all masses inside so that they add up to `mass`.
fn tare(module: &mut Module, mass: f64) {
    let factor = mass / module.mass;
    scale_mass(module, factor);
}

fn scale_mass(module: &mut Module, factor: f64) {
    module.mass *= factor;
    if let Inside::Modules(modules) | Inside::Parallel(modules) = &mut module.inside {
        modules.iter_mut().for_each(|module| scale_mass(module, factor));
    }
}

/// Gives the modules of a composition their shares of `rate`; all masses add up to `mass`.
fn allot(modules: &[Module], mass: f64, rate: f64, out: &mut BTreeMap<String, f64>) {
    let mut after = 1.0;
    for module in modules.iter().rev() {
        let rate = rate / after / module.factor;
        match &module.inside {
            Inside::Nothing => {}
            Inside::Weights(names) => {
                let share = module.mass / names.len() as f64 / mass;
                out.extend(names.iter().map(|name| (name.clone(), rate * share)));
            }
            Inside::Modules(modules) => allot(modules, mass, rate, out),
            // Nothing in one branch follows what is in another.
            Inside::Parallel(branches) => {
                branches.chunks(1).for_each(|branch| allot(branch, mass, rate, out));
            }
        }
        after *= module.sensitivity;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lipschitz_nn::graph::Input;
    use lipschitz_nn::presets::{BlockConfig, Gpt, Mlp};

    fn modular(residual: ResidualSensitivity, masses: &[(&str, f64)]) -> RatesConfig {
        RatesConfig::Modular {
            residual,
            masses: masses.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        }
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs(), "{a} {b}");
    }

    #[test]
    fn an_mlp_of_three_layers_gets_thirds() {
        let mlp = Mlp {
            input: Input::Vector { dim: 8 },
            hidden: vec![4, 4],
            outputs: 2,
            final_scale: 1.0,
        };
        let shares =
            modular(ResidualSensitivity::Scaled, &[]).shares(&mlp.graph().unwrap()).unwrap();
        assert_eq!(shares.len(), 3);
        shares.values().for_each(|share| near(*share, 1.0 / 3.0));
        // A scaled head moves everything before it more.
        let shares = modular(ResidualSensitivity::Scaled, &[])
            .shares(&Mlp { final_scale: 8.0, ..mlp }.graph().unwrap())
            .unwrap();
        shares.values().for_each(|share| near(*share, 1.0 / 24.0));
    }

    fn gpt(layers: usize) -> Graph {
        Gpt::new(10, 8, layers, BlockConfig::new(8, 2)).graph().unwrap()
    }

    /// The published numbers: masses 1, 32, 1, and half the rate with each residual going back.
    #[test]
    fn the_published_split_of_a_transformer() {
        let shares =
            modular(ResidualSensitivity::Unit, &[("blocks", 32.0)]).shares(&gpt(2)).unwrap();
        near(shares["head.weight"], 1.0 / 34.0);
        let atom = 32.0 / 12.0 / 34.0;
        // Sensitivities inside a block: attention 1 (3 · ⅓), the MLP 1.129/1.1289.
        let gelu = 1.129 / 1.1289;
        near(shares["blocks.1.mlp.down.weight"], atom);
        near(shares["blocks.1.mlp.up.weight"], atom / gelu);
        near(shares["blocks.1.attention.output.weight"], 3.0 * atom / (1.0 + gelu));
        near(shares["blocks.1.attention.query.weight"], 3.0 * atom / (1.0 + gelu));
        let block = 2.0 * (1.0 + gelu);
        near(shares["blocks.0.mlp.down.weight"], atom / block);
        near(shares["embedding.weight"], 1.0 / 34.0 / block.powi(2));
    }

    /// With the factors counted, convex combinations leave the sensitivity at 1, and what is behind
    /// a small branch moves more.
    #[test]
    fn the_true_split_of_a_transformer() {
        let shares =
            modular(ResidualSensitivity::Scaled, &[("blocks", 32.0)]).shares(&gpt(2)).unwrap();
        let atom = 32.0 / 12.0 / 34.0;
        near(shares["blocks.1.mlp.down.weight"], atom / 0.25);
        assert!((shares["embedding.weight"] * 34.0 - 1.0).abs() < 1e-3);
    }

    /// Two linear maps side by side each move the sum by their share; what is before them moves
    /// both.
    #[test]
    fn branches_side_by_side() {
        let graph = Graph::builder(Input::Vector { dim: 4 })
            .linear_no_bias("first", 4)
            .parallel("sum", |b| {
                b.branch("a", |b| b.linear_no_bias("map", 4).scale(3.0))
                    .branch("b", |b| b.linear_no_bias("map", 4))
            })
            .build()
            .unwrap();
        let shares = modular(ResidualSensitivity::Scaled, &[]).shares(&graph).unwrap();
        near(shares["sum.a.map.weight"], 1.0 / 9.0);
        near(shares["sum.b.map.weight"], 1.0 / 3.0);
        near(shares["first.weight"], 1.0 / 12.0);
        // A mass of a branch.
        let shares =
            modular(ResidualSensitivity::Scaled, &[("sum.b", 2.0)]).shares(&graph).unwrap();
        near(shares["sum.b.map.weight"], 0.5);
    }

    #[test]
    fn every_weight_has_a_share_and_masses_that_fit_nothing_are_named() {
        let said = |masses: &[(&str, f64)]| {
            modular(ResidualSensitivity::Scaled, masses).shares(&gpt(1)).unwrap_err().to_string()
        };
        assert!(said(&[("block", 32.0)]).contains("rates.masses.block:"));
        assert!(said(&[("blocks", -1.0)]).contains("must be above 0"));
        let names: Vec<String> = gpt(2).parameters().into_iter().map(|p| p.name).collect();
        let shares = modular(ResidualSensitivity::Unit, &[]).shares(&gpt(2)).unwrap();
        let mut found: Vec<String> = shares.into_keys().collect();
        let mut wanted = names;
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    }
}
