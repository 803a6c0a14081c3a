//! Kernels of a GPU: which run, on which arrays, in which numbers of blocks. What is said here is carried out by
//! CUDA, and by a test on a processor.
//!
//! A source is plain C beside a few words of CUDA's (`prelude.cu`), and lies beside the operation's own file. It is
//! compiled when it first runs, for the GPU that is there.

// Without a GPU, none of it is called but by tests.
#![cfg_attr(not(any(feature = "cuda", test)), allow(dead_code))]

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod emulated;
#[cfg(feature = "cuda")]
mod op;

use candle_core::{DType, Device, Result, Tensor};

use crate::linalg::without_any_kernels;

/// Threads of a block.
pub(crate) const THREADS: usize = 256;

/// What all sources have in front.
const COMMON: &str = include_str!("common.cu");

/// A source: its name, and its text.
pub(crate) type Source = (&'static str, &'static str);

/// Kernels that run one after the other, on arrays of `f32` or `u32`.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The kernels' source.
    pub source: Source,
    /// Numbers that it is compiled with.
    pub sizes: Vec<(&'static str, usize)>,
    /// In this order.
    pub launches: Vec<Launch>,
    /// Shapes of the arrays of `f32` that are made, behind those that are given. Kernels write all of them.
    pub outputs: Vec<Vec<usize>>,
}

impl Work {
    /// Kernels of a source that is compiled with no sizes.
    pub(crate) fn new(source: Source, launches: Vec<Launch>, outputs: Vec<Vec<usize>>) -> Self {
        Self { source, sizes: Vec::new(), launches, outputs }
    }
}

/// One kernel.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Its name in the source.
    pub kernel: &'static str,
    /// Blocks in both directions.
    pub blocks: [usize; 2],
    /// In the order of its parameters.
    pub arguments: Vec<Argument>,
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Argument {
    /// The array of this number: those given, then the outputs.
    Array(usize),
    /// A size or a flag.
    Count(usize),
    /// A constant.
    Number(f64),
}

impl From<usize> for Argument {
    fn from(count: usize) -> Self {
        Self::Count(count)
    }
}

impl From<bool> for Argument {
    fn from(flag: bool) -> Self {
        Self::Count(usize::from(flag))
    }
}

impl From<f64> for Argument {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl Launch {
    /// A kernel that goes over so many elements in the strides of its grid.
    pub(crate) fn each(kernel: &'static str, n: usize, arguments: Vec<Argument>) -> Self {
        // More blocks than any GPU runs at a time only cost.
        let blocks = n.div_ceil(THREADS).clamp(1, 1 << 14);
        Self { kernel, blocks: [blocks, 1], arguments }
    }
}

/// A list of parameters: `[1]` is the array of number 1, all else as it is.
macro_rules! arguments {
    ($([$array:expr]),* ; $($rest:expr),* $(,)?) => {
        vec![
            $($crate::gpu::Argument::Array($array),)*
            $($crate::gpu::Argument::from($rest),)*
        ]
    };
}
pub(crate) use arguments;

/// What an operation does on a GPU.
///
/// Arrays have numbers: in front the operation's inputs, then its constants; for the gradient what its forward
/// pass gave, the result first, and the gradient of that; and the outputs last.
pub(crate) trait OnGpu {
    /// In messages.
    fn name(&self) -> &'static str;

    /// Arrays beside the inputs, which have no gradient.
    fn constants(&self) -> Vec<Tensor> {
        Vec::new()
    }

    /// The result, and behind it what is kept for the gradient.
    fn forward(&self, dims: &[&[usize]]) -> Work;

    /// The gradient of each input, and behind them what else it needs to write.
    fn backward(&self, dims: &[&[usize]], wanted: &[bool]) -> Work;
}

/// Whether kernels of a GPU cover these tensors.
pub(crate) fn covers(tensors: &[&Tensor]) -> bool {
    let Some(first) = tensors.first() else { return false };
    cfg!(feature = "cuda")
        && !without_any_kernels()
        && matches!(first.device(), Device::Cuda(_))
        && tensors.iter().all(|x| {
            x.device().same_device(first.device())
                && x.dtype() == DType::F32
                // Kernels count in 32 bits.
                && (1..1 << 31).contains(&x.elem_count())
        })
}

/// Applies an operation to tensors that [`covers`] says are covered.
///
/// # Errors
/// Candle's and CUDA's own.
pub(crate) fn apply(op: impl OnGpu + Send + Sync + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    return op::apply(op, inputs);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("no kernels of a GPU for {} inputs of {}", inputs.len(), op.name())
}
