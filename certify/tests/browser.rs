//! The HTML page in a browser, as its readers see it: nothing lies beyond the screen of a phone or a
//! computer, columns sort, colours can be read in the light and the dark mode, and no error is in
//! the console.

#![cfg(unix)]

mod workshop;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::report::{self, Made};
use lipschitz_certify::spectral::Method;
use serde_json::json;
use workshop::Workshop;

/// A browser that can be asked without a screen.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|file| file.is_file())
}

/// A page of runs with long names, certificates, curves, and one without a bound.
fn page(dir: &Path) -> String {
    let model = Workshop::model();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    for i in 0..6u32 {
        let constraint = if i % 2 == 0 { "spectral soft cap" } else { "no constraint" };
        let optimizer = if i < 3 { "Muon" } else { "AdamW" };
        let run = dir.join(format!("a-directory-with-a-name-as-sweeps-give-it-{i}-0123456789"));
        std::fs::create_dir_all(&run).unwrap();
        let loss = 2.0 - 0.1 * f64::from(i * 7 % 5);
        let log10 = (i != 2).then_some(f64::from(i * 5 % 6) * 3.3);
        let summary = json!({
            "label": format!("spectral_normalize, sigma_max={i}, AVeryLongWordWithoutAnySpaceInItAtAllThatGoesOn12345678"),
            "optimizer": optimizer, "constraint": constraint,
            "lipschitz_log10": log10, "found_log10": 0.1, "val_loss": loss, "val_accuracy": 0.5125,
            "target": 1234.5, "sigma_max": 2.176509, "learning_rate": 0.0123, "seed": 123,
            "steps": 100_000, "certified_accuracy": 0.4321, "margin_normalized_log10": 1.5,
        });
        std::fs::write(run.join("summary.json"), summary.to_string()).unwrap();
        let line = |step: u32| {
            let loss = if step == 40 { 1e9 } else { 1.0 + 3.0 / f64::from(step) };
            json!({
                "step": step, "train_loss": loss, "val_loss": loss, "lipschitz": 0.5,
                "grad_norm": 1.0 / f64::from(step),
            })
            .to_string()
        };
        let lines: Vec<String> = (1..90).map(line).collect();
        std::fs::write(run.join("metrics.jsonl"), lines.join("\n")).unwrap();
        std::fs::write(run.join("certificate.json"), serde_json::to_string(&certificate).unwrap())
            .unwrap();
    }
    let made = Made {
        date: "2026-01-02 03:04 UTC".into(),
        command: format!("certify report {} -o report.html", "runs/with/a/long/path/".repeat(9)),
    };
    report::page(&[dir.to_path_buf()], &made).unwrap()
}

/// The page in frames of the widths of a phone and a computer, with the checks as a script. It
/// writes what is wrong, one line each.
const HARNESS: &str = r##"<!DOCTYPE html><meta charset="utf-8"><pre id="result">not finished</pre><script>
const widths = [390, 1280];
const dark = DARK, page = PAGE, problems = [];
const channels = (text) => text.match(/[\d.]+/g).map(Number);
const light = (color) => {
  const [r, g, b] = channels(color).map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
function check(width, view) {
  const say = (text) => problems.push(width + " px: " + text);
  const doc = view.document;
  for (const fold of doc.querySelectorAll("details")) fold.open = true;
  const root = doc.documentElement;
  if (view.innerWidth !== width) say("the frame is " + view.innerWidth + " px wide");
  if (view.matchMedia("(prefers-color-scheme: dark)").matches !== dark) say("the mode is not as asked for");
  if (root.scrollWidth > width) say("the page is " + root.scrollWidth + " px wide");
  const name = (e) => e.tagName + " " + (e.textContent || "").trim().slice(0, 40);
  let seen = 0;
  for (const e of doc.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height || e.closest("svg.glyphs")) continue;
    seen += 1;
    if (e.closest("svg") && e.tagName !== "svg") continue;
    if (box.left < -.5 || box.right > width + .5) say("beyond the screen: " + name(e));
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && view.getComputedStyle(e).overflowX !== "visible") say("scrolls: " + name(e));
  }
  if (seen < 300) say("only " + seen + " elements are seen");
  const paper = view.getComputedStyle(doc.body).backgroundColor;
  if ((light(paper) < .2) !== dark) say("the paper is " + paper);
  for (const e of doc.querySelectorAll("h1, p, td, a, th button, summary, summary span")) {
    const [a, b] = [light(view.getComputedStyle(e).color), light(paper)];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) say("contrast " + contrast.toFixed(1) + ": " + name(e));
  }
  for (const figure of doc.querySelectorAll(".large, .small, .beside svg")) {
    const text = figure.querySelector("g[aria-label]")?.getBoundingClientRect();
    if (text && text.height && text.height < 7) say("text of " + text.height + " px in a figure");
  }
  const table = doc.getElementById("runs");
  const heads = [...table.tHead.rows[0].cells];
  const column = (head) => [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].dataset.value);
  const sorted = (head, down) => {
    const all = column(head), values = all.filter((value) => value !== "").map(Number);
    if (all.slice(values.length).some((value) => value !== "")) say("cells without a value are not last");
    const wrong = values.some((value, i) => i && (down ? value > values[i - 1] : value < values[i - 1]));
    if (wrong) say(head.textContent + " is not sorted: " + values);
    const told = head.getAttribute("aria-sort");
    if (told !== (down ? "descending" : "ascending")) say(head.textContent + " says " + told);
  };
  sorted(heads.find((head) => head.textContent === "L ≤"), false);
  for (const head of heads.filter((head) => head.classList.contains("number"))) {
    head.querySelector("button").click();
    sorted(head, false);
    head.querySelector("button").click();
    sorted(head, true);
  }
  if (table.tBodies[0].rows.length !== 6) say("rows were lost");
}
Promise.all(widths.map((width) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = "border:0;height:2000px;width:" + width + "px";
  frame.onload = () => {
    try { check(width, frame.contentWindow); } catch (error) { problems.push(width + " px: " + error); }
    done();
  };
  frame.srcdoc = page;
  document.body.append(frame);
}))).then(() => {
  console.info("the harness is heard");
  document.getElementById("result").textContent = "<<" + problems.join("\n") + ">>";
});
</script>"##;

/// What is wrong with a page, and what it wrote to the console.
fn problems(browser: &Path, page: &str, dark: bool) -> (Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("harness.html");
    // A script ends at the first end tag, also inside a text.
    let text =
        serde_json::to_string(page).unwrap().replace("</", "<\\/").replace("<!--", "<\\u0021--");
    let harness = HARNESS.replace("DARK", &dark.to_string()).replace("PAGE", &text);
    std::fs::write(&file, harness).unwrap();
    let scheme = format!("--blink-settings=preferredColorScheme={}", i32::from(!dark));
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--enable-logging=stderr", "--window-size=1400,1000"])
        .args(["--timeout=20000", "--virtual-time-budget=20000", "--dump-dom", &scheme])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .env("HOME", dir.path())
        .output()
        .unwrap();
    let (said, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let result = said.split_once("&lt;&lt;").and_then(|(_, rest)| rest.split_once("&gt;&gt;"));
    let Some((result, _)) = result else { panic!("the browser gave no result: {said}\n{log}") };
    let console: Vec<String> =
        log.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    assert!(console.iter().any(|line| line.contains("the harness is heard")), "{log}");
    let others = console.into_iter().filter(|line| !line.contains("the harness is heard"));
    (result.lines().map(String::from).collect(), others.collect())
}

#[test]
fn a_page_can_be_read_and_sorted_on_a_phone_and_a_computer() {
    let Some(browser) = browser() else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: there is no chromium or google-chrome; the page was not opened"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let page = page(dir.path());
    for dark in [false, true] {
        let (wrong, console) = problems(&browser, &page, dark);
        assert!(wrong.is_empty(), "dark: {dark}\n{}", wrong.join("\n"));
        assert!(console.is_empty(), "dark: {dark}\n{}", console.join("\n"));
    }
    // Each check can fail.
    let broken = page
        .replace("</style>", "#runs { min-width: 1300px } p.note { color: #bbbbbb }</style>")
        .replace("return down ? -order : order;", "return order;")
        .replace("\"use strict\";", "\"use strict\"; console.error('planted');");
    let (wrong, console) = problems(&browser, &broken, false);
    let wrong = wrong.join("\n");
    for planted in
        ["390 px: scrolls: DIV", "1280 px: scrolls: DIV", "contrast", "loss is not sorted"]
    {
        assert!(wrong.contains(planted), "{planted}:\n{wrong}");
    }
    assert!(console.iter().any(|line| line.contains("planted")));
}
