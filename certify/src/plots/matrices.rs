//! What training makes of the matrices: their norms beside the cap, their ranks, and what they lead to.

use std::path::PathBuf;

use lipschitz_nn::Error;
use lipschitz_plot::{Chart, Mark, Series};
use serde_json::{Map, Value};

use super::training::{chart, curves, largest_norm, of_matrices};

/// Charts from the `metrics.jsonl` of runs, or of the runs inside a directory: the largest norm of a
/// matrix over the cap σ_max of its run, the mean stable rank `‖W‖_F²/σ²` of all matrices, and the
/// largest activation. Runs without a cap, or without an end, are not in the first, and empty
/// charts are left out.
///
/// # Errors
/// [`Error::File`] names a directory without runs, or a line or a summary that is not JSON; and for
/// another number of names than of runs.
pub fn charts(paths: &[PathBuf], names: &[String]) -> Result<Vec<Chart>, Error> {
    let [mut norms, mut ranks, mut activations]: [Vec<Series>; 3] = [const { Vec::new() }; 3];
    for (color, run) in curves(paths, names)?.iter().enumerate() {
        let line = |points| run.series(color, Mark::Dashed, points);
        let ended = run.run.join("summary.json").is_file();
        let summary = ended.then(|| super::summary(&run.run)).transpose()?;
        let cap = summary.and_then(|summary| summary.get("sigma_max")?.as_f64());
        if let Some(cap) = cap.filter(|cap| *cap > 0.0) {
            norms.push(line(run.points(&|line| Some(largest_norm(line)? / cap))));
        }
        ranks.push(line(run.points(&mean_rank)));
        let log = |(step, x): (f64, f64)| Some((step, x.log10())).filter(|p| p.1.is_finite());
        activations.push(line(run.number("activation_max").into_iter().filter_map(log).collect()));
    }
    let all = [
        chart("Largest norm of a matrix", "over σ_max, RMS → RMS", false, norms),
        chart("Mean stable rank of matrices", "‖W‖_F² / σ²", false, ranks),
        chart("Largest activation", "absolute value", true, activations),
    ];
    Ok(all.into_iter().filter(|chart| !chart.is_empty()).collect())
}

/// The mean stable rank in a line, of matrices that are not zero.
fn mean_rank(line: &Map<String, Value>) -> Option<f64> {
    let ranks = of_matrices(line, "stable_rank");
    let ranks: Vec<f64> = ranks.into_iter().filter(|rank| *rank > 0.0).collect();
    (!ranks.is_empty()).then(|| ranks.iter().sum::<f64>() / ranks.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_over_the_cap_and_a_run_without_one_is_in_the_others() {
        let dir = tempfile::tempdir().unwrap();
        for (name, cap) in [("a", "2.0"), ("b", "null")] {
            let run = dir.path().join(name);
            std::fs::create_dir(&run).unwrap();
            let summary = format!(r#"{{"label":"{name}","sigma_max":{cap}}}"#);
            std::fs::write(run.join("summary.json"), summary).unwrap();
            let matrices =
                r#"{"x":{"norm":3.0,"stable_rank":4.0},"y":{"norm":1.0,"stable_rank":2.0},
                "z":{"norm":0.0,"stable_rank":0.0}}"#
                    .replace('\n', "");
            let line = |step: u32| {
                format!(r#"{{"step":{step},"activation_max":100.0,"matrices":{matrices}}}"#)
            };
            std::fs::write(run.join("metrics.jsonl"), [line(1), line(2)].join("\n")).unwrap();
        }
        let charts = charts(&[dir.path().to_path_buf()], &[]).unwrap();
        assert_eq!(charts.iter().map(|c| c.series.len()).collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!(charts[0].series[0].points, [(1.0, 1.5), (2.0, 1.5)]);
        assert_eq!(charts[1].series[1].points, [(1.0, 3.0), (2.0, 3.0)]);
        assert_eq!(charts[2].series[0].points, [(1.0, 2.0), (2.0, 2.0)]);
        super::super::write(&dir.path().join("m.svg"), &charts).unwrap();
    }
}
