//! What a tensor is, by its name, shape and neighbours, where it is no layer of a multilayer
//! perceptron. None of these may be left out: what remains would be another network.

use crate::formats::files::{Files, Info};

/// What a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Adapter,
    Pruned,
    SpectralNorm,
    WeightNorm,
    Parametrised,
    Recurrent,
    BatchNorm,
    Attention,
    Experts,
    Gate,
    Table,
    Convolution,
    Kernel,
    Norm,
    Quantised,
    Scalar,
}

impl Kind {
    /// What the tensor is, and what can be done where the caller need not describe a graph.
    fn text(self) -> &'static str {
        match self {
            Self::Adapter => {
                "is an adapter's, whose scale is elsewhere; merge it into the weights and save those"
            }
            Self::Pruned => {
                "is of a pruned weight; make it permanent (torch.nn.utils.prune.remove) and save again"
            }
            Self::SpectralNorm => {
                "is of a spectral norm, which depends on the state of a power iteration; remove the \
                 parametrisation, which keeps the weight, and save again"
            }
            Self::WeightNorm => {
                "is of a weight norm that is not along the rows; remove the parametrisation, which \
                 keeps the weight, and save again"
            }
            Self::Parametrised => {
                "is of a parametrised weight, whose function is not known; remove the \
                 parametrisation, which keeps the weight, and save again"
            }
            Self::Recurrent => "is of a recurrent layer, which reads its own output",
            Self::BatchNorm => {
                "is of a batch norm; fold it into the matrix next to it and save again"
            }
            Self::Attention => "is of attention",
            Self::Experts => "is of a mixture of experts",
            Self::Gate => "is of a gated unit, a product of two maps",
            Self::Table => "is an embedding, a table that is looked up",
            Self::Convolution => "has more than two dimensions, as a convolution",
            Self::Kernel => {
                "is [inputs, outputs], as kernels of JAX and Keras are; transpose such matrices, call \
                 them `weight` and save again"
            }
            Self::Norm => "is a gain for each feature, as of a norm or a PReLU",
            Self::Quantised => "has no floating-point type; dequantise the weights and save again",
            Self::Scalar => "is a single number, and what it multiplies is not known",
        }
    }
}

/// Segments of a name, in lower case.
fn segments(name: &str) -> Vec<String> {
    name.split(['.', '/']).map(str::to_lowercase).collect()
}

/// A name with its last segment replaced.
fn sibling(name: &str, leaf: &str) -> String {
    match name.rsplit_once(['.', '/']) {
        Some((stem, _)) => format!("{}{leaf}", &name[..stem.len() + 1]),
        None => leaf.to_string(),
    }
}

fn leaf(name: &str) -> &str {
    name.rsplit(['.', '/']).next().unwrap_or(name)
}

/// The names of g and of the weight, if `v` is the direction of a weight norm.
fn gain_of(v: &str) -> Option<(String, String)> {
    if let Some(stem) = v.strip_suffix("parametrizations.weight.original1") {
        return Some((format!("{stem}parametrizations.weight.original0"), format!("{stem}weight")));
    }
    let stem = v.strip_suffix("weight_v")?;
    let whole = stem.is_empty() || stem.ends_with(['.', '/']);
    whole.then(|| (format!("{stem}weight_g"), format!("{stem}weight")))
}

/// The weight and the gain g, if this is the direction v of a weight norm along the rows of a
/// matrix, w = g·v/‖v‖ (Salimans and Kingma, *Weight Normalization*, 2016, eq. 2).
///
/// PyTorch keeps dimensions when it takes the norms, so g has a number for each row exactly if
/// they are those of rows.
pub(super) fn weight_norm(files: &Files, v: &str) -> Option<(String, String)> {
    let (gain, weight) = gain_of(v)?;
    let &[rows, _] = files.get(v)?.shape.as_slice() else { return None };
    let along_rows = files.get(&gain).is_some_and(|g| g.shape == [rows, 1]);
    (along_rows && files.get(&weight).is_none()).then_some((weight, gain))
}

/// Whether this is the gain of such a weight norm.
pub(super) fn is_gain(files: &Files, g: &str) -> bool {
    let v = match (g.strip_suffix("original0"), g.strip_suffix("weight_g")) {
        (Some(stem), _) => format!("{stem}original1"),
        (_, Some(stem)) => format!("{stem}weight_v"),
        _ => return false,
    };
    weight_norm(files, &v).is_some_and(|(_, gain)| gain == g)
}

/// What is to be known about the weight norms of a file.
pub(super) fn weight_norms(files: &Files) -> Option<String> {
    let weights: Vec<String> = files
        .names()
        .filter_map(|name| Some(format!("`{}`", weight_norm(files, name)?.0)))
        .collect();
    (!weights.is_empty())
        .then(|| format!("computed as a weight norm, g·v/‖v‖ row by row: {}", weights.join(", ")))
}

/// Whether a query has its key beside it, or a key or value its query: alone, such a word may be
/// the name of anything.
fn has_partner(files: &Files, name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    parts.iter().enumerate().any(|(i, part)| {
        let partner = match *part {
            "query" => "key",
            "key" | "value" => "query",
            "q" => "k",
            "k" | "v" => "q",
            _ => return false,
        };
        let mut other = parts.clone();
        other[i] = partner;
        files.get(&other.join(".")).is_some()
    })
}

fn kind(files: &Files, name: &str, info: &Info) -> Option<Kind> {
    if weight_norm(files, name).is_some() || is_gain(files, name) {
        return None;
    }
    let segments = segments(name);
    let leaf = leaf(name);
    let any = |test: &dyn Fn(&str) -> bool| segments.iter().any(|s| test(s));
    let has = |leaf: &str| files.get(&sibling(name, leaf)).is_some();
    let starts = |s: &str, of: &[&str]| of.iter().any(|start| s.starts_with(start));
    let (rank, numbers) = (info.shape.len(), info.shape.iter().product::<usize>());

    if any(&|s| starts(s, &["lora_", "hada_", "lokr_", "oft_"])) {
        return Some(Kind::Adapter);
    }
    if let Some(stem) = leaf.strip_suffix("_mask").or_else(|| leaf.strip_suffix("_orig"))
        && has(&format!("{stem}_mask"))
        && has(&format!("{stem}_orig"))
    {
        return Some(Kind::Pruned);
    }
    if let Some(stem) = ["_orig", "_u", "_v"].iter().find_map(|end| leaf.strip_suffix(end))
        && has(&format!("{stem}_orig"))
        && has(&format!("{stem}_u"))
    {
        return Some(Kind::SpectralNorm);
    }
    if let Some(at) = segments.iter().position(|s| s == "parametrizations") {
        let below = segments.get(at + 2..).unwrap_or_default();
        let stem: usize = name.split(['.', '/']).take(at + 2).map(|s| s.len() + 1).sum();
        let stem = name.get(..stem).unwrap_or(name);
        let iterated = |what: &str| files.get(&format!("{stem}0.{what}")).is_some();
        return Some(match below {
            _ if iterated("_u") => Kind::SpectralNorm,
            [last] if last == "original0" || last == "original1" => Kind::WeightNorm,
            _ => Kind::Parametrised,
        });
    }
    if matches!(leaf, "weight_g" | "weight_v") {
        return Some(Kind::WeightNorm);
    }
    if leaf.ends_with("_orig") {
        return Some(Kind::Parametrised);
    }
    if starts(leaf, &["weight_ih", "weight_hh", "bias_ih", "bias_hh"]) {
        return Some(Kind::Recurrent);
    }
    if matches!(leaf, "running_mean" | "running_var" | "num_batches_tracked")
        || has("running_mean") && rank == 1
    {
        return Some(Kind::BatchNorm);
    }
    const ATTENTION: &[&str] = &[
        "k_proj", "o_proj", "out_proj", "q_proj", "qkv", "to_k", "to_out", "to_q", "to_qkv",
        "to_v", "v_proj", "wk", "wo", "wq", "wqkv", "wv",
    ];
    let attends = |s: &str| {
        s.contains("attn")
            || s.contains("attention")
            || s.starts_with("in_proj")
            || ATTENTION.contains(&s)
    };
    if any(&attends) || has_partner(files, name) {
        return Some(Kind::Attention);
    }
    if any(&|s| matches!(s, "experts" | "router")) {
        return Some(Kind::Experts);
    }
    if any(&|s| matches!(s, "gate" | "gate_proj" | "gate_up_proj")) {
        return Some(Kind::Gate);
    }
    let table = |s: &str| {
        s.contains("embed") || s == "emb" || s.ends_with("_emb") || matches!(s, "wte" | "wpe")
    };
    if any(&table) {
        return Some(Kind::Table);
    }
    if rank > 2 {
        return Some(Kind::Convolution);
    }
    if rank == 2
        && (leaf == "kernel" || leaf.starts_with("coefs") || any(&|s| s == "c_fc" || s == "c_proj"))
    {
        return Some(Kind::Kernel);
    }
    let floats = info.dtype.is_some_and(|d| d.is_float());
    if rank == 2 && !floats {
        return Some(Kind::Quantised);
    }
    if rank == 1 && matches!(leaf, "weight" | "gamma" | "gain" | "scale") {
        return Some(Kind::Norm);
    }
    if floats && numbers == 1 && rank < 2 && leaf != "bias" {
        return Some(Kind::Scalar);
    }
    None
}

/// The tensors that are no layers, one of each kind, in words.
pub(super) fn foreign(files: &Files) -> Option<String> {
    let mut found: Vec<(Kind, &str, &Info)> = Vec::new();
    for name in files.names() {
        let Some(info) = files.get(name) else { continue };
        if let Some(kind) = kind(files, name, info)
            && found.iter().all(|(other, ..)| *other != kind)
        {
            found.push((kind, name, info));
        }
    }
    found.sort_by_key(|(kind, ..)| *kind);
    let words: Vec<String> = found
        .iter()
        .map(|(kind, name, info)| format!("`{name}` {:?} {}", info.shape, kind.text()))
        .collect();
    (!words.is_empty()).then(|| words.join("; "))
}
