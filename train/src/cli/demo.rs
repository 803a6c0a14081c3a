use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Args;
use lipschitz_certify::outln;
use lipschitz_certify::plots::{self, tradeoff::Tradeoff, training};
use lipschitz_certify::terminal::{self, tables::fitted};
use lipschitz_data::play;
use lipschitz_train::Error;
use lipschitz_train::config::Config;
use lipschitz_train::preset;
use lipschitz_train::run_dir;
use lipschitz_train::trainer::{self, End, RunOptions};

use super::{Stopped, on_signal, shell, table};

/// Train small language models at a few Lipschitz constants, certify each, and plot what the bound
/// costs.
///
/// About a minute on two cores; nothing to download.
#[derive(Args)]
pub(super) struct Demo {
    /// Where everything goes. Finished networks are kept, so a stopped demo continues.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
}

/// A network of the demo: its name and what it changes in the config.
const MEMBERS: [(&str, &[&str]); 6] = [
    ("L ≤ 1", &["lipschitz_target=1"]),
    ("L ≤ 2", &["lipschitz_target=2"]),
    ("L ≤ 10", &["lipschitz_target=10"]),
    ("L ≤ 100", &["lipschitz_target=100"]),
    ("Muon alone", &["constraint={ method = \"none\" }"]),
    (
        "AdamW alone",
        &[
            "optimizer={ kind = \"adamw\" }",
            "constraint={ method = \"none\" }",
            "train.learning_rate=0.003",
        ],
    ),
];

/// The directory of a network.
fn member(out: &Path, label: &str) -> PathBuf {
    out.join(label.replace("L ≤ ", "L").replace(' ', "-"))
}

/// A directory that another version of this program filled.
fn earlier(error: Error, out: &Path) -> anyhow::Error {
    let other = matches!(error, Error::OtherArchitecture(_) | Error::OtherConfig { .. });
    match other {
        true => anyhow!(
            "{}: holds the demo of another version; remove it, or name another directory with --out",
            out.display()
        ),
        false => error.into(),
    }
}

impl Demo {
    pub(super) fn run(self, quiet: bool) -> Result<()> {
        let stop = on_signal(quiet);
        let clock = Instant::now();
        let mut summaries = Vec::new();
        for (i, (label, settings)) in MEMBERS.iter().enumerate() {
            let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
            let config = Config::parse(preset::find("demo")?, &settings)?;
            let out = member(&self.out, label);
            if !quiet {
                terminal::note(format_args!("{}/{}: {label}", i + 1, MEMBERS.len()));
            }
            let resume = run_dir::holds_run(&out);
            let options = RunOptions {
                resume,
                stop: stop.clone(),
                quiet,
                label: label.to_string(),
                ..RunOptions::new(&out)
            };
            match trainer::run(&config, &options).map_err(|e| earlier(e, &self.out))? {
                End::Done(summary) => summaries.extend(summary.map(|summary| *summary)),
                End::Stopped(step) => {
                    let command = shell(&["train", "demo", "--out", &self.out.to_string_lossy()]);
                    let after = format!("after {step} steps; a checkpoint is saved");
                    return Err(Stopped { after, command }.into());
                }
            }
        }
        let runs = MEMBERS.map(|(label, _)| member(&self.out, label));
        for extension in ["svg", "png"] {
            let tradeoff = Tradeoff::read(&runs, "lipschitz_log10", "val_loss", None)?;
            plots::write(&self.out.join(format!("tradeoff.{extension}")), &[tradeoff.chart()])?;
            plots::write(
                &self.out.join(format!("training.{extension}")),
                &training::charts(&runs)?,
            )?;
        }
        outln!("{}\n", fitted(table::summaries(&summaries)));
        let floor = play::entropy_per_character();
        outln!(
            "No model of this text can have an expected loss below its entropy, {floor:.3} nats \
             per character."
        );
        let out = self.out.display();
        outln!(
            "{:.0} s. Figure: {out}/tradeoff.svg; runs with checkpoints and certificates: {out}",
            clock.elapsed().as_secs_f64()
        );
        outln!("Next: certify bound {out}/L10");
        Ok(())
    }
}
