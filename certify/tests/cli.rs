//! The program as its users meet it, on a checkpoint written by the library.

mod workshop;

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::Certificate;
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::{self, Meta, Provenance};
use lipschitz_nn::graph::{Graph, Input, Node, Op};
use workshop::Workshop;

fn certify(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certify"));
    command.args(args).env("CANDLE_NUM_THREADS", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = certify(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(args: &[&str]) -> String {
    let Output { status, stderr, .. } = certify(args).output().unwrap();
    let message = text(&stderr);
    assert_eq!(status.code(), Some(2), "{args:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
    message
}

/// Runs with this on stdin.
fn piped(args: &[&str], input: &[u8]) -> Output {
    use std::io::Write;
    let (stdin, stdout) = (std::process::Stdio::piped(), std::process::Stdio::piped());
    let mut child = certify(args).stdin(stdin).stdout(stdout).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// A usage error as clap lays it out, over several lines: what is wrong, and where help is.
fn misused(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = certify(args).output().unwrap();
    let message = text(&stderr);
    assert_eq!((status.code(), stdout.len()), (Some(2), 0), "{args:?}: {message}");
    assert!(message.contains("\n\nFor more information, try '--help'."), "{args:?}: {message}");
    message
}

#[test]
fn bounds_are_ordered_and_written() {
    let w = Workshop::new();
    let (dir, json) = (w.string(""), w.string("c.json"));
    let number = |args: &[&str]| -> f64 {
        let all = [&["bound", &dir, "--quiet", "--effort", "0"], args].concat();
        ok(&all).trim().parse().unwrap()
    };
    let proven = number(&[]);
    // A second proof takes nothing away, and one step of a search is better than none.
    let both = ok(&["bound", &dir, "--effort", "2"]);
    assert!(both.contains("by ellipsoids") && both.contains("L so far by norms"), "{both}");
    let smaller: f64 = ok(&["bound", &dir, "--quiet"]).trim().parse().unwrap();
    assert!(smaller < proven, "{smaller} {proven}");
    let without = ok(&["bound", &dir, "--effort", "0"]);
    assert!(!without.contains("ellipsoids"), "{without}");
    assert!(proven <= number(&["--norms", "gram"]));
    assert!(number(&["--norms", "gram"]) < number(&["--norms", "frobenius"]));
    let power = number(&["--norms", "power"]);
    assert!((power / proven - 1.0).abs() < 1e-3, "{power} {proven}");
    assert!(number(&["--radius", "0.5"]) < proven);
    assert!(number(&["--formula", "paper"]) < proven);
    let table = ok(&["bound", &dir, "--json", &json]);
    assert!(
        table.contains("certified") && table.contains("assumes:") && table.contains("head.weight"),
        "{table}"
    );
    for (args, why) in
        [(["--norms", "power"], "NOT PROVEN"), (["--formula", "paper"], "NOT PROVEN")]
    {
        let table = ok(&[&["bound", &dir], &args[..]].concat());
        assert!(table.contains(why) && table.contains("warning:"), "{table}");
    }
    let certificate: Certificate =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert!(certificate.proven);
    // The printed constant is the stored one, rounded up.
    assert!(
        (0.0..1e-2).contains(&(smaller / certificate.rms.to_f64() - 1.0)),
        "{smaller} {}",
        certificate.rms
    );
    assert!(ok(&["completions", "bash"]).contains("certify"));
}

#[test]
fn the_steepest_pair_is_saved_and_below_the_bound() {
    let w = Workshop::new();
    let (dir, pair) = (w.string(""), w.string("pair.safetensors"));
    let text = ok(&["probe", &dir, "--seconds", "0.3", "--radius", "2.5", "--output", &pair]);
    assert!(text.contains("≤ true ≤ certified"), "{text}");
    let json = ok(&["probe", "--json", &dir, "--seconds", "0", "--radius", "2.5"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(report["ratio"].as_f64().unwrap() >= 1.0, "{json}");
    // The pair from the file has the printed sensitivity, and lies in the domain.
    let (tensors, _) = checkpoint::load_tensors(&w.path("pair.safetensors"), &Device::Cpu).unwrap();
    let model = Workshop::model().to(&Device::Cpu, DType::F64).unwrap();
    let norms = |x: &Tensor| {
        x.sqr()
            .unwrap()
            .sum(2)
            .unwrap()
            .sqrt()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    let run = |name: &str| model.forward_embeddings(&tensors[name]).unwrap();
    let apart = norms(&(&tensors["a"] - &tensors["b"]).unwrap());
    let found = norms(&(run("a") - run("b")).unwrap()) / apart;
    let printed: f64 =
        text.strip_prefix("found ").unwrap().split(' ').next().unwrap().parse().unwrap();
    // The printed one has the rounding of both passes allowed for; the file has it as computed.
    assert!(printed <= found && printed > found * (1.0 - 1e-3), "{found} {printed}");
    let bytes = std::fs::read(&pair).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let computed: f64 = header.metadata().as_ref().unwrap()["sensitivity_l2"].parse().unwrap();
    assert!((found / computed - 1.0).abs() < 1e-9, "{found} {computed}");
    assert!(norms(&tensors["a"]) <= 2.5 && norms(&tensors["b"]) <= 2.5);
    assert!(misused(&["probe", &dir, "--seconds", "-1"]).contains("--seconds"));
    assert!(refused(&["probe", &dir, "--data", &w.string("none.txt")]).contains("tokenizer"));
}

/// `head` closes the pipe after some lines.
#[test]
fn a_closed_pipe_is_no_panic() {
    let w = Workshop::new();
    let mut child = certify(&["bound", &w.string("")])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn plans_hold_before_training() {
    let w = Workshop::new();
    let config = "[model]\npreset = \"gpt\"\ndim = 16\nlayers = 2\nheads = 4\ncontext = 8\n";
    let path = w.string("c.toml");
    let write = |constraint: &str| {
        std::fs::write(w.path("c.toml"), format!("{config}[constraint]\n{constraint}")).unwrap()
    };
    write("method = \"spectral_normalize\"\n");
    let text = ok(&["plan", &path, "--target", "5"]);
    assert!(text.contains("L ≤ 5  RMS") && text.contains("[constraint.factors]"), "{text}");
    // The printed section can be pasted into the config, and gives the printed constant.
    let last = text.rsplit("[constraint]").next().unwrap();
    write(last);
    let sigma = last.lines().find_map(|l| l.strip_prefix("sigma_max = ")).unwrap();
    let text = ok(&["plan", &path, "--sigma-max", sigma]);
    assert!(text.contains("L ≤ 5  RMS") && !text.contains("one output"), "{text}");
    // Constants that depend on the number of outputs are printed only if it is given.
    let outputs = |n: &str| ok(&["plan", &path, "--sigma-max", sigma, "--outputs", n]);
    let one = |text: &str| text.lines().find(|l| l.starts_with("one output")).unwrap().to_string();
    assert!(outputs("65").contains("L ≤ 5  RMS") && one(&outputs("65")) != one(&outputs("50304")));
    assert!(ok(&["plan", &path, "--sigma-max", sigma, "--per-head"]) != text);
    write("method = \"none\"\n");
    assert!(refused(&["plan", &path, "--target", "5"]).contains("sigma_max"));
    assert!(refused(&["plan", &path, "--sigma-max", "0"]).contains("--sigma-max 0"));
    assert!(misused(&["plan", &path]).contains("--target"));
    assert!(misused(&["plan", &path, "--sgima-max", "1"]).contains("--sigma-max"));
    assert!(misused(&["bound"]).contains("<MODEL>"));
    write("method = \"spectral_normalize\"\nfactors = { qurey = 2.0 }\n");
    assert!(refused(&["plan", &path, "--target", "5"]).contains("qurey"));
    // What is no TOML, and what is no key, is said with its place.
    write("method = = 1\n");
    let said = refused(&["plan", &path, "--target", "5"]);
    assert!(said.contains("c.toml: line 8, column 10, `method = = 1`: "), "{said}");
    write("method = \"spectral_normalise\"\n");
    let said = refused(&["plan", &path, "--target", "5"]);
    assert!(said.contains("line 8, column 10, `method = \"spectral_normalise\"`: unk"), "{said}");
    // With a mark of the byte order, as some editors write it, and from stdin.
    let marked = format!("\u{feff}{config}[constraint]\nmethod = \"spectral_normalize\"\n");
    std::fs::write(w.path("c.toml"), &marked).unwrap();
    let wanted = ok(&["plan", &path, "--target", "5"]);
    let plan = ["plan", "-", "--target", "5"];
    assert_eq!(String::from_utf8(piped(&plan, marked.as_bytes()).stdout).unwrap(), wanted);
}

#[test]
fn certificates_are_verified_by_exit_code() {
    let w = Workshop::new();
    let (dir, json) = (w.string(""), w.string("c.json"));
    ok(&["bound", &dir, "--json", &json]);
    let said = ok(&["verify", &json, &dir]);
    assert!(said.contains("holds") && said.contains("domain: "), "{said}");
    let text = std::fs::read_to_string(&json).unwrap();
    let broken = |text: String, code: i32, names: &str| {
        std::fs::write(&json, text).unwrap();
        let output = certify(&["verify", &json, &dir]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.contains(names), "{said}");
    };
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["rms"]["exponent"] = (-3).into();
    let mantissa = value["rms"]["mantissa"].as_f64().unwrap();
    value["rms"]["log10"] = ((mantissa / 8.0).log10() + 2e-15).into();
    value["rms"].as_object_mut().unwrap().remove("value");
    broken(value.to_string(), 1, "rms");
    // Nor may what a reader takes for the bound be below it.
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let decimal: f64 = value["rms"]["value"].as_str().unwrap().parse().unwrap();
    let exact = mantissa * 2f64.powi(value["rms"]["exponent"].as_i64().unwrap() as i32);
    assert!(decimal >= exact && decimal <= exact * (1.0 + 1e-15), "{decimal} {exact}");
    value["rms"]["value"] = format!("{}", decimal * 0.999).into();
    broken(value.to_string(), 1, "value");
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let log = value["l2"]["log10"].as_f64().unwrap();
    value["l2"]["log10"] = (log - 1e-13).into();
    broken(value.to_string(), 1, "log10");
    broken(text.replacen("\"log10\": ", "\"log10\": 7", 1), 1, "log10");
    // A reader could take an unknown key for a claim.
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["graph"]["nodes"][0]["sigma_max"] = 0.1.into();
    broken(value.to_string(), 1, "`graph.nodes[0].sigma_max` is not known");
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    (value["domain"]["given"], value["domain"]["radius"]) =
        (true.into(), serde_json::json!({ "mantissa": 0.0, "exponent": 0 }));
    broken(value.to_string(), 1, "domain.radius");
    broken(text.replacen("\"proven\": true", "\"proven\": false", 1), 1, "proven");
    broken("{}".into(), 2, "is not a certificate");
    broken(text[..100].into(), 2, "is not a certificate");
    assert!(refused(&["verify", &w.string("none.json"), &dir]).contains("none.json"));
}

#[test]
fn the_forward_pass_is_the_library_s() {
    let w = Workshop::new();
    let (dir, input, output) = (w.string(""), w.string("x.safetensors"), w.string("y.safetensors"));
    let tokens = Tensor::new(&[[1i64, 5, 10], [0, 2, 2]], &Device::Cpu).unwrap();
    let model = Workshop::model();
    let want = model.forward(&tokens).unwrap();
    let embeddings = model.embed(&tokens).unwrap();
    for (name, tensor) in [("tokens", tokens), ("embeddings", embeddings)] {
        checkpoint::save_tensors(
            w.path("x.safetensors").as_path(),
            [(name, tensor)].into_iter(),
            None,
        )
        .unwrap();
        ok(&["run", &dir, "--input", &input, "--output", &output]);
        let (tensors, _) =
            checkpoint::load_tensors(&w.path("y.safetensors"), &Device::Cpu).unwrap();
        let off = (&tensors["output"] - &want)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(off < 1e-6, "{name}: {off}");
    }
    ok(&["run", &dir, "--double", "--input", &input, "--output", &output]);
    let (tensors, _) = checkpoint::load_tensors(&w.path("y.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(tensors["output"].dtype(), DType::F64);

    let long = Tensor::zeros((1, 7), DType::U32, &Device::Cpu).unwrap();
    let outside = Tensor::new(&[[11u32]], &Device::Cpu).unwrap();
    for (tensor, names) in [(long, ["7", "6"]), (outside, ["11", "vocabulary"])] {
        checkpoint::save_tensors(
            w.path("x.safetensors").as_path(),
            [("tokens", tensor)].into_iter(),
            None,
        )
        .unwrap();
        let message = refused(&["run", &dir, "--input", &input, "--output", &output]);
        assert!(names.iter().all(|n| message.contains(n)), "{message}");
    }
    checkpoint::save_tensors(
        w.path("x.safetensors").as_path(),
        [("words", want)].into_iter(),
        None,
    )
    .unwrap();
    assert!(
        refused(&["run", &dir, "--input", &input, "--output", &output])
            .contains("wants one of the tensors")
    );
}

#[test]
fn the_architecture_is_drawn_three_ways() {
    let w = Workshop::new();
    let dir = w.string("");
    for (file, holds) in
        [("g.svg", "attention 4 heads"), ("g.dot", "digraph"), ("g.json", "\"attention\"")]
    {
        ok(&["graph", &dir, "-o", &w.string(file)]);
        let text = std::fs::read_to_string(w.path(file)).unwrap();
        assert!(text.contains(holds), "{text}");
        assert!(file == "g.json" || text.contains("L ≤ "), "{text}");
    }
    assert!(refused(&["graph", &dir, "-o", &w.string("g.gif")]).contains(".svg, .dot or .json"));
}

#[test]
fn bad_input_gets_one_line() {
    let w = Workshop::new();
    let whole = std::fs::read(w.path("model.safetensors")).unwrap();
    for (name, bytes) in [("nothing", 0), ("length", 5), ("header", 200), ("data", whole.len() - 8)]
    {
        std::fs::write(w.path(name), &whole[..bytes]).unwrap();
        let message = refused(&["bound", &w.string(name)]);
        assert!(message.contains(name), "{message}");
    }
    assert!(refused(&["bound", &w.string("missing")]).contains("missing"));
    std::fs::create_dir(w.path("empty")).unwrap();
    assert!(refused(&["bound", &w.string("empty")]).contains("holds no model.safetensors"));
    for value in [f32::NAN, f32::INFINITY] {
        let broken = w.save("broken.safetensors", |weights| {
            let name = "blocks.1.attention.key.weight";
            let mut values = weights[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values[17] = value;
            let w = Tensor::from_vec(values, weights[name].shape(), &Device::Cpu).unwrap();
            weights.insert(name.into(), w);
        });
        for command in
            [&["bound"][..], &["plot", "layers", "-o", "p.svg"], &["graph", "-o", "g.svg"]]
        {
            let message = refused(&[command, &[&broken]].concat());
            assert!(
                message.contains("blocks.1.attention.key.weight")
                    && message.contains("broken.safetensors"),
                "{message}"
            );
        }
    }
    let model = w.string("model.safetensors");
    assert!(refused(&["bound", &model, "--radius", "-1"]).contains("--radius -1"));
    assert!(refused(&["bound", &model, "--json", &w.string("no/c.json")]).contains("no/c.json"));
    assert!(
        refused(&["plot", "tradeoff", &w.string("empty"), "-o", &w.string("p.svg")])
            .contains("holds no summary.json")
    );
    assert!(
        refused(&["plot", "training", &w.string("none"), "-o", &w.string("p.svg")])
            .contains("none")
    );
    assert!(
        refused(&["plot", "robust", &w.string("none"), "-o", &w.string("p.svg")]).contains("none")
    );
    assert!(
        refused(&["report", &w.string("empty"), "-o", &w.string("p.html")])
            .contains("holds no summary.json")
    );
    assert!(refused(&["robust", &model, "--data", &w.string("none")]).contains("tokenizer"));
    assert!(misused(&["robust", &model, "--data", "x", "--eps", "0,1/0"]).contains("1/0"));
    let none = misused(&["robust", &model, "--data", "x", "--restarts", "0"]);
    assert!(none.contains("1..=1000000"), "{none}");
    // A bound beyond the range of f64 is printed as a power of ten.
    let large = w.save("large.safetensors", |weights| {
        weights.values_mut().for_each(|w| *w = (&*w * 1e30).unwrap());
    });
    let bound = ok(&["bound", &large, "--quiet"]);
    assert!(bound.trim().starts_with("1e") || bound.contains('e'), "{bound}");
    let exponent: i64 = bound.trim().rsplit('e').next().unwrap().parse().unwrap();
    assert!(exponent > 308, "{bound}");
}

/// A third-party model is the same model whether it is imported or given to a command directly.
#[test]
fn third_party_models_are_models() {
    let w = Workshop::new();
    let golden = |name: &str| format!("{}/../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let (dir, file, json) =
        (golden("qwen3"), w.string("imported.safetensors"), w.string("imported.json"));
    let text = ok(&["import", &dir, "-o", &file, "--report"]);
    assert!(text.contains("applied: embedding.weight = model.embed_tokens.weight"), "{text}");
    assert!(
        text.contains("imported: qwen3, as Hugging Face transformers 5.24.0 computes it"),
        "{text}"
    );
    let text = ok(&["bound", &file, "--json", &json]);
    assert!(text.contains("imported: qwen3") && text.contains("certified"), "{text}");
    assert!(ok(&["verify", &json, &dir]).contains("holds"));
    let document: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(document["origin"]["dialect"], "original");
    // The forward pass of the directory is that of the library.
    let (expected, out) = (format!("{dir}/expected.safetensors"), w.string("out.safetensors"));
    ok(&["run", &dir, "--input", &expected, "--output", &out, "--double"]);
    let read = |path: &str, name: &str| -> Vec<f64> {
        let tensors = checkpoint::load_tensors(std::path::Path::new(path), &Device::Cpu).unwrap().0;
        tensors[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (found, wanted) = (read(&out, "output"), read(&expected, "output"));
    assert_eq!(found.len(), wanted.len());
    assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
    // Every import can be checked against the library's outputs.
    let said = refused(&["import", &dir, "-o", &out]);
    assert!(said.contains("out.safetensors: is there already and is not a network"), "{said}");
    let network = w.string("network.safetensors");
    let checked = ["import", &dir, "-o", &network, "--check", &expected, &expected];
    assert!(ok(&checked).contains("checked: outputs for 2 inputs"));
    let other = format!("{}/expected.safetensors", golden("llama"));
    let said = refused(&["import", &dir, "-o", &network, "--check", &other, &expected]);
    assert!(said.contains("is not the one that gave them"), "{said}");
    // Weights of half precision are computed with in f32.
    ok(&[
        "run",
        &golden("bigcode"),
        "--input",
        &format!("{}/expected.safetensors", golden("bigcode")),
        "--output",
        &out,
    ]);
    assert!(ok(&["probe", &dir, "--seconds", "0.2"]).contains("≤ true ≤ certified"));
    ok(&["graph", &golden("t5"), "-o", &w.string("t5.svg")]);
    ok(&["plot", "layers", &golden("vit"), "-o", &w.string("vit.svg")]);
    assert!(std::fs::read_to_string(w.path("t5.svg")).unwrap().contains("position bias"));
    assert!(
        refused(&["import", &golden("gpt2"), "-o", &file, "--function", "candle"])
            .contains("candle has no model of")
    );
    assert!(refused(&["import", &golden("none"), "-o", &file]).contains("no such file"));
    assert!(refused(&["bound", &golden(".")]).contains("config.json"));
}

/// A network that its author declares, checked against outputs of PyTorch.
#[test]
fn a_network_of_ones_own_is_checked_and_imported() {
    let w = Workshop::new();
    let own = |name: &str| format!("{}/../tests/golden/own/{name}", env!("CARGO_MANIFEST_DIR"));
    let (file, out) = (own("mlp/weights.pt"), w.string("own.safetensors"));
    let (graph, expected) = (own("mlp/graph.json"), own("mlp/expected.safetensors"));
    let declared = ["import", &file, "--graph", &graph, "-o", &out];
    let text = ok(&[&declared[..], &["--check", &expected, &expected]].concat());
    assert!(
        text.contains("checked: outputs for 3 inputs") && text.contains("graph.json"),
        "{text}"
    );
    assert!(ok(&["bound", &out]).contains("those of the original program"));
    // The same file as matrices, with two functions; with them in the wrong order it is another
    // network, and nothing is written.
    let matrices = ["import", &file, "-o", &out, "--check", &expected, &expected];
    ok(&[&matrices[..], &["--activation", "tanh,relu"]].concat());
    assert!(ok(&["bound", &out]).contains("in turn, tanh, relu"));
    std::fs::remove_file(&out).unwrap();
    let said = refused(&[&matrices[..], &["--activation", "relu,tanh"]].concat());
    assert!(said.contains("expected.safetensors: outputs are"), "{said}");
    assert!(said.contains("is not the one that gave them") && !w.path("own.safetensors").exists());
    // Commands that take no options say which one decides.
    let said = refused(&["bound", &file]);
    assert!(said.contains("give --activation") && said.contains("`certify import`"), "{said}");
    assert!(refused(&["import", &graph, "-o", &out]).contains("graph.json"));
    for odd in [&["--order", "0,2,4"][..], &["--activation", "relu"]] {
        assert!(misused(&[&declared[..], odd].concat()).contains("cannot be used with"));
    }
    let conv = w.string("conv.safetensors");
    let tensor = Tensor::zeros((2, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let save = |tensors: &[(&'static str, &Tensor)]| {
        let tensors = tensors.iter().map(|(name, t)| (*name, (*t).clone()));
        checkpoint::save_tensors(std::path::Path::new(&conv), tensors, None).unwrap();
    };
    save(&[("conv1.weight", &tensor)]);
    let said = refused(&["import", &conv, "-o", &out, "--allow-unused"]);
    assert!(said.contains("convolution") && said.contains("--graph"), "{said}");
    assert!(!said.contains("--allow-unused"), "{said}");
    let matrix = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    save(&[("decoder.weight", &matrix), ("encoder.weight", &matrix)]);
    let said = refused(&["import", &conv, "-o", &out, "--activation", "relu"]);
    assert!(said.contains("give --order NAME,NAME"), "{said}");
    // Files that do not say which tensor is meant.
    let said = refused(&["import", &file, "--graph", &graph, "-o", &out, "--check", &conv, &conv]);
    assert!(said.contains("wants one tensor, or one of input"), "{said}");
}

/// A result written to a link goes where the link points; a pipe is written to.
#[cfg(unix)]
/// A run behind zeros: another graph, the same weights; the file runs, and its certificate holds.
#[test]
fn a_run_of_ones_own_stands_behind_zeros() {
    let w = Workshop::new();
    let (dir, file, json) = (w.string(""), w.string("behind.safetensors"), w.string("z.json"));
    let said = ok(&["import", &dir, "-o", &file, "--zero-prefix", "3"]);
    assert!(said.contains("weights"), "{said}");
    let (model, meta) = checkpoint::load(&w.path("behind.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(model.graph(), &Workshop::model().graph().behind_zeros(3).unwrap());
    assert_eq!(meta.graph, *model.graph());
    ok(&["graph", &file, "-o", &w.string("behind.dot")]);
    let drawn = std::fs::read_to_string(w.path("behind.dot")).unwrap();
    assert!(drawn.contains("behind 3 zeros"), "{drawn}");
    let said = ok(&["bound", &file, "--effort", "2", "--json", &json]);
    assert!(said.contains("behind 3 zero vectors"), "{said}");
    ok(&["verify", &json, &file]);
    let other = certify(&["verify", &json, &dir]).output().unwrap();
    assert_eq!(other.status.code(), Some(1), "{}", text(&other.stderr));
}

#[test]
fn links_and_pipes_stay_what_they_are() {
    let w = Workshop::new();
    let (dir, target, link) = (w.string(""), w.path("target.json"), w.path("link.json"));
    std::fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    ok(&["bound", &dir, "--json", &w.string("link.json")]);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let written = std::fs::read_to_string(&target).unwrap();
    assert!(written.starts_with('{'));
    let said = ok(&["bound", &dir, "--quiet", "--json", "/dev/stdout"]);
    assert!(said.starts_with(&written[..200]), "{said}");
}

/// A script that runs `verify && deploy` does not take an estimate for a proof.
#[test]
fn an_estimate_is_not_verified_with_success() {
    let w = Workshop::new();
    let (dir, json) = (w.string(""), w.string("c.json"));
    for args in [["--norms", "power"], ["--formula", "paper"]] {
        ok(&[&["bound", &dir, "--json", &json], &args[..]].concat());
        let Output { status, stderr, .. } = certify(&["verify", &json, &dir]).output().unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}");
        assert!(text(&stderr).contains("NOT a proven bound"), "{}", text(&stderr));
    }
    ok(&["bound", &dir, "--json", &json]);
    ok(&["verify", &json, &dir]);
    // What a reader sees is bound too: logarithms, and the one text that is no part of the proof.
    let genuine = std::fs::read_to_string(&json).unwrap();
    let mut forged: serde_json::Value = serde_json::from_str(&genuine).unwrap();
    forged["rms"]["log10"] = serde_json::Value::Null;
    let mut spoken: serde_json::Value = serde_json::from_str(&genuine).unwrap();
    spoken["version"] = "9.9.9 (proven by somebody)".into();
    for (forged, what) in [(forged, "log10"), (spoken, "version")] {
        std::fs::write(&json, forged.to_string()).unwrap();
        let Output { status, stderr, .. } = certify(&["verify", &json, &dir]).output().unwrap();
        assert_eq!((status.code(), text(&stderr).contains(what)), (Some(1), true), "{what}");
    }
}

/// A checkpoint cannot move the cursor, clear the screen, or write lines of its own.
#[test]
fn what_a_file_says_is_shown_and_not_obeyed() {
    use lipschitz_nn::checkpoint::{Dialect, Meta, Origin, Provenance};
    use lipschitz_nn::graph::{Graph, Input, Node, Op};

    let w = Workshop::new();
    let path = w.path("loud.safetensors");
    let name = "a\u{1b}[2J\u{202e}b\u{200b}L≤0";
    let op = Op::Linear { inputs: 2, outputs: 2, bias: false };
    let graph = Graph::new(Input::Vector { dim: 2 }, vec![Node::new(name, op)]).unwrap();
    let weight = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let weights = [(format!("{name}.weight"), weight)].into();
    let model = lipschitz_nn::Model::new(graph.clone(), weights).unwrap();
    let origin = Origin {
        family: "x\u{1b}[H".into(),
        dialect: Dialect::Original,
        library: None,
        notes: vec!["calm\r\nL ≤ 0  RMS → RMS    certified\u{7}".into()],
        weights: Vec::new(),
        unused: vec!["y\u{9b}1m".into()],
    };
    let provenance = Provenance { origin: Some(origin), ..Provenance::default() };
    let meta = Meta {
        format: checkpoint::FORMAT,
        graph,
        config: serde_json::Value::Null,
        tokenizer: None,
        classes: Vec::new(),
        provenance,
    };
    checkpoint::save(&path, &model, &meta).unwrap();
    let path = path.to_str().unwrap();
    let quiet = |text: &str| {
        let bad = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{200b}".contains(c);
        assert!(!text.contains(bad), "{text:?}");
    };
    let table = ok(&["bound", path]);
    quiet(&table);
    assert!(table.contains(r"a\u{1b}[2J\u{202e}b\u{200b}L≤0"), "{table}");
    assert!(
        !table.lines().any(|line| line.starts_with("L≤0") || line.starts_with("L ≤ 0")),
        "{table}"
    );
    assert!(table.contains(r"calm\u{d}\u{a}L"), "{table}");
    for kind in ["svg", "dot"] {
        let picture = w.string(&format!("graph.{kind}"));
        ok(&["graph", path, "-o", &picture]);
        quiet(&std::fs::read_to_string(&picture).unwrap());
    }
    quiet(&ok(&["probe", path, "--seconds", "0"]));
    let Output { stderr, .. } = certify(&["bound", "no\u{1b}[2Jfile"]).output().unwrap();
    quiet(&text(&stderr));
    // What is typed is quoted in usage errors, and begins no line of its own there.
    for args in [
        vec!["bound", "--no\u{1b}[2J"],
        vec!["bound", "x", "--norms", "a\nerror: b\u{202e}"],
        vec!["a\nUsage: b"],
        vec!["robust", "x", "--data", "y", "--eps", "1\nerror: b"],
    ] {
        let said = misused(&args);
        quiet(&said);
        assert_eq!(said.matches("\nerror: ").count(), 0, "{said}");
        assert!(said.matches("\nUsage: ").count() <= 1, "{said}");
    }
}

/// A network with one answer to a text reads a file line by line, as its tokenizer reads texts; special tokens are
/// exchanged for nothing.
#[test]
fn an_encoder_reads_texts_line_by_line() {
    use lipschitz_nn::checkpoint::{Meta, Provenance, Tokenizer};
    use lipschitz_nn::graph::{Graph, Input, Node, Op};
    use serde_json::{Value, json};

    let w = Workshop::new();
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary: 7, dim: 4 }),
        Node::new("", Op::MeanPool),
        Node::new("head", Op::Linear { inputs: 4, outputs: 3, bias: false }),
    ];
    let graph = Graph::new(Input::tokens(6), nodes).unwrap();
    let noise = |n: usize, k: f32| -> Vec<f32> { (0..n).map(|i| (k * i as f32).sin()).collect() };
    let table = Tensor::from_vec(noise(28, 1.7), (7, 4), &Device::Cpu).unwrap();
    let head = Tensor::from_vec(noise(12, 2.3), (3, 4), &Device::Cpu).unwrap();
    let weights = [("embedding.weight".into(), table), ("head.weight".into(), head)].into();
    let model = lipschitz_nn::Model::new(graph.clone(), weights).unwrap();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let part = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let ids = |id: &str, n: u32| json!({"id": id, "ids": [n], "tokens": [id]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [part("<s>"), text, part("</s>")], "pair": [text, text],
            "special_tokens": {"<s>": ids("<s>", 0), "</s>": ids("</s>", 1)}},
        "model": {"type": "WordLevel", "unk_token": "e",
            "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5, "e": 6}},
    });
    let meta = Meta {
        format: checkpoint::FORMAT,
        graph,
        config: Value::Null,
        tokenizer: Some(Tokenizer::Json { json: tokenizer }),
        classes: Vec::new(),
        provenance: Provenance::default(),
    };
    checkpoint::save(&w.path("encoder.safetensors"), &model, &meta).unwrap();
    let [model, data, out] = ["encoder.safetensors", "lines.txt", "l.json"].map(|n| w.string(n));
    std::fs::write(&data, "a b\n\n  \nc\nd c b a\n").unwrap();
    let read = |path: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    ok(&["local", &model, "--data", &data, "--json", &out]);
    let found = read(&out);
    assert_eq!(found["tokens"], 6);
    assert_eq!(found["inputs"].as_array().unwrap().len(), 3);
    assert!(ok(&["verify", &out, &model, "--data", &data]).contains("holds: 3 radii"));
    ok(&["local", &model, "--data", &data, "--nearest", "9", "--json", &out]);
    let first = &read(&out)["inputs"][0];
    assert_eq!(first["ids"], json!([0, 2, 3, 1]));
    assert_eq!(first["allowed"], json!([[], [3, 4, 5, 6], [2, 4, 5, 6], []]));
    // Another text is another input.
    ok(&["local", &model, "--data", &data, "--json", &out]);
    std::fs::write(&data, "a b\nd\nd c b a\n").unwrap();
    let wrong = certify(&["verify", &out, &model, "--data", &data]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    std::fs::write(&data, "a\na b c d e\n").unwrap();
    let said = refused(&["local", &model, "--data", &data]);
    assert!(said.contains("line 2 has 7 tokens, and the model reads 6"), "{said}");
    ok(&["local", &model, "--data", &data, "--limit", "1"]);
    std::fs::write(&data, "\n \n").unwrap();
    assert!(refused(&["local", &model, "--data", &data]).contains("holds no line of text"));
}

/// `--json` alone, and with `-`, is the document on stdout and nothing else; with a name it is the
/// same document in that file. No command writes a file called `-`.
#[test]
fn json_and_a_dash_mean_the_same_everywhere() {
    let w = Workshop::new();
    let dir = w.string("");
    let here = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = certify(args).current_dir(here.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let commands: [&[&str]; 2] = [&["bound", &dir], &["probe", &dir, "--seconds", "0"]];
    for command in commands {
        let file = w.string(&format!("{}.json", command[0]));
        let document = |args: &[&str]| -> serde_json::Value {
            serde_json::from_str(&run(&[command, args].concat())).unwrap()
        };
        let alone = document(&["--json"]);
        assert_eq!(document(&["--json", "-"]), alone, "{command:?}");
        assert_eq!(document(&["--json=-"]), alone);
        let said = run(&[command, &["--json", &file]].concat());
        assert!(said.contains(" ≤ "), "the result itself: {said}");
        let written: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(written, alone);
    }
    assert_eq!(run(&["bound", &dir, "--quiet", "--json"]).lines().next(), Some("{"));
    // What is written to stdout can be read from stdin.
    let certificate = run(&["bound", &dir, "--json", "-"]);
    let output = piped(&["verify", "-", &dir], certificate.as_bytes());
    assert!(text(&output.stdout).contains("holds"), "{output:?}");
    let output = piped(&["verify", "-", &dir], format!("\u{feff}{certificate}").as_bytes());
    assert!(output.status.success(), "a mark of the byte order is no part of a document");
    assert!(run(&["graph", &dir, "-o", "-"]).starts_with("<svg"));
    assert!(run(&["plot", "layers", &dir, "-o", "-"]).starts_with("<svg"));
    let output = certify(&["import", &golden("llama"), "-o", "-"]).output().unwrap();
    assert!(output.status.success());
    let checkpoint = w.path("piped.safetensors");
    std::fs::write(&checkpoint, &output.stdout).unwrap();
    assert!(ok(&["bound", checkpoint.to_str().unwrap()]).contains("certified"));
    assert!(text(&output.stderr).contains("imported: llama"));
    assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 0, "no file called -");
    let said = refused(&["bound", &dir, "--savings", "--json"]);
    assert!(said.contains("--savings"), "{said}");
}

fn golden(name: &str) -> String {
    format!("{}/../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A file of another kind is named for what it is, wherever a file is read.
#[test]
fn files_of_other_kinds_are_named_in_every_command() {
    let w = Workshop::new();
    let (dir, certificate) = (w.string(""), w.string("c.json"));
    ok(&["bound", &dir, "--json", &certificate]);
    let kinds: [(&str, &[u8], &str); 8] = [
        (
            "page.html",
            b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
            "web page",
        ),
        (
            "pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
            "Git LFS pointer",
        ),
        (
            "packed.gz",
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0",
            "compressed with gzip",
        ),
        ("keras.h5", b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0\x04\0\x10\0", "HDF5"),
        ("archive.zip", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "zip archive"),
        ("paper.pdf", b"%PDF-1.7\n%\xb5\xb5\xb5\xb5\n1 0 obj\n", "PDF document"),
        ("object.pkl", b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94.", "pickle"),
        ("model.gguf", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "GGUF"),
    ];
    for (name, bytes, what) in kinds {
        let file = w.string(name);
        std::fs::write(&file, bytes).unwrap();
        let model = Some(what).filter(|what| !["zip archive", "GGUF"].contains(what));
        let lines: [(&[&str], Option<&str>); 10] = [
            (&["verify", &file, &dir], Some(what)),
            (&["plan", &file, "--target", "5"], Some(what)),
            (&["bound", &file], model),
            (&["probe", &file], model),
            (&["graph", &file, "-o", "g.svg"], model),
            (&["verify", &certificate, &file], model),
            (&["import", &file, "-o", "m.safetensors"], model),
            (&["run", &dir, "--input", &file, "--output", "y.safetensors"], Some(what)),
            (&["plot", "robust", &file, "-o", "r.svg"], Some(what)),
            (&["import", &dir, "--graph", &file, "-o", "m.safetensors"], None),
        ];
        for (args, what) in lines {
            let said = refused(args);
            assert!(said.contains(name) || args.contains(&"--graph"), "{args:?}: {said}");
            assert!(!said.contains("header of"), "{args:?}: {said}");
            if let Some(what) = what {
                assert!(said.contains(what), "{args:?}: {said}");
            }
        }
    }
}

/// What is exported is the network: its weights are a checkpoint with the same bound.
#[test]
fn an_exported_network_is_the_same_one() {
    let w = Workshop::new();
    let (dir, out) = (w.string(""), w.string("exported"));
    let said = ok(&["export", &dir, "--to", "pytorch", &out]);
    assert!(said.contains("weights.safetensors") && said.contains("network.py"), "{said}");
    let bound = |model: &str| ok(&["bound", model, "--json", "--effort", "0"]);
    assert_eq!(bound(&format!("{out}/weights.safetensors")), bound(&dir));
    let program = std::fs::read_to_string(format!("{out}/network.py")).unwrap();
    assert!(program.contains("\nGRAPH = {") && !program.contains("\nGRAPH = None"), "{program}");
    assert!(program.is_ascii() && program.lines().all(|line| line.len() < 200));
    assert!(refused(&["export", "no/such", "--to", "pytorch", &out]).contains("no/such"));
    misused(&["export", &dir, "--to", "tensorflow", &out]);
    // A file where the directory is to be.
    let file = w.string("a-file");
    std::fs::write(&file, "").unwrap();
    assert!(refused(&["export", &dir, "--to", "pytorch", &file]).contains("a-file"));
}

/// The page about ONNX: a file is a model for every command, and a model becomes a file.
#[test]
fn an_onnx_file_is_a_model() {
    let w = Workshop::new();
    let (model, again) = (golden("onnx/resnet.dynamo.onnx"), w.string("again"));
    let said = ok(&["bound", &model, "--effort", "0"]);
    assert!(said.contains("onnx"), "{said}");
    let checkpoint = w.string("m.safetensors");
    ok(&["import", &model, "-o", &checkpoint, "--report"]);
    let bound = |model: &str| ok(&["bound", model, "--json", "--effort", "0"]);
    assert_eq!(bound(&checkpoint), bound(&model));
    let said = ok(&["export", &model, "--to", "onnx", &again]);
    assert!(said.contains("model.onnx") && said.contains("1025 numbers"), "{said}");
    let pixels = golden("onnx/resnet.dynamo.safetensors");
    let input = w.string("x.safetensors");
    let (tensors, _) = checkpoint::load_tensors(Path::new(&pixels), &Device::Cpu).unwrap();
    checkpoint::save_tensors(
        Path::new(&input),
        [("pixels", tensors["pixels"].clone())].into_iter(),
        None,
    )
    .unwrap();
    let mut outputs = Vec::new();
    for model in [&model, &format!("{again}/model.onnx")] {
        let output = w.string("y.safetensors");
        ok(&["run", model, "--input", &input, "--output", &output, "--double"]);
        let (tensors, _) = checkpoint::load_tensors(Path::new(&output), &Device::Cpu).unwrap();
        let all = tensors["output"].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        outputs.push(all);
    }
    let wanted = tensors["output"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for output in outputs {
        assert_eq!(output.len(), wanted.len());
        let mut pairs = output.iter().zip(&wanted);
        assert!(pairs.all(|(a, b)| (a - f64::from(*b)).abs() < 1e-5), "{output:?}");
    }
    let cut = w.string("cut.onnx");
    std::fs::write(&cut, b"\x08\x08\x12\x07pytorch").unwrap();
    let said = refused(&["bound", &cut]);
    assert!(said.contains("cut.onnx") && said.contains("ONNX"), "{said}");
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let w = Workshop::new();
    let out = w.string("man");
    ok(&["man", &out]);
    for page in ["certify", "certify-bound", "certify-plot-tradeoff", "certify-export"] {
        let text = std::fs::read_to_string(format!("{out}/{page}.1")).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
}

/// A classifier whose answer rounding its input to f32 would change: what is said is about the input of the
/// file.
#[test]
fn numbers_of_f64_are_certified_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let [model, data, local] = ["m.safetensors", "d.safetensors", "l.json"].map(at);
    let cpu = &Device::Cpu;
    let column = |values: &[f64]| Tensor::from_slice(values, (values.len(), 1), cpu).unwrap();
    let map = Op::Linear { inputs: 1, outputs: 2, bias: true };
    let graph = Graph::new(Input::Vector { dim: 1 }, vec![Node::new("map", map)]).unwrap();
    let bias = Tensor::from_slice(&[0.0, 1_000_000.02], 2, cpu).unwrap();
    let weights = [("map.weight".to_string(), column(&[1.0, 0.0])), ("map.bias".to_string(), bias)];
    let network = Model::new(graph.clone(), weights.into()).unwrap();
    let (config, provenance) = (serde_json::Value::Null, Provenance::default());
    let (tokenizer, classes, format) = (None, Vec::new(), checkpoint::FORMAT);
    let meta = Meta { format, graph, config, tokenizer, classes, provenance };
    checkpoint::save(Path::new(&model), &network, &meta).unwrap();
    let x = column(&[1_000_000.03, 1_000_000.01]);
    let y = Tensor::from_slice(&[0i64, 1], 2, cpu).unwrap();
    checkpoint::save_tensors(Path::new(&data), [("x", x), ("y", y)].into_iter(), None).unwrap();

    ok(&["local", &model, "--data", &data, "--json", &local]);
    let survey: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&local).unwrap()).unwrap();
    for (row, class) in survey["inputs"].as_array().unwrap().iter().zip([0, 1]) {
        assert_eq!(row["class"], class, "{row}");
        assert!(row["radius"].as_f64().unwrap() < 0.0101, "{row}");
    }
    ok(&["verify", &local, &model, "--data", &data]);
    let robust = ok(&["robust", &model, "--data", &data, "--eps", "0.005", "--json"]);
    let robust: serde_json::Value = serde_json::from_str(&robust).unwrap();
    assert!(robust.to_string().contains("\"available\":2"), "{robust}");

    // What lies in the domain is shown beside it, and the rest refused.
    let shown = ok(&["range", &model, "--data", &data, "--limit", "1e7", "--format", "bf16"]);
    assert!(shown.contains("observed"), "{shown}");
    let quiet = ok(&["range", &model, "--limit", "1e7", "--format", "bf16", "--quiet"]);
    assert_eq!(quiet.lines().count(), 1, "{quiet}");
    for domain in ["--limit", "--radius"] {
        let said = refused(&["range", &model, "--data", &data, domain, "1e6"]);
        assert!(said.contains("is 1000000.03, outside of the domain"), "{said}");
    }

    // Each result by its name, also in place of another.
    let said = refused(&["plot", "robust", &local, "-o", &at("x.svg")]);
    assert!(said.contains("is a result of `certify local`, no result of certify robust"), "{said}");
    let said = refused(&["local", &model, "--data", &data, "--json", "-", "--csv", "-"]);
    assert!(said.contains("--csv and --json are the same file"), "{said}");
    let said = refused(&["report", dir.path().to_str().unwrap(), "-o", &at("x.pdf")]);
    assert!(said.contains("end its name in .html"), "{said}");
    std::fs::write(at("empty.json"), "").unwrap();
    assert!(refused(&["verify", &at("empty.json"), &model]).contains("is empty"));
    let w = Workshop::new();
    let output = certify(&["verify", &local, &w.string(""), "--data", &data]).output().unwrap();
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("the weights are not those"),
        "{said}"
    );
    let said = refused(&["import", &w.string(""), "-o", &at("i.safetensors")]);
    assert!(said.contains("is a run of this project"), "{said}");
}
