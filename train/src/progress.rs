//! Progress of a run on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use lipschitz_certify::terminal;
use lipschitz_certify::upper::Upper;

use crate::run_dir::Metrics;

/// Shows the progress of a run.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    latest: String,
}

impl Progress {
    /// For `steps` steps of which `done` are made; silent if `quiet`.
    pub(crate) fn new(steps: u64, done: u64, quiet: bool) -> Self {
        let seen = std::io::stderr().is_terminal();
        let bar = (seen && !quiet).then(|| {
            let bar = ProgressBar::new(steps).with_position(done);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, lines: !seen && !quiet, latest: String::new() }
    }

    /// A logged step, with its certified constant.
    pub(crate) fn show(&mut self, m: &Metrics, l: Upper) {
        if let (Some(loss), Some(accuracy)) = (m.val_loss, m.val_accuracy) {
            self.latest = format!("  val {loss:.4}  acc {:.1} %", 100.0 * accuracy);
        }
        let loss = m.train_loss.unwrap_or(f64::NAN);
        if let Some(bar) = &self.bar {
            bar.set_position(m.step);
            bar.set_message(format!("loss {loss:.4}  L ≤ {l}{}", self.latest));
        } else if self.lines {
            let latest = if m.val_loss.is_some() { self.latest.as_str() } else { "" };
            terminal::note(format_args!(
                "step {:>6}  {:>7.1} s  loss {loss:.4}  L ≤ {l}{latest}",
                m.step, m.seconds
            ));
        }
    }

    /// Leaves the last state on the screen.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
