//! The whole of what happens to weights: which optimizer moves each and how fast, and what keeps
//! them small.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use lipschitz_nn::graph::{Geometry, Graph, Parameter};
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::constraint::{ConstraintConfig, ConstraintKind, Promise, promise};
use crate::modular::RatesConfig;
use crate::{Error, Optimizer, OptimizerConfig, Rate, Variable, Variables};

/// Weights that move in a way of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names of weights, with `*` for any characters: `embedding.*`, `*.query.weight`. The first
    /// group that fits a weight has it.
    pub pattern: String,
    /// Their learning rate at its peak, in place of the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Their optimizer, in place of the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerConfig>,
}

/// What moves the weights of a network and what keeps them small.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Moves every weight that no group has.
    pub optimizer: OptimizerConfig,
    /// Weights that move in a way of their own.
    pub groups: Vec<Group>,
    /// How the learning rate is split over the weights.
    pub rates: RatesConfig,
    /// What keeps them small.
    pub constraint: ConstraintConfig,
}

impl Recipe {
    /// One optimizer for all weights, at one learning rate.
    pub fn new(optimizer: OptimizerConfig, constraint: ConstraintConfig) -> Self {
        Self { optimizer, groups: Vec::new(), rates: RatesConfig::default(), constraint }
    }

    /// Whether every constant is in range.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        self.optimizer.check()?;
        self.constraint.check()?;
        for group in &self.groups {
            if let Some(optimizer) = &group.optimizer {
                optimizer.check()?;
            }
            if let Some(rate) = group.learning_rate
                && !(rate.is_finite() && rate >= 0.0)
            {
                let pattern = &group.pattern;
                return Err(Error::Config(format!(
                    "groups.learning_rate of `{pattern}` is {rate}; it must be 0 or above"
                )));
            }
        }
        Ok(())
    }

    /// Whether every name and pattern belongs to a weight of the graph, too.
    ///
    /// # Errors
    /// [`Error::Config`] names the first that does not.
    pub fn check_for(&self, graph: &Graph) -> Result<(), Error> {
        self.check()?;
        let parameters = graph.parameters();
        self.constraint.check_names(&parameters)?;
        let all = std::iter::once(&self.optimizer)
            .chain(self.groups.iter().filter_map(|g| g.optimizer.as_ref()));
        for optimizer in all {
            if let OptimizerConfig::Muon(muon) = optimizer {
                let heads = ConstraintConfig {
                    per_head: muon.per_head.clone(),
                    ..ConstraintConfig::default()
                };
                heads.check_names(&parameters).map_err(|e| {
                    Error::Config(e.to_string().replace("constraint.", "optimizer."))
                })?;
            }
        }
        match self.groups.iter().find(|group| !parameters.iter().any(|p| group.has(p))) {
            Some(group) => Err(Error::Config(format!(
                "groups: no weight is named `{}`; the first is `{}`",
                group.pattern,
                parameters.first().map_or("none", |p| p.name.as_str())
            ))),
            None => Ok(()),
        }
    }

    fn group_of(&self, parameter: &Parameter) -> Option<&Group> {
        self.groups.iter().find(|group| group.has(parameter))
    }

    /// The optimizer that moves a weight.
    pub fn optimizer_of(&self, parameter: &Parameter) -> &OptimizerConfig {
        self.group_of(parameter)
            .and_then(|group| group.optimizer.as_ref())
            .unwrap_or(&self.optimizer)
    }

    /// What the constraint promises about a weight, after every step.
    pub fn promise(&self, parameter: &Parameter) -> Option<Promise> {
        promise(&self.constraint, parameter, self.optimizer_of(parameter).update_bound(parameter))
    }

    /// The same with another cap, if there is one: σ_max, or for weight decay under Muon the λ that
    /// keeps norms below it.
    pub fn with_sigma_max(&self, cap: f64) -> Option<Self> {
        let mut out = self.clone();
        let constraint = &mut out.constraint;
        match constraint.method {
            ConstraintKind::WeightDecay => {
                // Norms stay below u/λ; u is 1 up to what polynomials add.
                let OptimizerConfig::Muon(muon) = &self.optimizer else { return None };
                constraint.decay = Some(muon.newton_schulz.maximum() / cap);
            }
            method if method.capped() => constraint.sigma_max = Some(cap),
            _ => return None,
        }
        Some(out)
    }

    /// Variables with their factor on the learning rate `peak`.
    ///
    /// # Errors
    /// [`Error::Config`] if the split of the learning rate does not fit the graph.
    pub fn variables(
        &self,
        graph: &Graph,
        vars: Vec<(Parameter, Var)>,
        peak: f64,
    ) -> Result<Variables, Error> {
        let shares = self.rates.shares(graph)?;
        let rate = |p: &Parameter| match (
            self.group_of(p).and_then(|group| group.learning_rate),
            shares.get(&p.name),
        ) {
            (Some(rate), _) => Ok(rate / peak),
            (None, Some(share)) => Ok(*share),
            (None, None) if self.rates == RatesConfig::Equal => Ok(1.0),
            (None, None) => Err(Error::Config(format!(
                "rates: `{}` has no share; it is not in the graph",
                p.name
            ))),
        };
        vars.into_iter()
            .map(|(parameter, var)| Ok(Variable { rate: rate(&parameter)?, parameter, var }))
            .collect()
    }

    /// The optimizers for these variables, as one.
    ///
    /// # Errors
    /// [`Error::Config`] names a constant out of range; candle's own.
    pub fn build(&self, variables: &Variables) -> Result<Box<dyn Optimizer>, Error> {
        let mut parts: Vec<(&OptimizerConfig, Variables)> = Vec::new();
        for v in variables {
            let config = self.optimizer_of(&v.parameter);
            match parts.iter_mut().find(|(there, _)| *there == config) {
                Some((_, members)) => members.push(v.clone()),
                None => parts.push((config, vec![v.clone()])),
            }
        }
        let parts = parts
            .into_iter()
            .map(|(config, members)| config.build(members))
            .collect::<Result<_, _>>()?;
        Ok(Box::new(Parts(parts)))
    }

    /// The optimizers' names for tables and plots, the run's first: `Muon`, `Muon and AdamW`.
    pub fn optimizer_name(&self) -> String {
        let mut names = vec![self.optimizer.name()];
        for optimizer in self.groups.iter().filter_map(|group| group.optimizer.as_ref()) {
            if !names.contains(&optimizer.name()) {
                names.push(optimizer.name());
            }
        }
        names.join(" and ")
    }

    /// The constraint's name for tables and plots.
    pub fn constraint_name(&self) -> &'static str {
        self.constraint.name()
    }

    /// Optimizer and constraint in one label for tables and plots: `Muon + spectral soft cap`.
    pub fn name(&self) -> String {
        format!("{} + {}", self.optimizer_name(), self.constraint_name())
    }

    /// Whether every matrix and table has a promise, so that a constant is known before training.
    pub fn promises_all(&self, graph: &Graph) -> bool {
        graph
            .parameters()
            .iter()
            .all(|p| p.geometry == Geometry::Vector || self.promise(p).is_some())
    }
}

impl Group {
    fn has(&self, parameter: &Parameter) -> bool {
        WildMatch::new(&self.pattern).matches(&parameter.name)
    }
}

/// Optimizers of disjoint weights.
struct Parts(Vec<Box<dyn Optimizer>>);

impl Optimizer for Parts {
    fn step(&mut self, gradients: &GradStore, rate: Rate) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|part| part.step(gradients, rate))
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut out = BTreeMap::new();
        for part in &self.0 {
            // Counts of steps have one name for all, and are the same in all.
            out.extend(part.state()?);
        }
        Ok(out)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|part| part.load_state(state))
    }
}
