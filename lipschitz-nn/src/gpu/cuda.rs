//! Kernels on a GPU.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Storage, Tensor, backend::BackendStorage, bail,
};

use super::{Argument, COMMON, THREADS, Work};

/// The words of CUDA that the sources use.
const PRELUDE: &str = include_str!("prelude.cu");

/// An array that is given to a kernel.
enum View<'a> {
    F32(CudaView<'a, f32>),
    U32(CudaView<'a, u32>),
}

impl<'a> View<'a> {
    fn of(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("a tensor is not contiguous")
        };
        match storage.dtype() {
            DType::F32 => Ok(Self::F32(storage.as_cuda_slice::<f32>()?.slice(from..to))),
            DType::U32 => Ok(Self::U32(storage.as_cuda_slice::<u32>()?.slice(from..to))),
            other => bail!("kernels of a GPU read f32 and u32, not {other:?}"),
        }
    }
}

/// Does the work on arrays, the last of which are the tensors; its outputs.
///
/// # Errors
/// Sources that do not compile, a GPU out of memory, and CUDA's own.
pub(crate) fn run(
    work: &Work,
    arrays: &[(&CudaStorage, &Layout)],
    tensors: &[Tensor],
) -> Result<Vec<(CudaStorage, Vec<usize>)>> {
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut views = Vec::with_capacity(arrays.len() + guards.len());
    let mut device = None;
    for (storage, layout) in arrays {
        device = device.or(Some(storage.device().clone()));
        views.push(View::of(storage, layout)?);
    }
    for (storage, layout) in &guards {
        let Storage::Cuda(storage) = &**storage else { bail!("a tensor is not on the GPU") };
        device = device.or(Some(storage.device().clone()));
        views.push(View::of(storage, layout)?);
    }
    let Some(device) = device else { bail!("{}: nothing to run on", work.source.0) };
    let made = launch(work, &device, &views)?;
    let wrap = |(data, dims): (CudaSlice<f32>, &Vec<usize>)| {
        (CudaStorage::wrap_cuda_slice(data, device.clone()), dims.clone())
    };
    Ok(made.into_iter().zip(&work.outputs).map(wrap).collect())
}

/// A tensor without a gradient.
pub(crate) fn tensor((storage, dims): (CudaStorage, Vec<usize>)) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), dims, BackpropOp::none(), false)
}

#[allow(unsafe_code)]
fn launch(work: &Work, device: &CudaDevice, views: &[View<'_>]) -> Result<Vec<CudaSlice<f32>>> {
    let mut made = Vec::with_capacity(work.outputs.len());
    for dims in &work.outputs {
        let count = dims.iter().product::<usize>().max(1);
        // SAFETY: kernels write all elements of an output before anything reads it.
        made.push(unsafe { device.alloc::<f32>(count)? });
    }
    let (name, ptx) = compiled(work)?;
    for launch in &work.launches {
        let function = device.get_or_load_custom_func(launch.kernel, &name, &ptx)?;
        // Numbers have to outlive the list of arguments.
        let counts: Vec<u32> = launch.arguments.iter().map(|a| count(*a)).collect();
        let numbers: Vec<f32> = launch.arguments.iter().map(|a| number(*a)).collect();
        let mut arguments = function.builder();
        for (i, argument) in launch.arguments.iter().enumerate() {
            match *argument {
                Argument::Array(at) => match views.get(at) {
                    Some(View::F32(view)) => arguments.arg(view),
                    Some(View::U32(view)) => arguments.arg(view),
                    None => arguments.arg(&made[at - views.len()]),
                },
                Argument::Count(_) => arguments.arg(&counts[i]),
                Argument::Number(_) => arguments.arg(&numbers[i]),
            };
        }
        let [x, y] = launch.blocks.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel, in number, order and type, and it stays within arrays
        // of the sizes that it is told: a test runs each of these launches on a processor.
        unsafe { arguments.launch(config) }
            .map_err(|e| candle_core::Error::Msg(format!("{}: {e}", launch.kernel)))?;
    }
    Ok(made)
}

fn count(argument: Argument) -> u32 {
    if let Argument::Count(count) = argument { count as u32 } else { 0 }
}

fn number(argument: Argument) -> f32 {
    if let Argument::Number(number) = argument { number as f32 } else { 0.0 }
}

/// The name of a source with its sizes, and its code. It is compiled once.
pub(crate) fn compiled(work: &Work) -> Result<(String, Arc<str>)> {
    static COMPILED: Mutex<BTreeMap<String, Arc<str>>> = Mutex::new(BTreeMap::new());
    let sizes = work.sizes.iter().map(|(name, size)| format!("{name}={size}"));
    let options: Vec<String> = sizes.chain([format!("THREADS={THREADS}")]).collect();
    let name = format!("lipschitz-{}-{}", work.source.0, options.join("-"));
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ptx) = compiled.get(&name) {
        return Ok((name, ptx.clone()));
    }
    let text = [PRELUDE, COMMON, work.source.1].concat();
    let options = CompileOptions {
        options: options.iter().map(|size| format!("-D{size}")).collect(),
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(text, options)
        .map_err(|e| candle_core::Error::Msg(format!("{}: {e:?}", work.source.0)))?;
    let ptx: Arc<str> = ptx.to_src().into();
    compiled.insert(name.clone(), ptx.clone());
    Ok((name, ptx))
}
