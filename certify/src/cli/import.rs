use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};
use lipschitz_certify::terminal::{self, Kind, ranges};
use lipschitz_certify::{checkpoint_path, load, outln};
use lipschitz_import::{ImportOptions, ImportReport, Imported, check, import, is_foreign};
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::{self, Dialect, Origin, Reader, load_tensors};

/// Convert a third-party model to a checkpoint.
///
/// Fails unless every tensor is accounted for, and every option of its config is known.
#[derive(Args)]
pub(super) struct ImportCommand {
    /// A directory with a config.json and safetensors or PyTorch files, an ONNX file, a .bin of
    /// llama2.c, a file of matrices, or, with --graph, the weights of any network that a graph can
    /// describe.
    path: PathBuf,
    /// The checkpoint to write; - is stdout.
    #[arg(short, long, value_name = "FILE.safetensors")]
    output: PathBuf,
    /// Whose function to take, where candle and the library that the model comes from differ.
    #[arg(long, value_enum, default_value_t = Whose::Original)]
    function: Whose,
    /// The graph of a model of your own: the weights have the names of its paths, or the file says
    /// which names they have (see docs/import/your-own.md).
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["activation", "order"])]
    graph: Option<PathBuf>,
    /// Run the imported model on the inputs in one safetensors file, and compare with the outputs in
    /// another that the original program gave for them; nothing is written if they differ.
    #[arg(long, num_args = 2, value_names = ["INPUTS", "OUTPUTS"])]
    check: Option<Vec<PathBuf>>,
    /// For a file of matrices alone: the function between them, such as relu or identity. One name
    /// for all, or one for each gap with commas between; one more goes behind the last matrix.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    activation: Vec<String>,
    /// For a file of matrices alone: their names, the first layer first.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    order: Option<Vec<String>>,
    /// For a file of a vision transformer alone, of timm or torchvision: its number of heads.
    #[arg(long, value_name = "NUMBER", value_parser = ranges::count(1, 1 << 16))]
    heads: Option<usize>,
    /// For a directory of transformers: the class that loads it, such as BertModel, where its config
    /// names none or another.
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Of a model of texts and images, the one that is imported.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// The key of a PyTorch file that holds the weights, where several could.
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Leave out unknown tensors; the certificate names them.
    #[arg(long)]
    allow_unused: bool,
    /// Pass over an unknown option of the config, on your word that the function does not depend on
    /// it; the certificate names it. Give it once for each.
    #[arg(long, value_name = "KEY")]
    ignore_option: Vec<String>,
    /// Run the network behind this many zero vectors, in front of every sequence: what heads read is
    /// then known for its first tokens too, and the bound is smaller. PATH may be a checkpoint or a
    /// run of this project.
    #[arg(long, value_name = "NUMBER", value_parser = ranges::count(0, 1 << 20))]
    zero_prefix: Option<usize>,
    /// List what became of every tensor.
    #[arg(long)]
    report: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Whose {
    /// That of the library that the model comes from.
    Original,
    /// That of candle's model of the family.
    Candle,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// The model of texts.
    Text,
    /// The model of images.
    Vision,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Vision => "vision",
        })
    }
}

impl ImportCommand {
    pub(super) fn run(self) -> Result<()> {
        terminal::ready(&self.output, Kind::Checkpoint)?;
        let dialect = match self.function {
            Whose::Original => Dialect::Original,
            Whose::Candle => Dialect::Candle,
        };
        let options = ImportOptions {
            dialect,
            allow_unused: self.allow_unused,
            ignore: self.ignore_option,
            entry: self.entry,
            activation: self.activation,
            order: self.order,
            graph: self.graph,
            heads: self.heads,
            class: self.class,
            part: self.part.map(|part| part.to_string()),
        };
        let Imported { mut model, mut meta, report } = match self.zero_prefix {
            Some(_) if is_own(&self.path) => {
                let real = |path: &Path| path.canonicalize().ok();
                let own = checkpoint_path(&self.path)?;
                if real(&own).is_some_and(|own| real(&self.output) == Some(own)) {
                    bail!("{}: is read from as well; name another file", self.output.display())
                }
                let (model, meta) = load(&self.path, &Device::Cpu)?;
                Imported { model, meta, report: ImportReport::default() }
            }
            _ => import(&self.path, &options)?,
        };
        if let Some(count) = self.zero_prefix {
            meta.graph =
                meta.graph.behind_zeros(count).with_context(|| self.path.display().to_string())?;
            model = Model::new(meta.graph.clone(), model.weights().clone())?;
        }
        // Where stdout has the checkpoint, what is said of it goes to stderr.
        let say: fn(std::fmt::Arguments) = match terminal::is_stream(&self.output) {
            true => terminal::note,
            false => |line| outln!("{line}"),
        };
        if let Some([inputs, outputs]) = self.check.as_deref() {
            let note = compare(&model, inputs, outputs)?;
            say(format_args!("checked: {note}"));
            if let Some(Origin { notes, .. }) = &mut meta.provenance.origin {
                notes.push(note);
            }
        }
        checkpoint::save(terminal::target(&self.output), &model, &meta)?;
        if self.report {
            list(&report, say);
        }
        meta.provenance.origin.iter().for_each(|origin| super::bound::origin(origin, say));
        let (count, dtype) = (model.parameter_count(), model.dtype().as_str());
        let (weights, aside) = (model.weights().len(), report.aside.len());
        say(format_args!(
            "{}: {weights} weights, {count} numbers of {dtype}; {aside} tensors set aside",
            self.output.display()
        ));
        Ok(())
    }
}

/// Whether there is a checkpoint of this project.
fn is_own(path: &Path) -> bool {
    !is_foreign(path) && checkpoint_path(path).is_ok_and(|file| Reader::open(&file).is_ok())
}

/// Compares the model with what the original program gave, and says so in a line for the origin.
fn compare(model: &Model, inputs: &Path, outputs: &Path) -> Result<String> {
    const INPUTS: &[&str] =
        &["input", "inputs", "tokens", "input_ids", "pixels", "pixel_values", "vectors"];
    const OUTPUTS: &[&str] = &["output", "outputs", "logits", "last_hidden_state"];
    let (x, y) = (tensor(inputs, INPUTS)?, tensor(outputs, OUTPUTS)?);
    let difference = check(model, &x, &y).with_context(|| outputs.display().to_string())?;
    let count = x.dim(0).unwrap_or_default();
    Ok(format!(
        "outputs for {count} inputs are those of the original program up to {difference:.1e} of the \
         largest"
    ))
}

/// The tensor of one of these names, or the only one.
fn tensor(path: &Path, names: &[&str]) -> Result<Tensor> {
    let (mut tensors, _) = load_tensors(path, &Device::Cpu)?;
    if tensors.len() == 1
        && let Some((_, tensor)) = tensors.pop_first()
    {
        return Ok(tensor);
    }
    let mut found = names.iter().filter_map(|name| tensors.get(*name));
    match (found.next(), found.next()) {
        (Some(tensor), None) => Ok(tensor.clone()),
        _ => bail!("{}: wants one tensor, or one of {}", path.display(), names.join(", ")),
    }
}

fn list(report: &ImportReport, say: fn(std::fmt::Arguments)) {
    for (to, from) in &report.applied {
        say(format_args!("applied: {to} = {}", from.join(", ")));
    }
    for (name, why) in &report.aside {
        say(format_args!("set aside: {name}: {why}"));
    }
    report.unused.iter().for_each(|name| say(format_args!("unused: {name}")));
}
