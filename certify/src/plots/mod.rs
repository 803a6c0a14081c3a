//! Plots of runs, from the files in their directories.

pub mod graph;
pub mod layers;
pub mod robust;
pub mod tradeoff;
pub mod training;

use std::path::{Path, PathBuf};

use lipschitz_nn::{At, Error, checkpoint, text};
use lipschitz_plot::{Chart, Format, render};
use serde_json::{Map, Value};

/// Writes charts below one another. The extension of `path` gives the format, `.svg` or `.png`.
///
/// # Errors
/// [`Error::File`] for another extension, a chart without points, or a file that cannot be written.
pub fn write(path: &Path, charts: &[Chart]) -> Result<(), Error> {
    let bytes = Format::of(path).and_then(|format| render(charts, format));
    checkpoint::write(path, &bytes.map_err(|e| Error::file(path, e))?)
}

/// The run directories at `paths`: each path that contains `file`, and for any other directory its
/// subdirectories that contain it, sorted.
///
/// # Errors
/// [`Error::File`] names a path without any.
pub fn runs(paths: &[PathBuf], file: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for path in paths {
        if path.join(file).is_file() {
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).at(path)?;
        let mut inside: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|child| child.join(file).is_file())
            .collect();
        if inside.is_empty() {
            return Err(Error::file(
                path,
                format!("holds no {file}; give the directory of a run that trained to its end"),
            ));
        }
        inside.sort();
        found.append(&mut inside);
    }
    Ok(found)
}

/// The runs in these directories that are not finished or have failed, and so are missing from
/// plots of finished ones; sorted.
pub fn unfinished(paths: &[PathBuf]) -> Vec<PathBuf> {
    let inside = paths
        .iter()
        .filter(|path| !path.join("summary.json").is_file())
        .filter_map(|path| std::fs::read_dir(path).ok());
    let children = inside.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let begun =
        |run: &PathBuf| ["config.toml", "failed.txt"].iter().any(|file| run.join(file).is_file());
    let mut found: Vec<PathBuf> =
        children.filter(|run| begun(run) && !run.join("summary.json").is_file()).collect();
    found.sort();
    found
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    text::read(path, "a file of a run")
}

/// The `summary.json` of a run.
///
/// # Errors
/// [`Error::File`] names it.
pub fn summary(run: &Path) -> Result<Map<String, Value>, Error> {
    let file = run.join("summary.json");
    serde_json::from_str(&read(&file)?)
        .map_err(|e| Error::file(&file, format!("is no summary: {e}")))
}

/// Optimizer and constraint of a run. Older summaries have both in one text.
pub fn method(summary: &Map<String, Value>) -> (String, String) {
    let text = |key: &str| summary.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let both = text("method").unwrap_or("unknown");
    let (optimizer, constraint) = both.split_once(" + ").unwrap_or((both, both));
    (text("optimizer").unwrap_or(optimizer).into(), text("constraint").unwrap_or(constraint).into())
}
