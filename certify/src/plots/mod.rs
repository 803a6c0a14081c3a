//! Plots of runs, from the files in their directories.

pub mod caps;
pub mod graph;
pub mod layers;
pub mod local;
pub mod matrices;
pub mod ranges;
pub mod robust;
pub mod tradeoff;
pub mod training;
pub mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lipschitz_nn::{At, Error, checkpoint, text};
use lipschitz_plot::{Chart, Format, Page, render};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::results;

/// Writes charts in a figure of the usual size. The extension of `path` gives the format: `.svg`,
/// `.pdf` or `.png`.
///
/// # Errors
/// [`Error::File`] for another extension, a chart without points, or a file that cannot be written.
pub fn write(path: &Path, charts: &[Chart]) -> Result<(), Error> {
    write_page(path, charts, &Page::default())
}

/// Writes charts in a figure with a title or size of its own, see [`write()`].
///
/// # Errors
/// As [`write()`].
pub fn write_page(path: &Path, charts: &[Chart], page: &Page) -> Result<(), Error> {
    let bytes = Format::of(path).and_then(|format| render(charts, page, format));
    checkpoint::write(path, &bytes.map_err(|e| Error::file(path, e))?)
}

/// A name as sweeps and configs write it, in words: `spectral_normalize, sigma_max=4` is
/// `spectral normalize, σ_max 4`.
pub fn words(name: &str) -> String {
    let part = |part: &str| match part.split_once('=') {
        Some((key, value))
            if key.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c)) =>
        {
            format!("{} {}", key_in_words(key), value.replace('_', " "))
        }
        _ => part.replace('_', " "),
    };
    name.split(", ").map(part).collect::<Vec<_>>().join(", ")
}

/// A key of a config in words.
fn key_in_words(key: &str) -> String {
    let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
    let last = match last {
        "sigma_max" => "σ_max".into(),
        "lipschitz_target" => "target L".into(),
        other => other.replace('_', " "),
    };
    format!("{} {last}", section.replace(['.', '_'], " ")).trim().into()
}

/// The names of runs, or of their results, for a plot: those given, else their own in words, without
/// what all of them share.
///
/// # Errors
/// [`Error::File`] if not as many names are given as there are runs; it lists the runs.
pub fn names(runs: &[PathBuf], own: Vec<String>, given: &[String]) -> Result<Vec<String>, Error> {
    if given.is_empty() {
        return Ok(distinct(own.iter().map(|name| words(name)).collect()));
    }
    let [first, ..] = runs else { return Ok(Vec::new()) };
    if given.len() != runs.len() {
        const LISTED: usize = 20;
        let mut listed: Vec<String> =
            runs.iter().take(LISTED).map(|run| run.display().to_string()).collect();
        if runs.len() > LISTED {
            listed.push(format!("{} more", runs.len() - LISTED));
        }
        let what = format!(
            "is the first of {} to name, and {} names are given; in order: {}",
            runs.len(),
            given.len(),
            listed.join(", ")
        );
        return Err(Error::file(first, what));
    }
    Ok(given.to_vec())
}

/// Names without the parts that all have, unless nothing would remain of one.
fn distinct(names: Vec<String>) -> Vec<String> {
    let parts: Vec<Vec<&str>> = names.iter().map(|name| name.split(", ").collect()).collect();
    let shared = |part: &str| parts.iter().all(|parts| parts.contains(&part));
    let kept = parts
        .iter()
        .map(|parts| -> Vec<&str> { parts.iter().copied().filter(|part| !shared(part)).collect() });
    let kept: Vec<Vec<&str>> = kept.collect();
    if kept.iter().any(Vec::is_empty) {
        return names;
    }
    kept.into_iter().map(|parts| parts.join(", ")).collect()
}

/// The run directories at `paths`: each path that contains `file`, and for any other directory its
/// subdirectories that contain it, sorted.
///
/// # Errors
/// [`Error::File`] names a path without any.
pub fn runs(paths: &[PathBuf], file: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in paths {
        if path.join(file).is_file() {
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).at(path)?;
        let mut inside: Vec<PathBuf> =
            entries.filter_map(|e| Some(e.ok()?.path())).filter(|child| has(child, file)).collect();
        if inside.is_empty() {
            return Err(Error::file(
                path,
                format!("holds no {file}; give the directory of a run that trained to its end"),
            ));
        }
        inside.sort();
        found.append(&mut inside);
    }
    // One that is named twice is one.
    let mut known = BTreeSet::new();
    found.retain(|run| known.insert(run.canonicalize().unwrap_or_else(|_| run.clone())));
    Ok(found)
}

/// Whether there is such a file with something in it.
fn has(run: &Path, file: &str) -> bool {
    run.join(file).metadata().is_ok_and(|there| there.is_file() && there.len() > 0)
}

/// The runs in these directories that are not finished or have failed, and so are missing from
/// plots of finished ones; sorted.
pub fn unfinished(paths: &[PathBuf]) -> Vec<PathBuf> {
    let inside = paths
        .iter()
        .filter(|path| !has(path, "summary.json"))
        .filter_map(|path| std::fs::read_dir(path).ok());
    let children = inside.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let begun =
        |run: &PathBuf| ["config.toml", "failed.txt"].iter().any(|file| run.join(file).is_file());
    let mut found: Vec<PathBuf> =
        children.filter(|run| begun(run) && !has(run, "summary.json")).collect();
    found.sort();
    found
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    text::read(path, "a file of a run")
}

/// A result of this command.
pub(crate) fn result<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T, Error> {
    let text = read(path)?;
    serde_json::from_str(&text).map_err(|e| {
        Error::file(
            path,
            match results::instead_of(command, &text) {
                Some(kind) => format!("is {kind}, no result of {command}"),
                None => format!("is no result of {command}: {e}"),
            },
        )
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_named_twice_are_one_and_unfinished_ones_none() {
        let dir = tempfile::tempdir().unwrap();
        for (run, text) in [("a", "{}"), ("b", "{}"), ("c", "")] {
            std::fs::create_dir(dir.path().join(run)).unwrap();
            std::fs::write(dir.path().join(run).join("config.toml"), "").unwrap();
            std::fs::write(dir.path().join(run).join("summary.json"), text).unwrap();
        }
        let all = dir.path().to_path_buf();
        let [a, b, c] = ["a", "b", "c"].map(|run| dir.path().join(run));
        let named = [b.clone(), all.clone(), all.join("b").join(".")];
        assert_eq!(runs(&named, "summary.json").unwrap(), [b, a]);
        assert_eq!(unfinished(&[all]), [c]);
    }

    #[test]
    fn names_are_in_words_and_without_what_all_share() {
        for (name, said) in [
            ("spectral_normalize, sigma_max=4, seed=0", "spectral normalize, σ_max 4, seed 0"),
            ("model.heads=2, optimizer.kind=adam_w", "model heads 2, optimizer kind adam w"),
            ("lipschitz_target=10", "target L 10"),
            ("L ≤ 10 a=b", "L ≤ 10 a=b"),
            ("my_run", "my run"),
            ("", ""),
        ] {
            assert_eq!(words(name), said);
        }
        let named =
            |own: &[&str]| names(&[], own.iter().map(ToString::to_string).collect(), &[]).unwrap();
        assert_eq!(named(&["a, seed=0", "b, c=1, seed=0"]), ["a", "b, c 1"]);
        assert_eq!(named(&["none, seed=0", "seed=0"]), ["none, seed 0", "seed 0"]);
        assert_eq!(named(&["x=1, seed=0"]), ["x 1, seed 0"]);
        let runs = ["a", "b"].map(PathBuf::from);
        let given = ["x, y=1", "z"].map(String::from);
        assert_eq!(names(&runs, Vec::new(), &given).unwrap(), given);
        let said = names(&runs, Vec::new(), &given[..1]).unwrap_err().to_string();
        assert!(said.contains("first of 2") && said.ends_with("a, b"), "{said}");
    }
}
