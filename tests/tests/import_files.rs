//! Formats other than a model directory, and files that are damaged or made to do harm: one clear
//! line, nothing run.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama2_c::{Cache, Config, Llama};
use candle_transformers::models::llama2_c_weights::TransformerWeights;
use lipschitz_certify::terminal::line;
use lipschitz_import::{Dialect, Foreign, ImportOptions, Imported, Undecided, import};
use lipschitz_nn::{Model, graph::Op};
use lipschitz_tests::Dice;
use lipschitz_tests::foreign::{Tensors, distance, flat, ids, ours, seeded, write};
use serde_json::{Value, json};

fn le(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn floats(count: usize, dice: &mut Dice, factor: f64, around: f64) -> Vec<u8> {
    (0..count).flat_map(|_| ((around + factor * dice.unit()) as f32).to_le_bytes()).collect()
}

/// dim, hidden, layers, heads, key-value heads, vocabulary, context.
const SIZES: [i32; 7] = [12, 10, 2, 3, 3, 11, 8];

/// A llama2.c file, and where its head begins.
fn llama2c(sizes: [i32; 7]) -> Vec<u8> {
    let mut dice = Dice::new(9);
    let [dim, hidden, layers, heads, kv, vocabulary, context] =
        sizes.map(|n| n.unsigned_abs() as usize);
    let (head, key) = (dim / heads, dim / heads * kv);
    let mut out = le(&sizes);
    out.extend(floats(vocabulary * dim, &mut dice, 1.0, 0.0));
    out.extend(floats(layers * dim, &mut dice, 0.3, 1.0));
    for count in [dim * dim, key * dim, key * dim, dim * dim] {
        out.extend(floats(layers * count, &mut dice, 0.7, 0.0));
    }
    out.extend(floats(layers * dim, &mut dice, 0.3, 1.0));
    for _ in 0..3 {
        out.extend(floats(layers * dim * hidden, &mut dice, 0.7, 0.0));
    }
    out.extend(floats(dim, &mut dice, 0.3, 1.0));
    for f in [f64::cos as fn(f64) -> f64, f64::sin] {
        for t in 0..context {
            for i in 0..head / 2 {
                let angle = t as f64 * 10000f64.powf(-2.0 * i as f64 / head as f64);
                out.extend((f(angle) as f32).to_le_bytes());
            }
        }
    }
    if sizes[5] < 0 {
        out.extend(floats(vocabulary * dim, &mut dice, 0.5, 0.0));
    }
    out
}

fn imported(path: &Path) -> Imported {
    import(path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(path: &Path) -> String {
    // Only what may be matrices is told what is between them.
    let activation = if path.is_dir() { Vec::new() } else { vec!["relu".into()] };
    let error = import(path, &ImportOptions { activation, ..ImportOptions::default() });
    let line = error.err().unwrap_or_else(|| panic!("{} was imported", path.display())).to_string();
    assert!(!line.contains('\n') && line.len() < 2000, "{line}");
    line
}

#[test]
fn llama2c_files_are_those_of_candle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stories.bin");
    let bytes = llama2c(SIZES);
    std::fs::write(&path, &bytes).unwrap();
    let single = imported(&path).model;
    let model = single.to(&Device::Cpu, DType::F64).unwrap();
    let mut reader = Cursor::new(&bytes);
    let config = Config::from_reader(&mut reader).unwrap();
    let weights = TransformerWeights::from_reader(&mut reader, &config, &Device::Cpu).unwrap();
    let vb = weights.var_builder(&config, &Device::Cpu).unwrap();
    let mut cache = Cache::new(false, &config, vb.pp("rot")).unwrap();
    let candle = Llama::load(vb, config).unwrap();
    for tokens in ids(&[1, 2, 5, 8], 11) {
        let wanted = flat(&candle.forward(&tokens, 0, &mut cache).unwrap());
        let (found, rounded) =
            (flat(&model.forward(&tokens).unwrap()), flat(&single.forward(&tokens).unwrap()));
        let size = found.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let tolerance = 8.0 * distance(&found, &rounded) + 1e-6 * size;
        assert!(
            tolerance < 1e-3 * size && distance(&found, &wanted) <= tolerance,
            "{:?}",
            tokens.dims()
        );
    }
    // A negative vocabulary: the head has a matrix of its own. Fewer keys than queries.
    let mut own = SIZES;
    (own[4], own[5]) = (1, -11);
    std::fs::write(&path, llama2c(own)).unwrap();
    let model = imported(&path).model;
    assert_ne!(flat(&model.weights()["head.weight"]), flat(&model.weights()["embedding.weight"]));
    // Not a byte more or less, and no size that the file cannot hold.
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refused(&path).contains("no whole model"));
    std::fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert!(refused(&path).contains("its header wants"));
    for (i, n) in [(0, i32::MAX), (2, 1_000_000_000), (3, 5), (4, 0), (5, i32::MIN), (6, -1)] {
        let mut sizes = SIZES;
        sizes[i] = n;
        std::fs::write(&path, [le(&sizes), bytes[28..].to_vec()].concat()).unwrap();
        assert!(refused(&path).contains("llama2.c"), "{i} {n}");
    }
}

/// A zip archive of stored members, as PyTorch and numpy write them.
fn zip(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    archive(0, members)
}

/// A zip archive whose members are what a method of compression makes of them: 0 for none, 8 for
/// deflate.
fn archive(method: u16, members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let crc = crc32(data);
        let start = out.len() as u32;
        // What is compressed says that it is large, which is no reason to take memory for it.
        let whole = if method == 0 { data.len() as u32 } else { u32::MAX - 1 };
        let sizes = [crc, data.len() as u32, whole];
        let middle: Vec<u8> = [0, method, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        let sizes: Vec<u8> = sizes.iter().flat_map(|n| n.to_le_bytes()).collect();
        let lengths = [(name.len() as u16).to_le_bytes(), 0u16.to_le_bytes()].concat();
        out.extend(
            [b"PK\x03\x04\x14\x00", &middle[..], &sizes, &lengths, name.as_bytes(), data].concat(),
        );
        let tail = [&[0u8; 10][..], &start.to_le_bytes()].concat();
        directory.extend(
            [b"PK\x01\x02\x14\x00\x14\x00", &middle[..], &sizes, &lengths, &tail, name.as_bytes()]
                .concat(),
        );
    }
    let count = (members.len() as u16).to_le_bytes();
    let (size, at) = ((directory.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend(directory);
    out.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &at, &[0, 0]].concat());
    out
}

/// Deflated zeros, 258 in 13 bits: one, then repetitions of it.
fn zeros(runs: usize) -> Vec<u8> {
    // Bits in the order of the stream: last block, fixed codes, the number 0, (length 258, distance
    // 1) again and again, the end.
    let mut bits = vec![true, true, false];
    let mut code = |text: &str| bits.extend(text.bytes().map(|b| b == b'1'));
    code("00110000");
    (0..runs).for_each(|_| code("1100010100000"));
    code("0000000");
    bits.chunks(8)
        .map(|byte| byte.iter().enumerate().map(|(i, bit)| u8::from(*bit) << i).sum())
        .collect()
}

/// An array of a Python object, as numpy writes it, around the pickle of one.
fn object(of: &[u8]) -> Vec<u8> {
    let header = "{'descr': '|O', 'fortran_order': False, 'shape': (), }\n";
    let start =
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00b\x87R(K\x01)NN]";
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), start, of, b"atb."].concat()
}

/// An archive of a run: its config and its matrices.
fn run(args: &[u8], weights: &[u8]) -> Vec<u8> {
    zip(&[("args.npy", object(args)), ("weights_checkpoint_0.npy", object(weights))])
}

/// `{"data": "cifar", "d_embed": 2, "num_blocks": 2}`
const ARGS: &[u8] =
    b"}(X\x04\x00\x00\x00dataX\x05\x00\x00\x00cifarX\x07\x00\x00\x00d_embedK\x02X\x0a\x00\x00\x00num_blocksK\x02u";

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 },
        )
    })
}

/// The pickle of `{"0.weight": tensor}` with this shape, its storage in member 0.
fn pickled(global: &str, shape: &[i32], offset: i32) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x00(X\x08\x00\x00\x000.weight".to_vec();
    out.extend(format!("c{global}\n").as_bytes());
    out.extend(b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ");
    out.push(b'J');
    out.extend(offset.to_le_bytes());
    let strides: Vec<i32> = (0..shape.len())
        .map(|i| shape[i + 1..].iter().fold(1, |n: i32, d| n.wrapping_mul(*d)))
        .collect();
    for list in [shape, &strides] {
        out.push(b'(');
        list.iter().for_each(|n| out.extend([&b"J"[..], &n.to_le_bytes()].concat()));
        out.push(b't');
    }
    out.extend(b"\x89ccollections\nOrderedDict\n)RtRu.");
    out
}

const REBUILD: &str = "torch._utils\n_rebuild_tensor_v2";

fn torch(pickle: Vec<u8>) -> Vec<u8> {
    let numbers: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    zip(&[("m/data.pkl", pickle), ("m/byteorder", b"little".to_vec()), ("m/data/0", numbers)])
}

fn npy(shape: &str, numbers: &[f64]) -> Vec<u8> {
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n");
    let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &data]
        .concat()
}

#[test]
fn matrices_of_pytorch_and_numpy_are_mlps() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: Vec<u8>| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let path = file("m.pt", torch(pickled(REBUILD, &[2, 2], 0)));
    let model = imported(&path).model;
    assert_eq!(
        flat(&model.forward(&Tensor::new(&[[1f32, 10.0]], &Device::Cpu).unwrap()).unwrap()),
        [21.0, 43.0]
    );
    // What stays on disk must stay as it was opened: a proof of half of one file and half of
    // another is none.
    let opened = Foreign::open(&path, &ImportOptions::default()).unwrap();
    assert_eq!(flat(&opened.tensor("layer0.weight").unwrap()), [1.0, 2.0, 3.0, 4.0]);
    assert!(opened.tensor("layer1.weight").unwrap_err().to_string().contains("is missing"));
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    let said = opened.tensor("layer0.weight").unwrap_err().to_string();
    assert!(said.contains("m.pt") && said.contains("has changed since"), "{said}");
    // A view into its storage.
    let path = file("view.pt", torch(pickled(REBUILD, &[1, 2], 2)));
    assert_eq!(flat(&imported(&path).model.weights()["layer0.weight"]), [3.0, 4.0]);
    // Eleven matrices, in the order of their numbers; biases where there are some.
    let numbers: Vec<(String, Vec<u8>)> =
        (0..11).map(|i| (format!("arr_{i}.npy"), npy("(1, 1)", &[f64::from(i) + 1.0]))).collect();
    let members: Vec<(&str, Vec<u8>)> =
        numbers.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    let path = file("m.npz", zip(&members));
    let undecided = import(&path, &ImportOptions::default()).unwrap_err();
    let lipschitz_nn::Error::File { what, .. } = &undecided else { panic!("{undecided}") };
    assert!(matches!(what.downcast_ref(), Some(Undecided::NoActivation(_))), "{undecided}");
    assert!(line(&undecided.into()).contains("; give --activation, such as relu"));
    let relu = ImportOptions { activation: vec!["relu".into()], ..ImportOptions::default() };
    let Imported { model, meta, .. } = import(&path, &relu).unwrap();
    assert_eq!(flat(&model.weights()["layer9.weight"]), [10.0]);
    assert_eq!(
        model.graph().nodes().iter().filter(|n| matches!(n.op, Op::Activation { .. })).count(),
        10
    );
    assert!(meta.provenance.origin.unwrap().notes[0].contains("relu"));
    let odd = ImportOptions { activation: vec!["relu9".into()], ..ImportOptions::default() };
    assert!(import(&path, &odd).unwrap_err().to_string().contains("relu9"));
    let path = file(
        "chain.npz",
        zip(&[
            ("arr_0.npy", npy("(1, 2)", &[1.0, 2.0])),
            ("arr_1.npy", npy("(1, 2)", &[1.0, 2.0])),
        ]),
    );
    assert!(refused(&path).contains("`arr_1` reads 2 numbers"));
    // The order of an archive may be that of the alphabet.
    let path = file(
        "sorted.npz",
        zip(&[
            ("decoder.weight.npy", npy("(1, 1)", &[1.0])),
            ("encoder.weight.npy", npy("(1, 1)", &[2.0])),
        ]),
    );
    let undecided = import(&path, &relu).unwrap_err();
    let lipschitz_nn::Error::File { what, .. } = &undecided else { panic!("{undecided}") };
    assert!(matches!(what.downcast_ref(), Some(Undecided::NoOrder(_))), "{undecided}");
}

/// The weights of a run are what the archive says, bit for bit: in f32 only if that rounds none.
#[test]
fn weights_of_runs_are_not_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.npz");
    for (odd, dtype) in [(0.5, DType::F32), (0.1, DType::F64)] {
        let mut weights = b"}(".to_vec();
        for (i, (rows, columns)) in [(2, 3072), (10, 2)].into_iter().enumerate() {
            weights.extend([b'K', i as u8, b']', b'(']);
            for row in 0..rows {
                weights.extend(b"](");
                for column in 0..columns {
                    let x: f64 = if (i, row, column) == (1, 3, 1) { odd } else { 0.25 };
                    weights.push(b'G');
                    weights.extend(x.to_be_bytes());
                }
                weights.push(b'e');
            }
            weights.push(b'e');
        }
        weights.push(b'u');
        std::fs::write(&path, run(ARGS, &weights)).unwrap();
        let model = imported(&path).model;
        assert_eq!(model.dtype(), dtype);
        assert_eq!(flat(&model.weights()["layer1.weight"])[7], odd);
    }
}

#[test]
fn harmful_files_are_one_line_and_nothing_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let witness = dir.path().join("witness");
    let mut system = b"\x80\x02cposix\nsystem\n(X".to_vec();
    let command = format!("touch {}", witness.display());
    system.extend((command.len() as u32).to_le_bytes());
    system.extend(command.as_bytes());
    system.extend(b"tR.");
    let laughs: Vec<u8> = {
        let mut out = b"\x80\x02]q\x00".to_vec();
        for i in 0..60u8 {
            out.extend([b'(', b'h', i, b'h', i, b't', b'q', i + 1]);
        }
        out.push(b'.');
        out
    };
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("call.pt", torch(system), "posix.system"),
        ("eval.pt", torch(pickled("builtins\neval", &[2, 2], 0)), "builtins.eval"),
        (
            "nested.pt",
            torch(
                [&b"\x80\x02"[..], &vec![b']'; 1 << 20], &vec![b'a'; (1 << 20) - 1], b"."].concat(),
            ),
            "more memory than it has bytes",
        ),
        ("laughs.pt", torch(laughs), "no dictionary"),
        ("long.pt", torch(b"\x80\x02X\xff\xff\xff\xff".to_vec()), "truncated"),
        ("overflow.pt", torch(pickled(REBUILD, &[i32::MAX, i32::MAX], 0)), "0.weight"),
        ("outside.pt", torch(pickled(REBUILD, &[2, 2], 1)), "storage does not hold"),
        ("negative.pt", torch(pickled(REBUILD, &[-2, 2], 0)), "0.weight"),
        ("zip.pt", b"PK\x03\x04and then nothing".to_vec(), "zip archive"),
        ("old.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "truncated"),
        ("empty.pt", Vec::new(), "empty"),
        (
            "header.safetensors",
            [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat(),
            "header of \
                                                                                   1152921504606846976",
        ),
        (
            "overlap.safetensors",
            st(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            ),
            "safetensors",
        ),
        (
            "product.safetensors",
            st(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0),
            "safetensors",
        ),
        (
            "gap.safetensors",
            st(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
            "safetensors",
        ),
        (
            "short.safetensors",
            st(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4),
            "wants",
        ),
        ("json.safetensors", st("[[[[", 0), "safetensors"),
        ("huge.npz", zip(&[("arr_0.npy", npy("(9223372036854775807, 4)", &[1.0]))]), "arr_0"),
        (
            "object.npz",
            zip(&[(
                "arr_0.npy",
                b"\x93NUMPY\x01\x00\x3a\x00{'descr': '|O', 'fortran_order': False, 'shape': (), } \
                      \n"
                .to_vec(),
            )]),
            "arr_0",
        ),
        ("call.npz", run(b"cposix\nsystem\n(X\x04\x00\x00\x00trueR", b"}"), "posix.system"),
        ("args.npz", run(b"]", b"}"), "no dictionary of options"),
        ("none.npz", run(ARGS, b"}"), "hold 0 tensors"),
        ("rows.npz", run(ARGS, b"}K\x00](]G\x00\x00\x00\x00\x00\x00\x00\x00aes"), "hold 1 tensors"),
        // A float that is remembered before it is appended, and called up again after.
        (
            "again.npz",
            run(ARGS, b"}K\x00](]G\x00\x00\x00\x00\x00\x00\x00\x00q\x07ah\x07es"),
            "no list of rows",
        ),
        ("lost.npz", run(ARGS, b"}K\x00]h\x09as"), "never kept"),
        ("cut.npz", run(ARGS, b"}K\x00](]G\x00"), "truncated"),
        (
            "doubled.npz",
            run(
                &[
                    &b"}X\x01\x00\x00\x00a](]q\x00"[..],
                    &(0..60)
                        .flat_map(|i| [b'(', b'h', i, b'h', i, b't', b'q', i + 1])
                        .collect::<Vec<u8>>(),
                    b"es",
                ]
                .concat(),
                b"}",
            ),
            "no dictionary of options",
        ),
        (
            "bomb.npz",
            archive(8, &[("args.npy", zeros(100_000)), ("weights_checkpoint_0.npy", zeros(1))]),
            "unpacks to over 64 times",
        ),
        (
            "twice.npz",
            zip(&[("a.npy", npy("(1, 1)", &[1.0])), ("a", npy("(1, 1)", &[1.0]))]),
            "already",
        ),
    ];
    for (name, bytes, says) in table {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let line = refused(&path);
        assert!(line.contains(says) && line.contains(name), "{name}: {line}");
    }
    assert!(!witness.exists(), "a pickle was run");
}

fn st(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn small() -> (Value, Tensors) {
    let config = json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 5,
        "n_embd": 4,
        "n_head": 2, "n_layer": 1, "n_positions": 6, "n_inner": 3,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5});
    let shapes: [(&str, &[usize]); 16] = [
        ("wte.weight", &[5, 4]),
        ("wpe.weight", &[6, 4]),
        ("h.0.ln_1.weight", &[4]),
        ("h.0.ln_1.bias", &[4]),
        ("h.0.attn.c_attn.weight", &[4, 12]),
        ("h.0.attn.c_attn.bias", &[12]),
        ("h.0.attn.c_proj.weight", &[4, 4]),
        ("h.0.attn.c_proj.bias", &[4]),
        ("h.0.ln_2.weight", &[4]),
        ("h.0.ln_2.bias", &[4]),
        ("h.0.mlp.c_fc.weight", &[4, 3]),
        ("h.0.mlp.c_fc.bias", &[3]),
        ("h.0.mlp.c_proj.weight", &[3, 4]),
        ("h.0.mlp.c_proj.bias", &[4]),
        ("ln_f.weight", &[4]),
        ("ln_f.bias", &[4]),
    ];
    (config, shapes.iter().map(|(n, s)| ((*n).to_string(), seeded(n, s))).collect())
}

/// One option or tensor wrong at a time: the line names it.
#[test]
fn configs_and_tensors_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = small();
    write(dir.path(), &config, &tensors);
    assert_eq!(ours(dir.path(), Dialect::Original).graph().outputs(), 5);
    let options: Vec<(&str, Value, &str)> = vec![
        ("n_layer", json!(1_000_000_000), "`n_layer` is 1000000000"),
        ("n_layer", json!(1_000_000), "the files hold 16 tensors"),
        ("n_layer", json!(2), "h.1.attn.c_attn.bias"),
        ("n_layer", json!(-1), "n_layer"),
        ("n_embd", json!(1u64 << 40), "n_embd"),
        ("n_embd", json!("four"), "n_embd"),
        ("n_head", json!(3), "does not divide"),
        ("vocab_size", json!(6), "wte.weight (is [5, 4], the config wants [6, 4])"),
        ("activation_function", json!("relu_squared"), "relu_squared"),
        ("layer_norm_epsilon", json!(0.0), "no finite Lipschitz constant"),
        ("layer_norm_epsilon", Value::Null, "not JSON"),
        ("model_type", json!("mamba"), "mamba"),
        ("model_type", json!("mixtral"), "top experts"),
        ("architectures", json!(["GPT2DoubleHeadsModel"]), "GPT2DoubleHeadsModel"),
        ("tie_word_embeddings", json!(false), "lm_head.weight"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
        ("add_cross_attention", json!(true), "add_cross_attention"),
    ];
    for (key, value, says) in options {
        let mut config = config.clone();
        config[key] = value;
        let text = config.to_string();
        write(dir.path(), &config, &tensors);
        std::fs::write(dir.path().join("config.json"), text.replace("null", "1e999")).unwrap();
        let line = refused(dir.path());
        assert!(line.contains(says), "{key}: {line}");
    }
    let changes: Vec<(&str, Option<Tensor>, &str)> = vec![
        ("ln_f.bias", None, "lacks ln_f.bias"),
        ("ln_f.bias", Some(seeded("x", &[5])), "wrong shape: ln_f.bias"),
        ("h.0.attn.extra", Some(seeded("x", &[1])), "nothing is known about: h.0.attn.extra"),
        ("ln_f.bias", Some(Tensor::new(&[1f32, f32::NAN, 0.0, 0.0], &Device::Cpu).unwrap()), "NaN"),
        ("ln_f.bias", Some(Tensor::new(&[1u32, 2, 3, 4], &Device::Cpu).unwrap()), "ln_f.bias"),
    ];
    for (name, tensor, says) in changes {
        let mut tensors = tensors.clone();
        match tensor {
            Some(tensor) => drop(tensors.insert(name.into(), tensor)),
            None => drop(tensors.remove(name)),
        }
        write(dir.path(), &config, &tensors);
        let line = refused(dir.path());
        assert!(line.contains(says), "{line}");
    }
    // What is not known may be left out on demand, and is then named.
    let mut more = tensors.clone();
    more.insert("h.0.attn.extra".into(), seeded("x", &[1]));
    more.insert("h.0.attn.bias".into(), seeded("x", &[1, 1, 6, 6]));
    write(dir.path(), &config, &more);
    let Imported { meta, report, .. } =
        import(dir.path(), &ImportOptions { allow_unused: true, ..ImportOptions::default() })
            .unwrap();
    let origin = meta.provenance.origin.unwrap();
    assert_eq!(origin.unused, ["h.0.attn.extra"]);
    assert!(
        report.aside.contains_key("h.0.attn.bias")
            && origin.notes.iter().any(|n| n.contains("h.0.attn.bias"))
    );
    assert_eq!(report.applied.len(), 21);
}

/// Shards, half precision and mixed types.
#[test]
fn shards_and_float_types() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = small();
    let half = |tensors: &Tensors, to: DType| -> Tensors {
        tensors.iter().map(|(n, t)| (n.clone(), t.to_dtype(to).unwrap())).collect()
    };
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        write(dir.path(), &config, &half(&tensors, dtype));
        let model: Model = imported(dir.path()).model;
        assert_eq!(model.dtype(), dtype);
    }
    let mut mixed = half(&tensors, DType::BF16);
    mixed.insert("ln_f.bias".into(), tensors["ln_f.bias"].clone());
    write(dir.path(), &config, &mixed);
    assert_eq!(imported(dir.path()).model.dtype(), DType::F32);
    let index = |map: Value| {
        let file: PathBuf = dir.path().join("model.safetensors.index.json");
        std::fs::write(file, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    };
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("a.safetensors"))
        .unwrap();
    let all: serde_json::Map<String, Value> =
        tensors.keys().map(|n| (n.clone(), json!("a.safetensors"))).collect();
    index(Value::Object(all.clone()));
    assert_eq!(imported(dir.path()).report.applied.len(), 21);
    let mut more = all.clone();
    more.insert("ghost".into(), json!("a.safetensors"));
    index(Value::Object(more));
    assert!(refused(dir.path()).contains("ghost"));
    let mut out = all;
    out.insert("ln_f.bias".into(), json!("../a.safetensors"));
    index(Value::Object(out));
    assert!(refused(dir.path()).contains("not a file beside it"));
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    assert!(refused(dir.path()).contains("neither model.safetensors"));
}
