//! A target that the certificate meets, and a cap on logits.

mod workshop;

use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::range;
use lipschitz_certify::spectral::Method;
use serde_json::Value;
use workshop::*;

/// Two heads, a layer and a head, as in the preset.
const KEEPING: &str = r#"
lipschitz = { target = 3.0, by = "certificate" }
[model]
preset = "isometric"
dim = 8
context = 8
stages = [{ heads = 2, head_dim = 4, layers = 1 }, { heads = 3, head_dim = 4, layers = 1 }]
[data]
kind = "play"
characters = 4000
[optimizer]
kind = "muon"
per_head = true
[constraint]
method = "stiefel"
sigma_max = 1.0
per_head = true
clip = ["head"]
[train]
steps = 60
batch_size = 2
learning_rate = 0.1
log_every = 1
eval_every = 20
"#;

fn constant(run: &std::path::Path) -> f64 {
    json(&run.join("certificate.json"))["rms"]["value"].as_str().unwrap().parse().unwrap()
}

/// Nothing is lost on the way, so the head has it all, and wants it where that is little; the norms of
/// layers are proven to be 1.
#[test]
fn a_network_that_keeps_norms_uses_its_target() {
    let w = Workshop::new(KEEPING);
    for target in [0.5, 3.0, 40.0] {
        let out = format!("L{target}");
        w.done(&out, &[&format!("lipschitz.target={target}")], &[]);
        let run = w.path(&out);
        let found = constant(&run);
        let least = if target < 1.0 { target * (1.0 - 1e-5) } else { 0.0 };
        assert!(found <= target && found > least, "{found} of {target}");
        let certificate = json(&run.join("certificate.json"));
        let mut layers = 0;
        for row in certificate["weights"].as_array().unwrap() {
            if row["name"].as_str().unwrap().contains(".layer") {
                let upper: f64 = row["upper"]["value"].as_str().unwrap().parse().unwrap();
                assert!((upper - 1.0).abs() < 3e-6, "{row}");
                layers += 1;
            }
        }
        assert_eq!(layers, 2);
        assert!(metrics(&run).iter().all(|line| {
            line["lipschitz"].as_f64().is_none_or(|log10| log10 <= target.log10() + 1e-9)
        }));
    }
}

/// Between two fits a network may be above its target, where its loss is lower: that is not its best.
#[test]
fn the_best_network_meets_the_target_too() {
    let w = Workshop::new(TINY);
    let target = "lipschitz={ target = 0.5, by = \"certificate\" }";
    w.done("run", &[target, "train.eval_every=10", "train.learning_rate=0.3"], &[]);
    let run = w.path("run");
    let lines = metrics(&run);
    let above =
        |line: &&Value| line["val_loss"].is_number() && line["lipschitz"].as_f64() > Some(0.0);
    let lowest = lines.iter().filter(above).filter_map(|line| line["val_loss"].as_f64());
    let summary = json(&run.join("summary.json"));
    let best = summary["best_val_loss"].as_f64().unwrap();
    assert!(lowest.fold(f64::MAX, f64::min) < best, "no step in between was above the target");
    let model = lipschitz_certify::open(&run.join("best.safetensors")).unwrap();
    let (method, formula) = (Method::Proven, Formula::Sound);
    let certificate = certify(&model, method, formula, None).unwrap();
    assert!(certificate.rms.to_f64() <= 0.5, "{}", certificate.rms);
}

/// A network whose caps say far more than its norms: what they leave goes to the head, which no cap
/// of its own allows. Without a constraint the head is scaled down, and under weight decay, which has no caps
/// to lower, it is kept there.
#[test]
fn other_networks_meet_it_as_well() {
    let w = Workshop::new(&TINY.replace("every = 7", "every = 10"));
    for (constraint, least) in [
        ("{ method = \"spectral_soft_cap\", sigma_max = 1.0 }", 0.2),
        ("{ method = \"none\" }", 0.2),
        ("{ method = \"weight_decay\", decay = 0.5 }", 0.0),
    ] {
        for target in [0.7, 9.0] {
            let settings = [
                format!("lipschitz={{ target = {target}, by = \"certificate\" }}"),
                format!("constraint={constraint}"),
                "train.steps=100".into(),
            ];
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let out = format!("{}-{target}", constraint.len());
            w.done(&out, &settings, &[]);
            let found = constant(&w.path(&out));
            assert!(found <= target && found > least * target, "{constraint}: {found} of {target}");
        }
    }
}

/// With a search, the smaller of both proofs meets the target: the head has what ellipsoids leave of it,
/// which is more than norms do.
#[test]
fn ellipsoids_leave_more_to_the_head() {
    let w =
        Workshop::new(&TINY.replace("layers = 1", "layers = 3").replace("every = 7", "every = 99"));
    let target = 0.7;
    let ended = |effort: usize| {
        let out = format!("effort-{effort}");
        let goal =
            format!("lipschitz={{ target = {target}, by = \"certificate\", effort = {effort} }}");
        w.done(&out, &[&goal, "train.steps=200"], &[]);
        constant(&w.path(&out))
    };
    let (norms, both) = (ended(0), ended(4));
    assert!(both <= target && both > 0.98 * target, "{both} of {target}");
    assert!(norms < 0.95 * both, "{norms} by norms, {both} by both");
    let said = |settings: &[&str]| refused(&mut w.run("none", settings, &[]));
    assert!(said(&["lipschitz={ target = 2.0, effort = 3 }"]).contains("lipschitz.by"));
    let many = "lipschitz={ target = 2.0, by = \"certificate\", effort = 1000000 }";
    assert!(said(&[many]).contains("lipschitz.effort is 1000000"));
}

/// The mean of a run is fitted by itself, and its head may have more than that of the last step: its caps
/// are its own.
#[test]
fn a_mean_meets_it_under_caps_of_its_own() {
    let w = Workshop::new(&TINY.replace("every = 7", "every = 10"));
    for seed in 0..12 {
        let out = format!("mean-{seed}");
        let settings = [
            "lipschitz={ target = 1e-3, by = \"certificate\" }",
            "averaging={ kind = \"tail\", share = 0.5 }",
            "optimizer={ kind = \"adamw\" }",
            "constraint={ method = \"svd_clip\", sigma_max = 8.0 }",
            "train.learning_rate=0.001",
            "train.schedule.kind=\"constant\"",
            "train.steps=3",
            &format!("train.seed={seed}"),
        ];
        w.done(&out, &settings, &[]);
        let found = constant(&w.path(&out));
        assert!(found <= 1e-3 && found > 0.0, "{found}");
    }
}

/// A head that f32 cannot make small enough would be zero for good.
#[test]
fn a_constant_that_no_head_makes_up_for_is_said() {
    let w = Workshop::new(&TINY.replace("every = 7", "every = 10"));
    w.done("any", &["train.steps=2"], &[]);
    let outputs = largest_logit(&w.path("any")).1;
    let norm = r#"{"name":"NAME","op":"layer_norm","dim":8,"eps":1e-5,"bias":false}"#;
    let norms: Vec<String> = (0..30).map(|i| norm.replace("NAME", &format!("n{i}"))).collect();
    let graph = format!(
        r#"{{"format":1,"input":{{"kind":"tokens","context":8}},"nodes":[
        {{"name":"e","op":"embedding","vocabulary":{outputs},"dim":8}},{},
        {{"name":"head","op":"linear","inputs":8,"outputs":{outputs},"bias":false}}]}}"#,
        norms.join(",")
    );
    std::fs::write(w.path("norms.json"), graph).unwrap();
    let model = format!("model={{ preset = \"graph\", path = {:?} }}", w.path("norms.json"));
    let goal = "lipschitz={ target = 2.0, by = \"certificate\" }";
    let settings = [&model, goal, "constraint={ method = \"none\" }"];
    let said = refused(&mut w.run("none", &settings, &[]));
    assert!(said.contains("lipschitz.target is 2") && said.contains("would be zero"), "{said}");
}

/// What the head may have is part of a checkpoint.
#[test]
fn a_resumed_run_is_the_run() {
    let w = Workshop::new(&KEEPING.replace("steps = 60", "steps = 300"));
    w.done("whole", &[], &[]);
    let mut running = spawn(&mut w.run("parts", &[], &[]));
    wait_for_lines(&w.path("parts"), 60, &mut running);
    assert!(signal("TERM", &running.id()));
    running.output();
    let made = metrics(&w.path("parts")).len();
    assert!(made < 300, "the run was at its end");
    w.done("parts", &[], &["--resume"]);
    Ended::of(&w.path("parts")).assert_is(&Ended::of(&w.path("whole")));
}

#[test]
fn what_cannot_be_met_is_refused() {
    let w = Workshop::new(KEEPING);
    let said = |settings: &[&str]| refused(&mut w.run("none", settings, &[]));
    assert!(said(&["lipschitz_target=2"]).contains("keep one"));
    assert!(said(&["lipschitz.target=0"]).contains("lipschitz.target is 0"));
    assert!(said(&["lipschitz.target=1e-42"]).contains("the smallest is 1e-30"));
    assert!(said(&["lipschitz.by=\"magic\""]).contains("magic"));
    assert!(said(&["constraint.clip=[\"haed\"]"]).contains("haed"));
    assert!(said(&["constraint.method=\"svd_clip\""]).contains("constraint.clip"));
    let graph = r#"{"format":1,"input":{"kind":"tokens","context":8},"nodes":[
        {"name":"e","op":"embedding","vocabulary":100,"dim":100},{"op":"max_min"}]}"#;
    std::fs::write(w.path("graph.json"), graph).unwrap();
    let model = format!("model={{ preset = \"graph\", path = {:?} }}", w.path("graph.json"));
    let constraint = "constraint={ method = \"stiefel\", sigma_max = 1 }";
    let found = said(&[&model, constraint, "optimizer={ kind = \"muon\" }"]);
    assert!(found.contains("linear map") || found.contains("outputs"), "{found}");
    let _: Value = json(&{
        w.done("fine", &["lipschitz=", "lipschitz_target=2", "train.steps=2"], &[]);
        w.path("fine/summary.json")
    });
}

/// The largest logit that is proven of the network of a run, and its number of outputs.
fn largest_logit(run: &std::path::Path) -> (f64, usize) {
    let device = candle_core::Device::Cpu;
    let file = run.join("model.safetensors");
    let (model, _) = lipschitz_nn::checkpoint::load(&file, &device).unwrap();
    let ranges = range::prove(&model, range::Inputs::default(), 0, &|_| {}).unwrap();
    (ranges.largest_logit().unwrap().to_f64(), model.graph().outputs())
}

/// No input can make a logit larger than `max_logit`, whatever keeps the weights, however queries
/// share keys, and with gains of their norms in the way; without it, logits can be larger.
#[test]
fn logits_stay_under_their_cap() {
    let w = Workshop::new(&TINY.replace("every = 7", "every = 10"));
    let free = ["train.steps=40", "train.learning_rate=0.3"];
    w.done("free", &free, &[]);
    let (free_logit, outputs) = largest_logit(&w.path("free"));
    let graph = |attention: &str| {
        let text = format!(
            r#"{{"format":1,"input":{{"kind":"tokens","context":8}},"nodes":[
            {{"name":"e","op":"embedding","vocabulary":{outputs},"dim":8}},
            {{"name":"attention","op":"attention","dim":8,"heads":4,"head_dim":2,"logit_scale":0.7,
              "output_scale":1.0,"causal":true,"output_bias":false,{attention}}},
            {{"name":"head","op":"linear","inputs":8,"outputs":{outputs},"bias":false}}]}}"#
        );
        let path = w.path(&format!("{}.json", attention.len()));
        std::fs::write(&path, text).unwrap();
        format!("model={{ preset = \"graph\", path = {path:?} }}")
    };
    let shared = graph(r#""key_value_heads":2,"bias":true"#);
    let normed = graph(r#""key_value_heads":4,"bias":false,"query_key_norm":0.01"#);
    let adamw = "optimizer={ kind = \"adamw\" }";
    let none = "constraint={ method = \"none\" }";
    let cases: [(&str, f64, &[&str]); 4] = [
        ("capped", 0.5 * free_logit, &[]),
        ("shared", 0.3, &[&shared, adamw, none]),
        ("normed", 0.3, &[&normed, adamw, none]),
        ("unbound", 0.3, &[&shared, adamw, none]),
    ];
    for (out, most, settings) in cases {
        let cap = format!("max_logit={most}");
        let mut settings = [&free[..], settings].concat();
        settings.extend((out != "unbound").then_some(cap.as_str()));
        w.done(out, &settings, &[]);
        let found = largest_logit(&w.path(out)).0;
        assert_eq!(found <= most, out != "unbound", "{out}: {found} of {most}");
        assert!(found > 0.1 * most, "{out}: {found} of {most}");
    }
    let said = |settings: &[&str]| refused(&mut w.run("none", settings, &[]));
    assert!(said(&["max_logit=0"]).contains("max_logit is 0"));
    let vectors = "model={ preset = \"mlp\", hidden = [4] }";
    let found = said(&["max_logit=1", vectors, "data={ kind = \"cifar10\", path = \"x\" }"]);
    assert!(found.contains("no attention") || found.contains("x"), "{found}");
}

/// A head whose rows have caps is not scaled up to what is left of the target: its caps stay.
#[test]
fn rows_at_their_caps_stay_there() {
    let w = Workshop::new(&TINY.replace("every = 7", "every = 99"));
    let settings = |target: f64| {
        [
            "constraint.sigma_max=0.6".to_string(),
            "constraint.row_caps=[\"head\"]".into(),
            "train.schedule.kind=constant".into(),
            format!("lipschitz={{ target = {target}, by = \"certificate\" }}"),
        ]
    };
    let done = |out: &str, target: f64| {
        let settings = settings(target);
        w.done(out, &settings.each_ref().map(String::as_str), &[]);
        constant(&w.path(out))
    };
    let reached = done("far", 1e6);
    for above in [1.003, 1.006] {
        let target = reached * above;
        let found = done(&format!("near{above}"), target);
        assert!(found <= target, "{found} of {target}");
    }
}
