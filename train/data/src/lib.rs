//! What networks are trained on: text, token shards, generated plays, images and tensors.
//!
//! ```
//! use candle_core::Device;
//! use lipschitz_data::play::PlayConfig;
//! use lipschitz_data::{DataSet, DataKind};
//!
//! # fn main() -> Result<(), lipschitz_data::Error> {
//! let data = PlayConfig { characters: 20_000 }.load()?;
//! let (seed, context) = (0, 64);
//! let (inputs, targets) = data.training(seed, Some(context))?.batch(3, 8, &Device::Cpu)?;
//! assert_eq!(inputs.dims(), [8, 64]);
//! assert_eq!(targets.dims(), [8, 64]);
//! # Ok(())
//! # }
//! ```
//!
//! A [`DataSet`] says its own shape and gives training batches in an order that is a pure function
//! of seed and step ([`order`]), so a resumed run sees what an uninterrupted one would have seen.
//! Its held-out split is predicted by [`evaluate`]. Each [`DataKind`] of data is one file with the
//! config that loads it; [`DataConfig`] lists them.

pub mod augment;
mod caught;
pub mod cifar;
pub mod codec;
mod config;
pub mod corpus;
mod cuts;
mod data_set;
mod decode;
mod error;
mod evaluation;
pub mod examples;
mod growth;
mod held_out;
pub mod idx;
pub mod images;
pub mod memory;
pub mod order;
pub mod play;
pub mod shard;
pub mod shards;
pub mod tensors;
pub mod text;
pub mod tokens;

pub use candle_core;

pub use config::{DataConfig, for_model, of_run};
pub use corpus::Corpus;
pub use data_set::{Batch, Batches, DataKind, DataSet, Predicts, Protocol, TrainingBatches};
pub use error::Error;
pub use evaluation::{
    Evaluation, check_causal, check_outputs, check_vocabulary, evaluate, evaluate_as,
    evaluation_size, starts,
};

use sha2::{Digest, Sha256};

/// SHA-256 in hexadecimal of byte strings put one behind the other.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_is_the_published_one_however_the_bytes_are_cut() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::digest([b"abc".as_slice()]), abc);
        assert_eq!(super::digest([b"a".as_slice(), b"", b"bc"]), abc);
    }
}
