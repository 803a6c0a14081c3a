//! What is asked before an encoder is imported, and what is refused, on the golden models with one
//! thing changed.

use std::path::{Path, PathBuf};

use lipschitz_import::candle_core::{DType, Device, Tensor};
use lipschitz_import::{Dialect, ImportOptions, Imported, Undecided, import};
use lipschitz_nn::Error;
use lipschitz_nn::checkpoint::load_tensors;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// A copy of a golden model, with directories.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, to).unwrap();
        }
    }
}

/// A copy in which `from` of a file is `to`.
fn changed(name: &str, file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(name), dir.path());
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{name}/{file} has no {from}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    dir
}

fn undecided(path: &Path, options: &ImportOptions) -> Undecided {
    match import(path, options).unwrap_err() {
        Error::File { what, .. } => what.downcast_ref::<Undecided>().unwrap().clone(),
        other => panic!("{other}"),
    }
}

fn apart(found: &Tensor, wanted: &Tensor) -> f64 {
    let wanted = wanted.to_dtype(DType::F64).unwrap();
    let apart = (found - &wanted).unwrap().abs().unwrap().max_all().unwrap();
    let size = wanted.abs().unwrap().max_all().unwrap();
    apart.to_scalar::<f64>().unwrap() / size.to_scalar::<f64>().unwrap()
}

/// Of files of tensors alone, the heads are asked for; with them the function is the library's.
#[test]
fn files_of_vision_transformers_need_their_heads() {
    for (file, heads, wrong) in [("timm/model.safetensors", 3, 5), ("torchvision/model.pth", 2, 3)]
    {
        let path = golden(file);
        let asked = undecided(&path, &ImportOptions::default());
        assert!(matches!(asked, Undecided::NoHeads(_)), "{asked}");
        let with = |heads| ImportOptions { heads: Some(heads), ..ImportOptions::default() };
        let refused = import(&path, &with(wrong)).unwrap_err().to_string();
        assert!(refused.contains(&format!("has {wrong} heads of")), "{refused}");
        let Imported { model, meta, .. } = import(&path, &with(heads)).unwrap();
        let notes = meta.provenance.origin.unwrap().notes.join("; ");
        assert!(notes.contains("the numbers that the model reads, not pixels"), "{notes}");
        let expected = path.with_file_name("expected.safetensors");
        let (expected, _) = load_tensors(&expected, &Device::Cpu).unwrap();
        let mut pixels = expected["pixels"].to_dtype(DType::F64).unwrap();
        if heads == 3 {
            let shape = (1, 3, 1, 1);
            let mean = Tensor::from_vec(vec![0.4, 0.5, 0.6], shape, &Device::Cpu).unwrap();
            let std = Tensor::from_vec(vec![0.2, 0.25, 0.3], shape, &Device::Cpu).unwrap();
            pixels = pixels.broadcast_sub(&mean).unwrap().broadcast_div(&std).unwrap();
        }
        let model = model.to(&Device::Cpu, DType::F64).unwrap();
        let off = apart(&model.forward(&pixels).unwrap(), &expected["output"]);
        assert!(off < 1e-6, "{file}: {off}");
    }
}

fn texts() -> ImportOptions {
    ImportOptions { part: Some("text".into()), ..ImportOptions::default() }
}

/// A model of texts and images is one of two functions.
#[test]
fn one_of_two_inputs_is_chosen() {
    for name in ["clip.text", "siglip.text"] {
        let asked = undecided(&golden(name), &ImportOptions::default());
        assert!(matches!(asked, Undecided::TwoInputs(_)), "{asked}");
        let other = ImportOptions { part: Some("sound".into()), ..ImportOptions::default() };
        assert!(import(&golden(name), &other).unwrap_err().to_string().contains("no part `sound`"));
    }
    let heads = ImportOptions { heads: Some(2), ..ImportOptions::default() };
    for (name, options) in [("bert", &texts()), ("timm", &heads), ("deit", &heads)] {
        let error = import(&golden(name), options).unwrap_err().to_string();
        assert!(error.contains("to be said"), "{error}");
    }
    // A classifier reads images, whoever asks.
    assert!(import(&golden("clip-classes"), &texts()).is_err());
}

/// Candle's function is never taken to be the library's where that is not known.
#[test]
fn candle_is_refused_where_it_was_not_compared() {
    let candle = ImportOptions { dialect: Dialect::Candle, ..ImportOptions::default() };
    for name in [
        "albert",
        "chinese_clip-text",
        "clip-text",
        "clip-vision",
        "deit",
        "dinov2-registers",
        "electra",
        "esm",
        "ijepa",
        "mpnet",
        "nomic",
        "siglip-text",
        "siglip-vision",
        "vit-msn",
    ] {
        let error = import(&golden(name), &candle).unwrap_err().to_string();
        assert!(error.contains("in candle-transformers is not known"), "{name}: {error}");
    }
}

/// Heads that candle has not, or with another function, and options that it does not read.
#[test]
fn candle_is_refused_where_it_computes_something_else() {
    let candle = ImportOptions { dialect: Dialect::Candle, ..ImportOptions::default() };
    for name in ["bert-classes", "camembert", "roberta", "xlm-roberta-answers", "modernbert-mean"] {
        let error = import(&golden(name), &candle).unwrap_err().to_string();
        assert!(error.contains("candle"), "{name}: {error}");
    }
    for name in ["bert", "bert-mlm", "distilbert", "modernbert", "t5", "t5-gated"] {
        import(&golden(name), &candle).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for (name, from, to) in [
        ("modernbert", r#""classifier_activation": "gelu""#, r#""classifier_activation": "relu""#),
        ("t5-gated", r#""dense_act_fn": "gelu_new""#, r#""dense_act_fn": "relu""#),
        ("t5-gated", r#""is_gated_act": true"#, r#""is_gated_act": false"#),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden(name).join(file), dir.path().join(file)).unwrap();
        }
        let config = dir.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{name}: {text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let error = import(dir.path(), &candle).unwrap_err().to_string();
        let key = from.split('"').nth(1).unwrap();
        assert!(error.contains(key), "{name}: {error}");
    }
}

/// The directory, the file in it, what it says, what it says instead, and what the error says.
const BAD: &[[&str; 5]] = &[
    [
        "albert",
        "config.json",
        r#""num_hidden_groups": 2"#,
        r#""num_hidden_groups": 4"#,
        "`num_hidden_groups` is 4, and there are 3 layers",
    ],
    ["albert", "config.json", r#""inner_group_num": 2"#, r#""inner_group_num": 1"#, "layers.1"],
    ["albert", "config.json", r#""hidden_act": "gelu_new""#, r#""hidden_act": "gulp""#, "`gulp`"],
    ["electra", "config.json", "ElectraForMaskedLM", "ElectraForMultipleChoice", "not supported"],
    ["electra", "config.json", r#""embedding_size": 6"#, r#""embedding_size": 7"#, "wrong shape"],
    [
        "camembert",
        "config.json",
        r#""pad_token_id": 1"#,
        r#""pad_token_id": 11"#,
        "`max_position_embeddings` is 12, and the first token is at 12",
    ],
    [
        "mpnet",
        "config.json",
        r#""relative_attention_num_buckets": 32"#,
        r#""relative_attention_num_buckets": 16"#,
        "the library reads 32",
    ],
    ["esm", "config.json", r#""rotary""#, r#""relative_key""#, "`relative_key`"],
    [
        "esm",
        "config.json",
        r#""is_folding_model": false"#,
        r#""is_folding_model": true"#,
        "is_folding_model",
    ],
    ["nomic", "config.json", r#""rope_type": "default""#, r#""rope_type": "yarn""#, "`yarn`"],
    [
        "nomic",
        "config.json",
        r#""hidden_act": "silu""#,
        r#""hidden_act": "silu", "n_embd": 8"#,
        "`n_embd`",
    ],
    [
        "modernbert-mean",
        "config.json",
        r#""classifier_pooling": "mean""#,
        r#""classifier_pooling": "max""#,
        "`max`",
    ],
    [
        "deit",
        "config.json",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "the mean of two heads",
    ],
    ["deit", "config.json", r#""patch_size": 4"#, r#""patch_size": [4, 2]"#, "4 by 2"],
    [
        "deit",
        "config.json",
        r#""hidden_size": 8"#,
        r#""hidden_size": 8, "head_dim": 2"#,
        "`head_dim`",
    ],
    [
        "dinov2-registers",
        "config.json",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
        "without the registers",
    ],
    ["deit", "preprocessor_config.json", "0.25", "0.0", "`image_std` has 0"],
    ["deit", "preprocessor_config.json", "\"image_mean\"", "\"image_means\"", "`image_mean`"],
    [
        "deit",
        "preprocessor_config.json",
        "\"do_rescale\": true",
        "\"do_rescale\": true, \"do_flip_channel_order\": true",
        "do_flip_channel_order",
    ],
    [
        "timm",
        "config.json",
        "vit_tiny_patch16_224",
        "vit_tiny_r_s16_p8_224",
        "architectures of timm",
    ],
    [
        "timm",
        "config.json",
        r#""in_chans": 3"#,
        r#""in_chans": 3, "init_values": 1e-5"#,
        "`model_args.init_values`",
    ],
    ["timm", "config.json", r#""global_pool": "token""#, r#""global_pool": "avg""#, "`avg`"],
    // What the library would build, and the tensors are not of.
    ["timm", "config.json", r#""depth": 2"#, r#""depth": 3"#, "3 layers"],
    ["timm", "config.json", r#"  "depth": 2,"#, "", "12 layers"],
    ["timm", "config.json", r#""embed_dim": 12"#, r#""embed_dim": 24"#, "of width 24"],
    ["timm", "config.json", r#""img_size""#, r#""img_sizes""#, "not fixed"],
    ["timm", "config.json", r#""in_chans": 3"#, r#""in_chans": 1"#, "`model_args.in_chans` is 1"],
    [
        "timm",
        "config.json",
        r#""num_classes": 3,
  "in_chans""#,
        r#""num_classes": 7,
  "in_chans""#,
        "`model_args.num_classes` is 7",
    ],
    ["timm", "config.json", r#""mlp_ratio": 1.5"#, r#""mlp_ratio": 4.0"#, "`model_args.mlp_ratio`"],
    ["sentence", "1_Pooling/config.json", r#""mean""#, r#""max""#, "`max`"],
    ["sentence", "1_Pooling/config.json", r#""mean""#, r#"["mean", "max"]"#, "wanted a text"],
    ["sentence", "2_Dense/config.json", "activation.Tanh", "activation.Softmax", "Softmax"],
    [
        "sentence",
        "2_Dense/config.json",
        r#""bias": true"#,
        r#""bias": true, "use_residual": true"#,
        "`use_residual`",
    ],
    [
        "sentence",
        "2_Dense/config.json",
        r#""out_features": 5"#,
        r#""out_features": 6"#,
        "wrong shape",
    ],
    ["sentence", "2_Dense/config.json", r#""in_features": 8"#, r#""in_features": 7"#, "8"],
    ["sentence", "modules.json", "normalize.Normalize", "router.Router", "Router"],
    [
        "sentence",
        "modules.json",
        "sentence_transformers.base.modules.normalize.Normalize",
        "mine.Normalize",
        "mine.Normalize",
    ],
    // The library keeps one module of a name, and a `Normalize` finds nothing in front of a `Pooling`.
    ["sentence", "modules.json", r#""name": "3""#, r#""name": "2""#, "two modules of the name `2`"],
    [
        "sentence",
        "modules.json",
        "modules.pooling.Pooling",
        "x.Normalize",
        "in front of a `Pooling`",
    ],
    ["sentence", "modules.json", "modules.dense.Dense", "x.Pooling", "a second `Pooling`"],
    [
        "deit",
        "preprocessor_config.json",
        "ViTImageProcessor",
        "MobileViTImageProcessor",
        "`MobileViTImageProcessor`",
    ],
    ["sentence", "modules.json", "2_Dense", "../2_Dense", "no directory beside it"],
    ["sentence", "modules.json", r#""path": "2_Dense""#, r#""path": """#, "no directory beside it"],
    [
        "sentence",
        "sentence_bert_config.json",
        "last_hidden_state",
        "pooler_output",
        "`pooler_output`",
    ],
    ["sentence", "sentence_bert_config.json", "feature-extraction", "fill-mask", "`fill-mask`"],
];

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for [name, file, from, to, wanted] in BAD {
        let dir = changed(name, file, from, to);
        let error = match import(dir.path(), &ImportOptions::default()) {
            Ok(_) => panic!("{name}/{file}: {to} was imported"),
            Err(error) => error.to_string(),
        };
        let cause = error.replace(&dir.path().display().to_string(), "");
        assert!(cause.contains(wanted) && !cause.contains('\n'), "{name}/{file}, {to}: {error}");
    }
}

/// A width, or rows that are computed, of more than the files hold numbers: nothing of that size is made.
#[test]
fn sizes_are_those_of_the_files() {
    for (name, key) in [
        ("m2m_100", "max_position_embeddings"),
        ("marian", "max_position_embeddings"),
        ("dinov2-registers", "num_register_tokens"),
        ("stablelm", "num_attention_heads"),
        ("bloom", "n_head"),
        ("llama", "head_dim"),
        ("llama-linear", "head_dim"),
        ("gpt2", "n_embd"),
    ] {
        let dir = changed(name, "config.json", "{", "{");
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = (1 << 28).into();
        std::fs::write(&path, config.to_string()).unwrap();
        let clock = std::time::Instant::now();
        let said = import(dir.path(), &ImportOptions::default()).map(drop).unwrap_err().to_string();
        assert!(said.contains(key) && said.contains("all weights together are"), "{name}: {said}");
        assert!(clock.elapsed().as_secs() < 5, "{name}");
    }
}

/// Of the files that may say what the first module does, the library reads the first that is not empty.
#[test]
fn options_of_the_first_module_are_found() {
    let said = |files: &[(&str, &str)]| {
        let dir = changed("sentence", "config.json", "{", "{");
        std::fs::remove_file(dir.path().join("sentence_bert_config.json")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        import(dir.path(), &ImportOptions::default()).map(drop).map_err(|e| e.to_string())
    };
    let other = r#"{"max_seq_length": 6, "config_args": {"hidden_act": "relu"}}"#;
    said(&[]).unwrap();
    said(&[
        ("sentence_bert_config.json", r#"{"max_seq_length": 6}"#),
        ("sentence_xlnet_config.json", other),
    ])
    .unwrap();
    for files in [
        &[("sentence_xlnet_config.json", other)][..],
        &[("sentence_bert_config.json", "{}"), ("sentence_roberta_config.json", other)],
    ] {
        assert!(said(files).unwrap_err().contains("config_args"), "{files:?}");
    }
}

/// What a model says of its images, and how many tokens an encoder of sentences reads.
#[test]
fn files_beside_a_model_count() {
    let notes = |path: &Path| {
        let imported = import(path, &ImportOptions::default()).unwrap();
        imported.meta.provenance.origin.unwrap().notes.join("; ")
    };
    assert!(notes(&golden("deit")).contains("less [0.4, 0.5, 0.6], over [0.2, 0.25, 0.3]"));
    assert!(notes(&golden("vit")).contains("not pixels"));
    let text = notes(&golden("sentence"));
    assert!(text.contains("Pooling, Dense, Normalize"), "{text}");
    // The library looks into the second file first: both have to say the same.
    let dir = changed("deit", "config.json", "{", "{");
    let own = std::fs::read_to_string(golden("deit/preprocessor_config.json")).unwrap();
    let joint = |options: &str| {
        let text = format!(r#"{{"image_processor": {options}}}"#);
        std::fs::write(dir.path().join("processor_config.json"), text).unwrap();
    };
    joint(&own);
    assert_eq!(notes(dir.path()), notes(&golden("deit")));
    joint(&own.replace("0.25", "0.26"));
    let said = import(dir.path(), &ImportOptions::default()).map(drop).unwrap_err().to_string();
    assert!(said.contains("processor_config.json") && said.contains("keep one"), "{said}");
    // Encoders of sentences whose vectors the library cuts.
    let dir = changed("sentence", "config.json", "{", "{");
    let cut = dir.path().join("config_sentence_transformers.json");
    std::fs::write(&cut, r#"{"truncate_dim": null}"#).unwrap();
    assert_eq!(notes(dir.path()), text);
    std::fs::write(&cut, r#"{"truncate_dim": 3}"#).unwrap();
    let said = import(dir.path(), &ImportOptions::default()).map(drop).unwrap_err().to_string();
    assert!(said.contains("`truncate_dim` is 3"), "{said}");
    // Code of its own is not read, which is said.
    let dir = changed("bert", "config.json", "{", r#"{"auto_map": {"AutoModel": "own.Model"},"#);
    assert!(notes(dir.path()).contains("`auto_map` names code"), "{}", notes(dir.path()));
    // A type in which the library takes the weights.
    let dir = changed("bert", "config.json", r#""dtype": "float32""#, r#""dtype": "bfloat16""#);
    assert!(notes(dir.path()).contains("the config says `bfloat16`"), "{}", notes(dir.path()));
    let dir = changed("sentence", "sentence_bert_config.json", "{", r#"{"max_seq_length": 6,"#);
    let tokens = Tensor::zeros((1, 7), DType::U32, &Device::Cpu).unwrap();
    let long = import(dir.path(), &ImportOptions::default()).unwrap().model;
    assert!(long.forward(&tokens).is_err());
    assert!(long.forward(&tokens.narrow(1, 0, 6).unwrap()).is_ok());
}

fn class(name: &str) -> ImportOptions {
    ImportOptions { class: Some(name.into()), ..ImportOptions::default() }
}

/// A config older than `model_type` names no family: the class says it, and nothing guesses.
#[test]
fn the_class_says_the_family_where_the_config_does_not() {
    let old = changed("bert", "config.json", "\"model_type\": \"bert\"", "\"output_past\": true");
    let text = std::fs::read_to_string(old.path().join("config.json")).unwrap();
    assert!(!text.contains("model_type"), "{text}");
    for options in [ImportOptions::default(), class("ReformerModel"), class("")] {
        let asked = undecided(old.path(), &options);
        assert!(matches!(asked, Undecided::NoClass(_)), "{asked}");
    }
    let Imported { model, meta, .. } = import(old.path(), &class("BertModel")).unwrap();
    let origin = meta.provenance.origin.unwrap();
    assert_eq!(origin.family, "bert");
    let notes = origin.notes.join("; ");
    assert!(notes.contains("read as the class `BertModel`, as was said at import"), "{notes}");
    let (expected, _) =
        load_tensors(&golden("bert").join("expected.safetensors"), &Device::Cpu).unwrap();
    let model = model.to(&Device::Cpu, DType::F64).unwrap();
    let off = apart(&model.forward(&expected["tokens"]).unwrap(), &expected["output"]);
    assert!(off < 1e-6, "{off}");
    // A head that no file holds, a class of another family, and a model without one.
    for (path, name, why) in [
        (old.path().to_path_buf(), "BertForMaskedLM", "lacks "),
        (golden("bert"), "AlbertModel", "names `AlbertModel`, which is not supported"),
        (golden("timm"), "ViTModel", "is not to be said"),
    ] {
        let error = import(&path, &class(name)).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

/// The body of a model that was saved with its head: the head is set aside.
#[test]
fn the_body_of_a_model_with_a_head_is_another_class() {
    let head = import(&golden("bert-mlm"), &ImportOptions::default()).unwrap();
    let body = import(&golden("bert-mlm"), &class("BertModel")).unwrap();
    assert!(body.report.aside.keys().any(|name| name.starts_with("cls.")));
    assert!(body.report.applied.len() < head.report.applied.len());
    assert!(body.report.applied.iter().all(|(weight, _)| !weight.starts_with("head")));
}

/// ALBERT's published configs hold options of the program that trained it, and of generation.
#[test]
fn options_that_the_library_passes_over_are_passed_over_at_the_values_that_change_nothing() {
    let with = |options: &str| {
        changed(
            "albert",
            "config.json",
            "\"model_type\": \"albert\"",
            &format!("\"model_type\": \"albert\", {options}"),
        )
    };
    let harmless = with(
        "\"down_scale_factor\": 1, \"gap_size\": 0, \"net_structure_type\": 0, \
         \"num_memory_blocks\": 0, \"length_penalty\": 1.0, \"repetition_penalty\": 1.0, \
         \"num_return_sequences\": 1",
    );
    import(harmless.path(), &ImportOptions::default()).unwrap();
    for other in ["down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"] {
        let dir = with(&format!("\"{other}\": 2"));
        let error = import(dir.path(), &ImportOptions::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{other}` is 2")), "{error}");
    }
}

/// Where the number of labels is not that of their names, the library takes the number.
#[test]
fn the_number_of_labels_goes_before_their_names() {
    let text = std::fs::read_to_string(golden("bert-classes/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let labels = config["id2label"].as_object().unwrap().len();
    for (number, fits) in [(labels, true), (labels + 1, false)] {
        let to = format!("\"num_labels\": {number}, \"model_type\": \"bert\"");
        let dir = changed("bert-classes", "config.json", "\"model_type\": \"bert\"", &to);
        let found = import(dir.path(), &ImportOptions::default());
        assert_eq!(found.is_ok(), fits, "{number}");
    }
    // Names of another number stand aside.
    let mut config = config;
    config["id2label"] = serde_json::json!({"0": "a"});
    config["num_labels"] = labels.into();
    let dir = tempfile::tempdir().unwrap();
    copy(&golden("bert-classes"), dir.path());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    import(dir.path(), &ImportOptions::default()).unwrap();
}

/// Sentence-transformers loads the encoder alone of a T5, whatever class the config names.
#[test]
fn sentences_are_read_by_the_encoder_of_a_t5() {
    let class = "\"T5EncoderModel\"";
    let dir = changed("t5", "config.json", class, "\"T5ForConditionalGeneration\"");
    copy(&golden("sentence").join("1_Pooling"), &dir.path().join("1_Pooling"));
    let text = std::fs::read_to_string(golden("sentence/modules.json")).unwrap();
    let modules: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let first = serde_json::to_string(&modules[..2]).unwrap();
    std::fs::write(dir.path().join("modules.json"), first).unwrap();
    let Imported { model, .. } = import(dir.path(), &ImportOptions::default()).unwrap();
    let (expected, _) =
        load_tensors(&golden("t5").join("expected.safetensors"), &Device::Cpu).unwrap();
    let model = model.to(&Device::Cpu, DType::F64).unwrap();
    let vectors = model.forward(&expected["tokens"]).unwrap();
    let off = apart(&vectors, &expected["output"].mean(1).unwrap());
    assert!(off < 1e-6, "{off}");
}
