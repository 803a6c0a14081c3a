//! Token ids, in memory or in shards on disk, and windows of them.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::shard::Shard;
use crate::{Batch, Error};

/// A sequence of token ids.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// In memory.
    Memory(Vec<u32>),
    /// The first tokens, this many, of shards one behind the other.
    Shards(Vec<Arc<Shard>>, usize),
}

impl Tokens {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(ids) => ids.len(),
            Self::Shards(_, count) => *count,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `count` ids from place `start` on, as many of them as there are.
    pub fn read(&self, start: usize, count: usize, out: &mut Vec<u32>) {
        let end = (start + count).min(self.len());
        let start = start.min(end);
        match self {
            Self::Memory(ids) => out.extend(&ids[start..end]),
            Self::Shards(shards, _) => {
                let mut first = 0;
                for shard in shards {
                    let (from, to) = (start.max(first), end.min(first + shard.len()));
                    if from < to {
                        out.extend(shard.ids(from - first..to - first));
                    }
                    first += shard.len();
                }
            }
        }
    }

    /// All of them.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.len());
        self.read(0, self.len(), &mut out);
        out
    }

    /// The windows of `length` tokens from `starts`, and the same one token later: u32
    /// `[windows, length]` each.
    ///
    /// # Errors
    /// If a window reaches beyond the end; candle's error if the device refuses.
    pub fn windows(
        &self,
        starts: &[usize],
        length: usize,
        device: &Device,
    ) -> Result<Batch, Error> {
        let from = |shift: usize| -> Result<Tensor, Error> {
            let mut ids = Vec::with_capacity(starts.len() * length);
            starts.iter().for_each(|start| self.read(start + shift, length, &mut ids));
            Ok(Tensor::from_vec(ids, (starts.len(), length), device)?)
        };
        Ok((from(0)?, from(1)?))
    }
}
