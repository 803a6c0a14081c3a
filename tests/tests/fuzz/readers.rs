//! The readers, each with valid files to start from.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::verify::verify;
use lipschitz_data::codec::{Codec, read_tokenizer};
use lipschitz_data::examples::{Examples, Targets};
use lipschitz_data::images::ImagesConfig;
use lipschitz_data::shard::Shard;
use lipschitz_data::shards;
use lipschitz_data::tensors::TensorsConfig;
use lipschitz_import::{ImportOptions, import};
use lipschitz_nn::checkpoint::{self, Meta, Provenance, Tokenizer};
use lipschitz_nn::graph::{Graph, Input, Node, Op};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::presets::{BlockConfig, Gpt};
use lipschitz_nn::{Model, Weights};
use lipschitz_tests::Dice;
use lipschitz_train::config::Config;
use lipschitz_train::preset;

use crate::mutate::{Build, Seed, unzip};

/// A reader of one kind of file.
pub(crate) struct Reader {
    pub(crate) name: &'static str,
    /// The name that the file has, in a directory of its own.
    pub(crate) file: &'static str,
    /// Bytes of memory beside four times the file.
    pub(crate) room: u64,
    /// Valid files; what has to lie beside them is put into the directory.
    pub(crate) seeds: fn(&Path) -> Vec<Seed>,
    /// Reads the file in a directory; its bytes are given too. Panics if a result that is written
    /// and read again is not the same.
    pub(crate) read: fn(&Path, &[u8]),
}

thread_local! {
    /// Whether the last input was read as a valid file.
    pub(crate) static ACCEPTED: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn all() -> Vec<Reader> {
    let reader = |name, file, seeds, read| Reader { name, file, room: 16 << 20, seeds, read };
    // A few words describe a network of ten thousand layers.
    let network = |reader: Reader| Reader { room: 256 << 20, ..reader };
    vec![
        reader("checkpoint", "m.safetensors", checkpoints, read_checkpoint),
        reader("certificate", "c.json", certificates, read_certificate),
        network(reader("config", "config.toml", configs, read_config)),
        network(reader("setting", "setting", settings, read_setting)),
        reader("torch", "m.pt", torch, |dir, _| read_model(&dir.join("m.pt"))),
        reader("legacy", "m.pt", legacy, |dir, _| read_model(&dir.join("m.pt"))),
        reader("numpy", "m.npz", numpy, |dir, _| read_model(&dir.join("m.npz"))),
        reader("gguf", "m.gguf", gguf, |dir, _| read_model(&dir.join("m.gguf"))),
        // A few bytes speak of a mask of thousands of tokens.
        network(reader("onnx", "m.onnx", onnx, |dir, _| read_model(&dir.join("m.onnx")))),
        reader("llama2c", "m.bin", llama2c, |dir, _| read_model(&dir.join("m.bin"))),
        reader("directory", "config.json", directory, |dir, _| read_model(dir)),
        reader("shard", "x_train_0.bin", shard, read_shard),
        reader("tokenizer", "tokenizer.json", tokenizers, read_tokenizer_again),
        reader("tensors", "d.safetensors", tensors, read_tensors),
        reader("idx", "train-images-idx3-ubyte", idx, read_idx),
        // An image may be up to 2²⁴ pixels, of which a few bytes can speak.
        network(reader("image", "drawings/a/0.png", images, read_images)),
    ]
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    let path = golden(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn meta(graph: Graph) -> Meta {
    Meta {
        format: checkpoint::FORMAT,
        graph,
        config: serde_json::json!({"a": [1, 2.5, null]}),
        tokenizer: Some(Tokenizer::Characters { characters: "abcé".into() }),
        classes: vec!["one".into(), "ö".into()],
        provenance: Provenance { version: "0".into(), ..Provenance::default() },
    }
}

/// A transformer of two blocks, and a perceptron.
fn models() -> Vec<Model> {
    let gpt = Gpt::new(5, 3, 2, BlockConfig::new(4, 2)).graph().unwrap();
    let linear =
        |name: &str, inputs, outputs| Node::new(name, Op::Linear { inputs, outputs, bias: true });
    let body = vec![linear("a", 3, 4), linear("b", 4, 2)];
    let mlp = Graph::new(Input::Vector { dim: 3 }, body).unwrap();
    let model = |graph: Graph| {
        let mut weights =
            init::weights(&graph, 1, Blocks::Whole, &Device::Cpu, DType::F32).unwrap();
        weights.values_mut().for_each(|w| *w = (&*w + 0.1).unwrap());
        Model::new(graph, weights).unwrap()
    };
    [gpt, mlp].into_iter().map(model).collect()
}

fn checkpoints(dir: &Path) -> Vec<Seed> {
    let seed = |model: Model| {
        let path = dir.join("m.safetensors");
        checkpoint::save(&path, &model, &meta(model.graph().clone())).unwrap();
        Seed::safetensors(&std::fs::read(path).unwrap())
    };
    models().into_iter().map(seed).collect()
}

/// The bits of all weights.
fn bits(weights: &Weights) -> Vec<(String, String, Vec<u64>)> {
    let mut all: Vec<_> = weights
        .iter()
        .map(|(name, w)| {
            let values = w.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            let values: Vec<f64> = values.to_vec1().unwrap();
            let values = values.into_iter().map(f64::to_bits).collect();
            (name.clone(), format!("{:?} {:?}", w.dims(), w.dtype()), values)
        })
        .collect();
    all.sort();
    all
}

/// What was read, written as a checkpoint and read again, is the same.
fn same_again(dir: &Path, model: &Model, meta: &Meta) {
    ACCEPTED.set(true);
    let path = dir.join("again.safetensors");
    checkpoint::save(&path, model, meta).unwrap();
    let (again, said) = checkpoint::load(&path, &Device::Cpu).unwrap();
    assert_eq!(bits(again.weights()), bits(model.weights()));
    assert_eq!(&said, meta);
}

fn read_checkpoint(dir: &Path, bytes: &[u8]) {
    let path = dir.join("m.safetensors");
    let opened = checkpoint::Reader::open(&path);
    let loaded = checkpoint::load(&path, &Device::Cpu);
    if let Ok((model, meta)) = &loaded {
        same_again(dir, model, meta);
        let opened = opened.unwrap();
        assert_eq!(opened.meta(), meta);
        let weight = |name: String| opened.tensor(&name).map(|tensor| (name, tensor));
        let weights: Weights =
            opened.names().into_iter().map(weight).collect::<Result<_, _>>().unwrap();
        assert_eq!(bits(&weights), bits(model.weights()));
        // What is read is proven, or not, and no more.
        if bytes.iter().map(|b| usize::from(*b)).sum::<usize>().is_multiple_of(4) {
            let _ = certify(model, Method::Proven, Formula::Sound, None);
        }
    }
}

fn certificates(_: &Path) -> Vec<Seed> {
    let seed = |model: Model| {
        let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        Seed::raw(serde_json::to_vec_pretty(&certificate).unwrap())
    };
    models().into_iter().map(seed).collect()
}

fn read_certificate(_: &Path, bytes: &[u8]) {
    thread_local! {
        static MODELS: Vec<Model> = models();
    }
    let Ok(certificate) = serde_json::from_slice::<Certificate>(bytes) else { return };
    ACCEPTED.set(true);
    let text = serde_json::to_string(&certificate).unwrap();
    assert_eq!(serde_json::from_str::<Certificate>(&text).unwrap(), certificate);
    MODELS.with(|models| {
        for model in models {
            // A certificate that holds claims no less than what can be proven.
            if verify(&certificate, model).is_ok() {
                let proven = certify(model, Method::Proven, Formula::Sound, None).unwrap();
                let own = certificate.domain.radius == proven.domain.radius;
                assert!(!own || certificate.l2.to_f64() >= 0.999 * proven.l2.to_f64());
            }
        }
    });
}

fn presets() -> impl Iterator<Item = &'static str> {
    [
        "mlp-cifar10",
        "mlp-images",
        "gpt-shakespeare",
        "nanogpt-145m",
        "vit-cifar10",
        "demo",
        "gpt-play",
    ]
    .map(|name| preset::find(name).unwrap())
    .into_iter()
}

fn configs(_: &Path) -> Vec<Seed> {
    presets().map(|text| Seed::raw(text.as_bytes().to_vec())).collect()
}

fn same_config(config: &Config) {
    ACCEPTED.set(true);
    let text = config.to_toml().unwrap();
    let again = Config::parse(&text, &[]).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(&again, config);
    // What it describes is built, or refused; a graph file that it names is another reader's.
    let _ = config.graph(16);
}

fn read_config(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = Config::parse(text, &[]) {
        same_config(&config);
    }
}

/// Every key of the presets, with some that are none.
fn settings(_: &Path) -> Vec<Seed> {
    let mut keys: Vec<String> = ["", ".", "a", "model", "model.", ".model", "groups", "rates.x"]
        .map(String::from)
        .into_iter()
        .chain(["lipschitz_target", "optimizer.kind", "constraint.method"].map(String::from))
        .collect();
    for text in presets() {
        let mut section = String::new();
        for line in text.lines().map(|line| line.trim_start_matches(['#', ' '])) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                section = name.trim_matches('[').to_string();
            } else if let Some((key, _)) = line.split_once(" = ") {
                keys.push(if section.is_empty() { key.into() } else { format!("{section}.{key}") });
            }
        }
    }
    keys.sort();
    keys.dedup();
    vec![Seed { build: Build::Settings(keys), parts: Vec::new() }]
}

fn read_setting(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for preset in ["demo", "gpt-play", "mlp-cifar10"] {
        if let Ok(config) = Config::parse(preset::find(preset).unwrap(), &[text.to_string()]) {
            same_config(&config);
        }
    }
}

fn torch(_: &Path) -> Vec<Seed> {
    let data = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    ["choice", "training", "views", "order"]
        .map(|name| unzip(&bytes(&format!("formats/{name}.pt"))))
        .into_iter()
        .chain([Seed { build: Build::ZipPickle(data), parts: Vec::new() }])
        .collect()
}

fn legacy(_: &Path) -> Vec<Seed> {
    let head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    // Two matrices, 3x2 and 2x3, in one storage, as PyTorch wrote them before it wrote archives.
    let matrix = |name: &str, offset: u8, rows: u8, columns: u8| -> Vec<u8> {
        [
            &[b'X', name.len() as u8, 0, 0, 0],
            name.as_bytes(),
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n",
            b"X\x01\0\0\x000X\x03\0\0\0cpuK\x0cNtQ",
            &[b'K', offset, b'K', rows, b'K', columns, 0x86, b'K', columns, b'K', 1, 0x86],
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
        .concat()
    };
    let matrices = [matrix("0.weight", 0, 3, 2), matrix("2.weight", 6, 2, 3)].concat();
    let model = [&b"\x80\x02}("[..], &matrices, b"u."].concat();
    let keys = b"\x80\x02]X\x01\0\0\x000a.".to_vec();
    let storage: Vec<u8> =
        12u64.to_le_bytes().into_iter().chain((0..48).map(|i| i * 5 % 60)).collect();
    let rest = [&keys[..], &storage].concat();
    vec![
        Seed::raw(bytes("formats/legacy.pt")),
        Seed::raw(bytes("formats/legacy4.pt")),
        Seed { build: Build::Raw, parts: vec![head.clone(), model, keys, storage] },
        Seed { build: Build::Pickle(head, rest), parts: Vec::new() },
    ]
}

fn numpy(dir: &Path) -> Vec<Seed> {
    // Of the code of Newhouse et al. (2025): the config lies beside it.
    std::fs::copy(golden("modula/mlp.json"), dir.join("m.json")).unwrap();
    vec![
        unzip(&bytes("formats/fortran.npz")),
        Seed::raw(bytes("formats/compressed.npz")),
        unzip(&bytes("modula/mlp.npz")),
    ]
}

fn gguf(_: &Path) -> Vec<Seed> {
    ["blocks", "llama"].map(|name| Seed::raw(bytes(&format!("formats/{name}.gguf")))).into()
}

fn onnx(_: &Path) -> Vec<Seed> {
    ["mlp.script", "resnet.dynamo", "gpt2.dynamo.any", "acas"]
        .map(|name| Seed::raw(bytes(&format!("onnx/{name}.onnx"))))
        .into()
}

fn llama2c(_: &Path) -> Vec<Seed> {
    // dim, hidden, layers, heads, key-value heads, vocabulary (below zero with a head of its own),
    // context.
    let file = |sizes: [i32; 7]| {
        let [dim, hidden, layers, heads, kv, vocabulary, context] =
            sizes.map(|n| n.unsigned_abs() as usize);
        let key = dim / heads * kv;
        let own = if sizes[5] < 0 { vocabulary * dim } else { 0 };
        let layer = 2 * dim + 2 * dim * dim + 2 * key * dim + 3 * dim * hidden;
        let count = vocabulary * dim + layers * layer + dim + context * (dim / heads) + own;
        let mut dice = Dice::new(1);
        let values = (0..count).flat_map(|_| (dice.unit() as f32).to_le_bytes());
        let header = sizes.iter().flat_map(|n| n.to_le_bytes()).collect();
        Seed { build: Build::Raw, parts: vec![header, values.collect()] }
    };
    vec![file([4, 3, 1, 2, 1, 5, 3]), file([4, 3, 2, 2, 2, -5, 2])]
}

/// The config of a model whose weights lie beside it.
fn directory(dir: &Path) -> Vec<Seed> {
    let from = golden("llama/model");
    let from = if from.is_dir() { from } else { golden("llama") };
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
    }
    vec![Seed::raw(std::fs::read(dir.join("config.json")).unwrap())]
}

fn read_model(path: &Path) {
    let options = ImportOptions { activation: vec!["relu".into()], ..ImportOptions::default() };
    let default = ImportOptions::default();
    // Only what may be matrices is told what is between them.
    for options in [&options, &default] {
        if let Ok(imported) = import(path, options) {
            let dir = if path.is_dir() { path.join("again") } else { path.with_file_name("again") };
            std::fs::create_dir_all(&dir).unwrap();
            same_again(&dir, &imported.model, &imported.meta);
            return;
        }
    }
}

fn shard(dir: &Path) -> Vec<Seed> {
    let ids: Vec<u16> = (0..40).map(|i| i * 7 % 50).collect();
    Shard::write(&dir.join("x_val_0.bin"), &ids).unwrap();
    let whole = std::fs::read(dir.join("x_val_0.bin")).unwrap();
    let (header, rest) = whole.split_at(12);
    vec![Seed { build: Build::Raw, parts: vec![header.to_vec(), rest.to_vec()] }]
}

fn read_shard(dir: &Path, bytes: &[u8]) {
    let Ok(corpus) = shards::load(dir, Some(50), None) else { return };
    ACCEPTED.set(true);
    let Ok(ids) = corpus.train.to_vec() else { return };
    assert!(ids.iter().all(|id| *id < 50) && 2 * ids.len() <= bytes.len());
    let again = dir.join("again");
    let narrow: Vec<u16> = ids.iter().map(|id| *id as u16).collect();
    Shard::write(&again, &narrow).unwrap();
    let shard = Shard::open(&again, true).unwrap();
    let mut read = Vec::new();
    shard.read(0..shard.len(), &mut read).unwrap();
    assert_eq!(read, ids);
}

fn tokenizers(_: &Path) -> Vec<Seed> {
    let small = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":3,
        "content":"<|end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,
        "special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel",
        "add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,
        "decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
        "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
        "vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}"#;
    vec![Seed::raw(small.into()), Seed::raw(bytes("sentence/tokenizer.json"))]
}

fn read_tokenizer_again(dir: &Path, _: &[u8]) {
    let Ok(tokenizer) = read_tokenizer(&dir.join("tokenizer.json")) else { return };
    ACCEPTED.set(true);
    let text = serde_json::to_string(&tokenizer).unwrap();
    assert_eq!(serde_json::from_str::<Tokenizer>(&text).unwrap(), tokenizer);
    let codec = Codec::new(&tokenizer).unwrap();
    for text in ["", "ab ba", "a\u{301}b <|end|> 𝔘\0"] {
        if let Ok(ids) = codec.encode(text) {
            assert!(ids.iter().all(|id| (*id as usize) < codec.vocabulary()), "{ids:?}");
            let _ = codec.decode(&ids);
        }
    }
    let known: Vec<u32> = (0..codec.vocabulary().min(8) as u32).collect();
    let _ = codec.decode(&known);
}

fn tensors(dir: &Path) -> Vec<Seed> {
    let mut dice = Dice::new(2);
    let path = dir.join("seed");
    let mut of = |shape: &[usize], y: Tensor| {
        let x = (dice.tensor(shape, 0.5) + 0.5).unwrap().to_dtype(DType::F32).unwrap();
        checkpoint::save_tensors(&path, [("x", x), ("y", y)].into_iter(), None).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let (length, rest) = whole.split_at(8);
        Seed { build: Build::Raw, parts: vec![length.to_vec(), rest.to_vec()] }
    };
    let classes = Tensor::new(&[0i64, 1, 0, 1], &Device::Cpu).unwrap();
    let numbers = Tensor::new(&[0.5f32, 1.0, -2.0, 3.0], &Device::Cpu).unwrap();
    vec![of(&[4, 3], classes.clone()), of(&[4, 1, 2, 2], classes), of(&[4, 2], numbers)]
}

/// What a data set that was read holds: finite numbers and known classes, of one shape.
fn is_whole(data: &Examples) {
    ACCEPTED.set(true);
    for split in [&data.train, &data.test] {
        let all: Vec<usize> = (0..split.len()).collect();
        let (x, _) = split.batch(&all, &Device::Cpu).unwrap();
        let x = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(x.iter().all(|x| x.is_finite()));
        match &split.targets {
            Targets::Classes(classes) => {
                assert!(classes.iter().all(|class| (*class as usize) < data.outputs));
            }
            Targets::Numbers { values, .. } => assert!(values.iter().all(|x| x.is_finite())),
        }
    }
}

fn read_tensors(dir: &Path, _: &[u8]) {
    if let Ok(data) = lipschitz_data::tensors::load(&TensorsConfig::new(dir.join("d.safetensors")))
    {
        is_whole(&data);
    }
}

fn idx(dir: &Path) -> Vec<Seed> {
    let file = |sizes: &[u32], bytes: &[u8]| {
        let mut out = vec![0, 0, 8, sizes.len() as u8];
        sizes.iter().for_each(|size| out.extend(size.to_be_bytes()));
        [out, bytes.to_vec()].concat()
    };
    for (name, bytes) in [
        ("train-labels-idx1-ubyte", file(&[3], &[0, 1, 2])),
        ("t10k-images-idx3-ubyte", file(&[1, 2, 2], &[1; 4])),
        ("t10k-labels-idx1-ubyte", file(&[1], &[1])),
    ] {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let whole = file(&[3, 2, 2], &[7; 12]);
    let (header, rest) = whole.split_at(16);
    vec![Seed { build: Build::Raw, parts: vec![header.to_vec(), rest.to_vec()] }]
}

fn read_idx(dir: &Path, _: &[u8]) {
    if let Ok(data) = lipschitz_data::idx::load(dir, [None; 2]) {
        is_whole(&data);
    }
}

fn images(dir: &Path) -> Vec<Seed> {
    let image = |shade: u8| image::GrayImage::from_fn(5, 4, |x, y| [shade ^ (x * y) as u8].into());
    let folder = dir.join("drawings");
    for (class, name) in [("a", "1.png"), ("b", "0.png"), ("b", "1.png")] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        image(9).save(folder.join(class).join(name)).unwrap();
    }
    let seed = |name: &str| {
        image(77).save(dir.join(name)).unwrap();
        Seed::raw(std::fs::read(dir.join(name)).unwrap())
    };
    vec![seed("seed.png"), seed("seed.jpeg")]
}

fn read_images(dir: &Path, _: &[u8]) {
    if let Ok(data) = lipschitz_data::images::load(&ImagesConfig::new(dir.join("drawings"))) {
        is_whole(&data);
    }
}
