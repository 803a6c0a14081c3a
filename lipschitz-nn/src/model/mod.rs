//! A graph with weights: the network that runs.

mod gradient;
mod input;
mod program;
mod run;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

use crate::Error;
use crate::graph::{Graph, Input, NodeId, Parameter, Stage};
use crate::linalg::Precision;
use crate::ops::Documents;
use crate::weights::{Weights, check_finite, fits};
use program::Program;
use run::{Listener, Pass, run};

pub use run::Seen;

/// A network that runs: a [`Graph`] and its weights, all on one device and of one float type.
#[derive(Clone, Debug)]
pub struct Model {
    graph: Graph,
    weights: Weights,
    program: Program,
    recompute: bool,
    precision: Precision,
    /// Of a network without weights, which has none of their own.
    dtype: DType,
}

impl Model {
    /// Joins a graph and its weights.
    ///
    /// # Errors
    /// [`Error::Weight`] names a weight that is missing, unknown to the graph, or of the wrong
    /// shape or type.
    pub fn new(graph: Graph, weights: Weights) -> Result<Self, Error> {
        let found =
            weights.iter().map(|(name, w)| (name.as_str(), (w.dims(), w.dtype()))).collect();
        fits(&graph, &found)?;
        let program = program::lower(&graph, &weights);
        let (precision, dtype) = (Precision::F32, DType::F32);
        Ok(Self { graph, weights, program, recompute: false, precision, dtype })
    }

    /// The same network on other weights of the same names and shapes.
    fn on(&self, weights: Weights) -> Self {
        let program = program::lower(&self.graph, &weights);
        Self { graph: self.graph.clone(), weights, program, ..*self }
    }

    /// A graph with the weights that `vb` gives under the graph's names.
    ///
    /// # Errors
    /// [`Error::Candle`] if `vb` lacks a weight, [`Error::Weight`] as in [`Model::new`].
    pub fn from_var_builder(graph: Graph, vb: &VarBuilder) -> Result<Self, Error> {
        let get = |p: &Parameter| Ok((p.name.clone(), vb.get(p.shape.as_slice(), &p.name)?));
        let weights = graph.parameters().iter().map(get).collect::<Result<_, Error>>()?;
        Self::new(graph, weights)
    }

    /// A graph with the variables of a candle program.
    ///
    /// Takes exactly the graph's weights: a name that the map lacks is an error, and so is one that
    /// the graph lacks. The weights are the map's as they are now; later training does not change
    /// the model.
    ///
    /// # Errors
    /// [`Error::Weight`] as in [`Model::new`].
    pub fn from_var_map(graph: Graph, variables: &VarMap) -> Result<Self, Error> {
        let variables = variables
            .data()
            .lock()
            .map_err(|_| candle_core::Error::Msg("the VarMap's lock is poisoned".into()))?;
        let weight =
            |(name, v): (&String, &Var)| Ok((name.clone(), v.as_tensor().detach().copy()?));
        Self::new(graph, variables.iter().map(weight).collect::<Result<_, Error>>()?)
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

    /// The float type of the weights; of a network without any, that of [`Model::to`], f32 before.
    pub fn dtype(&self) -> DType {
        self.weights.values().next().map_or(self.dtype, Tensor::dtype)
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
        Ok(Self { dtype, ..self.on(weights).with_precision(Precision::F32) })
    }

    /// The same network on weights that record no gradient, for evaluation; shares their storage.
    #[must_use]
    pub fn detached(&self) -> Self {
        let weights = self.weights.iter().map(|(name, w)| (name.clone(), w.detach())).collect();
        self.on(weights)
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
        Ok((self.on(weights), variables))
    }

    /// The same network, whose gradient recomputes the activations of each block instead of keeping
    /// them from the forward pass: a third more work for a fraction of the memory.
    #[must_use]
    pub fn recomputing(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// The same network, whose products of activations with weights, and of queries, keys and
    /// values, are computed at this precision.
    #[must_use]
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
        run(&self.program, self.input(x)?, &mut pass)
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
        let mut tap = |seen: Seen<'_>, x: Tensor| watch(seen.path, &x).map(|()| x);
        let watch = Some(Listener::Outputs(&mut tap));
        let mut pass = Pass { watch, ..self.pass(x)? };
        run(&self.program, self.input(x)?, &mut pass)
    }

    /// As [`Model::forward`], one operation at a time: `tap` is given every tensor of
    /// [`Graph::sites`], and the pass goes on with what it gives in its place.
    ///
    /// # Errors
    /// As [`Model::forward`], and what `tap` gives.
    pub fn forward_tapped(
        &self,
        x: &Tensor,
        tap: &mut dyn FnMut(Seen<'_>, Tensor) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let mut input = self.input(x)?;
        if !matches!(self.graph.input(), Input::Tokens { .. }) {
            let seen = Seen { id: &NodeId::default(), path: "", stage: Stage::Input };
            input = tap(seen, input)?;
        }
        let mut pass = Pass { watch: Some(Listener::All(tap)), ..self.pass(x)? };
        run(&self.program, input, &mut pass)
    }

    /// As [`Model::forward_tapped`] for embedding vectors instead of token ids, which `tap` is given
    /// as the output of the embedding.
    ///
    /// # Errors
    /// As [`Model::forward_embeddings`], and what `tap` gives.
    pub fn forward_embeddings_tapped(
        &self,
        x: &Tensor,
        tap: &mut dyn FnMut(Seen<'_>, Tensor) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        input::check_embeddings(&self.graph, x)?;
        let mut pass = Pass { watch: Some(Listener::All(tap)), ..self.plain_pass() };
        let x = x.to_dtype(self.dtype())?;
        let x = pass.hear(&self.program[0], Stage::Output, x)?;
        run(&self.program[1..], x, &mut pass)
    }

    /// A pass without documents or a listener.
    fn plain_pass<'a>(&self) -> Pass<'a> {
        let (precision, recompute) = (self.precision, self.recompute);
        Pass { watch: None, documents: None, precision, recompute, gathered: None, dropout: None }
    }

    /// The context of a pass on `x`, which is checked.
    fn pass<'a>(&self, x: &Tensor) -> Result<Pass<'a>, Error> {
        input::check(&self.graph, x)?;
        let documents = match self.graph.input() {
            Input::Tokens { separator: Some(id), .. } => Some(Documents::new(x, id)?),
            _ => None,
        };
        Ok(Pass { documents, ..self.plain_pass() })
    }

    /// What the first node reads.
    fn input(&self, x: &Tensor) -> Result<Tensor, Error> {
        match self.graph.input() {
            Input::Tokens { .. } => Ok(x.clone()),
            _ => Ok(x.to_dtype(self.dtype())?),
        }
    }

    /// The embedding vectors `[batch, tokens, dim]` of token ids `[batch, tokens]`: the points that
    /// the certificate of a language model is about.
    ///
    /// # Errors
    /// [`Error::Input`] if the graph reads no tokens or these do not fit it.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor, Error> {
        match (self.graph.input(), self.program.first()) {
            (Input::Tokens { .. }, Some(embedding)) => {
                input::check(&self.graph, tokens)?;
                embedding.run(tokens.clone(), &mut self.plain_pass())
            }
            _ => Err(input::no_embedding()),
        }
    }

    /// The output for embedding vectors `[batch, tokens, dim]` instead of token ids; each sequence
    /// is one document.
    ///
    /// # Errors
    /// [`Error::Input`] if the graph reads no tokens, or the shape does not fit.
    pub fn forward_embeddings(&self, x: &Tensor) -> Result<Tensor, Error> {
        input::check_embeddings(&self.graph, x)?;
        run(&self.program[1..], x.to_dtype(self.dtype())?, &mut self.plain_pass())
    }
}

impl candle_nn::Module for Model {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        Model::forward(self, x).map_err(|e| candle_core::Error::Msg(e.to_string()))
    }
}
