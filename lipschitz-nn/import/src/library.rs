//! What the library that configs are written for takes where they say nothing: the defaults of its
//! config classes, and the other names that it knows options by.
//!
//! `library.json` is written by `tests/golden/library.py` from the library itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A version of the library.
#[derive(Deserialize)]
pub(crate) struct Library {
    /// The version of Hugging Face transformers.
    pub transformers: String,
    /// The options of every config, with their defaults.
    pub base: Map<String, Value>,
    /// The config classes, by `model_type`.
    pub families: BTreeMap<String, Class>,
}

/// A config class.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Class {
    /// Its options with their defaults, before any is derived from another; options that it cannot
    /// do without are absent.
    pub defaults: Map<String, Value>,
    /// The bases of rotary positions, of `global` and `local` attention (Su et al., *RoFormer*,
    /// equation 15).
    pub thetas: BTreeMap<String, f64>,
    /// What each option may be given as, where the class says: the letters of [`kind`].
    pub kinds: BTreeMap<String, String>,
    /// What the library's code reads of the config: what carries function is among it.
    pub reads: BTreeSet<String>,
    /// Other names of its options.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
}

/// The library whose reading of configs is taken.
pub(crate) static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    serde_json::from_str(include_str!("library.json")).expect("library.json is of this form")
});

/// The letter of a value's kind: null, true or false, a whole number, another number, a text, a
/// list, an object.
pub(crate) fn kind(value: &Value) -> char {
    match value {
        Value::Null => 'n',
        Value::Bool(_) => 'b',
        Value::Number(n) if n.is_f64() => 'f',
        Value::Number(_) => 'i',
        Value::String(_) => 's',
        Value::Array(_) => 'l',
        Value::Object(_) => 'd',
    }
}
