//! Models in GGUF, whose metadata stand for a config.
//!
//! Source: the names of llama.cpp (`gguf-py/gguf/constants.py`), and what it computes of each
//! architecture. Its `llama` pairs neighbouring coordinates in rotary positions: queries and keys
//! are stored with their rows in that order.

use std::path::Path;

use serde_json::{Map, Value};

use super::decoder::{Block, Gain, Gains, Gates, Layout, Norm, Projections, QueryKeyNorm, Unit};
use crate::Undecided;
use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::{blocks, linear};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, Function, Input, Node, NormKind, Op, Pairing, Rotary, Span};

/// What sets an architecture apart.
struct Architecture {
    name: &'static str,
    /// Which coordinates rotary positions pair; none: positions are learned vectors.
    pairing: Option<Pairing>,
    /// Whether queries, keys and values have biases; none: the tensors say.
    bias: Option<bool>,
    /// Queries, keys and values are one tensor; none: the tensors say.
    fused: Option<bool>,
    /// The norm of queries and keys.
    query_key: Option<QueryKeyNorm>,
    /// All norms; a layer norm has a shift.
    norm: NormKind,
    /// Where they are.
    layout: Layout,
    unit: Unit,
    /// Whether attention and unit are side by side, whatever `layout` says, and whether queries and
    /// keys have norms, is what the tensors say.
    by_tensors: bool,
    /// Whether the output of attention, the unit, and the scores have biases.
    other_biases: [bool; 3],
    /// Embedding vectors are multiplied by √dim.
    scaled_embedding: bool,
    windows: Windows,
    /// With so many layers, logits are divided by √(dim/heads) and not by √head_dim.
    by_width: Option<usize>,
    /// Caps of attention's logits and of the final ones, where the file says none; without the
    /// outer option the key is not one of this architecture.
    caps: [Option<Option<f64>>; 2],
    /// Factors on the rotary frequencies may be in a tensor.
    factors: bool,
}

/// Which layers have a window.
#[derive(Clone, Copy, PartialEq)]
enum Windows {
    /// None; the key is not one of the architecture.
    None,
    /// llama.cpp reads the key and computes without a window.
    Dropped,
    /// All but every n-th, with the rotary positions of the others.
    AllBut(usize),
    /// The same, with rotary positions of a base of their own, 10000 where the file says none.
    AllButWithBase(usize),
}

/// A gated unit with this function of the gate.
const fn gated(function: Function) -> Unit {
    Unit::Gated { function, names: Gates::Apart(["ffn_gate", "ffn_up", "ffn_down"]) }
}

/// Gate and up in one tensor.
const FUSED: Unit =
    Unit::Gated { function: Function::Silu, names: Gates::Rows(["ffn_up", "ffn_down"]) };

/// Two linear maps.
const PLAIN: Unit =
    Unit::Plain { phi: NamedActivation::plain(Function::GeluTanh), up: "ffn_up", down: "ffn_down" };

/// Attention and unit side by side, behind one norm.
const PARALLEL: Layout = Layout::Parallel { norm: "attn_norm" };

/// A norm of queries and keys: RMS norms with one gain for all heads, or layer norms with gains of
/// each.
const fn query_key(kind: NormKind) -> Option<QueryKeyNorm> {
    let names = ["attn_q_norm", "attn_k_norm"];
    let (span, gains) = match kind {
        NormKind::Rms => (Span::Head, Gains::Vector),
        NormKind::Layer => (Span::EachHead, Gains::Matrix),
    };
    Some(QueryKeyNorm { kind, shift: false, span, names, gains })
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    pairing: Some(Pairing::Interleaved),
    bias: None,
    fused: Some(false),
    query_key: None,
    norm: NormKind::Rms,
    layout: Layout::Before { attention: "attn_norm", unit: "ffn_norm" },
    unit: gated(Function::Silu),
    by_tensors: false,
    other_biases: [false; 3],
    scaled_embedding: false,
    windows: Windows::None,
    by_width: None,
    caps: [None, None],
    factors: true,
};

/// What the others have in common.
const HALF: Architecture =
    Architecture { pairing: Some(Pairing::Half), bias: Some(false), factors: false, ..LLAMA };

const GEMMA: Architecture = Architecture {
    layout: Layout::Both {
        attention: ["attn_norm", "post_attention_norm"],
        unit: ["ffn_norm", "post_ffw_norm"],
    },
    unit: gated(Function::GeluTanh),
    scaled_embedding: true,
    ..HALF
};

const LAYER: Architecture = Architecture { norm: NormKind::Layer, ..HALF };

const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture { name: "qwen2", bias: Some(true), ..HALF },
    Architecture { name: "qwen3", query_key: query_key(NormKind::Rms), ..HALF },
    Architecture {
        name: "phi3",
        fused: Some(true),
        unit: FUSED,
        windows: Windows::Dropped,
        ..HALF
    },
    Architecture {
        name: "gemma2",
        windows: Windows::AllBut(2),
        by_width: Some(46),
        caps: [Some(Some(50.0)), Some(Some(30.0))],
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        query_key: query_key(NormKind::Rms),
        windows: Windows::AllButWithBase(6),
        by_width: Some(62),
        caps: [None, Some(None)],
        ..GEMMA
    },
    Architecture {
        name: "starcoder2",
        bias: Some(true),
        unit: PLAIN,
        other_biases: [true, true, false],
        ..LAYER
    },
    Architecture {
        name: "gpt2",
        pairing: None,
        bias: Some(true),
        fused: Some(true),
        unit: PLAIN,
        other_biases: [true, true, false],
        ..LAYER
    },
    Architecture {
        name: "phi2",
        bias: Some(true),
        fused: None,
        layout: PARALLEL,
        unit: PLAIN,
        other_biases: [true; 3],
        ..LAYER
    },
    Architecture {
        name: "stablelm",
        bias: None,
        query_key: query_key(NormKind::Layer),
        by_tensors: true,
        ..LAYER
    },
];

/// Keys that say nothing of the function.
const INERT: &[&str] = &["general.", "tokenizer.", "quantize.", "split."];

/// Tensors of factors on rotary frequencies: for all contexts, and for short and long ones.
const FACTORS: &str = "rope_freqs.weight";
const BY_CONTEXT: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// The architecture and the mapping of a GGUF file.
pub(crate) fn mapping(
    path: &Path,
    metadata: Map<String, Value>,
    files: &Files,
    ignored: &[String],
) -> Result<(String, Mapping), Error> {
    let inert = |key: &&str| INERT.iter().any(|start| key.starts_with(start));
    let keys: Vec<String> =
        metadata.keys().map(String::as_str).filter(inert).map(String::from).collect();
    let config = ConfigReader::of(path, String::new(), metadata);
    config.ignore(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let Some(family) = config.text_if("general.architecture")?.map(str::to_string) else {
        return Err(config.wrong("general.architecture", "is missing"));
    };
    if let Some(kind) = config.text_if("general.type")?.filter(|kind| *kind != "model") {
        return Err(config.wrong("general.type", format!("is `{kind}`, wanted a whole model")));
    }
    if let Some(count) = config.count_if("split.count")?.filter(|count| *count > 1) {
        let what =
            format!("is {count}: this is one part of a model; merge the parts into one file");
        return Err(config.wrong("split.count", what));
    }
    let Some(architecture) = ARCHITECTURES.iter().find(|known| known.name == family) else {
        let known = ARCHITECTURES.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
        let what = format!("is `{family}`, which is not supported in GGUF; supported are {known}");
        return Err(config.wrong("general.architecture", what));
    };
    let decoder = Decoder { config: &config, files, architecture, ignored };
    let mut mapping = decoder.mapping()?;
    mapping.notes.extend(config.finish(ignored)?);
    Ok((format!("{family} (GGUF)"), mapping))
}

/// Rotary positions and window of a layer.
type Layer = (Option<Rotary>, Option<usize>);

struct Decoder<'a> {
    config: &'a ConfigReader,
    files: &'a Files,
    architecture: &'static Architecture,
    ignored: &'a [String],
}

impl Decoder<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        self.config.size(&self.key(key))
    }

    /// A size that is another one where the file does not say it.
    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.config.size_or(&self.key(key), default)
    }

    fn wrong(&self, key: &str, what: impl std::fmt::Display) -> Error {
        self.config.wrong(&self.key(key), what)
    }

    /// A number above 0, or none where it is not given.
    fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.config.number_if(&self.key(key))? {
            Some(x) if x <= 0.0 => Err(self.wrong(key, format!("is {x}, wanted a number above 0"))),
            number => Ok(number),
        }
    }

    fn mapping(&self) -> Result<Mapping, Error> {
        let Self { config, files, architecture, .. } = *self;
        let dim = self.size("embedding_length")?;
        let layers = config.layers(&self.key("block_count"), files.len())?;
        let context = self.size("context_length")?;
        self.refuse_others()?;
        let vocabulary = match files.get("token_embd.weight").map(|info| info.shape.as_slice()) {
            Some([vocabulary, _]) => *vocabulary,
            _ => self.size("vocab_size")?,
        };
        let vocabulary = self.size_or("vocab_size", vocabulary)?;
        let mixer = self.mixer(dim, layers)?;
        let block = self.block(dim)?;
        let final_cap = self.cap(1, "final_logit_softcapping")?;

        let mut weights = WeightMap::default();
        let embedding = TensorExpr::new("token_embd.weight", &[vocabulary, dim]);
        let scaled = architecture.scaled_embedding;
        let factor = if scaled { (dim as f64).sqrt() } else { 1.0 };
        let vectors = embedding.clone();
        weights.put("embedding.weight", if scaled { vectors.times(factor) } else { vectors });
        let mut bodies = Vec::new();
        for (i, (rotary, window)) in
            self.layers(layers, context, mixer.head_dim)?.into_iter().enumerate()
        {
            let mixer = Attention { rotary, window, ..mixer.clone() };
            let (to, from) = (format!("blocks.{i}"), format!("blk.{i}"));
            bodies.push(block.body(&mut weights, &to, &from, mixer));
        }
        block.norm.put(&mut weights, "norm", "output_norm", dim);
        // A head that is the embedding is not stored again.
        let own = files.get("output.weight").is_some();
        let head = TensorExpr::new("output.weight", &[vocabulary, dim]);
        weights.put("head.weight", if own { head } else { embedding });
        let mut nodes = vec![Node::new("embedding", Op::Embedding { vocabulary, dim })];
        if architecture.pairing.is_none() {
            let table = TensorExpr::new("position_embd.weight", &[context, dim]);
            weights.put("positions.weight", table);
            nodes.push(Node::new("positions", Op::Positions { length: context, dim }));
        }
        let [.., bias] = architecture.other_biases;
        if bias {
            weights.vector("head.bias", "output.bias", vocabulary);
        }
        nodes.extend([
            blocks(bodies),
            block.norm.node("norm", dim),
            linear("head", dim, vocabulary, bias),
        ]);
        nodes.extend(final_cap.map(|cap| Node::new("", Op::SoftCap { cap })));
        let mut mapping = Mapping::new(Input::tokens(context), nodes, weights)?;
        if architecture.factors {
            mapping = mapping.aside(FACTORS, "factors on rotary frequencies, which the graph has");
        }
        if scaled {
            mapping = mapping.note("embedding vectors are those multiplied by √dim");
        }
        Ok(mapping)
    }

    /// Refuses what makes another function of any architecture.
    fn refuse_others(&self) -> Result<(), Error> {
        let Self { config, files, architecture, .. } = *self;
        for key in ["expert_count", "expert_used_count"] {
            if config.count_if(&self.key(key))?.is_some_and(|n| n > 0) {
                let what = "is above 0: it sends tokens to the top experts, so its function jumps \
                            and has no finite Lipschitz constant";
                return Err(self.wrong(key, what));
            }
        }
        let causal = self.key("attention.causal");
        if !config.flag_or(&causal, true)? {
            return Err(config.unsupported(&causal, false));
        }
        let parallel = self.key("use_parallel_residual");
        let by_default = matches!(architecture.layout, Layout::Parallel { .. });
        if architecture.by_tensors {
            // Written as true where the model's own config does not say it.
            config.ignore(&[&parallel]);
        } else if config.flag_or(&parallel, by_default)? != by_default {
            return Err(config.unsupported(&parallel, !by_default));
        }
        // How the writer's own source laid its tensors out.
        config.ignore(&[&self.key("tensor_data_layout")]);
        let factors = (!architecture.factors).then_some(FACTORS);
        match BY_CONTEXT.into_iter().chain(factors).find(|name| files.get(name).is_some()) {
            None => Ok(()),
            Some(name) => {
                let what = format!(
                    "has factors on rotary frequencies, which are not supported of {}",
                    architecture.name
                );
                Err(Error::weight(name, what))
            }
        }
    }

    /// Attention of the blocks, but for positions and windows.
    fn mixer(&self, dim: usize, layers: usize) -> Result<Attention, Error> {
        let Self { config, files, architecture, .. } = *self;
        let heads = self.size("attention.head_count")?;
        let key_value_heads = self.size_or("attention.head_count_kv", heads)?;
        if !heads.is_multiple_of(key_value_heads) {
            let what = format!("is {key_value_heads}, which does not divide {heads}");
            return Err(self.wrong("attention.head_count_kv", what));
        }
        let wide = architecture.by_width == Some(layers);
        let given = config.names(&self.key("attention.key_length")) && !wide;
        if !given && !dim.is_multiple_of(heads) {
            let what = format!("is {heads}, which does not divide {dim}");
            return Err(self.wrong("attention.head_count", what));
        }
        let head_dim = self.size_or("attention.key_length", dim / heads)?;
        if self.size_or("attention.value_length", head_dim)? != head_dim {
            return Err(self.wrong("attention.value_length", "is not that of the keys"));
        }
        // So that no table of frequencies is larger than the file.
        let rows = |name| files.get(name).and_then(|info| info.shape.first().copied());
        let [apart, fused] = ["blk.0.attn_q.weight", "blk.0.attn_qkv.weight"];
        let Some(rows) = rows(apart).or_else(|| rows(fused)) else {
            let name = if architecture.fused == Some(true) { fused } else { apart };
            return Err(Error::weight(name, "is missing"));
        };
        if head_dim > rows {
            let what = format!("is {head_dim}, more than the first layer has queries");
            return Err(self.wrong("attention.key_length", what));
        }
        let divided = if wide { dim / heads } else { head_dim };
        let bias = architecture.bias;
        Ok(Attention {
            key_value_heads,
            bias: bias.unwrap_or_else(|| files.get("blk.0.attn_q.bias").is_some()),
            output_bias: architecture.other_biases[0],
            logit_scale: (divided as f64).sqrt().recip(),
            logit_cap: self.cap(0, "attn_logit_softcapping")?,
            ..Attention::new(dim, heads, head_dim)
        })
    }

    fn cap(&self, which: usize, key: &str) -> Result<Option<f64>, Error> {
        let default = self.architecture.caps.get(which).copied().flatten();
        match default {
            None => Ok(None),
            // 0 is none where llama.cpp takes none by default.
            Some(None) if self.config.number_if(&self.key(key))? == Some(0.0) => Ok(None),
            Some(default) => Ok(self.positive(key)?.or(default)),
        }
    }

    fn block(&self, dim: usize) -> Result<Block, Error> {
        let Architecture { fused, query_key, norm: kind, layout, unit, by_tensors, .. } =
            *self.architecture;
        let stored = |name: &str| self.files.get(&format!("blk.0.{name}.weight")).is_some();
        let epsilon = self.key(match kind {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        });
        if !self.config.names(&epsilon) {
            return Err(self.config.wrong(&epsilon, "is missing"));
        }
        let eps = self.config.eps(&epsilon)?;
        let projections = if fused.unwrap_or_else(|| stored("attn_qkv")) {
            Projections::Rows("attn_qkv")
        } else {
            Projections::Apart(["attn_q", "attn_k", "attn_v"])
        };
        let layout = if by_tensors && !stored("ffn_norm") { PARALLEL } else { layout };
        let query_key = query_key.filter(|norm| !by_tensors || stored(norm.names[0]));
        Ok(Block {
            dim,
            hidden: self.size("feed_forward_length")?,
            // Gemma's gains are stored with the 1 that its own files leave out.
            norm: Norm { kind, eps, gain: Gain::Plain, shift: kind == NormKind::Layer },
            layout,
            projections,
            output: "attn_output",
            query_key,
            unit,
            unit_bias: self.architecture.other_biases[1],
            branch: 1.0,
            transposed: false,
        })
    }

    /// Positions and window of each layer.
    fn layers(&self, layers: usize, context: usize, head_dim: usize) -> Result<Vec<Layer>, Error> {
        let Some(pairing) = self.architecture.pairing else {
            return Ok(vec![(None, None); layers]);
        };
        let rotary = self.rotary(head_dim, pairing)?;
        let (every, sliding) = match self.architecture.windows {
            Windows::None => return Ok(vec![(Some(rotary), None); layers]),
            Windows::Dropped => {
                self.no_window(context)?;
                return Ok(vec![(Some(rotary), None); layers]);
            }
            Windows::AllBut(every) => (every, rotary.clone()),
            Windows::AllButWithBase(every) => {
                let base = self.positive("rope.freq_base_swa")?.unwrap_or(10000.0);
                // The scaling is of the layers without a window.
                (every, self.turned(head_dim, pairing, base, 1.0, &vec![1.0; head_dim / 2])?)
            }
        };
        let window = self.size("attention.sliding_window")?;
        let every = self.size_or("attention.sliding_window_pattern", every)?;
        let of = |i: usize| {
            if i.is_multiple_of(every) {
                (Some(rotary.clone()), None)
            } else {
                (Some(sliding.clone()), Some(window))
            }
        };
        Ok((1..=layers).map(of).collect())
    }

    /// A window that a sequence does not outgrow is none. Of a smaller one the model's own code and
    /// llama.cpp make two functions.
    fn no_window(&self, context: usize) -> Result<(), Error> {
        let key = self.key("attention.sliding_window");
        if self.ignored.contains(&key) {
            return Ok(());
        }
        match self.config.count_if(&key)? {
            Some(window) if window > 0 && window < context => {
                let what = format!(
                    "`{key}` is {window}, below the context of {context}: the model was trained \
                     with this window, and llama.cpp computes without it, as the import does where \
                     this is ignored"
                );
                Err(self.config.undecided(Undecided::UnknownOptions(what)))
            }
            _ => Ok(()),
        }
    }

    /// Rotary positions: the base, a factor on all of them, and one for each frequency in a tensor.
    fn rotary(&self, head_dim: usize, pairing: Pairing) -> Result<Rotary, Error> {
        let Self { config, files, .. } = *self;
        let base = self.positive("rope.freq_base")?.unwrap_or(10000.0);
        // What a model was trained with says nothing of what it computes.
        let told = ["rope.scaling.original_context_length", "rope.scaling.finetuned"];
        told.iter().for_each(|key| config.ignore(&[&self.key(key)]));
        let (kind, factor) = (self.key("rope.scaling.type"), self.key("rope.scaling.factor"));
        // The older key counts where the newer is not given.
        let given = config.number_if(&factor)?;
        let older = config.number_if(&self.key("rope.scale_linear"))?;
        if let (Some(given), Some(older)) = (given, older)
            && given != older
        {
            return Err(self.wrong("rope.scale_linear", "contradicts `rope.scaling.factor`"));
        }
        let scale = match config.text_if(&kind)? {
            Some("none") => 1.0,
            // A file that names no scaling scales nothing: angles as they are.
            None => given.or(older).unwrap_or(1.0),
            Some("linear") => given.or(older).ok_or_else(|| config.wrong(&factor, "is missing"))?,
            Some(other) => {
                return Err(config.wrong(&kind, format!("is `{other}`, which is not supported")));
            }
        };
        let half = self.size_or("rope.dimension_count", head_dim)? / 2;
        let factors = match files.get(FACTORS) {
            None => vec![1.0; half.min(head_dim)],
            Some(info) if info.shape == [half] => {
                files.read(FACTORS)?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?
            }
            Some(info) => {
                let what = format!("has shape {:?}, wanted [{half}]", info.shape);
                return Err(Error::weight(FACTORS, what));
            }
        };
        self.turned(head_dim, pairing, base, scale, &factors)
    }

    /// Rotary positions of these frequencies: `base^(−2i/d)` of the d coordinates that are turned,
    /// divided by `scale` and by the factor of each.
    fn turned(
        &self,
        head_dim: usize,
        pairing: Pairing,
        base: f64,
        scale: f64,
        factors: &[f64],
    ) -> Result<Rotary, Error> {
        let turned = self.size_or("rope.dimension_count", head_dim)?;
        if turned > head_dim || !turned.is_multiple_of(2) {
            let what = format!("is {turned} of {head_dim} coordinates, which is not supported");
            return Err(self.wrong("rope.dimension_count", what));
        }
        let half = turned / 2;
        let usual = turned == head_dim && scale == 1.0 && factors.iter().all(|by| *by == 1.0);
        let frequency =
            |(i, by): (usize, &f64)| base.powf(-(i as f64) / half as f64) / (by * scale);
        let frequencies: Vec<f64> = factors.iter().take(half).enumerate().map(frequency).collect();
        if let Some(f) = frequencies.iter().find(|f| !f.is_finite()) {
            return Err(self.wrong("rope.freq_base", format!("gives a frequency of {f}")));
        }
        let frequencies = (!usual).then_some(frequencies);
        Ok(Rotary { frequencies, ..Rotary::new(base, pairing) })
    }
}
