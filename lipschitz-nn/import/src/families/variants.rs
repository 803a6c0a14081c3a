//! What sets a family of Llama's kin apart, as data. Defaults are those of the library's config
//! classes.

use super::decoder::{ALL_HEADS, Gain, Gains, HEADS, Layout, QueryKeyNorm};
use crate::heads::Head;
use crate::rope::Keys;
use lipschitz_nn::graph::{NormKind, Pairing, Span};

/// Whether linear maps have a bias.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Bias {
    Never,
    Always,
    /// As this option says.
    Option(&'static str),
}

/// Where the ε of norms comes from.
#[derive(Clone, Copy)]
pub(crate) enum Eps {
    Option(&'static str),
    /// The library writes it into its code.
    Fixed(f64),
}

/// The pointwise unit.
#[derive(Clone, Copy)]
pub(crate) enum Pointwise {
    /// Gated; gate and up may be one tensor.
    Gated { fused: bool, bias: Bias },
    /// Two linear maps of these names.
    Plain { up: &'static str, down: &'static str, bias: Bias },
}

/// Which layers have a window.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Windows {
    /// None.
    None,
    /// All, if there is one.
    All,
    /// All, or as their types say.
    Listed,
    /// Every second from the first on, or as their types say.
    Alternate,
    /// From a layer on, or as their types say.
    From,
    /// All but every sixth, or as their types say; rotary positions differ by type.
    Pattern,
    /// Those without rotary positions, or as their types say.
    NotTurned,
}

impl Windows {
    /// Whether the types of layers are read.
    pub(crate) fn by_type(self) -> bool {
        !matches!(self, Self::None | Self::All)
    }
}

/// What sets a family apart.
pub(crate) struct Variant {
    /// What its classes begin with.
    pub classes: &'static [&'static str],
    pub heads: &'static [Head],
    /// What the tensors of a model with answers begin with.
    pub answers: &'static str,
    pub norm: NormKind,
    pub gain: Gain,
    pub shift: bool,
    pub eps: Eps,
    pub layout: Layout,
    /// The option that puts attention and unit side by side.
    pub parallel_if: Option<&'static str>,
    /// The norm behind the blocks.
    pub last_norm: &'static str,
    pub qkv_bias: Bias,
    pub output_bias: Bias,
    /// Queries, keys and values are one tensor.
    pub fused: bool,
    /// The output projection.
    pub output: &'static str,
    /// All heads together have the width of the residual stream.
    pub square_output: bool,
    pub query_key: Option<QueryKeyNorm>,
    /// The option that switches it on.
    pub query_key_if: Option<&'static str>,
    pub unit: Pointwise,
    pub activation: &'static str,
    pub rope: Keys,
    pub windows: Windows,
    /// Whether the scores of the vocabulary have a bias.
    pub head_bias: bool,
    /// Whether candle's function is known.
    pub candle: bool,
}

/// The layout of most.
const BEFORE: Layout =
    Layout::Before { attention: "input_layernorm", unit: "post_attention_layernorm" };

/// Norms before and behind both, as Gemma 2 calls them.
const BOTH: Layout = Layout::Both {
    attention: ["input_layernorm", "post_attention_layernorm"],
    unit: ["pre_feedforward_layernorm", "post_feedforward_layernorm"],
};

/// An RMS norm of queries and keys.
const fn rms(span: Span) -> Option<QueryKeyNorm> {
    Some(QueryKeyNorm {
        kind: NormKind::Rms,
        shift: false,
        span,
        names: ["self_attn.q_norm", "self_attn.k_norm"],
        gains: Gains::Vector,
    })
}

const LLAMA: Variant = Variant {
    classes: &["Llama"],
    heads: HEADS,
    answers: "transformer.",
    norm: NormKind::Rms,
    gain: Gain::Plain,
    shift: false,
    eps: Eps::Option("rms_norm_eps"),
    layout: BEFORE,
    parallel_if: None,
    last_norm: "norm",
    qkv_bias: Bias::Option("attention_bias"),
    output_bias: Bias::Option("attention_bias"),
    fused: false,
    output: "self_attn.o_proj",
    square_output: false,
    query_key: None,
    query_key_if: None,
    unit: Pointwise::Gated { fused: false, bias: Bias::Never },
    activation: "hidden_act",
    rope: Keys::DEFAULT,
    windows: Windows::None,
    head_bias: false,
    candle: false,
};

/// A gated unit whose biases the config says.
const GATED: Pointwise = Pointwise::Gated { fused: false, bias: Bias::Option("mlp_bias") };

/// A gated unit with gate and up in one tensor.
const FUSED: Pointwise = Pointwise::Gated { fused: true, bias: Bias::Never };

/// Families that candle's function is known of too.
fn of_both(family: &str) -> Option<Variant> {
    let both = Variant { candle: true, ..LLAMA };
    let no_bias = Variant { qkv_bias: Bias::Never, output_bias: Bias::Never, ..both };
    let gemma = Variant { gain: Gain::LessOne, ..both };
    Some(match family {
        "llama" => Variant { heads: ALL_HEADS, unit: GATED, ..both },
        "mistral" => Variant {
            classes: &["Mistral"],
            heads: ALL_HEADS,
            answers: "model.",
            windows: Windows::All,
            ..no_bias
        },
        "qwen2" => Variant {
            classes: &["Qwen2"],
            heads: ALL_HEADS,
            qkv_bias: Bias::Always,
            windows: Windows::From,
            ..no_bias
        },
        "qwen3" => Variant {
            classes: &["Qwen3"],
            heads: ALL_HEADS,
            query_key: rms(Span::Head),
            windows: Windows::From,
            ..both
        },
        "phi3" => Variant {
            classes: &["Phi3"],
            fused: true,
            unit: FUSED,
            rope: Keys::of_share(1.0),
            windows: Windows::All,
            ..no_bias
        },
        "olmo2" => Variant {
            classes: &["Olmo2"],
            heads: &[Head::Vocabulary, Head::Classes],
            layout: Layout::Inside {
                attention: "post_attention_layernorm",
                unit: "post_feedforward_layernorm",
            },
            query_key: rms(Span::Heads),
            ..both
        },
        "gemma" => Variant { classes: &["Gemma"], ..gemma },
        "gemma2" => Variant {
            classes: &["Gemma2"],
            layout: BOTH,
            activation: "hidden_activation",
            windows: Windows::Alternate,
            ..gemma
        },
        _ => return None,
    })
}

/// The variant of a family; a plain Llama if there is none of its own.
pub(crate) fn variant(family: &str) -> Variant {
    match family {
        "arcee" => Variant {
            classes: &["Arcee"],
            heads: ALL_HEADS,
            unit: Pointwise::Plain {
                up: "mlp.up_proj",
                down: "mlp.down_proj",
                bias: Bias::Option("mlp_bias"),
            },
            ..LLAMA
        },
        "gemma3_text" => Variant {
            classes: &["Gemma3", "Gemma3Text"],
            heads: &[Head::Vocabulary, Head::Classes],
            gain: Gain::LessOne,
            layout: BOTH,
            query_key: rms(Span::Head),
            activation: "hidden_activation",
            windows: Windows::Pattern,
            ..LLAMA
        },
        "glm" | "glm4" => glm(family),
        "granite" => {
            Variant { classes: &["Granite"], heads: &[Head::Vocabulary], unit: GATED, ..LLAMA }
        }
        "helium" => Variant {
            classes: &["Helium"],
            output_bias: Bias::Never,
            square_output: true,
            unit: GATED,
            rope: Keys { pairing: Pairing::Interleaved, ..Keys::DEFAULT },
            ..LLAMA
        },
        "ministral" => Variant {
            classes: &["Ministral"],
            heads: ALL_HEADS,
            qkv_bias: Bias::Never,
            output_bias: Bias::Never,
            windows: Windows::Listed,
            ..LLAMA
        },
        "seed_oss" => Variant {
            classes: &["SeedOss"],
            heads: ALL_HEADS,
            output_bias: Bias::Option("attention_out_bias"),
            unit: GATED,
            ..LLAMA
        },
        "smollm3" => Variant {
            classes: &["SmolLM3"],
            heads: ALL_HEADS,
            unit: GATED,
            windows: Windows::NotTurned,
            ..LLAMA
        },
        "cohere" | "olmo" | "phi" | "stablelm" | "starcoder2" => with_layer_norm(family),
        _ => of_both(family).unwrap_or(LLAMA),
    }
}

fn glm(family: &str) -> Variant {
    let glm = Variant {
        classes: &["Glm"],
        output_bias: Bias::Never,
        unit: FUSED,
        rope: Keys { pairing: Pairing::Interleaved, ..Keys::of_share(0.5) },
        ..LLAMA
    };
    if family == "glm" {
        return glm;
    }
    let layout = Layout::Both {
        attention: ["input_layernorm", "post_self_attn_layernorm"],
        unit: ["post_attention_layernorm", "post_mlp_layernorm"],
    };
    Variant { classes: &["Glm4"], layout, ..glm }
}

/// Families with layer norms.
fn with_layer_norm(family: &str) -> Variant {
    let layer =
        Variant { norm: NormKind::Layer, shift: true, eps: Eps::Option("layer_norm_eps"), ..LLAMA };
    let query_key = QueryKeyNorm {
        kind: NormKind::Layer,
        shift: false,
        span: Span::EachHead,
        names: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
        gains: Gains::Apart,
    };
    match family {
        "cohere" => Variant {
            classes: &["Cohere"],
            heads: &[Head::Vocabulary],
            shift: false,
            layout: Layout::Parallel { norm: "input_layernorm" },
            query_key: Some(QueryKeyNorm {
                names: ["self_attn.q_norm", "self_attn.k_norm"],
                gains: Gains::Matrix,
                ..query_key
            }),
            query_key_if: Some("use_qk_norm"),
            rope: Keys { pairing: Pairing::Interleaved, ..Keys::DEFAULT },
            ..layer
        },
        "olmo" => Variant {
            classes: &["Olmo"],
            heads: &[Head::Vocabulary, Head::Classes],
            gain: Gain::None,
            shift: false,
            eps: Eps::Fixed(1e-5),
            ..layer
        },
        "phi" => Variant {
            classes: &["Phi"],
            layout: Layout::Parallel { norm: "input_layernorm" },
            last_norm: "final_layernorm",
            qkv_bias: Bias::Always,
            output_bias: Bias::Always,
            output: "self_attn.dense",
            query_key: Some(QueryKeyNorm {
                shift: true,
                span: Span::Head,
                gains: Gains::Vector,
                ..query_key
            }),
            query_key_if: Some("qk_layernorm"),
            unit: Pointwise::Plain { up: "mlp.fc1", down: "mlp.fc2", bias: Bias::Always },
            rope: Keys::of_share(0.5),
            head_bias: true,
            ..layer
        },
        "stablelm" => Variant {
            classes: &["StableLm"],
            parallel_if: Some("use_parallel_residual"),
            qkv_bias: Bias::Option("use_qkv_bias"),
            output_bias: Bias::Never,
            query_key: Some(query_key),
            query_key_if: Some("qk_layernorm"),
            rope: Keys::of_share(0.25),
            ..layer
        },
        _ => {
            let bias = Bias::Option("use_bias");
            Variant {
                classes: &["Starcoder2"],
                eps: Eps::Option("norm_epsilon"),
                qkv_bias: bias,
                output_bias: bias,
                unit: Pointwise::Plain { up: "mlp.c_fc", down: "mlp.c_proj", bias },
                windows: Windows::All,
                ..layer
            }
        }
    }
}
