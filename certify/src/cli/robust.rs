use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use candle_core::Device;
use clap::Args;
use comfy_table::Table;
use lipschitz_certify::outln;
use lipschitz_certify::robust::{self, Effort, Robustness, Settings, Share};
use lipschitz_certify::terminal::tables::{self, fitted};
use lipschitz_certify::terminal::{self, JsonOutput, ranges};
use lipschitz_certify::upper;
use lipschitz_data::tensors::predicts;
use lipschitz_data::{Predicts, Protocol, for_model};
use lipschitz_import::NORMALISED;
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::graph::{Input, Op, join};
use serde_json::Value;

/// For each radius: how many predictions an attack changes, and how many provably do not change.
///
/// Images and vectors: clean, attacked and certified accuracy; a radius is an ℓ2 distance, of pixels in
/// [0, 1] for images, such as 36/255 in the literature. Language models: how often the next token stays the same when
/// the embedding vectors of one token or of all tokens move; a radius is an ℓ2 distance per vector.
#[derive(Args)]
pub(super) struct RobustCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// A folder of images by class, the directory of MNIST or CIFAR, or a file of tensors; a text file,
    /// or a directory of token shards.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Radii, such as 0,36/255,0.5 [default: chosen for the model].
    #[arg(long, value_delimiter = ',', value_parser = radius)]
    eps: Vec<f64>,
    #[command(flatten)]
    json: JsonOutput,
    /// Number of inputs to evaluate, from the first of the held-out split [default: 2000 images, or
    /// 64 windows of text].
    #[arg(long, value_parser = ranges::count(1, 1 << 40))]
    limit: Option<usize>,
    /// Steps per attack.
    #[arg(long, default_value_t = 20, value_parser = ranges::count(1, 1_000_000))]
    steps: usize,
    /// Attacks per input; the first starts at the input, the others at random points around it.
    #[arg(long, default_value_t = 2, value_parser = ranges::count(1, 1_000_000))]
    restarts: usize,
    #[command(flatten)]
    search: super::effort::Effort,
}

/// A number, or a fraction.
pub(super) fn radius(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let value = match text.split_once('/') {
        Some((a, b)) => number(a).zip(number(b)).map(|(a, b)| a / b),
        None => number(text),
    };
    value
        .filter(|x| x.is_finite() && *x >= 0.0)
        .ok_or_else(|| "must be a number of 0 or above, or a fraction".into())
}

/// Radii for images, up to the largest of the published figure.
const PIXELS: [f64; 10] =
    [0.0, 9.0 / 255.0, 18.0 / 255.0, 36.0 / 255.0, 72.0 / 255.0, 108.0 / 255.0, 0.8, 1.6, 2.4, 3.2];

/// Radii for embedding vectors, as shares of the largest norm.
const SHARES: [f64; 8] = [0.0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3];

impl RobustCommand {
    pub(super) fn run(self) -> Result<()> {
        self.json.ready(&["label", "unit", "available"])?;
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let data = for_model(&self.data, &meta)?;
        let effort = Effort { steps: self.steps, restarts: self.restarts };
        let loud = terminal::loud();
        let watch = |eps: f64| {
            if loud {
                let _ = write!(std::io::stderr(), "\rradius {eps:.4} …    ");
            }
        };
        let search = self.search.steps(model.graph());
        let settings = |eps: Vec<f64>, limit| Settings {
            eps,
            effort,
            limit: self.limit.unwrap_or(limit),
            search,
        };
        let given =
            |default: Vec<f64>| if self.eps.is_empty() { default } else { self.eps.clone() };
        let batches = |size, context| data.held_out(Protocol::Full, size, context, &Device::Cpu);
        let mut report = match model.graph().input() {
            Input::Tokens { .. } => {
                let longest = longest_row(&model)?;
                let shares = SHARES
                    .iter()
                    .map(|s| format!("{:.1e}", s * longest).parse().unwrap_or(*s))
                    .collect();
                let windows = batches(robust::WINDOWS, Some(robust::window(&model)?))?;
                let found = robust::tokens(&model, windows, &settings(given(shares), 64), &watch);
                found.map_err(|error| match error {
                    lipschitz_certify::Error::Data(_) => {
                        anyhow::Error::from(error).context(data.name().to_string())
                    }
                    error => error.into(),
                })?
            }
            Input::Pixels { .. } | Input::Vector { .. } => {
                reads_pixels(&self.model, &meta)?;
                predicts(&*data, Predicts::Classes)?;
                let settings = settings(given(PIXELS.to_vec()), 2000);
                let images = batches(robust::BATCH, None)?;
                robust::images(&model, images, data.held_out_len(), &settings, &watch)?
            }
        };
        if loud {
            let _ = writeln!(std::io::stderr());
        }
        report.label = label(&self.model);
        if !self.json.write(|| serde_json::to_string_pretty(&report))? {
            print(&report);
        }
        Ok(())
    }
}

/// Refuses a model that does not read pixels as data gives them.
pub(super) fn reads_pixels(model: &Path, meta: &Meta) -> Result<()> {
    let origin = meta.provenance.origin.iter();
    if origin.flat_map(|origin| &origin.notes).any(|note| note == NORMALISED) {
        bail!(
            "{}: the model does not read pixels in [0, 1], and nothing says how they are normalised; put \
             its preprocessor_config.json beside the weights and import it again",
            model.display()
        )
    }
    Ok(())
}

/// The name of a run: its method, cap and learning rate. Any other model has that of its file.
pub(super) fn label(model: &Path) -> String {
    let summary = lipschitz_certify::plots::summary(model).unwrap_or_default();
    let number =
        |key: &str| summary.get(key).and_then(Value::as_f64).map(|x| (x * 1e4).round() / 1e4);
    let Some(method) = summary.get("method").and_then(Value::as_str) else {
        return model
            .file_name()
            .map_or_else(|| model.display().to_string(), |name| name.to_string_lossy().into());
    };
    let named = [("σ_max", "sigma_max"), ("η", "learning_rate")];
    named.iter().fold(method.into(), |label: String, (name, key)| match number(key) {
        Some(x) => format!("{label}, {name} {x}"),
        None => label,
    })
}

/// The largest ℓ2 norm of an embedding row, to choose radii.
fn longest_row(model: &Model) -> Result<f64> {
    let (Input::Tokens { .. }, Some(node)) = (model.graph().input(), model.graph().nodes().first())
    else {
        bail!("the model reads no tokens")
    };
    let Op::Embedding { .. } = node.op else { bail!("the network has no embedding") };
    let table = &model.weights()[&join(&node.name, "weight")];
    let rows = table.to_dtype(candle_core::DType::F64)?.sqr()?.sum(1)?.sqrt()?;
    Ok(rows.max(0)?.to_scalar::<f64>()?)
}

fn print(report: &Robustness) {
    outln!("{}", fitted(table(report)));
    let of = match report.of {
        Share::Accuracy => "share of inputs whose class is right",
        Share::Stability => "share of next tokens that stay what they are, whether right or wrong",
    };
    outln!("{of}; the first {} of {} inputs", report.inputs, report.available);
    outln!(
        "radius: {}; attack: {} searches of {} steps",
        report.unit,
        report.restarts,
        report.steps
    );
    if let Some(diameter) = report.diameter {
        outln!(
            "for scale: embedding vectors have ℓ2 norm up to {}, two differ by up to {diameter}",
            report.domain
        );
        outln!(
            "the certified share holds for a change of one token as of all: the norm is the \
             largest of a token"
        );
    }
    outln!(
        "certified ≤ true ≤ attacked ≤ clean, for every input; L ≤ {} ℓ2 → ℓ2",
        report.lipschitz
    );
}

/// One row per radius.
fn table(report: &Robustness) -> Table {
    // An upper bound of what is true.
    let upper = |share: f64| format!("{:.2} %", (1e4 * share - 1e-6).ceil().max(0.0) / 100.0);
    let attacked: &[&str] = match report.of {
        Share::Stability => &["attacked, one token", "attacked, all tokens"],
        Share::Accuracy => &["attacked"],
    };
    let header = [&["radius", "clean"][..], attacked, &["certified"]].concat();
    let mut table = tables::table(&header, 0..header.len());
    for row in &report.rows {
        // What is proven at a radius is proven at one that is not above it.
        let mut cells = vec![upper::radius(row.eps), upper(row.clean)];
        cells.extend(row.attacked_one.map(upper));
        cells.extend([upper(row.attacked), robust::percent(row.certified)]);
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_radius_is_not_above_what_is_proven() {
        let texts = [0.0, 0.5, 0.3, 0.123456, 1e-7, 36.0 / 255.0, 108.0 / 255.0].map(upper::radius);
        assert_eq!(texts, ["0", "0.5", "0.3", "0.123456", "1e-7", "0.14117", "0.42352"]);
    }

    #[test]
    fn runs_are_labelled_with_their_method_and_files_with_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("spectral_soft_cap-3f");
        std::fs::create_dir(&run).unwrap();
        assert_eq!(label(&run), "spectral_soft_cap-3f");
        let says = |text: &str| {
            std::fs::write(run.join("summary.json"), text).unwrap();
            label(&run)
        };
        assert_eq!(
            says(r#"{"method": "Muon + soft cap", "sigma_max": 1.14761, "learning_rate": 0.2}"#),
            "Muon + soft cap, σ_max 1.1476, η 0.2"
        );
        assert_eq!(
            says(r#"{"method": "AdamW + weight decay", "sigma_max": null}"#),
            "AdamW + weight decay"
        );
        assert_eq!(label(&dir.path().join("model.safetensors")), "model.safetensors");
    }
}
