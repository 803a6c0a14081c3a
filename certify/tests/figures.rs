//! Figures as the program writes them: formats, titles, sizes, names of runs.

mod workshop;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use workshop::Workshop;

fn certify(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certify"));
    command.args(args).env("CANDLE_NUM_THREADS", "1").output().unwrap()
}

fn ok(args: &[&str]) {
    let output = certify(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The message with which a command is refused.
fn refused(args: &[&str]) -> String {
    let output = certify(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    message
}

/// Runs as a sweep makes them; one of them with a spike.
fn runs(out: &Path) {
    for (i, constraint) in ["none", "spectral_soft_cap", "svd_clip"].into_iter().enumerate() {
        let run = out.join(format!("run-{i}"));
        std::fs::create_dir_all(&run).unwrap();
        let summary = json!({
            "label": format!("{constraint}, sigma_max={i}, seed=0"), "optimizer": "Muon",
            "constraint": constraint.replace('_', " "), "lipschitz_log10": i, "val_loss": 2.0 + i as f64,
        });
        std::fs::write(run.join("summary.json"), summary.to_string()).unwrap();
        let line = |step: u32| {
            let loss = if i == 1 && step == 60 { 1e7 } else { 1.0 + 3.0 / f64::from(step) };
            json!({"step": step, "train_loss": loss, "val_loss": loss + 0.1 * i as f64,
                "lipschitz": 0.01 * f64::from(step), "grad_norm": 1.0 / f64::from(step)})
            .to_string()
        };
        let lines: Vec<String> = (1..100).map(line).collect();
        std::fs::write(run.join("metrics.jsonl"), lines.join("\n")).unwrap();
    }
}

/// The texts of an SVG.
fn texts(svg: &str) -> Vec<&str> {
    svg.split("<g aria-label=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn every_figure_is_written_in_every_format_under_any_case() {
    let w = Workshop::new();
    runs(&w.path("runs"));
    let (runs, model) = (w.string("runs"), w.string("model.safetensors"));
    for (plot, of) in [("tradeoff", &runs), ("training", &runs), ("layers", &model)] {
        for (file, start) in [
            ("X.SVG", &b"<svg "[..]),
            ("x.svg", b"<svg "),
            ("x.Pdf", b"%PDF-1"),
            ("x.PNG", b"\x89PNG\r\n"),
        ] {
            let file = w.string(&format!("{plot}-{file}"));
            ok(&["plot", plot, of, "-o", &file]);
            assert!(std::fs::read(&file).unwrap().starts_with(start), "{file}");
        }
        let said = refused(&["plot", plot, of, "-o", &w.string("x.gif")]);
        assert!(said.contains("x.gif") && said.contains(".svg, .pdf or .png"), "{said}");
    }
    for (file, start) in [("g.PDF", &b"%PDF-1"[..]), ("g.png", b"\x89PNG"), ("g.SVG", b"<svg ")] {
        ok(&["graph", &model, "-o", &w.string(file)]);
        assert!(std::fs::read(w.path(file)).unwrap().starts_with(start), "{file}");
    }
}

#[test]
fn title_size_and_labels_are_those_given() {
    let w = Workshop::new();
    runs(&w.path("runs"));
    let (runs, file) = (w.string("runs"), w.string("f.svg"));
    let drawn = |plot: &str, more: &[&str]| {
        ok(&[&["plot", plot, &runs, "-o", &file], more].concat());
        std::fs::read_to_string(&file).unwrap()
    };
    for plot in ["tradeoff", "training"] {
        let svg = drawn(plot, &["--title", "My runs", "--size", "1000X700"]);
        assert!(svg.contains("width=\"1000\" height=\"700\""), "{}", &svg[..200]);
        assert_eq!(texts(&svg).iter().filter(|text| **text == "My runs").count(), 1);
        // Without labels, the words of the sweep, and not what all runs share.
        let svg = drawn(plot, &[]);
        for name in ["none, σ_max 0", "spectral soft cap, σ_max 1", "svd clip, σ_max 2"] {
            assert!(texts(&svg).contains(&name), "{name}: {:?}", texts(&svg));
        }
        assert!(!texts(&svg).iter().any(|text| text.contains("sigma_max") || text.contains('=')));
        let svg = drawn(plot, &["--labels", "first,the_second,drei"]);
        for name in ["first", "the_second", "drei"] {
            assert!(texts(&svg).contains(&name), "{name}: {:?}", texts(&svg));
        }
        let said = refused(&["plot", plot, &runs, "-o", &file, "--labels", "a,b"]);
        assert!(said.contains("2 names are given") && said.contains("run-2"), "{said}");
    }
    for size in ["", "x", "800", "800x", "0x600", "800x600x3", "-5x600", "1e3x600", "99999x600"] {
        let said = refused(&["plot", "tradeoff", &runs, "-o", &file, &format!("--size={size}")]);
        assert!(said.contains("1280x800"), "{size}: {said}");
    }
}

#[test]
fn a_spike_is_marked_and_does_not_set_the_axis() {
    let w = Workshop::new();
    runs(&w.path("runs"));
    let file = w.string("f.svg");
    ok(&["plot", "training", &w.string("runs"), "-o", &file]);
    let svg = std::fs::read_to_string(&file).unwrap();
    let texts = texts(&svg);
    // The note may be in two rows.
    assert!(texts.join(" ").contains("▲ beyond the axis, up to 1.0e7"), "{texts:?}");
    let first = texts.iter().position(|text| *text == "Certified Lipschitz constant").unwrap();
    let numbers = texts[..first].iter().filter_map(|text| text.parse::<f64>().ok());
    assert!(numbers.filter(|x| *x > 100.0).count() == 0, "{texts:?}");
    assert!(texts[..first].contains(&"2") && texts[..first].contains(&"3"), "{texts:?}");
}

#[test]
fn constraints_are_drawn_from_configs() {
    let w = Workshop::new();
    let config = |name: &str, method: &str, rest: &str, rate: &str| {
        let text = format!(
            "[optimizer]\nkind = \"muon\"\n[constraint]\nmethod = \"{method}\"\n{rest}\n[train]\n\
             learning_rate = {rate}\n"
        );
        std::fs::write(w.path(name), text).unwrap();
        w.string(name)
    };
    let soft = config("soft.toml", "spectral_soft_cap", "sigma_max = 2.0", "0.4");
    let clip = config("clip.toml", "svd_clip", "sigma_max = 2.0", "0.4");
    let decay = config("decay.toml", "weight_decay", "decay = 0.5", "0.4");
    let file = w.string("caps.svg");
    ok(&["plot", "caps", &soft, &clip, &decay, "-o", &file]);
    let svg = std::fs::read_to_string(&file).unwrap();
    for name in ["spectral soft cap, σ_max 2", "SVD clip, σ_max 2", "weight decay"] {
        assert!(texts(&svg).join(" ").contains(name), "{name}: {:?}", texts(&svg));
    }
    for (bad, said) in [
        (config("none.toml", "svd_clip", "", "0.4"), "sigma_max is missing"),
        (config("rate.toml", "svd_clip", "sigma_max = 2.0", "nan"), "learning rate is NaN"),
        (config("far.toml", "svd_clip", "sigma_max = 2.0", "1e300"), "learning rate is 1"),
        (config("cap.toml", "svd_clip", "sigma_max = -2.0", "0.4"), "sigma_max"),
        (config("huge.toml", "svd_clip", "sigma_max = 1e308", "0.4"), "the cap is 1e308"),
        (w.string("model.safetensors"), "model.safetensors"),
    ] {
        let line = refused(&["plot", "caps", &bad, "-o", &file]);
        let name = std::path::Path::new(&bad).file_name().unwrap().to_string_lossy();
        assert!(line.contains(said) && line.contains(&*name), "{line}");
    }
    std::fs::write(w.path("half.toml"), "[optimizer]\nkind = \"muon\"\n").unwrap();
    let line = refused(&["plot", "caps", &w.string("half.toml"), "-o", &file]);
    assert!(
        line.contains("half.toml") && line.contains("[constraint] or [train] is missing"),
        "{line}"
    );

    // A run that is not at its end has no cap; one whose summary is damaged is named.
    runs(&w.path("runs"));
    let drawn = w.string("runs");
    std::fs::write(w.path("runs/run-1/summary.json"), "{broken").unwrap();
    let line = refused(&["plot", "matrices", &drawn, "-o", &file]);
    assert!(line.contains("summary.json"), "{line}");
}
