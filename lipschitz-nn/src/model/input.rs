//! Whether a tensor is what a graph reads.

use candle_core::{DType, Tensor};

use crate::Error;
use crate::graph::{Graph, Input, Op};

/// # Errors
/// [`Error::Input`] says what the graph reads instead.
pub(super) fn check(graph: &Graph, x: &Tensor) -> Result<(), Error> {
    let found = x.dims();
    match graph.input() {
        Input::Tokens { context, .. } => tokens(graph, x, context),
        Input::Pixels { channels, height, width } => match *found {
            [_, c, h, w] if (c, h, w) == (channels, height, width) => Ok(()),
            _ => wrong(format!(
                "pixels are {found:?}, wanted [batch, {channels}, {height}, {width}]"
            )),
        },
        Input::Vector { dim } => match *found {
            [_, d] if d == dim => Ok(()),
            _ => wrong(format!("vectors are {found:?}, wanted [batch, {dim}]")),
        },
    }
}

fn wrong(what: String) -> Result<(), Error> {
    Err(Error::Input(what))
}

fn tokens(graph: &Graph, x: &Tensor, context: usize) -> Result<(), Error> {
    let [_, tokens] = *x.dims() else {
        return wrong(format!("token ids are {:?}, wanted [batch, tokens]", x.dims()));
    };
    if !x.dtype().is_int() {
        return wrong(format!("token ids are {:?}, wanted an integer type", x.dtype()));
    }
    if tokens == 0 || tokens > context {
        return wrong(format!(
            "a sequence has {tokens} tokens, the network reads 1 to {context}; cut it"
        ));
    }
    match graph.vocabulary() {
        Some(vocabulary) if x.elem_count() > 0 => ids(x, vocabulary),
        _ => Ok(()),
    }
}

fn ids(x: &Tensor, vocabulary: usize) -> Result<(), Error> {
    let ids = x.to_dtype(DType::I64)?.flatten_all()?;
    let (low, high) = (ids.min(0)?.to_scalar::<i64>()?, ids.max(0)?.to_scalar::<i64>()?);
    if low < 0 || high >= vocabulary as i64 {
        let worst = if low < 0 { low } else { high };
        return wrong(format!("token id {worst} is outside the vocabulary of {vocabulary}"));
    }
    Ok(())
}

/// # Errors
/// [`Error::Input`] if the graph reads no tokens, or `x` is not `[batch, tokens, dim]` as its
/// embedding gives.
pub(super) fn check_embeddings(graph: &Graph, x: &Tensor) -> Result<(), Error> {
    let (Input::Tokens { context, .. }, Some(Op::Embedding { dim, .. })) =
        (graph.input(), graph.nodes().first().map(|n| &n.op))
    else {
        return Err(no_embedding());
    };
    match *x.dims() {
        [_, tokens, width] if width == *dim && (1..=context).contains(&tokens) => Ok(()),
        ref found => wrong(format!("embeddings are {found:?}, wanted [batch, 1…{context}, {dim}]")),
    }
}

pub(super) fn no_embedding() -> Error {
    Error::Input("this network has no embedding; it reads numbers".into())
}
