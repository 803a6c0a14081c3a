//! What is proven of the largest element of each tensor, and what is observed, through a network.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lipschitz_nn::Error;
use lipschitz_plot::{Axis, Chart, Mark, Marker, Series};
use serde::Deserialize;
use serde_json::Value;

/// What `certify range --json` writes, as far as it is drawn.
#[derive(Deserialize)]
struct Found {
    number: String,
    end: f64,
    tensors: Vec<Value>,
}

/// The chart of files that `certify range --json` wrote: bounds as lines over the tensors of the
/// forward pass, observed values as markers, and the end of the format.
///
/// # Errors
/// [`Error::File`] names a file that is none, and for another number of names than of files.
pub fn chart(paths: &[PathBuf], names: &[String]) -> Result<Chart, Error> {
    let own = |path: &PathBuf| {
        path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
    };
    let names = super::names(paths, paths.iter().map(own).collect(), names)?;
    let mut series = Vec::new();
    let (mut ends, mut far) = (BTreeMap::new(), 1.0_f64);
    for (color, (path, name)) in paths.iter().zip(names).enumerate() {
        let found: Found = super::result(path, "certify range")?;
        let tensors = &found.tensors;
        let (mut proven, mut seen, mut titles) = (Vec::new(), Vec::new(), Vec::new());
        // What a linear map multiplies is the tensor before it.
        let shown = tensors.iter().filter(|t| t["stage"] != "operand");
        for (i, t) in shown.enumerate() {
            let at = i as f64 + 1.0;
            if let Some(log10) = t["largest"]["log10"].as_f64().filter(|x| x.is_finite()) {
                proven.push((at, log10));
                titles.push(t["name"].as_str().unwrap_or_default().to_string());
            }
            let observed = t["observed"].as_f64().map(f64::log10).filter(|x| x.is_finite());
            seen.extend(observed.map(|log10| (at, log10)));
        }
        far = far.max(proven.last().map_or(1.0, |point| point.0));
        ends.insert(found.number, found.end.log10());
        let mark = Mark::Filled(Marker::number(color));
        series.push(Series {
            name,
            color,
            mark: Mark::Line,
            points: proven,
            titles,
            ..Series::default()
        });
        series.push(Series { color, mark, points: seen, ..Series::default() });
    }
    let mut note = "lines: no input exceeds them; markers: the largest on data".to_string();
    for (i, (format, height)) in ends.into_iter().enumerate() {
        note = format!("{note}{} {format}", if i == 0 { "; grey: the end of" } else { " and of" });
        let points = vec![(1.0, height), (far, height)];
        series.push(Series { color: 7, mark: Mark::Thin, points, ..Series::default() });
    }
    Ok(Chart {
        title: "Largest element of each tensor".into(),
        note,
        x: Axis { label: "Tensor, in the order of the forward pass".into(), ..Axis::default() },
        y: Axis { label: "absolute value".into(), log10: true, ..Axis::default() },
        series,
        ..Chart::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_drawn_and_other_files_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        let tensor = |stage: &str, log10: f64, observed: Value| {
            serde_json::json!({"name": stage, "stage": stage, "largest": {"log10": log10},
                "observed": observed})
        };
        let tensors = [
            tensor("output", 1.0, 5.0.into()),
            tensor("operand", 1.0, Value::Null),
            tensor("query", 2.0, Value::Null),
        ];
        let text = serde_json::json!({"number": "e4m3", "end": 448.0, "tensors": tensors});
        std::fs::write(&file, text.to_string()).unwrap();
        let drawn = chart(std::slice::from_ref(&file), &[]).unwrap();
        assert_eq!(drawn.series[0].points, [(1.0, 1.0), (2.0, 2.0)]);
        assert_eq!(drawn.series[1].points.len(), 1);
        assert!(drawn.note.ends_with("e4m3"), "{}", drawn.note);
        super::super::write(&dir.path().join("r.svg"), &[drawn]).unwrap();
        for bad in ["{}", "[", "{\"tensors\": 1}"] {
            std::fs::write(&file, bad).unwrap();
            let said = chart(std::slice::from_ref(&file), &[]).unwrap_err().to_string();
            assert!(said.contains("no result of certify range"), "{said}");
        }
    }
}
