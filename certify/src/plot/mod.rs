//! Pictures of runs, from the files that a run directory holds.

pub mod chart;
pub mod layers;
pub mod tradeoff;
pub mod training;

use std::path::{Path, PathBuf};

use lipschitz_nn::Error;

/// Each path that holds `file`, and for a directory that does not, those of its children that do; sorted.
///
/// # Errors
/// [`Error::File`] names a path with neither.
pub fn runs(paths: &[PathBuf], file: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for path in paths {
        if path.join(file).is_file() {
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, &e))?;
        let mut inside: Vec<PathBuf> =
            entries.filter_map(|e| Some(e.ok()?.path())).filter(|child| child.join(file).is_file()).collect();
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

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))
}
