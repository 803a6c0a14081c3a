//! Files of matrices alone: what is a layer, in which order, with what in between; and what is no
//! layer at all.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use lipschitz_import::{ImportOptions, Imported, Undecided, candle_core, check, import};
use lipschitz_nn::checkpoint::{load_tensors, save_tensors};
use lipschitz_nn::{Error, Model};

/// Names and shapes of tensors.
type Shapes<'a> = &'a [(&'a str, &'a [usize])];

/// Writes tensors of numbers that depend on their place in the list.
fn write(path: &Path, tensors: Shapes) -> Vec<Vec<f64>> {
    let mut numbers = Vec::new();
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .enumerate()
        .map(|(k, (name, shape))| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> =
                (0..count).map(|i| ((7 * k + i) as f32 * 0.9 + 0.3).sin()).collect();
            numbers.push(values.iter().map(|x| f64::from(*x)).collect());
            (*name, Tensor::from_vec(values, *shape, &Device::Cpu).unwrap())
        })
        .collect();
    save_tensors(path, tensors.into_iter(), None).unwrap();
    numbers
}

fn with(activation: &[&str], order: Option<&[&str]>) -> ImportOptions {
    let owned = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    ImportOptions {
        activation: owned(activation),
        order: order.map(owned),
        ..ImportOptions::default()
    }
}

/// Why the file is refused: the decision that is missing, if one is, and the line.
fn refused(path: &Path, options: &ImportOptions) -> (Option<Undecided>, String) {
    let error = import(path, options).map(|_| ()).expect_err("it was imported");
    let line = error.to_string();
    assert!(!line.contains('\n') && line.len() < 2000, "{line}");
    let Error::File { what, .. } = error else { panic!("{line}") };
    (what.downcast_ref::<Undecided>().cloned(), line)
}

fn run(model: &Model, x: &[f64]) -> Vec<f64> {
    let model = model.to(&Device::Cpu, candle_core::DType::F64).unwrap();
    let x = Tensor::new(x, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn affine(w: &[f64], b: Option<&[f64]>, x: &[f64]) -> Vec<f64> {
    let row = |(i, w): (usize, &[f64])| {
        w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b.map_or(0.0, |b| b[i])
    };
    w.chunks(x.len()).enumerate().map(row).collect()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
}

fn notes(imported: &Imported) -> String {
    imported.meta.provenance.origin.as_ref().unwrap().notes.join("; ")
}

/// The alphabet puts a decoder in front of its encoder: another network, with another constant.
#[test]
fn the_alphabet_is_no_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let numbers = write(&path, &[("encoder.weight", &[2, 2]), ("decoder.weight", &[2, 2])]);
    let (why, line) = refused(&path, &with(&["relu"], None));
    assert!(matches!(why, Some(Undecided::NoOrder(_))), "{line}");
    assert!(line.contains("`encoder.weight`") && line.contains("`decoder.weight`"), "{line}");
    let x = [0.8, -0.4];
    for (order, [first, second]) in
        [(["encoder", "decoder"], [0, 1]), (["decoder.weight", "encoder"], [1, 0])]
    {
        let imported = import(&path, &with(&["relu"], Some(&order))).unwrap();
        let hidden: Vec<f64> =
            affine(&numbers[first], None, &x).into_iter().map(|x| x.max(0.0)).collect();
        close(&run(&imported.model, &x), &affine(&numbers[second], None, &hidden));
        let notes = notes(&imported);
        assert!(notes.contains("relu between the layers, as was said at import"), "{notes}");
        assert!(notes.contains("as was said at import") && notes.contains("in the order"));
        assert!(notes.contains(if first == 0 { "order `encoder" } else { "order `decoder" }));
    }
    // What is not in the order is not accounted for.
    let (why, line) = refused(&path, &with(&[], Some(&["encoder"])));
    assert!(matches!(why, Some(Undecided::UnknownTensors(_))), "{line}");
    for wrong in [&["encoder", "head"][..], &["encoder", "encoder"], &["encoder", ""]] {
        let (why, line) = refused(&path, &with(&["relu"], Some(wrong)));
        assert!(matches!(why, Some(Undecided::NoOrder(_))), "{line}");
    }
}

/// As PyTorch saves it: the encoder first.
#[test]
fn the_order_of_a_state_dict_is_that_of_its_layers() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/own");
    let imported = import(&own.join("autoencoder.pt"), &with(&["relu"], None)).unwrap();
    assert!(notes(&imported).contains("`encoder.0.weight`, `decoder.0.weight`, as the file has"));
    let (tensors, _) =
        load_tensors(&own.join("autoencoder.expected.safetensors"), &Device::Cpu).unwrap();
    check(&imported.model, &tensors["vectors"], &tensors["output"]).unwrap();
}

#[test]
fn layers_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let numbers =
        write(&path, &[("l.10.weight", &[1, 3]), ("l.9.weight", &[3, 2]), ("l.9.bias", &[3])]);
    let imported = import(&path, &with(&["tanh"], None)).unwrap();
    let x = [0.8, -0.4];
    let hidden: Vec<f64> =
        affine(&numbers[1], Some(&numbers[2]), &x).into_iter().map(f64::tanh).collect();
    close(&run(&imported.model, &x), &affine(&numbers[0], None, &hidden));
    assert!(notes(&imported).contains("`l.9.weight`, `l.10.weight`, as the numbers in their"));
    let (why, line) = refused(&path, &with(&["tanh"], Some(&["l.10", "l.9"])));
    assert!(matches!(why, Some(Undecided::NoChain(_))), "{line}");
    assert!(line.contains("`l.9.weight` reads 2") && line.contains("`l.10.weight`"), "{line}");
    // A bias that does not fit.
    write(&path, &[("0.weight", &[3, 2]), ("0.bias", &[2])]);
    assert!(refused(&path, &with(&[], None)).1.contains("0.bias (is [2]"));
}

#[test]
fn functions_are_one_for_all_or_one_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let layers: Shapes = &[("0.weight", &[3, 2]), ("2.weight", &[3, 3]), ("4.weight", &[1, 3])];
    let numbers = write(&path, layers);
    let x = [0.8, -0.4];
    let by_hand = |phi: [fn(f64) -> f64; 3]| {
        let mut x = x.to_vec();
        for (w, phi) in numbers.iter().zip(phi) {
            x = affine(w, None, &x).into_iter().map(phi).collect();
        }
        x
    };
    let relu: fn(f64) -> f64 = |x| x.max(0.0);
    let identity: fn(f64) -> f64 = |x| x;
    let sigmoid: fn(f64) -> f64 = |x| 1.0 / (1.0 + (-x).exp());
    let tanh: fn(f64) -> f64 = f64::tanh;
    for (names, phi) in [
        (&["relu"][..], [relu, relu, identity]),
        (&["tanh", "relu"], [tanh, relu, identity]),
        (&["relu", "tanh"], [relu, tanh, identity]),
        (&["identity", "tanh"], [identity, tanh, identity]),
        (&["identity"], [identity, identity, identity]),
        (&["relu", "tanh", "sigmoid"], [relu, tanh, sigmoid]),
    ] {
        let imported = import(&path, &with(names, None)).unwrap();
        close(&run(&imported.model, &x), &by_hand(phi));
        let notes = notes(&imported);
        assert!(names.iter().all(|name| notes.contains(name)), "{names:?}: {notes}");
    }
    let (why, _) = refused(&path, &with(&[], None));
    assert!(matches!(why, Some(Undecided::NoActivation(_))));
    let (why, line) = refused(&path, &with(&["relu"; 4], None));
    assert!(why.is_none() && line.contains("4 functions are given"), "{line}");
    for bad in [&["relu", "squid"][..], &["", "relu"], &["relu,tanh"]] {
        assert!(refused(&path, &with(bad, None)).1.contains("no activation is called"));
    }
    write(&path, &layers[..1]);
    import(&path, &with(&[], None)).unwrap();
    assert!(refused(&path, &with(&["relu"], None)).1.contains("holds one matrix"));
}

/// Every one of these would be another network, if what is left were taken.
#[test]
fn what_is_no_layer_is_refused_by_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("m.safetensors");
    let layers: Shapes = &[("0.weight", &[3, 2]), ("0.bias", &[3]), ("2.weight", &[1, 3])];
    write(&path, layers);
    import(&path, &with(&["relu"], None)).unwrap();
    let table: &[(Shapes, &str)] = &[
        (&[("conv1.weight", &[6, 1, 5, 5])], "`conv1.weight` [6, 1, 5, 5] has more than two"),
        (&[("conv1.weight", &[6, 1, 5])], "convolution"),
        (&[("conv1.weight", &[6, 1, 5, 5, 5])], "convolution"),
        (&[("1.weight", &[3]), ("1.bias", &[3])], "is a gain"),
        (&[("1.gamma", &[3])], "is a gain"),
        (&[("1.weight", &[1])], "is a gain"),
        (&[("1.weight", &[3]), ("1.running_mean", &[3]), ("1.running_var", &[3])], "batch norm"),
        (&[("rnn.weight_ih_l0", &[3, 2]), ("rnn.weight_hh_l0", &[3, 3])], "recurrent"),
        (&[("rnn.weight_hh", &[3, 3])], "recurrent"),
        (&[("0.lora_A.default.weight", &[1, 2])], "adapter"),
        (&[("0.lora_up.weight", &[3, 1]), ("0.lora_down.weight", &[1, 3])], "adapter"),
        (&[("4.weight_orig", &[1, 1]), ("4.weight_mask", &[1, 1])], "pruned"),
        (
            &[("4.weight_orig", &[1, 1]), ("4.weight_u", &[1]), ("4.weight_v", &[1])],
            "spectral norm",
        ),
        (
            &[
                ("4.parametrizations.weight.original", &[1, 1]),
                ("4.parametrizations.weight.0._u", &[1]),
                ("4.parametrizations.weight.0._v", &[1]),
            ],
            "spectral norm",
        ),
        (&[("4.parametrizations.weight.original", &[1, 1])], "parametrised"),
        (
            &[
                ("4.parametrizations.weight.original", &[1, 1]),
                ("4.parametrizations.weight.0.base", &[1, 1]),
            ],
            "parametrised",
        ),
        (&[("4.weight_orig", &[1, 1])], "parametrised"),
        // Weight norms along columns, and of the whole matrix.
        (&[("4.weight_g", &[1, 3]), ("4.weight_v", &[2, 3])], "weight norm"),
        (&[("4.weight_g", &[]), ("4.weight_v", &[2, 3])], "weight norm"),
        (&[("4.weight_v", &[2, 3])], "weight norm"),
        (&[("4.weight_g", &[2, 1])], "weight norm"),
        (&[("4.weight_g", &[2, 1]), ("4.weight_v", &[2, 3]), ("4.weight", &[2, 3])], "weight norm"),
        (
            &[
                ("4.parametrizations.weight.original0", &[1, 3]),
                ("4.parametrizations.weight.original1", &[2, 3]),
            ],
            "weight norm",
        ),
        (&[("attn.in_proj_weight", &[9, 3])], "of attention"),
        (&[("self_attn.out_proj.weight", &[3, 3])], "of attention"),
        (&[("layer.q_proj.weight", &[3, 3])], "of attention"),
        (&[("layer.query.weight", &[3, 3]), ("layer.key.weight", &[3, 3])], "of attention"),
        (&[("embed.weight", &[9, 3])], "embedding"),
        (&[("word_embeddings.weight", &[9, 3])], "embedding"),
        (&[("wte.weight", &[9, 3])], "embedding"),
        (&[("emb.weight", &[9, 3])], "embedding"),
        (&[("pos_embed", &[1, 9, 3])], "embedding"),
        (&[("mlp.gate_proj.weight", &[3, 3])], "gated"),
        (&[("experts.0.weight", &[3, 3])], "experts"),
        (&[("dense.kernel", &[3, 3])], "JAX and Keras"),
        (&[("coefs_0", &[3, 3])], "JAX and Keras"),
        (&[("mlp.c_fc.weight", &[3, 3])], "JAX and Keras"),
        (&[("alpha", &[])], "single number"),
        (&[("temperature", &[1])], "single number"),
    ];
    for (more, why) in table {
        write(&path, &[layers, more].concat());
        for allow_unused in [false, true] {
            let options = ImportOptions { allow_unused, ..with(&["relu"], None) };
            let (undecided, line) = refused(&path, &options);
            assert!(matches!(undecided, Some(Undecided::NoGraph(_))), "{why}: {line}");
            assert!(line.contains(why) && line.contains("is no multilayer"), "{why}: {line}");
        }
    }
    // All kinds are named, each once.
    write(
        &path,
        &[("conv1.weight", &[2, 1, 3, 3]), ("conv2.weight", &[2, 2, 3, 3]), ("n.gamma", &[2])],
    );
    let line = refused(&path, &with(&["relu"], None)).1;
    assert!(line.contains("`conv1.weight`") && line.contains("`n.gamma`"), "{line}");
    assert!(!line.contains("conv2"), "{line}");
    // Words that may be a layer's name where nothing beside them makes them attention.
    write(&path, &[("value.0.weight", &[3, 2]), ("value.2.weight", &[1, 3])]);
    import(&path, &with(&["relu"], None)).unwrap();
    // Whole numbers.
    let whole = Tensor::new(&[[1i64, 2]], &Device::Cpu).unwrap();
    save_tensors(&path, [("0.weight", whole)].into_iter(), None).unwrap();
    assert!(refused(&path, &with(&[], None)).1.contains("no floating-point type"));
}

/// g·v/‖v‖ by hand, for both spellings.
#[test]
fn weight_norms_along_rows_are_computed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let x = [0.8, -0.4];
    for [g, v] in [
        ["0.weight_g", "0.weight_v"],
        ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
    ] {
        let numbers =
            write(&path, &[(g, &[3, 1]), (v, &[3, 2]), ("0.bias", &[3]), ("2.weight", &[1, 3])]);
        let imported = import(&path, &with(&["relu"], None)).unwrap();
        let mut w = Vec::new();
        for (g, v) in numbers[0].iter().zip(numbers[1].chunks(2)) {
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            w.extend(v.iter().map(|v| g * v / norm));
        }
        let hidden: Vec<f64> =
            affine(&w, Some(&numbers[2]), &x).into_iter().map(|x| x.max(0.0)).collect();
        close(&run(&imported.model, &x), &affine(&numbers[3], None, &hidden));
        let notes = notes(&imported);
        assert!(notes.contains("row by row: `0.weight`"), "{notes}");
        assert!(notes.contains("order `0.weight`, `2.weight`"), "{notes}");
    }
    // A row of zeros has no direction.
    let (g, v) = (Tensor::new(&[[1f32]], &Device::Cpu), Tensor::new(&[[0f32, 0.0]], &Device::Cpu));
    let tensors = [("weight_g", g.unwrap()), ("weight_v", v.unwrap())];
    save_tensors(&path, tensors.into_iter(), None).unwrap();
    assert!(refused(&path, &with(&[], None)).1.contains("NaN"));
}
