//! A graph in words, box by box, for drawings; and in Graphviz's DOT language.

use std::fmt::Write;

use super::{Convolution, Graph, Input, Node, NodeId, Op, Pairing, Pool};

/// A node as a box to draw; a sequence or a residual is a frame around its body.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Which node.
    pub id: NodeId,
    /// Its path.
    pub path: String,
    /// What it computes.
    pub title: String,
    /// The boxes inside of a frame.
    pub body: Option<Vec<Outline>>,
    /// Whether these are side by side: each reads what the node reads.
    pub parallel: bool,
}

impl Graph {
    /// What the network reads, in words, and its nodes as boxes, first to last.
    pub fn outline(&self) -> (String, Vec<Outline>) {
        (input(self), boxes(&self.nodes, "", &NodeId::default()))
    }

    /// A drawing in Graphviz's DOT language; `note` adds a line to a node, such as its
    /// bound.
    pub fn to_dot(&self, note: &dyn Fn(&NodeId) -> Option<String>) -> String {
        let (input, boxes) = self.outline();
        let mut dot = Dot { text: String::new(), note, count: 0, last: vec![0] };
        dot.text += "digraph network {\n  rankdir=TB; node [shape=box, fontname=\"sans-serif\"];\n";
        let _ = writeln!(dot.text, "  n0 [label={}, shape=ellipse];", quote(&input));
        dot.boxes(&boxes, false, 1);
        dot.text + "}\n"
    }
}

fn boxes(nodes: &[Node], prefix: &str, above: &NodeId) -> Vec<Outline> {
    let outline = |(i, node): (usize, &Node)| {
        let (id, path) = (above.child(i), node.path(prefix));
        let body = node.op.body().map(|body| boxes(body, &path, &id));
        let parallel = matches!(node.op, Op::Parallel { .. });
        Outline { title: title(&node.op), id, path, body, parallel }
    };
    nodes.iter().enumerate().map(outline).collect()
}

fn title(op: &Op) -> String {
    match op {
        Op::Sequential { .. } => "sequential".into(),
        Op::Parallel { .. } => "sum of branches".into(),
        Op::Residual { skip, branch, .. } => {
            format!("{} x + {} f(x)", short(*skip), short(*branch))
        }
        Op::Linear { inputs, outputs, bias } => {
            format!("linear {inputs} → {outputs}{}", if *bias { " + bias" } else { "" })
        }
        Op::Embedding { vocabulary, dim } => format!("embedding {vocabulary} → {dim}"),
        Op::Positions { length, dim } => format!("positions {length} × {dim}"),
        Op::Activation { function, scale } => {
            let name = function.to_string();
            if *scale == 1.0 { name } else { format!("{} · {name}", short(*scale)) }
        }
        Op::Scale { factor } => format!("× {}", short(*factor)),
        Op::SoftCap { cap } => format!("soft cap {}", short(*cap)),
        Op::Clip { limit } => format!("clip to ±{}", short(*limit)),
        Op::Attention(a) => {
            let kv = if a.key_value_heads == a.heads {
                String::new()
            } else {
                format!(" ({} kv)", a.key_value_heads)
            };
            let rotary = match a.rotary.as_ref().map(|r| r.pairing) {
                None => "",
                Some(Pairing::Half) => ", rotary",
                Some(Pairing::Interleaved) => ", rotary interleaved",
            };
            let window = a.window.map_or(String::new(), |w| format!(", window {w}"));
            let bias = match (a.position_bias, &a.alibi) {
                (None, None) => "",
                (Some(_), None) => ", position bias",
                (None, Some(_)) => ", slopes",
                (Some(_), Some(_)) => ", position bias, slopes",
            };
            let norm = if a.query_key_norm.is_some() { ", query-key norm" } else { "" };
            format!("attention {} heads{kv} × {}{rotary}{window}{bias}{norm}", a.heads, a.head_dim)
        }
        Op::OffsetAttention { head_dim, offsets, .. } => {
            let list: Vec<String> = offsets.iter().map(ToString::to_string).collect();
            let back = if offsets.iter().enumerate().all(|(i, offset)| i == *offset) {
                format!("0 … {}", offsets.len().saturating_sub(1))
            } else {
                list.join(", ")
            };
            format!("attention {} heads × {head_dim}, {back} tokens back", offsets.len())
        }
        Op::Conv(c) => {
            let &Convolution {
                inputs,
                outputs,
                kernel: k,
                stride,
                padding,
                circular,
                groups,
                bias,
            } = c;
            let parts = [
                (stride > 1).then(|| format!(", stride {stride}")),
                (padding > 0).then(|| {
                    format!(", {} {padding}", if circular { "circular" } else { "padding" })
                }),
                (groups > 1).then(|| format!(", {groups} groups")),
                bias.then(|| " + bias".to_string()),
            ];
            let rest: String = parts.into_iter().flatten().collect();
            format!("convolution {k}×{k}, {inputs} → {outputs}{rest}")
        }
        Op::Shift { offsets, circular } => {
            let round = if *circular { ", going round" } else { "" };
            format!("shift of {} groups{round}", offsets.len())
        }
        Op::SpaceToDepth { size } => format!("squares {size} × {size} as channels"),
        Op::Pool(Pool { pooling, window, stride, .. }) => {
            format!("{} pooling {window} × {window}, stride {stride}", pooling.word())
        }
        Op::GlobalPool { pooling } => format!("{} pooling of all pixels", pooling.word()),
        Op::MaxMin => "max and min of the halves".into(),
        Op::RmsNorm { dim, .. } => format!("rms norm {dim}"),
        Op::LayerNorm { dim, .. } => format!("layer norm {dim}"),
        Op::Normalise { .. } => "x / ‖x‖".into(),
        Op::GatedMlp { dim, hidden, function, .. } => {
            format!("gated mlp {dim} → {hidden} → {dim}, {function}")
        }
        Op::Flatten => "flatten".into(),
        Op::Patches { size } => format!("patches {size} × {size}"),
        Op::MeanPool => "mean over tokens".into(),
        Op::ClassToken { .. } => "class token in front".into(),
        Op::FirstToken => "first token".into(),
        Op::LastToken => "last token".into(),
        Op::FirstAndMean => "first token and mean of the others".into(),
    }
}

fn short(x: f64) -> String {
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn input(graph: &Graph) -> String {
    match graph.input() {
        Input::Tokens { context, separator, zero_prefix } => {
            let mut text = format!("tokens, up to {context}");
            if let Some(id) = separator {
                text.push_str(&format!(", documents from token {id} on"));
            }
            if zero_prefix > 0 {
                text.push_str(&format!(", behind {zero_prefix} zeros"));
            }
            text
        }
        Input::Pixels { channels, height, width } => {
            format!("pixels {channels} × {height} × {width}")
        }
        Input::Vector { dim } => format!("vector {dim}"),
    }
}

struct Dot<'a> {
    text: String,
    note: &'a dyn Fn(&NodeId) -> Option<String>,
    /// Boxes and frames so far.
    count: usize,
    /// The numbers of the boxes that the next one reads.
    last: Vec<usize>,
}

impl Dot<'_> {
    fn boxes(&mut self, list: &[Outline], side_by_side: bool, depth: usize) {
        let pad = "  ".repeat(depth);
        let (before, mut ends) = (self.last.clone(), Vec::new());
        for Outline { id, path, title, body, parallel } in list {
            if side_by_side {
                self.last.clone_from(&before);
            }
            self.count += 1;
            let (count, note) = (self.count, (self.note)(id));
            match body {
                None => {
                    let lines = [Some(path), Some(title), note.as_ref()].into_iter().flatten();
                    let lines: Vec<&str> =
                        lines.map(String::as_str).filter(|line| !line.is_empty()).collect();
                    let label = quote(&lines.join("\n"));
                    let _ = writeln!(self.text, "{pad}n{count} [label={label}];");
                    for last in std::mem::replace(&mut self.last, vec![count]) {
                        let _ = writeln!(self.text, "{pad}n{last} -> n{count};");
                    }
                }
                Some(body) => {
                    let label = std::iter::once(format!("{path}: {title}")).chain(note);
                    let label = quote(&label.collect::<Vec<_>>().join("\n"));
                    let _ = writeln!(self.text, "{pad}subgraph cluster_{count} {{ label={label};");
                    self.boxes(body, *parallel, depth + 1);
                    let _ = writeln!(self.text, "{pad}}}");
                }
            }
            ends.append(&mut self.last.clone());
        }
        if side_by_side {
            self.last = ends;
        }
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            // What a viewer could take for a command.
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out + "\""
}
