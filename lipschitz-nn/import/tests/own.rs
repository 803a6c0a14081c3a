//! Networks whose graphs their authors declare (`tests/golden/make_own.py`), against what PyTorch
//! computes; and the loader that runs our checkpoints there.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lipschitz_import::{
    Disagreement, ImportOptions, Imported, TOLERANCE, Undecided, candle_core, check, import,
};
use lipschitz_nn::checkpoint::{self, load_tensors, save_tensors};
use lipschitz_nn::graph::Function;
use lipschitz_nn::{Error, Graph, Model, Weights};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn own() -> PathBuf {
    root().join("tests/golden/own")
}

fn with(graph: PathBuf) -> ImportOptions {
    ImportOptions { graph: Some(graph), ..ImportOptions::default() }
}

/// The input and the output of an example.
fn expected(directory: &Path) -> (Tensor, Tensor) {
    let (mut tensors, _) =
        load_tensors(&directory.join("expected.safetensors"), &Device::Cpu).unwrap();
    let output = tensors.remove("output").unwrap();
    (tensors.pop_first().unwrap().1, output)
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference over the largest output.
fn apart(model: &Model, directory: &Path) -> f64 {
    let (input, output) = expected(directory);
    let double = model.to(&Device::Cpu, DType::F64).unwrap();
    check(&double, &input, &output).unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
}

#[test]
fn declared_networks_are_their_authors() {
    for (name, file) in
        [("mlp", "weights.pt"), ("transformer", "weights.safetensors"), ("image", "weights.npz")]
    {
        let directory = own().join(name);
        let options = with(directory.join("graph.json"));
        let Imported { model, meta, report } = import(&directory.join(file), &options).unwrap();
        let off = apart(&model, &directory);
        assert!(off < 1e-12, "{name}: {off:e}");
        assert!(report.unused.is_empty() && report.missing.is_empty());
        let origin = meta.provenance.origin.unwrap();
        assert_eq!(origin.family, "graph");
        assert!(origin.notes[0].contains("as declared in graph.json"), "{:?}", origin.notes);
        // What the script writes without an import is the same network.
        let (written, meta) =
            checkpoint::load(&directory.join("checkpoint.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(written.graph(), model.graph(), "{name}");
        assert!(meta.provenance.origin.unwrap().notes[0].contains("export.py"));
        for (path, weight) in model.weights() {
            assert_eq!(flat(weight), flat(&written.weights()[path]), "{name}: {path}");
        }
    }
}

/// LeNet, and the shape of ResNet-18 with its batch norms folded into the kernels, by PyTorch.
#[test]
fn convolutional_networks_are_pytorchs() {
    for name in ["lenet", "resnet"] {
        let directory = own().join(name);
        let options = with(directory.join("graph.json"));
        let Imported { model, report, .. } =
            import(&directory.join("weights.pt"), &options).unwrap();
        let off = apart(&model, &directory);
        assert!(off < 1e-12, "{name}: {off:e}");
        assert!(report.unused.is_empty() && report.missing.is_empty());
    }
}

/// What `certify/src/cli/network.py` computed from checkpoints with every kind of node.
#[test]
fn the_loader_for_pytorch_computes_what_we_compute() {
    let kinds = own().join("kinds");
    let mut count = 0;
    for directory in std::fs::read_dir(&kinds).unwrap() {
        let directory = directory.unwrap().path();
        let (model, _) =
            checkpoint::load(&directory.join("checkpoint.safetensors"), &Device::Cpu).unwrap();
        let off = apart(&model, &directory);
        assert!(off < 1e-12, "{}: {off:e}", directory.display());
        count += 1;
    }
    assert_eq!(count, 13);
}

/// The kinds of nodes, by the schema of a graph.
fn kinds() -> Vec<String> {
    fn collect(schema: &Value, out: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                let kind = fields.get("properties").and_then(|p| p.get("op")?.get("const"));
                out.extend(kind.and_then(Value::as_str).map(str::to_string));
                fields.values().for_each(|value| collect(value, out));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    collect(&serde_json::to_value(schemars::schema_for!(Graph)).unwrap(), &mut out);
    out.sort();
    out.dedup();
    out
}

/// A new kind or function is one that the loader runs, the goldens hold and the page names.
#[test]
fn every_kind_and_function_is_in_the_loader_and_on_its_page() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (loader, page) = (read("certify/src/cli/network.py"), read("docs/import/your-own.md"));
    let mut golden = String::new();
    for directory in std::fs::read_dir(own().join("kinds")).unwrap() {
        let path = directory.unwrap().path().join("checkpoint.safetensors");
        let (_, metadata) = load_tensors(&path, &Device::Cpu).unwrap();
        golden += &metadata[checkpoint::KEY];
    }
    let kinds = kinds();
    assert!(kinds.len() > 21, "{kinds:?}");
    for kind in kinds {
        assert!(loader.contains(&format!("\n    \"{kind}\": (")), "network.py lacks {kind}");
        assert!(page.contains(&format!("`{kind}`")), "your-own.md lacks {kind}");
        assert!(golden.contains(&format!("\"{kind}\"")), "no golden file has {kind}");
    }
    for function in Function::ALL {
        // Its name, or its name with its constants.
        let name = match serde_json::to_value(function).unwrap() {
            Value::String(name) => name,
            Value::Object(fields) => fields.keys().next().unwrap().clone(),
            other => panic!("{other}"),
        };
        assert!(loader.contains(&format!("\n    \"{name}\": ")), "network.py lacks {name}");
        let (plain, braced) = (format!("`{name}`"), format!("`{{\"{name}\": "));
        assert!(page.contains(&plain) || page.contains(&braced), "your-own.md lacks {name}");
        assert!(golden.contains(&format!("\"{name}\"")), "no golden file has {name}");
    }
}

/// Names and shapes of tensors.
type Shapes<'a> = &'a [(&'a str, &'a [usize])];

/// A file of tensors of these shapes.
fn file(path: &Path, tensors: Shapes) {
    let tensors = tensors.iter().map(|(name, shape)| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
        (*name, Tensor::from_vec(values, *shape, &Device::Cpu).unwrap())
    });
    save_tensors(path, tensors, None).unwrap();
}

#[test]
fn graphs_and_weights_that_do_not_fit_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (weights, path) = (dir.path().join("w.safetensors"), dir.path().join("g.json"));
    let linear = json!({"name": "a", "op": "linear", "inputs": 2, "outputs": 3, "bias": true});
    let graph = json!({"format": 1, "input": {"kind": "vector", "dim": 2}, "nodes": [linear]});
    let said = |graph: &Value, tensors: Shapes| {
        std::fs::write(&path, graph.to_string()).unwrap();
        file(&weights, tensors);
        match import(&weights, &with(path.clone())) {
            Ok(_) => String::new(),
            Err(e) => {
                let line = e.to_string();
                assert!(!line.contains('\n') && line.len() < 1000, "{line}");
                line
            }
        }
    };
    let whole: Shapes = &[("a.weight", &[3, 2]), ("a.bias", &[3])];
    assert_eq!(said(&graph, whole), "");
    let named = |weights: Value| json!({"graph": graph, "weights": weights});
    assert_eq!(said(&named(json!({"a.weight": "W"})), &[("W", &[3, 2]), ("a.bias", &[3])]), "");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    std::fs::write(&path, &deep).unwrap();
    assert!(import(&weights, &with(path.clone())).unwrap_err().to_string().contains("is not JSON"));
    let huge = json!({"format": 1, "input": {"kind": "vector", "dim": 1 << 27}, "nodes":
        [{"name": "a", "op": "linear", "inputs": 1 << 27, "outputs": 1 << 27, "bias": true}]});
    let odd = json!({"format": 1, "input": {"kind": "vector", "dim": 2}, "nodes":
        [{"name": "a", "op": "linear", "inputs": 2, "outputs": 3, "bias": true, "sigma": 1}]});
    let unknown = json!({"format": 1, "input": {"kind": "vector", "dim": 2}, "nodes":
        [{"name": "a", "op": "maxout"}]});
    let table: Vec<(Value, Shapes, &str)> = vec![
        (graph.clone(), &[("a.weight", &[3, 2])], "lacks a.bias"),
        (graph.clone(), &[("a.weight", &[2, 3]), ("a.bias", &[3])], "a.weight (is [2, 3]"),
        (graph.clone(), &[("a.weight", &[3, 2]), ("a.bias", &[3]), ("b", &[1])], "known about: b"),
        (named(json!({"a.weight": "W"})), whole, "lacks W"),
        (named(json!({"b.weight": "W"})), whole, "`b.weight` is not in the graph"),
        (named(json!({"a.weight": 1})), whole, "cannot be read"),
        (json!({"graph": graph, "weights": {}, "wieghts": {}}), whole, "`wieghts` is not known"),
        (json!({"graph": graph}), whole, "missing field `weights`"),
        (json!({"graph": odd, "weights": {}}), whole, "sigma` is not known"),
        (odd, whole, "sigma` is not known"),
        (unknown, whole, "maxout"),
        (huge, whole, "a.weight (is [3, 2]"),
        (json!([]), whole, "cannot be read"),
        (
            json!({"format": 2, "input": {"kind": "vector", "dim": 2}, "nodes": []}),
            whole,
            "format 2",
        ),
    ];
    for (graph, tensors, why) in table {
        let said = said(&graph, tensors);
        assert!(said.contains(why), "{why}: {said}");
    }
    // A tensor that the graph does not have is left out only if that is asked for, and named.
    std::fs::write(&path, graph.to_string()).unwrap();
    file(&weights, &[("a.weight", &[3, 2]), ("a.bias", &[3]), ("b", &[1])]);
    let error = import(&weights, &with(path.clone())).unwrap_err();
    let Error::File { what, .. } = &error else { panic!("{error}") };
    assert!(matches!(what.downcast_ref(), Some(Undecided::UnknownTensors(_))), "{error}");
    let left = ImportOptions { allow_unused: true, ..with(path.clone()) };
    assert_eq!(import(&weights, &left).unwrap().meta.provenance.origin.unwrap().unused, ["b"]);
    // Functions between layers are the graph's to say.
    let more = ImportOptions { activation: vec!["relu".into()], ..left };
    assert!(import(&weights, &more).unwrap_err().to_string().contains("is no file of matrices"));
    // What is a checkpoint already has a graph.
    let ours = own().join("mlp/checkpoint.safetensors");
    for options in [with(path), ImportOptions::default()] {
        let said = import(&ours, &options).unwrap_err().to_string();
        assert!(said.contains("is a checkpoint of this project already"), "{said}");
    }
}

#[test]
fn outputs_of_another_network_are_told() {
    let directory = own().join("transformer");
    let options = with(directory.join("graph.json"));
    let model = import(&directory.join("weights.safetensors"), &options).unwrap().model;
    let (input, output) = expected(&directory);
    let off = check(&model, &input, &output).unwrap();
    assert!(off < 1e-12, "{off:e}");
    let off = check(&model, &input, &output.to_dtype(DType::F32).unwrap()).unwrap();
    assert!(off > 0.0 && off < 1e-6, "{off:e}");
    let largest = flat(&output).iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let planted = |i: usize, by: f64| {
        let mut numbers = flat(&output);
        numbers[i] += by * largest;
        Tensor::from_vec(numbers, output.dims(), &Device::Cpu).unwrap()
    };
    let count = output.elem_count();
    for i in [0, count / 2, count - 1] {
        check(&model, &input, &planted(i, 5e-7)).unwrap();
        for by in [1e-5, -2.0 * TOLERANCE, 1e6] {
            let told = check(&model, &input, &planted(i, by)).unwrap_err();
            assert!(matches!(told, Disagreement::Apart { .. }), "{told}");
            assert!(told.to_string().contains("is not the one that gave them"), "{told}");
        }
        for by in [f64::NAN, f64::INFINITY] {
            let told = check(&model, &input, &planted(i, by)).unwrap_err();
            assert!(matches!(told, Disagreement::NotFinite("outputs")), "{told}");
        }
    }
    let told = |input: &Tensor, output: &Tensor| check(&model, input, output).unwrap_err();
    let half = output.to_dtype(DType::BF16).unwrap();
    assert!(matches!(told(&input, &half), Disagreement::Type(DType::BF16)));
    assert!(matches!(told(&input, &input), Disagreement::Type(DType::I64)));
    let short = output.narrow(1, 0, 2).unwrap();
    assert!(matches!(told(&input, &short), Disagreement::Shape { .. }));
    let zero = output.zeros_like().unwrap();
    assert!(matches!(told(&input, &zero), Disagreement::Zero));
    let empty = (input.narrow(0, 0, 0).unwrap(), output.narrow(0, 0, 0).unwrap());
    assert!(check(&model, &empty.0, &empty.1).is_err());
    let floats = input.to_dtype(DType::F32).unwrap();
    assert!(matches!(told(&floats, &output), Disagreement::Network(Error::Input(_))));
    // Another function, another order of layers, another scale.
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut graph = serde_json::to_value(model.graph()).unwrap();
        change(&mut graph);
        let graph: Graph = serde_json::from_value(graph).unwrap();
        let model = Model::new(graph, model.weights().clone()).unwrap();
        assert!(matches!(check(&model, &input, &output), Err(Disagreement::Apart { .. })));
    };
    wrong(&|g| g["nodes"][2]["body"][0]["body"][1]["body"][2]["function"] = json!("gelu_tanh"));
    wrong(&|g| g["nodes"][2]["body"][0]["body"][0]["body"][1]["causal"] = json!(false));
    wrong(&|g| g["nodes"][2]["body"][0]["body"][0]["body"][0]["eps"] = json!(1e-3));
    wrong(&|g| g["nodes"][2]["body"][1]["body"][0]["body"][1]["logit_scale"] = json!(0.6));
    let mut weights: Weights = model.weights().clone();
    let (a, b) = ("blocks.0.linear1.bias", "blocks.1.linear1.bias");
    let (first, second) = (weights[a].clone(), weights[b].clone());
    weights.insert(a.into(), second);
    weights.insert(b.into(), first);
    let swapped = Model::new(model.graph().clone(), weights).unwrap();
    assert!(matches!(check(&swapped, &input, &output), Err(Disagreement::Apart { .. })));
    // Weights of half precision are computed with in f32.
    let half = model.to(&Device::Cpu, DType::BF16).unwrap();
    let single = half.to(&Device::Cpu, DType::F32).unwrap().forward(&input).unwrap();
    assert_eq!(check(&half, &input, &single).unwrap(), 0.0);
}
