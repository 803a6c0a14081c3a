//! Several documents in one sequence.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor};

/// Where the document of each token begins: attention stays within a document.
#[derive(Clone, Debug)]
pub struct Documents {
    starts: Arc<[u32]>,
    tokens: usize,
    /// What the layers of a pass add to their logits, made by the first.
    mask: Arc<OnceLock<Tensor>>,
}

impl Documents {
    /// Of token ids `[batch, tokens]`: a document begins with each `separator` and with each
    /// sequence.
    ///
    /// # Errors
    /// Another shape, and candle's own.
    pub fn new(ids: &Tensor, separator: u32) -> Result<Self> {
        let tokens = ids.dim(1)?;
        let mut starts = Vec::with_capacity(ids.elem_count());
        for row in ids.to_dtype(DType::I64)?.to_vec2::<i64>()? {
            let mut start = 0;
            starts.extend(row.into_iter().zip(0..).map(|(id, at)| {
                if id == i64::from(separator) {
                    start = at;
                }
                start
            }));
        }
        Ok(Self { starts: starts.into(), tokens, mask: Arc::default() })
    }

    /// The beginnings for one sequence.
    pub(super) fn of_sequence(&self, sequence: usize) -> &[u32] {
        &self.starts[sequence * self.tokens..][..self.tokens]
    }

    /// All beginnings, `[batch, tokens]`, on a device.
    pub(super) fn starts(&self, device: &Device) -> Result<Tensor> {
        let shape = (self.starts.len() / self.tokens.max(1), self.tokens);
        Tensor::from_slice(&self.starts, shape, device)
    }

    /// What is added to logits `[batch, heads, tokens, tokens]`: −∞ between documents, `[batch, 1,
    /// tokens, tokens]`.
    pub(super) fn mask(&self, logits: &Tensor) -> Result<Tensor> {
        let fits = |mask: &&Tensor| {
            mask.dtype() == logits.dtype() && mask.device().same_device(logits.device())
        };
        if let Some(mask) = self.mask.get().filter(fits) {
            return Ok(mask.clone());
        }
        let t = self.tokens;
        let one = |starts: &[u32]| {
            let hidden =
                |i: usize| if starts[i / t] == starts[i % t] { 0.0 } else { f32::NEG_INFINITY };
            (0..t * t).map(hidden).collect::<Vec<_>>()
        };
        let all: Vec<f32> = self.starts.chunks(t.max(1)).flat_map(one).collect();
        let shape = (self.starts.len() / t.max(1), 1, t, t);
        let mask = Tensor::from_vec(all, shape, logits.device())?.to_dtype(logits.dtype())?;
        let _ = self.mask.set(mask.clone());
        Ok(mask)
    }
}
