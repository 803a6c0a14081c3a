use std::path::PathBuf;

use anyhow::Result;
use candle_core::Device;
use certify::task::{Protocol, Task};
use clap::{Args, ValueEnum};

/// Loss and accuracy of a model.
#[derive(Args)]
pub struct Eval {
    /// A run directory, a checkpoint, or a model of another library.
    model: PathBuf,
    /// A text file, or a CIFAR-10 directory.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Which part of the held-out split.
    #[arg(long, value_enum, default_value_t = ProtocolName::Full)]
    protocol: ProtocolName,
    /// Sequences or images at a time.
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtocolName {
    /// All of it.
    Full,
    /// The published protocol for text: the first 1280 windows at stride 1, an easy stretch.
    Paper,
}

impl Eval {
    pub fn run(self) -> Result<()> {
        let (model, meta) = certify::open(&self.model, &Device::Cpu)?;
        let task = Task::for_model(&self.data, &meta)?;
        let protocol = match self.protocol {
            ProtocolName::Full => Protocol::Full,
            ProtocolName::Paper => Protocol::Paper,
        };
        let result = task.evaluate(&model, protocol, self.batch_size.max(1), &Device::Cpu)?;
        let (loss, accuracy, count) = (result.loss, result.accuracy, result.count);
        if self.json {
            println!("{}", serde_json::json!({ "loss": loss, "accuracy": accuracy, "predictions": count }));
        } else {
            println!("loss {loss:.4} nats, accuracy {:.2} %, over {count} predictions", 100.0 * accuracy);
        }
        Ok(())
    }
}
