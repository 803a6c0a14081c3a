//! A `config.json`, read as the library that it is written for reads it: what it does not say has
//! the default of its class, null is null, and what is not known to leave the function as it is
//! stops the import.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use lipschitz_nn::{Error, text};

use crate::Undecided;
use crate::library::{Class, LIBRARY, kind};

/// Options that a forward pass at inference does not depend on, whatever they say.
const INERT: &[&str] = &[
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "directionality",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "gradient_checkpointing",
    "initializer_cutoff_factor",
    "initializer_factor",
    "is_llama_config",
    "length_penalty",
    "max_length",
    "max_sequence_length",
    "min_length",
    "n_special",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_past",
    "output_scores",
    "pad_key_length",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_weights_",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "xla_device",
];

/// Whether an option says nothing about the forward pass by what it is called: of tokens and
/// tokenizers, of versions, and what the library keeps for itself.
fn inert(key: &str) -> bool {
    INERT.contains(&key)
        || key.starts_with('_') && !key.starts_with("_out")
        || key.starts_with("tokenizer_")
        || key.starts_with("pooler_")
        || ["_version", "_init_std"].iter().any(|end| key.ends_with(end))
}

/// Whether an option is of dropout, which is off at inference.
fn dropout(key: &str) -> bool {
    key.contains("dropout")
        || ["pdrop", "drop_rate", "drop_path_rate"].iter().any(|end| key.ends_with(end))
}

/// Whether the library takes an option at this value and computes the same: those that say nothing
/// about the forward pass as long as they make sense.
fn harmless(key: &str, value: &Value) -> bool {
    let share = |x: f64| (0.0..=1.0).contains(&x);
    let whole = |value: &Value| value.is_i64() || value.is_u64();
    let of_type = |name: &str| {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        ["float32", "float16", "bfloat16", "float64"].contains(&name)
    };
    match key {
        "attn_implementation" => value.is_null() || value == "eager" || value == "sdpa",
        "dtype" | "torch_dtype" => value.is_null() || value.as_str().is_some_and(of_type),
        "initializer_range" => value.as_f64().is_some_and(share),
        // What stands behind the model, and is nothing.
        "sbert_ce_default_activation_function" => value == "torch.nn.modules.linear.Identity",
        "id2label" => match value {
            Value::Object(labels) => labels.keys().all(|key| key.trim().parse::<i64>().is_ok()),
            value => value.is_null(),
        },
        "label2id" => value.is_null() || value.is_object(),
        "num_labels" => whole(value),
        "output_attentions" | "output_hidden_states" => value.is_boolean() || value.is_null(),
        // Null is none only where the class says so by default.
        _ if dropout(key) => value.as_f64().is_some_and(share),
        _ if key.ends_with("_token_id") || key.ends_with("_token_ids") => match value {
            Value::Array(list) => list.iter().all(whole),
            value => value.is_null() || whole(value),
        },
        _ => inert(key),
    }
}

/// Whether an option switches something off. An empty one does so `among` the options of a model;
/// inside an option it can be the name of something else.
fn off(value: &Value, among: bool) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => among && list.is_empty(),
        Value::Object(options) => among && options.is_empty(),
        _ => false,
    }
}

/// The largest size of anything: a graph takes no larger.
const LARGEST: u64 = 1 << 28;

/// The options of a model. Each that is read is remembered; [`ConfigReader::finish`] fails on those
/// that nobody read.
pub(crate) struct ConfigReader {
    path: PathBuf,
    /// Where in the file, for messages.
    within: String,
    options: Map<String, Value>,
    class: Option<&'static Class>,
    /// How many numbers the files of the model hold.
    numbers: u64,
    read: RefCell<BTreeSet<String>>,
}

/// Words in the names of options that count tokens or layers, of which a model can have more than its
/// files have numbers.
const LENGTHS: &[&str] = &[
    "attention_types",
    "block_size",
    "context",
    "distance",
    "every",
    "interval",
    "layer",
    "length",
    "local_attention",
    "n_ctx",
    "pattern",
    "position",
    "seq",
    "window",
    "bucket",
    "token",
];

impl ConfigReader {
    /// # Errors
    /// [`Error::File`] if the file is missing or no JSON object.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let text = text::read(path, "a config.json")?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(options)) => Ok(Self::of(path, String::new(), options)),
            Ok(_) => Err(Error::file(path, "is not a JSON object of options")),
            Err(e) => Err(Error::file(path, format!("is not JSON: {e}"))),
        }
    }

    /// Options without a class of the library.
    pub(crate) fn of(path: &Path, within: String, options: Map<String, Value>) -> Self {
        let (path, read) = (path.to_path_buf(), RefCell::default());
        Self { path, within, options, class: None, numbers: u64::MAX, read }
    }

    /// The same options, read as this class of the library reads them.
    ///
    /// # Errors
    /// [`Error::File`] for a value of a kind that the class does not take.
    pub(crate) fn into_class(mut self, family: &str) -> Result<Self, Error> {
        self.class = LIBRARY.families.get(family);
        let Some(class) = self.class else { return Ok(self) };
        for (key, value) in &self.options {
            let name = class.aliases.get(key).unwrap_or(key);
            if class.kinds.get(name).is_some_and(|kinds| !kinds.contains(kind(value))) {
                let what = format!("is {}, of a kind that the library refuses", shortened(value));
                return Err(self.wrong(key, what));
            }
        }
        Ok(self)
    }

    /// The options of a model whose files hold so many numbers: no width and no count of heads is larger,
    /// and nothing is made of one that is.
    pub(crate) fn of_numbers(mut self, numbers: u64) -> Self {
        self.numbers = numbers;
        self
    }

    /// Fails where each of so many layers cannot have as many numbers.
    pub(crate) fn check_layers(&self, key: &str, layers: usize, width: usize) -> Result<(), Error> {
        if layers as u64 > self.numbers / (width as u64).max(1) {
            let what = format!(
                "gives {layers} layers of width {width}, and all weights together are {} numbers",
                self.numbers
            );
            return Err(self.wrong(key, what));
        }
        Ok(())
    }

    /// Fails where so many rows are more than the files hold numbers.
    pub(crate) fn check_rows(&self, key: &str, rows: usize) -> Result<(), Error> {
        match rows as u64 > self.numbers {
            true => Err(self.wrong(key, self.too_many(rows as u64))),
            false => Ok(()),
        }
    }

    fn too_many(&self, n: u64) -> String {
        format!("is {n}, and all weights together are {} numbers", self.numbers)
    }

    /// The options without this one.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.options.remove(key);
        self
    }

    /// The options with this one.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.options.insert(key.to_string(), value);
        self
    }

    /// An error about an option.
    pub(crate) fn wrong(&self, key: &str, what: impl std::fmt::Display) -> Error {
        let within = &self.within;
        Error::file(&self.path, format!("`{within}{key}` {what}"))
    }

    /// An error about what the caller has to decide.
    pub(crate) fn undecided(&self, what: Undecided) -> Error {
        Error::file(&self.path, what)
    }

    /// An option that is one of a family's known values, and not one that is supported.
    pub(crate) fn unsupported(&self, key: &str, found: impl std::fmt::Display) -> Error {
        self.wrong(key, format!("is {found}, which is not supported"))
    }

    /// What the file says, under this name or another of the same option.
    ///
    /// # Errors
    /// [`Error::File`] if it says two things.
    fn said(&self, key: &str) -> Result<Option<&Value>, Error> {
        self.read.borrow_mut().insert(key.to_string());
        let mut found = self.options.get(key);
        for (alias, _) in self.class.iter().flat_map(|class| &class.aliases).filter(|a| a.1 == key)
        {
            let Some(value) = self.options.get(alias) else { continue };
            self.read.borrow_mut().insert(alias.clone());
            if let Some(first) = found
                && first != value
            {
                let what = format!("is {first}, and its other name `{alias}` says {value}");
                return Err(self.wrong(key, format!("{what}; remove one")));
            }
            found = Some(value);
        }
        Ok(found)
    }

    /// What the file says, or else the default of the class. None if there is neither.
    fn value(&self, key: &str) -> Result<Option<&Value>, Error> {
        let default = || self.class.and_then(|class| class.defaults.get(key));
        Ok(self.said(key)?.or_else(default))
    }

    /// As [`ConfigReader::value`]; null is none.
    fn value_if(&self, key: &str) -> Result<Option<&Value>, Error> {
        Ok(self.value(key)?.filter(|value| !value.is_null()))
    }

    /// Whether it has no option at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.options.is_empty()
    }

    /// The names of all options.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.options.keys().map(String::as_str)
    }

    /// Whether both have the same options.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.options == other.options
    }

    /// Whether the options are read as this class reads them.
    pub(crate) fn is_class(&self, family: &str) -> bool {
        let class = LIBRARY.families.get(family);
        self.class.zip(class).is_some_and(|(mine, class)| std::ptr::eq(mine, class))
    }

    /// The base of rotary positions that the class takes where the file says none, for `global` or
    /// `local` attention (Su et al., *RoFormer*, equation 15).
    pub(crate) fn theta(&self, kind: &str) -> f64 {
        let thetas = self.class.map(|class| &class.thetas);
        thetas.and_then(|thetas| thetas.get(kind)).copied().unwrap_or(10_000.0)
    }

    /// Whether the class has this option.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.class.is_some_and(|class| class.defaults.contains_key(key))
    }

    /// Whether an option is given, be it as null; does not count as reading it.
    pub(crate) fn names(&self, key: &str) -> bool {
        self.options.contains_key(key)
    }

    /// Options that are known to leave the function as it is, for this family.
    pub(crate) fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|key| (*key).to_string()));
    }

    /// An option that carries function in other families and that this one does not read: it must
    /// say what is so anyway.
    pub(crate) fn assume(&self, key: &str, assumed: &Value) -> Result<(), Error> {
        match self.said(key)? {
            Some(value) if value != assumed => Err(self.wrong(
                key,
                format!(
                    "is {value}, which the library does not read for this family; it computes as \
                     for {assumed}"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn whole(&self, key: &str, value: &Value, least: u64) -> Result<usize, Error> {
        match value.as_u64() {
            Some(n)
                if (self.numbers.saturating_add(1)..=LARGEST).contains(&n)
                    && self.is_width(key) =>
            {
                Err(self.wrong(key, self.too_many(n)))
            }
            Some(n) if (least..=LARGEST).contains(&n) => Ok(n as usize),
            _ => {
                Err(self
                    .wrong(key, format!("is {value}, wanted a whole number in {least}…{LARGEST}")))
            }
        }
    }

    fn is_width(&self, key: &str) -> bool {
        !LENGTHS.iter().any(|word| key.contains(word))
    }

    pub(crate) fn size_if(&self, key: &str) -> Result<Option<usize>, Error> {
        self.value_if(key)?.map(|value| self.whole(key, value, 1)).transpose()
    }

    /// As [`ConfigReader::size_if`], where 0 means something too.
    pub(crate) fn count_if(&self, key: &str) -> Result<Option<usize>, Error> {
        self.value_if(key)?.map(|value| self.whole(key, value, 0)).transpose()
    }

    /// A whole number, which can be 0.
    pub(crate) fn count(&self, key: &str) -> Result<usize, Error> {
        let value = self.value(key)?.ok_or_else(|| self.wrong(key, "is missing"))?;
        self.whole(key, value, 0)
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.value(key)?.ok_or_else(|| self.wrong(key, "is missing"))?;
        self.whole(key, value, 1)
    }

    /// A size without a default of the library's.
    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.value(key)?.map_or(Ok(default), |value| self.whole(key, value, 1))
    }

    fn finite(&self, key: &str, value: &Value) -> Result<f64, Error> {
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(x),
            _ => Err(self.wrong(key, format!("is {value}, wanted a number"))),
        }
    }

    pub(crate) fn number_if(&self, key: &str) -> Result<Option<f64>, Error> {
        self.value_if(key)?.map(|value| self.finite(key, value)).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<f64, Error> {
        let value = self.value(key)?.ok_or_else(|| self.wrong(key, "is missing"))?;
        self.finite(key, value)
    }

    /// A number without a default of the library's.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        self.value(key)?.map_or(Ok(default), |value| self.finite(key, value))
    }

    /// An ε: a norm without one has no finite constant.
    pub(crate) fn eps(&self, key: &str) -> Result<f64, Error> {
        let eps = self.number(key)?;
        if eps > 0.0 {
            return Ok(eps);
        }
        Err(self
            .wrong(key, format!("is {eps}: a norm without ε > 0 has no finite Lipschitz constant")))
    }

    /// An option that is on or off; off where the library's default is none.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, Error> {
        let by_default = || self.class.and_then(|class| class.defaults.get(key));
        match self.value(key)? {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Null) if by_default().is_none_or(Value::is_null) => Ok(false),
            Some(value) => Err(self.wrong(key, format!("is {value}, wanted true or false"))),
        }
    }

    /// An option that is on or off, without a default of the library's.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        if self.value(key)?.is_none() { Ok(default) } else { self.flag(key) }
    }

    /// An option that this version knows at one value alone.
    pub(crate) fn only(&self, key: &str, wanted: bool) -> Result<(), Error> {
        match self.flag(key)? {
            found if found == wanted => Ok(()),
            found => Err(self.unsupported(key, found)),
        }
    }

    pub(crate) fn text_if(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.value_if(key)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong(key, format!("is {value}, wanted a text"))),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<&str, Error> {
        match self.value(key)? {
            None => Err(self.wrong(key, "is missing")),
            Some(Value::String(text)) => Ok(text),
            Some(value) => Err(self.wrong(key, format!("is {value}, wanted a text"))),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        let Some(value) = self.value_if(key)? else { return Ok(None) };
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.wrong(key, "is not a list of texts"))
    }

    pub(crate) fn list_if(&self, key: &str) -> Result<Option<&Vec<Value>>, Error> {
        match self.value_if(key)? {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => Err(self.wrong(key, format!("is {}, wanted a list", shortened(value)))),
        }
    }

    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        let Some(value) = self.value_if(key)? else { return Ok(None) };
        let numbers = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.map(Some).ok_or_else(|| self.wrong(key, "is not a list of numbers"))
    }

    /// A height and a width: two numbers, or one for both.
    pub(crate) fn height_and_width(&self, key: &str) -> Result<[usize; 2], Error> {
        match self.value_if(key)? {
            Some(Value::Array(sides)) => match sides.as_slice() {
                [height, width] => Ok([self.whole(key, height, 1)?, self.whole(key, width, 1)?]),
                _ => Err(self.wrong(key, format!("has {} numbers, wanted two", sides.len()))),
            },
            _ => self.size(key).map(|side| [side; 2]),
        }
    }

    /// Whole numbers of 1 or more.
    pub(crate) fn sizes(&self, key: &str) -> Result<Vec<usize>, Error> {
        match self.value_if(key)? {
            Some(Value::Array(list)) => list.iter().map(|n| self.whole(key, n, 1)).collect(),
            _ => Err(self.wrong(key, "is not a list of whole numbers")),
        }
    }

    /// Options inside an option, read as a class of the library reads them; none are its defaults.
    pub(crate) fn part(&self, key: &str, family: &str) -> Result<ConfigReader, Error> {
        let none = || {
            let within = format!("{}{key}.", self.within);
            Self::of(&self.path, within, Map::new()).of_numbers(self.numbers)
        };
        self.inside(key)?.unwrap_or_else(none).into_class(family)
    }

    /// Options inside an option; they have no class.
    pub(crate) fn inside(&self, key: &str) -> Result<Option<ConfigReader>, Error> {
        match self.value_if(key)? {
            None => Ok(None),
            Some(Value::Object(options)) => {
                let within = format!("{}{key}.", self.within);
                Ok(Some(Self::of(&self.path, within, options.clone()).of_numbers(self.numbers)))
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

    /// Heads that divide the width.
    pub(crate) fn heads(&self, key: &str, dim: usize) -> Result<usize, Error> {
        let heads = self.size(key)?;
        if dim.is_multiple_of(heads) {
            return Ok(heads);
        }
        Err(self.wrong(key, format!("is {heads}, which does not divide {dim}")))
    }

    /// The class that saved the model; none where the library takes the base model.
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

    /// Number of labels: as `num_labels` says, or as many as are named, or two.
    pub(crate) fn labels(&self) -> Result<usize, Error> {
        let number = match self.names("num_labels") {
            true => Some(self.size("num_labels")?),
            false => None,
        };
        let labels = match (self.value_if("id2label")?, number) {
            // Where the two differ the library makes new names.
            (Some(Value::Object(labels)), number) if !labels.is_empty() => {
                number.unwrap_or(labels.len())
            }
            (Some(value), _) => {
                return Err(self.wrong("id2label", format!("is {value}, wanted names of labels")));
            }
            (None, number) => number.unwrap_or(2),
        };
        if labels == 1 && self.text_if("problem_type")? == Some("single_label_classification") {
            return Err(self.wrong("problem_type", "is of several labels, and there is one"));
        }
        Ok(labels)
    }

    /// A class that is not supported.
    pub(crate) fn no_class(&self, name: &str) -> Error {
        self.wrong("architectures", format!("names `{name}`, which is not supported"))
    }

    /// The library makes no embedding that does not hold its padding.
    fn check_padding(&self) -> Result<(), Error> {
        let number = |key: &str| {
            let default = || self.class.and_then(|class| class.defaults.get(key));
            self.options.get(key).or_else(default).and_then(Value::as_i64)
        };
        match (number("pad_token_id"), number("vocab_size")) {
            (Some(pad), Some(tokens)) if pad >= tokens => Err(self.wrong(
                "pad_token_id",
                format!("is {pad}, which is none of {tokens} tokens; null is no padding"),
            )),
            _ => Ok(()),
        }
    }

    /// Whether the library's code may read an option, though the class does not have it.
    fn may_be_read(&self, key: &str) -> bool {
        ["layer_types", "per_layer_config", "text_config"].contains(&key)
            || self.class.is_some_and(|class| class.reads.contains(key))
    }

    /// The options that the code of the library reads of this class, and that nobody asked for nor
    /// is known to change nothing.
    #[cfg(test)]
    pub(crate) fn unasked(&self) -> BTreeSet<&'static str> {
        let read = self.read.borrow();
        let reads = self.class.iter().flat_map(|class| &class.reads).map(String::as_str);
        let idle = |key: &str| inert(key) || harmless(key, &Value::Null) || dropout(key);
        let known = ["num_labels", "output_attentions", "output_hidden_states", "return_dict"];
        reads.filter(|key| !read.contains(*key) && !idle(key) && !known.contains(key)).collect()
    }

    /// Fails on all options that nobody read and that may change the function; says which of the
    /// others were passed over.
    ///
    /// An option that says what its class takes anyway changes nothing, by the very reading of
    /// those that are missing; one that is switched off adds nothing, and is noted. `passed` are
    /// options that the caller answers for.
    pub(crate) fn finish(&self, passed: &[String]) -> Result<Vec<String>, Error> {
        let read = self.read.borrow();
        let mut notes = Vec::new();
        for key in passed {
            let Some(value) = self.options.get(key) else {
                return Err(self.wrong(key, "is to be ignored, but the file does not have it"));
            };
            if read.contains(key) {
                return Err(self.wrong(key, "is to be ignored, but the function depends on it"));
            }
            notes.push(format!("option `{key}` = {value} is ignored, as was said at import"));
        }
        let default = |key: &str| {
            let own = self.class.and_then(|class| class.defaults.get(key));
            own.or_else(|| LIBRARY.base.get(key))
        };
        if self.options.get("auto_map").is_some_and(|map| !harmless_map(map)) {
            notes.push(
                "option `auto_map` names code beside the model, which was not read: this is about the \
                 library's own class"
                    .into(),
            );
        }
        self.check_padding()?;
        let mut unknown = Vec::new();
        for (key, value) in &self.options {
            if read.contains(key) || harmless(key, value) || passed.contains(key) {
                continue;
            }
            match default(key) {
                Some(default) if default == value => {}
                None if off(value, self.class.is_some()) && !self.may_be_read(key) => {
                    notes.push(format!("option `{key}` = {value} is of no known use, and off"));
                }
                _ => unknown.push(format!("`{}{key}` = {}", self.within, shortened(value))),
            }
        }
        if unknown.is_empty() {
            return Ok(notes);
        }
        let (are, they) = if unknown.len() == 1 { ("is", "it") } else { ("are", "they") };
        let what = format!("{} {are} not known to this importer", unknown.join(", "));
        Err(Error::file(
            &self.path,
            Undecided::UnknownOptions(format!("{what}: {they} may change the function")),
        ))
    }
}

/// Whether it names nothing.
fn harmless_map(map: &Value) -> bool {
    map.is_null() || map.as_object().is_some_and(Map::is_empty)
}

/// A value in so many characters.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}
