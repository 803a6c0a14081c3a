//! Rows of a table.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::ROWS;
use super::kernel::{Array, Kernel, apply};
use crate::linalg::{Real, fused};

/// Row `ids[i]` of `table`, `[vocabulary, dim]`, for each of the `[…]` token ids: `[…, dim]`.
///
/// # Errors
/// An id beyond the table, and candle's own.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    if !fused(&[table]) {
        return composed(table, ids);
    }
    let shape = ids.dims().to_vec();
    let ids = ids.to_dtype(candle_core::DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    apply(Embedding { shape, ids }, &[table], true)
}

/// The same out of candle's operations.
///
/// # Errors
/// Candle's own.
pub fn composed(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let mut shape = ids.dims().to_vec();
    shape.push(table.dim(1)?);
    table.index_select(&ids.to_dtype(candle_core::DType::U32)?.flatten_all()?, 0)?.reshape(shape)
}

struct Embedding {
    shape: Vec<usize>,
    ids: Vec<u32>,
}

impl Kernel for Embedding {
    const NAME: &'static str = "embedding";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        let &[rows, dim] = inputs[0] else { bail!("embedding: the table is {:?}", inputs[0]) };
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= rows) {
            bail!("embedding: token id {id} is outside the table of {rows} rows")
        }
        Ok(self.shape.iter().copied().chain([dim]).collect())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        let (table, dim) = (inputs[0].data, inputs[0].width());
        let mut out = vec![T::of(0.0); self.ids.len() * dim];
        out.par_chunks_mut(ROWS * dim).zip(self.ids.par_chunks(ROWS)).for_each(|(out, ids)| {
            for (out, id) in out.chunks_mut(dim).zip(ids) {
                out.copy_from_slice(&table[*id as usize * dim..][..dim]);
            }
        });
        (out, ())
    }

    /// Touches only the rows that were read.
    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        let dim = inputs[0].width();
        let mut out = vec![T::of(0.0); inputs[0].data.len()];
        // In order, so that sums do not depend on the number of threads.
        for (grad, id) in grad.chunks(dim).zip(&self.ids) {
            for (out, g) in out[*id as usize * dim..][..dim].iter_mut().zip(grad) {
                *out += *g;
            }
        }
        vec![out]
    }
}
