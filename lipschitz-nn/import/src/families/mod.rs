//! One file for each family of models, and the table of families.

mod albert;
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
    ("bert", bert::bert),
    ("bloom", neox::bloom),
    ("camembert", bert::bert),
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
    ("mistral", llama::llama),
    ("modernbert", modernbert::modernbert),
    ("mpnet", mpnet::mpnet),
    ("mpt", neox::mpt),
    ("nomic_bert", nomic::nomic),
    ("olmo", llama::llama),
    ("olmo2", llama::llama),
    ("opt", opt::opt),
    ("phi", llama::llama),
    ("phi3", llama::llama),
    ("qwen2", llama::llama),
    ("qwen3", llama::llama),
    ("roberta", bert::bert),
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
    #[test]
    fn families_are_in_order_and_named_once() {
        assert!(super::families().is_sorted_by(|a, b| a < b));
        assert!(super::families().all(|family| !super::EXPERTS.contains(&family)));
    }
}
