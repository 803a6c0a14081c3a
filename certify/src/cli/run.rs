use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use clap::Args;
use lipschitz_certify::terminal::{self, Kind};
use lipschitz_nn::checkpoint::{load_tensors, save_tensors};

/// Run the forward pass on tensors from a file, for comparison with any other program.
#[derive(Args)]
pub(super) struct RunCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// A safetensors file with `tokens` [batch, T], `embeddings` [batch, T, d], `pixels` [batch, c,
    /// h, w] or `vectors` [batch, d].
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The file to write, with the tensor `output`; - is stdout.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Compute in f64 instead of the weights' type (f32 for weights of half precision).
    #[arg(long)]
    double: bool,
}

impl RunCommand {
    pub(super) fn run(self) -> Result<()> {
        terminal::ready(&self.output, Kind::Tensors(&["output"]))?;
        let (input, output) = (Some(&*self.input), Some(&*self.output));
        terminal::distinct(&[("--input", input), ("--output", output)])?;
        let (model, _) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let dtype = match (self.double, model.dtype()) {
            (true, _) => DType::F64,
            (false, DType::BF16 | DType::F16) => DType::F32,
            (false, dtype) => dtype,
        };
        let model = model.to(&Device::Cpu, dtype)?;
        let (tensors, _) = load_tensors(&self.input, &Device::Cpu)?;
        let known = ["tokens", "embeddings", "pixels", "vectors"];
        let mut found = known.iter().filter_map(|name| tensors.get(*name).map(|t| (*name, t)));
        let (Some((name, input)), None) = (found.next(), found.next()) else {
            bail!("{}: wants one of the tensors {}", self.input.display(), known.join(", "))
        };
        let output = if name == "embeddings" {
            model.forward_embeddings(input)
        } else {
            model.forward(input)
        };
        let output = output.with_context(|| self.input.display().to_string())?;
        // 0·x is 0 for finite x alone.
        let zero = (output.to_dtype(DType::F64)? * 0.0)?.sum_all()?.to_scalar::<f64>()?;
        if zero != 0.0 {
            bail!("{}: the network's outputs are not finite on this input", self.input.display())
        }
        Ok(save_tensors(terminal::target(&self.output), [("output", output)].into_iter(), None)?)
    }
}
