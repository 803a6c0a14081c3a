//! One HTML page for many runs: trade-off plots, a table, and each run's certificate and training
//! curves. The page needs no other file and no network. All text from files is escaped. It fits the
//! screens of phones: there, each row of a table is a card, and figures have a version of their own.

mod run;
mod table;

use std::fmt::Write;
use std::path::PathBuf;

use crate::Error;
use crate::plots::tradeoff::Tradeoff;
use crate::plots::{self, layers, training};
use lipschitz_plot::svg::{self, Glyphs, escape};
use lipschitz_plot::{self as plot, Chart, Page};
use run::ReportedRun;

/// How a page was made, as it says itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// When; may be empty.
    pub date: String,
    /// The command that made it; may be empty.
    pub command: String,
}

/// The page for runs, or for the runs inside a directory, sorted by their certified constants.
///
/// # Errors
/// [`Error::Network`] names a directory without finished runs, or a file of a run that cannot be
/// read.
pub fn page(paths: &[PathBuf], made: &Made) -> Result<String, Error> {
    let found = plots::runs(paths, "summary.json")?;
    let mut runs: Vec<ReportedRun> =
        found.iter().map(|path| ReportedRun::read(path)).collect::<Result<_, _>>()?;
    // Runs without a finite constant come last.
    let constant = |run: &ReportedRun| run.number("lipschitz_log10").unwrap_or(f64::INFINITY);
    runs.sort_by(|a, b| constant(a).total_cmp(&constant(b)));
    let mut glyphs = Glyphs::new();
    let mut body = tradeoffs(paths, &runs, &mut glyphs)?;
    body += &table::runs(&runs);
    body.push_str("<h2>Each run</h2>\n");
    for (i, run) in runs.iter().enumerate() {
        body += &one(i, run, &mut glyphs)?;
    }
    Ok(document(runs.len(), made, &body, &svg::definitions(&glyphs)))
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
            draw(&tradeoff.chart(), glyphs)?
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
fn document(count: usize, made: &Made, body: &str, glyphs: &str) -> String {
    let (css, js) = (include_str!("page.css"), include_str!("page.js"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    let heading = match count {
        1 => "1 run and its certified constant".into(),
        _ => format!("{count} runs and their certified constants"),
    };
    let date = if made.date.is_empty() { "" } else { &format!(" on {}", escape(&made.date)) };
    let command = match made.command.as_str() {
        "" => String::new(),
        command => format!(": <code>{}</code>", escape(command)),
    };
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{heading}</title>\n\
         <style>\n{css}</style>\n</head>\n<body>\n\
         <svg class=\"glyphs\" aria-hidden=\"true\"><defs>\n{glyphs}</defs></svg>\n\
         <h1>{heading}</h1>\n\
         <p class=\"note\">Made by lipschitz-certify {version}{date}{command}</p>\n\
         <p>L is a proven Lipschitz constant, RMS → RMS unless said otherwise. Scaling the logits \
         changes L and not the accuracy, so read it beside the loss, the certified accuracy or the \
         constant over the median margin.</p>\n\
         {body}<script>\n{js}</script>\n</body>\n</html>\n"
    )
}

/// Widths of a figure on a large screen and on a phone, and the height of the latter. The height of
/// bars is that of their number.
const LARGE: (f32, f32) = (960.0, 560.0);
const SMALL: (f32, f32) = (400.0, 500.0);
/// One of several figures beside one another.
const BESIDE: (f32, f32) = (480.0, 360.0);

/// A chart in both widths, of which the screen shows one, or a line that there is nothing to draw.
fn draw(chart: &Chart, glyphs: &mut Glyphs) -> Result<String, Error> {
    if chart.is_empty() {
        return Ok("<p class=\"note\">There is nothing to draw.</p>\n".into());
    }
    let mut text = String::new();
    for (class, (width, height)) in [("large", LARGE), ("small", SMALL)] {
        let own = plot::scene(std::slice::from_ref(chart), &Page::default())?.height;
        let height = if own == LARGE.1 { height } else { own };
        let page = Page { size: Some((width, height)), ..Page::default() };
        let figure = svg::part(&plot::scene(std::slice::from_ref(chart), &page)?, glyphs);
        let _ = writeln!(text, "<div class=\"{class}\">{figure}</div>");
    }
    Ok(text)
}

/// Charts beside one another, as many as fit on the screen.
fn draw_several(charts: &[Chart], glyphs: &mut Glyphs) -> Result<String, Error> {
    let mut text = String::from("<div class=\"beside\">\n");
    for chart in charts {
        let page = Page { size: Some(BESIDE), ..Page::default() };
        text += &svg::part(&plot::scene(std::slice::from_ref(chart), &page)?, glyphs);
    }
    text.push_str("</div>\n");
    Ok(text)
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
            text += &draw(&layers::chart(certificate), glyphs)?;
            text += &table::nodes(certificate);
        }
        None => text.push_str("<p class=\"note\">There is no certificate.json.</p>\n"),
    }
    if run.path.join("metrics.jsonl").is_file() {
        let mut charts = training::charts(std::slice::from_ref(&run.path))?;
        // The section has the run's name.
        let series = charts.iter_mut().flat_map(|chart| &mut chart.series);
        series.for_each(|series| series.label.clear());
        let _ = write!(text, "<h3>Training</h3>\n{}", draw_several(&charts, glyphs)?);
    }
    text.push_str("</details>\n");
    Ok(text)
}
