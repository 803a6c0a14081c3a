//! A run as the page shows it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::certificate::Certificate;
use crate::plots;

/// A finished run, read from its directory.
pub(super) struct ReportedRun {
    pub path: PathBuf,
    pub label: String,
    pub summary: Map<String, Value>,
    /// None if the run has no certificate.
    pub certificate: Option<Certificate>,
}

impl ReportedRun {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let summary = plots::summary(path)?;
        let file = path.join("certificate.json");
        let certificate = match file.is_file() {
            true => serde_json::from_str(&plots::read(&file)?)
                .map_err(|e| lipschitz_nn::Error::file(&file, format!("is no certificate: {e}")))?,
            false => None,
        };
        let label = summary.get("label").and_then(Value::as_str).map(str::to_string);
        let label = label.filter(|label| !label.is_empty()).map(|label| plots::words(&label));
        let label = label.unwrap_or_else(|| path.display().to_string());
        Ok(Self { path: path.to_path_buf(), label, summary, certificate })
    }

    /// A finite number of the summary.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.summary.get(key).and_then(Value::as_f64).filter(|x| x.is_finite())
    }
}
