//! One HTML page for many runs: trade-off plots, a table, and each run's certificate and training
//! curves. The page needs no other file and no network. All text from files is escaped.

mod run;
mod table;

use std::fmt::Write;
use std::path::PathBuf;

use crate::Error;
use crate::plots::tradeoff::Tradeoff;
use crate::plots::{self, layers, training};
use lipschitz_plot::svg::{self, Glyphs, escape};
use lipschitz_plot::{self as plot, Chart};
use run::ReportedRun;

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
    let mut body = tradeoffs(paths, &runs, &mut glyphs)?;
    body += &table::runs(&runs);
    body.push_str("<h2>Each run</h2>\n");
    for (i, run) in runs.iter().enumerate() {
        body += &one(i, run, &mut glyphs)?;
    }
    Ok(document(runs.len(), &body, &svg::definitions(&glyphs)))
}

/// Loss and accuracies against the constant, those for which there are values.
fn tradeoffs(
    paths: &[PathBuf],
    runs: &[ReportedRun],
    glyphs: &mut Glyphs,
) -> Result<String, Error> {
    let mut text = String::new();
    for (y, heading) in [
        ("val_loss", "Loss"),
        ("val_accuracy", "Accuracy"),
        ("certified_accuracy", "Certified accuracy"),
    ] {
        let both =
            |run: &ReportedRun| run.number("lipschitz_log10").is_some() && run.number(y).is_some();
        if !runs.iter().any(both) {
            continue;
        }
        let tradeoff = Tradeoff::read(paths, "lipschitz_log10", y, None)?;
        let _ = write!(
            text,
            "<h2>{heading} against the certified constant</h2>\n{}",
            draw(&[tradeoff.chart()], glyphs)?
        );
        if y == "val_loss" && !tradeoff.left_out.is_empty() {
            let count = tradeoff.left_out.len();
            let _ = writeln!(
                text,
                "<p class=\"note\">Not drawn: {count} of the runs, which have no finite \
                 bound.</p>"
            );
        }
    }
    Ok(text)
}

/// The HTML document around a body.
fn document(count: usize, body: &str, glyphs: &str) -> String {
    let (css, js) = (include_str!("page.css"), include_str!("page.js"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{count} runs and their certified constants</title>\n\
         <style>\n{css}</style>\n</head>\n<body>\n\
         <svg class=\"glyphs\" aria-hidden=\"true\"><defs>\n{glyphs}</defs></svg>\n\
         <h1>{count} runs and their certified constants</h1>\n\
         <p>L is a proven Lipschitz constant, RMS → RMS unless said otherwise. Scaling the logits \
         changes L and not the accuracy, so read it beside the loss, the certified accuracy or the \
         constant over the median margin.</p>\n\
         {body}<script>\n{js}</script>\n</body>\n</html>\n"
    )
}

/// Charts as one figure, or a line that says that there is nothing to draw.
fn draw(charts: &[Chart], glyphs: &mut Glyphs) -> Result<String, Error> {
    let charts: Vec<Chart> = charts.iter().filter(|chart| !chart.is_empty()).cloned().collect();
    if charts.is_empty() {
        Ok("<p class=\"note\">There is nothing to draw.</p>\n".into())
    } else {
        Ok(svg::part(&plot::scene(&charts)?, glyphs))
    }
}

/// The section of a run: certificate by layer, training curves.
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
