//! What a bound costs: runs as points, with one Pareto front per method.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lipschitz_nn::{Error, text};
use serde_json::{Map, Value};

use lipschitz_plot::scene::GREY;
use lipschitz_plot::{Axis, Chart, Mark, Marker, Series, Spread};

use crate::terminal::places;

/// The first columns of [`Tradeoff::csv`].
pub const COLUMNS: &str = "label,optimizer,constraint,seeds";

/// Runs with two metrics of their `summary.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tradeoff {
    /// Key of the horizontal metric.
    pub x: String,
    /// Key of the vertical metric.
    pub y: String,
    /// The key of the config that gives the colour, such as `model.heads`; without one, the
    /// constraint gives it.
    pub color: Option<String>,
    /// The runs that have both metrics; runs that differ only in their seed are one point.
    pub points: Vec<Point>,
    /// Directories of runs that lack a metric, such as runs without a finite bound.
    pub left_out: Vec<PathBuf>,
}

/// A run, or several that differ only in their seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The name of the first run.
    pub label: String,
    /// The optimizer.
    pub optimizer: String,
    /// The constraint.
    pub constraint: String,
    /// What its colour and front stand for: the constraint, or the value of the config at
    /// [`Tradeoff::color`].
    pub color: String,
    /// Horizontal metric, the mean over the runs.
    pub x: f64,
    /// Vertical metric, the mean over the runs.
    pub y: f64,
    /// Lowest and highest value of both.
    pub spread: Spread,
    /// Number of runs.
    pub runs: usize,
    /// log10 of the largest sensitivity found, the mean over the runs.
    pub found: Option<f64>,
    /// Whether it is on the Pareto front: no other point of its colour is at least as good in both
    /// metrics and better in one.
    pub front: bool,
}

const CERTIFIED: &str = "lipschitz_log10";

/// The largest number of points for which each has its name beside it.
const FEW: usize = 12;

/// A run as read from its directory.
struct RunFigures {
    path: PathBuf,
    group: String,
    label: String,
    optimizer: String,
    constraint: String,
    color: String,
    figures: (f64, f64),
    found: Option<f64>,
}

impl Tradeoff {
    /// Reads the `summary.json` of runs, or of the runs inside a directory.
    ///
    /// # Errors
    /// [`Error::File`] names a directory without runs, a file that is not a summary, a config that
    /// cannot be read, or a key that no run has.
    pub fn read(paths: &[PathBuf], x: &str, y: &str, color: Option<&str>) -> Result<Self, Error> {
        Self::read_named(paths, x, y, color, &[])
    }

    /// [`Tradeoff::read`] of runs with the given names, in the order of the runs; without names,
    /// with their own.
    ///
    /// # Errors
    /// As [`Tradeoff::read`], and for another number of names than of runs.
    pub fn read_named(
        paths: &[PathBuf],
        x: &str,
        y: &str,
        color: Option<&str>,
        names: &[String],
    ) -> Result<Self, Error> {
        let (mut runs, mut left_out) = (Vec::new(), Vec::new());
        let (mut known, mut having) = (BTreeSet::new(), [false; 2]);
        let found = super::runs(paths, "summary.json")?;
        // That as many are given as there are runs.
        super::names(&found, Vec::new(), names)?;
        for (i, path) in found.iter().enumerate() {
            let mut summary = super::summary(path)?;
            if let Some(name) = names.get(i) {
                summary.insert("label".into(), name.as_str().into());
            }
            for (key, having) in [x, y].iter().zip(&mut having) {
                *having |= summary.contains_key(*key);
            }
            match run(path, &summary, x, y) {
                Some(run) => runs.push(match color {
                    Some(key) => colored(run, key)?,
                    None => run,
                }),
                None => left_out.push(path.clone()),
            }
            known.extend(
                summary.into_iter().filter(|(_, value)| value.is_number()).map(|(key, _)| key),
            );
        }
        for (key, having) in [x, y].iter().zip(having) {
            if !having {
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                let file =
                    found.first().map_or_else(PathBuf::new, |path| path.join("summary.json"));
                return Err(Error::file(
                    &file,
                    format!("has no figure `{key}`, nor have other runs; there are {known}"),
                ));
            }
        }
        if let (Some(key), Some(run)) = (color, runs.first())
            && runs.iter().all(|run| run.color == NOT_SET)
        {
            let what = format!(
                "has no key `{key}` in its config, nor have other runs; name one as `model.heads`"
            );
            return Err(Error::file(&run.path, what));
        }
        let color = color.map(String::from);
        let mut points = points(runs);
        if names.is_empty() {
            let own = points.iter().map(|point| point.label.clone()).collect();
            for (point, name) in points.iter_mut().zip(super::names(&[], own, &[])?) {
                point.label = name;
            }
        }
        let mut tradeoff = Self { x: x.into(), y: y.into(), color, points, left_out };
        tradeoff.mark_fronts();
        Ok(tradeoff)
    }

    /// A value that is better when smaller: accuracies change their sign.
    fn cost(key: &str, value: f64) -> f64 {
        if key.contains("accuracy") { -value } else { value }
    }

    fn mark_fronts(&mut self) {
        let costs: Vec<(String, f64, f64)> = self
            .points
            .iter()
            .map(|p| (p.color.clone(), Self::cost(&self.x, p.x), Self::cost(&self.y, p.y)))
            .collect();
        for (point, (own, x, y)) in self.points.iter_mut().zip(&costs) {
            let better = |(other, a, b): &(String, f64, f64)| {
                other == own && a <= x && b <= y && (a < x || b < y)
            };
            point.front = !costs.iter().any(better);
        }
    }

    /// The plot: one colour per constraint (or value of the config's key), one marker per
    /// optimizer, and the Pareto front of each colour as a line. With few points, it shows their
    /// names, and a thin line from each certified constant to the largest sensitivity found.
    pub fn chart(&self) -> Chart {
        let names =
            |name: fn(&Point) -> &String| self.points.iter().map(name).collect::<BTreeSet<_>>();
        let (colors, optimizers) = (names(|p| &p.color), names(|p| &p.optimizer));
        // The fronts of all colours lie behind the points of all colours.
        let (mut lines, mut marks, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (color, what) in colors.iter().enumerate() {
            let own: Vec<&Point> = self.points.iter().filter(|p| p.color == **what).collect();
            let (front, name) = self.front(color, what, &own, colors.len());
            lines.push(front);
            for (lower, point) in self.found(&own) {
                found.push((lower, point.y));
                let points = vec![(lower, point.y), (point.x, point.y)];
                lines.push(Series { color, points, mark: Mark::Thin, ..Series::default() });
            }
            let first = marks.len();
            for (shape, optimizer) in optimizers.iter().enumerate() {
                let own: Vec<&Point> =
                    own.iter().copied().filter(|p| p.optimizer == **optimizer).collect();
                marks.push(self.marks(color, shape, &own));
            }
            // A front of one point is no line, so the points have the name.
            if let Some(marks) = marks[first..].iter_mut().find(|marks| !marks.points.is_empty()) {
                marks.name = name;
            }
        }
        if !found.is_empty() {
            let name = "largest sensitivity found".into();
            let mark = Mark::Open(Marker::Disc);
            marks.push(Series { name, color: GREY, mark, points: found, ..Series::default() });
        }
        let shapes = optimizers.iter().enumerate().filter(|_| optimizers.len() > 1);
        let shapes = shapes
            .map(|(shape, optimizer)| (optimizer.to_string(), Mark::Filled(Marker::number(shape))));
        Chart {
            title: capital(&format!("{} against {}", phrase(&self.y), phrase(&self.x))),
            note: self.note(&optimizers, lines.iter().any(is_front)),
            x: axis(&self.x),
            y: axis(&self.y),
            series: lines.into_iter().chain(marks).collect(),
            legend: shapes.collect(),
            ..Chart::default()
        }
    }

    /// Whether each point has its name beside it.
    fn few(&self) -> bool {
        self.points.len() <= FEW
    }

    /// The Pareto front of a colour, of which there are `colors`, and a name that it leaves to its
    /// points.
    fn front(&self, color: usize, what: &str, own: &[&Point], colors: usize) -> (Series, String) {
        let mut points: Vec<(f64, f64)> =
            own.iter().filter(|p| p.front).map(|p| (p.x, p.y)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Where points have their names, the names of colours are in the legend.
        let listed = self.few() || colors == 1;
        let (name, label) = if listed { (what, "") } else { ("", what) };
        let (name, of_points) = if points.len() > 1 { (name, "") } else { ("", name) };
        let (name, label) = (name.into(), label.into());
        let front = Series { name, label, color, mark: Mark::Dashed, points, ..Series::default() };
        (front, of_points.into())
    }

    /// Points with the largest sensitivity found, where the plot shows it.
    fn found<'a>(&self, own: &[&'a Point]) -> Vec<(f64, &'a Point)> {
        if !(self.few() && self.x == CERTIFIED) {
            return Vec::new();
        }
        own.iter().filter_map(|point| Some((point.found?, *point))).collect()
    }

    /// The points of a colour and an optimizer.
    fn marks(&self, color: usize, shape: usize, own: &[&Point]) -> Series {
        let own = || own.iter();
        let label = |p: &&Point| if self.few() { p.label.clone() } else { String::new() };
        Series {
            color,
            mark: Mark::Filled(Marker::number(shape)),
            points: own().map(|p| (p.x, p.y)).collect(),
            labels: own().map(label).collect(),
            titles: own().map(|p| self.title(p)).collect(),
            spread: own().map(|p| p.spread).collect(),
            ..Series::default()
        }
    }

    /// What colours, lines and bars mean.
    fn note(&self, optimizers: &BTreeSet<&String>, fronts: bool) -> String {
        let mut note = Vec::new();
        if optimizers.len() == 1 {
            note.push(optimizers.iter().map(|name| format!("optimizer: {name}")).collect());
        }
        if let Some(key) = &self.color {
            note.push(format!("colour: {}", super::key_in_words(key)));
        }
        if fronts {
            let of = if self.color.is_some() { "each colour" } else { "a method" };
            note.push(format!("line: Pareto front of {of}"));
        }
        if self.points.iter().any(|p| p.runs > 1) {
            note.push("points: means over seeds; bars: their range".into());
        }
        note.join("; ")
    }

    fn title(&self, p: &Point) -> String {
        let seeds = if p.runs > 1 { format!(", mean of {} seeds", p.runs) } else { String::new() };
        format!(
            "{} ({}, {}){seeds}: {} {}, {} {}",
            p.label,
            p.optimizer,
            p.constraint,
            phrase(&self.x),
            shown(&self.x, p.x),
            phrase(&self.y),
            shown(&self.y, p.y)
        )
    }

    /// The points as CSV (RFC 4180), of [`COLUMNS`] and others, one line per point: means, lowest and highest values over
    /// seeds.
    pub fn csv(&self) -> String {
        let [x, y] = [&self.x, &self.y].map(|key| field(key));
        let mut text = format!("{COLUMNS},{x},{x}_low,{x}_high,{y},{y}_low,{y}_high,pareto\n");
        for p in &self.points {
            let names = [&p.label, &p.optimizer, &p.constraint].map(|name| field(name)).join(",");
            let (a, b) = (p.spread.x, p.spread.y);
            text += &format!(
                "{names},{},{},{},{},{},{},{},{}\n",
                p.runs, p.x, a.0, a.1, p.y, b.0, b.1, p.front
            );
        }
        text
    }
}

/// A run coloured by a key of its config. Runs of two colours are two points, even if they differ
/// in nothing else than their seed.
fn colored(run: RunFigures, key: &str) -> Result<RunFigures, Error> {
    let color = configured(&config(&run.path)?, key);
    Ok(RunFigures { group: format!("{color}\n{}", run.group), color, ..run })
}

/// A run, if it has both figures.
fn run(path: &Path, summary: &Map<String, Value>, x: &str, y: &str) -> Option<RunFigures> {
    let text = |key: &str| summary.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let number = |key: &str| summary.get(key).and_then(Value::as_f64).filter(|x| x.is_finite());
    let figures = (number(x)?, number(y)?);
    let (optimizer, constraint) = super::method(summary);
    let group =
        config(path).ok().and_then(without_seed).unwrap_or_else(|| path.display().to_string());
    let (path, label) = (path.to_path_buf(), text("label"));
    let color = constraint.clone();
    Some(RunFigures {
        path,
        group,
        label,
        optimizer,
        constraint,
        color,
        figures,
        found: number("found_log10"),
    })
}

/// The colour of runs whose config lacks the key.
const NOT_SET: &str = "not set";

/// The value of a config at a path such as `model.heads`.
fn configured(config: &toml::Table, key: &str) -> String {
    let mut parts = key.split('.');
    let first = parts.next().and_then(|part| config.get(part));
    let value = parts.fold(first, |value, part| value?.get(part));
    let last = super::key_in_words(key.rsplit('.').next().unwrap_or(key));
    match value {
        None => NOT_SET.into(),
        Some(toml::Value::String(text)) => format!("{last}: {}", text.replace('_', " ")),
        Some(value) => format!("{last}: {value}"),
    }
}

/// The config of a run.
fn config(path: &Path) -> Result<toml::Table, Error> {
    let file = path.join("config.toml");
    let text = text::read(&file, "a config")?;
    toml::from_str(&text).map_err(|e| Error::file(&file, places::syntax(&text, &e)))
}

/// A config without its seed and device.
fn without_seed(mut config: toml::Table) -> Option<String> {
    let train = config.get_mut("train")?.as_table_mut()?;
    ["seed", "device"].iter().for_each(|key| drop(train.remove(*key)));
    toml::to_string(&config).ok()
}

/// Groups runs of the same config, in the order of the first run of each group.
fn points(runs: Vec<RunFigures>) -> Vec<Point> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<RunFigures>> = Vec::new();
    for run in runs {
        let place = *places.entry(run.group.clone()).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(run);
    }
    let point = |group: Vec<RunFigures>| {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let range = |values: &[f64]| {
            values
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(*x), h.max(*x)))
        };
        let xs: Vec<f64> = group.iter().map(|run| run.figures.0).collect();
        let ys: Vec<f64> = group.iter().map(|run| run.figures.1).collect();
        let found: Vec<f64> = group.iter().filter_map(|run| run.found).collect();
        let first = group.into_iter().next()?;
        Some(Point {
            label: if xs.len() > 1 { without_its_seed(&first.label) } else { first.label },
            optimizer: first.optimizer,
            constraint: first.constraint,
            color: first.color,
            x: mean(&xs),
            y: mean(&ys),
            spread: Spread { x: range(&xs), y: range(&ys) },
            runs: xs.len(),
            found: Some(mean(&found)).filter(|x| x.is_finite()),
            front: false,
        })
    };
    groups.into_iter().filter_map(point).collect()
}

/// The name of a run in a sweep, without its seed.
fn without_its_seed(label: &str) -> String {
    let parts: Vec<&str> = label.split(", ").filter(|part| !part.starts_with("seed=")).collect();
    if parts.is_empty() { label.into() } else { parts.join(", ") }
}

fn is_front(series: &Series) -> bool {
    series.mark == Mark::Dashed && series.points.len() > 1
}

/// A cell that holds a name. A spreadsheet takes a text that begins like a formula for one, and runs
/// it; behind an apostrophe it stays a text. Numbers stay numbers.
fn field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    let number = text.parse::<f64>().is_ok_and(f64::is_finite);
    let text = &if formula && !number { format!("'{text}") } else { text.to_string() };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

/// A value of `summary.json`; of a logarithm, what it is the logarithm of.
fn shown(key: &str, value: f64) -> String {
    if key.ends_with("_log10") { format!("10^{value:.4}") } else { format!("{value:.5}") }
}

/// A key of `summary.json` in words.
pub(super) fn phrase(key: &str) -> String {
    match key {
        "lipschitz_log10" => "certified Lipschitz constant",
        "found_log10" => "largest sensitivity found",
        "margin_normalized_log10" => "certified margin-normalised constant",
        "val_loss" => "validation loss",
        "val_accuracy" => "validation accuracy",
        "paper_loss" => "loss by the published protocol",
        "paper_accuracy" => "accuracy by the published protocol",
        "certified_accuracy" => "certified accuracy at ε = 36/255",
        "sigma_max" => "cap on every matrix",
        "target" => "Lipschitz constant asked for",
        other => return other.replace('_', " "),
    }
    .into()
}

fn axis(key: &str) -> Axis {
    let unit = match key {
        "lipschitz_log10" => " L, RMS → RMS",
        "found_log10" | "target" | "sigma_max" => ", RMS → RMS",
        "margin_normalized_log10" => ": of margins, over their median, 1/ℓ2",
        "val_loss" | "paper_loss" => ", nats",
        _ => "",
    };
    let label = format!("{}{unit}", capital(&phrase(key)));
    Axis { label, log10: key.ends_with("_log10"), ..Axis::default() }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, l: Value, loss: f64, constraint: &str) {
        std::fs::create_dir(dir.join(name)).unwrap();
        let summary = serde_json::json!({
            "label": name, "method": format!("Muon + {constraint}"), "lipschitz_log10": l,
            "found_log10": 0.1, "val_loss": loss, "val_accuracy": 1.0 - loss / 10.0,
        });
        std::fs::write(dir.join(name).join("summary.json"), summary.to_string()).unwrap();
    }

    #[test]
    fn a_front_for_each_method_and_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let runs: [(&str, Value, f64, &str); 6] = [
            ("a", 1.0.into(), 3.0, "one, \"two\""),
            ("b", 2.0.into(), 2.0, "one, \"two\""),
            ("c", 2.5.into(), 2.5, "one, \"two\""),
            ("d", 40.0.into(), 1.0, "one, \"two\""),
            ("e", Value::Null, 0.5, "three"),
            ("f", 3.0.into(), 2.9, "three"),
        ];
        runs.into_iter()
            .for_each(|(name, l, loss, constraint)| write(dir.path(), name, l, loss, constraint));
        let paths = [dir.path().to_path_buf()];
        for y in ["val_loss", "val_accuracy"] {
            let t = Tradeoff::read(&paths, "lipschitz_log10", y, None).unwrap();
            let fronts: Vec<bool> = t.points.iter().map(|p| p.front).collect();
            assert_eq!(fronts, [true, true, false, true, true], "{y}");
            assert_eq!(t.left_out, [dir.path().join("e")]);
        }
        let t = Tradeoff::read(&paths, "lipschitz_log10", "val_loss", None).unwrap();
        let csv = t.csv();
        let first = csv.lines().nth(1).unwrap();
        assert_eq!(first, "a,Muon,\"one, \"\"two\"\"\",1,1,1,1,3,3,3,true", "{csv}");
        let chart = t.chart();
        assert_eq!(chart.series[0].points, [(1.0, 3.0), (2.0, 2.0), (40.0, 1.0)]);
        // The other front is one point: its name belongs to the mark, and to that alone.
        let named: Vec<(&str, Mark)> = chart
            .series
            .iter()
            .filter(|s| s.name.starts_with("three"))
            .map(|s| (s.name.as_str(), s.mark))
            .collect();
        assert_eq!(named, [("three", Mark::Filled(Marker::Disc))]);
        assert!(chart.legend.is_empty(), "one optimizer needs no shapes");
        super::super::write(&dir.path().join("p.png"), &[chart]).unwrap();
        let error = Tradeoff::read(&paths, "lipschitz", "val_loss", None).unwrap_err().to_string();
        assert!(
            error.contains("no figure `lipschitz`") && error.contains("lipschitz_log10"),
            "{error}"
        );
        let error = Tradeoff::read(&[dir.path().join("a").join("x")], "a", "b", None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/x"), "{error}");
    }

    #[test]
    fn no_cell_is_a_formula() {
        for (text, cell) in [
            ("=1+1", "'=1+1"),
            ("+1 more", "'+1 more"),
            ("-x", "'-x"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            ("=HYPERLINK(\"a\",\"b\")", "\"'=HYPERLINK(\"\"a\"\",\"\"b\"\")\""),
            ("-3.5", "-3.5"),
            ("-1e3", "-1e3"),
            ("-inf", "'-inf"),
            ("L ≤ 2", "L ≤ 2"),
            ("a=b", "a=b"),
            ("", ""),
        ] {
            assert_eq!(field(text), cell, "{text:?}");
        }
    }

    #[test]
    fn runs_that_differ_in_their_seed_alone_are_one_point() {
        let dir = tempfile::tempdir().unwrap();
        for (name, l, loss, seed, rate) in [
            ("a", 1.0, 3.0, 0, 0.1),
            ("b", 2.0, 2.0, 1, 0.1),
            ("c", 1.5, 2.2, 2, 0.1),
            ("d", 1.5, 2.2, 0, 0.2),
        ] {
            write(dir.path(), name, l.into(), loss, "soft cap");
            let config =
                format!("[train]\nseed = {seed}\nlearning_rate = {rate}\ndevice = \"cpu\"\n");
            std::fs::write(dir.path().join(name).join("config.toml"), config).unwrap();
        }
        let t = Tradeoff::read(&[dir.path().to_path_buf()], "lipschitz_log10", "val_loss", None)
            .unwrap();
        assert_eq!(t.points.iter().map(|p| p.runs).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(
            ["sigma_max=2, seed=0", "seed=0", "a"].map(without_its_seed),
            ["sigma_max=2", "seed=0", "a"]
        );
        // Names are given for each run, and the first of a point names it.
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let paths = [dir.path().to_path_buf()];
            Tradeoff::read_named(&paths, "lipschitz_log10", "val_loss", None, &names)
        };
        let labels: Vec<String> = named(&["one_a", "two", "three", "four"])
            .unwrap()
            .points
            .into_iter()
            .map(|p| p.label)
            .collect();
        assert_eq!(labels, ["one_a", "four"]);
        assert!(named(&["one"]).unwrap_err().to_string().contains("first of 4"));
        let p = &t.points[0];
        assert_eq!((p.x, p.spread.x, p.spread.y), (1.5, (1.0, 2.0), (2.0, 3.0)));
        assert!((p.y - 2.4).abs() < 1e-12 && t.points[1].front && !p.front);

        // Coloured by a key of the config, each value has a front of its own.
        let read = |key| {
            Tradeoff::read(&[dir.path().to_path_buf()], "lipschitz_log10", "val_loss", Some(key))
        };
        let t = read("train.learning_rate").unwrap();
        let colors: Vec<&str> = t.points.iter().map(|p| p.color.as_str()).collect();
        assert_eq!(colors, ["learning rate: 0.1", "learning rate: 0.2"]);
        assert!(t.points.iter().all(|p| p.front));
        assert_eq!(read("train.device").unwrap().points[0].color, "device: cpu");
        let seeds: Vec<String> =
            read("train.seed").unwrap().points.into_iter().map(|p| p.color).collect();
        assert_eq!(seeds, ["seed: 0", "seed: 1", "seed: 2", "seed: 0"]);
        let said = read("train.heads").unwrap_err().to_string();
        assert!(said.contains("no key `train.heads`"), "{said}");
    }
}
