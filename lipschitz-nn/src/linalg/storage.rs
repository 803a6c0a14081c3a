//! The numbers of CPU tensors as slices.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

use super::real::Real;

/// The elements of a contiguous CPU storage.
pub(crate) fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<T>()?[from..to]),
        None => bail!("a tensor is not contiguous"),
    }
}

/// Runs `f` on the elements of contiguous CPU tensors.
pub(crate) fn with_slices<T: Real, R>(
    tensors: &[&Tensor],
    f: impl FnOnce(&[&[T]]) -> R,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(tensors.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => slices.push(slice::<T>(storage, layout)?),
            _ => bail!("a tensor is not on the CPU"),
        }
    }
    Ok(f(&slices))
}

/// The elements of a contiguous CPU storage, to be written.
pub(super) fn slice_mut<'a, T: Real>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]> {
    match (layout.contiguous_offsets(), T::of_storage(storage)) {
        (Some((from, to)), Some(data)) => Ok(&mut data[from..to]),
        _ => bail!("a tensor is not contiguous, or of another type"),
    }
}
