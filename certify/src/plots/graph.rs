//! The architecture as nested boxes, each with its node's bound.

use lipschitz_nn::Graph;
use lipschitz_nn::graph::{NodeId, Outline};
use lipschitz_plot::scene::{Color, Scene, Style};

use crate::certificate::Certificate;

const WIDTH: f32 = 620.0;
/// Left and right of the outermost boxes, and from a frame to the boxes in it.
const MARGIN: f32 = 20.0;
const INSET: f32 = 12.0;
/// Heights of a box, of the gap below it, and of a frame's title.
const BOX: f32 = 44.0;
const GAP: f32 = 14.0;
const HEADER: f32 = 26.0;
/// From the border of a box to its text.
const PADDING: f32 = 10.0;

const TITLE: Style = Style::new(12.0);
const PATH: Style = Style::new(11.0).color(Color::Muted);
const BOUND: Style = Style::new(12.0).color(Color::Data(1));

/// For each node, the constant that a certificate states.
pub fn bounds(certificate: &Certificate) -> impl Fn(&NodeId) -> Option<String> {
    let bound = |row: &crate::bound::NodeBound| (row.id.clone(), format!("L ≤ {}", row.lipschitz));
    let bounds: std::collections::HashMap<NodeId, String> =
        certificate.nodes.iter().map(bound).collect();
    move |id| bounds.get(id).cloned()
}

/// The drawing of a graph; `note` gives a text for a node, such as its bound.
pub fn scene(graph: &Graph, note: &dyn Fn(&NodeId) -> Option<String>) -> Scene {
    let (input, boxes) = graph.outline();
    let total = GAP + BOX + GAP + height(&boxes) + GAP;
    let mut scene = Scene::new(WIDTH, total, "Architecture");
    scene.rectangle((0.0, 0.0, WIDTH, total), Some(Color::Paper), None);
    let width = WIDTH - 2.0 * MARGIN;
    scene.rectangle((MARGIN, GAP, width, BOX), Some(Color::Grid), Some(Color::Muted));
    scene.text(&input, ((WIDTH - TITLE.width(&input)) / 2.0, GAP + 27.0), TITLE);
    draw(&mut scene, &boxes, true, note, MARGIN, GAP + BOX + GAP);
    scene
}

fn height(boxes: &[Outline]) -> f32 {
    let one = |outline: &Outline| match &outline.body {
        None => BOX + GAP,
        Some(body) => HEADER + height(body) + GAP + GAP,
    };
    boxes.iter().map(one).sum()
}

fn draw(
    scene: &mut Scene,
    boxes: &[Outline],
    in_turn: bool,
    note: &dyn Fn(&NodeId) -> Option<String>,
    x: f32,
    mut y: f32,
) {
    let width = WIDTH - 2.0 * x;
    for Outline { id, path, title, body, parallel } in boxes {
        let bound = note(id).unwrap_or_default();
        // The bound is at the right; a text that does not fit in front of it is truncated.
        let end = x + width - PADDING - BOUND.width(&bound);
        let room = end - x - 2.0 * PADDING;
        let (left, size) = (
            x + PADDING,
            match body {
                None => BOX,
                Some(body) => HEADER + height(body) + GAP,
            },
        );
        match body {
            None => {
                if in_turn {
                    scene.line((WIDTH / 2.0, y - GAP), (WIDTH / 2.0, y), Color::Muted);
                }
                let frame = (x, y, width, size);
                scene.rectangle(frame, Some(Color::Paper), Some(Color::Data(0)));
                scene.text(&TITLE.fit(title, room), (left, y + 18.0), TITLE);
                scene.text(&PATH.fit(path, room), (left, y + 35.0), PATH);
                scene.text(&bound, (end, y + 26.0), BOUND);
            }
            Some(body) => {
                scene.rectangle((x, y, width, size), None, Some(Color::Muted));
                let title =
                    if path.is_empty() { title.clone() } else { format!("{path}: {title}") };
                scene.text(&TITLE.fit(&title, room), (left, y + 18.0), TITLE);
                scene.text(&bound, (end, y + 18.0), BOUND);
                draw(scene, body, !parallel, note, x + INSET, y + HEADER + GAP);
            }
        }
        y += size + GAP;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use lipschitz_nn::Model;
    use lipschitz_nn::graph::Op;
    use lipschitz_nn::init::{self, Blocks};
    use lipschitz_nn::presets::{BlockConfig, Gpt};
    use lipschitz_plot::svg;

    use super::*;
    use crate::certificate::{Formula, certify};
    use crate::spectral::Method;

    /// A residual and the node in its body may share a path; each has its own bound.
    #[test]
    fn every_node_is_drawn_with_its_own_bound() {
        let block = BlockConfig { output_scale: 3.0, ..BlockConfig::new(8, 2) };
        let graph = Gpt::new(9, 4, 2, block).graph().unwrap();
        let mut weights =
            init::weights(&graph, 1, Blocks::Whole, &Device::Cpu, DType::F64).unwrap();
        weights.values_mut().for_each(|w| *w = (&*w + 0.1).unwrap());
        let model = Model::new(graph, weights).unwrap();
        let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        let bounds = bounds(&certificate);
        let (_, boxes) = model.graph().outline();
        let mut shared = 0;
        let blocks = boxes[1].body.as_ref().unwrap();
        for (outline, block) in blocks.iter().zip(nodes(&model.graph().nodes()[1].op)) {
            for (residual, node) in outline.body.iter().flatten().zip(nodes(&block.op)) {
                let Op::Residual { .. } = node.op else { continue };
                let row = certificate.nodes.iter().find(|row| row.id == residual.id).unwrap();
                assert_eq!((row.kind.as_str(), &row.path), ("residual", &residual.path));
                assert_eq!(bounds(&residual.id), Some(format!("L ≤ {}", row.lipschitz)));
                shared +=
                    certificate.nodes.iter().filter(|other| other.path == row.path).count() - 1;
            }
        }
        assert!(shared > 0, "no path is that of two nodes");
        let drawn = svg::document(&scene(model.graph(), &bounds));
        let dot = model.graph().to_dot(&bounds);
        for row in &certificate.nodes {
            let bound = format!("L ≤ {}", row.lipschitz);
            assert!(drawn.contains(&format!("aria-label=\"{bound}\"")) && dot.contains(&bound));
        }
    }

    fn nodes(op: &Op) -> &[lipschitz_nn::graph::Node] {
        match op {
            Op::Sequential { body } | Op::Residual { body, .. } => body,
            _ => &[],
        }
    }
}
