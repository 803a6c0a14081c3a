//! One page for many runs: trade-off, table, each run's certificate and training curves. It needs
//! no other file and no network. Whatever comes from files is escaped.

mod table;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::certificate::Certificate;
use crate::plots::tradeoff::Tradeoff;
use crate::plots::{self, layers, training};
use lipschitz_plot::svg::{self, Glyphs, escape};
use lipschitz_plot::{self as plot, Chart};

/// A finished run.
struct ReportedRun {
    path: PathBuf,
    label: String,
    summary: Map<String, Value>,
    /// None if there is no such file.
    certificate: Option<Certificate>,
}

impl ReportedRun {
    fn read(path: &Path) -> Result<Self, Error> {
        let summary = plots::summary(path)?;
        let file = path.join("certificate.json");
        let certificate = match file.is_file() {
            true => serde_json::from_str(&plots::read(&file)?)
                .map_err(|e| lipschitz_nn::Error::file(&file, format!("is no certificate: {e}")))?,
            false => None,
        };
        let label = summary.get("label").and_then(Value::as_str).map(str::to_string);
        let label = label.filter(|l| !l.is_empty()).unwrap_or_else(|| path.display().to_string());
        Ok(Self { path: path.to_path_buf(), label, summary, certificate })
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.summary.get(key).and_then(Value::as_f64).filter(|x| x.is_finite())
    }
}

/// The page for runs, or for the runs inside a directory.
///
/// # Errors
/// [`Error::Network`] names a directory without finished runs, or a file of a run that cannot be
/// read.
pub fn page(paths: &[PathBuf]) -> Result<String, Error> {
    let found = plots::runs(paths, "summary.json")?;
    let runs: Vec<ReportedRun> =
        found.iter().map(|path| ReportedRun::read(path)).collect::<Result<_, _>>()?;
    let mut glyphs = Glyphs::new();
    let mut body = String::new();
    for (y, heading) in [
        ("val_loss", "Loss"),
        ("val_accuracy", "Accuracy"),
        ("certified_accuracy", "Certified accuracy"),
    ] {
        if runs.iter().any(|run| run.number("lipschitz_log10").is_some() && run.number(y).is_some())
        {
            let tradeoff = Tradeoff::read(paths, "lipschitz_log10", y, None)?;
            let _ = write!(
                body,
                "<h2>{heading} against the certified constant</h2>\n{}",
                draw(&[tradeoff.chart()], &mut glyphs)?
            );
            if y == "val_loss" && !tradeoff.left_out.is_empty() {
                let count = tradeoff.left_out.len();
                let _ = writeln!(
                    body,
                    "<p class=\"note\">Not drawn: {count} of the runs, which have no finite \
                     bound.</p>"
                );
            }
        }
    }
    body += &table::runs(&runs);
    body.push_str("<h2>Each run</h2>\n");
    for (i, run) in runs.iter().enumerate() {
        body += &one(i, run, &mut glyphs)?;
    }
    let (css, js, glyphs) =
        (include_str!("page.css"), include_str!("page.js"), svg::definitions(&glyphs));
    let count = runs.len();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{count} runs and their certified constants</title>\n<style>\n{css}</style>\n</head>\n<body>\n\
         <svg class=\"glyphs\" aria-hidden=\"true\"><defs>\n{glyphs}</defs></svg>\n\
         <h1>{count} runs and their certified constants</h1>\n\
         <p>L is a proven Lipschitz constant, RMS → RMS unless said otherwise. Scaling the logits changes L and not the \
         accuracy, so read it beside the loss, the certified accuracy or the constant over the median margin.</p>\n\
         {body}<script>\n{js}</script>\n</body>\n</html>\n"
    ))
}

/// Charts as a picture, or a line that says that there is none.
fn draw(charts: &[Chart], glyphs: &mut Glyphs) -> Result<String, Error> {
    let charts: Vec<Chart> = charts.iter().filter(|chart| !chart.is_empty()).cloned().collect();
    if charts.is_empty() {
        Ok("<p class=\"note\">There is nothing to draw.</p>\n".into())
    } else {
        Ok(svg::part(&plot::scene(&charts)?, glyphs))
    }
}

/// A run: certificate by layer, training curves.
fn one(i: usize, run: &ReportedRun, glyphs: &mut Glyphs) -> Result<String, Error> {
    let (label, path) = (escape(&run.label), escape(&run.path.display().to_string()));
    let mut text =
        format!("<details id=\"run{i}\">\n<summary>{label} <span>{path}</span></summary>\n");
    match &run.certificate {
        Some(certificate) => {
            let _ = writeln!(
                text,
                "<h3>Certificate</h3>\n<p>L ≤ {} RMS → RMS, {} ℓ2 → ℓ2, {} for the difference of \
                 two outputs from ℓ2, on {}.</p>",
                certificate.rms,
                certificate.l2,
                certificate.margin.l2,
                escape(&certificate.domain.text)
            );
            for warning in &certificate.warnings {
                let _ = writeln!(text, "<p class=\"note\">Warning: {}</p>", escape(warning));
            }
            text += &draw(&[layers::chart(certificate)], glyphs)?;
            text += &table::nodes(certificate);
        }
        None => text.push_str("<p class=\"note\">There is no certificate.json.</p>\n"),
    }
    if run.path.join("metrics.jsonl").is_file() {
        let charts = training::charts(std::slice::from_ref(&run.path))?;
        let _ = write!(text, "<h3>Training</h3>\n{}", draw(&charts, glyphs)?);
    }
    text.push_str("</details>\n");
    Ok(text)
}
