//! What a checkpoint holds besides the weights.

use std::collections::HashMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Graph, strict};

/// The format version of a checkpoint's metadata.
pub const FORMAT: u32 = 1;

/// The metadata key.
pub const KEY: &str = "lipschitz";

/// What a checkpoint holds besides the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The network.
    pub graph: Graph,
    /// The configuration of the run that trained it, or null.
    #[serde(default)]
    pub config: serde_json::Value,
    /// How text becomes token ids, for language models.
    #[serde(default)]
    pub tokenizer: Option<Tokenizer>,
    /// What the classes are called, in the order of the outputs, where the data said it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Where it comes from.
    #[serde(default)]
    pub provenance: Provenance,
}

/// How text becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tokenizer {
    /// Token i is the i-th character.
    Characters {
        /// The characters in order.
        characters: String,
    },
    /// A `tokenizer.json` of the tokenizers library.
    Json {
        /// Its content.
        json: serde_json::Value,
    },
}

/// Where a checkpoint comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the program that wrote it.
    pub version: String,
    /// Seed of the run.
    pub seed: Option<u64>,
    /// SHA-256 of the training data.
    pub data_digest: Option<String>,
    /// SHA-256 of graph and weights of each network that it learned from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teachers: Vec<String>,
    /// Steps trained.
    pub step: Option<u64>,
    /// For an imported model: which one it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Whose function an imported model computes, where candle and the library it comes from differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// That of the library it comes from.
    #[default]
    Original,
    /// That of candle's model of the family.
    Candle,
}

/// Where an imported model comes from, and what is to be known about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The family, as its config spells it.
    pub family: String,
    /// Whose function it is.
    pub dialect: Dialect,
    /// The library whose reading of the config was taken, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// What the function leaves out or takes for granted, in words.
    pub notes: Vec<String>,
    /// The weights in the order of the graph, and the tensors of the file that each is made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<WeightOrigin>,
    /// Tensors that nothing is known about, which were left out because it was asked for.
    pub unused: Vec<String>,
}

/// What a weight of an imported model is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightOrigin {
    /// Its path in the graph.
    pub weight: String,
    /// The names of tensors in the file.
    pub tensors: Vec<String>,
}

impl Meta {
    /// What the metadata of a safetensors file says.
    ///
    /// # Errors
    /// [`Error::File`] if it is not that of a checkpoint of this project and format.
    pub(super) fn read(path: &Path, metadata: &HashMap<String, String>) -> Result<Self, Error> {
        let json = metadata.get(KEY).ok_or_else(|| {
            Error::file(
                path,
                format!(
                    "has no `{KEY}` metadata, so it is not a checkpoint of this project; import \
                         it first"
                ),
            )
        })?;
        let unreadable = |e| Error::file(path, format!("its metadata cannot be read: {e}"));
        let meta: Self = serde_json::from_str(json).map_err(unreadable)?;
        if meta.format != FORMAT {
            let found = meta.format;
            return Err(Error::file(
                path,
                format!("has format {found}, this version reads {FORMAT}; update the tool"),
            ));
        }
        // A key of the graph that is passed over could be another function.
        let raw: serde_json::Value = serde_json::from_str(json).map_err(unreadable)?;
        strict::known(raw.get("graph").unwrap_or(&raw), &meta.graph).map_err(unreadable)?;
        Ok(meta)
    }
}
