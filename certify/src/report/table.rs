//! The tables of the page.

use std::fmt::Write;

use serde_json::Value;

use super::run::ReportedRun;
use crate::certificate::Certificate;
use crate::plots::method;
use crate::robust;
use crate::upper::{Upper, down};
use lipschitz_plot::{plain, svg::escape};

/// A cell: the text it shows, and the value it is sorted by.
struct Cell {
    text: String,
    value: String,
}

/// A column: its header, whether it holds numbers, and its cell for a run.
type Column = (&'static str, bool, fn(&ReportedRun) -> Cell);

fn words(text: String) -> Cell {
    Cell { value: text.clone(), text }
}

fn number(value: Option<f64>, show: impl Fn(f64) -> String) -> Cell {
    match value {
        Some(x) => Cell { text: show(x), value: format!("{x:e}") },
        None => Cell { text: "–".into(), value: String::new() },
    }
}

/// A whole number of 64 bits, more than an f64 holds.
fn whole(run: &ReportedRun, key: &str) -> Cell {
    match run.summary.get(key).and_then(Value::as_u64) {
        Some(n) => Cell { text: n.to_string(), value: n.to_string() },
        None => number(None, plain),
    }
}

/// An upper bound, given by its log10 in the summary; never rounded down.
fn bound(log: f64) -> String {
    // The margin covers the rounding of the logarithm.
    if log.abs() < 300.0 {
        Upper::from_f64(10f64.powf(log) * (1.0 + 1e-12)).to_string()
    } else {
        format!("10^{:.1}", (10.0 * log).ceil() / 10.0)
    }
}

/// A lower bound, given by its log10 in the summary; never rounded up.
fn power(log: f64) -> String {
    // The margin covers the rounding of the logarithm.
    if log.abs() < 6.0 {
        down(10f64.powf(log) * (1.0 - 1e-12))
    } else {
        format!("10^{:.1}", (10.0 * log).floor() / 10.0)
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

const COLUMNS: [Column; 14] = [
    ("run", false, |run| words(run.label.clone())),
    ("optimizer", false, |run| words(method(&run.summary).0)),
    ("constraint", false, |run| words(method(&run.summary).1)),
    ("target", true, |run| number(run.number("target"), plain)),
    ("σ_max", true, |run| number(run.number("sigma_max"), plain)),
    ("rate", true, |run| number(run.number("learning_rate"), plain)),
    ("seed", true, |run| whole(run, "seed")),
    ("steps", true, |run| whole(run, "steps")),
    ("loss", true, |run| number(run.number("val_loss"), |x| format!("{x:.4}"))),
    ("accuracy", true, |run| number(run.number("val_accuracy"), percent)),
    ("certified at 36/255", true, |run| number(run.number("certified_accuracy"), robust::percent)),
    ("L ≤", true, certified),
    ("found L ≥", true, |run| number(run.number("found_log10"), power)),
    ("L over margin", true, |run| number(run.number("margin_normalized_log10"), bound)),
];

/// The certified constant as it is stored; its text is never below the proven value.
fn certified(run: &ReportedRun) -> Cell {
    let stored =
        run.summary.get("lipschitz").and_then(|l| serde_json::from_value::<Upper>(l.clone()).ok());
    match (stored, run.number("lipschitz_log10")) {
        (Some(l), Some(log)) => Cell { text: l.to_string(), value: format!("{log:e}") },
        (_, log) => number(log, bound),
    }
}

/// All runs, sortable. Empty columns are left out.
pub(super) fn runs(runs: &[ReportedRun]) -> String {
    let known = |(_, _, cell): &&Column| runs.iter().any(|run| !cell(run).value.is_empty());
    let columns: Vec<&Column> = COLUMNS.iter().filter(known).collect();
    let class = |number: bool| if number { " class=\"number\"" } else { "" };
    let mut text =
        String::from("<h2>Runs</h2>\n<div class=\"wide\"><table id=\"runs\">\n<thead><tr>");
    for (head, number, _) in &columns {
        let _ = write!(text, "<th scope=\"col\"{}><button>{head}</button></th>", class(*number));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for (i, run) in runs.iter().enumerate() {
        text.push_str("<tr>");
        for (c, (_, number, cell)) in columns.iter().enumerate() {
            let Cell { text: shown, value } = cell(run);
            let (shown, value) = (escape(&shown), escape(&value));
            // The run's name links to its section.
            let shown = if c == 0 { format!("<a href=\"#run{i}\">{shown}</a>") } else { shown };
            let _ = write!(text, "<td{} data-value=\"{value}\">{shown}</td>", class(*number));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
    text
}

/// A certificate, one row per node.
pub(super) fn nodes(certificate: &Certificate) -> String {
    let mut text = String::from(
        "<div class=\"wide\"><table>\n<thead><tr>\
         <th scope=\"col\">node</th><th scope=\"col\">kind</th>\
         <th scope=\"col\" class=\"number\">its L ≤</th>\
         <th scope=\"col\" class=\"number\">up to here ≤</th>\
         <th scope=\"col\" class=\"number\">‖output‖₂ ≤</th>\
         <th scope=\"col\">rule</th></tr></thead>\n<tbody>\n",
    );
    for row in &certificate.nodes {
        let [path, kind, rule] = [&row.path, &row.kind, &row.rule].map(|text| escape(text));
        let _ = writeln!(
            text,
            "<tr><td>{path}</td><td>{kind}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{}</td><td>{rule}</td></tr>",
            row.lipschitz, row.cumulative, row.radius
        );
    }
    text.push_str("</tbody></table></div>\n");
    text
}
