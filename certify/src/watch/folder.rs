//! The checkpoints in a directory, and whether they change.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lipschitz_import::is_foreign;
use lipschitz_nn::{At, Error};

/// What tells one version of a checkpoint from another, before it is read: the files of weights,
/// their sizes and times.
pub type Stamp = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// A checkpoint that there seems to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// A file, or the directory of a model of another library.
    pub path: PathBuf,
    /// Its version.
    pub stamp: Stamp,
}

impl Candidate {
    /// When its last file was written.
    fn time(&self) -> Option<SystemTime> {
        self.stamp.iter().filter_map(|(_, _, time)| *time).max()
    }

    /// The step that its name says, or that of its directory: `step_500.safetensors`, `checkpoint-500`.
    pub fn number(&self) -> Option<u64> {
        step(self.path.file_stem()?.to_str()?)
            .or_else(|| step(self.path.parent()?.file_name()?.to_str()?))
    }
}

/// What stands in front of the number of a step.
const STEPS: &[&str] =
    &["checkpoint", "ckpt", "epoch", "iter", "iteration", "model", "step", "steps", "weights"];

/// The step that a name says: of `seed7` or `lr0.3` it is none.
fn step(name: &str) -> Option<u64> {
    let from = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let word = name[..from].trim_end_matches(['-', '_', '.', '=']).to_ascii_lowercase();
    let known = word.is_empty() && from == 0 || STEPS.iter().any(|step| word.ends_with(step));
    name[from..].parse().ok().filter(|_| known)
}

/// The directory of the run that a checkpoint is of: what is beside it, or beside its directory where that
/// is named by a step.
pub fn run(path: &Path) -> &Path {
    let parent = path.parent().unwrap_or(path);
    let named = parent.file_name().and_then(|name| step(name.to_str()?));
    match named {
        Some(_) => parent.parent().unwrap_or(parent),
        None => parent,
    }
}

/// The checkpoints in a directory and in its subdirectories, the oldest first: files of safetensors,
/// and directories with a `config.json`. Files that vanish meanwhile are passed over.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read.
pub fn candidates(directory: &Path) -> Result<Vec<Candidate>, Error> {
    let mut out = Vec::new();
    collect(directory, &mut out).at(directory)?;
    for entry in std::fs::read_dir(directory).at(directory)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            // One that goes away is no longer of interest.
            let _ = collect(&path, &mut out);
        }
    }
    out.sort_by(|a, b| (a.time(), a.number(), &a.path).cmp(&(b.time(), b.number(), &b.path)));
    Ok(out)
}

/// Those of one directory alone.
fn collect(directory: &Path, out: &mut Vec<Candidate>) -> std::io::Result<()> {
    let mut files: Stamp = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // Hidden files and those that are still to be renamed.
        if name.starts_with('.') {
            continue;
        }
        let is_weights = ["safetensors", "bin", "json"]
            .iter()
            .any(|end| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end)));
        let Ok(metadata) = path.metadata() else { continue };
        if is_weights && metadata.is_file() {
            files.push((path, metadata.len(), metadata.modified().ok()));
        }
    }
    files.sort();
    let weights = |path: &Path| {
        path.extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("safetensors") || e.eq_ignore_ascii_case("bin"))
    };
    if is_foreign(directory) {
        if files.iter().any(|(path, ..)| weights(path)) {
            out.push(Candidate { path: directory.to_path_buf(), stamp: files });
        }
        return Ok(());
    }
    let single = files.into_iter().filter(|(path, ..)| {
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
    });
    out.extend(single.map(|file| Candidate { path: file.0.clone(), stamp: vec![file] }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_found_with_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        for name in [
            "step_5.safetensors",
            "notes.txt",
            ".half.safetensors",
            "checkpoint-20/config.json",
            "checkpoint-20/model.safetensors",
            "checkpoint-20/optimizer.pt",
            "checkpoint-30/config.json",
            "empty/readme.md",
            "run/model.safetensors",
            "seed7/model.safetensors",
        ] {
            write(name);
        }
        let found = candidates(dir.path()).unwrap();
        let names: std::collections::BTreeMap<String, Option<u64>> = found
            .iter()
            .map(|c| {
                let name = c.path.strip_prefix(dir.path()).unwrap();
                (name.to_string_lossy().into_owned(), c.number())
            })
            .collect();
        let wanted = [
            ("checkpoint-20", Some(20)),
            ("run/model.safetensors", None),
            ("seed7/model.safetensors", None),
            ("step_5.safetensors", Some(5)),
        ];
        assert_eq!(names, wanted.map(|(name, n)| (name.to_string(), n)).into());
        let of = |path: &str| run(Path::new(path)).display().to_string();
        assert_eq!(
            [of("a/checkpoint-5/model.bin"), of("a/b/step_5.pt"), of("a/seed7/x")],
            ["a", "a/b", "a/seed7"]
        );
        let stamp = |found: &[Candidate]| found.iter().map(|c| c.stamp.clone()).collect::<Vec<_>>();
        let before = stamp(&found);
        std::fs::write(dir.path().join("run/model.safetensors"), "xy").unwrap();
        assert_ne!(stamp(&candidates(dir.path()).unwrap()), before);
        assert!(candidates(&dir.path().join("none")).is_err());
    }
}
