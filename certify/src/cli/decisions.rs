//! The inputs of a network's decisions: windows of text, lines of text, images or vectors.

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use lipschitz_certify::robust;
use lipschitz_data::codec::Codec;
use lipschitz_data::tensors::predicts;
use lipschitz_data::{Batches, DataSet, Predicts, Protocol, for_model, text};
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::{Meta, Tokenizer};
use lipschitz_nn::graph::{Input, Shape};

pub(super) enum Decisions {
    /// A data set, the size of a batch, and the length of a window.
    Set(Box<dyn DataSet>, usize, Option<usize>),
    /// Texts, each on its own.
    Lines(Vec<Vec<u32>>),
}

impl Decisions {
    /// The first `limit` decisions, or all that are read at once, of a model that was read from `path`. One with a
    /// single answer to a text, as encoders and classifiers have, reads a file line by line, as its tokenizer says that it
    /// reads texts.
    pub(super) fn of(
        model: &Model,
        meta: &Meta,
        path: &Path,
        data: &Path,
        limit: usize,
    ) -> Result<Self> {
        let graph = model.graph();
        if !matches!(graph.input(), Input::Tokens { .. }) {
            let set = for_model(data, meta)?;
            super::robust::reads_pixels(path, meta)?;
            predicts(&*set, Predicts::Classes)?;
            return Ok(Self::Set(set, robust::BATCH, None));
        }
        match &meta.tokenizer {
            Some(tokenizer @ Tokenizer::Json { .. })
                if !data.is_dir() && matches!(graph.output(), Shape::Vector(_)) =>
            {
                let context = graph.context().unwrap_or(usize::MAX);
                lines(tokenizer, context, data, limit).map(Self::Lines)
            }
            _ => {
                let window = robust::window(model)?;
                Ok(Self::Set(for_model(data, meta)?, robust::WINDOWS, Some(window)))
            }
        }
    }

    /// All of them, in order.
    pub(super) fn batches(&self) -> Result<Batches<'_>> {
        Ok(match self {
            Self::Set(set, size, context) => {
                set.held_out(Protocol::Full, *size, *context, &Device::Cpu)?
            }
            Self::Lines(lines) => Box::new(lines.iter().map(|ids| {
                let x = Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?;
                Ok((x.clone(), x))
            })),
        })
    }
}

/// The ids of the first lines of a text, those without any left out.
fn lines(
    tokenizer: &Tokenizer,
    context: usize,
    path: &Path,
    limit: usize,
) -> Result<Vec<Vec<u32>>> {
    let (text, codec) = (text::read(path)?, Codec::new(tokenizer)?);
    let mut out = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        if out.len() == limit {
            break;
        }
        let ids = codec.encode_whole(line)?;
        if ids.len() > context {
            let path = path.display();
            bail!(
                "{path}: line {number} has {} tokens, and the model reads {context}; split the line",
                ids.len()
            )
        }
        if !ids.is_empty() {
            out.push(ids);
        }
    }
    if out.is_empty() {
        bail!("{}: holds no line of text; each line is an input", path.display())
    }
    Ok(out)
}
