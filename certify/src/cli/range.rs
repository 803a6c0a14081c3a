use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use candle_core::{DType, Device};
use clap::Args;
use comfy_table::Table;
use lipschitz_certify::range::{self, Decision, Inputs, Number, Verdict};
use lipschitz_certify::source::{Rounded, Source};
use lipschitz_certify::terminal::tables::{fitted, table};
use lipschitz_certify::terminal::{JsonOutput, ranges, shown};
use lipschitz_certify::upper::Upper;
use lipschitz_certify::{Error, ellipsoid, outln};
use lipschitz_data::{Protocol, for_model};
use lipschitz_nn::graph::{Input, Site, Stage};

use super::bound::Weights;
use super::effort::spinner;

/// Bound the largest element of every tensor, for any input: what can overflow, and which scale it
/// may have.
///
/// Exit code 1 if a tensor does not fit the format without a scale.
#[derive(Args)]
pub(super) struct RangeCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// The format that tensors are to fit.
    #[arg(long, value_enum, default_value_t = Number::E4m3)]
    format: Number,
    /// Real inputs, whose largest elements are shown beside the bounds: a text file or a directory of
    /// token shards; a folder of images by class, the directory of MNIST or CIFAR, or a file of
    /// tensors.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Sequences or images of the data to look at.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = ranges::count(1, 1 << 28))]
    examples: usize,
    #[command(flatten)]
    json: JsonOutput,
    /// Round the weights to this type first: ranges of the network that inference in it runs.
    #[arg(long, value_enum, value_name = "TYPE")]
    weights: Option<Weights>,
    /// The domain: ℓ2 radius per token's embedding vector, or of the whole input [default: all
    /// sequences of tokens; no bound on images and vectors].
    #[arg(long)]
    radius: Option<f64>,
    /// The domain of images and vectors: the largest absolute value of an element.
    #[arg(long, value_name = "X",
        value_parser = ranges::positive(1e300))]
    limit: Option<f64>,
    /// Steps of the search for bounds by ellipsoids; 0 leaves them out [default: 30 where that takes a
    /// minute or two, 0 for larger networks].
    #[arg(long, value_name = "STEPS", value_parser = ranges::count(0, 100_000))]
    effort: Option<usize>,
    /// Print the verdict alone.
    #[arg(long, short)]
    quiet: bool,
}

impl RangeCommand {
    pub(super) fn run(self) -> Result<()> {
        self.json.ready(&["weights_sha256", "number", "tensors"])?;
        super::check_radius(self.radius)?;
        let stored = lipschitz_certify::open(&self.model)?;
        let rounded = self.weights.map(|to| Rounded { source: &stored, to: to.into() });
        let model = rounded.as_ref().map_or(&stored as &dyn Source, |rounded| rounded);
        if self.limit.is_some() && matches!(model.graph().input(), Input::Tokens { .. }) {
            bail!("--limit bounds the elements of images and vectors; this model reads tokens")
        }
        let inputs = Inputs { radius: self.radius, limit: self.limit };
        let steps = self.effort.unwrap_or_else(|| ellipsoid::usual_steps(model.graph()));
        let bar = spinner();
        let watch = |name: &str| {
            bar.set_message(shown(name));
            bar.inc(1);
        };
        let ranges =
            range::prove(model, inputs, steps, &watch).map_err(|e| super::about(&self.model, e))?;
        bar.finish_and_clear();
        let observed = self.observed()?;
        let decision = ranges.decide(self.format, &observed);
        if let Some(tensor) = decision.refuted() {
            let (name, bound) = (&tensor.range.name, tensor.range.largest);
            let found = tensor.observed.unwrap_or_default();
            bail!(Error::Violated(format!(
                "found {found} in `{name}`, above its proven bound {bound}: a defect, please report it"
            )))
        }
        let taken = self.json.write(|| serde_json::to_string_pretty(&decision))?;
        if !taken {
            if !self.quiet {
                print(&decision, self.data.is_some());
            }
            verdict(&decision, self.quiet);
        }
        match &decision.first {
            None => Ok(()),
            Some(first) => bail!(Error::Violated(misfit(&decision, first))),
        }
    }

    /// The largest elements on the data, if there is some.
    fn observed(&self) -> Result<BTreeMap<Site, f64>> {
        let Some(path) = &self.data else { return Ok(BTreeMap::new()) };
        if self.weights.is_some() {
            bail!("--data shows what the stored weights do; leave --weights out")
        }
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let data = for_model(path, &meta)?;
        let context = model.graph().context();
        // One operation at a time holds all logits, so few examples at a time.
        let batch = self.examples.min(if context.is_some() { 4 } else { 32 });
        let batches = data.held_out(Protocol::Full, batch, context, &Device::Cpu)?;
        let batches = batches.take(self.examples.div_ceil(batch)).map(|b| b.map(|(x, _)| x));
        // Some bounds are met exactly, which rounding in f32 would hide.
        let model = model.to(&Device::Cpu, DType::F64)?;
        let batches = batches.map(|x| {
            let x = x?;
            let x = if x.dtype().is_float() { x.to_dtype(DType::F64)? } else { x };
            Ok::<_, lipschitz_data::Error>(x)
        });
        let inputs = Inputs { radius: self.radius, limit: self.limit };
        range::observe(&model, inputs, batches).map_err(|e| match e {
            Error::Data(_) => anyhow::Error::from(e).context(path.display().to_string()),
            e => e.into(),
        })
    }
}

/// A static scale, as a power of two.
fn scale(verdict: &Verdict) -> String {
    match verdict.scale_log2 {
        Some(k) => format!("2^{k}"),
        None => "–".into(),
    }
}

fn bits(verdict: &Verdict) -> String {
    // Rounded down.
    verdict
        .headroom_bits
        .map_or("–".into(), |bits| format!("{:.1}", (10.0 * bits).floor() / 10.0))
}

/// One row per tensor. What a linear map multiplies is the output of the node before it, and has no
/// row of its own.
fn print(decision: &Decision, observed: bool) {
    let mut header = vec!["tensor", "largest element ≤", "bits left", "scale"];
    if observed {
        header.insert(2, "observed");
    }
    let numbers = 1..header.len();
    let mut tensors = table(&header, numbers.clone());
    for t in &decision.tensors {
        if t.range.site.stage == Stage::Operand {
            continue;
        }
        let mut row = vec![shown(&t.range.name), t.range.largest.to_string()];
        if observed {
            row.push(t.observed.map_or("–".into(), |x| format!("{x:.4}")));
        }
        row.extend([bits(&t.verdict), scale(&t.verdict)]);
        tensors.add_row(row);
    }
    outln!("{}\n", fitted(tensors));
    let mut weights: Table = table(&["weight", "largest element", "bits left", "scale"], 1..4);
    for w in &decision.weights {
        let largest = Upper::from_f64(w.range.largest).to_string();
        weights.add_row([shown(&w.range.name), largest, bits(&w.verdict), scale(&w.verdict)]);
    }
    outln!("{}\n", fitted(weights));
}

/// Whether everything fits; what else is known, unless that is all that is wanted.
fn verdict(decision: &Decision, quiet: bool) {
    let Decision { number, end, domain, .. } = decision;
    let end = Upper::from_f64(*end);
    // What does not fit is told as an error.
    if decision.first.is_none() {
        outln!("every tensor fits {number} without a scale: none is above {end}");
    }
    if quiet {
        return;
    }
    let largest = decision.tensors.iter().max_by(|a, b| {
        a.range.largest.partial_cmp(&b.range.largest).unwrap_or(std::cmp::Ordering::Equal)
    });
    if let Some(t) = largest {
        outln!("largest: `{}`, at most {}", shown(&t.range.name), t.range.largest);
    }
    outln!("domain: {domain}");
    outln!("values are those of the network in real arithmetic; rounding in a forward pass is not");
    outln!("weights: sha256 {}", decision.weights_sha256);
}

/// The first tensor that does not fit.
fn misfit(decision: &Decision, first: &str) -> String {
    let number = decision.number;
    let end = Upper::from_f64(decision.end);
    let tensor = decision.tensors.iter().find(|t| t.range.name == first);
    let largest = match tensor {
        Some(t) => t.range.largest,
        None => {
            let weight = decision.weights.iter().find(|w| w.range.name == first);
            weight.map_or(Upper::INFINITY, |w| Upper::from_f64(w.range.largest))
        }
    };
    let count = decision.tensors.iter().filter(|t| !t.verdict.fits).count()
        + decision.weights.iter().filter(|w| !w.verdict.fits).count();
    let others = match count {
        0 | 1 => String::new(),
        count => format!("; {} more do not", count - 1),
    };
    let first = shown(first);
    if !largest.is_finite() {
        return format!(
            "nothing bounds `{first}`, so it is not known to fit {number}{others}; bound the inputs with \
             --radius or --limit"
        );
    }
    format!("`{first}` does not fit {number}: it is bounded by {largest}, above {end}{others}")
}
