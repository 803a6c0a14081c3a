//! The `.bin` files of llama2.c: a header, then all weights as f32 in a fixed order.

use candle_core::DType;

use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::{Files, Found, Layout, Start};
use crate::formats::source::Source;
use crate::mapping::Mapping;
use crate::nodes::{attention, blocks, linear, residual, rms_norm};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Node, Op, Pairing, Rotary};

/// The header.
#[derive(Clone, Copy)]
struct Header {
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    key_value_heads: usize,
    vocabulary: usize,
    context: usize,
    /// Whether the head is the embedding.
    shared: bool,
    /// Where the weights begin.
    start: u64,
    /// Whether it is the first version, whose order differs and which ends in rotary tables.
    first: bool,
}

/// What version 1 begins with.
pub(crate) const MAGIC: i32 = 0x616b_3432;
/// Any file could be one of many tiny layers, whose index is larger than it.
const MOST_LAYERS: usize = 4096;
/// The ε in its code.
const EPS: f64 = 1e-5;

fn header(source: &Source) -> Result<Header, Error> {
    let (bytes, length) = (source.start(256)?, source.length());
    let number = |i: usize| {
        let word = bytes.get(4 * i..4 * i + 4)?;
        Some(i32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    let wrong = |what: String| source.wrong(format!("is no model of llama2.c: {what}"));
    let first = number(0) != Some(MAGIC);
    if !first && number(1) != Some(1) {
        return Err(wrong(format!(
            "version {} is not supported, 1 is",
            number(1).unwrap_or_default()
        )));
    }
    let at = if first { 0 } else { 2 };
    let mut sizes = [0usize; 7];
    let mut shared = bytes.get(36).is_some_and(|b| *b != 0);
    for (i, size) in sizes.iter_mut().enumerate() {
        let n = number(at + i).ok_or_else(|| wrong("it ends in its header".into()))?;
        // A negative vocabulary says that the head has a matrix of its own.
        if first && i == 5 {
            shared = n > 0;
        }
        let n = if first && i == 5 { n.unsigned_abs() } else { n.max(0).unsigned_abs() } as usize;
        if n == 0 || n as u64 > length {
            return Err(wrong(format!(
                "its header says a size of {n} in a file of {length} bytes"
            )));
        }
        *size = n;
    }
    let [dim, hidden, layers, heads, key_value_heads, vocabulary, context] = sizes;
    if layers > MOST_LAYERS {
        return Err(wrong(format!("its header says {layers} layers")));
    }
    if !dim.is_multiple_of(heads) || !heads.is_multiple_of(key_value_heads) {
        return Err(wrong(format!(
            "{heads} heads and {key_value_heads} of keys do not divide a width of {dim}"
        )));
    }
    let start = if first { 28 } else { 256 };
    Ok(Header {
        dim,
        hidden,
        layers,
        heads,
        key_value_heads,
        vocabulary,
        context,
        shared,
        start,
        first,
    })
}

/// The index of the file, by names of our own.
fn entries(source: &Source, h: &Header) -> Result<Vec<Found>, Error> {
    let length = source.length();
    let Header { dim, hidden, vocabulary, .. } = *h;
    let key = dim / h.heads * h.key_value_heads;
    let layered: [(&str, Vec<usize>); 9] = [
        ("attention_norm", vec![dim]),
        ("wq", vec![dim, dim]),
        ("wk", vec![key, dim]),
        ("wv", vec![key, dim]),
        ("wo", vec![dim, dim]),
        ("ffn_norm", vec![dim]),
        ("w1", vec![hidden, dim]),
        ("w2", vec![dim, hidden]),
        ("w3", vec![hidden, dim]),
    ];
    let (table, norm) = (("embedding", vec![vocabulary, dim]), ("norm", vec![dim]));
    let half = dim / h.heads / 2;
    let single = |(name, shape): &(&str, Vec<usize>)| (false, (*name).to_string(), shape.clone());
    let many = |i: usize| (true, layered[i].0.to_string(), layered[i].1.clone());
    let mut order = Vec::new();
    if h.first {
        order.push(single(&table));
        order.extend((0..9).map(many));
        order.push(single(&norm));
        order.extend(
            ["freq_real", "freq_imag"].map(|name| (false, name.to_string(), vec![h.context, half])),
        );
    } else {
        order.extend([many(0), many(5), single(&norm), single(&table)]);
        order.extend([1, 2, 3, 4, 6, 7, 8].map(many));
    }
    if !h.shared {
        order.push((false, "head".to_string(), vec![vocabulary, dim]));
    }
    let mut out = Vec::new();
    let mut offset = h.start;
    for (layered, name, shape) in order {
        let count = shape.iter().try_fold(4u64, |n, d| n.checked_mul(*d as u64));
        for i in 0..if layered { h.layers } else { 1 } {
            let end =
                count.and_then(|bytes| offset.checked_add(bytes)).filter(|end| *end <= length);
            let Some(end) = end else {
                let what = format!("its header wants more than its {length} bytes (at `{name}`)");
                return Err(source.wrong(format!("is no whole model of llama2.c: {what}")));
            };
            let name = if layered { format!("layers.{i}.{name}") } else { name.clone() };
            out.push(Found {
                name,
                shape: shape.clone(),
                dtype: Some(DType::F32),
                kind: "f32".into(),
                start: Start::Offset(offset),
                count: end - offset,
                layout: Layout::Dense,
            });
            offset = end;
        }
    }
    if offset != length {
        let what = format!("it has {length} bytes, its header wants {offset}");
        return Err(source.wrong(format!("is no model of llama2.c: {what}")));
    }
    Ok(out)
}

/// Whether the sizes in a header account for every byte of the file: the first version begins with
/// nothing else that tells it from other files.
pub(crate) fn matches(source: &Source) -> Result<bool, Error> {
    match header(source).and_then(|h| entries(source, &h)) {
        Ok(_) => Ok(true),
        Err(Error::File { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn open(source: Source) -> Result<(Mapping, Files), Error> {
    let h = header(&source)?;
    let entries = entries(&source, &h)?;
    let files = Files::of_found(source, entries)?;
    let Header { dim, hidden, heads, vocabulary, context, .. } = h;
    let head_dim = dim / heads;
    let mut weights = WeightMap::default();
    let embedding = TensorExpr::new("embedding", &[vocabulary, dim]);
    weights.put("embedding.weight", embedding.clone());
    let mut bodies = Vec::new();
    for i in 0..h.layers {
        let to = format!("blocks.{i}");
        let mut matrix = |ours: &str, theirs: &str, outputs: usize, inputs: usize| {
            weights.put(
                format!("{to}.{ours}.weight"),
                TensorExpr::new(format!("layers.{i}.{theirs}"), &[outputs, inputs]),
            );
        };
        matrix("attention.query", "wq", dim, dim);
        matrix("attention.key", "wk", head_dim * h.key_value_heads, dim);
        matrix("attention.value", "wv", head_dim * h.key_value_heads, dim);
        matrix("attention.output", "wo", dim, dim);
        matrix("mlp.gate", "w1", hidden, dim);
        matrix("mlp.down", "w2", dim, hidden);
        matrix("mlp.up", "w3", hidden, dim);
        weights.vector(
            &format!("{to}.attention.norm.weight"),
            &format!("layers.{i}.attention_norm"),
            dim,
        );
        weights.vector(&format!("{to}.mlp.norm.weight"), &format!("layers.{i}.ffn_norm"), dim);
        let mixer = Attention {
            key_value_heads: h.key_value_heads,
            rotary: Some(Rotary::new(10000.0, Pairing::Interleaved)),
            ..Attention::new(dim, heads, head_dim)
        };
        let gated =
            Node::new("", Op::GatedMlp { dim, hidden, function: Function::Silu, bias: false });
        bodies.push(vec![
            residual("attention", vec![rms_norm("norm", dim, EPS), attention(mixer)]),
            residual("mlp", vec![rms_norm("norm", dim, EPS), gated]),
        ]);
    }
    weights.vector("norm.weight", "norm", dim);
    weights.put(
        "head.weight",
        if h.shared { embedding } else { TensorExpr::new("head", &[vocabulary, dim]) },
    );
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary, dim }),
        blocks(bodies),
        rms_norm("norm", dim, EPS),
        linear("head", dim, vocabulary, false),
    ];
    let why = "rotary angles, which follow from the header";
    let mapping = Mapping::new(Input::tokens(context), nodes, weights)?
        .aside("freq_real", why)
        .aside("freq_imag", why);
    Ok((mapping, files))
}
