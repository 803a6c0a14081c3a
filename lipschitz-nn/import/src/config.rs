//! A `config.json`, read strictly: what is not known to leave the function as it is stops the
//! import.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use lipschitz_nn::{At, Error};

/// Options that a forward pass at inference does not depend on.
const INERT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "decoder_start_token_id",
    "deterministic_flash_attn",
    "do_sample",
    "dtype",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_cutoff_factor",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "max_length",
    "mask_token_id",
    "min_length",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
];

/// The largest size of anything: a graph weights no larger.
const LARGEST: u64 = 1 << 28;

/// The options of a model. Each that is read is remembered; [`ConfigReader::finish`] fails on the
/// first that nobody read.
pub(crate) struct ConfigReader {
    path: PathBuf,
    /// Where in the file, for messages.
    within: String,
    options: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl ConfigReader {
    /// # Errors
    /// [`Error::File`] if the file is missing or no JSON object.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).at(path)?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(options)) => Ok(Self::of(path, String::new(), options)),
            Ok(_) => Err(Error::file(path, "is not a JSON object of options")),
            Err(e) => Err(Error::file(path, format!("is not JSON: {e}"))),
        }
    }

    pub(crate) fn of(path: &Path, within: String, options: Map<String, Value>) -> Self {
        Self { path: path.to_path_buf(), within, options, read: RefCell::default() }
    }

    /// An error about an option.
    pub(crate) fn wrong(&self, key: &str, what: impl std::fmt::Display) -> Error {
        let within = &self.within;
        Error::file(&self.path, format!("`{within}{key}` {what}"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_string());
        self.options.get(key).filter(|value| !value.is_null())
    }

    /// Whether an option is given, be it as null; does not count as reading it.
    pub(crate) fn names(&self, key: &str) -> bool {
        self.options.contains_key(key)
    }

    /// Options that are known to leave the function as it is, for this family.
    pub(crate) fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|key| (*key).to_string()));
    }

    pub(crate) fn size_if(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.wrong(key, format!("is {value}, wanted a whole number in 1…{LARGEST}"))),
        }
    }

    /// As [`ConfigReader::size_if`], where 0 means something too.
    pub(crate) fn size_if_zero(&self, key: &str) -> Result<Option<usize>, Error> {
        if self.value(key).and_then(Value::as_u64) == Some(0) {
            Ok(Some(0))
        } else {
            self.size_if(key)
        }
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, Error> {
        self.size_if(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        Ok(self.size_if(key)?.unwrap_or(default))
    }

    pub(crate) fn number_if(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(key, format!("is {value}, wanted a number"))),
        }
    }

    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        Ok(self.number_if(key)?.unwrap_or(default))
    }

    /// An ε: a norm without one has no finite constant.
    pub(crate) fn eps(&self, key: &str, default: f64) -> Result<f64, Error> {
        let eps = self.number_or(key, default)?;
        if eps > 0.0 {
            return Ok(eps);
        }
        Err(self
            .wrong(key, format!("is {eps}: a norm without ε > 0 has no finite Lipschitz constant")))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.wrong(key, format!("is {value}, wanted true or false"))),
        }
    }

    /// An option that this version knows at one value alone.
    pub(crate) fn only(&self, key: &str, wanted: bool) -> Result<(), Error> {
        match self.flag(key, wanted)? {
            found if found == wanted => Ok(()),
            found => Err(self.wrong(key, format!("is {found}, which is not supported"))),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong(key, format!("is {value}, wanted a text"))),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.wrong(key, "is not a list of texts"))
    }

    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let numbers = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.map(Some).ok_or_else(|| self.wrong(key, "is not a list of numbers"))
    }

    /// Options inside an option.
    pub(crate) fn inside(&self, key: &str) -> Result<Option<ConfigReader>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(options)) => {
                Ok(Some(Self::of(&self.path, format!("{}{key}.", self.within), options.clone())))
            }
            Some(value) => Err(self.wrong(key, format!("is {value}, wanted an object"))),
        }
    }

    /// Number of layers, of which there cannot be more than tensors.
    pub(crate) fn layers(&self, key: &str, tensors: usize) -> Result<usize, Error> {
        let layers = self.size(key)?;
        if layers > tensors {
            return Err(
                self.wrong(key, format!("is {layers}, but the files hold {tensors} tensors"))
            );
        }
        Ok(layers)
    }

    /// What the model computes at its end: the class that saved it, if the config names one.
    pub(crate) fn architecture(&self) -> Result<Option<&str>, Error> {
        Ok(match self.texts("architectures")?.as_deref() {
            None | Some([]) => None,
            Some([one]) => Some(*one),
            Some(more) => {
                return Err(self
                    .wrong("architectures", format!("names {} classes, wanted one", more.len())));
            }
        })
    }

    /// Fails on the first option that nobody read and that may change the function.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let read = self.read.borrow();
        let inert = |key: &str| {
            INERT.contains(&key)
                || key.contains("dropout")
                || key.ends_with("pdrop")
                || key.ends_with("drop_rate")
        };
        match self
            .options
            .iter()
            .find(|(key, value)| !read.contains(*key) && !inert(key) && !value.is_null())
        {
            None => Ok(()),
            Some((key, value)) => Err(self.wrong(
                key,
                format!(
                    "= {value} is not known to this importer and may change the function; if it \
                     does not, remove it from the file"
                ),
            )),
        }
    }
}
