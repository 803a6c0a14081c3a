//! What constraints make of singular values: each in one step, before and after.

use candle_core::{Device, Tensor, Var};
use lipschitz_nn::graph::{Graph, Input, Node, Op};
use lipschitz_opt::constraint::{Constraint, ConstraintConfig};
use lipschitz_opt::{OptimizerConfig, Rate, Recipe};

use crate::Error;
use lipschitz_plot::{Axis, Chart, Mark, Series};

/// Singular values of a curve.
const POINTS: usize = 65;

/// How often a constraint is applied to the same matrix, for those that find its largest singular
/// vectors step by step.
const ROUNDS: usize = 400;

/// The largest cap and learning rate that are drawn.
const LARGEST: f64 = 1e6;

/// Singular values before and after a constraint.
pub type Curve = Vec<(f64, f64)>;

/// The chart of curves with these names.
pub fn chart(curves: Vec<(String, Curve)>) -> Chart {
    let mut series = Vec::new();
    let mut end = 0.0f64;
    for (color, (label, points)) in curves.into_iter().enumerate() {
        end = points.last().map_or(end, |last| end.max(last.0));
        series.push(Series { label, color, mark: Mark::Dashed, points, ..Series::default() });
    }
    // Where a constraint changes nothing.
    series.insert(
        0,
        Series {
            color: series.len(),
            mark: Mark::Thin,
            points: vec![(0.0, 0.0), (end, end)],
            ..Series::default()
        },
    );
    let axis = |label: &str| Axis { label: label.into(), include: vec![0.0], ..Axis::default() };
    Chart {
        title: "What a constraint makes of singular values in one step".into(),
        note: "pale: unchanged".into(),
        x: axis("Singular value before, RMS → RMS"),
        y: axis("After, RMS → RMS"),
        series,
        ends: true,
        ..Chart::default()
    }
}

/// Singular values before and after a constraint is applied once behind a step of learning rate η, for a
/// square matrix whose singular values are evenly spaced from 0 to the largest that one step can lead to
/// from the cap: `σ_max + ηM`, where M bounds an update of learning rate 1 (1 for an optimizer without a
/// bound). Without a cap they go to 1 + ηM. The matrix is diagonal, and goes through the constraint as
/// any other does.
///
/// # Errors
/// Those of [`Constraint::new`] and of applying it; [`Error::Data`] for a cap or learning rate
/// above a million.
pub fn curve(
    optimizer: &OptimizerConfig,
    constraint: &ConstraintConfig,
    rate: f64,
) -> Result<Curve, Error> {
    let recipe = Recipe::new(optimizer.clone(), constraint.clone());
    // A kind that needs a cap and has none is refused here; of the others the picture ends near 1.
    let cap = constraint.sigma_max.unwrap_or(1.0);
    let mut constraint = Constraint::new(&recipe)?;
    for (what, value) in [("learning rate", rate), ("cap", cap)] {
        if !(0.0..=LARGEST).contains(&value) {
            let what = format!("the {what} is {value:?}; give one from 0 to {LARGEST}");
            return Err(Error::Data(what));
        }
    }
    let square = Op::Linear { inputs: POINTS, outputs: POINTS, bias: false };
    let graph = Graph::new(Input::Vector { dim: POINTS }, vec![Node::new("w", square)])?;
    let parameters = graph.parameters();
    let update = parameters.first().and_then(|p| optimizer.update_bound(p));
    let end = cap + rate * update.map_or(1.0, |bound| bound.whole);
    let before: Vec<f64> = (0..POINTS).map(|i| end * i as f64 / (POINTS - 1) as f64).collect();
    let diagonal = |i: usize| if i.is_multiple_of(POINTS + 1) { before[i / POINTS] } else { 0.0 };
    let w: Vec<f64> = (0..POINTS * POINTS).map(diagonal).collect();
    let w = Tensor::from_vec(w, (POINTS, POINTS), &Device::Cpu)?;
    let var = Var::from_tensor(&w)?;
    let vars = parameters.into_iter().map(|p| (p, var.clone())).collect();
    let variables = recipe.variables(&graph, vars, rate)?;
    for _ in 0..ROUNDS {
        var.set(&w)?;
        constraint.apply(&variables, Rate::constant(rate))?;
    }
    // What is diagonal stays so, but for rounding.
    let after = var.as_tensor().to_vec2::<f64>()?;
    Ok(before.into_iter().enumerate().map(|(i, x)| (x, after[i][i].abs())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lipschitz_opt::MuonConfig;
    use lipschitz_opt::constraint::ConstraintKind;

    /// The closed forms, and that the map is applied to the whole matrix.
    #[test]
    fn curves_are_those_of_the_constraints() {
        let (cap, rate) = (2.0, 0.1);
        let muon = OptimizerConfig::Muon(MuonConfig::default());
        let of = |method| curve(&muon, &ConstraintConfig::capped(method, cap), rate).unwrap();
        let near = |points: &[(f64, f64)], wanted: &dyn Fn(f64) -> f64| {
            for (x, y) in points {
                assert!((y - wanted(*x)).abs() < 2e-3 * cap, "{x}: {y}, not {}", wanted(*x));
            }
        };
        let end = of(ConstraintKind::SvdClip).last().unwrap().0;
        assert!(end <= cap + 1.001 * rate && end > cap + 0.99 * rate, "{end}");
        near(&of(ConstraintKind::SvdClip), &|x| x.min(cap));
        near(&of(ConstraintKind::SpectralNormalize), &|x| x * cap / end);
        near(&of(ConstraintKind::Stiefel)[1..], &|_| cap);
        near(&of(ConstraintKind::SpectralHammer), &|x| if x == end { cap } else { x });
        let soft = of(ConstraintKind::SpectralSoftCap);
        assert!(soft.iter().all(|(x, y)| y <= x && *y <= cap), "{soft:?}");
        assert!((soft.last().unwrap().1 - cap).abs() < 2e-3 * cap, "the cap is used: {soft:?}");
        assert!(soft.windows(2).all(|w| w[0].1 <= w[1].1), "{soft:?}");
    }

    #[test]
    fn a_cap_that_is_missing_is_named() {
        let constraint = ConstraintConfig {
            sigma_max: None,
            ..ConstraintConfig::capped(ConstraintKind::SvdClip, 1.0)
        };
        let muon = OptimizerConfig::Muon(MuonConfig::default());
        let said = curve(&muon, &constraint, 0.1).unwrap_err().to_string();
        assert!(said.contains("sigma_max"), "{said}");
    }
}
