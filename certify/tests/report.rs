//! The HTML page: it contains all runs and certificates, no text from a file becomes markup, and it
//! loads nothing else.

mod workshop;

use std::path::{Path, PathBuf};

use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::report::{self, Made};
use lipschitz_certify::spectral::Method;
use lipschitz_plot::scene;
use serde_json::json;
use workshop::Workshop;

const LABEL: &str = "</title><script>alert('1')</script>\" onclick=\"x & é";

fn run(out: &Path, name: &str, log10: Option<f64>, certificate: bool) -> PathBuf {
    let dir = out.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let summary = json!({
        "label": format!("{LABEL}{name}"), "method": "Muon + <b>cap</b>",
        "lipschitz_log10": log10, "found_log10": 0.1,
        "val_loss": 1.5, "val_accuracy": 0.5, "seed": u64::MAX, "sigma_max": 2.0,
    });
    std::fs::write(dir.join("summary.json"), summary.to_string()).unwrap();
    let line = r#"{"step":1,"train_loss":3.0,"val_loss":2.0,"lipschitz":0.5}"#;
    std::fs::write(
        dir.join("metrics.jsonl"),
        format!("{line}\n{}\n", line.replace("\"step\":1", "\"step\":9")),
    )
    .unwrap();
    if certificate {
        let model = Workshop::model();
        let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        std::fs::write(dir.join("certificate.json"), serde_json::to_string(&certificate).unwrap())
            .unwrap();
    }
    dir
}

fn page(paths: &[PathBuf]) -> Result<String, String> {
    let made = Made { date: "2026-01-02".into(), command: "certify <x>".into() };
    report::page(paths, &made).map_err(|e| e.to_string())
}

#[test]
fn runs_are_in_the_order_of_their_constants() {
    let dir = tempfile::tempdir().unwrap();
    for (name, log10) in [("a", None), ("b", Some(300.0)), ("c", Some(-2.0)), ("d", Some(1.0))] {
        run(dir.path(), name, log10, false);
    }
    let page = page(&[dir.path().to_path_buf()]).unwrap();
    let label = lipschitz_plot::svg::escape(LABEL);
    let order: Vec<char> = page
        .split("<summary>")
        .skip(1)
        .filter_map(|rest| rest.strip_prefix(&label)?.chars().next())
        .collect();
    assert_eq!(order, ['c', 'd', 'b', 'a']);
}

#[test]
fn a_page_holds_all_runs_and_no_markup_from_files() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "a", Some(1.0), true);
    run(dir.path(), "b", Some(300.0), false);
    run(dir.path(), "c", None, false);
    let page = page(&[dir.path().to_path_buf()]).unwrap();
    assert_eq!(page.matches("<details").count(), 3);
    let version = env!("CARGO_PKG_VERSION");
    let made =
        format!("Made by lipschitz-certify {version} on 2026-01-02: <code>certify &lt;x&gt;");
    assert!(page.contains(&made));
    assert!(page.contains(
        "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot; \
         onclick=&quot;x &amp; éa"
    ));
    // Only the page's own script, and no markup from labels or methods.
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("<b>") && !page.contains("alert('1')") && !page.contains("onclick=\""));
    assert!(page.contains(">18446744073709551615<"));
    assert!(page.contains("blocks.0.attention") && page.contains("There is no certificate.json"));
    assert!(page.contains("1 of the runs, which have no finite bound"));
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    // Every glyph in use is defined once, and every colour has a variable for the light and one for
    // the dark mode.
    let uses: std::collections::BTreeSet<&str> =
        page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(uses.len() > 30);
    for id in uses {
        assert_eq!(page.matches(&format!("id=\"{id}\"")).count(), 1, "{id}");
    }
    for color in
        (0..scene::COLORS).map(scene::Color::Data).chain([scene::Color::Ink, scene::Color::Paper])
    {
        assert_eq!(page.matches(&format!("{}:", color.variable())).count(), 2, "{color:?}");
    }
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let one = run(dir.path(), "a", Some(1.0), true);
    std::fs::write(one.join("certificate.json"), "{").unwrap();
    let error = page(std::slice::from_ref(&one)).unwrap_err();
    assert!(error.contains("certificate.json"), "{error}");
    std::fs::write(one.join("summary.json"), "[]").unwrap();
    assert!(page(&[one]).unwrap_err().contains("summary.json"));
    assert!(page(&[dir.path().join("none")]).unwrap_err().contains("none"));
}
