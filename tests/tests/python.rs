//! What `certify export --to pytorch` writes, on random networks. It needs a Python with torch and
//! safetensors: `python3`, or what `PYTHON` names; without one the test says so and passes.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::cli::export;
use lipschitz_nn::checkpoint::{FORMAT, Meta, Provenance, load_tensors, save, save_tensors};
use lipschitz_nn::{Graph, Model};
use lipschitz_tests::foreign::{distance, flat};
use lipschitz_tests::{
    Dice, random_convolution_graph, random_graph, random_image_graph, random_model,
};

const SCRIPT: &str = "
import importlib.util, sys
import torch
from safetensors.torch import load_file, save_file
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location('network', path + '/network.py')
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    assert network.GRAPH['nodes']
    x, = load_file(path + '/input.safetensors').values()
    with torch.no_grad():
        y = network.load(path + '/model.safetensors', torch.float64)(x)
    save_file({'output': y.contiguous()}, path + '/output.safetensors')
# Weights of another network are refused.
try:
    network.load(sys.argv[1] + '/model.safetensors')
    sys.exit('the weights of another network were taken')
except ValueError:
    pass
";

#[test]
fn random_networks_are_the_same_in_pytorch() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import torch, safetensors.torch"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        // Past the capture of the test's output.
        let line = format!("SKIPPED: {python} has no torch; nothing is run in PyTorch\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(91);
    let mut cases = Vec::new();
    for i in 0..90 {
        let images = i % 4 == 3 || i >= 60;
        let graph = match images {
            true if i >= 60 => random_convolution_graph(&mut dice),
            true => random_image_graph(&mut dice),
            false => random_graph(&mut dice),
        };
        let model = random_model(graph, &mut dice);
        let input = if images {
            dice.tensor(&[2, 2, 4, 4], 1.0)
        } else {
            let ids: Vec<u32> = (0..8).map(|_| dice.below(5) as u32).collect();
            Tensor::from_vec(ids, (2, 4), &Device::Cpu).unwrap()
        };
        let case = dir.path().join(i.to_string());
        std::fs::create_dir(&case).unwrap();
        write(&case, &model, &input);
        cases.push((case, model, input));
    }
    let mut command = Command::new(&python);
    command.args(["-c", SCRIPT]).args(cases.iter().map(|(case, ..)| case));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (case, model, input) in &cases {
        let (tensors, _) = load_tensors(&case.join("output.safetensors"), &Device::Cpu).unwrap();
        let ours = model.to(&Device::Cpu, DType::F64).unwrap().forward(input).unwrap();
        let (ours, theirs) = (flat(&ours), flat(&tensors["output"]));
        let size = ours.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        let off = distance(&ours, &theirs);
        assert!(off <= 1e-9 * size, "{off:e} of {size}: {:?}", model.graph());
    }
}

fn write(case: &Path, model: &Model, input: &Tensor) {
    let graph: Graph = model.graph().clone();
    let (config, provenance) = (serde_json::Value::Null, Provenance::default());
    let classes = Vec::new();
    let meta = Meta { format: FORMAT, graph, config, tokenizer: None, classes, provenance };
    save(&case.join("model.safetensors"), model, &meta).unwrap();
    let program = export::pytorch(model.graph()).unwrap();
    std::fs::write(case.join("network.py"), program).unwrap();
    let input = [("input", input.clone())].into_iter();
    save_tensors(&case.join("input.safetensors"), input, None).unwrap();
}
