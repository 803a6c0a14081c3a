//! Encoders of sentences as sentence-transformers saves them: a model of the vectors of tokens, and
//! modules behind it, each in a directory of its own, that make one vector of them.

use std::path::Path;

use serde::Deserialize;

use lipschitz_nn::graph::{Function, Graph, Input, Node, Op, Shape};
use lipschitz_nn::{Error, text};

use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::WeightMap;
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::linear;

/// The list of modules.
const MODULES: &str = "modules.json";

/// What the first module's own options are called; the name is that of the first family, whatever
/// the family.
const FIRST: &[&str] = &[
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Numbers below this are not divided by; written into PyTorch's code.
const EPS: f64 = 1e-12;

/// A module of the list.
#[derive(Deserialize)]
struct Module {
    /// Directory, below that of the model; empty for the model itself.
    path: String,
    /// Class.
    r#type: String,
    /// What the library keeps it under.
    #[serde(default)]
    name: Option<String>,
}

impl Module {
    /// The class without the path that it is imported by, which has changed over time.
    fn class(&self) -> Option<&str> {
        let (front, class) = self.r#type.rsplit_once('.')?;
        front.starts_with("sentence_transformers").then_some(class)
    }
}

/// The modules behind a model.
pub(crate) struct Sentence<'a> {
    directory: &'a Path,
    modules: Vec<Module>,
}

impl<'a> Sentence<'a> {
    /// The modules beside a model; none if it is no encoder of sentences.
    ///
    /// # Errors
    /// [`Error::File`] if the list cannot be read, or the first module is not the model itself.
    pub(crate) fn beside(directory: &'a Path) -> Result<Option<Self>, Error> {
        let path = directory.join(MODULES);
        if !path.exists() {
            return Ok(None);
        }
        let text = text::read(&path, "a list of modules")?;
        let modules: Vec<Module> = serde_json::from_str(&text)
            .map_err(|e| Error::file(&path, format!("is no list of modules: {e}")))?;
        match modules.split_first() {
            Some((first, _)) if first.class() == Some("Transformer") && first.path.is_empty() => {}
            _ => {
                let what = "does not begin with a `Transformer` in the directory itself";
                return Err(Error::file(&path, what));
            }
        }
        for module in modules.iter().skip(1) {
            let name = Path::new(&module.path);
            if name.file_name() != Some(name.as_os_str()) {
                let what = format!("names `{}`, which is no directory beside it", module.path);
                return Err(Error::file(&path, what));
            }
        }
        in_order(&modules).map_err(|what| Error::file(&path, what))?;
        let options = directory.join("config_sentence_transformers.json");
        if options.exists() {
            let config = ConfigReader::open(&options)?;
            if let Some(length) = config.size_if("truncate_dim")? {
                return Err(config.unsupported("truncate_dim", length));
            }
        }
        Ok(Some(Self { directory, modules: modules.into_iter().skip(1).collect() }))
    }

    /// The model with the modules behind it; their tensors join those of `files`, below the name of
    /// their directory.
    ///
    /// # Errors
    /// [`Error::File`] if a module is not supported, or does not fit.
    pub(crate) fn append(self, mapping: Mapping, files: &mut Files) -> Result<Mapping, Error> {
        let Mapping { graph, weights, aside, exactly, mut notes } = mapping;
        if let Shape::Vector(_) | Shape::Image(..) = graph.output() {
            let what = "the model does not give the vectors of its tokens";
            return Err(Error::file(&self.directory.join(MODULES), what));
        }
        let context = self.context()?;
        let input = match (graph.input(), context) {
            (Input::Tokens { context, separator, zero_prefix }, Some(longest)) => {
                Input::Tokens { context: context.min(longest), separator, zero_prefix }
            }
            (input, _) => input,
        };
        let mut nodes = graph.nodes().to_vec();
        let mut weights = WeightMap(weights);
        for module in &self.modules {
            self.module(module, files, &mut nodes, &mut weights)?;
        }
        let names: Vec<&str> = self.modules.iter().filter_map(Module::class).collect();
        notes.push(format!("an encoder of sentences: behind the model come {}", names.join(", ")));
        let graph =
            Graph::new(input, nodes).map_err(|e| Error::file(&self.directory.join(MODULES), e))?;
        Ok(Mapping { graph, weights: weights.0, aside, exactly, notes })
    }

    /// The longest sequence, where the first module says one: longer ones are cut.
    fn context(&self) -> Result<Option<usize>, Error> {
        // The first that says anything.
        let mut said = None;
        for path in FIRST.iter().map(|name| self.directory.join(name)).filter(|p| p.exists()) {
            said = Some(ConfigReader::open(&path)?).filter(|config| !config.is_empty());
            if said.is_some() {
                break;
            }
        }
        let Some(config) = said else { return Ok(None) };
        // Of the tokenizer.
        config.ignore(&["do_lower_case", "tokenizer_args", "processor_kwargs"]);
        for (key, known) in
            [("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")]
        {
            if let Some(other) = config.text_if(key)?.filter(|found| *found != known) {
                return Err(config.unsupported(key, format!("`{other}`")));
            }
        }
        if let Some(kinds) = config.inside("modality_config")? {
            if let Some(text) = kinds.inside("text")? {
                for (key, known) in
                    [("method", "forward"), ("method_output_name", "last_hidden_state")]
                {
                    if let Some(other) = text.text_if(key)?.filter(|found| *found != known) {
                        return Err(text.unsupported(key, format!("`{other}`")));
                    }
                }
                text.finish(&[])?;
            }
            kinds.finish(&[])?;
        }
        let longest = config.size_if("max_seq_length")?;
        config.finish(&[])?;
        Ok(longest)
    }

    fn module(
        &self,
        module: &Module,
        files: &mut Files,
        nodes: &mut Vec<Node>,
        weights: &mut WeightMap,
    ) -> Result<(), Error> {
        let inner = self.directory.join(&module.path);
        let config = || ConfigReader::open(&inner.join("config.json"));
        match module.class() {
            Some("Pooling") => nodes.push(Node::new("", pooling(&config()?)?)),
            Some("Dense") => {
                let config = config()?;
                let (inputs, outputs) = (config.size("in_features")?, config.size("out_features")?);
                let bias = config.flag_or("bias", true)?;
                let phi = activation(&config)?;
                on_sentences(&config)?;
                let prefix = format!("{}.", module.path);
                files.join(&prefix, Files::of_directory(&inner)?)?;
                let name = format!("dense_{}", module.path.replace('.', "_"));
                weights.linear(&name, &format!("{prefix}linear"), outputs, inputs, bias);
                nodes.push(linear(name, inputs, outputs, bias));
                nodes.extend(phi.into_iter().flat_map(NamedActivation::nodes));
            }
            Some("Normalize") => {
                if inner.join("config.json").exists() {
                    on_sentences(&config()?)?;
                }
                nodes.push(Node::new("", Op::Normalise { eps: EPS }));
            }
            // Of training.
            Some("Dropout") => {}
            _ => {
                let what = format!("has a module `{}`, which is not supported", module.r#type);
                return Err(Error::file(&self.directory.join(MODULES), what));
            }
        }
        Ok(())
    }
}

/// What is wrong with modules that are not each under a name of its own, or whose vectors of tokens do
/// not become one before anything else reads them.
fn in_order(modules: &[Module]) -> Result<(), String> {
    let mut names: Vec<&str> = modules.iter().filter_map(|m| m.name.as_deref()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("has two modules of the name `{}`, of which one is left out", pair[0]));
    }
    let behind = modules.iter().skip(1).filter_map(Module::class).filter(|c| *c != "Dropout");
    for (i, class) in behind.enumerate() {
        match (i, class) {
            (0, "Pooling") => {}
            (0, _) => {
                return Err(format!("has `{class}` in front of a `Pooling`, which reads nothing"));
            }
            (_, "Pooling") => return Err("has a second `Pooling`".into()),
            _ => {}
        }
    }
    Ok(())
}

/// Fails unless a module reads and writes the vectors of sentences, and every option is read.
fn on_sentences(config: &ConfigReader) -> Result<(), Error> {
    for key in ["module_input_name", "module_output_name"] {
        if let Some(other) = config.text_if(key)?.filter(|name| *name != "sentence_embedding") {
            return Err(config.unsupported(key, format!("`{other}`")));
        }
    }
    config.finish(&[]).map(drop)
}

/// How vectors of tokens become one.
fn pooling(config: &ConfigReader) -> Result<Op, Error> {
    config.ignore(&["embedding_dimension", "word_embedding_dimension"]);
    if !config.flag_or("include_prompt", true)? {
        return Err(config.unsupported("include_prompt", false));
    }
    // One option names the ways; formerly each had its own, and none of them is the mean.
    let old = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_lasttoken", "lasttoken"),
    ];
    let mut chosen = Vec::new();
    for (key, mode) in old {
        if config.flag(key)? {
            chosen.push(mode);
        }
    }
    if config.names("pooling_mode") {
        chosen = vec![config.text("pooling_mode")?];
    }
    config.finish(&[])?;
    let mode = match chosen.as_slice() {
        [] => "mean",
        [mode] => *mode,
        more => return Err(config.unsupported("pooling_mode", format!("{more:?}"))),
    };
    match mode {
        "cls" => Ok(Op::FirstToken),
        "mean" => Ok(Op::MeanPool),
        "lasttoken" => Ok(Op::LastToken),
        other => Err(config.unsupported("pooling_mode", format!("`{other}`"))),
    }
}

/// The function behind a linear map, by its class in PyTorch; none leaves numbers as they are.
fn activation(config: &ConfigReader) -> Result<Option<NamedActivation>, Error> {
    const KEY: &str = "activation_function";
    let default = "torch.nn.modules.activation.Tanh";
    let name = if config.names(KEY) { config.text(KEY)? } else { default };
    let function = match name.rsplit_once('.') {
        Some(("torch.nn.modules.activation", class)) => match class {
            "Tanh" => Function::Tanh,
            "ReLU" => Function::Relu,
            "GELU" => Function::GeluErf,
            "SiLU" => Function::Silu,
            "Sigmoid" => Function::Sigmoid,
            _ => return Err(config.unsupported(KEY, format!("`{name}`"))),
        },
        Some(("torch.nn.modules.linear", "Identity")) => return Ok(None),
        _ => return Err(config.unsupported(KEY, format!("`{name}`"))),
    };
    Ok(Some(NamedActivation::plain(function)))
}
