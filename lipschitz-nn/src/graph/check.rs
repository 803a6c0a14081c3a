//! Does the graph fit together? Shapes flow from the input through every node.

use std::collections::HashSet;

use super::parameter::parameters;
use super::{Attention, Convolution, Function, Input, Node, Op, Shape};
use crate::Error;

/// Nesting beyond this is refused, so that a hostile file cannot exhaust the stack.
const MAX_DEPTH: usize = 32;
/// Sizes beyond this are refused, so that products of two of them cannot overflow.
const MAX_SIZE: usize = 1 << 28;

/// What a node reads or makes.
#[derive(Clone, Copy, PartialEq)]
struct Value {
    shape: Shape,
    /// How many tokens there are, where an image says it; of token ids there are as many everywhere.
    tokens: Option<usize>,
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.shape, self.tokens) {
            (Shape::Tokens(dim), Some(tokens)) => write!(f, "[{tokens}, {dim}]"),
            (shape, _) => write!(f, "{shape}"),
        }
    }
}

/// What a node may need to know besides what it reads.
struct Surroundings {
    /// The longest sequence, for token ids, with the zeros in front of it.
    context: Option<usize>,
    /// Whether a class token is among the outermost nodes.
    class_token: bool,
    /// Whether a token separates documents.
    separator: bool,
}

pub(super) fn check(input: Input, nodes: &[Node]) -> Result<Shape, Error> {
    let shape = match input {
        Input::Tokens { context, separator, zero_prefix } => {
            size("input", "context", context)?;
            let Some(Op::Embedding { vocabulary, .. }) = nodes.first().map(|n| &n.op) else {
                return Err(Error::graph("input", "token ids need an embedding as the first node"));
            };
            if let Some(id) = separator.filter(|id| *id as usize >= *vocabulary) {
                let what = format!("has the separator {id}, beyond the vocabulary of {vocabulary}");
                return Err(Error::graph("input", what));
            }
            if zero_prefix > 0 {
                behind_zeros(zero_prefix, separator, nodes)?;
            }
            Shape::Ids
        }
        Input::Pixels { channels, height, width } => {
            for (what, n) in [("channels", channels), ("height", height), ("width", width)] {
                size("input", what, n)?;
            }
            if channels.saturating_mul(height).saturating_mul(width) > MAX_SIZE {
                let what = format!("reads images of more than {MAX_SIZE} numbers");
                return Err(Error::graph("input", what));
            }
            Shape::Image(channels, height, width)
        }
        Input::Vector { dim } => {
            size("input", "dim", dim)?;
            Shape::Vector(dim)
        }
    };
    let (context, separator) = match input {
        Input::Tokens { context, separator, zero_prefix } => {
            (Some(context + zero_prefix), separator.is_some())
        }
        _ => (None, false),
    };
    let class_token = nodes.iter().any(|node| matches!(node.op, Op::ClassToken { .. }));
    let around = Surroundings { context, class_token, separator };
    let Value { shape, .. } = sequence(nodes, "", Value { shape, tokens: None }, &around, 0)?;
    let mut seen = HashSet::new();
    for parameter in parameters(nodes) {
        if !seen.insert(parameter.name.clone()) {
            return Err(Error::graph(
                &parameter.name,
                "is the name of two weights; name the nodes apart",
            ));
        }
    }
    Ok(shape)
}

fn sequence(
    nodes: &[Node],
    prefix: &str,
    mut value: Value,
    around: &Surroundings,
    depth: usize,
) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::graph(prefix, format!("is nested deeper than {MAX_DEPTH}")));
    }
    for node in nodes {
        // Names of weights are paths, and certificates name blocks and products of them with words
        // in between.
        if node.name.contains(|c: char| c == '.' || c.is_whitespace()) {
            return Err(Error::graph(&node.path(prefix), "has a dot or a space in its name"));
        }
        value = step(node, &node.path(prefix), value, around, depth)?;
    }
    Ok(value)
}

fn step(
    node: &Node,
    path: &str,
    value: Value,
    around: &Surroundings,
    depth: usize,
) -> Result<Value, Error> {
    let tokens = match &node.op {
        Op::Sequential { body } => return sequence(body, path, value, around, depth + 1),
        Op::Parallel { branches } => {
            let mut sum = None;
            for branch in branches {
                // Each branch reads the same input.
                let out = sequence(std::slice::from_ref(branch), path, value, around, depth + 1)?;
                let before = *sum.get_or_insert(out);
                if out != before || out.shape == Shape::Ids {
                    return Err(Error::graph(path, format!("(parallel) adds {before} to {out}")));
                }
            }
            return sum.ok_or_else(|| Error::graph(path, "(parallel) has no branches"));
        }
        Op::Residual { skip, branch, body } => {
            finite(path, "skip", *skip)?;
            finite(path, "branch", *branch)?;
            let out = sequence(body, path, value, around, depth + 1)?;
            if out != value || value.shape == Shape::Ids {
                return Err(Error::graph(path, format!("(residual) adds {value} to {out}")));
            }
            return Ok(value);
        }
        Op::Positions { length, .. } => {
            if let Some(count) = around.context.or(value.tokens).filter(|count| count > length) {
                let what = match around.context {
                    Some(_) => format!("has {length} positions for a context of {count} tokens"),
                    None => format!("has {length} positions for {count} tokens"),
                };
                return Err(Error::graph(path, what));
            }
            value.tokens
        }
        Op::Patches { size: side } => match value.shape {
            Shape::Image(_, h, w) if *side > 0 => Some((h / side) * (w / side)),
            _ => None,
        },
        Op::ClassToken { .. } => value.tokens.map(|tokens| tokens + 1),
        _ => value.tokens,
    };
    let shape = made(node, path, value.shape, around)?;
    Ok(Value { shape, tokens: tokens.filter(|_| matches!(shape, Shape::Tokens(_))) })
}

/// The shape that a node without a body makes.
fn made(node: &Node, path: &str, shape: Shape, around: &Surroundings) -> Result<Shape, Error> {
    let kind = node.op.kind();
    let wrong = |wants: String| Error::graph(path, format!("({kind}) wants {wants}, gets {shape}"));
    let widths = |dim: usize| match shape {
        Shape::Tokens(d) | Shape::Vector(d) if d == dim => Ok(()),
        _ => Err(wrong(format!("width {dim}"))),
    };
    let tokens = |dim: usize| {
        if shape == Shape::Tokens(dim) { Ok(()) } else { Err(wrong(format!("[tokens, {dim}]"))) }
    };
    match &node.op {
        Op::Sequential { .. } | Op::Parallel { .. } | Op::Residual { .. } => {
            Err(wrong("its body to be followed".into()))
        }
        Op::Linear { inputs, outputs, .. } => {
            size(path, "inputs", *inputs)?;
            size(path, "outputs", *outputs)?;
            widths(*inputs)?;
            Ok(match shape {
                Shape::Tokens(_) => Shape::Tokens(*outputs),
                _ => Shape::Vector(*outputs),
            })
        }
        Op::Embedding { vocabulary, dim } => {
            size(path, "vocabulary", *vocabulary)?;
            size(path, "dim", *dim)?;
            if shape != Shape::Ids {
                return Err(wrong("token ids".into()));
            }
            Ok(Shape::Tokens(*dim))
        }
        Op::Positions { length, dim } => {
            size(path, "length", *length)?;
            tokens(*dim)?;
            Ok(shape)
        }
        Op::Activation { function: phi, scale } => {
            function(path, *phi)?;
            finite(path, "scale", *scale)?;
            match shape {
                Shape::Ids => Err(wrong("numbers".into())),
                _ => Ok(shape),
            }
        }
        Op::Scale { factor } => {
            finite(path, "factor", *factor)?;
            match shape {
                Shape::Ids => Err(wrong("numbers".into())),
                _ => Ok(shape),
            }
        }
        Op::SoftCap { cap: limit } | Op::Clip { limit } => {
            positive(path, "limit", *limit)?;
            match shape {
                Shape::Ids => Err(wrong("numbers".into())),
                _ => Ok(shape),
            }
        }
        Op::Attention(a) => {
            attention(path, a)?;
            tokens(a.dim)?;
            Ok(shape)
        }
        Op::OffsetAttention { inputs, head_dim, offsets } => {
            size(path, "inputs", *inputs)?;
            size(path, "heads", offsets.len())?;
            size(path, "head_dim", *head_dim)?;
            size(path, "width", offsets.len().saturating_mul(*head_dim))?;
            if let Some(offset) = offsets.iter().find(|offset| **offset > MAX_SIZE) {
                let what = format!("has the offset {offset}, above {MAX_SIZE}");
                return Err(Error::graph(path, what));
            }
            if around.separator {
                return Err(Error::graph(
                    path,
                    "(offset_attention) looks back across documents; leave the separator out",
                ));
            }
            tokens(*inputs)?;
            Ok(Shape::Tokens(offsets.len() * head_dim))
        }
        Op::Conv(c) => {
            convolution(path, c)?;
            let Shape::Image(channels, height, width) = shape else {
                return Err(wrong("an image".into()));
            };
            if channels != c.inputs {
                return Err(wrong(format!("an image of {} channels", c.inputs)));
            }
            if c.circular && c.kernel > height.min(width) {
                let what = format!("goes round an image of {height} × {width} more than once");
                return Err(Error::graph(path, what));
            }
            image(node, path, shape)
        }
        Op::Shift { offsets, .. } => {
            size(path, "offsets", offsets.len())?;
            if offsets.iter().flatten().any(|by| by.unsigned_abs() as usize > MAX_SIZE) {
                return Err(Error::graph(path, format!("shifts by more than {MAX_SIZE} pixels")));
            }
            match shape {
                Shape::Image(c, ..) if c.is_multiple_of(offsets.len()) => Ok(shape),
                _ => Err(wrong(format!("an image whose channels {} groups divide", offsets.len()))),
            }
        }
        Op::SpaceToDepth { .. } => image(node, path, shape),
        Op::Pool(pool) => {
            size(path, "window", pool.window)?;
            size(path, "stride", pool.stride)?;
            if pool.padding > pool.window / 2 {
                let (p, w) = (pool.padding, pool.window);
                return Err(Error::graph(path, format!("has padding {p}, over half of {w}")));
            }
            image(node, path, shape)
        }
        Op::GlobalPool { .. } => match shape {
            Shape::Image(c, ..) => Ok(Shape::Vector(c)),
            _ => Err(wrong("an image".into())),
        },
        Op::MaxMin => match shape {
            Shape::Tokens(d) | Shape::Vector(d) | Shape::Image(d, ..) if d.is_multiple_of(2) => {
                Ok(shape)
            }
            _ => {
                Err(wrong("tokens or a vector of even width, or an even number of channels".into()))
            }
        },
        Op::RmsNorm { dim, eps, .. } | Op::LayerNorm { dim, eps, .. } => {
            size(path, "dim", *dim)?;
            at_least(path, "eps", *eps, NORM_EPS)?;
            widths(*dim)?;
            Ok(shape)
        }
        Op::Normalise { eps } => {
            at_least(path, "eps", *eps, NORM_EPS.sqrt())?;
            match shape {
                Shape::Tokens(_) | Shape::Vector(_) => Ok(shape),
                _ => Err(wrong("tokens or a vector".into())),
            }
        }
        Op::GatedMlp { dim, hidden, function: phi, .. } => {
            function(path, *phi)?;
            size(path, "dim", *dim)?;
            size(path, "hidden", *hidden)?;
            widths(*dim)?;
            Ok(shape)
        }
        Op::Flatten => match shape {
            Shape::Image(c, h, w) => c
                .checked_mul(h)
                .and_then(|n| n.checked_mul(w))
                .filter(|n| *n <= MAX_SIZE)
                .map(Shape::Vector)
                .ok_or_else(|| Error::graph(path, "flattens an image that is too large")),
            Shape::Vector(_) => Ok(shape),
            _ => Err(wrong("an image".into())),
        },
        Op::Patches { size: side } => match shape {
            Shape::Image(c, h, w) if *side > 0 && h % side == 0 && w % side == 0 => {
                Ok(Shape::Tokens(c * side * side))
            }
            _ => Err(wrong(format!("an image whose sides are multiples of {side}"))),
        },
        Op::ClassToken { dim } => {
            size(path, "dim", *dim)?;
            if around.context.is_some() {
                return Err(Error::graph(
                    path,
                    "(class_token) is for images; a sequence of token ids has its own",
                ));
            }
            tokens(*dim)?;
            Ok(shape)
        }
        Op::MeanPool | Op::FirstToken | Op::LastToken => match shape {
            Shape::Tokens(d) => Ok(Shape::Vector(d)),
            _ => Err(wrong("tokens".into())),
        },
        // One token alone has no others to take the mean of, so this needs a class token in front.
        Op::FirstAndMean => match shape {
            Shape::Tokens(d) if around.class_token => Ok(Shape::Vector(2 * d)),
            _ => Err(wrong("tokens behind a class token".into())),
        },
    }
}

/// The image that a node makes of one, if it fits and is not too large.
fn image(node: &Node, path: &str, shape: Shape) -> Result<Shape, Error> {
    let Shape::Image(c, h, w) = shape else {
        let kind = node.op.kind();
        return Err(Error::graph(path, format!("({kind}) wants an image, gets {shape}")));
    };
    let fits = |[c, h, w]: [usize; 3]| {
        c.checked_mul(h).and_then(|n| n.checked_mul(w)).is_some_and(|n| n > 0 && n <= MAX_SIZE)
    };
    match Op::image([c, h, w], &node.op).filter(|made| fits([c, h, w]) && fits(*made)) {
        Some([c, h, w]) => Ok(Shape::Image(c, h, w)),
        None => {
            let kind = node.op.kind();
            Err(Error::graph(path, format!("({kind}) does not fit {shape}")))
        }
    }
}

fn convolution(path: &str, c: &Convolution) -> Result<(), Error> {
    let sizes = [
        ("inputs", c.inputs),
        ("outputs", c.outputs),
        ("kernel", c.kernel),
        ("stride", c.stride),
        ("groups", c.groups),
    ];
    for (what, n) in sizes {
        size(path, what, n)?;
    }
    let elements = [c.inputs, c.outputs, c.kernel, c.kernel];
    let all = elements.iter().try_fold(1_usize, |n, x| n.checked_mul(*x));
    size(path, "weights", all.unwrap_or(usize::MAX))?;
    if !c.inputs.is_multiple_of(c.groups) || !c.outputs.is_multiple_of(c.groups) {
        let (i, o, g) = (c.inputs, c.outputs, c.groups);
        return Err(Error::graph(path, format!("has {g} groups, which {i} and {o} channels lack")));
    }
    // Beyond that there are outputs that see nothing of the image, or parts of it twice.
    let most = if c.circular { (c.kernel - 1) / 2 } else { c.kernel - 1 };
    if c.padding > most {
        let (p, k) = (c.padding, c.kernel);
        return Err(Error::graph(
            path,
            format!("has padding {p} for a kernel of {k}: {most} at most"),
        ));
    }
    Ok(())
}

/// Whether a network can run behind zero vectors: up to the last attention they stay zero, they see
/// nothing but one another, and only attention reads several tokens.
fn behind_zeros(count: usize, separator: Option<u32>, nodes: &[Node]) -> Result<(), Error> {
    size("input", "zero_prefix", count)?;
    if separator.is_some() {
        let what =
            "has a zero prefix and a separator: documents inside of a sequence have no prefix";
        return Err(Error::graph("input", what));
    }
    let mut moved = None;
    nodes.iter().try_for_each(|node| zeros(node, "", &mut moved))
}

/// Follows zero vectors through a node; `moved` is the first node that they are not zero behind.
fn zeros(node: &Node, prefix: &str, moved: &mut Option<String>) -> Result<(), Error> {
    let path = node.path(prefix);
    let refused = |path: &str, why: &str| Err(Error::graph(path, format!("{why} of the prefix")));
    let moves = match &node.op {
        Op::Sequential { body } | Op::Residual { body, .. } | Op::Parallel { branches: body } => {
            return body.iter().try_for_each(|node| zeros(node, &path, moved));
        }
        Op::Attention(a) => {
            if !a.causal {
                return refused(&path, "lets tokens change the zeros");
            }
            if let Some(moved) = moved {
                return refused(moved, "comes before attention and does not keep the zeros");
            }
            a.bias || a.output_bias
        }
        Op::OffsetAttention { .. } => {
            if let Some(moved) = moved {
                return refused(moved, "comes before attention and does not keep the zeros");
            }
            false
        }
        Op::MeanPool | Op::FirstToken | Op::FirstAndMean | Op::ClassToken { .. } => {
            return refused(&path, "would read the zeros");
        }
        Op::Positions { .. } => true,
        Op::Linear { bias, .. } | Op::LayerNorm { bias, .. } | Op::GatedMlp { bias, .. } => *bias,
        Op::Activation { function, .. } => !function.keeps_zero(),
        Op::Embedding { .. }
        | Op::Scale { .. }
        | Op::SoftCap { .. }
        | Op::Clip { .. }
        | Op::MaxMin
        | Op::RmsNorm { .. }
        | Op::Normalise { .. }
        | Op::Flatten
        | Op::Patches { .. }
        | Op::Conv(_)
        | Op::Shift { .. }
        | Op::SpaceToDepth { .. }
        | Op::Pool(_)
        | Op::GlobalPool { .. }
        | Op::LastToken => false,
    };
    if moves && moved.is_none() {
        *moved = Some(path);
    }
    Ok(())
}

fn attention(path: &str, a: &Attention) -> Result<(), Error> {
    let sizes = [
        ("dim", a.dim),
        ("heads", a.heads),
        ("key_value_heads", a.key_value_heads),
        ("head_dim", a.head_dim),
    ];
    for (what, n) in sizes {
        size(path, what, n)?;
    }
    finite(path, "logit_scale", a.logit_scale)?;
    finite(path, "output_scale", a.output_scale)?;
    if !a.heads.is_multiple_of(a.key_value_heads) {
        let (h, k) = (a.heads, a.key_value_heads);
        return Err(Error::graph(
            path,
            format!("has {h} heads, which {k} key-value heads do not divide"),
        ));
    }
    if a.heads.saturating_mul(a.head_dim) > MAX_SIZE {
        return Err(Error::graph(path, "heads · head_dim is too large"));
    }
    if let Some(rotary) = &a.rotary {
        positive(path, "rotary base", rotary.base)?;
        let half = a.head_dim / 2;
        match &rotary.frequencies {
            Some(frequencies) if frequencies.is_empty() || frequencies.len() > half => {
                let n = frequencies.len();
                return Err(Error::graph(
                    path,
                    format!("has {n} rotary frequencies, outside 1…{half}"),
                ));
            }
            Some(frequencies) => {
                frequencies.iter().try_for_each(|f| finite(path, "rotary frequency", *f))?
            }
            None if !a.head_dim.is_multiple_of(2) => {
                return Err(Error::graph(
                    path,
                    format!("rotary positions need an even head_dim, not {}", a.head_dim),
                ));
            }
            None => {}
        }
    }
    if let Some(window) = a.window {
        size(path, "window", window)?;
    }
    if let Some(bias) = a.position_bias {
        size(path, "buckets", bias.buckets)?;
        size(path, "max_distance", bias.max_distance)?;
        if !bias.fits(a.causal) {
            let (least, share) = if a.causal { (2, "half") } else { (4, "a quarter") };
            let buckets = bias.buckets;
            let what = format!(
                "has {buckets} buckets; it needs at least {least}, and max_distance above {share} \
                 of them"
            );
            return Err(Error::graph(path, what));
        }
    }
    if let Some(alibi) = &a.alibi {
        if alibi.slopes.len() != a.heads {
            let (n, heads) = (alibi.slopes.len(), a.heads);
            return Err(Error::graph(path, format!("has {n} slopes for {heads} heads")));
        }
        alibi.slopes.iter().try_for_each(|slope| finite(path, "slope", *slope))?;
    }
    if a.query_key_norm.is_none() && a.query_key_shift {
        return Err(Error::graph(path, "has query_key_shift without query_key_norm"));
    }
    if let Some(eps) = a.query_key_norm {
        at_least(path, "query_key_norm", eps, NORM_EPS)?;
    }
    if let Some(cap) = a.logit_cap {
        positive(path, "logit_cap", cap)?;
    }
    Ok(())
}

fn function(path: &str, function: Function) -> Result<(), Error> {
    function.constant().map_or(Ok(()), |(what, value)| finite(path, what, value))
}

fn size(path: &str, what: &str, n: usize) -> Result<(), Error> {
    match n {
        1..=MAX_SIZE => Ok(()),
        _ => Err(Error::graph(path, format!("has {what} = {n}, outside 1…{MAX_SIZE}"))),
    }
}

fn finite(path: &str, what: &str, x: f64) -> Result<(), Error> {
    if x.is_finite() {
        Ok(())
    } else {
        Err(Error::graph(path, format!("has {what} = {x}, which is not finite")))
    }
}

/// The smallest ε beside a mean of squares: in f32, what underflows in the squares is less than a unit of
/// rounding of it.
const NORM_EPS: f64 = 1e-30;

fn at_least(path: &str, what: &str, x: f64, least: f64) -> Result<(), Error> {
    if x.is_finite() && x >= least {
        Ok(())
    } else {
        Err(Error::graph(path, format!("needs {what} of at least {least:e}, not {x:e}")))
    }
}

fn positive(path: &str, what: &str, x: f64) -> Result<(), Error> {
    if x.is_finite() && x > 0.0 {
        Ok(())
    } else {
        Err(Error::graph(path, format!("needs {what} > 0, not {x}")))
    }
}
