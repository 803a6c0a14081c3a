//! A recipe for training: which optimizer moves each weight and how fast, and which constraint
//! keeps it small.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use lipschitz_nn::graph::{Geometry, Graph, Parameter};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::Error;
use crate::constraint::ConstraintConfig;
use crate::constraint::check::check_heads;
use crate::constraint::rule::Promise;
use crate::constraint::vectors::vectors;
use crate::modular::RatesConfig;
use crate::optimizer::{Optimizer, Rate, Variable, Variables};
use crate::optimizer_config::OptimizerConfig;
use crate::work::Sides;

/// Weights with an optimizer or a learning rate of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names of weights, with `*` for any characters: `embedding.*`, `*.query.weight`. A weight
    /// belongs to the first group whose pattern it matches.
    pub pattern: String,
    /// Their learning rate at its peak, in place of the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Their optimizer, in place of the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerConfig>,
}

/// What moves the weights of a network and what keeps them small: optimizers, learning rates and a
/// constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Moves every weight outside the groups.
    pub optimizer: OptimizerConfig,
    /// Weights with an optimizer or a learning rate of their own.
    pub groups: Vec<Group>,
    /// How the learning rate is split over the weights.
    pub rates: RatesConfig,
    /// What keeps the weights small.
    pub constraint: ConstraintConfig,
}

impl Recipe {
    /// One optimizer for all weights, at one learning rate.
    #[must_use]
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

    /// Whether every constant is in range, and every name and pattern belongs to a weight of the
    /// graph.
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
                check_heads("optimizer.per_head", muon.per_head.names(), &parameters)?;
            }
        }
        let idle = |group: &&Group| {
            let mut all = parameters.iter().filter_map(|p| self.group_of(p));
            !all.any(|of| std::ptr::eq(of, *group))
        };
        match self.groups.iter().find(idle) {
            Some(group) if parameters.iter().any(|p| group.has(p)) => Err(Error::Config(format!(
                "groups: the ones before `{}` take all of its weights; put it first",
                group.pattern
            ))),
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
    #[must_use]
    pub fn optimizer_of(&self, parameter: &Parameter) -> &OptimizerConfig {
        self.group_of(parameter)
            .and_then(|group| group.optimizer.as_ref())
            .unwrap_or(&self.optimizer)
    }

    /// What the constraint promises about a weight, after every step.
    #[must_use]
    pub fn promise(&self, parameter: &Parameter) -> Option<Promise> {
        self.constraint.promise(parameter, self.optimizer_of(parameter).update_bound(parameter))
    }

    /// The recipe that keeps norms below another cap, if the constraint can: through σ_max, or for
    /// weight decay under Muon through λ.
    #[must_use]
    pub fn with_sigma_max(&self, cap: f64) -> Option<Self> {
        let aim = self.constraint.method.rule().aim;
        let constraint = aim(&self.constraint, cap, self.optimizer.update_norm())?;
        Some(Self { constraint, ..self.clone() })
    }

    /// Floating-point operations of the optimizer's products in a step of this weight.
    #[must_use]
    pub fn update_work(&self, parameter: &Parameter) -> f64 {
        self.optimizer_of(parameter).update_work(parameter)
    }

    /// Floating-point operations of the constraint's products in a step of this weight; none if
    /// unknown, as for an SVD.
    #[must_use]
    pub fn constraint_work(&self, parameter: &Parameter) -> Option<f64> {
        let config = &self.constraint;
        if parameter.geometry != Geometry::Matrix || vectors(config, parameter).is_some() {
            return Some(0.0);
        }
        let (count, sides) = Sides::of(parameter, config.per_head.of(parameter));
        let bounded = self.optimizer_of(parameter).update_bound(parameter).is_some();
        Some(count * (config.method.rule().work)(config, sides, bounded)?)
    }

    /// The variables, each with its factor on the learning rate `peak`.
    ///
    /// # Errors
    /// As [`Self::check_rates`].
    pub fn variables(
        &self,
        graph: &Graph,
        vars: Vec<(Parameter, Var)>,
        peak: f64,
    ) -> Result<Variables, Error> {
        let shares = self.rates.shares(graph)?;
        let variable = |(parameter, var)| {
            let rate = self.rate(&shares, &parameter, peak)?;
            Ok(Variable { parameter, var, rate })
        };
        vars.into_iter().map(variable).collect()
    }

    /// Whether every weight of the graph has a learning rate, of the largest one `peak`, at which weight decay
    /// leaves something of it.
    ///
    /// # Errors
    /// [`Error::Config`] if the split of the learning rate does not fit the graph, or names the decay.
    pub fn check_rates(&self, graph: &Graph, peak: f64) -> Result<(), Error> {
        let shares = self.rates.shares(graph)?;
        graph.parameters().iter().try_for_each(|p| self.rate(&shares, p, peak).map(|_| ()))
    }

    /// A weight's factor on the learning rate `peak`. Weight decay is `(1−ηλ)W`.
    fn rate(
        &self,
        shares: &BTreeMap<String, f64>,
        parameter: &Parameter,
        peak: f64,
    ) -> Result<f64, Error> {
        let name = &parameter.name;
        let group = self.group_of(parameter);
        let own = group.and_then(|group| group.learning_rate);
        let factor = match (own, shares.get(name)) {
            (Some(rate), _) => rate / peak,
            (None, Some(share)) => *share,
            (None, None) if self.rates == RatesConfig::Equal {} => 1.0,
            (None, None) => {
                let what = format!("rates: `{name}` has no share; it is not in the graph");
                return Err(Error::Config(what));
            }
        };
        let key = match group.is_some_and(|group| group.optimizer.is_some()) {
            true => "groups.optimizer.weight_decay",
            false => "optimizer.weight_decay",
        };
        let optimizer = (key, self.optimizer_of(parameter).coupled_decay());
        let constraint = ("constraint.decay", self.constraint.coupled_decay());
        for (key, decay) in [optimizer, constraint] {
            let learning_rate = factor * peak;
            let share = learning_rate * decay;
            if share >= 1.0 {
                let short = |x: f64| if x < 1e15 { x.to_string() } else { format!("{x:e}") };
                let [decay, learning_rate, share] = [decay, learning_rate, share].map(short);
                return Err(Error::Config(format!(
                    "{key} is {decay}: times the learning rate {learning_rate} of `{name}` that is {share}, and from \
                     1 on a step leaves nothing of a weight; make one of them smaller"
                )));
            }
        }
        Ok(factor)
    }

    /// One optimizer for these variables, which steps each by its own.
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
        Ok(Box::new(Grouped(parts)))
    }

    /// The optimizers' names for tables and plots, the run's first: `Muon`, `Muon and AdamW`.
    #[must_use]
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
    #[must_use]
    pub fn constraint_name(&self) -> &'static str {
        self.constraint.name()
    }

    /// Optimizer and constraint in one label for tables and plots: `Muon + spectral soft cap`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} + {}", self.optimizer_name(), self.constraint_name())
    }

    /// Whether every matrix and table has a promise, so that a Lipschitz constant is known before
    /// training.
    #[must_use]
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
struct Grouped(Vec<Box<dyn Optimizer>>);

impl Optimizer for Grouped {
    fn step(&mut self, gradients: &GradStore, rate: Rate) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|part| part.step(gradients, rate))
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut out = BTreeMap::new();
        for part in &self.0 {
            // Optimizers of one kind share the name of their step count, and its value.
            out.extend(part.state()?);
        }
        Ok(out)
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|part| part.load_state(state))
    }
}
