use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;
use clap::Args;
use lipschitz_certify::{outln, terminal};
use lipschitz_train::progress::certified;
use lipschitz_train::ranks::Ranks;
use lipschitz_train::trainer::{self, End, RunOptions};

use super::{Stopped, on_signal, shell};

/// Train one network.
#[derive(Args)]
pub(super) struct Run {
    /// The config, or - for stdin; `train config PRESET` prints one to start from.
    config: PathBuf,
    /// Change a key of the config, as path.to.key=value; path.to.key= takes the key out.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// The run directory [default: runs/NAME OF THE CONFIG].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run that is there.
    #[arg(long)]
    resume: bool,
    /// cpu or cuda:N, instead of the config's.
    #[arg(long)]
    device: Option<String>,
}

impl Run {
    pub(super) fn run(self, quiet: bool) -> Result<()> {
        let mut config = super::config_at(&self.config, &self.settings)?;
        if let Some(device) = self.device {
            config.train.device = device;
        }
        let words = |name: Option<&OsStr>| {
            name.map_or("run".into(), |name| name.to_string_lossy().into_owned())
        };
        let from =
            if terminal::is_stream(&self.config) { Path::new("stdin") } else { &self.config };
        let out = self.out.unwrap_or_else(|| PathBuf::from("runs").join(words(from.file_stem())));
        // A directory has no extension: `lr0.01` is its name.
        let label = words(out.file_name());
        let ranks = Rc::new(Ranks::join()?);
        let options = RunOptions {
            resume: self.resume,
            stop: on_signal(quiet || !ranks.is_first()),
            quiet,
            label,
            ranks,
            ..RunOptions::new(&out)
        };
        let ranks = &options.ranks;
        let end = trainer::run(&config, &options).map_err(anyhow::Error::from);
        // Where one process fails, the others would wait for it without end.
        if let (Err(error), 2..) = (&end, ranks.count()) {
            terminal::note(format_args!("error: rank {}: {}", ranks.rank(), super::line(error)));
            ranks.abort(super::code(error));
        }
        match end? {
            End::Done(None) => Ok(()),
            End::Stopped(step) => {
                let (out, config) = (out.to_string_lossy(), out.join("config.toml"));
                let config = config.to_string_lossy();
                let command = shell(&["train", "run", &config, "--out", &out, "--resume"]);
                let after = format!("after {step} steps; a checkpoint is saved");
                Err(Stopped { after, command }.into())
            }
            End::Done(Some(summary)) => {
                let accuracy = summary.val_accuracy;
                let accuracy = accuracy.map(|a| format!(", accuracy {:.2} %", 100.0 * a));
                outln!(
                    "{}: val loss {:.4}{}, L ≤ {}",
                    out.display(),
                    summary.val_loss,
                    accuracy.unwrap_or_default(),
                    summary.lipschitz
                );
                if let Some(shares) = summary.certified() {
                    let shares = certified(shares);
                    outln!("certified at 36/255, 72/255, 108/255 (ℓ2): {shares}");
                }
                outln!("certificate: certify bound {}", super::shell(&[out.to_string_lossy()]));
                Ok(())
            }
        }
    }
}
