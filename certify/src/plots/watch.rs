//! What `certify watch` logged, over the steps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lipschitz_nn::Error;
use lipschitz_plot::{Axis, Chart, Mark, Marker, Series};

use crate::upper::Upper;
use crate::watch::{self, Line};

/// The lines of a log.
///
/// # Errors
/// [`Error::File`] names a line that is none.
pub fn lines(log: &Path) -> Result<Vec<Line>, Error> {
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            Error::file(log, format!("line {} is no line of certify watch: {e}", number + 1))
        })
    };
    let text = super::read(log)?;
    // An empty line, or another one, ends one that was never finished.
    let last = text.lines().last();
    let cut = |line: &str| {
        Some(line) != last && serde_json::from_str::<Line>(line).is_err_and(|e| e.is_eof())
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !cut(line))
        .map(parse)
        .collect()
}

/// Charts of logs, or of the `watch.jsonl` in directories: the certified constant, the largest
/// possible logit, the largest possible element, and the largest norm of a matrix. Checkpoints without
/// a step are numbered in the order of the log. Empty charts are left out.
///
/// # Errors
/// [`Error::File`] names a log that cannot be read, and for another number of names than of logs.
pub fn charts(logs: &[PathBuf], names: &[String]) -> Result<Vec<Chart>, Error> {
    let [mut bounds, mut logits, mut ranges, mut norms] = [const { Vec::new() }; 4];
    let own = |log: &PathBuf| {
        let of = if log.is_dir() { Some(log.as_path()) } else { log.parent() };
        let name = of.and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        name.unwrap_or_else(|| log.display().to_string())
    };
    let names = super::names(logs, logs.iter().map(own).collect(), names)?;
    let mut runs: Vec<(String, Vec<Line>)> = Vec::new();
    for (log, label) in logs.iter().zip(&names) {
        let file = if log.is_dir() { log.join("watch.jsonl") } else { log.clone() };
        let mut own: BTreeMap<PathBuf, Vec<Line>> = BTreeMap::new();
        for line in lines(&file)? {
            own.entry(watch::run(Path::new(&line.path)).to_path_buf()).or_default().push(line);
        }
        let several = own.len() > 1;
        runs.extend(own.into_iter().map(|(run, lines)| {
            let name = run.file_name().map(|name| name.to_string_lossy().into_owned());
            let label = match name.filter(|_| several) {
                Some(name) => format!("{label}, {name}"),
                None => label.clone(),
            };
            (label, lines)
        }));
    }
    for (color, (label, lines)) in runs.iter().enumerate() {
        let points = |value: &dyn Fn(&Line) -> Option<Upper>| -> Vec<(f64, f64)> {
            let mut points: Vec<(f64, f64)> = lines
                .iter()
                .enumerate()
                .filter_map(|(i, line)| {
                    let step = line.step.map_or(i as f64 + 1.0, |step| step as f64);
                    Some((step, value(line)?.log10()))
                })
                .filter(|point| point.1.is_finite())
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let series = |points: Vec<(f64, f64)>| {
            let mark =
                if points.len() > 1 { Mark::Dashed } else { Mark::Filled(Marker::number(color)) };
            Series { label: label.clone(), color, mark, points, ..Series::default() }
        };
        bounds.push(series(points(&|line| Some(line.measured.lipschitz))));
        logits.push(series(points(&|line| line.measured.largest_logit)));
        ranges.push(series(points(&|line| Some(line.measured.range))));
        let largest = |line: &Line| {
            line.measured.norms.values().copied().reduce(f64::max).map(Upper::from_f64)
        };
        norms.push(series(points(&largest)));
    }
    let chart = |title: &str, label: &str, series: Vec<Series>| Chart {
        title: title.into(),
        x: Axis { label: "Step".into(), ..Axis::default() },
        y: Axis { label: label.into(), log10: true, robust: true, ..Axis::default() },
        series,
        ends: true,
        ..Chart::default()
    };
    let all = [
        chart("Certified Lipschitz constant", "L, RMS → RMS", bounds),
        chart("Largest possible logit of attention", "absolute value", logits),
        chart("Largest possible element of any tensor", "absolute value", ranges),
        chart("Largest norm of a matrix", "σ_max, RMS → RMS", norms),
    ];
    Ok(all.into_iter().filter(|chart| !chart.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gives_its_charts_and_a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("watch.jsonl");
        let line = |step: u64, l: f64| Line {
            format: crate::watch::FORMAT,
            time: 0.0,
            path: "a".into(),
            step: Some(step),
            asked: None,
            measured: crate::watch::Measured {
                weights_sha256: String::new(),
                lipschitz: Upper::from_f64(l),
                largest_logit: None,
                logits: Default::default(),
                range: Upper::from_f64(10.0),
                widest: "a".into(),
                norms: [("a.weight".to_string(), 1.0)].into(),
                proven: 1,
                reused: 0,
            },
            seconds: 0.1,
            breaches: Vec::new(),
        };
        let text = [line(2, 100.0), line(1, 10.0)]
            .map(|line| serde_json::to_string(&line).unwrap())
            .join("\n\n");
        std::fs::write(&file, &text).unwrap();
        let charts = charts(&[dir.path().to_path_buf()], &["it".into()]).unwrap();
        assert_eq!(charts.len(), 3, "there are no logits");
        let points = &charts[0].series[0].points;
        assert_eq!((points[0].0, points[1].0), (1.0, 2.0));
        assert!((points[1].1 - 2.0).abs() < 1e-9);
        super::super::write(&dir.path().join("w.svg"), &charts).unwrap();
        std::fs::write(&file, text + "\n{\"format\": 1").unwrap();
        let said = super::charts(&[file], &[]).unwrap_err().to_string();
        assert!(said.contains("line 4"), "{said}");
    }
}
