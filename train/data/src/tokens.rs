//! Token ids, in memory or in shards on disk, and windows of them.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::shard::Shard;
use crate::{Batch, Error};

/// Token ids in memory, in no more bytes each than their vocabulary needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Ids below 2⁸.
    U8(Vec<u8>),
    /// Ids below 2¹⁶.
    U16(Vec<u16>),
    /// Any ids.
    U32(Vec<u32>),
}

impl Ids {
    /// None yet, of a vocabulary that all to come are below; with room for so many.
    pub fn new(vocabulary: usize, capacity: usize) -> Self {
        match vocabulary {
            0..=0x100 => Self::U8(Vec::with_capacity(capacity)),
            0x101..=0x1_0000 => Self::U16(Vec::with_capacity(capacity)),
            _ => Self::U32(Vec::with_capacity(capacity)),
        }
    }

    /// Appends an id, which must be below the vocabulary.
    pub fn push(&mut self, id: u32) {
        match self {
            Self::U8(ids) => ids.push(id as u8),
            Self::U16(ids) => ids.push(id as u16),
            Self::U32(ids) => ids.push(id),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(ids) => ids.len(),
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends those of a range, which must lie within them.
    fn read(&self, places: std::ops::Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::U8(ids) => out.extend(ids[places].iter().map(|id| u32::from(*id))),
            Self::U16(ids) => out.extend(ids[places].iter().map(|id| u32::from(*id))),
            Self::U32(ids) => out.extend_from_slice(&ids[places]),
        }
    }
}

impl FromIterator<u32> for Ids {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        Self::U32(ids.into_iter().collect())
    }
}

/// A sequence of token ids.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// In memory.
    Memory(Ids),
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
    ///
    /// # Errors
    /// One line that names the shard, if it can no longer be read.
    pub fn read(&self, start: usize, count: usize, out: &mut Vec<u32>) -> Result<(), Error> {
        let end = start.saturating_add(count).min(self.len());
        let start = start.min(end);
        match self {
            Self::Memory(ids) => ids.read(start..end, out),
            Self::Shards(shards, _) => {
                let mut first = 0;
                for shard in shards {
                    let (from, to) = (start.max(first), end.min(first + shard.len()));
                    if from < to {
                        shard.read(from - first..to - first, out)?;
                    }
                    first += shard.len();
                }
            }
        }
        Ok(())
    }

    /// All of them.
    ///
    /// # Errors
    /// As [`Tokens::read`].
    pub fn to_vec(&self) -> Result<Vec<u32>, Error> {
        let mut out = Vec::with_capacity(self.len());
        self.read(0, self.len(), &mut out)?;
        Ok(out)
    }

    /// The windows of `length` tokens from `starts`, and the same one token later: u32
    /// `[windows, length]` each.
    ///
    /// # Errors
    /// If a window reaches beyond the end, or as [`Tokens::read`]; candle's error if the device
    /// refuses.
    pub fn windows(
        &self,
        starts: &[usize],
        length: usize,
        device: &Device,
    ) -> Result<Batch, Error> {
        let numbers = starts.len().saturating_mul(length.min(self.len()));
        let (mut x, mut y) = (Vec::with_capacity(numbers), Vec::with_capacity(numbers));
        let mut window = Vec::new();
        for start in starts {
            window.clear();
            self.read(*start, length.saturating_add(1), &mut window)?;
            x.extend_from_slice(&window[..length.min(window.len())]);
            y.extend(window.get(1..).into_iter().flatten());
        }
        let tensor = |ids| Tensor::from_vec(ids, (starts.len(), length), device);
        Ok((tensor(x)?, tensor(y)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_in_every_width() {
        for vocabulary in [1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 1 << 20] {
            let mut ids = Ids::new(vocabulary, 0);
            let wanted: Vec<u32> = (0..vocabulary as u32).rev().step_by(7).collect();
            wanted.iter().for_each(|id| ids.push(*id));
            assert_eq!(Tokens::Memory(ids).to_vec().unwrap(), wanted, "{vocabulary}");
        }
    }

    #[test]
    fn a_window_beyond_the_end_is_an_error() {
        let tokens = Tokens::Memory((0..5).collect());
        let (x, y) = tokens.windows(&[0, 1], 3, &Device::Cpu).unwrap();
        assert_eq!(x.to_vec2::<u32>().unwrap(), [[0, 1, 2], [1, 2, 3]]);
        assert_eq!(y.to_vec2::<u32>().unwrap(), [[1, 2, 3], [2, 3, 4]]);
        for (start, length) in [(2, 3), (9, 1), (0, usize::MAX), (usize::MAX, 2)] {
            assert!(tokens.windows(&[start], length, &Device::Cpu).is_err(), "{start} {length}");
        }
    }
}
