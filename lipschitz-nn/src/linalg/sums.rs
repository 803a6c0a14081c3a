//! Sums of squares, in the same order on any number of threads.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::CHUNK;
use super::fused::fused;
use super::real::Real;
use super::simd::{simd, sum};
use super::storage::with_slices;

/// Σ x², added in f64 and in the same order on any number of threads.
pub fn sum_of_squares<T: Real>(x: &[T]) -> f64 {
    let of_chunk = |x: &[T]| {
        simd(
            #[inline(always)]
            || sum(x.len(), |i| x[i].to_f64() * x[i].to_f64()),
        )
    };
    x.par_chunks(CHUNK).map(of_chunk).collect::<Vec<f64>>().into_iter().sum()
}

/// The ℓ2 norm of a tensor of any shape; in f64 on the CPU.
///
/// # Errors
/// Candle's own.
pub fn norm(x: &Tensor) -> Result<f64> {
    let x = x.detach().contiguous()?;
    let squares = match x.dtype() {
        DType::F32 if fused(&[&x]) => with_slices::<f32, _>(&[&x], |s| sum_of_squares(s[0]))?,
        DType::F64 if fused(&[&x]) => with_slices::<f64, _>(&[&x], |s| sum_of_squares(s[0]))?,
        _ => x.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?,
    };
    Ok(squares.sqrt())
}
