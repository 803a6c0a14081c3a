//! A graph with weights: the forward pass.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;

use crate::graph::{Attention, Graph, Input, Node, Op, Parameter, Span, join};
use crate::ops::Precision;
use crate::{Error, ops};

/// Weights by their path through the graph.
pub type Weights = BTreeMap<String, Tensor>;

/// Hears the path of each node and its output.
type Listener<'a> = &'a mut dyn FnMut(&str, &Tensor) -> Result<(), Error>;

/// What goes along with a forward pass.
#[derive(Default)]
pub(crate) struct Pass<'a> {
    /// Without a listener, residual blocks can run as one operation.
    watch: Option<Listener<'a>>,
    documents: Option<ops::Documents>,
}

/// A network that runs: a [`Graph`] and its weights, all on one device and of one float type.
#[derive(Clone, Debug)]
pub struct Model {
    graph: Graph,
    weights: Weights,
    recompute: bool,
    precision: Precision,
}

impl Model {
    /// Joins a graph and its weights.
    ///
    /// # Errors
    /// [`Error::Graph`] if the graph does not fit together; [`Error::Weight`] names a weight that
    /// is missing, unknown to the graph, or of the wrong shape or type.
    pub fn new(graph: Graph, weights: Weights) -> Result<Self, Error> {
        let found =
            weights.iter().map(|(name, w)| (name.as_str(), (w.dims(), w.dtype()))).collect();
        fits(&graph, &found)?;
        Ok(Self { graph, weights, recompute: false, precision: Precision::F32 })
    }

    /// A graph with the weights that `vb` gives under the graph's names.
    ///
    /// # Errors
    /// [`Error::Candle`] if `vb` lacks a weight, [`Error::Graph`] as in [`Model::new`].
    pub fn from_var_builder(graph: Graph, vb: &VarBuilder) -> Result<Self, Error> {
        let get = |p: &Parameter| Ok((p.name.clone(), vb.get(p.shape.as_slice(), &p.name)?));
        let weights = graph.parameters().iter().map(get).collect::<Result<_, Error>>()?;
        Self::new(graph, weights)
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// How many numbers the weights hold.
    pub fn parameter_count(&self) -> usize {
        self.weights.values().map(Tensor::elem_count).sum()
    }

    /// The device that the weights are on.
    pub fn device(&self) -> Device {
        self.weights.values().next().map_or(Device::Cpu, |w| w.device().clone())
    }

    /// The float type of the weights.
    pub fn dtype(&self) -> DType {
        self.weights.values().next().map_or(DType::F32, Tensor::dtype)
    }

    /// The same network elsewhere, or in another float type, products too.
    ///
    /// # Errors
    /// [`Error::Candle`], such as a device out of memory.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self, Error> {
        let to = |(name, w): (&String, &Tensor)| {
            Ok((name.clone(), w.detach().to_device(device)?.to_dtype(dtype)?))
        };
        let weights = self.weights.iter().map(to).collect::<Result<_, Error>>()?;
        Ok(Self { weights, precision: Precision::F32, ..self.clone() })
    }

    /// The same network on weights that record no gradient, for evaluation; shares their storage.
    pub fn detached(&self) -> Self {
        let weights = self.weights.iter().map(|(name, w)| (name.clone(), w.detach())).collect();
        Self { weights, ..self.clone() }
    }

    /// The same network on fresh variables, in the order of the graph's parameters: setting a
    /// variable changes the model.
    ///
    /// # Errors
    /// [`Error::Candle`], such as a device out of memory.
    pub fn trainable(&self) -> Result<(Self, Vec<(Parameter, Var)>), Error> {
        let mut weights = Weights::new();
        let mut variables = Vec::new();
        for parameter in self.graph.parameters() {
            let variable = Var::from_tensor(&self.weights[&parameter.name].copy()?)?;
            weights.insert(parameter.name.clone(), variable.as_tensor().clone());
            variables.push((parameter, variable));
        }
        Ok((Self { weights, ..self.clone() }, variables))
    }

    /// The same network, whose gradient works a block's activations out again instead of keeping
    /// them from the forward pass: a third more work for a fraction of the memory.
    pub fn recomputing(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// The same network, whose products of activations with weights, and of queries, keys and
    /// values, are worked out in this.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Fails on the first weight that holds NaN or infinity.
    ///
    /// # Errors
    /// [`Error::Weight`] names it.
    pub fn check_finite(&self) -> Result<(), Error> {
        self.weights.iter().try_for_each(|(name, weight)| check_finite(name, weight))
    }

    /// The network's output.
    ///
    /// Takes token ids `[batch, tokens]` (any integer type), images `[batch, channels, height,
    /// width]` or vectors `[batch, dim]`, as the graph's input says, and gives `[batch, tokens,
    /// outputs]` or `[batch, outputs]`.
    ///
    /// # Errors
    /// [`Error::Input`] says what the graph reads instead; [`Error::Candle`] otherwise.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let mut pass = self.pass(x)?;
        self.sequence(self.graph.nodes(), "", self.input(x)?, &mut pass)
    }

    /// As [`Model::forward`]; `watch` hears the path of each node and its output.
    ///
    /// # Errors
    /// As [`Model::forward`], and what `watch` gives.
    pub fn forward_watched(
        &self,
        x: &Tensor,
        watch: &mut dyn FnMut(&str, &Tensor) -> Result<(), Error>,
    ) -> Result<Tensor, Error> {
        let mut pass = Pass { watch: Some(watch), ..self.pass(x)? };
        self.sequence(self.graph.nodes(), "", self.input(x)?, &mut pass)
    }

    /// What goes along with a pass on `x`, which is checked.
    pub(crate) fn pass<'a>(&self, x: &Tensor) -> Result<Pass<'a>, Error> {
        self.check_input(x)?;
        let documents = match self.graph.input() {
            Input::Tokens { separator: Some(id), .. } => Some(ops::Documents::new(x, id)?),
            _ => None,
        };
        Ok(Pass { watch: None, documents })
    }

    /// What the first node reads.
    pub(crate) fn input(&self, x: &Tensor) -> Result<Tensor, Error> {
        match self.graph.input() {
            Input::Tokens { .. } => Ok(x.clone()),
            _ => Ok(x.to_dtype(self.dtype())?),
        }
    }

    pub(crate) fn recomputes(&self) -> bool {
        self.recompute
    }

    /// The embedding vectors `[batch, tokens, dim]` of token ids `[batch, tokens]`: the points that
    /// a certificate of a language model speaks of.
    ///
    /// # Errors
    /// [`Error::Input`] if the graph reads no tokens or these do not fit it.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor, Error> {
        match (self.graph.input(), self.graph.nodes().first()) {
            (Input::Tokens { .. }, Some(node)) => {
                self.check_input(tokens)?;
                self.node(node, "", tokens.clone(), &mut Pass::default())
            }
            _ => Err(Error::Input("this network has no embedding; it reads numbers".into())),
        }
    }

    /// The output for embedding vectors `[batch, tokens, dim]` instead of token ids; each sequence
    /// is one document.
    ///
    /// # Errors
    /// [`Error::Input`] if the graph reads no tokens, or the shape does not fit.
    pub fn forward_embeddings(&self, x: &Tensor) -> Result<Tensor, Error> {
        let (Input::Tokens { context, .. }, Some(Op::Embedding { dim, .. })) =
            (self.graph.input(), self.graph.nodes().first().map(|n| &n.op))
        else {
            return Err(Error::Input("this network has no embedding; it reads numbers".into()));
        };
        match *x.dims() {
            [_, tokens, width] if width == *dim && (1..=context).contains(&tokens) => {}
            ref found => {
                return Err(Error::Input(format!(
                    "embeddings are {found:?}, wanted [batch, 1…{context}, {dim}]"
                )));
            }
        }
        self.sequence(&self.graph.nodes()[1..], "", x.to_dtype(self.dtype())?, &mut Pass::default())
    }

    fn check_input(&self, x: &Tensor) -> Result<(), Error> {
        let found = x.dims();
        match self.graph.input() {
            Input::Tokens { context, .. } => {
                let [_, tokens] = *found else {
                    return Err(Error::Input(format!(
                        "token ids are {found:?}, wanted [batch, tokens]"
                    )));
                };
                if !x.dtype().is_int() {
                    return Err(Error::Input(format!(
                        "token ids are {:?}, wanted an integer type",
                        x.dtype()
                    )));
                }
                if tokens == 0 || tokens > context {
                    return Err(Error::Input(format!(
                        "a sequence has {tokens} tokens, the network reads 1 to {context}; cut it"
                    )));
                }
                if let Some(Op::Embedding { vocabulary, .. }) =
                    self.graph.nodes().first().map(|n| &n.op)
                    && x.elem_count() > 0
                {
                    let ids = x.to_dtype(DType::I64)?.flatten_all()?;
                    let (low, high) =
                        (ids.min(0)?.to_scalar::<i64>()?, ids.max(0)?.to_scalar::<i64>()?);
                    if low < 0 || high >= *vocabulary as i64 {
                        let worst = if low < 0 { low } else { high };
                        return Err(Error::Input(format!(
                            "token id {worst} is outside the vocabulary of {vocabulary}"
                        )));
                    }
                }
                Ok(())
            }
            Input::Pixels { channels, height, width } => match *found {
                [_, c, h, w] if (c, h, w) == (channels, height, width) => Ok(()),
                _ => Err(Error::Input(format!(
                    "pixels are {found:?}, wanted [batch, {channels}, {height}, {width}]"
                ))),
            },
            Input::Vector { dim } => match *found {
                [_, d] if d == dim => Ok(()),
                _ => Err(Error::Input(format!("vectors are {found:?}, wanted [batch, {dim}]"))),
            },
        }
    }

    pub(crate) fn sequence(
        &self,
        nodes: &[Node],
        prefix: &str,
        mut x: Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor, Error> {
        let mut chain = Vec::new();
        for node in nodes {
            // What is listened to runs node by node.
            let before = chain.len();
            if pass.watch.is_none() && self.link(node, prefix, pass, &mut chain) {
                continue;
            }
            chain.truncate(before);
            x = self.run_chain(x, &mut chain)?;
            x = self.node(node, prefix, x, pass)?;
            if let Some(watch) = &mut pass.watch {
                watch(&node.path(prefix), &x)?;
            }
        }
        self.run_chain(x, &mut chain)
    }

    fn run_chain(&self, x: Tensor, chain: &mut Vec<ops::Block>) -> Result<Tensor, Error> {
        if chain.is_empty() {
            Ok(x)
        } else {
            Ok(ops::chain(&x, &std::mem::take(chain), !self.recompute)?)
        }
    }

    fn weight(&self, path: &str, name: &str) -> &Tensor {
        // `new` has checked that every parameter of the graph is there.
        &self.weights[&join(path, name)]
    }

    fn linear(&self, x: &Tensor, path: &str, bias: bool) -> Result<Tensor, Error> {
        let bias = bias.then(|| self.weight(path, "bias"));
        Ok(ops::linear(x, self.weight(path, "weight"), bias, self.precision)?)
    }

    /// One node's output.
    pub(crate) fn node(
        &self,
        node: &Node,
        prefix: &str,
        x: Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor, Error> {
        let path = node.path(prefix);
        Ok(match &node.op {
            Op::Sequential { body } => self.sequence(body, &path, x, pass)?,
            Op::Residual { skip, branch, body } => {
                ops::residual(&x, &self.sequence(body, &path, x.clone(), pass)?, *skip, *branch)?
            }
            Op::Linear { bias, .. } => self.linear(&x, &path, *bias)?,
            Op::Embedding { .. } => ops::embedding(self.weight(&path, "weight"), &x)?,
            Op::Positions { .. } => {
                let table = self.weight(&path, "weight").narrow(0, 0, x.dim(1)?)?;
                x.broadcast_add(&table)?
            }
            Op::Activation { function, scale } => ops::activation(&x, *function, *scale)?,
            Op::Scale { factor } => (x * *factor)?,
            Op::SoftCap { cap } => ops::soft_cap(&x, *cap)?,
            Op::Clip { limit } => ops::clip(&x, *limit)?,
            Op::Attention(a) => self.attention(a, &path, &x, pass.documents.as_ref())?,
            Op::RmsNorm { eps, .. } => ops::rms_norm(&x, self.weight(&path, "weight"), *eps)?,
            Op::LayerNorm { eps, bias, .. } => {
                let bias = bias.then(|| self.weight(&path, "bias"));
                ops::layer_norm(&x, self.weight(&path, "weight"), bias, *eps)?
            }
            Op::GatedMlp { function, bias, .. } => {
                let gate = self.linear(&x, &join(&path, "gate"), *bias)?;
                let up = self.linear(&x, &join(&path, "up"), *bias)?;
                let product = (ops::activation(&gate, *function, 1.0)? * up)?;
                self.linear(&product, &join(&path, "down"), *bias)?
            }
            Op::Flatten => x.flatten_from(1)?,
            Op::Patches { size } => {
                let (b, c, h, w) = x.dims4()?;
                let (rows, columns) = (h / size, w / size);
                let squares =
                    x.reshape((b, c, rows, *size, columns, *size))?.permute((0, 2, 4, 1, 3, 5))?;
                squares.contiguous()?.reshape((b, rows * columns, c * size * size))?
            }
            Op::MeanPool => x.mean(1)?,
            Op::ClassToken { dim } => {
                let token = self.weight(&path, "weight").reshape((1, 1, *dim))?;
                Tensor::cat(&[token.broadcast_as((x.dim(0)?, 1, *dim))?.contiguous()?, x], 1)?
            }
            Op::FirstToken => x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            Op::FirstAndMean => {
                let (first, others) = (x.narrow(1, 0, 1)?, x.narrow(1, 1, x.dim(1)? - 1)?);
                Tensor::cat(&[first.squeeze(1)?, others.mean(1)?], 1)?
            }
        })
    }

    /// Adds a node's blocks to a chain, if it consists of blocks for which there is one operation.
    pub(crate) fn link(
        &self,
        node: &Node,
        prefix: &str,
        pass: &Pass,
        chain: &mut Vec<ops::Block>,
    ) -> bool {
        if self.precision != Precision::F32 {
            return false;
        }
        let path = node.path(prefix);
        let block = match &node.op {
            Op::Sequential { body } => {
                return body.iter().all(|node| self.link(node, &path, pass, chain));
            }
            Op::Attention(a) => self.attention_block(a, &path, pass, 0.0, 1.0),
            Op::Residual { skip, branch, body } => match &body[..] {
                [
                    Node { name: up, op: Op::Linear { bias: false, .. } },
                    Node { op: Op::Activation { function, scale }, .. },
                    Node { name: down, op: Op::Linear { bias: false, .. } },
                ] => {
                    let block = ops::MlpBlock {
                        function: *function,
                        scale: *scale,
                        skip: *skip,
                        branch: *branch,
                    };
                    let weights =
                        [up, down].map(|name| self.weight(&join(&path, name), "weight").clone());
                    Some(ops::Block::Perceptron(block, weights))
                }
                [Node { name, op: Op::Attention(a) }] => {
                    self.attention_block(a, &join(&path, name), pass, *skip, *branch)
                }
                _ => None,
            },
            _ => None,
        };
        let found = block.is_some();
        chain.extend(block);
        found
    }

    /// `skip·x + branch·attention(x)`, if there is one operation for it.
    fn attention_block(
        &self,
        a: &Attention,
        path: &str,
        pass: &Pass,
        skip: f64,
        branch: f64,
    ) -> Option<ops::Block> {
        if !plain(a) || !(a.causal || pass.documents.is_none()) {
            return None;
        }
        let block = ops::AttentionBlock {
            heads: a.heads,
            key_value_heads: a.key_value_heads,
            logit_scale: a.logit_scale,
            causal: a.causal,
            rotary: a.rotary.clone(),
            skip,
            branch: branch * a.output_scale,
            documents: pass.documents.clone(),
        };
        let weights = ["query", "key", "value", "output"]
            .map(|name| self.weight(&join(path, name), "weight").clone());
        let table = |bias| (bias, self.weight(path, "position_bias.weight").clone());
        Some(ops::Block::Attention(block, weights, a.position_bias.map(table)))
    }

    fn attention(
        &self,
        a: &Attention,
        path: &str,
        x: &Tensor,
        documents: Option<&ops::Documents>,
    ) -> Result<Tensor, Error> {
        let (batch, tokens, _) = x.dims3()?;
        let project = |name: &str, heads: usize| -> Result<Tensor, Error> {
            let shape = (batch, tokens, heads, a.head_dim);
            let y = self.linear(x, &join(path, name), a.bias)?;
            let y = match a.query_key_norm {
                Some(eps) if name != "value" => {
                    let y = if a.query_key_span == Span::Head { y.reshape(shape)? } else { y };
                    ops::rms_norm(&y, self.weight(path, &format!("{name}_norm.weight")), eps)?
                }
                _ => y,
            };
            let y = y.reshape(shape)?;
            match &a.rotary {
                Some(rotary) if name != "value" => Ok(ops::rotary(&y, rotary)?),
                _ => Ok(y),
            }
        };
        let (query, key) = (project("query", a.heads)?, project("key", a.key_value_heads)?);
        let value = project("value", a.key_value_heads)?;
        let mask = match (a.causal, a.window) {
            (true, None) => ops::Mask::Causal,
            (false, None) => ops::Mask::None,
            (causal, Some(window)) => ops::Mask::Near { window, causal },
        };
        let bias = match a.position_bias {
            Some(bias) => Some(ops::position_bias(
                self.weight(path, "position_bias.weight"),
                bias,
                a.causal,
                tokens,
            )?),
            None => None,
        };
        let (scale, cap, bias, precision) =
            (a.logit_scale, a.logit_cap, bias.as_ref(), self.precision);
        let scores = ops::Scores { scale, cap, bias, mask, documents, precision };
        let mixed = ops::attention(&query, &key, &value, &scores)?;
        let mixed = mixed.reshape((batch, tokens, a.heads * a.head_dim))?;
        let y = self.linear(&mixed, &join(path, "output"), a.output_bias)?;
        // The bias is inside the scale: `output_scale · (W_O o + b_O)`.
        Ok(if a.output_scale == 1.0 { y } else { (y * a.output_scale)? })
    }
}

/// Whether attention has none of what [`ops::attention_block`] leaves out.
fn plain(a: &Attention) -> bool {
    !a.bias
        && !a.output_bias
        && a.query_key_norm.is_none()
        && a.logit_cap.is_none()
        && a.window.is_none()
}

impl candle_nn::Module for Model {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        Model::forward(self, x).map_err(|e| candle_core::Error::Msg(e.to_string()))
    }
}

/// Whether weights of these names, shapes and types are those of a graph; see [`Model::new`].
pub(crate) fn fits(graph: &Graph, found: &BTreeMap<&str, (&[usize], DType)>) -> Result<(), Error> {
    let parameters = graph.parameters();
    let mut first = None;
    for Parameter { name, shape, .. } in &parameters {
        let (dims, dtype) =
            *found.get(name.as_str()).ok_or_else(|| Error::weight(name, "is missing"))?;
        if dims != shape {
            return Err(Error::weight(
                name,
                format!("has shape {dims:?}, the graph wants {shape:?}"),
            ));
        }
        let wanted = *first.get_or_insert(dtype);
        if !dtype.is_float() || dtype != wanted {
            return Err(Error::weight(name, format!("is {dtype:?}, the first weight {wanted:?}")));
        }
    }
    if found.len() != parameters.len() {
        let known: std::collections::HashSet<_> =
            parameters.iter().map(|p| p.name.as_str()).collect();
        if let Some(name) = found.keys().find(|name| !known.contains(*name)) {
            return Err(Error::weight(name, "is not in the graph"));
        }
    }
    Ok(())
}

/// Fails if a tensor holds NaN or infinity.
///
/// # Errors
/// [`Error::Weight`] names it.
pub fn check_finite(name: &str, weight: &Tensor) -> Result<(), Error> {
    // 0·x is 0 for finite x alone.
    let weight = weight.detach();
    let zero = (&weight * 0.0)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    if zero == 0.0 {
        return Ok(());
    }
    let largest = weight.to_dtype(DType::F64)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
    let what = if largest.is_infinite() { "infinity" } else { "NaN" };
    Err(Error::weight(
        name,
        format!("holds {what}; the checkpoint is damaged or training diverged"),
    ))
}
