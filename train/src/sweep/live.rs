//! Progress of a sweep, on stderr: a table of the runs at work on a terminal, a line per finished
//! run elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lipschitz_certify::terminal;

use super::SweepRun;
use super::outcome::Outcome;
use crate::run_dir::Metrics;

/// Shows the progress of a sweep.
pub(super) struct Live {
    total: usize,
    ended: usize,
    table: Option<Table>,
    lines: bool,
    looked: Instant,
}

struct Table {
    all: MultiProgress,
    total: ProgressBar,
    /// A row for each run at work.
    rows: BTreeMap<usize, ProgressBar>,
}

/// How often the table is brought up to date.
const REFRESH: Duration = Duration::from_millis(500);

impl Live {
    /// For these runs; silent if `quiet`.
    pub(super) fn new(runs: &[SweepRun], quiet: bool) -> Self {
        let seen = std::io::stderr().is_terminal();
        let table = (seen && !quiet).then(|| {
            let all = MultiProgress::new();
            let total = all.add(ProgressBar::new(runs.len() as u64));
            total.set_style(style("{bar:30} {pos}/{len} runs  {msg}  {elapsed} spent"));
            Table { all, total, rows: BTreeMap::new() }
        });
        Self { total: runs.len(), ended: 0, table, lines: !seen && !quiet, looked: Instant::now() }
    }

    /// A run has been started.
    pub(super) fn start(&mut self, run: usize, label: &str, steps: u64) {
        let Some(table) = &mut self.table else { return };
        let bar = table.all.insert_before(&table.total, ProgressBar::new(steps));
        bar.set_style(style("{bar:10} {pos}/{len}  {prefix}  {wide_msg}  {eta} left"));
        bar.set_prefix(label.to_string());
        table.rows.insert(run, bar);
    }

    /// Another process is at work on a run.
    pub(super) fn elsewhere(&mut self, run: usize) {
        self.leave(run);
        if let Some(table) = &self.table {
            table.total.set_message("waiting for a run of another sweep");
        }
    }

    /// Reads the progress of the runs at work.
    pub(super) fn update(&mut self, places: &[PathBuf]) {
        let Some(table) = self.table.as_ref().filter(|_| self.looked.elapsed() >= REFRESH) else {
            return;
        };
        self.looked = Instant::now();
        for (run, bar) in &table.rows {
            let text =
                std::fs::read_to_string(places[*run].join("metrics.jsonl")).unwrap_or_default();
            let mut lines =
                text.lines().rev().filter_map(|line| serde_json::from_str::<Metrics>(line).ok());
            let Some(last) = lines.next() else { continue };
            bar.set_position(last.step);
            let loss = last.train_loss.unwrap_or(f64::NAN);
            let bound = last.lipschitz_log10.or(last.lipschitz);
            let bound = bound.map_or("none".into(), |log| format!("10^{log:.2}"));
            let evaluated = last.val_loss.or_else(|| lines.find_map(|m| m.val_loss));
            let evaluated = evaluated.map(|loss| format!("  val {loss:.4}")).unwrap_or_default();
            bar.set_message(format!("loss {loss:.4}{evaluated}  L {bound}"));
        }
        table.total.tick();
    }

    /// A run has ended, or was found to have ended `before`.
    pub(super) fn end(&mut self, run: usize, label: &str, outcome: &Outcome, before: bool) {
        self.leave(run);
        let what = match outcome {
            Outcome::Finished(s) => format!(
                "val loss {:.4}{}, L ≤ {}{}",
                s.val_loss,
                s.val_accuracy.map_or(String::new(), |a| format!(", accuracy {:.1} %", 100.0 * a)),
                s.lipschitz,
                if before { " (finished before)" } else { "" }
            ),
            Outcome::Failed(said) if before => {
                format!("failed before: {said} (--retry-failed makes it again)")
            }
            Outcome::Failed(said) => format!("failed: {said}"),
            Outcome::Killed(how) => {
                format!("ended from outside ({how}); the same command continues it")
            }
            Outcome::Stopped => return,
        };
        self.ended += 1;
        let line = format!("[{}/{}] {label}: {what}", self.ended, self.total);
        if let Some(table) = &self.table {
            table.total.set_position(self.ended as u64);
            table.total.set_message("");
            // The terminal may be gone; the runs go on.
            let _ = table.all.println(line);
        } else if self.lines {
            terminal::note(format_args!("{line}"));
        }
    }

    /// All runs have been told to stop.
    pub(super) fn stopping(&mut self) {
        // A table that is drawn again behind the terminal's `^C` is left on the screen twice.
        if let Some(table) = self.table.take() {
            table.all.set_draw_target(ProgressDrawTarget::hidden());
            self.lines = true;
            terminal::note(format_args!("\nstopping: runs save their checkpoints"));
        }
    }

    /// Clears the table from the screen.
    pub(super) fn finish(&mut self) {
        if let Some(table) = &self.table {
            let _ = table.all.clear();
        }
    }

    fn leave(&mut self, run: usize) {
        if let Some(bar) = self.table.as_mut().and_then(|table| table.rows.remove(&run)) {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
