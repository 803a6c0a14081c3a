//! The numbers of nodes that a program reads into its own type.

use super::{Graph, Node, Op};

impl Graph {
    /// The numbers of nodes that a program reads into its own type, and those that it makes of them alone: of
    /// a cap the inverse, of an ε the square where that is what is compared. Each with the path of its node.
    pub fn constants(&self) -> Vec<(String, f64)> {
        let mut all = Vec::new();
        constants(self.nodes(), "", &mut all);
        all
    }
}

fn constants(nodes: &[Node], prefix: &str, all: &mut Vec<(String, f64)>) {
    for node in nodes {
        let path = node.path(prefix);
        let own = match &node.op {
            Op::Sequential { body } | Op::Parallel { branches: body } => {
                constants(body, &path, all);
                Vec::new()
            }
            Op::Residual { skip, branch, body } => {
                constants(body, &path, all);
                vec![*skip, *branch]
            }
            Op::Activation { function, scale } => {
                function.constant().map(|(_, c)| c).into_iter().chain([*scale]).collect()
            }
            Op::GatedMlp { function, .. } => {
                function.constant().map(|(_, c)| c).into_iter().collect()
            }
            Op::Scale { factor } => vec![*factor],
            Op::SoftCap { cap } => vec![*cap, cap.recip()],
            Op::Clip { limit } => vec![*limit],
            Op::RmsNorm { eps, .. } | Op::LayerNorm { eps, .. } => vec![*eps],
            Op::Normalise { eps } => vec![*eps, eps * eps],
            Op::Attention(a) => {
                let caps = a.logit_cap.into_iter().flat_map(|cap| [cap, cap.recip()]);
                let slopes = a.alibi.iter().flat_map(|alibi| alibi.slopes.iter().copied());
                let scales = [a.logit_scale, a.output_scale].into_iter();
                scales.chain(caps).chain(a.query_key_norm).chain(slopes).collect()
            }
            Op::Linear { .. }
            | Op::Embedding { .. }
            | Op::Positions { .. }
            | Op::OffsetAttention { .. }
            | Op::Conv(_)
            | Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::Pool(_)
            | Op::GlobalPool { .. }
            | Op::MaxMin
            | Op::Flatten
            | Op::Patches { .. }
            | Op::MeanPool
            | Op::ClassToken { .. }
            | Op::FirstToken
            | Op::LastToken
            | Op::FirstAndMean => Vec::new(),
        };
        all.extend(own.into_iter().map(|number| (path.clone(), number)));
    }
}
