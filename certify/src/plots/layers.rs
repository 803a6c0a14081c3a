//! Where a bound comes from: one bar per node.

use lipschitz_nn::graph::{Node, Op};

use crate::certificate::Certificate;
use crate::ellipsoid::EllipsoidBound;
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

/// By how much the constant grows from each node of the outermost level to the next, by ellipsoids;
/// the first bar is at `first`.
fn grown(
    certificate: &Certificate,
    found: &EllipsoidBound,
    first: f64,
) -> Vec<((f64, f64), String)> {
    let mut before = 0.0;
    let mut bars = Vec::new();
    for reached in &found.nodes {
        let after = reached.cumulative.log10();
        if !after.is_finite() {
            continue;
        }
        let row = certificate.nodes.iter().find(|row| row.id == reached.id);
        let name = row.map_or("", |row| if row.path.is_empty() { &row.kind } else { &row.path });
        let factor = after - before;
        let y = first - bars.len() as f64;
        bars.push(((factor, y), format!("{name}  × {}", Upper::from_f64(10f64.powf(factor)))));
        before = after;
    }
    bars
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
    let mut note = format!("RMS → RMS: L ≤ {}", certificate.rms);
    let mut rows = vec![series("factor of L by norms", 0, factors)];
    let first = -((rows[0].points.len() + parts.len()) as f64);
    if !parts.is_empty() {
        rows.push(series("inside a branch", 4, parts));
    }
    let norms = certificate.by_norms().unwrap_or(certificate.l2);
    if let Some(found) = &certificate.ellipsoids {
        note.push_str(&format!("; by ellipsoids: L ≤ {} (ℓ2 → ℓ2)", found.l2));
        rows.push(series("factor of L by ellipsoids", 1, grown(certificate, found, first)));
    }
    Chart {
        title: format!("Where L ≤ {norms} (ℓ2 → ℓ2) comes from"),
        note,
        x: Axis { label: "Constant, ℓ2 → ℓ2".into(), log10: true, ..Axis::default() },
        series: rows,
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
        // By ellipsoids: the blocks, the head, the scale.
        let both = certificate.tighten(&model, 3, &mut |_, _| {}).unwrap();
        let chart = super::chart(&both);
        let [_, parts, grown] = &chart.series[..] else { panic!("{chart:?}") };
        let product: f64 = grown.points.iter().map(|p| p.0).sum();
        let constant = both.ellipsoids.as_ref().unwrap().l2.log10();
        assert!((product - constant).abs() < 1e-6, "{product} {constant}");
        assert_eq!(grown.points.len(), 3, "{chart:?}");
        assert!(grown.points[0].1 < parts.points.last().unwrap().1, "{chart:?}");
    }
}
