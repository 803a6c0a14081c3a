//! One file for each family of models, and the table of families.

mod albert;
mod bart;
mod bert;
mod clip;
mod decoder;
mod dinov2;
mod distilbert;
mod electra;
mod encoder;
mod esm;
pub(crate) mod gguf;
mod gpt2;
mod llama;
pub(crate) mod llama2c;
pub(crate) mod matrices;
mod modernbert;
pub(crate) mod modula;
pub(crate) mod modula_run;
mod mpnet;
pub(crate) mod nanogpt;
mod neox;
mod nomic;
pub(crate) mod onnx;
mod opt;
mod t5;
mod variants;
pub(crate) mod vision_file;
mod vit;

use lipschitz_nn::Error;

use crate::config::ConfigReader;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;

/// What a family makes of a model directory.
pub(crate) type Family = fn(&ModelDir) -> Result<Mapping, Error>;

/// The families by the `model_type` of their configs, in order.
const TABLE: &[(&str, Family)] = &[
    ("albert", albert::albert),
    ("arcee", llama::llama),
    ("bart", bart::bart),
    ("bert", bert::bert),
    ("bloom", neox::bloom),
    ("camembert", bert::bert),
    ("chinese_clip", clip::both),
    ("chinese_clip_text_model", clip::text),
    ("chinese_clip_vision_model", clip::vision),
    ("clip", clip::both),
    ("clip_text_model", clip::text),
    ("clip_vision_model", clip::vision),
    ("cohere", llama::llama),
    ("deit", vit::vit),
    ("dinov2", dinov2::dinov2),
    ("dinov2_with_registers", dinov2::dinov2),
    ("distilbert", distilbert::distilbert),
    ("electra", electra::electra),
    ("esm", esm::esm),
    ("falcon", neox::falcon),
    ("gemma", llama::llama),
    ("gemma2", llama::llama),
    ("gemma3_text", llama::llama),
    ("glm", llama::llama),
    ("glm4", llama::llama),
    ("gpt2", gpt2::gpt2),
    ("gpt_bigcode", gpt2::bigcode),
    ("gpt_neo", gpt2::gpt_neo),
    ("gpt_neox", neox::gpt_neox),
    ("gptj", gpt2::gptj),
    ("granite", llama::llama),
    ("helium", llama::llama),
    ("ijepa", vit::vit),
    ("llama", llama::llama),
    ("m2m_100", bart::bart),
    ("marian", bart::bart),
    ("mbart", bart::bart),
    ("ministral", llama::llama),
    ("mistral", llama::llama),
    ("modernbert", modernbert::modernbert),
    ("mpnet", mpnet::mpnet),
    ("mpt", neox::mpt),
    ("nomic_bert", nomic::nomic),
    ("olmo", llama::llama),
    ("olmo2", llama::llama),
    ("opt", opt::opt),
    ("pegasus", bart::bart),
    ("persimmon", neox::persimmon),
    ("phi", llama::llama),
    ("phi3", llama::llama),
    ("qwen2", llama::llama),
    ("qwen3", llama::llama),
    ("roberta", bert::bert),
    ("seed_oss", llama::llama),
    ("siglip", clip::both),
    ("siglip_text_model", clip::text),
    ("siglip_vision_model", clip::vision),
    ("smollm3", llama::llama),
    ("stablelm", llama::llama),
    ("starcoder2", llama::llama),
    ("t5", t5::t5),
    ("vit", vit::vit),
    ("vit_msn", vit::vit),
    ("xlm-roberta", bert::bert),
];

/// Families with a mixture of experts.
const EXPERTS: &[&str] = &[
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "jamba",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
];

/// The families that can be imported, by the `model_type` of a config, in order.
pub fn families() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// The mapping of a model of one of these families.
pub(crate) fn mapping(model: &ModelDir, ignored: &[String]) -> Result<Mapping, Error> {
    let family = find(model.config, model.family)?;
    let mut mapping = family(model)?;
    mapping.notes.extend(model.config.finish(ignored)?);
    Ok(mapping)
}

/// The family of this name.
pub(crate) fn find(config: &ConfigReader, name: &str) -> Result<Family, Error> {
    match TABLE.iter().find(|(known, _)| *known == name) {
        Some((_, family)) => Ok(*family),
        None => Err(config.wrong("model_type", unsupported(name))),
    }
}

/// The family of a class of the library, by how its name begins.
pub(crate) fn of_class(class: &str) -> Option<&'static str> {
    let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
    let class = plain(class);
    families().filter(|family| class.starts_with(&plain(family))).max_by_key(|f| f.len())
}

fn unsupported(family: &str) -> String {
    if EXPERTS.contains(&family) {
        return format!(
            "is `{family}`: it sends tokens to the top experts, so its function jumps and has no \
             finite Lipschitz constant"
        );
    }
    let known = families().collect::<Vec<_>>().join(", ");
    format!("is `{family}`, which is not supported; supported are {known}")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use lipschitz_nn::checkpoint::Dialect;

    use crate::config::ConfigReader;
    use crate::formats::files::Files;
    use crate::model_dir::ModelDir;

    #[test]
    fn classes_are_of_the_family_that_they_begin_with() {
        for (class, family) in [
            ("BertModel", Some("bert")),
            ("AlbertForMaskedLM", Some("albert")),
            ("XLMRobertaModel", Some("xlm-roberta")),
            ("GPTNeoXForCausalLM", Some("gpt_neox")),
            ("GPT2LMHeadModel", Some("gpt2")),
            ("MPNetModel", Some("mpnet")),
            ("ReformerModel", None),
            ("", None),
        ] {
            assert_eq!(super::of_class(class), family, "{class}");
        }
    }

    #[test]
    fn families_are_in_order_and_named_once() {
        assert!(super::families().is_sorted_by(|a, b| a < b));
        assert!(super::families().all(|family| !super::EXPERTS.contains(&family)));
    }

    /// What the library's code reads and these families, or all, need not ask for: where it is
    /// given, and not as it is by default, the import stops.
    const KNOWN: &[(&[&str], &[&str])] = &[
        // Of how weights are loaded and shared among machines and layers.
        (&[], &["distributed_config", "fusion_config", "kv_sharing_modes", "quantization_config"]),
        (&[], &["tie_last_hidden_states", "transformers_weights"]),
        // How weights are drawn.
        (&[], &["init_std", "initializer_range"]),
        // Of models that read texts and images at once.
        (&[], &["vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"]),
        // Of masks; no class of theirs says them.
        (&[], &["attention_chunk_size", "is_causal", "layer_types", "sliding_window"]),
        // Of models with a decoder.
        (&[], &["is_encoder_decoder", "output_cross_attentions"]),
        // The same sums in pieces.
        (&[], &["chunk_size_feed_forward"]),
        // Of the check of rotary positions.
        (&[], &["ignore_keys_at_rope_validation"]),
        // Asked for where the head is of classes of tokens.
        (&[], &["token_classification_bias"]),
        // Of positions that are not rotary, or that one part of the config says.
        (NOT_TURNED, &["rope_parameters"]),
        (IN_PARTS, &["original_max_position_embeddings", "partial_rotary_factor", "rope_theta"]),
        (&["mpt"], &["clip_qkv", "softmax_scale"]),
        // The width over the heads in all that is not rotary.
        (&["deit", "dinov2", "dinov2_with_registers", "ijepa", "vit", "vit_msn"], &["head_dim"]),
        (&["modernbert"], &["head_dim"]),
        // Of the folding model.
        (&["esm"], &["pairwise_head_width", "pairwise_state_dim", "sequence_head_width"]),
        (&["esm"], &["sequence_state_dim", "structure_module", "trunk", "use_esm_attn_map"]),
        // Of the two parts, which have classes of their own.
        (PAIRS, &["hidden_act", "hidden_size", "image_size", "intermediate_size"]),
        (PAIRS, &["layer_norm_eps", "max_position_embeddings", "num_attention_heads"]),
        (PAIRS, &["num_channels", "num_hidden_layers", "patch_size", "projection_size"]),
        (PAIRS, &["vision_use_head", "vocab_size"]),
    ];
    const NEWEST: &[&str] = &[
        "bart",
        "chinese_clip",
        "chinese_clip_text_model",
        "chinese_clip_vision_model",
        "m2m_100",
        "marian",
        "mbart",
        "ministral",
        "pegasus",
        "persimmon",
        "seed_oss",
    ];
    const IN_PARTS: &[&str] = &["modernbert", "nomic_bert"];
    const PAIRS: &[&str] = &["clip", "siglip"];
    const NOT_TURNED: &[&str] = &[
        "albert",
        "bert",
        "bloom",
        "camembert",
        "clip",
        "clip_text_model",
        "clip_vision_model",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "distilbert",
        "electra",
        "esm",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gptj",
        "ijepa",
        "mpnet",
        "mpt",
        "opt",
        "roberta",
        "siglip",
        "siglip_text_model",
        "siglip_vision_model",
        "t5",
        "vit",
        "vit_msn",
        "xlm-roberta",
    ];

    /// A family asks for every option that the library's code reads, or the option is known to
    /// change nothing.
    #[test]
    fn what_the_library_reads_is_asked_for() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let mut unasked: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for entry in std::fs::read_dir(golden).unwrap() {
            let path = entry.unwrap().path();
            let Ok(config) = ConfigReader::open(&path.join("config.json")) else { continue };
            let Ok(Some(name)) = config.text_if("model_type") else { continue };
            let family = name.to_string();
            let config = config.into_class(&family).unwrap();
            let files = Files::of_directory(&path).unwrap();
            let part = path.extension().map(|part| part.to_string_lossy().into_owned());
            let (dialect, part, pixels) = (Dialect::Original, part.as_deref(), None);
            let family = family.as_str();
            let model = ModelDir { config: &config, files: &files, dialect, family, part, pixels };
            super::find(&config, family).unwrap()(&model).unwrap();
            let left = config.unasked();
            // One of the models of a family has to ask.
            unasked
                .entry(family.into())
                .and_modify(|keys| keys.retain(|key| left.contains(key)))
                .or_insert(left);
        }
        for (family, _) in super::TABLE {
            let model = unasked.contains_key(*family) || NEWEST.contains(family);
            assert!(model, "`{family}` has no model");
        }
        // Not yet gone through key by key.
        NEWEST.iter().for_each(|family| drop(unasked.remove(*family)));
        for (family, keys) in &mut unasked {
            let known = |key| {
                let mut of =
                    KNOWN.iter().filter(|(of, _)| of.is_empty() || of.contains(&&**family));
                of.any(|(_, keys)| keys.contains(&key))
            };
            keys.retain(|key| !known(*key));
        }
        unasked.retain(|_, keys| !keys.is_empty());
        assert!(unasked.is_empty(), "{unasked:#?}");
    }
}
