//! Where a bound comes from: one bar per node.

use lipschitz_nn::graph::{Node, Op};

use crate::certificate::Certificate;
use crate::upper::Upper;
use lipschitz_plot::{Axis, Chart, Mark, Series};

/// What a row of a certificate contributes to the constant.
enum Role {
    /// Nothing by itself: a sequence, which consists of other nodes.
    Made,
    /// A factor of the constant.
    Factor(String),
    /// A part of a residual's branch.
    Part(String),
}

/// The roles of all rows, in their order: a node comes after the nodes inside it.
fn roles(nodes: &[Node], prefix: &str, branch: bool, out: &mut Vec<Role>) {
    for node in nodes {
        let path = node.path(prefix);
        let name = if node.name.is_empty() {
            format!("{path} {}", node.op.kind()).trim().to_string()
        } else {
            path.clone()
        };
        let sequence = matches!(node.op, Op::Sequential { .. });
        if let Some(body) = node.op.body() {
            roles(body, &path, branch || !sequence, out);
        }
        out.push(match (sequence, branch) {
            (true, _) => Role::Made,
            (false, true) => Role::Part(name),
            (false, false) => Role::Factor(name),
        });
    }
}

/// The factors whose product is the constant, and for each branch the constants inside it.
pub fn chart(certificate: &Certificate) -> Chart {
    let (mut factors, mut parts) = (Vec::new(), Vec::new());
    let mut all = Vec::new();
    roles(certificate.graph.nodes(), "", false, &mut all);
    let mut before = 0.0;
    let log = |x: Upper| Some(x.log10()).filter(|x| x.is_finite());
    for (row, role) in certificate.nodes.iter().zip(all) {
        let y = -((factors.len() + parts.len()) as f64);
        match role {
            Role::Made => {}
            // Bound propagation may have found a smaller factor than the node's own constant.
            Role::Factor(name) => {
                let Some(after) = log(row.cumulative) else { continue };
                let factor = after - before;
                let own = log(row.lipschitz)
                    .filter(|own| (own - factor).abs() < 1e-9)
                    .map(|_| row.lipschitz);
                let shown = own.unwrap_or(Upper::from_f64(10f64.powf(factor)));
                factors.push(((factor, y), format!("{name}  × {shown}")));
                before = after;
            }
            Role::Part(name) => {
                let Some(own) = log(row.lipschitz) else { continue };
                parts.push(((own, y), format!("{name}  {}", row.lipschitz)));
            }
        }
    }
    let series = |name: &str, color, bars: Vec<((f64, f64), String)>| {
        let (points, labels) = bars.into_iter().unzip();
        Series { name: name.into(), color, mark: Mark::Bar, points, labels, ..Series::default() }
    };
    // The bars are those of norms; ellipsoids have no factors.
    let shown = match &certificate.ellipsoids {
        Some(_) => certificate.by_norms().unwrap_or(certificate.l2),
        None => certificate.l2,
    };
    let ellipsoids = match &certificate.ellipsoids {
        Some(found) => format!("; by ellipsoids: L ≤ {} (ℓ2 → ℓ2)", found.l2),
        None => String::new(),
    };
    Chart {
        title: format!("Where L ≤ {shown} (ℓ2 → ℓ2) comes from"),
        note: format!("RMS → RMS: L ≤ {}{ellipsoids}", certificate.rms),
        x: Axis { label: "Constant, ℓ2 → ℓ2".into(), log10: true, ..Axis::default() },
        series: vec![series("factor of L", 0, factors), series("inside a branch", 4, parts)],
        ..Chart::default()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use lipschitz_nn::Model;
    use lipschitz_nn::init::{self, Blocks};
    use lipschitz_nn::presets::{BlockConfig, Gpt};

    use super::*;
    use crate::certificate::{Formula, certify};
    use crate::spectral::Method;

    #[test]
    fn the_factors_multiply_to_the_constant() {
        let gpt = Gpt {
            final_scale: 3.0,
            ..Gpt::new(9, 4, 2, BlockConfig { output_scale: 1.0, ..BlockConfig::new(8, 2) })
        };
        let graph = gpt.graph().unwrap();
        let mut weights =
            init::weights(&graph, 1, Blocks::Whole, &Device::Cpu, DType::F64).unwrap();
        // Weights that start at zero would make all constants zero.
        weights.values_mut().for_each(|w| *w = (&*w + 0.1).unwrap());
        let model = Model::new(graph, weights).unwrap();
        let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        let chart = chart(&certificate);
        let [factors, parts] = &chart.series[..] else { panic!("{chart:?}") };
        let product: f64 = factors.points.iter().map(|p| p.0).sum();
        assert!((product - certificate.l2.log10()).abs() < 1e-9, "{product}");
        // Factors: embedding, two residuals in each of two blocks, head, scale. Parts: four nodes
        // per block in the branches.
        assert_eq!((factors.points.len(), parts.points.len()), (7, 8), "{chart:?}");
    }
}
