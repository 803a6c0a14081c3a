//! A task: data with its loss, its evaluation, and points to probe a trained network at.

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Tensor};
use lipschitz_nn::checkpoint::{Meta, Tokenizer};
use lipschitz_nn::graph::{Input, Op};
use lipschitz_nn::{Model, ops};

use crate::cifar10::{CLASSES, Cifar10, Limits};
use crate::order::Shuffle;
use crate::text::{TextData, read};
use crate::{play, shards};

/// What a network learns.
pub enum Task {
    /// The next token of a text.
    Text(TextData),
    /// The class of a picture.
    Images(Box<Cifar10>),
}

/// Which part of the held-out split is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// All of it.
    Full,
    /// The published protocol, of text alone: the first 1,280 windows at stride 1, which is an easy
    /// stretch.
    Paper,
}

/// Figures over a held-out split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, nats.
    pub loss: f64,
    /// Share of predictions whose largest logit is right.
    pub accuracy: f64,
    /// How many predictions.
    pub count: usize,
    /// Median over predictions of the largest logit less the next.
    pub margin: f64,
}

/// The order of the training data; keeps what makes it quick, never what decides it.
pub enum Order {
    /// Windows of a text.
    Text(u64),
    /// Shuffled epochs.
    Images(Shuffle),
}

/// Seed of the generated plays.
const PLAY_SEED: u64 = 1;

impl Task {
    /// Generated plays of this many characters.
    ///
    /// # Errors
    /// If there are too few to learn from.
    pub fn play(characters: usize) -> Result<Self> {
        Ok(Self::Text(TextData::from_text("play", &play::text(PLAY_SEED, characters), None)?))
    }

    /// Loads data for a trained model, with the model's own tokenizer.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn for_model(path: &Path, meta: &Meta) -> Result<Self> {
        match (meta.graph.input(), &meta.tokenizer) {
            (Input::Tokens { .. }, _) if path.is_dir() => {
                let vocabulary = match meta.graph.nodes().first().map(|node| &node.op) {
                    Some(Op::Embedding { vocabulary, .. }) => Some(*vocabulary),
                    _ => None,
                };
                Ok(Self::Text(shards::load(path, vocabulary, None)?))
            }
            (Input::Tokens { .. }, Some(tokenizer)) => {
                let text = read(path)?;
                Ok(Self::Text(TextData::from_text(
                    &path.display().to_string(),
                    &text,
                    Some(tokenizer.clone()),
                )?))
            }
            (Input::Tokens { .. }, None) => {
                bail!(
                    "the checkpoint holds no tokenizer, so text cannot be read for it; give a \
                     directory of token shards"
                )
            }
            (Input::Pixels { .. }, _) => Ok(Self::Images(Box::new(Cifar10::load(
                path,
                Limits { train: Some(1), test: None },
            )?))),
            (Input::Vector { .. }, _) => {
                bail!("the model reads vectors; evaluate models of text or CIFAR-10")
            }
        }
    }

    /// Size of the vocabulary, or number of classes.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Text(data) => data.vocabulary,
            Self::Images(_) => CLASSES,
        }
    }

    /// How text becomes tokens, for text.
    pub fn tokenizer(&self) -> Option<Tokenizer> {
        match self {
            Self::Text(data) => data.tokenizer.clone(),
            Self::Images(_) => None,
        }
    }

    /// SHA-256 of the data.
    pub fn digest(&self) -> String {
        match self {
            Self::Text(data) => data.digest.clone(),
            Self::Images(data) => data.digest.clone(),
        }
    }

    /// Whether windows of this length can be cut from the data.
    ///
    /// # Errors
    /// If not.
    pub fn check_context(&self, context: usize) -> Result<()> {
        match self {
            Self::Text(data) => data.batch(0, 0, 1, context, &Device::Cpu).map(|_| ()),
            Self::Images(_) => Ok(()),
        }
    }

    /// The order of the training data under a seed.
    pub fn order(&self, seed: u64) -> Order {
        match self {
            Self::Text(_) => Order::Text(seed),
            Self::Images(data) => Order::Images(Shuffle::new(seed, data.train.len())),
        }
    }

    /// Loss and accuracy on the held-out split.
    ///
    /// # Errors
    /// If the data does not fit the model.
    pub fn evaluate(
        &self,
        model: &Model,
        protocol: Protocol,
        batch_size: usize,
        device: &Device,
    ) -> Result<Evaluation> {
        let mut total = Total::default();
        match self {
            Self::Text(data) => {
                let Some(context) = model.graph().context() else {
                    bail!("the model reads no tokens")
                };
                let batches = match protocol {
                    Protocol::Full => data.full(batch_size, context, device),
                    Protocol::Paper => data.paper(batch_size, context, device)?,
                };
                for batch in batches {
                    let (x, y) = batch?;
                    total.add(&model.forward(&x)?, &y)?;
                }
            }
            Self::Images(_) if protocol == Protocol::Paper => {
                bail!("the `paper` protocol reads text; images are evaluated by `full`")
            }
            Self::Images(data) => {
                for batch in data.test.batches(batch_size.max(256), device) {
                    let (x, y) = batch?;
                    total.add(&model.forward(&x)?, &y)?;
                }
            }
        }
        total.mean()
    }

    /// A few inputs of the held-out split, as points that a certificate speaks of: embedding
    /// vectors, or pixels.
    ///
    /// # Errors
    /// If the data does not fit the model.
    pub fn starts(&self, model: &Model) -> Result<Tensor> {
        match self {
            Self::Text(data) => {
                let Some(context) = model.graph().context() else {
                    bail!("the model reads no tokens")
                };
                let Some(first) = data.full(2, context.min(64), &model.device()).next() else {
                    bail!("{}: the held-out split is empty", data.name)
                };
                Ok(model.embed(&first?.0)?)
            }
            Self::Images(data) => {
                let indices: Vec<usize> = (0..data.test.len().min(16)).collect();
                Ok(data.test.batch(&indices, &model.device())?.0)
            }
        }
    }
}

impl Order {
    /// The training batch of `step`: a function of seed and step alone.
    ///
    /// # Errors
    /// If the data cannot fill a batch.
    pub fn batch(
        &mut self,
        task: &Task,
        step: u64,
        batch_size: usize,
        context: Option<usize>,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        match (self, task) {
            (Self::Text(seed), Task::Text(data)) => {
                let Some(context) = context else { bail!("the model reads no tokens") };
                data.batch(*seed, step, batch_size, context, device)
            }
            (Self::Images(shuffle), Task::Images(data)) => {
                Ok(data.train.batch(&shuffle.batch(step, batch_size), device)?)
            }
            _ => bail!("the order belongs to another task"),
        }
    }
}

#[derive(Default)]
struct Total {
    loss: f64,
    right: f64,
    count: usize,
    margins: Vec<f32>,
}

impl Total {
    fn add(&mut self, logits: &Tensor, targets: &Tensor) -> Result<()> {
        let targets = targets.flatten_all()?;
        let flat = logits.reshape((targets.dim(0)?, ()))?;
        let n = targets.dim(0)?;
        let found = ops::cross_entropy(&flat, &targets)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.loss += found[0] * n as f64;
        self.right += (found[1] * n as f64).round();
        self.count += n;
        self.margins.extend(margins(&flat)?);
        Ok(())
    }

    fn mean(mut self) -> Result<Evaluation> {
        if self.count == 0 {
            bail!("the held-out split is empty; give more data")
        }
        let n = self.count as f64;
        let middle = self.count / 2;
        let margin = f64::from(*self.margins.select_nth_unstable_by(middle, f32::total_cmp).1);
        Ok(Evaluation { loss: self.loss / n, accuracy: self.right / n, count: self.count, margin })
    }
}

/// The largest logit less the next, of each prediction `[n, outputs]`.
fn margins(logits: &Tensor) -> Result<Vec<f32>> {
    let outputs = logits.dim(D::Minus1)?;
    let all = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let margin = |row: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for z in row {
            if *z > first {
                (first, second) = (*z, first);
            } else if *z > second {
                second = *z;
            }
        }
        first - second
    };
    Ok(all.chunks(outputs.max(1)).map(margin).collect())
}
