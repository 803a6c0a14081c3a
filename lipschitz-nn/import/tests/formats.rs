//! Files by their first bytes, under any name: those that are read, those that are known and not
//! read, and those that are damaged or made to do harm.

mod outputs;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use lipschitz_import::{ImportOptions, import, is_foreign};
use lipschitz_nn::checkpoint::load_tensors;
use outputs::{distance, flat};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/formats").join(name)
}

fn relu() -> ImportOptions {
    ImportOptions { activation: vec!["relu".into()], ..ImportOptions::default() }
}

fn refused(path: &Path) -> String {
    let error = import(path, &relu()).err();
    let line = error.unwrap_or_else(|| panic!("{} was imported", path.display())).to_string();
    assert!(!line.contains('\n') && line.len() < 1000, "{line}");
    line
}

#[test]
fn what_is_no_model_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = vec![b'a'; 257];
    tar.extend(b"ustar\x0000");
    let mut table = vec![0; 64];
    table.extend(0xdb47_7524_8b80_fb57_u64.to_le_bytes());
    let table: Vec<(&[u8], &str)> = vec![
        (b"", "is empty"),
        (b" \n", "is blank"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\xef\xbb\xbf\n<HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "gzip"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\0\0\0", "xz"),
        (b"\x28\xb5\x2f\xfd\0\0\0\0", "Zstandard"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5"),
        (b"\x93NUMPY\x01\0\x10\0", "numpy.savez"),
        (b"\x08\x01\x12\x04\x0a\x02\x08\x01", "SavedModel"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"\x81\xa6params\x81\xa5Dense\x80", "Flax"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x07sklearn\x94.", "pickle of other Python objects"),
        (b"{\"model_type\": \"gpt2\"}", "is JSON text"),
        (b"just words", "is a text"),
        (b"\0\x01\x02", "no format that is known"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "truncated"),
        (b"PK\x03\x04 and nothing", "zip archive"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"GGUF\0\0\0\x03", "big-endian"),
        (b"GGUF\x01\0\0\0", "version 1"),
        (&tar, "tar archive"),
        (&table, "TensorFlow checkpoint"),
    ];
    for (bytes, says) in table {
        for name in ["m", "m.pt", "m.safetensors"] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let line = refused(&path);
            assert!(line.contains(says), "{says}: {line}");
            // So it is known in every command.
            assert!(is_foreign(&path) || says.contains("no format"), "{says}");
        }
    }
}

#[test]
fn formats_are_known_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["order.pt", "legacy.pt", "llama.gguf", "compressed.npz"] {
        for name in ["m", "m.bin", "m.safetensors"] {
            let path = dir.path().join(name);
            std::fs::copy(golden(file), &path).unwrap();
            assert!(is_foreign(&path), "{file} as {name}");
        }
    }
    std::fs::copy(golden("llama.gguf"), dir.path().join("m.bin")).unwrap();
    let meta = import(&dir.path().join("m.bin"), &ImportOptions::default()).unwrap().meta;
    let origin = meta.provenance.origin.unwrap();
    assert_eq!(origin.family, "llama (GGUF)");
    assert!(origin.notes.iter().any(|note| note.contains("Q8_0")), "{:?}", origin.notes);
    // Our own checkpoints, and others in the same format, are told apart by their metadata.
    std::fs::copy(golden("views.expected.safetensors"), dir.path().join("m.pt")).unwrap();
    assert!(!is_foreign(&dir.path().join("m.pt")));
    // The length of a header that begins as a pickle, and as gzip.
    for length in [0x0280, 0x8b1f] {
        let header = format!("{{{}}}", " ".repeat(length - 2));
        std::fs::write(dir.path().join("m.bin"), safetensors(&header, 0)).unwrap();
        assert!(!is_foreign(&dir.path().join("m.bin")));
        assert!(refused(&dir.path().join("m.bin")).contains("holds no matrices"));
    }
    assert!(!is_foreign(&dir.path().join("nothing.pt")) && !is_foreign(dir.path()));
}

#[test]
fn gguf_models_compute_what_the_library_reads_in_them() {
    let decoders = ["llama", "llama_freqs", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"];
    let with_layer_norm =
        ["gpt2", "starcoder2", "phi2", "phi2_fused", "stablelm", "stablelm_parallel"];
    for name in decoders.iter().chain(&with_layer_norm) {
        let path = golden(&format!("{name}.gguf"));
        let model = import(&path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        let model = model.model.to(&Device::Cpu, DType::F64).unwrap();
        let expected = golden(&format!("{name}.expected.safetensors"));
        let (expected, _) = load_tensors(&expected, &Device::Cpu).unwrap();
        let tokens = expected["tokens"].to_dtype(DType::U32).unwrap();
        let found = flat(&model.forward(&tokens).unwrap());
        let wanted = flat(&expected["output"]);
        let size = wanted.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let apart = distance(&found, &wanted);
        assert!(size > 1.0 && apart < 1e-5 * size, "{name}: {apart} of {size}");
    }
}

/// The bytes with one text in place of another of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("it is there");
    let mut out = bytes.to_vec();
    out[at..at + to.len()].copy_from_slice(to.as_bytes());
    out
}

#[test]
fn metadata_of_gguf_that_may_change_the_function_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let bytes = std::fs::read(golden("llama.gguf")).unwrap();
    let table = [
        ("llama.rope.freq_base", "llama.rope.freq_bass", "llama.rope.freq_bass"),
        ("llama.block_count", "llama.block_mount", "llama.block_count"),
        ("general.architecture", "general.architectura", "general.architecture"),
        ("blk.0.attn_q.weight", "blk.0.attn_x.weight", "blk.0.attn_q.weight"),
        ("blk.1.attn_k.weight", "blk.0.attn_k.weight", "which there is already"),
        ("llama.context_length", "llama.block_count\0\0\0", "llama.context_length"),
    ];
    for (from, to, says) in table {
        std::fs::write(&path, replaced(&bytes, from, to)).unwrap();
        let line = refused(&path);
        assert!(line.contains(says), "{says}: {line}");
    }
    // A size that no file holds.
    let mut large = bytes.clone();
    let at = bytes.windows(17).position(|w| w == b"token_embd.weight").unwrap() + 17 + 4;
    large[at..at + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    std::fs::write(&path, large).unwrap();
    assert!(refused(&path).contains("token_embd.weight"));
}

#[test]
fn metadata_of_architectures_that_may_change_the_function_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    // What the keys of one architecture say is not passed over in another, and no tensor is.
    let table = [
        // Without it heads have another width than the values.
        ("qwen3", "qwen3.attention.key_length", "qwen3.attention.key_lengtx"),
        ("qwen3", "qwen3.attention.value_length", "qwen3.attention.value_lengtx"),
        ("phi3", "phi3.rope.dimension_count", "phi3.rope.dimension_counx"),
        ("gemma3", "gemma3.rope.freq_base_swa", "gemma3.rope.freq_base_swx"),
        ("gemma3", "gemma3.final_logit_softcapping", "gemma3.final_logit_softcappinx"),
        ("gemma3", "gemma3.attention.sliding_window", "gemma3.attention.sliding_windox"),
        ("gemma2", "gemma2.attn_logit_softcapping", "gemma2.attn_logit_softcappinx"),
        ("gemma2", "blk.1.post_ffw_norm.weight", "blk.1.post_ffx_norm.weight"),
        ("qwen3", "blk.1.attn_q_norm.weight", "blk.1.attn_x_norm.weight"),
        ("gpt2", "position_embd.weight", "position_embx.weight"),
        ("phi2", "output.bias", "output.bixs"),
        ("phi2", "blk.1.attn_norm.bias", "blk.1.attn_norm.bixs"),
        ("starcoder2", "blk.1.ffn_norm.weight", "blk.1.ffn_norx.weight"),
        ("starcoder2", "blk.1.attn_output.bias", "blk.1.attn_output.bixs"),
        ("stablelm", "blk.1.ffn_norm.weight", "blk.1.ffn_norx.weight"),
        ("stablelm", "blk.0.ffn_norm.weight", "blk.0.ffn_norx.weight"),
        ("stablelm", "blk.0.attn_q.bias", "blk.0.attn_q.bixs"),
        ("stablelm_parallel", "blk.0.attn_q_norm.weight", "blk.0.attn_x_norm.weight"),
        (
            "stablelm",
            "stablelm.attention.layer_norm_epsilon",
            "stablelm.attention.layer_norm_epsilox",
        ),
        ("phi3", "blk.1.attn_qkv.weight", "blk.1.attn_qkx.weight"),
    ];
    for (name, from, to) in table {
        let bytes = std::fs::read(golden(&format!("{name}.gguf"))).unwrap();
        // The key with its length before it, so that it is no part of a longer one.
        let key = |key: &str| {
            let length = (key.len() as u64).to_le_bytes();
            String::from_utf8([&length, key.as_bytes()].concat()).unwrap()
        };
        std::fs::write(&path, replaced(&bytes, &key(from), &key(to))).unwrap();
        let line = refused(&path);
        let says = if from.ends_with("key_length") { "value_length" } else { from };
        assert!(line.contains(says) || line.contains(to), "{from}: {line}");
    }
    // Heads that no file holds.
    let mut wide = std::fs::read(golden("gemma3.gguf")).unwrap();
    let key = b"gemma3.attention.key_length";
    let at = wide.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    wide[at..at + 4].copy_from_slice(&(1u32 << 28).to_le_bytes());
    let key = b"gemma3.attention.value_length";
    let at = wide.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    wide[at..at + 4].copy_from_slice(&(1u32 << 28).to_le_bytes());
    std::fs::write(&path, wide).unwrap();
    assert!(refused(&path).contains("more than the first layer has queries"));
    // Factors on frequencies that are not read are refused as such, and not as a tensor left over.
    let bytes = std::fs::read(golden("phi3.gguf")).unwrap();
    let short = replaced(&bytes, "blk.0.attn_output.weight", "rope_factors_long.weight");
    std::fs::write(&path, short).unwrap();
    assert!(refused(&path).contains("not supported of phi3"));
}

#[test]
fn a_window_that_llama_cpp_drops_is_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut bytes = std::fs::read(golden("phi3.gguf")).unwrap();
    let key = "phi3.attention.sliding_window";
    let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
    assert_eq!(bytes[at..at + 4], 16u32.to_le_bytes());
    bytes[at] = 15;
    std::fs::write(&path, &bytes).unwrap();
    assert!(refused(&path).contains("`phi3.attention.sliding_window` is 15"));
    let ignore = ImportOptions { ignore: vec![key.into()], ..ImportOptions::default() };
    let origin = import(&path, &ignore).unwrap().meta.provenance.origin.unwrap();
    assert!(origin.notes.iter().any(|note| note.contains(key)), "{:?}", origin.notes);
}

/// Numbers from a seed.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Files that are cut anywhere, or have bytes changed, are read or refused in one line.
#[test]
fn damaged_files_end_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut state = 5;
    let read = |bytes: &[u8], whole: bool| {
        std::fs::write(&path, bytes).unwrap();
        is_foreign(&path);
        match import(&path, &relu()) {
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            Ok(_) => assert!(whole, "a file that was cut was imported"),
        }
    };
    for name in [
        "order.pt",
        "views.pt",
        "legacy.pt",
        "training.pt",
        "compressed.npz",
        "blocks.gguf",
        "qwen2.gguf",
    ] {
        let bytes = std::fs::read(golden(name)).unwrap();
        for _ in 0..60 {
            read(&bytes[..random(&mut state) as usize % bytes.len()], false);
            let mut changed = bytes.clone();
            for _ in 0..1 + random(&mut state) % 3 {
                // Most of what matters stands at the start, or at the end of an archive.
                let at = random(&mut state) as usize % changed.len();
                let at = if random(&mut state).is_multiple_of(2) {
                    at % 512.min(changed.len())
                } else {
                    at
                };
                changed[at] = random(&mut state) as u8;
            }
            read(&changed, true);
        }
    }
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// Candle's conversion of floats of 8 bits does not end.
#[test]
fn types_that_are_not_computed_with_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    for (kind, bytes) in [
        ("F8_E4M3", 4),
        ("F8_E5M2", 4),
        ("F8_E8M0", 4),
        ("F4", 2),
        ("F6_E2M3", 3),
        ("F6_E3M2", 3),
        ("BOOL", 4),
        ("I8", 4),
        ("U16", 8),
        ("I16", 8),
        ("I64", 32),
        ("C64", 32),
    ] {
        let header = format!(
            r#"{{"0.weight":{{"dtype":"{kind}","shape":[2,2],"data_offsets":[0,{bytes}]}}}}"#
        );
        std::fs::write(&path, safetensors(&header, bytes)).unwrap();
        let line = refused(&path);
        let told = line.contains(kind) || line.contains("no floating-point type");
        assert!(told && line.contains("0.weight"), "{line}");
        let read = load_tensors(&path, &Device::Cpu);
        if kind.starts_with('F') || kind.starts_with('U') {
            let line = read.unwrap_err().to_string();
            assert!(line.contains(kind) && line.contains("0.weight"), "{line}");
        }
    }
    for name in ["float8", "uint16", "complex"] {
        assert!(refused(&golden(&format!("refused_{name}.pt"))).contains("0.weight"));
    }
}

#[test]
fn headers_with_a_name_twice_or_sizes_without_a_product_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let one = r#""a":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]}"#;
    let other = r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
    std::fs::write(&path, safetensors(&format!("{{{one},{other}}}"), 16)).unwrap();
    assert!(refused(&path).contains("the key `a` twice"));
    let none = r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}"#;
    std::fs::write(&path, safetensors(none, 0)).unwrap();
    assert!(refused(&path).contains("m.safetensors"));
    assert!(load_tensors(&path, &Device::Cpu).is_err());
}
