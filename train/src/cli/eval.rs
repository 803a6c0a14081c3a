use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use lipschitz_certify::range::{Extent, Inputs, Number, Simulated};
use lipschitz_certify::terminal::{JsonOutput, ranges};
use lipschitz_certify::{ellipsoid, outln, robust};
use lipschitz_data::shards::ShardsConfig;
use lipschitz_data::text::TextConfig;
use lipschitz_data::{
    DataConfig, DataSet, Predicts, Protocol, evaluate, evaluate_as, evaluation_size, for_model,
    memory, of_run,
};
use lipschitz_nn::checkpoint::{self, Meta};
use lipschitz_nn::graph::Input;
use lipschitz_nn::{Model, text};
use lipschitz_train::run_dir::{Lock, Summary};
use lipschitz_train::{estimate, progress};
use serde::Serialize;

/// Loss and accuracy of a model.
#[derive(Args)]
pub(super) struct Eval {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// A text file or a directory of token shards; a folder of images by class, the directory of MNIST
    /// or CIFAR, or a file of tensors [default: what the model was trained on]. Of a text that part is
    /// evaluated which its run held out: the last tenth, or as data.val_fraction of its config says;
    /// all of it where data.val_path names a file of its own. So is that part of the images or tensors
    /// that a model was trained on; of others, all of them.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Which part of the held-out split.
    #[arg(long, value_enum, default_value_t = ProtocolName::Full)]
    protocol: ProtocolName,
    /// Sequences or images at a time [default: 32 sequences, 256 images].
    #[arg(long, value_parser = ranges::count(1, 1 << 28))]
    batch_size: Option<usize>,
    /// Write the figures of `--protocol paper` into the run's `summary.json`, as `paper_loss` and
    /// `paper_accuracy`, for plots.
    #[arg(long)]
    record: bool,
    /// Also with weights and the operands of products rounded to this format, with static scales that
    /// no input can overflow, and products added in f32: as hardware for it computes.
    #[arg(long, value_enum, value_name = "FORMAT")]
    simulate: Option<Number>,
    /// Round every tensor between two operations, not the operands of products alone.
    #[arg(long, requires = "simulate")]
    simulate_all: bool,
    #[command(flatten)]
    json: JsonOutput,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolName {
    /// All of it.
    Full,
    /// The published protocol for text: the first 1280 windows at stride 1, an easy stretch.
    Paper,
}

/// Of a classifier of images, the certified accuracies at 36, 72 and 108 over 255.
fn certified_shares(model: &Model, data: &dyn DataSet) -> Result<Option<[f64; 3]>> {
    let reads = matches!(model.graph().input(), Input::Pixels { .. });
    if !reads || data.predicts() != Predicts::Classes {
        return Ok(None);
    }
    let images = data.held_out(Protocol::Full, robust::BATCH, None, &Device::Cpu)?;
    let search = ellipsoid::usual_steps(model.graph());
    let found = robust::certified_accuracy(model, images, &robust::PUBLISHED, search)?;
    Ok(found.try_into().ok())
}

/// Whether the text or the shards at `path` are what the run was trained on, wherever they lie.
fn check_own(path: &Path, meta: &Meta) -> Result<()> {
    let there = match of_run(meta) {
        Some(DataConfig::Text(config)) => {
            DataConfig::Text(TextConfig { path: path.to_path_buf(), ..config })
        }
        Some(DataConfig::Shards(config)) => {
            DataConfig::Shards(ShardsConfig { path: path.to_path_buf(), ..config })
        }
        _ => return Ok(()),
    };
    let Some(trained) = meta.provenance.data_digest.as_deref() else { return Ok(()) };
    if there.kind().load()?.digest() != trained {
        bail!(
            "{}: is not what the run was trained on, and --record keeps the figures of that; leave \
             --record out",
            path.display()
        )
    }
    Ok(())
}

/// The largest absolute value of an element of an image or a vector; pixels are at most 1.
fn limit(model: &Model, data: &dyn DataSet) -> Result<Option<f64>> {
    match model.graph().input() {
        Input::Tokens { .. } => Ok(None),
        Input::Pixels { .. } => Ok(Some(1.0)),
        Input::Vector { .. } => {
            let mut largest = 0.0_f64;
            for batch in data.held_out(Protocol::Full, robust::BATCH, None, &Device::Cpu)? {
                let (x, _) = batch?;
                let x = x.to_dtype(DType::F64)?.abs()?.flatten_all()?.max(0)?;
                largest = largest.max(x.to_scalar()?);
            }
            Ok(Some(largest))
        }
    }
}

/// What a simulation gives.
#[derive(Serialize)]
struct SimulatedFigures {
    format: Number,
    /// What is rounded.
    extent: &'static str,
    loss: f64,
    accuracy: Option<f64>,
    /// Numbers beyond the end of the format.
    clipped: u64,
    /// Numbers that were rounded.
    rounded: u64,
}

impl Eval {
    pub(super) fn run(self) -> Result<()> {
        self.json.ready(&["loss", "accuracy", "predictions"])?;
        let kept = if self.record { Some(self.summary()?) } else { None };
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let data = self.data(&meta)?;
        if let (true, Some(path)) = (self.record, &self.data) {
            check_own(path, &meta)?;
        }
        let protocol = match self.protocol {
            ProtocolName::Full => Protocol::Full,
            ProtocolName::Paper => Protocol::Paper,
        };
        let inputs = data.held_out_len().div_ceil(model.graph().input().positions().max(1));
        let size = self.batch_size.unwrap_or_else(|| evaluation_size(model.graph(), 32));
        let batch = size.min(inputs);
        let need = estimate::forward(model.graph(), batch);
        memory::check(need, || format!("an evaluation of {batch} inputs at a time"))
            .map_err(|error| anyhow!("{error}; lower --batch-size"))?;
        let result = evaluate(&model, &*data, protocol, size, &Device::Cpu)?;
        let (loss, accuracy, count) = (result.loss, result.accuracy, result.count);
        if !loss.is_finite() {
            let error = lipschitz_train::Error::NotFinite;
            return Err(anyhow::Error::from(error).context(self.model.display().to_string()));
        }
        if let Some((file, summary, _lock)) = kept {
            let summary = Summary { paper_loss: Some(loss), paper_accuracy: accuracy, ..summary };
            checkpoint::write(&file, serde_json::to_string_pretty(&summary)?.as_bytes())?;
        }
        let mut figures =
            serde_json::json!({ "loss": loss, "accuracy": accuracy, "predictions": count });
        let certified = certified_shares(&model, &*data)?;
        if let Some([a, b, c]) = certified {
            figures["certified"] = serde_json::json!({ "36/255": a, "72/255": b, "108/255": c });
        }
        let simulated = match self.simulate {
            Some(number) => Some(self.simulated(&model, number, &*data, protocol)?),
            None => None,
        };
        if let Some(simulated) = &simulated {
            figures["simulated"] = serde_json::to_value(simulated)?;
        }
        if !self.json.write(|| serde_json::to_string(&figures))? {
            match accuracy {
                Some(accuracy) => outln!(
                    "loss {loss:.4} nats, accuracy {:.2} %, over {count} predictions",
                    100.0 * accuracy
                ),
                None => outln!("mean squared error {loss:.6}, over {count} predictions"),
            }
            if let Some(shares) = certified {
                let shares = progress::certified(shares);
                outln!("certified at 36/255, 72/255, 108/255 (ℓ2): {shares}");
            }
            if let Some(s) = simulated {
                let (off, extent, format) = (s.loss - loss, s.extent, s.format);
                let figures = match s.accuracy {
                    Some(accuracy) => format!(
                        "loss {:.4} nats, accuracy {:.2} %, with {extent} in {format}: {off:+.4} nats",
                        s.loss,
                        100.0 * accuracy
                    ),
                    None => format!(
                        "mean squared error {:.6}, with {extent} in {format}: {off:+.6}",
                        s.loss
                    ),
                };
                outln!("{figures}; {} of {} numbers were cut at its end", s.clipped, s.rounded);
            }
        }
        Ok(())
    }

    /// The same split, with everything rounded that is to be.
    fn simulated(
        &self,
        model: &Model,
        number: Number,
        data: &dyn DataSet,
        protocol: Protocol,
    ) -> Result<SimulatedFigures> {
        let extent = if self.simulate_all { Extent::All } else { Extent::Operands };
        let inputs = Inputs { limit: limit(model, data)?, ..Inputs::default() };
        let simulated = Simulated::new(model, number, extent, inputs).with_context(|| {
            format!("{}: cannot be simulated in {number}", self.model.display())
        })?;
        let forward = |x: &Tensor| simulated.forward(x);
        // All logits of attention are held at once.
        let batch = self.batch_size.map_or(8, |size| size.min(8));
        let result = evaluate_as(model.graph(), &forward, data, protocol, batch, &Device::Cpu)?;
        let (clipped, rounded) = simulated.clipped();
        Ok(SimulatedFigures {
            format: number,
            extent: if self.simulate_all {
                "weights and all tensors"
            } else {
                "weights and operands"
            },
            loss: result.loss,
            accuracy: result.accuracy,
            clipped,
            rounded,
        })
    }

    /// What is evaluated.
    fn data(&self, meta: &Meta) -> Result<Box<dyn DataSet>> {
        if let Some(path) = &self.data {
            return Ok(for_model(path, meta)?);
        }
        match of_run(meta) {
            Some(DataConfig::Text(TextConfig { path, .. })) => Ok(for_model(&path, meta)?),
            Some(config) => {
                let data = config.kind().load();
                let data = data.map_err(|e| anyhow!("{e}; or name the data with --data"))?;
                match &meta.provenance.data_digest {
                    Some(trained) if trained != data.digest() => {
                        Err(lipschitz_data::Error::Changed(data.name().to_string()).into())
                    }
                    _ => Ok(data),
                }
            }
            None => bail!(
                "{}: does not say what it was trained on; name the data with --data",
                self.model.display()
            ),
        }
    }

    /// Where the figures are to be kept, locked against other processes.
    fn summary(&self) -> Result<(PathBuf, Summary, Lock)> {
        if !matches!(self.protocol, ProtocolName::Paper) {
            bail!(
                "--record keeps the figures of `--protocol paper`; those of the whole split are \
                 in summary.json already"
            )
        }
        let file = self.model.join("summary.json");
        if !self.model.is_dir() || !file.exists() {
            bail!(
                "{}: is not the directory of a finished run, so --record has no summary.json to \
                 write to",
                self.model.display()
            )
        }
        let Some(lock) = Lock::take(&self.model)? else {
            bail!(
                "{}: another process is training this run; wait for its end",
                self.model.display()
            )
        };
        let summary = read(&file)?;
        Ok((file, summary, lock))
    }
}

fn read(file: &Path) -> Result<Summary> {
    let text = text::read(file, "the summary of a run")?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: is not the summary of a run", file.display()))
}
