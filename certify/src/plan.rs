//! From a wanted constant to caps, before the first step: the walk of the certificate, with caps in place of norms.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::Error;
use crate::bound::{Block, Norm, Norms, Walk, walk};
use crate::upper::Upper;
use anyhow::{Result, bail};
use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Axis, Geometry, Parameter};
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_opt::constraint::{ConstraintConfig, role};

/// What a constraint promises about every weight of a graph.
struct Caps {
    weights: HashMap<String, Cap>,
}

struct Cap {
    parameter: Parameter,
    /// ℓ2, of the whole.
    whole: Upper,
    /// ℓ2, of each head's block of rows.
    head: Option<Upper>,
}

impl Caps {
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
        // A cap a head bounds every block that lies inside a head; blocks asked for are heads.
        let blocks = cap.parameter.heads.is_some_and(|h| h.axis == Axis::Rows && h.count == block.rows.count);
        Ok(if blocks { cap.head.unwrap_or(cap.whole).min(cap.whole) } else { cap.whole })
    }
}

impl Norms for Caps {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        match norm {
            Norm::Matrix(block) | Norm::Row(block) => self.matrix(block),
            Norm::Product(a, b) | Norm::TransposedProduct(a, b) => Ok(self.matrix(a)? * self.matrix(b)?),
            // A difference of two rows is Wᵀ times a vector of norm √2; rows of tables are capped one by one.
            Norm::RowDifference(block) => {
                let two = Upper::from_f64(2.0);
                let table = self.get(&block.weight)?.parameter.geometry == Geometry::Table;
                Ok(self.matrix(block)? * if table { two } else { two.sqrt() })
            }
            Norm::Affine(_, vector, _) | Norm::Largest(vector) => Err(unknown(vector)),
            Norm::Vector(block) => Err(unknown(&block.weight)),
        }
    }
}

fn unknown(vector: &str) -> Error {
    Error::Unknown(format!("the cap of `{vector}`: vectors have none"))
}

/// The walk that holds for every network whose weights obey the constraint.
///
/// # Errors
/// If the constraint promises nothing about a weight, or has a factor for no weight.
pub fn plan(graph: &Graph, constraint: &ConstraintConfig) -> Result<Walk> {
    let parameters = graph.parameters();
    constraint.check_factors(parameters.iter())?;
    let mut weights = HashMap::new();
    for parameter in parameters {
        let Some(promise) = constraint.cap(&parameter) else { continue };
        let sigma = Upper::from_f64(promise.sigma_max);
        let shape = &parameter.shape;
        let scale = |rows: usize| sigma.over(rms_to_rms(rows, shape[1]).next_down());
        let (whole, head) = match (parameter.geometry, parameter.heads) {
            (Geometry::Matrix, Some(heads)) if promise.per_head => {
                let head = scale(shape[0] / heads.count);
                (head * Upper::from_f64(heads.count as f64).sqrt(), Some(head))
            }
            (Geometry::Matrix, _) => (scale(shape[0]), None),
            (Geometry::Table, _) => (sigma * Upper::from_f64(shape[1] as f64).sqrt(), None),
            (Geometry::Vector, _) => continue,
        };
        weights.insert(parameter.name.clone(), Cap { parameter, whole, head });
    }
    Ok(walk(graph, &Caps { weights }, None)?)
}

/// The constant, RMS → RMS, that [`plan`] gives.
///
/// # Errors
/// As [`plan`].
pub fn bound(graph: &Graph, constraint: &ConstraintConfig) -> Result<Upper> {
    Ok(plan(graph, constraint)?.rms())
}

/// The largest cap, with the constraint's own factors, under which the constant is at most `target`.
///
/// # Errors
/// If the constraint has no cap to choose, or no cap in 10⁻⁶…10⁶ will do.
pub fn solve(graph: &Graph, constraint: &ConstraintConfig, target: f64) -> Result<ConstraintConfig> {
    let goal = Upper::from_f64(target);
    let with = |log: f64| constraint.with_sigma_max(10f64.powf(log));
    if with(0.0).is_none() {
        bail!("a target needs a constraint with a cap: set constraint.method to one that has sigma_max")
    }
    let fits = |log: f64| -> Result<bool> {
        Ok(match with(log) {
            Some(constraint) => bound(graph, &constraint)? <= goal,
            None => false,
        })
    };
    let (mut low, mut high) = (-6.0, 6.0);
    if !fits(low)? {
        bail!("a constant of {target} cannot be met: even caps of 1e-6 allow more")
    }
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if fits(middle)? { low = middle } else { high = middle }
    }
    with(low).ok_or_else(|| anyhow::anyhow!("the constraint lost its cap"))
}

/// Factors stay within this of 1, so that no matrix is starved.
const FACTOR: f64 = 8.0;

/// Spends a target unequally: factors a matrix name (queries, keys, …), and the cap that goes with them, that make the
/// product of all caps as large as it can be under the target.
///
/// At the best point one more per cent of cap costs the same share of the constant, whichever matrix gets it. Caps that
/// the constant hardly depends on are raised, those it hangs on are lowered.
///
/// # Errors
/// As [`solve`].
pub fn spend(graph: &Graph, constraint: &ConstraintConfig, target: f64) -> Result<ConstraintConfig> {
    const ROUNDS: usize = 60;
    let matrices: Vec<_> = graph.parameters().into_iter().filter(|p| p.geometry == Geometry::Matrix).collect();
    let names: BTreeSet<String> = matrices.iter().map(|p| role(&p.name).to_string()).collect();
    let share = |name: &str| matrices.iter().filter(|p| role(&p.name) == name).count() as f64 / matrices.len() as f64;
    let capless =
        || anyhow::anyhow!("a target needs a constraint with a cap: set constraint.method to one that has sigma_max");
    let given = |logs: &BTreeMap<String, f64>| {
        let factors = logs.iter().map(|(name, log)| (name.clone(), log.exp())).collect();
        constraint.with_factors(factors).ok_or_else(capless)
    };
    let log_bound = |logs: &BTreeMap<String, f64>, cap: f64| -> Result<f64> {
        Ok(bound(graph, &given(logs)?.with_sigma_max(cap).ok_or_else(capless)?)?.log10())
    };
    let mut logs: BTreeMap<String, f64> = names.iter().map(|name| (name.clone(), 0.0)).collect();
    let mut best = solve(graph, &given(&logs)?, target)?;
    for round in 0..ROUNDS {
        // Elasticity of the constant in each cap, over the number of matrices of that name.
        let here = solve(graph, &given(&logs)?, target)?;
        let cap = here.sigma_max().ok_or_else(capless)?;
        if mean_cap(&here, &matrices) > mean_cap(&best, &matrices) {
            best = here;
        }
        let base = log_bound(&logs, cap)?;
        let mut slopes = BTreeMap::new();
        for name in &names {
            let mut moved = logs.clone();
            moved.entry(name.clone()).and_modify(|log| *log += 0.01);
            let rise = log_bound(&moved, cap)? - base;
            slopes.insert(name.clone(), (rise * std::f64::consts::LN_10 / 0.01 / share(name)).max(1e-3));
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
pub fn mean_cap<'a>(constraint: &ConstraintConfig, matrices: impl IntoIterator<Item = &'a Parameter>) -> f64 {
    let caps = matrices.into_iter().filter_map(|p| constraint.cap(p)).map(|promise| promise.sigma_max.ln());
    let (sum, count) = caps.fold((0.0, 0.0), |(sum, count), log| (sum + log, count + 1.0));
    f64::exp(sum / f64::max(count, 1.0))
}

#[cfg(test)]
mod tests {
    use lipschitz_nn::presets::Gpt;

    use super::*;

    fn graph() -> Graph {
        let scales = (1.0 / 8.0, 1.0 / 3.0);
        let (logit_scale, output_scale) = scales;
        Gpt { vocabulary: 30, context: 16, dim: 32, layers: 3, heads: 4, logit_scale, output_scale, final_scale: 1.0 }
            .graph()
            .unwrap()
    }

    fn constraint(per_head: bool) -> ConstraintConfig {
        ConstraintConfig::SpectralNormalize { sigma_max: 1.0, per_head, factors: BTreeMap::new() }
    }

    #[test]
    fn targets_are_met_and_hardly_undershot() {
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
                println!("per head {per_head}, target {target}: mean cap {a:.3} uniform, {b:.3} spent unequally");
            }
        }
    }

    #[test]
    fn what_cannot_be_planned_is_said() {
        let said = |r: Result<ConstraintConfig>| r.unwrap_err().to_string();
        assert!(said(solve(&graph(), &ConstraintConfig::None, 10.0)).contains("sigma_max"));
        assert!(said(solve(&graph(), &constraint(false), 1e-9)).contains("cannot be met"));
        let odd = constraint(false).with_factors(BTreeMap::from([("qurey".to_string(), 2.0)])).unwrap();
        assert!(said(solve(&graph(), &odd, 10.0)).contains("query"));
    }
}
