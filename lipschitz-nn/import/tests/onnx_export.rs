//! Networks as ONNX files: those of every kind of node (`tests/golden/make_own.py`), and those that
//! were ONNX files. onnxruntime computes the same, where there is a Python that has it (`python3`,
//! or what `PYTHON` names), and what is read again is the same function, or refused.

mod outputs;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use lipschitz_import::candle_core::{DType, Device, Tensor};
use lipschitz_import::{ImportOptions, Imported, import, onnx};
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::{self, load_tensors, save_tensors};
use lipschitz_nn::graph::{Attention, Graph, Input, Node, Op};
use outputs::{distance, flat};

const SCRIPT: &str = "
import sys
import onnxruntime
from safetensors.numpy import load_file, save_file
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path + '/model.onnx', options, ['CPUExecutionProvider'])
    x, = load_file(path + '/input.safetensors').values()
    x = x.astype('int64' if x.dtype.kind in 'iu' else 'float32')
    y, = session.run(None, {session.get_inputs()[0].name: x})
    save_file({'output': y}, path + '/output.safetensors')
";

struct Case {
    name: String,
    model: Model,
    input: Tensor,
    folder: PathBuf,
}

fn input(expected: &Path) -> Tensor {
    let (tensors, _) = load_tensors(expected, &Device::Cpu).unwrap();
    let found = ["tokens", "pixels", "vectors"].iter().find_map(|name| tensors.get(*name));
    found.unwrap().clone()
}

fn cases(dir: &Path) -> Vec<Case> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let sorted = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<PathBuf> = entries.collect();
        all.sort();
        all
    };
    let mut models = Vec::new();
    for folder in [sorted(golden.join("own")), sorted(golden.join("own/kinds"))].concat() {
        let file = folder.join("checkpoint.safetensors");
        if file.exists() {
            let (model, _) = checkpoint::load(&file, &Device::Cpu).unwrap();
            models.push((folder.clone(), model, folder.join("expected.safetensors")));
        }
    }
    for file in sorted(golden.join("onnx")) {
        if file.extension().is_some_and(|end| end == "onnx") {
            let Imported { model, .. } = import(&file, &ImportOptions::default()).unwrap();
            models.push((file.clone(), model, file.with_extension("safetensors")));
        }
    }
    let files = models.into_iter().map(|(path, model, expected): (PathBuf, Model, PathBuf)| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), model, input(&expected))
    });
    let branches = [[2, 2], [4, 6]].into_iter().map(branches_with_a_token);
    let case = |(i, (name, model, input)): (usize, (String, Model, Tensor))| {
        // What is written is f32.
        let model = model.to(&Device::Cpu, DType::F32).unwrap();
        let folder = dir.join(i.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("model.onnx"), onnx(&model).unwrap()).unwrap();
        let named = [("input", input.clone())].into_iter();
        save_tensors(&folder.join("input.safetensors"), named, None).unwrap();
        Case { name, model, input, folder }
    };
    files.chain(branches).enumerate().map(case).collect()
}

/// Attention, two branches that each put a token in front, and attention again, over one more token.
fn branches_with_a_token([height, width]: [usize; 2]) -> (String, Model, Tensor) {
    let token = |name: &str| Node::new(name, Op::ClassToken { dim: 4 });
    let attention = |name: &str| Node::new(name, Op::Attention(Attention::new(4, 1, 4)));
    let nodes = vec![
        Node::new("", Op::Patches { size: 2 }),
        attention("before"),
        Node::new("both", Op::Parallel { branches: vec![token("a"), token("b")] }),
        attention("behind"),
    ];
    let graph = Graph::new(Input::Pixels { channels: 1, height, width }, nodes).unwrap();
    let numbers = |seed: f64, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let all: Vec<f64> = (0..count).map(|i| (1.7 * i as f64 + seed).sin()).collect();
        Tensor::from_vec(all, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    };
    let weights = graph.parameters().into_iter().enumerate();
    let weights = weights.map(|(i, p)| (p.name.clone(), numbers(i as f64, &p.shape))).collect();
    let input = numbers(0.3, &[2, 1, height, width]);
    (format!("branches of {height} by {width}"), Model::new(graph, weights).unwrap(), input)
}

/// How far two outputs are from each other, relative to the largest number.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (flat(a), flat(b));
    let size = a.iter().fold(1e-6, |m: f64, x| m.max(x.abs()));
    distance(&a, &b) / size
}

fn double(model: &Model, input: &Tensor) -> Tensor {
    let model = model.to(&Device::Cpu, DType::F64).unwrap();
    model.forward(input).unwrap()
}

#[test]
fn exported_networks_are_the_same_in_onnxruntime() {
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
    let mut wrong = Vec::new();
    for Case { name, model, input, folder } in &cases {
        let (theirs, _) = load_tensors(&folder.join("output.safetensors"), &Device::Cpu).unwrap();
        let off = apart(&double(model, input), &theirs["output"]);
        println!("{name} {off:.1e}");
        if off > 2e-5 || off.is_nan() {
            wrong.push(format!("{name}: {off:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(cases.len() >= 40);
}

#[test]
fn exported_networks_are_read_again_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cases = cases(dir.path());
    let (mut read, mut refused) = (0, Vec::new());
    for Case { name, model, input, folder } in &cases {
        match import(&folder.join("model.onnx"), &ImportOptions::default()) {
            Ok(Imported { model: again, .. }) => {
                let off = apart(&double(model, input), &double(&again, input));
                assert!(off <= 1e-6, "{name}: {off:e}");
                read += 1;
            }
            Err(e) => refused.push(format!("{name}: {e}")),
        }
    }
    println!("{read} of {} are read again; not: {refused:#?}", cases.len());
    // All that were ONNX files, and most of the others.
    assert!(refused.iter().all(|what| !what.contains(".onnx: /")), "{refused:#?}");
    assert!(read * 10 >= cases.len() * 7, "{refused:#?}");
}

/// Numbers of nodes that f32 does not hold are no numbers of the file.
#[test]
fn numbers_beyond_f32_are_refused() {
    for factor in [1e-60, 1e60] {
        let scale = Node::new("far", Op::Scale { factor });
        let graph = Graph::new(Input::Vector { dim: 2 }, vec![scale]).unwrap();
        let said = onnx(&Model::new(graph, Default::default()).unwrap()).unwrap_err().to_string();
        assert!(said.contains("`far` has the number"), "{said}");
    }
}
