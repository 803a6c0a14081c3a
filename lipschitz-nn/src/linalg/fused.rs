//! Where the fused kernels run.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// For tests: what this thread does in `f` is composed of candle's operations, as on a device for
/// which there are no kernels.
#[doc(hidden)]
pub fn without_kernels<R>(f: impl FnOnce() -> R) -> R {
    let before = COMPOSED.replace(true);
    let result = f();
    COMPOSED.set(before);
    result
}

/// Whether this thread is [`without_kernels`], those of a GPU too.
pub(crate) fn without_any_kernels() -> bool {
    COMPOSED.get()
}

/// Whether the fused kernels cover these tensors.
pub(crate) fn fused(tensors: &[&Tensor]) -> bool {
    let dtype = tensors.first().map(|t| t.dtype());
    !COMPOSED.get()
        && matches!(dtype, Some(DType::F32 | DType::F64))
        && tensors.iter().all(|t| matches!(t.device(), Device::Cpu) && Some(t.dtype()) == dtype)
}
