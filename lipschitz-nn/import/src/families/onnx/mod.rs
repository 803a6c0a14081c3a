//! An ONNX file: the operators that it lists, as nodes of a graph.
//!
//! Each operator is read as what it does to whole tensors ([`operators`], [`attention`]); moves of
//! elements are kept as views ([`view`]), numbers that do not depend on the input are computed
//! ([`array`]), elementwise functions are compared as expressions ([`expr`]). What they come to
//! ([`net`]) becomes sequences, branches and blocks ([`build`]). What is not known is refused.

mod array;
mod attention;
mod attributes;
mod build;
mod elementwise;
mod expr;
mod layers;
mod moves;
mod net;
mod operators;
mod sizes;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Input, Node, Op as GraphOp};

use crate::expression::TensorExpr;
use crate::formats::files::Files;
use crate::formats::onnx::{self, Contents};
use crate::formats::source::Source;
use crate::mapping::Mapping;

use array::Kind;
use net::{Form, Net, Op};
use operators::{Here, Reader, Value, Weight};
use sizes::{Decision, Draws, Open};
use view::Base;

/// Why a file is not read.
type Refused = Box<dyn std::error::Error + Send + Sync>;

/// Versions of the standard operators that are read: before the first their operands were matched
/// otherwise, after the last they may be anything.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=26;

/// Numbers that constants may be computed with, in all.
const BUDGET: usize = 1 << 28;

/// The graph of a file and where its weights come from, and its tensors.
///
/// # Errors
/// [`Error::File`] names the operator that is not known, and why.
pub(crate) fn open(source: Source) -> Result<(Mapping, Files), Error> {
    let path = source.path().to_path_buf();
    let contents = onnx::read(source)?;
    let mapping = mapping(&contents).map_err(|what| match what.downcast::<Error>() {
        Ok(error) => Error::file(&path, *error),
        Err(what) => Error::file(&path, what),
    })?;
    Ok((mapping, contents.files))
}

/// The most elements of an input: what a graph may read.
const MOST_READ: usize = 1 << 28;

fn mapping(contents: &Contents) -> Result<Mapping, Refused> {
    if !OPSETS.contains(&contents.opset) {
        let (first, last) = (OPSETS.start(), OPSETS.end());
        let found = contents.opset;
        return Err(format!(
            "has operators of version {found}, of which {first} to {last} are read"
        )
        .into());
    }
    let outputs: Vec<&str> = contents.graph.output.iter().map(|v| v.name.as_str()).collect();
    let [output] = outputs[..] else {
        let names = outputs.join(", ");
        return Err(format!("has {} outputs ({names}); export it with one", outputs.len()).into());
    };
    let (element, sizes) = input(contents)?;
    let whole = match onnx::number(element) {
        Some((dtype, _)) if dtype.is_float() => false,
        Some((DType::I64 | DType::I32, _)) => true,
        _ => return Err(format!("has an input of the type {element}, which is not read").into()),
    };
    let open_batch = sizes.first().is_some_and(Option::is_none);
    let open_tokens = whole && sizes.get(1).is_some_and(Option::is_none);
    let computes = match onnx::number(element) {
        Some((dtype, _)) if dtype.is_float() => dtype,
        // That of the embedding, as of all weights.
        _ => {
            let types = contents.files.names().filter_map(|name| contents.files.get(name)?.dtype);
            types.filter(DType::is_float).min_by_key(DType::size_in_bytes).unwrap_or(DType::F32)
        }
    };
    let draws = Draws::default();
    let read =
        |open: Open| translate(contents, output, whole, &sizes, open, (computes, draws.clone()));
    let mut first = Open { batch: 2, tokens: 2 };
    let mut notes = Vec::new();
    if open_tokens {
        // How many there may be is what the shortest table of positions says.
        let found = read(first)?;
        let Some(length) = contents.context.or(found.length).filter(|n| *n > 2) else {
            return Err(
                "leaves the number of tokens open, and has no table of positions that says \
                        how many there are; export it with a fixed number"
                    .into(),
            );
        };
        first.tokens = length;
        notes.push(format!(
            "the file leaves the number of tokens open: up to {length} are read, as many as its table \
             of positions or its metadata says"
        ));
    }
    let Read { mapping, decisions, .. } = read(first)?;
    if open_batch || open_tokens {
        // Of other sizes it is the same network, or what it computes is not known.
        let another = "computes another network for other numbers of examples or tokens";
        let other = Open { batch: 3, tokens: if open_tokens { first.tokens - 1 } else { 2 } };
        // Where an axis has one element it may be told from none, and with many examples constants may be
        // too large, so that some may be refused.
        let drawn = |of: &str, from: usize, to: usize| draws.size(of, from, to);
        let mut more = vec![(1, first.tokens), (7, first.tokens)];
        more.extend([(drawn("a", 8, 40), first.tokens), (drawn("b", 40, 4000), first.tokens)]);
        if open_tokens {
            more.extend([
                (2, first.tokens / 2),
                (5, 3),
                (drawn("c", 8, 40), drawn("d", 4, first.tokens)),
            ]);
        }
        if !open_batch {
            more.iter_mut().for_each(|(batch, _)| *batch = first.batch);
        }
        let mut readings = vec![(first, decisions)];
        let all = std::iter::once((other.batch, other.tokens)).chain(more);
        for (i, (batch, tokens)) in all.enumerate() {
            let open = Open { batch, tokens: tokens.max(1) };
            let read = match read(open) {
                Err(refused) if i > 0 => {
                    if batch == 1 {
                        notes.push(format!(
                            "the file was not read for one example alone ({refused}): this is about several at a \
                             time"
                        ));
                    }
                    continue;
                }
                read => read?,
            };
            if !same(&mapping, &read.mapping) {
                return Err(another.into());
            }
            readings.push((open, read.decisions));
        }
        if let Some(operator) = sizes::decides(&readings, first.tokens) {
            return Err(format!("{another}: {operator} decides by them").into());
        }
    }
    Ok(notes.into_iter().fold(mapping, Mapping::note))
}

/// The type and the sizes of the one input.
fn input(contents: &Contents) -> Result<(i32, Vec<Option<usize>>), Refused> {
    // Old files list tensors among the inputs as well.
    let inputs = contents.graph.input.iter().filter(|v| contents.files.get(&v.name).is_none());
    let inputs: Vec<_> = inputs.collect();
    let [input] = inputs[..] else {
        let names: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
        return Err(format!(
            "has {} inputs ({}); export it with one, and what else it wants as constants",
            names.len(),
            names.join(", ")
        )
        .into());
    };
    input
        .tensor()
        .ok_or_else(|| format!("does not say the sizes of its input `{}`", input.name).into())
}

/// What a file is, its open sizes given.
struct Read {
    mapping: Mapping,
    /// The rows of the shortest table of positions.
    length: Option<usize>,
    /// What may decide by sizes.
    decisions: Vec<Decision>,
}

fn translate(
    contents: &Contents,
    output: &str,
    whole: bool,
    sizes: &[Option<usize>],
    open: Open,
    (computes, draws): (DType, Draws),
) -> Result<Read, Refused> {
    let made: BTreeSet<&str> =
        contents.graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let files = &contents.files;
    let kind = |name: &str, dtype: Option<DType>| match dtype {
        _ if contents.booleans.iter().any(|b| b == name) => Some(Kind::Bool),
        // Bytes wrap where they are added.
        Some(DType::U8) => None,
        Some(dtype) if dtype.is_float() => Some(Kind::Float(dtype)),
        Some(_) => Some(Kind::Int),
        None => None,
    };
    let weights: Vec<Weight> = files
        .names()
        .filter_map(|name| files.get(name).map(|info| (name, info)))
        .map(|(name, info)| Weight {
            name: name.to_string(),
            shape: info.shape.clone(),
            kind: kind(name, info.dtype),
        })
        .collect();
    let (input, form, axes) = domain(whole, sizes, open)?;
    if view::product(&axes) > MOST_READ {
        return Err(format!("reads tensors of the shape {axes:?}, which are too large").into());
    }
    // A single axis is that of a vector, of which there is one.
    let batch = if let [batch, _, ..] = axes[..] { batch } else { 1 };
    let net = Net { nodes: Vec::new(), batch };
    let mut reader = Reader {
        files,
        weights,
        opset: contents.opset,
        values: BTreeMap::new(),
        net,
        taken: BTreeSet::new(),
        budget: BUDGET,
        made: BTreeSet::new(),
        left: BTreeMap::new(),
        kept: 0,
        numbers: BTreeMap::new(),
        passes_large: false,
        computes,
        draws,
        decisions: Vec::new(),
        looked_at: 0,
        capped_first: false,
    };
    let names = reader.weights.iter().enumerate().map(|(i, weight)| (weight.name.clone(), i));
    reader.numbers = names.collect();
    for name in
        contents.graph.node.iter().flat_map(|n| &n.input).map(String::as_str).chain([output])
    {
        *reader.left.entry(name.to_string()).or_default() += 1;
    }
    reader.net.add(form, Op::Input, Vec::new(), ["", "the input"])?;
    let view =
        reader.net.whole(0)?.reshape(&axes).ok_or("has an input of sizes that do not fit")?;
    let name = contents.graph.input.iter().find(|v| files.get(&v.name).is_none());
    let name = name.map(|v| v.name.clone()).unwrap_or_default();
    reader.values.insert(name, Value::View(view));
    let nothing = onnx::Node::default();
    for number in 0..reader.weights.len() {
        let name = reader.weights.get(number).map(|w| w.name.clone()).unwrap_or_default();
        let kind = reader.weights.get(number).and_then(|w| w.kind);
        // Of a type that is not read, it is missed by who reads it.
        if !made.contains(name.as_str()) && kind.is_some() {
            let value = reader.tensor(Here { node: &nothing }, number)?;
            reader.kept += value.numbers();
            reader.values.insert(name, value);
        }
    }
    for node in &contents.graph.node {
        reader.read(node)?;
    }
    let last = contents.graph.node.iter().find(|n| n.output.iter().any(|o| o == output));
    let here = Here { node: last.unwrap_or(&nothing) };
    let Some(Value::View(view)) = reader.values.get(output).cloned() else {
        return Err(format!("has the output `{output}`, which does not depend on its input").into());
    };
    let view = reader.settled(here, view)?;
    let Base::Node(node) = view.base else {
        return Err(format!("has the output `{output}`, which does not depend on its input").into());
    };
    let all = reader.net.whole(node)?;
    if view.reshape(&all.shape()).as_ref() != Some(&all) {
        return here.refuse("makes an output whose elements are in another order");
    }
    let length = reader.net.nodes.iter().filter_map(|node| match node.op {
        Op::Positions { rows, from, .. } => Some(rows - from),
        _ => None,
    });
    let length = length.min();
    let numbers = |expr: &TensorExpr| -> Result<Vec<f64>, Refused> {
        Ok(expr.read(files, DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
    };
    let decisions = std::mem::take(&mut reader.decisions);
    let mut mapping = build::mapping(&reader.net, node, input, &numbers)?;
    if reader.capped_first {
        mapping = mapping.note(
            "attention puts logits under the soft cap first and masks them then; versions of the standard and \
             of onnxruntime before 2026 mask first, so that what is hidden has a weight",
        );
    }
    if reader.passes_large {
        mapping = mapping.note(
            "the file has x in place of ln(1 + e^x) above 20, which is less by up to 2.1e-9; the \
             network has ln(1 + e^x) everywhere",
        );
    }
    Ok(Read { mapping: accounted(mapping, files, &reader.taken), length, decisions })
}

/// What a network reads, its form, and the sizes of the tensor that the file wants.
fn domain(
    whole: bool,
    sizes: &[Option<usize>],
    open: Open,
) -> Result<(Input, Form, Vec<usize>), Refused> {
    let batch = sizes.first().copied().flatten().unwrap_or(open.batch);
    let rest = sizes.get(1..).unwrap_or_default();
    if whole {
        let [tokens] = rest else {
            return Err("reads whole numbers that are not [examples, tokens]".into());
        };
        let tokens = tokens.unwrap_or(open.tokens);
        return Ok((Input::tokens(tokens), Form::Ids(tokens), vec![batch, tokens]));
    }
    let fixed: Option<Vec<usize>> = rest.iter().copied().collect();
    let Some(fixed) = fixed else {
        return Err("leaves sizes of its input open besides the number of examples".into());
    };
    let axes = [&[batch], &fixed[..]].concat();
    match (fixed[..].first(), &fixed[..]) {
        (_, [channels, height, width]) => {
            let (channels, height, width) = (*channels, *height, *width);
            let input = Input::Pixels { channels, height, width };
            Ok((input, Form::Image(channels, height, width), axes))
        }
        (Some(_), all) if all.iter().filter(|n| **n != 1).count() <= 1 => {
            let dim = view::product(all);
            Ok((Input::Vector { dim }, Form::Vector(dim), axes))
        }
        (None, _) if sizes.len() == 1 && sizes[0].is_some() => {
            Ok((Input::Vector { dim: batch }, Form::Vector(batch), vec![batch]))
        }
        _ => {
            Err(format!("reads tensors of the shape {axes:?}: tokens, vectors and images are read")
                .into())
        }
    }
}

/// Says of every tensor that no weight is made of what became of it.
fn accounted(mapping: Mapping, files: &Files, taken: &BTreeSet<String>) -> Mapping {
    let used: BTreeSet<String> = mapping
        .weights
        .iter()
        .flat_map(|(_, expr)| expr.sources())
        .map(|(name, _)| name.to_string())
        .collect();
    let left = files.names().filter(|name| !used.contains(*name)).map(|name| {
        let why = match taken.contains(name) {
            true => "its numbers went into the graph or into other weights",
            false => "no operator that the output depends on reads it",
        };
        (name.to_string(), why)
    });
    Mapping { exactly: left.collect(), ..mapping }
}

/// Whether two readings with other numbers of examples or tokens are the same network: a table of
/// positions may have more rows in the first.
fn same(a: &Mapping, b: &Mapping) -> bool {
    fn walk(nodes: &[Node], tables: &mut BTreeSet<String>, out: &mut Vec<Node>) {
        for node in nodes {
            let mut node = node.clone();
            if let GraphOp::Positions { length, .. } = &mut node.op {
                *length = 0;
                tables.insert(format!("{}.weight", node.name));
            }
            let mut inside = Vec::new();
            walk(node.op.body().unwrap_or_default(), tables, &mut inside);
            match &mut node.op {
                GraphOp::Sequential { body } | GraphOp::Residual { body, .. } => *body = inside,
                GraphOp::Parallel { branches } => *branches = inside,
                _ => {}
            }
            out.push(node);
        }
    }
    let mut tables = BTreeSet::new();
    let mut nodes = |m: &Mapping| {
        let mut out = Vec::new();
        walk(m.graph.nodes(), &mut tables, &mut out);
        out
    };
    if nodes(a) != nodes(b) || a.weights.len() != b.weights.len() {
        return false;
    }
    a.weights.iter().zip(&b.weights).all(|((name, x), (other, y))| {
        name == other && (x == y || tables.contains(name) && x.begins_with(y))
    })
}
