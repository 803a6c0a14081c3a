//! What `certify export --to onnx` writes, on random networks: onnxruntime computes the same from it,
//! and it is read again as the same function, or refused.
//!
//! The first needs a Python with onnxruntime and safetensors: `python3`, or what `PYTHON` names;
//! without one the test says so.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use lipschitz_import::{ImportOptions, Imported, import};
use lipschitz_nn::checkpoint::{load_tensors, save_tensors};
use lipschitz_nn::{Graph, Model};
use lipschitz_tests::foreign::{distance, flat};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

const SCRIPT: &str = "
import sys
import onnxruntime
from safetensors.numpy import load_file, save_file
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path + '/model.onnx', options, ['CPUExecutionProvider'])
    x, = load_file(path + '/input.safetensors').values()
    x = x.astype('int64') if x.dtype.kind in 'iu' else x
    y, = session.run(None, {session.get_inputs()[0].name: x})
    save_file({'output': y}, path + '/output.safetensors')
";

struct Case {
    folder: PathBuf,
    model: Model,
    input: Tensor,
}

/// Random networks as files, each with an input.
fn cases(dir: &Path) -> Vec<Case> {
    let mut dice = Dice::new(92);
    let mut cases = Vec::new();
    for i in 0..120 {
        let images = i % 4 == 3 || i >= 80;
        let graph: Graph = match images {
            true if i >= 80 => random_convolution_graph(&mut dice),
            true => random_image_graph(&mut dice),
            false => random_graph(&mut dice),
        };
        let model = random_model(graph, &mut dice).to(&Device::Cpu, DType::F32).unwrap();
        let input = if images {
            dice.tensor(&[2, 2, 4, 4], 1.0).to_dtype(DType::F32).unwrap()
        } else {
            let ids: Vec<u32> = (0..8).map(|_| dice.below(5) as u32).collect();
            Tensor::from_vec(ids, (2, 4), &Device::Cpu).unwrap()
        };
        let folder = dir.join(i.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("model.onnx"), lipschitz_import::onnx(&model).unwrap()).unwrap();
        let named = [("input", input.clone())].into_iter();
        save_tensors(&folder.join("input.safetensors"), named, None).unwrap();
        cases.push(Case { folder, model, input });
    }
    cases
}

/// How far two outputs are from each other, relative to the larger.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let size = a.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    distance(a, b) / size
}

#[test]
fn random_networks_are_the_same_in_onnxruntime() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import onnxruntime, safetensors"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        // Past the capture of the test's output.
        let line = format!("SKIPPED: {python} has no onnxruntime; no exported file is run\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cases = cases(dir.path());
    let mut command = Command::new(&python);
    command.args(["-c", SCRIPT]).args(cases.iter().map(|case| &case.folder));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut most: f64 = 0.0;
    for Case { folder, model, input } in &cases {
        let (tensors, _) = load_tensors(&folder.join("output.safetensors"), &Device::Cpu).unwrap();
        let ours = model.to(&Device::Cpu, DType::F64).unwrap().forward(input).unwrap();
        assert_eq!(ours.dims(), tensors["output"].dims());
        let off = apart(&flat(&ours), &flat(&tensors["output"]));
        assert!(off <= 2e-4, "{off:e}: {:?}", model.graph());
        most = most.max(off);
    }
    println!("{} networks, at most {most:.1e} apart", cases.len());
}

#[test]
fn exported_networks_are_read_again_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut read, mut refused) = (0, BTreeMap::<String, usize>::new());
    let cases = cases(dir.path());
    for Case { folder, model, input } in &cases {
        let path = folder.join("model.onnx");
        let again = match import(&path, &ImportOptions::default()) {
            Ok(Imported { model, .. }) => model,
            Err(e) => {
                // What an operator that is not read says, without the names.
                let text = e.to_string();
                let reason = text.rsplit_once("(").map_or(text.as_str(), |(_, rest)| rest);
                *refused.entry(reason.to_string()).or_default() += 1;
                continue;
            }
        };
        read += 1;
        let [ours, theirs] = [model, &again]
            .map(|model| model.to(&Device::Cpu, DType::F64).unwrap().forward(input).unwrap());
        assert_eq!(ours.dims(), theirs.dims());
        let off = apart(&flat(&ours), &flat(&theirs));
        assert!(off <= 1e-5, "{off:e}: {:?}\n{:?}", model.graph(), again.graph());
    }
    println!("{read} of {} are read again; not: {refused:#?}", cases.len());
    assert!(read * 3 >= cases.len(), "{read}: {refused:#?}");
}
