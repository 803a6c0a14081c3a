//! Differentiable operations that candle lacks, gets wrong or is slow at.
//!
//! On CPU, in `f32` and `f64`, each is one fused kernel with its own gradient; elsewhere it is composed of candle's
//! differentiable operations. The composed form is also the oracle of the tests.

mod activation;
mod attention;
mod gemm;
mod linear;
mod norm;
mod position;
mod real;
mod rotary;

pub use activation::{activation, soft_cap};
pub use attention::{Mask, attention};
pub use gemm::{Strided, gemm};
pub use linear::linear;
pub use norm::{layer_norm, rms_norm};
pub use position::position_bias;
pub use rotary::rotary;

/// The forms composed of candle's operations, for comparison.
pub mod composed {
    pub use super::activation::composed as activation;
    pub use super::attention::composed as attention;
    pub use super::rotary::composed as rotary;
}

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, WithDType};

/// Whether the fused kernels cover this tensor.
fn fused(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu) && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// The elements of a contiguous CPU storage.
fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (from, to) = layout.contiguous_offsets().ok_or(candle_core::Error::Msg("a tensor is not contiguous".into()))?;
    Ok(&storage.as_slice::<T>()?[from..to])
}

/// Runs `f` on the elements of contiguous CPU tensors.
fn with_slices<T: WithDType, R>(tensors: &[&Tensor], f: impl FnOnce(&[&[T]]) -> R) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(tensors.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => slices.push(slice::<T>(storage, layout)?),
            _ => candle_core::bail!("a tensor is not on the CPU"),
        }
    }
    Ok(f(&slices))
}
