//! The forward pass: a program on one input.

use candle_core::{D, Tensor};

use super::program::{AttentionLayer, Fused, Linear, Norm, Operation, Step};
use crate::Error;
use crate::graph::{NodeId, NormKind, Span, Stage};
use crate::linalg::Precision;
use crate::ops::{self, Documents, Dropout, FusedBlock, Gradients, Mask, Scores};

/// A tensor on its way through a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The node that made it; the graph itself for what the network reads.
    pub id: &'a NodeId,
    /// The node's path.
    pub path: &'a str,
    /// What it is there.
    pub stage: Stage,
}

/// Is given each tensor, and gives what the pass goes on with.
pub(super) type Tap<'a> = &'a mut dyn FnMut(Seen<'_>, Tensor) -> Result<Tensor, Error>;

/// Who hears of a pass.
pub(super) enum Listener<'a> {
    /// Of the outputs of nodes.
    Outputs(Tap<'a>),
    /// Of what is inside of nodes too.
    All(Tap<'a>),
}

/// The context of a forward pass.
pub(super) struct Pass<'a> {
    /// Without a listener, chains of residual blocks run as one operation.
    pub watch: Option<Listener<'a>>,
    pub documents: Option<Documents>,
    pub precision: Precision,
    /// Whether blocks keep their input alone for the gradient.
    pub recompute: bool,
    /// Where gradients of weights go that candle need not know.
    pub gathered: Option<Gradients>,
    /// What is left out behind activations.
    pub dropout: Option<Dropout>,
}

/// The output of steps in turn.
pub(super) fn run(steps: &[Step], mut x: Tensor, pass: &mut Pass) -> Result<Tensor, Error> {
    let mut chain = None;
    for step in steps {
        // What is listened to runs node by node.
        if pass.watch.is_none()
            && let Some(next) = pass.fused(step, &x)
        {
            (x, chain) = pass.join(x, chain, next)?;
            continue;
        }
        x = pass.chain(x, chain.take())?;
        x = step.run(x, pass)?;
        let silent = matches!(
            step.operation,
            Operation::Sequential(_) | Operation::ZeroPrefix(_) | Operation::WithoutPrefix(_)
        );
        if !silent {
            x = pass.hear(step, Stage::Output, x)?;
        }
    }
    pass.chain(x, chain)
}

impl Pass<'_> {
    /// What the pass goes on with in place of a tensor, by whoever listens.
    pub(super) fn hear(&mut self, step: &Step, stage: Stage, x: Tensor) -> Result<Tensor, Error> {
        let seen = Seen { id: &step.id, path: &step.path, stage };
        match &mut self.watch {
            Some(Listener::All(tap)) => tap(seen, x),
            Some(Listener::Outputs(tap)) if stage == Stage::Output => tap(seen, x),
            Some(Listener::Outputs(_)) | None => Ok(x),
        }
    }

    /// What comes out of an activation, without what is left out.
    fn thinned(&self, step: &Step, x: Tensor) -> Result<Tensor, Error> {
        Ok(match self.dropout {
            Some(dropout) => ops::dropout(&x, dropout, &step.id.to_string())?,
            None => x,
        })
    }

    /// Whether someone hears of what is inside of nodes.
    fn is_heard_inside(&self) -> bool {
        matches!(self.watch, Some(Listener::All(_)))
    }

    /// The residual blocks of a step, if they can run as one operation in this pass.
    pub(super) fn blocks(&self, step: &Step) -> Option<Vec<FusedBlock>> {
        match &step.fused {
            // One operation leaves nothing out.
            _ if self.dropout.is_some() => None,
            Some(Fused::Blocks(blocks)) if self.precision == Precision::F32 => {
                blocks.iter().map(|block| block.within(self.documents.as_ref())).collect()
            }
            _ => None,
        }
    }

    /// What one operation runs of a step on `x`, if there is one in this pass. A chain of layers begins
    /// with an image, as all that it makes is one.
    fn fused(&self, step: &Step, x: &Tensor) -> Option<Fused> {
        match &step.fused {
            _ if self.dropout.is_some() => None,
            Some(Fused::Layers(layers)) if self.precision == Precision::F32 && x.rank() == 4 => {
                Some(Fused::Layers(layers.clone()))
            }
            _ => self.blocks(step).map(Fused::Blocks),
        }
    }

    /// A chain with what comes next; of another kind, it runs first.
    fn join(
        &self,
        x: Tensor,
        chain: Option<Fused>,
        next: Fused,
    ) -> Result<(Tensor, Option<Fused>), Error> {
        Ok(match (chain, next) {
            (Some(Fused::Blocks(mut chain)), Fused::Blocks(next)) => {
                chain.extend(next);
                (x, Some(Fused::Blocks(chain)))
            }
            (Some(Fused::Layers(mut chain)), Fused::Layers(next)) => {
                chain.extend(next);
                (x, Some(Fused::Layers(chain)))
            }
            (chain, next) => (self.chain(x, chain)?, Some(next)),
        })
    }

    fn chain(&self, x: Tensor, chain: Option<Fused>) -> Result<Tensor, Error> {
        let keep = !self.recompute;
        Ok(match chain {
            None => x,
            Some(Fused::Blocks(blocks)) => ops::chain(&x, &blocks, keep, self.gathered.as_ref())?,
            Some(Fused::Layers(layers)) => ops::image_chain(&x, &layers, self.precision, keep)?,
        })
    }

    fn linear(&self, x: &Tensor, map: &Linear) -> Result<Tensor, Error> {
        Ok(ops::linear(x, &map.weight, map.bias.as_ref(), self.precision)?)
    }
}

impl Step {
    /// The output of this node alone.
    pub(super) fn run(&self, x: Tensor, pass: &mut Pass) -> Result<Tensor, Error> {
        Ok(match &self.operation {
            Operation::Sequential(body) => run(body, x, pass)?,
            Operation::Parallel(branches) => self.parallel(branches, &x, pass)?,
            Operation::Residual { skip, branch, body } => {
                ops::residual(&x, &run(body, x.clone(), pass)?, *skip, *branch)?
            }
            Operation::Linear(map) => {
                let x = pass.hear(self, Stage::Operand, x)?;
                pass.linear(&x, map)?
            }
            Operation::Embedding(table) => ops::embedding(table, &x)?,
            Operation::Positions(table) => x.broadcast_add(&table.narrow(0, 0, x.dim(1)?)?)?,
            Operation::Activation { function, scale } => {
                pass.thinned(self, ops::activation(&x, *function, *scale)?)?
            }
            Operation::Scale(factor) => (x * *factor)?,
            Operation::SoftCap(cap) => ops::soft_cap(&x, *cap)?,
            Operation::Clip(limit) => ops::clip(&x, *limit)?,
            Operation::Attention(layer) => {
                let x = pass.hear(self, Stage::Operand, x)?;
                layer.run(&x, self, pass)?
            }
            Operation::OffsetAttention { value, shares, offsets } => {
                let x = pass.hear(self, Stage::Operand, x)?;
                let values = pass.hear(self, Stage::Value, pass.linear(&x, value)?)?;
                ops::look_back(&values, shares, offsets)?
            }
            Operation::Conv(c, map) => {
                let x = pass.hear(self, Stage::Operand, x)?;
                ops::convolution(&x, &map.weight, map.bias.as_ref(), c, pass.precision)?
            }
            Operation::Shift { offsets, circular } => ops::shift(&x, offsets, *circular)?,
            Operation::SpaceToDepth(size) => ops::space_to_depth(&x, *size)?,
            Operation::Pool(pool) => ops::pool(&x, pool)?,
            Operation::GlobalPool(pooling) => ops::global_pool(&x, *pooling)?,
            Operation::MaxMin if x.rank() == 4 => {
                let y = ops::image_chain(&x, &[ops::ImageLayer::MaxMin], pass.precision, true)?;
                pass.thinned(self, y)?
            }
            Operation::MaxMin => pass.thinned(self, ops::max_min(&x)?)?,
            Operation::RmsNorm(norm) => norm.run(&x, NormKind::Rms)?,
            Operation::LayerNorm(norm) => norm.run(&x, NormKind::Layer)?,
            Operation::Normalise(eps) => ops::normalise(&x, *eps)?,
            Operation::GatedMlp { gate, up, down, function } => {
                let x = pass.hear(self, Stage::Operand, x)?;
                let gate = pass.linear(&x, gate)?;
                let gate = pass.hear(self, Stage::Gate, gate)?;
                let up = pass.linear(&x, up)?;
                let up = pass.hear(self, Stage::Up, up)?;
                let open = ops::activation(&gate, *function, 1.0)?;
                let open = pass.hear(self, Stage::OpenGate, open)?;
                let hidden = pass.hear(self, Stage::Hidden, pass.thinned(self, (open * up)?)?)?;
                pass.linear(&hidden, down)?
            }
            Operation::ClassToken(token) => class_token(token, x)?,
            Operation::FirstToken => x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            Operation::LastToken => x.narrow(1, last(&x)?, 1)?.squeeze(1)?.contiguous()?,
            Operation::FirstAndMean => {
                let (first, others) = (x.narrow(1, 0, 1)?, x.narrow(1, 1, x.dim(1)? - 1)?);
                Tensor::cat(&[first.squeeze(1)?, others.mean(1)?], 1)?
            }
            Operation::Flatten => x.flatten_from(1)?,
            Operation::Patches(size) => patches(&x, *size)?,
            Operation::MeanPool => x.mean(1)?,
            Operation::ZeroPrefix(count) => x.pad_with_zeros(1, *count, 0)?,
            Operation::WithoutPrefix(count) => {
                x.narrow(1, *count, x.dim(1)? - count)?.contiguous()?
            }
        })
    }

    /// The sum of the branches' outputs.
    fn parallel(&self, branches: &[Step], x: &Tensor, pass: &mut Pass) -> Result<Tensor, Error> {
        let mut sum: Option<Tensor> = None;
        for branch in branches {
            let y = run(std::slice::from_ref(branch), x.clone(), pass)?;
            sum = Some(match sum {
                // The last sum is heard as the node's output.
                Some(sum) => (pass.hear(self, Stage::Output, sum)? + y)?,
                None => y,
            });
        }
        // A graph has no sum of nothing.
        sum.ok_or_else(|| Error::graph("", "(parallel) has no branches"))
    }
}

/// The number of the last token of `[batch, tokens, dim]`.
fn last(x: &Tensor) -> candle_core::Result<usize> {
    match x.dim(1)?.checked_sub(1) {
        Some(last) => Ok(last),
        None => candle_core::bail!("no tokens, of which the last is wanted"),
    }
}

impl Norm {
    /// `γ ∘ n(x) + β`, where an absent γ is 1 and an absent β is 0.
    fn run(&self, x: &Tensor, kind: NormKind) -> Result<Tensor, Error> {
        let gain = match &self.gain {
            Some(gain) => gain.clone(),
            None => Tensor::ones(x.dim(D::Minus1)?, x.dtype(), x.device())?,
        };
        Ok(match (kind, &self.bias) {
            (NormKind::Layer, bias) => ops::layer_norm(x, &gain, bias.as_ref(), self.eps)?,
            (NormKind::Rms, None) => ops::rms_norm(x, &gain, self.eps)?,
            (NormKind::Rms, Some(bias)) => {
                ops::rms_norm(x, &gain, self.eps)?.broadcast_add(bias)?
            }
        })
    }
}

/// `token`, `[dim]`, in front of the others, `[batch, tokens, dim]`.
fn class_token(token: &Tensor, x: Tensor) -> candle_core::Result<Tensor> {
    let dim = token.dim(0)?;
    let token = token.reshape((1, 1, dim))?.broadcast_as((x.dim(0)?, 1, dim))?.contiguous()?;
    Tensor::cat(&[token, x], 1)
}

/// Images `[batch, channels, height, width]` as `[batch, patches, channels·size²]`.
fn patches(x: &Tensor, size: usize) -> candle_core::Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (rows, columns) = (h / size, w / size);
    let squares = x.reshape((b, c, rows, size, columns, size))?.permute((0, 2, 4, 1, 3, 5))?;
    squares.contiguous()?.reshape((b, rows * columns, c * size * size))
}

impl AttentionLayer {
    /// `output_scale · W_O · concat_h softmax(…) v_h`, see [`crate::graph::Attention`].
    fn run(&self, x: &Tensor, step: &Step, pass: &mut Pass) -> Result<Tensor, Error> {
        let a = &self.config;
        let (batch, tokens, _) = x.dims3()?;
        let (heads, shared) = (a.heads, a.key_value_heads);
        let query = self.project(x, &self.query, step, Stage::Query, heads, pass)?;
        let query = self.normed(query, self.query_norm.as_ref(), heads)?;
        let query = self.heard(query, step, [Stage::NormedQuery, Stage::TurnedQuery], pass)?;
        let key = self.project(x, &self.key, step, Stage::Key, shared, pass)?;
        let key = self.normed(key, self.key_norm.as_ref(), shared)?;
        let key = self.heard(key, step, [Stage::NormedKey, Stage::TurnedKey], pass)?;
        let value = self.project(x, &self.value, step, Stage::Value, shared, pass)?;
        let learned = match (&self.position_bias, a.position_bias) {
            (Some(table), Some(bias)) => Some(ops::position_bias(table, bias, a.causal, tokens)?),
            _ => None,
        };
        let slopes = a.alibi.as_ref().map(|alibi| ops::alibi(alibi, tokens, x)).transpose()?;
        let bias = match (learned, slopes) {
            (Some(learned), Some(slopes)) => Some((learned + slopes)?),
            (learned, slopes) => learned.or(slopes),
        };
        let documents = pass.documents.clone();
        let scores = Scores {
            scale: a.logit_scale,
            cap: a.logit_cap,
            bias: bias.as_ref(),
            mask: self.mask(),
            documents: documents.as_ref(),
            precision: pass.precision,
        };
        let mixed = if pass.is_heard_inside() {
            ops::staged(&query, &key, &value, &scores, &mut |stage, x| pass.hear(step, stage, x))?
        } else {
            ops::attention(&query, &key, &value, &scores)?
        };
        let mixed = mixed.reshape((batch, tokens, a.heads * a.head_dim))?;
        let mixed = pass.hear(step, Stage::Mixed, mixed)?;
        let y = pass.linear(&mixed, &self.output)?;
        if a.output_scale == 1.0 {
            return Ok(y);
        }
        // The bias is inside the scale: `output_scale · (W_O o + b_O)`.
        Ok((pass.hear(step, Stage::Projected, y)? * a.output_scale)?)
    }

    /// Queries, keys or values, `[batch, tokens, heads, head_dim]`.
    fn project(
        &self,
        x: &Tensor,
        map: &Linear,
        step: &Step,
        stage: Stage,
        heads: usize,
        pass: &mut Pass,
    ) -> Result<Tensor, Error> {
        let y =
            pass.linear(x, map)?.reshape((x.dim(0)?, x.dim(1)?, heads, self.config.head_dim))?;
        pass.hear(step, stage, y)
    }

    /// Queries or keys, normalised by this norm.
    fn normed(&self, y: Tensor, norm: Option<&Norm>, heads: usize) -> Result<Tensor, Error> {
        let a = &self.config;
        let shape = y.dims4()?;
        let (batch, tokens, ..) = shape;
        let y = match (norm, a.query_key_span) {
            (None, _) => y,
            (Some(norm), Span::Head) => norm.run(&y, a.query_key_kind)?,
            (Some(norm), Span::Heads) => {
                let wide = y.reshape((batch, tokens, heads * a.head_dim))?;
                norm.run(&wide, a.query_key_kind)?
            }
            (Some(norm), Span::EachHead) => {
                let ones = Norm { gain: None, bias: None, eps: norm.eps };
                let y = ones.run(&y, a.query_key_kind)?;
                let own = |w: &Tensor| w.reshape((heads, a.head_dim));
                let y = match &norm.gain {
                    Some(gain) => y.broadcast_mul(&own(gain)?)?,
                    None => y,
                };
                match &norm.bias {
                    Some(bias) => y.broadcast_add(&own(bias)?)?,
                    None => y,
                }
            }
        };
        Ok(y.reshape(shape)?)
    }

    /// Normalised queries or keys with their positions, each heard where there is such a thing.
    fn heard(
        &self,
        y: Tensor,
        step: &Step,
        [normed, turned]: [Stage; 2],
        pass: &mut Pass,
    ) -> Result<Tensor, Error> {
        let y = if self.query_norm.is_some() { pass.hear(step, normed, y)? } else { y };
        match &self.config.rotary {
            Some(rotary) => pass.hear(step, turned, ops::rotary(&y, rotary)?),
            None => Ok(y),
        }
    }

    fn mask(&self) -> Mask {
        match (self.config.causal, self.config.window) {
            (true, None) => Mask::Causal,
            (false, None) => Mask::None,
            (causal, Some(window)) => Mask::Near { window, causal },
        }
    }
}
