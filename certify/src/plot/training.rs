//! How runs went: loss and certified constant over the steps.

use std::path::PathBuf;

use lipschitz_nn::Error;
use serde_json::{Map, Value};

use super::chart::{Axis, Chart, Mark, Series};

/// Two charts from the `metrics.jsonl` of runs, or of the runs inside a directory: the losses, and the certified
/// constant.
///
/// # Errors
/// [`Error::File`] names a directory without runs, or a line that is no JSON.
pub fn charts(paths: &[PathBuf]) -> Result<Vec<Chart>, Error> {
    let (mut losses, mut bounds) = (Vec::new(), Vec::new());
    for (color, run) in super::runs(paths, "metrics.jsonl")?.iter().enumerate() {
        let file = run.join("metrics.jsonl");
        let mut lines: Vec<Map<String, Value>> = Vec::new();
        for (number, line) in super::read(&file)?.lines().enumerate() {
            lines.push(
                serde_json::from_str(line)
                    .map_err(|e| Error::file(&file, format!("line {} is no metrics line: {e}", number + 1)))?,
            );
        }
        let series = |key: &str, name: String, mark: Mark| {
            let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
            let points = lines.iter().filter_map(|line| Some((number(line, "step")?, number(line, key)?))).collect();
            Series { name, color, mark, points, labels: Vec::new() }
        };
        let name = run.file_name().map_or_else(|| run.display().to_string(), |n| n.to_string_lossy().into_owned());
        losses.push(series("train_loss", String::new(), Mark::Thin));
        losses.push(series("val_loss", name.clone(), Mark::Line));
        losses.push(series("val_loss", String::new(), Mark::Disc));
        bounds.push(series("lipschitz", name, Mark::Line));
    }
    let steps = Axis { label: "Step".into(), log10: false };
    let loss = Chart {
        title: "Loss: thin on training batches, thick on the held-out split".into(),
        x: steps.clone(),
        y: Axis { label: "Cross-entropy, nats".into(), log10: false },
        series: losses,
    };
    let bound = Chart {
        title: "Certified Lipschitz constant".into(),
        x: steps,
        y: Axis { label: "L, RMS → RMS".into(), log10: true },
        series: bounds,
    };
    // Runs without any finite bound leave one chart.
    let drawn = |chart: &Chart| chart.series.iter().any(|s| !s.points.is_empty());
    Ok([loss, bound].into_iter().filter(drawn).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_two_charts_and_a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.jsonl");
        let lines = [
            r#"{"step":1,"train_loss":3.0,"val_loss":null,"lipschitz":0.5}"#,
            r#"{"step":2,"train_loss":2.0,"val_loss":2.5,"lipschitz":null}"#,
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        let charts = charts(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!(charts[0].series[0].points, [(1.0, 3.0), (2.0, 2.0)]);
        assert_eq!(charts[0].series[1].points, [(2.0, 2.5)]);
        assert_eq!(charts[1].series[0].points, [(1.0, 0.5)]);
        super::super::chart::write(&dir.path().join("t.svg"), &charts).unwrap();
        std::fs::write(&file, "{}\n{").unwrap();
        assert!(super::charts(&[dir.path().to_path_buf()]).unwrap_err().to_string().contains("line 2"));
    }
}
