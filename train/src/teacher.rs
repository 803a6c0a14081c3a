//! Knowledge distillation: trained networks whose probabilities a run learns, beside the right classes
//! or in their place.
//!
//! With logits z, the right class y, a share s and a temperature τ,
//!
//! ```text
//! loss = (1 − s) · cross-entropy(z, y) + s · τ² · cross-entropy(z/τ, p),   p = mean softmax(teacher/τ)
//! ```
//!
//! (Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015.) Teachers need no
//! certificate and may be of any family: what is proven is a matter of the weights that come out, not of what
//! they have learned from.

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax;
use lipschitz_certify::certificate;
use lipschitz_certify::{load, open};
use lipschitz_data::{DataSet, Predicts, check_causal, check_vocabulary};
use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::graph::{Input, Shape};
use lipschitz_nn::{Graph, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::config::Config;
use crate::error::Within;
use crate::loss::Taught;

/// Trained networks to learn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Run directories, checkpoints or third-party models, of the same inputs and classes. Of several,
    /// the mean of their probabilities is learned.
    pub models: Vec<PathBuf>,
    /// The share of the loss that is theirs; the rest is that of the right classes.
    #[serde(default = "one")]
    pub share: f64,
    /// What their logits and the network's own are divided by.
    #[serde(default = "one")]
    pub temperature: f64,
}

fn one() -> f64 {
    1.0
}

impl TeacherConfig {
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// One line that names the key and the range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let no = |what: String| Err(Error::Config(what));
        if self.models.is_empty() {
            return no(NONE.into());
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return no(format!(
                "teacher.share is {}; it must be above 0 and at most 1",
                self.share
            ));
        }
        if !(1e-3..=1e3).contains(&self.temperature) {
            let t = self.temperature;
            return no(format!("teacher.temperature is {t}; it must be from 1e-3 to 1e3"));
        }
        Ok(())
    }
}

const NONE: &str = "teacher.models is empty; name a trained model, or leave [teacher] out";

/// The graphs of the teachers of a config, each of which can teach this network on this data; what is not
/// known of the data is not checked, and no weights are read.
///
/// # Errors
/// One line that names the model and what does not fit.
pub fn check(
    config: &Config,
    graph: &Graph,
    data: Option<&dyn DataSet>,
) -> Result<Vec<Graph>, Error> {
    if config.teacher.is_some() && data.is_some_and(|d| d.predicts() == Predicts::Numbers) {
        let what = "the section [teacher] is about classes, and the data has numbers to predict";
        return Err(Error::Config(format!("{what}; leave it out")));
    }
    let one = |path: &PathBuf| {
        let opened = open(path)?;
        let meta = opened.meta();
        let named = |what| Err(Error::Config(what)).within(path.display());
        fits(&meta.graph, graph).or_else(named)?;
        data.map_or(Ok(()), |data| agree(meta, data)).or_else(named)?;
        if let Some((vocabulary, data)) = meta.graph.vocabulary().zip(data) {
            check_vocabulary(vocabulary, data).within(path.display())?;
        }
        check_causal(&meta.graph).within(path.display())?;
        Ok(meta.graph.clone())
    };
    let models = config.teacher.iter().flat_map(|teacher| &teacher.models);
    let graphs: Result<_, Error> = models.map(one).collect();
    graphs.within("teacher.models")
}

/// Whether no teacher lies in the directory of the run, which would replace it.
///
/// # Errors
/// One line that names it.
pub(crate) fn check_apart(config: &Config, out: &Path) -> Result<(), Error> {
    let Ok(out) = out.canonicalize() else { return Ok(()) };
    let within = |path: &&PathBuf| path.canonicalize().is_ok_and(|path| path.starts_with(&out));
    let mut models = config.teacher.iter().flat_map(|teacher| &teacher.models);
    match models.find(within) {
        Some(path) => Err(Error::TeacherInside(path.clone())),
        None => Ok(()),
    }
}

/// Whether a teacher reads what the network reads and has as many outputs; what does not fit, in words.
fn fits(theirs: &Graph, ours: &Graph) -> Result<(), String> {
    if theirs.outputs() != ours.outputs() {
        let (a, b) = (theirs.outputs(), ours.outputs());
        return Err(format!("has {a} classes, and the network has {b}"));
    }
    let tokens = |graph: &Graph| matches!(graph.output(), Shape::Tokens(_));
    if tokens(theirs) != tokens(ours) {
        return Err("has one output for a sequence where the network has one for each token, or \
                    the other way round"
            .into());
    }
    match (theirs.input(), ours.input()) {
        (Input::Tokens { context: a, .. }, Input::Tokens { context: b, .. }) if a < b => {
            return Err(format!("reads {a} tokens at most, and the network {b}"));
        }
        (Input::Tokens { .. }, Input::Tokens { .. }) => {}
        (a, b) if a == b => {}
        _ => return Err("reads other inputs than the network".into()),
    }
    Ok(())
}

/// Whether what is known of a teacher's tokens and classes is that of the data; what is not, in words.
fn agree(meta: &Meta, data: &dyn DataSet) -> Result<(), String> {
    let known = meta.tokenizer.as_ref().zip(data.tokenizer());
    if known.is_some_and(|(a, b)| a != b) {
        return Err("has another tokenizer than the data".into());
    }
    if !meta.classes.is_empty() && !data.classes().is_empty() && meta.classes != data.classes() {
        return Err("has other classes than the data, or in another order".into());
    }
    Ok(())
}

/// SHA-256 of what a teacher computes: of its weights' [digest](certificate::digest) and its graph as JSON.
///
/// # Errors
/// A weight that cannot be read, or is not finite.
pub fn digest(teacher: &Model) -> Result<String, Error> {
    let mut hash = Sha256::new();
    hash.update(certificate::digest(teacher)?);
    hash.update(serde_json::to_vec(teacher.graph())?);
    Ok(hex::encode(hash.finalize()))
}

/// Trained networks that a run learns from.
#[derive(Debug)]
pub struct Teacher {
    share: f64,
    temperature: f64,
    models: Vec<Model>,
    digests: Vec<String>,
}

impl Teacher {
    /// The teachers of a config, if it has any.
    ///
    /// # Errors
    /// A model that cannot be read.
    pub(crate) fn load(config: &Config, device: &Device) -> Result<Option<Self>, Error> {
        let Some(TeacherConfig { models, share, temperature }) = &config.teacher else {
            return Ok(None);
        };
        let one = |path: &PathBuf| {
            let (model, _) = load(path, device)?;
            // Of the weights as they are stored. They are computed with in f32.
            let digest = digest(&model)?;
            let model = model.to(device, DType::F32)?.with_precision(config.train.precision);
            Ok((model, digest))
        };
        let read: Result<Vec<_>, Error> = models.iter().map(one).collect();
        let (models, digests) = read.within("teacher.models")?.into_iter().unzip();
        Ok(Some(Self { share: *share, temperature: *temperature, models, digests }))
    }

    /// The [`digest`] of each.
    pub(crate) fn digests(&self) -> &[String] {
        &self.digests
    }

    /// What the teachers say of a batch.
    ///
    /// # Errors
    /// Probabilities that are not finite, as of weights so large that f32 overflows; candle's own.
    pub(crate) fn taught(&self, x: &Tensor) -> Result<Taught, Error> {
        let one = |model: &Model| {
            let logits = model.forward(x)?;
            let flat = logits.reshape(((), logits.dim(D::Minus1)?))?;
            Ok::<_, Error>(softmax(&(flat / self.temperature)?, D::Minus1)?.detach())
        };
        let [first, others @ ..] = &self.models[..] else {
            return Err(Error::Config(NONE.into()));
        };
        let sum = others.iter().try_fold(one(first)?, |sum, m| Ok::<_, Error>((sum + one(m)?)?))?;
        let probabilities = (sum / self.models.len() as f64)?;
        if !probabilities.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?.is_finite() {
            let what = "teacher.models: probabilities are not finite; take another teacher";
            return Err(Error::Config(what.into()));
        }
        Ok(Taught { probabilities, share: self.share, temperature: self.temperature })
    }
}
