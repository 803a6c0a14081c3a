//! The kernels of a GPU on a processor: their own sources, compiled as C, with threads for threads.

use std::fmt::Write;
use std::process::Command;

use candle_core::{DType, Device, Result, Tensor};

use super::{Argument, COMMON, OnGpu, THREADS, Work};

/// Whether there is a C compiler; without one, tests skip this loudly.
pub(crate) fn is_possible() -> bool {
    let possible =
        cfg!(target_os = "linux") && Command::new("cc").arg("--version").output().is_ok();
    if !possible {
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: kernels of a GPU are run as C, and there is no `cc` here\n"),
        );
    }
    possible
}

/// Does the work on tensors on the CPU; its outputs, and what became of the tensors.
pub(crate) fn run(work: &Work, tensors: &[Tensor]) -> (Vec<Tensor>, Vec<Tensor>) {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    let mut put = |words: Vec<u32>| {
        bytes.extend((words.len() as u32).to_le_bytes());
        bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
    };
    for tensor in tensors {
        let flat = tensor.flatten_all().unwrap();
        put(match tensor.dtype() {
            DType::U32 => flat.to_vec1().unwrap(),
            _ => flat.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect(),
        });
    }
    for dims in &work.outputs {
        // Whatever is not written shows.
        put(vec![f32::NAN.to_bits(); dims.iter().product()]);
    }
    std::fs::write(dir.path().join("in"), bytes).unwrap();
    std::fs::write(dir.path().join("kernels.c"), program(work)).unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O1", "-o"]).args([at("kernels"), at("kernels.c")]);
    let output = compiler.args(["-lm", "-lpthread"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status = Command::new(at("kernels")).args([at("in"), at("out")]).status().unwrap();
    assert!(status.success(), "{}: {status}", work.source.0);

    let bytes = std::fs::read(at("out")).unwrap();
    let mut words = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    let mut next = |dims: &[usize], dtype: DType| -> Result<Tensor> {
        let all: Vec<u32> = words.by_ref().take(dims.iter().product()).collect();
        if dtype == DType::U32 {
            return Tensor::from_vec(all, dims, &Device::Cpu);
        }
        let all: Vec<f32> = all.into_iter().map(f32::from_bits).collect();
        Tensor::from_vec(all, dims, &Device::Cpu)
    };
    let given = tensors.iter().map(|x| next(x.dims(), x.dtype()).unwrap()).collect();
    let made = work.outputs.iter().map(|dims| next(dims, DType::F32).unwrap()).collect();
    (made, given)
}

/// The result of an operation and the gradients of its inputs, with `grad` that of the result.
pub(crate) fn with_gradient(
    op: &impl OnGpu,
    inputs: &[&Tensor],
    grad: &Tensor,
) -> (Tensor, Vec<Tensor>) {
    let dims: Vec<&[usize]> = inputs.iter().map(|x| x.dims()).collect();
    let mut arrays: Vec<Tensor> = inputs.iter().map(|x| (*x).clone()).collect();
    arrays.extend(op.constants());
    let (made, _) = run(&op.forward(&dims), &arrays);
    arrays.extend(made.iter().cloned());
    arrays.push(grad.clone());
    let (mut gradients, _) = run(&op.backward(&dims, &vec![true; inputs.len()]), &arrays);
    gradients.truncate(inputs.len());
    (made[0].clone(), gradients)
}

/// The sources, a function for each launch, and a program that reads arrays and writes them.
fn program(work: &Work) -> String {
    let mut text = format!("#define THREADS {THREADS}\n");
    for (name, size) in &work.sizes {
        writeln!(text, "#define {name} {size}").unwrap();
    }
    text += include_str!("emulated.h");
    text += COMMON;
    text += work.source.1;
    let mut main = String::new();
    for (i, launch) in work.launches.iter().enumerate() {
        let of = |argument: &Argument| match argument {
            Argument::Array(at) => format!("arrays[{at}]"),
            Argument::Count(count) => format!("{count}u"),
            Argument::Number(number) => format!("{:?}f", *number as f32),
        };
        let arguments: Vec<String> = launch.arguments.iter().map(of).collect();
        writeln!(text, "OF_THREAD(launch_{i}, {}({}))", launch.kernel, arguments.join(", "))
            .unwrap();
        let [x, y] = launch.blocks;
        writeln!(main, "launch(launch_{i}, {x}, {y});").unwrap();
    }
    text + &format!("int main(int n, char **path) {{\ntake(path[1]);\n{main}give(path[2]);\n}}\n")
}
