//! A graph as a picture: Graphviz's DOT language, or SVG drawn here so that nothing need be
//! installed.

use std::fmt::Write;

use super::{Graph, Input, Node, Op, Pairing};

type Note<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One box, already in drawing order; residuals and sequences are frames around their body.
enum Item {
    Box { path: String, title: String, note: Option<String> },
    Frame { title: String, note: Option<String>, body: Vec<Item> },
}

fn title(op: &Op) -> String {
    match op {
        Op::Sequential { .. } => "sequential".into(),
        Op::Residual { skip, branch, .. } => {
            format!("{} x + {} f(x)", short(*skip), short(*branch))
        }
        Op::Linear { inputs, outputs, bias } => {
            format!("linear {inputs} → {outputs}{}", if *bias { " + bias" } else { "" })
        }
        Op::Embedding { vocabulary, dim } => format!("embedding {vocabulary} → {dim}"),
        Op::Positions { length, dim } => format!("positions {length} × {dim}"),
        Op::Activation { function, scale } => {
            let name = format!("{function:?}").to_lowercase();
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
            let bias = if a.position_bias.is_some() { ", position bias" } else { "" };
            let norm = if a.query_key_norm.is_some() { ", query-key norm" } else { "" };
            format!("attention {} heads{kv} × {}{rotary}{window}{bias}{norm}", a.heads, a.head_dim)
        }
        Op::RmsNorm { dim, .. } => format!("rms norm {dim}"),
        Op::LayerNorm { dim, .. } => format!("layer norm {dim}"),
        Op::GatedMlp { dim, hidden, function, .. } => {
            format!("gated mlp {dim} → {hidden} → {dim}, {function:?}").to_lowercase()
        }
        Op::Flatten => "flatten".into(),
        Op::Patches { size } => format!("patches {size} × {size}"),
        Op::MeanPool => "mean over tokens".into(),
        Op::ClassToken { .. } => "class token in front".into(),
        Op::FirstToken => "first token".into(),
        Op::FirstAndMean => "first token and mean of the others".into(),
    }
}

fn short(x: f64) -> String {
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn input(graph: &Graph) -> String {
    match graph.input {
        Input::Tokens { context, separator: None } => format!("tokens, up to {context}"),
        Input::Tokens { context, separator: Some(id) } => {
            format!("tokens, up to {context}, documents from token {id} on")
        }
        Input::Pixels { channels, height, width } => {
            format!("pixels {channels} × {height} × {width}")
        }
        Input::Vector { dim } => format!("vector {dim}"),
    }
}

fn items(nodes: &[Node], prefix: &str, note: Note) -> Vec<Item> {
    nodes
        .iter()
        .map(|node| {
            let path = node.path(prefix);
            match &node.op {
                Op::Sequential { body } | Op::Residual { body, .. } => Item::Frame {
                    title: format!("{path}: {}", title(&node.op)),
                    note: note(&path),
                    body: items(body, &path, note),
                },
                op => Item::Box { title: title(op), note: note(&path), path },
            }
        })
        .collect()
}

pub(super) fn dot(graph: &Graph, note: Note) -> String {
    let mut out = String::from(
        "digraph network {\n  rankdir=TB; node [shape=box, fontname=\"sans-serif\"];\n",
    );
    let mut count = 0;
    let _ = writeln!(out, "  n0 [label={}, shape=ellipse];", quote(&input(graph)));
    let mut last = 0;
    emit(&items(&graph.nodes, "", note), 1, &mut count, &mut last, &mut out);
    out.push_str("}\n");
    out
}

fn emit(list: &[Item], depth: usize, count: &mut usize, last: &mut usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    for item in list {
        match item {
            Item::Box { path, title, note } => {
                *count += 1;
                let label = [Some(path.as_str()), Some(title), note.as_deref()];
                let label: Vec<&str> =
                    label.into_iter().flatten().filter(|s| !s.is_empty()).collect();
                let _ = writeln!(out, "{pad}n{count} [label={}];", quote(&label.join("\n")));
                let _ = writeln!(out, "{pad}n{last} -> n{count};");
                *last = *count;
            }
            Item::Frame { title, note, body } => {
                *count += 1;
                let label = note.as_ref().map_or(title.clone(), |n| format!("{title}\n{n}"));
                let _ = writeln!(out, "{pad}subgraph cluster_{count} {{ label={};", quote(&label));
                emit(body, depth + 1, count, last, out);
                let _ = writeln!(out, "{pad}}}");
            }
        }
    }
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

const WIDTH: f64 = 520.0;
const ROW: f64 = 44.0;
const GAP: f64 = 14.0;
const HEADER: f64 = 26.0;

fn height(list: &[Item]) -> f64 {
    list.iter()
        .map(|item| match item {
            Item::Box { .. } => ROW + GAP,
            Item::Frame { body, .. } => HEADER + height(body) + GAP + GAP,
        })
        .sum()
}

pub(super) fn svg(graph: &Graph, note: Note) -> String {
    let list = items(&graph.nodes, "", note);
    let total = GAP + ROW + GAP + height(&list) + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{total}\" \
         viewBox=\"0 0 {WIDTH} {total}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let x = 20.0;
    rect(&mut out, (x, GAP, WIDTH - 2.0 * x, ROW), "#eef2f7", "#5b6b7f");
    text(&mut out, WIDTH / 2.0, GAP + 27.0, "middle", "#1f2933", &input(graph));
    draw(&list, x, GAP + ROW + GAP, &mut out);
    out.push_str("</svg>\n");
    out
}

fn draw(list: &[Item], x: f64, mut y: f64, out: &mut String) -> f64 {
    let width = WIDTH - 2.0 * x;
    for item in list {
        match item {
            Item::Box { path, title, note } => {
                let middle = WIDTH / 2.0;
                let _ = writeln!(
                    out,
                    "<line x1=\"{middle}\" y1=\"{}\" x2=\"{middle}\" y2=\"{y}\" \
                     stroke=\"#5b6b7f\"/>",
                    y - GAP
                );
                rect(out, (x, y, width, ROW), "#ffffff", "#2b6cb0");
                text(out, x + 10.0, y + 18.0, "start", "#1f2933", title);
                text(out, x + 10.0, y + 35.0, "start", "#7b8794", path);
                if let Some(note) = note {
                    text(out, x + width - 10.0, y + 26.0, "end", "#b7410e", note);
                }
                y += ROW + GAP;
            }
            Item::Frame { title, note, body } => {
                let inside = HEADER + height(body) + GAP;
                rect(out, (x, y, width, inside), "#f7fafc", "#a0aec0");
                text(out, x + 10.0, y + 18.0, "start", "#1f2933", title);
                if let Some(note) = note {
                    text(out, x + width - 10.0, y + 18.0, "end", "#b7410e", note);
                }
                draw(body, x + 12.0, y + HEADER + GAP, out);
                y += inside + GAP;
            }
        }
    }
    y
}

fn rect(out: &mut String, (x, y, w, h): (f64, f64, f64, f64), fill: &str, stroke: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"5\" fill=\"{fill}\" \
         stroke=\"{stroke}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, fill: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{content}</text>"
    );
}
