//! What training, evaluation and certificates ask of a data set.

use candle_core::{Device, Tensor};
use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::graph::Input;

use crate::Error;

/// Inputs of a network and their targets: token ids `[batch, context]` with those one ahead; or
/// pixels `[batch, channels, height, width]` or vectors `[batch, numbers]` with classes `[batch]` or
/// numbers `[batch, outputs]`.
pub type Batch = (Tensor, Tensor);

/// Batches, one after the other.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch, Error>> + 'a>;

/// Which part of the held-out split is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// All of it.
    Full,
    /// The published protocol, of text alone: the first 1,280 windows at stride 1, which is an easy
    /// stretch.
    Paper,
}

/// What targets are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Predicts {
    /// One of several classes, or a token: cross-entropy.
    #[default]
    Classes,
    /// Numbers: mean squared error.
    Numbers,
}

/// Data to learn from, with a split that is held out.
///
/// Where a network reads tokens, `context` is the length of a window; other data ignores it.
pub trait DataSet: Send + Sync {
    /// The file or the generator, for messages.
    fn name(&self) -> &str;

    /// Size of the vocabulary, number of classes, or numbers of a target.
    fn outputs(&self) -> usize;

    /// The input of a network for this data, where the data decides its size.
    fn input(&self) -> Option<Input> {
        None
    }

    /// What targets are.
    fn predicts(&self) -> Predicts {
        Predicts::Classes
    }

    /// What the classes are called, in order; empty where nothing says it.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// SHA-256 of the data, in hexadecimal.
    fn digest(&self) -> &str;

    /// How text becomes tokens, for text.
    fn tokenizer(&self) -> Option<&Tokenizer> {
        None
    }

    /// Whether a network with this input can be trained on the data.
    ///
    /// # Errors
    /// [`Error::Misfit`] if it reads something else; [`Error::NoWindow`] if the data is shorter
    /// than its context.
    fn check(&self, input: Input) -> Result<(), Error>;

    /// The training batches of a seed, in their order.
    ///
    /// # Errors
    /// [`Error::ReadsNoTokens`] if the data needs a context and there is none.
    fn training(
        &self,
        seed: u64,
        context: Option<usize>,
    ) -> Result<Box<dyn TrainingBatches + '_>, Error>;

    /// Inputs of the held-out split: images, or tokens of the text.
    fn held_out_len(&self) -> usize;

    /// The held-out split in order, in batches of this size; the last ones may be smaller.
    ///
    /// # Errors
    /// If the data is too short for the protocol, or has no such protocol.
    fn held_out(
        &self,
        protocol: Protocol,
        batch_size: usize,
        context: Option<usize>,
        device: &Device,
    ) -> Result<Batches<'_>, Error>;
}

/// One kind of data, as a config asks for it.
pub trait DataKind {
    /// Whether every value is in its range, before anything is loaded.
    ///
    /// # Errors
    /// One line that names the key and the range.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Loads the data.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    fn load(&self) -> Result<Box<dyn DataSet>, Error>;

    /// Loads as little of the data as shows whether a config fits it.
    ///
    /// # Errors
    /// As [`DataKind::load`].
    fn load_little(&self) -> Result<Box<dyn DataSet>, Error> {
        self.load()
    }

    /// Whether a network with this input reads the data.
    fn reads(&self, input: Input) -> bool;

    /// [`DataSet::outputs`], where the config alone says it, and with it the input.
    fn outputs(&self) -> Option<usize> {
        None
    }

    /// [`DataSet::input`], where the config alone says it.
    fn input(&self) -> Option<Input> {
        None
    }
}

/// The training batches of one data set under one seed.
pub trait TrainingBatches: Send {
    /// The batch of `step`, from 0: a function of seed and step alone. What an implementation keeps
    /// between calls makes it quick and never decides what it gives.
    ///
    /// # Errors
    /// If the data cannot fill a batch, or the device refuses.
    fn batch(&mut self, step: u64, batch_size: usize, device: &Device) -> Result<Batch, Error>;
}
