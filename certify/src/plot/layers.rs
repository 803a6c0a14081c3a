//! Where a bound comes from: a bar a node.

use super::chart::{Axis, Chart, Mark, Series};
use crate::certificate::Certificate;
use crate::upper::Upper;

/// The factors that multiply to the constant, and inside each branch the constants that it is made of.
pub fn chart(certificate: &Certificate) -> Chart {
    let outer: Vec<String> = certificate.graph.nodes.iter().map(|node| node.path("")).collect();
    let (mut factors, mut parts) = (Vec::new(), Vec::new());
    let mut next = outer.iter().peekable();
    let mut before = Upper::ONE;
    let log = |x: Upper| Some(x.log10()).filter(|x| x.is_finite());
    for (i, row) in certificate.nodes.iter().enumerate() {
        let y = -(i as f64);
        let name = if row.path.is_empty() { row.kind.as_str() } else { &row.path };
        // The walk ends a node of the outermost sequence behind all that is inside it.
        if next.peek().is_some_and(|path| **path == row.path) {
            next.next();
            let Some(factor) = log(row.cumulative).zip(log(before)).map(|(after, before)| after - before) else {
                continue;
            };
            factors.push(((factor, y), format!("{name}  × {}", Upper::from_f64(10f64.powf(factor)))));
            before = row.cumulative;
        } else if let Some(own) = log(row.lipschitz) {
            parts.push(((own, y), format!("{name}  {}", row.lipschitz)));
        }
    }
    let series = |name: &str, color, bars: Vec<((f64, f64), String)>| {
        let (points, labels) = bars.into_iter().unzip();
        Series { name: name.into(), color, mark: Mark::Bar, points, labels }
    };
    Chart {
        title: format!("Where L ≤ {} (RMS → RMS) comes from", certificate.rms),
        x: Axis { label: "Constant, ℓ2 → ℓ2".into(), log10: true },
        y: Axis::default(),
        series: vec![series("factor of L", 0, factors), series("inside a branch", 5, parts)],
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use lipschitz_nn::Model;
    use lipschitz_nn::init::{self, Blocks};
    use lipschitz_nn::presets::Gpt;

    use super::*;
    use crate::certificate::{Formula, certify};
    use crate::spectral::Method;

    #[test]
    fn the_factors_multiply_to_the_constant() {
        let (logit_scale, output_scale) = (0.25, 1.0);
        let gpt =
            Gpt { vocabulary: 9, context: 4, dim: 8, layers: 2, heads: 2, logit_scale, output_scale, final_scale: 3.0 };
        let graph = gpt.graph().unwrap();
        let mut weights = init::weights(&graph, 1, Blocks::Whole, &Device::Cpu, DType::F64).unwrap();
        // What starts at zero would make everything zero.
        weights.values_mut().for_each(|w| *w = (&*w + 0.1).unwrap());
        let model = Model::new(graph, weights).unwrap();
        let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        let chart = chart(&certificate);
        let [factors, parts] = &chart.series[..] else { panic!("{chart:?}") };
        let product: f64 = factors.points.iter().map(|p| p.0).sum();
        assert!((product - certificate.l2.log10()).abs() < 1e-9, "{product}");
        assert_eq!(factors.points.len() + parts.points.len(), certificate.nodes.len());
        assert_eq!(factors.points.len(), certificate.graph.nodes.len());
    }
}
