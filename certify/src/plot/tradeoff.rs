//! What a bound costs: runs as points, with the Pareto front.

use std::path::PathBuf;

use lipschitz_nn::Error;
use serde_json::{Map, Value};

use super::chart::{Axis, Chart, Mark, Series};

/// Runs with two of the figures of their `summary.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tradeoff {
    /// Key of the horizontal figure.
    pub x: String,
    /// Key of the vertical figure.
    pub y: String,
    /// The runs that have both.
    pub points: Vec<Point>,
    /// Directories of runs that lack one, as a run without a finite bound does.
    pub left_out: Vec<PathBuf>,
}

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its name.
    pub label: String,
    /// Optimizer and constraint.
    pub method: String,
    /// Horizontal figure.
    pub x: f64,
    /// Vertical figure.
    pub y: f64,
    /// log10 of the largest sensitivity found.
    pub found: Option<f64>,
    /// Whether no other run is at least as good in both and better in one.
    pub front: bool,
}

const CERTIFIED: &str = "lipschitz_log10";

impl Tradeoff {
    /// Reads `summary.json` of runs, or of the runs inside a directory.
    ///
    /// # Errors
    /// [`Error::File`] names a directory without runs, a file that is no summary, or a key that no run has.
    pub fn read(paths: &[PathBuf], x: &str, y: &str) -> Result<Self, Error> {
        let (mut points, mut left_out) = (Vec::new(), Vec::new());
        for run in super::runs(paths, "summary.json")? {
            let file = run.join("summary.json");
            let summary: Map<String, Value> = serde_json::from_str(&super::read(&file)?)
                .map_err(|e| Error::file(&file, format!("is no summary: {e}")))?;
            for key in [x, y] {
                if !summary.contains_key(key) {
                    let known: Vec<&str> = summary.keys().map(String::as_str).collect();
                    return Err(Error::file(&file, format!("has no figure `{key}`; it has {}", known.join(", "))));
                }
            }
            let text = |key: &str| summary.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
            let number = |key: &str| summary.get(key).and_then(Value::as_f64);
            match (number(x), number(y)) {
                (Some(x), Some(y)) => {
                    let (label, method, found) = (text("label"), text("method"), number("found_log10"));
                    points.push(Point { label, method, x, y, found, front: false });
                }
                _ => left_out.push(run),
            }
        }
        let mut tradeoff = Self { x: x.into(), y: y.into(), points, left_out };
        tradeoff.mark_front();
        Ok(tradeoff)
    }

    /// Smaller is better, but for accuracies.
    fn cost(key: &str, value: f64) -> f64 {
        if key.contains("accuracy") { -value } else { value }
    }

    fn mark_front(&mut self) {
        let costs: Vec<(f64, f64)> =
            self.points.iter().map(|p| (Self::cost(&self.x, p.x), Self::cost(&self.y, p.y))).collect();
        for (point, (x, y)) in self.points.iter_mut().zip(&costs) {
            point.front = !costs.iter().any(|(a, b)| a <= x && b <= y && (a < x || b < y));
        }
    }

    /// The picture: a colour a method, the front as a line, and from each certified constant a thin line to the largest
    /// sensitivity found.
    pub fn chart(&self) -> Chart {
        let mut methods: Vec<&str> = self.points.iter().map(|p| p.method.as_str()).collect();
        methods.sort_unstable();
        methods.dedup();
        let mut front: Vec<(f64, f64)> = self.points.iter().filter(|p| p.front).map(|p| (p.x, p.y)).collect();
        front.sort_by(|a, b| a.0.total_cmp(&b.0));
        let grey = 6;
        let mut series = Vec::new();
        if front.len() > 1 {
            series.push(Series {
                name: "Pareto front".into(),
                color: grey,
                mark: Mark::Thin,
                points: front,
                ..Series::default()
            });
        }
        let mut found = Vec::new();
        for (color, method) in methods.iter().enumerate() {
            let own = || self.points.iter().filter(|p| p.method == *method);
            for point in own().filter(|_| self.x == CERTIFIED) {
                let Some(lower) = point.found else { continue };
                found.push((lower, point.y));
                let points = vec![(lower, point.y), (point.x, point.y)];
                series.push(Series { color, points, ..Series::default() });
            }
            series.push(Series {
                name: (*method).into(),
                color,
                mark: Mark::Disc,
                points: own().map(|p| (p.x, p.y)).collect(),
                labels: own().map(|p| p.label.clone()).collect(),
            });
        }
        if !found.is_empty() {
            let name = "largest sensitivity found".into();
            series.push(Series { name, color: grey, mark: Mark::Ring, points: found, labels: Vec::new() });
        }
        let title = format!("{} against {}", phrase(&self.y), phrase(&self.x));
        Chart { title: capital(&title), x: axis(&self.x), y: axis(&self.y), series }
    }

    /// The points as CSV (RFC 4180).
    pub fn csv(&self) -> String {
        let mut text = format!("label,method,{},{},pareto\n", self.x, self.y);
        for p in &self.points {
            text += &format!("{},{},{},{},{}\n", field(&p.label), field(&p.method), p.x, p.y, p.front);
        }
        text
    }
}

fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

/// What a key of `summary.json` means, in words.
fn phrase(key: &str) -> String {
    match key {
        "lipschitz_log10" => "certified Lipschitz constant",
        "found_log10" => "largest sensitivity found",
        "val_loss" => "validation loss",
        "val_accuracy" => "validation accuracy",
        "sigma_max" => "cap on every matrix",
        "target" => "Lipschitz constant asked for",
        other => return other.replace('_', " "),
    }
    .into()
}

fn axis(key: &str) -> Axis {
    let unit = match key {
        "lipschitz_log10" | "found_log10" | "target" | "sigma_max" => ", RMS → RMS",
        "val_loss" => ", nats",
        _ => "",
    };
    Axis { label: format!("{}{unit}", capital(&phrase(key))), log10: key.ends_with("_log10") }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &std::path::Path, name: &str, l: Value, loss: f64) {
        std::fs::create_dir(dir.join(name)).unwrap();
        let summary = serde_json::json!({
            "label": name, "method": if name < "c" { "one, \"two\"" } else { "three" },
            "lipschitz_log10": l, "found_log10": 0.1, "val_loss": loss, "val_accuracy": 1.0 - loss / 10.0,
        });
        std::fs::write(dir.join(name).join("summary.json"), summary.to_string()).unwrap();
    }

    #[test]
    fn the_front_and_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let runs: [(&str, Value, f64); 5] = [
            ("a", 1.0.into(), 3.0),
            ("b", 2.0.into(), 2.0),
            ("c", 2.5.into(), 2.5),
            ("d", 40.0.into(), 1.0),
            ("e", Value::Null, 0.5),
        ];
        runs.into_iter().for_each(|(name, l, loss)| write(dir.path(), name, l, loss));
        let paths = [dir.path().to_path_buf()];
        for y in ["val_loss", "val_accuracy"] {
            let t = Tradeoff::read(&paths, "lipschitz_log10", y).unwrap();
            assert_eq!(t.points.iter().map(|p| p.front).collect::<Vec<_>>(), [true, true, false, true], "{y}");
            assert_eq!(t.left_out, [dir.path().join("e")]);
        }
        let t = Tradeoff::read(&paths, "lipschitz_log10", "val_loss").unwrap();
        let csv = t.csv();
        assert!(
            csv.starts_with("label,method,lipschitz_log10,val_loss,pareto\na,\"one, \"\"two\"\"\",1,3,true\n"),
            "{csv}"
        );
        let chart = t.chart();
        assert_eq!(chart.series[0].points, [(1.0, 3.0), (2.0, 2.0), (40.0, 1.0)]);
        super::super::chart::write(&dir.path().join("p.png"), &[chart]).unwrap();
        let error = Tradeoff::read(&paths, "lipschitz", "val_loss").unwrap_err().to_string();
        assert!(error.contains("no figure `lipschitz`; it has") && error.contains("lipschitz_log10"), "{error}");
        let error = Tradeoff::read(&[dir.path().join("a").join("x")], "a", "b").unwrap_err().to_string();
        assert!(error.contains("/x"), "{error}");
    }
}
