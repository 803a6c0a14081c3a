//! A function of each matrix of a stack, all stacks at once.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::fused::fused;
use super::real::Real;
use super::storage::with_slices;

/// A function of a matrix.
pub trait MatrixMap: Sync {
    /// `out` from `x`, both row-major `[rows, columns]`; products on all cores if `parallel`.
    fn run<T: Real>(&self, x: &[T], out: &mut [T], rows: usize, columns: usize, parallel: bool);
}

/// Each map of each matrix of its `[…, rows, columns]`, all at once; none where the fused kernels
/// do not run: other devices and float types.
///
/// # Errors
/// Candle's own.
pub fn each_matrix<M: MatrixMap>(jobs: &[(M, Tensor)]) -> Result<Option<Vec<Tensor>>> {
    fn run<T: Real, M: MatrixMap>(jobs: &[(M, Tensor)]) -> Result<Vec<Tensor>> {
        let inputs =
            jobs.iter().map(|(_, x)| x.detach().contiguous()).collect::<Result<Vec<_>>>()?;
        let mut outputs: Vec<Vec<T>> =
            inputs.iter().map(|x| vec![T::of(0.0); x.elem_count()]).collect();
        with_slices::<T, _>(&inputs.iter().collect::<Vec<_>>(), |slices| {
            let mut tasks = Vec::new();
            for (((map, x), input), out) in jobs.iter().zip(slices).zip(&mut outputs) {
                let &[.., rows, columns] = x.dims() else {
                    bail!("{:?} are no matrices", x.dims())
                };
                let size = (rows * columns).max(1);
                tasks.extend(
                    out.chunks_mut(size)
                        .zip(input.chunks(size))
                        .map(|(out, x)| (map, x, out, rows, columns)),
                );
            }
            // A product of a few matrices is worth splitting, of many is not; either way the bits
            // are the same.
            let few = tasks.len() < 2 * rayon::current_num_threads();
            let one = |(map, x, out, rows, columns): (&M, _, _, _, _)| {
                map.run::<T>(x, out, rows, columns, few)
            };
            if few {
                tasks.into_iter().for_each(one);
            } else {
                tasks.into_par_iter().with_max_len(1).for_each(one);
            }
            Ok(())
        })??;
        outputs
            .into_iter()
            .zip(&inputs)
            .map(|(out, x)| Tensor::from_vec(out, x.shape(), x.device()))
            .collect()
    }
    let inputs: Vec<&Tensor> = jobs.iter().map(|(_, x)| x).collect();
    Ok(match inputs.first() {
        Some(first) if fused(&inputs) => Some(if first.dtype() == DType::F32 {
            run::<f32, M>(jobs)?
        } else {
            run::<f64, M>(jobs)?
        }),
        _ => None,
    })
}
