//! ONNX files that are refused, each with one line that says what is wrong; tensors in files beside
//! the model.

use std::path::Path;

use lipschitz_import::candle_core::{Device, Tensor};
use lipschitz_import::{ImportOptions, Imported, import};

/// A whole number in groups of seven bits.
fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn int(field: u64, n: i64) -> Vec<u8> {
    [varint(field << 3), varint(n as u64)].concat()
}

fn bytes(field: u64, data: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(data.len() as u64), data.to_vec()].concat()
}

fn text(field: u64, text: &str) -> Vec<u8> {
    bytes(field, text.as_bytes())
}

fn tensor(name: &str, dims: &[i64], kind: i64, raw: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|n| int(1, *n)).collect();
    [dims, int(2, kind), text(8, name), bytes(9, raw)].concat()
}

fn floats(name: &str, dims: &[i64]) -> Vec<u8> {
    let count = dims.iter().product::<i64>();
    let raw: Vec<u8> = (0..count).flat_map(|i| (i as f32 / 7.0 - 0.5).to_le_bytes()).collect();
    tensor(name, dims, 1, &raw)
}

fn option(name: &str, n: i64) -> Vec<u8> {
    [text(1, name), int(3, n), int(20, 2)].concat()
}

fn node(op: &str, reads: &[&str], makes: &[&str], options: &[Vec<u8>]) -> Vec<u8> {
    let reads: Vec<u8> = reads.iter().flat_map(|r| text(1, r)).collect();
    let makes: Vec<u8> = makes.iter().flat_map(|m| text(2, m)).collect();
    let options: Vec<u8> = options.iter().flat_map(|o| bytes(5, o)).collect();
    [reads, makes, text(3, &format!("the {op}")), text(4, op), options].concat()
}

fn value(name: &str, kind: i64, dims: &[i64]) -> Vec<u8> {
    let dim = |n: &i64| bytes(1, &if *n > 0 { int(1, *n) } else { text(2, "open") });
    let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
    let of = bytes(1, &[int(1, kind), bytes(2, &shape)].concat());
    [text(1, name), bytes(2, &of)].concat()
}

/// A graph, and what stands beside it in the model.
#[derive(Clone)]
struct File {
    nodes: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    opset: i64,
    more: Vec<u8>,
}

/// A map, a ReLU and a map.
fn valid() -> File {
    File {
        nodes: vec![
            node("MatMul", &["x", "w"], &["a"], &[]),
            node("Relu", &["a"], &["b"], &[]),
            node("MatMul", &["b", "v"], &["y"], &[]),
        ],
        tensors: vec![floats("w", &[3, 4]), floats("v", &[4, 2])],
        inputs: vec![value("x", 1, &[0, 3])],
        outputs: vec![value("y", 1, &[0, 2])],
        opset: 13,
        more: Vec::new(),
    }
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let all = |field: u64, of: &[Vec<u8>]| -> Vec<u8> {
            of.iter().flat_map(|message| bytes(field, message)).collect()
        };
        let graph = [
            all(1, &self.nodes),
            all(5, &self.tensors),
            all(11, &self.inputs),
            all(12, &self.outputs),
        ];
        let opset = [text(1, ""), int(2, self.opset)].concat();
        [int(1, 8), bytes(7, &graph.concat()), bytes(8, &opset), self.more.clone()].concat()
    }
}

fn said(path: &Path) -> String {
    import(path, &ImportOptions::default()).unwrap_err().to_string()
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let read = |file: &File| {
        std::fs::write(&path, file.bytes()).unwrap();
        import(&path, &ImportOptions::default()).map(|_| ()).map_err(|e| e.to_string())
    };
    read(&valid()).unwrap();
    type Change = fn(&mut File);
    let cases: &[(&str, Change)] = &[
        ("node `the Sin` (Sin) is an operator that is not read", |f| {
            f.nodes[1] = node("Sin", &["a"], &["b"], &[]);
        }),
        ("operator of `com.microsoft`", |f| f.nodes[1].extend(text(7, "com.microsoft"))),
        ("has the option `alpha`, which is not known", |f| {
            f.nodes[1] = node("Relu", &["a"], &["b"], &[option("alpha", 1)]);
        }),
        ("has 2 inputs (x, z)", |f| f.inputs.push(value("z", 1, &[0, 3]))),
        ("has 0 inputs", |f| f.inputs.clear()),
        ("has 2 outputs (y, b)", |f| f.outputs.push(value("b", 1, &[0, 4]))),
        ("`q`, which does not depend on its input", |f| f.outputs = vec![value("q", 1, &[1])]),
        ("reads `gone`, which nothing before it makes", |f| {
            f.nodes[1] = node("Relu", &["gone"], &["b"], &[]);
        }),
        // Out of order.
        ("reads `a`, which nothing before it makes", |f| f.nodes.swap(0, 1)),
        ("makes `a`, which is there already", |f| {
            f.nodes.insert(1, node("Relu", &["a"], &["a"], &[]));
        }),
        ("softmax outside of attention", |f| {
            f.nodes.push(node("Softmax", &["y"], &["z"], &[]));
            f.outputs = vec![value("z", 1, &[0, 2])];
        }),
        ("multiplies two values that depend on the input", |f| {
            f.nodes.push(node("Mul", &["y", "y2"], &["z"], &[]));
            f.nodes.insert(3, node("MatMul", &["a", "v"], &["y2"], &[]));
            f.outputs = vec![value("z", 1, &[0, 2])];
        }),
        ("maps 3 numbers, and reads 5", |f| f.inputs = vec![value("x", 1, &[0, 5])]),
        ("leaves sizes of its input open", |f| f.inputs = vec![value("x", 1, &[0, 0])]),
        ("leaves the number of tokens open", |f| {
            f.inputs = vec![value("x", 7, &[0, 0])];
            f.nodes.insert(0, node("Gather", &["t", "x"], &["e"], &[]));
            f.nodes[1] = node("MatMul", &["e", "w"], &["a"], &[]);
            f.tensors.push(floats("t", &[5, 3]));
        }),
        ("of version 5", |f| f.opset = 5),
        ("of version 99", |f| f.opset = 99),
        ("does not say one version", |f| {
            f.more = bytes(8, &[text(1, "ai.onnx"), int(2, 12)].concat());
        }),
        ("defines the operator `mine` itself", |f| f.more = bytes(25, &text(1, "mine"))),
        ("holds sparse tensors", |f| {
            f.tensors.push(Vec::new());
            let graph = bytes(15, &[]);
            f.more = bytes(7, &graph);
        }),
        ("has a negative size", |f| f.tensors.push(tensor("z", &[-1], 1, &[]))),
        ("and 3 bytes of F32", |f| f.tensors.push(tensor("z", &[1], 1, &[0; 3]))),
        ("is too large", |f| f.tensors[0] = tensor("w", &[3, i64::MAX], 1, &[0; 48])),
        ("is there twice", |f| f.tensors.push(floats("w", &[3, 4]))),
        ("is in training mode", |f| {
            let names = ["y", "s", "s", "s", "s"];
            f.nodes.push(node("BatchNormalization", &names, &["z"], &[option("training_mode", 1)]));
            f.tensors.push(floats("s", &[2]));
            f.outputs = vec![value("z", 1, &[0, 2])];
        }),
        ("has a constant on its left", |f| f.nodes[0] = node("MatMul", &["w", "x"], &["a"], &[])),
        ("elements are in another order", |f| {
            f.nodes.push(node("Transpose", &["y"], &["z"], &[]));
            f.outputs = vec![value("z", 1, &[2, 0])];
        }),
        ("moves elements in a way that is not known", |f| {
            f.nodes.push(node("Reshape", &["y", "s"], &["z"], &[]));
            f.tensors.push(tensor("s", &[1], 7, &7i64.to_le_bytes()));
            f.outputs = vec![value("z", 1, &[7])];
        }),
        ("too large", |f| {
            let size = [1 << 20, 1 << 20].map(i64::to_le_bytes).concat();
            f.nodes.push(node("ConstantOfShape", &["s"], &["c"], &[]));
            f.nodes.push(node("Add", &["y", "c"], &["z"], &[]));
            f.tensors.push(tensor("s", &[2], 7, &size));
            f.outputs = vec![value("z", 1, &[0, 2])];
        }),
    ];
    for (wanted, change) in cases {
        let mut file = valid();
        change(&mut file);
        let said = read(&file).expect_err(wanted);
        assert!(said.contains(wanted) && said.contains("m.onnx"), "{said}, not {wanted}");
        assert!(!said.contains('\n') && said.len() < 400, "{said}");
    }
}

fn scalar(name: &str, x: f32) -> Vec<u8> {
    tensor(name, &[], 1, &x.to_le_bytes())
}

fn whole(name: &str, dims: &[i64], numbers: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    tensor(name, dims, 7, &raw)
}

/// A file of `x` of three elements, any number of examples, with these nodes and tensors.
fn of(nodes: Vec<Vec<u8>>, tensors: Vec<Vec<u8>>) -> File {
    File { nodes, tensors, outputs: vec![value("y", 1, &[0, 3])], ..valid() }
}

/// How many examples there are decides nothing, at no number of them; numbers of whole numbers are those of
/// the file's own type, or are refused where rounding decides.
#[test]
fn open_sizes_decide_nothing() {
    let another = "computes another network for other numbers of examples or tokens";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let read = |file: &File| {
        std::fs::write(&path, file.bytes()).unwrap();
        import(&path, &ImportOptions::default()).map_err(|e| e.to_string())
    };
    let size = |from: &str| {
        vec![node("Shape", &["x"], &["s"], &[]), node("Gather", &["s", from], &["b"], &[])]
    };
    let numbers = || {
        vec![
            whole("zero", &[], &[0]),
            whole("one", &[], &[1]),
            whole("many", &[], &[100]),
            scalar("ten", 10.0),
            scalar("1", 1.0),
        ]
    };
    let with = |more: Vec<Vec<u8>>, from: &str| {
        let last = node("Mul", &["x", "k"], &["y"], &[]);
        of([size(from), more, vec![last]].concat(), numbers())
    };
    let chosen = |op: &str, a: &str, b: &str| {
        vec![node(op, &[a, b], &["c"], &[]), node("Where", &["c", "ten", "1"], &["k"], &[])]
    };
    for op in ["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"] {
        let said = read(&with(chosen(op, "b", "many"), "zero")).map(|_| ()).unwrap_err();
        // Some of the numbers that it is read for are drawn, beyond the threshold or not.
        assert!(said.contains(another), "{said}");
        // Of the other axis, which the file says.
        read(&with(chosen(op, "b", "many"), "one")).unwrap();
    }
    // No number of examples is zero.
    read(&with(chosen("Equal", "b", "zero"), "zero")).unwrap();
    read(&with(chosen("Greater", "b", "zero"), "zero")).unwrap();
    for op in ["Min", "Max", "Div", "Mod"] {
        let few = [vec![node(op, &["b", "many"], &["d"], &[])], chosen("Equal", "d", "many")];
        let said = read(&with(few.concat(), "zero")).map(|_| ()).unwrap_err();
        assert!(said.contains(another), "{op}: {said}");
    }
    // Arithmetic alone, which is 1 at some sizes; a length; a clamp; what floats hide.
    let minus = |of: &str, by: &str, to: &str| node("Sub", &[of, by], &[to], &[]);
    let float = |of: &str, to: &str| node("Cast", &[of], &[to], &[option("to", 1)]);
    let scaled = |more: Vec<Vec<u8>>| {
        of([size("zero"), more, vec![node("Mul", &["x", "k"], &["y"], &[])]].concat(), {
            let more = [("two", 2), ("three", 3), ("seven", 7), ("far", -100)]
                .map(|(name, n)| whole(name, &[], &[n]));
            [
                numbers(),
                more.to_vec(),
                vec![
                    whole("axis", &[1], &[0]),
                    whole("back", &[1], &[-100]),
                    whole("end", &[1], &[i64::MAX]),
                    scalar("late", 300.0),
                ],
            ]
            .concat()
        })
    };
    let length = |of: &str| {
        vec![
            node("Shape", &[of], &["l"], &[]),
            node("Gather", &["l", "zero"], &["n"], &[]),
            float("n", "f"),
            node("Add", &["1", "f"], &["k"], &[]),
        ]
    };
    let hidden = [
        vec![
            minus("b", "one", "b1"),
            minus("b", "two", "b2"),
            minus("b", "three", "b3"),
            minus("b", "seven", "b7"),
            node("Mul", &["b1", "b2"], &["p"], &[]),
            node("Mul", &["p", "b3"], &["q"], &[]),
            node("Mul", &["q", "b7"], &["r"], &[]),
            float("r", "f"),
            node("Add", &["1", "f"], &["k"], &[]),
        ],
        [vec![node("Range", &["many", "b", "one"], &["g"], &[])], length("g")].concat(),
        [
            vec![
                node("Range", &["zero", "b", "one"], &["g"], &[]),
                node("Slice", &["g", "back", "end", "axis"], &["h"], &[]),
                node("Range", &["zero", "many", "one"], &["u"], &[]),
            ],
            length("h"),
        ]
        .concat(),
        vec![
            float("b", "f"),
            minus("f", "late", "g"),
            node("Exp", &["g"], &["e"], &[]),
            node("Add", &["1", "e"], &["k"], &[]),
        ],
    ];
    for nodes in hidden {
        let said = read(&scaled(nodes)).map(|_| ()).unwrap_err();
        assert!(said.contains(another), "{said}");
    }
    let table = [
        vec![node("Gather", &["table", "b"], &["k"], &[])],
        vec![node("Mul", &["x", "k"], &["y"], &[])],
    ];
    let mut file = of([size("zero"), table.concat()].concat(), numbers());
    let row: Vec<u8> =
        (0..64).flat_map(|i| (if i == 40 { 9f32 } else { 1.0 }).to_le_bytes()).collect();
    file.tensors.push(tensor("table", &[64], 1, &row));
    assert!(read(&file).map(|_| ()).unwrap_err().contains(another));
}

/// What is computed of constants is rounded as whoever runs the file rounds it.
/// What operators decide by is kept for all readings of a file: there is an end to it.
#[test]
fn decisions_take_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floors.onnx");
    let mut nodes: Vec<Vec<u8>> = (0..3000)
        .map(|i| node("Floor", &[&format!("c{i}")], &[&format!("c{}", i + 1)], &[]))
        .collect();
    nodes.push(node("Relu", &["x"], &["y"], &[]));
    let whole: Vec<u8> = (0..4096).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(&path, of(nodes, vec![tensor("c0", &[4096], 1, &whole)]).bytes()).unwrap();
    let clock = std::time::Instant::now();
    assert!(said(&path).contains("decide by too many numbers"), "{}", said(&path));
    assert!(clock.elapsed().as_secs() < 20);
}

#[test]
fn constants_are_those_of_their_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let read = |nodes: Vec<Vec<u8>>, tensors: Vec<Vec<u8>>| {
        std::fs::write(&path, of(nodes, tensors).bytes()).unwrap();
        import(&path, &ImportOptions::default()).map_err(|e| e.to_string())
    };
    let outputs = |imported: Imported| {
        let x = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        imported.model.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    // 0.7 · 10 is 7 in f32, and 6.9999998807… without rounding.
    let floor = vec![
        node("Mul", &["p", "q"], &["c"], &[]),
        node("Floor", &["c"], &["k"], &[]),
        node("Mul", &["x", "k"], &["y"], &[]),
    ];
    let y = outputs(read(floor.clone(), vec![scalar("p", 0.7), scalar("q", 10.0)]).unwrap());
    assert_eq!(y, [7.0, 14.0, 21.0]);
    // So near to 7 that another order of operations could decide.
    let near = vec![scalar("p", 0.7), scalar("q", 9.999_999)];
    let said = read(floor, near).map(|_| ()).unwrap_err();
    assert!(said.contains("which rounding may decide"), "{said}");
    // 2²⁵ + 1 is no number of f32.
    let gone = vec![
        node("Add", &["large", "1"], &["a"], &[]),
        node("Sub", &["a", "large"], &["b"], &[]),
        node("Sub", &["1", "b"], &["k"], &[]),
        node("Mul", &["x", "k"], &["y"], &[]),
    ];
    let y = outputs(read(gone, vec![scalar("large", 33_554_432.0), scalar("1", 1.0)]).unwrap());
    assert_eq!(y, [1.0, 2.0, 3.0]);
    // Halves that are widened first are added in f32; whole numbers are exact or refused.
    let half = |name: &str, bits: u16| tensor(name, &[1], 10, &bits.to_le_bytes());
    let wide = vec![
        node("Cast", &["p"], &["a"], &[option("to", 1)]),
        node("Cast", &["q"], &["b"], &[option("to", 1)]),
        node("Add", &["a", "b"], &["c"], &[]),
        node("Sub", &["c", "a"], &["k"], &[]),
        node("Mul", &["x", "k"], &["y"], &[]),
    ];
    let y = outputs(read(wide, vec![half("p", 0x6800), half("q", 0x3c00)]).unwrap());
    assert_eq!(y, [1.0, 2.0, 3.0]);
    for (op, a, b) in [("Sub", (1 << 53) + 1, 1 << 53), ("Mul", 65536, 65536), ("Add", i64::MAX, 1)]
    {
        let nodes = vec![
            node(op, &["p", "q"], &["a"], &[]),
            node("Cast", &["a"], &["k"], &[option("to", 1)]),
            node("Mul", &["x", "k"], &["y"], &[]),
        ];
        let said = read(nodes, vec![whole("p", &[], &[a]), whole("q", &[], &[b])])
            .map(|_| ())
            .unwrap_err();
        assert!(said.contains("whole numbers"), "{op}: {said}");
    }
    // A quotient is never less than it is.
    let third = vec![node("Div", &["x", "3"], &["y"], &[])];
    let model = read(third, vec![scalar("3", 3.0)]).unwrap().model;
    let graph = serde_json::to_value(model.graph()).unwrap().to_string();
    let factor: f64 = graph
        .split("\"factor\":")
        .nth(1)
        .unwrap()
        .split([',', '}'])
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(factor.mul_add(3.0, -1.0) >= 0.0 && factor < 0.333_333_333_333_334, "{factor}");
    // A file of a few bytes does not take all memory.
    for dims in [[0, 1 << 40], [0, 1 << 27]] {
        let halves = vec![
            node("Split", &["x"], &["a", "b"], &[option("axis", 1)]),
            node("Add", &["a", "b"], &["y"], &[]),
        ];
        let file = File { inputs: vec![value("x", 1, &dims)], ..of(halves, Vec::new()) };
        std::fs::write(&path, file.bytes()).unwrap();
        let refused = import(&path, &ImportOptions::default()).map(|_| ()).unwrap_err();
        assert!(!refused.to_string().contains('\n'));
    }
}

#[test]
fn a_file_that_is_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let whole = valid().bytes();
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let said = said(&path);
        assert!(said.contains("m.onnx"), "{end}: {said}");
    }
    // Two bytes a node, of which each takes hundreds in memory.
    let nodes = bytes(7, &[0x0a, 0x00].repeat(1 << 19));
    let opset = bytes(8, &int(2, 13));
    std::fs::write(&path, [int(1, 8), nodes, opset].concat()).unwrap();
    assert!(said(&path).contains("more structure than a file of its size"), "{}", said(&path));
}

/// Weights in a file beside the model are those, and none is read from elsewhere.
#[test]
fn tensors_in_files_beside_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("inner");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("m.onnx");
    let entry = |key: &str, value: &str| bytes(13, &[text(1, key), text(2, value)].concat());
    let beside = |entries: Vec<Vec<u8>>| {
        let dims = [int(1, 3), int(1, 4), int(2, 1), text(8, "w"), int(14, 1)].concat();
        let mut file = valid();
        file.tensors[0] = [dims, entries.concat()].concat();
        std::fs::write(&path, file.bytes()).unwrap();
        import(&path, &ImportOptions::default()).map_err(|e| e.to_string())
    };
    let numbers: Vec<u8> = (0..12).flat_map(|i| (i as f32 / 7.0 - 0.5).to_le_bytes()).collect();
    std::fs::write(folder.join("data"), [&[9; 16], &numbers[..]].concat()).unwrap();
    std::fs::write(dir.path().join("outside"), &numbers).unwrap();
    let (offset, length) = (entry("offset", "16"), entry("length", "48"));
    let Imported { model, .. } =
        beside(vec![entry("location", "data"), offset.clone(), length]).unwrap();
    std::fs::write(&path, valid().bytes()).unwrap();
    let same = import(&path, &ImportOptions::default()).unwrap().model;
    let x = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
    let outputs = [model, same].map(|m| m.forward(&x).unwrap().to_vec2::<f32>().unwrap());
    assert_eq!(outputs[0], outputs[1]);
    let absolute = dir.path().join("outside").to_string_lossy().into_owned();
    for (location, wanted) in [
        ("../outside", "which is not in its folder"),
        ("", "which is not in its folder"),
        (absolute.as_str(), "which is not in its folder"),
        ("missing", "missing"),
    ] {
        let said = beside(vec![entry("location", location)]).unwrap_err();
        assert!(said.contains(wanted), "{said}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.path().join("outside"), folder.join("link")).unwrap();
        let said = beside(vec![entry("location", "link")]).unwrap_err();
        assert!(said.contains("which is not in its folder"), "{said}");
    }
    for entries in [
        vec![],
        vec![entry("location", "data"), entry("offset", "-1")],
        vec![entry("location", "data"), entry("offset", "17")],
        vec![entry("location", "data"), offset, entry("length", "44")],
    ] {
        assert!(beside(entries.clone()).is_err(), "{entries:?}");
    }
}

/// A file of some hundred kilobytes is no reason to run out of the stack or of memory.
#[test]
fn long_chains_end_in_time_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    // h₀ = x W, hₖ₊₁ = h₀ + hₖ V: each sum lies in a branch of the next.
    let mut nested = File { nodes: vec![node("MatMul", &["x", "w"], &["h0"], &[])], ..valid() };
    nested.tensors = vec![floats("w", &[3, 4]), floats("v", &[4, 4])];
    // h₀ = x W, hₖ₊₁ = hₖ ∘ s.
    let mut chained = nested.clone();
    chained.tensors.push(floats("s", &[4]));
    for i in 0..6000 {
        let [now, map, next] = [format!("h{i}"), format!("m{i}"), format!("h{}", i + 1)];
        nested.nodes.push(node("MatMul", &[&now, "v"], &[&map], &[]));
        nested.nodes.push(node("Add", &["h0", &map], &[&next], &[]));
        chained.nodes.push(node("Mul", &[&now, "s"], &[&next], &[]));
    }
    for file in [&mut nested, &mut chained] {
        file.outputs = vec![value("h6000", 1, &[0, 4])];
    }
    std::fs::write(&path, nested.bytes()).unwrap();
    assert!(said(&path).contains("too deep"), "{}", said(&path));
    std::fs::write(&path, chained.bytes()).unwrap();
    // The factors are no more than 3/7, so that little is left of 6000 of them.
    let Imported { model, .. } = import(&path, &ImportOptions::default()).unwrap();
    let x = Tensor::ones((1, 3), lipschitz_import::candle_core::DType::F32, &Device::Cpu).unwrap();
    let y = model.forward(&x).unwrap().abs().unwrap().max_all().unwrap();
    let y = y.to_dtype(lipschitz_import::candle_core::DType::F64).unwrap();
    assert!(y.to_scalar::<f64>().unwrap() < 1e-30);
}
