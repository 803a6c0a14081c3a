//! Training curves: losses, certified constant and norms over the steps.

use std::path::{Path, PathBuf};

use lipschitz_nn::Error;
use serde_json::{Map, Value};

use lipschitz_plot::{Axis, Chart, Mark, Marker, Series};

/// The lines of a run's `metrics.jsonl`.
///
/// # Errors
/// [`Error::File`] names a line that is not JSON.
pub fn metrics(run: &Path) -> Result<Vec<Map<String, Value>>, Error> {
    let file = run.join("metrics.jsonl");
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| Error::file(&file, format!("line {} is no metrics line: {e}", number + 1)))
    };
    super::read(&file)?.lines().enumerate().map(parse).collect()
}

/// Charts from the `metrics.jsonl` of runs, or of the runs inside a directory: the losses, the
/// certified constant, the largest norm of a matrix, and the norm of the gradient. Empty charts are
/// left out.
///
/// # Errors
/// [`Error::File`] names a directory without runs, or a line that is not JSON.
pub fn charts(paths: &[PathBuf]) -> Result<Vec<Chart>, Error> {
    named_charts(paths, &[])
}

/// [`charts`] of runs with the given names, in the order of the runs; without names, with their own.
///
/// # Errors
/// As [`charts`], and for another number of names than of runs.
pub fn named_charts(paths: &[PathBuf], names: &[String]) -> Result<Vec<Chart>, Error> {
    let [mut losses, mut bounds, mut norms, mut gradients] = [const { Vec::new() }; 4];
    for (color, run) in curves(paths, names)?.iter().enumerate() {
        let text = &run.name;
        let number = |key: &str| run.number(key);
        let named = |mark: Mark, points: Vec<(f64, f64)>| run.series(color, mark, points);
        let plain = |mark: Mark, points: Vec<(f64, f64)>| Series {
            color,
            mark,
            points,
            ..Series::default()
        };
        losses.push(plain(Mark::Thin, number("train_loss")));
        let evaluated = number("val_loss");
        if (2..=20).contains(&evaluated.len()) {
            losses.push(plain(Mark::Filled(Marker::number(color)), evaluated.clone()));
        }
        if evaluated.is_empty() {
            // The name is where there is a line, also of a run that was never evaluated.
            if let Some(batches) = losses.last_mut() {
                batches.label.clone_from(text);
            }
        }
        losses.push(named(Mark::Dashed, evaluated));
        // Older lines have the logarithm under the name of the constant.
        let bound = |line: &Map<String, Value>| {
            let logs = ["lipschitz_log10", "lipschitz"].map(|key| line.get(key)?.as_f64());
            logs.into_iter().flatten().next()
        };
        bounds.push(named(Mark::Dashed, run.points(&bound)));
        norms.push(named(Mark::Dashed, run.points(&largest_norm)));
        let log = |(step, norm): (f64, f64)| Some((step, norm.log10())).filter(|p| p.1.is_finite());
        gradients
            .push(named(Mark::Dashed, number("grad_norm").into_iter().filter_map(log).collect()));
    }
    let seen = |mark: fn(Mark) -> bool| losses.iter().any(|s| mark(s.mark) && !s.points.is_empty());
    let batches = seen(|mark| mark == Mark::Thin).then_some("pale: batches of training");
    let split = seen(|mark| mark != Mark::Thin).then_some("strong: the whole held-out split");
    let note = batches.into_iter().chain(split).collect::<Vec<_>>().join("; ");
    let mut loss = chart("Loss", "Cross-entropy, nats", false, losses);
    loss.note = note;
    let all = [
        loss,
        chart("Certified Lipschitz constant", "L, RMS → RMS", true, bounds),
        chart("Largest norm of a matrix", "σ_max, RMS → RMS", false, norms),
        chart("Norm of the gradient", "ℓ2", true, gradients),
    ];
    Ok(all.into_iter().filter(|chart| !chart.is_empty()).collect())
}

/// A run over its steps.
pub(super) struct Curve {
    /// Its directory.
    pub(super) run: PathBuf,
    /// Its name in a chart.
    pub(super) name: String,
    lines: Vec<Map<String, Value>>,
}

impl Curve {
    /// A number of every line that has it, over the steps.
    pub(super) fn points(
        &self,
        value: &dyn Fn(&Map<String, Value>) -> Option<f64>,
    ) -> Vec<(f64, f64)> {
        let point = |line| Some((Map::get(line, "step")?.as_f64()?, value(line)?));
        self.lines.iter().filter_map(point).collect()
    }

    /// The number under a key.
    pub(super) fn number(&self, key: &str) -> Vec<(f64, f64)> {
        self.points(&|line| line.get(key).and_then(Value::as_f64))
    }

    /// A line with its name; one point is a marker.
    pub(super) fn series(&self, color: usize, mark: Mark, points: Vec<(f64, f64)>) -> Series {
        let mark = if points.len() > 1 { mark } else { Mark::Filled(Marker::number(color)) };
        Series { label: self.name.clone(), color, mark, points, ..Series::default() }
    }
}

/// Runs over their steps, with the given names or their own.
///
/// # Errors
/// As [`charts`].
pub(super) fn curves(paths: &[PathBuf], names: &[String]) -> Result<Vec<Curve>, Error> {
    let runs = super::runs(paths, "metrics.jsonl")?;
    let names = super::names(&runs, runs.iter().map(|run| name(run)).collect(), names)?;
    let curve = |(run, name): (PathBuf, String)| Ok(Curve { lines: metrics(&run)?, name, run });
    runs.into_iter().zip(names).map(curve).collect()
}

/// A chart over the steps.
pub(super) fn chart(title: &str, label: &str, log10: bool, series: Vec<Series>) -> Chart {
    Chart {
        title: title.into(),
        x: Axis { label: "Step".into(), ..Axis::default() },
        y: Axis { label: label.into(), log10, robust: true, ..Axis::default() },
        series,
        ends: true,
        ..Chart::default()
    }
}

/// A number of every matrix in a line.
pub(super) fn of_matrices(line: &Map<String, Value>, key: &str) -> Vec<f64> {
    let matrices = line.get("matrices").and_then(Value::as_object);
    let numbers = matrices.into_iter().flat_map(Map::values);
    numbers.filter_map(|matrix| matrix.get(key)?.as_f64()).collect()
}

/// The largest norm of a matrix in a line.
pub(super) fn largest_norm(line: &Map<String, Value>) -> Option<f64> {
    of_matrices(line, "norm").into_iter().reduce(f64::max)
}

/// The name of a run: that in its summary, or else that of its directory.
fn name(run: &Path) -> String {
    let label = super::summary(run).ok().and_then(|s| s.get("label")?.as_str().map(str::to_string));
    label.unwrap_or_else(|| {
        run.file_name()
            .map_or_else(|| run.display().to_string(), |n| n.to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_its_charts_and_a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.jsonl");
        let lines = [
            r#"{"step":1,"train_loss":3.0,"val_loss":null,"lipschitz":0.5,"matrices":MATRICES}"#
                .replace("MATRICES", r#"{"a":{"norm":1.0},"b":{"norm":2.0}}"#),
            r#"{"step":2,"train_loss":2.0,"val_loss":2.5,"lipschitz_log10":1.5,"matrices":MATRICES}"#
                .replace("MATRICES", r#"{"a":{"norm":4.0},"b":{"norm":2.0}}"#),
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        let charts = charts(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!(charts.len(), 3, "there are no gradients");
        assert_eq!(charts[0].series[0].points, [(1.0, 3.0), (2.0, 2.0)]);
        assert_eq!(charts[0].series[1].points, [(2.0, 2.5)]);
        assert_eq!(charts[0].note, "pale: batches of training; strong: the whole held-out split");
        let label = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(charts[0].series[1].label, super::super::words(&label));
        let named = named_charts(&[dir.path().to_path_buf()], &["my_name".into()]).unwrap();
        assert_eq!(named[1].series[0].label, "my_name");
        assert_eq!(charts[1].series[0].points, [(1.0, 0.5), (2.0, 1.5)], "by either name");
        assert_eq!(charts[2].series[0].points, [(1.0, 2.0), (2.0, 4.0)]);
        super::super::write(&dir.path().join("t.svg"), &charts).unwrap();
        std::fs::write(&file, "{}\n{").unwrap();
        assert!(
            super::charts(&[dir.path().to_path_buf()]).unwrap_err().to_string().contains("line 2")
        );
    }
}
