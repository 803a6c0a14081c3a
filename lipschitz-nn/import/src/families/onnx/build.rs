//! A graph of sequences, branches and blocks out of nodes that read one another.
//!
//! It goes from the output to the input. Where two values are added, what both come from, the
//! nearest node that everything between passes, is where their branches part. Factors and constants
//! for each channel go into the map beside them.

use std::collections::BTreeSet;

use lipschitz_nn::graph::{self, Attention, Convolution, Input};

use super::Refused;
use super::net::{Coefficient, Form, Net, Op};
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::onnx::fresh;
use crate::mapping::Mapping;

/// The most nodes that a graph may become: a value that is read twice is computed twice where
/// branches cross.
const MAX_GRAPH_NODES: usize = 1 << 14;

/// How deep branches may lie in branches: a checkpoint's description is read to a depth of its own.
const DEEPEST: usize = 24;

/// The widest vector whose elements are scaled by a map of its own.
const WIDEST: usize = 1024;

/// Part of a graph.
#[derive(Clone, Debug)]
enum Item {
    Node { op: graph::Op, name: String, weights: Vec<(&'static str, TensorExpr)> },
    Affine { scale: Coefficient, shift: Coefficient, form: Form, of: String },
    Residual { body: Vec<Item> },
    Parallel { branches: Vec<Vec<Item>> },
}

pub(super) struct Builder<'a> {
    net: &'a Net,
    /// Of each node, the nearest one that everything to it passes.
    passes: Vec<usize>,
    made: usize,
    /// How many branches the node at hand is inside of.
    depth: usize,
    names: BTreeSet<String>,
    weights: WeightMap,
    /// Reads the numbers of an expression.
    numbers: &'a dyn Fn(&TensorExpr) -> Result<Vec<f64>, Refused>,
}

/// The graph that ends in this node.
pub(super) fn mapping(
    net: &Net,
    output: usize,
    input: Input,
    numbers: &dyn Fn(&TensorExpr) -> Result<Vec<f64>, Refused>,
) -> Result<Mapping, Refused> {
    let mut passes: Vec<usize> = Vec::with_capacity(net.nodes.len());
    for node in &net.nodes {
        let mut reads = node.reads.iter().copied();
        let first = reads.next().unwrap_or(0);
        let pass = reads.fold(first, |a, b| meet(&passes, a, b));
        passes.push(pass);
    }
    let (names, weights) = (BTreeSet::new(), WeightMap::default());
    let mut builder = Builder { net, passes, made: 0, depth: 0, names, weights, numbers };
    let items = builder.items(output, 0)?;
    let nodes = builder.nodes(items)?;
    Ok(Mapping::new(input, nodes, builder.weights)?)
}

/// The nearest node that everything to both passes.
fn meet(passes: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        let up = |n: usize| passes.get(n).copied().unwrap_or(0);
        if a > b { a = up(a) } else { b = up(b) }
    }
    a
}

impl Builder<'_> {
    /// What leads from one node to another, in order.
    fn items(&mut self, to: usize, from: usize) -> Result<Vec<Item>, Refused> {
        if self.depth > DEEPEST {
            return Err("has branches inside of branches, too deep".into());
        }
        self.depth += 1;
        let items = self.path(to, from);
        self.depth -= 1;
        items
    }

    fn path(&mut self, to: usize, from: usize) -> Result<Vec<Item>, Refused> {
        let mut out = Vec::new();
        let mut at = to;
        while at != from {
            self.made += 1;
            if self.made > MAX_GRAPH_NODES {
                return Err("has branches that cross too often".into());
            }
            let (items, next) = self.step(at, from)?;
            out.extend(items.into_iter().rev());
            at = next;
        }
        out.reverse();
        Ok(out)
    }

    /// What a node is, and what it reads, no node before `from`.
    fn step(&mut self, at: usize, from: usize) -> Result<(Vec<Item>, usize), Refused> {
        let node = self.net.node(at)?;
        let source = node.reads.first().copied().unwrap_or(0);
        let refuse = |what: &str| Err(format!("{} {what}", node.of).into());
        let plain = |op| vec![Item::Node { op, name: String::new(), weights: Vec::new() }];
        let named = |op, weights| vec![Item::Node { op, name: node.name.clone(), weights }];
        let dim = |form: Form| match form {
            Form::Tokens(_, d) | Form::Vector(d) => d,
            _ => 0,
        };
        let items = match &node.op {
            Op::Input => return refuse("reads the input twice"),
            Op::Map(expr) => {
                let (mut expr, mut source) = (expr.clone(), source);
                // A function that no node computes may with the one before it.
                while expr.nodes().is_none()
                    && source != from
                    && let Op::Map(inner) = &self.net.node(source)?.op
                    && let Some(of) = expr.of(inner)
                {
                    expr = of;
                    source = self.net.node(source)?.reads.first().copied().unwrap_or(0);
                }
                let Some((nodes, shift)) = expr.nodes() else {
                    return refuse("ends a function of each element that no node computes");
                };
                let mut items = Vec::new();
                if let Some((shift, scale)) = expr.as_linear() {
                    let (scale, shift) = (Coefficient::Number(scale), Coefficient::Number(shift));
                    let of = node.of.clone();
                    items.push(Item::Affine { scale, shift, form: node.form, of });
                } else {
                    for node in nodes {
                        let (op, name) = (node.op, node.name);
                        items.push(Item::Node { op, name, weights: Vec::new() });
                    }
                    if shift != 0.0 {
                        let (scale, shift) = (Coefficient::Number(1.0), Coefficient::Number(shift));
                        let of = node.of.clone();
                        items.push(Item::Affine { scale, shift, form: node.form, of });
                    }
                }
                return Ok((items, source));
            }
            Op::Affine { scale, shift } => {
                let (scale, shift, of) = (scale.clone(), shift.clone(), node.of.clone());
                vec![Item::Affine { scale, shift, form: node.form, of }]
            }
            Op::Linear { weight, bias, inputs, outputs } => {
                match self.net.node(source)?.op {
                    Op::Mixed(_) => return self.attention(at, source),
                    Op::Product => return self.gated(at, source),
                    _ => {}
                }
                let op =
                    graph::Op::Linear { inputs: *inputs, outputs: *outputs, bias: bias.is_some() };
                named(op, with_bias(weight, bias))
            }
            Op::Conv { shape, weight, bias } => {
                let shape = Convolution { bias: bias.is_some(), ..*shape };
                named(graph::Op::Conv(shape), with_bias(weight, bias))
            }
            Op::Pool(pool) => plain(graph::Op::Pool(*pool)),
            Op::GlobalPool(pooling) => plain(graph::Op::GlobalPool { pooling: *pooling }),
            Op::Flatten => plain(graph::Op::Flatten),
            Op::Patches(size) => plain(graph::Op::Patches { size: *size }),
            Op::Tokens => return self.patches(source, &node.of),
            Op::Embedding { table, vocabulary, dim } => {
                let op = graph::Op::Embedding { vocabulary: *vocabulary, dim: *dim };
                named(op, vec![("weight", table.clone())])
            }
            Op::Positions { table, rows, from, dim } => {
                let Form::Tokens(length, _) = node.form else { return refuse("is of no tokens") };
                let op = graph::Op::Positions { length, dim: *dim };
                let all = *from == 0 && *rows == length;
                let table = if all { table.clone() } else { table.clone().rows(*from, length) };
                named(op, vec![("weight", table)])
            }
            Op::ClassToken { weight, dim } => {
                named(graph::Op::ClassToken { dim: *dim }, vec![("weight", weight.clone())])
            }
            Op::MaxMin => plain(graph::Op::MaxMin),
            Op::FirstToken => plain(graph::Op::FirstToken),
            Op::LastToken => plain(graph::Op::LastToken),
            Op::MeanPool => plain(graph::Op::MeanPool),
            Op::Centre => return refuse("takes a mean away without what is a norm"),
            Op::LayerNorm(eps) => {
                let (dim, eps) = (dim(node.form), *eps);
                named(graph::Op::LayerNorm { dim, eps, bias: false, gain: false }, Vec::new())
            }
            Op::RmsNorm(eps) => named(
                graph::Op::RmsNorm { dim: dim(node.form), eps: *eps, gain: false },
                Vec::new(),
            ),
            Op::Normalise(eps) => plain(graph::Op::Normalise { eps: *eps }),
            Op::Add => {
                let [a, b] = node.reads[..] else { return refuse("adds something else than two") };
                let start = meet(&self.passes, a, b);
                let item = if a == start || b == start {
                    let body = self.items(if a == start { b } else { a }, start)?;
                    Item::Residual { body }
                } else {
                    let branches = vec![self.items(a, start)?, self.items(b, start)?];
                    Item::Parallel { branches }
                };
                return Ok((vec![item], start));
            }
            Op::Product => {
                return refuse(
                    "multiplies two values that depend on the input, which no node does",
                );
            }
            Op::Scores(_) | Op::Masked(_) | Op::Softmax | Op::Mixed(_) => {
                return refuse("is part of an attention that does not end in a map of all heads");
            }
        };
        Ok((items, source))
    }

    /// The map that a value is, a factor on it aside: what it reads, and its weights.
    fn linear(
        &self,
        at: usize,
        what: &str,
    ) -> Result<(usize, TensorExpr, Option<TensorExpr>, f64), Refused> {
        let (mut at, mut factor) = (at, 1.0);
        loop {
            let node = self.net.node(at)?;
            let source = node.reads.first().copied().unwrap_or(0);
            match &node.op {
                Op::Linear { weight, bias, .. } => {
                    return Ok((source, weight.clone(), bias.clone(), factor));
                }
                Op::Map(expr) => match expr.as_linear() {
                    Some((0.0, k)) => (at, factor) = (source, factor * k),
                    _ => return Err(format!("{} makes {what} of more than a map", node.of).into()),
                },
                _ => return Err(format!("{} makes {what} of more than a map", node.of).into()),
            }
        }
    }

    fn attention(&self, at: usize, mixed: usize) -> Result<(Vec<Item>, usize), Refused> {
        let (out, mix) = (self.net.node(at)?, self.net.node(mixed)?);
        let refuse = |what: &str| Err(format!("{} {what}", out.of).into());
        let (Op::Linear { weight, bias, inputs: _, outputs }, Op::Mixed(shape)) =
            (&out.op, &mix.op)
        else {
            return refuse("is no attention");
        };
        let [shares, values] = mix.reads[..] else { return refuse("is no attention") };
        let mut at = self.net.node(shares)?.reads.first().copied().unwrap_or(0);
        let mut mask = None;
        if let Op::Masked(found) = self.net.node(at)?.op {
            mask = Some(found);
            at = self.net.node(at)?.reads.first().copied().unwrap_or(0);
        }
        let mut expr = super::expr::Expr::x();
        while let Op::Map(inner) = &self.net.node(at)?.op {
            let Some(of) = expr.of(inner) else { return refuse("has logits that are not known") };
            expr = of;
            at = self.net.node(at)?.reads.first().copied().unwrap_or(0);
        }
        let scores = self.net.node(at)?;
        let (Op::Scores(heads), [q, k]) = (&scores.op, &scores.reads[..]) else {
            return refuse("has logits that are not known");
        };
        let Some((nodes, 0.0)) = expr.nodes() else {
            return refuse("has logits that are not known");
        };
        let mut logits = (1.0, None);
        for node in nodes {
            logits = match (node.op, logits) {
                (graph::Op::Scale { factor }, (k, None)) => (factor * k, None),
                (graph::Op::Activation { function: graph::Function::Tanh, scale }, (k, None)) => {
                    (k * scale, Some(scale))
                }
                _ => return refuse("has logits that are not known"),
            };
        }
        let (scale, logit_cap) = logits;
        let (from, wq, bq, fq) = self.linear(*q, "queries")?;
        let (key_from, wk, bk, fk) = self.linear(*k, "keys")?;
        let (value_from, wv, bv, fv) = self.linear(values, "values")?;
        if key_from != from || value_from != from {
            return refuse("ends attention to another value than the one that the queries are of");
        }
        let Form::Tokens(_, dim) = self.net.form(from)? else { return refuse("is of no tokens") };
        if shape.heads != heads.heads
            || shape.key_value_heads != heads.key_value_heads
            || shape.head_dim != heads.head_dim
        {
            return refuse("ends attention whose values have another width than its keys");
        }
        if *outputs != dim {
            return refuse("ends attention in another width than it reads");
        }
        let biased = bq.is_some() || bk.is_some() || bv.is_some();
        let whole = |heads: usize| heads * shape.head_dim;
        let (own, shared) = (whole(shape.heads), whole(shape.key_value_heads));
        let mut weights = vec![("query.weight", wq), ("key.weight", wk)];
        let times = |w: TensorExpr| if fv == 1.0 { w } else { w.times(fv) };
        weights.push(("value.weight", times(wv)));
        if biased {
            let zeros = |n| TensorExpr::numbers(vec![0.0; n], &[n]);
            weights.push(("query.bias", bq.unwrap_or_else(|| zeros(own))));
            weights.push(("key.bias", bk.unwrap_or_else(|| zeros(shared))));
            weights.push(("value.bias", bv.map_or_else(|| zeros(shared), times)));
        }
        weights.push(("output.weight", weight.clone()));
        weights.extend(bias.clone().map(|bias| ("output.bias", bias)));
        let attention = Attention {
            key_value_heads: shape.key_value_heads,
            logit_scale: scale * fq * fk,
            causal: mask.is_some_and(|mask| mask.causal),
            bias: biased,
            output_bias: bias.is_some(),
            logit_cap,
            window: mask.and_then(|mask| mask.window),
            ..Attention::new(dim, shape.heads, shape.head_dim)
        };
        let name = out.name.clone();
        Ok((vec![Item::Node { op: graph::Op::Attention(attention), name, weights }], from))
    }

    fn gated(&self, at: usize, product: usize) -> Result<(Vec<Item>, usize), Refused> {
        let (down, both) = (self.net.node(at)?, self.net.node(product)?);
        let refuse = |what: &str| Err(format!("{} {what}", both.of).into());
        let (Op::Linear { weight, bias, outputs, .. }, [a, b]) = (&down.op, &both.reads[..]) else {
            return refuse("is no product of two");
        };
        let function = |at: usize| -> Result<Option<(graph::Function, usize)>, Refused> {
            let node = self.net.node(at)?;
            let Op::Map(expr) = &node.op else { return Ok(None) };
            let nodes = expr.nodes().filter(|(_, shift)| *shift == 0.0);
            let one = nodes.and_then(|(nodes, _)| match &nodes[..] {
                [graph::Node { op: graph::Op::Activation { function, scale: 1.0 }, .. }] => {
                    Some(*function)
                }
                _ => None,
            });
            Ok(one.zip(node.reads.first().copied()))
        };
        let found = match (function(*a)?, function(*b)?) {
            (Some((f, gate)), None) => (f, gate, *b),
            (None, Some((f, gate))) => (f, gate, *a),
            (None, None) => (graph::Function::Identity, *a, *b),
            _ => return refuse("multiplies two functions of values, which no node does"),
        };
        let (function, gate, up) = found;
        let (from, wg, bg, fg) = self.linear(gate, "a gate")?;
        let (other, wu, bu, fu) = self.linear(up, "a product")?;
        let (Form::Tokens(_, dim) | Form::Vector(dim)) = self.net.form(from)? else {
            return refuse("is of an image");
        };
        let (Form::Tokens(_, hidden) | Form::Vector(hidden)) = both.form else {
            return refuse("is of an image");
        };
        if from != other || *outputs != dim {
            return refuse("multiplies maps of different values, or ends in another width");
        }
        let biased = bias.is_some() || bg.is_some() || bu.is_some();
        let times = |w: TensorExpr, k: f64| if k == 1.0 { w } else { w.times(k) };
        let mut weights = vec![
            ("gate.weight", times(wg, fg)),
            ("up.weight", times(wu, fu)),
            ("down.weight", weight.clone()),
        ];
        if biased {
            let zeros = |n| TensorExpr::numbers(vec![0.0; n], &[n]);
            weights.push(("gate.bias", bg.map_or_else(|| zeros(hidden), |b| times(b, fg))));
            weights.push(("up.bias", bu.map_or_else(|| zeros(hidden), |b| times(b, fu))));
            weights.push(("down.bias", bias.clone().unwrap_or_else(|| zeros(dim))));
        }
        let op = graph::Op::GatedMlp { dim, hidden, function, bias: biased };
        let name = down.name.clone();
        Ok((vec![Item::Node { op, name, weights }], from))
    }

    /// Pixels as tokens, where they are of a convolution whose kernels lie side by side.
    fn patches(&self, at: usize, of: &str) -> Result<(Vec<Item>, usize), Refused> {
        let node = self.net.node(at)?;
        let source = node.reads.first().copied().unwrap_or(0);
        let refused = "takes pixels as tokens, of what is no map of patches";
        let Op::Conv { shape, weight, bias } = &node.op else {
            return Err(format!("{of} {refused}").into());
        };
        let Form::Image(_, height, width) = self.net.form(source)? else {
            return Err(format!("{of} {refused}").into());
        };
        let c = shape;
        let side = c.kernel;
        if c.stride != side
            || c.padding != 0
            || c.groups != 1
            || !height.is_multiple_of(side)
            || !width.is_multiple_of(side)
        {
            return Err(format!("{of} {refused}").into());
        }
        let inputs = c.inputs * side * side;
        let op = graph::Op::Linear { inputs, outputs: c.outputs, bias: bias.is_some() };
        let cut = graph::Op::Patches { size: side };
        Ok((
            vec![
                Item::Node { op: cut, name: String::new(), weights: Vec::new() },
                Item::Node { op, name: node.name.clone(), weights: with_bias(weight, bias) },
            ],
            source,
        ))
    }

    // From items to nodes.

    fn nodes(&mut self, items: Vec<Item>) -> Result<Vec<graph::Node>, Refused> {
        let mut out = Vec::new();
        for item in self.folded(items)? {
            let (op, name) = match item {
                Item::Node { op, name, weights } => {
                    let name = if weights.is_empty() { String::new() } else { self.name(&name) };
                    for (end, weight) in weights {
                        self.weights.put(format!("{name}.{end}"), weight);
                    }
                    (op, name)
                }
                Item::Affine { scale, shift, form, of } => {
                    match self.diagonal(scale, shift, form, &of)? {
                        Some(node) => node,
                        None => continue,
                    }
                }
                Item::Residual { body } => {
                    let body = self.nodes(body)?;
                    (graph::Op::Residual { skip: 1.0, branch: 1.0, body }, String::new())
                }
                Item::Parallel { branches } => {
                    let mut all = Vec::new();
                    for branch in branches {
                        let body = self.nodes(branch)?;
                        all.push(graph::Node::new("", graph::Op::Sequential { body }));
                    }
                    (graph::Op::Parallel { branches: all }, String::new())
                }
            };
            out.push(graph::Node::new(name, op));
        }
        Ok(out)
    }

    /// A name that no node has.
    fn name(&mut self, wanted: &str) -> String {
        fresh(&mut self.names, if wanted.is_empty() { "map" } else { wanted })
    }

    /// Puts factors and constants into the maps beside them.
    fn folded(&self, items: Vec<Item>) -> Result<Vec<Item>, Refused> {
        let mut out: Vec<Item> = Vec::new();
        for item in items {
            let item = match item {
                Item::Affine { scale, shift, form, of } => {
                    match out.last_mut().map(|last| self.behind(last, &scale, &shift)) {
                        Some(Ok(true)) => continue,
                        Some(Err(e)) => return Err(e),
                        _ => Item::Affine { scale, shift, form, of },
                    }
                }
                other => other,
            };
            out.push(item);
        }
        // What is left goes into the next map.
        let mut forward: Vec<Item> = Vec::new();
        for mut item in out {
            while let Some(Item::Affine { scale, shift, form, of }) =
                forward.pop_if(|last| matches!(last, Item::Affine { .. }))
            {
                if let Item::Node { op: graph::Op::Flatten, .. } = &item
                    && let Some((scale, shift)) = flattened(&scale, &shift, form)
                {
                    let form = match form {
                        Form::Image(c, h, w) => Form::Vector(c * h * w),
                        other => other,
                    };
                    forward.push(item);
                    item = Item::Affine { scale, shift, form, of };
                    break;
                }
                if !self.before(&mut item, &scale, &shift)? {
                    forward.push(Item::Affine { scale, shift, form, of });
                    break;
                }
            }
            forward.push(item);
        }
        Ok(forward)
    }

    /// Whether a node takes a factor and constants of what it makes into its weights.
    fn behind(
        &self,
        item: &mut Item,
        scale: &Coefficient,
        shift: &Coefficient,
    ) -> Result<bool, Refused> {
        if let Item::Affine { scale: s, shift: t, .. } = item {
            let Some((scale, shift)) = twice([s, t], [scale, shift]) else { return Ok(false) };
            (*s, *t) = (scale, shift);
            return Ok(true);
        }
        let Item::Node { op, weights, .. } = item else { return Ok(false) };
        let fits = |n: usize| fits(scale, n) && fits(shift, n) && n <= super::array::LARGEST;
        let one = |c: &Coefficient| *c == Coefficient::Number(1.0);
        let none = |c: &Coefficient| *c == Coefficient::Number(0.0);
        let vector = |c: &Coefficient, n: usize| match c {
            Coefficient::Number(k) => TensorExpr::numbers(vec![*k; n], &[n]),
            Coefficient::Vector(v, _) => v.clone(),
        };
        match op {
            graph::Op::Linear { outputs: n, bias, .. }
            | graph::Op::Conv(Convolution { outputs: n, bias, .. })
                if fits(*n) =>
            {
                let n = *n;
                take(weights, "weight").into_iter().for_each(|w| {
                    weights.insert(0, ("weight", scale.rows(w)));
                });
                let old = take(weights, "bias").map(|b| scale.rows(b));
                let new = shift.onto(old, n);
                *bias = new.is_some();
                weights.extend(new.map(|b| ("bias", b)));
                Ok(true)
            }
            graph::Op::LayerNorm { dim, bias: false, gain: gain @ false, .. }
                if fits(*dim) && none(shift) =>
            {
                *gain = true;
                weights.push(("weight", vector(scale, *dim)));
                Ok(true)
            }
            graph::Op::LayerNorm { dim, bias: bias @ false, gain, .. } if fits(*dim) => {
                if !one(scale) {
                    if *gain {
                        return Ok(false);
                    }
                    *gain = true;
                    weights.push(("weight", vector(scale, *dim)));
                }
                if !none(shift) {
                    *bias = true;
                    weights.push(("bias", vector(shift, *dim)));
                }
                Ok(true)
            }
            graph::Op::RmsNorm { dim, gain: gain @ false, .. } if fits(*dim) && none(shift) => {
                *gain = true;
                weights.push(("weight", vector(scale, *dim)));
                Ok(true)
            }
            graph::Op::Embedding { dim, .. } if fits(*dim) => {
                let Some(mut table) = take(weights, "weight") else { return Ok(false) };
                table = match scale {
                    Coefficient::Number(1.0) => table,
                    Coefficient::Number(k) => table.times(*k),
                    Coefficient::Vector(v, _) => table.scale_columns((self.numbers)(v)?),
                };
                table = match shift {
                    Coefficient::Number(0.0) => table,
                    Coefficient::Number(k) => table.add(*k),
                    Coefficient::Vector(v, _) => table.add_row(v.clone()),
                };
                weights.push(("weight", table));
                Ok(true)
            }
            graph::Op::Positions { dim, .. } if fits(*dim) && one(scale) => {
                let Some(table) = take(weights, "weight") else { return Ok(false) };
                weights.push((
                    "weight",
                    match shift {
                        Coefficient::Number(k) => table.add(*k),
                        Coefficient::Vector(v, _) => table.add_row(v.clone()),
                    },
                ));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether a node takes a factor and constants of what it reads into its weights.
    fn before(
        &self,
        item: &mut Item,
        scale: &Coefficient,
        shift: &Coefficient,
    ) -> Result<bool, Refused> {
        let Item::Node { op, weights, .. } = item else { return Ok(false) };
        let numbers = |c: &Coefficient, n: usize| match c {
            Coefficient::Number(k) => Ok(vec![*k; n]),
            Coefficient::Vector(v, _) => (self.numbers)(v),
        };
        match op {
            graph::Op::Linear { inputs, outputs, bias }
                if fits(scale, *inputs) && fits(shift, *inputs) =>
            {
                let Some(weight) = take(weights, "weight") else { return Ok(false) };
                let old = take(weights, "bias");
                if *shift != Coefficient::Number(0.0) {
                    let added = weight.clone().dot(numbers(shift, *inputs)?);
                    let shift = Coefficient::Vector(added, *outputs);
                    weights.extend(shift.onto(old, *outputs).map(|b| ("bias", b)));
                    *bias = true;
                } else {
                    weights.extend(old.map(|b| ("bias", b)));
                }
                let weight = match scale {
                    Coefficient::Number(1.0) => weight,
                    Coefficient::Number(k) => weight.times(*k),
                    Coefficient::Vector(..) => weight.scale_columns(numbers(scale, *inputs)?),
                };
                weights.insert(0, ("weight", weight));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A factor and constants by themselves: a number, or a map of each channel alone.
    fn diagonal(
        &mut self,
        scale: Coefficient,
        shift: Coefficient,
        form: Form,
        of: &str,
    ) -> Result<Option<(graph::Op, String)>, Refused> {
        let none = Coefficient::Number(0.0);
        match (&scale, &shift) {
            (Coefficient::Number(1.0), Coefficient::Number(0.0)) => return Ok(None),
            (Coefficient::Number(factor), Coefficient::Number(0.0)) => {
                return Ok(Some((graph::Op::Scale { factor: *factor }, String::new())));
            }
            _ => {}
        }
        let column = |n: usize| match &scale {
            Coefficient::Number(k) => TensorExpr::numbers(vec![*k; n], &[n]),
            Coefficient::Vector(v, _) => v.clone(),
        };
        let bias = shift != none;
        let (op, weight, n) = match form {
            Form::Image(c, ..) if fits(&scale, c) && fits(&shift, c) => {
                let shape =
                    Convolution { bias, groups: c, padding: 0, ..Convolution::same(c, c, 1) };
                (graph::Op::Conv(shape), column(c).reshape(&[c, 1]), c)
            }
            Form::Tokens(_, d) | Form::Vector(d)
                if fits(&scale, d) && fits(&shift, d) && d <= WIDEST =>
            {
                let identity = (0..d * d).map(|i| f64::from(u8::from(i % d == i / d))).collect();
                let identity = TensorExpr::numbers(identity, &[d, d]);
                let op = graph::Op::Linear { inputs: d, outputs: d, bias };
                (op, identity.scale_rows(column(d)), d)
            }
            _ => {
                return Err(format!(
                    "{of} adds or multiplies constants where no map is beside that takes them"
                )
                .into());
            }
        };
        let name = self.name("affine");
        self.weights.put(format!("{name}.weight"), weight);
        if let Some(bias) = shift.onto(None, n) {
            self.weights.put(format!("{name}.bias"), bias);
        }
        Ok(Some((op, name)))
    }
}

fn with_bias(weight: &TensorExpr, bias: &Option<TensorExpr>) -> Vec<(&'static str, TensorExpr)> {
    let bias = bias.clone().map(|bias| ("bias", bias));
    std::iter::once(("weight", weight.clone())).chain(bias).collect()
}

fn take(weights: &mut Vec<(&'static str, TensorExpr)>, end: &str) -> Option<TensorExpr> {
    let at = weights.iter().position(|(name, _)| *name == end)?;
    Some(weights.remove(at).1)
}

fn fits(c: &Coefficient, n: usize) -> bool {
    match c {
        Coefficient::Number(_) => true,
        Coefficient::Vector(_, m) => *m == n,
    }
}

/// `s₂·(s₁·x + t₁) + t₂`
fn twice(
    [first, added]: [&Coefficient; 2],
    [scale, shift]: [&Coefficient; 2],
) -> Option<(Coefficient, Coefficient)> {
    use Coefficient::{Number, Vector};
    let times = |a: &Coefficient, b: &Coefficient| match (a, b) {
        (Number(a), Number(b)) => Some(Number(a * b)),
        (Number(0.0), Vector(..)) | (Vector(..), Number(0.0)) => Some(Number(0.0)),
        (Number(k), Vector(v, n)) | (Vector(v, n), Number(k)) => {
            Some(Vector(if *k == 1.0 { v.clone() } else { v.clone().times(*k) }, *n))
        }
        (Vector(a, n), Vector(b, m)) if n == m => Some(Vector(a.clone().scale_rows(b.clone()), *n)),
        _ => None,
    };
    let plus = |a: &Coefficient, b: &Coefficient| match (a, b) {
        (Number(a), Number(b)) => Some(Number(a + b)),
        (Number(k), Vector(v, n)) | (Vector(v, n), Number(k)) => {
            Some(Vector(if *k == 0.0 { v.clone() } else { v.clone().add(*k) }, *n))
        }
        (Vector(a, n), Vector(b, m)) if n == m => Some(Vector(a.clone().add_row(b.clone()), *n)),
        _ => None,
    };
    Some((times(first, scale)?, plus(&times(added, scale)?, shift)?))
}

/// The same of an image as one vector, where that says the same.
fn flattened(
    scale: &Coefficient,
    shift: &Coefficient,
    form: Form,
) -> Option<(Coefficient, Coefficient)> {
    let Form::Image(c, h, w) = form else { return Some((scale.clone(), shift.clone())) };
    let n = c.checked_mul(h)?.checked_mul(w)?;
    (fits(scale, n) && fits(shift, n)).then(|| (scale.clone(), shift.clone()))
}
