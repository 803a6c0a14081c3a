//! Inputs of one shape with their targets, in memory: images or vectors, classes or numbers.
//!
//! Bytes are given to networks as value / 255, in \[0, 1\], with nothing subtracted and no other
//! scale. So a Lipschitz constant and an attack radius speak of pixels in \[0, 1\]; a network that
//! wants another scale carries it as a layer, where the certificate counts it.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::Input;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::order::Shuffle;
use crate::{Batch, Batches, DataSet, Error, Predicts, Protocol, TrainingBatches};

/// The values of all inputs, one input after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Pixels; a network reads value / 255.
    Bytes(Vec<u8>),
    /// Read as they are.
    Floats(Vec<f32>),
    /// Those that f32 does not hold: proofs read them as they are, training rounds them.
    Doubles(Vec<f64>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Doubles(values) => values.len(),
        }
    }
}

/// What is to be predicted, of all inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// A class of each, from 0.
    Classes(Vec<u32>),
    /// `width` numbers of each.
    Numbers {
        /// How many of each input.
        width: usize,
        /// One input after the other.
        values: Vec<f32>,
    },
}

impl Targets {
    fn len(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.len(),
            Self::Numbers { width, values } => values.len() / (*width).max(1),
        }
    }
}

/// Inputs with their targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Of one input: `[channels, height, width]`, or `[numbers]`.
    pub shape: Vec<usize>,
    /// Of all inputs, row-major.
    pub values: Values,
    /// One for each input.
    pub targets: Targets,
}

impl Split {
    /// Images as bytes with their classes.
    pub fn images(shape: [usize; 3], pixels: Vec<u8>, classes: Vec<u32>) -> Self {
        let (values, targets) = (Values::Bytes(pixels), Targets::Classes(classes));
        Self { shape: shape.to_vec(), values, targets }
    }

    /// How many inputs there are.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of one input.
    fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Inputs by their numbers, as `(inputs, targets)`: f32 `[b, …shape]`, f64 where f32 does not hold
    /// them, and classes u32 `[b]` or numbers f32 `[b, width]`. For shuffled epochs take the numbers
    /// from [`Shuffle::batch`].
    ///
    /// # Errors
    /// One line that names a number out of range; candle's error if the device refuses.
    pub fn batch(&self, inputs: &[usize], device: &Device) -> Result<Batch, Error> {
        let size = self.size();
        let whole = self.len().checked_mul(size) == Some(self.values.len());
        if let Some(input) = inputs.iter().find(|input| !whole || **input >= self.len()) {
            let what = format!("there is no example {input}: the split has {}", self.len());
            return Err(lipschitz_nn::Error::Input(what).into());
        }
        let shape = [&[inputs.len()], &self.shape[..]].concat();
        let x = match &self.values {
            Values::Bytes(bytes) => {
                let values = gather(bytes, size, inputs, |byte| f32::from(byte) / 255.0);
                Tensor::from_vec(values, shape, device)?
            }
            Values::Floats(all) => {
                Tensor::from_vec(gather(all, size, inputs, |x| x), shape, device)?
            }
            Values::Doubles(all) => {
                Tensor::from_vec(gather(all, size, inputs, |x| x), shape, device)?
            }
        };
        let targets = match &self.targets {
            Targets::Classes(classes) => {
                let classes: Vec<u32> = inputs.iter().map(|i| classes[*i]).collect();
                Tensor::from_vec(classes, inputs.len(), device)?
            }
            Targets::Numbers { width, values } => {
                let numbers: Vec<f32> = inputs
                    .iter()
                    .flat_map(|i| &values[i * width..(i + 1) * width])
                    .copied()
                    .collect();
                Tensor::from_vec(numbers, (inputs.len(), *width), device)?
            }
        };
        Ok((x, targets))
    }

    /// All inputs once, in order, in batches like [`Split::batch`]'s; the last one may be smaller.
    pub fn batches(
        &self,
        batch_size: usize,
        device: &Device,
    ) -> impl Iterator<Item = Result<Batch, Error>> + use<'_> {
        let (size, device) = (batch_size.max(1), device.clone());
        (0..self.len()).step_by(size).map(move |start| {
            let inputs: Vec<usize> = (start..self.len().min(start + size)).collect();
            self.batch(&inputs, &device)
        })
    }

    /// Those of these numbers, in their order; numbers out of range are left out.
    #[must_use]
    pub fn choose(&self, inputs: &[usize]) -> Self {
        fn rows<T: Copy>(all: &[T], width: usize, inputs: &[usize]) -> Vec<T> {
            let row = |i: &usize| all.get(i * width..(i + 1) * width).unwrap_or_default();
            inputs.iter().flat_map(row).copied().collect()
        }
        let values = match &self.values {
            Values::Bytes(all) => Values::Bytes(rows(all, self.size(), inputs)),
            Values::Floats(all) => Values::Floats(rows(all, self.size(), inputs)),
            Values::Doubles(all) => Values::Doubles(rows(all, self.size(), inputs)),
        };
        let targets = match &self.targets {
            Targets::Classes(all) => Targets::Classes(rows(all, 1, inputs)),
            Targets::Numbers { width, values } => {
                Targets::Numbers { width: *width, values: rows(values, *width, inputs) }
            }
        };
        Self { shape: self.shape.clone(), values, targets }
    }

    /// Adds values and targets, as training reads them, to a digest; classes are a byte each if all are.
    fn hash(&self, hash: &mut Sha256) {
        fn words<T: Copy>(hash: &mut Sha256, all: &[T], bytes: impl Fn(T) -> [u8; 4]) {
            for part in all.chunks(4096) {
                hash.update(part.iter().flat_map(|x| bytes(*x)).collect::<Vec<u8>>());
            }
        }
        match &self.values {
            Values::Bytes(bytes) => hash.update(bytes),
            Values::Floats(values) => words(hash, values, f32::to_le_bytes),
            Values::Doubles(values) => words(hash, values, |x| (x as f32).to_le_bytes()),
        }
        match &self.targets {
            Targets::Classes(classes) => {
                let narrow: Result<Vec<u8>, _> = classes.iter().map(|c| u8::try_from(*c)).collect();
                match narrow {
                    Ok(bytes) => hash.update(bytes),
                    Err(_) => words(hash, classes, u32::to_le_bytes),
                }
            }
            Targets::Numbers { values, .. } => words(hash, values, f32::to_le_bytes),
        }
    }
}

/// Inputs of `size` numbers each, one after the other.
fn gather<T: Copy + Sync, U: Copy + Default + Send>(
    all: &[T],
    size: usize,
    inputs: &[usize],
    read: impl Fn(T) -> U + Sync,
) -> Vec<U> {
    let mut out = vec![U::default(); inputs.len() * size];
    out.par_chunks_mut(size.max(1)).zip(inputs).for_each(|(out, i)| {
        out.iter_mut().zip(&all[i * size..(i + 1) * size]).for_each(|(out, x)| *out = read(*x));
    });
    out
}

/// A data set of inputs with targets.
#[derive(Clone, Debug)]
pub struct Examples {
    /// The file or directory, for messages.
    pub name: String,
    /// What is trained on.
    pub train: Split,
    /// What is held out.
    pub test: Split,
    /// Classes, or numbers of a target.
    pub outputs: usize,
    /// What the classes are called; empty where nothing says it.
    pub classes: Vec<String>,
    /// SHA-256, in hexadecimal, of values and targets.
    pub digest: String,
}

impl Examples {
    /// A data set of two parts of one shape.
    pub fn new(
        name: String,
        [train, test]: [Split; 2],
        outputs: usize,
        classes: Vec<String>,
    ) -> Self {
        let digest = digest([&train, &test]);
        Self { name, train, test, outputs, classes, digest }
    }
}

/// SHA-256, in hexadecimal, of the values and targets of both parts.
pub(crate) fn digest(parts: [&Split; 2]) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| part.hash(&mut hash));
    hex::encode(hash.finalize())
}

/// The input of a network for examples of this shape: an image for three sizes, else a vector.
pub(crate) fn input(shape: &[usize]) -> Input {
    match *shape {
        [channels, height, width] => Input::Pixels { channels, height, width },
        ref other => Input::Vector { dim: other.iter().product() },
    }
}

impl DataSet for Examples {
    fn name(&self) -> &str {
        &self.name
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn input(&self) -> Option<Input> {
        Some(input(&self.train.shape))
    }

    fn predicts(&self) -> Predicts {
        match self.train.targets {
            Targets::Classes(_) => Predicts::Classes,
            Targets::Numbers { .. } => Predicts::Numbers,
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn check(&self, reads: Input) -> Result<(), Error> {
        let own = input(&self.train.shape);
        if reads == own { Ok(()) } else { Err(Error::misfit_of(reads, own)) }
    }

    fn training(
        &self,
        seed: u64,
        _context: Option<usize>,
    ) -> Result<Box<dyn TrainingBatches + '_>, Error> {
        let (examples, shuffle) = (&self.train, Shuffle::new(seed, self.train.len()));
        Ok(Box::new(Epochs { examples, shuffle }))
    }

    fn held_out_len(&self) -> usize {
        self.test.len()
    }

    fn held_out(
        &self,
        protocol: Protocol,
        batch_size: usize,
        _context: Option<usize>,
        device: &Device,
    ) -> Result<Batches<'_>, Error> {
        match protocol {
            Protocol::Full => Ok(Box::new(self.test.batches(batch_size, device))),
            Protocol::Paper => Err(Error::PaperReadsText),
        }
    }
}

/// Shuffled epochs.
struct Epochs<'a> {
    examples: &'a Split,
    shuffle: Shuffle,
}

impl TrainingBatches for Epochs<'_> {
    fn batch(&mut self, step: u64, batch_size: usize, device: &Device) -> Result<Batch, Error> {
        let (x, y) = self.examples.batch(&self.shuffle.batch(step, batch_size), device)?;
        Ok((x.to_dtype(DType::F32)?, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(values: Values, targets: Targets) -> Split {
        Split { shape: vec![2], values, targets }
    }

    #[test]
    fn bytes_are_shares_of_255_and_floats_stay() {
        let classes = Targets::Classes(vec![2, 0, 1]);
        let bytes = three(Values::Bytes(vec![0, 51, 102, 153, 204, 255]), classes.clone());
        let (x, y) = bytes.batch(&[2, 0], &Device::Cpu).unwrap();
        assert_eq!(x.to_vec2::<f32>().unwrap(), [[204.0 / 255.0, 1.0], [0.0, 0.2]]);
        assert_eq!(y.to_vec1::<u32>().unwrap(), [1, 2]);
        let numbers = Targets::Numbers { width: 1, values: vec![1.5, -2.0, 3.0] };
        let floats = three(Values::Floats(vec![-1.0, 2.0, 3.5, 4.0, 5.0, 6.0]), numbers);
        let (x, y) = floats.batch(&[1], &Device::Cpu).unwrap();
        assert_eq!(x.to_vec2::<f32>().unwrap(), [[3.5, 4.0]]);
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[-2.0]]);
        let said = floats.batch(&[3], &Device::Cpu).unwrap_err().to_string();
        assert!(said.contains("no example 3: the split has 3"), "{said}");
        let torn = three(Values::Bytes(vec![0; 5]), classes);
        assert!(torn.batch(&[0], &Device::Cpu).is_err());
    }

    #[test]
    fn chosen_examples_keep_their_targets() {
        let targets = Targets::Numbers { width: 2, values: vec![1., 2., 3., 4., 5., 6.] };
        let split = three(Values::Bytes(vec![1, 2, 3, 4, 5, 6]), targets);
        let chosen = split.choose(&[2, 0]);
        assert_eq!(chosen.values, Values::Bytes(vec![5, 6, 1, 2]));
        let wanted = Targets::Numbers { width: 2, values: vec![5., 6., 1., 2.] };
        assert_eq!(chosen.targets, wanted);
        assert!(split.choose(&[]).is_empty());
    }

    #[test]
    fn a_digest_sees_every_value_and_target() {
        let digest = |pixels: [u8; 4], classes: [u32; 2]| {
            let split = Split::images([1, 1, 2], pixels.to_vec(), classes.to_vec());
            Examples::new("d".into(), [split.clone(), split], 2, Vec::new()).digest
        };
        let first = digest([1, 2, 3, 4], [0, 1]);
        assert_eq!(first, digest([1, 2, 3, 4], [0, 1]));
        assert_ne!(first, digest([1, 2, 3, 5], [0, 1]));
        assert_ne!(first, digest([1, 2, 3, 4], [1, 1]));
        assert_ne!(first, digest([1, 2, 3, 4], [0, 300]));
    }
}
