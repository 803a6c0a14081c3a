//! Progress of a run on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lipschitz_certify::terminal;
use lipschitz_certify::upper::Upper;

use crate::run_dir::Metrics;

/// Shows the progress of a run.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    latest: String,
    /// Raised when the run is to stop.
    stop: Arc<AtomicBool>,
}

impl Progress {
    /// For `steps` steps of which `done` are made, until `stop` is raised; silent if `quiet`.
    pub(crate) fn new(steps: u64, done: u64, quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let seen = std::io::stderr().is_terminal();
        let bar = (seen && !quiet).then(|| {
            let bar = ProgressBar::new(steps).with_position(done);
            let style =
                ProgressStyle::with_template("{bar:20} {pos}/{len}  {wide_msg}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, lines: !seen && !quiet, latest: String::new(), stop }
    }

    /// A logged step, with its certified constant.
    pub(crate) fn show(&mut self, m: &Metrics, l: Upper) {
        if let Some(loss) = m.val_loss {
            self.latest = format!("  val {loss:.4}");
            if let Some(accuracy) = m.val_accuracy {
                self.latest += &format!("  acc {:.1} %", 100.0 * accuracy);
            }
            if let (Some(a), Some(b), Some(c)) = (m.certified_36, m.certified_72, m.certified_108) {
                self.latest += &format!("  certified {}", certified([a, b, c]));
            }
        }
        let loss = m.train_loss.unwrap_or(f64::NAN);
        if let Some(bar) = &self.bar {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
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

    /// Something beside the steps that is not to pass unseen, be the progress shown or not.
    pub(crate) fn tell(&self, what: &str) {
        let tell = || terminal::note(format_args!("note: {what}"));
        match &self.bar {
            Some(bar) => bar.suspend(tell),
            None => tell(),
        }
    }

    /// Leaves the last state on the screen. A bar that is drawn again behind the terminal's `^C` is
    /// there twice, so after one nothing is drawn but the end of its line.
    pub(crate) fn finish(&mut self) {
        let Some(bar) = self.bar.take() else { return };
        if self.stop.load(Ordering::Relaxed) {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            terminal::note(format_args!(""));
        }
        bar.abandon();
    }
}

/// Certified accuracies at the radii of published tables, never rounded up: `41.6/30.2/20.8 %`.
pub fn certified(shares: [f64; 3]) -> String {
    let tenths = |share: f64| format!("{:.1}", (1e3 * share + 1e-6).floor() / 10.0);
    format!("{} %", shares.map(tenths).join("/"))
}
